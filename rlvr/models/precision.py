"""Which numbers the sampler computes with, where they aren't the trainer's.

A model that is sampled from with fewer bits is another policy than the one that
is trained: its log-probs are recorded as the sampler's, and
`rlvr.advantages.truncated_importance_sampling` weighs them. docs/precision.md
has what each option changes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.models.config import PROJECTIONS, ModelConfig
from rlvr.models.decoder import compute_params
from rlvr.models.quantized import Quantized, quantize
from rlvr.types import Params

_FLOATS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
  """How the sampler's numbers differ from the trainer's; None: they don't.

  Log-probs are float32 in any case: those of the model as it is sampled from.

  Raises:
    ValueError: a value that is not known, with its name.
  """

  # Of activations while sampling; None: ModelConfig.compute_dtype.
  compute_dtype: str | None = None
  # As which the matrices are kept; "int8": the layers' projections, while
  # embeddings, norms, biases and adapters stay as they are. None: compute_dtype.
  weights: str | None = None
  # As which keys and values are kept. None: compute_dtype.
  cache: str | None = None
  # Whether a run may go without a correction of what this changes: to show the
  # bias. Without it such a run is refused (`rlvr.recipe.Recipe`).
  allow_uncorrected: bool = False

  def __post_init__(self):
    for name, known in (
      ("compute_dtype", _FLOATS),
      ("weights", (*_FLOATS, "int8")),
      ("cache", (*_FLOATS, "int8")),
    ):
      value = getattr(self, name)
      if value is not None and value not in known:
        raise ValueError(
          f"Precision.{name}={value!r}: give one of {known}, or None for as in"
          " training"
        )

  def differs(self, config: ModelConfig) -> bool:
    """Returns whether the sampler's numbers are others than the trainer's.

    Args:
      config: the model's shape, as it is trained.
    """
    dtype = config.compute_dtype
    compute = self.compute_dtype or dtype
    return not (
      compute == dtype
      and (self.weights or dtype) in (dtype, "float32")
      and (self.cache or dtype) in (dtype, "float32")
    )

  def config(self, config: ModelConfig) -> ModelConfig:
    """Returns the model's shape as it is sampled from.

    Args:
      config: as it is trained.
    """
    if self.compute_dtype in (None, config.compute_dtype):
      return config
    return dataclasses.replace(config, compute_dtype=self.compute_dtype)

  def cache_bytes(self, config: ModelConfig) -> int:
    """Returns the bytes that a token's keys and values take in all layers.

    Args:
      config: the model's shape, as it is trained.
    """
    dtype = jnp.dtype(self.cache or self.compute_dtype or config.compute_dtype)
    head = config.head_dim * dtype.itemsize
    if dtype == jnp.int8:
      head += 4  # its scale
    return 2 * config.num_layers * config.num_kv_heads * head


AS_TRAINED = Precision()


def sampling_params(
  params: Params, config: ModelConfig, precision: Precision
) -> Params:
  """Returns the parameters as they are sampled with.

  Source for int8: vector-wise quantisation of the weights in LLM.int8(),
  section 3.1 of https://arxiv.org/abs/2208.07339, one scale for each output.
  Its 16-bit outlier columns are of activations, which stay floats here. In
  reinforcement learning: FlashRL, https://fengyao.notion.site/flash-rl.

  Args:
    params: from `init`, as they are trained.
    config: the model's shape as it is sampled from, see `Precision.config`.
    precision: what is kept how.

  Returns:
    The same tree; with int8 weights, `Quantized` in the place of the layers'
    projections.
  """
  cast = compute_params(params, config)
  if precision.weights in (None, config.compute_dtype):
    return cast
  if precision.weights != "int8":
    kept = dataclasses.replace(config, compute_dtype=precision.weights)
    return compute_params(params, kept)
  layers = dict(cast["layers"])
  for name in PROJECTIONS:
    # From the parameters themselves: not rounded twice. [L, inputs.., out..]
    layers[name] = quantize(
      params["layers"][name], (1, 2) if name == "output" else 1
    )
  return {**cast, "layers": layers}


def sampling_axes(axes: Any, params: Params) -> Any:
  """Returns logical axes in the shape of `sampling_params`.

  Args:
    axes: of the parameters as they are trained, from `logical_axes`.
    params: from `sampling_params`.
  """
  return jax.tree.map(
    # A scale has size 1 where a group lies, and is whole there.
    lambda x, names: (
      Quantized(names, names) if isinstance(x, Quantized) else names
    ),
    params,
    axes,
    is_leaf=lambda x: isinstance(x, Quantized),
  )
