"""What the rewards of a batch look like, for the metrics of every run."""

import jax
import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import KINDS, Kind, present_mean
from rlvr.types import Array, Rollout, Scores, Signals


def zero_variance_groups(values: Array, group: Array, num_groups: int) -> Array:
  """Returns bool [P]: groups of two or more rewards that are all equal.

  Such a group teaches nothing to a group-relative estimator.

  Args:
    values: float [B]; NaN is left out.
    group: int32 [B].
    num_groups: P, static.
  """
  here = ~jnp.isnan(values)
  most = jax.ops.segment_max(
    jnp.where(here, values, -jnp.inf), group, num_segments=num_groups
  )
  least = jax.ops.segment_min(
    jnp.where(here, values, jnp.inf), group, num_segments=num_groups
  )
  count = segments.group_count(here, group, num_groups)
  return (count > 1) & (most == least)


def present_std(values: Array) -> Array:
  """Returns the standard deviation (÷ n) of what isn't NaN; 0 if nothing is."""
  return jnp.sqrt(present_mean((values - present_mean(values)) ** 2))


def signal_statistics(
  signals: Signals | Scores, rollout: Rollout
) -> dict[str, Array]:
  """Returns the statistics of each named reward.

  `reward/<name>/...`
  - `mean`, `std`: over all values that are there (0 where none is: see
    `missing`), of steps and tokens that belong to a response;
  - `zero_variance_groups`: share of the groups with two or more rewards in
    which all are equal (of step and token rewards: their sum per response);
  - `missing`: how many responses lack the reward (of step and token rewards:
    lack it somewhere).

  Args:
    signals: the named rewards; `Scores` hold them as well.
    rollout: whose groups and masks to use.

  Returns:
    float32 [] by name.
  """
  metrics = {}
  for kind in KINDS:
    for name, values in getattr(signals, kind).items():
      mask = _mask(kind, values, rollout)
      values = jnp.where(mask, values, 0.0)
      total = values if kind == "outcome" else values.sum(axis=-1)
      counted = segments.group_count(
        ~jnp.isnan(total), rollout.group, rollout.num_prompts
      )
      equal = zero_variance_groups(total, rollout.group, rollout.num_prompts)
      own = jnp.where(mask, values, jnp.nan)
      statistics = {
        "mean": present_mean(own),
        "std": present_std(own),
        "zero_variance_groups": equal.sum()
        / jnp.maximum((counted > 1).sum(), 1),
        "missing": jnp.isnan(total).sum(),
      }
      for key, value in statistics.items():
        metrics[f"reward/{name}/{key}"] = value.astype(jnp.float32)
  return metrics


def _mask(kind: Kind, values: Array, rollout: Rollout) -> Array:
  if kind == "outcome":
    return jnp.ones(values.shape, bool)
  if kind == "token":
    return rollout.completion_mask
  return segments.step_mask(rollout.step_index, values.shape[1])
