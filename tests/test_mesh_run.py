"""A whole run on meshes: begun on one, gone on with on another."""

import numpy as np

from rlvr import main
from rlvr.infra.metrics import read_metrics
from tests import runs
from tests.compare import must_fail

# With a reference model, and an evaluation whose samples are drawn.
SETTINGS = (
  "NUM_PROMPTS=8",
  "GROUP_SIZE=4",
  "UPDATES_PER_BATCH=1",
  "SAVE_EVERY=2",
  "EVALUATE_EVERY=4",
  "USE_REFERENCE=True",
  "LEARNING_RATE=0.003",
  "models.ModelConfig.unroll_layers=False",
  "models.ModelConfig.num_kv_heads=2",
)


def run(folder, *bindings, resume=()):
  # A reward that an untrained policy gets as well, from probes.
  arguments = runs.argv(
    *("train", folder, *SETTINGS, *bindings),
    method="rlpr",
    tasks=("arithmetic", "arithmetic_signals"),
  )
  assert main.main([*arguments, *resume]) == 0
  return {row["step"]: row for row in read_metrics(folder / "metrics.jsonl")}


def same(found, expected):
  # Seen: losses that differ by 4e-7, in 2e-2; the rest by less of itself.
  assert found.keys() == expected.keys()
  for step, row in expected.items():
    for name, value in row.items():
      if not name.startswith(("time", "throughput")):
        np.testing.assert_allclose(
          found[step][name], value, rtol=2e-4, atol=5e-7, err_msg=name
        )


def test_a_run_goes_on_on_another_mesh(tmp_path):
  expected = run(tmp_path / "one", "STEPS=4")
  folder = tmp_path / "meshes"
  run(folder, "STEPS=2", "DATA=2", "FSDP=-1", "TENSOR=2")
  found = run(folder, "STEPS=4", "FSDP=4", "TENSOR=2", resume=["--resume"])
  # The evaluation after the last of 2 steps has no counterpart.
  found[2] = {k: v for k, v in found[2].items() if k in expected[2]}
  same(found, expected)
  assert expected[4]["optim/grad_norm"] > 0
  # Control: each by itself, as it was a step before.
  for name in ("loss/total", "optim/grad_norm"):
    shifted = {**found, 4: found[4] | {name: found[3][name]}}
    must_fail(same, shifted, expected)


def test_prompts_that_do_not_divide_over_the_mesh(tmp_path, capsys):
  arguments = runs.argv("train", tmp_path / "r", "NUM_PROMPTS=6", "FSDP=8")
  assert main.main(arguments) == 1
  error = capsys.readouterr().err
  assert "NUM_PROMPTS=6" in error and "multiple of 8" in error
  assert not (tmp_path / "r").exists()


def test_a_mesh_that_does_not_cover_the_devices(tmp_path, capsys):
  arguments = runs.argv("train", tmp_path / "r", "DATA=3", "FSDP=1")
  assert main.main(arguments) == 1
  assert "data=3 x fsdp=1 x tensor=1 doesn't cover 8" in capsys.readouterr().err


def test_the_plan_says_what_a_device_holds(tmp_path, capsys):
  arguments = runs.argv(
    "train", tmp_path / "r", "NUM_PROMPTS=8", "FSDP=-1", "TENSOR=2"
  )
  assert main.main([*arguments, "--dry_run"]) == 0
  text = capsys.readouterr().out
  assert "data 1, fsdp 4, tensor 2" in text
  assert "vocab=259 over tensor=2" in text
