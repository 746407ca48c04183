"""A rule first, and a model only where the rule says no.

From Huang et al. 2025, Pitfalls of Rule- and Model-based Verifiers,
https://arxiv.org/abs/2505.22203: rules are precise but miss right answers in
forms that they don't know; models know more forms, but can be talked into yes.
So the rule's yes stands, and the model is asked about its no alone.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlvr.types import Params, Signals, Verdict
from rlvr.verifiers.answers import DEFAULT_SOURCES, Source, extract_answer
from rlvr.verifiers.host import HostVerifier, Pending, give_policy, host_signals
from rlvr.verifiers.judge_protocol import Judge

# What the judge is shown of a response: its final answer, or all of it.
Show = Literal["answer", "response"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
  """How a judge's probabilities become verdicts.

  threshold: probability from which a response is CORRECT.
  show: see `Show`. An answer is shorter and carries fewer words that could move
    a judge; a response without one is shown as it is.
  sources: see `answers.extract_answer`.
  delimiter: see `answers.extract_answer`.
  max_chars: of what is shown, the end is kept; the rest is cut.
  """

  threshold: float
  show: Show
  sources: Sequence[Source] = DEFAULT_SOURCES
  delimiter: str = ""
  max_chars: int = 4000

  def __post_init__(self) -> None:
    if not 0 < self.threshold <= 1:
      raise ValueError(
        f"threshold={self.threshold}: a response is right from a probability"
        " above 0 and at most 1"
      )
    if self.show not in ("answer", "response"):
      raise ValueError(f"show={self.show!r}: give 'answer' or 'response'")
    if self.max_chars < 1:
      raise ValueError(f"max_chars={self.max_chars}: must be at least 1")
    extract_answer("", sources=self.sources)

  def shown(self, response: str) -> str:
    """Returns what the judge is shown of a response."""
    if self.show == "answer":
      found = extract_answer(
        response, sources=self.sources, delimiter=self.delimiter
      )
      response = found.answer or response
    return response[-self.max_chars :]


def judged_verdicts(
  judge: Judge,
  settings: JudgeSettings,
  responses: Sequence[str],
  references: Sequence[str],
  metadata: Sequence[Mapping[str, Any]],
) -> tuple[list[Verdict], list[str]]:
  """Returns a judge's verdicts, with why for those that it could not give.

  A judge that raises has not judged: VERIFIER_FAILED for all, not an end of the
  run.

  Args:
    judge: is asked once, for all.
    settings: see `JudgeSettings`.
    responses: length B.
    references: length B.
    metadata: length B; "question" is shown to the judge, if it is there.
  """
  if not responses:
    return [], []
  failed = [Verdict.VERIFIER_FAILED] * len(responses)
  try:
    given = judge.probabilities(
      [str(m.get("question", "")) for m in metadata],
      [settings.shown(response) for response in responses],
      list(references),
    )
  except Exception as error:
    why = f"the judge raised {type(error).__name__}: {error}"
    return failed, [why] * len(responses)
  if len(given) != len(responses):
    why = f"the judge gave {len(given)} probabilities for {len(responses)}"
    return failed, [why] * len(responses)
  verdicts, reasons = [], []
  for p in given:
    if p is None or not math.isfinite(p) or not 0 <= p <= 1:
      verdicts.append(Verdict.VERIFIER_FAILED)
      reasons.append(f"the judge said {p}")
    else:
      right = p >= settings.threshold
      verdicts.append(Verdict.CORRECT if right else Verdict.WRONG)
      reasons.append("")
  return verdicts, reasons


class HybridVerifier:
  """See `hybrid_verifier`.

  counts: since the start, "responses", "asked" (went to the judge), "accepted"
    (the judge overruled the rule), "unjudged" (it could not say).
  problems: (response, why) of the last that it could not judge.
  """

  def __init__(
    self,
    rule: HostVerifier,
    judge: Judge,
    settings: JudgeSettings,
    *,
    ask: Sequence[str],
    asked_name: str = "",
    name: str = "correct",
  ):
    unknown = set(ask) - {"WRONG", "MALFORMED", "NO_ANSWER", "VERIFIER_FAILED"}
    if unknown or not ask:
      raise ValueError(
        f"ask={list(ask)}: give verdicts that the judge may overrule, some of"
        " WRONG, MALFORMED, NO_ANSWER, VERIFIER_FAILED"
      )
    self.name = name
    self.rule, self.judge, self.settings = rule, judge, settings
    self.ask = tuple(Verdict[v] for v in ask)
    self.asked_name = asked_name
    self.counts: collections.Counter[str] = collections.Counter()
    self.problems: collections.deque[tuple[str, str]] = collections.deque(
      maxlen=100
    )
    # One thread: a judge is asked about one batch at a time, in order.
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)

  def use_policy(self, params: Params) -> None:
    """See `host.AsksPolicy`; for a judge that is the policy in training."""
    # On the thread, behind the batches before.
    self._thread.submit(give_policy, self.judge, params).result()

  def start(self, responses, references, metadata, finished) -> Pending:
    """See `HostVerifier`."""
    given = (list(responses), list(references), list(metadata))
    finished = np.array(finished, bool)
    pending = self.rule.start(*given, finished)
    return self._thread.submit(self._finish, pending, *given, finished)

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    return self.start(responses, references, metadata, finished).result()

  def close(self) -> None:
    """Ends the rule's workers."""
    self._thread.shutdown(wait=False, cancel_futures=True)
    self.rule.close()

  def __enter__(self) -> "HybridVerifier":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _finish(
    self,
    pending: Pending,
    responses: list[str],
    references: list[str],
    metadata: list[Mapping[str, Any]],
    finished: np.ndarray,
  ) -> Signals:
    signals = pending.result()
    verdicts = [Verdict(int(v)) for v in signals.verdicts[self.rule.name]]
    rewards = [float(r) for r in signals.outcome[self.rule.name]]
    chosen = [
      i for i, v in enumerate(verdicts) if v in self.ask and finished[i]
    ]
    judged, reasons = judged_verdicts(
      self.judge,
      self.settings,
      [responses[i] for i in chosen],
      [references[i] for i in chosen],
      [metadata[i] for i in chosen],
    )
    unjudged = []
    for i, verdict, why in zip(chosen, judged, reasons, strict=True):
      if verdict == Verdict.VERIFIER_FAILED:
        unjudged.append((responses[i], why))
      elif verdict == Verdict.WRONG and verdicts[i] != Verdict.VERIFIER_FAILED:
        continue  # the rule's own no, and its partial reward, stay
      verdicts[i], rewards[i] = verdict, float(verdict == Verdict.CORRECT)
    if unjudged:
      self.problems.extend(unjudged)
      _log.warning(
        "verifier of %r: the judge could not judge %d of %d; the first: %s",
        *(self.name, len(unjudged), len(chosen), unjudged[0][1]),
      )
    self.counts.update(
      responses=len(responses),
      asked=len(chosen),
      accepted=judged.count(Verdict.CORRECT),
      unjudged=len(unjudged),
    )
    made = host_signals(self.name, verdicts, rewards)
    others = {k: v for k, v in signals.outcome.items() if k != self.rule.name}
    if self.asked_name:
      asked = np.zeros(len(responses), np.float32)
      asked[chosen] = 1.0
      others[self.asked_name] = asked  # type: ignore[assignment]
    told = {k: v for k, v in signals.verdicts.items() if k != self.rule.name}
    return dataclasses.replace(
      made,
      outcome={**others, **made.outcome},
      step=signals.step,
      verdicts={**told, **made.verdicts},
    )


def hybrid_verifier(
  *,
  rule: Callable[[], HostVerifier],
  judge: Callable[[], Judge],
  threshold: float,
  ask: Sequence[str] = ("WRONG", "MALFORMED"),
  show: Show = "answer",
  sources: Sequence[Source] = DEFAULT_SOURCES,
  delimiter: str = "",
  max_chars: int = 4000,
  asked_name: str = "",
  name: str = "correct",
) -> HybridVerifier:
  """Returns the verifier whose rule speaks first, a judge on its negatives.

  CORRECT by the rule is CORRECT. Where the rule's verdict is one of `ask` and
  the response ended by itself, the judge decides: CORRECT from the threshold
  on, else the rule's verdict stays; VERIFIER_FAILED (reward NaN) where the judge
  could not say. Other verdicts, TIMED_OUT among them, stay.

  The batch is judged in a thread of its own, so that `start` returns at once.

  Source: Huang et al. 2025, https://arxiv.org/abs/2505.22203; their code
  (github.com/hkust-nlp/RL-Verifier-Pitfalls at f2460ff,
  verl/workers/reward_manager/genRM.py) asks about every response that the rule
  gave 0. Deviation: by default not about those without an answer, where there
  is nothing to judge and everything to be gained by talk.

  Args:
    rule: makes the rule's verifier, e.g. `@verifiers.math_verifier`.
    judge: makes the judge.
    threshold: see `JudgeSettings`.
    ask: names of the rule's verdicts that the judge is asked about.
    show: see `Show`.
    sources: see `answers.extract_answer`.
    delimiter: see `answers.extract_answer`.
    max_chars: see `JudgeSettings`.
    asked_name: of a further outcome reward, 1 where the judge was asked, whose
      mean is the judge's share of the work; "" for none.
    name: the reward's name.

  Raises:
    ValueError: an argument is out of range.
  """
  settings = JudgeSettings(threshold, show, sources, delimiter, max_chars)
  made = rule()
  try:
    return HybridVerifier(
      made, judge(), settings, ask=ask, asked_name=asked_name, name=name
    )
  except BaseException:
    made.close()
    raise


class JudgeVerifier:
  """See `judge_verifier`."""

  def __init__(
    self, judge: Judge, settings: JudgeSettings, *, name: str = "correct"
  ):
    self.name = name
    self.judge, self.settings = judge, settings
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)

  def use_policy(self, params: Params) -> None:
    """See `host.AsksPolicy`; for a judge that is the policy in training."""
    # On the thread, behind the batches before.
    self._thread.submit(give_policy, self.judge, params).result()

  def start(self, responses, references, metadata, finished) -> Pending:
    """See `HostVerifier`."""
    given = (list(responses), list(references), list(metadata))
    return self._thread.submit(self._verify, *given, np.array(finished, bool))

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    return self.start(responses, references, metadata, finished).result()

  def close(self) -> None:
    """Ends the thread."""
    self._thread.shutdown(wait=False, cancel_futures=True)

  def _verify(self, responses, references, metadata, finished) -> Signals:
    ended = [i for i, end in enumerate(finished) if end]
    judged, reasons = judged_verdicts(
      self.judge,
      self.settings,
      *(
        [given[i] for i in ended] for given in (responses, references, metadata)
      ),
    )
    verdicts = [Verdict.NO_ANSWER] * len(responses)
    for i, verdict in zip(ended, judged, strict=True):
      verdicts[i] = verdict
    if whys := [why for why in reasons if why]:
      _log.warning(
        "verifier of %r: the judge could not judge %d of %d; the first: %s",
        *(self.name, len(whys), len(ended), whys[0]),
      )
    return host_signals(self.name, verdicts)


def judge_verifier(
  *,
  judge: Callable[[], Judge],
  threshold: float,
  show: Show = "response",
  max_chars: int = 4000,
  name: str = "correct",
) -> JudgeVerifier:
  """Returns the verifier that only asks a judge; truncated is NO_ANSWER.

  What `evaluation.judge_probes` is for: see its false positives before training
  on one.

  Args:
    judge: makes the judge.
    threshold: see `JudgeSettings`.
    show: see `Show`.
    max_chars: see `JudgeSettings`.
    name: the reward's name.
  """
  settings = JudgeSettings(threshold, show, max_chars=max_chars)
  return JudgeVerifier(judge(), settings, name=name)
