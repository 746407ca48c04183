"""The benchmarks' arithmetic: ratios, limits, micro-batches."""

import argparse
import importlib.util
import json
import math

import pytest

from tests import runs, tiny

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


def test_limits_are_of_one_machine(tmp_path):
  growth = script("bench_growth")
  file = tmp_path / "figures.json"
  low, high = {"flops": 1e11, "bytes": 4e10}, {"flops": 2e11, "bytes": 2e10}
  points = [{"value": 64, "limits": {"rollout": 1.0}}]
  saved = {"machine": "m", "growth_length": {"rates": low, "points": points}}
  file.write_text(json.dumps(saved))
  best = {"flops": 2e11, "bytes": 4e10}
  assert growth.one_machines_rates(file, "another", high) == high
  assert json.loads(file.read_text()) == saved
  assert growth.one_machines_rates(file, "m", high) == best
  found = json.loads(file.read_text())["growth_length"]
  assert found["rates"] == best
  sizes = {**growth.BASE, **growth.AXES["length"][0]}
  assert found["points"][0]["limits"] == growth.limits(sizes, best)
  assert growth.one_machines_rates(tmp_path / "none", "m", low) == low


def test_shares_of_an_accelerators_peaks():
  bench = script("bench_accelerator")
  args = argparse.Namespace(
    weights=None, cache=None, peak_tflops=1e-3, peak_gbs=1e-2
  )
  config = tiny.config(compute_dtype="bfloat16")
  work = {"num_prompts": 2, "group_size": 3, "prompt_len": 4, "new_tokens": 5}
  seconds = {"prefill": 0.5, "rollout": 2.5, "score": 1.0, "update": 4.0}
  found = bench.shares(config, work, seconds, args)
  assert found["decode_s"] == 2.0
  assert found["tokens_per_s"] == 2 * 3 * 5 / 2.0
  # Keys and values of 2 layers, 2 heads of 4, 2 bytes: 64 a token; prompts are
  # read once for their group.
  assert math.prod((2, 2, 2, 4, 2)) == 64
  kept = {"num_prompts": 2, "group_size": 1, "prompt_len": 8, "new_tokens": 5}
  more = bench.shares(config, kept, seconds, args)["decode_read_gb"]
  expected = 64 * ((2 * 5 * 8 + 2 * 12.5) - (2 * 5 * 4 + 6 * 12.5))
  assert more - found["decode_read_gb"] == pytest.approx(expected / 1e9)
  assert found["update_share"] == pytest.approx(3 / 4 * found["score_share"])
  args.peak_tflops = args.peak_gbs = None
  assert "score_share" not in bench.shares(config, work, seconds, args)


def test_pieces_are_of_whole_groups():
  bench = script("bench_accelerator")
  work = {"num_prompts": 6, "group_size": 8, "prompt_len": 64, "new_tokens": 64}
  assert bench.pieces_of(work, 3072) == 2
  assert bench.pieces_of(work, 1) == 6
  assert bench.pieces_of(work, 1 << 20) == 1
