"""The converter of llama2.c checkpoints, on the golden Llama checkpoint."""

import importlib.util
import struct

import numpy as np
import pytest

from rlvr import data, models
from tests import runs
from tests.compare import must_fail
from tests.models import folders
from tests.models.test_families import case, config_of

_PATH = runs.ROOT / "scripts" / "convert_llama2c.py"
_SPEC = importlib.util.spec_from_file_location("convert_llama2c", _PATH)
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)

NAME = "smollm2"
LAYERS = (
  *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj"),
  *("self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm"),
  *("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"),
)


def interleaved(weight, heads):
  """Returns rows whose neighbours are turned together, as in llama2.c."""
  halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
  return halves.swapaxes(1, 2).reshape(weight.shape)


def checkpoint(*, reorder=True, tied=True):
  """Returns the golden checkpoint as llama2.c's version 0 has it."""
  fields = case(NAME)[1]["config"]
  tensors = folders.weights(NAME, "float32")
  sizes = (
    *(fields["hidden_size"], fields["intermediate_size"]),
    *(fields["num_hidden_layers"], fields["num_attention_heads"]),
    fields["num_key_value_heads"],
    fields["vocab_size"] * (1 if tied else -1),
    *(fields["max_position_embeddings"],),
  )
  parts = [tensors["model.embed_tokens.weight"]]
  for name in LAYERS:
    for i in range(fields["num_hidden_layers"]):
      weight = tensors[f"model.layers.{i}.{name}.weight"]
      if reorder and name.endswith(("q_proj", "k_proj")):
        weight = interleaved(weight, fields["num_attention_heads"])
      parts.append(weight)
  parts.append(tensors["model.norm.weight"])
  head_dim = fields["hidden_size"] // fields["num_attention_heads"]
  parts.append(np.full((sizes[6], head_dim), np.nan, np.float32))  # rotations
  if not tied:
    parts.append(2 * tensors["model.embed_tokens.weight"])
  return struct.pack("<7i", *sizes) + b"".join(p.tobytes() for p in parts)


def tokenizer(words=None, count=300):
  """Returns a tokenizer.bin: three special tokens, 256 bytes, words."""
  words = ["a", "b", " ", "ab", " ab"] if words is None else words
  entries = ["<unk>", "\n<s>\n", "\n</s>\n"]
  raw = [e.encode() for e in entries] + [bytes([b]) for b in range(256)]
  raw += [w.encode() for w in words]
  raw += [f"word{i}".encode() for i in range(count - len(raw))]
  return struct.pack("<i", 8) + b"".join(
    struct.pack("<fi", -float(i), len(text)) + text
    for i, text in enumerate(raw)
  )


def converted(tmp_path, name, content, *more):
  file = tmp_path / f"{name}.bin"
  file.write_bytes(content)
  out = tmp_path / name
  code = script.main([f"--checkpoint={file}", f"--output={out}", *more])
  return out if code == 0 else None


def small(**options):
  """Returns a checkpoint with a tokenizer of as many tokens as it has, 48."""
  # Of the bytes, those that fit: no word is left to look at here.
  return checkpoint(**options) + tokenizer(count=0)


@pytest.mark.parity
def test_it_gives_the_logits_of_transformers(tmp_path):
  def check(name, **options):
    out = converted(tmp_path, name, small(**options))
    config, params = models.load_huggingface(out)
    assert config == config_of(NAME)
    folders.check_golden(NAME, config, params)

  check("good")
  # Rows as transformers orders them are not what such a file holds.
  must_fail(check, "plain", reorder=False)
  modes = {p.stat().st_mode for p in (tmp_path / "good").iterdir()}
  assert len(modes) == 1


def test_an_untied_head_stands_at_the_end(tmp_path):
  out = converted(tmp_path, "untied", small(tied=False))
  config, params = models.load_huggingface(out)
  assert not config.tie_embeddings
  trunk = params["trunk"]
  np.testing.assert_array_equal(
    trunk["unembedding"], 2 * np.asarray(trunk["embedding"]).T
  )


def test_the_tokenizer_is_run_cs(tmp_path):
  text = script.read_tokenizer(memoryview(tokenizer()), 300)
  out = tmp_path / "out"
  out.mkdir()
  folders.write_tokenizer(out, eos_token="</s>", pad_token="<unk>")
  (out / "tokenizer.json").write_text(text)
  vocabulary = data.huggingface_vocabulary(str(out))
  assert (vocabulary.eos_id, vocabulary.pad_id) == (2, 0)
  # " ab" is the piece of 263; the byte 0x0A is at 3 + 10.
  assert vocabulary.encode("ab\n") == [263, 13]
  assert vocabulary.encode("<s>ab</s>")[0] == 1
  assert vocabulary.decode([263, 13, 263]) == "ab\n ab"


def test_what_is_wrong_is_said(tmp_path, capsys):
  good = small()

  def fails(content, word, *more):
    assert converted(tmp_path, "bad", content, *more) is None
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message, message
    assert not (tmp_path / "bad").exists()

  fails(b"", "0 bytes: no llama2.c file")
  fails(b"ak42" + good[4:], "version 0")  # the magic of later versions
  fails(good[:5000], "cut short")
  fails(checkpoint(), "give --tokenizer")
  fails(checkpoint() + tokenizer(count=0)[:400], "tokens and the model has 48")
  fails(good, "nowhere", f"--tokenizer={tmp_path / 'nowhere'}")
  (tmp_path / "there").mkdir()
  file = tmp_path / "good.bin"
  file.write_bytes(good)
  code = script.main([f"--checkpoint={file}", f"--output={tmp_path / 'there'}"])
  assert code == 1
  assert "give another --output" in capsys.readouterr().err
