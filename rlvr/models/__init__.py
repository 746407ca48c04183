"""One decoder, seen as pure functions over a parameter pytree."""

from rlvr.models.config import ModelConfig, RopeScaling
from rlvr.models.decoder import (
  abstract_params,
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
from rlvr.models.heads import TokenStatistics, token_statistics

__all__ = [
  "ModelConfig",
  "RopeScaling",
  "TokenStatistics",
  "abstract_params",
  "decode",
  "forward",
  "forward_responses",
  "init",
  "logical_axes",
  "logits",
  "num_params",
  "prefill",
  "token_statistics",
  "unembedding",
  "values",
]
