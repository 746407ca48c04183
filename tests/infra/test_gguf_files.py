"""GGUF files: metadata, parts of tensors, and files that are none."""

import builtins

import numpy as np
import pytest

from rlvr.infra import gguf_files
from rlvr.infra.gguf_files import GGUFFile

gguf = pytest.importorskip("gguf", reason="pip install 'rlvr[gguf]'")

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(6, 64)).astype(np.float32)
VECTOR = RNG.normal(size=5).astype(np.float32)
Q8 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_context_length(77)
  writer.add_token_list(["a", "b"])
  writer.add_tensor("plain", MATRIX)
  writer.add_tensor("half", MATRIX.astype(np.float16))
  writer.add_tensor("blocks", gguf.quantize(MATRIX, Q8), raw_dtype=Q8)
  writer.add_tensor("vector", VECTOR)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_metadata(path):
  file = GGUFFile(path)
  assert file.get("general.architecture") == "llama"
  assert file.get("llama.context_length") == 77
  assert file.get("tokenizer.ggml.tokens") == ["a", "b"]
  assert file.get("nothing", None) is None
  with pytest.raises(ValueError, match=r"have no 'nothing'; .*conversion"):
    file.get("nothing")
  assert file.names() == ["blocks", "half", "plain", "vector"]
  assert file.quantisation() == {"F32": 2, "F16": 1, "Q8_0": 1}


@pytest.mark.parametrize("numbers", [1 << 20, 130, 1])
def test_parts_are_those_of_the_whole(path, numbers, monkeypatch):
  # 130 numbers at a time are 2 rows of 64.
  monkeypatch.setattr(gguf_files, "_CHUNK", numbers)
  file = GGUFFile(path)
  whole = {
    "plain": MATRIX,
    "half": MATRIX.astype(np.float16).astype(np.float32),
    "blocks": gguf.dequantize(gguf.quantize(MATRIX, Q8), Q8),
    "vector": VECTOR,
  }
  parts = [
    (slice(None), slice(None)),
    (slice(2, 4), slice(None)),
    (slice(2, 4), slice(3, 40)),
    (slice(4, 6), slice(0, 64)),
    (slice(1, 6), slice(None)),
  ]
  for name, values in whole.items():
    assert file.shape(name) == values.shape
    for index in parts:
      index = index[: values.ndim]
      found = file.read(name, index)
      assert found.dtype == np.float32
      np.testing.assert_array_equal(found, values[index], err_msg=name)
  assert np.abs(whole["blocks"] - MATRIX).max() > 1e-4
  with pytest.raises(ValueError, match="must follow each other"):
    file.read("plain", (slice(0, 4, 2), slice(None)))


def test_only_the_rows_asked_for_are_dequantised(path, monkeypatch):
  sizes = []
  dequantize = gguf.dequantize

  def counted(part, kind):
    sizes.append(part.nbytes)
    return dequantize(part, kind)

  monkeypatch.setattr(gguf, "dequantize", counted)
  GGUFFile(path).read("blocks", (slice(1, 3), slice(0, 32)))
  # 2 rows of 64 numbers: 2 blocks of 32 bytes and a float16 each.
  assert sizes == [2 * 2 * 34]


def test_files_that_are_none(path, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf: give a \.gguf"):
    GGUFFile(tmp_path / "nowhere.gguf")
  whole = path.read_bytes()
  bad = tmp_path / "bad.gguf"
  # In the last tensor, the metadata, the header; nothing; something else.
  for content in (
    whole[:-200],
    *(whole[:n] for n in (300, 150, 60, 23, 10, 3, 0)),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
  ):
    bad.write_bytes(content)
    with pytest.raises(
      ValueError, match=r"bad\.gguf is no GGUF file, or is cut"
    ):
      GGUFFile(bad)


def test_without_the_package_it_says_what_to_install(path, monkeypatch):
  real = builtins.__import__

  def none(name, *rest, **options):
    if name == "gguf":
      raise ModuleNotFoundError("No module named 'gguf'")
    return real(name, *rest, **options)

  monkeypatch.setattr(builtins, "__import__", none)
  with pytest.raises(ImportError, match=r"pip install 'rlvr\[gguf\]'"):
    GGUFFile(path)
