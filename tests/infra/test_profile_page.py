"""The table of a profile: by hand, of real steps, and where it fails."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from rlvr.infra.costs import Peak, Program, Recorded
from rlvr.infra.profile_page import Figures, Profile, page
from rlvr.infra.profiling import Summary

FIGURES = Figures(
  steps=[3, 4],
  step_s=2.0,
  host_s={"data": 0.25},
  device_s={"sample": 0.5, "update": 1.0, "other": 0.1},
  model_flops={"sample": 1e9, "score": 0.0, "update": 4e9},
  peak=Peak(10e9, "measured"),
  programs={
    "fused_step": Program("jit_fused_step", 2e9, math.nan, 5e9, 1e9, {})
  },
  summary=Summary(
    wall_s=4.0, busy={0: 0.8}, kinds=[("jit_fused_step", "dot", 6, 3.0)]
  ),
)


def test_the_page_by_hand():
  text = page(FIGURES)
  for row in (
    "# Profile of steps 3 to 4",
    # 5 GFLOP in 2 s of 10 GFLOP/s.
    "model FLOPs are 25.0% of the peak, 10.0 GFLOP/s (measured)",
    # 1 GFLOP in 0.5 s, of 10 GFLOP/s: 20%.
    "| sample | 0.5000 | 25.0% | 1.00 | 20.0% |",
    "| update | 1.0000 | 50.0% | 4.00 | 40.0% |",
    "| other | 0.1000 | 5.0% |  |  |",
    "| data | 0.2500 |",
    "| 0 | 80.0% | 20.0% |",
    "| fused_step (jit_fused_step) | 2.000 | nan | 5.000 | 1.000 |",
    "| jit_fused_step | dot | 6 | 3.0000 | 100.0% |",
  ):
    assert row in text, row


def test_the_figures_as_json():
  found = json.loads(json.dumps(FIGURES.as_json(), allow_nan=False))
  assert found["utilisation"] == {"sample": 0.2, "update": 0.4, "other": None}
  assert found["step_utilisation"] == 0.25
  assert found["programs"]["fused_step"]["bytes_accessed"] is None
  assert found["programs"]["fused_step"]["flops"] == 2e9
  assert found["operations"] == [
    {"program": "jit_fused_step", "kind": "dot", "runs": 6, "seconds": 3.0}
  ]


@jax.jit
def step(x):
  with jax.named_scope("update"):
    return jnp.tanh(x @ x)


def profiled(folder, done, **changes):
  """Returns what was said of `done` of the steps 2 and 3."""
  said = []
  program = Recorded(step)
  given = {
    "programs": {"step": program, "never": Recorded(step)},
    "model_flops": lambda tokens: {"update": 100 * tokens, "sample": 1.0},
    "peak": lambda: Peak(1e9, "by hand"),
    "say": said.append,
  }
  profile = Profile(folder, range(2, 4), **(given | changes))
  x = jnp.ones((64, 64))
  for number in range(1, 2 + done):
    with profile.step(number):
      program(x).block_until_ready()
    metrics = {"time/step_s": 1.0 * number, "response/tokens": 10.0}
    profile.add(number, metrics | {"time/data_s": 0.5})
  profile.close()
  return said


@pytest.mark.parametrize("done", [1, 2])
def test_what_was_traced_is_written_though_the_run_ends(tmp_path, done):
  said = profiled(tmp_path, done)
  assert len(said) == 1 and "profile.md" in said[0]
  found = json.loads((tmp_path / "profile.json").read_text())
  assert found["steps"] == [2, 3][:done]
  assert found["step_s"] == [2.0, 2.5][done - 1]
  assert found["host_s"] == {"data": 0.5}
  assert found["device_s"]["update"] > 0
  # Nothing was sampled.
  assert found["model_flops"] == {"update": 1000.0}
  assert list(found["programs"]) == ["step"]
  assert found["programs"]["step"]["product_flops"] == 2 * 64**3


def test_no_profile_is_no_reason_to_end_a_run(tmp_path):
  def fails():
    raise RuntimeError("no peak")

  assert profiled(tmp_path, 2, peak=fails) == ["no profile: no peak"]
  assert profiled(tmp_path / "none", 0) == []
  assert not (tmp_path / "none").exists()
