"""GGUF files: metadata, tensors (dequantised by the `gguf` package), tokenizer.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the keys
and tensors mean for an architecture is said in `rlvr.models.gguf_weights`.
"""

import os
import pathlib
from typing import Any

import numpy as np

Index = tuple[slice, ...]
_REQUIRED = object()


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
    """
    tensor = self._tensors[name]
    rows, rest = index[:1], index[1:]
    if len(index) == 1:  # a vector: its data are one row
      rows, rest = (slice(None),), index
    part = tensor.data[rows[0]] if len(index) > 1 else tensor.data
    values = _gguf().dequantize(part, tensor.tensor_type)
    return np.asarray(
      values[(slice(None), *rest)] if len(index) > 1 else values[rest],
      np.float32,
    )

  def quantisation(self) -> dict[str, int]:
    """Returns how many tensors there are of each type, "Q4_1" and the like."""
    found: dict[str, int] = {}
    for tensor in self._tensors.values():
      kind = tensor.tensor_type.name
      found[kind] = found.get(kind, 0) + 1
    return found
