"""Groups, steps and masks as pure functions over token arrays."""

import jax
import jax.numpy as jnp

from rlvr.types import Array


def group_sum(values: Array, group: Array, num_groups: int) -> Array:
  """Returns the sum over each group.

  Args:
    values: [B, ...].
    group: int32 [B], in 0..num_groups-1.
    num_groups: P, static.

  Returns:
    [P, ...].
  """
  return jax.ops.segment_sum(values, group, num_segments=num_groups)


def group_mean(
  values: Array, group: Array, num_groups: int, mask: Array | None = None
) -> Array:
  """Returns the mean over each group's unmasked members, 0 for an empty group.

  Args:
    values: float [B].
    group: int32 [B].
    num_groups: P, static.
    mask: bool [B], true where the value counts; None counts all that are not
      NaN.

  Returns:
    float [P].
  """
  mask = ~jnp.isnan(values) if mask is None else mask & ~jnp.isnan(values)
  total = group_sum(jnp.where(mask, values, 0.0), group, num_groups)
  count = group_sum(mask.astype(values.dtype), group, num_groups)
  return total / jnp.maximum(count, 1)


def group_count(mask: Array, group: Array, num_groups: int) -> Array:
  """Returns int32 [P]: how many members of each group `mask` [B] holds."""
  return group_sum(mask.astype(jnp.int32), group, num_groups)


def group_std(
  values: Array,
  group: Array,
  num_groups: int,
  mask: Array | None = None,
  *,
  ddof: int,
) -> Array:
  """Returns the standard deviation over each group's unmasked members.

  Two passes around each group's least value, so that equal values give exactly
  0: the rounded mean of equal numbers need not equal them.

  Args:
    values: float [B].
    group: int32 [B].
    num_groups: P, static.
    mask: bool [B]; None counts all that are not NaN.
    ddof: 0 divides by n, 1 by n - 1 (0 for a group of one).

  Returns:
    float [P].
  """
  mask = ~jnp.isnan(values) if mask is None else mask & ~jnp.isnan(values)
  least = jax.ops.segment_min(
    jnp.where(mask, values, jnp.inf), group, num_segments=num_groups
  )
  values = jnp.where(mask, values - least[group], 0.0)
  mean = group_mean(values, group, num_groups, mask)
  centred = jnp.where(mask, values - mean[group], 0.0)
  count = group_count(mask, group, num_groups)
  variance = group_sum(centred**2, group, num_groups) / jnp.maximum(
    count - ddof, 1
  )
  return jnp.sqrt(variance)


def masked_mean(
  values: Array, mask: Array, axis: int | tuple[int, ...] | None = None
) -> Array:
  """Returns the mean of `values` where `mask` is true, 0 where none is."""
  total = jnp.where(mask, values, 0.0).sum(axis=axis)
  return total / jnp.maximum(mask.sum(axis=axis), 1)


def step_indices(
  tokens: Array,
  mask: Array,
  delimiters: Array | tuple[int, ...],
  num_steps: int,
) -> Array:
  """Returns the reasoning step of each token: steps end at delimiter tokens.

  A delimiter belongs to the step that it ends; further delimiters directly
  behind it belong to the same step, so that no step is empty. Steps from
  `num_steps - 1` on are merged into the last.

  Args:
    tokens: int32 [B, T].
    mask: bool [B, T], true on the response.
    delimiters: token ids that end a step; none makes one step of a response.
    num_steps: K, static.

  Returns:
    int32 [B, T] in 0..K-1, and -1 where the mask is false.

  Raises:
    ValueError: num_steps is not positive.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps}: a response has at least one step")
  ids = jnp.asarray(delimiters, jnp.int32)
  ends = (tokens[..., None] == ids[None, None]).any(axis=-1) & mask
  before = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)))
  starts = before & ~ends & mask
  index = jnp.cumsum(starts.astype(jnp.int32), axis=-1)
  return jnp.where(mask, jnp.minimum(index, num_steps - 1), -1)


def step_mask(step_index: Array, num_steps: int) -> Array:
  """Returns bool [B, K]: which steps a response has.

  Args:
    step_index: int32 [B, T], -1 outside the response.
    num_steps: K, static.
  """
  count = step_index.max(axis=-1) + 1
  return jnp.arange(num_steps)[None, :] < count[:, None]


def spread_steps(values: Array, step_index: Array, fill: float = 0.0) -> Array:
  """Returns [B, T]: each token gets its step's value, `fill` outside.

  Args:
    values: [B, K].
    step_index: int32 [B, T], -1 outside the response.
    fill: value where the index is -1.
  """
  index = jnp.clip(step_index, 0, values.shape[1] - 1)
  spread = jnp.take_along_axis(values, index, axis=1)
  return jnp.where(step_index >= 0, spread, fill)


def last_token_mask(mask: Array) -> Array:
  """Returns bool [B, T], true on the last true position of each row.

  Args:
    mask: bool [B, T], true on a prefix.
  """
  after = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
  return mask & ~after


def after_last_delimiter(
  tokens: Array, mask: Array, delimiter: tuple[int, ...]
) -> Array:
  """Returns which tokens stand behind the last occurrence of a delimiter.

  Args:
    tokens: int32 [B, T].
    mask: bool [B, T], true where a token can belong to the answer (leave the
      end token out).
    delimiter: token ids in sequence; empty means that the whole response is
      the answer.

  Returns:
    bool [B, T]; all false in a row without the delimiter.
  """
  if not delimiter:
    return mask
  width, length = len(delimiter), tokens.shape[-1]
  if width > length:
    return jnp.zeros_like(mask)
  hit = jnp.ones((tokens.shape[0], length - width + 1), bool)
  for i, token in enumerate(delimiter):
    window = slice(i, length - width + 1 + i)
    hit &= (tokens[:, window] == token) & mask[:, window]
  position = jnp.arange(length - width + 1)[None, :]
  start = jnp.where(hit, position, -width - 1).max(axis=-1) + width
  found = hit.any(axis=-1)
  return mask & found[:, None] & (jnp.arange(length)[None, :] >= start[:, None])
