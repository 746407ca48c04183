"""The reward transforms and combinators that every library has."""

from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  find_reward,
  map_reward,
  put_reward,
  stateless,
)
from rlvr.types import Array

Missing = Literal["propagate", "skip"]


def clipped_reward(values: Array, *, low: float, high: float) -> Array:
  """Returns the rewards limited to an interval: min(max(r, low), high).

  Args:
    values: float, any shape.
    low: least value.
    high: greatest value.
  """
  return jnp.clip(values, low, high)


def clip(*, low: float, high: float, reward: str | None = None) -> Transform:
  """Limits a reward of any kind to [low, high].

  Raises:
    ValueError: low is above high.
  """
  if low > high:
    raise ValueError(f"clip: low={low} is above high={high}: swap them")
  return map_reward(
    "clip",
    lambda values, _: clipped_reward(values, low=low, high=high),
    reward=reward,
    params={"low": low, "high": high},
  )


def weighted_sum_reward(
  rewards: Mapping[str, Array],
  weights: Mapping[str, float],
  *,
  missing: Missing,
) -> Array:
  """Returns sum_i w_i r_i over named rewards of one shape.

  Args:
    rewards: float arrays of one shape; NaN where missing.
    weights: weight by name; the names say which rewards take part.
    missing: "propagate" makes the sum NaN where a part is; "skip" sums what is
      there, scaled by (sum of all |w|) / (sum of |w| that is there), so that a
      response isn't judged by how much of it was judged.

  Returns:
    float, the rewards' shape.
  """
  parts = jnp.stack([rewards[name] for name in weights])
  shape = (len(weights),) + (1,) * (parts.ndim - 1)
  w = jnp.asarray(list(weights.values()), jnp.float32).reshape(shape)
  if missing == "propagate":
    # A weight of 0 still propagates: NaN * 0 is NaN, as it should be here.
    return (w * parts).sum(axis=0)
  here = ~jnp.isnan(parts)
  total = jnp.where(here, w * parts, 0.0).sum(axis=0)
  share = jnp.where(here, jnp.abs(w), 0.0).sum(axis=0) / jnp.abs(w).sum()
  return jnp.where(share > 0, total / jnp.where(share > 0, share, 1.0), jnp.nan)


def weighted_sum(
  weights: Mapping[str, float],
  *,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges named rewards of one kind into their weighted sum.

  Args:
    weights: weight by reward name.
    missing: see `weighted_sum_reward`.
    out: name of the merged reward; the parts are taken out.

  Raises:
    ValueError: no weights, or rewards of different kinds (at trace time).
  """
  if not weights:
    raise ValueError("weighted_sum: `weights` names no reward")
  if missing not in ("propagate", "skip"):
    raise ValueError(
      f"weighted_sum: missing={missing!r}; give 'propagate' or 'skip'"
    )
  if all(w == 0 for w in weights.values()):
    raise ValueError(f"weighted_sum: all of weights={dict(weights)} are 0")

  def apply(scores, _):
    parts, kinds = {}, {}
    for name in weights:
      kinds[name], _, parts[name] = find_reward(
        scores, name, who="weighted_sum"
      )
    if len(set(kinds.values())) > 1:
      raise ValueError(
        f"weighted_sum: rewards of different kinds, {kinds}: bring them to one"
        " kind with a credit transform first"
      )
    merged = weighted_sum_reward(parts, weights, missing=missing)
    kind = next(iter(kinds.values()))
    return put_reward(scores, kind, out, merged, drop=list(weights))

  return stateless(
    "weighted_sum",
    apply,
    params={"weights": dict(weights), "missing": missing, "out": out},
  )
