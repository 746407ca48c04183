"""Three estimators of KL(π ‖ π_ref) from samples of π, in loss or reward.

Source: Schulman 2020, http://joschu.net/blog/kl-approx.html. With
x = log π_ref - log π at a token sampled from π:

    k1 = -x            unbiased value, high variance
    k2 = x²/2          biased value, low variance
    k3 = eˣ - 1 - x    unbiased value, low variance, never negative

As a loss, the gradients differ from the values: that of k1 averages to 0, and
k2's is the unbiased gradient of the KL divergence, on-policy (Tang & Munos
2025, https://arxiv.org/abs/2506.09477).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvr.objectives.terms import LossInputs, Term
from rlvr.rewards.algebra import Transform, find_reward, put_reward, stateless
from rlvr.types import Array


def k1_kl(logprobs: Array, ref_logprobs: Array) -> Array:
  """Returns log π - log π_ref at each token, nats.

  Args:
    logprobs: float32 [B, T].
    ref_logprobs: float32 [B, T].
  """
  return logprobs - ref_logprobs


def k2_kl(logprobs: Array, ref_logprobs: Array) -> Array:
  """Returns (log π - log π_ref)²/2 at each token, nats².

  Args:
    logprobs: float32 [B, T].
    ref_logprobs: float32 [B, T].
  """
  return 0.5 * (logprobs - ref_logprobs) ** 2


def k3_kl(logprobs: Array, ref_logprobs: Array) -> Array:
  """Returns π_ref/π - 1 - log(π_ref/π) at each token, nats.

  Args:
    logprobs: float32 [B, T].
    ref_logprobs: float32 [B, T].
  """
  x = ref_logprobs - logprobs
  return jnp.expm1(x) - x


_ESTIMATORS: dict[str, Callable[[Array, Array], Array]] = {
  "k1": k1_kl,
  "k2": k2_kl,
  "k3": k3_kl,
}


def _estimator(name: str, who: str) -> Callable[[Array, Array], Array]:
  if name not in _ESTIMATORS:
    raise ValueError(
      f"{who}: estimator={name!r}; give one of {sorted(_ESTIMATORS)}"
    )
  return _ESTIMATORS[name]


def kl_penalty(*, weight: float, estimator: str) -> Term:
  """Returns the term weight · KL(π ‖ π_ref) in the loss.

  Args:
    weight: β.
    estimator: "k1", "k2" or "k3"; GRPO has k3.

  Raises:
    ValueError: unknown estimator.
  """
  kl = _estimator(estimator, "kl_penalty")

  def loss(inputs: LossInputs):
    reference = jax.lax.stop_gradient(inputs.probes["ref_logprobs"])
    return kl(inputs.logprobs, reference), {}

  return Term(
    "kl",
    loss,
    requires=frozenset({"ref_logprobs"}),
    weight=weight,
    params={"estimator": estimator},
  )


def kl_in_reward(
  *, weight: float, estimator: str, reward: str | None = None
) -> Transform:
  """Subtracts weight · KL from an outcome or token reward.

  An outcome loses the sum over the response's tokens, a token reward each
  token's own estimate. Gradients don't flow through it.

  Args:
    weight: β.
    estimator: "k1", "k2" or "k3"; RLHF practice has k1.
    reward: which reward; None means the only one.

  Raises:
    ValueError: unknown estimator, or a step reward (at trace time).
  """
  kl = _estimator(estimator, "kl_in_reward")

  def apply(scores, context):
    kind, name, values = find_reward(
      scores, reward, ("outcome", "token"), who="kl_in_reward"
    )
    per_token = jnp.where(
      context.rollout.completion_mask,
      kl(context.probes["logprobs"], context.probes["ref_logprobs"]),
      0.0,
    )
    per_token = jax.lax.stop_gradient(per_token)
    penalty = per_token.sum(-1) if kind == "outcome" else per_token
    return put_reward(scores, kind, name, values - weight * penalty)

  return stateless(
    "kl_in_reward",
    apply,
    requires=("logprobs", "ref_logprobs"),
    params={"weight": weight, "estimator": estimator, "reward": reward},
  )
