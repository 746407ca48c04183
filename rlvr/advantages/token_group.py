"""Group-relative advantages of token returns.

Where tokens of a response have different returns, their baseline has to come
from somewhere: `token_group_relative` takes the group's first returns,
`token_leave_one_out` the others' reward per token. Groups of one and missing
returns are treated as in `rlvr.advantages.group`.
"""

import jax
import jax.numpy as jnp

from rlvr import segments
from rlvr.advantages.group import (
  check_groups,
  group_centred,
  leave_one_out_advantages,
  with_advantages,
)
from rlvr.rewards.algebra import (
  Transform,
  check_positive,
  find_reward,
  stateless,
)
from rlvr.types import Array, Context


def token_group_relative_advantages(
  returns: Array,
  mask: Array,
  group: Array,
  num_groups: int,
  *,
  scale_by_std: bool,
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Array:
  """Returns token returns minus the group's mean return of the first token.

      A_it = (G_it − mean_g G_·0) / (std_g G_·0 + ε)

  The baseline is the value of the prompt, as GRPO's for one reward per
  response; with equal returns on all tokens this is
  `group_relative_advantages`. No paper's own.

  Args:
    returns: float [B, T]; a response with NaN is missing.
    mask: bool [B, T], true on the response.
    group: int32 [B].
    num_groups: P, static.
    scale_by_std: whether to divide by the deviation of the first returns.
    epsilon: ε, in the rewards' unit.
    ddof: 1 divides the variance by n − 1, 0 by n.

  Returns:
    float [B, T], 0 outside the response, where it is missing, and in a group of
    one.
  """
  first = _first_return(returns, mask)
  here = ~jnp.isnan(first)
  centred, scale = group_centred(first, group, num_groups, ddof=ddof)
  # G_t − mean = (G_t − G_0) + (G_0 − mean), so that equal returns give 0.
  advantages = returns - returns[:, :1] + centred[:, None]
  if scale_by_std:
    advantages = advantages / (scale[group] + epsilon)[:, None]
  count = segments.group_count(here, group, num_groups)[group]
  keep = mask & (here & (count > 1))[:, None]
  return jnp.where(keep, advantages, 0.0)


def token_leave_one_out_advantages(
  returns: Array,
  mask: Array,
  step_index: Array,
  group: Array,
  num_groups: int,
) -> Array:
  """Returns token returns minus what the others earn in as many tokens.

      A_it = G_it − (Σ_{j ≠ i} G_j0 / Σ_{j ≠ i} n_j) · m_it

  n_j: tokens of response j; m_it: tokens of response i from the beginning of
  the step of token t to the end of the response.

  Source: PURE, https://arxiv.org/abs/2504.15275, with the token baseline of
  https://github.com/CJReinforce/PURE.
  Deviation: the reference code does not
  count the delimiter of a step as one of its tokens and gives it advantage 0;
  here it is a token as any other.

  Args:
    returns: float [B, T], undiscounted token returns; a response with NaN is
      missing.
    mask: bool [B, T], true on the response.
    step_index: int32 [B, T], -1 outside.
    group: int32 [B].
    num_groups: P, static.

  Returns:
    float [B, T], 0 outside the response, where it is missing, and in a group of
    one.
  """
  first = _first_return(returns, mask)
  here = ~jnp.isnan(first)
  length = jnp.where(here, mask.sum(axis=-1), 0)
  total = jnp.where(here, first, 0.0)
  others = segments.group_sum(total, group, num_groups)[group] - total
  tokens = segments.group_sum(length, group, num_groups)[group] - length
  per_token = others / jnp.maximum(tokens, 1)
  starts = step_index != jnp.pad(step_index[:, :-1], ((0, 0), (1, 0)), "edge")
  starts = starts.at[:, 0].set(True)
  position = jnp.arange(mask.shape[1])[None, :]
  start = jax.lax.cummax(jnp.where(starts, position, 0), axis=1)
  remaining = mask.sum(axis=-1, keepdims=True) - start
  advantages = returns - per_token[:, None] * remaining
  keep = mask & (here & (tokens > 0))[:, None]
  return jnp.where(keep, advantages, 0.0)


def token_group_relative(
  *,
  scale_by_std: bool,
  reward: str | None = None,
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Transform:
  """Turns token returns into advantages over the group's first returns.

  See `token_group_relative_advantages`.

  Args:
    scale_by_std: whether to divide by the deviation of the first returns.
    reward: which token returns; None means the only ones.
    epsilon: guards the division.
    ddof: 1 divides the variance by n − 1, 0 by n.

  Raises:
    ValueError: epsilon is not positive; there are no two responses to any prompt (at trace time).
  """
  who = "token_group_relative"
  check_positive("epsilon", epsilon, who=who)

  def apply(scores, context: Context):
    rollout = context.rollout
    check_groups(rollout, who=who)
    _, _, returns = find_reward(scores, reward, ("token",), who=who)
    advantages = token_group_relative_advantages(
      returns,
      rollout.completion_mask,
      rollout.group,
      rollout.num_prompts,
      scale_by_std=scale_by_std,
      epsilon=epsilon,
      ddof=ddof,
    )
    first = _first_return(returns, rollout.completion_mask)
    return with_advantages(scores, advantages, first, rollout)

  params = {"scale_by_std": scale_by_std, "epsilon": epsilon, "ddof": ddof}
  return stateless(
    who, apply, gives="advantages", params={"reward": reward, **params}
  )


def token_leave_one_out(
  *,
  reward: str | None = None,
  outcome: str | None = None,
  outcome_weight: float = 1.0,
) -> Transform:
  """Turns token returns into PURE's advantages.

      A_it = token_leave_one_out(G)_it + w · leave_one_out(r)_i

  Source: https://arxiv.org/abs/2504.15275 (w = 1 in the reference code's
  runs). There few prompts have a verifiable answer (10%); a missing outcome
  therefore adds 0 and, against the rule for missing rewards, does not drop the
  response.

  Args:
    reward: which token returns; None means the only ones.
    outcome: which verifiable outcome reward to mix in; None means none.
    outcome_weight: w.

  Raises:
    ValueError: there are no two responses to any prompt (at trace time).
  """
  who = "token_leave_one_out"

  def apply(scores, context: Context):
    rollout = context.rollout
    mask = rollout.completion_mask
    check_groups(rollout, who=who)
    _, _, returns = find_reward(scores, reward, ("token",), who=who)
    advantages = token_leave_one_out_advantages(
      returns, mask, rollout.step_index, rollout.group, rollout.num_prompts
    )
    if outcome is not None:
      _, _, rewards = find_reward(scores, outcome, ("outcome",), who=who)
      verified = leave_one_out_advantages(
        rewards, rollout.group, rollout.num_prompts
      )
      advantages += outcome_weight * verified[:, None] * mask
    first = _first_return(returns, mask)
    return with_advantages(scores, advantages, first, rollout)

  return stateless(
    who,
    apply,
    gives="advantages",
    params={
      "reward": reward,
      "outcome": outcome,
      "outcome_weight": outcome_weight,
    },
  )


def _first_return(returns: Array, mask: Array) -> Array:
  """Returns float [B]: the first token's return, NaN where any is missing."""
  absent = (jnp.isnan(returns) & mask).any(axis=-1)
  return jnp.where(absent, jnp.nan, returns[:, 0])
