"""Families against `transformers`: logits, continuations, config.json, sizes.

`tests/reference/families` holds what make_families_transformers.py made: tiny
checkpoints with each family's peculiarities switched on. Here they are read by
`hf_names` and computed by the decoder. The greatest difference of logits, of
sizes up to 6, float32 against float32, is 2e-5.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from rlvr.models import hf_config, hf_names
from rlvr.sampling import Sampling, sample
from rlvr.types import Prompts

FOLDER = pathlib.Path(__file__).parents[1] / "reference" / "families"
CASES = sorted(p.stem for p in FOLDER.glob("*.npz"))
# Sums of some hundred float32 products in another order.
ATOL = 5e-5
# What a peculiarity that is left out changes, at least: 10,000 times as much.
SHOWS = 0.5
pytestmark = pytest.mark.parity

jit_forward = jax.jit(models.forward, static_argnums=1)


@functools.cache
def case(name):
  """Returns a file's arrays and what it says about itself."""
  with np.load(FOLDER / f"{name}.npz") as file:
    arrays = dict(file)
  return arrays, json.loads(str(arrays.pop("about")))


def config_of(name):
  return hf_names.config_from_huggingface(case(name)[1]["config"])


@functools.cache
def params_of(name):
  config = config_of(name)
  params = jax.tree.map(
    lambda x: np.full(x.shape, np.nan, np.float32),
    models.abstract_params(config),
  )
  for hf_name, tensor in hf_names.hf_tensors(config).items():
    node = params
    for part in tensor.path:
      node = node[part]
    value = tensor.to_ours(case(name)[0][f"weight/{hf_name}"])
    node[... if tensor.layer is None else tensor.layer] = value
  assert not any(np.isnan(x).any() for x in jax.tree.leaves(params))
  return jax.tree.map(jnp.asarray, params)


def only(like, params):
  """Returns the parameters that a config without some of them has."""
  if not isinstance(like, dict):
    return params
  return {k: only(v, params[k]) for k, v in like.items()}


def logits(name, config, side):
  arrays, _ = case(name)
  tokens, mask = (
    arrays[f"{side}/tokens"].astype(np.int32),
    arrays[f"{side}/mask"],
  )
  params = only(models.abstract_params(config), params_of(name))
  hidden = jit_forward(params, config, tokens, mask)
  return np.asarray(models.logits(params, config, hidden))[mask]


def difference(name, config, side="left"):
  return np.abs(
    logits(name, config, side) - case(name)[0][f"{side}/logits"]
  ).max()


def test_all_families_have_a_case():
  kinds = {case(name)[1]["config"]["model_type"] for name in CASES}
  assert kinds == set(hf_config.FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name):
  config = config_of(name)
  for side in ("left", "right"):
    assert difference(name, config, side) < ATOL


# What each case has switched on, and how the config is without it.
_OFF = [
  ("qwen2", {"rope_scaling": None}),
  ("qwen2", {"rope_scaling": {"attention_factor": 1.0}}),
  ("qwen2", {"rope_scaling": {"beta_fast": 1.0}}),
  ("qwen2", {"rope_theta": 10_000.0}),
  ("qwen2", {"qkv_bias": False}),
  ("qwen2_windows", {"layer_pattern": ("global",)}),
  ("qwen2_windows", {"layer_pattern": ("local",)}),
  ("qwen2_windows", {"sliding_window": 8}),
  ("qwen3", {"rope_scaling": None}),
  ("qwen3", {"qk_norm": False}),
  ("llama3", {"rope_scaling": None}),
  ("llama3", {"rope_scaling": {"kind": "linear"}}),
  ("llama3", {"rope_scaling": {"high_freq_factor": 2.0}}),
  ("smollm2", {"norm_epsilon": 0.1}),
  ("gemma2", {"attention_softcap": None}),
  ("gemma2", {"final_softcap": None}),
  ("gemma2", {"query_scale": None}),
  ("gemma2", {"layer_pattern": ("global",)}),
  ("gemma2", {"layer_pattern": ("global", "local")}),
  ("gemma2", {"sliding_window": 5}),
  ("gemma2", {"norm_offset": 0.0}),
  ("gemma2", {"post_norms": False}),
  ("gemma2", {"activation": "silu"}),
  ("gemma2", {"scale_embeddings": False}),
  ("gemma3", {"local_rope_theta": None}),
  ("gemma3", {"local_rope_theta": 1000.0}),
  ("gemma3", {"rope_scaling": None}),
  ("gemma3", {"layer_pattern": ("local",)}),
  ("gemma3", {"qk_norm": False}),
]


@pytest.mark.parametrize(("name", "off"), _OFF)
def test_a_peculiarity_that_is_left_out_shows(name, off):
  config = config_of(name)
  changes = dict(off)
  if isinstance(off.get("rope_scaling"), dict):
    changes["rope_scaling"] = dataclasses.replace(
      config.rope_scaling, **off["rope_scaling"]
    )
  broken = dataclasses.replace(config, **changes)
  assert broken != config
  assert difference(name, broken) > SHOWS


def continued(name):
  """Returns 64 greedy tokens of two left-padded prompts, int32 [2, 64]."""
  arrays, _ = case(name)
  prompts = Prompts(
    tokens=jnp.asarray(arrays["left/tokens"], jnp.int32),
    mask=jnp.asarray(arrays["left/mask"]),
    answer_tokens=jnp.zeros((2, 1), jnp.int32),
    answer_mask=jnp.zeros((2, 1), bool),
  )
  sampling = Sampling(max_tokens=64, end_id=1000, pad_id=0, temperature=0.0)
  rollout = jax.jit(
    functools.partial(sample, sampling=sampling, group_size=1),
    static_argnums=1,
  )(params_of(name), config_of(name), prompts, jax.random.key(0))
  return np.asarray(rollout.tokens)


@pytest.mark.parametrize("name", CASES)
def test_greedy_continuations_are_those_of_transformers(name):
  # Through prefill and decode.
  arrays, about = case(name)
  expected = arrays["continuation"]
  assert expected.shape == (2, 64)
  assert about["least_margin"] > 0.009  # no token turns on a rounding
  np.testing.assert_array_equal(continued(name), expected)


def test_the_page_has_all_families():
  """docs/real_models.md: tests.models.print_families makes its table."""
  page = (FOLDER.parents[2] / "docs" / "real_models.md").read_text()
  rows = {
    cells[1].strip(" `"): cells
    for line in page.splitlines()
    if len(cells := line.split("|")) == 8
  }
  for name in CASES:
    size, error, equal = rows[name][3:6]
    logits = [case(name)[0][f"{side}/logits"] for side in ("left", "right")]
    assert float(size) == round(float(max(np.abs(x).max() for x in logits)), 1)
    assert float(error) < ATOL
    assert equal.strip() == "128 of 128"
