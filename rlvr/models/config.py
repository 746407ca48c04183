"""The decoder's shape, as data."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Hyperparameters of the decoder; hashable, so that jit can key on it.

  Raises:
    ValueError: sizes that don't fit together, with the field to change.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_theta: float = 10_000.0
  norm_epsilon: float = 1e-6
  qk_norm: bool = False  # RMSNorm on each head's query and key
  qkv_bias: bool = False
  tie_embeddings: bool = True
  scale_embeddings: bool = False  # times sqrt(embed_dim), as in Gemma
  value_head: bool = False  # one number per token, on the trunk
  compute_dtype: str = "float32"  # of activations; parameters stay float32
  remat: bool = False  # recompute a layer's activations in the backward pass
  unroll_layers: bool = False  # faster small models on CPU, slower compilation

  def __post_init__(self):
    for name in (
      "vocab_size",
      "embed_dim",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      "head_dim",
      "mlp_dim",
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f"ModelConfig.{name}={getattr(self, name)} must be at least 1"
        )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"ModelConfig.num_heads={self.num_heads} is no multiple of"
        f" num_kv_heads={self.num_kv_heads}: change one of them"
      )
    if self.head_dim % 2:
      raise ValueError(
        f"ModelConfig.head_dim={self.head_dim} is odd: rotary positions turn"
        " pairs of it"
      )
    if self.compute_dtype not in ("float32", "bfloat16"):
      raise ValueError(
        f"ModelConfig.compute_dtype={self.compute_dtype!r}: give 'float32' or"
        " 'bfloat16'"
      )
