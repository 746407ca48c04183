"""Coefficients by hand and in NumPy; what counts for nothing counts nowhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.objectives import constant_length, sequence_mean, token_mean
from tests.compare import must_fail, numpy_parity

close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
# Three, one and two tokens of T = 3.
MASK = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]], bool)
ONES = np.ones((3,), np.float32)
constant_4 = functools.partial(constant_length, length=4)
REDUCTIONS = [token_mean, sequence_mean, constant_4]


@pytest.mark.parametrize(
  ("reduction", "weights", "rows"),
  [
    # Six tokens.
    (token_mean, [1, 1, 1], [1 / 6, 1 / 6, 1 / 6]),
    # 3·1 + 2·2 = 7 weighted tokens; the second response is out.
    (token_mean, [1, 0, 2], [1 / 7, 0, 2 / 7]),
    # A third for each response, over its tokens.
    (sequence_mean, [1, 1, 1], [1 / 9, 1 / 3, 1 / 6]),
    # Weights 1 and 2 of 3: 1/3 over three tokens, 2/3 over two.
    (sequence_mean, [1, 0, 2], [1 / 9, 0, 1 / 3]),
    # 1/(L Σw) = 1/(4·3), whatever the length.
    (constant_4, [1, 1, 1], [1 / 12, 1 / 12, 1 / 12]),
    (constant_4, [1, 0, 2], [1 / 12, 0, 2 / 12]),
  ],
)
def test_coefficients_by_hand(reduction, weights, rows):
  weights = np.array(weights, np.float32)
  close(reduction(MASK, weights), np.array(rows)[:, None] * MASK)


def in_numpy(reduction):
  def loop(mask, weights):
    c = np.zeros(mask.shape)
    tokens = sum(w * m.sum() for w, m in zip(weights, mask, strict=True))
    for b, t in np.argwhere(mask):
      if weights[b] == 0:
        continue
      c[b, t] = weights[b] / {
        "token_mean": tokens,
        "sequence_mean": mask[b].sum() * weights.sum(),
      }.get(getattr(reduction, "__name__", ""), 4 * weights.sum())
    return c

  return loop


@pytest.mark.parity
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_coefficients_are_numpys(reduction):
  rng = np.random.default_rng(0)
  mask = np.arange(6) < rng.integers(0, 7, 5)[:, None]
  weights = np.array([0.5, 0.0, 1.0, 2.0, 1.0], np.float32)
  cases = [(mask, weights), (MASK, ONES), (MASK, 0 * ONES)]
  numpy_parity(reduction, in_numpy(reduction), cases)
  other = REDUCTIONS[REDUCTIONS.index(reduction) - 1]
  must_fail(numpy_parity, reduction, in_numpy(other), cases)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_response_of_weight_0_is_as_if_it_were_not_there(reduction):
  weights = ONES * [1, 0, 1]
  rest = reduction(MASK[[0, 2]], ONES[:2])
  close(np.asarray(reduction(MASK, weights))[[0, 2]], rest)
  # One of weight 1 is there, even with advantage 0.
  must_fail(close, np.asarray(reduction(MASK, ONES))[[0, 2]], rest)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_that_counts_gives_0_and_no_nan(reduction):
  for mask, weights in ((MASK, 0 * ONES), (MASK & False, ONES)):
    c = jax.jit(reduction)(mask, weights)
    assert (c == 0).all()
    assert c.dtype == jnp.float32


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_changes_nothing(reduction):
  padded = np.pad(MASK, ((0, 0), (0, 2)))
  close(reduction(padded, ONES)[:, :3], reduction(MASK, ONES))


def test_means_sum_to_1():
  weights = ONES * [0.5, 2, 1]
  close(token_mean(MASK, weights).sum(), 1)
  close(sequence_mean(MASK, weights).sum(), 1)
  # An empty response has a share that no token takes.
  close(sequence_mean(MASK & [[True], [False], [True]], ONES).sum(), 2 / 3)


def test_length_must_be_positive():
  with pytest.raises(ValueError, match="length=0 must be at least 1"):
    constant_length(MASK, ONES, length=0)
