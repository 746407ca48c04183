"""Rewards for saying how sure one is, and meaning it.

A response is right or wrong (`correct`, outcome reward, probability) and says a
confidence q (`confidence`, outcome reward, probability; a verifier that parses
it or `rlvr.rewards.intrinsic.answer_confidence` gives it). A proper scoring
rule S(q, c) is greatest in expectation where q is the probability of c = 1.

A confidence that is NaN or outside [0, 1] is malformed, which is the response's
failure; a missing `correct` is the verifier's, and leaves the reward missing.

Catalogue: rlcr (https://arxiv.org/abs/2507.16806), say_self
(https://arxiv.org/abs/2405.20974), ppo_calibrated
(https://arxiv.org/abs/2410.09724).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  check_probability,
  find_reward,
  present_mean,
  put_reward,
  stateful,
  stateless,
)
from rlvr.types import Array, Context


def brier_reward(correct: Array, confidence: Array) -> Array:
  """Returns correctness with Brier's penalty: c − (q − c)².

  Source: RLCR, https://arxiv.org/abs/2507.16806, the definition of R_RLCR. Its
  theorem: maximised by the answer that is most probably right, with q that
  probability; this needs a bounded proper rule.

  Args:
    correct: float [B], c, probability (0 or 1 from a verifier).
    confidence: float [B], q, probability.

  Returns:
    float [B], in [−1, 1].
  """
  return correct - (confidence - correct) ** 2


def log_score_reward(
  correct: Array, confidence: Array, *, epsilon: float
) -> Array:
  """Returns correctness with the logarithmic rule: c + c log q + (1−c) log(1−q).

  Source: the logarithmic proper score, as an alternative to Brier's. Unbounded,
  so that RLCR's theorem (https://arxiv.org/abs/2507.16806) does not cover it:
  with q near 0, a wrong answer can be worth more than a right one.

  Deviation: q is limited to [ε, 1 − ε], so that one response can't have a
  reward of −∞.

  Args:
    correct: float [B], c, probability.
    confidence: float [B], q, probability.
    epsilon: ε, in (0, 1/2).

  Returns:
    float [B], in [log ε, 1 + log(1 − ε)].
  """
  q = jnp.clip(confidence, epsilon, 1.0 - epsilon)
  return correct + correct * jnp.log(q) + (1.0 - correct) * jnp.log1p(-q)


def spherical_reward(correct: Array, confidence: Array) -> Array:
  """Returns correctness with the spherical rule, shifted to at most 0.

      c + (c q + (1 − c)(1 − q)) / √(q² + (1 − q)²) − 1

  Source: the spherical proper score; bounded, so that RLCR's theorem
  (https://arxiv.org/abs/2507.16806) covers it. The shift gives it Brier's
  range: certain and right is worth 1, certain and wrong −1.

  Args:
    correct: float [B], c, probability.
    confidence: float [B], q, probability.

  Returns:
    float [B], in [−1, 1].
  """
  norm = jnp.sqrt(confidence**2 + (1.0 - confidence) ** 2)  # at least √½
  hit = correct * confidence + (1.0 - correct) * (1.0 - confidence)
  return correct + hit / norm - 1.0


def say_self_reward(correct: Array, confidence: Array) -> Array:
  """Returns SaySelf's reward: 1 − 2 (c − q)².

  1 for certain and right, −1 for certain and wrong, 1/2 for q = 1/2 whatever
  the answer: unlike `brier_reward`, being right is worth nothing in itself.

  Source: SaySelf, https://arxiv.org/abs/2405.20974, as in
  https://github.com/xu1868/SaySelf, `calculate_reward` (there on a scale of 0
  to 10). The formula is the code's; the paper's text was not at hand.

  Args:
    correct: float [B], c, probability.
    confidence: float [B], q, probability.

  Returns:
    float [B], in [−1, 1].
  """
  return 1.0 - 2.0 * (correct - confidence) ** 2


def difference_calibrated_reward(
  rewards: Array, confidence: Array, average: Array, *, weight: float
) -> Array:
  """Returns PPO-C's reward: r + w (r − r̄)(q − ½).

  Confidence pays where the reward is above what is usual, and costs below it.

  Source: https://arxiv.org/abs/2410.09724, PPO-C, and
  https://github.com/SeanLeng1/Reward-Calibration (`difference`).

  Args:
    rewards: float [B], r.
    confidence: float [B], q, probability.
    average: float [], r̄, moving average of rewards.
    weight: w; 2 in the authors' scripts.

  Returns:
    float [B].
  """
  return rewards + weight * (rewards - average) * (confidence - 0.5)


def threshold_calibrated_reward(
  rewards: Array, confidence: Array, average: Array, *, weight: float
) -> Array:
  """Returns PPO-C's thresholded reward: r ± w |r| (q − ½), + where r ≥ r̄.

  Source: https://github.com/SeanLeng1/Reward-Calibration (`threshold`), of
  https://arxiv.org/abs/2410.09724.

  Args:
    rewards: float [B], r.
    confidence: float [B], q, probability.
    average: float [], r̄.
    weight: w; 0.5 is the code's default.

  Returns:
    float [B].
  """
  sign = jnp.where(rewards >= average, 1.0, -1.0)
  return rewards + sign * weight * jnp.abs(rewards) * (confidence - 0.5)


def calibrated_reward_model_loss(
  chosen_high: Array,
  chosen_low: Array,
  rejected_high: Array,
  rejected_low: Array,
) -> Array:
  """Returns PPO-M's loss of a reward model on pairs with stated confidence.

      −log σ(r(c, high) − r(c, low)) − log σ(r(d, low) − r(d, high))

  for a chosen response c and a rejected one d, each with a high and with a low
  confidence appended.

  Source: https://arxiv.org/abs/2410.09724, PPO-M, and
  https://github.com/SeanLeng1/Reward-Calibration, `crm_trainer.py` (its default
  loss; the plain preference between c and d is another one, `combined`).

  Args:
    chosen_high: float [N], rewards of chosen responses with high confidence.
    chosen_low: float [N], the same with low confidence.
    rejected_high: float [N].
    rejected_low: float [N].

  Returns:
    float [N], nats.
  """
  return -jax.nn.log_sigmoid(chosen_high - chosen_low) - jax.nn.log_sigmoid(
    rejected_low - rejected_high
  )


# Transforms.


def brier(
  *,
  correct: str = "correct",
  confidence: str = "confidence",
  malformed: float | None = -1.0,
  out: str = "reward",
) -> Transform:
  """Merges correctness and confidence by `brier_reward`: RLCR.

  Args:
    correct: name of the outcome reward c; used up.
    confidence: name of the outcome reward q; stays.
    malformed: reward of a response without a valid confidence, whatever its
      answer. In RLCR's code all rewards of such a response are 0 where Brier's
      is 1 − (q − c)²: here that is −1, the least. None leaves it missing, so
      that the response takes no part in the update.
    out: name of the result.
  """
  return _scoring_rule(
    "brier", brier_reward, correct, confidence, malformed, out, {}
  )


def log_score(
  *,
  epsilon: float,
  malformed: float | None,
  correct: str = "correct",
  confidence: str = "confidence",
  out: str = "reward",
) -> Transform:
  """Merges correctness and confidence by `log_score_reward`.

  Args:
    epsilon: ε.
    malformed: see `brier`; log ε is the least that a valid confidence gets.
    correct: name of the outcome reward c; used up.
    confidence: name of the outcome reward q; stays.
    out: name of the result.

  Raises:
    ValueError: epsilon is not in (0, 1/2).
  """
  if not 0.0 < epsilon < 0.5:
    raise ValueError(f"log_score: epsilon={epsilon} must be in (0, 1/2)")
  return _scoring_rule(
    "log_score",
    lambda c, q: log_score_reward(c, q, epsilon=epsilon),
    correct,
    confidence,
    malformed,
    out,
    {"epsilon": epsilon},
  )


def spherical(
  *,
  correct: str = "correct",
  confidence: str = "confidence",
  malformed: float | None = -1.0,
  out: str = "reward",
) -> Transform:
  """Merges correctness and confidence by `spherical_reward`.

  Args:
    correct: name of the outcome reward c; used up.
    confidence: name of the outcome reward q; stays.
    malformed: see `brier`.
    out: name of the result.
  """
  return _scoring_rule(
    "spherical", spherical_reward, correct, confidence, malformed, out, {}
  )


def say_self(
  *,
  correct: str = "correct",
  confidence: str = "confidence",
  malformed: float | None = -1.0,
  out: str = "reward",
) -> Transform:
  """Merges correctness and confidence by `say_self_reward`.

  Deviation: SaySelf's PPO trains on the confidence's tokens alone; here the
  advantages are on the whole response.

  Args:
    correct: name of the outcome reward c; used up.
    confidence: name of the outcome reward q; stays.
    malformed: see `brier`; −1 is the authors' for a response without one.
    out: name of the result.
  """
  return _scoring_rule(
    "say_self", say_self_reward, correct, confidence, malformed, out, {}
  )


def ppo_calibrated(
  *,
  weight: float,
  initial: float,
  decay: float = 0.9,
  reward: str | None = None,
  confidence: str = "confidence",
) -> Transform:
  """Adjusts a reward by confidence around its moving average: PPO-C.

  See `difference_calibrated_reward`. The average takes the batch's mean in
  before it is used, as in the authors' code.

      r̄ ← γ r̄ + (1 − γ) mean_b r_b

  A malformed confidence counts as ½ and so adjusts nothing (the authors').
  Deviation: the authors limit r to [−10, 10] first; chain a `clip` for that.

  Args:
    weight: w.
    initial: r̄ before the first batch; the authors take the reward model's mean
      over its training data.
    decay: γ; 0.9 in the authors' code (their α is 1 − γ = 0.1).
    reward: which outcome reward; None means the only one.
    confidence: name of the outcome reward q; stays.

  Raises:
    ValueError: the decay is no probability.
  """
  return _moving_average(
    "ppo_calibrated",
    difference_calibrated_reward,
    weight,
    initial,
    decay,
    reward,
    confidence,
  )


def ppo_calibrated_threshold(
  *,
  weight: float,
  initial: float,
  decay: float = 0.9,
  reward: str | None = None,
  confidence: str = "confidence",
) -> Transform:
  """Adjusts a reward by confidence, by `threshold_calibrated_reward`.

  Args:
    weight: w.
    initial: r̄ before the first batch.
    decay: γ, see `ppo_calibrated`.
    reward: which outcome reward; None means the only one.
    confidence: name of the outcome reward q; stays.

  Raises:
    ValueError: the decay is no probability.
  """
  return _moving_average(
    "ppo_calibrated_threshold",
    threshold_calibrated_reward,
    weight,
    initial,
    decay,
    reward,
    confidence,
  )


def _valid(confidence: Array) -> Array:
  # NaN compares false.
  return (confidence >= 0.0) & (confidence <= 1.0)


def _scoring_rule(
  name: str,
  rule: Callable[[Array, Array], Array],
  correct: str,
  confidence: str,
  malformed: float | None,
  out: str,
  params: dict[str, float],
) -> Transform:
  def apply(scores, _):
    _, _, c = find_reward(scores, correct, ("outcome",), who=name)
    _, _, q = find_reward(scores, confidence, ("outcome",), who=name)
    valid = _valid(q)
    value = rule(c, jnp.where(valid, q, 0.5))
    worst = jnp.nan if malformed is None else malformed
    value = jnp.where(valid, value, worst)
    value = jnp.where(jnp.isnan(c), jnp.nan, value)
    scores = put_reward(scores, "outcome", out, value, drop=[correct])
    return _with_metrics(scores, c, q)

  return stateless(
    name,
    apply,
    params={
      "correct": correct,
      "confidence": confidence,
      "malformed": malformed,
      "out": out,
      **params,
    },
  )


def _moving_average(
  name: str,
  rule: Callable[..., Array],
  weight: float,
  initial: float,
  decay: float,
  reward: str | None,
  confidence: str,
) -> Transform:
  check_probability("decay", decay, who=name)

  def init():
    return {"average": jnp.asarray(initial, jnp.float32)}

  def apply(scores, state, context: Context):
    del context
    _, found, r = find_reward(scores, reward, ("outcome",), who=name)
    _, _, q = find_reward(scores, confidence, ("outcome",), who=name)
    some = ~jnp.isnan(r).all()
    step = jax.lax.stop_gradient(present_mean(r)) - state["average"]
    average = state["average"] + jnp.where(some, (1.0 - decay) * step, 0.0)
    q = jnp.where(_valid(q), q, 0.5)
    value = rule(r, q, average, weight=weight)
    scores = put_reward(scores, "outcome", found, value)
    scores = add_metrics(scores, calibration__reward_average=average)
    return scores, {"average": average}

  return stateful(
    name,
    init,
    apply,
    params={
      "weight": weight,
      "initial": initial,
      "decay": decay,
      "reward": reward,
      "confidence": confidence,
    },
  )


def _with_metrics(scores, correct: Array, confidence: Array):
  valid = _valid(confidence)
  both = valid & ~jnp.isnan(correct)
  return add_metrics(
    scores,
    calibration__confidence=present_mean(confidence, valid),
    calibration__brier=present_mean((confidence - correct) ** 2, both),
    calibration__malformed=1.0 - valid.mean(dtype=jnp.float32),
  )
