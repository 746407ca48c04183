import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards.unit_tests import (
  difficulty_weights,
  partial_success,
  partial_success_reward,
  pass_rates,
)
from tests import change, make, suite

NAN = np.nan
SETTINGS = {"alpha": 2.0, "bandwidth": 0.2, "delta": 0.5}
GROUP = np.array([0, 0, 0, 1, 2, 2], np.int32)


def verdicts(seed=0):
  """Verdicts on 4, 3 and 2 tests, one missing for one response."""
  rng = np.random.default_rng(seed)
  tests = rng.integers(0, 2, (6, 4)).astype(np.float32)
  tests[3, 3:] = NAN
  tests[4:, 2:] = NAN
  tests[1, 2] = NAN
  return tests


def make_scores(rollout, seed):
  rng = np.random.default_rng(seed)
  scores = make.scores(rollout, seed)
  b = rollout.tokens.shape[0]
  return dataclasses.replace(
    scores,
    outcome={"passed": jnp.asarray(rng.integers(0, 2, b), jnp.float32)},
    step={"tests": jnp.asarray(rng.integers(0, 2, (b, 3)), jnp.float32)},
  )


def numpy_rates(tests, group):
  result = np.full((group.max() + 1, tests.shape[1]), NAN, np.float32)
  for p, j in np.ndindex(result.shape):
    own = [x for x in tests[group == p, j] if not np.isnan(x)]
    if own:
      result[p, j] = sum(own) / len(own)
  return result


def numpy_weights(rates, alpha, bandwidth, delta):
  result = np.zeros_like(rates)
  for p, j in np.argwhere(~np.isnan(rates)):
    density = sum(
      np.exp(-((rates[p, j] - other) ** 2) / (2 * bandwidth**2))
      for other in rates[p]
      if not np.isnan(other)
    )
    result[p, j] = np.exp(-alpha * rates[p, j]) / (density + delta)
  return result


def numpy_success(tests, weights, group, missing):
  result = np.zeros(len(group), np.float32)
  for i, p in enumerate(group):
    known = [j for j in range(tests.shape[1]) if weights[p, j] > 0]
    judged = [j for j in known if not np.isnan(tests[i, j])]
    if not judged or (missing == "propagate" and judged != known):
      result[i] = NAN
      continue
    total = sum(weights[p, j] * tests[i, j] for j in judged)
    share = sum(weights[p, j] for j in judged) / sum(
      weights[p, j] for j in known
    )
    result[i] = total / share
  return result


def test_pass_rates_by_hand():
  tests = jnp.array([[1, 0, NAN], [1, 1, NAN], [0, NAN, NAN], [1, 0, 1]])
  # Prompt 0: 2 of 3, 1 of 2, no such test. Prompt 1: its one response's own.
  result = pass_rates(tests, jnp.array([0, 0, 0, 1]), 2)
  np.testing.assert_allclose(result, [[2 / 3, 0.5, NAN], [1.0, 0.0, 1.0]])


def test_difficulty_weights_by_hand():
  # σ so that a distance of 0.5 has the kernel 1/2: exp(-0.125 / σ²) = 1/2.
  # α = log 4: exp(-α/2) = 1/2. Densities 1 + 1 + 1/2 = 2.5, twice, and
  # 1/2 + 1/2 + 1 = 2; with δ = 0.5: 1/3, 1/3 and 0.5 / 2.5 = 0.2.
  rates = jnp.array([[0.0, 0.0, 0.5, NAN]])
  result = difficulty_weights(
    rates,
    alpha=float(np.log(4)),
    bandwidth=float(np.sqrt(0.125 / np.log(2))),
    delta=0.5,
  )
  np.testing.assert_allclose(result, [[1 / 3, 1 / 3, 0.2, 0.0]], atol=1e-6)


def test_partial_success_by_hand():
  weights = jnp.array([[0.5, 0.25, 0.25, 0.0]])
  tests = jnp.array([[1, 0, 1, NAN], [1, NAN, 0, NAN], [NAN] * 4])
  group = jnp.zeros(3, jnp.int32)
  # 0.5 + 0.25. Then the second verdict is missing: unknown, or 0.5 of the 0.75
  # that was judged: 2/3 of all weight, 1. Then nothing is known.
  for missing, second in (("propagate", NAN), ("skip", 2 / 3)):
    result = partial_success_reward(tests, weights, group, missing=missing)
    np.testing.assert_allclose(result, [0.75, second, NAN], atol=1e-6)


def test_parity():
  cases = [(verdicts(0), GROUP)]
  suite.numpy_parity(lambda t, g: pass_rates(t, g, 3), numpy_rates, cases)
  rates = [(numpy_rates(*case),) for case in cases]
  suite.numpy_parity(
    lambda r: difficulty_weights(r, **SETTINGS),
    lambda r: numpy_weights(r, **SETTINGS),
    rates,
  )
  # Without the density, easy tests weigh by their number: must differ.
  suite.must_fail(
    suite.numpy_parity,
    lambda r: jnp.where(jnp.isnan(r), 0.0, jnp.exp(-SETTINGS["alpha"] * r)),
    lambda r: numpy_weights(r, **SETTINGS),
    rates,
  )


@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_reward_parity(missing):
  cases = []
  for seed in range(3):
    tests = verdicts(seed)
    weights = numpy_weights(numpy_rates(tests, GROUP), **SETTINGS)
    cases.append((tests, weights, GROUP))
  suite.numpy_parity(
    lambda t, w, g: partial_success_reward(t, w, g, missing=missing),
    lambda t, w, g: numpy_success(t, w, g, missing),
    cases,
  )
  # A missing verdict that counts as failed.
  suite.must_fail(
    suite.numpy_parity,
    lambda t, w, g: partial_success_reward(
      jnp.nan_to_num(t), w, g, missing=missing
    ),
    lambda t, w, g: numpy_success(t, w, g, missing),
    cases,
  )


def hard_test_is_worth_more_than_many_easy_ones(**settings):
  # 8 easy tests that all pass but one response's, 1 test that one passes.
  easy = np.ones((4, 8))
  easy[0] = 0.0
  tests = jnp.asarray(np.concatenate([easy, [[1], [0], [0], [0]]], axis=1))
  group = jnp.zeros(4, jnp.int32)
  rates = pass_rates(tests, group, 1)
  weights = difficulty_weights(rates, **settings)
  result = partial_success_reward(tests, weights, group, missing="propagate")
  assert result[0] > result[1]


def test_cardinality_bias_is_corrected():
  hard_test_is_worth_more_than_many_easy_ones(
    alpha=2.0, bandwidth=0.05, delta=0.1
  )
  # A kernel as wide as the scale and no preference: the plain pass rate.
  suite.must_fail(
    hard_test_is_worth_more_than_many_easy_ones,
    alpha=1e-6,
    bandwidth=1e3,
    delta=0.1,
  )


def build(**changes):
  return partial_success(
    **{
      "outcome": "passed",
      "reward": "tests",
      "beta": 0.5,
      **SETTINGS,
      **changes,
    }
  )


def test_outcome_and_partial_success_are_added():
  rollout = make.rollout(0)
  scores = make_scores(rollout, 0)
  group = np.asarray(rollout.group)
  tests = np.asarray(scores.step["tests"])
  weights = numpy_weights(numpy_rates(tests, group), **SETTINGS)
  local = numpy_success(tests, weights, group, "propagate")
  out, _ = build(beta=0.3).apply(scores, (), make.context(rollout, names=()))
  np.testing.assert_allclose(
    out.outcome["reward"], scores.outcome["passed"] + 0.3 * local, rtol=1e-5
  )
  assert not out.step
  assert set(out.outcome) == {"reward"}


def test_suite():
  suite.check_transform(
    lambda: build(tests_are_steps=True, missing="skip"),
    make_scores=make_scores,
  )
  # Columns of real tests have nothing to do with the response's steps.
  suite.check_transform(
    build,
    make_scores=make_scores,
    without={
      "padding_changes_nothing": "tests are read whatever steps there are"
    },
  )


def padding_changes_nothing(fill):
  rollout = make.rollout(0)
  scores = make_scores(rollout, 0)
  context = make.context(rollout, names=())
  tests = scores.step["tests"]
  more = jnp.pad(tests, ((0, 0), (0, 2)), constant_values=fill)
  wide = dataclasses.replace(scores, step={"tests": more})
  longer = change.pad_context(context, {}, tokens=2)
  base, _ = build().apply(scores, (), context)
  out, _ = build().apply(wide, (), longer)
  np.testing.assert_allclose(
    base.outcome["reward"], out.outcome["reward"], rtol=1e-6
  )


def test_tests_that_are_not_there_change_nothing():
  padding_changes_nothing(NAN)
  suite.must_fail(padding_changes_nothing, 1.0)


def test_errors():
  with pytest.raises(ValueError, match="bandwidth=0"):
    build(bandwidth=0.0)
  with pytest.raises(ValueError, match="beta=-1"):
    build(beta=-1.0)
  with pytest.raises(ValueError, match="missing='zero'"):
    build(missing="zero")
  rollout = make.rollout(0)
  scores = make_scores(rollout, 0)
  scores = dataclasses.replace(
    scores, step={**scores.step, "other": scores.step["tests"]}
  )
  with pytest.raises(ValueError, match=r"partial_success\.reward"):
    build(reward=None).apply(scores, (), make.context(rollout, names=()))
