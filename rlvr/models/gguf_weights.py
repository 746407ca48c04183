"""GGUF files to parameters: a view of them under Hugging Face names.

    config, params = load_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")

Names and metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
llama.cpp's converter reorders the rows of queries and keys of the architecture
"llama" (alone): there neighbouring pairs of a head are turned, here, as in
`transformers`, a head's two halves
(https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py,
`LlamaModel.permute`).
"""

import os
import re
from typing import Any

import numpy as np

from rlvr.infra.gguf_files import GGUFFile
from rlvr.models.config import ModelConfig
from rlvr.models.hf_config import config_from_huggingface
from rlvr.models.huggingface import assemble
from rlvr.types import Params

# Architectures that are read, with their `model_type`.
_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_REORDERED = ("llama",)
_TRUNK = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
_LAYER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# Tables that follow from the metadata.
_COMPUTED = re.compile(r"blk\.\d+\.attn_rot_embd")


def load_gguf(
  file: str | os.PathLike,
  *,
  shardings: Params | None = None,
  dtype: str = "float32",
) -> tuple[ModelConfig, Params]:
  """Returns the model in a GGUF file: its shape and dequantised parameters.

  Its tokenizer is `rlvr.data.huggingface_vocabulary(file)`.

  Args:
    file: of the architecture llama, qwen2 or qwen3, of any quantisation that
      the `gguf` package dequantises.
    shardings: as of `load_huggingface`.
    dtype: of the parameters made.

  Raises:
    FileNotFoundError: no such file.
    ImportError: the package `gguf` is missing.
    ValueError: another architecture, or tensors that don't fit the metadata or
      aren't finite.
  """
  gguf = GGUFFile(file)
  config = config_from_huggingface(huggingface_fields(gguf))
  params = assemble(
    config,
    _HuggingFaceView(gguf, config),
    str(file),
    shardings=shardings,
    dtype=dtype,
  )
  return config, params


def config_from_gguf(file: str | os.PathLike) -> ModelConfig:
  """Returns the model's shape from a GGUF file's metadata.

  Raises:
    FileNotFoundError: no such file.
    ImportError: the package `gguf` is missing.
    ValueError: an architecture or a metadatum that isn't supported.
  """
  return config_from_huggingface(huggingface_fields(GGUFFile(file)))


def huggingface_fields(gguf: GGUFFile) -> dict[str, Any]:
  """Returns the fields that the file's model has in a config.json.

  Raises:
    ValueError: an architecture or a metadatum that isn't supported.
  """
  kind = gguf.get("general.architecture")
  if kind not in _ARCHITECTURES:
    raise ValueError(
      f"{gguf.path}: architecture {kind!r} is not supported: there are"
      f" {sorted(_ARCHITECTURES)}"
    )

  def get(key: str, *default: Any) -> Any:
    return gguf.get(f"{kind}.{key}", *default)

  if (parts := gguf.get("split.count", 1)) > 1:
    raise ValueError(
      f"{gguf.path} is 1 of {parts} files of a model: join them by llama.cpp's"
      " gguf-split --merge, and give the one file"
    )
  names = gguf.names()
  scaling = get("rope.scaling.type", "none")
  if "rope_freqs.weight" in names or scaling not in ("none", "linear"):
    raise ValueError(
      f"{gguf.path}: its rotary positions are scaled ({scaling!r}, or a table"
      " rope_freqs), and the file doesn't say by which rule: give the model's"
      " Hugging Face folder"
    )
  if get("expert_count", 0):
    raise ValueError(f"{gguf.path}: mixtures of experts are not supported")
  if bad := [n for n in names if n.endswith("attn_output.bias")]:
    raise ValueError(f"{gguf.path}: {bad[0]} is not supported")
  heads = get("attention.head_count")
  fields = {
    "model_type": _ARCHITECTURES[kind],
    "vocab_size": gguf.shape("token_embd.weight")[0],
    "hidden_size": get("embedding_length"),
    "intermediate_size": get("feed_forward_length"),
    "num_hidden_layers": get("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": get("attention.head_count_kv", heads),
    "head_dim": get("attention.key_length", None)
    or get("embedding_length") // heads,
    # A float32 there: 1e-5 again, not 9.99999974737875e-06.
    "rms_norm_eps": float(
      str(np.float32(get("attention.layer_norm_rms_epsilon")))
    ),
    "rope_theta": float(get("rope.freq_base", 10_000.0)),
    "max_position_embeddings": get("context_length"),
    "tie_word_embeddings": "output.weight" not in names,
  }
  if kind == "llama" and "blk.0.attn_q.bias" in names:
    fields["attention_bias"] = True  # refused, by that name
  if scaling == "linear":
    factor = float(get("rope.scaling.factor"))
    fields["rope_scaling"] = {"rope_type": "linear", "factor": factor}
  return fields


class _HuggingFaceView:
  """A GGUF file's tensors under the names and in the order of `transformers`."""

  def __init__(self, gguf: GGUFFile, config: ModelConfig):
    self._gguf = gguf
    self._config = config
    self._reorders = gguf.get("general.architecture") in _REORDERED
    self._there = {
      _huggingface_name(name): name
      for name in gguf.names()
      if not _COMPUTED.match(name)
    }

  def names(self) -> list[str]:
    return sorted(self._there)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._gguf.shape(self._there[name])

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    there = self._there[name]
    if not (
      self._reorders and name.endswith(("q_proj.weight", "k_proj.weight"))
    ):
      return self._gguf.read(there, index)
    # Whole heads are read: the reordering is within a head.
    size = self._config.head_dim
    start, stop, _ = index[0].indices(self.shape(name)[0])
    first, last = start // size, -(-stop // size)
    rows = self._gguf.read(
      there, (slice(first * size, last * size), *index[1:])
    )
    heads = rows.reshape(last - first, size // 2, 2, *rows.shape[1:])
    rows = heads.swapaxes(1, 2).reshape(rows.shape)
    return rows[start - first * size : stop - first * size]


def _huggingface_name(name: str) -> str:
  """Returns the name there; one that isn't known comes back as it is."""
  if match := _IN_LAYER.fullmatch(name):
    layer, part, kind = match.groups()
    if part in _LAYER:
      return f"model.layers.{layer}.{_LAYER[part]}.{kind}"
  return _TRUNK.get(name, name)
