"""Rubrics of a prompt's own: criteria that a judge or a program scores.

A rubric comes in `metadata["rubric"]`, a list of criteria, each one of

    {"criterion": text}                     a judge rates the response by it
    {"instruction": id, "arguments": {}}    IFEval's check of that id: 0 or 1

with "weight" (1), "veto_below" (none) and "saturation" (1) if wanted, and
`metadata["rubric_interactions"]`, a list of [i, j, strength] of criteria by place.
`rubric_scores` says what is made of them; https://arxiv.org/abs/2508.12790.

Rubrics over rewards that other verifiers give are `rlvr.rewards.rubric`'s.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rlvr.types import Signals, Verdict
from rlvr.verifiers.host import host_signals
from rlvr.verifiers.instruction_text import Detection, language_detector
from rlvr.verifiers.instructions import (
  BadInstruction,
  Instruction,
  read_instructions,
)
from rlvr.verifiers.judge_prompts import (
  CRITERION_TEMPLATE,
  check_template,
  fill,
)
from rlvr.verifiers.judges import (
  Answer,
  ChoiceJudge,
  Scale,
  ask,
  not_judged,
  scale_of,
)
from rlvr.verifiers.rating import JudgedVerifier
from rlvr.verifiers.rubric_scores import rubric_scores


class BadRubric(ValueError):
  """The task's rubric can't be read."""


class Criterion(NamedTuple):
  """One criterion of a rubric.

  text: what a judge is asked about; "" where a program checks.
  instruction: the program's; None where a judge rates.
  weight, veto_below, saturation: see `rubric_scores`.
  """

  text: str
  instruction: Instruction | None
  weight: float
  veto_below: float
  saturation: float


class Rubric(NamedTuple):
  """A prompt's criteria, and (i, j, strength) of their interactions."""

  criteria: tuple[Criterion, ...]
  interactions: tuple[tuple[int, int, float], ...] = ()


def read_rubric(metadata: Mapping[str, Any], *, max_criteria: int) -> Rubric:
  """Returns a prompt's rubric.

  Args:
    metadata: the prompt's, see the module's docstring.
    max_criteria: C; more are an error.

  Raises:
    BadRubric: none, too many, or one that can't be read.
  """
  given = metadata.get("rubric")
  if not isinstance(given, (list, tuple)) or not given:
    raise BadRubric(f"metadata['rubric'] is {str(given)[:60]}: give criteria")
  if len(given) > max_criteria:
    raise BadRubric(f"{len(given)} criteria, over max_criteria={max_criteria}")
  criteria = tuple(_criterion(i, one) for i, one in enumerate(given))
  if not any(c.weight > 0 for c in criteria):
    raise BadRubric("no criterion has a weight above 0")
  pairs = []
  for pair in metadata.get("rubric_interactions") or []:
    try:
      i, j, strength = pair
      fine = i != j and {int(i), int(j)} <= set(range(len(criteria)))
      pairs.append((int(i), int(j), _number("strength", strength)))
    except (TypeError, ValueError):
      fine = False
    if not fine:
      raise BadRubric(f"interaction {pair!r}: give [i, j, strength]")
  return Rubric(criteria, tuple(pairs))


def _criterion(place: int, given: Any) -> Criterion:
  known = {"criterion", "instruction", "arguments"}
  known |= {"weight", "veto_below", "saturation"}
  if not isinstance(given, Mapping) or set(given) - known:
    raise BadRubric(f"criterion {place}: {str(given)[:80]}: keys are {known}")
  text, name = given.get("criterion", ""), given.get("instruction")
  if not isinstance(text, str) or bool(text.strip()) == bool(name):
    raise BadRubric(f"criterion {place}: give a text or an instruction")
  instruction = None
  if name:
    try:
      (instruction,) = read_instructions([name], [given.get("arguments")])
    except BadInstruction as error:
      raise BadRubric(f"criterion {place}: {error}") from None
  numbers = {
    "weight": _number("weight", given.get("weight", 1.0)),
    "veto_below": -math.inf,
    "saturation": _number("saturation", given.get("saturation", 1.0)),
  }
  if given.get("veto_below") is not None:
    numbers["veto_below"] = _number("veto_below", given["veto_below"])
  if numbers["weight"] < 0 or not 0 <= numbers["saturation"] <= 1:
    raise BadRubric(f"criterion {place}: {numbers}: out of range")
  return Criterion(text, instruction, **numbers)


def _number(name: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise BadRubric(f"{name}={value!r} is no number")
  if not math.isfinite(value):
    raise BadRubric(f"{name}={value} is not finite")
  return float(value)


def rubric_arrays(
  rubrics: Sequence[Rubric | None], max_criteria: int
) -> dict[str, Any]:
  """Returns the rubrics as arguments of `rubric_scores`.

  Args:
    rubrics: length B; None where there is none.
    max_criteria: C; what a rubric hasn't got has weight 0.

  Returns:
    "weights", "veto_below", "saturation" float32 [B, C], "interactions" float32
    [B, C, C].
  """
  shape = (len(rubrics), max_criteria)
  arrays = {
    "weights": np.zeros(shape, np.float32),
    "veto_below": np.full(shape, -np.inf, np.float32),
    "saturation": np.ones(shape, np.float32),
    "interactions": np.zeros((*shape, max_criteria), np.float32),
  }
  for b, rubric in enumerate(rubrics):
    if rubric is None:
      continue
    for c, criterion in enumerate(rubric.criteria):
      arrays["weights"][b, c] = criterion.weight
      arrays["veto_below"][b, c] = criterion.veto_below
      arrays["saturation"][b, c] = criterion.saturation
    for i, j, strength in rubric.interactions:
      arrays["interactions"][b, i, j] += strength
  return arrays


class RubricVerifier(JudgedVerifier):
  """See `rubric_verifier`."""

  def __init__(
    self,
    judge: ChoiceJudge,
    scale: Scale,
    *,
    template: str,
    max_criteria: int,
    threshold: float,
    slope: float,
    sharpness: float,
    skip_missing: bool,
    detection: Detection,
    max_chars: int,
    name: str,
  ):
    super().__init__(judge, max_chars=max_chars, name=name)
    self.scale, self.template = scale, template
    self.max_criteria, self.threshold = max_criteria, threshold
    self.detection = detection
    self._shaping: dict[str, Any] = {
      "slope": slope,
      "sharpness": sharpness,
      "skip_missing": skip_missing,
    }

  def judged(self, responses, references, metadata, finished) -> Signals:
    """See `JudgedVerifier`."""
    count = len(responses)
    verdicts: list[Verdict | None] = [None] * count
    rubrics: list[Rubric | None] = [None] * count
    problems = []
    for i in range(count):
      try:
        rubrics[i] = read_rubric(metadata[i], max_criteria=self.max_criteria)
        verdicts[i] = self.unasked(responses[i], finished[i])
      except BadRubric as error:
        verdicts[i] = Verdict.VERIFIER_FAILED
        problems.append((responses[i], str(error)))
    scores, answers = self._criteria(responses, metadata, verdicts, rubrics)
    rewards = np.asarray(
      rubric_scores(
        jnp.asarray(scores),
        **rubric_arrays(rubrics, self.max_criteria),
        **self._shaping,
      )
    )
    known = [v is None for v in verdicts]
    rewards = np.where(known, rewards, 0.0)
    for i in range(count):
      if verdicts[i] is not None:
        continue
      if np.isnan(rewards[i]):
        unsaid = [a for a in answers[i] if a.status != "ok"]
        first = unsaid[0] if unsaid else Answer("failed", detail="no rating")
        verdicts[i] = not_judged(first, known=False)
        problems.append((responses[i], first.detail))
      else:
        right = rewards[i] >= self.threshold
        verdicts[i] = Verdict.CORRECT if right else Verdict.WRONG
    self.note(problems, count)
    made = host_signals(self.name, verdicts, rewards)  # type: ignore[arg-type]
    steps: dict[str, Any] = {"criteria": scores}
    return dataclasses.replace(made, step=steps)

  def _criteria(
    self,
    responses: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Verdict | None],
    rubrics: Sequence[Rubric | None],
  ) -> tuple[np.ndarray, dict[int, list[Answer]]]:
    """Returns each criterion's score [B, C] and each response's answers."""
    scores = np.full((len(responses), self.max_criteria), np.nan, np.float32)
    places, prompts = [], []
    for i, rubric in enumerate(rubrics):
      if rubric is None:
        continue
      if verdicts[i] is not None:  # the response's fault: it meets nothing
        scores[i, : len(rubric.criteria)] = 0.0
        continue
      for c, criterion in enumerate(rubric.criteria):
        if criterion.instruction is not None:
          follows = criterion.instruction.follows(
            responses[i], detection=self.detection
          )
          scores[i, c] = float(follows)
          continue
        data = {
          "question": str(metadata[i].get("question", "")),
          "response": responses[i],
          "criterion": criterion.text,
        }
        places.append((i, c))
        prompts.append(fill(self.template, data, self.scale.words))
    given = ask(self.judge, prompts)
    ratings, _ = self.scale.rate(given)
    answers: dict[int, list[Answer]] = {i: [] for i in range(len(responses))}
    for (i, c), rating, answer in zip(places, ratings, given, strict=True):
      scores[i, c] = rating
      answers[i].append(answer)
    return scores, answers


def rubric_verifier(
  *,
  judge: Callable[[], ChoiceJudge],
  max_criteria: int,
  threshold: float,
  slope: float = 0.0,
  sharpness: float = 1.0,
  skip_missing: bool = False,
  ratings: Sequence[float] | None = None,
  template: str = CRITERION_TEMPLATE,
  temperature: float | None = None,
  min_mass: float = 0.0,
  detection: Detection = "careful",
  max_response_chars: int = 20_000,
  name: str = "correct",
) -> RubricVerifier:
  """Returns the verifier by each prompt's own rubric.

  The reward is `rubric_scores`, in [0, 1]; step reward "criteria" [B, C] has each
  criterion's score. Verdicts: VERIFIER_FAILED (a rubric that can't be read),
  NO_ANSWER (truncated, blank), MALFORMED (too long), TIMED_OUT or
  VERIFIER_FAILED (the judge left out what the score needs; the reward is NaN),
  CORRECT from the threshold on, else WRONG.

  Args:
    judge: makes the judge, which is asked once for each criterion.
    max_criteria: C.
    threshold: score from which a response is CORRECT.
    slope: see `rubric_scores`.
    sharpness: see `rubric_scores`.
    skip_missing: see `rubric_scores`.
    ratings: number of each of the judge's choices; None: the choices are
      numbers.
    template: with {response} and {criterion}; {question}, {low} and {high} if
      wanted.
    temperature: see `trust_judge.rating_probabilities`.
    min_mass: see `trust_judge.rating_probabilities`.
    detection: see `instruction_text.Detection`.
    max_response_chars: a longer response is MALFORMED.
    name: the reward's name.

  Raises:
    ImportError: langdetect isn't installed.
    ValueError: an argument is out of range, or a field isn't known.
  """
  check_template(
    template,
    needs=["response", "criterion"],
    knows=["question", "low", "high"],
    who="rubric_verifier",
  )
  if not 0 < threshold <= 1 or max_criteria < 1 or not sharpness > 0:
    raise ValueError(
      f"rubric_verifier: threshold={threshold}, max_criteria={max_criteria},"
      f" sharpness={sharpness}: above 0, the first at most 1"
    )
  language_detector()
  made = judge()
  try:
    return RubricVerifier(
      made,
      scale_of(made, ratings, temperature, min_mass),
      template=template,
      max_criteria=max_criteria,
      threshold=threshold,
      slope=slope,
      sharpness=sharpness,
      skip_missing=skip_missing,
      detection=detection,
      max_chars=max_response_chars,
      name=name,
    )
  except BaseException:
    made.close()
    raise
