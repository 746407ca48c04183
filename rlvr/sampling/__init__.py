"""Sampling: prompts and parameters to a `Rollout`."""

from rlvr.models.precision import AS_TRAINED, Precision
from rlvr.sampling.sampler import Sampling, sample

__all__ = ["AS_TRAINED", "Precision", "Sampling", "sample"]
