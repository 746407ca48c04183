"""ACRE's second answer: the same reasoning, the options shuffled.

Huang et al. 2025, https://arxiv.org/abs/2510.10104. A response's reasoning is
kept, its answer cut off, the question's options change places, and whoever
answers says which letter comes next. `rlvr.rewards.answer_consistency` makes one
reward of both answers.

Who answers is an argument: `ask` takes prompts and labels and returns the
log-probabilities of each label as the continuation. The paper's is the policy
being trained, at its present parameters: `policy_answers.policy_answers`. A
frozen copy, or any server that gives log-probs, asks something else, whether
the reasoning convinces others.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvr.types import Params, Signals, Verdict
from rlvr.verifiers.choice import (
  option_order,
  options_by_label,
  original_label,
  reordered,
)
from rlvr.verifiers.host import HostVerifier, Pending, give_policy
from rlvr.verifiers.judge_prompts import fill
from rlvr.verifiers.worker import describe_error

_log = logging.getLogger(__name__)

# (prompts, labels of each) -> log-probs of each label as continuation, nats;
# None where it could not say. Called in another thread, one call at a time.
Ask = Callable[
  [Sequence[str], Sequence[Sequence[str]]],
  Sequence[Sequence[float] | None],
]

TEMPLATE = "{question}\n{options}\n{reasoning}"
OPTION = "{label}) {text}"


class SecondQuestion(NamedTuple):
  """A question whose answer says whether the reasoning carries.

  prompt: what to continue.
  labels: that may follow.
  right: the right one among them.
  order: of the options, see `choice.option_order`.
  """

  prompt: str
  labels: tuple[str, ...]
  right: str
  order: tuple[int, ...]


def reasoning_of(response: str, *, delimiter: str) -> str | None:
  """Returns a response up to its answer, the delimiter before it included.

  Args:
    response: text.
    delimiter: what stands before the answer, "<answer>" for instance; its last
      occurrence counts.

  Returns:
    None without it.
  """
  before, found, _ = response.rpartition(delimiter)
  return before + found if found else None


def second_question(
  question: str,
  options: Mapping[str, str] | Sequence[str],
  reference: str,
  reasoning: str,
  *,
  seed: int,
  template: str = TEMPLATE,
  option: str = OPTION,
) -> SecondQuestion:
  """Returns the question with its options shuffled and the reasoning given.

  The order depends on the seed and the question: all responses to a question
  get the same one, so that they are compared fairly. It is never the one that
  they were sampled with. Deviation: the paper's may be, as a reviewer noted
  (https://openreview.net/forum?id=hwUAApRXsC), and then tests nothing.

  Args:
    question: without its options.
    options: see `choice.options_by_label`.
    reference: label of the right option.
    reasoning: from `reasoning_of`.
    seed: of the run.
    template: with {question}, {options} and {reasoning} as the last thing; the
      prompt's own form, or the policy is asked in one that it doesn't know.
    option: a line of the options, with {label} and {text}.

  Raises:
    ValueError: see `choice.options_by_label`; the reference is no option.
  """
  labelled = options_by_label(options)
  if reference not in labelled:
    raise ValueError(f"reference {reference!r} is none of {list(labelled)}")
  order = option_order(len(labelled), seed=seed, key=question)
  shuffled = reordered(labelled, order)
  lines = "\n".join(
    fill(option, {}, {"label": label, "text": text})
    for label, text in shuffled.items()
  )
  (right,) = (
    label
    for label in labelled
    if original_label(label, labelled, order) == reference
  )
  return SecondQuestion(
    fill(
      template,
      {},
      {"question": question, "options": lines, "reasoning": reasoning},
    ),
    tuple(labelled),
    right,
    tuple(order),
  )


def second_reward(
  question: SecondQuestion, logprobs: Sequence[float] | None
) -> float:
  """Returns 1 where the most probable label is right, else 0.

  Args:
    question: what was asked.
    logprobs: of its labels, nats; None or not finite where nobody knows.

  Returns:
    NaN where nobody knows; among equally probable labels the first counts.
  """
  if logprobs is None or len(logprobs) != len(question.labels):
    return math.nan
  if any(math.isnan(v) for v in logprobs) or max(logprobs) == -math.inf:
    return math.nan
  return float(
    question.labels[int(np.argmax(np.asarray(logprobs)))] == question.right
  )


class SecondAnswerVerifier:
  """See `second_answer_verifier`."""

  def __init__(
    self,
    first: HostVerifier,
    ask: Ask,
    *,
    delimiter: str,
    seed: int,
    template: str,
    option: str,
    second: str,
  ):
    if not delimiter:
      raise ValueError(
        "second_answer_verifier.delimiter is empty: give what stands before the"
        " answer, so that it can be cut off"
      )
    if not template.endswith("{reasoning}"):
      raise ValueError(
        f"second_answer_verifier.template={template!r}: it must end with"
        " {reasoning}, which is continued"
      )
    if "{label}" not in option or "{text}" not in option:
      raise ValueError(
        f"second_answer_verifier.option={option!r}: it needs {{label}} and"
        " {text}"
      )
    if second == first.name:
      raise ValueError(f"second={second!r} is the first reward's name too")
    self.name, self.second = first.name, second
    self._first, self._ask = first, ask
    self._delimiter, self._seed = delimiter, seed
    self._forms = {"template": template, "option": option}
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    # (response, why) of the last responses that could not be asked about
    self.problems: collections.deque[tuple[str, str]] = collections.deque(
      maxlen=100
    )

  def use_policy(self, params: Params) -> None:
    """See `host.AsksPolicy`."""
    give_policy(self._first, params)
    # On the thread, behind the batches before.
    self._thread.submit(give_policy, self._ask, params).result()

  def start(self, responses, references, metadata, finished) -> Pending:
    """See `HostVerifier`."""
    given = (list(responses), list(references), list(metadata), finished)
    pending = self._first.start(*given)
    return self._thread.submit(self._finish, pending, *given[:3])

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    return self.start(responses, references, metadata, finished).result()

  def close(self) -> None:
    """Ends the first verifier and the thread."""
    self._thread.shutdown(wait=False, cancel_futures=True)
    self._first.close()

  def _finish(
    self,
    pending: Pending,
    responses: list[str],
    references: list[str],
    metadata: list[Mapping[str, Any]],
  ) -> Signals:
    signals = pending.result()
    verdicts = np.asarray(signals.verdicts[self.name])
    second = np.zeros(len(responses), np.float32)
    asked: list[tuple[int, SecondQuestion]] = []
    problems: list[tuple[str, str]] = []
    for i, response in enumerate(responses):
      if verdicts[i] in (Verdict.VERIFIER_FAILED, Verdict.TIMED_OUT):
        second[i] = np.nan
      elif verdicts[i] in (Verdict.CORRECT, Verdict.WRONG):
        reasoning = reasoning_of(response, delimiter=self._delimiter)
        if reasoning is None:
          continue
        try:
          question = self._question(metadata[i], references[i], reasoning)
        except (KeyError, ValueError, TypeError) as error:
          second[i] = np.nan
          problems.append((response, describe_error(error)))
        else:
          asked.append((i, question))
    if problems:
      self.problems.extend(problems)
      _log.warning(
        "second answer: %d of %d responses could not be asked about; the first:"
        " %s",
        *(len(problems), len(responses), problems[0][1]),
      )
    answers = (
      self._ask(
        [question.prompt for _, question in asked],
        [question.labels for _, question in asked],
      )
      if asked
      else []
    )
    for (i, question), logprobs in zip(asked, answers, strict=True):
      second[i] = second_reward(question, logprobs)
    outcome: dict[str, Any] = {**signals.outcome, self.second: second}
    return dataclasses.replace(signals, outcome=outcome)

  def _question(
    self, metadata: Mapping[str, Any], reference: str, reasoning: str
  ) -> SecondQuestion:
    return second_question(
      metadata["stem"] if "stem" in metadata else metadata["question"],
      metadata["options"],
      reference.strip().upper(),
      reasoning,
      seed=self._seed,
      **self._forms,
    )


def second_answer_verifier(
  first: HostVerifier,
  ask: Ask,
  *,
  delimiter: str,
  seed: int,
  template: str = TEMPLATE,
  option: str = OPTION,
  second: str = "second",
) -> SecondAnswerVerifier:
  """Returns a verifier of multiple choice that asks a second time.

  Beside the rewards of `first` there is "second": 1 where the same reasoning
  leads to the right option after a shuffle, else 0; 0 too, without asking,
  where the response has no answer or no delimiter before it; missing where
  `ask` could not say, or the first verifier failed. The metadata must hold
  "stem" (or else "question"), without the options, and "options". An exception
  of `ask` ends the run.

  Args:
    first: verifier of the answer, `choice.choice_verifier` for instance.
    ask: who answers, see the module.
    delimiter: see `reasoning_of`.
    seed: see `second_question`.
    template: see `second_question`.
    option: see `second_question`.
    second: name of the second answer's reward.

  Raises:
    ValueError: no delimiter, a template that doesn't end with the reasoning, or
      one name for two rewards.
  """
  return SecondAnswerVerifier(
    first,
    ask,
    delimiter=delimiter,
    seed=seed,
    template=template,
    option=option,
    second=second,
  )
