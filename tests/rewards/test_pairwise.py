import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.advantages import group_relative_advantages
from rlvr.rewards.pairwise import (
  bradley_terry_labels,
  bradley_terry_probability,
  bradley_terry_win_rate,
  compared,
  non_dominated,
  pareto_front,
  parrot_pareto,
  win_rate,
  win_rates,
)
from tests import make, suite

NAN = np.nan
GROUP = np.array([0, 0, 0, 1, 2, 2])


def two(rollout, seed):
  return make.scores(rollout, seed, names=("a", "b"))


def random_rewards(seed, shape, levels=4):
  """Few levels, so that ties and equal vectors occur, and missing ones."""
  rng = np.random.default_rng(seed)
  values = rng.integers(0, levels, shape).astype(np.float32)
  return np.where(rng.random(shape) < 0.15, np.float32(NAN), values)


def numpy_win_rates(preferences, group):
  result = np.full(group.shape, 0.5)
  for i in range(group.size):
    others = [
      preferences[i, j]
      for j in range(group.size)
      if j != i and group[j] == group[i] and not np.isnan(preferences[i, j])
    ]
    if others:
      result[i] = np.mean(others)
  return result


def dominates(one, other, missing):
  """Whether vector `one` dominates `other`, by the definition."""
  if missing == "propagate" and (np.isnan(one).any() or np.isnan(other).any()):
    return False
  pairs = [
    (x, y)
    for x, y in zip(one, other, strict=True)
    if not np.isnan(x) and not np.isnan(y)
  ]
  return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def numpy_front(rewards, group, missing):
  result = np.zeros(group.shape, bool)
  for i in range(group.size):
    own = rewards[:, i]
    absent = np.isnan(own)
    if absent.any() if missing == "propagate" else absent.all():
      continue
    result[i] = not any(
      dominates(rewards[:, j], own, missing)
      for j in range(group.size)
      if j != i and group[j] == group[i]
    )
  return result


def test_win_rates_by_hand():
  # Group 0: 3, 1, 1: wins 2/2; a tie and a defeat (1/2 + 0)/2; the same.
  # Group 1 alone; group 2: one reward is missing, the other meets nobody.
  rewards = jnp.array([3.0, 1.0, 1.0, 8.0, NAN, 4.0])
  result = win_rates(compared(rewards), jnp.asarray(GROUP))
  np.testing.assert_allclose(result, [1.0, 0.25, 0.25, 0.5, 0.5, 0.5])
  out = suite.case(
    win_rate(),
    make_scores=lambda r, s: make.scores(r, s, names=("reward",)),
  )
  out.scores.outcome["reward"] = rewards
  np.testing.assert_allclose(
    out.run(eager=True).outcome["reward"], [1.0, 0.25, 0.25, 0.5, NAN, 0.5]
  )


def test_win_rates_parity():
  inputs = []
  for seed in range(2):
    rng = np.random.default_rng(seed)
    preferences = rng.random((6, 6)).astype(np.float32)
    preferences[rng.random((6, 6)) < 0.3] = NAN
    inputs.append((preferences, GROUP))
  suite.numpy_parity(win_rates, numpy_win_rates, inputs)
  suite.must_fail(
    suite.numpy_parity,
    lambda p, g: win_rates(p, jnp.zeros_like(g)),
    numpy_win_rates,
    inputs,
  )


def test_win_rates_average_to_a_half_and_forget_the_scale():
  rng = np.random.default_rng(0)
  rewards = jnp.asarray(rng.normal(size=6), jnp.float32)
  group = jnp.asarray(GROUP)
  rates = win_rates(compared(rewards), group)
  for g in range(3):
    np.testing.assert_allclose(rates[g == GROUP].mean(), 0.5, atol=1e-6)
  # The point of it: rewards that hardly differ are not blown up to outliers.
  close = jnp.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5001])
  one = jnp.zeros(6, jnp.int32)
  point = group_relative_advantages(close, one, 1, scale_by_std=True)
  shifted = win_rates(compared(2.0 * close - 7.0), one)
  np.testing.assert_allclose(shifted, win_rates(compared(close), one))
  wins = group_relative_advantages(
    win_rates(compared(close), one), one, 1, scale_by_std=False
  )
  assert point.max() > 1.5 and wins.max() <= 0.5


def test_bradley_terry_by_hand():
  # σ(log 3) = 3/4
  first, second = jnp.log(jnp.array([3.0, 1.0])), jnp.zeros(2)
  result = bradley_terry_probability(first, second)
  np.testing.assert_allclose(result, [0.75, 0.5], rtol=1e-6)


def test_labels_are_drawn_with_that_probability():
  first = jnp.full((4000,), jnp.log(3.0)).at[0].set(NAN)
  draw = jax.jit(bradley_terry_labels)
  labels = draw(jax.random.key(0), first, jnp.zeros(4000))
  assert np.isnan(labels[0])
  assert set(np.unique(labels[1:])) == {0.0, 1.0}
  # Five deviations of the mean: 5 sqrt(0.75 * 0.25 / 4000) = 0.034
  assert abs(labels[1:].mean() - 0.75) < 0.034
  swapped = draw(jax.random.key(0), jnp.zeros(4000), first)
  assert abs(swapped[1:].mean() - 0.25) < 0.034
  assert (
    labels[1:] != draw(jax.random.key(1), first, jnp.zeros(4000))[1:]
  ).any()


def test_bradley_terry_win_rate_tends_to_the_win_rate():
  case = suite.case(bradley_terry_win_rate(temperature=1e-4))
  hard = suite.case(win_rate())
  np.testing.assert_allclose(
    case.run(eager=True).outcome["reward"],
    hard.run(eager=True).outcome["reward"],
    atol=1e-5,
  )
  # By hand at T = 2: two responses, σ((log 9 − 0) / 2) = σ(log 3) = 3/4.
  soft = suite.case(bradley_terry_win_rate(temperature=2.0), group_sizes=(2,))
  soft.scores.outcome["reward"] = jnp.array([np.log(9.0), 0.0], jnp.float32)
  np.testing.assert_allclose(
    soft.run(eager=True).outcome["reward"], [0.75, 0.25], rtol=1e-5
  )


def test_front_by_hand():
  # (1, 3), (2, 2), (1, 2), (2, 2), (0, 9) and (2, 0): the third is dominated by
  # all before it, the last by (2, 2); equal vectors stay both.
  rewards = jnp.array([[1, 2, 1, 2, 0, 2], [3, 2, 2, 2, 9, 0]], jnp.float32)
  one = jnp.zeros(6, jnp.int32)
  result = non_dominated(rewards, one, missing="propagate")
  np.testing.assert_array_equal(result, [1, 1, 0, 1, 1, 0])


@pytest.mark.parametrize("missing", ["propagate", "skip"])
@pytest.mark.parametrize("num_rewards", [1, 2, 4])
def test_front_is_exactly_the_non_dominated_set(num_rewards, missing):
  groups = (np.repeat([0, 1, 3], [7, 1, 6]), np.zeros(14, int))
  inputs = [
    (random_rewards(seed, (num_rewards, 14)), group)
    for seed in range(6)
    for group in groups
  ]
  reference = lambda r, g: numpy_front(r, g, missing)  # noqa: E731
  call = jax.jit(lambda r, g: non_dominated(r, g, missing=missing))
  sizes = set()
  for rewards, group in inputs:
    result = np.asarray(call(rewards, group))
    np.testing.assert_array_equal(result, reference(rewards, group))
    sizes.add(int(result.sum()))
  assert len(sizes) > 1
  np.testing.assert_array_equal(
    non_dominated(*map(jnp.asarray, inputs[0]), missing=missing),
    reference(*inputs[0]),
  )

  def strict(r, g):  # broken: equal vectors throw each other out
    worse = (r[:, None, :] >= r[:, :, None]).all(0) & ~jnp.eye(14, dtype=bool)
    return ~(worse & (g[:, None] == g[None, :])).any(1)

  suite.must_fail(suite.numpy_parity, strict, reference, inputs)


def test_only_the_front_gets_positive_advantages():
  for seed in range(3):
    case = suite.case(
      pareto_front(rewards=("a", "b"), across_groups=False),
      make_scores=two,
      group_sizes=(4, 5),
      seed=seed,
    )
    front = case.run(eager=True).outcome["reward"]
    rollout = case.context.rollout
    advantages = np.asarray(
      group_relative_advantages(front, rollout.group, 2, scale_by_std=True)
    )
    assert (advantages[np.asarray(front) == 0] <= 0).all()
    assert set(np.unique(front)) <= {0.0, 1.0}


@pytest.mark.parametrize("across_groups", [True, False])
def test_parrot_drops_exactly_the_dominated(across_groups):
  case = suite.case(
    parrot_pareto(weights={"a": 2.0, "b": 1.0}, across_groups=across_groups),
    make_scores=two,
  )
  given = case.scores.outcome
  out = case.run(eager=True)
  np.testing.assert_allclose(
    out.outcome["reward"], 2 * given["a"] + given["b"], rtol=1e-6
  )
  group = np.zeros(6, int) if across_groups else GROUP
  vectors = np.stack([given["a"], given["b"]])
  expected = numpy_front(vectors, group, "propagate")
  np.testing.assert_array_equal(out.weights, expected)
  np.testing.assert_allclose(
    out.metrics["pareto/front"], expected.mean(), rtol=1e-6
  )
  assert 0 < expected.sum() < 6


def test_a_missing_reward_keeps_its_weight_for_the_estimator():
  case = suite.case(
    parrot_pareto(weights={"a": 1.0, "b": 1.0}, across_groups=False),
    make_scores=two,
  )
  case.scores.outcome["a"] = jnp.array([1.0, NAN, 0.0, 1.0, 1.0, 1.0])
  case.scores.outcome["b"] = jnp.array([1.0, 9.0, 0.0, 1.0, 1.0, 1.0])
  out = case.run(eager=True)
  np.testing.assert_array_equal(out.weights, [1, 1, 0, 1, 1, 1])
  assert np.isnan(out.outcome["reward"][1])


def test_suite_win_rates():
  suite.check_transform(lambda: win_rate(reward="reward", out="wins"))
  suite.check_transform(
    lambda: bradley_terry_win_rate(temperature=0.5, reward="reward")
  )


@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_suite_pareto(missing):
  suite.check_transform(
    lambda: pareto_front(
      rewards=("a", "b"), across_groups=False, missing=missing
    ),
    make_scores=two,
  )
  suite.check_transform(
    lambda: parrot_pareto(
      weights={"a": 1.0, "b": 2.0}, across_groups=True, missing=missing
    ),
    make_scores=two,
    scope="batch",
  )


def test_refusals():
  with pytest.raises(ValueError, match="temperature=0"):
    bradley_terry_win_rate(temperature=0)
  with pytest.raises(ValueError, match=r"weights\['b'\]=-1\.0"):
    parrot_pareto(weights={"a": 1.0, "b": -1.0}, across_groups=True)
  with pytest.raises(ValueError, match="no reward is named"):
    parrot_pareto(weights={}, across_groups=True)
  with pytest.raises(ValueError, match="'drop'"):
    pareto_front(rewards=("a",), across_groups=True, missing="drop")
