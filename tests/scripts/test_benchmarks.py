"""The benchmarks' arithmetic: ratios, limits, micro-batches."""

import argparse
import importlib.util
import json
import math
import os
import sys

import jax
import pytest

from rlvr import advantages, models
from tests import runs, tiny

# Scripts import one another, as they do when they are run.
sys.path.append(str(runs.ROOT / "scripts"))

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


@pytest.fixture(scope="module")
def chained():
  """From a count of links and an estimator to a chain's call, and its FLOPs."""
  growth, config = script("bench_growth"), tiny.config()
  params = models.init(config, jax.random.key(0))
  rollout, signals = growth.chain_batch()

  def of(count, estimator=None):
    run, make_state = growth.chain_score(config, count, estimator=estimator)
    state = make_state(params)
    compiled = run.lower(state, rollout, signals).compile()
    flops = compiled.cost_analysis()["flops"]
    return (lambda s: compiled(state, rollout, s)), flops

  return of


def only_the_outcome():
  return advantages.group_relative(scale_by_std=True, reward="even")


def test_every_link_of_the_chain_is_computed(chained):
  growth = script("bench_growth")
  _, signals = growth.chain_batch()
  flops = {}
  for count in growth.LINKS:
    run, flops[count] = chained(count)
    growth.check_reads(run, signals)
  # Half of 32 links are on 256 x 16 step rewards, one operation each at least.
  least = 16 * 256 * 16
  assert flops[32] - flops[0] >= least
  dead = [chained(count, only_the_outcome())[1] for count in (0, 32)]
  assert dead[1] - dead[0] < least


def test_a_chain_that_would_be_removed_is_refused(chained):
  growth = script("bench_growth")
  run, _ = chained(4, only_the_outcome())
  with pytest.raises(RuntimeError, match="on the step reward process"):
    growth.check_reads(run, growth.chain_batch()[1])


def test_the_sizes_that_an_axis_shares():
  growth = script("bench_growth")
  assert growth.fixed_of("length") == {
    "num_prompts": 2,
    "group_size": 4,
    "prompt_len": 64,
    "parameters": models.num_params(growth.config_of(growth.BASE)),
  }
  assert "parameters" not in growth.fixed_of("model")


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
  # An axis that names its own machine is of that one.
  saved["growth_length"] |= {"machine": "b"}
  file.write_text(json.dumps(saved))
  assert growth.one_machines_rates(file, "m", high) == high
  assert growth.one_machines_rates(file, "b", high) == best


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


@pytest.mark.parametrize(
  ("name", "flags", "said"),
  [
    ("bench_slots", ["--slots=0"], "--slots: '0': give an integer above 0"),
    ("bench_slots", ["--group_size=0"], "--group_size: '0': give"),
    ("bench_slots", ["--mean=0"], "--mean: '0': give a number above 0"),
    ("bench_slots", ["--repeats=0"], "--repeats: '0': give"),
    ("bench_products", ["--rows=0"], "--rows: '0': give"),
    ("bench_step", ["--steps=0"], "--steps: '0': give"),
    ("bench_step", ["--harness=nope"], "nope has no common.py"),
    ("bench_step", ["--checkpoint=nope"], "nope has no config.json"),
    ("bench_step", ["--harness=x", "--num_layers=2"], "--num_layers has no"),
    ("bench_step", ["--harness=x", "--num_prompts=2"], "--num_prompts has no"),
    ("bench_step", ["--harness=x", "--steps=2"], "--steps has no effect"),
    ("bench_step", ["--checkpoint=x", "--mlp_dim=2"], "--mlp_dim has no"),
    ("bench_step", ["--check"], "give --harness"),
    ("bench_ratios", [], "RESULT.json"),
    ("bench_growth", ["--figures=nope/f.json"], "nope is no folder"),
    ("bench_growth", ["--figures=README.md"], "README.md: Expecting value"),
    ("bench_accelerator", ["--model=gin/runs/train.gin"], "describes no model"),
    ("bench_accelerator", ["--model=nope.gin"], "nope.gin is no file"),
  ],
)
def test_a_wrong_flag_is_named_in_a_line(
  name, flags, said, monkeypatch, capsys
):
  monkeypatch.chdir(runs.ROOT)
  with pytest.raises(SystemExit) as stopped:
    script(name).main(flags)
  assert stopped.value.code == 2
  assert said in capsys.readouterr().err.splitlines()[-1]


def test_sizes_beside_a_checkpoint_that_it_does_not_say(tmp_path):
  step = script("bench_step")
  (tmp_path / "config.json").touch()
  flags = dict.fromkeys((*step.WORKLOAD, *step.SHAPE, "steps", "warmup"))
  flags |= {"harness": None, "checkpoint": tmp_path, "figures": None}
  args = argparse.Namespace(**flags, check=False, trace=None)
  args.num_prompts = 4
  assert step.problem_of(args) is None
  args.warmup = -1
  assert "--warmup=-1" in step.problem_of(args)
  args.num_layers = 4
  assert "--num_layers has no effect" in step.problem_of(args)


def test_help_is_printed(capsys):
  with pytest.raises(SystemExit) as stopped:
    script("bench_ratios").main(["--help"])
  assert stopped.value.code == 0
  assert "RESULT.json" in capsys.readouterr().out


def test_shards_need_prompts_that_divide(monkeypatch, capsys):
  # The script sets them before JAX starts; here it has.
  for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
    monkeypatch.setenv(name, os.environ.get(name, ""))
  shards = script("measure_shards")
  with pytest.raises(SystemExit) as stopped:
    shards.main(["--prompts=3"])
  assert stopped.value.code == 2
  assert "--prompts=3 must be a multiple of 8" in capsys.readouterr().err


def test_limits_of_devices(monkeypatch):
  for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
    monkeypatch.setenv(name, os.environ.get(name, ""))
  shards = script("measure_shards")
  recipe = shards.recipe_of(8, 2, 16)
  size = 4 * models.num_params(recipe.model)
  one = shards.limits(recipe, (1, 1, 1))
  # Parameters and AdamW's two moments, the counters aside.
  assert one["held"] == pytest.approx(3 * size, rel=1e-4)
  assert one["sent"] == 0
  assert shards.limits(recipe, (4, 1, 1)) == {
    "held": one["held"],
    "sent": 2 * 3 / 4 * size,
  }
  # 4 layers, four all-reduces of 8 x 2 x 16 tokens x 256 numbers.
  assert shards.limits(recipe, (1, 1, 2)) == {
    "held": one["held"] / 2,
    "sent": 4 * 4 * (8 * 2 * 16) * 256 * 4,
  }
