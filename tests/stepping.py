"""A tiny step with made-up responses: what tests of step and update share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlvr import step
from rlvr.advantages import group_relative
from rlvr.objectives import (
  clipped_policy_gradient,
  entropy_bonus,
  kl_penalty,
  token_mean,
)
from rlvr.probes.compute import ProbeSettings
from rlvr.rewards.algebra import chain
from rlvr.sampling import Sampling
from rlvr.scorers import scorer_of
from rlvr.types import Scores
from tests import make, tiny

P, G, T = 4, 4, 5
B = P * G
# One layer: the step doesn't see the depth, and this compiles soonest.
CONFIG = tiny.config(num_layers=1, unroll_layers=True)
PARAMS, REFERENCE = tiny.params(CONFIG), tiny.params(CONFIG, seed=1)
KL = kl_penalty(weight=0.5, estimator="k3")
CLIPPED = clipped_policy_gradient(clip_low=0.2, clip_high=0.28)

# float32 sums in another order.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)


def tree_close(a, b, **tolerance):
  jax.tree.map(functools.partial(close, **tolerance), a, b)


def changed(a, b):
  """Returns the greatest change of any parameter."""
  return max(
    float(np.abs(np.asarray(x) - np.asarray(y)).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


LAST_TOKEN = frozenset({"last_token_logprobs"})


def recipe(**changes):
  settings = {
    "model": CONFIG,
    "sampling": Sampling(max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD),
    "num_prompts": P,
    "group_size": G,
    "chain": chain(group_relative(scale_by_std=False)),
    "terms": (CLIPPED, entropy_bonus(weight=0.1)),
    "reduction": token_mean,
    # The first update is linear in the gradient; momentum is its state.
    "optimizer": optax.sgd(0.5, momentum=0.9),
    "probe_settings": ProbeSettings(end_id=tiny.END),
    "total_steps": 10,
    "has_reference": False,
  }
  return step.Recipe(**{**settings, **changes})


# What differs from `recipe()`, by name: each is one compilation.
VARIANTS = {
  "plain": {},
  "two_pieces": {"micro_batches": 2},
  "four_pieces": {"micro_batches": 4},
  "two_updates": {"updates_per_batch": 2},
  "uneven": {"even_groups": False},
  "uneven_two_pieces": {"even_groups": False, "micro_batches": 2},
  "uneven_two_updates": {"even_groups": False, "updates_per_batch": 2},
  "eight": {"even_groups": False, "micro_batches": 8},
  "alone": {"num_prompts": B, "group_size": 1},
  "recomputed": {"old_logprobs": "recomputed"},
  # Two settings that don't touch each other: one compilation less.
  "recomputed_with_kl": {
    "old_logprobs": "recomputed",
    "terms": (CLIPPED, entropy_bonus(weight=0.1), KL),
    "has_reference": True,
  },
}

# Responses of 1 to 5 tokens, not quite from this policy: ragged by group too.
ROLLOUT = make.rollout(
  group_sizes=(G,) * P,
  lengths=(5, 1, 2, 4, 1, 3, 1, 1, 5, 5, 4, 5, 2, 2, 3, 1),
  num_tokens=T,
  prompt_tokens=5,
  answer_tokens=T,
)
MASK = np.asarray(ROLLOUT.completion_mask)


WEIGHTS = np.array([1, 1, 0.5, 1, 0, 1, 2, 1] * 2)


def scores(advantages=None, weights=None):
  drawn = np.random.default_rng(0).normal(size=(B, 1)) * MASK
  return Scores(
    outcome={},
    step={},
    token={},
    advantages=jnp.asarray(
      drawn if advantages is None else advantages, jnp.float32
    ),
    weights=jnp.asarray(WEIGHTS if weights is None else weights, jnp.float32),
    metrics={},
  )


SCORES = scores()
KEY = jax.random.key(7)


def state_of(recipe):
  return step.init_state(recipe, KEY, PARAMS)


@functools.cache
def jitted(function, variant):
  """Returns the recipe and the step's function for it, jitted."""
  made = recipe(**VARIANTS[variant])
  return made, jax.jit(functools.partial(function, made))


def updated(variant="plain", rollout=ROLLOUT, scores=SCORES):
  """Returns (state, metrics) after the updates on one batch."""
  made, run = jitted(step.update, variant)
  return run(state_of(made), rollout, scores, {})


def changed_norm(params):
  return np.sqrt(
    sum(
      ((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2).sum()
      for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True
      )
    )
  )


@functools.cache
def scored_tokens():
  """Returns the policy's statistics of the batch's tokens."""
  run = jax.jit(scorer_of(CONFIG, PARAMS, 1.0))
  prompts = ROLLOUT.prompts
  found = run(prompts.tokens, prompts.mask, ROLLOUT.tokens, MASK, None)
  return {k: np.asarray(v, np.float64) for k, v in found.items()}
