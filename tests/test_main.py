"""The command line: configuration errors, plans, and whole tiny runs."""

import json

import numpy as np
import pytest

import gin
from rlvr import main
from rlvr.infra.metrics import read_metrics
from tests import runs


@pytest.fixture(autouse=True)
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def fails(arguments, capsys, *words):
  """Runs in this process; asserts a failure whose message has the words."""
  assert main.main([str(a) for a in arguments]) == 1
  message = capsys.readouterr().err
  for word in words:
    assert word in message, message
  return message


def test_a_supervised_and_an_rl_run_leave_what_they_promise(tmp_path, capsys):
  warm = tmp_path / "warm"
  code = main.main(
    runs.argv(
      "supervised", warm, "STEPS=3", "NUM_PROMPTS=8", "EVALUATE_EVERY=3"
    )
  )
  assert code == 0, capsys.readouterr()
  run = tmp_path / "run"
  code = main.main(
    runs.argv(
      "train",
      run,
      "STEPS=3",
      "EVALUATE_EVERY=2",
      "SAVE_EVERY=2",
      f"INITIAL_PARAMS='{warm / 'checkpoints'}'",
      "evaluate.Evaluation.samples=4",
      "evaluate.Evaluation.ks=(1, 4)",
    )
  )
  assert code == 0, capsys.readouterr()
  rows = read_metrics(run / "metrics.jsonl")
  assert [r["step"] for r in rows] == [0, 1, 2, 3]
  for name in (
    "reward/correct/mean",
    "reward/correct/std",
    "reward/correct/zero_variance_groups",
    "verdict/correct/no_answer",
    "policy/entropy",
    "response/length_mean",
    "optim/grad_norm",
    "time/fused_step_s",
    "throughput/tokens_per_s",
  ):
    assert np.isfinite(rows[1][name]), name
  # Evaluated before, every 2 steps, and at the end.
  assert ["eval/accuracy" in r for r in rows] == [True, False, True, True]
  assert {"eval/pass@1", "eval/pass@4"} <= rows[0].keys()
  for name in (
    "report.html",
    "samples.jsonl",
    "config_given.gin",
    "config_operative.gin",
  ):
    assert (run / name).stat().st_size > 0, name
  assert "http" not in (run / "report.html").read_text().split("<body")[0]
  about = json.loads((run / "about.json").read_text())
  assert about["status"] == "finished"
  # What was configured was used: nothing is bound in vain.
  used = (run / "config_operative.gin").read_text()
  for name in ("num_operations", "clip_high", "group_size", "max_norm"):
    assert name in used, name


def test_a_profile_of_a_run(tmp_path, capsys):
  run = tmp_path / "run"
  arguments = runs.argv("train", run, "STEPS=4", "EVALUATE_EVERY=4")
  assert main.main([*arguments, "--profile_steps=+2-3"]) == 0
  said = capsys.readouterr().out
  assert f"profile: {run / 'profile' / 'profile.md'}" in said
  found = json.loads((run / "profile" / "profile.json").read_text())
  assert found["steps"] == [2, 3]
  assert found["device_s"]["sample"] > 0 and found["device_s"]["update"] > 0
  assert list(found["host_s"]) == ["data", "fused_step", "compile"]
  assert found["host_s"]["compile"] == 0
  assert found["programs"]["fused_step"]["flops"] > 0
  assert 0 < found["step_utilisation"] < 1
  assert sum(found["device_s"].values()) < 1.1 * found["step_s"]
  assert list((run / "profile").rglob("*.trace.json.gz"))
  assert "Profile of steps 2 to 3" in (run / "report.html").read_text()
  # The first step compiles, the others don't.
  rows = read_metrics(run / "metrics.jsonl")[1:]
  assert [r["step"] for r in rows] == [1, 2, 3, 4]
  assert [r["time/compile_count"] > 0 for r in rows] == [True, *[False] * 3]
  assert 0 < rows[0]["time/compile_s"] <= rows[0]["time/step_s"]
  about = json.loads((run / "about.json").read_text())
  assert about["compiled"].startswith("first step: ")
  assert "compiled: " in said and "compiled anew" not in said


@pytest.mark.parametrize(
  "flag",
  [
    "--profile",  # the third and fourth of two steps
    "--profile_steps=2-3",
    "--profile_steps=two",
    "--profile_steps=",
  ],
)
def test_a_profile_of_steps_that_there_are_not(tmp_path, capsys, flag):
  arguments = [*runs.argv("train", tmp_path / "r", "STEPS=2"), flag]
  fails(arguments, capsys, "profile_steps='")
  assert not (tmp_path / "r").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
  arguments = runs.argv("train", tmp_path / "run", "STEPS=3")
  assert main.main([*arguments, "--dry_run"]) == 0
  printed = " ".join(capsys.readouterr().out.split())
  assert "prompts per step 4" in printed
  assert "responses per step 16 (4 for each prompt)" in printed
  assert "micro-batches per update 1, each of 2 prompts" in printed
  assert "parameters" in printed and "group_relative" in printed
  assert not (tmp_path / "run").exists()


def test_attention_is_the_platforms_where_asked(tmp_path, capsys):
  arguments = runs.argv("train", tmp_path / "r", "ATTENTION='auto'")
  assert main.main([*arguments, "--dry_run"]) == 0
  # "auto" itself would have failed where the model is first traced.
  assert "attention plain" in " ".join(capsys.readouterr().out.split())
  named = runs.argv("train", tmp_path / "r", "ATTENTION='cudnn'")
  fails(named, capsys, "attention='cudnn' needs compute_dtype='bfloat16'")


def test_unknown_parameter_names_it(tmp_path, capsys):
  fails(
    runs.argv("train", tmp_path / "r", "train.train.sede=1"), capsys, "sede"
  )
  assert not (tmp_path / "r").exists()


def test_unknown_macro_suggests_the_nearest(tmp_path, capsys):
  fails(
    runs.argv("train", tmp_path / "r", "GROUP_SIZ=2"),
    capsys,
    "GROUP_SIZ",
    "did you mean GROUP_SIZE",
  )
  assert not (tmp_path / "r").exists()


def test_missing_gin_file(tmp_path, capsys):
  fails(["--gin_file=gin/nothing.gin"], capsys, "gin/nothing.gin")


def test_files_without_an_entry(capsys):
  fails(["--gin_file=gin/models/tiny.gin"], capsys, "gin/runs")


def test_vocabulary_that_does_not_fit_the_model(tmp_path, capsys):
  fails(
    runs.argv("train", tmp_path / "r", "models.ModelConfig.vocab_size=100"),
    capsys,
    "vocab_size=100",
    "259",
  )
  assert not (tmp_path / "r").exists()


def test_sizes_that_cannot_be_cut(tmp_path, capsys):
  fails(
    runs.argv(
      "train", tmp_path / "r", "loops.Reinforcement.updates_per_batch=3"
    ),
    capsys,
    "num_prompts=4",
    "updates_per_batch",
  )


def test_truncated_sampling_needs_recomputed_logprobs(tmp_path, capsys):
  fails(
    runs.argv("train", tmp_path / "r", "train.train.top_k=5"),
    capsys,
    "old_logprobs",
  )


def test_prompts_that_do_not_fit_are_counted(tmp_path, capsys):
  fails(
    runs.argv("train", tmp_path / "r", "train.train.prompt_length=2"),
    capsys,
    "prompt_too_long",
    "prompt_length",
  )


def test_run_folder_of_another_run(tmp_path, capsys):
  folder = tmp_path / "r"
  folder.mkdir()
  (folder / "metrics.jsonl").write_text('{"step": 1}\n')
  fails(runs.argv("train", folder, "STEPS=1"), capsys, "--resume")


def test_the_platform_says_how_a_run_decodes(tmp_path, capsys, monkeypatch):
  arguments = runs.argv(
    "train",
    tmp_path / "r",
    *("models.ModelConfig.unroll_layers=False", "SLOTS=8"),
  )

  def plan():
    assert main.main([*arguments, "--dry_run"]) == 0
    return " ".join(capsys.readouterr().out.split())

  assert "8 of 16 responses at a time, in refilled slots; a loop" in plan()
  # As if this machine's platform were a GPU's.
  monkeypatch.setattr("rlvr.models.kernels._GPUS", ("cpu",))
  assert "in refilled slots; an operation for each layer" in plan()


def test_memory_that_does_not_suffice_leaves_the_folder_free(tmp_path, capsys):
  def command(budget):
    return runs.argv(
      "train",
      tmp_path / "r",
      "STEPS=1",
      "MICRO_BATCHES='auto'",
      f"loops.Reinforcement.memory_budget_gb={budget}",
    )

  fails(command(1e-6), capsys, "not even micro_batches=", "memory_budget_gb")
  assert not list((tmp_path / "r").iterdir())
  assert main.main(command(2)) == 0, capsys.readouterr().err


def test_unwritable_run_folder(tmp_path, capsys):
  blocker = tmp_path / "file"
  blocker.write_text("")
  fails(runs.argv("train", blocker / "r", "STEPS=1"), capsys, "run_dir")


def test_checkpoint_of_another_model(tmp_path, capsys):
  warm = tmp_path / "warm"
  steps = ("STEPS=1", "NUM_PROMPTS=8")
  assert main.main(runs.argv("supervised", warm, *steps)) == 0
  fails(
    runs.argv(
      "train",
      tmp_path / "r",
      f"INITIAL_PARAMS='{warm / 'checkpoints'}'",
      "models.ModelConfig.embed_dim=24",
    ),
    capsys,
    "24",
    "16",
  )
  assert not (tmp_path / "r").exists()


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(
  tmp_path, capsys
):
  # A learning rate of 1e30 makes the parameters overflow in the second step.
  message = fails(
    runs.argv(
      "supervised",
      tmp_path / "r",
      "STEPS=5",
      "NUM_PROMPTS=8",
      "LEARNING_RATE=1e30",
      "WARMUP_UPDATES=1",
    ),
    capsys,
    "not finite",
  )
  assert "step" in message
  about = json.loads((tmp_path / "r" / "about.json").read_text())
  assert about["status"].startswith("failed: step")
  assert any((tmp_path / "r" / "checkpoints").iterdir())


def test_unknown_reward_name_lists_those_that_there_are(tmp_path, capsys):
  fails(
    runs.argv(
      "train", tmp_path / "r", "advantages.group_relative.reward='corect'"
    ),
    capsys,
    "'corect'",
    "['correct']",
  )
  about = json.loads((tmp_path / "r" / "about.json").read_text())
  assert "corect" in about["status"]


def test_gsm8k_files_with_faults(tmp_path, capsys):
  def arguments(path):
    return [
      "--gin_file=gin/models/tiny.gin",
      "--gin_file=gin/tasks/gsm8k.gin",
      "--gin_file=gin/methods/grpo.gin",
      "--gin_file=gin/runs/train.gin",
      f"--run_dir={tmp_path / 'r'}",
      f"--gin.TRAIN_PATH='{path}'",
      f"--gin.HELDOUT_PATH='{path}'",
    ]

  fails(arguments(tmp_path / "absent.jsonl"), capsys, "absent.jsonl")
  empty = tmp_path / "empty.jsonl"
  empty.write_text("")
  fails(arguments(empty), capsys, "gsm8k", "0")
  torn = tmp_path / "torn.jsonl"
  torn.write_text('{"question": "a", "answer": "#### 1"}\n{"question": \n')
  fails(arguments(torn), capsys, "torn.jsonl, line 2")
  assert not (tmp_path / "r").exists()
