"""Credit: from step rewards to the return of each token.

A step's reward counts at the step's last token. Without discount inside a
step, all tokens of the step have the same return: the step's.

A response of which one step's reward is missing has no return at all: it is
missing on each of its tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  Transform,
  check_positive,
  check_probability,
  find_reward,
  put_reward,
  stateless,
)
from rlvr.types import Array


def discounted_step_returns(
  values: Array, mask: Array, *, gamma: float
) -> Array:
  """Returns the sum-form return of each step: G_k = Σ_{j ≥ k} γ^{j−k} r_j.

  Args:
    values: float [B, K], step rewards.
    mask: bool [B, K], true on a prefix: the response's steps.
    gamma: discount γ per step, probability.

  Returns:
    float [B, K], 0 outside the response.
  """
  step = jnp.arange(values.shape[1])
  ahead = step[None, :] - step[:, None]  # [K, K], j - k
  discount = gamma ** jnp.maximum(ahead, 0)
  # K is small: all pairs of steps are cheaper than a scan over the steps.
  counts = (ahead >= 0)[None] & mask[:, None, :] & mask[:, :, None]
  parts = jnp.where(counts, discount[None] * values[:, None, :], 0.0)
  return parts.sum(axis=-1)


def min_form_step_rewards(
  values: Array, mask: Array, *, temperature: float
) -> Array:
  """Returns the step rewards weighted so that their sum is close to the least.

      r*_k = softmax(−r / T)_k r_k      over the response's steps

  min_k r_k ≤ Σ_k r*_k ≤ min_k r_k + T log K. Summed without discount, a step
  up to the worst one has about the worst one's reward as return, a step behind
  it about 0.

  Source: Cheng et al., "Stop Summation: Min-Form Credit Assignment Is All
  Process Reward Model Needs for Reasoning", https://arxiv.org/abs/2504.15275,
  and https://github.com/CJReinforce/PURE (there r = p(good) − p(bad) of the
  step, in −1..1).

  Args:
    values: float [B, K], step rewards.
    mask: bool [B, K], true on the response's steps.
    temperature: T, in the rewards' unit.

  Returns:
    float [B, K], 0 outside the response.
  """
  logits = jnp.where(mask, -values / temperature, -jnp.inf)
  # A response without steps would be softmax over nothing, which is NaN.
  logits = jnp.where(mask.any(axis=-1, keepdims=True), logits, 0.0)
  weights = jax.nn.softmax(logits, axis=-1)
  return jnp.where(mask, weights * values, 0.0)


def exact_min_form_step_rewards(values: Array, mask: Array) -> Array:
  """Returns the step rewards with all but the first least one set to 0.

  The limit of `min_form_step_rewards` at temperature 0, up to ties: the return
  of a step is the least reward of the response if that is still to come, 0
  otherwise.

  Args:
    values: float [B, K], step rewards.
    mask: bool [B, K], true on the response's steps.

  Returns:
    float [B, K], 0 outside the response.
  """
  worst = jnp.argmin(jnp.where(mask, values, jnp.inf), axis=-1)
  chosen = jnp.arange(values.shape[1])[None, :] == worst[:, None]
  return jnp.where(mask & chosen, values, 0.0)


def token_returns(step_returns: Array, step_index: Array) -> Array:
  """Returns float [B, T]: each token's step's return, 0 outside the response.

  Args:
    step_returns: float [B, K].
    step_index: int32 [B, T], -1 outside the response.
  """
  return segments.spread_steps(step_returns, step_index)


def outcome_at_last_step(
  values: Array, outcome: Array, mask: Array, *, weight: float
) -> Array:
  """Returns the step rewards with `weight · outcome` added to the last step.

  Args:
    values: float [B, K], step rewards.
    outcome: float [B].
    mask: bool [B, K], true on a prefix: the response's steps.
    weight: factor of the outcome.

  Returns:
    float [B, K].
  """
  last = segments.last_token_mask(mask)
  return jnp.where(last, values + weight * outcome[:, None], values)


def sum_form(
  *, gamma: float, reward: str | None = None, out: str | None = None
) -> Transform:
  """Turns a step reward into token returns: discounted sums of what follows.

  Args:
    gamma: discount per step; 1 sums.
    reward: which step reward; None means the only one.
    out: name of the token returns; None keeps the reward's name.

  Raises:
    ValueError: gamma is no probability.
  """
  check_probability("gamma", gamma, who="sum_form")
  return _credit(
    "sum_form",
    lambda values, mask: discounted_step_returns(values, mask, gamma=gamma),
    reward=reward,
    out=out,
    params={"gamma": gamma},
  )


def min_form(
  *,
  temperature: float = 0.1,
  reward: str | None = None,
  out: str | None = None,
) -> Transform:
  """Turns a step reward into token returns close to the least that follows.

  The reward is weighted (`min_form_step_rewards`) and summed without discount.
  To mix in a verifiable reward as the paper does, name it as `outcome` of
  `rlvr.advantages.token_leave_one_out`.

  Args:
    temperature: T; the reference code's is 0.1.
    reward: which step reward; None means the only one.
    out: name of the token returns; None keeps the reward's name.

  Raises:
    ValueError: the temperature is not positive.
  """
  check_positive("temperature", temperature, who="min_form")

  def fn(values, mask):
    weighted = min_form_step_rewards(values, mask, temperature=temperature)
    return discounted_step_returns(weighted, mask, gamma=1.0)

  return _credit(
    "min_form",
    fn,
    reward=reward,
    out=out,
    params={"temperature": temperature},
  )


def exact_min_form(
  *, reward: str | None = None, out: str | None = None
) -> Transform:
  """Turns a step reward into token returns: the least reward, up to its step.

  Args:
    reward: which step reward; None means the only one.
    out: name of the token returns; None keeps the reward's name.
  """

  def fn(values, mask):
    chosen = exact_min_form_step_rewards(values, mask)
    return discounted_step_returns(chosen, mask, gamma=1.0)

  return _credit("exact_min_form", fn, reward=reward, out=out, params={})


def place_outcome(
  *, outcome: str, weight: float, reward: str | None = None
) -> Transform:
  """Adds an outcome reward to the last step of a step reward.

  So success and process rewards share one return. The outcome is taken out;
  where it is missing, the last step is, too.

  Args:
    outcome: which outcome reward.
    weight: its factor; the step reward's is 1.
    reward: which step reward; None means "reward", or the only one besides
      `outcome`.
  """

  def apply(scores, context):
    _, _, success = find_reward(
      scores, outcome, ("outcome",), who="place_outcome"
    )
    left = {k: v for k, v in scores.outcome.items() if k != outcome}
    rest = dataclasses.replace(scores, outcome=left)
    kind, name, values = find_reward(
      rest, reward, ("step",), who="place_outcome"
    )
    mask = segments.step_mask(context.rollout.step_index, values.shape[1])
    result = outcome_at_last_step(values, success, mask, weight=weight)
    return put_reward(rest, kind, name, result)

  return stateless(
    "place_outcome",
    apply,
    params={"outcome": outcome, "weight": weight, "reward": reward},
  )


def _credit(name, fn, *, reward, out, params) -> Transform:
  def apply(scores, context):
    _, found, values = find_reward(scores, reward, ("step",), who=name)
    rollout = context.rollout
    mask = segments.step_mask(rollout.step_index, values.shape[1])
    absent = (jnp.isnan(values) & mask).any(axis=-1)
    returns = token_returns(fn(values, mask), rollout.step_index)
    inside = absent[:, None] & (rollout.step_index >= 0)
    returns = jnp.where(inside, jnp.nan, returns)
    return put_reward(scores, "token", out or found, returns, drop=[found])

  return stateless(name, apply, params={"reward": reward, **params})
