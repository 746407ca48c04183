"""Attention over one or two segments of keys.

A group's responses share their prompt. Its keys and values are kept once per
prompt and every response attends to them and to its own; nothing is repeated
G times in memory. Scores and softmax are float32 whatever the compute dtype.
"""

import jax
import jax.numpy as jnp

from rlvr.types import Array

_MASKED = -1e30  # finite: a row without any key gives uniform weights, not NaN


def rotate(x_BxTxHxD: Array, positions_BxT: Array, theta: float) -> Array:
  """Returns queries or keys with rotary position embeddings (split halves).

  Source: Su et al. 2021, RoFormer, eq. 34, https://arxiv.org/abs/2104.09864,
  with the pairs (i, i + D/2) of the Llama and Qwen checkpoints.

  Args:
    x_BxTxHxD: float.
    positions_BxT: int32.
    theta: base of the wavelengths.
  """
  half = x_BxTxHxD.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BxT[..., None, None].astype(
    jnp.float32
  ) * frequency.reshape((1,) * (positions_BxT.ndim + 1) + (half,))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  first, second = jnp.split(x_BxTxHxD.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return turned.astype(x_BxTxHxD.dtype)


def attend(
  q_BxTxHxD: Array, k_BxSxKxD: Array, v_BxSxKxD: Array, mask_BxTxS: Array
) -> Array:
  """Returns grouped-query attention, [B, T, H, D].

  Args:
    q_BxTxHxD: queries; H is a multiple of K.
    k_BxSxKxD: keys.
    v_BxSxKxD: values.
    mask_BxTxS: bool, true where a query may look.
  """
  B, T, H, D = q_BxTxHxD.shape
  K = k_BxSxKxD.shape[2]
  q = q_BxTxHxD.reshape(B, T, K, H // K, D) * (D**-0.5)
  scores = jnp.einsum(
    "btkrd,bskd->bkrts", q, k_BxSxKxD, preferred_element_type=jnp.float32
  )
  scores = jnp.where(mask_BxTxS[:, None, None], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BxSxKxD.dtype)
  out = jnp.einsum("bkrts,bskd->btkrd", weights, v_BxSxKxD)
  return out.reshape(B, T, H, D)


def attend_shared(
  q_BxTxHxD: Array,
  prompt_k_PxSxKxD: Array,
  prompt_v_PxSxKxD: Array,
  prompt_mask_PxS: Array,
  k_BxUxKxD: Array,
  v_BxUxKxD: Array,
  mask_BxTxU: Array,
) -> Array:
  """Returns attention of responses to their prompt and to themselves.

  Responses are group-major with B/P responses for each prompt.

  Args:
    q_BxTxHxD: queries of the responses.
    prompt_k_PxSxKxD: keys of the prompts.
    prompt_v_PxSxKxD: values of the prompts.
    prompt_mask_PxS: bool, true on prompt tokens.
    k_BxUxKxD: keys of the responses.
    v_BxUxKxD: values of the responses.
    mask_BxTxU: bool, true where a query may look in its response; the first
      axis may be 1.
  """
  B, T, H, D = q_BxTxHxD.shape
  P, S, K, _ = prompt_k_PxSxKxD.shape
  G, R = B // P, H // K
  q = q_BxTxHxD.reshape(B, T, K, R, D) * (D**-0.5)
  own = jnp.einsum(
    "btkrd,bukd->bkrtu", q, k_BxUxKxD, preferred_element_type=jnp.float32
  )
  own = jnp.where(mask_BxTxU[:, None, None], own, _MASKED)
  shared = jnp.einsum(
    "pgtkrd,pskd->pgkrts",
    q.reshape(P, G, T, K, R, D),
    prompt_k_PxSxKxD,
    preferred_element_type=jnp.float32,
  )
  shared = jnp.where(
    prompt_mask_PxS[:, None, None, None, None, :], shared, _MASKED
  )
  scores = jnp.concatenate([shared.reshape(B, K, R, T, S), own], axis=-1)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BxUxKxD.dtype)
  out = jnp.einsum("bkrtu,bukd->btkrd", weights[..., S:], v_BxUxKxD)
  out = out + jnp.einsum(
    "pgkrts,pskd->pgtkrd",
    weights[..., :S].reshape(P, G, K, R, T, S),
    prompt_v_PxSxKxD,
  ).reshape(out.shape)
  return out.reshape(B, T, H, D)
