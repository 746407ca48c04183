"""The step: what must not change its numbers, and what must."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr import step
from rlvr.advantages import group_relative
from rlvr.evaluate import decode_responses
from rlvr.objectives import (
  clipped_policy_gradient,
  entropy_bonus,
  kl_penalty,
  likelihood,
  token_mean,
)
from rlvr.probes.compute import ProbeSettings
from rlvr.rewards.algebra import chain, stateless
from rlvr.sampling import Sampling
from rlvr.types import Scores, Signals
from rlvr.verifiers.exact import exact_match_verifier
from rlvr.verifiers.host import exact_text_verifier
from tests import make, tiny
from tests.compare import must_fail

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


# The update.


@pytest.mark.parametrize("pieces", ["two_pieces", "four_pieces"])
def test_micro_batches_change_nothing(pieces):
  state, metrics = updated()
  other, other_metrics = updated(pieces)
  assert metrics.keys() == other_metrics.keys()
  for name in metrics:
    close(other_metrics[name], metrics[name], rtol=1e-3, err_msg=name)
  tree_close(other.params, state.params)
  assert changed(state.params, PARAMS) > 1e-2, "nothing was learnt"


def test_averages_over_each_micro_batch_would_differ():
  # What the coefficients are there to prevent: every half normalised by its own
  # tokens, and the halves averaged.
  state, _ = updated()
  first = np.arange(B) < B // 2
  halves = [
    updated(scores=scores(weights=WEIGHTS * half))[0].params
    for half in (first, ~first)
  ]
  average = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
  must_fail(tree_close, average, state.params)
  # Weighted by the tokens that count, they are the whole.
  share = (WEIGHTS * first) @ MASK.sum(-1) / (WEIGHTS @ MASK.sum(-1))
  tree_close(
    jax.tree.map(lambda a, b: share * a + (1 - share) * b, *halves),
    state.params,
  )


def longer(rollout, scores):
  """Returns the same with longer prompts and responses; odd padding."""

  def pad(x, before, after, fill):
    return jnp.pad(x, ((0, 0), (before, after)), constant_values=fill)

  prompts = rollout.prompts
  return (
    dataclasses.replace(
      rollout,
      prompts=dataclasses.replace(
        prompts,
        tokens=pad(prompts.tokens, 2, 0, 13),
        mask=pad(prompts.mask, 2, 0, False),
      ),
      tokens=pad(rollout.tokens, 0, 3, 17),
      completion_mask=pad(rollout.completion_mask, 0, 3, False),
      behavior_logprobs=pad(rollout.behavior_logprobs, 0, 3, -1e30),
      step_index=pad(rollout.step_index, 0, 3, -1),
    ),
    dataclasses.replace(scores, advantages=pad(scores.advantages, 0, 3, 0.0)),
  )


def test_padding_changes_nothing():
  state, metrics = updated()
  rollout, padded_scores = longer(ROLLOUT, SCORES)
  other, other_metrics = updated(rollout=rollout, scores=padded_scores)
  tree_close(other.params, state.params)
  for name in metrics:
    close(other_metrics[name], metrics[name], rtol=1e-3, err_msg=name)
  # Padding that is taken for tokens shows.
  leak = dataclasses.replace(
    rollout, completion_mask=rollout.completion_mask.at[0, 5:].set(True)
  )
  other, _ = updated(rollout=leak, scores=padded_scores)
  must_fail(tree_close, other.params, state.params)


def test_several_updates_are_several():
  once, metrics = updated()
  twice, twice_metrics = updated("two_updates")
  assert metrics.keys() == twice_metrics.keys()
  assert changed(once.params, twice.params) > 1e-3
  assert changed(PARAMS, twice.params) > 1e-3
  again, _ = updated("two_updates")
  tree_close(again.params, twice.params, rtol=0, atol=0)
  # The chain's state and the step are the caller's.
  assert int(twice.step) == 0


def test_each_prompt_is_in_one_of_the_updates():
  # Where one prompt alone counts, its update moves the parameters by g, as the
  # single update does, and the other one by nothing; but momentum carries g
  # on: g + 0.9 g if its update is the first of the two.
  ratios = []
  for prompt in range(P):
    only = scores(weights=np.asarray(ROLLOUT.group) == prompt)
    moved = [
      changed_norm(updated(variant, scores=only)[0].params)
      for variant in ("two_updates", "plain")
    ]
    ratios.append(moved[0] / moved[1])
  close(sorted(ratios), [1.0, 1.0, 1.9, 1.9], rtol=1e-3)


def test_pieces_keep_prompts_and_responses_together():
  made = recipe(updates_per_batch=2, micro_batches=2, passes_per_batch=3)
  order = np.array([[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
  prompts = np.asarray(step._cut(made, np.arange(P), order, 1))
  responses = np.asarray(step._cut(made, np.arange(B), order, G))
  # Updates of all passes, their pieces, the prompts in a piece.
  np.testing.assert_array_equal(prompts, order.reshape(6, 2, 1))
  np.testing.assert_array_equal(
    responses, prompts * G + np.arange(G)[None, None]
  )


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
  run = jax.jit(step.scorer_of(CONFIG, PARAMS, 1.0))
  prompts = ROLLOUT.prompts
  found = run(prompts.tokens, prompts.mask, ROLLOUT.tokens, MASK, None)
  return {k: np.asarray(v, np.float64) for k, v in found.items()}


def test_the_loss_is_the_sum_of_coefficients_times_losses():
  state, metrics = updated()
  found = scored_tokens()
  change = found["logprobs"] - ROLLOUT.behavior_logprobs
  ratio, advantages = np.exp(change), np.asarray(SCORES.advantages)
  loss = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.28) * advantages)
  c = WEIGHTS[:, None] * MASK / (WEIGHTS[:, None] * MASK).sum()
  policy, entropy = (c * loss).sum(), (c * -found["entropies"]).sum()
  close(metrics["loss/policy"], policy)
  close(metrics["loss/entropy"], entropy)
  close(metrics["loss/total"], policy + 0.1 * entropy)
  close(metrics["policy/entropy"], found["entropies"][MASK].mean())
  close(
    metrics["policy/behavior_kl"],
    (ratio - 1 - change)[MASK].mean(),
    rtol=1e-3,
  )
  close(metrics["optim/grad_norm"], changed_norm(state.params) / 0.5)


def test_a_gradient_that_is_not_finite_changes_nothing():
  before = state_of(recipe())
  bad = np.asarray(SCORES.advantages).copy()
  bad[0, 0] = np.inf
  state, metrics = updated(scores=scores(advantages=bad))
  assert metrics["optim/nonfinite_updates"] == 1
  tree_close(state.params, before.params, rtol=0, atol=0)
  tree_close(state.opt_state, before.opt_state, rtol=0, atol=0)
  # A finite one changes both.
  state, metrics = updated()
  assert metrics["optim/nonfinite_updates"] == 0
  assert changed(state.params, before.params) > 0
  assert changed(state.opt_state, before.opt_state) > 0


def test_a_response_of_weight_0_may_hold_anything():
  state, metrics = updated()
  odd = np.asarray(SCORES.advantages).copy()
  assert WEIGHTS[4] == 0
  odd[4] = 1e6
  other, _ = updated(scores=scores(advantages=odd))
  tree_close(other.params, state.params, rtol=0, atol=0)
  assert np.isfinite(metrics["optim/grad_norm"])


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
  assert found == {"logprobs", "ref_logprobs"}
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
  use = step._key(KEY, jnp.int32(0), step._SAMPLE)
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
  assert made.required_probes == {"logprobs"}
