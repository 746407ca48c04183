"""A run whose sampler has other numbers than the trainer: refused or weighed."""

import dataclasses

import pytest

import gin
from rlvr import main
from rlvr.advantages import (
  group_relative,
  masked_importance_sampling,
  truncated_importance_sampling,
)
from rlvr.infra.metrics import read_metrics
from rlvr.rewards.algebra import chain
from rlvr.sampling import Precision
from tests import runs, stepping, tiny


@pytest.fixture(autouse=True)
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def recipe(precision, corrected=True, **changes):
  weigh = truncated_importance_sampling(level="sequence", cap=2.0)
  parts = (group_relative(scale_by_std=False), *([weigh] * corrected))
  plain = stepping.recipe()
  sampling = dataclasses.replace(plain.sampling, precision=precision)
  settings = {
    "sampling": sampling,
    "chain": chain(*parts),
    "old_logprobs": "recomputed",
  }
  return stepping.recipe(**{**settings, **changes})


INT8 = Precision(weights="int8", cache="int8")


def test_nothing_that_weighs_is_refused():
  with pytest.raises(ValueError, match="truncated_importance_sampling"):
    recipe(INT8, corrected=False)
  with pytest.raises(ValueError, match="old_logprobs = 'recomputed'"):
    recipe(INT8, old_logprobs="behavior")
  with pytest.raises(ValueError, match="cache='bfloat16'"):
    recipe(Precision(cache="bfloat16"), corrected=False)


def test_what_weighs_or_says_so_is_not():
  assert recipe(INT8).sampling.precision == INT8
  shown = dataclasses.replace(INT8, allow_uncorrected=True)
  recipe(shown, corrected=False, old_logprobs="behavior")
  # Inside another chain, too, and masked.
  masked = masked_importance_sampling(level="token", low=0.5, high=2.0)
  inside = chain(group_relative(scale_by_std=False), masked)
  recipe(INT8, chain=chain(inside))


def test_the_trainer_s_own_numbers_need_nothing():
  recipe(Precision(), corrected=False, old_logprobs="behavior")
  low = tiny.config(compute_dtype="bfloat16")
  for precision in (Precision(), Precision(compute_dtype="bfloat16")):
    recipe(precision, corrected=False, old_logprobs="behavior", model=low)
  with pytest.raises(ValueError, match="compute_dtype='float32'"):
    recipe(Precision(compute_dtype="float32"), corrected=False, model=low)


def test_a_run_samples_in_int8_and_says_how_far_it_is(tmp_path, capsys):
  arguments = runs.argv(
    "train",
    tmp_path / "run",
    *("STEPS=1", "EVALUATE_EVERY=1", "UPDATES_PER_BATCH=1"),
    method="importance_sampling",
  )
  int8 = "--gin_file=gin/sampling/int8.gin"
  assert main.main([*arguments, int8, "--dry_run"]) == 0
  plan = capsys.readouterr().out
  assert "weights=int8, cache=int8" in plan
  gin.clear_config()
  assert main.main([*arguments, int8]) == 0, capsys.readouterr().err
  row = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
  assert 1e-5 < row["importance/change_mean"] <= row["importance/change_max"]
  assert row["importance/change_max"] < 0.5
  assert 0 < row["importance/kl"] < 0.01
  assert 0.9 < row["importance/ess"] <= 1
  assert row["importance/cut"] == 0
  gin.clear_config()
  # The same method as GRPO has nothing that weighs.
  other = runs.argv("train", tmp_path / "other", method="grpo")
  assert main.main([*other, int8]) == 1
  assert "put truncated_importance_sampling" in capsys.readouterr().err
