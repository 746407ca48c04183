"""The decoder's shape, as data."""

import dataclasses

_SIZES = (
  "vocab_size",
  "embed_dim",
  "num_layers",
  "num_heads",
  "num_kv_heads",
  "head_dim",
  "mlp_dim",
)
_ACTIVATIONS = ("silu", "gelu_tanh")
_KINDS = ("global", "local")
_REMAT: dict[bool | str | None, bool | str] = {
  **{None: False, False: False},
  **{True: True, "full": True},
  "dots": "dots",
}
_ATTENTION = ("plain", "xla", "cudnn", "splash", "splash_interpret", "auto")
PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """How rotary wavelengths are stretched for sequences past the original.

  Which formula each kind is stands at `rlvr.models.rope.frequencies`.

  Raises:
    ValueError: a kind that is not known, or a number that it can't have.
  """

  kind: str  # "linear", "llama3" or "yarn"
  factor: float  # new length / original length
  original_max_positions: int | None = None  # tokens; llama3 and yarn need it
  low_freq_factor: float = 1.0  # llama3
  high_freq_factor: float = 4.0  # llama3
  beta_fast: float = 32.0  # yarn: turns over the original length
  beta_slow: float = 1.0  # yarn
  attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
  truncate: bool = True  # yarn: the ramp's ends are whole dimensions

  def __post_init__(self):
    if self.kind not in ("linear", "llama3", "yarn"):
      raise ValueError(
        f"RopeScaling.kind={self.kind!r}: give 'linear', 'llama3' or 'yarn'"
      )
    if self.factor < 1:
      raise ValueError(f"RopeScaling.factor={self.factor} must be at least 1")
    if self.kind != "linear" and (self.original_max_positions or 0) < 1:
      raise ValueError(
        f"RopeScaling.original_max_positions={self.original_max_positions}:"
        f" kind {self.kind!r} needs the length before scaling, in tokens"
      )
    if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
      raise ValueError(
        f"RopeScaling.high_freq_factor={self.high_freq_factor} must be above"
        f" low_freq_factor={self.low_freq_factor}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
  """Adapters beside some of a layer's projections, and only they are trained.

      y = x W + (alpha / rank) · (x A) B

  Section 4.1 of https://arxiv.org/abs/2106.09685. Without its dropout, which
  would make the policy that samples another one than that which is scored.

  Raises:
    ValueError: a number out of range, or a projection that is not known.
  """

  rank: int
  alpha: float
  projections: tuple[str, ...]  # of `PROJECTIONS`, the same in each layer

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"LoRA.rank={self.rank} must be at least 1")
    if self.alpha <= 0:
      raise ValueError(f"LoRA.alpha={self.alpha} must be above 0")
    # Gin gives a list.
    object.__setattr__(self, "projections", tuple(self.projections))
    names = set(self.projections)
    if (
      not names
      or names - set(PROJECTIONS)
      or len(names) < len(self.projections)
    ):
      raise ValueError(
        f"LoRA.projections={self.projections}: give some of {PROJECTIONS}, each"
        " once"
      )

  @property
  def scale(self) -> float:
    """What the adapters' product is multiplied by."""
    return self.alpha / self.rank


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
  # RMSNorm multiplies by norm_offset + scale; Gemma's checkpoints hold
  # scale - 1, so 1 there.
  norm_offset: float = 0.0
  post_norms: bool = (
    False  # RMSNorm on what attention and MLP give, as in Gemma
  )
  activation: str = "silu"  # or "gelu_tanh"
  attention_softcap: float | None = None  # cap · tanh(scores / cap)
  final_softcap: float | None = None  # the same on the logits
  query_scale: float | None = None  # of scores; None: head_dim ** -0.5
  # A query in a "local" layer sees itself and the sliding_window - 1 tokens
  # before it.
  sliding_window: int | None = None
  layer_pattern: tuple[str, ...] = ("global",)  # repeated over the layers
  local_rope_theta: float | None = None  # of local layers; None: rope_theta
  rope_scaling: RopeScaling | None = None
  max_positions: int | None = None  # tokens; only told to exported checkpoints
  value_head: bool = False  # one number per token, on the trunk
  lora: LoRA | None = None  # None: everything is trained
  compute_dtype: str = "float32"  # of activations; parameters stay float32
  # What of a layer is computed again in the backward pass. None or False:
  # nothing. True or "full": everything, only its input is kept. "dots": all but
  # products with parameters, which are kept: less time, more memory.
  remat: bool | str | None = False
  unroll_layers: bool = False  # faster small models on CPU, slower compilation
  attention: str = "plain"  # the kernel, see rlvr.models.kernels
  # Logits (tokens x vocabulary) that a device holds at once while log-probs are
  # computed. In the backward pass each chunk adds to a gradient of the whole
  # table: chunks of fewer than embed_dim tokens move more than they compute.
  logits_at_once: int = 1 << 25

  def __post_init__(self):
    for name in (*_SIZES, "logits_at_once"):
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
    if self.activation not in _ACTIVATIONS:
      raise ValueError(
        f"ModelConfig.activation={self.activation!r}: give one of"
        f" {_ACTIVATIONS}"
      )
    if (
      not isinstance(self.remat, bool | str | None) or self.remat not in _REMAT
    ):
      raise ValueError(
        f"ModelConfig.remat={self.remat!r}: give False, True (or 'full') or"
        " 'dots', which recomputes all but products with parameters"
      )
    # One value for one meaning: programs are kept by the config.
    object.__setattr__(self, "remat", _REMAT[self.remat])
    # Gin gives a list.
    object.__setattr__(self, "layer_pattern", tuple(self.layer_pattern))
    if not self.layer_pattern or set(self.layer_pattern) - set(_KINDS):
      raise ValueError(
        f"ModelConfig.layer_pattern={self.layer_pattern}: give 'global' and"
        " 'local', at least one"
      )
    if "local" in self.layer_kinds and (self.sliding_window or 0) < 1:
      raise ValueError(
        f"ModelConfig.sliding_window={self.sliding_window}: the local layers of"
        " layer_pattern need a window of at least 1 token"
      )
    self._check_attention()
    for name in (
      "attention_softcap",
      "final_softcap",
      "query_scale",
      "local_rope_theta",
    ):
      value = getattr(self, name)
      if value is not None and value <= 0:
        raise ValueError(
          f"ModelConfig.{name}={value} must be above 0; None switches it off"
        )

  def _check_attention(self):
    if self.attention not in _ATTENTION:
      raise ValueError(
        f"ModelConfig.attention={self.attention!r}: give one of {_ATTENTION}"
      )
    if self.attention not in ("xla", "cudnn"):
      return
    if self.attention_softcap is not None:
      raise ValueError(
        f"ModelConfig.attention={self.attention!r} has no soft-cap of scores,"
        f" and attention_softcap={self.attention_softcap}: give 'plain', or"
        " 'splash' on TPU"
      )
    if self.attention == "cudnn" and self.compute_dtype != "bfloat16":
      raise ValueError(
        f"ModelConfig.attention='cudnn' needs compute_dtype='bfloat16', not"
        f" {self.compute_dtype!r}: change one of them"
      )
    if self.attention == "cudnn" and (self.head_dim % 8 or self.head_dim > 256):
      raise ValueError(
        f"ModelConfig.attention='cudnn' takes a head_dim up to 256 (128 before"
        f" Hopper) that 8 divides, not {self.head_dim}: give 'plain' or 'xla'"
      )

  @property
  def layer_kinds(self) -> tuple[str, ...]:
    """Each layer's kind, "global" or "local"."""
    pattern = self.layer_pattern
    return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))
