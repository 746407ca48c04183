"""Rewards from the likelihood of the reference answer or of the response.

The model that reasons is asked how likely the reference answer y* is after the
reasoning z; no verifier and no sampled answer is needed. All of them read
`answer_logprobs` [B, R], the policy's log-probs of y* behind the response's
reasoning. A response whose prompt has no reference answer has no reward (NaN).

Catalogue: log_prob_reward (all forms of https://arxiv.org/abs/2602.03979),
rlpr (https://arxiv.org/abs/2506.18254), the reward of verifree
(https://arxiv.org/abs/2505.21493; its second gradient term is
`rlvr.objectives.passes`), self_aligned_reward
(https://arxiv.org/abs/2509.05489). JEPO's advantages, which no reward of one
response can express, are in `rlvr.advantages.likelihood`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  check_probability,
  find_reward,
  stateful,
  stateless,
)
from rlvr.rewards.from_probes import add_outcome, probe_reward
from rlvr.types import Array, Context, Rollout

_ANSWER = ("answer_logprobs", "answer_mask")


def answer_log_probability_reward(logprobs: Array, mask: Array) -> Array:
  """Returns the log-probability of the reference answer: log π(y*|x,z).

  Source: https://arxiv.org/abs/2602.03979, eq. 9.

  Args:
    logprobs: float32 [B, R], nats, of the reference answer's tokens.
    mask: bool [B, R], true on the reference answer.

  Returns:
    float32 [B], nats; NaN where the answer is empty.
  """
  return _of_answers(jnp.where(mask, logprobs, 0.0).sum(-1), mask)


def answer_probability_reward(logprobs: Array, mask: Array) -> Array:
  """Returns the probability of the reference answer: π(y*|x,z).

  Source: https://arxiv.org/abs/2505.21493 (VeriFree), eq. 5 and 7 of
  https://arxiv.org/abs/2602.03979. It is the expected 0/1 reward of an answer
  sampled after z; of long answers it is 0 for all practical purposes.

  Args:
    logprobs: float32 [B, R], nats.
    mask: bool [B, R].

  Returns:
    float32 [B], probability; NaN where the answer is empty.
  """
  return jnp.exp(answer_log_probability_reward(logprobs, mask))


def mean_answer_log_probability_reward(logprobs: Array, mask: Array) -> Array:
  """Returns the mean log-probability of the answer's tokens: log π(y*|x,z)/|y*|.

  Source: https://arxiv.org/abs/2602.03979, eq. 10.

  Args:
    logprobs: float32 [B, R], nats.
    mask: bool [B, R].

  Returns:
    float32 [B], nats per token; NaN where the answer is empty.
  """
  return _of_answers(segments.masked_mean(logprobs, mask, axis=-1), mask)


def mean_answer_probability_reward(logprobs: Array, mask: Array) -> Array:
  """Returns the mean probability of the answer's tokens: (1/|y*|) Σ_t π(y*_t|·).

  Source: RLPR, https://arxiv.org/abs/2506.18254, eq. 2; eq. 8 of
  https://arxiv.org/abs/2602.03979. One unlikely token (a synonym) takes away
  1/|y*| of it, but nearly all of the product.

  Args:
    logprobs: float32 [B, R], nats.
    mask: bool [B, R].

  Returns:
    float32 [B], probability; NaN where the answer is empty.
  """
  mean = segments.masked_mean(jnp.exp(logprobs), mask, axis=-1)
  return _of_answers(mean, mask)


def probability_gain_reward(
  logprobs: Array, logprobs_no_reasoning: Array, mask: Array
) -> Array:
  """Returns how much more probable reasoning makes the answer's tokens.

      r̂ = clip(r − r′, 0, 1), r and r′ the mean probability of the reference
      answer's tokens with and without reasoning

  Source: RLPR, https://arxiv.org/abs/2506.18254, eq. 2 and 4.

  Deviation: r′ is that of the policy as it is now; the authors' code computes
  it once before training.

  Args:
    logprobs: float32 [B, R], nats, after prompt and reasoning.
    logprobs_no_reasoning: float32 [B, R], nats, straight after the prompt.
    mask: bool [B, R].

  Returns:
    float32 [B], in [0, 1]; NaN where the answer is empty.
  """
  gain = mean_answer_probability_reward(
    logprobs, mask
  ) - mean_answer_probability_reward(logprobs_no_reasoning, mask)
  return jnp.clip(gain, 0.0, 1.0)


def self_aligned_reward(
  logprobs: Array, prompt_free_logprobs: Array, mask: Array
) -> Array:
  """Returns by which share the prompt lowers the response's perplexity.

      R = clip((ppl(a) − ppl(a|q)) / ppl(a), −1, 1)
        = max(1 − exp(mean log π(a) − mean log π(a|q)), −1)

  Source: https://arxiv.org/abs/2509.05489, the definition of R_SA, and the
  authors' code, which adds 0.2 of it to the verifiable reward. The second form
  has no overflow.

  Deviation: the authors' ppl(a) keeps the chat template with an empty question;
  ours has the start token alone.

  Args:
    logprobs: float32 [B, T], nats, log π(a_t|q, a_<t).
    prompt_free_logprobs: float32 [B, T], nats, log π(a_t|a_<t).
    mask: bool [B, T], true on the response.

  Returns:
    float32 [B], in [−1, 1]; 0 for an empty response.
  """
  with_prompt = segments.masked_mean(logprobs, mask, axis=-1)
  alone = segments.masked_mean(prompt_free_logprobs, mask, axis=-1)
  # At log 2 the clip is reached; beyond it exp would overflow.
  return 1.0 - jnp.exp(jnp.minimum(alone - with_prompt, jnp.log(2.0)))


def reasoning_perplexity(
  logprobs: Array, mask: Array, reasoning_lengths: Array
) -> Array:
  """Returns the answer's perplexity after the reasoning, discounted by length.

      P = exp(−(1/|y*|) log π(y*|x,z) / N), N = max(1, 1 + log₁₀|z|)

  Source: NOVER, https://arxiv.org/abs/2505.16022, as in
  https://github.com/thinkwee/NOVER, `calculate_perplexity`.

  Deviation: π is the policy; NOVER has a proxy model that follows it.

  Args:
    logprobs: float32 [B, R], nats.
    mask: bool [B, R].
    reasoning_lengths: int32 [B], |z|, tokens.

  Returns:
    float32 [B], at least 1; NaN where the answer is empty.
  """
  nll = -mean_answer_log_probability_reward(logprobs, mask)
  lengths = jnp.maximum(reasoning_lengths, 1).astype(jnp.float32)
  return jnp.exp(nll / (1.0 + jnp.log10(lengths)))


def perplexity_rank_reward(perplexity: Array, group: Array) -> Array:
  """Returns NOVER's reasoning reward: the rank inside the group.

      R = (n − rank) / n, rank 0 for the least perplexity of n

  Source: https://github.com/thinkwee/NOVER, `reasoning_reward`.

  Deviation: equal perplexities share the mean of their ranks (there, the order
  of sampling decides).

  Args:
    perplexity: float32 [B]; NaN where missing, left out of n.
    group: int32 [B].

  Returns:
    float32 [B], in (0, 1]; NaN where missing.
  """
  others = _others(perplexity, group)
  lower = others & (perplexity[None] < perplexity[:, None])
  equal = others & (perplexity[None] == perplexity[:, None])
  count = others.sum(-1) + 1
  rank = lower.sum(-1) + 0.5 * equal.sum(-1)
  return jnp.where(jnp.isnan(perplexity), jnp.nan, (count - rank) / count)


def short_and_sure_reward(
  perplexity: Array, lengths: Array, group: Array
) -> Array:
  """Returns NOVER's efficiency reward: the share of others that are beaten.

  A response beats another if it is shorter and has the lower perplexity.

  Source: https://github.com/thinkwee/NOVER, `efficiency_reward`.

  Args:
    perplexity: float32 [B]; NaN where missing.
    lengths: int32 [B], tokens of the reasoning.
    group: int32 [B].

  Returns:
    float32 [B], in [0, 1]; 0 without others; NaN where missing.
  """
  others = _others(perplexity, group)
  beats = (
    others
    & (perplexity[:, None] < perplexity[None])
    & (lengths[:, None] < lengths[None])
  )
  share = beats.sum(-1) / jnp.maximum(others.sum(-1), 1)
  return jnp.where(jnp.isnan(perplexity), jnp.nan, share)


# Transforms.


def answer_log_probability(*, out: str = "likelihood") -> Transform:
  """Adds log π(y*|x,z), see `answer_log_probability_reward`."""
  return _answer_reward(
    "answer_log_probability", answer_log_probability_reward, out
  )


def mean_answer_log_probability(*, out: str = "likelihood") -> Transform:
  """Adds log π(y*|x,z)/|y*|, see `mean_answer_log_probability_reward`."""
  return _answer_reward(
    "mean_answer_log_probability", mean_answer_log_probability_reward, out
  )


def mean_answer_probability(*, out: str = "likelihood") -> Transform:
  """Adds the answer tokens' mean probability, without RLPR's debiasing."""
  return _answer_reward(
    "mean_answer_probability", mean_answer_probability_reward, out
  )


def answer_probability(
  *, unfinished: float | None = None, out: str = "likelihood"
) -> Transform:
  """Adds π(y*|x,z), see `answer_probability_reward`.

  Args:
    unfinished: reward of a truncated response; VeriFree's code gives 0. None
      rewards it as any other, its tokens so far being the reasoning.
    out: the reward's name.
  """

  def fn(context):
    value = answer_probability_reward(*_answers(context))
    if unfinished is None:
      return value
    cut = ~context.rollout.finished & ~jnp.isnan(value)
    return jnp.where(cut, unfinished, value)

  return probe_reward(
    "answer_probability",
    fn,
    out=out,
    requires=_ANSWER,
    params={"unfinished": unfinished},
  )


def probability_gain(*, out: str = "likelihood") -> Transform:
  """Adds RLPR's debiased reward, see `probability_gain_reward`."""

  def fn(context):
    logprobs, mask = _answers(context)
    base = context.probes["answer_logprobs_no_reasoning"]
    return probability_gain_reward(logprobs, base, mask)

  return probe_reward(
    "probability_gain",
    fn,
    out=out,
    requires=(*_ANSWER, "answer_logprobs_no_reasoning"),
  )


def self_aligned(*, out: str = "self_aligned") -> Transform:
  """Adds the self-aligned reward, see `self_aligned_reward`."""

  def fn(context):
    return self_aligned_reward(
      context.probes["logprobs"],
      context.probes["prompt_free_logprobs"],
      context.rollout.completion_mask,
    )

  return probe_reward(
    "self_aligned", fn, out=out, requires=("logprobs", "prompt_free_logprobs")
  )


def perplexity_rank(
  *, out: str = "likelihood", efficiency_out: str | None = None
) -> Transform:
  """Adds NOVER's reasoning reward and, if named, its efficiency reward.

  See `perplexity_rank_reward` and `short_and_sure_reward`. NOVER sums them with
  a format reward.

  Args:
    out: name of the reasoning reward.
    efficiency_out: name of the efficiency reward; None leaves it out.
  """

  def apply(scores, context):
    lengths = reasoning_mask(
      context.rollout, context.probes["answer_span"]
    ).sum(-1)
    perplexity = reasoning_perplexity(*_answers(context), lengths)
    group = context.rollout.group
    rank = perplexity_rank_reward(perplexity, group)
    scores = add_outcome(scores, out, rank, context, who="perplexity_rank")
    if efficiency_out is None:
      return scores
    share = short_and_sure_reward(perplexity, lengths, group)
    return add_outcome(
      scores, efficiency_out, share, context, who="perplexity_rank"
    )

  return stateless(
    "perplexity_rank",
    apply,
    requires=(*_ANSWER, "answer_span"),
    params={"out": out, "efficiency_out": efficiency_out},
  )


def low_deviation_filter(
  *,
  reward: str | None = None,
  scale: float = 0.5,
  decay: float = 0.99,
  warmup: int = 10,
) -> Transform:
  """Drops prompts whose rewards hardly differ, by a threshold that adapts.

      keep_g = [std_g ≥ β m], m a moving average of each batch's mean of std_g

  Source: RLPR, https://arxiv.org/abs/2506.18254, section 2.4; β = 0.5 for
  Qwen in section 3.1 (0.9 for Llama and 1 for Gemma in the code's scripts);
  decay and the ten batches without a filter are the scripts'.

  Deviations: the authors sample further prompts in the place of those dropped;
  here the update is on fewer responses (their weight is 0). m is the plain mean
  of the batches during the warm-up.

  A prompt with fewer than two rewards keeps its weight and is not counted in m.

  Args:
    reward: which outcome reward; None means the only one.
    scale: β.
    decay: of m per batch, probability.
    warmup: batches before the first is filtered.

  Raises:
    ValueError: a decay that is no probability, a negative scale or warm-up.
  """
  check_probability("decay", decay, who="low_deviation_filter")
  for name, value in (("scale", scale), ("warmup", warmup)):
    if value < 0:
      raise ValueError(
        f"low_deviation_filter: {name}={value} must not be negative"
      )

  def init():
    return {"mean": jnp.zeros(()), "batches": jnp.zeros((), jnp.int32)}

  def apply(scores, state, context: Context):
    _, _, rewards = find_reward(
      scores, reward, ("outcome",), who="low_deviation_filter"
    )
    group, prompts = context.rollout.group, context.rollout.num_prompts
    rewards = jax.lax.stop_gradient(rewards)
    deviation = segments.group_std(rewards, group, prompts, ddof=1)
    counted = segments.group_count(~jnp.isnan(rewards), group, prompts) > 1
    # The threshold comes from batches before: a prompt's fate doesn't depend
    # on who else is in its batch.
    threshold = jnp.where(
      state["batches"] >= warmup, scale * state["mean"], 0.0
    )
    keep = ~counted | (deviation >= threshold)
    now = segments.masked_mean(deviation, counted)
    some, batches = counted.any(), state["batches"]
    rate = jnp.where(batches < max(warmup, 1), 1.0 / (batches + 1), 1.0 - decay)
    state = {
      "mean": state["mean"]
      + jnp.where(some, rate * (now - state["mean"]), 0.0),
      "batches": batches + some.astype(jnp.int32),
    }
    scores = dataclasses.replace(scores, weights=scores.weights * keep[group])
    scores = add_metrics(
      scores,
      filter__threshold=threshold,
      filter__deviation=now,
      filter__dropped_prompts=1.0 - keep.mean(dtype=jnp.float32),
    )
    return scores, state

  return stateful(
    "low_deviation_filter",
    init,
    apply,
    params={
      "reward": reward,
      "scale": scale,
      "decay": decay,
      "warmup": warmup,
    },
  )


def reasoning_mask(rollout: Rollout, answer_span: Array) -> Array:
  """Returns bool [B, T]: the response's tokens before its final answer.

  The delimiter before the answer belongs to it. A response without an answer
  is reasoning as a whole.

  Args:
    rollout: whose masks to use.
    answer_span: bool [B, T], contiguous.
  """
  started = jnp.cumsum(answer_span, axis=-1) > 0
  return rollout.completion_mask & ~started


def reasoning_only() -> Transform:
  """Takes the advantages off the response's own answer and what follows it.

  Where the reward is the likelihood of the reference answer after the
  reasoning, the sampled answer has no part in it.

  Source: VeriFree, https://arxiv.org/abs/2505.21493, whose policy gradient is
  that of log π(z|x), and `mb_think_masks` in the authors' code.
  """

  def apply(scores, context):
    mask = reasoning_mask(context.rollout, context.probes["answer_span"])
    advantages = jnp.where(mask, scores.advantages, 0.0)
    return dataclasses.replace(scores, advantages=advantages)

  return stateless(
    "reasoning_only",
    apply,
    takes="advantages",
    gives="advantages",
    requires=("answer_span",),
  )


def _answers(context: Context) -> tuple[Array, Array]:
  return context.probes["answer_logprobs"], context.probes["answer_mask"]


def _answer_reward(
  name: str, fn: Callable[[Array, Array], Array], out: str
) -> Transform:
  return probe_reward(
    name, lambda context: fn(*_answers(context)), out=out, requires=_ANSWER
  )


def _of_answers(values: Array, mask: Array) -> Array:
  # No reference answer: the empty product would be a likelihood of 1.
  return jnp.where(mask.any(-1), values, jnp.nan)


def _others(values: Array, group: Array) -> Array:
  """Returns bool [B, B]: which others of its group a response compares with."""
  here = ~jnp.isnan(values)
  same = (group[:, None] == group[None]) & here[:, None] & here[None]
  return same & ~jnp.eye(group.shape[0], dtype=bool)
