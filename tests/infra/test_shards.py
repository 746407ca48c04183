"""The table of where parameters lie."""

import jax
import optax
import pytest
from jax.sharding import AbstractMesh

from rlvr.infra import shards
from rlvr.meshes import AXES, Rules
from rlvr.sampling import Precision
from tests import runs, tiny

# The published shape of Qwen2.5-7B.
SEVEN = tiny.config(
  vocab_size=152_064,
  embed_dim=3584,
  num_layers=28,
  num_heads=28,
  num_kv_heads=4,
  head_dim=128,
  mlp_dim=18_944,
  qkv_bias=True,
  tie_embeddings=False,
  compute_dtype="bfloat16",
)
MESH = AbstractMesh((2, 8, 4), AXES)


def test_rows_of_a_large_model():
  rows = {row.name: row for row in shards.param_rows(SEVEN, MESH)}
  gate = rows["layers.gate"]
  assert gate.shape == (28, 3584, 18_944)
  assert gate.axes == ("layers", "embed", "mlp")
  assert gate.cut == ("-", "fsdp", "tensor")
  assert gate.bytes == 28 * 3584 * 18_944 * 4 // (8 * 4)
  assert gate.not_cut == ()
  assert rows["layers.query_bias"].bytes == 28 * 28 * 128 * 4 // 4
  # 4 key and value heads divide over 4, not over 8.
  wide = AbstractMesh((1, 8, 8), AXES)
  key = {r.name: r for r in shards.param_rows(SEVEN, wide)}["layers.key"]
  assert key.cut == ("-", "fsdp", "-", "-")
  assert key.bytes == 28 * 3584 * 4 * 128 * 4 // 8
  assert key.not_cut == ("kv_heads=4 over tensor=8",)


def test_totals():
  rows = shards.param_rows(SEVEN, MESH)
  found = shards.totals(
    SEVEN,
    MESH,
    sampling_rules=Rules(embed=None),
    optimizer=optax.adamw(1e-6),
    use_reference=True,
  )
  size = sum(row.bytes for row in rows)
  # 7.6 billion parameters of 4 bytes over 32 devices, norms and biases over
  # fewer.
  assert 7.6e9 * 4 / 32 < size < 7.7e9 * 4 / 32
  # Two moments and one count.
  assert found["optimizer state"] == 2 * size + 4
  assert found["gradients"] == found["reference model"] == size
  # bfloat16, cut over `tensor` alone.
  sampled = found["parameters as sampled with"]
  assert 7.6e9 * 2 / 4 < sampled < 7.7e9 * 2 / 4
  # int8 for 6.5 billion of them, the layers'; the rest is bfloat16.
  int8 = shards.totals(
    SEVEN,
    MESH,
    sampling_rules=Rules(embed=None),
    precision=Precision(weights="int8"),
  )["parameters as sampled with"]
  assert int8 == pytest.approx((6.5e9 + 1.1e9 * 2) / 4, rel=0.01)
  plain = shards.totals(tiny.CONFIG, MESH, sampling_rules=Rules())
  assert plain.keys() == {"parameters"}


def test_the_command(capsys):
  files = [f"--gin_file=gin/{f}.gin" for f in ("models/tiny",)]
  mesh = "--mesh=fsdp:2,tensor:4"
  assert shards.main([*files, mesh]) == 0
  lines = capsys.readouterr().out.splitlines()
  (key,) = (line for line in lines if line.startswith("layers.key "))
  assert "2 x 128 x 2 x 32" in key and "32,768" in key  # 2·128·2·32·4 / 2
  assert "not divisible: kv_heads=2 over tensor=4" in key
  assert not any("optimizer" in line for line in lines)

  run = [a for a in runs.argv("train", "x") if not a.startswith("--run_dir")]
  assert shards.main([*run, mesh]) == 0
  text = capsys.readouterr().out
  assert "optimizer state" in text and "gradients" in text
  assert len(jax.devices()) == 8  # the mesh may be larger than the machine
  assert shards.main([*files, "--mesh=fsdp:64,tensor:2"]) == 0
  assert "on 128 devices" in capsys.readouterr().out


@pytest.mark.parametrize("mesh", ["fsd:2", "fsdp", "fsdp:0", "fsdp:x"])
def test_a_mesh_that_is_none(mesh, capsys):
  argv = ["--gin_file=gin/models/tiny.gin", f"--mesh={mesh}"]
  assert shards.main(argv) == 1
  assert "data:2,fsdp:2,tensor:2" in capsys.readouterr().err


def test_an_axis_given_twice_is_refused(capsys):
  argv = ["--gin_file=gin/models/tiny.gin", "--mesh=data:2,data:3"]
  assert shards.main(argv) == 1
  assert "data is given twice" in capsys.readouterr().err
