"""Prompts computed once, for responses that come in any order and any cut.

    kept = keep_prompts(params, config, prompt_tokens, prompt_mask)
    hidden = forward_behind(params, config, kept, prompt_mask, ..., group)

is `forward_responses` in two halves. The first is as large as the prompts, the
second as the responses that are given to it, so that a batch can be computed in
pieces that cut through groups without any prompt being computed again. The
gradient goes through `kept`: the sum of what the pieces send back to it is
pulled through the first half once.
"""

import jax
import jax.numpy as jnp

from rlvr.models import kernels
from rlvr.models.config import ModelConfig
from rlvr.models.decoder import (
  block_of,
  embed,
  final_norm,
  forward_keep,
  scan_layers,
)
from rlvr.models.kinds import (
  angles_by_kind,
  masks_by_kind,
  of_layer,
  prompt_masks_by_kind,
)
from rlvr.types import Array, Params, pytree


@pytree
class KeptPrompts:
  """What responses need of P prompts."""

  last: Array  # compute dtype [P, D], normalised: predicts the first token
  keys: Array  # compute dtype [L, P, S, K, N] for L layers, K heads of width N
  values: Array  # as `keys`


def keep_prompts(
  params: Params, config: ModelConfig, tokens: Array, mask: Array
) -> KeptPrompts:
  """Returns what responses to these prompts need of them.

  Args:
    params: from `init`.
    config: the model's shape.
    tokens: int32 [P, S], padded on the left.
    mask: bool [P, S].
  """
  hidden, (keys, values) = forward_keep(params, config, tokens, mask)
  return KeptPrompts(last=hidden[:, -1], keys=keys, values=values)


def forward_behind(
  params: Params,
  config: ModelConfig,
  kept: KeptPrompts,
  prompt_mask: Array,
  tokens: Array,
  mask: Array,
  group: Array,
  *,
  ways: int = 1,
) -> Array:
  """Returns the hidden states that predict each response token.

  Args:
    params: from `init`.
    config: the model's shape.
    kept: from `keep_prompts` of the same parameters.
    prompt_mask: bool [P, S].
    tokens: int32 [b, T], padded on the right.
    mask: bool [b, T].
    group: int32 [b], prompt of each response, in any order.
    ways: of how many equal parts of the prompts and of the responses each is by
      itself: responses of a part have their prompts in it. A mesh that cuts
      both so then sends no keys.

  Returns:
    compute dtype [b, T, D]: row t predicts `tokens[:, t]`.
  """
  T, S = tokens.shape[1], prompt_mask.shape[1]

  def spread(x):
    """[P, ...] -> [b, ...]."""
    if ways == 1:
      return x[group]
    parts = x.reshape(ways, -1, *x.shape[1:])
    of_part = group.reshape(ways, -1) % parts.shape[1]
    parts = jax.vmap(lambda part, at: part[at])(parts, of_part)
    return parts.reshape(-1, *x.shape[1:])

  prompt_mask = spread(prompt_mask)
  lengths = prompt_mask.sum(-1, dtype=jnp.int32)
  steps = jnp.arange(T, dtype=jnp.int32)[None]
  angles = angles_by_kind(config, lengths[:, None] + steps)
  visible = jnp.tril(jnp.ones((T, T), bool))[None]
  masks = masks_by_kind(config, visible, steps, steps, T)
  prompt_masks = prompt_masks_by_kind(config, prompt_mask, steps, S + T)
  kernel = kernels.choose(config)

  def body(x, layer, is_local, prompt_k, prompt_v):
    block = block_of(config, layer)
    q, k, v = block.qkv(x, of_layer(angles, is_local))
    attended = kernel.responses(
      config,
      q,
      spread(prompt_k),
      spread(prompt_v),
      prompt_masks,
      prompt_mask,
      k,
      v,
      masks,
      is_local,
    )
    return block.finish(x, attended), None

  x = embed(params, config, tokens, mask)
  x, _ = scan_layers(body, config, x, params, kept.keys, kept.values)
  behind = final_norm(params, config, x[:, :-1])
  return jnp.concatenate([spread(kept.last)[:, None], behind], axis=1)
