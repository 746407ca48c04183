"""Attention over one or two segments of keys.

A group's responses share their prompt. Its keys and values are kept once per
prompt and every response attends to them and to its own; nothing is repeated
G times in memory. Scores and softmax are float32 whatever the compute dtype.
"""

import jax
import jax.numpy as jnp

from rlvr.models.quantized import Quantized, dequantize, score, weigh
from rlvr.types import Array

_MASKED = -1e30  # finite: a row without any key gives uniform weights, not NaN


def softcapped(x: Array, cap: float | None) -> Array:
  """Returns cap · tanh(x / cap), or x without a cap.

  Source: Gemma 2, https://arxiv.org/abs/2408.00118, section 2.

  Args:
    x: float32, scores or logits.
    cap: bound on their size; None for none.
  """
  return x if cap is None else cap * jnp.tanh(x / cap)


def near(query_positions: Array, key_positions: Array, window: int) -> Array:
  """Returns bool [..., T, S]: whether a key is within a query's window.

  The window's tokens are the query's own and the window - 1 before it. Causality
  is not looked at.

  Args:
    query_positions: int32 [..., T], without padding counted.
    key_positions: int32 [..., S].
    window: tokens.
  """
  return query_positions[..., :, None] - key_positions[..., None, :] < window


def attend(
  q_BxTxHxD: Array,
  k_BxSxKxD: Array,
  v_BxSxKxD: Array,
  mask_BxTxS: Array,
  *,
  scale: float | None = None,
  softcap: float | None = None,
) -> Array:
  """Returns grouped-query attention, [B, T, H, D].

  Args:
    q_BxTxHxD: queries; H is a multiple of K.
    k_BxSxKxD: keys.
    v_BxSxKxD: values.
    mask_BxTxS: bool, true where a query may look.
    scale: multiplies queries; None: D ** -0.5.
    softcap: see `softcapped`; of the scores.
  """
  B, T, H, D = q_BxTxHxD.shape
  K = k_BxSxKxD.shape[2]
  q = q_BxTxHxD.reshape(B, T, K, H // K, D) * (scale or D**-0.5)
  scores = jnp.einsum(
    "btkrd,bskd->bkrts", q, k_BxSxKxD, preferred_element_type=jnp.float32
  )
  scores = softcapped(scores, softcap)
  scores = jnp.where(mask_BxTxS[:, None, None], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BxSxKxD.dtype)
  out = jnp.einsum("bkrts,bskd->btkrd", weights, v_BxSxKxD)
  return out.reshape(B, T, H, D)


def attend_shared(
  q_BxTxHxD: Array,
  prompt_k_PxSxKxD: Array,
  prompt_v_PxSxKxD: Array,
  prompt_mask: Array,
  k_BxUxKxD: Array,
  v_BxUxKxD: Array,
  mask_BxTxU: Array,
  *,
  scale: float | None = None,
  softcap: float | None = None,
) -> Array:
  """Returns attention of responses to their prompt and to themselves.

  Responses are group-major with B/P responses for each prompt.

  Args:
    q_BxTxHxD: queries of the responses.
    prompt_k_PxSxKxD: keys of the prompts.
    prompt_v_PxSxKxD: values of the prompts.
    prompt_mask: bool [P, S], true on prompt tokens; or [P, T, S] where it
      depends on the query, T the response's position or 1.
    k_BxUxKxD: keys of the responses.
    v_BxUxKxD: values of the responses.
    mask_BxTxU: bool, true where a query may look in its response; the first
      axis may be 1.
    scale: multiplies queries; None: D ** -0.5.
    softcap: see `softcapped`; of the scores.
  """
  B, T, H, D = q_BxTxHxD.shape
  P, S, K, _ = prompt_k_PxSxKxD.shape
  G, R = B // P, H // K
  q = q_BxTxHxD.reshape(B, T, K, R, D) * (scale or D**-0.5)
  own = jnp.einsum(
    "btkrd,bukd->bkrtu", q, k_BxUxKxD, preferred_element_type=jnp.float32
  )
  own = jnp.where(mask_BxTxU[:, None, None], softcapped(own, softcap), _MASKED)
  shared = jnp.einsum(
    "pgtkrd,pskd->pgkrts",
    q.reshape(P, G, T, K, R, D),
    prompt_k_PxSxKxD,
    preferred_element_type=jnp.float32,
  )
  if prompt_mask.ndim == 2:
    prompt_mask = prompt_mask[:, None]
  shared = jnp.where(
    prompt_mask[:, None, None, None], softcapped(shared, softcap), _MASKED
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


def attend_token(
  q_BxHxD: Array,
  prompt_k_PxKxDxS: Array | Quantized,
  prompt_v_PxKxSxD: Array | Quantized,
  prompt_mask: Array,
  k_BxKxDxU: Array | Quantized,
  v_BxKxUxD: Array | Quantized,
  mask: Array,
  *,
  token: tuple[Array | Quantized, Array | Quantized] | None = None,
  scale: float | None = None,
  softcap: float | None = None,
) -> Array:
  """Returns attention of one token of each response, [B, H, D].

  The same as `attend_shared` for T = 1, from keys and values that lie as the
  products read them. Responses are group-major with B/P for each prompt.

  Args:
    q_BxHxD: queries.
    prompt_k_PxKxDxS: keys of the prompts.
    prompt_v_PxKxSxD: values of the prompts.
    prompt_mask: bool [P, S] or [P, 1, S].
    k_BxKxDxU: keys of the responses.
    v_BxKxUxD: values of the responses.
    mask: bool [1 or B, 1, U].
    token: the token's own keys and values [B, K, D], as they will be kept, where
      they aren't among the responses' yet.
    scale: multiplies queries; None: D ** -0.5.
    softcap: see `softcapped`; of the scores.
  """
  B, H, D = q_BxHxD.shape
  P, K = prompt_k_PxKxDxS.shape[:2]
  G, R = B // P, H // K
  q = q_BxHxD.reshape(B, K, R, D) * (scale or D**-0.5)
  own = score("bkrd,bkdu->bkru", q, k_BxKxDxU)
  own = jnp.where(mask[:, None], softcapped(own, softcap), _MASKED)

  def grouped(x):
    """[B, K, R, n] -> [P, K, G·R, n]: a prompt's keys are read once."""
    x = x.reshape(P, G, K, R, -1)
    return x.swapaxes(1, 2).reshape(P, K, G * R, -1)

  def ungrouped(x):
    x = x.reshape(P, K, G, R, -1)
    return x.swapaxes(1, 2).reshape(B, K, R, -1)

  shared = score("pkgd,pkds->pkgs", grouped(q), prompt_k_PxKxDxS)
  if prompt_mask.ndim == 2:
    prompt_mask = prompt_mask[:, None]
  shared = jnp.where(prompt_mask[:, None], softcapped(shared, softcap), _MASKED)
  most = jnp.maximum(
    own.max(-1, keepdims=True), ungrouped(shared.max(-1, keepdims=True))
  )
  if token is not None:
    token_k, token_v = (dequantize(x)[:, :, None] for x in token)
    # Of one key each, sums rather than products of matrices.
    last = (q.astype(jnp.float32) * token_k).sum(-1, keepdims=True)
    last = softcapped(last, softcap)
    most = jnp.maximum(most, last)
  own, shared = jnp.exp(own - most), jnp.exp(shared - grouped(most))
  total = own.sum(-1, keepdims=True) + ungrouped(shared.sum(-1, keepdims=True))
  dtype = q_BxHxD.dtype
  out = weigh("bkru,bkud->bkrd", own, v_BxKxUxD, dtype)
  if token is not None:
    last = jnp.exp(last - most)
    total, out = total + last, out + last * token_v
  out = out + ungrouped(
    weigh("pkgs,pksd->pkgd", shared, prompt_v_PxKxSxD, dtype)
  )
  return (out / total).reshape(B, H, D).astype(dtype)
