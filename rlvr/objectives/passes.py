"""Losses on passes of their own: the reference answer's, the self-reward's.

Both are losses of a response, not of a token: `Term.per_response`, averaged
over the responses that count whatever the reduction of the token losses is.
They read log-probs with gradient from `LossInputs.extra` (`Term.passes`) and
named outcome rewards of the chain from `LossInputs.rewards` (`Term.rewards`).

Catalogue: the second gradient term of verifree and of log_prob_reward, the
auxiliary loss of laser.
"""

import jax
import jax.numpy as jnp

from rlvr.objectives.terms import LossInputs, Term
from rlvr.types import Array


def reference_likelihood_loss(
  logprobs: Array, mask: Array, coefficients: Array
) -> Array:
  """Returns the loss of the reference answer's likelihood: −R log π(y*|x,z).

      ∇ E_z[π(y*|x,z)] = E_z[R ∇ log π(z|x) + R ∇ log π(y*|x,z)], R = π(y*|x,z)

  is the gradient of VeriFree: this is its second term, the policy gradient its
  first. With R = log π(y*|x,z) in the first the second has coefficient 1.

  Source: VeriFree, https://arxiv.org/abs/2505.21493, its gradient estimator,
  and the authors' code (`sft_coef_source = reward`); coefficient 1:
  https://arxiv.org/abs/2602.03979, eq. 4.

  Args:
    logprobs: float32 [B, R], nats, of the reference answer; with gradient.
    mask: bool [B, R], true on the reference answer.
    coefficients: float32 [B], R; no gradient; NaN counts as 0.

  Returns:
    float32 [B].
  """
  coefficients = jax.lax.stop_gradient(coefficients)
  coefficients = jnp.where(jnp.isnan(coefficients), 0.0, coefficients)
  return -coefficients * jnp.where(mask, logprobs, 0.0).sum(-1)


def last_token_loss(
  logprobs: Array,
  rewards: Array,
  weights: Array,
  *,
  beta: float,
  reference: float,
) -> Array:
  """Returns LaSeR's loss: w (β (log π(z_c|x,y) − c_ref) − r)².

  Source: LaSeR, https://arxiv.org/abs/2510.14943, eq. 14.

  Args:
    logprobs: float32 [B], nats, log π(z_c|x,y); with gradient.
    rewards: float32 [B], r, the verifier's; no gradient; a missing one (NaN)
      gives no loss.
    weights: float32 [B], w, see `rlvr.rewards.intrinsic.class_weights`; no
      gradient; NaN counts as 0.
    beta: β_v, reward per nat.
    reference: c_ref, nats.

  Returns:
    float32 [B].
  """
  here = ~(jnp.isnan(rewards) | jnp.isnan(weights))
  weights = jax.lax.stop_gradient(jnp.where(here, weights, 0.0))
  rewards = jax.lax.stop_gradient(jnp.where(here, rewards, 0.0))
  return weights * (beta * (logprobs - reference) - rewards) ** 2


def reference_likelihood(
  *, coefficient: str | None, weight: float = 1.0
) -> Term:
  """Returns the term −R log π(y*|x,z), see `reference_likelihood_loss`.

  Args:
    coefficient: name of the outcome reward that is R, as the chain leaves it;
      None means 1.
    weight: of the term; 1 makes the gradient that of the expected reward.
  """

  def loss(inputs: LossInputs):
    logprobs = inputs.extra["answer_logprobs"]
    mask = inputs.extra["answer_mask"]
    scale = (
      jnp.ones(logprobs.shape[:1])
      if coefficient is None
      else inputs.rewards[coefficient]
    )
    value = reference_likelihood_loss(logprobs, mask, scale)
    total = jnp.where(mask, logprobs, 0.0).sum(-1)
    return value, {"policy/reference_logprob": jax.lax.stop_gradient(total)}

  return Term(
    "reference_likelihood",
    loss,
    weight=weight,
    params={"coefficient": coefficient},
    passes=frozenset({"answer_logprobs", "answer_mask"}),
    rewards=frozenset() if coefficient is None else frozenset({coefficient}),
    per_response=True,
  )


def last_token_self_reward(
  *,
  reference: float,
  reward: str = "correct",
  class_weight: str | None = "class_weight",
  beta: float = 0.1,
  weight: float = 0.1,
) -> Term:
  """Returns the term of LaSeR's auxiliary loss, see `last_token_loss`.

  Args:
    reference: c_ref, nats; the same as of `rewards.intrinsic.last_token`.
    reward: name of the verifier's outcome reward.
    class_weight: name of the outcome reward that `class_balance` leaves; None
      weighs all alike, truncated responses too.
    beta: β_v; 0.1 in the paper; the same as of `last_token`.
    weight: α; 0.1 in the authors' scripts.
  """

  def loss(inputs: LossInputs):
    logprobs = inputs.extra["last_token_logprobs"]
    rewards = inputs.rewards[reward]
    weights = (
      jnp.ones_like(logprobs)
      if class_weight is None
      else inputs.rewards[class_weight]
    )
    value = last_token_loss(
      logprobs, rewards, weights, beta=beta, reference=reference
    )
    says = beta * (logprobs - reference) > 0.5
    agrees = jnp.where(jnp.isnan(rewards), 0.0, says == (rewards > 0.5))
    return value, {"laser/agreement": jax.lax.stop_gradient(agrees)}

  names = {reward} if class_weight is None else {reward, class_weight}
  return Term(
    "last_token_self_reward",
    loss,
    weight=weight,
    params={
      "reference": reference,
      "reward": reward,
      "class_weight": class_weight,
      "beta": beta,
    },
    passes=frozenset({"last_token_logprobs"}),
    rewards=frozenset(names),
    per_response=True,
  )
