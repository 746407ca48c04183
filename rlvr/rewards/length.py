"""Rewards of a response's length, in tokens, beside what it says.

Covers `grpo_lambda`, `conciseness_reward` and `format_length` of the catalogue,
and the general length penalty of `hybrid_aspects`. Lengths are those of the
rollout: sampled tokens, the end token included, never characters.
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
  map_reward,
  put_reward,
  stateless,
)
from rlvr.rewards.basic import Missing
from rlvr.rewards.combine import merge_rewards
from rlvr.types import Array, Context, Scores


def correct_ratio(rewards: Array, group: Array, num_groups: int) -> Array:
  """Returns the share of each group's responses that are right.

  Args:
    rewards: float [B], right where above 0; NaN is left out.
    group: int32 [B].
    num_groups: P, static.

  Returns:
    float [P], probability; 0 for a group without rewards.
  """
  right = jnp.where(jnp.isnan(rewards), jnp.nan, rewards > 0)
  return segments.group_mean(right, group, num_groups)


def top_groups(ratio: Array, counted: Array, *, share: float) -> Array:
  """Returns which groups have the highest ratios.

  The n = ⌈share · number of counted groups⌉ best, and all that tie with the
  n-th, so that the order of the prompts doesn't matter.

  Args:
    ratio: float [P].
    counted: bool [P], groups that take part.
    share: probability; 0 selects none, 1 all.

  Returns:
    bool [P].
  """
  # 0.1 * 10 must be 1 group, whatever float32 makes of it.
  wanted = jnp.ceil(share * counted.sum() - 1e-4).astype(jnp.int32)
  ordered = -jnp.sort(jnp.where(counted, -ratio, jnp.inf))
  level = ordered[jnp.clip(wanted - 1, 0, ratio.shape[0] - 1)]
  return counted & (ratio >= level) & (wanted > 0)


def shortened_rewards(
  rewards: Array,
  lengths: Array,
  group: Array,
  penalised: Array,
  *,
  alpha: float,
  epsilon: float = 1e-7,
) -> Array:
  """Returns rewards that are lower for right answers of more words.

      r_i ← r_i (1 − α σ((L_i − mean L) / (std L + ε)))

  for right responses (r_i > 0) of groups that are penalised, with mean and
  deviation (÷ n) over the group's right responses. All others keep r_i.

  Source: Arora and Zanette, "Training Language Models to Reason Efficiently",
  https://arxiv.org/abs/2502.04463, and the reward server of
  https://github.com/Zanette-Labs/efficient-reasoning (ε is the server's).

  Args:
    rewards: float [B], 0 or 1 in the paper; NaN where missing.
    lengths: [B], tokens.
    group: int32 [B].
    penalised: bool [P].
    alpha: α, probability; the most that a right response can lose of its
      reward.
    epsilon: ε, tokens.

  Returns:
    float [B]; NaN where missing.
  """
  right, num_groups = rewards > 0, penalised.shape[0]
  tokens = lengths.astype(rewards.dtype)
  mean = segments.group_mean(tokens, group, num_groups, right)[group]
  std = segments.group_std(tokens, group, num_groups, right, ddof=0)[group]
  factor = 1.0 - alpha * jax.nn.sigmoid((tokens - mean) / (std + epsilon))
  return jnp.where(right & penalised[group], rewards * factor, rewards)


def length_scores(lengths: Array, *, max_length: int) -> Array:
  """Returns how short responses are: 1 − min(L / L_max, 1).

  Args:
    lengths: [B], tokens.
    max_length: L_max, tokens.

  Returns:
    float32 [B], in 0..1.
  """
  share = lengths.astype(jnp.float32) / max_length
  return 1.0 - jnp.minimum(share, 1.0)


def band_penalties(lengths: Array, *, low: int, high: int, limit: int) -> Array:
  """Returns how far lengths lie outside a band, as a penalty of −1..0.

      −max((low − L) / low, (L − high) / (limit − high), 0), at least −1

  Nothing between `low` and `high`; linear to −1 at an empty response and at
  `limit`. General in that it holds for answers that are too short as well.

  For "a generalized length-penalty reward" of https://arxiv.org/abs/2510.05283,
  whose equation could not be read: this is this project's form, not the
  paper's.

  Args:
    lengths: [B], tokens.
    low: tokens; 0 penalises no short response.
    high: tokens.
    limit: tokens, above `high`.

  Returns:
    float32 [B], in −1..0.
  """
  tokens = lengths.astype(jnp.float32)
  short = (low - tokens) / max(low, 1)
  long = (tokens - high) / (limit - high)
  return -jnp.clip(jnp.maximum(short, long), 0.0, 1.0)


def surrogate_length_rewards(
  lengths: Array, *, max_length: int, turning_point: float = 0.5
) -> Array:
  """Returns a reward that rises up to a length and falls behind it.

      f(x) = 1 − (1 − x / p)²                for x ≤ p
      f(x) = 1 − 2 ((x − p) / (1 − p))²      for x > p,    x = L / L_max

  From 0 at an empty response over 1 at p L_max to −1 at L_max: both flat at p,
  steeper away from it.

  Source: Xin et al., "Surrogate Signals from Format and Length: Reinforcement
  Learning for Solving Mathematical Problems without Ground Truth Answers",
  https://arxiv.org/abs/2505.19439, and the reward function of
  https://github.com/insightLLM/rl-without-gt (its third version, with p = 0.5).

  Deviation: x is limited to 1, the end of the paper's domain.

  Args:
    lengths: [B], tokens.
    max_length: L_max, tokens: the longest response that may be sampled.
    turning_point: p, probability.

  Returns:
    float32 [B], in −1..1.
  """
  x = jnp.minimum(lengths.astype(jnp.float32) / max_length, 1.0)
  p = turning_point
  rising = 1.0 - (1.0 - x / p) ** 2
  falling = 1.0 - 2.0 * ((x - p) / (1.0 - p)) ** 2
  return jnp.where(x <= p, rising, falling)


def format_length_rewards(format_: Array, length_rewards: Array) -> Array:
  """Returns format and length as one reward that needs no reference answer.

      r = f + l           where the format is kept (f > 0)
      r = min(0, l)       elsewhere

  Without the format, length earns nothing and may still cost. Source: see
  `surrogate_length_rewards`; the code halves the sum of two format checks, so
  f lies in 0..1 there, and its gate is the check of the answer.

  Args:
    format_: float [B], format reward f; NaN where missing.
    length_rewards: float [B], l.

  Returns:
    float [B]; NaN where the format's reward is missing.
  """
  kept = format_ + length_rewards
  lost = jnp.minimum(length_rewards, 0.0)
  merged = jnp.where(format_ > 0, kept, lost)
  return jnp.where(jnp.isnan(format_), jnp.nan, merged)


def conciseness_rewards(
  outcome: Array,
  conciseness: Array,
  coefficient: Array,
  *,
  missing: Missing,
) -> Array:
  """Returns the outcome, and for right ones the conciseness besides.

      r_i = o_i + 1[o_i > 0] c_i s_i

  A wrong answer gains nothing by being short, which is what keeps lengths from
  collapsing.

  Source: Wang et al., "Efficient Reasoning via Reward Model",
  https://arxiv.org/abs/2511.09158, the Conciseness Reward Function, by its
  abstract and the catalogue's summary: the score depends on the outcome, its
  coefficient is annealed and scaled by difficulty. The equation itself could
  not be read.

  Args:
    outcome: float [B], o: right where above 0; NaN where missing.
    conciseness: float [B], s, in 0..1; NaN where missing.
    coefficient: float [B], c: annealing times difficulty.
    missing: "propagate" or "skip": without a conciseness score the outcome
      counts alone. Without an outcome there is no reward in either case.

  Returns:
    float [B].
  """
  bonus = jnp.where(outcome > 0, coefficient * conciseness, 0.0)
  if missing == "propagate":
    # A wrong answer's conciseness counts 0, but is missing all the same.
    bonus = jnp.where(jnp.isnan(conciseness), jnp.nan, bonus)
  else:
    bonus = jnp.where(jnp.isnan(bonus), 0.0, bonus)
  return outcome + bonus


def grpo_lambda(
  *,
  share: float,
  minimum_ratio: float,
  alpha: float,
  reward: str | None = None,
) -> Transform:
  """Penalises length only in groups that are right often enough.

  A group is penalised (`shortened_rewards`) if its share of right responses is
  among the `share` highest of the batch and at least `minimum_ratio`; elsewhere
  the reward stays as it is: prompts that the policy does not master yet keep
  their reasoning.

  Source: Dai et al., "Stable Reinforcement Learning for Efficient Reasoning"
  (GRPO-λ), https://arxiv.org/abs/2505.18086: a top-λ selection by the
  correctness ratio of the groups of a batch, 0/1 rewards elsewhere. The
  selection is from the abstract and public summaries; the paper's own penalty
  could not be read, that of Arora and Zanette stands in its place.

  Deviations: groups that tie with the last one selected are penalised too;
  `minimum_ratio` is added (0 is the paper's selection; with `share` 1 it is a
  plain threshold).

  Args:
    share: λ, share of the batch's groups, probability.
    minimum_ratio: least share of right responses, probability.
    alpha: strength of the penalty, probability.
    reward: which outcome reward, right where above 0; None means the only one.

  Raises:
    ValueError: one of the three is no probability.
  """
  for name, value in (
    ("share", share),
    ("minimum_ratio", minimum_ratio),
    ("alpha", alpha),
  ):
    check_probability(name, value, who="grpo_lambda")

  def apply(scores: Scores, context: Context) -> Scores:
    _, name, values = find_reward(
      scores, reward, ("outcome",), who="grpo_lambda"
    )
    rollout = context.rollout
    group, prompts = rollout.group, rollout.num_prompts
    ratio = correct_ratio(values, group, prompts)
    counted = segments.group_count(~jnp.isnan(values), group, prompts) > 0
    chosen = top_groups(ratio, counted, share=share) & (ratio >= minimum_ratio)
    result = shortened_rewards(
      values, rollout.lengths, group, chosen, alpha=alpha
    )
    scores = put_reward(scores, "outcome", name, result)
    return add_metrics(
      scores,
      grpo_lambda__penalised_groups=chosen.sum()
      / jnp.maximum(counted.sum(), 1),
    )

  return stateless(
    "grpo_lambda",
    apply,
    params={
      "share": share,
      "minimum_ratio": minimum_ratio,
      "alpha": alpha,
      "reward": reward,
    },
  )


def conciseness_reward(
  *,
  outcome: str,
  conciseness: str,
  start: float,
  end: float,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Adds a conciseness score to right outcomes, annealed, less on hard prompts.

      r_i = o_i + 1[o_i > 0] a_t d_g s_i
      a_t = start + t (end − start)       t: share of the training that is done
      d_g = share of the group's responses that are right

  See `conciseness_rewards` for the source and for what of it was not to be
  read: the linear schedule and the ratio as (inverse) difficulty are this
  project's.

  Args:
    outcome: name of the outcome reward, right where above 0.
    conciseness: name of the outcome reward s, in 0..1: a reward model's, or
      `length_score`.
    start: a at the start of the training.
    end: a at its end.
    missing: see `conciseness_rewards`.
    out: name of the merged reward; the two are taken out.

  Raises:
    ValueError: as `merge_rewards`.
  """

  def fn(parts: dict[str, Array], context: Context) -> Array:
    rollout = context.rollout
    ratio = correct_ratio(parts[outcome], rollout.group, rollout.num_prompts)
    anneal = start + context.progress * (end - start)
    return conciseness_rewards(
      parts[outcome],
      parts[conciseness],
      anneal * ratio[rollout.group],
      missing=missing,
    )

  return merge_rewards(
    "conciseness_reward",
    fn,
    rewards=(outcome, conciseness),
    missing=missing,
    out=out,
    kinds=("outcome",),
    params={"start": start, "end": end},
  )


def format_length(
  *,
  max_length: int,
  turning_point: float = 0.5,
  reward: str | None = None,
  out: str | None = None,
) -> Transform:
  """Adds the surrogate length reward to a format reward.

  See `format_length_rewards`. There is one part only, so no `missing`: without
  a format reward there is none.

  Args:
    max_length: L_max, tokens: the longest response that may be sampled.
    turning_point: p, share of L_max at which length pays most.
    reward: which outcome reward is the format's; None means the only one.
    out: name of the result; None replaces the reward in place.

  Raises:
    ValueError: max_length is not positive, or p does not lie inside 0..1.
  """
  check_positive("max_length", max_length, who="format_length")
  if not 0.0 < turning_point < 1.0:
    raise ValueError(
      f"format_length: turning_point={turning_point} must lie between 0 and 1"
    )

  def fn(values: Array, context: Context) -> Array:
    length_rewards = surrogate_length_rewards(
      context.rollout.lengths,
      max_length=max_length,
      turning_point=turning_point,
    )
    return format_length_rewards(values, length_rewards)

  return map_reward(
    "format_length",
    fn,
    reward=reward,
    out=out,
    kinds=("outcome",),
    params={"max_length": max_length, "turning_point": turning_point},
  )


def length_score(*, max_length: int, out: str = "conciseness") -> Transform:
  """Adds the outcome reward 1 − min(L / L_max, 1), see `length_scores`.

  Args:
    max_length: L_max, tokens.
    out: the new reward's name.

  Raises:
    ValueError: max_length is not positive.
  """
  check_positive("max_length", max_length, who="length_score")

  def apply(scores: Scores, context: Context) -> Scores:
    values = length_scores(context.rollout.lengths, max_length=max_length)
    return put_reward(scores, "outcome", out, values)

  return stateless(
    "length_score", apply, params={"max_length": max_length, "out": out}
  )


def length_band(
  *, low: int, high: int, limit: int, out: str = "length"
) -> Transform:
  """Adds the outcome reward `band_penalties`, in −1..0.

  Args:
    low: tokens; shorter responses are penalised.
    high: tokens; longer ones are.
    limit: tokens, above `high`: where the penalty is −1.
    out: the new reward's name.

  Raises:
    ValueError: not 0 ≤ low ≤ high < limit.
  """
  if not 0 <= low <= high < limit:
    raise ValueError(
      f"length_band: low={low}, high={high}, limit={limit}; give"
      " 0 <= low <= high < limit, in tokens"
    )

  def apply(scores: Scores, context: Context) -> Scores:
    values = band_penalties(
      context.rollout.lengths, low=low, high=high, limit=limit
    )
    return put_reward(scores, "outcome", out, values)

  return stateless(
    "length_band",
    apply,
    params={"low": low, "high": high, "limit": limit, "out": out},
  )
