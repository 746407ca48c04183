"""Votes over the answers of a group: majority, weighted, Borda.

Pure functions over arrays: selectors for best-of-N and labels for rewards.
Catalogue: the selector of self_certainty; laser's weighted vote.
"""

import jax
import jax.numpy as jnp

from rlvr.types import Array


def answer_votes(weights: Array, answer_ids: Array, group: Array) -> Array:
  """Returns for each response all votes of its group for its answer.

  Args:
    weights: float [B], the response's vote for its own answer; NaN is none.
    answer_ids: int32 [B], equal for equal answers, −1 without an answer.
    group: int32 [B].

  Returns:
    float [B]; 0 without an answer.
  """
  weights = jnp.where(jnp.isnan(weights), 0.0, weights)
  same = (group[:, None] == group[None]) & (
    answer_ids[:, None] == answer_ids[None]
  )
  total = jnp.where(same, weights[None], 0.0).sum(-1)
  return jnp.where(answer_ids >= 0, total, 0.0)


def vote_winners(
  votes: Array, answer_ids: Array, group: Array, num_groups: int
) -> Array:
  """Returns the answer with the most votes in each group.

  Of answers with equal votes that wins which was sampled first in the group:
  the least identity would be the one that some other prompt of the batch had
  first.

  Args:
    votes: float [B], see `answer_votes`.
    answer_ids: int32 [B], −1 without an answer.
    group: int32 [B].
    num_groups: P, static.

  Returns:
    int32 [P], the answer's identity; −1 for a group without an answer.
  """
  voted = jnp.where(answer_ids >= 0, votes, -jnp.inf)
  most = jax.ops.segment_max(voted, group, num_segments=num_groups)
  best = (answer_ids >= 0) & (voted == most[group])
  size = group.shape[0]
  first = jax.ops.segment_min(
    jnp.where(best, jnp.arange(size), size), group, num_segments=num_groups
  )
  winner = answer_ids[jnp.minimum(first, size - 1)]
  return jnp.where(first < size, winner, -1).astype(jnp.int32)


def majority_answers(answer_ids: Array, group: Array, num_groups: int) -> Array:
  """Returns each group's most frequent answer, see `vote_winners`.

  Args:
    answer_ids: int32 [B], −1 without an answer.
    group: int32 [B].
    num_groups: P, static.

  Returns:
    int32 [P], −1 for a group without an answer.
  """
  votes = answer_votes(jnp.ones(group.shape), answer_ids, group)
  return vote_winners(votes, answer_ids, group, num_groups)


def borda_weights(scores: Array, group: Array, *, power: float) -> Array:
  """Returns the votes that a response has by its rank: (N − rank + 1)^p.

  N is the group's size, rank 1 the greatest score.

  Source: https://arxiv.org/abs/2502.18581, Borda voting with self-certainty,
  and https://github.com/backprop07/Self-Certainty, `voting_from_list.py`. With
  p = 0 it is majority voting, with p → ∞ the answer of the greatest score.

  Args:
    scores: float [B], e.g. self-certainty; NaN has no vote and isn't in N.
    group: int32 [B].
    power: p; the paper chooses it by N, the code's default is 0.5.

  Returns:
    float [B]. Equal scores: the earlier response has the better rank.
  """
  here = ~jnp.isnan(scores)
  same = (group[:, None] == group[None]) & here[:, None] & here[None]
  index = jnp.arange(group.shape[0])
  earlier = index[None] < index[:, None]
  ahead = (scores[None] > scores[:, None]) | (
    (scores[None] == scores[:, None]) & earlier
  )
  # N − rank + 1 with rank = 1 + those ahead.
  level = same.sum(-1) - (same & ahead).sum(-1)
  return jnp.where(here, level.astype(jnp.float32) ** power, 0.0)


def borda_winners(
  scores: Array,
  answer_ids: Array,
  group: Array,
  num_groups: int,
  *,
  power: float,
) -> Array:
  """Returns each group's answer by Borda voting, see `borda_weights`.

  A response without an answer keeps its rank but votes for nothing (the
  authors' code).

  Args:
    scores: float [B].
    answer_ids: int32 [B], −1 without an answer.
    group: int32 [B].
    num_groups: P, static.
    power: p.

  Returns:
    int32 [P], the answer's identity; −1 for a group without an answer.
  """
  weights = borda_weights(scores, group, power=power)
  votes = answer_votes(weights, answer_ids, group)
  return vote_winners(votes, answer_ids, group, num_groups)
