"""Sampling from fewer bits: whose log-probs, which slots, what stays small."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models, sharding
from rlvr.meshes import MeshShape, Rules, make_mesh, on_mesh
from rlvr.models import quantized
from rlvr.models.precision import sampling_params
from rlvr.sampling import AS_TRAINED, Precision, Sampling, sample
from tests import tiny
from tests.compare import must_fail

CONFIG = tiny.config(layer_pattern=("local", "global"), sliding_window=4)
PARAMS, PROMPTS = tiny.params(CONFIG), tiny.prompts()
G, T = 6, 9
INT8 = Precision(weights="int8", cache="int8")
SAMPLING = Sampling(max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD)


def program(precision, num_slots=0, config=CONFIG, prompts=PROMPTS, size=G):
  settings = dataclasses.replace(SAMPLING, precision=precision, slots=num_slots)
  return lambda params, key: sample(
    params, config, prompts, key, sampling=settings, group_size=size
  )


@functools.cache
def drawn(precision, num_slots=0):
  run = jax.jit(program(precision, num_slots))
  return jax.device_get(run(PARAMS, jax.random.key(2)))


def same(found, expected):
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.finished, expected.finished)
  np.testing.assert_allclose(
    found.behavior_logprobs, expected.behavior_logprobs, rtol=1e-4, atol=2e-5
  )


@pytest.mark.parametrize(
  "precision", [INT8, Precision(cache="int8", compute_dtype="bfloat16")]
)
def test_slots_change_no_token(precision):
  expected = drawn(precision)
  assert len(set(expected.lengths.tolist())) > 3
  same(drawn(precision, 4), expected)
  must_fail(same, drawn(AS_TRAINED), expected)


def scored(rollout, params, config=CONFIG):
  @jax.jit
  def run(params):
    hidden = models.forward_responses(
      params,
      config,
      PROMPTS.tokens,
      PROMPTS.mask,
      rollout.tokens,
      rollout.completion_mask,
    )
    return models.token_statistics(
      params, config, hidden, rollout.tokens, temperature=1.0
    ).logprobs

  return np.where(rollout.completion_mask, run(params), 0.0)


def test_log_probs_are_the_sampler_s_own():
  precision = Precision(weights="int8")
  rollout = drawn(precision)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  kept = sampling_params(PARAMS, CONFIG, precision)
  close(rollout.behavior_logprobs, scored(rollout, kept))
  must_fail(close, rollout.behavior_logprobs, scored(rollout, PARAMS))


def test_log_probs_are_float32():
  for precision in (INT8, Precision(compute_dtype="bfloat16")):
    shape = jax.eval_shape(program(precision), PARAMS, jax.random.key(0))
    assert shape.behavior_logprobs.dtype == jnp.float32


def test_as_trained_is_the_same_program():
  plain = Sampling(max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD)

  def text(settings):
    def run(params, key):
      return sample(
        params, CONFIG, PROMPTS, key, sampling=settings, group_size=G
      )

    return jax.jit(run).lower(PARAMS, jax.random.key(0)).as_text()

  named = Precision(weights="float32", cache="float32")
  assert "xi8>" not in text(plain)
  assert text(dataclasses.replace(plain, precision=named)) == text(plain)
  assert "xi8>" in text(dataclasses.replace(plain, precision=INT8))


def carried(precision, unroll=False):
  """Returns the types of the matrices that the decoding loop holds."""
  config = tiny.config(unroll_layers=unroll, mlp_dim=28)
  run = jax.jit(program(precision, config=config))
  text = run.lower(tiny.params(config), jax.random.key(0)).compile().as_text()
  loops = re.findall(r"= \((.*)\) while\(", text)
  return set(re.findall(r"(\w+)\[2,16,28\]", " ".join(loops)))


def test_int8_weights_stay_int8_through_the_loop():
  assert carried(INT8) == {"s8"}
  assert carried(AS_TRAINED) == {"f32"}


# The numbers of one device are those of eight, cut along every axis.
@functools.cache
def on_devices(shape, precision=INT8):
  prompts = tiny.prompts(lengths=(5, 2, 3, 4, 1, 5, 2, 3))
  mesh = make_mesh(
    shape, jax.devices()[: math.prod(dataclasses.astuple(shape))]
  )
  run = program(precision, prompts=prompts, size=2)
  rules = Rules()
  params = jax.device_put(PARAMS, sharding.param_shardings(CONFIG, mesh, rules))
  return jax.device_get(
    jax.jit(on_mesh(run, mesh, rules))(params, jax.random.key(2))
  )


@pytest.mark.parametrize(
  "shape", [MeshShape(fsdp=8), MeshShape(data=2, fsdp=2, tensor=2)]
)
def test_a_mesh_changes_no_token(shape):
  expected = on_devices(MeshShape())
  same(on_devices(shape), expected)
  must_fail(same, on_devices(MeshShape(), AS_TRAINED), expected)


def test_other_scales_would_be_seen(monkeypatch):
  # The control: scales of a part of each group, such as one device's.
  expected = on_devices(MeshShape())
  real = quantized.quantize

  def of_a_part(x, axes):
    found = real(x, axes)
    scale = real(x[:, : x.shape[1] // 2], axes).scale
    return quantized.Quantized(found.values, scale)

  monkeypatch.setattr("rlvr.models.precision.quantize", of_a_part)
  must_fail(same, on_devices.__wrapped__(MeshShape()), expected)
