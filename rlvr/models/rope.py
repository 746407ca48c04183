"""Rotary position embeddings: wavelengths, and turning by them.

Angles are the same in every layer of a kind, so they are made once for each
forward pass and kind, and the layers only turn.
"""

import math

import jax.numpy as jnp
import numpy as np

from rlvr.models.config import ModelConfig, RopeScaling
from rlvr.types import Array


def frequencies(
  head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[np.ndarray, float]:
  """Returns what each pair turns by in a position, and what scales the result.

      f_i = θ^(-2i/D)        unscaled, i = 0 .. D/2 - 1

      linear: f / s, positions interpolated.
        https://arxiv.org/abs/2306.15595
      llama3: with turns over the original length L, r = L f / 2π, and
        m = (r - low) / (high - low) clipped to 0..1:  (1 - m) f / s + m f.
        Llama 3.1, https://arxiv.org/abs/2407.21783, with the constants of the
        published configurations.
      yarn: (1 - m) f / s + m f, where m falls from 1 to 0 between the
        dimensions that turn beta_fast and beta_slow times over L; queries and
        keys are multiplied by attention_factor, else 0.1 ln(s) + 1.
        https://arxiv.org/abs/2309.00071, section 3.

  Args:
    head_dim: D, even.
    theta: base of the wavelengths.
    scaling: how they are stretched by the factor s; None leaves them.

  Returns:
    float32 [D/2] radians for each position, and the factor.
  """
  pairs = np.arange(head_dim // 2)
  f = theta ** (-2.0 * pairs / head_dim)
  if scaling is None:
    return f.astype(np.float32), 1.0
  slow, magnitude = f / scaling.factor, 1.0
  if scaling.kind == "linear":
    return slow.astype(np.float32), magnitude
  original = scaling.original_max_positions
  assert original is not None  # ModelConfig refuses this
  if scaling.kind == "llama3":
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((original * f / (2 * math.pi) - low) / (high - low), 0, 1)
  else:

    def dimension(turns):
      """The pair that turns this often over the original length."""
      length = original / (turns * 2 * math.pi)
      return head_dim * math.log(length) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    keep = 1.0 - np.clip((pairs - first) / width, 0, 1)
    magnitude = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
  return ((1 - keep) * slow + keep * f).astype(np.float32), magnitude


def positions_of(mask: Array) -> Array:
  """Returns int32 positions that count the true entries of each row from 0."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0)


def angles(
  positions_BxT: Array, frequency: np.ndarray, magnitude: float = 1.0
) -> tuple[Array, Array]:
  """Returns cosines and sines for `turn`, float32 [B, T, 1, D/2] each.

  Args:
    positions_BxT: int32.
    frequency: float32 [D/2], radians for each position.
    magnitude: multiplies both.
  """
  angle = positions_BxT[..., None, None].astype(
    jnp.float32
  ) * frequency.reshape((1,) * (positions_BxT.ndim + 1) + (-1,))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return (cos, sin) if magnitude == 1.0 else (cos * magnitude, sin * magnitude)


def layer_angles(
  config: ModelConfig, positions_BxT: Array, kind: str
) -> tuple[Array, Array]:
  """Returns the angles of a kind of layers, as `angles` does.

  Args:
    config: the model's shape.
    positions_BxT: int32.
    kind: "global" or "local".
  """
  theta, scaling = config.rope_theta, config.rope_scaling
  if kind == "local" and config.local_rope_theta is not None:
    theta, scaling = config.local_rope_theta, None
  return angles(positions_BxT, *frequencies(config.head_dim, theta, scaling))


def turn(x_BxTxHxD: Array, cos: Array, sin: Array) -> Array:
  """Returns queries or keys turned to their positions (split halves).

  Source: Su et al. 2021, RoFormer, eq. 34, https://arxiv.org/abs/2104.09864,
  with the pairs (i, i + D/2) of the Llama and Qwen checkpoints.

  Args:
    x_BxTxHxD: float.
    cos: float32 [B, T, 1, D/2], from `angles`.
    sin: the same.
  """
  first, second = jnp.split(x_BxTxHxD.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return turned.astype(x_BxTxHxD.dtype)
