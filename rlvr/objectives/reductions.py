"""How a loss per token becomes one number.

The normaliser is part of the algorithm. A reduction therefore doesn't average
anything: it returns each token's coefficient over the whole batch, and the loss
is the sum of coefficient times loss. Coefficients are taken before the batch is
cut into micro-batches, so that value and gradient don't depend on the cut.

A response of weight 0 (missing reward, filtered) counts neither above nor below
the fraction line. A batch in which nothing counts has coefficients of 0.
"""

import jax.numpy as jnp

from rlvr.types import Array


def _safe(total: Array) -> Array:
  return jnp.where(total > 0, total, 1.0)


def token_mean(mask: Array, weights: Array) -> Array:
  """Returns coefficients that give every token of the batch equal say.

  c_bt = w_b m_bt / Σ_b w_b |y_b|. Long responses weigh more than short ones
  (DAPO, eq. 12, https://arxiv.org/abs/2503.14476).

  Args:
    mask: bool [B, T], true on response tokens.
    weights: float32 [B], 0 drops a response.

  Returns:
    float32 [B, T], summing to 1.
  """
  c = weights[:, None] * mask
  return c / _safe(c.sum())


def sequence_mean(mask: Array, weights: Array) -> Array:
  """Returns coefficients that give every response equal say.

  c_bt = w_b m_bt / (|y_b| Σ_b w_b): GRPO, eq. 3,
  https://arxiv.org/abs/2402.03300.

  Args:
    mask: bool [B, T], true on response tokens.
    weights: float32 [B], 0 drops a response.

  Returns:
    float32 [B, T], summing to 1 where no weighted response is empty.
  """
  lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
  return weights[:, None] * mask / lengths / _safe(weights.sum())


def constant_length(mask: Array, weights: Array, *, length: int) -> Array:
  """Returns coefficients with a constant in place of the response's length.

  c_bt = w_b m_bt / (L Σ_b w_b): Dr. GRPO, sec. 3.2,
  https://arxiv.org/abs/2503.20783, whose code divides by the generation budget.

  Args:
    mask: bool [B, T], true on response tokens.
    weights: float32 [B], 0 drops a response.
    length: L, tokens; usually `Sampling.max_tokens`.

  Returns:
    float32 [B, T].

  Raises:
    ValueError: length is not positive.
  """
  if length < 1:
    raise ValueError(f"constant_length: length={length} must be at least 1")
  return weights[:, None] * mask / (length * _safe(weights.sum()))
