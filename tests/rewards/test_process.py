import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import (
  clip_delta,
  clip_steps,
  clipped_step_rewards,
  delta_step_rewards,
  delta_steps,
  discounted_step_returns,
)
from tests import suite


def prefix(counts, width):
  return np.arange(width) < np.asarray(counts)[:, None]


def numpy_clip(values, mask, eta):
  result = np.zeros_like(values)
  for i, k in np.argwhere(mask):
    result[i, k] = min(values[i, k] - eta, 0.0)
  return result


def numpy_delta(values, mask):
  result = np.zeros_like(values)
  for i, row in enumerate(mask):
    steps = [float(v) for v in values[i, : row.sum()]]
    last = len(steps)  # 1-based, as the paper counts
    for k in range(1, last + 1):
      if k < last - 1:
        result[i, k - 1] = steps[k - 1] - steps[k]
      elif k == last - 1:
        result[i, k - 1] = steps[k - 1]
  return result


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  counts = [1, 2, 3, 6, 4, 0]
  values = rng.normal(size=(6, 6)).astype(np.float32)
  return [
    (values, prefix(counts, 6)),
    (values[::-1].copy(), prefix([6] * 6, 6)),
  ]


def test_clip_by_hand():
  values = jnp.array([[0.9, 0.2, 0.5, 0.7]])
  mask = jnp.array([[True, True, True, False]])
  # min(0.9 - 0.5, 0), min(0.2 - 0.5, 0), min(0.5 - 0.5, 0), outside
  result = clipped_step_rewards(values, mask, eta=0.5)
  np.testing.assert_allclose(result, [[0.0, -0.3, 0.0, 0.0]], atol=1e-7)


def test_delta_by_hand():
  # The paper's figure, about: rewards 0.7, 0.2, 0.4, 0.8 of four steps give
  # 0.7 - 0.2, 0.2 - 0.4, 0.4 (second to last), 0 (last).
  values = jnp.array(
    [[0.7, 0.2, 0.4, 0.8], [0.7, 0.2, 9.0, 9.0], [0.7] + [9.0] * 3]
  )
  mask = jnp.asarray(prefix([4, 2, 1], 4))
  result = delta_step_rewards(values, mask)
  # Two steps: the first keeps 0.7, the last gets 0. One step: 0.
  expected = [[0.5, -0.2, 0.4, 0.0], [0.7, 0, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_clip_parity():
  suite.numpy_parity(
    lambda v, m: clipped_step_rewards(v, m, eta=0.2),
    lambda v, m: numpy_clip(v, m, 0.2),
    inputs(),
  )


def test_delta_parity():
  suite.numpy_parity(delta_step_rewards, numpy_delta, inputs())
  # Off by one, the batch's last column for the response's last step: both fail.
  suite.must_fail(
    suite.numpy_parity,
    lambda v, m: jnp.where(m, v - jnp.pad(v[:, 1:], ((0, 0), (0, 1))), 0.0),
    numpy_delta,
    inputs(),
  )


def returns(values, mask):
  return discounted_step_returns(values, mask, gamma=1.0)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_return_of_delta_is_the_steps_own_reward(count):
  rng = np.random.default_rng(count)
  values = jnp.asarray(rng.uniform(size=(3, 40)), jnp.float32)
  mask = jnp.asarray(prefix([count] * 3, 40))
  result = returns(delta_step_rewards(values, mask), mask)
  expected = jnp.where(jnp.asarray(prefix([count - 1] * 3, 40)), values, 0.0)
  np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("count", [2, 40])
def test_repeated_steps_pay_in_the_sum_but_not_refined(count):
  # A correct step of reward 0.9, repeated; threshold 0.5.
  values = jnp.full((1, 40), 0.9)
  mask = jnp.asarray(prefix([count], 40))
  total = float(returns(values, mask)[0, 0])
  np.testing.assert_allclose(total, 0.9 * count, rtol=1e-5)
  clipped = returns(clipped_step_rewards(values, mask, eta=0.5), mask)
  delta = returns(delta_step_rewards(values, mask), mask)
  assert (clipped <= 0).all()
  assert delta.max() <= 0.9 + 1e-5
  # And the bound is the point: the sum-form return breaks it.
  assert total > 0.9 + 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_return_of_clip_and_delta_is_bounded_on_both_sides(seed):
  rng = np.random.default_rng(seed)
  values = jnp.asarray(rng.uniform(-1, 1, size=(8, 50)), jnp.float32)
  mask = jnp.asarray(prefix(rng.integers(1, 51, 8), 50))
  clipped = clipped_step_rewards(values, mask, eta=0.3)
  result = returns(delta_step_rewards(clipped, mask), mask)
  assert result.max() <= 1e-5
  assert result.min() >= clipped.min() - 1e-5
  # Clip alone has no lower bound that holds for every length.
  assert returns(clipped, mask).min() < clipped.min() - 1e-5


@pytest.mark.parametrize(
  "make_transform",
  [
    lambda: clip_steps(eta=0.1, reward="reward"),
    lambda: delta_steps(reward="reward"),
    lambda: clip_delta(eta=0.1, reward="reward"),
  ],
)
def test_suite(make_transform):
  suite.check_transform(make_transform, kinds=("step",), scope="response")


def test_outcome_rewards_are_refused():
  case = suite.case(clip_delta(eta=0.1), kind="outcome")
  with pytest.raises(ValueError, match=r"step \[B, K\] is needed"):
    case.run()
