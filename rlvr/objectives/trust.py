"""Policy losses that hold each token's ratio near 1 in another way than PPO's.

ρ = π/π_old at a token. All are per token, unmasked and unreduced; on policy
(ρ = 1) all have the gradient of the plain policy gradient, −Â ∇log π.

Covers `stable_reinforce` of the catalogue (its loss), and CISPO, dual-clip PPO
and SAPO.
"""

import math

import jax
import jax.numpy as jnp

from rlvr.objectives.policy import (
  check_clip,
  clip_fraction,
  clipped_policy_loss,
)
from rlvr.objectives.terms import LossInputs, Term
from rlvr.rewards.algebra import check_positive
from rlvr.types import Array


def clipped_weight_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Returns CISPO's loss: the clipped ratio as a constant weight of log π.

      −sg(clip(ρ, 1 − ε_low, 1 + ε_high)) Â log π

  No token loses its gradient; only its importance weight is limited. The value
  is not that of a surrogate: only the gradient means something.

  Source: MiniMax-M1, https://arxiv.org/abs/2506.13585, eq. 4 and 5 (CISPO). The
  authors set no lower bound, that is ε_low ≥ 1, and average over all tokens of
  a group: `token_mean` averages over those of the batch.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T]; no gradient flows through it.
    clip_low: ε_low, above 0; from 1 on there is no lower bound.
    clip_high: ε_high, above 0.

  Returns:
    float32 [B, T].
  """
  ratio = jnp.exp(logprobs - old_logprobs)
  weight = jnp.clip(ratio, max(0.0, 1 - clip_low), 1 + clip_high)
  return -jax.lax.stop_gradient(weight * advantages) * logprobs


def dual_clipped_policy_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  *,
  clip_low: float,
  clip_high: float,
  bound: float = 3.0,
) -> Array:
  """Returns PPO's loss with a second clip where the advantage is negative.

      −max(min(ρ Â, clip(ρ, 1 − ε_low, 1 + ε_high) Â), c Â)    Â < 0
      −min(ρ Â, clip(ρ, 1 − ε_low, 1 + ε_high) Â)              otherwise

  PPO leaves ρ Â without bound where Â < 0: a token whose probability rose far
  has a loss and a gradient as large as its ratio. Here it has none.

  Source: Ye et al. 2019, "Mastering Complex Control in MOBA Games with Deep
  Reinforcement Learning", https://arxiv.org/abs/1912.09729, dual-clip PPO, c =
  3. Two bounds as in DAPO, https://arxiv.org/abs/2503.14476.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T]; no gradient flows through it.
    clip_low: ε_low, in (0, 1].
    clip_high: ε_high, above 0.
    bound: c, above 1 + ε_high.

  Returns:
    float32 [B, T].
  """
  advantages = jax.lax.stop_gradient(advantages)
  loss = clipped_policy_loss(
    logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high
  )
  most = jnp.where(advantages < 0, -bound * advantages, jnp.inf)
  return jnp.minimum(loss, most)


def soft_gated_policy_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  *,
  positive_temperature: float = 1.0,
  negative_temperature: float = 1.05,
) -> Array:
  """Returns SAPO's loss: a sigmoid of the ratio in the place of a clip.

      −(4/τ) σ(τ (ρ − 1)) Â,   τ = τ_pos where Â > 0, else τ_neg

  The gradient is −4 σ(1 − σ) ρ Â ∇log π: whole at ρ = 1, and fading on both
  sides, the faster the higher τ.

  Source: SAPO, https://arxiv.org/abs/2511.20347, its soft gate and asymmetric
  temperatures (1 and 1.05 in the paper).

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T]; no gradient flows through it.
    positive_temperature: τ_pos.
    negative_temperature: τ_neg; the paper has it above τ_pos, since lowering
      one token raises all the others.

  Returns:
    float32 [B, T].
  """
  advantages = jax.lax.stop_gradient(advantages)
  ratio = jnp.exp(logprobs - jax.lax.stop_gradient(old_logprobs))
  tau = jnp.where(advantages > 0, positive_temperature, negative_temperature)
  return -4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1)) * advantages


def preclipped_policy_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  *,
  clip_low: float,
  clip_high: float,
  least_ratio: float = 1e-3,
  greatest_ratio: float = 1e3,
) -> Array:
  """Returns PPO's loss of a log-ratio that is clipped before it is a ratio.

      x = clip(log π − log π_old, log δ_min, log δ_max)
      −min(eˣ Â, clip(eˣ, 1 − ε_low, 1 + ε_high) Â)

  A token beyond δ has a bounded loss and no gradient; PPO's own clip comes
  after the exponential, which may have overflowed by then.

  Source: R1-Reward (StableReinforce), https://arxiv.org/abs/2505.02835,
  pre-clipping; δ is 1e-3 and 1e3 in the authors' `PolicyLoss`
  (https://github.com/yfzhang114/r1_reward), which has one ε for both bounds.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T]; no gradient flows through it.
    clip_low: ε_low, in (0, 1].
    clip_high: ε_high, above 0.
    least_ratio: δ_min, in (0, 1 − ε_low).
    greatest_ratio: δ_max, above 1 + ε_high.

  Returns:
    float32 [B, T].
  """
  change = logprobs - jax.lax.stop_gradient(old_logprobs)
  change = jnp.clip(change, math.log(least_ratio), math.log(greatest_ratio))
  return clipped_policy_loss(
    change,
    jnp.zeros_like(change),
    advantages,
    clip_low=clip_low,
    clip_high=clip_high,
  )


def _ratio(inputs: LossInputs) -> Array:
  return jax.lax.stop_gradient(jnp.exp(inputs.logprobs - inputs.old_logprobs))


def clipped_weight_gradient(*, clip_low: float, clip_high: float) -> Term:
  """Returns the term with CISPO's loss, see `clipped_weight_loss`.

  Args:
    clip_low: ε_low; from 1 on there is no lower bound, as in MiniMax-M1.
    clip_high: ε_high.

  Raises:
    ValueError: a bound that is not above 0.
  """
  check_positive("clip_low", clip_low, who="clipped_weight_gradient")
  check_positive("clip_high", clip_high, who="clipped_weight_gradient")

  def loss(inputs: LossInputs):
    value = clipped_weight_loss(
      inputs.logprobs,
      inputs.old_logprobs,
      inputs.advantages,
      clip_low=clip_low,
      clip_high=clip_high,
    )
    ratio = _ratio(inputs)
    cut = (ratio > 1 + clip_high) | (ratio < 1 - clip_low)
    return value, {"policy/clip_fraction": cut.astype(jnp.float32)}

  return Term(
    "policy", loss, params={"clip_low": clip_low, "clip_high": clip_high}
  )


def dual_clipped_policy_gradient(
  *, clip_low: float, clip_high: float, bound: float = 3.0
) -> Term:
  """Returns the term of dual-clip PPO, see `dual_clipped_policy_loss`.

  Args:
    clip_low: ε_low.
    clip_high: ε_high.
    bound: c, the ratio from which a bad token's loss no longer grows.

  Raises:
    ValueError: bounds that contradict each other.
  """
  check_clip(clip_low, clip_high, who="dual_clipped_policy_gradient")
  if not bound > 1 + clip_high:
    raise ValueError(
      f"dual_clipped_policy_gradient: bound={bound} must be above 1 + clip_high"
      f" = {1 + clip_high}"
    )

  def loss(inputs: LossInputs):
    value = dual_clipped_policy_loss(
      inputs.logprobs,
      inputs.old_logprobs,
      inputs.advantages,
      clip_low=clip_low,
      clip_high=clip_high,
      bound=bound,
    )
    ratio = _ratio(inputs)
    cut = clip_fraction(ratio, inputs.advantages, clip_low, clip_high)
    bounded = (inputs.advantages < 0) & (ratio > bound)
    return value, {
      "policy/clip_fraction": cut,
      "policy/dual_clip_fraction": bounded.astype(jnp.float32),
    }

  return Term(
    "policy",
    loss,
    params={"clip_low": clip_low, "clip_high": clip_high, "bound": bound},
  )


def soft_gated_policy_gradient(
  *, positive_temperature: float = 1.0, negative_temperature: float = 1.05
) -> Term:
  """Returns the term with SAPO's loss, see `soft_gated_policy_loss`.

  Its metric `policy/gate` is the share of the gradient that is left: 1 on
  policy.

  Args:
    positive_temperature: τ_pos.
    negative_temperature: τ_neg.

  Raises:
    ValueError: a temperature that is not above 0.
  """
  temperatures = {
    "positive_temperature": positive_temperature,
    "negative_temperature": negative_temperature,
  }
  for name, value in temperatures.items():
    check_positive(name, value, who="soft_gated_policy_gradient")

  def loss(inputs: LossInputs):
    value = soft_gated_policy_loss(
      inputs.logprobs, inputs.old_logprobs, inputs.advantages, **temperatures
    )
    tau = jnp.where(
      inputs.advantages > 0, positive_temperature, negative_temperature
    )
    ratio = _ratio(inputs)
    gate = jax.nn.sigmoid(tau * (ratio - 1))
    return value, {"policy/gate": 4 * gate * (1 - gate) * ratio}

  return Term("policy", loss, params=temperatures)


def preclipped_policy_gradient(
  *,
  clip_low: float,
  clip_high: float,
  least_ratio: float = 1e-3,
  greatest_ratio: float = 1e3,
) -> Term:
  """Returns the term of StableReinforce's loss, see `preclipped_policy_loss`.

  Args:
    clip_low: ε_low.
    clip_high: ε_high.
    least_ratio: δ_min.
    greatest_ratio: δ_max.

  Raises:
    ValueError: bounds that contradict each other.
  """
  check_clip(clip_low, clip_high, who="preclipped_policy_gradient")
  if not 0 < least_ratio < 1 or not greatest_ratio > 1 + clip_high:
    raise ValueError(
      f"preclipped_policy_gradient: least_ratio={least_ratio} must be in (0, 1)"
      f" and greatest_ratio={greatest_ratio} above 1 + clip_high ="
      f" {1 + clip_high}"
    )
  bounds = {"least_ratio": least_ratio, "greatest_ratio": greatest_ratio}

  def loss(inputs: LossInputs):
    value = preclipped_policy_loss(
      inputs.logprobs,
      inputs.old_logprobs,
      inputs.advantages,
      clip_low=clip_low,
      clip_high=clip_high,
      **bounds,
    )
    change = jax.lax.stop_gradient(inputs.logprobs - inputs.old_logprobs)
    beyond = (change < math.log(least_ratio)) | (
      change > math.log(greatest_ratio)
    )
    cut = clip_fraction(jnp.exp(change), inputs.advantages, clip_low, clip_high)
    return value, {
      "policy/clip_fraction": cut,
      "policy/preclip_fraction": beyond.astype(jnp.float32),
    }

  return Term(
    "policy",
    loss,
    params={"clip_low": clip_low, "clip_high": clip_high, **bounds},
  )
