"""The distribution that is sampled from: temperature, top-k, top-p, min-p."""

import math

import jax
import jax.numpy as jnp

from rlvr.types import Array


def filtered_logprobs(
  logits: Array,
  *,
  temperature: float,
  top_k: int,
  top_p: float,
  min_p: float,
) -> Array:
  """Returns the log-probs of the distribution that is sampled from.

  Applied in this order: temperature, top-k, top-p, min-p; then renormalised.
  Tokens that are cut have log-prob -inf. The likeliest token always stays, and
  tokens that are equally likely stay or go together: with ties at the border
  top-k and top-p keep more than they say.

  Sources: top-p, Holtzman et al. 2019, https://arxiv.org/abs/1904.09751;
  min-p, Nguyen et al. 2024, eq. 2, https://arxiv.org/abs/2407.01082 (threshold
  min_p · max p).

  Args:
    logits: float32 [..., V].
    temperature: above 0.
    top_k: keeps the k likeliest; 0 keeps all.
    top_p: keeps the smallest set of likeliest tokens whose probability reaches
      top_p; 1 keeps all.
    min_p: cuts tokens under min_p times the greatest probability; 0 keeps all.

  Returns:
    float32 [..., V].
  """
  z = logits / temperature
  if top_k and top_k < z.shape[-1]:
    threshold = jax.lax.top_k(z, top_k)[0][..., -1:]
    z = jnp.where(z < threshold, -jnp.inf, z)
  if top_p < 1.0:
    ordered = jnp.sort(z, axis=-1, descending=True)
    p = jax.nn.softmax(ordered, axis=-1)
    # A token stays if what is likelier than it doesn't reach top_p by itself.
    stays = jnp.cumsum(p, axis=-1) - p < top_p
    threshold = jnp.where(stays, ordered, jnp.inf).min(axis=-1, keepdims=True)
    z = jnp.where(z < threshold, -jnp.inf, z)
  if min_p > 0.0:
    threshold = z.max(axis=-1, keepdims=True) + jnp.log(min_p)
    z = jnp.where(z < threshold, -jnp.inf, z)
  return jax.nn.log_softmax(z, axis=-1)


def likeliest(logits: Array) -> Array:
  """Returns int32 [...]: the first of the greatest entries of [..., V].

  Two reductions of numbers: XLA's CPU backend takes six times as long for
  argmax, which reduces pairs.
  """
  V = logits.shape[-1]
  most = logits.max(axis=-1, keepdims=True)
  places = jnp.where(logits == most, jnp.arange(V, dtype=jnp.int32), V - 1)
  return places.min(axis=-1)


def draw(logprobs: Array, uniform: Array) -> Array:
  """Returns the token at which the cumulative probability passes `uniform`.

  One random number for each response and token, instead of one for each
  entry of the vocabulary. The sums are made in two levels, over blocks of
  about the root of V and within the block that was hit. A token of probability
  0 is never returned: its log-prob would be -inf and the ratio of the update
  infinite.

  Args:
    logprobs: float32 [B, V], normalised; -inf where a token is cut.
    uniform: float32 [B], in [0, 1).

  Returns:
    int32 [B].
  """
  B, V = logprobs.shape
  width = math.isqrt(V - 1) + 1
  count = -(-V // width)
  p = jnp.pad(jnp.exp(logprobs), ((0, 0), (0, count * width - V)))
  p = p.reshape(B, count, width)
  sums = p.sum(axis=-1)
  cumulative = jnp.cumsum(sums, axis=-1)
  # Against its own last entry, so that rounding can't leave u above the sum.
  target = uniform[:, None] * cumulative[:, -1:]
  block = _first_passed(cumulative, target, sums)
  at = block[:, None]
  before = jnp.take_along_axis(cumulative - sums, at, axis=-1)
  row = jnp.take_along_axis(p, at[..., None], axis=1)[:, 0]
  place = _first_passed(jnp.cumsum(row, axis=-1), target - before, row)
  return block * width + place


def _first_passed(cumulative: Array, target: Array, p: Array) -> Array:
  """Returns int32 [B]: the first place with p > 0 whose sum is above target.

  XLA adds prefixes in another order than one by one, so that the sum can rise
  or fall by a rounding where p is 0: those places are no candidates. Where
  rounding leaves none, the last with p > 0.
  """
  n = p.shape[-1]
  places = jnp.arange(n, dtype=jnp.int32)
  first = jnp.where((cumulative > target) & (p > 0), places, n).min(axis=-1)
  last = jnp.where(p > 0, places, 0).max(axis=-1)
  return jnp.minimum(first, last)
