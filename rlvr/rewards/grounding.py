"""LongRLVR's reward: an answer, and the evidence that it rests on.

Covers `longrlvr` of the catalogue; `rlvr.verifiers.citations` gives the parts.
"""

import jax.numpy as jnp

from rlvr.rewards.algebra import Transform, check_probability
from rlvr.rewards.basic import Missing
from rlvr.rewards.combine import merge_rewards
from rlvr.types import Array


def grounded_answer_reward(
  answer: Array, context: Array, *, missing: Missing, eta: float = 0.1
) -> Array:
  """Returns the answer's reward with that of its evidence.

      r = r_ans + η F + (1 − η) r_ans F

  Finding the evidence is worth a little by itself, which is what there is to
  learn from before any answer is right, and most with a right answer.

  Source: Chen et al. 2026, "LongRLVR: Long-Context Reinforcement Learning
  Requires Verifiable Context Rewards", https://arxiv.org/abs/2603.02146, section
  2.3.2, and the authors' code,
  https://github.com/real-absolute-AI/LongRLVR at 4531306,
  `longrl_reward_manager.py`, which sums the same three terms with η = 0.1.

  Args:
    answer: float [B]: r_ans in 0..1; NaN where missing.
    context: float [B]: F, Fβ of the cited evidence, in 0..1; NaN where missing.
    missing: "propagate": one missing part makes the reward missing; "skip": a
      missing F counts as 0, a missing r_ans stays missing.
    eta: η, share of the evidence's reward that doesn't hang on the answer.

  Returns:
    float [B] in 0..2; NaN where missing.
  """
  if missing == "skip":
    context = jnp.where(jnp.isnan(context), 0.0, context)
  return answer + eta * context + (1.0 - eta) * answer * context


def grounded_answer(
  *,
  answer: str,
  context: str,
  missing: Missing = "propagate",
  eta: float = 0.1,
  out: str = "reward",
) -> Transform:
  """Merges an answer's reward and its evidence's, see `grounded_answer_reward`.

  Args:
    answer: name of the reward of the answer.
    context: name of the reward of the evidence.
    missing: see `grounded_answer_reward`.
    eta: see `grounded_answer_reward`.
    out: name of the merged reward; the two are taken out.

  Raises:
    ValueError: η is no share.
  """
  check_probability("eta", eta, who="grounded_answer")

  def fn(parts, context_):
    del context_
    return grounded_answer_reward(
      parts[answer], parts[context], missing=missing, eta=eta
    )

  return merge_rewards(
    "grounded_answer",
    fn,
    rewards=(answer, context),
    missing=missing,
    out=out,
    params={"eta": eta},
  )
