"""Meshes, rules and constraints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rlvr import meshes
from rlvr.meshes import MeshShape, Rules, constrain, make_mesh, partition

MESH = AbstractMesh((2, 4, 8), meshes.AXES)


@pytest.mark.parametrize(
  "shape, sizes",
  [
    (MeshShape(2, 2, 2), (2, 2, 2)),
    (MeshShape(fsdp=-1), (1, 8, 1)),
    (MeshShape(data=-1, tensor=4), (2, 1, 4)),
    (MeshShape(8, -1, 1), (8, 1, 1)),
  ],
)
def test_sizes(shape, sizes):
  assert shape.over(8) == sizes
  mesh = make_mesh(shape)
  assert tuple(mesh.shape.values()) == sizes
  assert set(mesh.devices.flat) == set(jax.devices())


def test_one_device_is_the_first():
  assert list(make_mesh(MeshShape()).devices.flat) == jax.devices()[:1]


def test_a_slice_whose_axes_no_mesh_axis_is_made_of(monkeypatch):
  def refuses(*args, **kwargs):
    raise NotImplementedError("8 x 2 on 4 x 4 chips")

  expected = make_mesh(MeshShape(fsdp=4, tensor=2))
  monkeypatch.setattr(jax, "make_mesh", refuses)
  found = make_mesh(MeshShape(fsdp=4, tensor=2))
  assert found.shape == expected.shape
  assert found.axis_types == expected.axis_types
  assert set(found.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  "shape", [MeshShape(3), MeshShape(2, 2, 1), MeshShape(-1, 3, 1)]
)
def test_sizes_that_do_not_cover_the_devices(shape):
  sizes = f"data={shape.data} x fsdp={shape.fsdp} x tensor={shape.tensor}"
  with pytest.raises(ValueError, match=f"{sizes} doesn't cover 8 devices"):
    make_mesh(shape)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (-1, -1, 1)])
def test_sizes_that_are_none(sizes):
  with pytest.raises(ValueError, match="give each axis 1 or more, or -1"):
    MeshShape(*sizes)


@pytest.mark.parametrize(
  "shape, names, expected",
  [
    ((16, 8), ("embed", "heads"), ("fsdp", "tensor")),
    # 2 key and value heads over 8 devices: not cut.
    ((16, 2), ("embed", "kv_heads"), ("fsdp", None)),
    ((16, 3), ("batch", None), (("data", "fsdp"), None)),
    # 2 divides, 2 · 4 doesn't.
    ((2, 3), ("batch",), ("data",)),
    # An axis is used once, by the first that can.
    ((8, 8), ("heads", "mlp"), ("tensor", None)),
    ((5, 8), ("heads", "mlp"), (None, "tensor")),
    ((8, 4), ("lookup_batch", "embed"), ("data", "fsdp")),
  ],
)
def test_partition(shape, names, expected):
  assert partition(shape, names, MESH) == PartitionSpec(*expected)


def test_what_the_table_lacks():
  with pytest.raises(ValueError, match=r"'hed' isn't in .* 'heads'"):
    partition((4,), ("hed",), MESH)
  with pytest.raises(ValueError, match="2 logical axes"):
    partition((4,), ("heads", "mlp"), MESH)
  with pytest.raises(ValueError, match=r"Rules.heads='tensr'"):
    Rules(heads="tensr")


def test_a_constraint_is_nothing_without_a_mesh():
  x = jnp.ones((8, 4))
  assert constrain(x, "batch") is x
  assert constrain(x, "no such name") is x
  assert meshes.ambient_mesh() is None
  assert meshes.num_shards("batch", 8) == 1
  with meshes.use_rules(Rules(batch=None)):
    assert constrain(x, "batch") is x


def test_constraints_are_those_of_the_mesh_around():
  @jax.jit
  def double(x):
    return constrain(2 * x, "batch", "act_mlp")

  x = np.ones((8, 4), np.float32)
  mesh = make_mesh(MeshShape(2, 2, 2))

  def spec():
    return double(x).sharding.shard_shape(x.shape)

  assert spec() == (8, 4)
  with meshes.use(mesh):
    assert spec() == (2, 2)
    assert meshes.num_shards("batch", 8) == 4
    with meshes.use_rules(Rules(batch="data", act_mlp=None)):
      assert spec() == (4, 4)
    with meshes.use_rules(None):
      assert spec() == (2, 2)
  # Traced before, without a mesh.
  assert spec() == (8, 4)
  on = jax.jit(meshes.on_mesh(lambda x: constrain(x, "batch"), mesh))
  assert on(x).sharding.shard_shape(x.shape) == (2, 4)
