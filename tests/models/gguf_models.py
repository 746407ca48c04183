"""Tiny GGUF files, written as llama.cpp's converter writes them."""

import re

import gguf
import numpy as np

from rlvr.infra import tokenizer_json
from tests.models import folders

# The converter's names, by those there.
NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def name_of(theirs):
  stem, _, kind = theirs.rpartition(".")
  if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
    return f"blk.{match[1]}.{NAMES[match[2]]}.{kind}"
  return f"{NAMES[stem]}.{kind}"


def permuted(weight, heads):
  """Returns rows with a head's two halves interleaved, as `llama` has them."""
  halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
  return halves.swapaxes(1, 2).reshape(weight.shape)


def write(
  path,
  fields,
  tensors,
  *,
  arch="llama",
  permute=True,
  kind=None,
  vocabulary=False,
  more=lambda writer: None,
):
  """Writes a model as a GGUF file; returns the path.

  Args:
    path: of the file.
    fields: of its config.json.
    tensors: by their names there.
    arch: the architecture.
    permute: whether rows of queries and keys are reordered.
    kind: `gguf.GGMLQuantizationType` of matrices; None keeps their dtype.
    vocabulary: whether `folders.tokenizer` goes in.
    more: adds what else there is to the writer.
  """
  writer = gguf.GGUFWriter(path, arch)
  writer.add_context_length(fields["max_position_embeddings"])
  writer.add_embedding_length(fields["hidden_size"])
  writer.add_feed_forward_length(fields["intermediate_size"])
  writer.add_block_count(fields["num_hidden_layers"])
  heads, kv_heads = (
    fields["num_attention_heads"],
    fields["num_key_value_heads"],
  )
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
  if "rope_theta" in fields:
    writer.add_rope_freq_base(fields["rope_theta"])
  if "head_dim" in fields:
    writer.add_key_length(fields["head_dim"])
    writer.add_value_length(fields["head_dim"])
  if vocabulary:
    add_vocabulary(writer)
  more(writer)
  for name, tensor in tensors.items():
    if permute and arch == "llama" and ".self_attn." in name:
      count = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
      tensor = tensor if count is None else permuted(tensor, count)
    if kind is None or tensor.ndim == 1:
      # Vectors are float32 in every such file.
      tensor = tensor.astype(np.float32) if tensor.ndim == 1 else tensor
      writer.add_tensor(name_of(name), np.ascontiguousarray(tensor))
    else:
      data = gguf.quantize(tensor.astype(np.float32), kind)
      writer.add_tensor(name_of(name), data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def add_vocabulary(writer):
  """Adds the tokens of `folders.tokenizer`."""
  tokens = [*folders.byte_tokens(), "12", "<|end|>", "<|user|>", "<|pad|>"]
  kinds = [tokenizer_json.NORMAL] * 257 + [tokenizer_json.CONTROL] * 3
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-2")
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(["1 2"])
  writer.add_eos_token_id(257)
  writer.add_pad_token_id(259)
  writer.add_chat_template(folders.TEMPLATE)
