import numpy as np
import pytest

from rlvr.types import Verdict
from rlvr.verifiers.mixed import mixed_verifier


def said(answer):
  return f"<think>so</think><answer>{answer}</answer>"


def similarity(answer, reference):
  return 1.0 if answer == reference else len(answer) / 100


ITEMS = [
  (said("B"), "B", {"kind": "choice", "options": ["no", "yes"]}),
  (said("Yes."), "yes", {"kind": "match"}),
  (said("no"), "yes", {"kind": "match"}),
  (said("104"), "100", {"kind": "chart"}),
  (said("106"), "100", {"kind": "chart"}),
  (said("[0,0,4,2]"), "[1,0,3,2]", {"kind": "box"}),
  (said("a cat"), "a cat", {"kind": "open"}),
  (said("a dog"), "a cat", {"kind": "open"}),
]


def verify(items, **options):
  return mixed_verifier(**options).verify(
    *zip(*items, strict=True), np.ones(len(items), bool)
  )


def test_each_kind_has_its_measure():
  signals = verify(ITEMS, similarity=similarity)
  assert [Verdict(v).name for v in signals.verdicts["correct"]] == [
    *("CORRECT", "CORRECT", "WRONG", "CORRECT", "WRONG", "CORRECT"),
    *("CORRECT", "WRONG"),
  ]
  np.testing.assert_allclose(
    signals.outcome["correct"], [1, 1, 0, 1, 0, 0.5, 1, 0.05]
  )
  np.testing.assert_array_equal(signals.outcome["format"], np.ones(8))


def test_without_the_format_the_whole_response_is_the_answer():
  signals = verify(
    [("yes", "yes", {"kind": "match"}), ("B", *ITEMS[0][1:])],
  )
  np.testing.assert_array_equal(signals.outcome["correct"], [1, 1])
  np.testing.assert_array_equal(signals.outcome["format"], [0, 0])


def test_what_can_not_be_judged():
  items = [
    ("x", "x", {"kind": "song"}),
    ("x", "x", {}),
    ("x", "x", {"kind": "open"}),  # no similarity
    ("x", "", {"kind": "match"}),
    ("", "x", {"kind": "match"}),
    ("x" * 3000, "x", {"kind": "match"}),
    ("x" * 60_000, "x", {"kind": "match"}),
    ("", "x", {"kind": "box"}),
  ]
  signals = verify(items)
  assert [Verdict(v).name for v in signals.verdicts["correct"]] == [
    *["VERIFIER_FAILED"] * 4,
    *("NO_ANSWER", "MALFORMED", "MALFORMED", "VERIFIER_FAILED"),
  ]
  open_items = [
    ("", "x", {"kind": "open"}),
    ("x", " ", {"kind": "open"}),
  ]
  signals = verify(open_items, similarity=similarity)
  assert signals.verdicts["correct"].tolist() == [
    Verdict.NO_ANSWER,
    Verdict.VERIFIER_FAILED,
  ]


@pytest.mark.parametrize(
  "options", [{"threshold": 2.0}, {"tolerance": -1.0}, {"tags": ()}]
)
def test_bad_options(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    mixed_verifier(**options)


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.5])
def test_a_similarity_out_of_range_is_a_failure(score):
  item = ("a long answer", "a text", {"kind": "open"})
  signals = verify([item], similarity=lambda a, b: score)
  assert signals.verdicts["correct"].tolist() == [Verdict.VERIFIER_FAILED]
  assert np.isnan(signals.outcome["correct"]).all()


def test_a_kind_that_is_no_text_is_a_failure():
  signals = verify([("x", "x", {"kind": ["open"]})])
  assert signals.verdicts["correct"].tolist() == [Verdict.VERIFIER_FAILED]
