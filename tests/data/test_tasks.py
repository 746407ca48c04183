"""The tasks, their held-out splits, and what seqio makes of them."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from rlvr.data import providers, tasks
from rlvr.data.examples import Example, TaskSpec, pack_metadata, unpack_metadata

SOLUTION = "48/2 = <<48/2=24>>24 clips.\n48+24 = <<48+24=72>>72.\n#### 1,072"


def write(path, *records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return str(path)


def plain_task(name, texts=("1+1",)):
  rows = [
    Example(question=t, answer="2", target="2", metadata={}) for t in texts
  ]
  return TaskSpec(name, lambda split: rows)


# Metadata.


def test_metadata_come_back_as_they_were():
  metadata = {"a": (1, (2, [3])), "b": {1: "x", (2, 3): {"y": None}}, "c": 1.5}
  back = unpack_metadata(pack_metadata(metadata))
  assert back == metadata
  assert isinstance(back["a"][1], tuple)
  # Control: plain JSON loses both.
  assert json.loads(json.dumps({"a": (1,)})) != {"a": (1,)}


@pytest.mark.parametrize(
  "metadata", [{"a": {1, 2}}, {"a": float("nan")}, {"a": {"__tuple__": [1]}}]
)
def test_metadata_that_would_not_come_back(metadata):
  with pytest.raises(ValueError, match="metadata"):
    pack_metadata(metadata)


# GSM8K.


def test_gsm8k_by_hand(tmp_path):
  path = write(
    tmp_path / "train.jsonl", {"question": " How many? ", "answer": SOLUTION}
  )
  (example,) = tasks.gsm8k_task(train_path=path).examples("train")
  assert example.question == "How many?"
  assert example.answer == "1072"
  assert example.target == "48/2 = 24 clips.\n48+24 = 72.\n#### 1072"
  assert example.metadata == {"solution": SOLUTION}
  kept = tasks.gsm8k_task(train_path=path, calculator_annotations=True)
  assert "<<48/2=24>>" in kept.examples("train")[0].target


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"question": "a", "answer": ', r"bad\.jsonl, line 3: no JSON"),
    ('"text"', "line 3: .* is no JSON object"),
    ('{"question": "a"}', "line 3: no text under 'answer'"),
    ('{"answer": "#### 1"}', "line 3: no text under 'question'"),
    ('{"question": 1, "answer": "#### 1"}', "line 3: .*'question'"),
    ('{"question": "a", "answer": "5"}', "line 3: .*'#### N'"),
    ('{"question": "a", "answer": "5 #### "}', "line 3: .*'#### N'"),
  ],
)
def test_gsm8k_bad_lines_are_named(tmp_path, line, message):
  path = tmp_path / "bad.jsonl"
  good = json.dumps({"question": "a", "answer": SOLUTION})
  path.write_text(f"{good}\n\n{line}\n")  # the blank line counts, and passes
  with pytest.raises(ValueError, match=message):
    tasks.gsm8k_task(heldout_path=str(path)).examples("heldout")


def test_gsm8k_paths():
  with pytest.raises(ValueError, match="give paths"):
    tasks.gsm8k_task()
  with pytest.raises(ValueError, match="not both"):
    tasks.gsm8k_task(train_path="a", tfds=True)
  task = tasks.gsm8k_task(train_path="nowhere/train.jsonl")
  with pytest.raises(FileNotFoundError, match=r"gsm8k_task\.train_path='now"):
    task.examples("train")
  with pytest.raises(ValueError, match=r"gsm8k_task\.heldout_path is not set"):
    task.examples("heldout")


def test_gsm8k_from_tensorflow_datasets(monkeypatch):
  from rlvr.data.late import import_seqio, import_tensorflow

  import_seqio()
  tf = import_tensorflow()
  import tensorflow_datasets

  asked = []

  def load(name, *, split):
    asked.append((name, split))
    # The features that the builder of TensorFlow Datasets declares.
    keys = ("question", "answer", "annotation", "short_answer")
    return tf.data.Dataset.from_tensors(
      {k: tf.constant(SOLUTION) for k in keys}
    )

  monkeypatch.setattr(tensorflow_datasets, "load", load)
  task = tasks.gsm8k_task(tfds=True)
  assert [e.answer for e in task.examples("heldout")] == ["1072"]
  assert len(task.examples("train")) == 1
  assert asked == [("gsm8k", "test"), ("gsm8k", "train")]


def test_gsm8k_as_published():
  root = os.environ.get("RLVR_DATA")
  if not root:
    pytest.skip("RLVR_DATA names no folder with gsm8k/train.jsonl")
  folder = Path(root) / "gsm8k"
  task = tasks.gsm8k_task(
    train_path=str(folder / "train.jsonl"),
    heldout_path=str(folder / "test.jsonl"),
  )
  train, heldout = task.examples("train"), task.examples("heldout")
  assert (len(train), len(heldout)) == (7473, 1319)
  assert all(float(e.answer) == int(e.answer) for e in [*train, *heldout])
  assert not {e.question for e in train} & {e.question for e in heldout}


# reasoning-gym.


def test_reasoning_gym_heldout_shares_nothing_with_training():
  from rlvr.verifiers.reasoning import import_reasoning_gym

  options = dict(min_terms=2, max_terms=2, max_digits=1)
  task = tasks.reasoning_gym_task(
    "chain_sum", size=80, heldout_size=20, seed=3, config=options
  )
  train, heldout = task.examples("train"), task.examples("heldout")
  assert (len(train), len(heldout)) == (80, 20)
  questions = {e.question for e in train}
  assert not questions & {e.question for e in heldout}
  assert len({e.question for e in heldout}) == 20
  # Control: the next seed, and even a far one, would have shared some.
  gym = import_reasoning_gym()
  for seed in (4, 3 + 80):
    other = gym.create_dataset("chain_sum", size=80, seed=seed, **options)
    assert questions & {entry["question"] for entry in other}


def test_reasoning_gym_entry_scores_after_seqio(bytes_vocabulary):
  from rlvr.verifiers.reasoning import import_reasoning_gym

  # Its scorer compares tuples, which plain JSON would have made lists.
  task = tasks.reasoning_gym_task("rearc", size=2, heldout_size=1, seed=1)
  provider = providers.seqio_provider(task, bytes_vocabulary)
  dataset = provider.get_dataset(split="train", shuffle=False)
  score = import_reasoning_gym().get_score_answer_fn("rearc")
  for row in dataset.as_numpy_iterator():
    metadata = unpack_metadata(row["metadata"].decode())
    assert (metadata["task"], metadata["dataset"]) == ("rearc", "rearc")
    answer = row["answer_pretokenized"].decode()
    assert score(answer, metadata["entry"]) == 1.0
    plain = json.loads(json.dumps(metadata["entry"]))
    assert score(answer, plain) < 1.0  # the control


def test_reasoning_gym_without_reference():
  task = tasks.reasoning_gym_task("graph_color", size=1, heldout_size=1)
  (example,) = task.examples("train")
  assert (example.answer, example.target) == ("", None)


def test_reasoning_gym_errors():
  make = tasks.reasoning_gym_task
  with pytest.raises(ValueError, match=r"config sets \['seed'\]"):
    make("chain_sum", size=1, heldout_size=1, config={"seed": 1})
  with pytest.raises(ValueError, match="heldout_size=0"):
    make("chain_sum", size=1, heldout_size=0)
  with pytest.raises(ValueError, match="dataset='no_such_thing'"):
    make("no_such_thing", size=1, heldout_size=1).examples("train")
  with pytest.raises(ValueError, match=r"config=\{'no_such': 1\}"):
    task = make("chain_sum", size=1, heldout_size=1, config={"no_such": 1})
    task.examples("train")
  tiny = dict(min_terms=1, max_terms=1, max_digits=1)  # ten questions in all
  with pytest.raises(ValueError, match="gave only 0 of heldout_size=5"):
    make("chain_sum", size=90, heldout_size=5, config=tiny).examples("heldout")


# Mixtures.


def test_mixture_errors():
  a, b = plain_task("a"), plain_task("b")
  with pytest.raises(ValueError, match="2 tasks and 1 weights"):
    tasks.mixture_task([a, b], [1.0])
  with pytest.raises(ValueError, match="0 tasks"):
    tasks.mixture_task([], [])
  for bad in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match="each must be above 0"):
      tasks.mixture_task([a, b], [1.0, bad])
  with pytest.raises(ValueError, match=r"\['a'\] occur twice"):
    inner = tasks.mixture_task([a, b], [1, 1], name="inner")
    tasks.mixture_task([inner, plain_task("a")], [1, 1])


def test_mixtures_have_one_unit():
  pair = dataclasses.replace(plain_task("pair", ["1+1", "1+2"]), unit=2)
  with pytest.raises(ValueError, match=r"units, \{'a': 1, 'pair': 2\}"):
    tasks.mixture_task([plain_task("a"), pair], [1, 1])
  other = dataclasses.replace(pair, name="other")
  assert tasks.mixture_task([pair, other], [1, 1]).unit == 2


def test_arithmetic_paraphrases():
  sizes = dict(num_train=10, num_heldout=4, num_operations=2)
  operands = dict(operand_min=1, operand_max=9)
  task = tasks.arithmetic_task(**sizes, **operands, paraphrases=True)
  assert task.unit == 2
  answers = [row.answer for row in task.examples("train")]
  assert len(answers) == 10 and answers[::2] == answers[1::2]
  # What is held out is the same with and without.
  plain = tasks.arithmetic_task(**sizes, **operands)
  assert plain.unit == 1
  assert task.examples("heldout") == plain.examples("heldout")
  assert task.examples("train") != plain.examples("train")
