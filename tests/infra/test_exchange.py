"""Exchange with one process; tests/infra/test_hosts.py has two."""

import jax
import numpy as np

from rlvr import sharding
from rlvr.infra import exchange
from rlvr.infra.hosts import current
from rlvr.meshes import MeshShape, make_mesh
from tests.compare import must_fail

ROWS = np.arange(24, dtype=np.int32).reshape(8, 3)


def on_mesh(tree):
  return sharding.put_batch(tree, make_mesh(MeshShape(data=4, fsdp=2)))


def on_whole(tree):
  mesh = make_mesh(MeshShape(data=4, fsdp=2))
  return exchange.put(tree, sharding.replicated(mesh))


def test_what_is_put_comes_back_whole():
  key = jax.random.key(3)
  placed = on_mesh({"rows": ROWS, "nothing": None})
  assert len(placed["rows"].addressable_shards) == 8
  found = exchange.whole(placed)
  assert isinstance(found["rows"], np.ndarray) and found["nothing"] is None
  np.testing.assert_array_equal(found["rows"], ROWS)
  again = exchange.whole(on_whole(key))
  assert jax.random.uniform(again) == jax.random.uniform(key)


def test_the_one_host_owns_all_rows_and_finds_its_own():
  placed = on_mesh(ROWS)
  np.testing.assert_array_equal(exchange.owners(placed), [current().index] * 8)
  rows = np.array([6, 1])
  np.testing.assert_array_equal(exchange.own_rows(placed, rows), ROWS[rows])
  must_fail(
    np.testing.assert_array_equal,
    exchange.own_rows(placed, rows),
    ROWS[rows[::-1]],
  )
