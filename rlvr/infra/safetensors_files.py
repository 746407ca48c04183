"""Safetensors: one file or several with an index, read by parts, written whole.

    with SafetensorsFolder(folder) as tensors:
      tensors.shape(name), tensors.read(name, (slice(0, 4), slice(None)))

Format: https://github.com/huggingface/safetensors#format; the index is the one
of `transformers`: {"metadata": {...}, "weight_map": {tensor: file}}.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  so that NumPy knows bfloat16
import numpy as np

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Bytes read of a file after which it is opened again. A file is mapped into
# memory, and what was read of it counts as the process's own until it is closed.
_MAPPED = 64 << 20
_FLOATS = ("F64", "F32", "F16", "BF16")

Index = tuple[slice, ...]


class SafetensorsFolder:
  """The tensors of a folder; all of its files are open.

  Raises:
    FileNotFoundError: no safetensors there, or a file that the index names.
    ValueError: a file or an index that can't be read.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    self._files: dict[str, Any] = {}
    self._read: dict[str, int] = {}  # bytes since the file was opened
    self._file_of = _weight_map(self.folder)
    # Every file is opened now: one that is missing or cut short must not be
    # found after half of the model is read.
    try:
      for name in sorted(set(self._file_of.values())):
        self._open(name)
      self._check_index()
    except BaseException:
      self.close()
      raise

  def _open(self, name: str) -> None:
    self._files[name] = _open(self.folder / name).__enter__()
    self._read[name] = 0

  def _check_index(self) -> None:
    held = {name: set(file.keys()) for name, file in self._files.items()}
    if absent := [t for t, f in self._file_of.items() if t not in held[f]]:
      raise ValueError(
        f"{self.folder / INDEX} names tensors that their files don't hold:"
        f" {absent[:5]}: the download is incomplete, fetch the folder again"
      )

  def names(self) -> list[str]:
    """Returns the names of all tensors, sorted."""
    return sorted(self._file_of)

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape; reads nothing but the header."""
    return tuple(self._slice(name).get_shape())

  def read(self, name: str, index: Index) -> np.ndarray:
    """Returns a part of a tensor, in the file's dtype.

    Args:
      name: one of `names`.
      index: a slice for each axis.

    Raises:
      ValueError: the tensor holds no floating-point numbers.
    """
    part = self._slice(name)
    if part.get_dtype() not in _FLOATS:
      raise ValueError(
        f"{self.folder}: {name} is {part.get_dtype()}, wanted is one of"
        f" {', '.join(_FLOATS)}: quantised folders aren't read, give the"
        " original one or a GGUF file"
      )
    values = np.asarray(part[index])
    file = self._file_of[name]
    self._read[file] += values.nbytes
    if self._read[file] > _MAPPED:
      self._files.pop(file).__exit__(None, None, None)
      self._open(file)
    return values

  def _slice(self, name: str) -> Any:
    return self._files[self._file_of[name]].get_slice(name)

  def close(self) -> None:
    """Closes the files."""
    while self._files:
      self._files.popitem()[1].__exit__(None, None, None)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _open(path: pathlib.Path) -> Any:
  from safetensors import SafetensorError, safe_open

  if not path.exists():
    raise FileNotFoundError(
      f"{path.parent / INDEX} names {path.name}, which isn't there: the"
      " download is incomplete, fetch the file again"
    )
  try:
    return safe_open(path, "np")
  except SafetensorError as error:
    raise ValueError(
      f"{path} can't be read ({error}): the file is cut short or no"
      " safetensors (a Git LFS pointer?), fetch it again"
    ) from error


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
  """Returns the file of each tensor."""
  if (index := folder / INDEX).exists():
    try:
      return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{index} is no index ({error!r}): wanted is JSON with `weight_map`"
      ) from error
  if (folder / SINGLE).exists():
    with _open(folder / SINGLE) as file:
      return dict.fromkeys(file.keys(), SINGLE)
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {folder}: give a Hugging Face folder")
  held = sorted(p.name for p in folder.iterdir())
  if pickled := [n for n in held if n.endswith((".bin", ".pt", ".pth"))]:
    raise FileNotFoundError(
      f"{folder} has weights as {pickled[0]} only, a pickle, which isn't read"
      " (it can run code): convert them to safetensors, for instance with"
      " transformers' save_pretrained(..., safe_serialization=True)"
    )
  raise FileNotFoundError(
    f"{folder} has neither {SINGLE} nor {INDEX}; there are {held[:8]}"
  )


def write_safetensors(
  folder: pathlib.Path,
  tensors: Iterator[tuple[str, np.ndarray]],
  num_bytes: Mapping[str, int],
  *,
  max_shard_bytes: int,
) -> list[str]:
  """Writes tensors as they come; returns the files' names.

  One shard is held in memory at a time. With more than one there is an index.

  Args:
    folder: exists.
    tensors: name and array, in the order of `num_bytes`.
    num_bytes: each tensor's bytes: known before, so that files can be named
      "model-00001-of-00003.safetensors" from the first on.
    max_shard_bytes: of a file; a single greater tensor has a file of its own.
  """
  from safetensors.numpy import save_file

  shards: list[list[str]] = [[]]
  filled = 0
  for name, size in num_bytes.items():
    if shards[-1] and filled + size > max_shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += size
  files: list[str] = []
  weight_map: dict[str, str] = {}
  for i, names in enumerate(shards):
    file = SINGLE
    if len(shards) > 1:
      file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    held = {}
    for wanted in names:
      name, array = next(tensors)
      if name != wanted or array.nbytes != num_bytes[name]:
        raise ValueError(
          f"write_safetensors: {name} of {array.nbytes} bytes in the place of"
          f" {wanted} of {num_bytes[wanted]}"
        )
      # The writer takes memory as it lies: a transposed view would be wrong.
      held[name] = np.ascontiguousarray(array)
    (folder / file).touch()
    mode = (folder / file).stat().st_mode
    # The metadata is what transformers looks for before it reads a file.
    save_file(held, folder / file, metadata={"format": "pt"})
    # The writer makes a file that its owner alone can read.
    (folder / file).chmod(mode)
    files.append(file)
    weight_map |= dict.fromkeys(names, file)
  if len(shards) > 1:
    index = {
      "metadata": {"total_size": sum(num_bytes.values())},
      "weight_map": weight_map,
    }
    (folder / INDEX).write_text(
      json.dumps(index, indent=2) + "\n", encoding="utf-8"
    )
    files.append(INDEX)
  return files
