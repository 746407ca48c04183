"""Names and layouts of Hugging Face tensors, as data.

    for name, tensor in hf_tensors(config).items():
      params[tensor.path][tensor.layer] = tensor.to_ours(file[name])

Each tensor by itself: nothing here holds more than one. A linear map is stored
there as [out, in] with heads and head size in one axis, here as [in, heads,
head_dim]; the halves that rotary positions pair up are the same.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rlvr.models.config import ModelConfig
from rlvr.models.hf_config import (
  FAMILIES,
  config_from_huggingface,
  config_to_huggingface,
  family_of,
)

__all__ = [
  "FAMILIES",
  "HFTensor",
  "canonical_name",
  "config_from_huggingface",
  "config_to_huggingface",
  "family_of",
  "hf_tensors",
]

Convert = Callable[[np.ndarray], np.ndarray]


class HFTensor(NamedTuple):
  """Where a Hugging Face tensor stands in our parameters."""

  path: tuple[str, ...]  # in the parameter tree
  layer: int | None  # index on the leading axis; None without one
  to_ours: Convert  # keeps the dtype
  to_hf: Convert  # the inverse, contiguous


# Parts of checkpoints that are no part of the decoder: a Gemma 3's eyes, and
# the wavelengths that old Llama files carry though they follow from the config.
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.")
_PREFIXES = (
  ("model.language_model.", "model."),
  ("language_model.model.", "model."),
  ("language_model.lm_head.", "lm_head."),
)


def canonical_name(name: str, config: ModelConfig) -> str | None:
  """Returns the name by which `hf_tensors` knows a checkpoint's tensor.

  Args:
    name: as in the file.
    config: the model's shape.

  Returns:
    The name, without what wraps the text model in a multimodal one; None for a
    tensor that the decoder doesn't read. A name that is not known comes back
    as it is, for the caller to refuse.
  """
  for prefix, plain in _PREFIXES:
    if name.startswith(prefix):
      name = plain + name.removeprefix(prefix)
      break
  if name.removeprefix("model.").startswith(_OTHER_PARTS):
    return None
  if name.endswith("rotary_emb.inv_freq"):
    return None
  # Some files of tied models hold the same table twice.
  if name == "lm_head.weight" and config.tie_embeddings:
    return None
  return name


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _linear(shape: tuple[int, ...], num_inputs: int) -> tuple[Convert, Convert]:
  """Returns [out, in] -> `shape` and back; the first axes are the inputs."""
  rows = math.prod(shape[:num_inputs])

  def to_ours(x):
    return x.T.reshape(shape)

  def to_hf(x):
    return np.ascontiguousarray(x.reshape(rows, -1).T)

  return to_ours, to_hf


def _reshape(shape: tuple[int, ...]) -> tuple[Convert, Convert]:
  return (
    lambda x: x.reshape(shape),
    lambda x: np.ascontiguousarray(x.reshape(-1)),
  )


def hf_tensors(config: ModelConfig) -> dict[str, HFTensor]:
  """Returns all tensors of a checkpoint of this model, by their names.

  The value head is not among them: no published model has one.

  Args:
    config: the model's shape.

  Returns:
    In the order of the layers: name -> path, layer and the conversions of one
    tensor in both directions.
  """
  c = config
  D, H, K, N = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
  plain = (_same, np.ascontiguousarray)
  tensors = {
    "model.embed_tokens.weight": HFTensor(("trunk", "embedding"), None, *plain)
  }
  # Within a layer: name there, path here, conversions.
  layer: list[tuple[str, tuple[str, ...], tuple[Convert, Convert]]] = [
    ("input_layernorm.weight", ("attention_norm", "scale"), plain),
    ("self_attn.q_proj.weight", ("query",), _linear((D, H, N), 1)),
    ("self_attn.k_proj.weight", ("key",), _linear((D, K, N), 1)),
    ("self_attn.v_proj.weight", ("value",), _linear((D, K, N), 1)),
    ("self_attn.o_proj.weight", ("output",), _linear((H, N, D), 2)),
    ("mlp.gate_proj.weight", ("gate",), _linear((D, c.mlp_dim), 1)),
    ("mlp.up_proj.weight", ("up",), _linear((D, c.mlp_dim), 1)),
    ("mlp.down_proj.weight", ("down",), _linear((c.mlp_dim, D), 1)),
  ]
  if c.qkv_bias:
    layer += [
      ("self_attn.q_proj.bias", ("query_bias",), _reshape((H, N))),
      ("self_attn.k_proj.bias", ("key_bias",), _reshape((K, N))),
      ("self_attn.v_proj.bias", ("value_bias",), _reshape((K, N))),
    ]
  if c.qk_norm:
    layer += [
      ("self_attn.q_norm.weight", ("query_norm", "scale"), plain),
      ("self_attn.k_norm.weight", ("key_norm", "scale"), plain),
    ]
  # The same name there means the norm before the MLP, or that after attention.
  if c.post_norms:
    layer += [
      (
        "post_attention_layernorm.weight",
        ("post_attention_norm", "scale"),
        plain,
      ),
      ("pre_feedforward_layernorm.weight", ("mlp_norm", "scale"), plain),
      ("post_feedforward_layernorm.weight", ("post_mlp_norm", "scale"), plain),
    ]
  else:
    layer += [("post_attention_layernorm.weight", ("mlp_norm", "scale"), plain)]
  for i in range(c.num_layers):
    for name, path, convert in layer:
      tensors[f"model.layers.{i}.{name}"] = HFTensor(
        ("layers", *path), i, *convert
      )
  tensors["model.norm.weight"] = HFTensor(
    ("trunk", "final_norm", "scale"), None, *plain
  )
  if not c.tie_embeddings:
    tensors["lm_head.weight"] = HFTensor(
      ("trunk", "unembedding"), None, *_linear((D, c.vocab_size), 1)
    )
  return tensors
