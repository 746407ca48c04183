"""Prefill and decode: the decoder with its keys and values kept.

    last, prompts = prefill(params, config, tokens, mask)
    cache = empty_cache(config, num_slots, length)
    hidden, cache = decode(weights, config, state, prompts, cache)

Keys are kept as [.., N, S] and values as [.., S, N], as the two products of one
query with them read them: neither is turned over in any step. A model whose
layers are unrolled has an array for each layer, one whose layers are scanned
has one for all, written in place. They may be kept with fewer bits
(`kept_as`): what follows goes by the type of the arrays.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr.meshes import constrain
from rlvr.models.attention import attend_token
from rlvr.models.config import ModelConfig
from rlvr.models.decoder import (
  block_of,
  embed,
  final_norm,
  forward_keep,
)
from rlvr.models.kernels import score_settings
from rlvr.models.kinds import (
  angles_by_kind,
  masks_by_kind,
  of_layer,
  prompt_masks_by_kind,
)
from rlvr.models.quantized import (
  Quantized,
  balanced,
  kept_like,
  quantize,
  quantize_keys,
)
from rlvr.types import Array, Params


class Cache(NamedTuple):
  """Keys and values, of prompts or of responses.

  keys: compute dtype [rows, K, N, S]; a tuple of one for each layer where the
    layers are unrolled, else [L, rows, K, N, S]. Or `Quantized`, with scales
    [.., 1, S].
  values: likewise [rows, K, S, N]; scales [.., S, 1].
  """

  keys: Any
  values: Any


class Reading(NamedTuple):
  """What `decode` reads and never writes.

  trunk: the parameters around the layers.
  layers: a tuple of each layer's parameters, or those stacked, as in `Cache`.
  prompts: keys and values of the prompts, rows P or one for each response.
  prompt_mask: bool [rows, S].
  prompt_lengths: int32 [B], tokens of each response's prompt.
  """

  trunk: Params
  layers: Any
  prompts: Cache
  prompt_mask: Array
  prompt_lengths: Array


def layers_to_read(params: Params, config: ModelConfig) -> Any:
  """Returns the layers' parameters as `decode` reads them, see `Reading`."""
  if not config.unroll_layers:
    return params["layers"]
  return tuple(
    jax.tree.map(lambda p, i=i: p[i], params["layers"])
    for i in range(config.num_layers)
  )


def prefill(
  params: Params, config: ModelConfig, tokens: Array, mask: Array
) -> tuple[Array, Cache]:
  """Returns each prompt's last hidden state, and all keys and values.

  Args:
    params: from `init`.
    config: the model's shape.
    tokens: int32 [P, S], padded on the left.
    mask: bool [P, S].

  Returns:
    [P, D] and a cache of P rows.
  """
  hidden, (keys, values) = forward_keep(params, config, tokens, mask)
  cache = Cache(
    jnp.transpose(keys, (0, 1, 3, 4, 2)), jnp.transpose(values, (0, 1, 3, 2, 4))
  )
  if config.unroll_layers:
    cache = Cache(*(tuple(x[i] for i in range(len(x))) for x in cache))
  return hidden[:, -1], constrain_cache(cache, config)


def empty_cache(
  config: ModelConfig, rows: int, length: int, dtype: Any = None
) -> Cache:
  """Returns a cache of zeros for `length` response tokens in each row.

  Args:
    config: the model's shape.
    rows: how many.
    length: U.
    dtype: as which it is kept, see `cache_dtype`; None: the compute dtype.
  """
  dtype = jnp.dtype(config.compute_dtype if dtype is None else dtype)
  K, N, L = config.num_kv_heads, config.head_dim, config.num_layers
  heads = (rows, K) if config.unroll_layers else (L, rows, K)

  def zeros(shape, groups):
    def one():
      x = jnp.zeros((*heads, *shape), dtype)
      if dtype != jnp.int8:
        return x
      return Quantized(x, jnp.zeros((*heads, *groups), jnp.float32))

    return tuple(one() for _ in range(L)) if config.unroll_layers else one()

  cache = Cache(
    zeros((N, length), (1, length)), zeros((length, N), (length, 1))
  )
  return constrain_cache(cache, config)


def kept_as(cache: Cache, dtype: str | None, mask: Array) -> Cache:
  """Returns a prompts' cache with its keys and values kept as `dtype`.

  Args:
    cache: of floats.
    dtype: a float, or "int8": one scale for each token's head. None: as it is.
    mask: bool [rows, S], true on the prompts' tokens.
  """
  if dtype is None:
    return cache
  if dtype != "int8":
    return jax.tree.map(lambda x: x.astype(dtype), cache)
  return Cache(
    jax.tree.map(lambda x: quantize_keys(x, mask), cache.keys),
    jax.tree.map(lambda x: quantize(x, -1), cache.values),
  )


def cache_dtype(cache: Cache) -> Any:
  """Returns as which keys and values are kept."""
  return jax.tree.leaves(cache.keys)[0].dtype


def constrain_cache(cache: Cache, config: ModelConfig) -> Cache:
  """Returns the cache, cut over the mesh by rows and heads."""
  names: tuple[str | None, ...] = ("batch", "act_kv_heads")
  if not config.unroll_layers:
    names = (None, *names)
  return jax.tree.map(lambda x: constrain(x, *names), cache)


def longer_cache(cache: Cache, length: int) -> Cache:
  """Returns the cache with room for `length` response tokens."""

  def grow(axis):
    def one(x):
      pad = [(0, 0)] * x.ndim
      pad[axis] = (0, length - x.shape[axis])
      return jnp.pad(x, pad)

    return one

  return Cache(
    jax.tree.map(grow(-1), cache.keys), jax.tree.map(grow(-2), cache.values)
  )


def cache_length(cache: Cache) -> int:
  """Returns for how many response tokens there is room."""
  return jax.tree.leaves(cache.keys)[0].shape[-1]


def take_rows(cache: Cache, rows: Array, config: ModelConfig) -> Cache:
  """Returns a cache of the rows named, int32 [n]."""
  axis = 0 if config.unroll_layers else 1
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), cache)


def put_rows(
  cache: Cache, rows: Array, new: Cache, config: ModelConfig
) -> Cache:
  """Returns the cache with `new` in the rows named; rows past its end are left.

  Args:
    cache: a cache.
    rows: int32 [n].
    new: a cache of n rows.
    config: the model's shape.
  """

  def put(x, y):
    if config.unroll_layers:
      return x.at[rows].set(y, mode="drop")
    return x.at[:, rows].set(y, mode="drop")

  return jax.tree.map(put, cache, new)


def _write(cache: Cache, keys: Any, values: Any, position: Array) -> Cache:
  """Returns the cache with one token more of each response.

  Args:
    cache: of B rows.
    keys: as the cache keeps them, leaves [.., B, K, N or 1].
    values: likewise.
    position: int32, their places: [] where it is one for all, else [B].
  """

  def put(axis):
    def one(x, new):
      new = jnp.expand_dims(new, axis)
      if position.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(x, new, position, axis)
      return _put_each(x, new, position, axis)

    return one

  return Cache(
    jax.tree.map(put(-1), cache.keys, keys),
    jax.tree.map(put(-2), cache.values, values),
  )


def _put_each(x: Array, new: Array, position: Array, axis: int) -> Array:
  """Returns x [.., B, K, _, _] with a row's `new` at its place along `axis`."""
  before = (slice(None),) * (x.ndim - 4)
  rows = jnp.arange(position.shape[0])
  place = (slice(None), position) if axis == -1 else (position, slice(None))
  # The indices aren't side by side: what they pick has B first.
  new = jnp.moveaxis(jnp.squeeze(new, axis), x.ndim - 4, 0)
  return x.at[(*before, rows, slice(None), *place)].set(new)


def decode(
  reading: Reading,
  config: ModelConfig,
  tokens: Array,
  position: Array,
  cache: Cache,
) -> tuple[Array, Cache]:
  """Returns the hidden states behind one more token of each response.

  Args:
    reading: parameters and prompts; with fewer rows of prompts than responses
      each prompt has as many, group-major.
    config: the model's shape.
    tokens: int32 [B], the responses' tokens at `position`.
    position: int32, their places in the responses: [] where it is one for all,
      else [B].
    cache: of the responses; places before `position` are filled.

  Returns:
    compute dtype [B, D], normalised, and the cache with `position` written.

  Raises:
    ValueError: places of their own with prompts that responses share.
  """
  if position.ndim and reading.prompt_mask.shape[0] != tokens.shape[0]:
    raise ValueError(
      f"{tokens.shape[0]} responses at places of their own with"
      f" {reading.prompt_mask.shape[0]} rows of prompts: give each response its"
      " row (take_rows)"
    )
  params = {"trunk": reading.trunk}
  B, U = tokens.shape[0], cache_length(cache)
  x = embed(params, config, tokens[:, None])
  steps = position.reshape(-1, 1)  # [1 or B, 1]
  places = jnp.arange(U, dtype=jnp.int32)[None]
  # Where layers are unrolled each is written before it is read. Those in a loop
  # are written once all were read: XLA for TPU would copy a layer's keys that
  # were written in the same turn. On CPUs a token beside the others costs more.
  at_once = config.unroll_layers
  visible = (places <= steps if at_once else places < steps)[:, None]
  length = reading.prompt_mask.shape[1] + U
  angles = angles_by_kind(
    config, reading.prompt_lengths[:, None] + jnp.broadcast_to(steps, (B, 1))
  )
  own_masks = masks_by_kind(config, visible, steps, places, length)
  prompt_masks = prompt_masks_by_kind(
    config, reading.prompt_mask, steps, length
  )

  def layer_step(x, layer, prompt, own, is_local):
    block = block_of(config, layer)
    q, k, v = block.qkv(x, of_layer(angles, is_local))
    q, k = balanced(q, k, prompt.keys)
    token = (
      kept_like(own.keys, k[:, 0], -1),
      kept_like(own.values, v[:, 0], -1),
    )
    if at_once:
      own = _write(own, *token, position)
    attended = attend_token(
      q[:, 0],
      *prompt,
      of_layer(prompt_masks, is_local),
      *own,
      of_layer(own_masks, is_local),
      token=None if at_once else token,
      **score_settings(config),
    )
    return block.finish(x, attended[:, None]), own if at_once else token

  if config.unroll_layers:
    written = []
    for i, kind in enumerate(config.layer_kinds):
      prompt = Cache(reading.prompts.keys[i], reading.prompts.values[i])
      own = Cache(cache.keys[i], cache.values[i])
      x, own = layer_step(x, reading.layers[i], prompt, own, kind)
      written.append(own)
    cache = Cache(*zip(*written, strict=True))
  else:
    kinds = config.layer_kinds
    flags = None
    if len(set(kinds)) > 1:
      flags = jnp.array([kind == "local" for kind in kinds])

    def body(x, scanned):
      return layer_step(x, *scanned)

    x, (keys, values) = jax.lax.scan(
      body, x, (reading.layers, reading.prompts, cache, flags)
    )
    cache = _write(cache, keys, values, position)
  hidden = final_norm(params, config, x[:, 0])
  return hidden, constrain_cache(cache, config)
