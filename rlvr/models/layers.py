"""The decoder's parts as Flax modules: norms, a layer, what is around them."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rlvr.meshes import constrain
from rlvr.models.config import ModelConfig
from rlvr.models.quantized import Quantized, as_matrix, times
from rlvr.models.rope import turn
from rlvr.types import Array

# Logical axes of activations, for `constrain`.
WIDTH = ("batch", None, "act_embed")
_HEADS = ("batch", None, "act_heads")
_KV_HEADS = ("batch", None, "act_kv_heads")
_MLP = ("batch", None, "act_mlp")

_ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def _param(rngs, shape, axes, fan_in):
  scale = fan_in**-0.5
  value = jax.random.normal(rngs.params(), shape, jnp.float32) * scale
  return nnx.Param(value, axes=axes)


def _bias(heads: int, head_dim: int, axis: str) -> nnx.Param:
  zeros = jnp.zeros((heads, head_dim), jnp.float32)
  return nnx.Param(zeros, axes=(axis, "head_dim"))


def _project(x: Array, weight: Array | Quantized, contract: int = 1) -> Array:
  """Returns x · weight over the last `contract` axes of x, as one 2-D product.

  XLA's CPU backend takes 2.5 times as long for the gradient of the same product
  with a batch and a time axis; elsewhere the two are equal.
  """
  rows, out = x.shape[: x.ndim - contract], weight.shape[contract:]
  inner = math.prod(weight.shape[:contract])
  y = times(x.reshape(-1, inner), as_matrix(weight, inner))
  return y.reshape(*rows, *out)


def _num_inputs(name: str) -> int:
  """Returns how many axes of a projection are its inputs."""
  return 2 if name == "output" else 1


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x²) + ε) · (o + scale), https://arxiv.org/abs/1910.07467."""

  def __init__(self, dim: int, config: ModelConfig, axis: str):
    self.offset = config.norm_offset
    start = jnp.full((dim,), 1.0 - self.offset, jnp.float32)
    self.scale = nnx.Param(start, axes=(axis,))
    self.epsilon = config.norm_epsilon

  def __call__(self, x: Array) -> Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + self.epsilon)
    scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
    if self.offset:
      scale = scale + self.offset
    return (y * scale).astype(x.dtype)


class Block(nnx.Module):
  """One layer, cut at the attention so that callers choose what is attended."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = config
    self.config = c
    D, H, K, N = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
    self.attention_norm = RMSNorm(D, c, "embed")
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
      self.query_norm = RMSNorm(N, c, "head_dim")
      self.key_norm = RMSNorm(N, c, "head_dim")
    if c.post_norms:
      self.post_attention_norm = RMSNorm(D, c, "embed")
      self.post_mlp_norm = RMSNorm(D, c, "embed")
    self.mlp_norm = RMSNorm(D, c, "embed")
    self.gate = _param(rngs, (D, c.mlp_dim), ("embed", "mlp"), D)
    self.up = _param(rngs, (D, c.mlp_dim), ("embed", "mlp"), D)
    self.down = _param(
      rngs, (c.mlp_dim, D), ("mlp", "embed"), c.mlp_dim * out**0.5
    )
    if c.lora is not None:
      # Last, so that the base is drawn as it is without them.
      for name in c.lora.projections:
        self._add_adapter(name, c.lora.rank, rngs)

  def _add_adapter(self, name: str, rank: int, rngs: nnx.Rngs) -> None:
    """Makes A of normal numbers and B of zeros, so that their product is 0.

    The paper doesn't say how wide A's numbers are. A variance of 1/fan_in gives
    x A the size of x. Its own code (github.com/microsoft/LoRA) and PEFT's
    default draw evenly from ±fan_in^-0.5, a third of that variance; PEFT's
    "gaussian" has the standard deviation 1/rank.
    """
    weight, inputs = getattr(self, name), _num_inputs(name)
    shape, axes = weight[...].shape, weight.get_metadata("axes")
    fan_in = math.prod(shape[:inputs])
    a = _param(rngs, (*shape[:inputs], rank), (*axes[:inputs], "rank"), fan_in)
    zeros = jnp.zeros((rank, *shape[inputs:]), jnp.float32)
    setattr(self, f"{name}_lora_a", a)
    setattr(
      self,
      f"{name}_lora_b",
      nnx.Param(zeros, axes=("rank", *axes[inputs:])),
    )

  def _adapted(self, name: str, x: Array) -> Array:
    """Returns x times the projection, with its adapter where it has one."""
    inputs, lora = _num_inputs(name), self.config.lora
    y = _project(x, getattr(self, name)[...], inputs)
    if lora is None or name not in lora.projections:
      return y
    low = _project(x, getattr(self, f"{name}_lora_a")[...], inputs)
    return y + _project(low * lora.scale, getattr(self, f"{name}_lora_b")[...])

  def qkv(self, x_BxTxD: Array, angles: tuple[Array, Array]):
    """Returns turned queries, turned keys and values.

    Args:
      x_BxTxD: the residual stream.
      angles: of the tokens' positions, from `rope.layer_angles`.
    """
    c, dtype = self.config, x_BxTxD.dtype
    h = self.attention_norm(x_BxTxD)
    q = self._adapted("query", h)
    k = self._adapted("key", h)
    v = self._adapted("value", h)
    if c.qkv_bias:
      q = q + self.query_bias[...].astype(dtype)[None, None]
      k = k + self.key_bias[...].astype(dtype)[None, None]
      v = v + self.value_bias[...].astype(dtype)[None, None]
    if c.qk_norm:
      q, k = self.query_norm(q), self.key_norm(k)
    q = constrain(turn(q, *angles), *_HEADS)
    k = constrain(turn(k, *angles), *_KV_HEADS)
    return q, k, constrain(v, *_KV_HEADS)

  def finish(self, x_BxTxD: Array, attended_BxTxHxN: Array) -> Array:
    """Returns the layer's output: attention's projection, then the MLP."""
    c = self.config
    attended = constrain(attended_BxTxHxN, *_HEADS)
    attended = self._adapted("output", attended)
    if c.post_norms:
      attended = self.post_attention_norm(attended)
    x = constrain(x_BxTxD + attended, *WIDTH)
    h = self.mlp_norm(x)
    gate = _ACTIVATIONS[c.activation](self._adapted("gate", h))
    inner = constrain(gate * self._adapted("up", h), *_MLP)
    out = self._adapted("down", inner)
    out = self.post_mlp_norm(out) if c.post_norms else out
    return constrain(x + out, *WIDTH)


class Trunk(nnx.Module):
  """Everything but the layers: embedding, last norm, heads."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = config
    # The families' 0.02: with 1/sqrt(D) a tied head would start by repeating
    # its input with near certainty.
    self.embedding = _param(
      rngs, (c.vocab_size, c.embed_dim), ("vocab", "embed"), 0.02**-2
    )
    self.final_norm = RMSNorm(c.embed_dim, c, "embed")
    if not c.tie_embeddings:
      self.unembedding = _param(
        rngs, (c.embed_dim, c.vocab_size), ("embed", "vocab"), c.embed_dim
      )
    if c.value_head:
      zeros = jnp.zeros((c.embed_dim,), jnp.float32)
      self.value_head = nnx.Param(zeros, axes=("embed",))
