import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import (
  group_log_sigmoid,
  log_sigmoid,
  log_sigmoid_reward,
  log_sigmoid_sum,
  reference_quantile,
)
from rlvr.types import Scores
from tests import make, suite


def numpy_log_sigmoid(values, reference):
  return np.log(1.0 / (1.0 + np.exp(-(values.astype(np.float64) - reference))))


def numpy_quantiles(values, group, num_groups, quantile):
  result = np.full(num_groups, np.nan)
  for g in range(num_groups):
    own = values[(group == g) & ~np.isnan(values)]
    if own.size:
      result[g] = np.quantile(own, quantile)
  return result


def scores_of(**outcome):
  outcome = {k: jnp.asarray(v, jnp.float32) for k, v in outcome.items()}
  b = next(iter(outcome.values())).shape[0]
  return Scores(
    outcome=outcome,
    step={},
    token={},
    advantages=None,
    weights=jnp.ones(b),
    metrics={},
  )


def test_log_sigmoid_by_hand():
  # r = r_ref: log 1/2 = -0.693147; r - r_ref = log 3: log 3/4 = -0.287682
  values = jnp.array([1.0, 1.0 + np.log(3.0)])
  result = log_sigmoid_reward(values, 1.0)
  np.testing.assert_allclose(result, [-0.693147, -0.287682], atol=1e-6)


def test_log_sigmoid_is_stable():
  # Far below the reference it is r - r_ref itself, far above it 0.
  result = log_sigmoid_reward(jnp.array([-500.0, 500.0]), 0.0)
  np.testing.assert_allclose(result, [-500.0, 0.0])
  naive = jnp.log(jax.nn.sigmoid(jnp.array([-500.0])))
  assert np.isneginf(naive).all()


def test_log_sigmoid_parity():
  rng = np.random.default_rng(0)
  inputs = [
    (rng.normal(size=6).astype(np.float32), float(c)) for c in (-1, 0.3, 2)
  ]
  suite.numpy_parity(log_sigmoid_reward, numpy_log_sigmoid, inputs)
  suite.must_fail(
    suite.numpy_parity,
    lambda v, c: jax.nn.log_sigmoid(c - v),
    numpy_log_sigmoid,
    inputs,
  )


def test_reference_quantile_by_hand():
  # Group 0: 1, 2, 4; h = 0.75 * 2 = 1.5: 2 + 0.5 * (4 - 2) = 3.
  # Group 1: 7 alone. Group 2: 5, 9, one missing; h = 0.75: 5 + 0.75 * 4 = 8.
  values = jnp.array([4.0, 1.0, 2.0, 7.0, 9.0, np.nan, 5.0])
  group = jnp.array([0, 0, 0, 1, 2, 2, 2])
  result = reference_quantile(values, group, 3, quantile=0.75)
  np.testing.assert_allclose(result, [3.0, 7.0, 8.0])


@pytest.mark.parametrize("quantile", [0.0, 0.85, 1.0])
def test_reference_quantile_parity(quantile):
  rng = np.random.default_rng(1)
  inputs = []
  for _ in range(2):
    values = rng.normal(size=9).astype(np.float32)
    values[rng.integers(0, 9, 3)] = np.nan
    # Group 1 and the last group are empty.
    group = np.sort(rng.choice([0, 2, 3], 9)).astype(np.int32)
    inputs.append((values, group, 5))
  fn = lambda v, g, n: reference_quantile(v, g, n, quantile=quantile)  # noqa: E731
  suite.numpy_parity(
    fn, lambda v, g, n: numpy_quantiles(v, g, n, quantile), inputs
  )
  suite.must_fail(
    suite.numpy_parity,
    fn,
    lambda v, g, n: numpy_quantiles(v, g, n, abs(quantile - 0.1)),
    inputs,
  )


@pytest.mark.parametrize("quantile", [-0.1, 1.5, 85])
def test_quantile_must_be_a_probability(quantile):
  with pytest.raises(ValueError, match=str(quantile)):
    group_log_sigmoid(quantile=quantile)


def test_sum_orders_as_the_probability_of_all_properties():
  rng = np.random.default_rng(2)
  a, b = rng.normal(size=(2, 64)) * 3.0
  transform = log_sigmoid_sum({"a": 0.5, "b": -1.0})
  out, _ = transform.apply(scores_of(a=a, b=b), (), None)
  good = 1 / (1 + np.exp(-(a - 0.5))) * (1 / (1 + np.exp(-(b + 1.0))))
  np.testing.assert_array_equal(
    np.argsort(out.outcome["reward"]), np.argsort(good)
  )
  np.testing.assert_allclose(np.exp(out.outcome["reward"]), good, rtol=1e-5)
  # The plain sum lets a high reward buy off a bad one: another order.
  assert (np.argsort(a + b) != np.argsort(good)).any()


def test_references_by_name_are_used_up():
  scores = scores_of(a=[1.0, 2.0], ref=[1.0, np.nan], other=[5.0, 6.0])
  transform = log_sigmoid(reward="a", reference="ref")
  out, _ = transform.apply(scores, (), None)
  assert set(out.outcome) == {"a", "other"}
  # Without a reference nobody knows what is good.
  np.testing.assert_allclose(out.outcome["a"], [np.log(0.5), np.nan])


def test_sum_missing():
  scores = scores_of(a=[0.0, np.nan, np.nan], b=[0.0, 0.0, np.nan])
  half = np.log(0.5)
  out, _ = log_sigmoid_sum({"a": 0.0, "b": 0.0}).apply(scores, (), None)
  np.testing.assert_allclose(out.outcome["reward"], [2 * half, np.nan, np.nan])
  skip = log_sigmoid_sum({"a": 0.0, "b": 0.0}, missing="skip")
  out, _ = skip.apply(scores, (), None)
  np.testing.assert_allclose(
    out.outcome["reward"], [2 * half, 2 * half, np.nan]
  )


def test_sum_refuses():
  with pytest.raises(ValueError, match="names no reward"):
    log_sigmoid_sum({})
  with pytest.raises(ValueError, match="'drop'"):
    log_sigmoid_sum({"a": 0.0}, missing="drop")


def test_suite_log_sigmoid():
  suite.check_transform(
    lambda: log_sigmoid(reference=0.4, reward="reward"),
    kinds=("outcome", "step", "token"),
    scope="response",
  )


def test_suite_log_sigmoid_by_name():
  suite.check_transform(
    lambda: log_sigmoid(reward="a", reference="b"),
    make_scores=lambda r, s: make.scores(r, s, names=("a", "b")),
    scope="response",
  )


def test_suite_group_log_sigmoid():
  suite.check_transform(lambda: group_log_sigmoid(reward="reward"))
  # The quantile is the group's: another response's reward does matter.
  suite.must_fail(
    suite.missing_stays_put,
    suite.case(group_log_sigmoid(), scope="response"),
  )


@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_suite_log_sigmoid_sum(missing):
  suite.check_transform(
    lambda: log_sigmoid_sum({"a": 0.1, "b": "c"}, missing=missing),
    make_scores=lambda r, s: make.scores(r, s, names=("a", "b", "c")),
    scope="response",
  )
