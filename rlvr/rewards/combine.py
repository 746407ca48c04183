"""Combinators over few named rewards: λ-harmonic mean, hybrid of aspects.

Covers `lambda_harmonic` and `hybrid_aspects` of the catalogue. `merge_rewards`
is what every combinator of named rewards is made with, `step_mean` brings a
step reward to the kind of the others.

What a missing reward does is said by `missing`, see `rlvr.rewards.basic`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  KINDS,
  Kind,
  Transform,
  check_probability,
  find_reward,
  put_reward,
  stateless,
)
from rlvr.rewards.basic import Missing, weighted_sum_reward
from rlvr.types import Array, Context, Scores


def harmonic_reward(
  first: Array,
  second: Array,
  *,
  lambda_: float,
  missing: Missing,
  epsilon: float = 1e-8,
) -> Array:
  """Returns the λ-harmonic mean of two scores.

      r = 1 / (λ / (a + ε) + (1 − λ) / (b + ε))

  It lies between the two and close to the lower one: a response can't buy off
  one score with the other, as it can in λ a + (1 − λ) b.

  Source: Miao et al., "Subject-driven Text-to-Image Generation via
  Preference-based Reinforcement Learning", https://arxiv.org/abs/2407.12164, the
  λ-Harmonic reward, and https://github.com/andrew-miao/RPO, where a and b are
  similarities of images and texts brought to 0..1 and ε is 1e-8.

  Deviation: a score below 0 counts as 0, for which the mean is defined.

  Args:
    first: float, any shape: scores a, not negative; NaN where missing.
    second: float, the same shape: scores b.
    lambda_: weight λ of the first score, probability.
    missing: "propagate" or "skip" (the other score is the mean).
    epsilon: ε, in the scores' unit.

  Returns:
    float, the scores' shape.
  """
  a, b = jnp.maximum(first, 0.0) + epsilon, jnp.maximum(second, 0.0) + epsilon
  mean = 1.0 / (lambda_ / a + (1.0 - lambda_) / b)
  if missing == "propagate":
    # λ = 0 must not hide that the first score is missing.
    return jnp.where(jnp.isnan(a) | jnp.isnan(b), jnp.nan, mean)
  return jnp.where(jnp.isnan(a), b, jnp.where(jnp.isnan(b), a, mean))


def hybrid_reward(
  model: Array,
  rule: Array,
  confidence: Array | float,
  *,
  missing: Missing,
) -> Array:
  """Returns a rule's reward where the rule is sure, the model's elsewhere.

      r = c r_rule + (1 − c) r_model

  From the abstract of Gulhane and Indurthi, "Beyond Monolithic Rewards: A
  Hybrid and Multi-Aspect Reward Optimization for MLLM Alignment",
  https://arxiv.org/abs/2510.05283: model-based rewards, and rule-based ones
  "with confidence". The paper's own equation could not be read; the convex
  combination is this project's reading of it.

  Args:
    model: float, any shape: the reward model's scores; NaN where missing.
    rule: float, the same shape: the rule's scores; NaN where the rule says
      nothing.
    confidence: of the rule, probability: a number or an array of that shape.
    missing: "propagate" or "skip". Then the score that is there counts alone,
      and a missing confidence counts as 1/2; but a rule of confidence 0 is no
      score, nor is a model beside a rule of confidence 1.

  Returns:
    float, the scores' shape.
  """
  c = jnp.broadcast_to(jnp.asarray(confidence, rule.dtype), rule.shape)
  if missing == "propagate":
    return c * rule + (1.0 - c) * model
  c = jnp.where(jnp.isnan(c), 0.5, c)
  c_rule = jnp.where(jnp.isnan(rule), 0.0, c)
  c_model = jnp.where(jnp.isnan(model), 0.0, 1.0 - c)
  total = jnp.where(c_rule > 0, c_rule * rule, 0.0)
  total += jnp.where(c_model > 0, c_model * model, 0.0)
  share = c_rule + c_model
  return jnp.where(share > 0, total / jnp.where(share > 0, share, 1.0), jnp.nan)


def response_step_mean(
  values: Array, mask: Array, *, missing: Missing
) -> Array:
  """Returns the mean of a response's step rewards.

  Args:
    values: float [B, K]; NaN where missing.
    mask: bool [B, K], true on the response's steps.
    missing: "propagate": one step without reward makes the mean missing;
      "skip": the mean is over the steps that have one.

  Returns:
    float [B]; NaN for a response without any step reward.
  """
  here = mask & ~jnp.isnan(values)
  mean = segments.masked_mean(values, here, axis=-1)
  known = here.any(axis=-1)
  if missing == "propagate":
    known &= (here == mask).all(axis=-1)
  return jnp.where(known, mean, jnp.nan)


def lambda_harmonic(
  *,
  first: str,
  second: str,
  lambda_: float,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges two rewards into their λ-harmonic mean, see `harmonic_reward`.

  The preference label between two responses that the paper makes of it is
  `rlvr.rewards.pairwise.bradley_terry_labels`.

  Args:
    first: name of the reward that λ weighs, not negative.
    second: name of the other, of the same kind.
    lambda_: weight of the first, probability.
    missing: see `harmonic_reward`.
    out: name of the merged reward; the two are taken out.

  Raises:
    ValueError: λ is no probability, a value of `missing` that isn't known.
  """
  check_probability("lambda_", lambda_, who="lambda_harmonic")

  def fn(parts, _):
    return harmonic_reward(
      parts[first], parts[second], lambda_=lambda_, missing=missing
    )

  return merge_rewards(
    "lambda_harmonic",
    fn,
    rewards=(first, second),
    missing=missing,
    out=out,
    params={"lambda_": lambda_},
  )


def hybrid_aspects(
  *,
  model: str,
  rule: str,
  confidence: float | str,
  aspects: Mapping[str, float],
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges a hybrid of model and rule with further aspects.

      r = (c r_rule + (1 − c) r_model) + Σ_a w_a r_a

  See `hybrid_reward` for the source and for what is not known of it. Aspects
  are named rewards: instruction adherence, and the general length penalty
  (`rlvr.rewards.length.length_band`, which is at most 0, so its weight is
  positive).

  Args:
    model: name of the reward model's outcome reward.
    rule: name of the rule's outcome reward.
    confidence: of the rule: a number, or the name of an outcome reward.
    aspects: weight by name of a further outcome reward.
    missing: "propagate" or "skip": `hybrid_reward` of what is there, and
      `weighted_sum_reward` of the hybrid (weight 1) and the aspects.
    out: name of the merged reward; all that takes part is taken out.

  Raises:
    ValueError: a confidence that is no probability, a reward named twice, or a
      value of `missing` that isn't known.
  """
  names = [model, rule, *aspects]
  if isinstance(confidence, str):
    names.append(confidence)
  else:
    check_probability("confidence", confidence, who="hybrid_aspects")

  def fn(parts, _):
    sure = parts[confidence] if isinstance(confidence, str) else confidence
    # A mapping's own name could be an aspect's: count them instead.
    terms = {
      "0": hybrid_reward(parts[model], parts[rule], sure, missing=missing)
    }
    weights = {"0": 1.0}
    for i, (name, weight) in enumerate(aspects.items(), start=1):
      terms[str(i)], weights[str(i)] = parts[name], weight
    return weighted_sum_reward(terms, weights, missing=missing)

  return merge_rewards(
    "hybrid_aspects",
    fn,
    rewards=names,
    missing=missing,
    out=out,
    kinds=("outcome",),
    params={"confidence": confidence, "aspects": dict(aspects)},
  )


def step_mean(
  *,
  reward: str | None = None,
  missing: Missing = "propagate",
  out: str | None = None,
) -> Transform:
  """Turns a step reward into an outcome reward: the mean over the steps.

  Args:
    reward: which step reward; None means the only one. It is taken out.
    missing: see `response_step_mean`.
    out: name of the outcome reward; None keeps the name.
  """
  check_missing(missing, who="step_mean")

  def apply(scores: Scores, context: Context) -> Scores:
    _, name, values = find_reward(scores, reward, ("step",), who="step_mean")
    mask = segments.step_mask(context.rollout.step_index, values.shape[1])
    mean = response_step_mean(values, mask, missing=missing)
    return put_reward(scores, "outcome", out or name, mean, drop=[name])

  return stateless(
    "step_mean",
    apply,
    params={"reward": reward, "missing": missing, "out": out},
  )


def merge_rewards(
  name: str,
  fn: Callable[[dict[str, Array], Context], Array],
  *,
  rewards: Iterable[str],
  missing: Missing,
  out: str,
  kinds: Sequence[Kind] = KINDS,
  requires: Iterable[str] = (),
  params: Mapping[str, Any] | None = None,
) -> Transform:
  """Returns the transform that merges named rewards of one kind by `fn`.

  Args:
    name: the transform's name.
    fn: `(values by name, context) -> values` of the same shape; it is what
      honours `missing`.
    rewards: names of the parts, which are taken out.
    missing: "propagate" or "skip"; checked here.
    out: name of the merged reward.
    kinds: the kinds of reward that `fn` works on.
    requires: probes that `fn` reads from the context.
    params: hyperparameters for `describe`.

  Raises:
    ValueError: no part, a part named twice, a value of `missing` that isn't
      known; parts of different kinds or shapes (at trace time).
  """
  names = check_names(rewards, who=name)
  check_missing(missing, who=name)

  def apply(scores: Scores, context: Context) -> Scores:
    kind, parts = find_rewards(scores, names, kinds, who=name)
    return put_reward(scores, kind, out, fn(parts, context), drop=names)

  return stateless(
    name,
    apply,
    requires=requires,
    params={
      "rewards": names,
      "missing": missing,
      "out": out,
      **(params or {}),
    },
  )


def find_rewards(
  scores: Scores,
  names: Sequence[str],
  kinds: Sequence[Kind] = KINDS,
  *,
  who: str,
) -> tuple[Kind, dict[str, Array]]:
  """Returns the kind and the values of named rewards of one kind and shape.

  Raises:
    ValueError: no such reward, or rewards of different kinds or shapes.
  """
  found: dict[str, Kind] = {}
  parts: dict[str, Array] = {}
  for name in names:
    found[name], _, parts[name] = find_reward(scores, name, kinds, who=who)
  shapes = {name: part.shape for name, part in parts.items()}
  if len(set(found.values())) > 1 or len(set(shapes.values())) > 1:
    raise ValueError(
      f"{who}: rewards of different kinds, {found}, or shapes, {shapes}: bring"
      " them to one kind first (step_mean, or a credit transform)"
    )
  return found[names[0]], parts


def check_names(rewards: Iterable[str], *, who: str) -> list[str]:
  """Returns the names as a list; raises ValueError if none or one is twice."""
  names = list(rewards)
  if not names:
    raise ValueError(f"{who}: no reward is named: give the names of the parts")
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f"{who}: {twice} named twice: a part counts once")
  return names


def check_missing(missing: str, *, who: str) -> None:
  """Raises ValueError unless `missing` is "propagate" or "skip"."""
  if missing not in ("propagate", "skip"):
    raise ValueError(f"{who}: missing={missing!r}; give 'propagate' or 'skip'")
