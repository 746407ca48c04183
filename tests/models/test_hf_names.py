"""config.json and tensors' names: there and back, and what is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from rlvr.models import abstract_params, hf_names
from tests import tiny
from tests.models.test_families import CASES, case, config_of

LLAMA = {
  "model_type": "llama",
  "vocab_size": 20,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
}


@pytest.mark.parametrize("name", CASES)
def test_configs_survive_the_way_there_and_back(name):
  about = case(name)[1]
  config = config_of(name)
  # As version 5 of transformers writes the same model.
  assert hf_names.config_from_huggingface(about["config_saved"]) == config
  fields = hf_names.config_to_huggingface(config, about["config"]["model_type"])
  assert hf_names.config_from_huggingface(fields) == config
  saved = about["config_saved"]
  assert fields["architectures"] == [about["architecture"]]
  for key in ("hidden_size", "head_dim", "layer_types", "sliding_window"):
    # Qwen 2's class derives the head size.
    if saved.get(key) is not None:
      assert fields[key] == saved[key], key


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_all_of_the_parameters_and_come_back(name):
  config = config_of(name)
  sizes = 0
  for hf_name, tensor in hf_names.hf_tensors(config).items():
    assert hf_names.canonical_name(hf_name, config) == hf_name
    theirs = case(name)[0][f"weight/{hf_name}"]
    ours = tensor.to_ours(theirs)
    leaf = abstract_params(config)
    for part in tensor.path:
      leaf = leaf[part]
    assert ours.shape == leaf.shape[0 if tensor.layer is None else 1 :]
    back = tensor.to_hf(ours)
    np.testing.assert_array_equal(back, theirs)
    assert back.flags.c_contiguous
    assert back.dtype == ours.dtype == theirs.dtype
    sizes += theirs.size
  leaves = jax.tree.leaves(abstract_params(config))
  assert sizes == sum(math.prod(x.shape) for x in leaves)
  assert len(case(name)[0]) - 7 == len(hf_names.hf_tensors(config))


def test_names_around_the_text_model():
  config = tiny.CONFIG
  for name, expected in {
    "model.language_model.norm.weight": "model.norm.weight",
    "language_model.model.norm.weight": "model.norm.weight",
    "vision_tower.x": None,
    "model.vision_tower.x": None,
    "model.multi_modal_projector.x": None,
    "model.layers.0.self_attn.rotary_emb.inv_freq": None,
    "lm_head.weight": None,
    "something.else": "something.else",
  }.items():
    assert hf_names.canonical_name(name, config) == expected
  untied = tiny.config(tie_embeddings=False)
  head = "lm_head.weight"
  assert hf_names.canonical_name(f"language_model.{head}", untied) == head


def test_a_gemma3_that_sees_gives_its_text_model():
  # The published file leaves out what the class has as defaults.
  config = hf_names.config_from_huggingface(
    {
      "model_type": "gemma3",
      "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
      },
      "vision_config": {},
    }
  )
  assert config.layer_pattern == (*["local"] * 5, "global")
  assert (config.num_heads, config.head_dim, config.vocab_size) == (
    *(8, 256),
    262_208,
  )
  assert config.rope_scaling.factor == 8.0
  assert config.local_rope_theta == 10_000.0
  assert config.query_scale == 1 / 16


def test_windows_that_are_off_are_off():
  fields = LLAMA | {"model_type": "qwen2", "sliding_window": 4096}
  config = hf_names.config_from_huggingface(fields)
  assert config.layer_pattern == ("global",)
  assert config.sliding_window is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "mamba"}, r"model_type='mamba'.*'qwen3'"),
    ({"hidden_act": "relu"}, r"hidden_act='relu'"),
    ({"attention_bias": True}, r"attention_bias=True"),
    ({"mlp_bias": True}, r"mlp_bias=True"),
    ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5"),
    ({"quantization_config": {"bits": 4}}, r"quantization_config"),
    ({"sliding_window": 7}, r"sliding_window=7 in a LlamaForCausalLM"),
    ({"hidden_size": None}, r"'hidden_size' is missing"),
    ({"rope_scaling": {"rope_type": "longrope"}}, r"rope_type='longrope'"),
    ({"rope_scaling": {"type": "linear"}}, r"'linear' rope needs 'factor'"),
    (
      {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}},
      r"'mscale': 0.7",
    ),
    (
      {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "layer_types": ["linear_attention"] * 2,
      },
      r"layer_types=.*linear_attention",
    ),
  ],
)
def test_what_is_not_supported_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    hf_names.config_from_huggingface(LLAMA | changes)


def test_a_family_that_is_not_this_model_is_refused():
  llama = hf_names.config_from_huggingface(LLAMA)
  assert hf_names.family_of(llama) == "llama"
  biased = dataclasses.replace(llama, qkv_bias=True)
  with pytest.raises(ValueError, match=r"llama model .*qkv_bias=True"):
    hf_names.config_to_huggingface(biased, "llama")
  assert hf_names.family_of(biased) == "qwen2"
  both = dataclasses.replace(biased, post_norms=True)
  with pytest.raises(ValueError, match=r"no family is this model"):
    hf_names.family_of(both)
  with pytest.raises(ValueError, match=r"family='gpt'.*'llama'"):
    hf_names.config_to_huggingface(llama, "gpt")
  # The value head and how it is computed are not the file's business.
  headed = dataclasses.replace(llama, value_head=True, remat=True)
  assert hf_names.family_of(headed) == "llama"


def test_what_a_run_chooses_is_no_part_of_the_file():
  own = {
    "attention": "xla",
    "compute_dtype": "bfloat16",
    "logits_at_once": 1000,
    "remat": True,
    "unroll_layers": True,
  }
  plain = hf_names.config_to_huggingface(tiny.config(), "llama")
  assert hf_names.config_to_huggingface(tiny.config(**own), "llama") == plain
  with pytest.raises(ValueError, match="qk_norm=True"):
    hf_names.config_to_huggingface(tiny.config(qk_norm=True), "llama")
