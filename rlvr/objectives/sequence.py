"""Policy losses whose ratio is the response's: GSPO, GSPO-token, GMPO, RLOO's.

A response's ratio is a geometric mean over its tokens, so that its size doesn't
grow with the length (but for `response_clipped_loss`, which has the product).
With `sequence_mean` each response weighs the same, as in
the papers; a loss stands on each of its tokens, and the gradient with respect
to one token's log-prob comes from all of them. On policy, with an advantage
that is the same on each token, the gradient is that of GRPO's loss.
"""

import jax
import jax.numpy as jnp

from rlvr.objectives.policy import check_clip, clip_fraction
from rlvr.objectives.terms import LossInputs, Term
from rlvr.rewards.algebra import check_positive
from rlvr.segments import masked_mean
from rlvr.types import Array


def sequence_ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
  """Returns each response's ratio: the geometric mean of its tokens'.

      s_i = (π(y_i|x) / π_old(y_i|x))^(1/|y_i|) = exp(mean_t log ρ_it)

  Source: GSPO, https://arxiv.org/abs/2507.18071, eq. 7.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    mask: bool [B, T], true on the response.

  Returns:
    float32 [B]; 1 for an empty response.
  """
  change = logprobs - jax.lax.stop_gradient(old_logprobs)
  return jnp.exp(masked_mean(change, mask, axis=-1))


def _clipped(ratio, advantages, clip_low, clip_high):
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def sequence_clipped_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Returns GSPO's loss: PPO's surrogate of the response's ratio.

      −min(s_i Â, clip(s_i, 1 − ε_low, 1 + ε_high) Â)

  A response is clipped as a whole. See `sequence_ratio` for s_i.

  Source: GSPO, https://arxiv.org/abs/2507.18071, eq. 5.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T], the paper's are the same on each token of a
      response; no gradient flows through it.
    mask: bool [B, T], true on the response.
    clip_low: ε_low, in (0, 1]; 3e-4 in the paper.
    clip_high: ε_high, above 0; 4e-4 in the paper.

  Returns:
    float32 [B, T], the same on each token of a response whose advantages are.
  """
  ratio = sequence_ratio(logprobs, old_logprobs, mask)[:, None]
  advantages = jax.lax.stop_gradient(advantages)
  return _clipped(ratio, advantages, clip_low, clip_high)


def sequence_token_clipped_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
) -> Array:
  """Returns GSPO-token's loss: the response's ratio, each token's gradient.

      s_it = sg(s_i) π_it / sg(π_it)
      −min(s_it Â_it, clip(s_it, 1 − ε_low, 1 + ε_high) Â_it)

  The value of s_it is s_i, its gradient s_i ∇log π_it. Where the advantages of
  a response are all the same, the gradient of its mean is that of
  `sequence_clipped_loss`; it lets them differ.

  Source: GSPO, https://arxiv.org/abs/2507.18071, its section on a token-level
  objective.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T]; no gradient flows through it.
    mask: bool [B, T], true on the response.
    clip_low: ε_low, in (0, 1].
    clip_high: ε_high, above 0.

  Returns:
    float32 [B, T].
  """
  constant = jax.lax.stop_gradient(logprobs)
  ratio = sequence_ratio(constant, old_logprobs, mask)[:, None]
  ratio = ratio * jnp.exp(logprobs - constant)
  advantages = jax.lax.stop_gradient(advantages)
  return _clipped(ratio, advantages, clip_low, clip_high)


def geometric_mean_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip: float = 0.4,
) -> Array:
  """Returns GMPO's loss: the geometric mean of clipped token ratios.

      x_t = log ρ_t
      c_t = min(x_t, clip(x_t, −ε, ε))   Â > 0
            max(x_t, clip(x_t, −ε, ε))   Â < 0
      −Â exp(mean_t c_t)

  The clip is one-sided as PPO's is: a token counts with its bound where the
  ratio already moved by more than ε in the advantage's direction, and has no
  gradient there.

  Source: GMPO, https://arxiv.org/abs/2507.20673, and the authors' code
  (https://github.com/callsys/GMPO), ε = 0.4: ratios from e^−0.4 to e^0.4.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T], the paper's are the same on each token of a
      response; no gradient flows through it. A token with advantage 0 counts
      as one whose ratio is 1.
    mask: bool [B, T], true on the response.
    clip: ε, nats.

  Returns:
    float32 [B, T], the same on each token of a response whose advantages are.
  """
  advantages = jax.lax.stop_gradient(advantages)
  change = logprobs - jax.lax.stop_gradient(old_logprobs)
  sign = jnp.sign(advantages)
  change = sign * jnp.minimum(
    sign * change, sign * jnp.clip(change, -clip, clip)
  )
  return -advantages * jnp.exp(masked_mean(change, mask, axis=-1))[:, None]


def response_clipped_loss(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
  limit: float = 20.0,
) -> Array:
  """Returns PPO's surrogate of whole responses, each one action.

      ρ_i = π(y_i|x) / π_old(y_i|x) = exp Σ_t log ρ_it
      −min(ρ_i Â_i, clip(ρ_i, 1 − ε_low, 1 + ε_high) Â_i)

  On policy its gradient is REINFORCE's, −Â ∇ log π(y|x): RLOO's, with
  leave-one-out advantages.

  Source: RLOO, https://arxiv.org/abs/2402.14740, has the whole response as the
  action; the ratio and its clip are those of TRL's `RLOOTrainer`.

  Deviation: a log-ratio above `limit` counts as that and has no gradient, since
  a product of many ratios overflows.

  Args:
    logprobs: float32 [B, T], nats; with gradient.
    old_logprobs: float32 [B, T], nats; no gradient flows through it.
    advantages: float32 [B, T], of which the mean over the response is taken; no
      gradient flows through it.
    mask: bool [B, T], true on the response.
    clip_low: ε_low, in (0, 1].
    clip_high: ε_high, above 0.
    limit: nats.

  Returns:
    float32 [B].
  """
  change = logprobs - jax.lax.stop_gradient(old_logprobs)
  change = jnp.where(mask, change, 0.0).sum(-1)
  advantages = masked_mean(jax.lax.stop_gradient(advantages), mask, axis=-1)
  ratio = jnp.exp(jnp.minimum(change, limit))
  return _clipped(ratio, advantages, clip_low, clip_high)


def _sequence_term(who, fn, clip_low, clip_high) -> Term:
  check_clip(clip_low, clip_high, who=who)

  def loss(inputs: LossInputs):
    value = fn(
      inputs.logprobs,
      inputs.old_logprobs,
      inputs.advantages,
      inputs.mask,
      clip_low=clip_low,
      clip_high=clip_high,
    )
    ratio = sequence_ratio(
      jax.lax.stop_gradient(inputs.logprobs), inputs.old_logprobs, inputs.mask
    )[:, None]
    cut = clip_fraction(ratio, inputs.advantages, clip_low, clip_high)
    return value, {"policy/clip_fraction": cut}

  return Term(
    "policy", loss, params={"clip_low": clip_low, "clip_high": clip_high}
  )


def sequence_clipped_gradient(*, clip_low: float, clip_high: float) -> Term:
  """Returns the term with GSPO's loss, see `sequence_clipped_loss`.

  Args:
    clip_low: ε_low; a ratio of means is near 1, 3e-4 in the paper.
    clip_high: ε_high; 4e-4 in the paper.

  Raises:
    ValueError: a bound that clips everything or nothing sensible.
  """
  return _sequence_term(
    "sequence_clipped_gradient", sequence_clipped_loss, clip_low, clip_high
  )


def sequence_token_clipped_gradient(
  *, clip_low: float, clip_high: float
) -> Term:
  """Returns the term with GSPO-token's loss.

  See `sequence_token_clipped_loss`.

  Args:
    clip_low: ε_low.
    clip_high: ε_high.

  Raises:
    ValueError: a bound that clips everything or nothing sensible.
  """
  return _sequence_term(
    "sequence_token_clipped_gradient",
    sequence_token_clipped_loss,
    clip_low,
    clip_high,
  )


def geometric_mean_gradient(*, clip: float = 0.4) -> Term:
  """Returns the term with GMPO's loss, see `geometric_mean_loss`.

  Args:
    clip: ε, nats.

  Raises:
    ValueError: clip is not above 0.
  """
  check_positive("clip", clip, who="geometric_mean_gradient")

  def loss(inputs: LossInputs):
    value = geometric_mean_loss(
      inputs.logprobs,
      inputs.old_logprobs,
      inputs.advantages,
      inputs.mask,
      clip=clip,
    )
    change = inputs.logprobs - inputs.old_logprobs
    cut = jnp.sign(inputs.advantages) * change > clip
    return value, {"policy/clip_fraction": cut.astype(jnp.float32)}

  return Term("policy", loss, params={"clip": clip})


def response_clipped_gradient(*, clip_low: float, clip_high: float) -> Term:
  """Returns the term whose action is the response, see `response_clipped_loss`.

  It is a loss of a response, whatever the reduction of the others is.

  Args:
    clip_low: ε_low.
    clip_high: ε_high.

  Raises:
    ValueError: a bound that clips everything or nothing sensible.
  """
  check_clip(clip_low, clip_high, who="response_clipped_gradient")

  def loss(inputs: LossInputs):
    value = response_clipped_loss(
      inputs.logprobs,
      inputs.old_logprobs,
      inputs.advantages,
      inputs.mask,
      clip_low=clip_low,
      clip_high=clip_high,
    )
    return value, {}

  return Term(
    "policy",
    loss,
    params={"clip_low": clip_low, "clip_high": clip_high},
    per_response=True,
  )
