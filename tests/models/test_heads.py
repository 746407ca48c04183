"""Log-probs, entropies and KL from uniform, in one piece and in chunks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from tests import tiny
from tests.compare import must_fail
from tests.models.numpy_decoder import log_softmax

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
CONFIG = tiny.CONFIG
PARAMS = tiny.params(CONFIG)
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(3, 5, 16)).astype(np.float32)
TOKENS = RNG.integers(0, 20, (3, 5)).astype(np.int32)


def in_numpy(temperature):
  table = np.asarray(PARAMS["trunk"]["embedding"], np.float64)
  logp = log_softmax(HIDDEN @ table.T / temperature)
  p = np.exp(logp)
  z = HIDDEN @ table.T / temperature
  return models.TokenStatistics(
    token_logits=np.take_along_axis(z, TOKENS[..., None], -1)[..., 0],
    max_logits=z.max(-1),
    max_logprobs=logp.max(-1),
    extra={"square": (z**2).sum(-1) * TOKENS},
    logprobs=np.take_along_axis(logp, TOKENS[..., None], -1)[..., 0],
    entropies=-(p * logp).sum(-1),
    uniform_kl=(1 / 20 * (np.log(1 / 20) - logp)).sum(-1),
  )


@functools.partial(jax.jit, static_argnums=(1, 2))
def value_and_gradient(params, chunk_tokens, config=CONFIG):
  def loss(params, hidden):
    found = models.token_statistics(
      params,
      config,
      hidden,
      TOKENS,
      temperature=0.7,
      chunk_tokens=chunk_tokens,
      extra={"square": lambda z, tokens: (z**2).sum(-1) * tokens},
    )
    total = sum(
      (jnp.sin(1.0 + i + jnp.arange(15.0)).reshape(3, 5) * x).sum()
      for i, x in enumerate(jax.tree.leaves(found))
    )
    return total, found

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, HIDDEN)


def test_statistics_by_hand():
  # Logits (ln 1, ln 3): p = (1/4, 3/4). log p(0) = ln 1/4; the entropy is
  # 1/4 ln 4 + 3/4 ln 4/3; KL(u‖p) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3.
  config = tiny.config(vocab_size=2, embed_dim=1)
  params = {"trunk": {"embedding": np.array([[0.0], [np.log(3)]], "float32")}}
  found = jax.jit(
    lambda params: models.token_statistics(
      params,
      config,
      jnp.ones((1, 1, 1)),
      jnp.zeros((1, 1), jnp.int32),
      temperature=1.0,
    )
  )(params)
  close(found.logprobs, np.log(1 / 4))
  close(found.entropies, 0.25 * np.log(4) + 0.75 * np.log(4 / 3))
  close(found.uniform_kl, 0.5 * np.log(4 / 3))


def test_statistics_are_numpys():
  (_, found), _ = value_and_gradient(PARAMS, 1 << 25)
  jax.tree.map(close, found, in_numpy(0.7))
  must_fail(jax.tree.map, close, found, in_numpy(1.0))


def test_chunks_change_neither_value_nor_gradient():
  whole = value_and_gradient(PARAMS, 1 << 25)
  # 15 tokens in chunks of 4: the last one is padded. And one token at a time.
  for chunk_tokens in (4 * 20, 1):
    jax.tree.map(close, whole, value_and_gradient(PARAMS, chunk_tokens))
  gradients = jax.tree.leaves(whole[1])
  assert max(np.abs(g).max() for g in gradients) > 0.1


def test_the_chunk_is_the_models_unless_it_is_given():
  def lowered(chunk_tokens, config):
    return value_and_gradient.lower(PARAMS, chunk_tokens, config).as_text()

  small = dataclasses.replace(CONFIG, logits_at_once=4 * 20)
  assert lowered(None, small) == lowered(4 * 20, CONFIG)
  assert lowered(None, small) != lowered(None, CONFIG)
  with pytest.raises(ValueError, match="logits_at_once=0 must be at least 1"):
    dataclasses.replace(CONFIG, logits_at_once=0)


def test_the_logits_of_all_tokens_are_never_there():
  # 96 tokens of vocabulary 512: the logits are 192 KiB, a chunk's 16 KiB.
  tokens = jnp.zeros((4, 24), jnp.int32)
  hidden = jnp.ones((4, 24, 4))
  config = tiny.config(vocab_size=512, embed_dim=4)
  params = {"trunk": {"embedding": jnp.ones((512, 4))}}

  def temporary(chunk_tokens):
    def loss(params, hidden):
      found = models.token_statistics(
        params,
        config,
        hidden,
        tokens,
        temperature=1.0,
        chunk_tokens=chunk_tokens,
      )
      return (found.logprobs + found.entropies).sum()

    run = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, hidden)
    return run.compile().memory_analysis().temp_size_in_bytes

  logits = 4 * 96 * 512
  assert temporary(8 * 512) < logits
  assert temporary(96 * 512) > logits  # the plain form
