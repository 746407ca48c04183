"""Where each parameter lies: shape, logical axes, how it is cut, bytes.

    python -m rlvr.infra.shards --gin_file=gin/models/tiny.gin \\
      --mesh=data:2,fsdp:2,tensor:2

Nothing is allocated and no device is asked for: the mesh may be larger than the
machine. With the gin files of a whole run, the optimizer's state, the reference
model and the parameters as sampling has them are counted too.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

import gin
from rlvr import models, sharding
from rlvr.meshes import AXES, RULES, MeshShape, Rules, as_tuple, partition
from rlvr.models.precision import (
  AS_TRAINED,
  Precision,
  sampling_axes,
  sampling_params,
)


class Row(NamedTuple):
  """One parameter of the table."""

  name: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]  # logical
  cut: tuple[str, ...]  # of each dimension; "-": on no mesh axis
  bytes: int  # on each device
  not_cut: tuple[str, ...]  # "kv_heads=2 over tensor=4": doesn't divide


def _bytes(x: Any, spec: Any, mesh: Mesh | AbstractMesh) -> int:
  axes = [a for entry in spec for a in as_tuple(entry)]
  pieces = math.prod(mesh.shape[a] for a in axes)
  return math.prod(x.shape) * np.dtype(x.dtype).itemsize // pieces


def param_rows(
  config: models.ModelConfig,
  mesh: Mesh | AbstractMesh,
  rules: Rules = RULES,
) -> list[Row]:
  """Returns a row for each parameter, in the order of the tree.

  Args:
    config: the model's shape.
    mesh: from `make_mesh`, or an abstract one.
    rules: the table of rules.
  """
  rows = []
  names = jax.tree_util.tree_leaves_with_path(
    sharding.logical(config), is_leaf=lambda x: isinstance(x, sharding.Logical)
  )
  leaves = jax.tree.leaves(models.abstract_params(config))
  for (path, logical), leaf in zip(names, leaves, strict=True):
    spec = partition(logical.shape, logical.names, mesh, rules)
    not_cut = [
      f"{name}={size} over {axis}={mesh.shape[axis]}"
      for size, name, entry in zip(*logical, spec, strict=True)
      for axis in rules.axes(name)
      if axis not in as_tuple(entry) and mesh.shape[axis] > 1
    ]
    rows.append(
      Row(
        jax.tree_util.keystr(path, simple=True, separator="."),
        logical.shape,
        logical.names,
        tuple("+".join(as_tuple(entry)) or "-" for entry in spec),
        _bytes(leaf, spec, mesh),
        tuple(not_cut),
      )
    )
  return rows


def tree_bytes(tree: Any, shardings: Any) -> int:
  """Returns the bytes of a pytree on each device.

  Args:
    tree: abstract arrays; PRNG keys count as nothing.
    shardings: the same pytree of NamedShardings.
  """
  total = 0
  for x, s in zip(
    jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True
  ):
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      total += _bytes(x, s.spec, s.mesh)
  return total


def totals(
  config: models.ModelConfig,
  mesh: Mesh | AbstractMesh,
  *,
  rules: Rules = RULES,
  sampling_rules: Rules | None = None,
  optimizer: optax.GradientTransformation | None = None,
  use_reference: bool = False,
  precision: Precision = AS_TRAINED,
) -> dict[str, int]:
  """Returns bytes on each device, of everything that mirrors the parameters.

  Args:
    config: the model's shape.
    mesh: from `make_mesh`, or an abstract one.
    rules: the table of rules.
    sampling_rules: the same while sampling, None: as in training. Where they
      or what they are kept as differ, sampling has a copy of its own.
    optimizer: None leaves its state out.
    use_reference: whether there is a reference model.
    precision: of the model that is sampled from.
  """
  params = models.abstract_params(config)
  placed = sharding.param_shardings(config, mesh, rules)
  out = {"parameters": (size := tree_bytes(params, placed))}
  if optimizer is not None:
    trained = models.trained(params, config)
    where = models.trained(placed, config)
    state = jax.eval_shape(optimizer.init, trained)
    out["gradients"] = tree_bytes(trained, where)
    out["optimizer state"] = tree_bytes(
      state,
      sharding.optimizer_shardings(state, trained, optimizer, where, mesh),
    )
  # With adapters the reference is the same weights without them.
  if use_reference and config.lora is None:
    out["reference model"] = size
  cast = jax.eval_shape(
    lambda p: sampling_params(p, precision.config(config), precision), params
  )
  axes = jax.tree.map(
    lambda x, names: sharding.Logical(x.shape, names),
    cast,
    sampling_axes(models.logical_axes(config), cast),
  )
  sampled = sharding.param_shardings(axes, mesh, sampling_rules or rules)
  if cast != params or sampled != placed:
    out["parameters as sampled with"] = tree_bytes(cast, sampled)
  return out


def summary(rows: Sequence[Row]) -> str:
  """Returns which share of the parameters is cut, and what isn't, in words."""
  unused = sorted({text for row in rows for text in row.not_cut})
  whole = sum(set(row.cut) == {"-"} for row in rows)
  text = f"{len(rows) - whole} of {len(rows)} arrays cut"
  return text + (f"; not divisible: {', '.join(unused)}" if unused else "")


def table(rows: Sequence[Row]) -> str:
  """Returns the rows as text, a line each."""
  cells = [("parameter", "shape", "logical axes", "cut over", "bytes/device")]
  cells += [
    (
      row.name,
      " x ".join(map(str, row.shape)),
      ", ".join(row.axes),
      ", ".join(row.cut),
      f"{row.bytes:,}",
    )
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  notes = ["", *(", ".join(row.not_cut) for row in rows)]
  lines = []
  for line, note in zip(cells, notes, strict=True):
    texts = [c.ljust(w) for c, w in zip(line, widths, strict=True)]
    texts[-1] = line[-1].rjust(widths[-1])
    note = f"  not divisible: {note}" if note else ""
    lines.append("  ".join(texts) + note)
  return "\n".join(lines)


def parse_mesh(text: str) -> AbstractMesh:
  """Returns the mesh that a command line names, "data:2,fsdp:2,tensor:2".

  Raises:
    ValueError: another axis, one twice, or a size that is no number above 0.
  """
  sizes: dict[str, int] = {}
  for part in text.split(","):
    name, _, size = part.partition(":")
    if name not in AXES or not size.isdecimal() or int(size) < 1:
      raise ValueError(
        f"--mesh={text}: {part!r} is no axis with a size: write"
        " data:2,fsdp:2,tensor:2"
      )
    if name in sizes:
      raise ValueError(f"--mesh={text}: {name} is given twice")
    sizes[name] = int(size)
  return AbstractMesh(MeshShape(**sizes).over(math.prod(sizes.values())), AXES)


def _bound(*names: str) -> Any:
  """Returns the value of the first parameter that gin has; None without one."""
  for name in names:
    try:
      value = gin.query_parameter(name)
    except ValueError:
      continue
    if isinstance(value, gin.config.ConfigurableReference):
      return value.scoped_configurable_fn()
    return value
  return None


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table; returns the exit status."""
  from rlvr.main import load_config, split_bindings

  parser = argparse.ArgumentParser(prog="python -m rlvr.infra.shards")
  parser.add_argument("--gin_file", action="append", required=True)
  parser.add_argument("--mesh", required=True, help="data:2,fsdp:2,tensor:2")
  rest, bindings = split_bindings(sys.argv[1:] if argv is None else argv)
  args = parser.parse_args(rest)
  try:
    mesh = parse_mesh(args.mesh)
    load_config(args.gin_file, bindings)
    config = _bound("rlvr.train.train.model", "%MODEL")
    if config is None:
      raise ValueError("no model: give a --gin_file of gin/models/")
    loop = _bound("rlvr.train.train.loop")
    rules = _bound("rlvr.train.train.rules") or RULES
    rows = param_rows(config, mesh, rules)
    print(table(rows))
    found = totals(
      config,
      mesh,
      rules=rules,
      sampling_rules=_bound("rlvr.train.train.sampling_rules"),
      optimizer=None if loop is None else loop.optimizer,
      use_reference=loop is not None and loop.use_reference,
      precision=getattr(loop, "precision", AS_TRAINED),
    )
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"\n{models.num_params(config):,} parameters on {mesh.size} devices")
  print(summary(rows))
  for name, size in found.items():
    print(f"{name + ', bytes on each device:':46}{size:>18,}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
