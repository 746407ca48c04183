"""Bias of a gradient estimator, told apart from its noise."""

import numpy as np
import pytest

from rlvr.evaluation.gradient_bias import gradient_bias, squared_norm
from tests.compare import must_fail


def test_squared_norm_by_hand():
  # The mean of v_i · v_j over i ≠ j: (2 + 6 + 3) / 3.
  assert squared_norm([[1.0, 0.0], [2.0, 5.0], [3.0, 0.0]]) == pytest.approx(
    11 / 3
  )
  assert squared_norm([[1.0], [-1.0]]) == -1.0
  with pytest.raises(ValueError, match="give 2 or more"):
    squared_norm([[1.0]])


def test_noise_is_no_bias():
  rng = np.random.default_rng(0)
  found = [squared_norm(rng.normal(size=(6, 50)) + 0.1) for _ in range(3000)]
  # ‖E[v]‖² = 50 · 0.01; the standard error of this mean is 0.03.
  assert np.mean(found) == pytest.approx(0.5, abs=0.1)
  # The plain norm of the mean would be 0.5 + 50 / 6.
  plain = [(rng.normal(size=(6, 50)).mean(0) ** 2).sum() for _ in range(300)]
  assert np.mean(plain) > 5


def batches(bias, noise=0.2, n=40, m=200):
  rng = np.random.default_rng(1)
  best = rng.normal(size=(n, m)) + 1.0
  return best + bias + noise * rng.normal(size=(n, m)), best


def test_a_bias_and_none():
  found = gradient_bias(*batches(0.3))
  # ‖E[d]‖² = m · 0.09, E‖g*‖² = m · 2, ‖E[g*]‖² = m.
  assert found.bias == pytest.approx((0.09 / 2) ** 0.5, rel=0.05)
  assert found.low < (0.09 / 2) ** 0.5 < found.high
  assert found.signal == pytest.approx(0.5**0.5, rel=0.05)
  # One batch has the noise besides: (0.09 + 0.04) / 2.
  assert found.error.mean == pytest.approx((0.13 / 2) ** 0.5, rel=0.05)
  assert 0.9 < found.cosine.mean < 1

  def unbiased(found):
    assert found.low == 0.0 and found.bias < 0.03

  none = gradient_bias(*batches(0.0))
  unbiased(none)
  assert none.error.mean > 0.1
  must_fail(unbiased, found)


def test_batches_that_do_not_belong_together():
  with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(4, 2\)"):
    gradient_bias(np.ones((3, 2)), np.ones((4, 2)))
  with pytest.raises(ValueError, match="3 or more batches"):
    gradient_bias(np.ones((2, 2)), np.ones((2, 2)))
