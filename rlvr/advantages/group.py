"""Group-relative and leave-one-out advantages.

The rewards of a group are compared with each other, so a group needs two: a
response that is alone in its group, or whose reward is the only one that is
there, has advantage 0 (and keeps its weight; `advantage/groups_of_one` counts
such groups). A missing reward is left out of the group's statistics; its
response has advantage 0 and weight 0. Advantages carry no gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  check_positive,
  find_reward,
  present_mean,
  stateless,
)
from rlvr.rewards.statistics import present_std, zero_variance_groups
from rlvr.types import Array, Context, Rollout, Scores


def group_relative_advantages(
  rewards: Array,
  group: Array,
  num_groups: int,
  *,
  scale_by_std: bool,
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Array:
  """Returns how much better a response is than its group.

      A_i = (r_i − mean_g r) / (std_g r + ε)     scale_by_std
      A_i =  r_i − mean_g r                      otherwise

  Source: GRPO, https://arxiv.org/abs/2402.03300, section 4.1.2; without the
  deviation (Dr. GRPO), https://arxiv.org/abs/2503.20783, which shows that the
  division favours prompts that are almost always or almost never solved.

  Deviation: the paper has no ε and does not say which standard deviation; ε
  guards the division, and n − 1 is what PyTorch implementations take.

  Args:
    rewards: float [B]; NaN where missing.
    group: int32 [B].
    num_groups: P, static.
    scale_by_std: whether to divide.
    epsilon: ε, in the rewards' unit.
    ddof: 1 divides the variance by n − 1, 0 by n.

  Returns:
    float [B]; 0 in a group of equal rewards, in a group of one, and where the
    reward is missing.
  """
  centred, scale = group_centred(rewards, group, num_groups, ddof=ddof)
  if scale_by_std:
    centred = centred / (scale[group] + epsilon)
  return jnp.where(jnp.isnan(rewards), 0.0, centred)


def leave_one_out_advantages(
  rewards: Array, group: Array, num_groups: int
) -> Array:
  """Returns how much better a response is than the others of its group.

      A_i = r_i − (1 / (n − 1)) Σ_{j ≠ i} r_j = (n / (n − 1)) (r_i − mean_g r)

  Source: RLOO, https://arxiv.org/abs/2402.14740, section on REINFORCE
  leave-one-out.

  Args:
    rewards: float [B]; NaN where missing.
    group: int32 [B].
    num_groups: P, static.

  Returns:
    float [B]; 0 in a group of one and where the reward is missing.
  """
  here = ~jnp.isnan(rewards)
  centred, _ = group_centred(rewards, group, num_groups, ddof=1)
  count = segments.group_count(here, group, num_groups)[group]
  scale = count / jnp.maximum(count - 1, 1)
  return jnp.where(here, scale * centred, 0.0)


def group_relative(
  *,
  scale_by_std: bool,
  reward: str | None = None,
  epsilon: float = 1e-6,
  ddof: int = 1,
) -> Transform:
  """Turns an outcome reward into GRPO's or Dr. GRPO's advantages.

  Every token of a response gets `group_relative_advantages` of its reward.

  Args:
    scale_by_std: true: GRPO; false: Dr. GRPO.
    reward: which outcome reward; None means the only one.
    epsilon: guards the division.
    ddof: 1 divides the variance by n − 1, 0 by n.

  Raises:
    ValueError: epsilon is not positive; there are no two responses to any prompt (at trace time).
  """

  check_positive("epsilon", epsilon, who="group_relative")

  def fn(rewards, rollout):
    return group_relative_advantages(
      rewards,
      rollout.group,
      rollout.num_prompts,
      scale_by_std=scale_by_std,
      epsilon=epsilon,
      ddof=ddof,
    )

  params = {"scale_by_std": scale_by_std, "epsilon": epsilon, "ddof": ddof}
  return _outcome_estimator("group_relative", fn, reward, params)


def leave_one_out(*, reward: str | None = None) -> Transform:
  """Turns an outcome reward into RLOO's advantages, the same on each token.

  Args:
    reward: which outcome reward; None means the only one.

  Raises:
    ValueError: there are no two responses to any prompt (at trace time).
  """

  def fn(rewards, rollout):
    return leave_one_out_advantages(rewards, rollout.group, rollout.num_prompts)

  return _outcome_estimator("leave_one_out", fn, reward, {})


def check_groups(rollout: Rollout, *, who: str) -> None:
  """Raises ValueError unless some prompt can have two responses.

  Shapes show no more than that while tracing.
  """
  responses, prompts = rollout.tokens.shape[0], rollout.num_prompts
  if responses <= prompts:
    raise ValueError(
      f"{who}: {responses} responses to {prompts} prompts: nothing to compare"
      " a response with. Set `group_size` to 2 or more"
    )


def with_advantages(
  scores: Scores, advantages: Array, rewards: Array, rollout: Rollout
) -> Scores:
  """Returns the scores with advantages, weights and metrics set.

  Responses without reward get advantage 0 and weight 0; advantages get no
  gradient and are 0 outside the response. Any estimator can end with this.

  Args:
    scores: before the estimator.
    advantages: float [B, T] or [B], finite.
    rewards: float [B], what was compared; NaN where missing.
    rollout: whose masks and groups to use.
  """
  here = ~jnp.isnan(rewards)
  if advantages.ndim == 1:
    advantages = advantages[:, None]
  keep = rollout.completion_mask & here[:, None]
  group, prompts = rollout.group, rollout.num_prompts
  count = segments.group_count(here, group, prompts)
  equal = zero_variance_groups(rewards, group, prompts)
  scores = dataclasses.replace(
    scores,
    advantages=jax.lax.stop_gradient(jnp.where(keep, advantages, 0.0)),
    weights=scores.weights * here,
  )
  return add_metrics(
    scores,
    advantage__reward_mean=present_mean(rewards),
    advantage__reward_std=present_std(rewards),
    advantage__zero_variance_groups=equal.sum()
    / jnp.maximum((count > 1).sum(), 1),
    advantage__groups_of_one=(count == 1).sum(),
    advantage__missing=1.0 - here.mean(),
  )


def _outcome_estimator(name, fn, reward, params) -> Transform:
  def apply(scores, context: Context):
    check_groups(context.rollout, who=name)
    _, _, rewards = find_reward(scores, reward, ("outcome",), who=name)
    advantages = fn(rewards, context.rollout)
    return with_advantages(scores, advantages, rewards, context.rollout)

  return stateless(
    name, apply, gives="advantages", params={"reward": reward, **params}
  )


def group_centred(
  rewards: Array, group: Array, num_groups: int, *, ddof: int
) -> tuple[Array, Array]:
  """Returns rewards minus their group's mean [B], and the deviations [P].

  The group's least reward is taken off first: the mean of equal rewards can
  round to another number, and the rest over ε would be no small advantage.
  """
  here = ~jnp.isnan(rewards)
  least = jax.ops.segment_min(
    jnp.where(here, rewards, jnp.inf), group, num_segments=num_groups
  )[group]
  shifted = jnp.where(here, rewards - jnp.where(here, least, 0.0), 0.0)
  mean = segments.group_mean(shifted, group, num_groups, here)
  scale = segments.group_std(shifted, group, num_groups, here, ddof=ddof)
  return jnp.where(here, shifted - mean[group], 0.0), scale
