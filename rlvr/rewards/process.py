"""Step rewards of which repeating good steps makes no more: clip and delta.

Summed up, the rewards of a process reward model pay for every further step
that is correct, needed or not. Both refinements bound the return.

Source: Gao et al., "On Designing Effective RL Reward at Training Time for LLM
Reasoning", https://arxiv.org/abs/2410.15115.
"""

import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import Transform, map_reward
from rlvr.types import Array


def clipped_step_rewards(values: Array, mask: Array, *, eta: float) -> Array:
  """Returns step rewards that are at most 0: min(r_k − η, 0).

  Source: https://arxiv.org/abs/2410.15115, Clip. Steps that are good enough
  earn nothing, others lose, so a return is at most 0 whatever is repeated.

  Args:
    values: float [B, K], step rewards.
    mask: bool [B, K], true on the response's steps.
    eta: threshold η, in the rewards' unit. The paper gives no one value for
      all reward models.

  Returns:
    float [B, K], 0 outside the response.
  """
  return jnp.where(mask, jnp.minimum(values - eta, 0.0), 0.0)


def delta_step_rewards(values: Array, mask: Array) -> Array:
  """Returns the falls of the step rewards.

      r_k ← r_k − r_{k+1}   for k < K − 1
      r_{K−1} ← r_{K−1}
      r_K ← 0

  with the steps 1..K of the response itself (each response has its own K).
  Without discount the return from step k < K telescopes to r_k: the return
  from any step is the reward of that step alone, and the last step, which the
  success reward judges, earns nothing here. A response of one step gets 0.

  Source: https://arxiv.org/abs/2410.15115, Delta. The equation was read off
  the paper's summary; the paper's figure of four steps agrees with it: its
  third step keeps its own reward, its fourth is struck out.

  Args:
    values: float [B, K], step rewards.
    mask: bool [B, K], true on a prefix: the response's steps.

  Returns:
    float [B, K], 0 outside the response.
  """
  # The next step's reward counts where the next step isn't the last one.
  has_next = _shift(mask, False)
  next_has_next = _shift(has_next, False)
  following = jnp.where(next_has_next, _shift(values, 0.0), 0.0)
  return jnp.where(mask & has_next, values - following, 0.0)


def clip_steps(*, eta: float, reward: str | None = None) -> Transform:
  """Makes each step reward min(r_k − η, 0), see `clipped_step_rewards`.

  Args:
    eta: threshold η.
    reward: which step reward; None means the only one.
  """

  def fn(values, context):
    mask = _mask(values, context)
    return clipped_step_rewards(values, mask, eta=eta)

  return map_reward(
    "clip_steps", fn, reward=reward, kinds=("step",), params={"eta": eta}
  )


def delta_steps(*, reward: str | None = None) -> Transform:
  """Makes each step reward its fall to the next, see `delta_step_rewards`.

  Args:
    reward: which step reward; None means the only one.
  """

  def fn(values, context):
    return delta_step_rewards(values, _mask(values, context))

  return map_reward("delta_steps", fn, reward=reward, kinds=("step",))


def clip_delta(*, eta: float, reward: str | None = None) -> Transform:
  """Clips the step rewards, then takes their falls.

  The paper's combination. The return from any step k lies in
  [min_j min(r_j − η, 0), 0] then: repeated steps add nothing, and no sum of
  small losses makes a long response bad.

  Args:
    eta: threshold η of the clip.
    reward: which step reward; None means the only one.
  """

  def fn(values, context):
    mask = _mask(values, context)
    clipped = clipped_step_rewards(values, mask, eta=eta)
    return delta_step_rewards(clipped, mask)

  return map_reward(
    "clip_delta", fn, reward=reward, kinds=("step",), params={"eta": eta}
  )


def _mask(values: Array, context) -> Array:
  return segments.step_mask(context.rollout.step_index, values.shape[1])


def _shift(values: Array, fill: float | bool) -> Array:
  """Returns the values of the next step, `fill` behind the last column."""
  return jnp.pad(values[:, 1:], ((0, 0), (0, 1)), constant_values=fill)
