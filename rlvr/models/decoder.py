"""The decoder: Flax modules inside, pure functions over a pytree outside.

    params = init(config, key)
    hidden = forward(params, config, tokens, mask)      # any sequences
    hidden = forward_responses(params, config, rollout) # prompts computed once
    logits(params, config, hidden)

RMSNorm, rotary positions, grouped-query attention, gated MLP. The layers'
parameters are stacked on a leading axis and scanned, so that compile time
doesn't grow with depth. Parameters are float32 and are cast to the compute
dtype where they are used; norms, softmax and logits are float32.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rlvr.meshes import constrain
from rlvr.models.attention import attend, attend_shared, rotate
from rlvr.models.config import ModelConfig
from rlvr.types import Array, Params

# One layer's keys and values, [N, S, K, D] each.
KeyValues = tuple[Array, Array]
# Logical axes of activations, for `constrain`.
_WIDTH = ("batch", None, "act_embed")
_HEADS = ("batch", None, "act_heads")
_KV_HEADS = ("batch", None, "act_kv_heads")
_MLP = ("batch", None, "act_mlp")


def _param(rngs, shape, axes, fan_in):
  scale = fan_in**-0.5
  value = jax.random.normal(rngs.params(), shape, jnp.float32) * scale
  return nnx.Param(value, axes=axes)


def _bias(heads: int, head_dim: int, axis: str) -> nnx.Param:
  zeros = jnp.zeros((heads, head_dim), jnp.float32)
  return nnx.Param(zeros, axes=(axis, "head_dim"))


def _project(x: Array, weight: Array, contract: int = 1) -> Array:
  """Returns x · weight over the last `contract` axes of x, as one 2-D product.

  XLA's CPU backend takes 2.5 times as long for the gradient of the same product
  with a batch and a time axis; elsewhere the two are equal.
  """
  rows, out = x.shape[: x.ndim - contract], weight.shape[contract:]
  inner = math.prod(weight.shape[:contract])
  y = x.reshape(-1, inner) @ weight.reshape(inner, -1).astype(x.dtype)
  return y.reshape(*rows, *out)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x²) + ε) · scale, https://arxiv.org/abs/1910.07467."""

  def __init__(self, dim: int, epsilon: float, axis: str):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32), axes=(axis,))
    self.epsilon = epsilon

  def __call__(self, x: Array) -> Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + self.epsilon)
    scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
    return (y * scale).astype(x.dtype)


class Block(nnx.Module):
  """One layer, cut at the attention so that callers choose what is attended."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = config
    self.config = c
    D, H, K, N = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
    self.attention_norm = RMSNorm(D, c.norm_epsilon, "embed")
    self.query = _param(rngs, (D, H, N), ("embed", "heads", "head_dim"), D)
    self.key = _param(rngs, (D, K, N), ("embed", "kv_heads", "head_dim"), D)
    self.value = _param(rngs, (D, K, N), ("embed", "kv_heads", "head_dim"), D)
    # Residual branches start smaller with depth, as in GPT-2.
    out = (2 * c.num_layers) ** 2
    self.output = _param(
      rngs, (H, N, D), ("heads", "head_dim", "embed"), H * N * out**0.5
    )
    if c.qkv_bias:
      self.query_bias = _bias(H, N, "heads")
      self.key_bias = _bias(K, N, "kv_heads")
      self.value_bias = _bias(K, N, "kv_heads")
    if c.qk_norm:
      self.query_norm = RMSNorm(N, c.norm_epsilon, "head_dim")
      self.key_norm = RMSNorm(N, c.norm_epsilon, "head_dim")
    self.mlp_norm = RMSNorm(D, c.norm_epsilon, "embed")
    self.gate = _param(rngs, (D, c.mlp_dim), ("embed", "mlp"), D)
    self.up = _param(rngs, (D, c.mlp_dim), ("embed", "mlp"), D)
    self.down = _param(
      rngs, (c.mlp_dim, D), ("mlp", "embed"), c.mlp_dim * out**0.5
    )

  def qkv(self, x_BxTxD: Array, positions_BxT: Array):
    """Returns rotated queries, rotated keys and values."""
    c, dtype = self.config, x_BxTxD.dtype
    h = self.attention_norm(x_BxTxD)
    q = _project(h, self.query[...])
    k = _project(h, self.key[...])
    v = _project(h, self.value[...])
    if c.qkv_bias:
      q = q + self.query_bias[...].astype(dtype)[None, None]
      k = k + self.key_bias[...].astype(dtype)[None, None]
      v = v + self.value_bias[...].astype(dtype)[None, None]
    if c.qk_norm:
      q, k = self.query_norm(q), self.key_norm(k)
    q = constrain(rotate(q, positions_BxT, c.rope_theta), *_HEADS)
    k = constrain(rotate(k, positions_BxT, c.rope_theta), *_KV_HEADS)
    return q, k, constrain(v, *_KV_HEADS)

  def finish(self, x_BxTxD: Array, attended_BxTxHxN: Array) -> Array:
    """Returns the layer's output: attention's projection, then the MLP."""
    attended = constrain(attended_BxTxHxN, *_HEADS)
    x = x_BxTxD + _project(attended, self.output[...], contract=2)
    x = constrain(x, *_WIDTH)
    h = self.mlp_norm(x)
    gate = jax.nn.silu(_project(h, self.gate[...]))
    inner = constrain(gate * _project(h, self.up[...]), *_MLP)
    return constrain(x + _project(inner, self.down[...]), *_WIDTH)


class Trunk(nnx.Module):
  """Everything but the layers: embedding, last norm, heads."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = config
    # The families' 0.02: with 1/sqrt(D) a tied head would start by repeating
    # its input with near certainty.
    self.embedding = _param(
      rngs, (c.vocab_size, c.embed_dim), ("vocab", "embed"), 0.02**-2
    )
    self.final_norm = RMSNorm(c.embed_dim, c.norm_epsilon, "embed")
    if not c.tie_embeddings:
      self.unembedding = _param(
        rngs, (c.embed_dim, c.vocab_size), ("embed", "vocab"), c.embed_dim
      )
    if c.value_head:
      zeros = jnp.zeros((c.embed_dim,), jnp.float32)
      self.value_head = nnx.Param(zeros, axes=("embed",))


@functools.lru_cache(maxsize=64)
def _block_graph(config: ModelConfig):
  block = nnx.eval_shape(lambda: Block(config, nnx.Rngs(0)))
  return nnx.split(block)


@functools.lru_cache(maxsize=64)
def _trunk_graph(config: ModelConfig):
  trunk = nnx.eval_shape(lambda: Trunk(config, nnx.Rngs(0)))
  return nnx.split(trunk)


def _block(config: ModelConfig, layer: Params) -> Block:
  return nnx.merge(_block_graph(config)[0], layer)


def init(config: ModelConfig, key: Array) -> Params:
  """Returns freshly drawn parameters: a dict with "trunk" and "layers".

  Args:
    config: the model's shape.
    key: PRNG key, consumed.

  Returns:
    float32 arrays; those under "layers" have the layer as leading axis.
  """
  trunk_key, layers_key = jax.random.split(key)

  def one_layer(layer_key):
    block = Block(config, nnx.Rngs(params=layer_key))
    return nnx.to_pure_dict(nnx.state(block))

  trunk = Trunk(config, nnx.Rngs(params=trunk_key))
  return {
    "trunk": nnx.to_pure_dict(nnx.state(trunk)),
    "layers": jax.vmap(one_layer)(
      jax.random.split(layers_key, config.num_layers)
    ),
  }


def abstract_params(config: ModelConfig) -> Params:
  """Returns the shapes and dtypes of `init` without making an array."""
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def num_params(config: ModelConfig) -> int:
  """Returns how many parameters the model has."""
  return sum(x.size for x in jax.tree.leaves(abstract_params(config)))


def logical_axes(config: ModelConfig) -> Any:
  """Returns each parameter's logical axis names, in the shape of `init`."""

  def axes(state, prefix):
    named = {}
    for path, variable in nnx.to_flat_state(state):
      node = named
      for part in path[:-1]:
        node = node.setdefault(part, {})
      node[path[-1]] = prefix + variable.get_metadata("axes")
    return named

  return {
    "trunk": axes(_trunk_graph(config)[1], ()),
    "layers": axes(_block_graph(config)[1], ("layers",)),
  }


def _embed(
  params: Params,
  config: ModelConfig,
  tokens: Array,
  mask: Array | None = None,
) -> Array:
  dtype = jnp.dtype(config.compute_dtype)
  if mask is not None:
    # Padding may hold any id; a NaN there would pass every attention mask,
    # as 0 · NaN.
    tokens = jnp.where(mask, tokens, 0)
  # Out-of-range ids, negative ones too, become NaN rather than another
  # token's embedding.
  x = (
    params["trunk"]["embedding"]
    .at[tokens]
    .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    .astype(dtype)
  )
  # Each device looks its part of the width up, for more rows than its own, and
  # the parts change places: the table is never gathered.
  x = constrain(x, "lookup_batch", None, "embed")
  x = constrain(x, *_WIDTH)
  if config.scale_embeddings:
    x = x * jnp.asarray(config.embed_dim**0.5, dtype)
  return x


def _final_norm(params: Params, config: ModelConfig, x: Array) -> Array:
  norm = nnx.merge(_trunk_graph(config)[0], params["trunk"]).final_norm
  return norm(x)


def _scan_layers(body, config: ModelConfig, carry, params):
  if config.remat:
    body = jax.checkpoint(body, prevent_cse=False)
  return jax.lax.scan(
    body, carry, params["layers"], unroll=config.unroll_layers
  )


def positions_of(mask: Array) -> Array:
  """Returns int32 positions that count the true entries of each row from 0."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0)


def forward(
  params: Params, config: ModelConfig, tokens: Array, mask: Array
) -> Array:
  """Returns the last hidden states of whole sequences.

  Args:
    params: from `init`.
    config: the model's shape.
    tokens: int32 [B, S].
    mask: bool [B, S], false on padding, which may be left or right.

  Returns:
    compute dtype [B, S, D], normalised; what `logits` takes.
  """
  hidden, _ = _forward_keep(params, config, tokens, mask)
  return hidden


def _forward_keep(params, config, tokens, mask):
  S = tokens.shape[1]
  positions = positions_of(mask)
  visible = jnp.tril(jnp.ones((S, S), bool))[None] & mask[:, None, :]

  def body(x, layer):
    block = _block(config, layer)
    q, k, v = block.qkv(x, positions)
    return block.finish(x, attend(q, k, v, visible)), (k, v)

  x, key_values = _scan_layers(
    body, config, _embed(params, config, tokens, mask), params
  )
  return _final_norm(params, config, x), key_values


def prefill(
  params: Params, config: ModelConfig, tokens: Array, mask: Array
) -> tuple[Array, KeyValues]:
  """Returns each prompt's last hidden state and all layers' keys and values.

  Args:
    params: from `init`.
    config: the model's shape.
    tokens: int32 [P, S], padded on the left.
    mask: bool [P, S].

  Returns:
    [P, D] and a pair of [L, P, S, K, N].
  """
  hidden, key_values = _forward_keep(params, config, tokens, mask)
  return hidden[:, -1], key_values


def forward_responses(
  params: Params,
  config: ModelConfig,
  prompt_tokens: Array,
  prompt_mask: Array,
  tokens: Array,
  mask: Array,
  group: Array | None = None,
) -> Array:
  """Returns the hidden states that predict each response token.

  A prompt is computed once for all of its responses.

  Args:
    params: from `init`.
    config: the model's shape.
    prompt_tokens: int32 [P, S], padded on the left.
    prompt_mask: bool [P, S].
    tokens: int32 [B, T], padded on the right.
    mask: bool [B, T].
    group: int32 [B], prompt of each response. None means B/P responses for
      each prompt in group-major order, which keeps a prompt's keys once; with
      an index they are gathered for each response.

  Returns:
    compute dtype [B, T, D]: row t predicts `tokens[:, t]`.

  Raises:
    ValueError: `group` is None and P doesn't divide B.
  """
  P, B, T = prompt_tokens.shape[0], tokens.shape[0], tokens.shape[1]
  if group is None and B % P:
    raise ValueError(
      f"{B} responses for {P} prompts are no even groups: give `group`"
    )

  def spread(x):
    """[P, ...] -> [B, ...]."""
    return jnp.repeat(x, B // P, axis=0) if group is None else x[group]

  S = prompt_tokens.shape[1]
  prompt_positions = positions_of(prompt_mask)
  prompt_visible = (
    jnp.tril(jnp.ones((S, S), bool))[None] & prompt_mask[:, None, :]
  )
  lengths = spread(prompt_mask.sum(-1, dtype=jnp.int32))
  positions = lengths[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
  visible = jnp.tril(jnp.ones((T, T), bool))[None]
  key_mask = prompt_mask if group is None else prompt_mask[group]

  def body(carry, layer):
    x_prompt, x = carry
    block = _block(config, layer)
    q_prompt, k_prompt, v_prompt = block.qkv(x_prompt, prompt_positions)
    q, k, v = block.qkv(x, positions)
    x_prompt = block.finish(
      x_prompt, attend(q_prompt, k_prompt, v_prompt, prompt_visible)
    )
    if group is not None:
      k_prompt, v_prompt = k_prompt[group], v_prompt[group]
    attended = attend_shared(q, k_prompt, v_prompt, key_mask, k, v, visible)
    return (x_prompt, block.finish(x, attended)), None

  carry = (
    _embed(params, config, prompt_tokens, prompt_mask),
    _embed(params, config, tokens, mask),
  )
  (x_prompt, x), _ = _scan_layers(body, config, carry, params)
  before = jnp.concatenate([spread(x_prompt[:, -1:]), x[:, :-1]], axis=1)
  return _final_norm(params, config, before)


def compute_params(params: Params, config: ModelConfig) -> Params:
  """Returns the parameters as decoding reads them, where it reads them often.

  Matrices are cast to the compute dtype, as every use of them would do; norms
  and the value head stay float32, as they are used so.
  """
  dtype = jnp.dtype(config.compute_dtype)

  def cast(path, x):
    name = jax.tree_util.keystr(path)
    return x if "norm" in name or "value_head" in name else x.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def unstack_layers(params: Params, config: ModelConfig) -> list[Params]:
  """Returns the layers' parameters as a list, for `decode`."""
  return [
    jax.tree.map(lambda p, i=i: p[i], params["layers"])
    for i in range(config.num_layers)
  ]


def decode(
  params: Params,
  layers: list[Params],
  config: ModelConfig,
  tokens: Array,
  position: Array,
  prompt_lengths: Array,
  prompt_mask: Array,
  prompt_cache: list[KeyValues],
  cache: list[KeyValues],
) -> tuple[Array, list[KeyValues]]:
  """Returns the hidden state behind one more response token, and the cache.

  Args:
    params: from `init`; only the trunk is read.
    layers: from `unstack_layers`.
    config: the model's shape.
    tokens: int32 [B], the response token at `position`.
    position: int32 [], index of that token in its response.
    prompt_lengths: int32 [B].
    prompt_mask: bool [P, S].
    prompt_cache: per layer, keys and values [P, S, K, N].
    cache: per layer, keys and values [B, T, K, N]; entries up to `position`
      are filled by this call.

  Returns:
    [B, D] normalised, and the cache with `position` written.
  """
  T = cache[0][0].shape[1]
  x = _embed(params, config, tokens[:, None])
  positions = (prompt_lengths + position)[:, None]
  visible = (jnp.arange(T) <= position)[None, None]
  new_cache = []
  for layer, (prompt_k, prompt_v), (k_all, v_all) in zip(
    layers, prompt_cache, cache, strict=True
  ):
    block = _block(config, layer)
    q, k, v = block.qkv(x, positions)
    k_all = jax.lax.dynamic_update_slice_in_dim(k_all, k, position, axis=1)
    v_all = jax.lax.dynamic_update_slice_in_dim(v_all, v, position, axis=1)
    attended = attend_shared(
      q, prompt_k, prompt_v, prompt_mask, k_all, v_all, visible
    )
    x = block.finish(x, attended)
    new_cache.append((k_all, v_all))
  return _final_norm(params, config, x[:, 0]), new_cache


def logits(params: Params, config: ModelConfig, hidden: Array) -> Array:
  """Returns float32 logits [..., V] of hidden states [..., D]."""
  trunk = params["trunk"]
  dtype = jnp.dtype(config.compute_dtype)
  if config.tie_embeddings:
    return jnp.einsum(
      "...d,vd->...v",
      hidden,
      trunk["embedding"].astype(dtype),
      preferred_element_type=jnp.float32,
    )
  return jnp.einsum(
    "...d,dv->...v",
    hidden,
    trunk["unembedding"].astype(dtype),
    preferred_element_type=jnp.float32,
  )


def unembedding(params: Params, config: ModelConfig) -> Array:
  """Returns float32 [V, D]: logits are hidden · unembeddingᵀ."""
  trunk = params["trunk"]
  if config.tie_embeddings:
    return trunk["embedding"].astype(jnp.float32)
  return trunk["unembedding"].T.astype(jnp.float32)


def values(params: Params, config: ModelConfig, hidden: Array) -> Array:
  """Returns the value head's float32 predictions [...] of hidden [..., D].

  Raises:
    ValueError: the model has no value head.
  """
  if not config.value_head:
    raise ValueError("the model has no value head: set ModelConfig.value_head")
  return jnp.einsum(
    "...d,d->...",
    hidden.astype(jnp.float32),
    params["trunk"]["value_head"],
  )
