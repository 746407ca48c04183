"""Figures of an evaluation against hand-computed values and plain loops."""

import itertools
import math

import numpy as np
import pytest

from rlvr.evaluation.metrics import (
  Interval,
  mean_interval,
  pass_at_k,
  ratio_interval,
  wilson_interval,
)


def _pass_by_enumeration(n, c, k):
  """Share of the k-subsets of n responses (c correct) that hold a correct one."""
  hits = [
    any(i < c for i in subset) for subset in itertools.combinations(range(n), k)
  ]
  return sum(hits) / len(hits)


def test_pass_at_k_by_hand():
  # n=5, c=2, k=2: 1 - C(3,2)/C(5,2) = 1 - 3/10 = 0.7.
  assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
  # n=4, c=1, k=1: 1/4.
  assert pass_at_k(4, 1, 1) == pytest.approx(0.25)


def test_pass_at_k_is_the_share_of_subsets():
  n = 6
  for k in (1, 2, 4, 6):
    got = pass_at_k(np.full(n + 1, n), np.arange(n + 1), k)
    want = [_pass_by_enumeration(n, c, k) for c in range(n + 1)]
    np.testing.assert_allclose(got, want, atol=1e-12)
    # Negative control: the biased plug-in 1 - (1 - c/n)^k is another number.
    if k > 1:
      biased = 1 - (1 - np.arange(n + 1) / n) ** k
      assert np.abs(biased - want).max() > 1e-2


def test_pass_at_k_does_not_overflow():
  # C(10000, 1000) does not fit a float; n-c < k makes the answer exactly 1.
  assert pass_at_k(10_000, 9_001, 1_000) == 1.0
  got = pass_at_k(10_000, 10, 1_000)
  # 1 - prod over the c factors of (1 - k/i), i = n-c+1..n: the paper's form.
  want = 1 - math.prod(1 - 1_000 / i for i in range(9_991, 10_001))
  assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
  "n, c, k", [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)]
)
def test_pass_at_k_refuses(n, c, k):
  with pytest.raises(ValueError, match="pass_at_k"):
    pass_at_k(n, c, k)


def test_wilson_by_hand():
  # p=0.5, n=100, z=1.96: z²=3.8416; centre (0.5+0.019208)/1.038416 = 0.5;
  # half 1.96·sqrt(0.0025+0.00009604)/1.038416 = 0.0961686.
  low, high = wilson_interval(50, 100)
  assert low == pytest.approx(0.5 - 0.0961686, abs=1e-4)
  assert high == pytest.approx(0.5 + 0.0961686, abs=1e-4)


@pytest.mark.parametrize("successes, n", [(1, 20), (3, 20), (199, 200)])
def test_wilson_ends_solve_the_score_equation(successes, n):
  """Each end p satisfies |p̂ - p| = z·sqrt(p(1-p)/n): Wilson's definition."""
  z = 1.959963984540054
  p_hat = successes / n
  ends = wilson_interval(successes, n)
  for p in ends:
    assert abs(p_hat - p) == pytest.approx(
      z * math.sqrt(p * (1 - p) / n), abs=1e-12
    )
  assert 0 <= ends[0] <= p_hat <= ends[1] <= 1
  # Negative control: the ends of the plain normal interval don't.
  se = math.sqrt(p_hat * (1 - p_hat) / n)
  wald = p_hat + z * se
  score = z * math.sqrt(max(wald * (1 - wald), 0) / n)
  assert abs(abs(p_hat - wald) - score) > 1e-3


def test_wilson_edges():
  assert wilson_interval(0, 0) == (0.0, 1.0)
  assert wilson_interval(0, 10)[0] == 0.0
  assert wilson_interval(10, 10)[1] == 1.0
  with pytest.raises(ValueError, match="successes=3"):
    wilson_interval(3, 2)
  with pytest.raises(ValueError, match="confidence=95"):
    wilson_interval(1, 2, 95)


def test_mean_interval_by_hand():
  # mean 2, s = 1, n = 3, t(0.975, 2) = 4.302653: half = 4.302653/sqrt(3).
  got = mean_interval([1.0, 2.0, 3.0])
  assert got.mean == 2.0
  assert got.high - got.mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
  assert got.mean - got.low == pytest.approx(got.high - got.mean)


def test_mean_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(0)
  runs = rng.normal(size=(1000, 4))
  covered = [i.low <= 0 <= i.high for i in map(mean_interval, runs)]
  assert 0.93 < np.mean(covered) < 0.97  # se = 0.007
  # Negative control: with z instead of t, four seeds cover far less.
  half = 1.96 * runs.std(axis=1, ddof=1) / 2
  assert np.mean(np.abs(runs.mean(axis=1)) <= half) < 0.93


@pytest.mark.parametrize("values", [[1.0], [], [1.0, math.nan]])
def test_mean_interval_refuses(values):
  with pytest.raises(ValueError, match="mean_interval"):
    mean_interval(values)


def test_ratio_interval_by_hand():
  # y = (3, 5), n = (1, 3): r = 8/4 = 2, residuals 3 - 2 = 1 and 5 - 6 = -1;
  # 2/1 · (1 + 1) = 4, so the half width is 1.959964 · 2 / 4.
  found = ratio_interval([3.0, 5.0], [1, 3])
  assert found.mean == 2.0
  assert found.high - 2.0 == pytest.approx(0.979982, abs=1e-6)
  assert 2.0 - found.low == pytest.approx(0.979982, abs=1e-6)
  # Of groups of one size it is the mean's, with z in place of t.
  x = np.random.default_rng(0).normal(size=50)
  found = ratio_interval(3 * x, np.full(50, 3))
  half = 1.959964 * x.std(ddof=1) / math.sqrt(50)
  assert found.high - found.low == pytest.approx(2 * half, rel=1e-6)


def test_ratio_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(0)

  def coverage(interval):
    hits = 0
    for _ in range(400):
      n = rng.integers(5, 40, size=60)
      # Tokens of a text are alike: one shift for all of them.
      y = n * (2.0 + 0.5 * rng.normal(size=60)) + rng.normal(size=60)
      found = interval(y, n)
      hits += found.low <= 2.0 <= found.high
    return hits / 400

  assert 0.92 <= coverage(ratio_interval) <= 0.98

  def of_tokens(y, n):
    """As if each token were drawn by itself."""
    rate = y.sum() / n.sum()
    half = 1.96 * 0.5 / math.sqrt(n.sum())
    return Interval(rate, rate - half, rate + half)

  assert coverage(of_tokens) < 0.7


@pytest.mark.parametrize(
  ("totals", "counts", "message"),
  [
    ([1.0], [1], "at least 2 groups"),
    ([1.0, 2.0], [1], r"\(2,\) and counts \(1,\)"),
    ([1.0, 2.0], [1, 0], "first bad group is 1"),
    ([math.nan, 2.0], [1, 1], "first bad group is 0"),
  ],
)
def test_ratio_interval_refuses(totals, counts, message):
  with pytest.raises(ValueError, match=message):
    ratio_interval(totals, counts)
