r"""What is too costly to hand to computer algebra.

A pool kills a comparison that doesn't end, and nobody then knows whether the
answer was right: it is masked. So an answer that never ends must be told apart
from one that is merely hard, or a policy could hide its wrong answers behind
9^{9^{9^9}}. What is refused here is the response's fault and has reward 0.

The limits are far above the answers of the public data sets (at most 4 brackets
deep, 250 characters).

Runs in worker processes: imports the standard library here, sympy late.
"""

import math
import re
from typing import Any

_MAX_CHARS = 400
_MAX_BRACKETS = 6  # parsing costs exponential time in their depth
_MAX_COMMANDS = 60
_MAX_TOWER = 2  # exponents in an exponent
_MAX_DIGITS = 10_000.0  # of a number that is to be computed
_MAX_FACTORIAL = 5_000.0
_MAX_TERMS = 1_000  # of a power of a sum, multiplied out
_MAX_NODES = 200

_CHAIN = re.compile(r"(?:\^(?:[0-9A-Za-z]|\\[A-Za-z]+) ?){3}")
# math-verify computes these while it reads.
_BINOMIAL = re.compile(r"\\[dt]?binom|\\choose")
_BIG_LITERAL = re.compile(r"[0-9]{5}")
_UNEVALUATED = re.compile(r"\\(?:i*int|oint|sum|prod|lim)(?![A-Za-z])")
_SIGNS = re.compile(r"[-+!'|]{8}")


class TooCostly(ValueError):
  """The text would cost too much to compare."""


def check_text(text: str, *, reference: str | None = None) -> None:
  r"""Raises TooCostly if a text isn't to be parsed.

  Args:
    text: from `notation.canonical`.
    reference: what an answer is compared with; None if the text is itself the
      reference. An answer with an integral, a sum or a limit that the reference
      doesn't have isn't worked out.
  """
  if len(text) > _MAX_CHARS:
    raise TooCostly(f"{len(text)} characters")
  depth = deepest = 0
  tower = [0]  # exponents that are around, for each open bracket
  previous = ""
  for c in text:
    if c in "([{":
      depth += 1
      tower.append(tower[-1] + (previous == "^"))
    elif c in ")]}":
      depth -= 1
      tower = tower[:-1] or [0]
    deepest = max(deepest, depth)
    if tower[-1] + (c == "^") > _MAX_TOWER:
      raise TooCostly("a tower of exponents")
    previous = c
  if _CHAIN.search(text):
    raise TooCostly("a tower of exponents")
  if deepest > _MAX_BRACKETS:
    raise TooCostly(f"brackets {deepest} deep")
  if text.count("\\") > _MAX_COMMANDS:
    raise TooCostly(f"{text.count(chr(92))} commands")
  if _SIGNS.search(text):
    raise TooCostly("a run of signs")
  if _BINOMIAL.search(text) and _BIG_LITERAL.search(text):
    raise TooCostly("a binomial coefficient of something large")
  if reference is not None and _UNEVALUATED.search(text):
    missing = set(_UNEVALUATED.findall(text)) - set(
      _UNEVALUATED.findall(reference)
    )
    if missing:
      raise TooCostly(f"{sorted(missing)[0]} isn't worked out")
    if _BIG_LITERAL.search(text):
      raise TooCostly("a sum, product or integral up to something large")


def check_expression(expression: Any) -> None:
  """Raises TooCostly if evaluating a parsed expression would cost too much.

  Args:
    expression: of sympy, unevaluated.
  """
  import sympy

  for count, _ in enumerate(sympy.preorder_traversal(expression)):
    if count > _MAX_NODES:
      raise TooCostly(f"more than {_MAX_NODES} parts")
  _digits(expression, sympy)


def _digits(e: Any, sympy: Any) -> float | None:
  """Returns a bound on log10 of a number's size; None of what has unknowns.

  Raises TooCostly where that, or a power of a sum, is too large.
  """
  parts = [_digits(arg, sympy) for arg in getattr(e, "args", ())]
  if isinstance(e, sympy.Rational):
    size = max(abs(int(e.p)).bit_length(), int(e.q).bit_length())
    return _bounded(max(size * math.log10(2), 0.0))
  if isinstance(e, sympy.Number):
    return max(float(sympy.log(abs(e) + 1, 10)), 0.0)
  if isinstance(e, sympy.NumberSymbol):
    return 0.5
  if not parts:
    return None
  if isinstance(e, sympy.Pow):
    return _power(parts, e)
  known = [p for p in parts if p is not None]
  if isinstance(
    e, (sympy.factorial, sympy.gamma, sympy.factorial2, sympy.binomial)
  ):
    if known and 10 ** min(known[0], 300.0) > _MAX_FACTORIAL:
      raise TooCostly("a factorial of something large")
    return 10 ** known[0] * max(known[0], 1.0) if known else None
  if isinstance(e, sympy.exp) and known:
    return _bounded(10 ** min(known[0], 300.0))
  if len(known) < len(parts):
    return None
  if isinstance(e, sympy.Mul):
    return _bounded(sum(known))
  return _bounded(max(known) + math.log10(len(known) + 1))


def _power(parts: list[float | None], e: Any) -> float | None:
  base, exponent = parts
  if exponent is None:
    return None
  size = abs(float(e.exp)) if e.exp.is_Number else 10 ** min(exponent, 300.0)
  if base is None:
    if e.base.is_Add and e.exp.is_Integer:
      others = _terms(e.base) - 1
      if (
        size > _MAX_TERMS or math.comb(int(size) + others, others) > _MAX_TERMS
      ):
        raise TooCostly("a high power of a sum")
    return None
  return _bounded(size * max(base, 0.1))


def _terms(e: Any) -> int:
  """Returns how many terms a sum has; a parser may nest its sums."""
  return sum(_terms(arg) for arg in e.args) if e.is_Add else 1


def _bounded(digits: float) -> float:
  if digits > _MAX_DIGITS:
    raise TooCostly(f"a number of 10^{math.log10(digits):.0f} digits")
  return digits
