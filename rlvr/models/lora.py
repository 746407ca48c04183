"""Low-rank adapters: what is trained, the base without them, both merged.

Adapters are parameters like others, beside the projection that they belong to:
"query_lora_a" and "query_lora_b" in a layer. What they compute and how they
start is in `layers`, their settings are `config.LoRA`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.models.config import ModelConfig
from rlvr.types import Array, Params


def is_adapter(name: str) -> bool:
  """Returns whether a parameter's own name is that of an adapter."""
  return name.endswith(("_lora_a", "_lora_b"))


def _is_trained(name: str) -> bool:
  # The value head is no part of the policy, and nothing else would teach it.
  return is_adapter(name) or name == "value_head"


def _select(tree: Any, keep: Callable[[str], bool]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  for name, node in tree.items():
    if not isinstance(node, dict):
      if keep(name):
        out[name] = node
    elif part := _select(node, keep):
      out[name] = part
  return out


def trained(tree: Any, config: ModelConfig) -> Any:
  """Returns the part of a tree like the parameters' that a run trains.

  Without adapters that is all of it, with them the adapters and the value head.

  Args:
    tree: dicts as of `init`, of arrays or anything that belongs to each.
    config: the model's shape.
  """
  return tree if config.lora is None else _select(tree, _is_trained)


def split_trained(tree: Any, config: ModelConfig) -> tuple[Any, Any]:
  """Returns (trained, frozen), which `joined` puts together again.

  Args:
    tree: dicts as of `init`, of arrays or anything that belongs to each.
    config: the model's shape.
  """
  if config.lora is None:
    return tree, {}
  return trained(tree, config), _select(
    tree, lambda name: not _is_trained(name)
  )


def joined(one: Any, other: Any) -> Any:
  """Returns one tree of two that share no leaf."""
  out = dict(one)
  for name, node in other.items():
    out[name] = joined(out[name], node) if name in out else node
  return out


def adapters(tree: Any) -> Any:
  """Returns the adapters' part of a tree like the parameters'."""
  return _select(tree, is_adapter)


def without_adapters(
  config: ModelConfig, params: Params
) -> tuple[ModelConfig, Params]:
  """Returns the base: its shape, and its parameters, which are not copied.

  Args:
    config: the model's shape.
    params: or another tree of dicts like theirs.
  """
  base = dataclasses.replace(config, lora=None)
  return base, _select(params, lambda name: not is_adapter(name))


def merge_lora(
  config: ModelConfig, params: Params
) -> tuple[ModelConfig, Params]:
  """Returns the model without adapters that computes the same.

      W' = W + (alpha / rank) · A B

  Args:
    config: the model's shape; without adapters both are returned as they are.
    params: its parameters.
  """
  lora = config.lora
  if lora is None:
    return config, params
  config, merged = without_adapters(config, params)
  layers = params["layers"]

  def product(a: Array, b: Array) -> Array:
    return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)

  for name in lora.projections:
    change = jax.vmap(product)(
      layers[f"{name}_lora_a"].astype(jnp.float32),
      layers[f"{name}_lora_b"].astype(jnp.float32),
    )
    weight = layers[name]
    merged["layers"][name] = (
      weight.astype(jnp.float32) + lora.scale * change
    ).astype(weight.dtype)
  return config, merged
