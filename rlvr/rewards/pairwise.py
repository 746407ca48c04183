"""Rewards from comparing responses with each other: win rates, Pareto fronts.

Covers `pref_grpo` and `parrot_pareto` of the catalogue, and the Bradley-Terry
labels of `lambda_harmonic`. All pairs of the batch are compared in one
[B, B] array, of which only pairs inside a group count: 4 MB for 1,024
responses.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  check_positive,
  find_reward,
  put_reward,
  stateless,
)
from rlvr.rewards.basic import Missing, weighted_sum_reward
from rlvr.rewards.combine import (
  check_missing,
  check_names,
  find_rewards,
  merge_rewards,
)
from rlvr.types import Array, Context, Scores


def bradley_terry_probability(first: Array, second: Array) -> Array:
  """Returns the probability that the first of two responses is preferred.

      P(a ≻ b) = σ(r_a − r_b)

  Args:
    first: float, any shape: rewards of the first responses, log-odds.
    second: float, the same shape: rewards of the second ones.

  Returns:
    float, that shape; probability, NaN where a reward is missing.
  """
  return jax.nn.sigmoid(first - second)


def bradley_terry_labels(key: Array, first: Array, second: Array) -> Array:
  """Returns sampled preference labels: 1 where the first response wins.

      y ~ Bernoulli(σ(r_a − r_b))

  Source: https://arxiv.org/abs/2407.12164, where r is the λ-Harmonic reward
  (`rlvr.rewards.combine.harmonic_reward`), and the data set class of
  https://github.com/andrew-miao/RPO.

  Args:
    key: PRNG key, consumed.
    first: float, any shape: rewards of the first responses.
    second: float, the same shape: rewards of the second ones.

  Returns:
    float, that shape: 0 or 1, NaN where a reward is missing.
  """
  probability = bradley_terry_probability(first, second)
  unknown = jnp.isnan(probability)
  drawn = jax.random.bernoulli(key, jnp.where(unknown, 0.5, probability))
  return jnp.where(unknown, jnp.nan, drawn.astype(probability.dtype))


def compared(rewards: Array) -> Array:
  """Returns which response of each pair has the higher reward.

  Args:
    rewards: float [B]; NaN where missing.

  Returns:
    float [B, B]: at i, j 1 if r_i > r_j, 1/2 if they are equal, 0 if r_i < r_j,
    NaN where one of the two is missing.
  """
  row, column = rewards[:, None], rewards[None, :]
  preference = 0.5 * ((row > column).astype(rewards.dtype) + (row >= column))
  return jnp.where(jnp.isnan(row) | jnp.isnan(column), jnp.nan, preference)


def win_rates(preferences: Array, group: Array) -> Array:
  """Returns the share of its group that each response beats.

      r_i = (1 / |{j}|) Σ_j P(i ≻ j)     over j ≠ i of the group, compared with i

  Source: Wang et al., "Pref-GRPO: Pairwise Preference Reward-based GRPO for
  Stable Text-to-Image Reinforcement Learning", https://arxiv.org/abs/2508.20751,
  and https://github.com/CodeGoat24/Pref-GRPO: wins over comparisons, where an
  undecided comparison counts 1/2 for both. Win rates lie apart however close
  the rewards lie, so that dividing by their deviation blows up no difference
  that means nothing.

  Deviations: all pairs of a group are compared; a response that nobody was
  compared with has the win rate 1/2 of a tie (the code gives 0, which the
  others' statistics would take for a defeat); the code rounds to 3 digits.

  Args:
    preferences: float [B, B], probability that i is preferred to j; NaN where
      the two were not compared (a judge that did not answer).
    group: int32 [B].

  Returns:
    float [B], probability.
  """
  own = group[:, None] == group[None, :]
  here = own & ~jnp.eye(group.shape[0], dtype=bool) & ~jnp.isnan(preferences)
  wins = jnp.where(here, preferences, 0.0).sum(axis=-1)
  count = here.sum(axis=-1)
  return jnp.where(count > 0, wins / jnp.maximum(count, 1), 0.5)


def non_dominated(rewards: Array, group: Array, *, missing: Missing) -> Array:
  """Returns which responses no other of their group dominates.

  j dominates i if r_jk ≥ r_ik for every reward k and r_jk > r_ik for one of
  them. Equal responses don't dominate each other: both or neither is kept.

  Source: Lee et al., "Parrot: Pareto-optimal Multi-Reward Reinforcement
  Learning Framework for Text-to-Image Generation",
  https://arxiv.org/abs/2401.05675, batch-wise Pareto optimal selection.

  Args:
    rewards: float [M, B], M rewards of each response; NaN where missing.
    group: int32 [B]; zeros compare the whole batch.
    missing: "propagate": a response that lacks a reward is compared with
      nobody; "skip": two responses are compared by the rewards that both have
      (then dominance need not be transitive).

  Returns:
    bool [B]; false for a response that cannot be compared: that lacks a reward
    ("propagate") or all of them ("skip").
  """
  row, column = rewards[:, :, None], rewards[:, None, :]
  both = ~jnp.isnan(row) & ~jnp.isnan(column)  # [M, B, B]
  known = ~jnp.isnan(rewards)
  known = known.all(axis=0) if missing == "propagate" else known.any(axis=0)
  # [i, j]: j is nowhere worse than i, and somewhere better.
  nowhere_worse = (~both | (column >= row)).all(axis=0)
  better = (both & (column > row)).any(axis=0)
  own = group[:, None] == group[None, :]
  pair = own & known[:, None] & known[None, :]
  return known & ~(pair & nowhere_worse & better).any(axis=1)


def win_rate(*, reward: str | None = None, out: str | None = None) -> Transform:
  """Replaces a reward by the share of the group that it is higher than.

  Pref-GRPO with a point reward as the judge of each pair, see `win_rates`. A
  judge that sees both responses gives its verdicts to `win_rates` itself.

  Args:
    reward: which outcome reward; None means the only one.
    out: name of the win rate; None replaces the reward in place.
  """
  return _win_rate("win_rate", compared, reward=reward, out=out, params={})


def bradley_terry_win_rate(
  *, temperature: float, reward: str | None = None, out: str | None = None
) -> Transform:
  """Replaces a reward by the expected win rate against the group.

      r_i ← mean_{j ≠ i} σ((r_i − r_j) / T)

  Args:
    temperature: T, in the reward's unit; towards 0 it is `win_rate`.
    reward: which outcome reward; None means the only one.
    out: name of the win rate; None replaces the reward in place.

  Raises:
    ValueError: the temperature is not positive.
  """
  check_positive("temperature", temperature, who="bradley_terry_win_rate")

  def judge(values: Array) -> Array:
    scaled = values / temperature
    return bradley_terry_probability(scaled[:, None], scaled[None, :])

  return _win_rate(
    "bradley_terry_win_rate",
    judge,
    reward=reward,
    out=out,
    params={"temperature": temperature},
  )


def pareto_front(
  *,
  rewards: tuple[str, ...],
  across_groups: bool,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges outcome rewards into 1 for non-dominated responses, 0 for others.

  With a group-relative estimator only non-dominated responses get positive
  advantages, and no reward's scale matters.

  Args:
    rewards: names of the outcome rewards, which are taken out.
    across_groups: true compares the whole batch, as Parrot does; false compares
      the responses to one prompt.
    missing: see `non_dominated`; what cannot be compared is missing.
    out: name of the merged reward.

  Raises:
    ValueError: as `merge_rewards`.
  """

  def fn(parts: dict[str, Array], context: Context) -> Array:
    return _front(parts, context, across_groups, missing)

  return merge_rewards(
    "pareto_front",
    fn,
    rewards=rewards,
    missing=missing,
    out=out,
    kinds=("outcome",),
    params={"across_groups": across_groups},
  )


def parrot_pareto(
  *,
  weights: Mapping[str, float],
  across_groups: bool,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Sums outcome rewards and drops dominated responses from the update.

      ∇J = (1 / n(P)) Σ_{i ∈ P} (Σ_k w_k r_ik) ∇ log π(y_i)

  with P the non-dominated responses and n(P) their number: the rewards become
  Σ_k w_k r_ik, the weights of dominated responses 0, and the reductions of
  `rlvr.objectives` divide by what is left. Source: see `non_dominated`; the
  normaliser 1/n(P) was not checked against the paper's text.

  Deviations: Parrot has no baseline; an advantage estimator behind this one
  compares with the dominated responses as well, so that non-dominated ones are
  mostly above it. The paper sums without weights (all w_k = 1) and asks for a
  reward by a word in the prompt; that is the prompts' matter.

  Args:
    weights: weight by name of outcome reward, positive: dominance is by the
      rewards themselves. The parts are taken out.
    across_groups: true compares the whole batch, as the paper does; false
      compares the responses to one prompt, so that an easy prompt does not
      push a hard one out of the update.
    missing: see `non_dominated` and `weighted_sum_reward`. A response that
      cannot be compared has no reward and keeps its weight for the estimator
      to take away.
    out: name of the merged reward.

  Raises:
    ValueError: a weight that is not positive; otherwise as `merge_rewards`.
  """
  names = check_names(weights, who="parrot_pareto")
  check_missing(missing, who="parrot_pareto")
  for name, weight in weights.items():
    check_positive(f"weights[{name!r}]", weight, who="parrot_pareto")

  def apply(scores: Scores, context: Context) -> Scores:
    kind, parts = find_rewards(scores, names, ("outcome",), who="parrot_pareto")
    front = _front(parts, context, across_groups, missing)
    merged = weighted_sum_reward(parts, weights, missing=missing)
    scores = put_reward(scores, kind, out, merged, drop=names)
    scores = dataclasses.replace(
      scores, weights=scores.weights * (front != 0.0)
    )
    return add_metrics(scores, pareto__front=(front == 1.0).mean())

  return stateless(
    "parrot_pareto",
    apply,
    params={
      "weights": dict(weights),
      "across_groups": across_groups,
      "missing": missing,
      "out": out,
    },
  )


def _front(
  parts: Mapping[str, Array],
  context: Context,
  across_groups: bool,
  missing: Missing,
) -> Array:
  """Returns float [B]: 1 non-dominated, 0 dominated, NaN not comparable."""
  rewards = jnp.stack(list(parts.values()))
  group = context.rollout.group
  group = jnp.zeros_like(group) if across_groups else group
  front = non_dominated(rewards, group, missing=missing)
  absent = jnp.isnan(rewards)
  unknown = absent.any(0) if missing == "propagate" else absent.all(0)
  return jnp.where(unknown, jnp.nan, front.astype(rewards.dtype))


def _win_rate(name, judge, *, reward, out, params) -> Transform:
  def apply(scores: Scores, context: Context) -> Scores:
    _, found, values = find_reward(scores, reward, ("outcome",), who=name)
    rates = win_rates(judge(values), context.rollout.group)
    rates = jnp.where(jnp.isnan(values), jnp.nan, rates)
    return put_reward(scores, "outcome", out or found, rates)

  return stateless(name, apply, params={"reward": reward, "out": out, **params})
