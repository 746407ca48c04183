"""The mesh of devices, the table of rules, and constraints by logical names.

    mesh = make_mesh(MeshShape(data=2, fsdp=-1, tensor=4))
    with use(mesh):  # around what is jitted
      x = constrain(x, "batch", None, "act_heads")

Three mesh axes: `data` copies the parameters, `fsdp` cuts parameters and batch
(a layer's weights are gathered where it runs), `tensor` cuts heads, MLP and
vocabulary. Outside `use` a constraint is the identity, so that code in a
notebook needs no mesh.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from rlvr.types import Array

AXES = ("data", "fsdp", "tensor")
MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis; -1 takes the rest of them, at one axis.

  Raises:
    ValueError: a size that is neither -1 nor at least 1, or -1 twice.
  """

  data: int = 1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = dataclasses.astuple(self)
    if any(n < 1 and n != -1 for n in sizes) or sizes.count(-1) > 1:
      raise ValueError(
        f"{self}: give each axis 1 or more, or -1 (the rest of the devices) to"
        " one of them"
      )

  def over(self, num_devices: int) -> tuple[int, int, int]:
    """Returns the sizes of (data, fsdp, tensor), -1 filled in.

    Args:
      num_devices: how many there are.

    Raises:
      ValueError: the sizes don't multiply to that number.
    """
    data, fsdp, tensor = dataclasses.astuple(self)
    given = math.prod(n for n in (data, fsdp, tensor) if n != -1)
    rest = num_devices // given
    data, fsdp, tensor = (rest if n == -1 else n for n in (data, fsdp, tensor))
    if data * fsdp * tensor != num_devices:
      sizes = " x ".join(
        f"{name}={size}"
        for name, size in zip(AXES, dataclasses.astuple(self), strict=True)
      )
      raise ValueError(
        f"MeshShape {sizes} doesn't cover {num_devices} devices: the sizes"
        f" given multiply to {given}. Change DATA, FSDP or TENSOR; -1 at one of"
        " them takes the rest; 1 x 1 x 1 is one device of this host"
      )
    return data, fsdp, tensor


ONE_DEVICE = MeshShape()


def make_mesh(
  shape: MeshShape, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh (data, fsdp, tensor).

  Args:
    shape: sizes. All 1 is the first device, however many there are.
    devices: None for all of the run's.

  Raises:
    ValueError: the sizes don't multiply to the number of devices.
  """
  found = list(jax.devices() if devices is None else devices)
  if shape == ONE_DEVICE and jax.process_count() == 1:
    found = found[:1]
  sizes = shape.over(len(found))
  types = (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=found)
  except NotImplementedError:
    # No mesh axis is made of whole axes of the slice: 8 x 2 on 4 x 4 chips.
    grid = mesh_utils.create_device_mesh(
      sizes, found, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=types)


def as_tuple(axes: MeshAxes) -> tuple[str, ...]:
  """Returns the mesh axes as a tuple."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """The table: on which mesh axes each logical axis is cut, None: on none.

  A dimension that its mesh axes don't divide is cut over the first of them that
  do, or not at all; `rlvr.infra.shards` prints what became of each parameter.
  """

  # Parameters and what mirrors them.
  layers: MeshAxes = None  # scanned
  embed: MeshAxes = "fsdp"
  heads: MeshAxes = "tensor"
  kv_heads: MeshAxes = "tensor"
  head_dim: MeshAxes = None
  mlp: MeshAxes = "tensor"
  vocab: MeshAxes = "tensor"
  rank: MeshAxes = None  # of adapters: too small to be worth a cut
  # Activations.
  batch: MeshAxes = ("data", "fsdp")  # prompts, responses
  lookup_batch: MeshAxes = "data"  # of embeddings, while cut like `embed`
  act_embed: MeshAxes = None
  act_heads: MeshAxes = "tensor"
  act_kv_heads: MeshAxes = "tensor"
  act_mlp: MeshAxes = "tensor"
  act_vocab: MeshAxes = "tensor"

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if bad := set(as_tuple(getattr(self, field.name))) - set(AXES):
        raise ValueError(
          f"Rules.{field.name}={getattr(self, field.name)!r}: {sorted(bad)} is"
          f" no mesh axis; there are {AXES}"
        )

  def axes(self, name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes of a logical name.

    Raises:
      ValueError: the table has no such name.
    """
    if name is None:
      return ()
    if name not in (known := {f.name for f in dataclasses.fields(self)}):
      raise ValueError(
        f"logical axis {name!r} isn't in the table of rules, which has"
        f" {sorted(known)}: add it to rlvr.meshes.Rules"
      )
    return as_tuple(getattr(self, name))


RULES = Rules()


def partition(
  shape: Sequence[int],
  names: Sequence[str | None],
  mesh: Mesh | AbstractMesh,
  rules: Rules = RULES,
) -> PartitionSpec:
  """Returns how an array is cut: its logical axes by the rules.

  Args:
    shape: the array's.
    names: logical axis of each dimension; those behind the last are not cut.
    mesh: from `make_mesh`.
    rules: the table.

  Raises:
    ValueError: more names than dimensions, or one that the table lacks.
  """
  if len(names) > len(shape):
    raise ValueError(f"{len(names)} logical axes {names} for shape {shape}")
  used: set[str] = set()
  out: list[tuple[str, ...] | str | None] = []
  for size, name in zip(shape, names, strict=False):
    taken: list[str] = []
    for axis in rules.axes(name):
      ways = math.prod(mesh.shape[a] for a in (*taken, axis))
      # An axis cuts one dimension of an array only.
      if axis in used or size % ways:
        break
      taken.append(axis)
    used.update(taken)
    out.append(taken[0] if len(taken) == 1 else tuple(taken) or None)
  return PartitionSpec(*out)


class _Ambient(NamedTuple):
  mesh: Mesh
  rules: Rules


# JAX keys its caches on this value: a function that was traced under one mesh
# is traced again under another.
_ambient = jax.make_user_context(None)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
  """Makes `mesh` and `rules` those of `constrain` in this thread."""
  with _ambient(_Ambient(mesh, rules)):
    yield


@contextlib.contextmanager
def use_rules(rules: Rules | None) -> Iterator[None]:
  """Changes the rules, where there is a mesh; None leaves them."""
  found = _ambient.value
  if found is None or rules is None:
    yield
    return
  with use(found.mesh, rules):
    yield


def on_mesh(
  function: Callable[..., Any], mesh: Mesh, rules: Rules = RULES
) -> Callable[..., Any]:
  """Returns the function with this mesh and these rules around it.

  For `jax.jit`: they are entered while it is traced, so that whoever calls it
  needs no mesh.

  Args:
    function: takes positional arguments.
    mesh: from `make_mesh`.
    rules: the table.
  """

  @functools.wraps(function)
  def traced(*args):
    with use(mesh, rules):
      return function(*args)

  return traced


def ambient_mesh() -> Mesh | None:
  """Returns the mesh of `use`, None outside of it."""
  return None if _ambient.value is None else _ambient.value.mesh


def constrain(x: Array, *names: str | None) -> Array:
  """Returns x, cut over the ambient mesh as its logical axes say.

  Args:
    x: any array, traced or not.
    *names: logical axis of each dimension, None for one that isn't cut; those
      behind the last name aren't either.
  """
  if (found := _ambient.value) is None:
    return x
  spec = partition(x.shape, names, found.mesh, found.rules)
  return jax.lax.with_sharding_constraint(x, NamedSharding(found.mesh, spec))


def constrain_tree(tree: Any, axes: Any) -> Any:
  """Returns the arrays, each constrained by its tuple of logical axes.

  Args:
    tree: pytree of arrays.
    axes: the same pytree with tuples of names in the place of arrays.
  """
  if _ambient.value is None:
    return tree
  return jax.tree.map(lambda x, names: constrain(x, *names), tree, axes)


def constrain_rows(tree: Any, *before: str | None) -> Any:
  """Returns the arrays, each cut as a batch along one axis.

  Args:
    tree: pytree of arrays.
    *before: logical axes of the dimensions before the batch.
  """
  return jax.tree.map(lambda x: constrain(x, *before, "batch"), tree)


def num_shards(name: str, size: int) -> int:
  """Returns into how many pieces the ambient mesh cuts a dimension; else 1.

  Args:
    name: logical axis.
    size: of the dimension.
  """
  if (found := _ambient.value) is None:
    return 1
  spec = partition((size,), (name,), found.mesh, found.rules)
  return math.prod(found.mesh.shape[a] for a in as_tuple(spec[0]))


def on_shards(
  function: Callable[..., Array], names: Sequence[Sequence[str | None]]
) -> Callable[..., Array]:
  """Returns the function run on each device's pieces of its arguments.

  For what XLA can't cut, such as Pallas kernels. The result is cut as the first
  argument is. Without an ambient mesh it is the function itself.

  Args:
    function: takes arrays, returns one of the first's shape.
    names: logical axes of each argument, as in `constrain`.
  """
  if (found := _ambient.value) is None:
    return function

  def call(*args):
    specs = tuple(
      partition(x.shape, axes, found.mesh, found.rules)
      for x, axes in zip(args, names, strict=True)
    )
    return jax.shard_map(
      function,
      mesh=found.mesh,
      in_specs=specs,
      out_specs=specs[0],
      check_vma=False,  # kernels don't say what their results vary over
    )(*args)

  return call


def devices_text(mesh: Mesh | None) -> str:
  """Returns how many devices of which kind, and how the mesh has them."""
  mesh = make_mesh(ONE_DEVICE) if mesh is None else mesh
  kind = mesh.devices.flat[0].device_kind
  if mesh.size == 1:
    return f"1 x {kind}"
  sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
  return f"{mesh.size} x {kind} ({sizes})"
