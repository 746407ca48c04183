"""Arrays as int8 with scales, and the products that read them.

Symmetric and with one scale for each group of numbers, s = max|x| / 127:

    q = round(x / s),    x ≈ s q,    |x - s q| ≤ s / 2

The groups lie along what a product sums over, so that a product with q is made
first and its result is scaled: nothing is turned back into floats in memory.

| what | group | practice |
|---|---|---|
| weights | an output channel | LLM.int8(), https://arxiv.org/abs/2208.07339 |
| values | a token's head | "per token" in KIVI, https://arxiv.org/abs/2402.02750 |
| keys | the same, of balanced channels | `quantize_keys` |

KIVI takes a channel's keys as a group, which needs a window of tokens kept as
floats until a group is full. Activations stay floats: decoding waits for
memory, not for products.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.types import Array

_MOST = 127  # symmetric: -128 is not used


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """Numbers s · q in the place of an array.

  values: int8, q, of the array's shape.
  scale: float32, s, with size 1 along the axes of a group.
  channel: of a prompt's keys, float32 [.., N, 1], what each channel was divided
    by before; None: nothing.
  """

  values: Array
  scale: Array
  channel: Array | None = None

  def __getitem__(self, index: Any) -> "Quantized":
    return jax.tree.map(lambda x: x[index], self)

  @property
  def shape(self) -> tuple[int, ...]:
    """The array's."""
    return self.values.shape

  @property
  def dtype(self) -> Any:
    """int8."""
    return self.values.dtype


def quantize(x: Array, axes: int | tuple[int, ...]) -> Quantized:
  """Returns x as int8 with a scale for each group, see the module's docstring.

  A group of zeros has the scale 0; one that holds a NaN or an infinity is NaN
  when it is turned back.

  Args:
    x: float, any shape.
    axes: along which a group lies.
  """
  x = x.astype(jnp.float32)
  scale = jnp.abs(x).max(axes, keepdims=True) / _MOST
  scale = jnp.where(jnp.isfinite(scale), scale, jnp.nan)
  values = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
  return Quantized(jnp.clip(values, -_MOST, _MOST).astype(jnp.int8), scale)


def dequantize(x: Array | Quantized, dtype: Any = jnp.float32) -> Array:
  """Returns s · q; an array comes back as it is, in the dtype.

  Args:
    x: an array or what stands in its place.
    dtype: of the result.
  """
  if not isinstance(x, Quantized):
    return x.astype(dtype)
  return (x.values.astype(jnp.float32) * x.scale).astype(dtype)


def quantize_keys(keys: Array, mask: Array) -> Quantized:
  """Returns a prompt's keys as int8, with a scale for each token's head.

  Channels of keys differ in size by far, whatever the token (KIVI, figure 2):
  each is divided by about its greatest number in the prompt before, and the
  queries are multiplied by it (`balanced`), as SmoothQuant does between
  activations and weights, https://arxiv.org/abs/2211.10438. It is a power of
  two, so that neither rounds.

  Args:
    keys: [.., rows, K, N, S].
    mask: bool [rows, S], true on tokens: padding has no say.
  """
  keys = keys.astype(jnp.float32)
  most = jnp.where(mask[:, None, None], jnp.abs(keys), 0.0).max(
    -1, keepdims=True
  )
  usual = jnp.isfinite(most) & (most > 0)
  channel = jnp.exp2(jnp.round(jnp.log2(jnp.where(usual, most, 1.0))))
  found = quantize(keys / channel, -2)
  return Quantized(found.values, found.scale, channel)


def balanced(q: Array, k: Array, prompt_keys: Any) -> tuple[Array, Array]:
  """Returns queries and keys of a token, in the units of its prompt's keys.

  Args:
    q: [B, 1, H, N].
    k: [B, 1, K, N].
    prompt_keys: array or `Quantized` of B rows or, group-major, fewer.
  """
  channel = getattr(prompt_keys, "channel", None)
  if channel is None:
    return q, k
  B, _, H, _ = q.shape
  channel = jnp.repeat(channel[..., 0], B // channel.shape[0], axis=0)[:, None]
  channel = channel.astype(q.dtype)
  return q * jnp.repeat(channel, H // k.shape[2], axis=2), k / channel


def times(x_MxI: Array, weight_IxO: Array | Quantized) -> Array:
  """Returns the product, in the dtype of x.

  Args:
    x_MxI: activations.
    weight_IxO: a matrix; quantised ones have a scale for each output.
  """
  if not isinstance(weight_IxO, Quantized):
    return x_MxI @ weight_IxO.astype(x_MxI.dtype)
  y = jnp.matmul(
    x_MxI,
    weight_IxO.values.astype(x_MxI.dtype),
    preferred_element_type=jnp.float32,
  )
  return (y * weight_IxO.scale).astype(x_MxI.dtype)


def as_matrix(weight: Array | Quantized, inner: int) -> Array | Quantized:
  """Returns a projection as [inputs, outputs].

  Args:
    weight: [inputs.., outputs..].
    inner: how many inputs.
  """
  if not isinstance(weight, Quantized):
    return weight.reshape(inner, -1)
  return Quantized(
    weight.values.reshape(inner, -1), weight.scale.reshape(1, -1)
  )


def score(equation: str, q: Array, keys: Array | Quantized) -> Array:
  """Returns float32 scores of queries and kept keys.

  Args:
    equation: of `jnp.einsum`; the keys' last axis is the scores' last.
    q: queries [.., K, r, N].
    keys: [.., K, N, S].
  """
  f32 = {"preferred_element_type": jnp.float32}
  if not isinstance(keys, Quantized):
    return jnp.einsum(equation, q, keys, **f32)
  scores = jnp.einsum(equation, q, keys.values.astype(q.dtype), **f32)
  return scores * keys.scale


def weigh(
  equation: str, weights: Array, values: Array | Quantized, dtype: Any
) -> Array:
  """Returns float32 sums of kept values.

  Args:
    equation: of `jnp.einsum`.
    weights: float32 [.., K, r, S].
    values: [.., K, S, N].
    dtype: of the product.
  """
  f32 = {"preferred_element_type": jnp.float32}
  if not isinstance(values, Quantized):
    return jnp.einsum(equation, weights.astype(dtype), values, **f32)
  weights = (weights * values.scale.swapaxes(-1, -2)).astype(dtype)
  return jnp.einsum(equation, weights, values.values.astype(dtype), **f32)


def kept_like(kept: Any, x: Array, axis: int) -> Any:
  """Returns x as a cache's array keeps it.

  Args:
    kept: the array or `Quantized`.
    x: new keys or values.
    axis: of x, along which a token's head lies.
  """
  if isinstance(kept, Quantized):
    return quantize(x, axis)
  return x.astype(kept.dtype)
