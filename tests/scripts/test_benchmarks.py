"""The benchmarks' arithmetic: ratios, limits, micro-batches."""

import importlib.util
import json

import pytest

from tests import runs

MACHINE = {
  "lib": "roofline",
  "peak_gflops": 200.0,
  "lower_bound_s": {
    "rollout_opwise": 0.5,
    "reference_forward_prefix_shared": 0.25,
    "update_prefix_shared": 1.25,
  },
}


def script(name):
  """Returns a script of the project as a module."""
  file = runs.ROOT / "scripts" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def result(lib, step):
  phases = ("rollout", "score", "update")
  return {
    "lib": lib,
    "quiet": True,
    "peak_rss_mb": 1000.0,
    "step_s_median": step,
    **{f"{phase}_s_median": step / 3 for phase in phases},
  }


def test_ratios_are_against_the_faster_of_the_others(tmp_path, capsys):
  files = []
  lines = [MACHINE, result("rlvr", 4.0), result("slow", 12.0)]
  for i, line in enumerate([*lines, result("fast", 8.0), result("rlvr", 4.0)]):
    files.append(tmp_path / f"{i}.json")
    files[-1].write_text(json.dumps(line))
  figures = tmp_path / "performance.json"
  ratios = script("bench_ratios")
  assert ratios.main([f"--figures={figures}", *map(str, files)]) == 0
  out = capsys.readouterr().out
  assert "against fast, the faster:\n  step: 2.00x" in out
  assert "share of the limit | | | 0.50 |" in out
  peers = json.loads(figures.read_text())["peers"]
  assert peers["limits"]["step"] == 2.0
  assert peers["libraries"]["rlvr"]["rounds"] == 2
  assert peers["libraries"]["slow"]["step"] == 12.0


def test_a_run_that_failed_is_named(tmp_path, capsys):
  empty = tmp_path / "trl.json"
  empty.touch()
  assert script("bench_ratios").main([str(empty)]) == 1
  assert "trl.json is empty" in capsys.readouterr().err


def test_limits_follow_the_work():
  growth = script("bench_growth")
  rates = {"flops": 1e11, "bytes": 1e10}
  one = growth.limits(growth.BASE, rates)
  twice = growth.limits({**growth.BASE, "num_prompts": 16}, rates)
  for phase in growth.PHASES:
    # Memory's part doesn't grow with the batch.
    assert 1.0 < twice[phase] / one[phase] <= 2.0 + 1e-9
  assert twice["score"] / one["score"] == pytest.approx(2.0)
  faster = growth.limits(growth.BASE, {"flops": 2e11, "bytes": 2e10})
  for phase in growth.PHASES:
    assert faster[phase] == pytest.approx(one[phase] / 2)


@pytest.mark.parametrize(
  ("prompts", "tokens", "pieces"),
  [(8, 12288, 4), (8, 100, 1), (6, 1 << 20, 6), (1, 1 << 20, 1)],
)
def test_micro_batches_are_of_whole_groups(prompts, tokens, pieces):
  assert script("bench_growth").micro_batches(prompts, tokens) == pieces


def test_every_chain_is_one_that_can_be_built():
  growth = script("bench_growth")
  assert [len(growth.links(n)) for n in growth.LINKS] == list(growth.LINKS)
