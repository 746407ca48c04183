"""Final answers: finding the one that a response gives.

Runs in worker processes: imports the standard library alone.
"""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

Source = Literal["boxed", "hash", "phrase", "last_number"]

# GSM8K ends in "#### N", MATH in \boxed{}: the more deliberate mark goes first.
DEFAULT_SOURCES: tuple[Source, ...] = ("boxed", "hash", "phrase")


class Extracted(NamedTuple):
  """The final answer of a text.

  answer: without math delimiters around it; None if there is none.
  source: the rule that spoke; None if none did.
  malformed: the rule spoke, but what it found has no end (an open brace).
  """

  answer: str | None
  source: Source | None
  malformed: bool = False


def extract_answer(
  text: str,
  *,
  sources: Sequence[Source] = DEFAULT_SOURCES,
  delimiter: str = "",
) -> Extracted:
  r"""Returns the final answer of a text.

  The first source that occurs in the text decides, even where what it marks
  turns out to be empty (no answer) or malformed; within a source, its last
  occurrence does. So whoever boxes several answers has given the last one:
  MATH's solutions sometimes box an answer in two forms, and nothing is won by
  boxing all candidates.

  - "boxed": \boxed{...} or \fbox{...} with balanced braces, or \boxed followed
    by a space and an answer without braces;
  - "hash": what follows #### on its line;
  - "phrase": what follows "answer is" or "answer:", on that line or the next
    that isn't blank, up to the end of the line or of the sentence; displayed
    mathematics that begins there, \[...\] or $$...$$, as a whole;
  - "last_number": the last integer, decimal or a/b.

  Args:
    text: a response.
    sources: rules in order of precedence.
    delimiter: where not empty, only what follows its last occurrence is looked
      at (for instance "</think>"); a text without it has no answer.

  Raises:
    ValueError: an unknown source.
  """
  if delimiter:
    _, found, text = text.rpartition(delimiter)
    if not found:
      return Extracted(None, None)
  for source in sources:
    if source not in _FINDERS:
      raise ValueError(f"source {source!r}: give some of {list(_FINDERS)}")
    found_answer = _FINDERS[source](text)
    if found_answer is _OPEN:
      return Extracted(None, source, malformed=True)
    if found_answer is not None:
      return Extracted(strip_math(found_answer) or None, source)
  return Extracted(None, None)


_OPEN = object()
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MAX_BOX = 100_000  # characters; a longer box counts as one without an end
_PHRASE = re.compile(
  r"answer(?: is|\*{0,2}:)\*{0,2}[ \t]*+:?\s*+", re.IGNORECASE
)
_DISPLAYS = ((r"\[", r"\]"), ("$$", "$$"))
_MAX_DISPLAY = 10_000  # characters
_SENTENCE_END = re.compile(r"\.(?=\s|\*|$)")
_NUMBER_IN_TEXT = re.compile(
  r"[-−]?(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d+)?(?:/\d+)?%?"
)


def balanced(text: str) -> bool:
  r"""Returns whether every { has its }; \{ and \} are no braces."""
  depth = 0
  for brace in _BRACE.finditer(text):
    depth += {"{": 1, "}": -1}.get(brace.group(), 0)
    if depth < 0:
      return False
  return depth == 0


def _boxed(text: str) -> Any:
  start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
  if start < 0:
    return None
  rest = text[start:].split("x", 1)[1]
  rest = rest.removeprefix("ed").lstrip(" ")
  if not rest.startswith("{"):
    return re.split(r"[$\n]", rest, maxsplit=1)[0]
  depth = 0
  for brace in _BRACE.finditer(rest, 0, _MAX_BOX):
    depth += {"{": 1, "}": -1}.get(brace.group(), 0)
    if depth == 0 and brace.group() == "}":
      return rest[1 : brace.start()]
  return _OPEN


def _hash(text: str) -> Any:
  _, found, rest = text.rpartition("####")
  return rest.split("\n", 1)[0] if found else None


def _phrase(text: str) -> Any:
  last = _last(_PHRASE, text)
  if last is None:
    return None
  rest = text[last.end() : last.end() + _MAX_DISPLAY]
  for left, right in _DISPLAYS:
    inside, end, _ = rest.removeprefix(left).partition(right)
    if rest.startswith(left) and end:
      return " ".join(inside.split()).removesuffix(".")
  line = text[last.end() :].split("\n", 1)[0]
  return _SENTENCE_END.split(line, maxsplit=1)[0]


def _last_number(text: str) -> Any:
  last = _last(_NUMBER_IN_TEXT, text)
  return last and last.group()


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
  return next(iter(collections.deque(pattern.finditer(text), maxlen=1)), None)


_FINDERS: dict[str, Callable[[str], Any]] = {
  "boxed": _boxed,
  "hash": _hash,
  "phrase": _phrase,
  "last_number": _last_number,
}


def strip_math(text: str) -> str:
  r"""Returns the text without $, \( \), \[ \] and ** around it."""
  text = text.strip()
  for left, right in (("**", "**"), ("$$", "$$"), ("$", "$")):
    if len(text) > 2 * len(left) and text.startswith(left):
      text = text.removeprefix(left).removesuffix(right).strip()
  for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
    if text.startswith(left) and text.endswith(right):
      text = text[2:-2].strip()
  # "**The answer is 5**": what opens the bold text stands before the answer.
  return text if text.startswith("**") else text.removesuffix("**").rstrip()
