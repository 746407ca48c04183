"""Dense rewards from unit tests: partial success, weighted by difficulty.

Catalogue: verpo.

The share of the tests that pass is a bad reward: most tests of a suite are
easy, so most of what can be gained is gained on easy tests. Here a test weighs
more the fewer of the group pass it, and tests of the same difficulty share
their weight. The weights come from the group's own verdicts, afresh in each
batch: nothing is carried over.

Source: VeRPO, https://arxiv.org/abs/2601.03525, equations 2-14 of its third
version, read off a summary that quotes them; the values of α, σ, δ and β were
not in it. Left out: the decay γ^turns of the outcome, which is a constant where
all responses have one turn.
"""

import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  Transform,
  check_positive,
  find_reward,
  put_reward,
  stateless,
)
from rlvr.rewards.basic import Missing
from rlvr.types import Array


def pass_rates(tests: Array, group: Array, num_groups: int) -> Array:
  """Returns the share of each prompt's responses that pass each test.

  Equation 3: ρ_j = (1 / n_j) Σ_i p_ij, over the n_j verdicts that are there.

  Args:
    tests: float [B, K], 1 where test j passes, 0 where it fails, NaN where
      there is no such test or no verdict.
    group: int32 [B].
    num_groups: P, static.

  Returns:
    float [P, K]; NaN for a test that the prompt does not have.
  """
  here = ~jnp.isnan(tests)
  passed = segments.group_sum(jnp.where(here, tests, 0.0), group, num_groups)
  count = segments.group_count(here, group, num_groups)
  return jnp.where(count > 0, passed / jnp.maximum(count, 1), jnp.nan)


def difficulty_weights(
  rates: Array, *, alpha: float, bandwidth: float, delta: float
) -> Array:
  """Returns the weight of each test.

      N̂(ρ_j) = Σ_j' exp(−(ρ_j − ρ_j')² / 2σ²)        equation 7
      w_j = exp(−α ρ_j) / (N̂(ρ_j) + δ)               equation 9

  over the prompt's tests, j itself among them.

  Args:
    rates: float [P, K], pass rates ρ; NaN where there is no test.
    alpha: α > 0: how much more a rarely passed test weighs, per unit of pass
      rate.
    bandwidth: σ > 0 of the density, in units of pass rate.
    delta: δ > 0, added to the density, tests.

  Returns:
    float [P, K], 0 where there is no test.
  """
  here = ~jnp.isnan(rates)
  known = jnp.where(here, rates, 0.0)
  apart = known[:, :, None] - known[:, None, :]
  kernel = jnp.exp(-(apart**2) / (2.0 * bandwidth**2))
  density = jnp.where(here[:, None, :], kernel, 0.0).sum(axis=-1)
  return jnp.where(here, jnp.exp(-alpha * known) / (density + delta), 0.0)


def partial_success_reward(
  tests: Array, weights: Array, group: Array, *, missing: Missing
) -> Array:
  """Returns the weight of the tests that a response passes: Σ_j w_j p_ij.

  Equation 10.

  Args:
    tests: float [B, K], see `pass_rates`.
    weights: float [P, K], 0 where the prompt does not have a test.
    group: int32 [B].
    missing: "propagate": NaN where a verdict on one of the prompt's tests is
      missing; "skip": the verdicts that are there, scaled to all the weight.

  Returns:
    float [B]; NaN where there is no verdict at all.
  """
  own = weights[group]
  here = ~jnp.isnan(tests)
  total = jnp.where(here, own * tests, 0.0).sum(axis=-1)
  judged = jnp.where(here, own, 0.0).sum(axis=-1)
  if missing == "skip":
    share = judged / jnp.maximum(own.sum(axis=-1), 1e-30)
    known = judged > 0
    return jnp.where(known, total / jnp.where(known, share, 1.0), jnp.nan)
  absent = ((own > 0) & ~here).any(axis=-1) | (judged <= 0)
  return jnp.where(absent, jnp.nan, total)


def partial_success(
  *,
  outcome: str,
  alpha: float,
  bandwidth: float,
  delta: float,
  beta: float,
  reward: str | None = None,
  tests_are_steps: bool = False,
  missing: Missing = "propagate",
  out: str = "reward",
) -> Transform:
  """Merges verdicts of unit tests and the whole suite's into one reward.

      R_i = R_traj,i + β Σ_j w_j p_ij

  The paper adds the two group-relative advantages without division by a
  deviation (equations 12-14); as subtracting the mean is linear, that is
  `group_relative(scale_by_std=False)` of this sum.

  Args:
    outcome: which outcome reward tells whether the whole suite passes.
    alpha: α of `difficulty_weights`.
    bandwidth: σ, likewise.
    delta: δ, likewise.
    beta: β, factor of the partial success.
    reward: the verdicts per test, as a step reward [B, K]: test j of a prompt in
      column j, NaN where it has no test j. None means the only step reward.
    tests_are_steps: true where each step is a test and column k belongs to step
      k of the response: then a response has no tests beyond its steps, and its
      number of steps is no verdict (give `missing` = "skip"). False: columns
      have nothing to do with the response's steps, all of them are read.
    missing: see `partial_success_reward`.
    out: name of the merged reward; the parts are taken out.

  Raises:
    ValueError: a parameter that must be positive is not; an unknown `missing`.
  """
  for name, value in (
    ("alpha", alpha),
    ("bandwidth", bandwidth),
    ("delta", delta),
  ):
    check_positive(name, value, who="partial_success")
  if beta < 0:
    raise ValueError(
      f"partial_success: beta={beta} is negative; give 0 or more"
    )
  if missing not in ("propagate", "skip"):
    raise ValueError(
      f"partial_success: missing={missing!r}; give 'propagate' or 'skip'"
    )

  def apply(scores, context):
    _, suite, success = find_reward(
      scores, outcome, ("outcome",), who="partial_success"
    )
    name = reward
    if name is None:
      if len(scores.step) != 1:
        raise ValueError(
          f"partial_success: which step reward holds the tests? There are"
          f" {sorted(scores.step)}: set `partial_success.reward`"
        )
      name = next(iter(scores.step))
    _, name, tests = find_reward(scores, name, ("step",), who="partial_success")
    rollout = context.rollout
    if tests_are_steps:
      mask = segments.step_mask(rollout.step_index, tests.shape[1])
      tests = jnp.where(mask, tests, jnp.nan)
    rates = pass_rates(tests, rollout.group, rollout.num_prompts)
    weights = difficulty_weights(
      rates, alpha=alpha, bandwidth=bandwidth, delta=delta
    )
    local = partial_success_reward(
      tests, weights, rollout.group, missing=missing
    )
    merged = success + beta * local
    return put_reward(scores, "outcome", out, merged, drop=[suite, name])

  return stateless(
    "partial_success",
    apply,
    params={
      "outcome": outcome,
      "reward": reward,
      "alpha": alpha,
      "bandwidth": bandwidth,
      "delta": delta,
      "beta": beta,
      "tests_are_steps": tests_are_steps,
      "missing": missing,
      "out": out,
    },
  )
