"""Mathematical answers: finding one in a text, and comparing two.

Runs in worker processes: imports the standard library here, math-verify and
sympy late, JAX and TensorFlow never.
"""

import collections
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
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
  occurrence does.

  - "boxed": \boxed{...} or \fbox{...} with balanced braces, or \boxed followed
    by a space and an answer without braces;
  - "hash": what follows #### on its line;
  - "phrase": what follows "answer is" or "answer:" up to the end of the line or
    of the sentence;
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
      return Extracted(_strip_math(found_answer) or None, source)
  return Extracted(None, None)


_OPEN = object()
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(
  r"answer(?: is|\*{0,2}:)\*{0,2}[ \t]*+:?[ \t]*+([^\n]*)", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\.(?=\s|\*|$)")
_NUMBER_IN_TEXT = re.compile(
  r"[-−]?(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d+)?(?:/\d+)?%?"
)


def _boxed(text: str) -> Any:
  start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
  if start < 0:
    return None
  rest = text[start:].split("x", 1)[1]
  rest = rest.removeprefix("ed").lstrip(" ")
  if not rest.startswith("{"):
    return re.split(r"[$\n]", rest, maxsplit=1)[0]
  depth = 0
  for brace in _BRACE.finditer(rest):
    depth += {"{": 1, "}": -1}.get(brace.group(), 0)
    if depth == 0 and brace.group() == "}":
      return rest[1 : brace.start()]
  return _OPEN


def _hash(text: str) -> Any:
  _, found, rest = text.rpartition("####")
  return rest.split("\n", 1)[0] if found else None


def _phrase(text: str) -> Any:
  last = _last(_PHRASE, text)
  return last and _SENTENCE_END.split(last.group(1), maxsplit=1)[0]


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


def _strip_math(text: str) -> str:
  """Returns the text without $, \\( \\), \\[ \\] and ** around it."""
  text = text.strip()
  for left, right in (("**", "**"), ("$$", "$$"), ("$", "$")):
    if len(text) > 2 * len(left) and text.startswith(left):
      text = text.removeprefix(left).removesuffix(right).strip()
  for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
    if text.startswith(left) and text.endswith(right):
      text = text[2:-2].strip()
  return text


# Comparison: first exact and cheap, then by computer algebra.

_SPACING = re.compile(r"(?:\\[!,;: ]|\\q?quad(?![a-zA-Z])|~|\s)++")
_SIZING = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])")
_TEXT = re.compile(
  r"\\(?:text|textbf|textit|textrm|mbox|mathrm)\s*\{([^{}]*)\}"
)
_CHOICE = re.compile(r"\(([A-Z])\)")
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(rf"([+-]?)({_PLAIN})(%?)")
_RATIO = re.compile(r"([+-]?)\(?(\d+)/(\d+)\)?")
_TEX_RATIO = re.compile(r"([+-]?)\\frac(?:\{(-?\d+)\}|(\d))(?:\{(\d+)\}|(\d))")
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z' -]+")
_WITH_UNIT = re.compile(rf"([+-]?(?:{_PLAIN})) ?((?:[A-Za-z]{{2,}} ?){{1,3}})")
# Words that change a number's value, or may: no units.
_VALUE_WORDS = (
  "and cubed cos deg degrees dozen exp factorial fifth fifths fourth fourths"
  " gross half halves hundred hundreds infinity inf ln log million millions"
  " billion billions minus mod of or over percent pi plus quarter quarters root"
  " score sin sqrt squared tan theta third thirds thousand thousands times to"
  " trillion trillions"
)
_NOT_UNITS = frozenset(_VALUE_WORDS.split())
_IN_BASE = re.compile(r"([0-9A-Za-z]+)_(?:\{(\d+)\}|(\d+))")


def canonical(text: str) -> str:
  """Returns an answer without the ways of writing that mean nothing.

  Dollar signs, spacing and sizing commands, text wrappers, a final full stop
  and brackets around a choice letter go; fractions and percent signs get one
  spelling. White space becomes one space.
  """
  text = text.replace(r"\$", "").replace("$", "").replace("{,}", ",")
  text = text.replace("−", "-").replace(r"\%", "%")
  text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
  text = _TEXT.sub(r" \1 ", _SIZING.sub("", text))
  text = _SPACING.sub(" ", text).strip().removesuffix(".").strip()
  while text[:1] == "{" and text[-1:] == "}" and _balanced(text[1:-1]):
    text = text[1:-1].strip()
  return _CHOICE.sub(r"\1", text) if _CHOICE.fullmatch(text) else text


class _Number(NamedTuple):
  value: Fraction
  percent: bool
  written: Literal["decimal", "ratio"]


def _number(text: str) -> _Number | None:
  """Returns the number that a canonical answer is, if it is one."""
  text = text.replace(" ", "")
  if match := _NUMBER.fullmatch(text):
    sign, digits, percent = match.groups()
    value = Fraction(digits.replace(",", "").rstrip("."))
    return _Number(-value if sign == "-" else value, bool(percent), "decimal")
  match = _RATIO.fullmatch(text) or _TEX_RATIO.fullmatch(text)
  if match is None:
    return None
  sign, over, under = (group for group in match.groups() if group is not None)
  if int(under) == 0:
    return None  # no number; math-verify has its own way with 1/0
  value = Fraction(int(over), int(under))
  return _Number(-value if sign == "-" else value, False, "ratio")


def compare_canonical(answer: str, reference: str) -> bool | None:
  """Returns whether two answers are the same; None where this can't tell.

  Exact: numbers are compared as fractions ("1,000" = "1000.0", "1/2" = "0.5",
  "0.33" ≠ "0.34"); "50%" is 50 (the question asked for percent) and 1/2; a
  decimal against an unequal ratio isn't decided here, as the decimal may be
  rounded. Up to three words behind the answer's number are a unit and don't
  count ("18 eggs" = "18"), unless they may change its value ("18 million") or
  the reference has some too. Words of three letters or more are compared as
  words, ignoring case (else "red" is "der": a product of three variables);
  numerals with a base digit by digit.

  Args:
    answer: the response's answer.
    reference: the right one.
  """
  a, r = canonical(answer), canonical(reference)
  if a and a == r:
    return True
  x, y = _number(a), _number(r)
  if x is not None and y is not None:
    values = {x.value}
    if x.percent != y.percent:
      values.add(x.value / 100 if x.percent else x.value * 100)
    if y.value in values:
      return True
    return None if x.written != y.written else False
  if y is not None and (with_unit := _WITH_UNIT.fullmatch(a)):
    x = _number(with_unit[1])
    if x is not None and not _NOT_UNITS & set(with_unit[2].lower().split()):
      return x.value == y.value
  if _WORDS.fullmatch(a) and _WORDS.fullmatch(r):
    return a.casefold().split() == r.casefold().split()
  m, n = _IN_BASE.fullmatch(a), _IN_BASE.fullmatch(r)
  if m and n:
    base = [match[2] or match[3] for match in (m, n)]
    return m[1] == n[1] and base[0] == base[1]
  if m or n:  # the base may be left out: the question has named it
    return (m[1] if m else a) == (n[1] if n else r)
  return None


class NotMathematics(ValueError):
  """The answer can't be read as mathematics."""


class UnreadableReference(ValueError):
  """The reference can't be read as mathematics: nobody can judge."""


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> tuple:
  """Returns the sympy expressions that math-verify reads in an answer."""
  import math_verify

  if not _balanced(text):
    raise NotMathematics("unbalanced braces")
  # Boxed, so that the whole answer is read or nothing: math-verify picks the
  # last number from a text that it can't read, which would pay for hedging.
  # Its own timeouts are off: they use signal.alarm; the pool has the clock.
  parsed = math_verify.parse(
    r"\boxed{" + text + "}",
    [math_verify.LatexExtractionConfig(boxed_match_priority=0)],
    fallback_mode="no_fallback",
    parsing_timeout=None,  # type: ignore[arg-type]
    raise_on_error=True,
  )
  if not parsed:
    raise NotMathematics("math-verify can't read it")
  return tuple(parsed)


def _balanced(text: str) -> bool:
  depth = 0
  for brace in _BRACE.finditer(text):
    depth += {"{": 1, "}": -1}.get(brace.group(), 0)
    if depth < 0:
      return False
  return depth == 0


def _for_parser(text: str) -> str:
  return text.replace(r"\$", "").replace("$", "").strip()


def equivalent(answer: str, reference: str) -> bool:
  """Returns whether two answers are mathematically the same.

  First `compare_canonical`; where that can't tell, math-verify (sympy), which
  compares numbers to six places. Not symmetric, as math-verify isn't: "x=5" is
  right for "5".

  This may run for ever on hostile input: call it in a `WorkerPool`.

  Args:
    answer: the response's answer, without surrounding text.
    reference: the right one, likewise.

  Raises:
    NotMathematics: the answer, but not the reference, can't be read.
    UnreadableReference: the reference can't be read.
  """
  same = compare_canonical(answer, reference)
  if same is not None:
    return same
  import math_verify

  try:
    right = _parse(_for_parser(reference))
  except NotMathematics as error:
    raise UnreadableReference(f"{reference[:80]!r}: {error}") from error
  return math_verify.verify(
    list(right),
    list(_parse(_for_parser(answer))),
    timeout_seconds=None,
    raise_on_error=True,
  )


def make_math_checker(
  *,
  sources: Sequence[Source] = DEFAULT_SOURCES,
  delimiter: str = "",
  max_answer_chars: int = 1000,
) -> Callable[[Mapping[str, Any]], dict[str, str]]:
  """Returns the item function for `WorkerPool`.

  It takes {"response", "reference"} and returns {"verdict", "detail"}:
  NO_ANSWER (nothing found), MALFORMED (an open box, more than
  `max_answer_chars`, or not readable as mathematics), CORRECT, WRONG, or
  VERIFIER_FAILED (no reference, or one that can't be read). What math-verify
  raises while comparing is raised: the pool reports it.

  Args:
    sources: see `extract_answer`.
    delimiter: see `extract_answer`.
    max_answer_chars: longer answers are not looked at.

  Raises:
    ValueError: an unknown source.
  """
  extract_answer("", sources=sources)
  import logging

  import math_verify  # noqa: F401  the import is the worker's start-up, once

  # It warns that its timeouts are off, which is what we want.
  logging.getLogger("math_verify").setLevel(logging.ERROR)
  equivalent("x+1", "1+x")  # compiles its patterns, outside any time limit

  def check(item: Mapping[str, Any]) -> dict[str, str]:
    reference = item["reference"]
    if not reference.strip():
      return {"verdict": "VERIFIER_FAILED", "detail": "no reference"}
    found = extract_answer(
      item["response"], sources=sources, delimiter=delimiter
    )
    if found.malformed:
      return {"verdict": "MALFORMED", "detail": f"{found.source}: no end"}
    if found.answer is None:
      return {"verdict": "NO_ANSWER", "detail": ""}
    if len(found.answer) > max_answer_chars:
      detail = f"{len(found.answer)} characters"
      return {"verdict": "MALFORMED", "detail": detail}
    try:
      same = equivalent(found.answer, reference)
    except NotMathematics as error:
      return {"verdict": "MALFORMED", "detail": str(error)}
    except UnreadableReference as error:
      return {"verdict": "VERIFIER_FAILED", "detail": str(error)}
    return {"verdict": "CORRECT" if same else "WRONG", "detail": ""}

  return check
