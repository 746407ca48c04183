"""One decoder, seen as pure functions over a parameter pytree."""

from rlvr.models.config import LoRA, ModelConfig, RopeScaling
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
from rlvr.models.kernels import for_platform, unroll_sampling
from rlvr.models.lora import (
  joined,
  merge_lora,
  split_trained,
  trained,
  without_adapters,
)
from rlvr.models.pretrained import (
  config_from_folder,
  initial_params,
  load_pretrained,
)

__all__ = [
  "LoRA",
  "ModelConfig",
  "RopeScaling",
  "TokenStatistics",
  "abstract_params",
  "compute_params",
  "config_from_folder",
  "decode",
  "for_platform",
  "forward",
  "forward_responses",
  "init",
  "initial_params",
  "joined",
  "load_gguf",
  "load_huggingface",
  "load_pretrained",
  "logical_axes",
  "logits",
  "merge_lora",
  "num_params",
  "prefill",
  "save_huggingface",
  "split_trained",
  "token_statistics",
  "trained",
  "unembedding",
  "unroll_sampling",
  "values",
  "without_adapters",
]
