"""From a published folder through a run to a folder, by the command lines."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import gin
from rlvr import data, main, models
from rlvr.infra.checkpoints import restore_params
from rlvr.models import export
from tests import runs, tiny
from tests.compare import must_fail
from tests.damage import damage
from tests.models import folders

CONFIG = tiny.config(vocab_size=260, qkv_bias=True, max_positions=64)
PARAMS = tiny.params(CONFIG)
RUN = (
  *("models/from_huggingface", "tasks/arithmetic", "tasks/huggingface"),
  *("tasks/chat_of_model", "methods/grpo", "runs/train"),
)


@pytest.fixture(autouse=True)
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns a published folder and the folder of a run of one step from it."""
  root = tmp_path_factory.mktemp("export")
  folder = models.save_huggingface(root / "published", CONFIG, PARAMS)
  folders.write_tokenizer(folder, chat_template=folders.TEMPLATE)
  (folder / "generation_config.json").write_text(
    json.dumps({"eos_token_id": [257, 258]})
  )
  bindings = (
    *("MODEL_PATH=" + repr(str(folder)), "INITIAL_PARAMS=%MODEL_PATH"),
    *("VOCABULARY_PATH=%MODEL_PATH", "STEPS=1", "NUM_PROMPTS=2"),
    *("GROUP_SIZE=2", "WARMUP_UPDATES=1", "FSDP=1", "MAX_TOKENS=4"),
    *("data.arithmetic_task.num_train=8", "data.arithmetic_task.num_heldout=2"),
    *("evaluate.Evaluation.num_prompts=2", "train.train.tensorboard=False"),
    "train.train.prompt_length=16",  # the template adds four tokens
    # So that the step moves the parameters, whatever the rewards are.
    "LEARNING_RATE=0.01",
  )
  given = [
    *(f"--gin_file=gin/{name}.gin" for name in RUN),
    *(f"--gin.{b}" for b in bindings),
  ]
  code = main.main([*given, f"--run_dir={root / 'run'}"])
  gin.clear_config()
  assert code == 0
  return folder, root / "run", given


def test_a_run_from_a_folder_is_written_and_loads_again(run, tmp_path, capsys):
  published, folder, _ = run
  out = tmp_path / "out"
  arguments = [f"--run={folder}", f"--output={out}", "--dtype=float32"]
  assert export.main(arguments) == 0, capsys.readouterr().err
  assert "model.safetensors" in capsys.readouterr().out
  config, params = models.load_huggingface(out)
  assert config == models.load_huggingface(published)[0]
  saved = restore_params(
    folder / "checkpoints", models.abstract_params(CONFIG), None
  )
  folders.same(params, saved)
  # The tokenizer is the published one, and generation ends where it did.
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (out / name).read_bytes() == (published / name).read_bytes()
  for name in ("config.json", "generation_config.json"):
    fields = json.loads((out / name).read_text())
    assert fields["eos_token_id"] == [257, 258]
  vocabulary = data.huggingface_vocabulary(str(out))
  assert vocabulary.encode("12<|end|>") == [256, 257]
  # The run began at the published weights, which aren't those of before.
  np.testing.assert_allclose(
    saved["trunk"]["embedding"], PARAMS["trunk"]["embedding"], atol=0.05
  )
  must_fail(
    np.testing.assert_allclose,
    saved["trunk"]["embedding"],
    tiny.params(CONFIG, seed=1)["trunk"]["embedding"],
    atol=0.05,
  )


def test_prompts_are_turns_of_the_models_own_template(run):
  lines = (run[1] / "samples.jsonl").read_text().splitlines()
  prompts = [json.loads(line)["prompt"] for line in lines]
  assert prompts
  for prompt in prompts:
    assert prompt.startswith("<|user|>"), prompt
    assert prompt.endswith("<|end|>:"), prompt


def test_flags_replace_what_the_run_says(run, tmp_path, capsys):
  folder = run[1]
  out, other = tmp_path / "out", tmp_path / "other"
  other.mkdir()
  folders.write_tokenizer(other, chat_template=folders.TEMPLATE)
  code = export.main(
    [
      *(f"--run={folder}", f"--output={out}", f"--tokenizer={other}"),
      *("--family=qwen2", "--max_shard_gb=2e-6", "--step=1"),
    ]
  )
  assert code == 0, capsys.readouterr().err
  assert len(list(out.glob("model-*.safetensors"))) > 3
  fields = json.loads((out / "config.json").read_text())
  assert (fields["model_type"], fields["torch_dtype"]) == ("qwen2", "bfloat16")
  assert "chat_template" in (out / "tokenizer_config.json").read_text()
  assert not (out / "generation_config.json").exists()


def test_what_is_wrong_is_said(run, tmp_path, capsys):
  folder = run[1]

  def fails(*words, run=folder, output="out", more=()):
    gin.clear_config()
    code = export.main([f"--run={run}", f"--output={tmp_path / output}", *more])
    message = capsys.readouterr().err
    assert code == 1 and message.startswith("error: ")
    for word in words:
      assert word in message, message

  fails("--run=", "no config_given.gin in this folder", run=tmp_path)
  (tmp_path / "there").mkdir()
  fails("there exists", "give another folder", output="there")
  fails("7", more=["--step=7"])
  fails("llama model can't be this one", "qkv_bias", more=["--family=llama"])
  (tmp_path / "config_given.gin").write_text("")
  fails("no train.train.model", run=tmp_path)
  assert not (tmp_path / "out").exists()


def processes(run, folder, output):
  """Returns (exit status, lines said) of an export and of going on."""
  started = [
    subprocess.Popen(
      [sys.executable, "-m", *words],
      cwd=runs.ROOT,
      env=runs.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for words in (
      ("rlvr.models.export", f"--run={folder}", f"--output={output}"),
      ("rlvr.main", *run[2], f"--run_dir={folder}", "--resume"),
    )
  ]
  said = [process.communicate(timeout=300)[0] for process in started]
  return [
    (process.returncode, text.splitlines())
    for process, text in zip(started, said, strict=True)
  ]


@pytest.mark.parametrize("kind", [None, "no metadata", "half a file"])
def test_a_damaged_checkpoint_is_one_line(run, kind, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(run[1], folder)
  if kind is not None:
    damage(folder / "checkpoints" / "1", kind)
  for status, lines in processes(run, folder, tmp_path / "out"):
    assert status == (0 if kind is None else 1), lines
    found = [line for line in lines if line.startswith("error: ")]
    if kind is None:  # the control
      assert not found
      continue
    (line,) = found
    assert line.startswith(f"error: checkpoint 1 in {folder}/checkpoints can't")
    assert line.endswith(": there is no other")
    # Behind it at most which configurable was called, and the hint.
    assert len(lines) - lines.index(line) <= 4, lines
    assert not any("Traceback" in x for x in lines)
