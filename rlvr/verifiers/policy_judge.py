"""A policy of ours as a judge: log-probs of a few words behind a prompt."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import models
from rlvr.infra import exchange
from rlvr.infra.checkpoints import restore_params
from rlvr.sharding import param_shardings
from rlvr.types import Array, Params
from rlvr.verifiers.judges import Answer


def choice_logprobs(
  params: Params,
  tokens: Array,
  mask: Array,
  choices: Array,
  choice_mask: Array,
  *,
  model: models.ModelConfig,
  temperature: float = 1.0,
) -> Array:
  """Returns the log-prob of each choice behind each prompt.

      log p(choice | prompt) = Σ_t log π(choice_t | prompt, choice_<t)

  A prompt is computed once for all of its choices.

  Args:
    params: the model's parameters.
    tokens: int32 [B, S], prompts, padded on the left.
    mask: bool [B, S], true on the prompts' tokens.
    choices: int32 [K, L], padded on the right.
    choice_mask: bool [K, L].
    model: the model's shape.
    temperature: divides the logits.

  Returns:
    float32 [B, K], nats. Not normalised over the choices: their probabilities
    sum to what the model gives to choosing at all.
  """
  batch, count = tokens.shape[0], choices.shape[0]
  repeated = jnp.tile(choices, (batch, 1))
  repeated_mask = jnp.tile(choice_mask, (batch, 1))
  hidden = models.forward_responses(
    params, model, tokens, mask, repeated, repeated_mask
  )
  logprobs = models.token_statistics(
    params, model, hidden, repeated, temperature=temperature
  ).logprobs
  total = jnp.where(repeated_mask, logprobs, 0.0).sum(axis=-1)
  return total.reshape(batch, count)


class ChoiceScorer:
  """How likely a model goes on with each of a few words, for any parameters.

  choices: see `ChoiceJudge`.
  """

  def __init__(
    self,
    model: models.ModelConfig,
    vocabulary: Any,
    *,
    choices: Sequence[str],
    max_prompt_tokens: int,
    batch_size: int,
    temperature: float = 1.0,
  ):
    """Makes it; compiles when it is first asked.

    Args:
      model: the model's shape.
      vocabulary: with `encode`, `vocab_size`, `pad_id`.
      choices: what the model may go on with, as text behind the prompt's last
        character; a tokenizer that wants a space there needs it in the choice.
      max_prompt_tokens: S; a longer prompt fails. It isn't cut, or a response
        could push the instructions out.
      batch_size: prompts at a time.
      temperature: divides the logits.

    Raises:
      ValueError: the model doesn't know all of the vocabulary; fewer than two
        choices, one without tokens, or one that begins with another's tokens
        ("1" and "10"): its probability would be part of the other's.
    """
    self.choices = tuple(choices)
    needed = max(vocabulary.vocab_size, vocabulary.pad_id + 1)
    if model.vocab_size < needed:
      raise ValueError(
        f"model: vocab_size={model.vocab_size} is too small for the vocabulary,"
        f" which needs {needed}: give the model and the vocabulary that it was"
        " trained with"
      )
    ids = [tuple(int(i) for i in vocabulary.encode(c)) for c in choices]
    for i, one in enumerate(ids):
      for j, other in enumerate(ids):
        if not one or (i != j and other[: len(one)] == one):
          raise ValueError(
            f"choices={self.choices}: {choices[i]!r} has no tokens, or"
            f" {choices[j]!r} begins with them: end both alike, e.g. in ']'"
          )
    if len(ids) < 2 or max_prompt_tokens < 1 or batch_size < 1:
      raise ValueError(
        f"{len(ids)} choices, max_prompt_tokens={max_prompt_tokens},"
        f" batch_size={batch_size}: two choices or more, the others at least 1"
      )
    self._model = model
    self._vocabulary = vocabulary
    self._shape = (batch_size, max_prompt_tokens)
    width = max(len(row) for row in ids)
    self._lengths = np.array([len(row) for row in ids])
    self._choices = np.full((len(ids), width), vocabulary.pad_id, np.int32)
    for row, one in zip(self._choices, ids, strict=True):
      row[: len(one)] = one
    self._mask = np.arange(width) < self._lengths[:, None]
    self._score = jax.jit(
      functools.partial(choice_logprobs, model=model, temperature=temperature)
    )

  def own(self, params: Params) -> Params:
    """Returns parameters that this host can ask alone: these, or a copy.

    Args:
      params: of the model; those of a run over several hosts are given on all
        of them at once.
    """
    return exchange.on_own_devices(
      params, functools.partial(param_shardings, self._model)
    )

  def answers(self, params: Params, prompts: Sequence[str]) -> list[Answer]:
    """Returns the log-probs of the choices behind each prompt.

    Args:
      params: of the model; the work with them is done when this returns.
      prompts: length N.
    """
    batch, width = self._shape
    encoded = [list(self._vocabulary.encode(prompt)) for prompt in prompts]
    answers = [
      Answer(
        "failed",
        detail=f"the prompt has {len(ids)} tokens: raise"
        f" max_prompt_tokens={width} or shorten responses",
      )
      if len(ids) > width
      else Answer("failed", detail="the prompt is empty")
      for ids in encoded
    ]
    fit = [i for i, ids in enumerate(encoded) if 0 < len(ids) <= width]
    for first in range(0, len(fit), batch):
      rows = fit[first : first + batch]
      tokens = np.full((batch, width), self._vocabulary.pad_id, np.int32)
      mask = np.zeros((batch, width), bool)
      mask[:, -1] = True  # a row that only fills up still has something to see
      for row, i in enumerate(rows):
        length = len(encoded[i])
        tokens[row, -length:] = encoded[i]
        mask[row, -length:] = True
      found = np.asarray(
        self._score(params, tokens, mask, self._choices, self._mask)
      )
      for row, i in enumerate(rows):
        answers[i] = self._answer(found[row])
    return answers

  def _answer(self, logprobs: np.ndarray) -> Answer:
    if not np.isfinite(logprobs).all():
      return Answer("failed", detail=f"the model's log-probs are {logprobs}")
    best = int(logprobs.argmax())
    perplexity = float(np.exp(-logprobs[best] / self._lengths[best]))
    return Answer("ok", tuple(map(float, logprobs)), perplexity)


class PolicyJudge:
  """A `ChoiceJudge` that is a model on the device, with its own parameters.

  choices: see `ChoiceJudge`.
  """

  def __init__(
    self,
    params: Params,
    model: models.ModelConfig,
    vocabulary: Any,
    **options: Any,
  ):
    """Makes the judge; compiles when it is first asked.

    Args:
      params: the judge's own; for those of a policy in training see
        `SelfJudge`.
      model: see `ChoiceScorer`, as the options.
      vocabulary: see `ChoiceScorer`.
      **options: see `ChoiceScorer`.

    Raises:
      ValueError: see `ChoiceScorer`.
    """
    self._params = params
    self._scorer = ChoiceScorer(model, vocabulary, **options)
    self.choices = self._scorer.choices

  def ask(self, prompts: Sequence[str]) -> list[Answer]:
    """See `ChoiceJudge`."""
    return self._scorer.answers(self._params, prompts)

  def close(self) -> None:
    """Does nothing: there is nothing to end."""


class SelfJudge:
  """A `ChoiceJudge` that is the policy in training, as it is at present.

  choices: see `ChoiceJudge`.
  """

  def __init__(self, scorer: ChoiceScorer):
    self._scorer, self.choices = scorer, scorer.choices
    self._params: Params | None = None

  def use_policy(self, params: Params) -> None:
    """See `host.AsksPolicy`.

    Where several hosts train, each verifies responses of its own and asks a
    copy, cut over its own devices, which stays until the next is given: beside
    what the run keeps, the parameters' bytes over the devices of one host.
    """
    self._params = None  # an older copy, before there is another
    self._params = self._scorer.own(params)

  def ask(self, prompts: Sequence[str]) -> list[Answer]:
    """See `ChoiceJudge`."""
    if self._params is None:
      raise RuntimeError(
        "nobody gave the policy's parameters: call the verifier's `use_policy`"
        " before the batch, as `rlvr.running` does"
      )
    return self._scorer.answers(self._params, prompts)

  def close(self) -> None:
    """Lets go of the parameters."""
    self._params = None


def policy_judge(
  *,
  checkpoint: str | None,
  model: models.ModelConfig,
  vocabulary: Any,
  choices: Sequence[str],
  max_prompt_tokens: int,
  batch_size: int,
  temperature: float = 1.0,
) -> PolicyJudge:
  """Returns the judge that is a model of ours, from a run's checkpoint.

  For gin: `rating_verifier.judge = @policy_judge.policy_judge`, with model and
  vocabulary by macros of their own, since a judge need not be as the policy is.

  Args:
    checkpoint: the folder `checkpoints` of the run that trained it; the newest
      counts.
    model: the judge's shape.
    vocabulary: the judge's.
    choices: see `ChoiceScorer`.
    max_prompt_tokens: see `ChoiceScorer`.
    batch_size: see `ChoiceScorer`.
    temperature: see `ChoiceScorer`.

  Raises:
    ValueError: no checkpoint, or one of another model; see `ChoiceScorer`.
  """
  if not checkpoint:
    raise ValueError(
      "policy_judge.checkpoint is not set: give the judge's checkpoint folder,"
      " e.g. --gin.JUDGE_CHECKPOINT=\"'runs/judge/checkpoints'\""
    )
  try:
    params = restore_params(checkpoint, models.abstract_params(model))
  except ValueError as error:
    raise ValueError(
      f"policy_judge.checkpoint={checkpoint!r} and policy_judge.model"
      f" (JUDGE_MODEL) don't go together: {error}"
    ) from None
  return PolicyJudge(
    params,
    model,
    vocabulary,
    choices=choices,
    max_prompt_tokens=max_prompt_tokens,
    batch_size=batch_size,
    temperature=temperature,
  )


def self_judge(
  *,
  model: models.ModelConfig,
  vocabulary: Any,
  choices: Sequence[str],
  max_prompt_tokens: int,
  batch_size: int,
  temperature: float = 1.0,
) -> SelfJudge:
  """Returns the judge that is the policy in training; see `policy_judge`.

  Args:
    model: the policy's shape.
    vocabulary: the policy's.
    choices: see `ChoiceScorer`.
    max_prompt_tokens: see `ChoiceScorer`.
    batch_size: see `ChoiceScorer`.
    temperature: see `ChoiceScorer`.

  Raises:
    ValueError: see `ChoiceScorer`.
  """
  return SelfJudge(
    ChoiceScorer(
      model,
      vocabulary,
      choices=choices,
      max_prompt_tokens=max_prompt_tokens,
      batch_size=batch_size,
      temperature=temperature,
    )
  )
