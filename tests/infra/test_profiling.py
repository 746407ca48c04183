"""What a trace says: by hand, and of a real one."""

import time

import jax
import jax.numpy as jnp
import pytest

from rlvr.infra.profiling import (
  Operation,
  Trace,
  covered,
  operations,
  parse_steps,
  phase_seconds,
  summarise,
)


def test_covered_by_hand():
  # 0..4, of which 2..3 twice; a gap; 6..7.
  assert covered([(2, 4), (0, 3), (6, 7), (2, 3)]) == 5
  assert covered([]) == 0


def test_summary_by_hand():
  # 10 ns on device 0: busy 0..4 and 6..10; device 1: 0..5.
  found = [
    Operation("dot.3", "jit_update", 0, 0.0, 4.0),
    Operation("dot.12", "jit_update", 0, 6.0, 3.0),
    Operation("fusion", "jit_update", 0, 7.0, 3.0),
    Operation("dot.3", "jit_update", 1, 0.0, 5.0),
  ]
  summary = summarise(found)
  assert summary.wall_s == pytest.approx(10e-9)
  assert summary.busy == {0: pytest.approx(0.8), 1: pytest.approx(0.5)}
  assert [k[:3] for k in summary.kinds] == [
    ("jit_update", "dot", 3),
    ("jit_update", "fusion", 1),
  ]
  assert summary.kinds[0][3] == pytest.approx(12e-9)


def test_phases_by_hand():
  found = [
    Operation("a.1", "jit_step", 0, 0.0, 4.0),
    Operation("a.2", "jit_step", 0, 2.0, 4.0),  # side by side for 2 ns
    Operation("b", "jit_step", 0, 6.0, 1.0),
    Operation("c", "jit_step", 0, 7.0, 1.0),
    Operation("a.1", "jit_evaluate", 0, 8.0, 2.0),
    Operation("a.1", "jit_step", 1, 0.0, 2.0),
  ]
  phases = {"jit_step": {"a.1": "sample", "a.2": "sample", "b": "update"}}
  # Sampling: 6 ns on device 0, 2 on device 1.
  seconds = phase_seconds(found, phases)
  assert seconds == {
    "sample": pytest.approx(4e-9),
    "update": pytest.approx(0.5e-9),
    "other": pytest.approx(0.5e-9),
    "other programs": pytest.approx(1e-9),
  }
  assert next(iter(seconds)) == "sample", "longest first"


@pytest.mark.parametrize(
  ("text", "start", "steps"),
  [
    ("10-12", 0, [10, 11, 12]),
    ("10", 0, [10]),
    ("+3-4", 0, [3, 4]),
    ("+3-4", 10, [13, 14]),
    ("+3-4", 17, [20]),  # the run has no more
    ("+3-4", 18, []),
    ("10-12", 11, [12]),
    ("10-12", 12, []),
  ],
)
def test_steps_to_trace(text, start, steps):
  assert list(parse_steps(text, 20, start=start)) == steps


@pytest.mark.parametrize(
  "text", ["", "x", "3-", "12-10", "0-2", "19-21", "+20-21", "3,4"]
)
def test_steps_that_cannot_be_traced(text):
  with pytest.raises(ValueError, match="profile_steps='"):
    parse_steps(text, 20)


def test_a_trace_of_two_steps(tmp_path):
  f = jax.jit(lambda x: jnp.tanh(x @ x))
  x = jnp.ones((64, 64))
  f(x).block_until_ready()

  def traced(steps):
    trace = Trace(tmp_path / "p", steps)
    for step in range(1, 6):
      with trace.step(step):
        f(x).block_until_ready()
      if trace.borders(step) and step == steps[-1]:
        assert trace.close()
    assert not trace.close(), "ended before"
    found = operations(tmp_path / "p")
    return sum(op.name == found[0].name for op in found)

  assert traced(range(2, 4)) == 2
  assert any(p.suffix == ".gz" for p in (tmp_path / "p").rglob("*"))
  time.sleep(1.1)  # traces are named by the second
  # The newest trace alone counts.
  assert traced(range(3, 4)) == 1
  trace = Trace(tmp_path, range(3, 5))
  assert [trace.borders(step) for step in range(1, 6)] == [
    *(False, True, False, True, False)
  ]


def test_nothing_to_show(tmp_path):
  with pytest.raises(ValueError, match="holds no trace"):
    operations(tmp_path)
  with pytest.raises(ValueError, match="no operation"):
    summarise([])
