"""What differs between a model's global and local layers: angles and masks.

It is made once for each kind; a scan over the layers, which may be of both,
picks its own by a flag. A model of one kind has no flag and no second mask.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.models.attention import near
from rlvr.models.config import ModelConfig
from rlvr.models.rope import layer_angles, positions_of
from rlvr.types import Array


def by_kind(config: ModelConfig, make: Callable[[str], Any]) -> dict[str, Any]:
  """Returns {kind: make(kind)} for the kinds of layers that the model has."""
  return {kind: make(kind) for kind in sorted(set(config.layer_kinds))}


def of_layer(found: dict[str, Any], is_local: Array | str | None) -> Any:
  """Returns what `by_kind` made for a layer's kind.

  Args:
    found: from `by_kind`.
    is_local: bool [] of the layer under the scan; None where there is one kind;
      the kind itself where the layers are unrolled.
  """
  if isinstance(is_local, str):
    return found[is_local]
  if is_local is None:
    (only,) = found.values()
    return only
  # What both kinds share costs nothing.
  return jax.tree.map(
    lambda a, b: a if a is b else jnp.where(is_local, a, b),
    found["local"],
    found["global"],
  )


def angles_by_kind(config: ModelConfig, positions: Array) -> dict[str, Any]:
  shared = layer_angles(config, positions, "global")
  own = config.local_rope_theta is not None
  return by_kind(
    config,
    lambda kind: (
      layer_angles(config, positions, kind)
      if own and kind == "local"
      else shared
    ),
  )


def masks_by_kind(
  config: ModelConfig,
  mask: Array,
  query_positions: Array,
  key_positions: Array,
  length: int,
) -> dict[str, Array]:
  """Returns each kind's mask: `mask`, and the window where that cuts keys off.

  Args:
    config: the model's shape.
    mask: bool, [.., T, S] or what broadcasts to it.
    query_positions: int32 [.., T].
    key_positions: int32 [.., S].
    length: the longest sequence that the arrays can hold: a window as long
      as that changes nothing.
  """
  window = config.sliding_window

  def make(kind):
    if kind == "global" or window is None or window >= length:
      return mask
    return mask & near(query_positions, key_positions, window)

  found = by_kind(config, make)
  if len(found) > 1 and found["local"] is not found["global"]:
    found["global"] = jnp.broadcast_to(mask, found["local"].shape)
  return found


def prompt_masks_by_kind(
  config: ModelConfig, prompt_mask: Array, steps: Array, length: int
) -> dict[str, Array]:
  """Returns each kind's mask of prompt keys, for responses behind the prompt.

  Args:
    config: the model's shape.
    prompt_mask: bool [P, S].
    steps: int32 [1, T], places in the response.
    length: as in `masks_by_kind`.

  Returns:
    [P, S]; [P, T, S] where a window cuts keys off.
  """
  window = config.sliding_window
  if "local" not in config.layer_kinds or window is None or window >= length:
    return by_kind(config, lambda kind: prompt_mask)
  lengths = prompt_mask.sum(-1, dtype=jnp.int32)
  return masks_by_kind(
    config,
    prompt_mask[:, None],
    lengths[:, None] + steps,
    positions_of(prompt_mask),
    length,
  )
