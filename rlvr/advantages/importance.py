"""Importance weights between sampler and trainer: TIS and MIS (IcePop).

The sampler and the trainer compute the same policy with other kernels and other
precision, or the sampler's parameters are older: responses come from μ
(`Rollout.behavior_logprobs`), not from π_old (the probe `logprobs`). The loss of
a token is corrected by a weight w(ρ), ρ = π_old / μ:

    L = −E_μ[ w(ρ) · min(r A, clip(r) A) ],   r = π / π_old

w is 0 or more and constant, so w · min(r A, clip(r) A) is
min(r (w A), clip(r) (w A)): it is a factor of the advantage, and a transform
here. It is used with `old_logprobs='recomputed'`, which takes r against the
trainer's log-probs; with 'behavior' the ratio would correct a second time.
Where the parameters are the same and the arithmetic agrees, ρ = 1.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  check_positive,
  stateless,
)
from rlvr.segments import masked_mean
from rlvr.types import Array, Context, Scores

# Transforms that correct the advantages, by their names in `Spec`.
CORRECTIONS = frozenset(
  {"truncated_importance_sampling", "masked_importance_sampling"}
)
Level = Literal["token", "sequence", "geometric"]
_MOST = 20.0  # |log ρ|: a float32 holds e^20


def importance_ratios(
  logprobs: Array, behavior_logprobs: Array, mask: Array, *, level: Level
) -> Array:
  """Returns the ratio of the trainer's to the sampler's probability.

      token      ρ_t = π(y_t) / μ(y_t)
      sequence   ρ = Π_t ρ_t
      geometric  ρ = (Π_t ρ_t)^(1/|y|)

  "token" is biased with low variance, "sequence" unbiased with a variance that
  grows with length. log ρ is held within ±20, as in verl.

  Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
  Off-Policy RL Training" (token); verl's rollout correction (sequence);
  OpenRLHF's seq-mask-tis (geometric).

  Args:
    logprobs: float32 [B, T], nats, the trainer's.
    behavior_logprobs: float32 [B, T], nats, the sampler's.
    mask: bool [B, T], true on the response.
    level: "token", "sequence" or "geometric".

  Returns:
    float32 [B, T], the same on all tokens of a response but for "token"; 1
    outside the response.

  Raises:
    ValueError: an unknown level.
  """
  _check_level(level, who="importance_ratios")
  log_ratio = jnp.where(mask, logprobs - behavior_logprobs, 0.0)
  if level != "token":
    total = log_ratio.sum(axis=-1, keepdims=True)
    if level == "geometric":
      total = total / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    log_ratio = jnp.where(mask, total, 0.0)
  return jnp.exp(jnp.clip(log_ratio, -_MOST, _MOST))


def mismatch_statistics(
  logprobs: Array, behavior_logprobs: Array, mask: Array
) -> dict[str, Array]:
  """Returns how far the sampler is from the trainer, by the sampled tokens.

  With x = log π − log μ at a token drawn from μ, and ρ = eˣ:

      change_mean  mean |x|, nats
      change_max   max |x|, nats
      kl           mean of eˣ − 1 − x, an estimate of KL(μ ‖ π), nats
      ess          (Σ ρ)² / (n Σ ρ²), the effective share of the tokens

  Source: the estimate k3 of http://joschu.net/blog/kl-approx.html; the effective
  sample size of Kong 1992, as in section 2.5.3 of Liu, "Monte Carlo Strategies
  in Scientific Computing", 2001.

  Args:
    logprobs: float32 [B, T], nats, the trainer's.
    behavior_logprobs: float32 [B, T], nats, the sampler's.
    mask: bool [B, T], true on the response.

  Returns:
    float32 [] by name; 0 without any token, but `ess` 1.
  """
  x = jnp.where(mask, logprobs - behavior_logprobs, 0.0)
  x = jnp.clip(x, -_MOST, _MOST)
  # A ratio of sums: scaled, so that squares don't overflow.
  rho = jnp.where(mask, jnp.exp(x - x.max()), 0.0)
  count = jnp.maximum(mask.sum(), 1)
  squares = jnp.where(mask.any(), (rho**2).sum(), 1.0)
  ess = rho.sum() ** 2 / (count * squares)
  return {
    "change_mean": masked_mean(jnp.abs(x), mask),
    "change_max": jnp.abs(x).max(),
    "kl": masked_mean(jnp.expm1(x) - x, mask),
    "ess": jnp.where(mask.any(), ess, 1.0),
  }


def truncated_weights(ratios: Array, *, cap: float) -> Array:
  """Returns importance ratios cut off above: min(ρ, C).

  Source: TIS, Yao et al. 2025 (see `importance_ratios`); Ionides 2008,
  https://doi.org/10.1198/106186008X320456.

  Args:
    ratios: float32, ρ.
    cap: C, above 0.

  Returns:
    float32 of the same shape.
  """
  return jnp.minimum(ratios, cap)


def masked_weights(ratios: Array, *, low: float, high: float) -> Array:
  """Returns importance ratios, 0 outside an interval: ρ · 1[a ≤ ρ ≤ b].

  What lies outside gets no gradient at all, on either side.

  Source: IcePop, eq. 1 of https://arxiv.org/abs/2512.16144 (INTELLECT-3), which
  takes it over from Ring-1T, https://arxiv.org/abs/2510.18855; defaults differ
  between the two, so there is none here.

  Args:
    ratios: float32, ρ.
    low: a, 0 or more.
    high: b, above a.

  Returns:
    float32 of the same shape.
  """
  return jnp.where((ratios >= low) & (ratios <= high), ratios, 0.0)


def truncated_importance_sampling(*, level: Level, cap: float) -> Transform:
  """Multiplies the advantages by min(π_old / μ, C).

  See `importance_ratios` and `truncated_weights`. Metrics: the mean of the
  ratios before they are cut, the share that is, and `mismatch_statistics`.

  Args:
    level: "token", "sequence" or "geometric".
    cap: C, above 0; 2 is common.

  Raises:
    ValueError: an unknown level, or a cap that is not positive.
  """
  who = "truncated_importance_sampling"
  check_positive("cap", cap, who=who)
  _check_level(level, who=who)
  return _weigh(
    who,
    level,
    lambda ratios: truncated_weights(ratios, cap=cap),
    {"level": level, "cap": cap},
  )


def masked_importance_sampling(
  *, level: Level, low: float, high: float
) -> Transform:
  """Multiplies the advantages by π_old / μ where it lies in [a, b], else by 0.

  See `importance_ratios` and `masked_weights`. The loss's normaliser stays as it
  is: a masked token counts below the fraction line. Metrics: the mean of the
  ratios, the share that is masked, and `mismatch_statistics`.

  Args:
    level: "token" (IcePop), "sequence" or "geometric".
    low: a, 0 or more.
    high: b, above a.

  Raises:
    ValueError: an unknown level, or an interval without 1.
  """
  who = "masked_importance_sampling"
  _check_level(level, who=who)
  if not 0.0 <= low <= 1.0 <= high:
    raise ValueError(
      f"{who}: low={low} and high={high} must hold 1 between them: equal"
      " log-probs have the ratio 1; give low in 0..1 and high of 1 or more"
    )
  return _weigh(
    who,
    level,
    lambda ratios: masked_weights(ratios, low=low, high=high),
    {"level": level, "low": low, "high": high},
  )


def _weigh(who, level, weights_of, params) -> Transform:
  def apply(scores: Scores, context: Context) -> Scores:
    rollout = context.rollout
    mask = rollout.completion_mask
    logprobs = jax.lax.stop_gradient(context.probes["logprobs"])
    behavior = rollout.behavior_logprobs
    ratios = importance_ratios(logprobs, behavior, mask, level=level)
    found = mismatch_statistics(logprobs, behavior, mask)
    weights = weights_of(ratios)
    advantages = jnp.where(mask, scores.advantages * weights, 0.0)
    scores = dataclasses.replace(scores, advantages=advantages)
    return add_metrics(
      scores,
      importance__ratio_mean=masked_mean(ratios, mask),
      importance__cut=masked_mean((weights != ratios) * 1.0, mask),
      **{f"importance__{name}": value for name, value in found.items()},
    )

  return stateless(
    who,
    apply,
    takes="advantages",
    gives="advantages",
    requires=("logprobs",),
    params=params,
  )


def _check_level(level: str, *, who: str) -> None:
  if level not in ("token", "sequence", "geometric"):
    raise ValueError(
      f"{who}: level={level!r}; give 'token', 'sequence' or 'geometric'"
    )
