"""The policy in training answers multiple choice, by one forward pass."""

import logging
from collections.abc import Sequence
from typing import Any

from rlvr import models
from rlvr.types import Params
from rlvr.verifiers.policy_judge import ChoiceScorer, SelfJudge

_log = logging.getLogger(__name__)


class PolicyAnswers:
  """See `policy_answers`."""

  def __init__(self, labels: Sequence[str], judge: SelfJudge):
    self._columns = {label: i for i, label in enumerate(labels)}
    self._judge = judge

  def use_policy(self, params: Params) -> None:
    """See `host.AsksPolicy`."""
    self._judge.use_policy(params)

  def __call__(
    self, prompts: Sequence[str], labels: Sequence[Sequence[str]]
  ) -> list[list[float] | None]:
    """Returns the log-probs of each prompt's labels; see `second_answer.Ask`."""
    answers = self._judge.ask(prompts)
    found: list[list[float] | None] = []
    problems = []
    for answer, names in zip(answers, labels, strict=True):
      unknown = [name for name in names if name not in self._columns]
      if answer.status != "ok" or unknown:
        found.append(None)
        problems.append(
          answer.detail or f"policy_answers.labels lacks {unknown}"
        )
      else:
        columns = [self._columns[name] for name in names]
        found.append([answer.logprobs[i] for i in columns])
    if problems:
      _log.warning(
        "the policy could not answer %d of %d questions; the first: %s",
        *(len(problems), len(prompts), problems[0]),
      )
    return found


def policy_answers(
  *,
  model: models.ModelConfig,
  vocabulary: Any,
  labels: Sequence[str],
  max_prompt_tokens: int,
  batch_size: int,
  label_prefix: str = "",
) -> PolicyAnswers:
  """Returns who answers for the policy in training, at its present parameters.

  A `second_answer.Ask`: the log-prob of each label's tokens behind the prompt,
  by teacher forcing. "Present" are the parameters when the batch is verified:
  those that sampled it, or with depth 1, where they are one batch older, those
  that the update of the batch starts from.

  Args:
    model: the policy's shape.
    vocabulary: the policy's.
    labels: all that a question may have; a question with others isn't answered.
    max_prompt_tokens: see `policy_judge.ChoiceScorer`; a longer question isn't
      answered: its reward is missing.
    batch_size: see `policy_judge.ChoiceScorer`.
    label_prefix: what stands before a label, for a tokenizer that has the space
      and the letter in one token.

  Raises:
    ValueError: see `policy_judge.ChoiceScorer`.
  """
  scorer = ChoiceScorer(
    model,
    vocabulary,
    choices=[label_prefix + label for label in labels],
    max_prompt_tokens=max_prompt_tokens,
    batch_size=batch_size,
  )
  return PolicyAnswers(labels, SelfJudge(scorer))
