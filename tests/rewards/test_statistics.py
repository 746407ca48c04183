import jax
import jax.numpy as jnp
import numpy as np

from rlvr.rewards import signal_statistics
from rlvr.rewards.statistics import zero_variance_groups
from rlvr.types import Signals
from tests import make

NAN = float("nan")


def test_outcome_by_hand():
  rollout = make.rollout(group_sizes=(3, 1, 2))
  # Groups (1, 1, -), (0), (0, 1): two have two rewards, one of them is equal.
  reward = jnp.array([1.0, 1.0, NAN, 0.0, 0.0, 1.0])
  result = signal_statistics(Signals(outcome={"correct": reward}), rollout)
  # mean 3/5; variance (3 * 0.4^2 + 2 * 0.6^2) / 5 = 1.2 / 5 = 0.24
  expected = {
    "reward/correct/mean": 0.6,
    "reward/correct/std": np.sqrt(0.24),
    "reward/correct/zero_variance_groups": 0.5,
    "reward/correct/missing": 1.0,
  }
  assert set(result) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(result[name], value, rtol=1e-6, err_msg=name)


def test_steps_and_tokens_count_only_inside_the_response():
  rollout = make.rollout(1)
  for kind, mask in (
    ("step", make.step_mask(rollout)),
    ("token", rollout.completion_mask),
  ):
    values = next(iter(getattr(make.scores(rollout, kind=kind), kind).values()))
    expected = np.asarray(values)[np.asarray(mask)]
    for fill in (NAN, 1e6):
      given = Signals(**{kind: {"r": jnp.where(mask, values, fill)}})
      result = jax.jit(signal_statistics)(given, rollout)
      np.testing.assert_allclose(
        result["reward/r/mean"], expected.mean(), rtol=1e-5
      )
      np.testing.assert_allclose(
        result["reward/r/std"], expected.std(), rtol=1e-5
      )
      assert result["reward/r/missing"] == 0
    # Inside the response, a missing value counts for the response.
    given = Signals(**{kind: {"r": values.at[:, 0].set(NAN)}})
    result = signal_statistics(given, rollout)
    assert result["reward/r/missing"] == values.shape[0]


def test_all_missing_is_counted_and_finite():
  rollout = make.rollout()
  given = Signals(outcome={"r": jnp.full((6,), NAN)})
  result = signal_statistics(given, rollout)
  assert result["reward/r/missing"] == 6
  assert all(np.isfinite(v) for v in result.values())


def test_zero_variance_groups():
  # Equal; one alone; one left; different; empty; equal to float rounding of
  # the mean (3 * 0.1 is not 0.3), which a variance of one pass gets wrong.
  values = jnp.array([1, 1, 5, 2, NAN, 1, 2, 0.1, 0.1, 0.1])
  group = jnp.array([0, 0, 1, 2, 2, 3, 3, 5, 5, 5])
  np.testing.assert_array_equal(
    zero_variance_groups(values, group, 6),
    [True, False, False, False, False, True],
  )
