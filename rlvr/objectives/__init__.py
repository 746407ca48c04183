"""Objectives: per-token losses, their reductions, and optimizers."""

from rlvr.objectives.kl import k1_kl, k2_kl, k3_kl, kl_in_reward, kl_penalty
from rlvr.objectives.policy import (
  clipped_policy_gradient,
  clipped_policy_loss,
  entropy_bonus,
  likelihood,
  policy_gradient,
  policy_gradient_loss,
)
from rlvr.objectives.reductions import (
  constant_length,
  sequence_mean,
  token_mean,
)
from rlvr.objectives.terms import LossInputs, Term

__all__ = [
  "LossInputs",
  "Term",
  "clipped_policy_gradient",
  "clipped_policy_loss",
  "constant_length",
  "entropy_bonus",
  "k1_kl",
  "k2_kl",
  "k3_kl",
  "kl_in_reward",
  "kl_penalty",
  "likelihood",
  "policy_gradient",
  "policy_gradient_loss",
  "sequence_mean",
  "token_mean",
]
