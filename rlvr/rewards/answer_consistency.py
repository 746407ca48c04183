"""ACRE's reward: an answer that stays when the options change places.

Covers `answer_consistent` of the catalogue. The second answer comes from
`rlvr.verifiers.second_answer`.
"""

import jax.numpy as jnp

from rlvr.rewards.algebra import Transform
from rlvr.rewards.basic import Missing
from rlvr.rewards.combine import merge_rewards
from rlvr.types import Array


def answer_consistent_reward(
  first: Array,
  second: Array,
  *,
  both: float,
  only_first: float,
  only_second: float,
  missing: Missing,
) -> Array:
  """Returns the reward of a right answer, high only if it is right again.

      r = both · c c̃ + only_first · c (1 − c̃) + only_second · (1 − c) c̃

  c: the answer is right; c̃: so is the one that the same reasoning leads to when
  the options are shuffled. Two right answers are the same option; two wrong ones
  have 0, whether they are the same or not. c̃ may be a probability.

  Source: Huang et al. 2025, "Answer-Consistent Chain-of-thought Reinforcement
  Learning For Multi-modal Large Language Models",
  https://arxiv.org/abs/2510.10104, by its abstract ("a high reward only if both
  ... agree and are correct; otherwise, a lower reward") and its reviews,
  https://openreview.net/forum?id=hwUAApRXsC, by which equation 3 has three
  coefficients over the four cases. Looked for and not found: equation 3 itself,
  the coefficients' values, code by the authors. So there are no defaults, and
  which case has which coefficient is this project's reading.

  Args:
    first: float [B]: c in 0..1; NaN where missing.
    second: float [B]: c̃ in 0..1; NaN where missing.
    both: where both are right.
    only_first: where only the first is.
    only_second: where only the second is.
    missing: "propagate": one missing part makes the reward missing; "skip": a
      missing c̃ counts as c, a missing c stays missing.

  Returns:
    float [B]; NaN where missing.
  """
  if missing == "skip":
    second = jnp.where(jnp.isnan(second), first, second)
  return (
    both * first * second
    + only_first * first * (1.0 - second)
    + only_second * (1.0 - first) * second
  )


def answer_consistent(
  *,
  first: str,
  second: str,
  both: float,
  only_first: float,
  only_second: float,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges first and second answers, see `answer_consistent_reward`.

  Args:
    first: name of the reward of the answer.
    second: name of the reward of the answer to the shuffled options.
    both: see `answer_consistent_reward`.
    only_first: likewise, not above `both`.
    only_second: likewise, not above `both`.
    missing: see `answer_consistent_reward`.
    out: name of the merged reward; the two are taken out.

  Raises:
    ValueError: something is worth more than two right answers.
  """
  if both < max(only_first, only_second, 0.0):
    raise ValueError(
      f"answer_consistent: both={both} must be at least only_first="
      f"{only_first}, only_second={only_second} and 0"
    )

  def fn(parts, context):
    del context
    return answer_consistent_reward(
      parts[first],
      parts[second],
      both=both,
      only_first=only_first,
      only_second=only_second,
      missing=missing,
    )

  return merge_rewards(
    "answer_consistent",
    fn,
    rewards=(first, second),
    missing=missing,
    out=out,
    params={
      "both": both,
      "only_first": only_first,
      "only_second": only_second,
    },
  )
