"""Verifiers that run on the host, on text, and give NumPy `Signals`."""

import collections
import concurrent.futures
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from rlvr.types import Params, Signals, Verdict
from rlvr.verifiers.jobs import Outcome
from rlvr.verifiers.mathematics import DEFAULT_SOURCES, Source, Unevaluated
from rlvr.verifiers.parts import FurtherRewards, Parts
from rlvr.verifiers.sharing import give_back, take_pool

# What becomes of a response that did not end by itself:
# "no_answer": verdict NO_ANSWER, reward 0, not verified, as the device verifier
#   has it (what looks like an answer may be half of one).
# "verify": verified as it is.
Truncated = Literal["no_answer", "verify"]

_log = logging.getLogger(__name__)


class Pending(Protocol):
  """Signals that are still being worked on."""

  def result(self, timeout: float | None = None) -> Signals:
    """Returns the signals; waits for them, at most `timeout` seconds."""

  def done(self) -> bool:
    """Returns whether `result` would not wait."""


class HostVerifier(Protocol):
  """What the split step calls between sampling and scoring.

  `start` returns at once, so that the device can sample the next batch
  meanwhile; `verify` is `start(...).result()`. A verifier that asks the policy
  in training has `use_policy` besides, see `AsksPolicy`.

  Args of both:
    responses: text of each response, without the end token, length B.
    references: reference answer of each response's prompt, length B.
    metadata: what else the verifier needs of each response's prompt, JSON,
      length B.
    finished: bool [B], false where truncated.
  """

  name: str

  def verify(
    self,
    responses: Sequence[str],
    references: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    finished: np.ndarray,
  ) -> Signals: ...

  def start(
    self,
    responses: Sequence[str],
    references: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    finished: np.ndarray,
  ) -> Pending: ...

  def close(self) -> None: ...


@runtime_checkable
class AsksPolicy(Protocol):
  """A host verifier, or a part of one, that asks the policy in training."""

  def use_policy(self, params: Params) -> None:
    """Takes the parameters that the batches started from now on are asked with.

    They are valid until the signals of the last such batch were waited for: an
    update donates them. Whoever keeps them longer must copy them.
    """


def give_policy(verifier: Any, params: Params) -> None:
  """Gives a verifier the policy's present parameters, if it asks for them.

  Args:
    verifier: a `HostVerifier`, or a part of one.
    params: of the policy in training.
  """
  if isinstance(verifier, AsksPolicy):
    verifier.use_policy(params)


def verdict_reward(verdict: Verdict) -> float:
  """Returns 1 for CORRECT, NaN where nobody knows, else 0."""
  if verdict in (Verdict.VERIFIER_FAILED, Verdict.TIMED_OUT):
    return float("nan")
  return float(verdict == Verdict.CORRECT)


def host_signals(
  name: str,
  verdicts: Sequence[Verdict],
  rewards: Sequence[float] | None = None,
) -> Signals:
  """Returns signals with one outcome reward.

  Args:
    name: the reward's name.
    verdicts: length B.
    rewards: length B; None takes each verdict's (`verdict_reward`). Whatever
      they say, VERIFIER_FAILED and TIMED_OUT have no reward (NaN).
  """
  values = [verdict_reward(v) for v in verdicts]
  if rewards is not None:
    pairs = zip(values, rewards, strict=True)
    values = [v if np.isnan(v) else r for v, r in pairs]
  return Signals(
    outcome={name: np.asarray(values, np.float32)},  # type: ignore[dict-item]
    verdicts={name: np.asarray(verdicts, np.int32)},  # type: ignore[dict-item]
  )


def check_lengths(
  responses: Sequence[str],
  references: Sequence[str],
  metadata: Sequence[Mapping[str, Any]],
  finished: np.ndarray,
) -> None:
  """Raises ValueError unless there is one of each per response."""
  lengths = [len(responses), len(references), len(metadata), len(finished)]
  if len(set(lengths)) > 1:
    raise ValueError(
      "responses, references, metadata, finished have lengths"
      f" {lengths}: give one of each per response"
    )


class PoolVerifier:
  """A host verifier whose items run in worker processes.

  The item function takes {"response", "reference", "metadata"} and returns
  {"verdict": name of a `Verdict`, "detail": text} and, where the reward isn't
  the verdict's own, "reward". An item that hangs is TIMED_OUT, one that raises
  or kills its worker VERIFIER_FAILED; both have reward NaN, are logged, and
  stand in `problems`.

  It may return more, under names that the verifier was told: further outcome
  rewards, "rewards": {name: number}, and step rewards, "steps": {name:
  [number, ...]}, one number per step (per test, per instruction). A name that
  it leaves out, a null, and the steps behind the last are NaN. A name that was
  not told, more than `max_steps` steps, or an infinite number is a mistake in
  the settings: VERIFIER_FAILED, all rewards NaN. Whether an item that returns
  VERIFIER_FAILED knows some of its further rewards is its own affair.
  """

  def __init__(
    self,
    function: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_workers: int,
    time_limit_s: float,
    memory_limit_mb: int | None = 1024,
    truncated: Truncated = "no_answer",
    name: str = "correct",
    rewards: Sequence[str] = (),
    steps: Sequence[str] = (),
    max_steps: int = 0,
    unanswered: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
  ):
    """Starts the workers, without waiting for them.

    All verifiers of a host share their workers, see `sharing`.

    Args:
      function: "module:name" of what makes the item function.
      kwargs: its arguments, JSON.
      num_workers: see `WorkerPool`.
      time_limit_s: see `WorkerPool`.
      memory_limit_mb: see `WorkerPool`.
      truncated: see `Truncated`.
      name: the reward's name.
      rewards: names of the further outcome rewards.
      steps: names of the step rewards.
      max_steps: K, the width of the step rewards [B, K].
      unanswered: metadata -> {"rewards": ..., "steps": ...}, what a truncated
        response gets that isn't verified; None: further outcome rewards 0, as
        the reward itself, and no steps (NaN).

    Raises:
      ValueError: an argument is out of range, or a name occurs twice.
    """
    if truncated not in ("no_answer", "verify"):
      raise ValueError(f"truncated={truncated!r}: give 'no_answer' or 'verify'")
    self.name = name
    self.truncated = truncated
    self.parts = Parts(tuple(rewards), tuple(steps), max_steps)
    self.parts.check(name)
    self._unanswered = unanswered
    # (response, why) of the last responses that could not be judged
    self.problems: collections.deque[tuple[str, str]] = collections.deque(
      maxlen=100
    )
    self._closed = False
    self.pool = take_pool(
      function,
      kwargs,
      num_workers=num_workers,
      time_limit_s=time_limit_s,
      memory_limit_mb=memory_limit_mb,
    )

  def start(self, responses, references, metadata, finished) -> Pending:
    """See `HostVerifier`."""
    check_lengths(responses, references, metadata, finished)
    if self._closed:
      raise RuntimeError(
        f"the verifier of {self.name!r} is closed: make another"
      )
    judged = [
      i
      for i in range(len(responses))
      if finished[i] or self.truncated == "verify"
    ]
    items = [
      {
        "response": responses[i],
        "reference": references[i],
        "metadata": dict(metadata[i]),
      }
      for i in judged
    ]
    return _PendingOutcomes(
      self,
      list(responses),
      list(metadata),
      judged,
      self.pool.submit(items),
    )

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    return self.start(responses, references, metadata, finished).result()

  def without_answer(self, metadata: Mapping[str, Any]) -> FurtherRewards:
    """Returns the further rewards of a response that isn't verified."""
    if self._unanswered is not None:
      return self.parts.read(self._unanswered(metadata))
    return FurtherRewards({name: 0.0 for name in self.parts.rewards}, {})

  def close(self) -> None:
    """Ends the workers, unless another verifier uses them too."""
    if not self._closed:
      self._closed = True
      give_back(self.pool)

  def __enter__(self) -> "PoolVerifier":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


class _PendingOutcomes:
  def __init__(
    self,
    verifier: PoolVerifier,
    responses: list[str],
    metadata: list[Mapping[str, Any]],
    judged: list[int],
    future: "concurrent.futures.Future[list[Outcome]]",
  ):
    self._verifier, self._responses = verifier, responses
    self._metadata = metadata
    self._judged, self._future = judged, future
    self._signals: Signals | None = None

  def done(self) -> bool:
    return self._future.done()

  def result(self, timeout: float | None = None) -> Signals:
    outcomes = self._future.result(timeout)
    if self._signals is None:
      self._signals = self._merge(outcomes)
    return self._signals

  def _merge(self, judged: list[Outcome]) -> Signals:
    outcomes: list[Outcome | None] = [None] * len(self._responses)
    for i, outcome in zip(self._judged, judged, strict=True):
      outcomes[i] = outcome
    return merged_signals(
      self._verifier,
      self._responses,
      outcomes,
      lambda i: self._verifier.without_answer(self._metadata[i]),
    )


class _Judging(Protocol):
  """What `merged_signals` needs of a verifier."""

  name: str
  parts: Parts
  problems: collections.deque[tuple[str, str]]


def merged_signals(
  verifier: _Judging,
  responses: Sequence[str],
  outcomes: Sequence[Outcome | None],
  without_answer: Callable[[int], FurtherRewards],
) -> Signals:
  """Returns the signals of a batch, and notes what could not be judged.

  Args:
    verifier: whose name, further rewards and problems they are.
    responses: length B.
    outcomes: of each response; None for one that was not verified, which has no
      answer.
    without_answer: index of such a response -> its further rewards.
  """
  verdicts: list[Verdict] = []
  rewards: list[float] = []
  further: list[FurtherRewards | None] = []
  problems: list[tuple[str, str]] = []
  for i, outcome in enumerate(outcomes):
    verdict, reward, why = Verdict.NO_ANSWER, 0.0, ""
    found: FurtherRewards | None = None
    if outcome is not None:
      verdict, reward, why = read_outcome(outcome)
    try:
      found = (
        without_answer(i)
        if outcome is None
        else verifier.parts.read(outcome.value)
      )
    except ValueError as error:
      verdict, reward, why = Verdict.VERIFIER_FAILED, float("nan"), str(error)
    if verdict in (Verdict.VERIFIER_FAILED, Verdict.TIMED_OUT):
      problems.append((responses[i], why))
    verdicts.append(verdict)
    rewards.append(reward)
    further.append(found)
  if problems:
    verifier.problems.extend(problems)
    _log.warning(
      "verifier of %r: %d of %d responses could not be judged; the first: %s",
      *(verifier.name, len(problems), len(verdicts), problems[0][1]),
    )
  signals = host_signals(verifier.name, verdicts, rewards)
  return dataclasses.replace(
    signals,
    outcome={**signals.outcome, **verifier.parts.outcome_arrays(further)},
    step=verifier.parts.step_arrays(further),
  )


def read_outcome(outcome: Outcome) -> tuple[Verdict, float, str]:
  """Returns verdict, reward and detail of a pool's outcome.

  What isn't as `PoolVerifier` describes it is VERIFIER_FAILED.
  """
  nan = float("nan")
  if outcome.status == "timed_out":
    return Verdict.TIMED_OUT, nan, outcome.error
  if outcome.status == "failed":
    return Verdict.VERIFIER_FAILED, nan, outcome.error
  try:
    verdict = Verdict[outcome.value["verdict"]]
    reward = outcome.value.get("reward", verdict_reward(verdict))
    judged = verdict not in (Verdict.VERIFIER_FAILED, Verdict.TIMED_OUT)
    if judged and not _is_reward(reward):
      raise ValueError(f"the reward {reward!r} is no finite number")
    reward = float(reward) if judged else nan
    return verdict, reward, str(outcome.value.get("detail", ""))
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    why = f"the item function returned {str(outcome.value)[:80]!r}: {error!r}"
    return Verdict.VERIFIER_FAILED, nan, why


def _is_reward(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value)


def math_verifier(
  *,
  num_workers: int,
  time_limit_s: float,
  sources: Sequence[Source] = DEFAULT_SOURCES,
  delimiter: str = "",
  max_answer_chars: int = 1000,
  unevaluated: Unevaluated = "wrong",
  memory_limit_mb: int | None = 1024,
  truncated: Truncated = "no_answer",
  name: str = "correct",
) -> PoolVerifier:
  """Returns the verifier of mathematical answers (math-verify in workers).

  `references` are bare answers ("18", not the solution that ends in it).

  Args:
    num_workers: processes.
    time_limit_s: wall seconds per answer.
    sources: see `mathematics.extract_answer`.
    delimiter: see `mathematics.extract_answer`.
    max_answer_chars: a longer answer is MALFORMED.
    unevaluated: see `mathematics.make_math_checker`.
    memory_limit_mb: see `WorkerPool`.
    truncated: see `Truncated`.
    name: the reward's name.
  """
  return PoolVerifier(
    "rlvr.verifiers.mathematics:make_math_checker",
    {
      "sources": list(sources),
      "delimiter": delimiter,
      "max_answer_chars": max_answer_chars,
      "unevaluated": unevaluated,
    },
    num_workers=num_workers,
    time_limit_s=time_limit_s,
    memory_limit_mb=memory_limit_mb,
    truncated=truncated,
    name=name,
  )


def reasoning_gym_verifier(
  *,
  num_workers: int,
  time_limit_s: float,
  configs: Mapping[str, Mapping[str, Any]] | None = None,
  delimiter: str = "",
  end_delimiter: str = "",
  memory_limit_mb: int | None = 1024,
  truncated: Truncated = "no_answer",
  name: str = "correct",
) -> PoolVerifier:
  """Returns the verifier that asks reasoning-gym's data sets themselves.

  The reward is their score in [0, 1]; the verdict CORRECT iff it is 1. The
  entries come in `metadata`: see `reasoning.make_reasoning_gym_scorer`.

  Args:
    num_workers: processes.
    time_limit_s: wall seconds per answer.
    configs: see `reasoning.make_reasoning_gym_scorer`.
    delimiter: see `reasoning.text_between`.
    end_delimiter: see `reasoning.text_between`.
    memory_limit_mb: see `WorkerPool`.
    truncated: see `Truncated`.
    name: the reward's name.
  """
  return PoolVerifier(
    "rlvr.verifiers.reasoning:make_reasoning_gym_scorer",
    {
      "configs": {k: dict(v) for k, v in (configs or {}).items()},
      "delimiter": delimiter,
      "end_delimiter": end_delimiter,
    },
    num_workers=num_workers,
    time_limit_s=time_limit_s,
    memory_limit_mb=memory_limit_mb,
    truncated=truncated,
    name=name,
  )
