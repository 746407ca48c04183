import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import (
  discounted_step_returns,
  exact_min_form,
  exact_min_form_step_rewards,
  min_form,
  min_form_step_rewards,
  outcome_at_last_step,
  place_outcome,
  sum_form,
  token_returns,
)
from tests import make, suite


def prefix(counts, width):
  return np.arange(width) < np.asarray(counts)[:, None]


def numpy_returns(values, mask, gamma):
  result = np.zeros_like(values)
  for i, row in enumerate(mask):
    for k in range(row.sum()):
      for j in range(k, row.sum()):
        result[i, k] += gamma ** (j - k) * values[i, j]
  return result


def numpy_min_form(values, mask, temperature):
  result = np.zeros_like(values)
  for i, row in enumerate(mask):
    own = values[i, row].astype(np.float64)
    weights = np.exp(-own / temperature)
    result[i, row] = weights / weights.sum() * own
  return result


def inputs():
  rng = np.random.default_rng(0)
  values = rng.uniform(-1, 1, size=(5, 6)).astype(np.float32)
  return [(values, prefix([1, 2, 6, 4, 3], 6))]


def test_sum_form_by_hand():
  values = jnp.array([[1.0, 2.0, 4.0], [1.0, 2.0, 9.0]])
  mask = jnp.asarray(prefix([3, 2], 3))
  # 1 + 2/2 + 4/4 = 3; 2 + 4/2 = 4; 4. Two steps: 1 + 2/2 = 2; 2.
  result = discounted_step_returns(values, mask, gamma=0.5)
  np.testing.assert_allclose(result, [[3.0, 4.0, 4.0], [2.0, 2.0, 0.0]])


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_sum_form_parity(gamma):
  suite.numpy_parity(
    lambda v, m: discounted_step_returns(v, m, gamma=gamma),
    lambda v, m: numpy_returns(v, m, gamma),
    inputs(),
  )
  suite.must_fail(
    suite.numpy_parity,
    lambda v, m: discounted_step_returns(v, m, gamma=abs(gamma - 0.1)),
    lambda v, m: numpy_returns(v, m, gamma),
    inputs(),
  )


def test_min_form_by_hand():
  # T = 1 / log 2: weights 2^-1, 2^0 -> 1/3, 2/3; times 1, 0. The third step
  # isn't the response's.
  values = jnp.array([[1.0, 0.0, -5.0]])
  mask = jnp.array([[True, True, False]])
  result = min_form_step_rewards(values, mask, temperature=1 / np.log(2.0))
  np.testing.assert_allclose(result, [[1 / 3, 0.0, 0.0]], atol=1e-6)


def test_min_form_parity():
  suite.numpy_parity(
    lambda v, m: min_form_step_rewards(v, m, temperature=0.1),
    lambda v, m: numpy_min_form(v, m, 0.1),
    inputs(),
  )
  # softmax(+r / T) is the max form.
  suite.must_fail(
    suite.numpy_parity,
    lambda v, m: -min_form_step_rewards(-v, m, temperature=0.1),
    lambda v, m: numpy_min_form(v, m, 0.1),
    inputs(),
  )


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_min_form_is_within_its_temperature_of_the_minimum(temperature, seed):
  rng = np.random.default_rng(seed)
  counts = rng.integers(1, 13, 16)
  values = rng.uniform(-1, 1, size=(16, 12)).astype(np.float32)
  mask = prefix(counts, 12)
  weighted = min_form_step_rewards(
    jnp.asarray(values), jnp.asarray(mask), temperature=temperature
  )
  total = np.asarray(weighted).sum(axis=1)
  least = np.where(mask, values, np.inf).min(axis=1)
  # E_softmax[r] = T H - T log sum exp(-r / T) <= T log K + min r
  assert (total >= least - 1e-5).all()
  assert (total <= least + temperature * np.log(counts) + 1e-5).all()
  # The mean of the steps isn't: the bound can fail.
  mean = np.where(mask, values, 0).sum(axis=1) / counts
  if temperature < 1:
    assert (mean > least + temperature * np.log(counts) + 1e-5).any()


def test_returns_of_min_form_are_near_the_worst_step_then_zero():
  values = jnp.array([[0.8, -0.9, 0.7, 0.6]])
  mask = jnp.ones((1, 4), bool)
  weighted = min_form_step_rewards(values, mask, temperature=0.05)
  returns = discounted_step_returns(weighted, mask, gamma=1.0)
  np.testing.assert_allclose(returns, [[-0.9, -0.9, 0.0, 0.0]], atol=1e-4)
  exact = exact_min_form_step_rewards(values, mask)
  returns = discounted_step_returns(exact, mask, gamma=1.0)
  np.testing.assert_array_equal(
    returns, np.array([[-0.9, -0.9, 0.0, 0.0]], np.float32)
  )


def test_exact_min_form_ignores_steps_outside_and_takes_the_first_of_equals():
  values = jnp.array([[0.5, 0.2, -9.0], [0.3, 0.3, 0.3]])
  mask = jnp.asarray(prefix([2, 3], 3))
  np.testing.assert_allclose(
    exact_min_form_step_rewards(values, mask), [[0, 0.2, 0], [0.3, 0, 0]]
  )


def test_min_form_of_a_response_without_steps_is_zero():
  values, mask = jnp.array([[0.5, -0.2]]), jnp.zeros((1, 2), bool)
  assert (min_form_step_rewards(values, mask, temperature=0.1) == 0).all()
  assert (exact_min_form_step_rewards(values, mask) == 0).all()


def test_token_returns_by_hand():
  returns = jnp.array([[3.0, 5.0], [7.0, 9.0]])
  index = jnp.array([[0, 0, 1, 1], [0, -1, -1, -1]])
  np.testing.assert_array_equal(
    token_returns(returns, index), [[3, 3, 5, 5], [7, 0, 0, 0]]
  )


def test_outcome_counts_at_the_last_step_of_each_response():
  values = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
  outcome = jnp.array([10.0, np.nan])
  mask = jnp.asarray(prefix([2, 3], 3))
  result = outcome_at_last_step(values, outcome, mask, weight=0.5)
  np.testing.assert_array_equal(result, [[1, 6, 1], [1, 1, np.nan]])


def test_one_missing_step_makes_all_tokens_missing():
  rollout = make.rollout(0)
  scores = make.scores(rollout, kind="step")
  last = int(make.num_steps(rollout)[0]) - 1
  values = scores.step["reward"].at[0, last].set(np.nan)
  # Behind the response's last step a missing reward is none.
  values = jnp.where(make.step_mask(rollout), values, np.nan)
  scores.step["reward"] = values
  for transform in (sum_form(gamma=0.0), min_form(), exact_min_form()):
    out, _ = transform.apply(scores, (), make.context(rollout))
    returns = np.asarray(out.token["reward"])
    mask = np.asarray(rollout.completion_mask)
    assert np.isnan(returns[0][mask[0]]).all()
    assert np.isfinite(returns[1:]).all()
    assert (returns[~mask] == 0).all()


@pytest.mark.parametrize(
  "make_transform",
  [
    lambda: sum_form(gamma=0.9, reward="reward"),
    lambda: min_form(temperature=0.1, reward="reward"),
    lambda: exact_min_form(reward="reward", out="returns"),
  ],
)
def test_suite(make_transform):
  suite.check_transform(make_transform, kinds=("step",), scope="response")


def test_suite_place_outcome():
  def make_scores(rollout, seed):
    scores = make.scores(rollout, seed, kind="step", names=("process",))
    scores.outcome["correct"] = make.scores(rollout, seed).outcome["reward"]
    return scores

  suite.check_transform(
    lambda: place_outcome(outcome="correct", weight=0.5, reward="process"),
    make_scores=make_scores,
    scope="response",
  )


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_gamma_is_checked(gamma):
  with pytest.raises(ValueError, match=str(gamma)):
    sum_form(gamma=gamma)


def test_temperature_is_checked():
  with pytest.raises(ValueError, match=r"temperature=0\.0"):
    min_form(temperature=0.0)
