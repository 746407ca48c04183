"""One decoder, seen as pure functions over a parameter pytree."""

from rlvr.models.config import ModelConfig, RopeScaling
from rlvr.models.decoder import (
  abstract_params,
  compute_params,
  forward,
  forward_responses,
  init,
  logical_axes,
  logits,
  num_params,
  unembedding,
  values,
)
from rlvr.models.decoding import decode, prefill
from rlvr.models.gguf_weights import load_gguf
from rlvr.models.heads import TokenStatistics, token_statistics
from rlvr.models.huggingface import load_huggingface, save_huggingface
from rlvr.models.pretrained import (
  config_from_folder,
  initial_params,
  load_pretrained,
)

__all__ = [
  "ModelConfig",
  "RopeScaling",
  "TokenStatistics",
  "abstract_params",
  "compute_params",
  "config_from_folder",
  "decode",
  "forward",
  "forward_responses",
  "init",
  "initial_params",
  "load_gguf",
  "load_huggingface",
  "load_pretrained",
  "logical_axes",
  "logits",
  "num_params",
  "prefill",
  "save_huggingface",
  "token_statistics",
  "unembedding",
  "values",
]
