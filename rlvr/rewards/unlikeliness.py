"""The unlikeliness reward: rare right responses weigh more.

Catalogue: unlikeliness_reward.

Group-relative estimators reinforce what the policy already does: of the right
responses, the likely ones are sampled more often. Here the likely ones earn
less. The paper's second remedy, several passes over each batch, belongs to the
training loop and is not here.
"""

import jax
import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  Transform,
  check_probability,
  map_reward,
)
from rlvr.types import Array, Context


def likelihood_ranks(likelihood: Array, group: Array, num_groups: int) -> Array:
  """Returns how many of its group are less likely than a response.

  Args:
    likelihood: float [B], log-likelihoods in nats.
    group: int32 [B], in 0..num_groups-1; any order, any sizes.
    num_groups: P, static.

  Returns:
    int32 [B]: 0 for the least likely, n − 1 for the most likely of n; equally
    likely responses have the same rank.
  """
  order = jnp.lexsort((likelihood, group))
  value, owner = likelihood[order], group[order]
  size = segments.group_count(
    jnp.ones_like(group, dtype=bool), group, num_groups
  )
  start = (jnp.cumsum(size) - size)[owner]
  position = jnp.arange(group.shape[0], dtype=jnp.int32)
  changed = (value[1:] != value[:-1]) | (owner[1:] != owner[:-1])
  changed = jnp.pad(changed, (1, 0), constant_values=True)
  # Ties take the place of the first of them.
  first = jax.lax.cummax(jnp.where(changed, position, 0))
  ranks = (first - start).astype(jnp.int32)
  return jnp.zeros_like(ranks).at[order].set(ranks)


def unlikeliness_reward(
  rewards: Array,
  likelihood: Array,
  group: Array,
  num_groups: int,
  *,
  beta: float = 0.25,
) -> Array:
  """Returns rewards of right responses, less for those that are likely.

      r_i ← r_i · (1 − β (G − rank_i) / G)      where r_i > 0

  with rank_i from 1 for the most likely to G for the least likely of the
  group's G responses: the least likely keeps its reward, the most likely keeps
  1 − β (G − 1) / G of it. Wrong responses are left alone.

  Source: https://arxiv.org/abs/2506.02355 and the reference code,
  https://github.com/AndreHe02/rewarding-unlikely-release (β = 0.25).
  Deviations: the code multiplies every reward, which is the same for rewards 0
  and 1; equally likely responses share a rank, where the code ranks them by
  their place in the batch.

  Args:
    rewards: float [B]; NaN where missing.
    likelihood: float [B], log-likelihoods in nats.
    group: int32 [B].
    num_groups: P, static.
    beta: β, share of the reward at stake.

  Returns:
    float [B].
  """
  rank = likelihood_ranks(likelihood, group, num_groups)
  ones = jnp.ones_like(group, dtype=bool)
  size = segments.group_count(ones, group, num_groups)[group]
  factor = 1.0 - beta * rank / jnp.maximum(size, 1)
  return jnp.where(rewards > 0, rewards * factor, rewards)


def unlikeliness(
  *, reward: str | None = None, beta: float = 0.25, per_token: bool = True
) -> Transform:
  """Lowers the reward of right responses that are likely in their group.

  See `unlikeliness_reward`. The likelihood is the policy's; responses whose
  reward is missing count in the ranks: their likelihood is known.

  Args:
    reward: which outcome reward; None means the only one.
    beta: β.
    per_token: true: ranks by the mean log-prob of a token, as the reference
      code; false: by their sum, the likelihood of the response, which makes
      rare and long much the same.

  Raises:
    ValueError: beta is not in 0..1.
  """
  check_probability("beta", beta, who="unlikeliness")

  def fn(values: Array, context: Context) -> Array:
    rollout = context.rollout
    logprobs = jax.lax.stop_gradient(context.probes["logprobs"])
    mask = rollout.completion_mask
    if per_token:
      likelihood = segments.masked_mean(logprobs, mask, axis=-1)
    else:
      likelihood = jnp.where(mask, logprobs, 0.0).sum(axis=-1)
    return unlikeliness_reward(
      values, likelihood, rollout.group, rollout.num_prompts, beta=beta
    )

  return map_reward(
    "unlikeliness",
    fn,
    reward=reward,
    kinds=("outcome",),
    requires=("logprobs",),
    params={"beta": beta, "per_token": per_token},
  )
