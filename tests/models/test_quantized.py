"""int8 with scales: bounds by hand, products, and decoding from such a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from rlvr.models import decoding, quantized
from rlvr.models.quantized import Quantized, dequantize, quantize
from tests import tiny
from tests.compare import must_fail

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def numbers(*shape, seed=0):
  drawn = np.random.default_rng(seed).standard_t(3, size=shape)
  return jnp.asarray(drawn, jnp.float32)


def test_by_hand():
  # max |x| = 254: s = 2, and 3 / 2 rounds to the even 2.
  x = jnp.array([[254.0, -2.0, 3.0, 0.9]])
  found = quantize(x, -1)
  np.testing.assert_array_equal(found.values, [[127, -1, 2, 0]])
  close(found.scale, [[2.0]])
  close(dequantize(found), [[254.0, -2.0, 4.0, 0.0]])
  assert found.values.dtype == jnp.int8 and found.scale.dtype == jnp.float32


def within(most):
  """A check: no number is off by more than a share of its group's step."""

  def check(found, x):
    steps = np.broadcast_to(np.asarray(found.scale), x.shape)
    wrong = np.abs(np.asarray(dequantize(found)) - np.asarray(x))
    # float32 rounds x / s as well.
    assert (wrong <= steps * (most + 1e-4)).all()

  return check


@pytest.mark.parametrize("axes", [-1, 0, (0, 2)])
def test_no_number_is_off_by_more_than_half_a_step(axes):
  x = numbers(7, 5, 64) * jnp.exp(numbers(7, 5, 1, seed=1))
  found = jax.jit(quantize, static_argnums=1)(x, axes)
  within(0.5)(found, x)
  # Numbers fill their steps, so that a smaller bound is seen to be missed; and
  # so is one that cuts instead of rounding.
  must_fail(within(0.4), found, x)
  cut = Quantized(
    jnp.trunc(x / found.scale).astype(jnp.int8), scale=found.scale
  )
  must_fail(within(0.5), cut, x)


def test_zeros_and_numbers_that_are_none():
  np.testing.assert_array_equal(dequantize(quantize(jnp.zeros((2, 3)), 1)), 0.0)
  for bad in (jnp.nan, jnp.inf):
    found = dequantize(quantize(jnp.array([[1.0, bad], [1.0, 2.0]]), 1))
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_those_of_the_numbers_turned_back(dtype):
  x, w = numbers(3, 32).astype(dtype), quantize(numbers(32, 8, seed=1), 0)
  found = quantized.times(x, w)
  assert found.dtype == dtype
  expected = np.asarray(x, np.float32) @ np.asarray(dequantize(w))
  rounding = {"rtol": 1e-2 if dtype == "bfloat16" else 1e-5}
  np.testing.assert_allclose(
    np.asarray(found, np.float32), expected, atol=1e-4, **rounding
  )
  bare = Quantized(w.values, jnp.ones_like(w.scale))
  must_fail(close, quantized.times(x, bare).astype(jnp.float32), expected)


def test_attention_is_that_of_the_numbers_turned_back():
  q = numbers(2, 4, 8)
  prompts = (
    quantize(numbers(1, 2, 8, 5, seed=1), -2),
    quantize(numbers(1, 2, 5, 8, seed=2), -1),
  )
  own = (
    quantize(numbers(2, 2, 8, 3, seed=3), -2),
    quantize(numbers(2, 2, 3, 8, seed=4), -1),
  )
  token = (
    quantize(numbers(2, 2, 8, seed=5), -1),
    quantize(numbers(2, 2, 8, seed=6), -1),
  )
  masks = jnp.ones((1, 5), bool), jnp.ones((1, 1, 3), bool)

  def attended(turn):
    return models.attention.attend_token(
      *(q, *map(turn, prompts), masks[0]),
      *(*map(turn, own), masks[1]),
      token=tuple(map(turn, token)),
    )

  expected = attended(dequantize)
  close(attended(lambda x: x), expected)
  must_fail(
    close,
    attended(lambda x: Quantized(x.values, jnp.roll(x.scale, 1, 1))),
    expected,
  )


KINDS = {
  "grouped": {},
  "window": {"layer_pattern": ("local", "global"), "sliding_window": 3},
  "soft-cap": {"attention_softcap": 2.0, "final_softcap": 5.0},
  "unrolled": {"unroll_layers": True, "qkv_bias": True, "qk_norm": True},
}
P, G, T = 3, 2, 6


@functools.cache
def teacher_forced(kind, dtype, own_places=False):
  """Returns log-probs [P·G, T, V] from a cache kept as `dtype`."""
  config = tiny.config(**KINDS[kind])
  params, prompts = tiny.params(config), tiny.prompts()
  tokens = jnp.asarray(
    np.random.default_rng(3).integers(2, 20, (P * G, T)), jnp.int32
  )
  even = jnp.repeat(jnp.arange(P), G, total_repeat_length=P * G)

  @jax.jit
  def run(params):
    _, kept = models.prefill(params, config, prompts.tokens, prompts.mask)
    kept = decoding.kept_as(kept, dtype, prompts.mask)
    reading = decoding.Reading(
      trunk=params["trunk"],
      layers=decoding.layers_to_read(params, config),
      prompts=kept,
      prompt_mask=prompts.mask,
      prompt_lengths=prompts.mask.sum(-1)[even],
    )
    if own_places:
      reading = reading._replace(
        prompts=decoding.take_rows(kept, even, config),
        prompt_mask=prompts.mask[even],
      )
    cache = decoding.empty_cache(
      config, P * G, T, decoding.cache_dtype(reading.prompts)
    )
    found = []
    for t in range(T):
      place = jnp.full((P * G,), t) if own_places else jnp.int32(t)
      hidden, cache = models.decode(reading, config, tokens[:, t], place, cache)
      found.append(models.logits(params, config, hidden))
    return jax.nn.log_softmax(jnp.stack(found, axis=1))

  return np.asarray(run(params))


def near(found, expected):
  # A step of 1/127 of the greatest number, twice a layer; these models' tokens
  # have log-probs that spread over several nats.
  assert np.abs(found - expected).max() < 0.15
  assert np.abs(found - expected).mean() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_from_int8_is_near(kind, monkeypatch):
  expected = teacher_forced(kind, None)
  found = teacher_forced(kind, "int8")
  near(found, expected)
  assert np.abs(found - expected).max() > 1e-4, "int8 is to be seen"
  # The control: 4 bits are not near.
  monkeypatch.setattr(quantized, "_MOST", 7)
  must_fail(near, teacher_forced.__wrapped__(kind, "int8"), expected)


def test_places_of_their_own_read_and_write_the_same():
  np.testing.assert_allclose(
    teacher_forced("window", "int8", own_places=True),
    teacher_forced("window", "int8"),
    rtol=1e-4,
    atol=1e-5,
  )


def test_a_float_cache_of_fewer_bits():
  expected = teacher_forced("grouped", None)
  found = teacher_forced("grouped", "bfloat16")
  near(found, expected)
  assert np.abs(found - expected).max() > 1e-4
  np.testing.assert_array_equal(teacher_forced("grouped", "float32"), expected)


def prompt_keys():
  # Channels that differ in size, and two tokens of padding.
  size = jnp.array([1.0, 1.0, 0.5, 100.0, 3.0, 0.01, 1.0, 20.0])
  keys = numbers(2, 3, 8, 6) * size[None, None, :, None]
  return keys, jnp.arange(6)[None] >= jnp.array([[2], [0]])


def test_balanced_channels_are_nearer():
  keys, mask = prompt_keys()
  found = quantized.quantize_keys(keys, mask)

  def wrong(of):
    d = np.asarray(of - keys)[1]
    return (np.abs(d).mean((0, 2)) / np.abs(keys[1]).mean((0, 2))).max()

  assert wrong(dequantize(found) * found.channel) < 0.02
  assert wrong(dequantize(quantize(keys, -2))) > 0.2
  # Powers of two, and padding has no say.
  exponents = np.log2(found.channel)
  np.testing.assert_array_equal(exponents, np.round(exponents))
  other = quantized.quantize_keys(keys.at[0, ..., :2].set(1e6), mask)
  np.testing.assert_array_equal(other.channel, found.channel)
  np.testing.assert_array_equal(other.values[..., 2:], found.values[..., 2:])
  unmasked = quantized.quantize_keys(
    keys.at[0, ..., :2].set(1e6), jnp.ones_like(mask)
  )
  assert (np.asarray(unmasked.channel) != np.asarray(found.channel)).any()


def test_balancing_changes_no_score():
  keys, mask = prompt_keys()
  found = quantized.quantize_keys(keys, mask)
  # 4 responses of 2 prompts, 6 heads over 3 of keys.
  q, k = numbers(4, 1, 6, 8, seed=1), numbers(4, 1, 3, 8, seed=2)
  q2, k2 = quantized.balanced(q, k, found)

  def scores(q, k):
    return jnp.einsum("btkrn,btkn->bkr", q.reshape(4, 1, 3, 2, 8), k)

  close(scores(q2, k2), scores(q, k))
  rows = jnp.repeat(found.channel[..., 0], 2, axis=0)
  close(k2[:, 0] * rows, k[:, 0])
  must_fail(close, k2, k)
  assert quantized.balanced(q, k, keys) == (q, k)
