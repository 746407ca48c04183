"""The distribution that is sampled from: temperature, top-k, top-p, min-p."""

import math

import jax
import jax.numpy as jnp

from rlvr.types import Array


def filtered_logits(
  logits: Array,
  *,
  temperature: float,
  top_k: int,
  top_p: float,
  min_p: float,
) -> Array:
  """Returns the logits of the distribution that is sampled from.

  Applied in this order: temperature, top-k, top-p, min-p. Tokens that are cut
  have logit -inf. The likeliest token always stays, and
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
  return z


def likeliest(logits: Array) -> Array:
  """Returns int32 [...]: the first of the greatest entries of [..., V].

  Two reductions of numbers: XLA's CPU backend takes six times as long for
  argmax, which reduces pairs.
  """
  V = logits.shape[-1]
  most = logits.max(axis=-1, keepdims=True)
  places = jnp.where(logits == most, jnp.arange(V, dtype=jnp.int32), V - 1)
  return places.min(axis=-1)


def draw(logits: Array, uniform: Array) -> tuple[Array, Array]:
  """Returns the token where the cumulative probability passes `uniform`.

  One random number for each response and token, instead of one for each
  entry of the vocabulary. The sums are made in two levels, over blocks of
  about the root of V and within the block that was hit, so that of the logits
  only sums are made: probabilities or log-probs of the whole vocabulary are
  never written to memory. A token of probability 0 is never returned: its
  log-prob would be -inf and the ratio of the update infinite.

  Args:
    logits: float32 [B, V], not normalised; -inf where a token is cut.
    uniform: float32 [B], in [0, 1).

  Returns:
    int32 [B], and the log-prob of each, float32 [B].
  """
  B, V = logits.shape
  width = block_width(V)
  count = -(-V // width)
  if count * width > V:
    fill = ((0, 0), (0, count * width - V))
    logits = jnp.pad(logits, fill, constant_values=-jnp.inf)
  most = logits.max(axis=-1, keepdims=True)
  blocks = logits.reshape(B, count, width)
  sums = jnp.exp(blocks - most[..., None]).sum(axis=-1)
  cumulative = jnp.cumsum(sums, axis=-1)
  # Against its own last entry, so that rounding can't leave u above the sum.
  total = cumulative[:, -1]
  target = (uniform * total)[:, None]
  block = _first_passed(cumulative, target, sums)
  before = _entry(cumulative - sums, block)[:, None]
  # Not a gather from `blocks`: XLA for TPU would copy all of it for that.
  row = jax.vmap(lambda z, i: jax.lax.dynamic_slice_in_dim(z, i, width))(
    logits, block * width
  )
  p = jnp.exp(row - most)
  place = _first_passed(jnp.cumsum(p, axis=-1), target - before, p)
  logprob = _entry(row, place) - most[:, 0] - jnp.log(total)
  return block * width + place, logprob


def block_width(vocab_size: int) -> int:
  """Returns the entries of a block of `draw`: about the root of V.

  A divisor of V that is a multiple of 128 where V, as that of published models,
  is one: XLA for TPU then needs no copy to cut the vocabulary into blocks.
  """
  if vocab_size % 128:
    return math.isqrt(vocab_size - 1) + 1
  most = vocab_size // 128
  widths = [128 * n for n in range(1, most + 1) if most % n == 0]
  return min(widths, key=lambda n: abs(math.log(n * n / vocab_size)))


def _entry(x: Array, at: Array) -> Array:
  """Returns x[i, at[i]] of [B, N] for each i."""
  return jnp.take_along_axis(x, at[:, None], axis=-1)[:, 0]


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
