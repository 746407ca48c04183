"""Checkpoints: what comes back, what is kept, what a kill leaves."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr.infra.checkpoints import Checkpoints, param_names, restore_params
from rlvr.types import TrainState
from tests.compare import must_fail
from tests.damage import damage


def _state(seed=0, width=3, optimizer=None, chain=((), 2)):
  key = jax.random.key(seed)
  params = {
    "layers": {"w": jax.random.normal(key, (4, width)).astype(jnp.bfloat16)},
    "bias": jnp.arange(float(width)),
  }
  optimizer = optimizer or optax.adam(1e-3)
  return TrainState(
    params=params,
    opt_state=optimizer.init(params),
    chain_state=jax.tree.map(jnp.zeros, chain),
    step=jnp.int32(seed),
    key=jax.random.fold_in(key, 7),
  )


def _open(folder, **changes):
  settings = dict(
    keep=2, keep_best=1, best_metric="eval/accuracy", save_every=1
  )
  return Checkpoints(folder, **{**settings, **changes})


def _assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_the_whole_state_comes_back(tmp_path):
  state = _state(seed=5)
  host = {"data": {"epoch": 1, "seen": [1, 2]}, "config": "abc", "best": 0.5}
  with _open(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None
    assert checkpoints.save(5, state, host)
  with _open(tmp_path) as checkpoints:
    like = _state(seed=1)
    restored, restored_host = checkpoints.restore(like)
    _assert_same(restored, state)
    assert restored_host == host
    # The key goes on with the same stream.
    assert jax.random.bits(restored.key) == jax.random.bits(state.key)
    # Negative control: the comparison tells another state apart.
    with pytest.raises(AssertionError):
      _assert_same(like, state)


def test_restores_from_an_abstract_state_onto_its_shardings(tmp_path):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  state = {
    "w": jnp.arange(8.0 * len(jax.devices())).reshape(-1, 4),
    "keys": jax.random.split(jax.random.key(3), len(jax.devices())),
    "key": jax.random.key(2),
  }
  place = {"w": rows, "keys": rows, "key": whole}
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    place,
  )
  with _open(tmp_path) as checkpoints:
    checkpoints.save(2, state, {})
    restored, _ = checkpoints.restore(like)
    _assert_same(restored, state)
    for name, sharding in place.items():
      value = restored[name]
      assert value.sharding.is_equivalent_to(sharding, value.ndim), name
    # What was saved in pieces comes back whole.
    checkpoints.save(3, restored, {})
    again, _ = checkpoints.restore(state)
    _assert_same(again, state)


def test_numbers_and_other_key_kinds_come_back(tmp_path):
  state = {
    "count": 3,
    "flag": True,
    "rate": 0.5,
    "numpy": np.arange(3),
    "key": jax.random.key(1, impl="rbg"),
  }
  with _open(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    got, _ = checkpoints.restore(jax.tree.map(lambda x: x, state))
  assert (got["count"], got["flag"], got["rate"]) == (3, True, 0.5)
  assert type(got["count"]) is int and type(got["flag"]) is bool
  assert isinstance(got["numpy"], np.ndarray)
  assert jax.random.key_impl(got["key"]) == jax.random.key_impl(state["key"])


def test_donating_the_state_after_save_does_not_change_what_is_saved(tmp_path):
  state = {"w": jnp.arange(4096.0)}
  want = np.array(state["w"])
  overwrite = jax.jit(lambda s: {"w": s["w"] * 0 - 1}, donate_argnums=0)
  with _open(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    state = overwrite(state)
    got, _ = checkpoints.restore({"w": jnp.zeros(4096)})
  np.testing.assert_array_equal(got["w"], want)


@pytest.mark.parametrize("mode, best", [("max", 2), ("min", 3)])
def test_keeps_the_newest_and_the_best_also_after_reopening(
  tmp_path, mode, best
):
  accuracy = {1: 0.4, 2: 0.9, 3: 0.1, 4: 0.5}
  with _open(tmp_path, best_mode=mode) as checkpoints:
    for step, value in accuracy.items():
      checkpoints.save(step, {"x": jnp.ones(2)}, {}, {"eval/accuracy": value})
  # The ranking is on the disk: another process keeps the best as well, and a
  # missing or NaN figure ranks last under both modes.
  with _open(tmp_path, best_mode=mode) as checkpoints:
    checkpoints.save(5, {"x": jnp.ones(2)}, {}, {"eval/accuracy": float("nan")})
    checkpoints.save(6, {"x": jnp.ones(2)}, {}, {"other": 7.0})
    checkpoints.save(7, {"x": jnp.ones(2)}, {})
    checkpoints.wait()
    assert checkpoints.best_step() == best
    assert checkpoints.all_steps() == [best, 6, 7]


def test_saves_when_due_or_forced_and_once_per_step(tmp_path):
  with _open(tmp_path, keep=9, save_every=3) as checkpoints:
    saved = [checkpoints.save(s, {"x": jnp.ones(2)}, {}) for s in range(1, 5)]
    assert saved == [False, False, True, False]
    assert checkpoints.save(4, {"x": jnp.ones(2)}, {}, force=True)
    assert not checkpoints.save(4, {"x": jnp.ones(2)}, {}, force=True)
    assert checkpoints.all_steps() == [3, 4]


def test_going_on_from_an_earlier_checkpoint(tmp_path):
  with _open(tmp_path, keep=9) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, {"x": jnp.full(2, float(step))}, {"at": step})
    state, host = checkpoints.restore({"x": jnp.zeros(2)}, step=1)
    assert host == {"at": 1} and state["x"][0] == 1
    checkpoints.delete_after(1)
    assert checkpoints.save(2, {"x": jnp.full(2, -2.0)}, {})
    assert checkpoints.restore({"x": jnp.zeros(2)})[0]["x"][0] == -2


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
  with _open(tmp_path) as checkpoints:
    checkpoints.save(1, _state(), {})
    with pytest.raises(ValueError, match="gin/models") as error:
      checkpoints.restore(_state(width=5))
    text = str(error.value)
    assert "params.bias: float32[3] there, float32[5] in this run" in text
    # 2 parameters and Adam's two moments of each.
    assert "6 of 10" in text and "and 1 more" in text
    with pytest.raises(ValueError, match=r"the optimizer .*train.optimizer"):
      checkpoints.restore(_state(optimizer=optax.sgd(1e-3)))
    with pytest.raises(ValueError, match="gin/methods") as error:
      checkpoints.restore(_state(chain=((), 3, 1)))
    assert "gin/models" not in str(error.value)
    wrong_dtype = jax.tree.map(
      lambda x: x.astype(jnp.float16) if x.dtype == jnp.bfloat16 else x,
      _state(),
    )
    with pytest.raises(ValueError, match=r"bfloat16\[4, 3\] there, float16"):
      checkpoints.restore(wrong_dtype)


def test_parameters_alone_start_another_run(tmp_path):
  state = _state(seed=4)
  with _open(tmp_path / "a") as checkpoints:
    checkpoints.save(4, state, {})
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), state.params
  )
  before = sorted(os.listdir(tmp_path / "a"))
  params = restore_params(tmp_path / "a", like)
  assert params["layers"]["w"].dtype == jnp.float32
  np.testing.assert_array_equal(
    params["layers"]["w"], state.params["layers"]["w"].astype(jnp.float32)
  )
  assert sorted(os.listdir(tmp_path / "a")) == before
  with pytest.raises(ValueError, match="differ"):
    restore_params(tmp_path / "a", _state(width=2).params)
  with pytest.raises(ValueError, match=r"step 9 .*there are \[4\]"):
    restore_params(tmp_path / "a", like, 9)
  with pytest.raises(ValueError, match="no folder"):
    restore_params(tmp_path / "nothing", like)


@pytest.mark.parametrize(
  "bad",
  [{"keep": 0}, {"keep_best": -1}, {"save_every": 0}, {"best_mode": "up"}],
)
def test_settings_are_checked(tmp_path, bad):
  with pytest.raises(ValueError, match=f"Checkpoints.{next(iter(bad))}"):
    _open(tmp_path, **bad)


def test_nothing_to_restore(tmp_path):
  with _open(tmp_path) as checkpoints, pytest.raises(ValueError, match="no ch"):
    checkpoints.restore({"x": jnp.ones(2)})


@pytest.mark.parametrize(
  ("kind", "why"),
  [
    ("no metadata", "state/_METADATA is missing"),
    ("half a file", "OUT_OF_RANGE"),
    ("no host data", '"host" was not found'),
  ],
)
def test_a_damaged_checkpoint_is_named_with_the_one_to_go_on_from(
  kind, why, tmp_path
):
  like = {"params": {"w": jnp.zeros((64, 64))}}

  def check(step, other):
    with pytest.raises(ValueError) as found, _open(tmp_path) as checkpoints:
      checkpoints.restore(like)
    text = str(found.value)
    assert f"checkpoint {step} in {tmp_path} can't be read" in text
    assert text.endswith(other) and why in text
    assert "\n" not in text and len(text) < 400
    assert found.value.__cause__ is not None

  with _open(tmp_path, keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(
        step, {"params": {"w": jnp.full((64, 64), float(step))}}, {}
      )
  damage(tmp_path / "3", kind)
  must_fail(check, 2, ": delete it to go on from 1")
  check(3, ": delete it to go on from 2")
  # Those that read the parameters alone say the same; the host's aren't theirs.
  if kind != "no host data":
    with pytest.raises(ValueError, match=r"3 in .*go on from 2"):
      restore_params(tmp_path, like["params"])
  if kind == "no metadata":
    with pytest.raises(ValueError, match=r"3 in .*go on from 2"):
      param_names(tmp_path)
  # Control: the one before is whole, and is what is read without the damaged.
  shutil.rmtree(tmp_path / "3")
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore(like)[0]["params"]["w"][0, 0] == 2
  assert restore_params(tmp_path, like["params"])["w"][0, 0] == 2
  shutil.rmtree(tmp_path / "1")
  damage(tmp_path / "2", kind)
  check(2, ": there is no other")


def test_damaged_figures_are_named_and_can_be_deleted(tmp_path):
  like = {"params": {"w": jnp.zeros(3)}}
  with _open(tmp_path, keep=3) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, like, {}, {"eval/accuracy": step})
  figures = tmp_path / "2" / "metrics" / "metrics"
  whole = figures.read_text()
  figures.write_text("")
  with pytest.raises(ValueError, match="figures of a checkpoint") as found:
    _open(tmp_path)
  assert f"delete {figures};" in str(found.value)
  figures.unlink()  # as the error says
  with _open(tmp_path) as checkpoints:
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (2, 1)
    checkpoints.restore(like)
  figures.write_text(whole)  # control
  with _open(tmp_path) as checkpoints:
    assert checkpoints.best_step() == 2


@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf])
def test_params_that_are_not_finite_start_no_run(bad, tmp_path):
  like = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((3,)), "c": jnp.zeros(())}
  rotten = {**like, "b": like["b"].at[1].set(bad)}
  with _open(tmp_path, keep=3) as checkpoints:
    checkpoints.save(1, {"params": like, "nan": jnp.asarray(bad)}, {})
    checkpoints.save(2, {"params": rotten}, {})
    checkpoints.save(3, {"params": {**rotten, "c": jnp.asarray(bad)}}, {})
  with pytest.raises(ValueError, match=r"checkpoint 2 in .*: params.b isn't"):
    restore_params(tmp_path, like, 2)
  with pytest.raises(ValueError, match=r"params.b isn't finite \(2 arrays"):
    restore_params(tmp_path, like)
  # What else the checkpoint holds isn't looked at.
  assert restore_params(tmp_path, like, 1)["b"].shape == (3,)


_KILLED = """
  import os, pathlib, signal, sys
  import jax.numpy as jnp
  from rlvr.infra.checkpoints import Checkpoints
  checkpoints = Checkpoints(
    sys.argv[1], keep=2, keep_best=1, best_metric="a", save_every=1)
  checkpoints.save(1, {"x": jnp.full(1000, 1.0)}, {"at": 1})
  checkpoints.wait()
  # Everything of the second save is written; the process dies, without any
  # clean-up, at the rename that would make it a checkpoint.
  def die(self, target):
    os.kill(os.getpid(), signal.SIGKILL)
  pathlib.Path.rename = pathlib.Path.replace = die
  os.rename = os.replace = lambda *a, **k: die(*a[:2])
  checkpoints.save(2, {"x": jnp.full(1000, 2.0)}, {"at": 2})
  checkpoints.wait()
  print("survived")
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path / "c")],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
  left = sorted(os.listdir(tmp_path / "c"))
  # The second save was under way: its unfinished folder is there.
  assert left[0] == "1" and len(left) == 2 and left[1] != "2", left
  with _open(tmp_path / "c") as checkpoints:
    assert checkpoints.all_steps() == [1]
    state, host = checkpoints.restore({"x": jnp.zeros(1000)})
    assert host == {"at": 1} and (state["x"] == 1).all()
    assert checkpoints.save(2, {"x": jnp.full(1000, 3.0)}, {"at": 2})
  assert sorted(os.listdir(tmp_path / "c")) == ["1", "2"]
