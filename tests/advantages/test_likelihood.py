import jax.numpy as jnp
import numpy as np

from rlvr.advantages.likelihood import (
  jepo,
  jepo_advantages,
  jepo_coefficients,
)
from tests import make, suite

LOG, NAN = np.log, np.nan
GROUP = np.array([0, 0, 0, 1, 2, 2], np.int32)
VALUES = np.array([LOG(0.1), LOG(0.2), LOG(0.6), -1.0, LOG(0.5), NAN], "f")


def test_jepo_by_hand():
  # Group 0: mean 0.3. Without 0.1: 0.4; without 0.2: 0.35; without 0.6: 0.15.
  # Alone, or the only one that is there: 0.
  result = jepo_advantages(jnp.asarray(VALUES), GROUP)
  expected = [LOG(0.3 / 0.4), LOG(0.3 / 0.35), LOG(0.3 / 0.15), 0, 0, 0]
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  share = jepo_coefficients(jnp.asarray(VALUES), GROUP)
  np.testing.assert_allclose(share, [1 / 9, 2 / 9, 6 / 9, 1, 1, NAN], rtol=1e-5)


def test_jepo_of_improbable_answers():
  # π = e^-200 and e^-210 are 0 in float32, their logarithms are not.
  values = jnp.asarray([-200.0, -210.0])
  result = jepo_advantages(values, jnp.zeros(2, jnp.int32))
  # log (1/2)(1 + e^-10) - 200 + 210, and log(1/2)(1 + e^-10)
  half = LOG(0.5 * (1 + np.exp(-10.0)))
  np.testing.assert_allclose(result, [10 + half, half], rtol=1e-5)


def numpy_jepo(values, group, leave_out=True):
  result = np.zeros(len(values))
  for i in range(len(values)):
    own = [j for j in range(len(values)) if group[j] == group[i]]
    own = [j for j in own if not np.isnan(values[j])]
    rest = [j for j in own if j != i or not leave_out]
    if i in own and [j for j in own if j != i]:
      p = np.exp(values.astype(np.float64))
      result[i] = LOG(p[own].mean()) - LOG(p[rest].mean())
  return result


def test_jepo_parity():
  rng = np.random.default_rng(0)
  group = np.array([0, 0, 0, 0, 1, 1, 2], np.int32)
  values = -rng.exponential(size=7).astype(np.float32)
  values[2] = NAN
  suite.numpy_parity(jepo_advantages, numpy_jepo, [(values, group)])
  suite.must_fail(
    suite.numpy_parity,
    jepo_advantages,
    lambda *a: numpy_jepo(*a, leave_out=False),
    [(values, group)],
  )


def test_coefficients_are_left_for_the_objective():
  rollout = make.rollout()
  transform = jepo(coefficient="share")
  out, _ = transform.apply(
    make.scores(rollout), (), make.context(rollout, names=())
  )
  assert set(out.outcome) == {"reward", "share"}
  sums = np.bincount(rollout.group, weights=out.outcome["share"])
  np.testing.assert_allclose(sums, 1.0, rtol=1e-5)


def test_suite():
  suite.check_transform(lambda: jepo(coefficient="share"))
