"""What a rubric makes of its criteria's scores: one number in [0, 1].

Huang et al. 2025, Reinforcement Learning with Rubric Anchors,
https://arxiv.org/abs/2508.12790, aggregates a rubric's weighted criteria with
veto, saturation, pairwise interactions and a shaping that stretches the upper
end. The paper names the four and says what each is for, without equations or
constants; code by its authors was looked for and not found. The equations below
are this project's.
"""

import jax.numpy as jnp

from rlvr.types import Array


def rubric_scores(
  scores: Array,
  weights: Array,
  veto_below: Array | None = None,
  saturation: Array | None = None,
  interactions: Array | None = None,
  *,
  slope: float = 0.0,
  sharpness: float = 1.0,
  skip_missing: bool = False,
) -> Array:
  """Returns each response's score by a rubric, in [0, 1].

      g_c(s) = min(s, τ_c) + α max(s − τ_c, 0)
      Q = Σ_c w_c g_c(s_c) + Σ_{i≠j} λ_ij s_i s_j
      M = Σ_c w_c g_c(1)   + Σ_{i≠j} max(λ_ij, 0)
      R = clip(Q / M, 0, 1)^γ,   0 if s_v < veto_v for any criterion v

  With weights alone, R is the weighted mean. A veto is a criterion that must
  hold, whatever the others say. Beyond τ a criterion earns little or nothing
  more, so that one can't carry the others. λ > 0 pays for two criteria that hold
  together, λ < 0 takes away where two are the same merit paid twice. γ > 1 sets
  good responses apart from very good ones. All scores 1 give 1 where no λ is
  below 0; all scores 0 give 0.

  Source: https://arxiv.org/abs/2508.12790, section on reward aggregation, in
  words; the equations are this project's reading.

  Args:
    scores: float [B, C], each criterion's in 0..1; beyond it is cut. NaN where
      missing.
    weights: float [C] or [B, C], w, 0 or above; 0 for criteria that only veto
      or interact, and for padding.
    veto_below: float [C] or [B, C]; -inf (or None) for criteria without veto.
    saturation: float [C] or [B, C], τ in 0..1; 1 (or None) for criteria
      without.
    interactions: float [C, C] or [B, C, C], λ, each pair once, on either side
      of the diagonal.
    slope: α, what a criterion earns beyond τ, as a share. No effect where τ is
      1.
    sharpness: γ, above 0; 1 changes nothing.
    skip_missing: what a missing score does. False: R is missing. True: R is
      over the criteria and pairs that are there, and missing where no weighted
      one is. In either case a veto that fires gives 0, whatever is missing, and
      a missing score that could veto makes R missing: a response must not gain
      by being hard to judge.

  Returns:
    float32 [B].
  """
  scores = jnp.clip(jnp.asarray(scores, jnp.float32), 0.0, 1.0)
  batch, count = scores.shape
  w = _spread(weights, (batch, count), 0.0)
  veto = _spread(veto_below, (batch, count), -jnp.inf)
  tau = _spread(saturation, (batch, count), 1.0)
  pairs = _spread(interactions, (batch, count, count), 0.0)
  pairs = jnp.where(jnp.eye(count, dtype=bool)[None], 0.0, pairs)

  missing = jnp.isnan(scores)
  s = jnp.where(missing, 0.0, scores)
  vetoes = veto > -jnp.inf
  interacts = (pairs != 0).any(axis=-1) | (pairs != 0).any(axis=-2)
  fired = (vetoes & ~missing & (s < veto)).any(axis=-1)

  here = w * ~missing
  both = pairs * ~missing[:, :, None] * ~missing[:, None, :]
  gained = jnp.minimum(s, tau) + slope * jnp.maximum(s - tau, 0.0)
  most = jnp.minimum(1.0, tau) + slope * jnp.maximum(1.0 - tau, 0.0)
  together = both * s[:, :, None] * s[:, None, :]
  total = (here * gained).sum(axis=-1) + together.sum(axis=(-2, -1))
  bound = (here * most).sum(axis=-1)
  bound += jnp.maximum(both, 0.0).sum(axis=(-2, -1))
  share = jnp.clip(total / jnp.where(bound > 0, bound, 1.0), 0.0, 1.0)
  # Not 0 ** γ, whose slope has no bound for γ below 1.
  result = jnp.where(share > 0, share, 1.0) ** sharpness * (share > 0)

  used = (w > 0) | vetoes | interacts
  unknown = (missing & (vetoes if skip_missing else used)).any(axis=-1)
  unknown |= bound <= 0
  return jnp.where(fired, 0.0, jnp.where(unknown, jnp.nan, result))


def _spread(values: Array | None, shape: tuple[int, ...], none: float) -> Array:
  """Returns the values for each response."""
  if values is None:
    return jnp.full(shape, none, jnp.float32)
  values = jnp.asarray(values, jnp.float32)
  if values.shape not in (shape, shape[1:]):
    raise ValueError(
      f"rubric_scores: an argument has shape {values.shape}: give"
      f" {shape[1:]} for all responses or {shape} for each"
    )
  return jnp.broadcast_to(values.reshape((-1, *shape[1:])), shape)
