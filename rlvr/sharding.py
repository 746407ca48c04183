"""Where each array of a run lies: parameters, state and batches on a mesh.

The mesh and the rules are `rlvr.meshes`; here they meet the model and the
optimizer.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rlvr import models
from rlvr.infra import exchange
from rlvr.meshes import (
  AXES,
  ONE_DEVICE,
  RULES,
  MeshShape,
  Rules,
  ambient_mesh,
  constrain,
  make_mesh,
  on_mesh,
  partition,
  use,
)
from rlvr.types import TrainState

__all__ = [
  "AXES",
  "RULES",
  "MeshShape",
  "Placement",
  "Rules",
  "abstract",
  "ambient_mesh",
  "batch_sharding",
  "check_rows",
  "constrain",
  "logical",
  "make_mesh",
  "on_mesh",
  "optimizer_shardings",
  "param_shardings",
  "partition",
  "placement",
  "put_batch",
  "replicated",
  "state_shardings",
  "use",
  "ways",
]


class Logical(NamedTuple):
  """A parameter's shape and logical axes."""

  shape: tuple[int, ...]
  names: tuple[str, ...]


def logical(config: models.ModelConfig) -> Any:
  """Returns the model's parameters as a pytree of `Logical`."""
  return jax.tree.map(
    lambda x, names: Logical(x.shape, names),
    models.abstract_params(config),
    models.logical_axes(config),
  )


def param_shardings(
  config_or_axes: Any, mesh: Mesh | AbstractMesh, rules: Rules = RULES
) -> Any:
  """Returns the parameters' NamedShardings.

  Args:
    config_or_axes: a ModelConfig, or a pytree of `Logical`.
    mesh: from `make_mesh`.
    rules: the table.
  """
  tree = config_or_axes
  if isinstance(tree, models.ModelConfig):
    tree = logical(tree)
  return jax.tree.map(
    lambda p: NamedSharding(mesh, partition(p.shape, p.names, mesh, rules)),
    tree,
    is_leaf=lambda x: isinstance(x, Logical),
  )


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
  """Returns the sharding of arrays whose first axis is prompts or responses."""
  return NamedSharding(mesh, PartitionSpec(rules.axes("batch")))


def optimizer_shardings(
  opt_state: Any,
  params: Any,
  optimizer: optax.GradientTransformation,
  shardings: Any,
  mesh: Mesh | AbstractMesh,
) -> Any:
  """Returns the optimizer state's NamedShardings, in its structure.

  Args:
    opt_state: or its abstract form.
    params: those that are trained, or their abstract form.
    optimizer: whose state it is.
    shardings: theirs.
    mesh: from `make_mesh`.
  """
  whole = replicated(mesh)

  def mirrored(leaf, param, sharding):
    # Factored moments belong to a parameter without having its shape.
    return sharding if leaf.shape == param.shape else whole

  return optax.tree_utils.tree_map_params(
    optimizer,
    mirrored,
    opt_state,
    params,
    shardings,
    transform_non_params=lambda _: whole,
  )


def state_shardings(
  state: TrainState,
  config: models.ModelConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  rules: Rules = RULES,
) -> TrainState:
  """Returns the state's NamedShardings, in its structure.

  Optimizer state that mirrors a parameter is cut like it; everything else
  (counts, factored moments, the chain's state, keys) is replicated.

  Args:
    state: the run's state or its abstract form.
    config: the model's shape.
    optimizer: whose state it is.
    mesh: from `make_mesh`.
    rules: the table.
  """
  whole = replicated(mesh)
  params = param_shardings(config, mesh, rules)
  placed: dict[str, Any] = {"step": whole, "key": whole}
  return TrainState(
    params=params,
    opt_state=optimizer_shardings(
      state.opt_state,
      models.trained(state.params, config),
      optimizer,
      models.trained(params, config),
      mesh,
    ),
    chain_state=jax.tree.map(lambda _: whole, state.chain_state),
    **placed,
  )


class Placement(NamedTuple):
  """Where everything of a run lies."""

  mesh: Mesh
  rules: Rules
  state: TrainState  # of NamedShardings

  @property
  def params(self) -> Any:
    """Of the policy and of the reference model."""
    return self.state.params

  @property
  def batch(self) -> NamedSharding:
    """Of arrays that begin with prompts or responses."""
    return batch_sharding(self.mesh, self.rules)

  @property
  def whole(self) -> NamedSharding:
    """Of what every device holds."""
    return replicated(self.mesh)

  def jit(self, function: Callable[..., Any], **settings: Any) -> Any:
    """Returns the function jitted, its constraints those of this mesh.

    Args:
      function: as `jax.jit` takes it.
      **settings: those of `jax.jit`.
    """
    return jax.jit(on_mesh(function, self.mesh, self.rules), **settings)

  def abstract(self, function: Callable[..., Any], *args: Any) -> Any:
    """Returns the shapes of what the function gives on this mesh.

    Args:
      function: as `jax.eval_shape` takes it.
      *args: arrays or shapes.
    """
    return jax.eval_shape(on_mesh(function, self.mesh, self.rules), *args)


def placement(
  state: TrainState,
  config: models.ModelConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh | None = None,
  rules: Rules = RULES,
) -> Placement:
  """Returns where everything of a run lies.

  Args:
    state: the run's state or its abstract form.
    config: the model's shape.
    optimizer: whose state it is.
    mesh: from `make_mesh`; None is one device.
    rules: the table.
  """
  mesh = make_mesh(ONE_DEVICE) if mesh is None else mesh
  shardings = state_shardings(state, config, optimizer, mesh, rules)
  return Placement(mesh, rules, shardings)


def abstract(tree: Any, shardings: Any) -> Any:
  """Returns shapes and dtypes with shardings: what a restore is told.

  Args:
    tree: pytree of arrays or their abstract forms.
    shardings: the same pytree of NamedShardings.
  """
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def put_batch(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
  """Returns the arrays on the mesh, their first axis cut as a batch.

  Args:
    tree: pytree of arrays on the host or on devices; None stays.
    mesh: from `make_mesh`.
    rules: the table.
  """
  return exchange.put(tree, batch_sharding(mesh, rules))


def ways(name: str, mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> int:
  """Returns over how many devices a logical axis is cut, where it divides."""
  return math.prod(mesh.shape[axis] for axis in rules.axes(name))


def check_rows(rows: int, name: str, mesh: Mesh, rules: Rules = RULES) -> None:
  """Checks that a batch divides over the mesh.

  Args:
    rows: prompts of the batch.
    name: what a person changes.
    mesh: from `make_mesh`.
    rules: the table.

  Raises:
    ValueError: they don't divide.
  """
  if rows % (parts := ways("batch", mesh, rules)):
    axes = rules.axes("batch")
    sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
    raise ValueError(
      f"{name}={rows} prompts don't divide over {parts} devices ({sizes}): make"
      f" {name} a multiple of {parts}, or give TENSOR more of the devices"
    )
