"""Tiny published models on disk, for the tests of what reads and writes them.

`write_case` writes one of the golden checkpoints in tests/reference/families as
the Hugging Face folder that it was; `tokenizer` is a tokenizer.json for any of
them that are large enough.
"""

import functools
import importlib.util
import json
import os
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rlvr import models
from rlvr.infra import tokenizer_json
from tests.models.test_families import ATOL, case

forward = jax.jit(models.forward, static_argnums=1)


def weights(name, dtype="float16"):
  """Returns a case's tensors by their names there."""
  return {
    key.removeprefix("weight/"): np.asarray(value).astype(dtype)
    for key, value in case(name)[0].items()
    if key.startswith("weight/")
  }


def write_config(folder, fields):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(fields))


def write_case(name, folder, *, dtype="float16", shards=1):
  """Writes a golden checkpoint as a folder in `shards` files; returns it."""
  write_config(folder, case(name)[1]["config"])
  write_tensors(folder, weights(name, dtype), shards)
  return folder


def write_tensors(folder, tensors, shards=1):
  """Writes tensors by name, with several files as transformers does."""
  if shards == 1:
    save_file(tensors, folder / "model.safetensors")
    return
  names = sorted(tensors)
  weight_map = {}
  for i in range(shards):
    file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
    part = {name: tensors[name] for name in names[i::shards]}
    save_file(part, folder / file)
    weight_map |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": weight_map})
  )


def check_golden(name, config, params):
  """Asserts that the logits are those of transformers for the case."""
  arrays, _ = case(name)
  for side in ("left", "right"):
    mask = arrays[f"{side}/mask"]
    hidden = forward(
      params, config, arrays[f"{side}/tokens"].astype(np.int32), mask
    )
    found = np.asarray(models.logits(params, config, hidden))[mask]
    np.testing.assert_allclose(
      found, arrays[f"{side}/logits"], rtol=0, atol=ATOL
    )


def same(a, b):
  """Asserts that two trees hold the same numbers, bit for bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def byte_tokens():
  """Returns the 256 bytes as GPT-2 prints them, by their number."""
  printable = [
    *range(ord("!"), ord("~") + 1),
    *range(0xA1, 0xAD),
    *range(0xAE, 0x100),
  ]
  others = iter(range(256, 512))
  return [chr(b if b in printable else next(others)) for b in range(256)]


@functools.cache
def tokenizer():
  """Returns a tokenizer.json of 260 tokens: bytes, "12", and three special."""
  tokens = [*byte_tokens(), "12", "<|end|>", "<|user|>", "<|pad|>"]
  kinds = [tokenizer_json.NORMAL] * 257 + [tokenizer_json.CONTROL] * 3
  return tokenizer_json.byte_level_bpe(
    tokens, ["1 2"], kinds, pre_tokenizer="gpt-2"
  )


TEMPLATE = (
  "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}:{% endif %}"
)


def write_tokenizer(folder, **fields):
  """Writes `tokenizer` and its tokenizer_config.json."""
  (folder / "tokenizer.json").write_text(tokenizer())
  named = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(named | fields))


def transformers_python():
  """Returns an interpreter that has transformers; skips where there is none.

  RLVR_TRANSFORMERS_PYTHON names it; otherwise it is this one, where it has it.
  """
  if given := os.environ.get("RLVR_TRANSFORMERS_PYTHON"):
    return given
  if not all(importlib.util.find_spec(n) for n in ("transformers", "torch")):
    pytest.skip(
      "no transformers here: RLVR_TRANSFORMERS_PYTHON=/path/to/python names an"
      " interpreter with torch and transformers"
    )
  return sys.executable
