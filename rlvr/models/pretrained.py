"""Where a run's parameters and shape come from: a path says which of three.

A Hugging Face folder (config.json), a .gguf file, or the checkpoints of another
run of ours.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.models.config import ModelConfig
from rlvr.models.decoder import abstract_params, init
from rlvr.models.gguf_weights import config_from_gguf, load_gguf
from rlvr.models.hf_config import config_from_huggingface
from rlvr.models.huggingface import load_huggingface, read_config
from rlvr.models.lora import adapters, is_adapter, joined, without_adapters
from rlvr.types import Array, Params

Loader = Callable[..., tuple[ModelConfig, Params]]
# What a run chooses, whatever the file is.
_RUNS_OWN = (
  "value_head",
  "lora",
  "compute_dtype",
  "remat",
  "unroll_layers",
  "attention",
  "logits_at_once",
  "max_positions",
)


def loader_of(path: str | os.PathLike) -> Loader | None:
  """Returns what loads a published model's path; None if it isn't one."""
  given = pathlib.Path(path)
  if given.suffix == ".gguf":
    return load_gguf
  return load_huggingface if (given / "config.json").is_file() else None


def load_pretrained(
  path: str | os.PathLike,
  *,
  shardings: Params | None = None,
  dtype: str = "float32",
) -> tuple[ModelConfig, Params]:
  """Returns the model at a path: its shape and its parameters.

  Args:
    path: a Hugging Face folder or a .gguf file.
    shardings: as of `load_huggingface`.
    dtype: of the parameters made.

  Raises:
    FileNotFoundError: there is no such thing.
    ValueError: a model that isn't supported, or isn't complete.
  """
  load = loader_of(path) or load_huggingface  # whose error says what is wanted
  return load(path, shardings=shardings, dtype=dtype)


def config_from_folder(path: str, **changes: Any) -> ModelConfig:
  """Returns the shape of the model at a path, for `MODEL` in gin.

  Args:
    path: a Hugging Face folder or a .gguf file.
    **changes: fields of ModelConfig that the run sets: `compute_dtype`, `lora`,
      `remat`, `unroll_layers`, `value_head`.

  Raises:
    FileNotFoundError: there is no such thing.
    ValueError: a model that isn't supported.
    TypeError: a change that isn't one of those.
  """
  if unknown := sorted(changes.keys() - set(_RUNS_OWN)):
    raise TypeError(
      f"config_from_folder: {unknown} come from the folder; a run sets"
      f" {list(_RUNS_OWN)}"
    )
  if pathlib.Path(path).suffix == ".gguf":
    config = config_from_gguf(path)
  else:
    config = config_from_huggingface(read_config(path))
  return dataclasses.replace(config, **changes)


def initial_params(
  path: str | os.PathLike,
  model: ModelConfig,
  *,
  shardings: Params | None = None,
  key: Array | None = None,
) -> Params:
  """Returns float32 parameters for a run to start from.

  A value head that the file doesn't have starts at 0, as a drawn one does;
  adapters that it or the checkpoint doesn't have start as drawn ones do.

  Args:
    path: a Hugging Face folder, a .gguf file, or the checkpoints of a run.
    model: the run's model.
    shardings: a tree like the parameters', of where each is put; None is the
      first device.
    key: PRNG key, consumed where adapters are drawn.

  Raises:
    FileNotFoundError: there is no such thing.
    ValueError: the model at the path is another one; the error lists the
      fields that differ. Or adapters are to be drawn and there is no key.
  """
  load = loader_of(path)
  if model.lora is not None and not (load is None and _has_adapters(path)):
    if key is None:
      raise ValueError(
        "initial_params: give `key`: the adapters (ModelConfig.lora) are drawn"
      )
    base, places = dataclasses.replace(model, lora=None), None
    if shardings is not None:
      _, places = without_adapters(model, shardings)
    loaded = initial_params(path, base, shardings=places)
    return joined(loaded, _drawn_adapters(model, key, shardings))
  if load is None:
    from rlvr.infra.checkpoints import restore_params  # Orbax: seconds

    like = abstract_params(model)
    if shardings is not None:
      like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        like,
        shardings,
      )
    return restore_params(path, like)
  # Compared before gigabytes are read.
  _check_same(config_from_folder(os.fspath(path)), model, path)
  head = None
  if shardings is not None and model.value_head:
    trunk = dict(shardings["trunk"])
    head = trunk.pop("value_head")
    shardings = {**shardings, "trunk": trunk}
  params = load(path, shardings=shardings)[1]
  if model.value_head:
    zeros = jnp.zeros((model.embed_dim,), jnp.float32)
    params["trunk"]["value_head"] = (
      zeros if head is None else jax.device_put(zeros, head)
    )
  return params


def _has_adapters(path: str | os.PathLike) -> bool:
  """Returns whether a run's checkpoints are of a model with adapters."""
  from rlvr.infra.checkpoints import param_names

  return any(is_adapter(n.rpartition(".")[-1]) for n in param_names(path))


def _drawn_adapters(
  model: ModelConfig, key: Array, shardings: Params | None
) -> Params:
  """Returns a model's adapters as `init` draws them."""
  # Under jit, where the rest of what `init` draws is left out.
  draw = jax.jit(
    lambda key: adapters(init(model, key)),
    out_shardings=None if shardings is None else adapters(shardings),
  )
  return draw(key)


def _check_same(
  found: ModelConfig, model: ModelConfig, path: str | os.PathLike
) -> None:
  differing = [
    f"  {field.name}: {getattr(found, field.name)!r} there,"
    f" {getattr(model, field.name)!r} in this run"
    for field in dataclasses.fields(ModelConfig)
    if field.name not in _RUNS_OWN
    and getattr(found, field.name) != getattr(model, field.name)
  ]
  if differing:
    raise ValueError(
      f"INITIAL_PARAMS={os.fspath(path)!r} is another model than MODEL. Fields"
      " of ModelConfig that differ:\n"
      + "\n".join(differing)
      + "\nTake MODEL from it by --gin_file=gin/models/from_huggingface.gin"
    )
