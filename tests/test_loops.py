"""The loops' settings: what is chosen where nothing is said, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr import loops, step
from rlvr.advantages import group_relative, truncated_importance_sampling
from rlvr.objectives import clipped_policy_gradient, token_mean
from rlvr.packing import PACKING
from rlvr.rewards.algebra import chain
from rlvr.sampling import Precision, Sampling
from rlvr.types import Signals
from rlvr.verifiers.specs import VerifierSpec
from tests import tiny
from tests.compare import must_fail

P, G, T = 4, 4, 6
CONFIG = tiny.config(num_layers=1, unroll_layers=True)
LOW = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
INT8 = Precision(weights="int8", cache="int8")
PLAIN = chain(group_relative(scale_by_std=False, reward="correct"))
WEIGHED = chain(PLAIN, truncated_importance_sampling(level="token", cap=2.0))


class Vocabulary:
  """Nothing is encoded here but to know what ends."""

  eos_id, pad_id = tiny.END, tiny.PAD

  def encode(self, text):
    return [len(text)]


def setup(model=CONFIG, **sampling):
  return loops.Setup(
    model=model,
    vocabulary=Vocabulary(),
    source=None,
    sampling=Sampling(
      **{"max_tokens": T, "end_id": tiny.END, "pad_id": tiny.PAD} | sampling
    ),
    total_steps=10,
    answer_delimiter="",
    reference=None,
  )


def settings(*, on_device=True, **changes):
  given = {
    "num_prompts": P,
    "group_size": G,
    "chain": PLAIN,
    "terms": [clipped_policy_gradient(clip_low=0.2, clip_high=0.2)],
    "reduction": token_mean,
    "optimizer": optax.sgd(1.0),
    "verifier": VerifierSpec("correct", on_device, lambda _: None),
  }
  return loops.Reinforcement(**{**given, **changes})


# What the ratio is taken against.


@pytest.mark.parametrize(
  ("model", "changes", "expected"),
  [
    (CONFIG, {}, "behavior"),
    (LOW, {}, "recomputed"),
    (CONFIG, {"precision": INT8, "chain": WEIGHED}, "recomputed"),
    (LOW, {"precision": INT8, "chain": WEIGHED}, "recomputed"),
    # Numbers of the trainer's, by another name.
    (CONFIG, {"precision": Precision(weights="float32")}, "behavior"),
    (
      CONFIG,
      {"precision": Precision(compute_dtype="bfloat16"), "chain": WEIGHED},
      "recomputed",
    ),
    # The fused step never samples ahead; a split one does, and its ratio is to
    # the policy that sampled, unless the chain weighs that.
    (LOW, {"depth": 1}, "recomputed"),
    (LOW, {"depth": 1, "on_device": False}, "behavior"),
    (LOW, {"depth": 0, "on_device": False}, "recomputed"),
    (
      LOW,
      {"depth": 1, "on_device": False, "chain": WEIGHED},
      "recomputed",
    ),
    # What is said is done.
    (LOW, {"old_logprobs": "behavior"}, "behavior"),
    (CONFIG, {"old_logprobs": "recomputed"}, "recomputed"),
  ],
)
def test_the_ratio_s_other_side_goes_by_precision(model, changes, expected):
  assert settings(**changes).recipe(setup(model)).old_logprobs == expected


def test_what_the_default_does_not_settle_is_refused():
  for depth, on_device in ((0, True), (0, False), (1, False)):
    made = settings(precision=INT8, depth=depth, on_device=on_device)
    with pytest.raises(ValueError, match="put truncated_importance_sampling"):
      made.recipe(setup())
  with pytest.raises(ValueError, match="set old_logprobs = 'recomputed'"):
    settings(precision=INT8, chain=WEIGHED, old_logprobs="behavior").recipe(
      setup()
    )
  for model in (CONFIG, LOW):
    with pytest.raises(ValueError, match="top_k, top_p"):
      settings().recipe(setup(model, top_k=3))
  with pytest.raises(ValueError, match="old_logprobs='sampler'"):
    settings(old_logprobs="sampler").recipe(setup())
  shown = dataclasses.replace(INT8, allow_uncorrected=True)
  assert settings(precision=shown).recipe(setup()).own_old_logprobs


def first_update(model, old_logprobs):
  """Returns how far the first update moves the parameters, and its metrics."""
  recipe = settings(old_logprobs=old_logprobs).recipe(setup(model))

  def verifier(rollout, key):
    del key
    even = rollout.tokens[:, 0] % 2 == 0
    return Signals(
      outcome={"correct": even.astype(jnp.float32)},
      verdicts={"correct": jnp.where(even, 0, 1)},
    )

  params = tiny.params(model)
  state = step.init_state(recipe, jax.random.key(2), params)
  prompts = tiny.prompts(lengths=(5, 2, 3, 4))
  state, metrics, *_ = jax.jit(
    lambda state: step.fused_step(recipe, verifier, state, None, prompts)
  )(state)
  return jax.tree.map(lambda a, b: np.asarray(a - b), state.params, params), (
    metrics
  )


def test_the_sampler_s_error_stays_out_of_the_ratio():
  def same(a, b):
    scale = max(np.abs(x).max() for x in jax.tree.leaves(b))
    assert scale > 1e-3, "nothing was learnt"
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * scale),
      a,
      b,
    )

  chosen, metrics = first_update(LOW, None)
  # The error is there, and is measured.
  assert metrics["policy/behavior_kl"] > 1e-7
  same(chosen, first_update(LOW, "recomputed")[0])
  # Control: the sampler's log-probs make another update in bfloat16,
  must_fail(same, first_update(LOW, "behavior")[0], chosen)
  # and the same one in float32, where they are the default.
  chosen, metrics = first_update(CONFIG, None)
  assert metrics["policy/behavior_kl"] < 1e-9
  same(chosen, first_update(CONFIG, "recomputed")[0])


def test_the_plan_says_what_the_ratio_is_against():
  def said(model=CONFIG, **changes):
    return settings(**changes).plan(setup(model))["ratio against"]

  assert said().startswith("the sampler's log-probs (float32 throughout")
  assert "of the update itself (the sampler's differ: bfloat16" in said(LOW)
  several = said(LOW, updates_per_batch=2)
  assert "by a pass before the first update" in several
  assert "other numbers sampled with" in said(precision=INT8, chain=WEIGHED)
  assert "sampled ahead" in said(LOW, depth=1, on_device=False)
  assert "(old_logprobs='behavior')" in said(LOW, old_logprobs="behavior")


# Micro-batches by memory.


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_memory_is_refused(budget):
  with pytest.raises(ValueError, match=r"memory_budget_gb=.* must be positive"):
    settings(micro_batches="auto", memory_budget_gb=budget)


def test_a_budget_that_nothing_reads_is_refused():
  for given in (1, 4):
    with pytest.raises(
      ValueError, match=f"memory_budget_gb=8 .*micro_batches={given}"
    ):
      settings(micro_batches=given, memory_budget_gb=8)
  settings(micro_batches="auto", memory_budget_gb=8)
  settings(micro_batches=4)


def test_the_plan_says_which_numbers_are_tried():
  made = settings(micro_batches="auto", memory_budget_gb=0.5)
  found = made.plan(setup())["micro-batches per update"]
  assert found.startswith("the fewest of 1, 2, 4 that fit in 512.0 MiB")


def test_the_plan_says_how_responses_decode_and_are_packed():
  def said(model=CONFIG, packing=PACKING, **sampling):
    plan = settings(packing=packing).plan(setup(model, **sampling))
    return plan["decoding"], plan["padding"]

  decoding, padding = said()
  assert decoding == "all 16 responses at a time; an operation for each layer"
  assert padding.endswith("responses of fewer than 128 aren't packed")
  looped = dataclasses.replace(CONFIG, unroll_layers=False)
  decoding, padding = said(looped, slots=4, max_tokens=128)
  assert decoding.startswith("4 of 16 responses at a time, in refilled slots")
  assert decoding.endswith("a loop over layers")
  assert padding.startswith("left out: responses are packed by length")
  assert said(looped, unroll_layers=True)[0].endswith("for each layer")
  assert "packing=None" in said(packing=None, max_tokens=128)[1]
