"""Safetensors: parts, files with an index, and what is wrong with a folder."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlvr.infra import safetensors_files
from rlvr.infra.safetensors_files import (
  INDEX,
  SINGLE,
  SafetensorsFolder,
  write_safetensors,
)

RNG = np.random.default_rng(0)
TENSORS = {
  name: RNG.normal(size=shape).astype(dtype)
  for name, shape, dtype in (
    ("a", (6, 4), np.float32),
    ("b", (5,), np.float16),
    ("c", (3, 2), ml_dtypes.bfloat16),
    ("d", (7, 2), np.float32),
  )
}
SIZES = {name: x.nbytes for name, x in TENSORS.items()}  # 96, 10, 12, 56


def written(folder, tensors=TENSORS, sizes=None, most=1 << 20):
  sizes = SIZES if sizes is None else sizes
  return write_safetensors(
    folder, iter(tensors.items()), sizes, max_shard_bytes=most
  )


@pytest.mark.parametrize(
  ("most", "groups"),
  [
    (1 << 20, ["abcd"]),
    (174, ["abcd"]),
    (173, ["abc", "d"]),
    (90, ["a", "bcd"]),  # one that is larger has a file of its own
    (1, ["a", "b", "c", "d"]),
  ],
)
def test_what_is_written_is_read_by_parts(most, groups, tmp_path):
  files = written(tmp_path, most=most)
  count = len(groups)
  if count == 1:
    assert files == [SINGLE]
  else:
    names = [
      f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]
    assert files == [*names, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 174}
    assert index["weight_map"] == {
      t: n for n, g in zip(names, groups, strict=True) for t in g
    }
  with SafetensorsFolder(tmp_path) as folder:
    assert folder.names() == ["a", "b", "c", "d"]
    for name, whole in TENSORS.items():
      assert folder.shape(name) == whole.shape
      part = (slice(1, 3), slice(0, 1))[: whole.ndim]
      for index in (part, (slice(None),) * whole.ndim):
        found = folder.read(name, index)
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole[index])


def test_what_was_read_does_not_stay_mapped(tmp_path, monkeypatch):
  # "a" has 96 bytes: each second read of it opens the file anew.
  opened_files = []
  really = safetensors_files._open
  monkeypatch.setattr(safetensors_files, "_MAPPED", 100)
  monkeypatch.setattr(
    safetensors_files,
    "_open",
    lambda path: opened_files.append(path.name) or really(path),
  )
  written(tmp_path)
  with SafetensorsFolder(tmp_path) as folder:
    opened_files.clear()
    kept = [folder.read("a", (slice(None), slice(None))) for _ in range(5)]
    assert opened_files == [SINGLE] * 2
    np.testing.assert_array_equal(
      folder.read("b", (slice(None),)), TENSORS["b"]
    )
  for array in kept:  # is no view of the file
    np.testing.assert_array_equal(array, TENSORS["a"])


def test_a_transposed_view_is_written_as_it_reads(tmp_path):
  view = TENSORS["a"].T
  written(tmp_path, {"a": view}, {"a": view.nbytes})
  np.testing.assert_array_equal(load_file(tmp_path / SINGLE)["a"], view)


def test_files_are_readable_as_the_umask_lets(tmp_path):
  written(tmp_path)
  (tmp_path / "plain").write_text("")
  assert (tmp_path / SINGLE).stat().st_mode == (
    tmp_path / "plain"
  ).stat().st_mode


def test_sizes_that_were_not_announced(tmp_path):
  with pytest.raises(
    ValueError, match=r"a of 96 bytes in the place of b of 10"
  ):
    written(tmp_path, sizes={"b": 10, **SIZES})


def test_integers_are_not_taken_for_weights(tmp_path):
  save_file({"q": np.ones((2, 2), np.int8)}, tmp_path / SINGLE)
  with SafetensorsFolder(tmp_path) as folder:
    assert folder.shape("q") == (2, 2)
    with pytest.raises(
      ValueError, match=r"q is I8, wanted .*give the original"
    ):
      folder.read("q", (slice(None), slice(None)))


# What is wrong with a folder.


def opened(folder):
  with SafetensorsFolder(folder):
    pass


def test_files_that_are_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: give"):
    opened(tmp_path / "nowhere")
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(
    FileNotFoundError, match=r"neither model\.safetensors nor .*notes\.txt"
  ):
    opened(tmp_path)
  (tmp_path / "pytorch_model.bin").write_text("")
  with pytest.raises(
    FileNotFoundError, match=r"pytorch_model\.bin only, a pic"
  ):
    opened(tmp_path)


def test_an_index_that_names_what_is_not_there(tmp_path):
  files = written(tmp_path, most=90)
  index = json.loads((tmp_path / INDEX).read_text())
  moved = {**index["weight_map"], "d": files[0], "e": files[0]}
  (tmp_path / INDEX).write_text(json.dumps({"weight_map": moved}))
  with pytest.raises(ValueError, match=r"don't hold: \['d', 'e'\].*fetch"):
    opened(tmp_path)
  (tmp_path / INDEX).write_text(json.dumps(index))
  (tmp_path / files[1]).unlink()
  with pytest.raises(
    FileNotFoundError, match=r"model-00002-of-00002\.safetensors, which isn't"
  ):
    opened(tmp_path)
  for text in ("<html>", "{}", "[]", '{"weight_map": 1}'):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is no index"):
      opened(tmp_path)


def test_files_that_are_cut_short_or_something_else(tmp_path):
  written(tmp_path)
  whole = (tmp_path / SINGLE).read_bytes()
  pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
  for content in (whole[:-1], whole[:40], whole[:3], b"", pointer):
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
      opened(tmp_path)
  (tmp_path / SINGLE).write_bytes(whole)
  opened(tmp_path)
