"""Arrays between several hosts: whole ones to shards, own rows to whole ones.

Every process runs the same program on global arrays, of which it holds some
shards. What a host decides from data (which groups stay, which prompts come
next) must be decided from the whole data, so that all decide the same.

With one process these functions are what `jax.device_put` and `jax.device_get`
are.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding

from rlvr.infra.hosts import current
from rlvr.meshes import AXES
from rlvr.types import Signals


def put(tree: Any, sharding: Sharding) -> Any:
  """Returns the arrays as global ones; each host gives its own shards.

  Args:
    tree: pytree of arrays on the host, the same on all, or global arrays, which
      are moved; None stays.
    sharding: of each.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
      x.dtype, jax.dtypes.prng_key
    ):
      data = one(jax.random.key_data(x))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

  return jax.tree.map(one, tree)


def whole(tree: Any) -> Any:
  """Returns the arrays whole, in NumPy (keys stay keys), on every host.

  All hosts call this with the same arrays: where a host lacks shards, the
  devices exchange them.

  Args:
    tree: pytree of arrays.
  """

  def one(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = jax.device_get(one(jax.random.key_data(x)))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if x.is_fully_replicated:
      return x.addressable_data(0)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.device_get(jax.tree.map(one, tree))


def begin_whole(tree: Any, replicated: Sharding) -> Any:
  """Returns the arrays, on their way to every host; doesn't wait for them.

  `whole` then takes them without an exchange, so that programs which are
  dispatched in between don't stand before it in the devices' queues. With one
  process nothing moves.

  Args:
    tree: pytree of arrays.
    replicated: over all devices of the mesh.
  """

  def one(x):
    if (
      not isinstance(x, jax.Array)
      or x.is_fully_addressable
      or x.is_fully_replicated
    ):
      return x
    return jax.device_put(x, replicated)

  return jax.tree.map(one, tree)


def on_own_devices(tree: Any, shardings_on: Callable[[Mesh], Any]) -> Any:
  """Returns a copy of global arrays that each host computes with by itself.

  All hosts call this with the same arrays. Each then has all of them, cut over
  its own devices, and can run programs that the others don't. Arrays that it has
  already are returned as they are.

  Args:
    tree: pytree of arrays, over all devices of the run.
    shardings_on: gives their NamedShardings on a mesh (1, n, 1) of the usual
      axes, n this host's devices: all of them along `fsdp`.
  """
  if all(
    not isinstance(x, jax.Array) or x.is_fully_addressable
    for x in jax.tree.leaves(tree)
  ):
    return tree
  rows: dict[int, list[jax.Device]] = {}
  for device in sorted(jax.devices(), key=lambda d: d.id):
    rows.setdefault(device.process_index, []).append(device)
  grid = np.array([rows[i] for i in sorted(rows)])[:, None, :, None]
  every = Mesh(grid, ("host", *AXES))
  own = shardings_on(Mesh(grid[sorted(rows).index(jax.process_index())], AXES))

  def one(x, sharding):
    # No array is cut along "host": each host gets the whole.
    x = jax.device_put(x, NamedSharding(every, sharding.spec))
    shards = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

  return jax.tree.map(one, tree, own)


def owners(array: jax.Array) -> np.ndarray:
  """Returns int64 [B]: which process answers for each row of a global array.

  A row that several hosts hold (cut along other axes, or copied) has one owner,
  the first of them.

  Args:
    array: [B, ...].
  """
  out = np.full(array.shape[0], current().count, np.int64)
  if array.sharding.is_fully_addressable:
    return np.full(array.shape[0], current().index, np.int64)
  places = array.sharding.devices_indices_map(array.shape)
  for place, index in places.items():
    device: Any = place
    rows = index[0] if index else slice(None)
    out[rows] = np.minimum(out[rows], device.process_index)
  return out


def own_rows(tree: Any, rows: np.ndarray) -> Any:
  """Returns rows that this process holds, in NumPy, without any exchange.

  Args:
    tree: pytree of global arrays [B, ...].
    rows: int64 [n], some of those that it owns.
  """

  def one(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return np.asarray(x)[rows]
    out = np.zeros(x.shape, x.dtype)
    for shard in x.addressable_shards:
      out[shard.index] = np.asarray(shard.data)
    return out[rows]

  return jax.tree.map(one, tree)


def join_rows(signals: Signals, rows: np.ndarray, owner: np.ndarray) -> Signals:
  """Returns the signals of all hosts' rows, whole, on every host.

  Args:
    signals: NumPy, of this host's n rows; the same names on all hosts.
    rows: int64 [n], which rows these are.
    owner: int64 [B], from `owners`.
  """
  B = len(owner)

  def one(x):
    x = np.asarray(x)
    full = np.zeros((B, *x.shape[1:]), x.dtype)
    full[rows] = x
    every = multihost_utils.process_allgather(full)
    return every[owner, np.arange(B)]

  return jax.tree.map(one, signals)
