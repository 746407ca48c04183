import json
import os
import pathlib
import time

import pytest

from rlvr.verifiers import WorkerPool
from rlvr.verifiers.mathematics import (
  Extracted,
  NotMathematics,
  UnreadableReference,
  canonical,
  compare_canonical,
  equivalent,
  extract_answer,
  make_math_checker,
)

EVERY = ("boxed", "hash", "phrase", "last_number")


@pytest.mark.parametrize(
  ("text", "answer", "source"),
  [
    (r"so \boxed{5}.", "5", "boxed"),
    (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}", "boxed"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
    (r"\boxed{x = \boxed{3}}", "3", "boxed"),  # the last one is the inner one
    (r"it is $\boxed 7$ now", "7", "boxed"),
    (r"\fbox{8}", "8", "boxed"),
    (r"\boxed{$9$}", "9", "boxed"),
    (r"\boxed{1} #### 2", "1", "boxed"),  # precedence
    ("a\n#### 1,234\n", "1,234", "hash"),
    ("#### 1\n#### 2", "2", "hash"),
    ("#### 4\nThe answer is 5.", "4", "hash"),
    ("The answer is 5.", "5", "phrase"),
    ("The final answer is: $\\frac{1}{2}$. Done.", r"\frac{1}{2}", "phrase"),
    ("the ANSWER IS 2.5 dollars.\nBye", "2.5 dollars", "phrase"),
    ("**Answer:** 12", "12", "phrase"),
    ("Answer: \\(x^2\\)", "x^2", "phrase"),
    ("3 apples, 4 pears, in all 1,007.", "1,007", "last_number"),
    ("it is -1/2", "-1/2", "last_number"),
    ("the share is 12.5%!", "12.5%", "last_number"),
    ("nothing here", None, None),
    ("", None, None),
  ],
)
def test_extraction(text, answer, source):
  assert extract_answer(text, sources=EVERY) == Extracted(answer, source)


def test_extraction_by_default_takes_no_stray_number():
  assert extract_answer("3 apples").answer is None


def test_the_first_source_that_occurs_decides():
  assert extract_answer(r"#### 5 \boxed{}") == Extracted(None, "boxed")
  open_box = extract_answer(r"#### 5 and \boxed{\frac{1}{2}")
  assert open_box == Extracted(None, "boxed", malformed=True)
  only = extract_answer(r"#### 5 and \boxed{6}", sources=("hash",))
  assert only.answer == r"5 and \boxed{6}"


def test_text_before_the_delimiter_does_not_count():
  text = r"\boxed{1}</think> so #### 2"
  assert extract_answer(text, delimiter="</think>").answer == "2"
  assert extract_answer(text).answer == "1"  # the control
  assert extract_answer("#### 2", delimiter="</think>").answer is None


def test_an_unknown_source_is_an_error():
  with pytest.raises(ValueError, match="'box'"):
    extract_answer("", sources=("box",))


def test_extraction_of_long_texts_is_quick():
  mega = 1 << 20
  start = time.perf_counter()
  for text in (
    "{" * mega,
    r"\boxed{" + "{" * mega,
    "answer is" + " " * mega,
    "answer" * (mega // 6),
    "1," * (mega // 2),
    "1,111" * (mega // 5),
    "9" * mega,
    "#" * mega,
    "**" * (mega // 2),
  ):
    extract_answer(text, sources=EVERY)
    extract_answer("#### 1", delimiter=text)
  assert time.perf_counter() - start < 5


SAME = [
  ("5", "5.0"),
  ("1,234", "1234"),
  ("1{,}234", "1234"),
  (r"11,\! 080", "11080"),
  (r"\$18", "18"),
  ("$18.00", "18"),
  ("18 eggs", "18"),
  (r"18\text{ dollars}", "18"),
  ("−5", "-5"),
  ("+5", "5"),
  (".5", "1/2"),
  (r"\frac{1}{2}", "0.50"),
  (r"\dfrac12", "2/4"),
  (r"-\frac{3}{4}", "-0.75"),
  (r"50\%", "50"),
  ("50%", "0.5"),
  ("{7}", "7"),
  (r"\text{Evelyn}", "evelyn"),
  ("(C)", "C"),
  (r"\left( 1, 2 \right)", "( 1, 2 )"),
  ("2516_8", "2516_{8}"),
  ("2516", "2516_8"),
]
DIFFERENT = [
  ("5", "6"),
  ("1,234", "1.234"),
  ("0.333", "0.334"),
  ("1/2", "1/3"),
  ("-5", "5"),
  ("50%", "5"),
  ("19 eggs", "18"),
  ("red", "der"),
  (r"\text{east}", r"\text{west}"),
  ("101_2", "101_3"),
  ("11_8", "9"),
]
UNDECIDED = [
  ("0.33", "1/3"),
  ("18 million", "18"),
  ("2 pi", "2"),
  ("5 or 6", "5"),
  ("x+1", "1+x"),
  ("1/0", "5"),
  ("", "5"),
  (r"\pi", "3.14"),
]


@pytest.mark.parametrize(
  ("answer", "reference", "same"),
  [
    *((*pair, True) for pair in SAME),
    *((*pair, False) for pair in DIFFERENT),
    *((*pair, None) for pair in UNDECIDED),
  ],
)
def test_canonical_comparison(answer, reference, same):
  assert compare_canonical(answer, reference) is same


def test_canonical_text_by_hand():
  assert canonical(r" $\left(\tfrac{1}{2},\, 3 \right)$. ") == (
    r"(\frac{1}{2}, 3 )"
  )


@pytest.fixture(autouse=True)
def quiet(caplog):
  # math-verify warns that its own timeouts are off.
  caplog.set_level("ERROR", logger="math_verify")


@pytest.mark.parametrize(
  ("answer", "reference", "same"),
  [
    ("x+1", "1+x", True),
    ("(x+1)^2", "x^2+2x+1", True),
    (r"\sqrt{50}", r"5\sqrt2", True),
    (r"(3,\pi/2)", r"\left( 3, \frac{\pi}{2} \right)", True),
    ("x=5", "5", True),
    ("0.333333", "1/3", True),  # math-verify rounds to six places
    ("0.33", "1/3", False),
    (r"\pi", "3.14", False),
    ("x-1", "1-x", False),
    ("5 or 6", "5", False),
    (r"\{5, 6\}", "5", False),
    ("5$ or $6", "5", False),
    (r"(1, 2)", r"(2, 1)", False),
  ],
)
def test_equivalence(answer, reference, same):
  assert equivalent(answer, reference) is same


def test_what_cannot_be_read_is_not_just_unequal():
  with pytest.raises(NotMathematics):
    equivalent("((((", "x+1")
  with pytest.raises(NotMathematics, match="braces"):
    equivalent(r"5} \boxed{6", "x+1")
  with pytest.raises(UnreadableReference, match="x \\+"):
    equivalent("5", "x + (")


@pytest.mark.parametrize(
  ("response", "reference", "verdict"),
  [
    (r"\boxed{2x}", "x+x", "CORRECT"),
    ("#### 5", "5", "CORRECT"),
    ("#### 5", "6", "WRONG"),
    ("I don't know", "6", "NO_ANSWER"),
    (r"\boxed{}", "6", "NO_ANSWER"),
    (r"\boxed{6", "6", "MALFORMED"),
    (r"\boxed{((((}", "6", "MALFORMED"),
    ("#### " + "6" * 2000, "6", "MALFORMED"),
    ("#### 6", " ", "VERIFIER_FAILED"),
    ("#### 6", "x + (", "VERIFIER_FAILED"),
  ],
)
def test_each_verdict_apart(response, reference, verdict):
  check = make_math_checker()
  item = {"response": response, "reference": reference}
  assert check(item)["verdict"] == verdict


def test_hostile_answers_are_contained():
  hostile = {
    # response: what may become of it; never a reward, never silence
    r"\boxed{9^{9^{9^9}}}": {"timed_out"},
    r"\boxed{10^{10^{10}}}": {"timed_out"},
    r"\boxed{(x+1)^{100000}}": {"timed_out", "failed"},
    r"\boxed{" + "(" * 400 + ")" * 400 + "}": {"timed_out", "MALFORMED"},
    r"\boxed{" + "{" * 300 + "}" * 300 + "}": {"timed_out", "MALFORMED"},
    r"\boxed{" + "1" * (1 << 20) + "}": {"MALFORMED"},
    "\\boxed{\ud800}": {"MALFORMED"},
    "\\boxed{\x00}": {"MALFORMED"},
    r"\boxed{__import__('os').abort()}": {"MALFORMED"},
  }
  items = [{"response": text, "reference": "5x"} for text in hostile]
  good = {"response": r"\boxed{5 x}", "reference": "x 5"}
  with WorkerPool(
    "rlvr.verifiers.mathematics:make_math_checker",
    num_workers=2,
    time_limit_s=1.0,
    memory_limit_mb=512,
  ) as pool:
    outcomes = pool.map([good, *items, good])
  names = [o.value["verdict"] if o.value else o.status for o in outcomes]
  assert names[0] == names[-1] == "CORRECT"
  for name, (text, allowed) in zip(names[1:-1], hostile.items(), strict=True):
    assert name in allowed, (text[:40], name)


DATA = os.environ.get("RLVR_DATA")


@pytest.mark.skipif(
  not DATA, reason="set RLVR_DATA to a folder that holds gsm8k/test.jsonl"
)
def test_gsm8k_solutions_are_right_and_other_problems_are_not():
  lines = pathlib.Path(DATA, "gsm8k", "test.jsonl").read_text().splitlines()
  solutions = [json.loads(line)["answer"] for line in lines]
  references = [text.rpartition("####")[2].strip() for text in solutions]
  shifted = references[1:] + references[:1]
  items = [
    {"response": text, "reference": reference}
    for golds in (references, shifted)
    for text, reference in zip(solutions, golds, strict=True)
  ]
  with WorkerPool(
    "rlvr.verifiers.mathematics:make_math_checker",
    num_workers=1,
    time_limit_s=5.0,
  ) as pool:
    verdicts = [o.value["verdict"] for o in pool.map(items)]
  n = len(solutions)
  assert verdicts[:n] == ["CORRECT"] * n
  expected = [
    "CORRECT" if a.replace(",", "") == b.replace(",", "") else "WRONG"
    for a, b in zip(references, shifted, strict=True)
  ]
  assert verdicts[n:] == expected
