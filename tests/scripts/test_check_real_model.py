"""The check of a published model, on a tiny one that knows nothing."""

import importlib.util
import json
import math
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import data, models
from rlvr.sampling import Sampling
from tests import runs, tiny
from tests.compare import must_fail
from tests.models import folders

_PATH = runs.ROOT / "scripts" / "check_real_model.py"
_SPEC = importlib.util.spec_from_file_location("check_real_model", _PATH)
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)

CONFIG = tiny.config(vocab_size=260, tie_embeddings=False)
PARAMS = tiny.params(CONFIG)
QUESTIONS = [f"What is {a} + 1?" + " Hm." * (7 * a % 5) for a in range(5)]
ROWS = [[b + 1 for b in q.encode()] for q in QUESTIONS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Returns the folder of a model and the file of questions."""
  root = tmp_path_factory.mktemp("check")
  folder = models.save_huggingface(root / "model", CONFIG, PARAMS)
  folders.write_tokenizer(folder, chat_template=folders.TEMPLATE)
  lines = [
    json.dumps({"question": q, "answer": f"It is {i + 1}.\n#### {i + 1}"})
    for i, q in enumerate(QUESTIONS)
  ]
  (root / "test.jsonl").write_text("\n".join(lines) + "\n")
  return folder, root / "test.jsonl"


def test_nats_are_those_of_each_text_alone():
  def check(rows):
    found = script.nats_of(CONFIG, PARAMS, rows, size=2)
    for row, nats in zip(ROWS, found, strict=True):
      tokens = jnp.asarray([row], jnp.int32)
      hidden = folders.forward(
        PARAMS, CONFIG, tokens, jnp.ones_like(tokens, bool)
      )
      logits = np.asarray(models.logits(PARAMS, CONFIG, hidden), np.float64)[0]
      logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      each = logprobs[np.arange(len(row) - 1), row[1:]]
      assert nats == pytest.approx(-each.sum(), rel=1e-5)

  check(ROWS)
  must_fail(check, ROWS[::-1])


def test_batches_hold_each_row_once():
  found = list(script.batches(ROWS, 2))
  rows = [i for chosen, _, count in found for i in chosen[:count]]
  assert sorted(rows) == list(range(5))
  assert [len(chosen) for chosen, *_ in found] == [2, 2, 2]
  for chosen, width, _ in found:
    assert width % 64 == 0 and width >= max(len(ROWS[i]) for i in chosen)


def test_answers_do_not_depend_on_the_batches(files):
  vocabulary = data.huggingface_vocabulary(str(files[0]))

  def found(size, temperature, seed=0):
    sampling = Sampling(
      max_tokens=4,
      end_id=vocabulary.eos_id,
      pad_id=vocabulary.pad_id,
      temperature=temperature,
    )
    return script.continued(
      CONFIG, PARAMS, vocabulary, ROWS, size, sampling, seed
    )

  assert found(2, 1.0) == found(5, 1.0)
  assert found(2, 1.0) != found(2, 1.0, seed=1)
  assert found(2, 0.0) == found(2, 0.0, seed=1)


def test_right_ones_are_counted():
  examples = [
    data.Example(question="", answer=str(i), target=None, metadata={})
    for i in (3, 4, 5)
  ]
  replies = [([], "so 1 + 2 is 3", True), ([], "4 or 7", True), ([], "", False)]
  assert script.answered(examples, replies).tolist() == [True, False, False]


FLAGS = (
  *("--num_questions=5", "--num_problems=4", "--max_new_tokens=4"),
  *("--continuation_tokens=3", "--batch=5"),
)


@pytest.mark.parity
@pytest.mark.parametrize("beside", [False, True])
def test_the_whole_says_what_it_found(files, beside, tmp_path, capsys):
  folder, questions = files
  more = [f"--output={tmp_path / 'new' / 'found.json'}"]
  if beside:
    more += [f"--transformers_python={folders.transformers_python()}"]
  code = script.main(
    [f"--model={folder}", f"--data={questions}", *FLAGS, *more]
  )
  out = capsys.readouterr().out
  assert code == 0, out
  figures = json.loads((tmp_path / "new" / "found.json").read_text())
  value, low, high = figures["perplexity"]
  assert low < value < high
  # A model that knows nothing of 260 tokens is about as bad, or worse.
  assert 100 < value < 1e5
  nats = script.nats_of(
    CONFIG,
    PARAMS,
    [data.huggingface_vocabulary(str(folder)).encode(q) for q in QUESTIONS],
    5,
  )
  assert value == pytest.approx(math.exp(nats.sum() / figures["tokens"]))
  share, low, high = figures["accuracy"]
  assert low <= share <= high and share == figures["right"] / 4
  assert figures["prompt"] == "<|user|>{question}<|end|>:"
  assert re.search(r"perplexity [\d.]+ \[[\d.]+, [\d.]+\] of 5 questions", out)
  assert re.search(r"GSM8K: \d of 4 right, [\d.]+% \[", out)
  assert len(figures["continuations"]) == len(script.TEXTS)
  if beside:
    assert figures["agrees"] is True and "the same in three digits" in out
    assert figures["perplexity_ratio"][0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("wrong", ["none", "nats", "tokens", "ids"])
def test_a_difference_is_one(wrong, capsys):
  nats, counts = np.array([30.0, 50.0]), [10, 20]
  ids = [[1, 2], [3, 4]]
  theirs = {
    "transformers": "0",
    "nats": [30.0, 50.0 + (0.5 if wrong == "nats" else 1e-5)],
    "counts": [10, 21 if wrong == "tokens" else 20],
    "ids": [[1, 2], [3, 5 if wrong == "ids" else 4]],
  }
  figures = {"perplexity": script.perplexity(nats, counts)}
  agrees = script.compare(figures, nats, counts, ids, theirs)
  assert agrees == (wrong == "none")
  if wrong == "tokens":
    assert "other tokens" in capsys.readouterr().out
    return
  # 80 nats in 30 tokens.
  assert figures["perplexity"][0] == pytest.approx(math.exp(80 / 30))
  assert figures["equal_continuations"] == (1 if wrong == "ids" else 2)


def test_flags_that_cannot_be(files, capsys):
  folder, questions = files
  with pytest.raises(SystemExit):
    script.main(
      [f"--model={folder}", f"--data={questions}", "--num_questions=1"]
    )
  assert "give at least 2" in capsys.readouterr().err


def python_without_transformers(root):
  """Returns an interpreter of no packages."""
  file = root / "python"
  file.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
  file.chmod(0o755)
  return str(file)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"model": "nowhere"}, "nowhere has no config.json (there is no such"),
    ({"model": "nowhere.gguf"}, "no file nowhere.gguf: give a .gguf file"),
    ({"model": "empty.gguf"}, "empty.gguf is no GGUF file, or is cut short"),
    ({"data": "nowhere.jsonl"}, "'nowhere.jsonl': there is no such file"),
    ({"data": "empty.jsonl"}, "empty.jsonl"),
    ({"data": "one.jsonl"}, "one.jsonl holds 1 problems: give at least 2"),
    ({"export": "."}, "--export=. exists: give another folder"),
    ({"transformers_python": "/no/python"}, "/no/python can't be started (No"),
    (
      {"transformers_python": "/bin/false"},
      "/bin/false can't import torch and",
    ),
    ({"transformers_python": None}, "(ModuleNotFoundError: No module named"),
  ],
)
def test_what_cannot_be_used_is_one_line(
  change, said, files, tmp_path, monkeypatch, capsys
):
  folder, questions = files
  if str(change.get("model")).endswith(".gguf"):
    pytest.importorskip("gguf", reason="pip install 'rlvr[gguf]'")
  monkeypatch.chdir(tmp_path)
  line, *_ = questions.read_text().splitlines()
  (tmp_path / "one.jsonl").write_text(line + "\n")
  (tmp_path / "empty.jsonl").touch()
  (tmp_path / "empty.gguf").touch()

  def too_late(*_, **__):
    raise AssertionError("this takes minutes: what is given is checked first")

  monkeypatch.setattr(script, "continued", too_late)
  given = {"model": folder, "data": questions} | change
  if "transformers_python" in given and given["transformers_python"] is None:
    given["transformers_python"] = python_without_transformers(tmp_path)
  code = script.main([f"--{k}={v}" for k, v in given.items()])
  err = capsys.readouterr().err
  assert code == 2 and said in err, err
  assert err.startswith("error: ") and err.count("\n") == 1


def test_a_model_without_template_is_asked_the_plain_question(
  files, tmp_path, capsys
):
  folder = models.save_huggingface(tmp_path / "model", CONFIG, PARAMS)
  folders.write_tokenizer(folder)
  given = [
    f"--model={folder}",
    f"--data={files[1]}",
    *FLAGS,
    "--prefix=<|end|>",
  ]
  assert script.main(given) == 0
  assert "prompt '<|end|>{question}'" in capsys.readouterr().out
