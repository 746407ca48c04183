import collections
import json
import os
import pathlib

import numpy as np
import pytest

from rlvr.types import Verdict
from rlvr.verifiers.choice import (
  choice_verifier,
  make_choice_checker,
  option_order,
  options_by_label,
  original_label,
  read_choice,
  reordered,
)

DATA = os.environ.get("RLVR_DATA")
OPTIONS = {"A": "21", "B": "a dog", "C": "-21", "D": "Rs. 50", "E": "21"}


def test_options_by_label():
  assert options_by_label(["A)21", "B) x", "C)A) y"]) == {
    **{"A": "21", "B": "x", "C": "A) y"}
  }
  assert options_by_label(["no", "yes"]) == {"A": "no", "B": "yes"}
  assert options_by_label({"C": " c ", "D": "d"}) == {"C": "c", "D": "d"}
  for bad in (["one"], {"a": "x", "b": "y"}, ["x"] * 27, {"AB": "x", "C": "y"}):
    with pytest.raises(ValueError, match="options"):
      options_by_label(bad)


@pytest.mark.parametrize(
  ("answer", "labels"),
  [
    *[(a, "B") for a in ("B", "b", "(B)", "[b]", "B.", "B)", " B: ", "**B**")],
    *[(a, "B") for a in (r"\text{B}", r"$\mathbf{B}$", "option B", "`B`")],
    *[(a, "B") for a in ("B) a dog", "(B) a dog", "B: a dog", "option (b)")],
    *[(a, "B") for a in ("A  Dog.", "a dog", "B. some dog")],
    ("-21", "C"),  # its sign counts
    ("21", "AE"),  # two options have that text
    ("E) 21", "E"),
    ("B) -21", ""),  # contradicts itself
    ("A or B", ""),
    ("A, B", ""),
    ("(A) and (C)", ""),
    ("A/B/C/D/E", ""),
    ("F", ""),
    ("A dog or so", ""),
    ("", ""),
    ("x" * 100_000, ""),
    ("A," * 50_000, ""),
    ("((((((((((" * 10_000, ""),
  ],
)
def test_read_choice(answer, labels):
  found = read_choice(answer, OPTIONS)
  assert "".join(found.labels) == labels
  assert bool(found.problem) == (not labels)


def test_an_option_that_looks_like_several():
  options = {"A": "a and b", "B": "c"}
  assert read_choice("a and b", options).labels == ("A",)


@pytest.mark.parametrize(
  ("response", "verdict"),
  [
    (r"A, no: \boxed{B}", "CORRECT"),
    ("The answer is B.", "CORRECT"),
    ("So the answer is (B) a dog", "CORRECT"),
    ("I was wrong: the answer is C.\nNo, the answer is B", "CORRECT"),
    ("Correct answer - B", "CORRECT"),
    ("so option (B).\n", "CORRECT"),
    ("Answer - A\nno, answer - B\nof course", "CORRECT"),
    ("B", "CORRECT"),
    ("a dog", "CORRECT"),
    ("The answer is Rs. 50", "WRONG"),  # not cut at the full stop
    ("The answer is A", "WRONG"),
    ("The answer is A or B", "MALFORMED"),
    (r"\boxed{A, B, C}", "MALFORMED"),
    (r"\boxed{Z}", "MALFORMED"),
    (r"\boxed{B", "MALFORMED"),
    (r"\boxed{}", "NO_ANSWER"),
    ("Option B is wrong.", "NO_ANSWER"),
    ("B is a letter", "NO_ANSWER"),
    ("", "NO_ANSWER"),
    ("answer: " + "B" * 5000, "MALFORMED"),
    ("option " * 200_000, "NO_ANSWER"),
    ("\x00\ud800", "NO_ANSWER"),
  ],
)
def test_choice_verdicts(response, verdict):
  check = make_choice_checker()
  item = {"response": response, "metadata": {"options": OPTIONS}}
  assert check({**item, "reference": "B"})["verdict"] == verdict


def judged(response, reference, options, **settings):
  item = {"response": response, "metadata": {"options": options}}
  check = make_choice_checker(**settings)
  return check({**item, "reference": reference})["verdict"]


def test_options_with_the_same_text_are_all_named():
  for reference, verdict in zip(
    "ABC", ["CORRECT"] * 2 + ["WRONG"], strict=True
  ):
    assert judged("dog", reference, ["dog", "Dog", "cat"]) == verdict


def test_an_answer_over_the_limit_is_not_looked_at():
  options = ["x" * 1500, "y"]
  response = "<answer>" + options[0]
  for most, verdict in ((1000, "MALFORMED"), (1500, "CORRECT")):
    settings = {"delimiter": "<answer>", "max_answer_chars": most}
    assert judged(response, "A", options, **settings) == verdict


def test_bad_references_are_the_verifiers_failure():
  verifier = choice_verifier(delimiter="<answer>", end_delimiter="</answer>")
  metadata = [{}, {"options": ["x"]}, {"options": 3}] + [
    {"options": ["x", "y"]}
  ] * 4
  signals = verifier.verify(
    ["<answer>B</answer>"] * 6 + ["The answer is B"],
    ["B", "A", "A", "C", "b", " A ", "B"],
    metadata,
    np.ones(7, bool),
  )
  assert [Verdict(v).name for v in signals.verdicts["correct"]] == [
    *["VERIFIER_FAILED"] * 4,
    *("CORRECT", "WRONG", "NO_ANSWER"),
  ]
  assert np.isnan(signals.outcome["correct"]).tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_option_order_is_never_the_same():
  orders = [option_order(4, seed=3, key=f"q{i}") for i in range(2300)]
  assert orders[:5] == [option_order(4, seed=3, key=f"q{i}") for i in range(5)]
  counts = collections.Counter(map(tuple, orders))
  # All but the identity, each about 100 times.
  assert len(counts) == 23 and (0, 1, 2, 3) not in counts
  assert min(counts.values()) > 60 and max(counts.values()) < 145
  assert option_order(2, seed=0) == [1, 0]
  assert option_order(4, seed=4, key="q0") != orders[0] or (
    option_order(4, seed=4, key="q1") != orders[1]
  )
  with pytest.raises(ValueError, match="1 options"):
    option_order(1, seed=0)


def test_labels_find_back():
  options = {"A": "x", "B": "y", "C": "z"}
  order = [2, 0, 1]  # z moves to A, x to B, y to C
  shuffled = reordered(options, order)
  assert shuffled == {"A": "z", "B": "x", "C": "y"}
  for label, text in shuffled.items():
    assert options[original_label(label, options, order)] == text


@pytest.mark.skipif(
  not DATA, reason="set RLVR_DATA to a folder that holds aqua/test.jsonl"
)
def test_aqua_gold_in_its_forms():
  check, rationale = make_choice_checker(), collections.Counter()
  for split in ("dev", "test"):
    lines = pathlib.Path(DATA, "aqua", f"{split}.jsonl").read_text("utf-8")
    for record in map(json.loads, lines.splitlines()):
      gold = record["correct"]
      option = record["options"]["ABCDE".index(gold)]
      wrong = "BCDEA"["ABCDE".index(gold)]
      for response, verdict in (
        (gold, "CORRECT"),
        (rf"Hence \boxed{{{gold}}}.", "CORRECT"),
        (f"The answer is {option}", "CORRECT"),
        (f"The answer is {option[2:]}", "CORRECT"),
        (f"#### {wrong}", "WRONG"),
        (f"The answer is {gold} or {wrong}", "MALFORMED"),
      ):
        item = {"response": response, "reference": gold, "metadata": record}
        assert check(item)["verdict"] == verdict, (response, record)
      said = check(
        {"response": record["rationale"], "reference": gold, "metadata": record}
      )
      rationale[said["verdict"]] += 1
  # What people wrote: never misread. One says "ANSWER: 3"; 80 name no letter.
  assert rationale == {"CORRECT": 427, "NO_ANSWER": 80, "MALFORMED": 1}
