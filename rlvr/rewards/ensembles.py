"""Several reward models at once: ensembles, and mixtures over annotators.

Covers `reward_ensembles` and `maxmin_rlhf` of the catalogue. The members of an
ensemble estimate one reward and err differently; the members of a mixture are
the rewards of different people. Either way a chain holds them as named
outcome rewards.
"""

from collections.abc import Iterable, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  put_reward,
  stateful,
)
from rlvr.rewards.basic import Missing
from rlvr.rewards.combine import (
  check_missing,
  check_names,
  find_rewards,
  merge_rewards,
)
from rlvr.types import Array, Context, Scores

# Ensembles. Source of all four: Eisenstein et al., "Helping or Herding? Reward
# Model Ensembles Mitigate but do not Eliminate Reward Hacking".


def mean_reward(members: Array, *, missing: Missing) -> Array:
  """Returns the mean over the members: r = (1 / M) Σ_m r_m.

  Source: https://arxiv.org/abs/2312.09244.

  Args:
    members: float [M, ...], the reward of each member; NaN where missing.
    missing: "propagate": the ensemble is missing where a member is; "skip": it
      is made of the members that are there.

  Returns:
    float [...].
  """
  here, count = _here(members, missing)
  total = jnp.where(here, members, 0.0).sum(axis=0)
  return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def median_reward(members: Array, *, missing: Missing) -> Array:
  """Returns the median over the members, of an even number the middle two's mean.

  Source: https://arxiv.org/abs/2312.09244.

  Args:
    members: float [M, ...]; NaN where missing.
    missing: see `mean_reward`.

  Returns:
    float [...].
  """
  here, count = _here(members, missing)
  ordered = jnp.sort(jnp.where(here, members, jnp.inf), axis=0)
  last = jnp.maximum(count - 1, 0)
  low = jnp.take_along_axis(ordered, (last // 2)[None], axis=0)[0]
  high = jnp.take_along_axis(ordered, ((last + 1) // 2)[None], axis=0)[0]
  return jnp.where(count > 0, 0.5 * (low + high), jnp.nan)


def min_reward(members: Array, *, missing: Missing) -> Array:
  """Returns the least over the members: r = min_m r_m.

  The worst case: a response must please every member. The rewards of
  Bradley-Terry models are known up to a constant per prompt, on which the
  least depends: train the members with `centred_preference_losses`.

  Source: https://arxiv.org/abs/2312.09244; as the reward of each response, also
  what the code of MaxMin-RLHF does (see `maxmin`).

  Args:
    members: float [M, ...]; NaN where missing.
    missing: see `mean_reward`.

  Returns:
    float [...].
  """
  here, count = _here(members, missing)
  least = jnp.where(here, members, jnp.inf).min(axis=0)
  return jnp.where(count > 0, least, jnp.nan)


def mean_minus_std_reward(
  members: Array, *, coefficient: float, missing: Missing
) -> Array:
  """Returns the mean minus a multiple of the deviation: r = μ − k σ.

  Members that agree are believed more.

  Source: https://arxiv.org/abs/2312.09244. The paper's summary does not say
  which deviation: σ divides by M here, so that one member alone has none.

  Args:
    members: float [M, ...]; NaN where missing.
    coefficient: k, not negative.
    missing: see `mean_reward`.

  Returns:
    float [...].
  """
  here, count = _here(members, missing)
  mean = mean_reward(members, missing=missing)
  off = jnp.where(here, members - mean[None], 0.0)
  std = jnp.sqrt((off**2).sum(axis=0) / jnp.maximum(count, 1))
  return mean - coefficient * std


def centred_preference_losses(
  chosen: Array, rejected: Array, *, centring: float
) -> Array:
  """Returns a reward model's loss on each pair, which also fixes its constant.

      ℓ = −log σ(r⁺ − r⁻) + η (r⁺ + r⁻)²

  Preferences say nothing of r⁺ + r⁻; where members of an ensemble differ there,
  their least and their deviation mean nothing.

  Source: https://arxiv.org/abs/2312.09244, on the underdetermination of
  Bradley-Terry rewards. The square is from memory of the paper, not checked
  against it; η = 0 is the plain loss.

  Args:
    chosen: float, any shape: rewards r⁺ of the preferred responses.
    rejected: float, the same shape: rewards r⁻ of the others.
    centring: η, not negative.

  Returns:
    float, that shape: nats.
  """
  penalty = centring * (chosen + rejected) ** 2
  return penalty - jax.nn.log_sigmoid(chosen - rejected)


def ensemble_mean(
  *,
  rewards: Sequence[str],
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges the members of an ensemble into their mean, see `mean_reward`."""
  return _ensemble("ensemble_mean", mean_reward, rewards, missing, out)


def ensemble_median(
  *,
  rewards: Sequence[str],
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges the members into their median, see `median_reward`."""
  return _ensemble("ensemble_median", median_reward, rewards, missing, out)


def ensemble_min(
  *,
  rewards: Sequence[str],
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges the members into their least, see `min_reward`."""
  return _ensemble("ensemble_min", min_reward, rewards, missing, out)


def ensemble_mean_minus_std(
  *,
  rewards: Sequence[str],
  coefficient: float,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges the members into μ − k σ, see `mean_minus_std_reward`.

  Args:
    rewards: names of the members' rewards, of one kind; they are taken out.
    coefficient: k, not negative.
    missing: see `mean_reward`.
    out: name of the merged reward.

  Raises:
    ValueError: a negative coefficient; otherwise as `merge_rewards`.
  """
  if coefficient < 0.0:
    raise ValueError(
      f"ensemble_mean_minus_std: coefficient={coefficient} would reward"
      " disagreement; give 0 or more"
    )

  def fn(members: Array, *, missing: Missing) -> Array:
    return mean_minus_std_reward(
      members, coefficient=coefficient, missing=missing
    )

  return _ensemble(
    "ensemble_mean_minus_std",
    fn,
    rewards,
    missing,
    out,
    {"coefficient": coefficient},
  )


# Mixtures over annotators. Source: Chakraborty et al., "MaxMin-RLHF",
# https://arxiv.org/abs/2402.08925, its EM algorithm for reward learning.


def preference_loglikelihoods(chosen: Array, rejected: Array) -> Array:
  """Returns log σ(r⁺ − r⁻) under each reward model of a mixture.

  Args:
    chosen: float [N, M], rewards of the preferred response of N pairs under M
      models.
    rejected: float [N, M], of the other response.

  Returns:
    float [N, M], nats; NaN where a reward is missing.
  """
  return jax.nn.log_sigmoid(chosen - rejected)


def annotator_loglikelihoods(
  loglikelihoods: Array, annotator: Array, num_annotators: int
) -> Array:
  """Returns the log-likelihood of each annotator's labels under each model.

      ℓ_am = Σ_{n of a} log σ(r_m(y⁺_n) − r_m(y⁻_n))

  A pair that a model could not score is left out for all models: models are
  compared on the same labels.

  Args:
    loglikelihoods: float [N, M], of each pair, nats.
    annotator: int32 [N], in 0..num_annotators-1.
    num_annotators: A, static.

  Returns:
    float [A, M], nats.
  """
  known = ~jnp.isnan(loglikelihoods).any(axis=-1, keepdims=True)
  values = jnp.where(known, loglikelihoods, 0.0)
  return jax.ops.segment_sum(values, annotator, num_segments=num_annotators)


def assigned_models(loglikelihoods: Array) -> Array:
  """Returns the hard E-step: all of an annotator goes to the likeliest model.

      z_am = 1[m = argmax_m' ℓ_am']

  This is the paper's algorithm and its code
  (https://github.com/josephxu1234/MaxMinRLHF): whole annotators are assigned,
  not single labels. Among equals the first model is taken.

  Args:
    loglikelihoods: float [A, M], see `annotator_loglikelihoods`.

  Returns:
    float [A, M], one-hot.
  """
  best = loglikelihoods.argmax(axis=-1)
  return jax.nn.one_hot(
    best, loglikelihoods.shape[-1], dtype=loglikelihoods.dtype
  )


def responsibilities(loglikelihoods: Array, shares: Array) -> Array:
  """Returns the soft E-step: the posterior of each annotator's model.

      z_am = π_m exp ℓ_am / Σ_m' π_m' exp ℓ_am'

  Expectation-maximization proper; the paper takes its limit of certainty, see
  `assigned_models`.

  Args:
    loglikelihoods: float [A, M], see `annotator_loglikelihoods`, nats.
    shares: float [M], π: share of the annotators that follow each model.

  Returns:
    float [A, M], rows sum to 1.
  """
  return jax.nn.softmax(loglikelihoods + jnp.log(shares)[None], axis=-1)


def mixture_shares(assignments: Array) -> Array:
  """Returns the M-step of the shares: π_m = (1 / A) Σ_a z_am.

  Args:
    assignments: float [A, M], of either E-step.

  Returns:
    float [M], summing to 1.
  """
  return assignments.mean(axis=0)


def mixture_losses(
  loglikelihoods: Array, assignments: Array, annotator: Array
) -> Array:
  """Returns the loss that the M-step minimises, for each reward model.

      L_m = −Σ_n z_{a(n) m} log σ(r_m(y⁺_n) − r_m(y⁻_n)) / Σ_n z_{a(n) m}

  Assignments get no gradient: they are what the E-step fixed.

  Args:
    loglikelihoods: float [N, M], of each pair, nats.
    assignments: float [A, M], of either E-step.
    annotator: int32 [N].

  Returns:
    float [M], nats per label; 0 for a model without labels.
  """
  known = ~jnp.isnan(loglikelihoods)
  weights = jax.lax.stop_gradient(assignments)[annotator] * known
  total = (weights * jnp.where(known, loglikelihoods, 0.0)).sum(axis=0)
  norm = weights.sum(axis=0)
  return -total / jnp.where(norm > 0, norm, 1.0)


def mixture_loglikelihood(loglikelihoods: Array, shares: Array) -> Array:
  """Returns what EM never lowers: Σ_a log Σ_m π_m exp ℓ_am.

  Args:
    loglikelihoods: float [A, M], see `annotator_loglikelihoods`, nats.
    shares: float [M], π.

  Returns:
    float [], nats.
  """
  return jax.nn.logsumexp(loglikelihoods + jnp.log(shares)[None], axis=-1).sum()


class MaxMinState(TypedDict):
  """Moving sums of the members' rewards and of their weights, float32 [M]."""

  total: Array
  weight: Array


def maxmin(
  *,
  rewards: Sequence[str],
  decay: float,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges the rewards of groups of people into the worst-off group's.

      max_π min_u E[r_u(x, y)]:    r_i = r_u*i,   u* = argmin_u E[r_u]

  The least is that of the expected rewards, not of each response: the gradient
  of the least expectation is the gradient of the worst-off group's (Danskin's
  theorem), so all responses of a batch get the reward of one group. The
  expectation is a moving average of the batch's means, without the bias of its
  start, and is the transform's state.

  Source: https://arxiv.org/abs/2402.08925, the MaxMin objective. The paper's
  code (https://github.com/josephxu1234/MaxMinRLHF) trains on the least of each
  response instead, which is `ensemble_min`: a lower bound of the objective, by
  which a response that one group loves and another hates is bad in itself.

  Deviation: the paper has no moving average; `decay` 0 is the batch's own mean,
  with which the choice may flip from batch to batch.

  Args:
    rewards: names of the groups' outcome rewards, comparable in scale; they are
      taken out.
    decay: of the average per batch, in [0, 1).
    missing: "propagate", or "skip": a response without the chosen group's
      reward gets that of the worst-off group that it has. Expectations are over
      the rewards that are there in either case; a group without any reward so
      far is not chosen.
    out: name of the merged reward.

  Raises:
    ValueError: a decay outside [0, 1); otherwise as `merge_rewards`.
  """
  names = check_names(rewards, who="maxmin")
  check_missing(missing, who="maxmin")
  if not 0.0 <= decay < 1.0:
    raise ValueError(f"maxmin: decay={decay} must be in [0, 1)")

  def init() -> MaxMinState:
    return MaxMinState(
      total=jnp.zeros((len(names),), jnp.float32),
      weight=jnp.zeros((len(names),), jnp.float32),
    )

  def apply(scores: Scores, state: MaxMinState, context: Context):
    del context
    _, parts = find_rewards(scores, names, ("outcome",), who="maxmin")
    members = jnp.stack([parts[name] for name in names])
    state = averaged(members, state, decay=decay)
    means = expected_rewards(state)
    merged = worst_off_reward(members, means, missing=missing)
    scores = put_reward(scores, "outcome", out, merged, drop=names)
    known = jnp.where(jnp.isnan(means), 0.0, means)
    metrics = {f"maxmin__{n}": known[i] for i, n in enumerate(names)}
    return add_metrics(scores, **metrics), state

  return stateful(
    "maxmin",
    init,
    apply,
    params={
      "rewards": names,
      "decay": decay,
      "missing": missing,
      "out": out,
    },
  )


def averaged(
  members: Array, state: MaxMinState, *, decay: float
) -> MaxMinState:
  """Returns the state after a batch: total ← d · total + Σ_i r_i / n, per member.

  Args:
    members: float [M, B]; NaN where missing.
    state: before the batch.
    decay: d. A member without rewards in the batch keeps its average.
  """
  here = ~jnp.isnan(members)
  count = here.sum(axis=-1)
  mean = jnp.where(here, members, 0.0).sum(axis=-1) / jnp.maximum(count, 1)
  seen = count > 0
  return MaxMinState(
    total=jnp.where(seen, decay * state["total"] + mean, state["total"]),
    weight=jnp.where(seen, decay * state["weight"] + 1.0, state["weight"]),
  )


def expected_rewards(state: MaxMinState) -> Array:
  """Returns float [M]: each member's average, NaN before its first reward."""
  weight = state["weight"]
  mean = state["total"] / jnp.where(weight > 0, weight, 1.0)
  return jnp.where(weight > 0, mean, jnp.nan)


def worst_off_reward(
  members: Array, means: Array, *, missing: Missing
) -> Array:
  """Returns the reward of the member with the least expected reward.

  Args:
    members: float [M, B]; NaN where missing.
    means: float [M], expected rewards; NaN where unknown.
    missing: see `maxmin`.

  Returns:
    float [B].
  """
  absent = jnp.isnan(members)
  order = jnp.broadcast_to(means[:, None], members.shape)
  unknown = jnp.isnan(order)
  if missing == "skip":
    unknown |= absent
  worst = jnp.where(unknown, jnp.inf, order).argmin(axis=0)
  chosen = jnp.take_along_axis(members, worst[None], axis=0)[0]
  lost = absent.any(axis=0) if missing == "propagate" else absent.all(axis=0)
  return jnp.where(lost, jnp.nan, chosen)


def _here(members: Array, missing: Missing) -> tuple[Array, Array]:
  """Returns which members count [M, ...] and how many [...]."""
  here = ~jnp.isnan(members)
  if missing == "propagate":
    here &= here.all(axis=0, keepdims=True)
  return here, here.sum(axis=0)


def _ensemble(
  name: str, fn, rewards: Iterable[str], missing: Missing, out: str, params=None
) -> Transform:
  names = check_names(rewards, who=name)

  def merge(parts: dict[str, Array], _: Context) -> Array:
    members = jnp.stack([parts[member] for member in names])
    return fn(members, missing=missing)

  return merge_rewards(
    name, merge, rewards=names, missing=missing, out=out, params=params
  )
