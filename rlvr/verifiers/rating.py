"""Verifiers that ask a judge: what they share, and the one that rates.

The prompt's question is `metadata["question"]`, empty where there is none.
"""

import collections
import concurrent.futures
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlvr.types import Params, Signals, Verdict
from rlvr.verifiers.host import Pending, give_policy, host_signals
from rlvr.verifiers.judge_prompts import RATING_TEMPLATE, check_template, fill
from rlvr.verifiers.judges import (
  ChoiceJudge,
  Scale,
  ask,
  not_judged,
  scale_of,
)

_log = logging.getLogger(__name__)


class JudgedVerifier:
  """What verifiers that ask a judge share: a thread of their own, a log.

  name: the reward's.
  problems: (response, why) of the last that could not be judged.
  """

  def __init__(self, judge: ChoiceJudge, *, max_chars: int, name: str):
    if max_chars < 1:
      raise ValueError(f"max_response_chars={max_chars}: must be at least 1")
    self.judge, self.max_chars, self.name = judge, max_chars, name
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
    return self._thread.submit(self.judged, *given, np.array(finished, bool))

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    return self.start(responses, references, metadata, finished).result()

  def judged(self, responses, references, metadata, finished) -> Signals:
    """Returns the signals of a batch; runs on the verifier's thread."""
    raise NotImplementedError

  def close(self) -> None:
    """Ends the thread and the judge."""
    self._thread.shutdown(wait=False, cancel_futures=True)
    self.judge.close()

  def __enter__(self):
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def unasked(self, response: str, ended: bool) -> Verdict | None:
    """Returns the verdict of a response that no judge is asked about, or None."""
    if not ended or not response.strip():
      return Verdict.NO_ANSWER
    return Verdict.MALFORMED if len(response) > self.max_chars else None

  def note(self, problems: Sequence[tuple[str, str]], count: int) -> None:
    """Keeps and logs what could not be judged, of `count` responses."""
    if problems:
      self.problems.extend(problems)
      _log.warning(
        "verifier of %r: the judge could not judge %d of %d; the first: %s",
        *(self.name, len(problems), count, problems[0][1]),
      )


class RatingVerifier(JudgedVerifier):
  """See `rating_verifier`."""

  def __init__(
    self,
    judge: ChoiceJudge,
    scale: Scale,
    *,
    template: str,
    threshold: float,
    entropy_name: str,
    max_chars: int,
    name: str,
  ):
    super().__init__(judge, max_chars=max_chars, name=name)
    self.scale, self.template = scale, template
    self.threshold, self.entropy_name = threshold, entropy_name

  def judged(self, responses, references, metadata, finished) -> Signals:
    """See `JudgedVerifier`."""
    count = len(responses)
    verdicts = [self.unasked(*x) for x in zip(responses, finished, strict=True)]
    rewards, entropies = np.zeros(count), np.full(count, np.nan, np.float32)
    asked = [i for i, verdict in enumerate(verdicts) if verdict is None]
    answers = ask(
      self.judge,
      [
        fill(
          self.template,
          {
            "question": str(metadata[i].get("question", "")),
            "response": responses[i],
            "reference": references[i],
          },
          self.scale.words,
        )
        for i in asked
      ],
    )
    scores, spreads = self.scale.rate(answers)
    problems = []
    for i, answer, score, spread in zip(
      asked, answers, scores, spreads, strict=True
    ):
      rewards[i], entropies[i] = score, spread
      verdicts[i] = not_judged(answer, bool(np.isfinite(score)))
      if verdicts[i] is None:
        right = score >= self.threshold
        verdicts[i] = Verdict.CORRECT if right else Verdict.WRONG
      else:
        why = answer.detail or f"no rating: {answer.logprobs}"
        problems.append((responses[i], why))
    self.note(problems, count)
    made = host_signals(self.name, verdicts, rewards)  # type: ignore[arg-type]
    if not self.entropy_name:
      return made
    more: dict[str, Any] = {self.entropy_name: entropies}
    return dataclasses.replace(made, outcome={**made.outcome, **more})


def rating_verifier(
  *,
  judge: Callable[[], ChoiceJudge],
  threshold: float,
  ratings: Sequence[float] | None = None,
  template: str = RATING_TEMPLATE,
  temperature: float | None = None,
  min_mass: float = 0.0,
  max_response_chars: int = 20_000,
  entropy_name: str = "",
  name: str = "correct",
) -> RatingVerifier:
  """Returns the verifier whose reward is a judge's expected rating, in [0, 1].

  TrustJudge's score (https://arxiv.org/abs/2509.21117): the mean over the
  distribution of the ratings, not the likeliest of them, see
  `trust_judge.expected_score`. The question is `metadata["question"]`.

  Verdicts: NO_ANSWER (truncated, blank), MALFORMED (too long), TIMED_OUT and
  VERIFIER_FAILED (the judge didn't rate; the reward is NaN), CORRECT from the
  threshold on, else WRONG.

  Args:
    judge: makes the judge.
    threshold: expected rating in 0..1 from which a response is CORRECT; the
      reward doesn't depend on it.
    ratings: number of each of the judge's choices; None: the choices are
      numbers.
    template: with {response}; {question}, {reference}, {low} and {high} if
      wanted.
    temperature: see `trust_judge.rating_probabilities`.
    min_mass: see `trust_judge.rating_probabilities`.
    max_response_chars: a longer response is MALFORMED.
    entropy_name: of a further outcome reward, the entropy of the ratings in
      nats, NaN for responses that weren't rated; "" for none.
    name: the reward's name.

  Raises:
    ValueError: an argument is out of range, or a field isn't known.
  """
  check_template(
    template,
    needs=["response"],
    knows=["question", "reference", "low", "high"],
    who="rating_verifier",
  )
  if not 0 < threshold <= 1:
    raise ValueError(
      f"rating_verifier.threshold={threshold}: give above 0, at most 1"
    )
  made = judge()
  try:
    return RatingVerifier(
      made,
      scale_of(made, ratings, temperature, min_mass),
      template=template,
      threshold=threshold,
      entropy_name=entropy_name,
      max_chars=max_response_chars,
      name=name,
    )
  except BaseException:
    made.close()
    raise
