"""A tiny model with parameters that hide no mistake, and prompts for it.

    params = tiny.params(tiny.CONFIG)
    prompts = tiny.prompts()

`init` leaves norms at 1, biases and the value head at 0: code that forgets one
would pass. Here every parameter is drawn. NumPy draws them, so that no test
waits for a compilation to have a model.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rlvr.models import ModelConfig, abstract_params
from rlvr.types import Prompts

CONFIG = ModelConfig(
  vocab_size=20,
  embed_dim=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_dim=24,
)
PAD, END, DELIMITER = 0, 1, 5


def config(**changes) -> ModelConfig:
  """Returns `CONFIG` with changes."""
  return dataclasses.replace(CONFIG, **changes)


def params(config: ModelConfig, seed: int = 0):
  """Returns drawn parameters; at no place 0 or 1."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    name = jax.tree_util.keystr(path)
    noise = rng.normal(size=leaf.shape)
    if "norm" in name:
      return jnp.asarray(1 + 0.3 * noise, jnp.float32)
    if "bias" in name or "value_head" in name:
      return jnp.asarray(0.5 * noise, jnp.float32)
    axes = leaf.shape[1:] if "layers" in name else leaf.shape
    fan_in = axes[-1] if "'embedding'" in name else math.prod(axes[:-1])
    return jnp.asarray(1.5 * noise / fan_in**0.5, jnp.float32)

  return jax.tree_util.tree_map_with_path(one, abstract_params(config))


def prompts(seed: int = 0, lengths=(5, 2, 3), num_tokens: int = 5) -> Prompts:
  """Returns ragged prompts, padded on the left, with answers of 1 to 2 tokens.

  Args:
    seed: of NumPy's generator.
    lengths: tokens of each prompt.
    num_tokens: S.
  """
  rng = np.random.default_rng(seed)
  count = len(lengths)
  mask = np.arange(num_tokens) >= num_tokens - np.asarray(lengths)[:, None]
  answer_mask = np.arange(2) < 1 + (np.arange(count) % 2)[:, None]
  return Prompts(
    tokens=jnp.asarray(rng.integers(6, 20, mask.shape) * mask, jnp.int32),
    mask=jnp.asarray(mask),
    answer_tokens=jnp.asarray(
      rng.integers(6, 20, answer_mask.shape) * answer_mask, jnp.int32
    ),
    answer_mask=jnp.asarray(answer_mask),
  )


def prompt_list(prompts: Prompts) -> list[list[int]]:
  """Returns each prompt's own tokens."""
  return [
    [int(t) for t in row[keep]]
    for row, keep in zip(
      np.asarray(prompts.tokens), np.asarray(prompts.mask), strict=True
    )
  ]
