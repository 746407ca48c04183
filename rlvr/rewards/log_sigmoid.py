"""Log-sigmoid rewards: diminishing returns, and sums that mean "and".

The reward of a Bradley-Terry model, centred at what counts as good on the
prompt, is the log-odds of being good; its log-sigmoid is the log-probability.
Summed over properties (independent given prompt and response), it is the
log-probability of being good in all of them.

Source: Wang et al., "Transforming and Combining Rewards for Aligning Large
Language Models", https://arxiv.org/abs/2402.00742 (the LSC transformation).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  check_probability,
  find_reward,
  put_reward,
  stateless,
)
from rlvr.rewards.basic import Missing, weighted_sum_reward
from rlvr.types import Array, Context, Scores


def log_sigmoid_reward(values: Array, reference: Array | float) -> Array:
  """Returns the log-probability that a response is good.

      u = log σ(r − r_ref) = −softplus(r_ref − r)

  Source: https://arxiv.org/abs/2402.00742, the LSC transformation. It tends to
  r − r_ref far below the reference and to 0 above it, so that rewards that are
  high already gain nothing.

  Args:
    values: float, any shape: rewards r of a Bradley-Terry model, log-odds.
    reference: float, of a shape that broadcasts to `values`: r_ref, the reward
      from which on a response counts as good.

  Returns:
    float, the shape of `values`, nats, at most 0.
  """
  return jax.nn.log_sigmoid(values - reference)


def reference_quantile(
  values: Array, group: Array, num_groups: int, *, quantile: float
) -> Array:
  """Returns the quantile of each prompt's rewards.

  With the n rewards of a prompt in ascending order, x_0..x_{n-1}, and
  h = quantile · (n − 1): x_⌊h⌋ + (h − ⌊h⌋) (x_⌈h⌉ − x_⌊h⌋), the linear
  interpolation that is NumPy's default.

  Args:
    values: float [B]; NaN is left out.
    group: int32 [B], in 0..num_groups-1; any order, any sizes.
    num_groups: P, static.
    quantile: probability.

  Returns:
    float [P]; NaN for a prompt without a reward.

  Raises:
    ValueError: the quantile is no probability.
  """
  check_probability("quantile", quantile, who="reference_quantile")
  here = ~jnp.isnan(values)
  # Missing values sort behind the others of their group.
  order = jnp.lexsort((jnp.where(here, values, jnp.inf), group))
  ordered = values[order]
  ones = jnp.ones_like(group)
  size = jax.ops.segment_sum(ones, group, num_segments=num_groups)
  start = jnp.cumsum(size) - size
  count = jax.ops.segment_sum(
    here.astype(group.dtype), group, num_segments=num_groups
  )
  last = jnp.maximum(count - 1, 0)
  position = quantile * last.astype(values.dtype)
  below = jnp.clip(jnp.floor(position).astype(group.dtype), 0, last)
  above = jnp.minimum(below + 1, last)
  top = values.shape[0] - 1  # an empty last group starts behind the end
  low = ordered[jnp.minimum(start + below, top)]
  high = ordered[jnp.minimum(start + above, top)]
  result = low + (position - below) * (high - low)
  return jnp.where(count > 0, result, jnp.nan)


def log_sigmoid(
  *, reference: float | str, reward: str | None = None
) -> Transform:
  """Replaces a reward r by log σ(r − reference), see `log_sigmoid_reward`.

  The paper's reference is the 0.85 quantile of the base policy's rewards on
  the prompt, computed once before training: let it travel with the prompts as
  a named reward and give its name here.

  Args:
    reference: a number, or the name of an outcome reward that holds each
      response's reference; that one is taken out of the scores.
    reward: which reward (any kind); None means the only one.

  Raises:
    ValueError: there is no reward of that name (at trace time).
  """

  def apply(scores, _):
    kind, name, values = find_reward(scores, reward, who="log_sigmoid")
    level, used = _reference(scores, reference, who="log_sigmoid")
    result = log_sigmoid_reward(values, _columns(level, values.ndim))
    return put_reward(scores, kind, name, result, drop=used)

  return stateless(
    "log_sigmoid", apply, params={"reward": reward, "reference": reference}
  )


def group_log_sigmoid(
  *, reward: str | None = None, quantile: float = 0.85
) -> Transform:
  """Replaces a reward by log σ(r − quantile of its group's rewards).

  Deviation from the paper: the quantile is that of the rewards in the batch's
  own group, so of the current policy and of few samples, not of the base
  policy. What counts as good therefore rises with the policy: the transform
  ranks inside a group as the paper's does but says nothing of progress.

  Args:
    reward: which outcome reward; None means the only one.
    quantile: probability; the paper's is 0.85.

  Raises:
    ValueError: the quantile is no probability.
  """
  check_probability("quantile", quantile, who="group_log_sigmoid")

  def apply(scores, context: Context):
    _, name, values = find_reward(
      scores, reward, ("outcome",), who="group_log_sigmoid"
    )
    rollout = context.rollout
    level = reference_quantile(
      values, rollout.group, rollout.num_prompts, quantile=quantile
    )
    result = log_sigmoid_reward(values, level[rollout.group])
    return put_reward(scores, "outcome", name, result)

  return stateless(
    "group_log_sigmoid",
    apply,
    params={"reward": reward, "quantile": quantile},
  )


def log_sigmoid_sum(
  references: Mapping[str, float | str],
  *,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges outcome rewards into log P(good in every property).

      u = Σ_i log σ(r_i − r_ref,i)

  Source: https://arxiv.org/abs/2402.00742, the combination of several reward
  models. With references from the groups instead, chain a `group_log_sigmoid`
  for each reward and a `weighted_sum`.

  Args:
    references: for each reward that takes part its reference: a number or the
      name of an outcome reward that holds it per response.
    missing: "propagate": without one property nothing is known of all; "skip":
      the mean over the properties that are known, times their number.
    out: name of the merged reward; the parts and the references are taken out.

  Raises:
    ValueError: no references, or a value of `missing` that isn't known.
  """
  if not references:
    raise ValueError("log_sigmoid_sum: `references` names no reward")
  if missing not in ("propagate", "skip"):
    raise ValueError(
      f"log_sigmoid_sum: missing={missing!r}; give 'propagate' or 'skip'"
    )

  def apply(scores, _):
    parts, drop = {}, list(references)
    for name, reference in references.items():
      _, _, values = find_reward(
        scores, name, ("outcome",), who="log_sigmoid_sum"
      )
      level, used = _reference(scores, reference, who="log_sigmoid_sum")
      parts[name] = log_sigmoid_reward(values, level)
      drop += used
    merged = weighted_sum_reward(
      parts, dict.fromkeys(parts, 1.0), missing=missing
    )
    return put_reward(scores, "outcome", out, merged, drop=drop)

  return stateless(
    "log_sigmoid_sum",
    apply,
    params={"references": dict(references), "missing": missing, "out": out},
  )


def _reference(
  scores: Scores, reference: float | str, *, who: str
) -> tuple[Array | float, list[str]]:
  """Returns the reference ([B] or a number) and the names that it uses up."""
  if not isinstance(reference, str):
    return reference, []
  _, name, values = find_reward(scores, reference, ("outcome",), who=who)
  return values, [name]


def _columns(level: Array | float, ndim: int) -> Array | float:
  if not isinstance(level, jax.Array):
    return level
  return level.reshape(level.shape + (1,) * (ndim - 1))
