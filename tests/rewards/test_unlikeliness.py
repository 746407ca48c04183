import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.advantages import group_relative_advantages
from rlvr.rewards.unlikeliness import (
  likelihood_ranks,
  unlikeliness,
  unlikeliness_reward,
)
from tests import make, suite

GROUP = np.array([0, 0, 0, 0, 1, 2, 2], np.int32)


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  rewards = rng.integers(0, 2, 7).astype(np.float32)
  rewards[[0, 4]] = 1.0
  return (rewards, -rng.exponential(size=7).astype(np.float32), GROUP)


def reward_fn(beta=0.25):
  return lambda r, lp, g: unlikeliness_reward(r, lp, g, 3, beta=beta)


def numpy_unlikeliness(rewards, likelihood, group, beta=0.25):
  result = rewards.copy()
  for i in range(len(rewards)):
    own = [j for j in range(len(rewards)) if group[j] == group[i]]
    likelier = sum(likelihood[j] > likelihood[i] for j in own)
    rank = 1 + likelier  # 1 is the most likely
    if rewards[i] > 0:
      result[i] *= 1 - beta * (len(own) - rank) / len(own)
  return result


def test_by_hand():
  rewards = jnp.array([1.0, 1.0, 0.0, 1.0])
  likelihood = jnp.array([-1.0, -5.0, -2.0, -3.0])
  group = jnp.zeros(4, jnp.int32)
  # From the least likely: -5, -3, -2, -1 are 0, 1, 2, 3. With β = 0.4: the
  # likeliest keeps 1 - 0.4 · 3/4 = 0.7, the next right one 1 - 0.4 · 1/4 = 0.9,
  # the least likely all; the wrong one stays 0.
  result = unlikeliness_reward(rewards, likelihood, group, 1, beta=0.4)
  np.testing.assert_allclose(result, [0.7, 1.0, 0.0, 0.9], atol=1e-6)


def test_parity():
  cases = [inputs(0)]
  suite.numpy_parity(reward_fn(), numpy_unlikeliness, cases)
  # Rare the wrong way round, and ranks over the batch: both fail.
  suite.must_fail(
    suite.numpy_parity,
    lambda r, lp, g: reward_fn()(r, -lp, g),
    numpy_unlikeliness,
    cases,
  )
  suite.must_fail(
    suite.numpy_parity,
    lambda r, lp, g: unlikeliness_reward(r, lp, jnp.zeros_like(g), 1),
    numpy_unlikeliness,
    cases,
  )


def test_ranks_of_equals_are_equal():
  likelihood = jnp.array([-1.0, -2.0, -1.0, -3.0, -1.0, -1.0])
  group = jnp.array([0, 0, 0, 0, 1, 1])
  ranks = likelihood_ranks(likelihood, group, 2)
  np.testing.assert_array_equal(ranks, [2, 1, 2, 0, 0, 0])


def wrong_ones_stay(fn):
  rewards = jnp.array([1.0, -1.0, 0.0, 1.0, np.nan, -1.0, 0.0])
  for seed in range(5):
    _, likelihood, group = inputs(seed)
    result = np.asarray(fn(rewards, jnp.asarray(likelihood), group))
    wrong = ~(np.asarray(rewards) > 0)
    np.testing.assert_array_equal(result[wrong], rewards[wrong])


def test_wrong_responses_are_left_alone():
  wrong_ones_stay(reward_fn())
  suite.must_fail(
    wrong_ones_stay,
    lambda r, lp, g: r * (1 - 0.25 * likelihood_ranks(lp, g, 3) / 4),
  )


def rare_right_ones_win(beta):
  rewards = jnp.array([1.0, 1.0, 1.0, 0.0])
  likelihood = jnp.array([-1.0, -2.0, -9.0, -0.5])
  group = jnp.zeros(4, jnp.int32)
  shaped = unlikeliness_reward(rewards, likelihood, group, 1, beta=beta)
  advantages = np.asarray(
    group_relative_advantages(shaped, group, 1, scale_by_std=True)
  )
  assert advantages[2] > advantages[1] + 0.01
  assert advantages[1] > advantages[0] + 0.01
  assert advantages[0] > advantages[3]


def test_rare_right_responses_have_the_higher_advantage():
  rare_right_ones_win(0.25)
  suite.must_fail(rare_right_ones_win, 0.0)


@pytest.mark.parametrize("per_token", [True, False])
def test_the_likelihood_is_per_token_or_of_the_response(per_token):
  rollout = make.rollout(0, group_sizes=(2,), lengths=[4, 2], steps=[1, 1])
  # Sums -2 and -1.2, means -0.5 and -0.6. Values outside count for nothing.
  logprobs = jnp.array([[-0.5] * 4 + [-9.0], [-0.6] * 2 + [-9.0] * 3])
  scores = make.scores(rollout)
  scores = dataclasses.replace(scores, outcome={"reward": jnp.ones(2)})
  context = make.context(rollout, names=(), extra={"logprobs": logprobs})
  transform = unlikeliness(beta=0.5, per_token=per_token)
  out, _ = transform.apply(scores, (), context)
  # The likelier one: 1 - 0.5 · 1/2.
  expected = [0.75, 1.0] if per_token else [1.0, 0.75]
  np.testing.assert_allclose(out.outcome["reward"], expected)


def test_suite():
  suite.check_transform(unlikeliness, scope="response")


def test_errors():
  with pytest.raises(ValueError, match=r"beta=1\.5"):
    unlikeliness(beta=1.5)
