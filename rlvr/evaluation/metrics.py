"""Figures of an evaluation, with their intervals. NumPy only, on the host."""

import math
import statistics
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
  """A mean with the ends of its interval."""

  mean: float
  low: float
  high: float


def pass_at_k(
  num_samples: ArrayLike, num_correct: ArrayLike, k: int
) -> np.ndarray:
  """Returns the unbiased estimate of the probability that one of k is correct.

      pass@k = 1 − C(n − c, k) / C(n, k) = 1 − ∏_{j<k} (n − c − j) / (n − j)

  Chen et al. 2021, Evaluating Large Language Models Trained on Code, eq. 1,
  https://arxiv.org/abs/2107.03374. Never computed through the binomials, which
  overflow. The paper's own stable form multiplies over c factors; this one
  multiplies over k, which is the same number and lets n and c be arrays. The
  mean over prompts is the caller's.

  Args:
    num_samples: int [...], n, responses per prompt.
    num_correct: int [...], c, how many of them are correct, 0..n.
    k: how many attempts, 1..n.

  Returns:
    float64 [...], probability.

  Raises:
    ValueError: k is not in 1..n, or c is not in 0..n.
  """
  n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
  if k < 1 or (n < k).any():
    raise ValueError(
      f"pass_at_k: k={k} with num_samples from {n.min()}: sample at least k"
      " responses per prompt, or lower k"
    )
  if (c < 0).any() or (c > n).any():
    raise ValueError(
      f"pass_at_k: num_correct from {c.min()} to {c.max()} does not lie in"
      f" 0..num_samples ({n.min()} to {n.max()})"
    )
  j = np.arange(k)
  wrong, drawn = (n - c)[..., None] - j, n[..., None] - j
  # A factor is 0 from the point on where no wrong response is left to draw.
  return 1.0 - np.prod(np.maximum(wrong, 0) / drawn, axis=-1)


def wilson_interval(
  successes: float, n: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Returns the ends of Wilson's score interval for a share.

      (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n)

  Wilson 1927, Probable Inference, the Law of Succession, and Statistical
  Inference, https://doi.org/10.1080/01621459.1927.10502953. Holds near 0 and 1,
  where p̂ ± z·se runs out of range. It covers the sampling of prompts, not of
  seeds: for those see `mean_interval`.

  Args:
    successes: count, 0..n. A fraction is allowed (the mean of several responses
      per prompt, times n); the interval is then too wide rather than too narrow.
    n: number of trials (prompts); 0 gives (0, 1).
    confidence: probability, 0.95 by custom.

  Returns:
    (low, high), probabilities.

  Raises:
    ValueError: successes not in 0..n, or confidence not in (0, 1).
  """
  z = statistics.NormalDist().inv_cdf(0.5 + _checked(confidence) / 2.0)
  if n < 0 or not 0 <= successes <= n:
    raise ValueError(
      f"wilson_interval: successes={successes} does not lie in 0..n={n}"
    )
  if n == 0:
    return 0.0, 1.0
  p = successes / n
  centre = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  # At p = 0 and p = 1 one end is exactly 0 or 1, which rounding would miss.
  low = 0.0 if successes == 0 else (centre - half) / scale
  high = 1.0 if successes == n else (centre + half) / scale
  return low, high


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
  """Returns the mean of values and its Student t interval, as over seeds.

      x̄ ± t_{(1+confidence)/2, n−1} · s/√n,   s with n − 1

  Student 1908, The Probable Error of a Mean,
  https://doi.org/10.1093/biomet/6.1.1.

  Args:
    values: float [n], one figure per independent run; n ≥ 2.
    confidence: probability, 0.95 by custom.

  Raises:
    ValueError: fewer than two values, a value that is not finite (a failed run
      is to be reported, not averaged away), or confidence not in (0, 1).
  """
  x = np.asarray(values, np.float64)
  _checked(confidence)
  if x.ndim != 1 or x.size < 2:
    raise ValueError(
      f"mean_interval: values of shape {x.shape}; an interval over seeds needs"
      " at least two runs"
    )
  if not np.isfinite(x).all():
    raise ValueError(
      f"mean_interval: values {x.tolist()} hold one that is not finite; report"
      " the failed run and take it out yourself"
    )
  from scipy import stats  # slow to import, and only this function needs it

  mean = float(x.mean())
  t = float(stats.t.ppf(0.5 + confidence / 2.0, x.size - 1))
  half = t * float(x.std(ddof=1)) / math.sqrt(x.size)
  return Interval(mean, mean - half, mean + half)


def ratio_interval(
  totals: ArrayLike, counts: ArrayLike, confidence: float = 0.95
) -> Interval:
  """Returns a mean over items of groups that are drawn whole, as over tokens.

      r = Σ yᵢ / Σ nᵢ ± z √(m/(m − 1) · Σ (yᵢ − r·nᵢ)²) / Σ nᵢ

  The ratio estimator of Cochran 1977, Sampling Techniques, 3rd ed., section
  2.11, without its correction for a finite population. The perplexity of texts
  is exp of the mean, low and high for yᵢ their nats and nᵢ their tokens.

  Args:
    totals: float [m], y, the sum over each group's items; m ≥ 2.
    counts: float [m], n, the items of each group, above 0.
    confidence: probability, 0.95 by custom.

  Raises:
    ValueError: fewer than two groups, lengths that differ, a total that is not
      finite, a count that is not above 0, or confidence not in (0, 1).
  """
  y, n = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
  z = statistics.NormalDist().inv_cdf(0.5 + _checked(confidence) / 2.0)
  if y.ndim != 1 or y.shape != n.shape or y.size < 2:
    raise ValueError(
      f"ratio_interval: totals {y.shape} and counts {n.shape}: give one of"
      " each for at least 2 groups"
    )
  if not np.isfinite(y).all() or not (n > 0).all():
    raise ValueError(
      "ratio_interval: totals must be finite and counts above 0; the first bad"
      f" group is {int(np.argmin(np.isfinite(y) & (n > 0)))}"
    )
  r = float(y.sum() / n.sum())
  spread = math.sqrt(y.size / (y.size - 1) * float(((y - r * n) ** 2).sum()))
  half = z * spread / float(n.sum())
  return Interval(r, r - half, r + half)


def _checked(confidence: float) -> float:
  if not 0.0 < confidence < 1.0:
    raise ValueError(
      f"confidence={confidence} must lie between 0 and 1, as 0.95"
    )
  return confidence
