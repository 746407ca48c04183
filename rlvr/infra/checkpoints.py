"""Checkpoints of a run: all of its state, asynchronous, whole or not at all.

A checkpoint is two items: `state`, the arrays, and `host`, what the host keeps
as JSON (data position, figures, fingerprint of the configuration). Orbax writes
both under a temporary name and renames at the end, so a killed run leaves the
checkpoints before it as they were.

The arrays are stored flat, each under its path in the tree
("params.layers.attention.query"). So a checkpoint can be compared with the
model of a run by its metadata, before anything is read, and a part of it (the
parameters) can be read by a program that has no optimizer.
"""

import contextlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

State = Any
_SHOWN = 5  # differing arrays that an error lists
# What a person changes when a part of the state doesn't fit.
_HINTS = {
  "params": "the model (gin/models/*.gin, its sizes and heads)",
  "opt_state": "the optimizer (`train.optimizer`)",
  "chain_state": "the scoring chain (gin/methods/*.gin)",
}


class Checkpoints:
  """The checkpoints of one run."""

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep: int,
    keep_best: int,
    best_metric: str,
    best_mode: Literal["max", "min"] = "max",
    save_every: int,
  ):
    """Opens the folder, makes it where it is missing, removes torn saves.

    Args:
      folder: `RunFolder.checkpoints`, a path or a bucket address. All processes
        of a run must see the same one.
      keep: how many of the newest checkpoints are kept, at least 1.
      keep_best: how many of the best are kept besides; 0 for none.
      best_metric: name in `save`'s metrics by which they are ranked.
      best_mode: whether the highest or the lowest is best.
      save_every: steps between checkpoints.

    Raises:
      ValueError: a count is too small or the mode unknown; or a checkpoint's
        figures are damaged.
    """
    for name, value, least in (
      ("keep", keep, 1),
      ("keep_best", keep_best, 0),
      ("save_every", save_every, 1),
    ):
      if value < least:
        raise ValueError(f"Checkpoints.{name}={value}: give at least {least}")
    if best_mode not in ("max", "min"):
      raise ValueError(
        f"Checkpoints.best_mode={best_mode!r}: give 'max' or 'min'"
      )
    sign = 1.0 if best_mode == "max" else -1.0

    def rank(metrics: Mapping[str, float]) -> float:
      value = metrics.get(best_metric)
      if value is None or not np.isfinite(value):
        return -np.inf
      return sign * value

    newest = checkpoint_managers.LatestN(keep)
    best = checkpoint_managers.BestN(
      get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False
    )
    self._save_every = save_every
    self._folder = _absolute(folder)
    with _damaged_figures_named(self._folder):
      self._manager = _manager(
        self._folder,
        # The policies say what stays. `best_fn` is given as well because Orbax
        # stores the metrics, for the next process to rank by, only with it.
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
          [newest, best]
        ),
        best_fn=rank,
        save_interval_steps=1,  # `save` decides by itself which steps are due
        cleanup_tmp_directories=True,
      )

  def due(self, step: int) -> bool:
    """Whether `save` saves at this step."""
    return step % self._save_every == 0

  def save(
    self,
    step: int,
    state: State,
    host: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    *,
    force: bool = False,
  ) -> bool:
    """Saves the state if the step is due; returns whether it did.

    Returns as soon as the arrays are copied off the device (they may be donated
    then); writing goes on behind. An error of the writing is raised by the next
    `save`, `wait` or `close`.

    Args:
      step: updates done; later than every checkpoint in the folder (after
        restoring an earlier one, see `delete_after`).
      state: pytree of arrays, numbers and PRNG keys.
      host: JSON data: whatever else is needed to go on.
      metrics: figures of this checkpoint; where `best_metric` is missing or not
        finite, it ranks last.
      force: save though the step is not due, as at the end of a run. A step
        that is saved already is left as it is.
    """
    if not (force or self.due(step)) or step in self._manager.all_steps():
      return False
    figures = {k: float(v) for k, v in (metrics or {}).items()}
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(_flatten(state, _to_array)),
      host=ocp.args.JsonSave(dict(host)),
    )
    return bool(
      self._manager.save(step, args=args, metrics=figures, force=True)
    )

  def restore(
    self, like: State, step: int | None = None
  ) -> tuple[State, dict[str, Any]]:
    """Returns the state and the host's data of a checkpoint.

    Args:
      like: the run's own initial state, or its abstract form
        (`jax.ShapeDtypeStruct` with shardings): it says structure, shapes,
        dtypes, and where each array is put.
      step: which checkpoint; None is the newest.

    Raises:
      ValueError: no such checkpoint; it is damaged; or it is one of another
        model, optimizer or chain: the error lists the first arrays that differ.
    """
    self.wait()  # the newest may still be on its way to the disk
    step = _find(self._manager, self._folder, step)
    wanted = _flatten(like, _abstract)
    with _damage_named(self._manager, self._folder, step):
      found = _metadata(self._manager, step)
    _check_same(wanted, found, f"checkpoint {step} in {self._folder}")
    with _damage_named(self._manager, self._folder, step):
      read = _read(self._manager, step, wanted, host=ocp.args.JsonRestore())
      return _unflatten(like, read["state"]), dict(read["host"])

  def latest_step(self) -> int | None:
    """Returns the newest checkpoint's step; None without one."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the best checkpoint that is kept; None without."""
    return self._manager.best_step()

  def all_steps(self) -> list[int]:
    """Returns the steps of all checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def delete_after(self, step: int) -> None:
    """Deletes later checkpoints, for a run that goes on from an earlier one."""
    self.wait()
    for later in self.all_steps():
      if later > step:
        self._manager.delete(later)

  def wait(self) -> None:
    """Waits until what was saved is on the disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go."""
    self.wait()
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def restore_params(
  folder: str | os.PathLike, like: State, step: int | None = None
) -> State:
  """Returns the parameters in another run's checkpoint, to start a run from.

  Args:
    folder: `RunFolder.checkpoints` of that run; nothing in it is changed.
    like: parameters or their abstract form: structure, shapes, dtypes (arrays
      are cast to them) and shardings.
    step: which checkpoint; None is the newest.

  Raises:
    ValueError: no such checkpoint; it is damaged; the parameters are another
      model's; or one isn't finite.
  """
  path = _existing(folder)
  with _manager(path, read_only=True, save_interval_steps=0) as manager:
    step = _find(manager, path, step)
    wanted = _flatten({"params": like}, _abstract)
    with _damage_named(manager, path, step):
      found = _metadata(manager, step)
    found = {k: v for k, v in found.items() if _top(k) == "params"}
    # Another dtype is fine here: float32 weights may start a bfloat16 run.
    _check_same(wanted, found, f"checkpoint {step} in {path}", dtypes=False)
    with _damage_named(manager, path, step):
      read = _read(manager, step, wanted)["state"]
    _check_finite(read, f"checkpoint {step} in {path}")
  return _unflatten({"params": like}, read)["params"]


def param_names(
  folder: str | os.PathLike, step: int | None = None
) -> list[str]:
  """Returns the names of the parameters in a run's checkpoint, sorted.

  Args:
    folder: `RunFolder.checkpoints` of that run; nothing in it is changed.
    step: which checkpoint; None is the newest.

  Raises:
    ValueError: no such checkpoint, or it is damaged.
  """
  path = _existing(folder)
  with _manager(path, read_only=True, save_interval_steps=0) as manager:
    step = _find(manager, path, step)
    with _damage_named(manager, path, step):
      found = _metadata(manager, step)
  return sorted(
    name.partition(".")[2] for name in found if _top(name) == "params"
  )


def _existing(folder: str | os.PathLike) -> str:
  path = _absolute(folder)
  if "://" not in path and not os.path.isdir(path):
    raise ValueError(f"no folder {path}: give the checkpoints of a run")
  return path


def _manager(folder: str, **options: Any) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    folder,
    options=ocp.CheckpointManagerOptions(**options),
    item_handlers={
      "state": ocp.PyTreeCheckpointHandler(),
      "host": ocp.JsonCheckpointHandler(),
    },
  )


def _find(manager: ocp.CheckpointManager, folder: str, step: int | None) -> int:
  steps = sorted(manager.all_steps())
  if not steps:
    raise ValueError(f"no checkpoint in {folder}: check the folder")
  if step is not None and step not in steps:
    raise ValueError(
      f"no checkpoint of step {step} in {folder}; there are {steps}"
    )
  return steps[-1] if step is None else step


@contextlib.contextmanager
def _damaged_figures_named(folder: str) -> Iterator[None]:
  """Names the file of figures that JSON can't be read from."""
  try:
    yield
  except json.JSONDecodeError as error:
    for file in sorted(epath.Path(folder).glob("*/metrics/metrics")):
      try:
        json.loads(file.read_text())
      except ValueError:
        raise ValueError(
          f"the figures of a checkpoint can't be read ({error}): delete {file};"
          " the checkpoint stays good, but counts as the worst"
        ) from error
    raise


@contextlib.contextmanager
def _damage_named(
  manager: ocp.CheckpointManager, folder: str, step: int
) -> Iterator[None]:
  """Makes one line of whatever the libraries say of a damaged checkpoint."""
  try:
    yield
  except (
    *(PermissionError, ConnectionError, TimeoutError, MemoryError),
    jax.errors.JaxRuntimeError,  # a device's memory
  ):
    raise  # deleting the checkpoint would be no help
  # Orbax and TensorStore raise anything, up to a bare Exception.
  except Exception as error:
    _drop_unfinished_reads()
    others = [other for other in manager.all_steps() if other != step]
    raise ValueError(
      f"checkpoint {step} in {folder} can't be read ({_first_line(error)}): "
      + (
        f"delete it to go on from {max(others)}"
        if others
        else "there is no other"
      )
    ) from error


def _drop_unfinished_reads() -> None:
  """Keeps Python from printing in full each read that was under way as well.

  asyncio logs those whose result nobody asked for, and the interpreter those
  that are left behind when it ends.
  """
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  show = sys.unraisablehook

  def hook(unraisable):
    late = "Event loop is closed" in str(unraisable.exc_value)
    if not late and not inspect.iscoroutine(unraisable.object):
      show(unraisable)

  sys.unraisablehook = hook


def _first_line(error: BaseException) -> str:
  """Returns what was wrong first, in at most 160 characters."""
  while error.__cause__ is not None:
    error = error.__cause__
  text = " ".join(str(error).split()) or type(error).__name__
  return text if len(text) <= 160 else text[:157] + "..."


def _metadata(
  manager: ocp.CheckpointManager, step: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shape and dtype of each array in the checkpoint, by path."""
  state = manager.item_metadata(step)["state"]
  if state is None:
    raise ValueError("state/_METADATA is missing")
  tree = state.tree
  return {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in tree.items()
  }


def _read(
  manager: ocp.CheckpointManager, step: int, wanted: dict[str, Any], **others
):
  state = ocp.args.PyTreeRestore(
    item=wanted,
    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    partial_restore=True,
  )
  return manager.restore(step, args=ocp.args.Composite(state=state, **others))


def _check_same(
  wanted: Mapping[str, Any],
  found: Mapping[str, Any],
  where: str,
  *,
  dtypes: bool = True,
) -> None:
  """Raises ValueError with the first arrays that differ and what to change."""

  def text(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"

  differing = {}
  for name in sorted({*wanted, *found}):
    want, have = wanted.get(name), found.get(name)
    if want is None:
      differing[name] = f"{text(have)} there, absent in this run"
    elif have is None:
      differing[name] = f"absent there, {text(want)} in this run"
    elif want.shape != have.shape or (dtypes and want.dtype != have.dtype):
      differing[name] = f"{text(have)} there, {text(want)} in this run"
  if not differing:
    return
  lines = [f"  {k}: {v}" for k, v in list(differing.items())[:_SHOWN]]
  if len(differing) > _SHOWN:
    lines.append(f"  and {len(differing) - _SHOWN} more")
  parts = dict.fromkeys(_top(name) for name in differing)
  change = ", ".join(_HINTS.get(part, f"what makes `{part}`") for part in parts)
  raise ValueError(
    f"{where} belongs to another configuration. Arrays that differ"
    f" ({len(differing)} of {len({*wanted, *found})}):\n"
    + "\n".join(lines)
    + f"\nGive the run the configuration of the checkpoint: {change}; or give"
    " another run_dir"
  )


def _check_finite(arrays: Mapping[str, Any], where: str) -> None:
  """Raises ValueError with the first array that holds NaN or infinity."""

  @jax.jit
  def all_finite(arrays):
    return {name: jnp.isfinite(x).all() for name, x in arrays.items()}

  finite = jax.device_get(all_finite(dict(arrays)))
  bad = sorted(name for name, good in finite.items() if not good)
  if bad:
    raise ValueError(
      f"{where}: {bad[0]} isn't finite"
      + (f" ({len(bad)} arrays aren't)" if bad[1:] else "")
      + ": give an earlier checkpoint, or another run's"
    )


def _top(name: str) -> str:
  return name.split(".", 1)[0]


def _absolute(folder: str | os.PathLike) -> str:
  text = os.fspath(folder)
  return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _flatten(tree: State, leaf_fn) -> dict[str, Any]:
  """Returns the leaves by path, each through `leaf_fn`."""
  flat: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if name in flat:
      raise ValueError(
        f"two arrays of the state are called {name!r}: rename a key (keys must"
        " not hold dots that repeat another path)"
      )
    flat[name] = leaf_fn(leaf)
  return flat


def _unflatten(like: State, flat: Mapping[str, Any]) -> State:
  """Returns `flat`'s arrays in the structure of `like`, keys made keys again."""

  def restore(path, leaf):
    value = flat[jax.tree_util.keystr(path, simple=True, separator=".")]
    if _is_key(leaf):
      return jax.random.wrap_key_data(value, impl=_key_impl(leaf))
    if isinstance(leaf, bool | int | float):
      return type(leaf)(value)
    return value

  return jax.tree_util.tree_map_with_path(restore, like)


def _is_key(leaf: Any) -> bool:
  dtype = getattr(leaf, "dtype", None)
  return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> Any:
  """Returns the key's generator; tracing lets an abstract key tell it too."""
  found = []
  jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
  return found[0]


def _to_array(leaf: Any) -> Any:
  """Returns the leaf as Orbax stores it: keys as their data."""
  if _is_key(leaf):
    return jax.random.key_data(leaf)
  return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _abstract(leaf: Any) -> Any:
  """Returns what the restored array is to be like: shape, dtype, placement."""
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return np.asarray(leaf)  # restored as NumPy
  data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
  # A key's data has one axis more than the key, behind those that are sharded.
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
