"""Windows over padding, prompts and responses: every road gives one answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from rlvr.models import decoding, kinds
from rlvr.models.attention import near, softcapped
from tests import tiny
from tests.compare import must_fail

# A window shorter than the prompts, so that it ends in the prompt for the
# first response tokens and in the response for the last.
CONFIG = tiny.config(
  num_layers=3,
  sliding_window=3,
  layer_pattern=("local", "global"),
  local_rope_theta=50.0,
  attention_softcap=1.0,
  query_scale=0.7,
  post_norms=True,
  norm_offset=1.0,
)
P, G, T = 3, 2, 6
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@functools.cache
def inputs():
  rng = np.random.default_rng(3)
  mask = np.arange(T) < np.array([6, 3, 5, 1, 6, 2])[:, None]
  tokens = jnp.asarray(rng.integers(2, 20, (P * G, T)) * mask, jnp.int32)
  return tiny.params(CONFIG), tiny.prompts(), tokens, mask


def responses(config, group=None):
  params, prompts, tokens, mask = inputs()
  call = jax.jit(models.forward_responses, static_argnums=1)
  return np.asarray(
    call(params, config, prompts.tokens, prompts.mask, tokens, mask, group)
  )


def by_forward(config, group):
  """Returns the same from one sequence of prompt and response, padded left."""
  params, prompts, tokens, mask = inputs()
  both = np.concatenate([np.asarray(prompts.tokens)[group], tokens], axis=1)
  both_mask = np.concatenate([np.asarray(prompts.mask)[group], mask], axis=1)
  call = jax.jit(models.forward, static_argnums=1)
  first = prompts.tokens.shape[1] - 1
  return np.asarray(call(params, config, both, both_mask))[:, first:-1]


@pytest.mark.parametrize(
  "pattern", [("local", "global"), ("local",), ("global", "local", "local")]
)
def test_responses_see_what_the_whole_sequence_sees(pattern):
  config = tiny.config(**{**_fields(), "layer_pattern": pattern})
  mask = inputs()[3]
  even = np.repeat(np.arange(P), G)
  expected = by_forward(config, even)[mask]
  close(responses(config)[mask], expected)
  close(responses(config, jnp.asarray(even))[mask], expected)
  uneven = np.array([0, 0, 0, 0, 1, 2])
  found = responses(config, jnp.asarray(uneven))[mask]
  close(found, by_forward(config, uneven)[mask])
  must_fail(close, found, expected)


def _fields():
  return {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}


def test_decoding_sees_what_the_whole_sequence_sees():
  params, prompts, tokens, mask = inputs()
  even = np.repeat(np.arange(P), G)

  @jax.jit
  def teacher_forced(params):
    _, kept = models.prefill(params, CONFIG, prompts.tokens, prompts.mask)
    reading = decoding.Reading(
      trunk=params["trunk"],
      layers=decoding.layers_to_read(params, CONFIG),
      prompts=kept,
      prompt_mask=prompts.mask,
      prompt_lengths=prompts.mask.sum(-1)[even],
    )
    cache = decoding.empty_cache(CONFIG, P * G, T)
    found = []
    for t in range(T - 1):
      hidden, cache = models.decode(
        reading, CONFIG, tokens[:, t], jnp.int32(t), cache
      )
      found.append(hidden)
    return jnp.stack(found, axis=1)

  found = np.asarray(teacher_forced(params))[mask[:, 1:]]
  expected = responses(CONFIG)[:, 1:][mask[:, 1:]]
  close(found, expected)
  other = tiny.config(**{**_fields(), "sliding_window": 4})
  must_fail(close, found, responses(other)[:, 1:][mask[:, 1:]])


def test_left_padding_changes_nothing():
  params, prompts, _, _ = inputs()
  tokens, mask = np.asarray(prompts.tokens), np.asarray(prompts.mask)
  call = jax.jit(models.forward, static_argnums=1)
  found = np.asarray(call(params, CONFIG, tokens, mask))
  more = ((0, 0), (4, 0))
  shifted = call(params, CONFIG, np.pad(tokens, more), np.pad(mask, more))
  close(np.asarray(shifted)[:, 4:][mask], found[mask])


def test_remat_and_unrolling_change_nothing():
  params, prompts, _, _ = inputs()

  def loss(config):
    def of(params):
      hidden = models.forward(params, config, prompts.tokens, prompts.mask)
      return jnp.where(prompts.mask[..., None], hidden**3, 0.0).sum()

    return jax.jit(jax.grad(of))(params)

  other = tiny.config(**{**_fields(), "remat": True, "unroll_layers": True})
  jax.tree.map(functools.partial(close, rtol=1e-3), loss(CONFIG), loss(other))


def test_near_by_hand():
  # A window of 2: the token itself and the one before; later ones are not cut.
  found = near(jnp.array([0, 1, 3]), jnp.array([0, 1, 2]), 2)
  expected = [[1, 1, 1], [1, 1, 1], [0, 0, 1]]
  np.testing.assert_array_equal(found, np.array(expected, bool))


def test_softcapped_by_hand():
  # 2 tanh(1 / 2 · ln 3) = 2 · (3 - 1) / (3 + 1) = 1.
  close(softcapped(jnp.log(3.0), 2.0), 1.0)
  assert softcapped(7.0, None) == 7.0


def test_a_plain_model_has_one_mask_and_no_flag():
  mask = jnp.ones((1, 4, 4), bool)
  at = jnp.arange(4)[None]
  plain = kinds.masks_by_kind(tiny.CONFIG, mask, at, at, 4)
  assert list(plain) == ["global"]
  assert kinds.of_layer(plain, None) is mask
  # Nor does a window that no sequence reaches make one.
  wide = tiny.config(sliding_window=4, layer_pattern=("local", "global"))
  found = kinds.masks_by_kind(wide, mask, at, at, 4)
  assert found["local"] is found["global"] is mask
  assert kinds.of_layer(found, jnp.array(True)) is mask
  found = kinds.masks_by_kind(wide, mask, at, at, 5)
  assert found["local"] is not found["global"]


def test_a_soft_cap_on_logits_has_no_unembedding():
  capped = tiny.config(final_softcap=0.5)
  params = tiny.params(capped)
  hidden = 4 * jnp.ones((1, 16))
  z = models.logits(params, capped, hidden)
  plain = models.logits(params, tiny.CONFIG, hidden)
  close(z, 0.5 * np.tanh(np.asarray(plain) / 0.5))
  assert np.abs(plain).max() > 1
  with pytest.raises(ValueError, match=r"ModelConfig\.final_softcap=0\.5"):
    models.unembedding(params, capped)
