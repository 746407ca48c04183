import time

import pytest

from rlvr.verifiers.answers import Extracted, balanced, extract_answer

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
    (r"\boxed{1}, \boxed{2}, \boxed{3}", "3", "boxed"),  # no list of candidates
    ("a\n#### 1,234\n", "1,234", "hash"),
    ("#### 1\n#### 2", "2", "hash"),
    ("#### 4\nThe answer is 5.", "4", "hash"),
    ("The answer is 5.", "5", "phrase"),
    ("The final answer is: $\\frac{1}{2}$. Done.", r"\frac{1}{2}", "phrase"),
    ("the ANSWER IS 2.5 dollars.\nBye", "2.5 dollars", "phrase"),
    ("**Answer:** 12", "12", "phrase"),
    ("I think the answer is C. No, the answer is B", "B", "phrase"),
    ("Answer: \\(x^2\\)", "x^2", "phrase"),
    ("The answer is:\n\n42\n\nDone.", "42", "phrase"),
    ("**Answer:**\n42", "42", "phrase"),
    ("The answer is\n\\[\nx = 5.\n\\]\nDone.", "x = 5", "phrase"),
    ("Answer:\n$$\n\\frac{1}{2}\n$$", r"\frac{1}{2}", "phrase"),
    ("The answer is $$7$$ apples. Done.", "7", "phrase"),
    ("**The answer is 42**", "42", "phrase"),
    ("**Answer: 42.**", "42", "phrase"),
    ("The answer is **42**.", "42", "phrase"),
    ("The answer is", None, "phrase"),
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
  # The last delimiter counts: what stands between two of them is thought.
  twice = r"</think>\boxed{1}</think>2"
  assert extract_answer(twice, delimiter="</think>").answer is None


def test_a_box_without_bounds_has_no_end():
  inside = "1" * 99_000
  assert extract_answer(rf"\boxed{{{inside}}}").answer == inside
  found = extract_answer(rf"\boxed{{{inside}{'1' * 1000}}}")
  assert found.malformed and found.answer is None


def test_an_unknown_source_is_an_error():
  with pytest.raises(ValueError, match="'box'"):
    extract_answer("", sources=("box",))


def test_balanced():
  assert balanced(r"\frac{1}{2}") and balanced(r"\{1, 2\}") and balanced(r"\}")
  assert not balanced("{") and not balanced("}{") and not balanced(r"\frac{1}{")


def test_extraction_of_long_texts_is_quick():
  # What is quadratic in a megabyte takes hours; its own time, not the machine's.
  mega = 1 << 20
  start = time.process_time()
  for text in (
    "{" * mega,
    r"\boxed{" + "{" * mega,
    r"\boxed{" * (mega // 7),
    "answer is" + " " * mega,
    "answer is" + "\n" * mega,
    "answer is $$" * (mega // 12),
    "answer" * (mega // 6),
    "1," * (mega // 2),
    "1,111" * (mega // 5),
    "9" * mega,
    "#" * mega,
    "**" * (mega // 2),
  ):
    extract_answer(text, sources=EVERY)
    extract_answer("#### 1", delimiter=text)
  assert time.process_time() - start < 60
