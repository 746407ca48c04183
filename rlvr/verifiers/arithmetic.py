"""The signals of arithmetic working: outcome, format, and each step's truth.

For responses such as "3*4=12;12+12=24#24", as the task of generated arithmetic
(`rlvr.data.arithmetic`) shows them. Everything is string parsing on integers of
a bounded number of digits: nothing of a response is ever evaluated as code, and
no response can make the verifier slow.

The same responses as `exact_text_verifier` sees, with two more rewards, for
chains that combine outcomes or give credit to steps.
"""

import concurrent.futures
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlvr.types import Signals
from rlvr.verifiers.exact_text import ExactTextVerifier
from rlvr.verifiers.host import Pending

# Longer numbers are malformed; the product of two still fits Python's fast path.
MAX_DIGITS = 18
_INTEGER = rf"-?[0-9]{{1,{MAX_DIGITS}}}"
# A right operand that is negative stands in parentheses, as the task writes it.
_EQUATION = re.compile(
  rf"({_INTEGER})([-+*/])(?:([0-9]{{1,{MAX_DIGITS}}})|\((-[0-9]"
  rf"{{1,{MAX_DIGITS}}})\))=({_INTEGER})"
)
_NUMBER = re.compile(_INTEGER)


class Part(NamedTuple):
  """A reasoning step as text.

  text: without the delimiters that end it.
  behind_answer_mark: whether the answer's delimiter stands right before it.
  ended: whether a delimiter ends it.
  """

  text: str
  behind_answer_mark: bool
  ended: bool


def split_steps(response: str, *, delimiter: str, step_delimiter: str):
  """Returns a response's reasoning steps, cut as the device cuts tokens.

  As `rlvr.segments.step_indices`: a delimiter belongs to the step that it ends,
  further delimiters behind it too, so that no step but the first, of a response
  that begins with a delimiter, is empty.

  Args:
    response: text without the end token.
    delimiter: a character, stands before the answer.
    step_delimiter: a character, stands between steps.

  Returns:
    list of `Part`; empty for an empty response.
  """
  marks = re.escape(delimiter + step_delimiter)
  parts, behind = [], False
  for text, run in re.findall(rf"([^{marks}]*)([{marks}]*)", response):
    if text or run:
      parts.append(Part(text, behind, bool(run)))
    behind = delimiter in run
  return parts


def equation_value(text: str) -> tuple[int, bool] | None:
  """Returns what an equation a∘b=c says, c, and whether it is true.

  Args:
    text: with ∘ one of + - * /; c integer, so that a division is true only
      where it is exact.

  Returns:
    (c, true), or None where the text is no such equation.
  """
  match = _EQUATION.fullmatch(text)
  if match is None:
    return None
  first, operator, plain, negative, result = match.groups()
  a, b, c = int(first), int(plain or negative), int(result)
  if operator == "/":
    return c, b != 0 and b * c == a
  return c, c == {"+": a + b, "-": a - b, "*": a * b}[operator]


def step_truths(parts: Sequence[Part], *, finished: bool) -> list[bool]:
  """Returns for each step whether it is right.

  A step is right if it is a true equation; a step behind the answer's delimiter
  if it is the number that the step before it came to. Whether the steps have to
  do with the question is not looked at: that is the outcome's business. The
  last step of a truncated response is wrong unless a delimiter ends it: what is
  there may be cut.

  Args:
    parts: from `split_steps`.
    finished: false where the response was truncated.
  """
  truths: list[bool] = []
  value: int | None = None  # what the step before came to
  for part in parts:
    whole = finished or part.ended
    if part.behind_answer_mark and _NUMBER.fullmatch(part.text):
      truths.append(whole and int(part.text) == value)
      value = int(part.text)
      continue
    found = equation_value(part.text)
    truths.append(whole and found is not None and found[1])
    value = found[0] if found else None
  return truths


def is_well_formed(
  response: str, *, delimiter: str, step_delimiter: str
) -> bool:
  """Returns whether a response is equations, then the answer, and no more.

  Args:
    response: text without the end token.
    delimiter: stands before the answer, once.
    step_delimiter: stands between the equations, of which there is at least
      one, true or not.
  """
  working, _, answer = response.partition(delimiter)
  return _NUMBER.fullmatch(answer) is not None and all(
    _EQUATION.fullmatch(step) for step in working.split(step_delimiter)
  )


class ArithmeticSignalsVerifier:
  """See `arithmetic_signals_verifier`."""

  name = "correct"

  def __init__(self, *, delimiter: str, step_delimiter: str, max_steps: int):
    for option, text in (
      ("delimiter", delimiter),
      ("step_delimiter", step_delimiter),
    ):
      if len(text) != 1 or re.match(r"[-+*/=()0-9]", text):
        raise ValueError(
          f"arithmetic_signals_verifier.{option}={text!r}: give one character"
          " that no equation holds, e.g. '#' and ';'"
        )
    if delimiter == step_delimiter:
      raise ValueError(
        f"arithmetic_signals_verifier: delimiter and step_delimiter are both"
        f" {delimiter!r}: steps and answer couldn't be told apart"
      )
    if max_steps < 1:
      raise ValueError(
        f"arithmetic_signals_verifier.max_steps={max_steps}: give 1 or more,"
        " the same as `train.max_steps`"
      )
    self.delimiter = delimiter
    self.step_delimiter = step_delimiter
    self.max_steps = max_steps
    self._exact = ExactTextVerifier(delimiter=delimiter)

  def start(self, responses, references, metadata, finished) -> Pending:
    """See `HostVerifier`; the work is done on the spot."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(self.verify(responses, references, metadata, finished))
    return future

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    exact = self._exact.verify(responses, references, metadata, finished)
    marks = {
      "delimiter": self.delimiter,
      "step_delimiter": self.step_delimiter,
    }
    well_formed = [
      bool(ended) and is_well_formed(text, **marks)
      for text, ended in zip(responses, finished, strict=True)
    ]
    process = np.zeros((len(responses), self.max_steps), np.float32)
    for i, text in enumerate(responses):
      truths = step_truths(
        split_steps(text, **marks), finished=bool(finished[i])
      )
      # Steps that the device merges into the last are right if all are.
      last = self.max_steps - 1
      if len(truths) > last:
        truths = [*truths[:last], all(truths[last:])]
      process[i, : len(truths)] = truths
    return Signals(
      outcome={
        **exact.outcome,
        "format": np.asarray(well_formed, np.float32),  # type: ignore[dict-item]
      },
      step={"process": process},  # type: ignore[dict-item]
      verdicts=exact.verdicts,
    )

  def close(self) -> None:
    """Does nothing: there is nothing to end."""


def arithmetic_signals_verifier(
  *, delimiter: str = "#", step_delimiter: str = ";", max_steps: int
) -> ArithmeticSignalsVerifier:
  """Returns the verifier of arithmetic working, three rewards in one.

  - outcome "correct": `exact_text_verifier`'s, with its verdicts, so that a
    truncated response is NO_ANSWER;
  - outcome "format": 1 where the response ended by itself and is equations
    a∘b=c (∘ one of + - * /) with step delimiters between them, then the answer's
    delimiter and an integer, once; else 0;
  - step "process" [B, K]: 1 where the step is right (`step_truths`), 0 where it
    is wrong or no equation, and 0 beyond the response's steps.

  Step k is step k of `Rollout.step_index` if the run's step delimiters are
  these two characters and K is the same. One exception: tokens without text
  (padding that was sampled, bytes that are no UTF-8) between two delimiters are
  a step of their own to the device and nothing here, so that steps behind them
  are one off.

  Args:
    delimiter: the character before the answer.
    step_delimiter: the character between steps.
    max_steps: K, the same as `train.max_steps`; steps from the K-th on count as
      one.

  Raises:
    ValueError: a delimiter that isn't one character, or is one of the
      equations' own; the two are equal; max_steps below 1.
  """
  return ArithmeticSignalsVerifier(
    delimiter=delimiter, step_delimiter=step_delimiter, max_steps=max_steps
  )
