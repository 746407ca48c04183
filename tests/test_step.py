"""The step: scores, fused and split, settings that contradict each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr import step
from rlvr.evaluate import decode_responses
from rlvr.objectives import (
  likelihood,
)
from rlvr.recipe import Noise, batch_key
from rlvr.rewards.algebra import chain, stateless
from rlvr.sampling import Sampling
from rlvr.types import Signals
from rlvr.verifiers.exact import exact_match_verifier
from rlvr.verifiers.exact_text import exact_text_verifier
from tests import tiny
from tests.compare import must_fail
from tests.stepping import (
  KEY,
  KL,
  LAST_TOKEN,
  MASK,
  PARAMS,
  REFERENCE,
  ROLLOUT,
  VARIANTS,
  B,
  G,
  P,
  T,
  changed,
  close,
  jitted,
  recipe,
  scored_tokens,
  state_of,
  tree_close,
)

# Scores and the whole step.

REWARDS = np.array([1, 0, 1, 0, 0, 1, 1, 0] * 2, np.float32)


def scored(variant="plain", rewards=REWARDS, rollout=ROLLOUT, reference=None):
  """Returns (state, metrics, scores) of one batch."""
  made, run = jitted(step.score_and_update, variant)
  signals = Signals(outcome={"correct": jnp.asarray(rewards)})
  return run(state_of(made), reference, rollout, signals)


def with_behavior(behavior_logprobs):
  return dataclasses.replace(ROLLOUT, behavior_logprobs=behavior_logprobs)


def test_a_missing_reward_takes_no_part():
  rewards = REWARDS.copy()
  rewards[2] = np.nan
  state, metrics, result = scored(rewards=rewards)
  assert result.weights.tolist() == [1, 1, 0] + [1] * (B - 3)
  assert (np.asarray(result.advantages)[2] == 0).all()
  assert metrics["reward/correct/missing"] == 1
  for name, value in metrics.items():
    assert np.isfinite(value), name
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  assert changed(state.params, PARAMS) > 1e-3
  # What the sampler said of its tokens doesn't matter; of others it does.
  for rows, same in ((np.arange(B) == 2, True), (np.arange(B) != 2, False)):
    shift = -0.5 * MASK * rows[:, None]
    rollout = with_behavior(ROLLOUT.behavior_logprobs + shift)
    other, _, _ = scored(rewards=rewards, rollout=rollout)
    assert (changed(other.params, state.params) == 0) == same


def test_all_rewards_missing_leave_the_parameters():
  # The entropy's term too: nothing counts.
  state, metrics, _ = scored(rewards=np.full((B,), np.nan, np.float32))
  tree_close(state.params, PARAMS, rtol=0, atol=0)
  assert metrics["reward/correct/missing"] == B
  assert metrics["optim/nonfinite_updates"] == 0
  for name, value in metrics.items():
    assert np.isfinite(value), name


def test_the_state_goes_on():
  state, metrics, _ = scored()
  assert int(state.step) == 1
  assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
  np.testing.assert_array_equal(
    jax.random.key_data(state.key), jax.random.key_data(KEY)
  )
  assert metrics["response/tokens"] == MASK.sum()
  assert metrics["response/count"] == B
  assert metrics["response/length_max"] == T
  close(metrics["response/truncated"], 1 - ROLLOUT.finished.mean())


WITH_KL = "recomputed_with_kl"


def test_the_reference_is_run_only_if_asked_for():
  assert recipe().required_probes == frozenset()
  _, metrics, _ = scored()  # and takes no reference at all
  assert not any("ref_kl" in name for name in metrics)
  found = recipe(**VARIANTS[WITH_KL]).required_probes
  assert found == {"ref_logprobs"}
  pulled, metrics, _ = scored(WITH_KL, reference=REFERENCE)
  assert metrics["policy/ref_kl"] > 0.01
  close(metrics["loss/kl"], metrics["policy/ref_kl"])
  # From the policy itself there is no distance, and no pull.
  still, metrics, _ = scored(WITH_KL, reference=PARAMS)
  close(metrics["policy/ref_kl"], 0.0)
  close(metrics["loss/kl"], 0.0)
  assert changed(pulled.params, still.params) > 1e-3


def test_the_ratio_can_be_taken_against_the_trainers_own_logprobs():
  state, metrics, _ = scored(WITH_KL, reference=REFERENCE)
  # All ratios are 1: nothing is clipped, whatever the sampler says.
  assert metrics["policy/clip_fraction"] == 0
  assert scored()[1]["policy/clip_fraction"] > 0
  odd = with_behavior(2 * ROLLOUT.behavior_logprobs)
  other, _, _ = scored(WITH_KL, rollout=odd, reference=REFERENCE)
  tree_close(other.params, state.params, rtol=0, atol=0)


# Fused and split.


class Letters:
  """A vocabulary in which every id is one letter."""

  eos_id = tiny.END

  def decode(self, ids):
    return "".join(chr(ord("a") + i) for i in ids)


@pytest.fixture(scope="module")
def sampled():
  """Returns the jitted sampler, prompts and responses of a batch.

  The references are what the first response that ended in each group says, so
  that some responses are right.
  """
  prompts = tiny.prompts(lengths=(5, 2, 3, 4))
  _, run = jitted(step.sample_batch, "plain")
  rollout = jax.device_get(run(PARAMS, prompts, KEY, jnp.int32(0)))
  answers = np.zeros((P, T), np.int32)
  lengths = np.zeros((P,), int)
  for i, row in enumerate(rollout.tokens):
    prompt, length = rollout.group[i], rollout.lengths[i] - 1
    if rollout.finished[i] and length > 0 and lengths[prompt] == 0:
      lengths[prompt] = length
      answers[prompt, :length] = row[:length]
  prompts = dataclasses.replace(
    prompts,
    answer_tokens=jnp.asarray(answers),
    answer_mask=jnp.asarray(np.arange(T) < lengths[:, None]),
  )
  return run, prompts, rollout


def test_fused_and_split_steps_are_one(sampled):
  run, prompts, _ = sampled
  made, score_and_update = jitted(step.score_and_update, "plain")
  state = state_of(made)
  verifier = exact_match_verifier(delimiter=(), end_id=tiny.END)
  fused_state, fused_metrics, fused, fused_signals, fused_scores = jax.jit(
    functools.partial(step.fused_step, made, verifier)
  )(state, None, prompts)

  rollout = run(state.params, prompts, state.key, state.step)
  host = exact_text_verifier(delimiter="")
  references = [
    Letters().decode(list(np.asarray(row)[np.asarray(keep)]))
    for row, keep in zip(
      prompts.answer_tokens, prompts.answer_mask, strict=True
    )
  ]
  signals = host.verify(
    decode_responses(Letters(), rollout),
    [references[i] for i in np.asarray(rollout.group)],
    [{}] * B,
    np.asarray(rollout.finished),
  )
  rewards = np.asarray(signals.outcome["correct"])
  split_state, metrics, split_scores = score_and_update(
    state, None, rollout, Signals(outcome={"correct": jnp.asarray(rewards)})
  )

  np.testing.assert_array_equal(fused.tokens, rollout.tokens)
  np.testing.assert_array_equal(
    fused_signals.verdicts["correct"], signals.verdicts["correct"]
  )
  assert {0.0, 1.0} <= set(rewards[~np.isnan(rewards)].tolist()), (
    "no group has rewards that differ: take another seed"
  )
  close(fused.behavior_logprobs, rollout.behavior_logprobs)
  close(fused_scores.advantages, split_scores.advantages)
  tree_close(fused_state.params, split_state.params)
  assert fused_metrics.keys() == metrics.keys()
  for name in metrics:
    close(fused_metrics[name], metrics[name], rtol=1e-3, err_msg=name)
  assert int(fused_state.step) == int(split_state.step) == 1
  assert changed(split_state.params, PARAMS) > 1e-3
  # Another verdict on one response shows in the parameters.
  known = np.flatnonzero(~np.isnan(rewards))[0]
  flipped = jnp.asarray(rewards).at[known].set(1 - rewards[known])
  other, _, _ = score_and_update(
    state, None, rollout, Signals(outcome={"correct": flipped})
  )
  must_fail(tree_close, other.params, fused_state.params)


def test_each_step_has_its_own_noise(sampled):
  run, prompts, rollout = sampled
  again = run(PARAMS, prompts, KEY, jnp.int32(0))
  np.testing.assert_array_equal(again.tokens, rollout.tokens)
  for key, index in ((KEY, 1), (jax.random.key(8), 0)):
    other = run(PARAMS, prompts, key, jnp.int32(index))
    assert (other.tokens != rollout.tokens).any(1).mean() > 0.9


def test_the_verifiers_noise_is_not_the_samplers():
  seen = []

  def verifier(rollout, key):
    seen.append(jax.random.key_data(key).tolist())
    return Signals()

  for index in (0, 0, 1):
    step.verify_on_device(verifier, ROLLOUT, KEY, jnp.int32(index))
  assert seen[0] == seen[1] != seen[2]
  use = batch_key(KEY, jnp.int32(0), Noise.SAMPLE)
  assert jax.random.key_data(use).tolist() != seen[0]


def test_supervised_steps_lower_the_loss():
  made = recipe(
    group_size=1,
    chain=stateless("none", lambda s, _: s, gives="advantages"),
    terms=(likelihood(),),
    optimizer=optax.adam(0.05),
  )
  run = jax.jit(functools.partial(step.supervised_step, made))
  # The first response of each group is the prompt's target.
  rows = np.arange(0, B, G)
  targets, mask = ROLLOUT.tokens[rows], MASK[rows]
  state, losses = state_of(made), []
  for _ in range(12):
    state, metrics = run(state, ROLLOUT.prompts, targets, mask)
    losses.append(float(metrics["loss/likelihood"]))
  assert losses[-1] < 0.5 * losses[0]
  assert int(state.step) == 12
  assert metrics["response/tokens"] == mask.sum()
  assert "policy/behavior_kl" not in metrics
  # The first loss is the mean over the tokens of -log π.
  close(losses[0], -scored_tokens()["logprobs"][rows][mask].mean())


# Settings that contradict each other.


def truncating(**changes):
  return {
    "sampling": Sampling(max_tokens=T, end_id=1, pad_id=0, **changes),
  }


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_prompts": 0}, "num_prompts=0 must be at least 1"),
    ({"group_size": 0}, "group_size=0 must be at least 1"),
    ({"updates_per_batch": 0}, "updates_per_batch=0 must be at least 1"),
    ({"passes_per_batch": 0}, "passes_per_batch=0 must be at least 1"),
    ({"micro_batches": -1}, "micro_batches=-1 must be at least 1"),
    ({"total_steps": 0}, "total_steps=0 must be at least 1"),
    (
      {"updates_per_batch": 2, "micro_batches": 4},
      "num_prompts=4 can't be cut .*updates_per_batch=2 .*micro_batches=4",
    ),
    ({"old_logprobs": "sampler"}, "old_logprobs='sampler': give 'behavior'"),
    (truncating(top_k=3), "set old_logprobs = 'recomputed'"),
    (truncating(temperature=0.0), "set old_logprobs = 'recomputed'"),
    (
      {"chain": chain(stateless("mine", lambda s, _: s))},
      "the chain ends with 'mine', which gives rewards",
    ),
    (
      {"chain": stateless("alone", lambda s, _: s)},
      "the chain ends with 'alone', which gives rewards",
    ),
    ({"terms": ()}, "no terms: give `terms`"),
    ({"terms": (KL,)}, "need a reference model"),
    # A pass with gradient that no transform asks for as a probe.
    (
      {"terms": (KL._replace(requires=frozenset(), passes=LAST_TOKEN),)},
      "needs ProbeSettings.self_reward_id",
    ),
    (
      {
        "chain": stateless(
          "reads", lambda s, _: s, gives="advantages", requires=("values",)
        )
      },
      "value_head = True",
    ),
  ],
)
def test_contradictions_name_the_setting(changes, message):
  with pytest.raises(ValueError, match=message):
    recipe(**changes)


def test_cut_sampling_is_allowed_with_recomputed_logprobs():
  made = recipe(old_logprobs="recomputed", **truncating(top_k=3))
  # The only update has them itself: no other pass is run for them.
  assert made.own_old_logprobs
  assert made.required_probes == frozenset()
  # By the second update the parameters are others.
  for name in ("updates_per_batch", "passes_per_batch"):
    several = dataclasses.replace(made, **{name: 2})
    assert not several.own_old_logprobs
    assert several.required_probes == {"logprobs"}
