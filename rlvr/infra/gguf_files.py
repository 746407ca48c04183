"""GGUF files: metadata, tensors (dequantised by the `gguf` package), tokenizer.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the keys
and tensors mean for an architecture is said in `rlvr.models.gguf_weights`.
"""

import math
import os
import pathlib
from typing import Any

import numpy as np

Index = tuple[slice, ...]
_REQUIRED = object()
_CHUNK = 1 << 20  # numbers that are dequantised at a time


def _gguf() -> Any:
  try:
    import gguf
  except ModuleNotFoundError as error:
    raise ImportError(
      f"GGUF files are read by the package `gguf` ({error}): install it with"
      " pip install 'rlvr[gguf]'"
    ) from error
  return gguf


class GGUFFile:
  """One GGUF file, mapped into memory; nothing is read before it is asked for.

  Raises:
    FileNotFoundError: no such file.
    ImportError: the package `gguf` is missing.
    ValueError: no GGUF file.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if not self.path.is_file():
      raise FileNotFoundError(f"no file {self.path}: give a .gguf file")
    gguf = _gguf()
    try:
      self._reader = gguf.GGUFReader(self.path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
      raise ValueError(
        f"{self.path} is no GGUF file, or is cut short ({error}): fetch it"
        " again"
      ) from error
    self._tensors = {t.name: t for t in self._reader.tensors}

  def get(self, key: str, default: Any = _REQUIRED) -> Any:
    """Returns the metadata under a key.

    Raises:
      ValueError: the key isn't there and no default is given.
    """
    field = self._reader.fields.get(key)
    if field is not None:
      return field.contents()
    if default is _REQUIRED:
      raise ValueError(
        f"{self.path}: the metadata have no {key!r}; it isn't complete, give"
        " another conversion of the model"
      )
    return default

  def names(self) -> list[str]:
    """Returns the names of all tensors, sorted."""
    return sorted(self._tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape, the rows' axis first as in NumPy."""
    # GGUF lists the fastest axis first.
    return tuple(int(n) for n in reversed(self._tensors[name].shape))

  def read(self, name: str, index: Index) -> np.ndarray:
    """Returns a part of a tensor as float32.

    Blocks of quantised numbers lie along the last axis, so the rows that are
    asked for are dequantised alone.

    Raises:
      ValueError: rows with gaps.
    """
    tensor = self._tensors[name]
    shape = self.shape(name)
    if len(shape) == 1:  # its data are one row
      return self._dequantised(tensor, slice(None))[index]
    start, stop, step = index[0].indices(shape[0])
    if step != 1:
      raise ValueError(f"GGUFFile.read: rows {index[0]} must follow each other")
    sizes = [
      len(range(*part.indices(n))) for part, n in zip(index, shape, strict=True)
    ]
    out = np.empty(sizes, np.float32)
    # A few rows at a time: the package takes several times their size.
    most = max(1, _CHUNK // math.prod(shape[1:]))
    for first in range(start, stop, most):
      rows = slice(first, min(first + most, stop))
      values = self._dequantised(tensor, rows)
      out[rows.start - start : rows.stop - start] = values[
        (slice(None), *index[1:])
      ]
    return out

  def _dequantised(self, tensor: Any, rows: slice) -> np.ndarray:
    values = _gguf().dequantize(tensor.data[rows], tensor.tensor_type)
    return np.asarray(values, np.float32)

  def quantisation(self) -> dict[str, int]:
    """Returns how many tensors there are of each type, "Q4_1" and the like."""
    found: dict[str, int] = {}
    for tensor in self._tensors.values():
      kind = tensor.tensor_type.name
      found[kind] = found.get(kind, 0) + 1
    return found
