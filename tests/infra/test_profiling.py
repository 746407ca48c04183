"""What a trace says: by hand, and of a real one."""

import jax
import jax.numpy as jnp
import pytest

from rlvr.infra.profiling import (
  Operation,
  Profile,
  covered,
  operations,
  summarise,
  table,
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
  text = table(
    summary, {"sample": 0.5}, {"update": {"flops": 2e9, "bytes accessed": 1e9}}
  )
  for row in (
    "| sample | 0.5000 |",
    "| 0 | 80.0% | 20.0% |",
    "| update | 2.00 | 1.00 |",
    "| jit_update | dot | 3 | 0.0000 | 80.0% |",
  ):
    assert row in text, row


def test_a_trace_of_two_steps(tmp_path):
  f = jax.jit(lambda x: jnp.tanh(x @ x))
  x = jnp.ones((64, 64))
  f(x).block_until_ready()
  texts = []
  with Profile(tmp_path / "p", first_step=2, num_steps=2) as profile:
    for step in range(1, 5):
      with profile.step(step):
        f(x).block_until_ready()
      texts.append(profile.add(step, {"time/step_s": float(step)}))
  assert [t is None for t in texts] == [True, True, False, True]
  # The mean of steps 2 and 3.
  assert "| step | 2.5000 |" in texts[2]
  assert (tmp_path / "p" / "profile.md").read_text() == texts[2]
  found = operations(tmp_path / "p")
  runs = [op for op in found if op.name == found[0].name]
  assert len(runs) == 2, "one in each of the two steps"
  assert any(p.suffix == ".gz" for p in (tmp_path / "p").rglob("*"))


def test_nothing_to_show(tmp_path):
  with pytest.raises(ValueError, match="holds no trace"):
    operations(tmp_path)
  with pytest.raises(ValueError, match="no operation"):
    summarise([])
  with pytest.raises(ValueError, match="first_step=0"):
    Profile(tmp_path, first_step=0, num_steps=1)
