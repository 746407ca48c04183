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
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rlvr.meshes import constrain
from rlvr.models import kernels
from rlvr.models.attention import softcapped
from rlvr.models.config import ModelConfig
from rlvr.models.kinds import (
  angles_by_kind,
  masks_by_kind,
  of_layer,
  prompt_masks_by_kind,
)
from rlvr.models.layers import WIDTH, Block, Trunk
from rlvr.models.rope import positions_of
from rlvr.types import Array, Params


@functools.lru_cache(maxsize=64)
def _block_graph(config: ModelConfig):
  block = nnx.eval_shape(lambda: Block(config, nnx.Rngs(0)))
  return nnx.split(block)


@functools.lru_cache(maxsize=64)
def _trunk_graph(config: ModelConfig):
  trunk = nnx.eval_shape(lambda: Trunk(config, nnx.Rngs(0)))
  return nnx.split(trunk)


def block_of(config: ModelConfig, layer: Params) -> Block:
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


def embed(
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
  x = constrain(x, *WIDTH)
  if config.scale_embeddings:
    x = x * jnp.asarray(config.embed_dim**0.5, dtype)
  return x


def final_norm(params: Params, config: ModelConfig, x: Array) -> Array:
  norm = nnx.merge(_trunk_graph(config)[0], params["trunk"]).final_norm
  return norm(x)


def scan_layers(body, config: ModelConfig, carry, params, *more):
  """Scans body(carry, layer, is_local, *more) -> (carry, out) over the layers.

  is_local is bool [] where the kinds are mixed, else None. `more` are arrays
  with the layer as leading axis.
  """
  kinds = config.layer_kinds
  is_local = None
  if len(set(kinds)) > 1:
    is_local = jnp.array([kind == "local" for kind in kinds])

  def step(carry, layer):
    return body(carry, *layer)

  if config.remat:
    policy = None
    if config.remat == "dots":
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # Unrolled, the compiler would take what is computed again for the first.
    step = jax.checkpoint(step, prevent_cse=config.unroll_layers, policy=policy)
  return jax.lax.scan(
    step,
    carry,
    (params["layers"], is_local, *more),
    unroll=config.unroll_layers,
  )


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
  hidden, _ = forward_keep(params, config, tokens, mask)
  return hidden


def forward_keep(params, config, tokens, mask):
  kernel = kernels.choose(config)
  S = tokens.shape[1]
  positions = positions_of(mask)
  visible = jnp.tril(jnp.ones((S, S), bool))[None] & mask[:, None, :]
  angles = angles_by_kind(config, positions)
  masks = masks_by_kind(config, visible, positions, positions, S)

  def body(x, layer, is_local):
    block = block_of(config, layer)
    q, k, v = block.qkv(x, of_layer(angles, is_local))
    attended = kernel.sequences(config, q, k, v, masks, mask, is_local)
    return block.finish(x, attended), (k, v)

  x, key_values = scan_layers(
    body, config, embed(params, config, tokens, mask), params
  )
  return final_norm(params, config, x), key_values


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
  prompt_angles = angles_by_kind(config, prompt_positions)
  angles = angles_by_kind(config, positions)
  prompt_masks = masks_by_kind(
    config, prompt_visible, prompt_positions, prompt_positions, S
  )
  steps = jnp.arange(T, dtype=jnp.int32)[None]
  own_masks = masks_by_kind(config, visible, steps, steps, T)
  shared_mask = prompt_mask if group is None else prompt_mask[group]
  shared_masks = prompt_masks_by_kind(config, shared_mask, steps, S + T)
  kernel = kernels.choose(config)

  def body(carry, layer, is_local):
    x_prompt, x = carry
    block = block_of(config, layer)
    q_prompt, k_prompt, v_prompt = block.qkv(
      x_prompt, of_layer(prompt_angles, is_local)
    )
    q, k, v = block.qkv(x, of_layer(angles, is_local))
    prompt_attended = kernel.sequences(
      config, q_prompt, k_prompt, v_prompt, prompt_masks, prompt_mask, is_local
    )
    x_prompt = block.finish(x_prompt, prompt_attended)
    if group is not None:
      k_prompt, v_prompt = k_prompt[group], v_prompt[group]
    attended = kernel.responses(
      config,
      q,
      k_prompt,
      v_prompt,
      shared_masks,
      shared_mask,
      k,
      v,
      own_masks,
      is_local,
    )
    return (x_prompt, block.finish(x, attended)), None

  carry = (
    embed(params, config, prompt_tokens, prompt_mask),
    embed(params, config, tokens, mask),
  )
  (x_prompt, x), _ = scan_layers(body, config, carry, params)
  before = jnp.concatenate([spread(x_prompt[:, -1:]), x[:, :-1]], axis=1)
  return final_norm(params, config, before)


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


def logits(params: Params, config: ModelConfig, hidden: Array) -> Array:
  """Returns float32 logits [..., V] of hidden states [..., D].

  With `ModelConfig.final_softcap` they are bounded by it, and no longer linear
  in the hidden states.
  """
  trunk = params["trunk"]
  dtype = jnp.dtype(config.compute_dtype)
  equation, table = "...d,dv->...v", trunk.get("unembedding")
  if config.tie_embeddings:
    equation, table = "...d,vd->...v", trunk["embedding"]
  z = jnp.einsum(
    equation, hidden, table.astype(dtype), preferred_element_type=jnp.float32
  )
  return softcapped(z, config.final_softcap)


def unembedding(params: Params, config: ModelConfig) -> Array:
  """Returns float32 [V, D]: logits are hidden · unembeddingᵀ.

  Raises:
    ValueError: the model's logits have a soft-cap, so that they aren't.
  """
  if config.final_softcap is not None:
    raise ValueError(
      f"ModelConfig.final_softcap={config.final_softcap}: logits are not linear"
      " in the hidden states, so methods that read `unembedding` would be wrong"
      " for this model. Take a model without it, or set it to None where the"
      " logits are small against it"
    )
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
