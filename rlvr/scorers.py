"""A model's forward passes as the probes and the loss take them."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rlvr import models, packing
from rlvr.meshes import constrain_rows, num_shards
from rlvr.models.kept_prompts import KeptPrompts, forward_behind, keep_prompts
from rlvr.objectives.terms import Statistic
from rlvr.packing import Packing
from rlvr.probes.compute import Scorer
from rlvr.sampling import Sampling
from rlvr.types import Array, Params


def _statistics(
  model: models.ModelConfig,
  params: Params,
  hidden: Array,
  tokens: Array,
  temperature: float,
  statistics: Mapping[str, Statistic] | None,
) -> dict[str, Array]:
  found = models.token_statistics(
    params, model, hidden, tokens, temperature=temperature, extra=statistics
  )
  out = {
    f.name: getattr(found, f.name)
    for f in dataclasses.fields(found)
    if f.name != "extra"
  }
  out |= found.extra | {"hidden": hidden.astype(jnp.float32)}
  if model.value_head:
    out["values"] = models.values(params, model, hidden)
  return out


def scorer_of(
  model: models.ModelConfig,
  params: Params,
  temperature: float,
  statistics: Mapping[str, Statistic] | None = None,
) -> Scorer:
  """Returns the forward pass of a model as the probes take it.

  Args:
    model: the model's shape.
    params: its parameters.
    temperature: divides the logits.
    statistics: functions of the logits, see `Term.statistics`.
  """

  def score(prompt_tokens, prompt_mask, tokens, mask, group):
    hidden = models.forward_responses(
      params, model, prompt_tokens, prompt_mask, tokens, mask, group
    )
    return _statistics(model, params, hidden, tokens, temperature, statistics)

  return score


def kept_scorer_of(
  model: models.ModelConfig,
  params: Params,
  kept: KeptPrompts,
  temperature: float,
  statistics: Mapping[str, Statistic] | None = None,
  *,
  ways: int = 1,
) -> Scorer:
  """Returns `scorer_of` for responses to prompts that are computed already.

  Args:
    model: the model's shape.
    params: its parameters.
    kept: of the prompts that the scorer will be called with; it needs `group`.
    temperature: divides the logits.
    statistics: functions of the logits, see `Term.statistics`.
    ways: see `forward_behind`.
  """

  def score(prompt_tokens, prompt_mask, tokens, mask, group):
    del prompt_tokens
    hidden = forward_behind(
      params, model, kept, prompt_mask, tokens, mask, group, ways=ways
    )
    return _statistics(model, params, hidden, tokens, temperature, statistics)

  return score


def packed_scorer_of(
  model: models.ModelConfig,
  params: Params,
  temperature: float,
  settings: Packing | None,
  names: frozenset[str],
) -> Scorer:
  """Returns `scorer_of` that computes little padding; it has no gradient.

  What it returns for padding is anything, behind the last piece's end 0.

  Args:
    model: the model's shape.
    params: its parameters.
    temperature: divides the logits.
    settings: None computes all batches in one piece.
    names: what of it is returned.
  """
  whole = scorer_of(model, params, temperature)
  if settings is None:
    return whole

  def score(prompt_tokens, prompt_mask, tokens, mask, group):
    (P, S), (B, T) = prompt_tokens.shape, tokens.shape

    shapes = packing.piece_shapes(
      settings, rows=B, length=T, prompt_length=S, most_rows=B
    )
    if len(shapes) == 1:
      return whole(prompt_tokens, prompt_mask, tokens, mask, group)
    plan = packing.plan(shapes, mask.sum(-1, dtype=jnp.int32))
    ways = shared_ways(B, P) if group is None else 1
    prompt_of = jnp.repeat(jnp.arange(P), B // P) if group is None else group
    kept = keep_prompts(params, model, prompt_tokens, prompt_mask)
    part = kept_scorer_of(model, params, kept, temperature, ways=ways)

    def of_piece(tokens, mask, group):
      found = part(prompt_tokens, prompt_mask, tokens, mask, group)
      return {k: found[k] for k in names}

    def body(out, rows, length):
      taken = packing.take_rows((tokens, mask), rows, length, T)
      found = of_piece(*taken, packing.take_rows(prompt_of, rows, length, None))
      return {k: packing.put_rows(out[k], rows, found[k]) for k in names}

    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(of_piece, tokens, mask, prompt_of),
    )
    return packing.over_pieces(shapes, plan, constrain_rows(zeros), body)

  return score


def shared_ways(num_responses: int, num_prompts: int) -> int:
  """Returns into how many parts a mesh cuts responses and their prompts alike.

  Args:
    num_responses: B, in even groups.
    num_prompts: P.
  """
  ways = num_shards("batch", num_responses)
  return ways if ways == num_shards("batch", num_prompts) else 1


def prompt_scorer_of(
  model: models.ModelConfig, params: Params, temperature: float
) -> Callable[[Array, Array], Array]:
  """Returns (tokens [P, S], mask) -> log-probs of the prompts' own tokens."""

  def score(tokens, mask):
    hidden = models.forward(params, model, tokens, mask)
    before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return models.token_statistics(
      params, model, before, tokens, temperature=temperature
    ).logprobs

  return score


def trainer_temperature(sampling: Sampling) -> float:
  """Returns what the trainer divides the logits by: as in sampling.

  Greedy sampling has no temperature that a trainer could use: 1 then.
  """
  return sampling.temperature or 1.0
