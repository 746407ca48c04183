"""Judges that choose among words: what they say, and what is made of it.

A judge gets prompts and says how likely it is to go on with each of a few words:
the ratings of a scale, "Yes" and "No", or "A", "B" and "C". `PolicyJudge` (in
`policy_judge`) is a policy of ours, `HttpJudge` (in `judge_clients`) a server.
What becomes of the probabilities is `trust_judge`'s. Verifiers that ask a judge
are in `rating` and `rubrics`.

Responses are data to a judge: see `judge_prompts` for what holds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from rlvr.types import Params, Verdict
from rlvr.verifiers.host import give_policy
from rlvr.verifiers.judge_prompts import (
  CORRECT_TEMPLATE,
  PAIR_TEMPLATE,
  check_template,
  fill,
)
from rlvr.verifiers.trust_judge import (
  agreed_preference,
  expected_score,
  likely_preference,
  normalised_score,
  perplexity_preference,
  rating_entropy,
  rating_probabilities,
)

Status = Literal["ok", "timed_out", "failed"]


class Answer(NamedTuple):
  """What a judge said to one prompt.

  status: "timed_out" and "failed" are the judge's, never the response's fault.
  logprobs: of each choice, nats; -inf where it can't be told apart from 0.
  perplexity: exp(−mean log-prob) of what the judge wrote; NaN where not known.
  detail: why, for people; empty if ok.
  """

  status: Status
  logprobs: tuple[float, ...] = ()
  perplexity: float = float("nan")
  detail: str = ""


class ChoiceJudge(Protocol):
  """Something that chooses among a few words.

  choices: the words.
  """

  choices: tuple[str, ...]

  def ask(self, prompts: Sequence[str]) -> list[Answer]:
    """Returns an answer to each prompt; never raises for what a judge does.

    May be called from any thread, one call at a time.
    """

  def close(self) -> None:
    """Ends what the judge holds."""


def ask(judge: ChoiceJudge, prompts: Sequence[str]) -> list[Answer]:
  """Returns a judge's answers, or failed ones where it breaks its promises.

  Args:
    judge: what is asked.
    prompts: length N.
  """
  try:
    answers = judge.ask(prompts) if prompts else []
  except Exception as error:
    why = f"the judge raised {type(error).__name__}: {error}"
    return [Answer("failed", detail=why)] * len(prompts)
  count = len(judge.choices)
  if len(answers) != len(prompts):
    why = f"the judge gave {len(answers)} answers to {len(prompts)} prompts"
    return [Answer("failed", detail=why)] * len(prompts)
  return [
    Answer("failed", detail=f"{len(a.logprobs)} log-probs of {count} choices")
    if a.status == "ok" and len(a.logprobs) != count
    else a
    for a in answers
  ]


def answer_logprobs(answers: Sequence[Answer], num_choices: int) -> np.ndarray:
  """Returns the choices' log-probs, NaN for answers that aren't ok.

  Args:
    answers: length N.
    num_choices: K.

  Returns:
    float32 [N, K], nats.
  """
  rows = np.full((len(answers), num_choices), np.nan, np.float32)
  for row, answer in zip(rows, answers, strict=True):
    if answer.status == "ok":
      row[:] = answer.logprobs
  return rows


def not_judged(answer: Answer, known: bool) -> Verdict | None:
  """Returns the verdict of an answer that says nothing; None for others.

  Args:
    answer: a judge's.
    known: whether its probabilities made a score.
  """
  if answer.status == "timed_out":
    return Verdict.TIMED_OUT
  if answer.status == "failed" or not known:
    return Verdict.VERIFIER_FAILED
  return None


@dataclasses.dataclass(frozen=True)
class Scale:
  """How a judge's words are numbers.

  ratings: of each choice, not all equal.
  temperature: see `rating_probabilities`.
  min_mass: see `rating_probabilities`.
  """

  ratings: tuple[float, ...]
  temperature: float | None = None
  min_mass: float = 0.0

  def __post_init__(self) -> None:
    if len(set(self.ratings)) < 2:
      raise ValueError(f"ratings={self.ratings}: give two that differ")
    if self.temperature is not None and not self.temperature > 0:
      raise ValueError(f"temperature={self.temperature} must be above 0")
    if not 0 <= self.min_mass <= 1:
      raise ValueError(f"min_mass={self.min_mass} is no probability")

  @property
  def words(self) -> dict[str, str]:
    """The scale's ends, for a template."""
    return {
      "low": f"{min(self.ratings):g}",
      "high": f"{max(self.ratings):g}",
    }

  def rate(self, answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """Returns expected ratings in 0..1 and the ratings' entropies.

    Args:
      answers: length N.

    Returns:
      Two of float32 [N]; NaN where the judge didn't rate.
    """
    logprobs = answer_logprobs(answers, len(self.ratings))
    shares = rating_probabilities(
      jnp.asarray(logprobs),
      temperature=self.temperature,
      min_mass=self.min_mass,
    )
    ratings = jnp.asarray(self.ratings)
    scores = normalised_score(expected_score(shares, ratings), ratings)
    return np.asarray(scores), np.asarray(rating_entropy(shares))


def scale_of(
  judge: ChoiceJudge,
  ratings: Sequence[float] | None,
  temperature: float | None,
  min_mass: float,
) -> Scale:
  """Returns the scale of a judge whose choices are numbers, or have some.

  Raises:
    ValueError: `ratings` is None and a choice is no number; not one for each.
  """
  if ratings is None:
    try:
      ratings = [float(choice) for choice in judge.choices]
    except ValueError:
      raise ValueError(
        f"the judge's choices {judge.choices} aren't numbers: give `ratings`"
      ) from None
  if len(ratings) != len(judge.choices):
    raise ValueError(
      f"{len(ratings)} ratings for the choices {judge.choices}: one for each"
    )
  return Scale(tuple(map(float, ratings)), temperature, min_mass)


class YesNoJudge:
  """A `judge_protocol.Judge`: asks whether a response is right."""

  def __init__(
    self,
    judge: ChoiceJudge,
    *,
    template: str = CORRECT_TEMPLATE,
    min_mass: float = 0.0,
  ):
    """Makes the judge.

    Args:
      judge: with two choices, yes and no, in this order.
      template: with {response}, and {question} and {reference} if wanted.
      min_mass: least probability of the two choices together; below it, the
        judge didn't say.

    Raises:
      ValueError: not two choices, or another field.
    """
    if len(judge.choices) != 2:
      raise ValueError(
        f"choices={judge.choices}: give yes and no, in this order"
      )
    check_template(
      template,
      needs=["response"],
      knows=["question", "reference"],
      who="YesNoJudge",
    )
    self.judge, self.template = judge, template
    self._scale = Scale((1.0, 0.0), min_mass=min_mass)

  def use_policy(self, params: Params) -> None:
    """See `host.AsksPolicy`."""
    give_policy(self.judge, params)

  def probabilities(
    self,
    questions: Sequence[str],
    responses: Sequence[str],
    references: Sequence[str],
  ) -> list[float | None]:
    """See `judge_protocol.Judge`."""
    fields = zip(questions, responses, references, strict=True)
    answers = ask(
      self.judge,
      [
        fill(
          self.template,
          {"question": question, "response": response, "reference": reference},
        )
        for question, response, reference in fields
      ],
    )
    scores, _ = self._scale.rate(answers)
    return [None if np.isnan(score) else float(score) for score in scores]


class Comparisons(NamedTuple):
  """Preferences for the first of two responses; see `trust_judge`.

  likelihood: from the probabilities of both orders.
  perplexity: from the order in which the judge was surer.
  agreed: where both orders agree, else a tie.
  """

  likelihood: np.ndarray  # float32 [N]
  perplexity: np.ndarray  # float32 [N]
  agreed: np.ndarray  # float32 [N]


def compare(
  judge: ChoiceJudge,
  questions: Sequence[str],
  first: Sequence[str],
  second: Sequence[str],
  *,
  tolerance: float,
  perplexity_tolerance: float = 0.0,
  template: str = PAIR_TEMPLATE,
) -> Comparisons:
  """Returns which of two responses a judge prefers, asked in both orders.

  Args:
    judge: with three choices: what is shown first is better, what is shown
      second is, a tie.
    questions: length N.
    first: responses, length N.
    second: responses, length N.
    tolerance: see `trust_judge.likely_preference`.
    perplexity_tolerance: see `trust_judge.perplexity_preference`.
    template: with {first} and {second}, and {question} if wanted.

  Returns:
    Preferences, NaN where the judge failed in one of the orders.

  Raises:
    ValueError: not three choices, or another field.
  """
  if len(judge.choices) != 3:
    raise ValueError(f"choices={judge.choices}: give first, second and tie")
  check_template(
    template, needs=["first", "second"], knows=["question"], who="compare"
  )

  def prompt(question: str, shown_first: str, shown_second: str) -> str:
    data = {"question": question, "first": shown_first, "second": shown_second}
    return fill(template, data)

  count = len(questions)
  asked = [prompt(*x) for x in zip(questions, first, second, strict=True)]
  asked += [prompt(*x) for x in zip(questions, second, first, strict=True)]
  answers = ask(judge, asked)
  p = jnp.exp(jnp.asarray(answer_logprobs(answers, 3)))
  forward, backward = p[:count], p[count:]
  sign = jnp.asarray([1.0, -1.0, 0.0])
  unknown = jnp.isnan(p).any(axis=-1) | (p.sum(axis=-1) == 0)
  chosen = jnp.where(unknown, jnp.nan, sign[jnp.argmax(p, axis=-1)])
  one, two = chosen[:count], -chosen[count:]
  surprise = jnp.asarray([a.perplexity for a in answers], jnp.float32)
  either = unknown[:count] | unknown[count:]
  likely = likely_preference(forward, backward, tolerance=tolerance)
  surer = perplexity_preference(
    one,
    two,
    surprise[:count],
    surprise[count:],
    tolerance=perplexity_tolerance,
  )
  return Comparisons(
    likelihood=np.asarray(jnp.where(either, jnp.nan, likely)),
    perplexity=np.asarray(surer),
    agreed=np.asarray(agreed_preference(one, two)),
  )
