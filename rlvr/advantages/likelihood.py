"""JEPO: advantages of the likelihood that a group gives to the answer together.

Catalogue: the JEPO form of log_prob_reward.
"""

import jax
import jax.numpy as jnp

from rlvr.advantages.group import check_groups, with_advantages
from rlvr.rewards.algebra import Transform, find_reward, stateless
from rlvr.rewards.from_probes import add_outcome
from rlvr.types import Array, Context


def jepo_advantages(log_likelihoods: Array, group: Array) -> Array:
  """Returns what each reasoning adds to the group's bound on log π(y*|x).

      A_i = log (1/n) Σ_j π(y*|x,z_j) − log (1/(n−1)) Σ_{j≠i} π(y*|x,z_j)

  Source: JEPO, https://arxiv.org/abs/2503.19618, the multi-sample bound; eq. 11
  of https://arxiv.org/abs/2602.03979 and the text behind it.

  Args:
    log_likelihoods: float32 [B], log π(y*|x,z_i), nats; NaN where missing.
    group: int32 [B].

  Returns:
    float32 [B]; 0 where missing and in a group of one.
  """
  here = ~jnp.isnan(log_likelihoods)
  same = (group[:, None] == group[None]) & here[None]
  others = same & ~jnp.eye(group.shape[0], dtype=bool)
  # All pairs: taking π_i off the sum again would cancel where it dominates.
  together = _log_mean_exp(log_likelihoods, same)
  without = _log_mean_exp(log_likelihoods, others)
  return jnp.where(here & others.any(-1), together - without, 0.0)


def jepo_coefficients(log_likelihoods: Array, group: Array) -> Array:
  """Returns each reasoning's share of the group's likelihood of the answer.

      s_i = π(y*|x,z_i) / Σ_j π(y*|x,z_j)

  ∇ log Σ_i π(y*|x,z_i) = Σ_i s_i ∇ log π(y*|x,z_i): the coefficients of the
  objective's second term (`rlvr.objectives.passes`), to be used with the
  same mean over responses as the first.

  Args:
    log_likelihoods: float32 [B], nats; NaN where missing.
    group: int32 [B].

  Returns:
    float32 [B], summing to 1 in a group; NaN where missing.
  """
  here = ~jnp.isnan(log_likelihoods)
  same = (group[:, None] == group[None]) & here[None]
  values = jnp.where(same, log_likelihoods[None], -jnp.inf)
  total = jax.nn.logsumexp(
    jnp.where(same.any(-1, keepdims=True), values, 0.0), axis=-1
  )
  return jnp.exp(log_likelihoods - total)


def jepo(
  *, reward: str | None = None, coefficient: str | None = None
) -> Transform:
  """Turns log π(y*|x,z) into JEPO's advantages.

  Args:
    reward: which outcome reward, a log-probability in nats (see
      `rlvr.rewards.likelihood.answer_log_probability`); None means the only
      one.
    coefficient: name under which `jepo_coefficients` are left for the
      objective's second term; None leaves them out.

  Raises:
    ValueError: there are no two responses to any prompt (at trace time).
  """

  def apply(scores, context: Context):
    rollout = context.rollout
    check_groups(rollout, who="jepo")
    _, _, values = find_reward(scores, reward, ("outcome",), who="jepo")
    if coefficient is not None:
      share = jepo_coefficients(values, rollout.group)
      scores = add_outcome(scores, coefficient, share, context, who="jepo")
    advantages = jepo_advantages(values, rollout.group)
    return with_advantages(scores, advantages, values, rollout)

  return stateless(
    "jepo",
    apply,
    gives="advantages",
    params={"reward": reward, "coefficient": coefficient},
  )


def _log_mean_exp(values: Array, mask: Array) -> Array:
  """Returns [B]: over row i of the mask, log mean exp of `values` [B]."""
  some = mask.any(-1, keepdims=True)
  # A row of -inf alone has no finite logsumexp, nor gradient.
  spread = jnp.where(some & ~mask, -jnp.inf, jnp.where(mask, values[None], 0.0))
  count = jnp.maximum(mask.sum(-1), 1)
  return jax.nn.logsumexp(spread, axis=-1) - jnp.log(count)
