"""Attention by JAX's Pallas kernel for TPU, splash attention.

The kernel holds a block of scores at a time in the chip's fast memory, where
plain attention writes [B, H, T, S] float32 of them to the slow one, and skips
blocks that the mask leaves empty: half of a causal mask, nearly all of a short
window. Source: `jax.experimental.pallas.ops.tpu.splash_attention`; the
algorithm is FlashAttention-2, https://arxiv.org/abs/2307.08691.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as library,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)

from rlvr.meshes import num_shards, on_shards
from rlvr.types import Array

_LANES = 128  # of a TPU's registers: lengths and head sizes are multiples
_BLOCKS = (512, 256, 128)  # tokens


def up_to_lanes(n: int) -> int:
  """Returns the least multiple of 128 that is n or more."""
  return -(-n // _LANES) * _LANES


def _padded(x: Array, axis: int, size: int) -> Array:
  pad = [(0, 0)] * x.ndim
  pad[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, pad)


def _block(length: int) -> int:
  return next(block for block in _BLOCKS if length % block == 0)


def _one_row(
  q_HxTxD: Array,
  k_KxSxD: Array,
  v_KxSxD: Array,
  q_segments: Array,
  k_segments: Array,
  *,
  offset: int,
  window: int | None,
  softcap: float | None,
  interpret: bool,
) -> Array:
  H, T, _ = q_HxTxD.shape
  S = k_KxSxD.shape[1]
  mask: masks.Mask
  if window is None:
    mask = masks.CausalMask((T, S), offset=offset)
  else:
    mask = masks.LocalMask((T, S), window_size=(window - 1, 0), offset=offset)
  queries, keys = _block(T), _block(S)
  # Made for each trace: what it holds are constants of that trace.
  kernel = library.make_splash_mha(
    masks.MultiHeadMask([mask] * H),
    block_sizes=library.BlockSizes(
      block_q=queries,
      block_kv=keys,
      block_q_dkv=queries,
      block_kv_dkv=keys,
      block_q_dq=queries,
      block_kv_dq=keys,
    ),
    attn_logits_soft_cap=softcap,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  segments = library.SegmentIds(q=q_segments, kv=k_segments)
  return kernel(q_HxTxD, k_KxSxD, v_KxSxD, segments)


def splash_attend(
  q_BxTxHxD: Array,
  k_BxSxKxD: Array,
  v_BxSxKxD: Array,
  q_segments: Array,
  k_segments: Array,
  *,
  offset: int,
  window: int | None,
  scale: float | None,
  softcap: float | None,
  interpret: bool,
) -> Array:
  """Returns causal grouped-query attention, [B, T, H, D].

  A query looks at keys of its own segment up to its own place, which is
  `offset` places behind its index. With padding as another segment, what
  padding queries get is unspecified, and finite.

  Lengths and head sizes are padded with zeros to multiples of 128 and cut off
  again: scores don't change, and short sequences cost as much as 128 tokens.
  Under a mesh each device runs the kernel on its rows and heads; key heads
  that the mesh doesn't divide are repeated.

  Args:
    q_BxTxHxD: queries; H is a multiple of K.
    k_BxSxKxD: keys.
    v_BxSxKxD: values.
    q_segments: int32 [B, T].
    k_segments: int32 [B, S].
    offset: keys before the first query's own, not negative.
    window: tokens that a query sees, its own included; None for all.
    scale: multiplies queries; None: D ** -0.5.
    softcap: see `attention.softcapped`; of the scores.
    interpret: run the kernel without a TPU, slowly.
  """
  _, T, H, D = q_BxTxHxD.shape
  S, K = k_BxSxKxD.shape[1:3]
  queries, keys, width = (up_to_lanes(n) for n in (T, S, D))

  def rows(x, length):
    """[B, n, N, D] -> [B, N, length, width]."""
    return _padded(_padded(x.swapaxes(1, 2), 2, length), 3, width)

  repeats = math.lcm(K, num_shards("act_heads", H)) // K
  q = rows(q_BxTxHxD * (scale or D**-0.5), queries)
  k, v = (
    jnp.repeat(rows(x, keys), repeats, axis=1) if repeats > 1 else rows(x, keys)
    for x in (k_BxSxKxD, v_BxSxKxD)
  )
  call = functools.partial(
    _one_row,
    offset=offset,
    window=window,
    softcap=softcap,
    interpret=interpret,
  )
  heads, segments = ("batch", "act_heads"), ("batch",)
  out = on_shards(jax.vmap(call), (heads, heads, heads, segments, segments))(
    q,
    k,
    v,
    _padded(q_segments, 1, queries),
    _padded(k_segments, 1, keys),
  )
  return out[:, :, :T, :D].swapaxes(1, 2)
