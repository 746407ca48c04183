"""Sampling: prompts and parameters to a `Rollout`."""

from rlvr.sampling.sampler import Sampling, sample

__all__ = ["Sampling", "sample"]
