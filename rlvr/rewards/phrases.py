"""Reasoning pattern rewards: phrases are rewarded, whatever they lead to.

Catalogue: reasoning_pattern_reward (its flipping noise is
`rlvr.rewards.noise.flip_noise`).

As a reward of its own it teaches to reason for a while and then to reason
without end; its use is to make up for rewards that are too low
(`calibrate_low`).

Source: Lv et al., https://arxiv.org/abs/2505.22653, sections 2.2 and 3.3 and
the example code of figure 9.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  check_positive,
  find_reward,
  put_reward,
  stateless,
)
from rlvr.types import Array, Context, Scores


def phrase_counts(
  tokens: Array, mask: Array, phrases: Sequence[Sequence[int]]
) -> Array:
  """Returns how often each phrase occurs, overlapping occurrences included.

  Args:
    tokens: int32 [B, T].
    mask: bool [B, T]; a phrase counts where all its tokens are in the mask.
    phrases: N sequences of token ids, none empty.

  Returns:
    int32 [B, N].
  """
  return jnp.stack(
    [_starts(tokens, mask, tuple(phrase)) for phrase in phrases], axis=-1
  )


def repeated_ngram_share(tokens: Array, mask: Array, *, length: int) -> Array:
  """Returns how many different n-grams are repeated, per n-gram.

      (number of different n-grams that occur twice or more) / (all n-grams)

  Figure 9 of the paper counts 20 words; here they are tokens, and an n-gram
  counts where all its tokens are in the mask.

  Args:
    tokens: int32 [B, T].
    mask: bool [B, T].
    length: n, tokens.

  Returns:
    float [B], in 0..0.5; 0 for a response without an n-gram.
  """
  batch, width = tokens.shape
  if length > width:
    return jnp.zeros((batch,), jnp.float32)
  starts = width - length + 1
  whole = jnp.ones((batch, starts), bool)
  for i in range(length):
    whole &= mask[:, i : i + starts]
  # All that is no n-gram gets an id that sorts behind.
  ids = jnp.where(whole, _ngram_ids(tokens, length), width)
  ordered = jnp.sort(ids, axis=-1)
  before = jnp.pad(ordered[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  after = jnp.pad(ordered[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
  repeated = (ordered != before) & (ordered == after) & (ordered < width)
  total = whole.sum(axis=-1)
  return repeated.sum(axis=-1) / jnp.maximum(total, 1)


def reasoning_pattern_reward(
  tokens: Array,
  mask: Array,
  phrases: Sequence[Sequence[int]],
  *,
  value: float,
  most_per_phrase: int,
  repetition_length: int | None,
) -> Array:
  """Returns a reward for phrases of reasoning, whatever they lead to.

      max(min(v Σ_i min(c_i, m), 1) − repeated, 0)

  with the count c_i of phrase i and the share of repeated n-grams. The paper's
  text rewards each occurrence, its figure 9 each phrase once: m = 1.

  Deviation: phrases are sequences of token ids, compared as they are; the paper
  compares text in lower case. Give each spelling, or one per tokenization.

  Args:
    tokens: int32 [B, T].
    mask: bool [B, T], true on the text that counts.
    phrases: N sequences of token ids.
    value: v, reward of a phrase; the paper's is 1 / N.
    most_per_phrase: m.
    repetition_length: n-grams of so many tokens count as repetition; None:
      none do.

  Returns:
    float [B], in 0..1.
  """
  counts = jnp.minimum(phrase_counts(tokens, mask, phrases), most_per_phrase)
  score = jnp.minimum(value * counts.sum(axis=-1), 1.0)
  if repetition_length is not None:
    score -= repeated_ngram_share(tokens, mask, length=repetition_length)
  return jnp.maximum(score, 0.0).astype(jnp.float32)


def calibrated_reward(
  values: Array, pattern: Array, *, threshold: float = 0.5, weight: float = 0.1
) -> Array:
  """Returns rewards with compensation where they are low.

      r + α · RPR   where r < τ,   else r

  A low reward may be a false negative: good reasoning is some evidence. High
  rewards are not discounted for the lack of it.

  Source: https://arxiv.org/abs/2505.22653, section 3.3 (τ = 0.5, α = 0.1).

  Args:
    values: float [B], a noisy reward model's outputs.
    pattern: float [B], reasoning pattern rewards in 0..1.
    threshold: τ, in the rewards' unit; a reward of τ is not low.
    weight: α.

  Returns:
    float [B]; NaN where the reward is missing, or low and its pattern missing.
  """
  return jnp.where(values < threshold, values + weight * pattern, values)


def calibrate_low(
  *,
  reward: str,
  pattern: str = "reasoning_pattern",
  threshold: float = 0.5,
  weight: float = 0.1,
) -> Transform:
  """Adds α times the pattern reward to low rewards, see `calibrated_reward`.

  Args:
    reward: which outcome reward, replaced in place.
    pattern: which outcome reward holds the patterns (`reasoning_pattern`); it
      is taken out.
    threshold: τ.
    weight: α.
  """

  def apply(scores: Scores, _) -> Scores:
    _, name, values = find_reward(
      scores, reward, ("outcome",), who="calibrate_low"
    )
    _, used, patterns = find_reward(
      scores, pattern, ("outcome",), who="calibrate_low"
    )
    result = calibrated_reward(
      values, patterns, threshold=threshold, weight=weight
    )
    return put_reward(scores, "outcome", name, result, drop=[used])

  return stateless(
    "calibrate_low",
    apply,
    params={
      "reward": reward,
      "pattern": pattern,
      "threshold": threshold,
      "weight": weight,
    },
  )


def reasoning_pattern(
  *,
  phrases: Sequence[Sequence[int]],
  repetition_length: int | None,
  thought_only: bool,
  value: float | None = None,
  most_per_phrase: int = 1,
  out: str = "reasoning_pattern",
) -> Transform:
  """Adds an outcome reward for phrases, see `reasoning_pattern_reward`.

  Args:
    phrases: token ids of each phrase (a byte vocabulary has the byte + 3).
    repetition_length: tokens of a repeated sequence; None punishes none.
    thought_only: true leaves the response's final answer out, as the paper
      does for calibration; its probe costs no forward pass.
    value: reward per phrase; None means 1 / number of phrases, as the paper.
    most_per_phrase: how often a phrase counts.
    out: name of the reward.

  Raises:
    ValueError: no phrases or an empty one, a length or count below 1, a value
      that is not positive.
  """
  who = "reasoning_pattern"
  phrases = tuple(tuple(phrase) for phrase in phrases)
  if not phrases or not all(phrases):
    raise ValueError(f"{who}: phrases={phrases}; give phrases of token ids")
  if repetition_length is not None and repetition_length < 1:
    raise ValueError(
      f"{who}: repetition_length={repetition_length}; give 1 or more, or None"
    )
  if most_per_phrase < 1:
    raise ValueError(
      f"{who}: most_per_phrase={most_per_phrase}; give 1 or more"
    )
  each = 1.0 / len(phrases) if value is None else value
  check_positive("value", each, who=who)
  settings: dict[str, Any] = {
    "value": each,
    "most_per_phrase": most_per_phrase,
    "repetition_length": repetition_length,
  }

  def apply(scores: Scores, context: Context) -> Scores:
    rollout = context.rollout
    mask = rollout.completion_mask
    if thought_only:
      mask = mask & ~context.probes["answer_span"]
    result = reasoning_pattern_reward(rollout.tokens, mask, phrases, **settings)
    return put_reward(scores, "outcome", out, result)

  return stateless(
    who,
    apply,
    requires=("answer_span",) if thought_only else (),
    params={
      "phrases": phrases,
      "thought_only": thought_only,
      "out": out,
      **settings,
    },
  )


def _starts(tokens: Array, mask: Array, phrase: tuple[int, ...]) -> Array:
  batch, width = tokens.shape
  if len(phrase) > width:
    return jnp.zeros((batch,), jnp.int32)
  starts = width - len(phrase) + 1
  hit = jnp.ones((batch, starts), bool)
  for i, token in enumerate(phrase):
    window = slice(i, i + starts)
    hit &= (tokens[:, window] == token) & mask[:, window]
  return hit.sum(axis=-1, dtype=jnp.int32)


def _ngram_ids(tokens: Array, length: int) -> Array:
  """Returns int32 [B, T − n + 1]: equal in a row iff the n-grams are.

  By doubling, as suffix arrays are built: an n-gram is two shorter ones, which
  may overlap, so that it takes log n sorts and no hash that could collide.
  """
  ids, have = tokens, 1
  while have < length:
    step = min(have, length - have)
    ids = _pair_ids(ids[:, : ids.shape[1] - step], ids[:, step:])
    have += step
  return ids if length > 1 else _pair_ids(tokens, tokens)


def _pair_ids(first: Array, second: Array) -> Array:
  """Returns ids 0.. of pairs, equal in a row iff the pairs are."""
  order = jnp.lexsort((second, first), axis=-1)
  one = jnp.take_along_axis(first, order, axis=-1)
  two = jnp.take_along_axis(second, order, axis=-1)
  new = (one[:, 1:] != one[:, :-1]) | (two[:, 1:] != two[:, :-1])
  rank = jnp.pad(jnp.cumsum(new.astype(jnp.int32), axis=-1), ((0, 0), (1, 0)))
  return jnp.take_along_axis(rank, jnp.argsort(order, axis=-1), axis=-1)
