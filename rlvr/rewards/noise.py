"""Verifiers that err: noise and its correction.

Catalogue: noisy_verifier_correction, and of reasoning_pattern_reward the flips
(phrases and calibration are in `rlvr.rewards.phrases`).

A verifier is a channel from the true reward r* to the one that is seen, r̃:

    ρ0 = P(r̃ = 1 | r* = 0)   false positives
    ρ1 = P(r̃ = 0 | r* = 1)   false negatives

`flip_noise` is such a channel, `backward_correction` and `forward_correction`
undo it in expectation, `estimate_false_negative_rate` finds ρ1 while training.

Sources: Cai et al., https://arxiv.org/abs/2510.00915 (the channel, both
corrections, the appeals); Lv et al., https://arxiv.org/abs/2505.22653 (flips
per question).
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  check_positive,
  check_probability,
  find_reward,
  map_reward,
  put_reward,
  stateful,
  stateless,
)
from rlvr.types import Array, Context, Scores

Rate = float | str  # a number, or the name of an outcome reward that holds it


def noisy_reward(
  values: Array,
  key: Array,
  group: Array,
  num_groups: int,
  *,
  false_positive_rate: float,
  false_negative_rate: float,
  by_prompt: bool,
) -> Array:
  """Returns the rewards as a verifier that errs would give them.

  r̃ = 1 − r with probability ρ1 where r = 1, ρ0 where r = 0; else r̃ = r.

  Source: https://arxiv.org/abs/2510.00915 (independent errors);
  https://arxiv.org/abs/2505.22653, section 2.1, with ρ0 = ρ1 = p, for whole
  questions: errors inside a group average out, errors of a group do not.

  Args:
    values: float [B], 0 or 1; NaN where missing.
    key: PRNG key, consumed; the same key makes the same errors.
    group: int32 [B].
    num_groups: P, static.
    false_positive_rate: ρ0, probability.
    false_negative_rate: ρ1, probability.
    by_prompt: true: one draw decides for all responses of a prompt.

  Returns:
    float [B]; NaN where `values` is.
  """
  if by_prompt:
    draw = jax.random.uniform(key, (num_groups,))[group]
  else:
    draw = jax.random.uniform(key, values.shape)
  rate = jnp.where(values > 0.5, false_negative_rate, false_positive_rate)
  return jnp.where(draw < rate, 1.0 - values, values)


def backward_corrected_reward(
  values: Array,
  *,
  false_positive_rate: float,
  false_negative_rate: float | Array,
) -> Array:
  """Returns rewards whose expectation is the true one.

      r̂ = (r̃ − ρ0) / (1 − ρ0 − ρ1),   E[r̂ | r*] = r*

  Unbiased, not calm: r̂ leaves 0..1 by more the noisier the verifier is. And
  affine: an estimator that divides by the group's deviation undoes it wholly,
  one that only subtracts a mean sees it as the factor 1 / (1 − ρ0 − ρ1).

  Source: https://arxiv.org/abs/2510.00915, backward correction.

  Args:
    values: float, any shape: r̃, 0 or 1.
    false_positive_rate: ρ0, probability.
    false_negative_rate: ρ1, probability; or an array of the shape of `values`,
      which is not checked.

  Returns:
    float, the shape of `values`: r̂.

  Raises:
    ValueError: a rate is no probability, or ρ0 + ρ1 ≥ 1.
  """
  _check_rates(false_positive_rate, false_negative_rate, who="backward")
  scale = 1.0 - false_positive_rate - false_negative_rate
  return (values - false_positive_rate) / scale


def forward_weights(
  values: Array, *, false_negative_rate: float | Array
) -> Array:
  """Returns weights of the score function in place of rewards.

      w(r̃ = 1) = ρ1,   w(r̃ = 0) = ρ1 − 1,   E[w | r*] = (1 − ρ0 − ρ1)(r* − 1)

  So Σ w ∇ log π points where the true gradient does, in expectation, whatever
  ρ0 is: what the constant −1 adds has expectation 0. Wrong answers are pushed
  down, right ones hardly up; without false negatives not at all.

  Source: https://arxiv.org/abs/2510.00915, forward correction. Between 0 and 1
  the weight is interpolated: w = r̃ + ρ1 − 1.

  Args:
    values: float, any shape: r̃, 0 or 1.
    false_negative_rate: ρ1, probability; or an array of the shape of `values`,
      which is not checked.

  Returns:
    float, the shape of `values`: w, in −1..1.

  Raises:
    ValueError: the rate is no probability.
  """
  _check_rates(0.0, false_negative_rate, who="forward", together=False)
  return values + false_negative_rate - 1.0


def appeal_counts(values: Array, appeals: Array) -> tuple[Array, Array]:
  """Returns how many right answers a verifier rejected and accepted.

  The overturned share of the rejected answers that were rechecked stands for
  all rejected ones (Horvitz-Thompson: those that are rechecked must be a random
  choice). An accepted answer counts as right, so false positives make the rate
  that follows too low.

  Args:
    values: float [B], r̃, 0 or 1; NaN where missing.
    appeals: float [B], 1 where a better checker finds the answer right, 0 where
      it does not, NaN where it was not asked. Read where r̃ = 0 only.

  Returns:
    float [], float []: false negatives and true positives; both 0 in a batch in
    which answers were rejected and none was rechecked, as that says nothing.
  """
  rejected = values < 0.5
  rechecked = rejected & ~jnp.isnan(appeals)
  overturned = jnp.where(rechecked, appeals, 0.0).sum()
  share = rechecked.sum() / jnp.maximum(rejected.sum(), 1)
  missed = overturned / jnp.where(share > 0, share, 1.0)
  says_something = (share > 0) | ~rejected.any()
  accepted = (values >= 0.5).sum().astype(values.dtype)
  return missed, jnp.where(says_something, accepted, 0.0)


def flip_noise(
  *,
  false_positive_rate: float,
  false_negative_rate: float,
  by_prompt: bool,
  reward: str | None = None,
  out: str | None = None,
) -> Transform:
  """Makes an outcome reward err, see `noisy_reward`; uses the context's key.

  Flipping with probability p is both rates at p.

  Args:
    false_positive_rate: ρ0.
    false_negative_rate: ρ1.
    by_prompt: whether a prompt's responses are flipped together.
    reward: which outcome reward; None means the only one.
    out: the noisy reward's name; None replaces the reward.

  Raises:
    ValueError: a rate is no probability.
  """
  rates = {
    "false_positive_rate": false_positive_rate,
    "false_negative_rate": false_negative_rate,
  }
  for name, rate in rates.items():
    check_probability(name, rate, who="flip_noise")

  def fn(values: Array, context: Context) -> Array:
    rollout = context.rollout
    return noisy_reward(
      values,
      context.key,
      rollout.group,
      rollout.num_prompts,
      by_prompt=by_prompt,
      **rates,
    )

  return map_reward(
    "flip_noise",
    fn,
    reward=reward,
    out=out,
    kinds=("outcome",),
    params={**rates, "by_prompt": by_prompt, "out": out},
  )


def sample_appeals(
  *, checker: str, share: float, reward: str | None = None, out: str = "appeals"
) -> Transform:
  """Gives a checker's verdict on some rejected answers, NaN on the others.

  For a checker that is asked for all responses anyhow (in an experiment: the
  truth). One that is dear is asked for few outside the chain, and its verdicts
  arrive as a reward with NaN.

  Args:
    checker: which outcome reward holds the better verdicts.
    share: probability that a rejected answer is rechecked.
    reward: the verifier's outcome reward; None means "reward", or the only one.
    out: name of the appeals.

  Raises:
    ValueError: the share is no probability.
  """
  check_probability("share", share, who="sample_appeals")

  def apply(scores: Scores, context: Context) -> Scores:
    _, _, verdicts = find_reward(
      scores, checker, ("outcome",), who="sample_appeals"
    )
    _, _, values = find_reward(
      scores, reward, ("outcome",), who="sample_appeals"
    )
    drawn = jax.random.uniform(context.key, values.shape) < share
    asked = drawn & (values < 0.5)
    return put_reward(
      scores, "outcome", out, jnp.where(asked, verdicts, jnp.nan)
    )

  return stateless(
    "sample_appeals",
    apply,
    params={"checker": checker, "share": share, "reward": reward, "out": out},
  )


def estimate_false_negative_rate(
  *,
  appeals: str,
  initial_rate: float,
  initial_count: float,
  decay: float,
  max_rate: float,
  reward: str | None = None,
  out: str = "false_negative_rate",
) -> Transform:
  """Adds an outcome reward that holds the estimate of ρ1, the same for all.

      ρ̂1 = F / (F + A),   F ← λF + f,   A ← λA + a

  with a batch's false negatives f and accepted right answers a from
  `appeal_counts`. F and A are the state. A batch gets the estimate from the
  batches before it: with it the correction stays unbiased up to a factor that
  does not depend on the batch's rewards. A batch without a right answer leaves
  the state as it is.

  Source: https://arxiv.org/abs/2510.00915 rechecks rejected answers and
  estimates ρ1 online; how it averages over time was not at hand, the decaying
  counts are this project's.

  Args:
    appeals: which outcome reward holds the second opinions, NaN where nobody
      was asked.
    initial_rate: ρ1 at the start, probability.
    initial_count: how many right answers that guess is worth.
    decay: λ per batch; 1 never forgets.
    max_rate: limit of the estimate, at most 0.5, so that a correction with
      ρ0 < 0.5 stays finite.
    reward: the verifier's outcome reward; None means "reward", or the only one.
    out: name of the estimate.

  Raises:
    ValueError: a rate or the decay is no probability, max_rate is above 0.5,
      initial_rate above max_rate, or initial_count is not positive.
  """
  who = "estimate_false_negative_rate"
  check_probability("initial_rate", initial_rate, who=who)
  check_probability("decay", decay, who=who)
  check_positive("initial_count", initial_count, who=who)
  if not 0.0 <= max_rate <= 0.5:
    raise ValueError(f"{who}: max_rate={max_rate}; give 0..0.5")
  if initial_rate > max_rate:
    raise ValueError(
      f"{who}: initial_rate={initial_rate} is above max_rate={max_rate}"
    )

  def init():
    return {
      "false_negatives": jnp.float32(initial_rate * initial_count),
      "accepted": jnp.float32((1.0 - initial_rate) * initial_count),
    }

  def apply(scores: Scores, state: dict[str, Array], context: Context):
    del context
    _, _, values = find_reward(scores, reward, ("outcome",), who=who)
    _, _, second = find_reward(scores, appeals, ("outcome",), who=who)
    total = state["false_negatives"] + state["accepted"]
    rate = jnp.clip(state["false_negatives"] / total, 0.0, max_rate)
    missed, accepted = appeal_counts(values, second)
    keep = jnp.where(missed + accepted > 0, decay, 1.0)
    state = {
      "false_negatives": keep * state["false_negatives"] + missed,
      "accepted": keep * state["accepted"] + accepted,
    }
    scores = put_reward(
      scores, "outcome", out, jnp.broadcast_to(rate, values.shape)
    )
    return add_metrics(scores, noise__false_negative_rate=rate), state

  return stateful(
    who,
    init,
    apply,
    params={
      "appeals": appeals,
      "initial_rate": initial_rate,
      "initial_count": initial_count,
      "decay": decay,
      "max_rate": max_rate,
      "reward": reward,
      "out": out,
    },
  )


def backward_correction(
  *,
  false_positive_rate: float,
  false_negative_rate: Rate,
  reward: str | None = None,
) -> Transform:
  """Replaces r̃ by (r̃ − ρ0) / (1 − ρ0 − ρ1), see `backward_corrected_reward`.

  Args:
    false_positive_rate: ρ0.
    false_negative_rate: ρ1: a number, or the name of an outcome reward with
      values in 0..0.5 (`estimate_false_negative_rate`), which is taken out.
    reward: which outcome reward, 0 or 1; None means the only one.

  Raises:
    ValueError: a rate is no probability, ρ0 + ρ1 ≥ 1, or ρ0 ≥ 0.5 with a ρ1
      that is not known yet.
  """
  who = "backward_correction"
  # Of a rate that isn't known yet only its limit is.
  known = 0.5 if isinstance(false_negative_rate, str) else false_negative_rate
  _check_rates(false_positive_rate, known, who=who)

  def apply(scores: Scores, _) -> Scores:
    _, name, values = find_reward(scores, reward, ("outcome",), who=who)
    rate, used = _rate(scores, false_negative_rate, who=who)
    result = backward_corrected_reward(
      values,
      false_positive_rate=false_positive_rate,
      false_negative_rate=rate,
    )
    return put_reward(scores, "outcome", name, result, drop=used)

  return stateless(
    who,
    apply,
    params={
      "false_positive_rate": false_positive_rate,
      "false_negative_rate": false_negative_rate,
      "reward": reward,
    },
  )


def forward_correction(
  *, false_negative_rate: Rate, reward: str | None = None
) -> Transform:
  """Turns an outcome reward into advantages: the weights of the score function.

  See `forward_weights`. An estimator of its own, as any that subtracts the
  group's mean would take the correction out again: r̃ + ρ1 − 1 minus its mean is
  r̃ minus its mean. The paper puts it into a group-relative pipeline; how was
  not at hand.

  Args:
    false_negative_rate: ρ1: a number, or the name of an outcome reward
      (`estimate_false_negative_rate`), which is taken out.
    reward: which outcome reward, 0 or 1; None means "reward", or the only one.

  Raises:
    ValueError: the rate is no probability.
  """
  who = "forward_correction"
  if not isinstance(false_negative_rate, str):
    check_probability("false_negative_rate", false_negative_rate, who=who)

  def apply(scores: Scores, context: Context) -> Scores:
    _, _, values = find_reward(scores, reward, ("outcome",), who=who)
    rate, used = _rate(scores, false_negative_rate, who=who)
    weights = forward_weights(values, false_negative_rate=rate)
    here = ~jnp.isnan(weights)
    keep = context.rollout.completion_mask & here[:, None]
    advantages = jnp.where(keep, weights[:, None], 0.0)
    left = {k: v for k, v in scores.outcome.items() if k not in used}
    scores = dataclasses.replace(
      scores,
      outcome=left,
      advantages=jax.lax.stop_gradient(advantages),
      weights=scores.weights * here,
    )
    return add_metrics(scores, advantage__missing=1.0 - here.mean())

  return stateless(
    who,
    apply,
    gives="advantages",
    params={"false_negative_rate": false_negative_rate, "reward": reward},
  )


def _check_rates(
  false_positive_rate: float,
  false_negative_rate: float | Array,
  *,
  who: str,
  together: bool = True,
) -> None:
  check_probability("false_positive_rate", false_positive_rate, who=who)
  if isinstance(false_negative_rate, jax.Array):
    return
  check_probability("false_negative_rate", false_negative_rate, who=who)
  if together and not false_positive_rate + false_negative_rate < 1.0:
    raise ValueError(
      f"{who}: false_positive_rate={false_positive_rate} and"
      f" false_negative_rate={false_negative_rate} add up to 1 or more: such a"
      " verifier says nothing, or the opposite; give rates with a sum below 1"
    )


def _rate(
  scores: Scores, rate: Rate, *, who: str
) -> tuple[float | Array, list[str]]:
  """Returns a rate (a number or [B]) and the names that it uses up."""
  if not isinstance(rate, str):
    return rate, []
  _, name, values = find_reward(scores, rate, ("outcome",), who=who)
  return values, [name]
