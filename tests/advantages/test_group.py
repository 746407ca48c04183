import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import segments
from rlvr.advantages import (
  group_relative,
  group_relative_advantages,
  leave_one_out,
  leave_one_out_advantages,
  token_group_relative,
  token_group_relative_advantages,
  token_leave_one_out,
  token_leave_one_out_advantages,
)
from rlvr.rewards import chain, min_form
from tests import make, suite

NAN = float("nan")


# NumPy loops.


def members(group, rewards, i):
  return [
    j
    for j in range(len(group))
    if group[j] == group[i] and not np.isnan(rewards[j])
  ]


def numpy_group_relative(rewards, group, scale_by_std, epsilon, ddof):
  result = np.zeros_like(rewards)
  for i in range(len(rewards)):
    own = members(group, rewards, i)
    if np.isnan(rewards[i]) or len(own) < 2:
      continue
    values = rewards[own].astype(np.float64)
    result[i] = rewards[i] - values.mean()
    if scale_by_std:
      result[i] /= values.std(ddof=ddof) + epsilon
  return result


def numpy_leave_one_out(rewards, group):
  result = np.zeros_like(rewards)
  for i in range(len(rewards)):
    others = [j for j in members(group, rewards, i) if j != i]
    if others and not np.isnan(rewards[i]):
      result[i] = rewards[i] - rewards[others].mean()
  return result


def numpy_token_leave_one_out(returns, mask, step_index, group):
  result = np.zeros_like(returns)
  first = np.where(
    np.isnan(np.where(mask, returns, 0)).any(1), NAN, returns[:, 0]
  )
  for i in range(len(group)):
    others = [j for j in members(group, first, i) if j != i]
    if np.isnan(first[i]) or not others:
      continue
    per_token = first[others].sum() / mask[others].sum()
    for t in range(mask[i].sum()):
      own = [
        s for s in range(mask[i].sum()) if step_index[i, s] >= step_index[i, t]
      ]
      result[i, t] = returns[i, t] - per_token * len(own)
  return result


def inputs():
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=8).astype(np.float32)
  holes = rewards.copy()
  holes[[0, 4, 5]] = NAN
  group = np.array([0, 0, 0, 1, 2, 2, 2, 2], np.int32)
  return [(rewards, group, 3), (holes, group, 3), (holes, group, 5)]


# By hand.


def test_group_relative_by_hand():
  rewards = jnp.array([1.0, 0.0, 0.0, 1.0, 5.0, 1.0, NAN, 3.0])
  group = jnp.array([0, 0, 0, 0, 1, 2, 2, 2])
  # Group 0: mean 1/2; squares sum to 1, so std (n - 1) = sqrt(1/3).
  # Group 1: alone. Group 2: 1 and 3, mean 2, std sqrt(2).
  plain = group_relative_advantages(rewards, group, 3, scale_by_std=False)
  np.testing.assert_allclose(plain, [0.5, -0.5, -0.5, 0.5, 0, -1, 0, 1])
  scaled = group_relative_advantages(
    rewards, group, 3, scale_by_std=True, epsilon=1e-6, ddof=1
  )
  a, b = 0.5 * np.sqrt(3.0), 1 / np.sqrt(2.0)
  np.testing.assert_allclose(scaled, [a, -a, -a, a, 0, -b, 0, b], rtol=1e-5)
  population = group_relative_advantages(
    rewards, group, 3, scale_by_std=True, epsilon=1e-6, ddof=0
  )
  np.testing.assert_allclose(population, [1, -1, -1, 1, 0, -1, 0, 1], rtol=1e-5)


def test_leave_one_out_by_hand():
  rewards = jnp.array([1.0, 0.0, 5.0, 7.0, NAN])
  group = jnp.array([0, 0, 0, 1, 1])
  # 1 - 5/2, 0 - 6/2, 5 - 1/2; the fourth is alone beside a missing one.
  result = leave_one_out_advantages(rewards, group, 2)
  np.testing.assert_allclose(result, [-1.5, -3.0, 4.5, 0, 0], rtol=1e-6)


def test_token_leave_one_out_by_hand():
  # Response 0: 4 tokens in steps of 1 and 3, returns 6 and 2. Response 1:
  # 2 tokens, return 4, so 2 a token. Baselines of response 0: 2 * 4 and 2 * 3;
  # of response 1: 6 / 4 * 2 = 3.
  returns = jnp.array([[6.0, 2.0, 2.0, 2.0], [4.0, 4.0, 0.0, 0.0]])
  index = jnp.array([[0, 1, 1, 1], [0, 0, -1, -1]])
  result = token_leave_one_out_advantages(
    returns, index >= 0, index, jnp.array([0, 0]), 1
  )
  np.testing.assert_allclose(result, [[-2, -4, -4, -4], [1, 1, 0, 0]])


def test_token_group_relative_by_hand():
  # First returns 6 and 4, mean 5.
  returns = jnp.array([[6.0, 2.0], [4.0, 9.0]])
  mask = jnp.array([[True, True], [True, False]])
  result = token_group_relative_advantages(
    returns, mask, jnp.array([0, 0]), 1, scale_by_std=False
  )
  np.testing.assert_allclose(result, [[1, -3], [-1, 0]])


# Parity, each with a broken variant.


@pytest.mark.parametrize("scale_by_std", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
def test_group_relative_parity(scale_by_std, ddof):
  def fn(rewards, group, num_groups, ddof=ddof):
    return group_relative_advantages(
      rewards,
      group,
      num_groups,
      scale_by_std=scale_by_std,
      epsilon=1e-3,
      ddof=ddof,
    )

  def reference(rewards, group, _):
    return numpy_group_relative(rewards, group, scale_by_std, 1e-3, ddof)

  suite.numpy_parity(fn, reference, inputs())
  if scale_by_std:
    suite.must_fail(
      suite.numpy_parity,
      lambda *args: fn(*args, ddof=1 - ddof),
      reference,
      inputs(),
    )


def test_leave_one_out_parity():
  def reference(rewards, group, _):
    return numpy_leave_one_out(rewards, group)

  suite.numpy_parity(leave_one_out_advantages, reference, inputs())
  suite.must_fail(
    suite.numpy_parity,
    lambda r, g, n: group_relative_advantages(r, g, n, scale_by_std=False),
    reference,
    inputs(),
  )


@pytest.mark.parametrize("seed", range(3))
def test_token_leave_one_out_parity(seed):
  rollout = make.rollout(seed, group_sizes=(4, 1, 3))
  rng = np.random.default_rng(seed)
  by_step = rng.normal(size=(8, 3)).astype(np.float32)
  returns = np.take_along_axis(
    by_step, np.maximum(rollout.step_index, 0), axis=1
  )
  returns[1] = NAN
  args = (returns, rollout.completion_mask, rollout.step_index, rollout.group)
  suite.numpy_parity(
    lambda *a: token_leave_one_out_advantages(*a, 3),
    numpy_token_leave_one_out,
    [args],
  )
  suite.must_fail(
    suite.numpy_parity,
    lambda r, m, s, g: token_group_relative_advantages(
      r, m, g, 3, scale_by_std=False
    ),
    numpy_token_leave_one_out,
    [args],
  )


# Properties.


@pytest.mark.parametrize("value", [0.7, 1e4 / 7])
def test_equal_rewards_give_exactly_zero(value):
  rewards, group = jnp.full((7,), value), jnp.zeros((7,), jnp.int32)
  result = group_relative_advantages(rewards, group, 1, scale_by_std=True)
  assert (result == 0).all()
  assert (leave_one_out_advantages(rewards, group, 1) == 0).all()


def test_centring_on_the_mean_alone_would_not_give_zero():
  # Why `group_centred` takes the least reward off first: the mean of equal rewards
  # can round, and a rounding error over itself plus epsilon is no small number.
  group = jnp.zeros((7,), jnp.int32)
  worst = 0.0
  for value in np.random.default_rng(0).uniform(1, 100, 64):
    rewards = jnp.full((7,), value, jnp.float32)
    mean = segments.group_mean(rewards, group, 1)
    std = segments.group_std(rewards, group, 1, ddof=1)
    naive = (rewards - mean[group]) / (std[group] + 1e-6)
    worst = max(worst, float(jnp.abs(naive).max()))
    result = group_relative_advantages(rewards, group, 1, scale_by_std=True)
    assert (result == 0).all()
  assert worst > 0.1


def test_leave_one_out_is_scaled_group_relative():
  rewards = jnp.asarray(np.random.default_rng(3).normal(size=5), jnp.float32)
  group = jnp.zeros((5,), jnp.int32)
  centred = group_relative_advantages(rewards, group, 1, scale_by_std=False)
  np.testing.assert_allclose(
    leave_one_out_advantages(rewards, group, 1), 5 / 4 * centred, rtol=1e-5
  )


def test_token_estimator_of_equal_returns_is_the_outcome_estimator():
  rollout = make.rollout(4)
  rewards = make.scores(rollout).outcome["reward"]
  mask = rollout.completion_mask
  for scale in (False, True):
    tokens = token_group_relative_advantages(
      jnp.where(mask, rewards[:, None], 0.0),
      mask,
      rollout.group,
      3,
      scale_by_std=scale,
    )
    outcome = group_relative_advantages(
      rewards, rollout.group, 3, scale_by_std=scale
    )
    np.testing.assert_allclose(tokens, outcome[:, None] * mask, atol=1e-5)


def test_metrics_by_hand():
  rollout = make.rollout(group_sizes=(3, 1, 2))
  scores = make.scores(rollout)
  scores.outcome["reward"] = jnp.array([1.0, 1.0, NAN, 0.0, 0.0, 1.0])
  out, _ = leave_one_out().apply(scores, (), make.context(rollout, names=()))
  expected = {
    "advantage/reward_mean": 0.6,
    "advantage/reward_std": np.sqrt(0.24),
    "advantage/zero_variance_groups": 0.5,
    "advantage/groups_of_one": 1.0,
    "advantage/missing": 1 / 6,
  }
  assert set(out.metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(out.metrics[name], value, rtol=1e-6)
  np.testing.assert_array_equal(out.weights, [1, 1, 0, 1, 1, 1])


# Transforms.


@pytest.mark.parametrize(
  "make_transform",
  [
    lambda: group_relative(scale_by_std=True, reward="reward"),
    lambda: group_relative(scale_by_std=False, reward="reward", ddof=0),
    lambda: leave_one_out(reward="reward"),
  ],
)
def test_suite_outcome(make_transform):
  suite.check_transform(make_transform)


@pytest.mark.parametrize("scale_by_std", [False, True])
def test_suite_token_group_relative(scale_by_std):
  suite.check_transform(
    lambda: token_group_relative(scale_by_std=scale_by_std, reward="reward"),
    kinds=("token",),
  )


LENGTHS = {
  "equal_rewards_give_zero": "the baseline is per token: equal returns of"
  " longer responses are worse"
}


def test_suite_token_leave_one_out():
  suite.check_transform(
    lambda: token_leave_one_out(reward="reward"),
    kinds=("token",),
    without=LENGTHS,
  )


def pure_scores(rollout, seed):
  scores = make.scores(rollout, seed, kind="token", names=("process",))
  scores.outcome["correct"] = make.scores(rollout, seed).outcome["reward"]
  return scores


def pure():
  return token_leave_one_out(
    reward="process", outcome="correct", outcome_weight=0.5
  )


def test_suite_token_leave_one_out_with_outcome():
  suite.check_transform(
    pure,
    make_scores=pure_scores,
    without={
      **LENGTHS,
      "missing_stays_put": "a missing outcome keeps the response, tested below",
    },
  )


def test_missing_outcome_adds_nothing():
  case = suite.case(pure(), make_scores=pure_scores)
  full = case.run()
  outcome = jnp.full((6,), NAN).at[0].set(1.0)
  scores = dataclasses.replace(case.scores, outcome={"correct": outcome})
  without = case.run(scores)
  alone = suite.case(token_leave_one_out(), kind="token")
  process = alone.run(
    dataclasses.replace(
      alone.scores, token={"reward": case.scores.token["process"]}
    )
  )
  # One known outcome in a group has nothing to be compared with: still 0.
  np.testing.assert_allclose(without.advantages, process.advantages)
  np.testing.assert_array_equal(without.weights, 1.0)
  verified = 0.5 * leave_one_out_advantages(
    case.scores.outcome["correct"], case.context.rollout.group, 3
  )
  np.testing.assert_allclose(
    full.advantages,
    process.advantages
    + verified[:, None] * case.context.rollout.completion_mask,
    atol=1e-6,
  )
  assert (jnp.abs(verified) > 0.1).any()


def test_missing_process_reward_drops_the_response():
  case = suite.case(pure(), make_scores=pure_scores)
  returns = case.scores.token["process"].at[1].set(NAN)
  out = case.run(dataclasses.replace(case.scores, token={"process": returns}))
  assert (out.advantages[1] == 0).all()
  np.testing.assert_array_equal(out.weights, [1, 0, 1, 1, 1, 1])


def test_suite_chain_from_step_rewards_to_advantages():
  suite.check_transform(
    lambda: chain(
      min_form(temperature=0.1, reward="reward"),
      token_leave_one_out(reward="reward"),
    ),
    kinds=("step",),
    without=LENGTHS,
  )


@pytest.mark.parametrize(
  "make_transform",
  [
    lambda: group_relative(scale_by_std=True),
    leave_one_out,
    lambda: token_group_relative(scale_by_std=True),
    token_leave_one_out,
  ],
)
def test_groups_of_one_throughout_are_refused(make_transform):
  case = suite.case(make_transform(), group_sizes=(1, 1, 1))
  with pytest.raises(ValueError, match="3 responses to 3 prompts"):
    case.run()


def test_epsilon_is_checked():
  with pytest.raises(ValueError, match=r"epsilon=0\.0"):
    group_relative(scale_by_std=True, epsilon=0.0)


def test_token_returns_are_refused_where_outcomes_are_needed():
  case = suite.case(leave_one_out(), kind="token")
  with pytest.raises(ValueError, match=r"outcome \[B\] is needed"):
    case.run()
