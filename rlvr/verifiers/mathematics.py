r"""Comparing mathematical answers: by their notation, then by computer algebra.

What counts as the same, besides what is equal:

- spacing, sizing, wrappers, look-alike characters, "approximately", a full stop
  (`notation.canonical`);
- numbers exactly: 1,000 and 1000.0, 1/2 and 0.5, 3\frac{1}{2} and 7/2,
  1.2\times10^5 and 120000; a decimal for 1/3 from six right digits on
  (`notation.same_number`);
- a percent, degree or currency sign or a unit may be left out; 50% is also 0.5.
  Two units must be the same; none is converted into another (`units`);
- a name before an equals sign may be left out: "x = 5" is 5, "x = 2+3 = 5" too,
  where every side has to be right; x = 5 isn't y = 5;
- a list without brackets is in any order, as a set is, and equal to the set; a
  tuple is in order, and equal to a list in its order and to a vector; an
  interval needs its brackets; inequalities in one unknown are intervals
  (`structures`); \pm stands for two answers;
- a calculation is not the number that it comes to, unless the checker is told to
  accept it (`is_left_to_work_out`);
- words whatever their case, spaces and punctuation; a choice letter with or
  without brackets; a numeral in a base digit by digit, without it or with it.

One answer that lists many is not the one that is right.

Runs in worker processes: imports the standard library here, math-verify and
sympy late, JAX and TensorFlow never. Answers are hostile: `costs` says what is
never handed to computer algebra, and no text is ever evaluated as Python.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

from rlvr.verifiers.algebra import (
  NotMathematics,
  UnreadableReference,
  algebraically_equal,
)
from rlvr.verifiers.answers import (
  DEFAULT_SOURCES,
  Extracted,
  Source,
  extract_answer,
)
from rlvr.verifiers.notation import canonical, number, same_number
from rlvr.verifiers.structures import (
  Structure,
  is_equation,
  is_name,
  is_relation,
  peel,
  read,
  sides,
)
from rlvr.verifiers.units import split_unit, words

__all__ = [
  "DEFAULT_SOURCES",
  "Extracted",
  "NotMathematics",
  "Source",
  "UnreadableReference",
  "compare_canonical",
  "equivalent",
  "extract_answer",
  "make_math_checker",
]

Unevaluated = Literal["wrong", "accepted"]

_MAX_DEPTH = 4  # of lists in lists
_MAX_ITEMS = 64
_IN_BASE = re.compile(
  r"(-?(?=[A-Za-z.]*[0-9])[0-9A-Za-z.]+)_(?:\{([0-9]+)\}|([0-9]+))"
)
_NUMERAL = re.compile(r"-?[0-9A-Za-z.]+")
_COLON = re.compile(r"[0-9]{1,9}(?::[0-9]{1,9}){1,2}")
_LETTER = re.compile(r"[A-Za-z]")


def compare_canonical(answer: str, reference: str) -> bool | None:
  """Returns whether two answers are the same; None where notation can't tell.

  The fast path: no computer algebra. See the module for what is the same.

  Args:
    answer: the response's answer.
    reference: the right one.
  """
  try:
    return _same(canonical(answer), canonical(reference), _no_algebra)
  except (_Undecided, UnreadableReference):
    return None


def equivalent(answer: str, reference: str) -> bool:
  """Returns whether two answers are mathematically the same.

  First by notation; the parts where that can't tell by math-verify (sympy),
  which compares numbers to six places. See the module for what is the same.

  This may run long on a hostile answer: call it in a `WorkerPool`.

  Args:
    answer: the response's answer, without surrounding text.
    reference: the right one, likewise.

  Raises:
    NotMathematics: the answer, but not the reference, can't be read, or is too
      costly to compare.
    UnreadableReference: the reference can't be read.
  """
  return _same(canonical(answer), canonical(reference), algebraically_equal)


class _Undecided(Exception):
  """The fast path can't tell."""


def _no_algebra(answer: str, reference: str) -> bool:
  raise _Undecided


Algebra = Callable[[str, str], bool]


def _same(a: str, r: str, algebra: Algebra, depth: int = 0) -> bool:
  """Returns whether canonical answers are the same.

  Args:
    a: the response's.
    r: the reference.
    algebra: compares what has no structure.
    depth: how many structures are around.
  """
  if a == r and a:
    return True
  if not a or not r:
    return False
  a, r = peel(a), peel(r)
  x, y = number(a), number(r)
  if x is not None and y is not None:
    return same_number(x, y)
  told, wanted = words(a), words(r)
  if told is not None and told == wanted:
    return True
  (a_bare, a_unit), (r_bare, r_unit) = split_unit(a), split_unit(r)
  if a_unit or r_unit:
    if a_unit and r_unit and a_unit != r_unit:
      return False
    return _same(a_bare, r_bare, algebra, depth)
  s, t = read(a), read(r)
  if "&" in r and t is None and r.startswith(r"\begin"):
    raise UnreadableReference(f"{r[:80]!r}: its rows differ in length")
  if (s is None and is_equation(a)) or (t is None and is_equation(r)):
    return _same_equation(a, r, algebra, depth)
  if (s is None or t is None) and (
    (is_relation(a) and is_relation(r)) or (r"\begin" in a and r"\begin" in r)
  ):
    return algebra(a, r)
  if s is not None or t is not None:
    # 1,234 is a pair where a pair is on the other side.
    if s is None and x is not None and "," in a:
      s = read(a, commas=True)
    if t is None and y is not None and "," in r:
      t = read(r, commas=True)
    return _same_structure(s or a, t or r, algebra, depth + 1)
  return _same_atom(a, r, algebra)


def _same_structure(
  s: Structure | str, t: Structure | str, algebra: Algebra, depth: int
) -> bool:
  if isinstance(s, str):
    s = Structure("list", (s,))
  if isinstance(t, str):
    t = Structure("list", (t,))
  if len(s.items) != len(t.items) or depth > _MAX_DEPTH:
    return False
  if len(s.items) > _MAX_ITEMS:
    return sorted(s.items) == sorted(t.items) and s.kind == t.kind
  kinds = {s.kind, t.kind}

  def same(x: str, y: str) -> bool:
    return _same(x, y, algebra, depth)

  if kinds <= {"list", "set"} or kinds == {"union"}:
    return _same_in_any_order(s.items, t.items, same)
  if "matrix" in kinds:
    flat = {s.rows, t.rows} - {0} <= {1, len(s.items)}
    comparable = s.rows == t.rows or (kinds == {"matrix", "()"} and flat)
  else:
    comparable = s.kind == t.kind or kinds == {"list", "()"}
  return comparable and all(
    same(x, y) for x, y in zip(s.items, t.items, strict=True)
  )


def _same_in_any_order(
  xs: Sequence[str], ys: Sequence[str], same: Callable[[str, str], bool]
) -> bool:
  """Returns whether each item has its own partner.

  Greedy, which is right as far as being the same is transitive.
  """
  left = list(xs)
  undecided = False
  for y in ys:
    for i, x in enumerate(left):
      try:
        if same(x, y):
          del left[i]
          break
      except _Undecided:
        undecided = True
    else:
      if undecided:
        raise _Undecided
      return False
  return True


def _same_equation(a: str, r: str, algebra: Algebra, depth: int) -> bool:
  answers, references = sides(a), sides(r)
  if depth > _MAX_DEPTH:
    return False

  def same(x: str, y: str) -> bool:
    return _same(x, y, algebra, depth + 1)

  name, value = references[0], references[-1]
  if len(references) == 1:
    if len(answers) > 1 and (
      is_name(answers[0]) or (_LETTER.search(answers[0]) and value != "0")
    ):
      answers = answers[1:]
    while len(answers) > 1 and is_name(answers[0]):
      answers = answers[1:]
    return all(same(side, value) for side in answers)
  if len(answers) == 1:
    return is_name(name) and same(answers[0], value)
  if is_name(name) and answers[0] == name:
    return all(same(side, value) for side in answers[1:])
  if not _has_unknown(r):  # 0.56 = 56%
    return all(same(side, value) for side in answers)
  if not _has_unknown(a):
    return False
  if is_name(name) and is_name(answers[0]) and number(value) is not None:
    return False  # x = 5 isn't y = 5
  return algebra(a, r)


def _same_atom(a: str, r: str, algebra: Algebra) -> bool:
  if words(r) is not None:
    return False  # equal words are already the same
  for x, y in ((a, r), (r, a)):
    if number(x) is not None and _has_unknown(y):
      return False
  m, n = _IN_BASE.fullmatch(a), _IN_BASE.fullmatch(r)
  if m and n:
    same_base = (m[2] or m[3]) == (n[2] or n[3])
    return m[1].lower() == n[1].lower() and same_base
  bare = r if m else a
  if (m or n) and _NUMERAL.fullmatch(bare):  # the question named the base
    return (m[1] if m else a).lower() == (n[1] if n else r).lower()
  if _COLON.fullmatch(a) or _COLON.fullmatch(r):
    return _same_colons(a, r)
  return algebra(a, r)


_NO_UNKNOWN = re.compile(
  r"\\[A-Za-z]+"
  r"|(?<![A-Za-z])(?:sin|cos|tan|cot|sec|csc|ln|log|exp|e|i)(?![A-Za-z])"
)


def _has_unknown(text: str) -> bool:
  """Returns whether a text has a letter that stands for no number.

  No number is the same as such a text: what would cancel is no answer.
  """
  return _LETTER.search(_NO_UNKNOWN.sub("", text)) is not None


def _same_colons(a: str, r: str) -> bool:
  """Returns whether times of day are the same, or ratios: 2:3 is also 2/3."""
  sides = []
  for text in (a, r):
    if _COLON.fullmatch(text):
      parts = [int(part) for part in text.split(":")]
      ratio = len(parts) == 2 and parts[1]
      sides.append((parts, Fraction(*parts) if ratio else None))
    else:
      value = number(text)
      sides.append(([], value and value.value))
  (parts, x), (others, y) = sides
  if parts and others:
    return parts == others
  return x is not None and x == y


# Two numbers with an operation between them.
_OPERATION = re.compile(
  r"[0-9.)}!%](?:[-+*/]|\\(?:cdot|times|div|ast)(?![A-Za-z]))[-0-9.({\\]"
)


def is_left_to_work_out(answer: str, reference: str) -> bool:
  """Returns whether an answer is a calculation where a number was wanted.

  "12+15" for 27 is equal to it, and is no answer: a policy that is rewarded for
  it learns to repeat the question. Fractions, mixed numbers, powers and
  scientific notation are numbers; of "x = 12+15 = 27" the last side counts.

  Args:
    answer: the response's answer.
    reference: the right one.
  """
  if number(peel(canonical(reference))) is None:
    return False
  last = peel(sides(canonical(answer))[-1])
  bare, _ = split_unit(last)
  return number(bare) is None and _OPERATION.search(bare) is not None


def make_math_checker(
  *,
  sources: Sequence[Source] = DEFAULT_SOURCES,
  delimiter: str = "",
  max_answer_chars: int = 1000,
  unevaluated: Unevaluated = "wrong",
) -> Callable[[Mapping[str, Any]], dict[str, str]]:
  """Returns the item function for `WorkerPool`.

  It takes {"response", "reference"} and returns {"verdict", "detail"}:
  NO_ANSWER (nothing found), MALFORMED (an open box, more than
  `max_answer_chars`, not readable as mathematics, or too costly to compare),
  CORRECT, WRONG, or VERIFIER_FAILED (no reference, or one that can't be read).
  So a response has a verdict with a reward, whatever it says; what is left for
  the pool is what runs too long or takes too much memory.

  Args:
    sources: see `extract_answer`.
    delimiter: see `extract_answer`.
    max_answer_chars: longer answers are not looked at.
    unevaluated: whether a right calculation in the place of a number is "wrong"
      or "accepted", see `is_left_to_work_out`.

  Raises:
    ValueError: an unknown source, or another word for `unevaluated`.
  """
  extract_answer("", sources=sources)
  if unevaluated not in get_args(Unevaluated):
    raise ValueError(
      f"make_math_checker.unevaluated={unevaluated!r}: give one of"
      f" {get_args(Unevaluated)}"
    )
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
    if not canonical(found.answer):
      return {"verdict": "NO_ANSWER", "detail": f"{found.answer[:20]!r}"}
    try:
      same = equivalent(found.answer, reference)
    except NotMathematics as error:
      return {"verdict": "MALFORMED", "detail": str(error)}
    except UnreadableReference as error:
      return {"verdict": "VERIFIER_FAILED", "detail": str(error)}
    except RecursionError:
      return {"verdict": "MALFORMED", "detail": "nested too deeply"}
    if (
      same
      and unevaluated == "wrong"
      and is_left_to_work_out(found.answer, reference)
    ):
      detail = f"{found.answer[:40]!r} is left to be worked out"
      return {"verdict": "WRONG", "detail": detail}
    return {"verdict": "CORRECT" if same else "WRONG", "detail": ""}

  return check
