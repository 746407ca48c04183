"""Hugging Face folders to parameters and back, tensor by tensor.

    config, params = load_huggingface("Qwen2.5-0.5B")
    save_huggingface("mine", config, params, tokenizer_files_from="Qwen2.5-0.5B")

Each device's part of an array is read by itself, straight from the file, so the
host holds one array beside the model at most. Names and layouts are in
`hf_names`, the families' fields in `hf_config`.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlvr.infra.safetensors_files import SafetensorsFolder, write_safetensors
from rlvr.models.config import ModelConfig
from rlvr.models.decoder import abstract_params
from rlvr.models.hf_config import (
  config_from_huggingface,
  config_to_huggingface,
  family_of,
)
from rlvr.models.hf_names import HFTensor, canonical_name, hf_tensors
from rlvr.models.lora import merge_lora
from rlvr.models.tokenizer_files import token_ids_of, write_tokenizer_files
from rlvr.types import Params

_SHOWN = 5  # names that an error lists
_CHUNK = 1 << 20  # numbers that are looked at together
_DTYPES = ("float32", "bfloat16", "float16")


class Tensors(Protocol):
  """Tensors by their Hugging Face names, read by parts."""

  def names(self) -> list[str]:
    """Returns all names."""
    ...

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape."""
    ...

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Returns a part of a tensor, by a slice for each axis."""
    ...


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns the fields of a folder's config.json.

  Raises:
    FileNotFoundError: no folder, or no config.json in it.
    ValueError: it isn't JSON, or no object.
  """
  file = pathlib.Path(folder) / "config.json"
  if not file.is_file():
    there = "" if file.parent.is_dir() else " (there is no such folder)"
    raise FileNotFoundError(
      f"{folder} has no config.json{there}: give a Hugging Face folder with"
      " config.json and safetensors"
    )
  try:
    fields = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is no JSON: {error}") from error
  if not isinstance(fields, dict):
    raise ValueError(
      f"{file} must hold an object with model_type and sizes, not"
      f" {type(fields).__name__}: fetch it again"
    )
  return fields


def load_huggingface(
  folder: str | os.PathLike,
  *,
  shardings: Params | None = None,
  dtype: str = "float32",
) -> tuple[ModelConfig, Params]:
  """Returns the model in a Hugging Face folder: its shape and its parameters.

  Args:
    folder: with config.json and model.safetensors, or several safetensors with
      their index; float32, float16 or bfloat16.
    shardings: a tree like the parameters', of where each is put
      (`jax.sharding.Sharding`); None is the first device.
    dtype: of the parameters made.

  Raises:
    FileNotFoundError: a file that isn't there, by name.
    ValueError: an architecture that isn't supported; tensors that are missing,
      unexpected, of another shape or not finite.
  """
  config = config_from_huggingface(read_config(folder))
  with SafetensorsFolder(folder) as tensors:
    params = assemble(
      config, tensors, str(folder), shardings=shardings, dtype=dtype
    )
  return config, params


def assemble(
  config: ModelConfig,
  tensors: Tensors,
  where: str,
  *,
  shardings: Params | None,
  dtype: str,
) -> Params:
  """Returns the parameters of `config` made of tensors; see load_huggingface.

  Args:
    config: the model's shape, without a value head.
    tensors: by Hugging Face names.
    where: file or folder, for errors.
    shardings: as of `load_huggingface`.
    dtype: of the parameters made.

  Raises:
    ValueError: tensors that are missing, unexpected, of another shape or not
      finite.
  """
  _check_dtype(dtype)
  shapes = dict(_flat(abstract_params(config)))
  parts = _matched(config, tensors, shapes, where)
  wanted = dict(_flat(shardings)) if shardings is not None else {}
  if shardings is not None and wanted.keys() != shapes.keys():
    names = sorted(".".join(p) for p in wanted.keys() ^ shapes.keys())
    raise ValueError(
      f"load_huggingface: shardings and {where} differ in {names[:_SHOWN]}:"
      " make the shardings for this model's config"
    )
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params: dict[str, Any] = {}
  for path, like in shapes.items():
    node = params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = _array(
      *(like.shape, wanted.get(path, first), parts[path], tensors, dtype),
      where,
    )
  return params


# The tensors that make up one of our arrays: by layer, None without one.
Parts = dict[int | None, tuple[str, HFTensor]]


def _matched(
  config: ModelConfig,
  tensors: Tensors,
  shapes: Mapping[tuple[str, ...], Any],
  where: str,
) -> dict[tuple[str, ...], Parts]:
  """Returns each array's tensors; raises on any that are too few or many."""
  table = hf_tensors(config)
  found: dict[str, str] = {}
  for name in tensors.names():
    known = canonical_name(name, config)
    if known is not None:
      found[known] = name
  missing = [name for name in table if name not in found]
  unexpected = [name for name in found if name not in table]
  if missing or unexpected:
    raise ValueError(
      f"{where} doesn't hold the tensors of its config:"
      + _listed("missing", missing)
      + _listed("unexpected", unexpected)
      + ". Either config.json is another model's, or a file is missing"
    )
  wrong = []
  parts: dict[tuple[str, ...], Parts] = {}
  for name, tensor in table.items():
    shape = shapes[tensor.path].shape
    want = _hf_shape(tensor, shape if tensor.layer is None else shape[1:])
    have = tensors.shape(found[name])
    if have != want:
      wrong.append(f"{found[name]} is {list(have)}, not {list(want)}")
    parts.setdefault(tensor.path, {})[tensor.layer] = (found[name], tensor)
  if wrong:
    raise ValueError(
      f"{where}: tensors of another shape than config.json says:"
      + _listed("wrong", wrong)
    )
  return parts


def _listed(what: str, names: list[str]) -> str:
  if not names:
    return ""
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return f" {what}: {', '.join(names[:_SHOWN])}{more};"


def _num_inputs(tensor: HFTensor) -> int | None:
  """Returns how many of our axes are a linear map's inputs; None if no map."""
  if len(tensor.path) > 2 or tensor.path[-1] == "embedding":
    return None  # norms, which have a module of their own; the embedding
  if tensor.path[-1].endswith("_bias"):
    return None
  return 2 if tensor.path[-1] == "output" else 1


def _hf_shape(tensor: HFTensor, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the tensor's shape there, of ours without the layers' axis."""
  if (inputs := _num_inputs(tensor)) is not None:
    return math.prod(shape[inputs:]), math.prod(shape[:inputs])
  if tensor.path[-1].endswith("_bias"):
    return (math.prod(shape),)
  return shape


def _array(
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
  parts: Parts,
  tensors: Tensors,
  dtype: str,
  where: str,
) -> jax.Array:
  """Returns one array, each device's part read by itself."""
  # Devices that hold the same part share one copy on the host.
  made: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    bounds = tuple(
      s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True)
    )
    if bounds in made:
      return made[bounds]
    if None in parts:
      found = _read(tensors, *parts[None], shape, bounds)
      # No copy of what is so already: this may be the greatest array.
      out = np.asarray(found, jnp.dtype(dtype), order="C")
      _check_finite(out, parts[None][0], where)
    else:
      out = np.empty([b - a for a, b in bounds], jnp.dtype(dtype))
      first, last = bounds[0]
      for row, layer in enumerate(range(first, last)):
        out[row] = _read(tensors, *parts[layer], shape[1:], bounds[1:])
        _check_finite(out[row], parts[layer][0], where)
    made[bounds] = out
    return out

  # Waits: what JAX still copies of one array would lie beside the next.
  array = jax.make_array_from_callback(shape, sharding, part)
  return jax.block_until_ready(array)


def _check_finite(values: np.ndarray, name: str, where: str) -> None:
  """Raises ValueError where a tensor, as it was made, has NaN or infinity."""
  flat = values.reshape(-1)  # a view: it was made in order
  # In parts: a mask of the whole would lie beside the array.
  for start in range(0, flat.size, _CHUNK):
    part = flat[start : start + _CHUNK]
    if not np.isfinite(part).all():
      bad = part[~np.isfinite(part)][0]
      raise ValueError(
        f"{where}: the tensor {name} holds {bad}; nothing can be trained from"
        " it: fetch the model again, or take another conversion of it"
      )


def _read(
  tensors: Tensors,
  name: str,
  tensor: HFTensor,
  shape: tuple[int, ...],
  bounds: tuple[tuple[int, int], ...],
) -> np.ndarray:
  """Returns a part, by bounds on our axes, of one layer's array."""
  whole = all(b == (0, n) for b, n in zip(bounds, shape, strict=True))
  inputs = _num_inputs(tensor)
  if whole or (inputs is None and len(_hf_shape(tensor, shape)) != len(shape)):
    full = tensors.read(name, (slice(None),) * len(tensors.shape(name)))
    return tensor.to_ours(full)[tuple(slice(*b) for b in bounds)]
  if inputs is None:
    return tensors.read(name, tuple(slice(*b) for b in bounds))
  # Our axes of one side are one axis there.
  sides = ((inputs, len(shape)), (0, inputs))
  read, rest = zip(
    *(_merged(shape[a:b], bounds[a:b]) for a, b in sides), strict=True
  )
  block = tensors.read(name, read).T
  sizes = [n for n, _ in (*rest[1], *rest[0])]
  cut = tuple(slice(*b) for _, b in (*rest[1], *rest[0]))
  return block.reshape(sizes)[cut]


def _merged(
  shape: tuple[int, ...], bounds: tuple[tuple[int, int], ...]
) -> tuple[slice, list[tuple[int, tuple[int, int]]]]:
  """Returns the range on the merged axis that covers bounds on its axes.

  And for each axis its length in what is read, with the bounds in that. Only
  the first axis's bounds make the range smaller: those of the others would give
  rows with gaps.
  """
  (start, stop), inner = bounds[0], math.prod(shape[1:])
  rest = list(zip(shape[1:], bounds[1:], strict=True))
  length = stop - start
  return slice(start * inner, stop * inner), [(length, (0, length)), *rest]


def _check_dtype(dtype: str) -> None:
  if dtype not in _DTYPES:
    raise ValueError(f"dtype={dtype!r}: give one of {', '.join(_DTYPES)}")


def _flat(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    yield tuple(entry.key for entry in path), leaf


def save_huggingface(
  folder: str | os.PathLike,
  config: ModelConfig,
  params: Params,
  *,
  dtype: str = "float32",
  max_shard_bytes: int = 5 << 30,
  family: str | None = None,
  tokenizer_files_from: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Writes a folder that `transformers` loads; returns it.

  Whole or not at all: the files are written into a folder beside it, which is
  renamed at the end. A value head is left out, as no class there has one;
  adapters are merged into the projections that they stand beside.

  Args:
    folder: is made; must not exist.
    config: the model's shape.
    params: its parameters, wherever they are.
    dtype: of the tensors written: "float32", "bfloat16" or "float16".
    max_shard_bytes: of a file; above it there are several and an index.
    family: "llama", "qwen2", ...; None is the first that can be this model.
    tokenizer_files_from: a Hugging Face folder, a tokenizer.json or a .gguf
      file, whose tokenizer is written too, with the ids of its special tokens.

  Raises:
    FileExistsError: the folder is there.
    ValueError: no family can be this model, or the parameters are another's.
  """
  _check_dtype(dtype)
  if max_shard_bytes < 1:
    raise ValueError(f"max_shard_bytes={max_shard_bytes}: give at least 1")
  target = pathlib.Path(folder)
  if target.exists():
    raise FileExistsError(
      f"{target} exists: give another folder, nothing is overwritten"
    )
  _check_shapes(config, params)
  config, params = merge_lora(
    dataclasses.replace(config, value_head=False), params
  )
  fields = config_to_huggingface(config, family or family_of(config))
  fields["torch_dtype"] = dtype
  token_ids: dict[str, Any] = {}
  if tokenizer_files_from is not None:
    token_ids = token_ids_of(tokenizer_files_from)
  table = hf_tensors(config)
  leaves = dict(_flat(params))
  shapes = dict(_flat(abstract_params(config)))

  def arrays() -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in table.items():
      leaf = leaves[tensor.path]
      one = leaf if tensor.layer is None else leaf[tensor.layer]
      yield name, tensor.to_hf(np.asarray(one).astype(jnp.dtype(dtype)))

  width = jnp.dtype(dtype).itemsize
  num_bytes = {}
  for name, tensor in table.items():
    size = math.prod(shapes[tensor.path].shape) * width
    if tensor.layer is not None:
      size //= config.num_layers
    num_bytes[name] = size
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
  partial.mkdir()
  try:
    _write_json(partial / "config.json", fields | token_ids)
    if token_ids:
      _write_json(partial / "generation_config.json", token_ids)
    write_safetensors(
      partial, arrays(), num_bytes, max_shard_bytes=max_shard_bytes
    )
    if tokenizer_files_from is not None:
      write_tokenizer_files(partial, tokenizer_files_from)
    # An empty folder made meanwhile would be replaced; a full one is an error.
    partial.rename(target)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return target


def _check_shapes(config: ModelConfig, params: Params) -> None:
  """Raises ValueError where the parameters can't be written by the config."""
  config = dataclasses.replace(config, value_head=False)
  leaves = dict(_flat(params))
  for path, like in _flat(abstract_params(config)):
    have = leaves[path].shape if path in leaves else None
    if have != like.shape:
      raise ValueError(
        f"save_huggingface: params[{'.'.join(path)}] is {have}, the config"
        f" says {like.shape}: give the config that the parameters were made by"
      )
    if not getattr(leaves[path], "is_fully_addressable", True):
      raise ValueError(
        "save_huggingface: the parameters lie on several hosts: save a"
        " checkpoint and export it on one host (python -m rlvr.models.export)"
      )


def _write_json(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
