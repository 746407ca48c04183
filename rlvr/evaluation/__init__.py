"""Figures of an evaluation: pass@k and intervals."""

from rlvr.evaluation.metrics import (
  Interval,
  mean_interval,
  pass_at_k,
  ratio_interval,
  wilson_interval,
)

__all__ = [
  "Interval",
  "mean_interval",
  "pass_at_k",
  "ratio_interval",
  "wilson_interval",
]
