"""Rotary positions and attention: by hand, and against loops in NumPy."""

import functools
import math

import jax
import numpy as np

from rlvr.models.attention import attend, attend_shared
from rlvr.models.rope import angles, frequencies, turn
from tests.compare import must_fail

B, T, S, H, K, D = 4, 3, 4, 4, 2, 6

# A jitted function is one compilation, an eager one as many as it has
# operations.
jit_attend = jax.jit(attend)


def rotate(x, positions, theta):
  return turn(x, *angles(positions, *frequencies(x.shape[-1], theta)))


jit_rotate = jax.jit(rotate, static_argnums=2)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def arrays(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def test_rotate_by_hand():
  # D = 4, θ = 100: the pairs (0, 2) turn by 1 and (1, 3) by 100^(-1/2) = 0.1
  # a position. At position 2 the first pair (1, 0) becomes (cos 2, sin 2), the
  # second (0, 1) becomes (-sin 0.2, cos 0.2).
  x = np.array([1.0, 0.0, 0.0, 1.0], np.float32).reshape(1, 1, 1, 4)
  out = np.asarray(jit_rotate(x, np.array([[2]]), 100.0))[0, 0, 0]
  expected = [math.cos(2), -math.sin(0.2), math.sin(2), math.cos(0.2)]
  close(out, expected)
  close(rotate(x, np.array([[2]]), 100.0)[0, 0, 0], expected)
  close(jit_rotate(x, np.array([[0]]), 100.0), x)


def test_rotated_products_depend_on_the_distance_alone():
  q, k = arrays((1, T, 1, D), (1, T, 1, D))

  def products(shift_q, shift_k):
    at = np.array([[0, 3, 7]])
    q_turned = np.asarray(jit_rotate(q, at + shift_q, 50.0))
    k_turned = np.asarray(jit_rotate(k, at + shift_k + 2, 50.0))
    return (q_turned * k_turned).sum(-1)

  close(products(0, 0), products(11, 11), atol=1e-5)
  must_fail(close, products(0, 0), products(11, 12), atol=1e-5)
  turned = np.asarray(jit_rotate(q, np.array([[4, 5, 6]]), 50.0))
  close((turned**2).sum(), (q**2).sum())


def test_attend_by_hand():
  # D = 4, so scores are halved: q·k / 2 = 0 and 2 ln 3 / 2 = ln 3. Weights are
  # 1/4 and 3/4, and 10/4 + 20·3/4 = 17.5. The third key is masked.
  ones = np.ones((1, 1, 1, 4), np.float32)
  q = ones * np.array([1, 0, 0, 0], np.float32)
  k = np.concatenate([0 * ones, 2 * math.log(3.0) * q, 100 * ones], axis=1)
  v = np.concatenate([10 * ones, 20 * ones, 1e6 * ones], axis=1)
  mask = np.array([[[True, True, False]]])
  close(jit_attend(q, k, v, mask), 17.5 * ones)
  must_fail(close, jit_attend(q, k, v, mask | True), 17.5 * ones)


def repeated_heads(q, k, v, mask, repeat=np.repeat):
  """Multi-head attention with the keys' heads repeated, a query at a time."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  times = q.shape[2] // k.shape[2]
  k, v = (
    repeat(x, times, axis=2)
    if repeat is np.repeat
    else repeat(x, (1, 1, times, 1))
    for x in (k, v)
  )
  out = np.zeros_like(q)
  for b, t, h in np.ndindex(q.shape[:3]):
    keep = np.asarray(mask)[b, t]
    scores = k[b, keep, h] @ q[b, t, h] / np.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max())
    out[b, t, h] = weights / weights.sum() @ v[b, keep, h]
  return out


def test_grouped_queries_are_repeated_heads():
  q, k, v = arrays((B, T, H, D), (B, S, K, D), (B, S, K, D))
  mask = np.random.default_rng(1).random((B, T, S)) < 0.6
  mask[..., 0] = True
  out = jit_attend(q, k, v, mask)
  close(out, repeated_heads(q, k, v, mask), atol=1e-5)
  # Heads that are tiled instead belong to other queries.
  must_fail(
    close, out, repeated_heads(q, k, v, mask, repeat=np.tile), atol=1e-5
  )


def test_shared_prompt_is_attention_over_prompt_and_response():
  prompts = 2
  q, own_k, own_v = arrays((B, T, H, D), (B, T, K, D), (B, T, K, D))
  k, v = arrays((prompts, S, K, D), (prompts, S, K, D), seed=1)
  prompt_mask = np.array([[False, True, True, True], [True] * 4])
  own_mask = np.tril(np.ones((T, T), bool))[None]
  shared = jax.jit(attend_shared)(q, k, v, prompt_mask, own_k, own_v, own_mask)

  def whole(prompt_mask):
    def spread(x):
      return np.repeat(x, B // prompts, axis=0)

    mask = np.concatenate(
      [
        np.broadcast_to(spread(prompt_mask)[:, None], (B, T, S)),
        np.broadcast_to(own_mask, (B, T, T)),
      ],
      axis=-1,
    )
    return repeated_heads(
      q,
      np.concatenate([spread(k), own_k], axis=1),
      np.concatenate([spread(v), own_v], axis=1),
      mask,
    )

  close(shared, whole(prompt_mask), atol=1e-5)
  must_fail(close, shared, whole(prompt_mask | True), atol=1e-5)


def test_a_row_without_keys_is_finite():
  q, k, v = arrays((1, T, H, D), (1, S, K, D), (1, S, K, D))
  mask = np.zeros((1, T, S), bool)
  value, gradient = jax.jit(
    jax.value_and_grad(lambda x: attend(x, k, v, mask).sum())
  )(1e4 * q)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
