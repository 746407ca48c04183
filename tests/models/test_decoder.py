"""The decoder against NumPy, against itself, and against broken variants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from rlvr.models import decoder, decoding, kernels, layers
from tests import tiny
from tests.compare import must_fail
from tests.models import numpy_decoder

# float32 through two layers against float64.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)

VARIANTS = {
  "plain": {},
  "untied_biases": {"tie_embeddings": False, "qkv_bias": True},
  "norms": {
    "qk_norm": True,
    "scale_embeddings": True,
    "rope_theta": 50.0,
    "norm_epsilon": 0.1,
  },
  "single_kv_head_unrolled": {"num_kv_heads": 1, "unroll_layers": True},
}
EVERYTHING = {
  "qk_norm": True,
  "qkv_bias": True,
  "tie_embeddings": False,
  "value_head": True,
}

jit_forward = jax.jit(models.forward, static_argnums=1)
jit_responses = jax.jit(models.forward_responses, static_argnums=1)
PARAMS = tiny.params(tiny.CONFIG)

# Three prompts with two responses each, ragged.
P, S, T, G = 3, 5, 4, 2
PROMPTS = tiny.prompts()
LENGTHS = np.array([4, 2, 1, 3, 4, 1])
EVEN = np.array([0, 0, 1, 1, 2, 2])
UNEVEN = np.array([0, 0, 0, 1, 2, 2])
MASK = np.arange(T) < LENGTHS[:, None]
TOKENS = (np.random.default_rng(3).integers(1, 20, MASK.shape) * MASK).astype(
  np.int32
)


def padded(sequences, width, left):
  """Returns tokens and mask; the padding holds an id like any other."""
  tokens = np.full((len(sequences), width), 9, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(sequences):
    part = slice(width - len(row), width) if left else slice(0, len(row))
    tokens[i, part], mask[i, part] = row, True
  return tokens, mask


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
def test_parity_with_numpy_whatever_the_padding(name):
  config = tiny.config(**VARIANTS[name])
  params = tiny.params(config)
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 20, n) for n in (6, 3, 1)]
  expected = [numpy_decoder.hidden_states(params, config, r) for r in rows]

  def check(leak=False, sequences=rows):
    for left in (True, False):
      tokens, mask = padded(sequences, 7, left)
      hidden = jit_forward(params, config, tokens, mask | leak)
      for got, keep, want in zip(
        np.asarray(hidden), mask, expected, strict=True
      ):
        close(got[keep], want)

  check()
  # Padding that is looked at, and another token in a row, both show.
  must_fail(check, leak=True)
  must_fail(check, sequences=[rows[0][::-1], *rows[1:]])

  hidden = np.asarray(expected[0], np.float32)
  z = jax.jit(models.logits, static_argnums=1)(params, config, hidden)
  close(z, numpy_decoder.logits(params, config, rows[0]), atol=1e-4)


def test_rms_norm_by_hand():
  # mean(3², 4²) = 12.5 and ε = 3.5: both are divided by 4, then scaled.
  config = tiny.config(norm_epsilon=3.5)
  norm = layers.RMSNorm(2, config, "embed")
  norm.scale[...] = jnp.array([2.0, 10.0])
  close(norm(jnp.array([[3.0, 4.0]])), [[3 / 4 * 2, 4 / 4 * 10]])
  # Gemma: 1 is added to the scale, which starts at 0.
  config = tiny.config(norm_epsilon=3.5, norm_offset=1.0)
  norm = layers.RMSNorm(2, config, "embed")
  assert not np.any(norm.scale[...])
  norm.scale[...] = jnp.array([2.0, 10.0])
  close(norm(jnp.array([[3.0, 4.0]])), [[3 / 4 * 3, 4 / 4 * 11]])


def on_the_concatenation(params, config, group):
  """Returns what `forward` gives of prompt and response in one sequence."""
  tokens = np.concatenate([np.asarray(PROMPTS.tokens)[group], TOKENS], axis=1)
  mask = np.concatenate([np.asarray(PROMPTS.mask)[group], MASK], axis=1)
  hidden = jit_forward(params, config, tokens, mask)
  return np.asarray(hidden)[:, S - 1 : -1]


def responses(params, config, group=None, jitted=jit_responses):
  return np.asarray(
    jitted(params, config, PROMPTS.tokens, PROMPTS.mask, TOKENS, MASK, group)
  )


def test_responses_are_the_concatenated_sequence():
  config = tiny.CONFIG
  even = responses(PARAMS, config)
  close(even[MASK], on_the_concatenation(PARAMS, config, EVEN)[MASK])
  close(even, responses(PARAMS, config, EVEN))
  uneven = responses(PARAMS, config, UNEVEN)
  close(uneven[MASK], on_the_concatenation(PARAMS, config, UNEVEN)[MASK])
  # The index counts: row 2 answers another prompt, and only row 2.
  assert (np.abs(uneven - even).max((1, 2)) > 1e-3).tolist() == [
    False, False, True, False, False, False,
  ]  # fmt: skip
  must_fail(
    close, uneven[MASK], on_the_concatenation(PARAMS, config, EVEN)[MASK]
  )


def _shifted_prompt(monkeypatch):
  # Prompts count from 1 and responses from the prompt's length: one position
  # is there twice. (Shifting both alike changes nothing: RoPE is relative.)
  real = decoder.positions_of
  monkeypatch.setattr(decoder, "positions_of", lambda mask: real(mask) + 1)


def _leaking_padding(monkeypatch):
  real = kernels.attend_shared

  def leak(q, pk, pv, prompt_mask, k, v, mask, **scores):
    return real(q, pk, pv, prompt_mask | True, k, v, mask, **scores)

  monkeypatch.setattr(kernels, "attend_shared", leak)


def _leaking_future(monkeypatch):
  real = kernels.attend_shared

  def leak(q, pk, pv, prompt_mask, k, v, mask, **scores):
    return real(q, pk, pv, prompt_mask, k, v, mask | True, **scores)

  monkeypatch.setattr(kernels, "attend_shared", leak)


@pytest.mark.parametrize(
  "breaks", [_shifted_prompt, _leaking_padding, _leaking_future]
)
def test_broken_positions_and_masks_show(monkeypatch, breaks):
  expected = on_the_concatenation(PARAMS, tiny.CONFIG, EVEN)[MASK]
  breaks(monkeypatch)
  fresh = jax.jit(  # a function of its own: nothing traced before is used
    lambda params, config, *args: models.forward_responses(
      params, config, *args
    ),
    static_argnums=1,
  )
  broken = responses(PARAMS, tiny.CONFIG, jitted=fresh)[MASK]
  must_fail(close, broken, expected)


def test_uneven_responses_need_a_group():
  with pytest.raises(ValueError, match=r"6 responses for 4 prompts.*`group`"):
    models.forward_responses(
      PARAMS, tiny.CONFIG, np.zeros((4, 2), int), None, TOKENS, MASK
    )


@pytest.mark.parametrize("unrolled", [False, True])
def test_prefill_and_decode_are_forward_responses(unrolled):
  config = tiny.config(unroll_layers=unrolled)
  # In slots of their own: responses at other places, prompts in other rows.
  order, start = np.array([3, 0, 5, 1, 2, 4]), np.array([0, 2, 1, 0, 3, 1])

  @functools.partial(jax.jit, static_argnums=1)
  def teacher_forced(params, own_places, late):
    last, prompts = models.prefill(params, config, PROMPTS.tokens, PROMPTS.mask)
    group, mask, first = EVEN, PROMPTS.mask, np.zeros(P * G, int)
    tokens = TOKENS
    if own_places:
      group, first, tokens = EVEN[order], start, TOKENS[order]
      prompts, mask = decoding.take_rows(prompts, group, config), mask[group]
    reading = decoding.Reading(
      trunk=params["trunk"],
      layers=decoding.layers_to_read(params, config),
      prompts=prompts,
      prompt_mask=mask,
      prompt_lengths=PROMPTS.mask.sum(-1)[group] + late,
    )
    cache = decoding.empty_cache(config, P * G, 2)
    out = jnp.zeros((P * G, T, 16)).at[:, 0].set(last[group])
    # A row that starts late waits at its place 0, as often as it has to.
    for t in range(T - 1 + first.max()):
      cache = decoding.longer_cache(cache, max(t + 1, 2))
      at = np.clip(t - first, 0, T - 2)
      hidden, cache = models.decode(
        reading,
        config,
        tokens[np.arange(P * G), at],
        jnp.asarray(at) if own_places else jnp.int32(t),
        cache,
      )
      out = out.at[np.arange(P * G), at + 1].set(hidden)
    return out

  expected = responses(PARAMS, config)
  close(np.asarray(teacher_forced(PARAMS, False, 0))[MASK], expected[MASK])
  found = np.asarray(teacher_forced(PARAMS, True, 0))
  close(found[MASK[order]], expected[order][MASK[order]])
  late = np.asarray(teacher_forced(PARAMS, False, 1))[MASK]
  must_fail(close, late, expected[MASK])
  late = np.asarray(teacher_forced(PARAMS, True, 1))
  must_fail(close, late[MASK[order]], expected[order][MASK[order]])


def test_places_of_their_own_need_prompts_of_their_own():
  reading = decoding.Reading(None, None, None, np.ones((2, 3), bool), None)
  with pytest.raises(ValueError, match="6 responses at places of their own"):
    models.decode(
      reading, tiny.CONFIG, np.zeros(6, int), np.zeros(6, int), None
    )


def test_a_later_token_changes_nothing_earlier():
  before = responses(PARAMS, tiny.CONFIG)
  changed = TOKENS.copy()
  changed[0, 2] = changed[0, 2] % 19 + 1
  after = np.asarray(
    jit_responses(
      PARAMS, tiny.CONFIG, PROMPTS.tokens, PROMPTS.mask, changed, MASK, None
    )
  )
  # Row t is behind tokens[:t]: rows 0..2 don't know tokens[2], row 3 does.
  np.testing.assert_array_equal(after[0, :3], before[0, :3])
  assert np.abs(after[0, 3] - before[0, 3]).max() > 1e-3
  np.testing.assert_array_equal(after[1:], before[1:])


def gradient_program(config):
  """Returns the jitted gradient of a sum over hidden states."""
  tokens, mask = padded([[3, 7, 2, 9], [4, 8]], 4, left=False)
  slope = np.random.default_rng(0).normal(size=(2, 4, 16)) * mask[..., None]
  return jax.jit(
    jax.grad(lambda p: (slope * models.forward(p, config, tokens, mask)).sum())
  )


@pytest.mark.parametrize("remat", [True, "full", "dots", None])
def test_remat_and_unrolling_change_no_gradient(remat):
  plain = gradient_program(tiny.CONFIG)(PARAMS)
  assert max(np.abs(x).max() for x in jax.tree.leaves(plain)) > 0.1
  for unroll in (False, True):
    other = tiny.config(remat=remat, unroll_layers=unroll)
    jax.tree.map(close, plain, gradient_program(other)(PARAMS))


@pytest.mark.parametrize("unroll", [False, True])
def test_remat_recomputes_everything_all_but_products_or_nothing(unroll):
  def flops(remat):
    config = tiny.config(remat=remat, unroll_layers=unroll)
    compiled = gradient_program(config).lower(PARAMS).compile()
    return compiled.cost_analysis()["flops"]

  none, dots, full = flops(False), flops("dots"), flops(True)
  assert none * 1.01 < dots < full / 1.01
  # Control: the other names are these.
  assert (flops(None), flops("full")) == (none, full)


@pytest.mark.parametrize("remat", ["False", "True", "", "none", 1])
def test_remat_that_is_not_known_is_refused(remat):
  with pytest.raises(ValueError, match=f"ModelConfig.remat={remat!r}: give"):
    tiny.config(remat=remat)
  assert tiny.config(remat="full") == tiny.config(remat=True)
  assert tiny.config(remat=None) == tiny.config()


def test_bfloat16_is_close_to_float32():
  config = tiny.config(compute_dtype="bfloat16")
  low = jit_responses(
    PARAMS, config, PROMPTS.tokens, PROMPTS.mask, TOKENS, MASK, None
  )
  assert low.dtype == jnp.bfloat16
  z = jax.jit(models.logits, static_argnums=1)(PARAMS, config, low)
  assert z.dtype == jnp.float32
  error = np.abs(np.asarray(low, np.float32) - responses(PARAMS, tiny.CONFIG))[
    MASK
  ]
  # 8 bits of mantissa: about 0.4% an operation, on values of order 1.
  assert 1e-4 < error.max() < 0.15


def test_an_id_outside_the_vocabulary_is_nan_not_another_token():
  for bad in (20, -1):
    tokens = np.array([[3, 2, 4], [3, bad, 4]], np.int32)
    mask = np.ones((2, 3), bool)
    hidden = np.asarray(jit_forward(PARAMS, tiny.CONFIG, tokens, mask))
    assert np.isfinite(hidden[0]).all()
    assert np.isnan(hidden[1, 1:]).all()
    # In the padding it is nobody's token and does no harm.
    mask[1, 1:] = False
    hidden = np.asarray(jit_forward(PARAMS, tiny.CONFIG, tokens, mask))
    assert np.isfinite(hidden).all()


def test_logical_axes_name_every_axis():
  config = tiny.config(**EVERYTHING)
  shapes, axes = models.abstract_params(config), models.logical_axes(config)

  def is_names(x):
    return isinstance(x, tuple)

  assert jax.tree.structure(shapes) == jax.tree.structure(
    axes, is_leaf=is_names
  )
  size = {
    "layers": 2, "embed": 16, "heads": 4, "kv_heads": 2, "head_dim": 4,
    "mlp": 24, "vocab": 20,
  }  # fmt: skip
  jax.tree.map(
    lambda names, leaf: np.testing.assert_equal(
      tuple(size[n] for n in names), leaf.shape
    ),
    axes,
    shapes,
    is_leaf=is_names,
  )


def test_abstract_params_are_those_of_init():
  config = tiny.config(**EVERYTHING)
  made = jax.jit(models.init, static_argnums=0)
  one, other = made(config, jax.random.key(0)), made(config, jax.random.key(1))
  expected = models.abstract_params(config)
  jax.tree.map(
    lambda x, e: np.testing.assert_equal(
      (x.shape, x.dtype), (e.shape, jnp.float32)
    ),
    one,
    expected,
  )
  # Twice: 20·16 of embedding and unembedding, 16 of norm and value head. A
  # layer: query and output 16·16, key and value 16·8, biases 16 + 8 + 8, two
  # norms of 16 and two of 4, three times 16·24.
  layer = 2 * 256 + 2 * 128 + 32 + 40 + 3 * 384
  assert models.num_params(config) == 2 * 320 + 32 + 2 * layer
  for name in ("query", "down"):
    a, b = one["layers"][name], other["layers"][name]
    assert np.abs(a - b).max() > 0.01, "another key drew the same"
    assert np.abs(a[0] - a[1]).max() > 0.01, "both layers are the same"
  # Projections keep the variance: 1/√16. The branch's last is 1/√(24·2L).
  assert abs(np.std(one["layers"]["up"]) * 4 - 1) < 0.15
  assert abs(np.std(one["layers"]["down"]) * (24 * 4) ** 0.5 - 1) < 0.15


def test_unstacked_layers_are_the_slices():
  layers = decoding.layers_to_read(PARAMS, tiny.config(unroll_layers=True))
  assert decoding.layers_to_read(PARAMS, tiny.CONFIG) is PARAMS["layers"]
  assert len(layers) == 2
  np.testing.assert_array_equal(
    layers[1]["query"], PARAMS["layers"]["query"][1]
  )


def test_value_head_is_a_product_with_the_hidden_state():
  config = tiny.config(value_head=True)
  params = tiny.params(config)
  hidden = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
  expected = (hidden * np.asarray(params["trunk"]["value_head"])).sum(-1)
  close(models.values(params, config, hidden), expected)
  with pytest.raises(ValueError, match=r"ModelConfig\.value_head"):
    models.values(PARAMS, tiny.CONFIG, hidden)
