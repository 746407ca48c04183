"""The policy in training answers multiple choice: alone, and in a run."""

import json

import jax
import numpy as np
import pytest

from rlvr import main, models
from rlvr.infra.metrics import read_metrics
from rlvr.verifiers.policy_answers import policy_answers
from tests import runs
from tests.compare import must_fail
from tests.verifiers.test_policy_judge import (
  MODEL,
  PARAMS,
  Ascii,
  numpy_logprob,
)


def make_answers(**changes):
  settings = {"labels": ("A", "B", "C"), "max_prompt_tokens": 32}
  return policy_answers(
    model=MODEL,
    vocabulary=Ascii(),
    **{**settings, "batch_size": 2, **changes},
  )


def test_log_probs_of_each_prompts_own_labels():
  answers = make_answers()
  answers.use_policy(PARAMS)
  prompts = ["so #### ", "thus #### ", "hence #### "]
  labels = [("A", "B"), ("C", "A"), ("A", "B", "C")]
  found = answers(prompts, labels)
  expected = [
    [numpy_logprob(prompt, label) for label in each]
    for prompt, each in zip(prompts, labels, strict=True)
  ]
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  with pytest.raises(AssertionError):
    np.testing.assert_allclose(found[1], expected[1][::-1], atol=1e-4)
  # Present parameters: others give other answers.
  answers.use_policy(models.init(MODEL, jax.random.key(5)))
  assert np.abs(np.subtract(answers(prompts, labels)[0], found[0])).max() > 0.01


def test_a_prefix_belongs_to_the_label():
  answers = make_answers(label_prefix=" ")
  answers.use_policy(PARAMS)
  (found,) = answers(["so ####"], [("B",)])
  np.testing.assert_allclose(found, [numpy_logprob("so ####", " B")], atol=1e-4)


def test_what_can_not_be_asked_is_missing(caplog):
  answers = make_answers(max_prompt_tokens=8)
  with pytest.raises(RuntimeError, match="use_policy"):
    answers(["so"], [("A",)])
  answers.use_policy(PARAMS)
  found = answers(["short", "longer than eight", "short"], [("A",)] * 2 + ["Z"])
  assert found[0] is not None and found[1:] == [None, None]
  assert "2 of 3 questions" in caplog.text


# A run: a policy that was shown how to answer asks itself again.

ACRE = (
  "train.train.prompt_length=64",
  "MAX_TOKENS=12",
  "policy_answers.policy_answers.max_prompt_tokens=76",
  "NUM_PROMPTS=8",
  "GROUP_SIZE=4",
  "SAVE_EVERY=2",
  "EVALUATE_EVERY=4",
  "LEARNING_RATE=0.01",
  "DEPTH=1",
)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
  """Bindings of a run that goes on from a warm start on made-up questions."""
  folder = tmp_path_factory.mktemp("acre")
  rng = np.random.default_rng(0)
  lines = []
  for _ in range(48):
    a, b = rng.integers(1, 5, 2)
    wrong = [n for n in range(10) if n != a + b]
    options = [int(a + b), *rng.permutation(wrong)[:4].tolist()]
    rng.shuffle(options)
    letter = "ABCDE"[options.index(a + b)]
    lines.append(
      {
        "question": f"{a}+{b}?",
        "options": [f"{k}){v}" for k, v in zip("ABCDE", options, strict=True)],
        "rationale": str(a + b),
        "correct": letter,
      }
    )
  for name, part in (("train", lines[:40]), ("heldout", lines[40:])):
    text = "".join(json.dumps(line) + "\n" for line in part)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
  data = (
    f"TRAIN_PATH='{folder}/train.jsonl'",
    f"HELDOUT_PATH='{folder}/heldout.jsonl'",
  )
  arguments = runs.argv(
    *("supervised", folder / "warm", *data, *ACRE[:2]),
    *("STEPS=120", "LEARNING_RATE=0.02", "NUM_PROMPTS=16"),
    tasks=("aqua",),
  )
  assert main.main(arguments) == 0
  return (*data, *ACRE, f"INITIAL_PARAMS='{folder}/warm/checkpoints'")


def train(folder, bindings, *flags):
  arguments = runs.argv(
    *("train", folder, *bindings),
    method="answer_consistent",
    tasks=("aqua", "aqua_second_answer"),
  )
  assert main.main([*arguments, *flags]) == 0
  return {row["step"]: row for row in read_metrics(folder / "metrics.jsonl")}


def same(found, expected):
  for step, row in expected.items():
    for name, value in row.items():
      if not name.startswith(("time", "throughput")):
        assert found[step][name] == pytest.approx(value, rel=1e-5), name


def test_a_run_in_which_the_policy_asks_itself(warm, tmp_path):
  whole = train(tmp_path / "whole", (*warm, "STEPS=4"))
  steps = range(1, 5)
  assert all(whole[s]["reward/second/missing"] == 0 for s in steps)
  seconds = [whole[s]["reward/second/mean"] for s in steps]
  firsts = [whole[s]["reward/correct/mean"] for s in steps]
  assert max(seconds) > 0, (
    "nobody was asked with success: the test sees nothing"
  )
  assert seconds != firsts
  # Interrupted at its checkpoint: it asks the same policy the same.
  train(tmp_path / "parts", (*warm, "STEPS=2"))
  parts = train(tmp_path / "parts", (*warm, "STEPS=4"), "--resume")
  parts[2] = {k: v for k, v in parts[2].items() if k in whole[2]}
  same(parts, whole)
  must_fail(same, {**parts, 4: parts[3]}, whole)
