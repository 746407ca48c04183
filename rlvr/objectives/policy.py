"""Policy losses."""

import jax
import jax.numpy as jnp

from rlvr.objectives.terms import LossInputs, Term
from rlvr.types import Array


def policy_gradient_loss(logprobs: Array, advantages: Array) -> Array:
  """Returns the REINFORCE loss of each token: -Â log π.

  Source: Williams 1992, https://doi.org/10.1007/BF00992696.

  Args:
    logprobs: float32 [B, T], nats.
    advantages: float32 [B, T]; no gradient flows through it.

  Returns:
    float32 [B, T].
  """
  return -jax.lax.stop_gradient(advantages) * logprobs


def clipped_policy_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Returns PPO's clipped surrogate loss of each token.

  -min(ρ Â, clip(ρ, 1 - ε_low, 1 + ε_high) Â), ρ = π/π_old.

  Source: Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347; two
  bounds as in DAPO, eq. 10, https://arxiv.org/abs/2503.14476.

  Args:
    logprobs: float32 [B, T], nats, of the policy being trained.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T]; no gradient flows through it.
    clip_low: ε_low, in (0, 1).
    clip_high: ε_high, above 0.

  Returns:
    float32 [B, T].
  """
  advantages = jax.lax.stop_gradient(advantages)
  ratio = jnp.exp(logprobs - jax.lax.stop_gradient(old_logprobs))
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def check_clip(clip_low: float, clip_high: float, *, who: str) -> None:
  """Raises ValueError unless 0 < clip_low <= 1 and clip_high > 0."""
  if not 0 < clip_low <= 1 or not clip_high > 0:
    raise ValueError(
      f"{who}: clip_low={clip_low} must be in (0, 1] and clip_high={clip_high}"
      " above 0"
    )


def clip_fraction(
  ratio: Array, advantages: Array, clip_low: float, clip_high: float
) -> Array:
  """Returns float32 [B, T]: 1 where PPO's clip takes the gradient away.

  Args:
    ratio: float32, [B, T] or what broadcasts to it.
    advantages: float32 [B, T].
    clip_low: ε_low.
    clip_high: ε_high.
  """
  high = (advantages > 0) & (ratio > 1 + clip_high)
  low = (advantages < 0) & (ratio < 1 - clip_low)
  return (high | low).astype(jnp.float32)


def policy_gradient() -> Term:
  """Returns the term with the loss -Â log π."""

  def loss(inputs: LossInputs):
    return policy_gradient_loss(inputs.logprobs, inputs.advantages), {}

  return Term("policy", loss)


def clipped_policy_gradient(*, clip_low: float, clip_high: float) -> Term:
  """Returns the term with PPO's clipped surrogate.

  Args:
    clip_low: ε_low; 0.2 in PPO and DAPO.
    clip_high: ε_high; 0.2 in PPO, 0.28 in DAPO.

  Raises:
    ValueError: a bound that clips everything or nothing sensible.
  """
  check_clip(clip_low, clip_high, who="clipped_policy_gradient")

  def loss(inputs: LossInputs):
    value = clipped_policy_loss(
      inputs.logprobs,
      inputs.old_logprobs,
      inputs.advantages,
      clip_low=clip_low,
      clip_high=clip_high,
    )
    ratio = jnp.exp(inputs.logprobs - inputs.old_logprobs)
    cut = clip_fraction(ratio, inputs.advantages, clip_low, clip_high)
    return value, {"policy/clip_fraction": cut}

  return Term(
    "policy",
    loss,
    params={"clip_low": clip_low, "clip_high": clip_high},
  )


def entropy_bonus(*, weight: float) -> Term:
  """Returns the term -weight · H(π), which keeps the policy from collapsing.

  Args:
    weight: of the entropy, in nats.
  """

  def loss(inputs: LossInputs):
    return -inputs.entropies, {}

  return Term("entropy", loss, weight=weight)


def likelihood() -> Term:
  """Returns the term -log π: the supervised loss on given responses."""

  def loss(inputs: LossInputs):
    return -inputs.logprobs, {}

  return Term("likelihood", loss)
