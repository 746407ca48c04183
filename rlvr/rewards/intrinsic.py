"""Rewards and votes from what the policy itself thinks of its responses.

Catalogue: self_certainty (https://arxiv.org/abs/2502.18581), confidence_reward
(CRew, https://arxiv.org/abs/2510.13501), laser
(https://arxiv.org/abs/2510.14943; its auxiliary loss is in
`rlvr.objectives.passes`), co_reward (https://arxiv.org/abs/2508.00410).
"""

import jax
import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  check_positive,
  check_probability,
  find_reward,
  put_reward,
  stateless,
)
from rlvr.rewards.from_probes import add_outcome, probe_reward
from rlvr.rewards.voting import majority_answers
from rlvr.types import Array, Context


def self_certainty_reward(uniform_kl: Array, mask: Array) -> Array:
  """Returns how far the policy's distributions are from uniform.

      (1/n) Σ_t KL(U ‖ p_t) = −(1/(n V)) Σ_t Σ_v log(V p_t(v))

  Source: https://arxiv.org/abs/2502.18581, the definition of self-certainty,
  and https://github.com/backprop07/Self-Certainty, `confidence_logprob_sum`.

  Args:
    uniform_kl: float32 [B, T], nats, KL(U ‖ p_t) of each token's distribution.
    mask: bool [B, T], true on the response.

  Returns:
    float32 [B], nats; 0 for an empty response.
  """
  return segments.masked_mean(uniform_kl, mask, axis=-1)


def answer_confidence_reward(logprobs: Array, answer_span: Array) -> Array:
  """Returns the mean probability of the final answer's tokens.

  Source: CRew, https://arxiv.org/abs/2510.13501, section 3.1.

  Args:
    logprobs: float32 [B, T], nats, of the response's tokens.
    answer_span: bool [B, T], true on its final answer.

  Returns:
    float32 [B], probability; NaN without an answer.
  """
  mean = segments.masked_mean(jnp.exp(logprobs), answer_span, axis=-1)
  return jnp.where(answer_span.any(-1), mean, jnp.nan)


def confidence_pairs(
  confidence: Array,
  correct: Array,
  group: Array,
  *,
  num_pairs: int,
) -> tuple[Array, Array, Array]:
  """Returns CRew-DPO's pairs: right and wrong, farthest apart in confidence.

  Of all pairs of a right and a wrong response to the same prompt, the
  `num_pairs` with the greatest c(right) − c(wrong).

  Source: https://arxiv.org/abs/2510.13501, section 3.2: top-K by confidence
  difference over the whole set, not per prompt. The difference is taken with
  its sign, as figure 1 has it ("largest confidence difference"); the paper
  doesn't say that a wrong response that is the surer one is left out, so that
  pairs of negative difference are valid, and come last.

  Args:
    confidence: float [B]; NaN takes a response out.
    correct: float [B], right where above 1/2; NaN takes a response out.
    group: int32 [B].
    num_pairs: K, static.

  Returns:
    chosen: int32 [K], responses, −1 where there are fewer pairs.
    rejected: int32 [K], the same.
    margin: float [K], difference in confidence, 0 where there is no pair.

  Raises:
    ValueError: num_pairs is not in 1..B².
  """
  b = group.shape[0]
  if not 1 <= num_pairs <= b * b:
    raise ValueError(
      f"confidence_pairs: num_pairs={num_pairs} must be in 1..{b * b}, the"
      f" pairs of {b} responses"
    )
  right = (correct > 0.5) & ~jnp.isnan(confidence)
  wrong = (correct <= 0.5) & ~jnp.isnan(confidence)
  valid = (group[:, None] == group[None]) & right[:, None] & wrong[None]
  margin = confidence[:, None] - confidence[None]
  margin = jnp.where(valid, margin, -jnp.inf).reshape(-1)
  best, index = jax.lax.top_k(margin, num_pairs)
  found = ~jnp.isneginf(best)
  return (
    jnp.where(found, index // b, -1).astype(jnp.int32),
    jnp.where(found, index % b, -1).astype(jnp.int32),
    jnp.where(found, best, 0.0),
  )


def last_token_reward(
  logprobs: Array, reference: Array | float, *, beta: float
) -> Array:
  """Returns the last-token self-reward: β (log π(z_c|x,y) − c_ref).

  The reward whose KL-regularised optimum the policy would be if it verified
  its own response by the token z_c.

  Source: LaSeR, https://arxiv.org/abs/2510.14943, eq. 11 and 14.

  Args:
    logprobs: float32 [B], nats, log π(z_c|x,y).
    reference: nats, c_ref, or float32 [B] with log π_ref(z_c|x,y) itself.
    beta: β_v, reward per nat.

  Returns:
    float32 [B]; about 1 for a response that the policy takes to be right and 0
    for a wrong one, once the auxiliary loss has been trained; not bounded.
  """
  return beta * (logprobs - reference)


def integrated_reward(
  rewards: Array,
  self_rewards: Array,
  group: Array,
  num_groups: int,
  *,
  mix: Array | float,
  threshold: float,
  epsilon: float = 1e-6,
) -> Array:
  """Returns LaSeR's mixture of a verifier's and the policy's own judgement.

      (1 − τ) (r_v − mean r_v) / std r_v + τ (r_s − mean r_s) / std r_s

  over the prompt's group, with τ = 0 where std r_s ≤ T.

  Source: LaSeR, https://arxiv.org/abs/2510.14943, eq. 15; the filter by T from
  its text and https://github.com/RUCBM/LaSeR. ε is ours.

  Args:
    rewards: float [B], r_v; NaN where missing.
    self_rewards: float [B], r_s.
    group: int32 [B].
    num_groups: P, static.
    mix: τ, probability; may be traced.
    threshold: T, in r_s's unit.
    epsilon: guards the divisions.

  Returns:
    float [B], with mean 0 in each group; NaN where r_v is missing.
  """
  here = ~jnp.isnan(rewards)

  def standardised(values):
    mean = segments.group_mean(values, group, num_groups, here)
    deviation = segments.group_std(values, group, num_groups, here, ddof=1)
    centred = values - mean[group]
    return centred / (deviation[group] + epsilon), deviation

  verified, _ = standardised(rewards)
  own, deviation = standardised(self_rewards)
  mix = jnp.where(deviation > threshold, mix, 0.0)[group]
  return (1.0 - mix) * verified + mix * own


def class_weights(correct: Array, counted: Array) -> Array:
  """Returns weights by which right and wrong responses count alike.

      w = N / (2 N_right) for a right one, N / (2 N_wrong) for a wrong one

  Source: LaSeR, https://arxiv.org/abs/2510.14943, eq. 14.

  Args:
    correct: float [B], right where above 1/2; NaN where missing.
    counted: bool [B], responses that take part.

  Returns:
    float [B], averaging to 1 over those counted if both classes are there (to
    1/2 otherwise); 0 where not counted or missing.
  """
  counted = counted & ~jnp.isnan(correct)
  right, wrong = counted & (correct > 0.5), counted & (correct <= 0.5)
  total = counted.sum()
  of_right = total / (2 * jnp.maximum(right.sum(), 1))
  of_wrong = total / (2 * jnp.maximum(wrong.sum(), 1))
  return jnp.where(right, of_right, jnp.where(wrong, of_wrong, 0.0))


def co_reward_labels(answer_ids: Array, group: Array, num_groups: int) -> Array:
  """Returns 1 where a response agrees with its paraphrase's majority.

      r_i = [answer_i = majority answer of prompt (g_i xor 1)]

  Source: Co-Reward, https://arxiv.org/abs/2508.00410, and
  https://github.com/tmlr-group/Co-Reward, `CoRewardManager`. Responses without
  an answer don't vote and have reward 0; so have all where the other prompt has
  no answer at all (the authors').

  Args:
    answer_ids: int32 [B], equal for equal answers over the whole batch, −1
      without an answer.
    group: int32 [B]; prompts 2i and 2i + 1 are paraphrases of each other.
    num_groups: P, static, even.

  Returns:
    float32 [B], 0 or 1.

  Raises:
    ValueError: an odd number of prompts.
  """
  if num_groups % 2:
    raise ValueError(
      f"co_reward: num_prompts={num_groups} is odd, but prompts 2i and 2i + 1"
      " have to be paraphrases of each other: make `num_prompts` even, with a"
      " task that gives each question and its paraphrase in turn"
    )
  majority = majority_answers(answer_ids, group, num_groups)
  label = majority[group ^ 1]
  return ((answer_ids == label) & (label >= 0)).astype(jnp.float32)


# Transforms.


def self_certainty(*, out: str = "self_certainty") -> Transform:
  """Adds the mean KL from uniform, see `self_certainty_reward`."""
  return probe_reward(
    "self_certainty",
    lambda context: self_certainty_reward(
      context.probes["uniform_kl"], context.rollout.completion_mask
    ),
    out=out,
    requires=("uniform_kl",),
  )


def answer_confidence(
  *, no_answer: float | None, out: str = "confidence"
) -> Transform:
  """Adds the final answer's mean token probability: CRew.

  See `answer_confidence_reward`.

  Args:
    no_answer: value of a response without an answer; None leaves it missing
      (a response whose reward is missing is not trained on, so that a reward of
      None would let a policy get away with not answering).
    out: the reward's name.
  """

  def fn(context):
    value = answer_confidence_reward(
      context.probes["logprobs"], context.probes["answer_span"]
    )
    if no_answer is None:
      return value
    return jnp.where(jnp.isnan(value), no_answer, value)

  return probe_reward(
    "answer_confidence",
    fn,
    out=out,
    requires=("logprobs", "answer_span"),
    params={"no_answer": no_answer},
  )


def last_token(
  *,
  reference: float | None,
  beta: float = 0.1,
  out: str = "self_reward",
) -> Transform:
  """Adds the last-token self-reward, limited to [0, 1]: LaSeR.

  See `last_token_reward`; limited as in the authors' code. A truncated
  response, behind which z_c has no place, has 0. The metric
  `laser/last_token_logprob` (of finished responses; 0 if there is none) before
  any training is what to set c_ref to.

  Args:
    reference: c_ref, nats (−23 for Qwen2.5 with an unused token); None takes
      the reference model's log-prob of each response.
    beta: β_v; 0.1 in the paper. 1/β nats is how far the log-prob has to rise
      from c_ref for a reward of 1: with a small vocabulary, choose more.
    out: the reward's name.

  Raises:
    ValueError: beta is not positive.
  """
  check_positive("beta", beta, who="last_token")
  probes = {"last_token_logprobs"}
  if reference is None:
    probes.add("ref_last_token_logprobs")

  def apply(scores, context: Context):
    logprobs = context.probes["last_token_logprobs"]
    level = (
      context.probes["ref_last_token_logprobs"]
      if reference is None
      else reference
    )
    finished = context.rollout.finished
    value = jnp.clip(last_token_reward(logprobs, level, beta=beta), 0.0, 1.0)
    value = jnp.where(finished, value, 0.0)
    scores = add_outcome(scores, out, value, context, who="last_token")
    return add_metrics(
      scores,
      laser__last_token_logprob=jax.lax.stop_gradient(
        segments.masked_mean(logprobs, finished)
      ),
    )

  return stateless(
    "last_token",
    apply,
    requires=probes,
    params={"reference": reference, "beta": beta, "out": out},
  )


def self_reward_integration(
  *,
  reward: str = "correct",
  self_reward: str = "self_reward",
  warmup: int,
  mix: float = 0.1,
  threshold: float = 0.1,
  out: str = "reward",
) -> Transform:
  """Merges a verifier's reward and the self-reward, see `integrated_reward`.

  The result has mean 0 in each group: follow it by `group_relative` with
  `scale_by_std` false, which then changes nothing.

  Args:
    reward: name of the verifier's outcome reward; stays, for the auxiliary
      loss.
    self_reward: name of the outcome reward r_s; stays.
    warmup: updates before the self-reward is mixed in.
    mix: τ; 0.1 in the authors' scripts.
    threshold: T; 0.1 in the authors' scripts.
    out: name of the result.

  Raises:
    ValueError: mix is no probability.
  """
  check_probability("mix", mix, who="self_reward_integration")

  def apply(scores, context: Context):
    who = "self_reward_integration"
    _, _, verified = find_reward(scores, reward, ("outcome",), who=who)
    _, _, own = find_reward(scores, self_reward, ("outcome",), who=who)
    # Where only the self-reward is missing, the verifier's stands alone.
    own = jnp.where(jnp.isnan(own), 0.0, own)
    value = integrated_reward(
      verified,
      own,
      context.rollout.group,
      context.rollout.num_prompts,
      mix=jnp.where(context.step >= warmup, mix, 0.0),
      threshold=threshold,
    )
    return put_reward(scores, "outcome", out, value)

  return stateless(
    "self_reward_integration",
    apply,
    params={
      "reward": reward,
      "self_reward": self_reward,
      "warmup": warmup,
      "mix": mix,
      "threshold": threshold,
      "out": out,
    },
  )


def class_balance(
  *, reward: str = "correct", out: str = "class_weight"
) -> Transform:
  """Adds `class_weights` over the batch's finished responses, for a loss.

  Args:
    reward: name of the outcome reward that says which class; stays.
    out: name of the result; missing where the reward is.
  """

  def apply(scores, context):
    _, _, correct = find_reward(
      scores, reward, ("outcome",), who="class_balance"
    )
    weight = class_weights(correct, context.rollout.finished)
    weight = jnp.where(jnp.isnan(correct), jnp.nan, weight)
    return add_outcome(scores, out, weight, context, who="class_balance")

  return stateless(
    "class_balance", apply, params={"reward": reward, "out": out}
  )


def co_reward(*, out: str = "co_reward") -> Transform:
  """Adds agreement with the paraphrase's majority, see `co_reward_labels`.

  Prompts 2i and 2i + 1 of a batch have to be paraphrases of each other: the
  task's data has to come in that order.

  Args:
    out: the reward's name.

  Raises:
    ValueError: an odd number of prompts (at trace time).
  """
  return probe_reward(
    "co_reward",
    lambda context: co_reward_labels(
      context.probes["answer_ids"],
      context.rollout.group,
      context.rollout.num_prompts,
    ),
    out=out,
    requires=("answer_ids",),
  )
