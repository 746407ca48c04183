"""How far an estimator's gradient is from another's in expectation.

Batches give noisy gradients, and the norm of a mean of noise is no bias. Here
the squared norm of the expected difference is estimated without bias, from
pairs of different batches, and its interval by leaving batches out.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlvr.evaluation.metrics import Interval, mean_interval


class GradientBias(NamedTuple):
  """A gradient estimator beside one that is known to be unbiased.

  bias: ‖E[g − g*]‖ / √E[‖g*‖²]: in units of the gradient of a batch, as a step
    has it; 0 where noise hides it.
  low, high: ends of its 95% interval, of at least 0.
  signal: ‖E[g*]‖ in the same units.
  error: of one batch, ‖g − g*‖ / ‖g*‖: noise and bias.
  cosine: of one batch, between g and g*.
  """

  bias: float
  low: float
  high: float
  signal: float
  error: Interval
  cosine: Interval


def squared_norm(vectors: ArrayLike) -> float:
  """Returns an unbiased estimate of ‖E[v]‖² from independent v.

      (‖Σ v‖² − Σ ‖v‖²) / (n (n − 1)),   the mean of v_i · v_j over i ≠ j

  Args:
    vectors: float [n, m], 2 or more.

  Raises:
    ValueError: fewer than 2.
  """
  v = np.asarray(vectors, np.float64)
  n = len(v)
  if n < 2:
    raise ValueError(f"squared_norm: {n} vectors; give 2 or more")
  return float(((v.sum(0) ** 2).sum() - (v**2).sum()) / (n * (n - 1)))


def gradient_bias(found: ArrayLike, unbiased: ArrayLike) -> GradientBias:
  """Returns how far gradients are from unbiased ones of the same batches.

  The interval is the jackknife's (Efron and Stein 1981,
  https://doi.org/10.1214/aos/1176345462) of the squared ratio, ± 2 standard
  errors.

  Args:
    found: float [n, m], a gradient of each batch, n of 3 or more.
    unbiased: float [n, m], from the same batches.

  Raises:
    ValueError: fewer than 3 batches, or shapes that differ.
  """
  g, best = np.asarray(found, np.float64), np.asarray(unbiased, np.float64)
  if g.shape != best.shape or len(g) < 3:
    raise ValueError(
      f"gradient_bias: shapes {g.shape} and {best.shape}: give the same 3 or"
      " more batches to both"
    )
  d = g - best

  def ratio(keep, v=d):
    return squared_norm(v[keep]) / (best[keep] ** 2).sum(1).mean()

  n = len(d)
  every = np.arange(n)
  whole = ratio(every)
  left_out = np.array([ratio(every != i) for i in every])
  spread = (n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()
  ends = whole + np.array([-2.0, 2.0]) * spread**0.5
  squares = [whole, *ends, ratio(every, best)]
  norms = np.linalg.norm(g, axis=1), np.linalg.norm(best, axis=1)
  bias, low, high, signal = np.sqrt(np.maximum(squares, 0.0)).tolist()
  return GradientBias(
    bias,
    low,
    high,
    signal,
    mean_interval(np.linalg.norm(d, axis=1) / norms[1]),
    mean_interval((g * best).sum(1) / (norms[0] * norms[1])),
  )
