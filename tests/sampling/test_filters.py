"""What is cut, what is left, and what is drawn from it."""

import functools

import jax
import numpy as np
import pytest

from rlvr.sampling.filters import block_width, draw, filtered_logits
from tests.compare import must_fail

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)

# Probabilities 0.4, 0.1, 0.2, 0.3 in this order.
P = np.array([0.4, 0.1, 0.2, 0.3])
LOGITS = np.log(P).astype(np.float32)[None] + 2.5

jit_draw = jax.jit(draw)


def jit_tokens(logits, uniform):
  return jit_draw(logits, uniform)[0]


def probabilities(
  logits=LOGITS, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
):
  @jax.jit
  def run(logits):
    return filtered_logits(
      logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )

  return np.asarray(jax.nn.softmax(run(logits), axis=-1))


def in_numpy(logits, temperature, top_k, top_p, min_p):
  """Returns probabilities, filtered one token after the other."""
  out = []
  for row in np.asarray(logits, np.float64):
    p = np.exp((row - row.max()) / temperature)
    p /= p.sum()
    if top_k:
      p[np.argsort(-p)[top_k:]] = 0
      p /= p.sum()
    kept, reached = np.zeros(p.shape, bool), 0.0
    for i in np.argsort(-p):
      if reached >= top_p:
        break
      kept[i], reached = True, reached + p[i]
    p = np.where(kept, p, 0)
    p[p < min_p * p.max()] = 0
    out.append(p / p.sum())
  return np.array(out)


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({}, [0.4, 0.1, 0.2, 0.3]),
    # Squared: 16, 1, 4, 9 of 30.
    ({"temperature": 0.5}, [16 / 30, 1 / 30, 4 / 30, 9 / 30]),
    ({"top_k": 1}, [1, 0, 0, 0]),
    ({"top_k": 2}, [4 / 7, 0, 0, 3 / 7]),
    ({"top_k": 9}, [0.4, 0.1, 0.2, 0.3]),
    # 0.4 + 0.3 reach 0.65; 0.4 alone reaches 0.39.
    ({"top_p": 0.65}, [4 / 7, 0, 0, 3 / 7]),
    ({"top_p": 0.39}, [1, 0, 0, 0]),
    ({"top_p": 0.75}, [4 / 9, 0, 2 / 9, 3 / 9]),
    # Under 0.6 · 0.4 = 0.24 is cut; under 0.45 · 0.4 = 0.18 less.
    ({"min_p": 0.6}, [4 / 7, 0, 0, 3 / 7]),
    ({"min_p": 0.45}, [4 / 9, 0, 2 / 9, 3 / 9]),
    # After top-k the probabilities are 4/9, 2/9, 3/9: 4/9 < 0.5, 7/9 reaches.
    ({"top_k": 3, "top_p": 0.5}, [4 / 7, 0, 0, 3 / 7]),
  ],
)
def test_filters_by_hand(settings, expected):
  close(probabilities(**settings)[0], expected)
  assert ((probabilities(**settings)[0] > 0) == (np.array(expected) > 0)).all()


@pytest.mark.parametrize(
  "settings", [(0.7, 0, 0.8, 0.0), (1.3, 5, 0.6, 0.05), (1.0, 3, 1.0, 0.3)]
)
def test_filters_are_numpys(settings):
  rng = np.random.default_rng(0)
  logits = (2 * rng.normal(size=(40, 12))).astype(np.float32)
  found = probabilities(logits, *settings)
  close(found, in_numpy(logits, *settings), atol=1e-5)
  other = (settings[0] + 0.1, *settings[1:])
  must_fail(close, found, in_numpy(logits, *other), atol=1e-5)


def test_equal_tokens_stay_or_go_together():
  logits = np.log(np.array([[0.2, 0.3, 0.3, 0.2]], np.float32))
  close(probabilities(logits, top_k=1)[0], [0, 0.5, 0.5, 0])


def chi_square(counts, p):
  return ((counts - counts.sum() * p) ** 2 / (counts.sum() * p)).sum()


def test_draws_have_the_frequencies():
  p = np.array([0.0, 0.4, 0.0, 0.1, 0.2, 0.3, 0.0], np.float32)
  with np.errstate(divide="ignore"):
    logprobs = np.tile(np.log(p), (20_000, 1))
  uniform = np.asarray(jax.random.uniform(jax.random.key(0), (20_000,)))
  counts = np.bincount(np.asarray(jit_tokens(logprobs, uniform)), minlength=7)
  assert counts[p == 0].sum() == 0
  keep = p > 0
  # 3 degrees of freedom: above 16.3 once in a thousand keys.
  assert chi_square(counts[keep], p[keep]) < 16.3
  near = np.array([0.38, 0.12, 0.2, 0.3])
  assert chi_square(counts[keep], near) > 16.3, "the test sees nothing"


def test_draw_by_hand():
  # Cumulative 0.25, 0.25, 0.75, 1: u belongs to the first sum above it. Where
  # there is none (u·Z rounded up to Z), the last that has a probability.
  p = np.array([0.25, 0.0, 0.5, 0.25, 0.0], np.float32)
  most = np.nextafter(np.float32(1), np.float32(0))
  u = np.array([0.0, 0.24, 0.25, 0.74, 0.75, most, 1.0], np.float32)
  with np.errstate(divide="ignore"):
    tokens = jit_tokens(np.tile(np.log(p), (7, 1)), u)
  assert tokens.dtype == np.int32
  assert tokens.tolist() == [0, 0, 2, 2, 3, 3, 3]


def by_counting(logprobs, uniform):
  """The draw as one would write it first: counts the sums that are passed."""
  cumulative = jax.numpy.cumsum(jax.numpy.exp(logprobs), axis=-1)
  target = uniform[:, None] * cumulative[:, -1:]
  token = (cumulative <= target).sum(axis=-1)
  return jax.numpy.minimum(token, logprobs.shape[-1] - 1)


def test_a_token_of_probability_0_is_never_drawn():
  # All numbers next to a step of the cumulative sum, where XLA's rounding can
  # make it rise or fall at a token that was cut.
  drawn = []
  for seed in range(4):
    logits = 3 * np.random.default_rng(seed).normal(size=(1, 512))
    p = probabilities(logits.astype(np.float32), top_k=40)[0]
    sums = np.asarray(jax.numpy.cumsum(p))
    edges = (sums / sums[-1]).astype(np.float32)
    u = np.concatenate([np.nextafter(edges, np.float32(s)) for s in (0, 2)])
    u = np.pad(u[u < 1], (0, 1024))[:1024]
    with np.errstate(divide="ignore"):
      logprobs = np.tile(np.log(p), (1024, 1))

    def least(draw, p=p, logprobs=logprobs, u=u):
      return p[np.asarray(draw(logprobs, u))].min()

    assert least(jit_tokens) > 0
    drawn.append(least(jax.jit(by_counting)))
  assert min(drawn) == 0, "no sum falls any more: the test sees nothing"


@pytest.mark.parametrize("vocab_size", [7, 500, 512, 128 * 37])
@pytest.mark.parametrize("top_k", [0, 5])
def test_draw_is_numpys_search(vocab_size, top_k):
  """Of logits that aren't normalised, whole blocks of them cut."""
  rng = np.random.default_rng(vocab_size)
  raw = (3 * rng.normal(size=(300, vocab_size)) + 40).astype(np.float32)
  logits = filtered_logits(
    raw, temperature=0.7, top_k=top_k, top_p=1.0, min_p=0.0
  )
  z = np.asarray(logits, np.float64)
  p = np.exp(z - z.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  sums = p.cumsum(-1)
  u = rng.random(300).astype(np.float32)
  tokens, logprobs = map(np.asarray, jit_draw(logits, u))
  rows = np.arange(300)
  # No u is so near to a sum that float32 could put it on the other side.
  gap = np.abs(sums - u[:, None]).min(-1)
  clear = gap > 1e-6
  assert clear.mean() > 0.95
  expected = (sums <= u[:, None]).sum(-1)
  assert (tokens == expected)[clear].all()
  assert not (np.roll(tokens, 1) == expected)[clear].all()
  close(logprobs, np.log(p[rows, tokens]), rtol=1e-5, atol=1e-5)
  must_fail(close, logprobs, z[rows, tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("vocab_size", "width"),
  [
    (2, 2),
    (500, 23),
    (512, 128),
    (49_152, 256),
    (151_936, 128),
    (262_144, 512),
  ],
)
def test_blocks_are_about_the_root(vocab_size, width):
  assert block_width(vocab_size) == width
