"""FLOPs by formula: a case by hand, and what a compiler counts."""

import dataclasses

import jax
import jax.numpy as jnp

from rlvr import models
from rlvr.infra.model_flops import forward_flops, step_flops
from tests import stepping, tiny

SIZES = {
  "num_prompts": 2,
  "prompt_length": 3,
  "group_size": 4,
  "response_length": 5,
}


def test_a_pass_by_hand():
  # A layer's matrices: q and o 16 · 16 each, k and v 16 · 8 each, three of
  # 16 · 24 in the MLP: 1920, twice. Tokens: 2 · 3 + 8 · 5 = 46.
  #   2 · 3840 · 46 = 353280
  # Head: 2 · 20 · 16 · 40 = 25600.
  # Attention: 4 · 2 · 4 · 4 · (2 · 9 / 2 + 8 · (15 + 12.5)) = 128 · 229.
  assert forward_flops(tiny.CONFIG, **SIZES) == 353280 + 25600 + 29312


def test_norms_and_biases_count_nothing():
  config = tiny.config(qkv_bias=True, qk_norm=True, post_norms=True)
  assert forward_flops(config, **SIZES) == forward_flops(tiny.CONFIG, **SIZES)
  # Control: a wider MLP does.
  wider = tiny.config(mlp_dim=25)
  more = forward_flops(wider, **SIZES) - forward_flops(tiny.CONFIG, **SIZES)
  assert more == 2 * 46 * 2 * 3 * 16


def test_a_step_is_passes_and_three_times_each_trained_one():
  plain = stepping.recipe(has_reference=False, terms=(stepping.CLIPPED,))
  flops = step_flops(plain, prompt_length=3)
  one = flops["sample"]
  assert flops["score"] == 0
  assert flops["update"] == 3 * one
  assert flops["fused"] == 4 * one
  again = dataclasses.replace(plain, passes_per_batch=2)
  assert step_flops(again, prompt_length=3)["update"] == 6 * one
  # The policy's own old log-probs, and those of a reference: a pass each.
  both = dataclasses.replace(
    plain,
    old_logprobs="recomputed",
    updates_per_batch=2,
    terms=(stepping.CLIPPED, stepping.KL),
    has_reference=True,
  )
  assert step_flops(both, prompt_length=3)["score"] == 2 * one
  # The only update of a batch has the policy's own.
  single = dataclasses.replace(both, updates_per_batch=1)
  assert step_flops(single, prompt_length=3)["score"] == one


def test_close_to_what_a_compiler_counts():
  """Wide layers, short sequences: products are all but the whole of it."""
  config = tiny.config(
    embed_dim=128, mlp_dim=256, head_dim=32, vocab_size=512, unroll_layers=True
  )
  tokens = jnp.zeros((2, 8), jnp.int32)

  def f(params):
    hidden = models.forward(params, config, tokens, tokens == 0)
    return models.logits(params, config, hidden)

  params = models.abstract_params(config)
  counted = jax.jit(f).lower(params).cost_analysis()["flops"]
  # Prompts of nothing: all tokens are of responses.
  formula = forward_flops(
    config, num_prompts=2, prompt_length=0, group_size=1, response_length=8
  )
  assert 1 < counted / formula < 1.1
  deeper = dataclasses.replace(config, num_layers=3)
  wrong = forward_flops(
    deeper, num_prompts=2, prompt_length=0, group_size=1, response_length=8
  )
  assert counted / wrong < 0.9  # control
