"""What the sampler keeps with fewer bits, and what that does to a gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from rlvr.advantages import importance_ratios, truncated_weights
from rlvr.models import decoding, quantized
from rlvr.models.config import PROJECTIONS
from rlvr.models.precision import (
  AS_TRAINED,
  Precision,
  sampling_axes,
  sampling_params,
)
from rlvr.models.quantized import Quantized, dequantize
from tests import tiny
from tests.compare import must_fail

INT8 = Precision(weights="int8", cache="int8")
CONFIG = tiny.config(qkv_bias=True, qk_norm=True)


def test_as_trained_is_the_parameters_as_they_are_decoded_with():
  params = tiny.params(CONFIG)
  found = sampling_params(params, CONFIG, AS_TRAINED)
  expected = models.compute_params(params, CONFIG)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  assert all(
    a is b
    for a, b in zip(
      jax.tree.leaves(found), jax.tree.leaves(params), strict=True
    )
  )


def test_int8_weights_are_the_projections_with_a_scale_for_each_output():
  params = tiny.params(CONFIG)
  found = sampling_params(params, CONFIG, INT8)
  kept = {k for k, v in found["layers"].items() if isinstance(v, Quantized)}
  assert kept == set(PROJECTIONS)
  assert found["trunk"] is not None
  np.testing.assert_array_equal(
    found["trunk"]["embedding"], params["trunk"]["embedding"]
  )
  layers = found["layers"]
  assert layers["query"].scale.shape == (2, 1, 4, 4)  # L, 1, H, N
  assert layers["output"].scale.shape == (2, 1, 1, 16)  # L, 1, 1, D
  assert layers["down"].scale.shape == (2, 1, 16)
  for name in PROJECTIONS:
    np.testing.assert_allclose(
      dequantize(layers[name]), params["layers"][name], atol=0.04
    )
  # From the float32 parameters, whatever is computed with.
  low = models.ModelConfig(**{**vars(CONFIG), "compute_dtype": "bfloat16"})
  again = sampling_params(params, low, INT8)["layers"]["up"]
  np.testing.assert_array_equal(again.values, layers["up"].values)
  assert sampling_params(params, low, INT8)["trunk"]["embedding"].dtype == (
    jnp.bfloat16
  )


def test_adapters_and_norms_stay_floats():
  lora = models.LoRA(rank=2, alpha=4.0, projections=("query", "down"))
  config = tiny.config(lora=lora)
  layers = sampling_params(tiny.params(config), config, INT8)["layers"]
  for name in ("query_lora_a", "down_lora_b"):
    assert layers[name].dtype == jnp.float32
  assert layers["attention_norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize(
  "changes",
  [
    {"lora": models.LoRA(rank=2, alpha=4.0, projections=("query", "output"))},
    {"unroll_layers": True, "post_norms": True, "tie_embeddings": False},
  ],
)
def test_a_model_of_int8_is_that_of_the_numbers_turned_back(changes):
  config, prompts = tiny.config(**changes), tiny.prompts()
  params = tiny.params(config)
  kept = sampling_params(params, config, INT8)
  back = jax.tree.map(
    dequantize, kept, is_leaf=lambda x: isinstance(x, Quantized)
  )

  @jax.jit
  def hidden(params):
    return models.forward(params, config, prompts.tokens, prompts.mask)

  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  mask = np.asarray(prompts.mask)
  close(hidden(kept)[mask], hidden(back)[mask])
  must_fail(close, hidden(kept)[mask], hidden(params)[mask])


def test_axes_have_the_shape_of_the_parameters():
  params = sampling_params(tiny.params(CONFIG), CONFIG, INT8)
  axes = sampling_axes(models.logical_axes(CONFIG), params)
  query = axes["layers"]["query"]
  assert query.values == ("layers", "embed", "heads", "head_dim")
  assert query.scale == query.values
  plain = models.logical_axes(CONFIG)
  assert sampling_axes(plain, tiny.params(CONFIG)) == plain


def test_cache_bytes_are_those_of_the_cache():
  for precision in (AS_TRAINED, INT8, Precision(cache="bfloat16")):
    cache = jax.eval_shape(
      lambda p=precision: decoding.empty_cache(CONFIG, 3, 8, p.cache)
    )
    count = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert count == 3 * 8 * precision.cache_bytes(CONFIG), precision
  low = Precision(compute_dtype="bfloat16")
  assert low.cache_bytes(CONFIG) * 2 == AS_TRAINED.cache_bytes(CONFIG)


def test_when_the_sampler_differs():
  low = tiny.config(compute_dtype="bfloat16")
  assert not AS_TRAINED.differs(CONFIG)
  assert not Precision(weights="float32", cache="float32").differs(CONFIG)
  assert not Precision(cache="bfloat16").differs(low)
  assert not Precision(compute_dtype="bfloat16").differs(low)
  assert Precision(compute_dtype="float32").differs(low)
  for name in ("compute_dtype", "weights", "cache"):
    assert Precision(**{name: "bfloat16"}).differs(CONFIG)
  assert Precision(compute_dtype="bfloat16").config(CONFIG).compute_dtype == (
    "bfloat16"
  )
  assert AS_TRAINED.config(CONFIG) is CONFIG


@pytest.mark.parametrize(
  ("name", "value"),
  [("compute_dtype", "int8"), ("weights", "int4"), ("cache", "float16")],
)
def test_values_that_are_not_known(name, value):
  with pytest.raises(ValueError, match=rf"Precision\.{name}='{value}'"):
    Precision(**{name: value})


# Every response of 3 tokens over 6: expectations are sums, without noise.
TOKENS = jnp.asarray(list(itertools.product(range(6), repeat=3)), jnp.int32)
SMALL = tiny.config(vocab_size=6, num_layers=1)


@functools.cache
def compiled():
  prompt, seen = jnp.array([[2, 3, 4]]), jnp.ones((1, 3), bool)
  mask = jnp.ones(TOKENS.shape, bool)

  def logprobs(params):
    hidden = models.forward_responses(params, SMALL, prompt, seen, TOKENS, mask)
    return models.token_statistics(
      params, SMALL, hidden, TOKENS, temperature=1.0
    ).logprobs

  def gradients(params, coefficients):
    pull = jax.vjp(logprobs, params)[1]
    return {k: pull(c)[0] for k, c in coefficients.items()}

  return mask, jax.jit(logprobs), jax.jit(gradients)


def expected_gradients(seed):
  """Returns the gradient's relative error by how the sampler is corrected."""
  mask, logprobs, gradients = compiled()
  params = tiny.params(SMALL, seed)
  pi = logprobs(params)
  mu = jax.jit(compiled()[1].__wrapped__)(
    sampling_params(params, SMALL, Precision(weights="int8"))
  )
  p, m = (jnp.exp(x.sum(-1, keepdims=True)) for x in (pi, mu))
  assert float(m.sum()) == pytest.approx(1.0, abs=1e-4)
  rewards = np.random.default_rng(seed).normal(size=p.shape)
  advantages = jnp.asarray(rewards - (p * rewards).sum(), jnp.float32)
  token, whole = (
    importance_ratios(pi, mu, mask, level=level)
    for level in ("token", "sequence")
  )
  weights = {
    "trained": p + 0 * token,
    "none": m + 0 * token,
    "token": m * truncated_weights(token, cap=2.0),
    "sequence": m * truncated_weights(whole, cap=2.0),
  }
  found = gradients(params, {k: w * advantages for k, w in weights.items()})
  flat = {
    k: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for k, tree in found.items()
  }
  best = flat.pop("trained")
  return {
    k: float(np.linalg.norm(g - best) / np.linalg.norm(best))
    for k, g in flat.items()
  }


def test_the_gradient_of_int8_weights_is_right_with_sequence_weights():
  wrong = expected_gradients(0)
  # No ratio is near the cap here: what is left is rounding.
  assert wrong["sequence"] < 1e-5
  assert 1e-3 < wrong["none"] < 0.1


def test_each_correction_takes_bias_away(monkeypatch):
  # 4 bits, for a bias that stands out: each step to the right is a better one.
  monkeypatch.setattr(quantized, "_MOST", 7)
  for seed in (1, 2, 3):
    wrong = expected_gradients(seed)
    assert wrong["none"] > 0.3
    assert wrong["token"] < 0.7 * wrong["none"]
    # What is left is what the cap takes away.
    assert wrong["sequence"] < 0.3 * wrong["token"]


def test_a_correction_the_wrong_way_would_be_seen(monkeypatch):
  monkeypatch.setattr(quantized, "_MOST", 7)

  def better(seed):
    wrong = expected_gradients(seed)
    assert wrong["sequence"] < wrong["none"]

  better(1)
  real = importance_ratios
  monkeypatch.setattr(
    f"{__name__}.importance_ratios",
    lambda pi, mu, mask, level: real(mu, pi, mask, level=level),
  )
  must_fail(better, 1)
