"""Every shipped gin file parses, and nothing in it is bound in vain."""

import pathlib

import pytest

import gin
from rlvr import main
from rlvr.infra import scaling
from tests import runs

GIN = runs.ROOT / "gin"
METHODS = sorted(p.stem for p in (GIN / "methods").glob("*.gin"))
# A supervised run has no reward: these two are for RL runs alone.
_RL_ONLY = {"VERIFIER"}
# A task that only changes another goes after that one.
_AFTER = {
  "arithmetic_signals": ("arithmetic",),
  "arithmetic_pairs": ("arithmetic",),
  "arithmetic_mixture": ("arithmetic",),
  "coin_flips": ("arithmetic",),
  "aqua_second_answer": ("aqua",),
  "policy_judge": ("arithmetic",),
  "self_judge": ("arithmetic",),
  "sentencepiece": ("gsm8k",),
  "huggingface": ("gsm8k",),
  "chat_chatml": ("gsm8k", "huggingface"),
  "chat_gemma": ("gsm8k", "huggingface"),
  "chat_llama3": ("gsm8k", "huggingface"),
  "chat_of_model": ("gsm8k", "huggingface"),
}
# As is a file that only changes a model.
_MODEL_AFTER = {"lora": ("tiny",)}
TASKS = sorted(p.stem for p in (GIN / "tasks").glob("*.gin"))


@pytest.fixture(autouse=True)
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def files(*names):
  return [str(GIN / f"{name}.gin") for name in names]


def test_there_is_something_to_check():
  assert {"grpo", "log_sigmoid_transform", "clip_delta"} <= set(METHODS)
  assert {"arithmetic", "gsm8k", "reasoning_gym"} <= set(TASKS)
  assert list((GIN / "scale").glob("*.gin"))
  assert not (GIN / "__init__.py").exists()  # it would shadow the library


@pytest.mark.parametrize("method", METHODS)
def test_method_parses_and_uses_its_macros(method):
  main.load_config(
    files("models/tiny", "tasks/arithmetic", f"methods/{method}", "runs/train"),
    [],
  )
  assert main.unused_macros() == []


@pytest.mark.parametrize("task", TASKS)
def test_task_parses_and_uses_its_macros(task):
  before = [f"tasks/{t}" for t in _AFTER.get(task, ())]
  chosen = ["models/tiny", *before, f"tasks/{task}"]
  main.load_config(files(*chosen, "methods/grpo", "runs/train"), [])
  assert main.unused_macros() == []
  main.load_config(files(*chosen, "runs/supervised"), [])
  assert set(main.unused_macros()) <= _RL_ONLY


@pytest.mark.parametrize(
  "model", sorted(p.stem for p in (GIN / "models").glob("*.gin"))
)
def test_model_parses(model):
  before = [f"models/{m}" for m in _MODEL_AFTER.get(model, ())]
  main.load_config(
    files(*before, f"models/{model}", "tasks/arithmetic", "runs/supervised"),
    [],
  )
  assert set(main.unused_macros()) <= _RL_ONLY


@pytest.mark.parametrize(
  "precision", sorted(p.stem for p in (GIN / "sampling").glob("*.gin"))
)
def test_sampling_parses_and_uses_its_macros(precision):
  chosen = ["models/tiny", "tasks/arithmetic", "methods/importance_sampling"]
  main.load_config(files(*chosen, "runs/train", f"sampling/{precision}"), [])
  assert main.unused_macros() == []


@pytest.mark.parametrize(
  "scale", sorted(p.stem for p in (GIN / "scale").glob("*.gin"))
)
def test_scale_parses_and_uses_its_macros(scale):
  model = scaling.shipped_of(scale).model
  chosen = [f"models/{model}", "tasks/gsm8k", "methods/grpo", "runs/train"]
  main.load_config(files(*chosen, f"scale/{scale}"), [])
  assert main.unused_macros() == []


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_what_a_supervised_run_has_no_use_for_is_refused(precision):
  chosen = ["models/tiny", "tasks/arithmetic", "runs/supervised"]
  with pytest.raises(
    ValueError, match=r"Reinforcement\.precision: .*loop is loops\.Supervised"
  ):
    main.load_config(files(*chosen, f"sampling/{precision}"), [])
  with pytest.raises(ValueError, match=r"Reinforcement\.depth: nothing reads"):
    main.load_config(files(*chosen), ["loops.Reinforcement.depth = 1"])
  main.load_config(files(*chosen), ["loops.Supervised.micro_batches = 2"])
  rl = ["models/tiny", "tasks/arithmetic", "methods/grpo", "runs/train"]
  with pytest.raises(ValueError, match=r"Supervised\.micro_batches: nothing"):
    main.load_config(files(*rl), ["loops.Supervised.micro_batches = 2"])


def test_an_unused_macro_is_seen(tmp_path):
  extra = tmp_path / "extra.gin"
  extra.write_text("LEARNING_RTE = 1\n")
  main.load_config(
    [
      *files("models/tiny", "tasks/arithmetic", "methods/grpo", "runs/train"),
      str(extra),
    ],
    [],
  )
  assert main.unused_macros() == ["LEARNING_RTE"]


def test_no_file_has_tabs_or_wrong_order_of_parts():
  for path in pathlib.Path(GIN).rglob("*.gin"):
    text = path.read_text()
    assert text.startswith("#"), f"{path}: opens with what it is"
    assert "\t" not in text, path
    assert "from __gin__ import dynamic_registration" in text, path
