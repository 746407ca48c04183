"""The signals of arithmetic working, by hand, by loop, and against the device."""

import operator
import random

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import segments
from rlvr.types import Verdict
from rlvr.verifiers import arithmetic_signals_verifier, exact_text_verifier
from rlvr.verifiers.arithmetic import equation_value, split_steps

K = 4
END = 1  # no character is it


def verify(responses, references=None, finished=None, max_steps=K):
  n = len(responses)
  return arithmetic_signals_verifier(max_steps=max_steps).verify(
    responses,
    references or ["24"] * n,
    [{}] * n,
    np.ones(n, bool) if finished is None else np.asarray(finished),
  )


@pytest.mark.parametrize(
  ("response", "correct", "well_formed", "process"),
  [
    ("3*4=12;12+12=24#24", 1, 1, [1, 1, 1, 0]),
    ("3*4=13;13+12=25#25", 0, 1, [0, 1, 1, 0]),  # a slip, then consistent
    ("3*4=12;12+12=24#25", 0, 1, [1, 1, 0, 0]),  # not what it came to
    ("3*4=12;12+12=24#24#24", 1, 0, [1, 1, 1, 1]),  # answered twice
    ("#24", 1, 0, [0, 0, 0, 0]),  # a bare delimiter, then a guess
    ("24", 0, 0, [0, 0, 0, 0]),
    ("", 0, 0, [0, 0, 0, 0]),
    ("12+12=24#24;", 0, 0, [1, 1, 0, 0]),
    (";12+12=24#24", 1, 0, [0, 1, 1, 0]),
    ("12+12=24;;24-0=24#24", 1, 0, [1, 1, 1, 0]),  # ";;" ends one step
    ("12+12=24#;24", 0, 0, [1, 1, 0, 0]),  # behind the mark all the same
    ("12+ 12=24#24", 1, 0, [0, 0, 0, 0]),  # spaces are nothing it knows
    ("1+1=2;1+1=2;1+1=2;1+1=2;2*12=24#24", 1, 1, [1, 1, 1, 1]),
    ("1+1=2;1+1=2;1+1=2;1+1=3;2*12=24#24", 1, 1, [1, 1, 1, 0]),  # merged
  ],
)
def test_by_hand(response, correct, well_formed, process):
  signals = verify([response])
  assert signals.outcome["correct"] == [correct]
  assert signals.outcome["format"] == [well_formed]
  np.testing.assert_array_equal(signals.step["process"], [process])
  for values in (*signals.outcome.values(), *signals.step.values()):
    assert values.dtype == np.float32


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("7-9=-2", (-2, True)),
    ("-2+9=7", (7, True)),
    ("5-(-3)=8", (8, True)),
    ("5--3=8", None),  # the task writes parentheses
    ("5-(3)=2", None),
    ("6/3=2", (2, True)),
    ("7/2=3", (3, False)),  # not exact
    ("-6/4=-1", (-1, False)),
    ("5/0=0", (0, False)),
    ("0/5=0", (0, True)),
    ("007+1=8", (8, True)),
    ("1+1=3", (3, False)),
    ("1+1+1=3", None),
    ("1+1", None),
    ("=2", None),
    ("2=2", None),
    ("1.0+1=2", None),
    ("１+1=2", None),  # digits of another script
    ("__import__('os')+1=2", None),
    ("9" * 18 + "+0=" + "9" * 18, (10**18 - 1, True)),
    ("9" * 19 + "+0=" + "9" * 19, None),
    ("1+1=2\n", None),
  ],
)
def test_equations(text, expected):
  assert equation_value(text) == expected


def test_a_truncated_response():
  texts = ["3*4=12;12+12=24#24", "3*4=12;12+12=24;", "12+12=24"]
  signals = verify(texts, finished=[False] * 3)
  assert list(signals.verdicts["correct"]) == [Verdict.NO_ANSWER] * 3
  np.testing.assert_array_equal(signals.outcome["correct"], [0, 0, 0])
  np.testing.assert_array_equal(signals.outcome["format"], [0, 0, 0])
  # What a delimiter ends is whole; what stands last may be cut.
  np.testing.assert_array_equal(
    signals.step["process"], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
  )
  # Control: ended by themselves, the last ones count.
  whole = verify(texts).step["process"]
  np.testing.assert_array_equal(whole.sum(axis=1), [3, 2, 1])


def test_no_reference_leaves_the_other_signals():
  signals = verify(["12+12=24#24"], references=[""])
  assert np.isnan(signals.outcome["correct"]).all()
  assert signals.outcome["format"] == [1]
  np.testing.assert_array_equal(signals.step["process"], [[1, 1, 0, 0]])


def random_responses(count):
  """Working that is sometimes right, runs of delimiters, and plain noise."""
  rng = random.Random(0)
  steps = ["1+1=2", "1+2=3", "1+1=3", "2", "3", "", "x"]
  marks = [";", ";", "#", ";;", "#;", ""]

  def working():
    count = rng.randint(0, 6)
    return "".join(rng.choice(steps) + rng.choice(marks) for _ in range(count))

  texts = [working() for _ in range(count)]
  return texts + [
    "".join(rng.choices("1;#+=3 ", k=rng.randint(0, 12))) for _ in range(count)
  ]


def device_steps(texts, finished, max_steps, delimiters=";#"):
  """The device's step of each character, and of the end token where there is."""
  width = max(map(len, texts)) + 1
  tokens = np.zeros((len(texts), width), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, text in enumerate(texts):
    ids = [ord(c) for c in text] + ([END] if finished[i] else [])
    tokens[i, : len(ids)] = ids
    mask[i, : len(ids)] = True
  return segments.step_indices(
    jnp.asarray(tokens),
    jnp.asarray(mask),
    tuple(ord(c) for c in delimiters),
    max_steps,
  )


def reference_process(text, index, finished):
  """Truth of each step from the device's own cut, with Python's arithmetic."""
  operators = {"+": operator.add, "-": operator.sub, "*": operator.mul}
  steps = {}
  for character, step in zip(text, index, strict=False):
    steps.setdefault(int(step), []).append(character)
  truths, behind, value = [], False, None
  for step in range(len(steps)):
    told = "".join(steps[step])
    body = told.strip(";#")
    # Only the first step can begin with a delimiter, and then it is nothing else.
    assert told.startswith(body)
    whole = finished or told != body
    if behind and body.isdigit():
      truths.append(whole and int(body) == value)
      value = int(body)
    else:
      right, value_now = False, None
      for sign, do in operators.items():
        sides = body.split("=")
        if len(sides) == 2 and sides[1].isdigit() and sides[0].count(sign) == 1:
          a, b = sides[0].split(sign)
          if a.isdigit() and b.isdigit():
            value_now = int(sides[1])
            right = do(int(a), int(b)) == value_now
      truths.append(whole and right)
      value = value_now
    behind = "#" in told
  return truths


@pytest.mark.parametrize("ended", [True, False])
def test_steps_are_the_devices_steps(ended):
  texts = random_responses(1000)
  finished = np.full(len(texts), ended)
  many = 30  # so that none are merged
  index = np.asarray(device_steps(texts, finished, many))
  process = verify(texts, finished=finished, max_steps=many).step["process"]
  expected = np.zeros_like(process)
  for i, text in enumerate(texts):
    truths = reference_process(text, index[i], ended)
    expected[i, : len(truths)] = truths
  np.testing.assert_array_equal(process, expected)
  assert process.sum() > 500
  # Control: without the rule for several delimiters in a row, they are others.
  naive = [
    [bool((v := equation_value(s)) and v[1]) for s in t.split(";")]
    for t in texts
  ]
  assert any(
    row[: len(truths)].tolist() != truths
    for row, truths in zip(process, naive, strict=True)
  )


@pytest.mark.parametrize("max_steps", [1, 2, 4])
def test_merged_steps_are_right_if_all_are(max_steps):
  texts = [t for t in random_responses(300) if t]
  finished = np.ones(len(texts), bool)
  whole = verify(texts, max_steps=30).step["process"]
  merged = verify(texts, max_steps=max_steps).step["process"]
  fine = np.asarray(device_steps(texts, finished, 30))
  coarse = np.asarray(device_steps(texts, finished, max_steps))
  for i, text in enumerate(texts):
    for step in range(max_steps):
      parts = np.unique(fine[i, : len(text)][coarse[i, : len(text)] == step])
      expected = len(parts) > 0 and whole[i, parts].all()
      assert merged[i, step] == expected, (text, step)


def test_parts_are_the_text_again():
  for text in random_responses(300):
    parts = split_steps(text, delimiter="#", step_delimiter=";")
    assert "".join(p.text for p in parts) == text.replace(";", "").replace(
      "#", ""
    )
    assert all(p.text for p in parts[1:])


def test_correct_is_the_exact_text_verifiers():
  texts = random_responses(300)
  finished = np.arange(len(texts)) % 3 > 0
  references = ["2", "3", "", "12"] * (len(texts) // 4)
  args = (texts, references, [{}] * len(texts), finished)
  ours = arithmetic_signals_verifier(max_steps=K).verify(*args)
  exact = exact_text_verifier(delimiter="#").verify(*args)
  np.testing.assert_array_equal(
    ours.verdicts["correct"], exact.verdicts["correct"]
  )
  np.testing.assert_array_equal(
    ours.outcome["correct"], exact.outcome["correct"]
  )
  assert len(set(exact.verdicts["correct"].tolist())) == 4


def test_the_tasks_own_targets_are_right():
  from rlvr.data import arithmetic_examples

  examples = arithmetic_examples(
    "train",
    num_examples=200,
    num_operations=(1, 3),
    operand_min=-9,
    operand_max=9,
    operators=("+", "-", "*", "/"),
    parentheses=True,
    working=True,
    answer_delimiter="#",
    step_delimiter=";",
    seed=0,
  )
  signals = verify([e.target for e in examples], [e.answer for e in examples])
  assert signals.outcome["correct"].all() and signals.outcome["format"].all()
  steps = [e.metadata["num_operations"] + 1 for e in examples]
  np.testing.assert_array_equal(signals.step["process"].sum(axis=1), steps)


def test_start_and_lengths():
  verifier = arithmetic_signals_verifier(max_steps=K)
  args = (["12+12=24#24"], ["24"], [{}], np.ones(1, bool))
  pending = verifier.start(*args)
  assert pending.done()
  assert pending.result().outcome["format"] == [1]
  with pytest.raises(ValueError, match=r"\[2, 1, 1, 1\]"):
    verifier.verify(["", ""], *args[1:])
  verifier.close()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(delimiter="####"), "delimiter='####'"),
    (dict(delimiter=""), "delimiter=''"),
    (dict(step_delimiter="="), "step_delimiter='='"),
    (dict(step_delimiter="#"), "both '#'"),
    (dict(max_steps=0), "max_steps=0"),
  ],
)
def test_options(changes, message):
  with pytest.raises(ValueError, match=message):
    arithmetic_signals_verifier(**{"max_steps": K, **changes})
