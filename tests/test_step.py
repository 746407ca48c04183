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
  constant_length,
  entropy_bonus,
  kl_penalty,
  likelihood,
  policy_gradient,
  sequence_mean,
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

P, G, T = 4, 2, 5
CONFIG = tiny.CONFIG
PARAMS, REFERENCE = tiny.params(CONFIG), tiny.params(CONFIG, seed=1)
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


def recipe(**changes):
  settings = {
    "model": CONFIG,
    "sampling": Sampling(max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD),
    "num_prompts": P,
    "group_size": G,
    "chain": chain(group_relative(scale_by_std=False)),
    "terms": (CLIPPED, entropy_bonus(weight=0.1)),
    "reduction": token_mean,
    # Linear in the gradient: parameters show it as it is.
    "optimizer": optax.sgd(0.5),
    "probe_settings": ProbeSettings(end_id=tiny.END),
    "total_steps": 10,
    "has_reference": False,
  }
  return step.Recipe(**{**settings, **changes})


def ragged(**changes):
  """Returns responses of 1 to 5 tokens, not quite from this policy."""
  rollout = make.rollout(
    group_sizes=(G,) * P, lengths=(5, 1, 2, 4, 3, 3, 1, 5), num_tokens=T
  )
  return dataclasses.replace(rollout, **changes)


ROLLOUT = ragged()
MASK = np.asarray(ROLLOUT.completion_mask)


def scores(advantages=None, weights=None):
  drawn = np.random.default_rng(0).normal(size=(P * G, 1)) * MASK
  return Scores(
    outcome={},
    step={},
    token={},
    advantages=jnp.asarray(
      drawn if advantages is None else advantages, jnp.float32
    ),
    weights=jnp.asarray(
      [1, 1, 0.5, 1, 0, 1, 2, 1] if weights is None else weights, jnp.float32
    ),
    metrics={},
  )


SCORES = scores()
KEY = jax.random.key(7)


def state_of(recipe):
  return step.init_state(recipe, KEY, PARAMS)


@functools.cache
def jitted_update(**changes):
  made = recipe(**changes)

  @jax.jit
  def run(rollout, scores, probes):
    return step.update(made, state_of(made), rollout, scores, probes)

  return run


def updated(rollout=ROLLOUT, scores=SCORES, probes=None, **changes):
  """Returns (state, metrics) after the updates on one batch."""
  return jitted_update(**changes)(rollout, scores, probes or {})


# The update.


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_change_nothing(micro_batches):
  state, metrics = updated()
  other, other_metrics = updated(micro_batches=micro_batches)
  assert metrics.keys() == other_metrics.keys()
  for name in metrics:
    close(other_metrics[name], metrics[name], rtol=1e-3, err_msg=name)
  tree_close(other.params, state.params)
  assert changed(state.params, PARAMS) > 1e-2, "nothing was learnt"


def test_averages_over_each_micro_batch_would_differ():
  # What the coefficients are there to prevent: every half normalised by its own
  # tokens, and the halves averaged.
  state, _ = updated()
  halves = []
  for half in (slice(0, P // 2), slice(P // 2, P)):
    rows = slice(half.start * G, half.stop * G)

    def cut(x, half=half, rows=rows):
      return x[rows] if x.shape[0] == P * G else x[half]

    rollout = jax.tree.map(cut, ROLLOUT)
    rollout = dataclasses.replace(rollout, group=jnp.repeat(jnp.arange(2), G))
    halves.append(updated(rollout, jax.tree.map(cut, SCORES))[0].params)
  average = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
  must_fail(tree_close, average, state.params)


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
  other, other_metrics = updated(rollout, padded_scores)
  tree_close(other.params, state.params)
  for name in metrics:
    close(other_metrics[name], metrics[name], rtol=1e-3, err_msg=name)
  # Padding that is taken for tokens shows.
  leak = dataclasses.replace(
    rollout, completion_mask=rollout.completion_mask.at[0, 5:].set(True)
  )
  other, _ = updated(leak, padded_scores)
  must_fail(tree_close, other.params, state.params)


def test_several_updates_are_several():
  once, metrics = updated()
  twice, twice_metrics = updated(updates_per_batch=2)
  assert metrics.keys() == twice_metrics.keys()
  assert changed(once.params, twice.params) > 1e-3
  assert changed(PARAMS, twice.params) > 1e-3
  again, _ = updated(updates_per_batch=2)
  tree_close(again.params, twice.params, rtol=0, atol=0)
  # The chain's state and the step are the caller's.
  assert int(twice.step) == 0


def test_the_loss_is_the_sum_of_coefficients_times_losses():
  # REINFORCE on the first response alone, against a direct computation.
  weights = [1, 0, 0, 0, 0, 0, 0, 0]
  state, metrics = updated(
    scores=scores(weights=weights),
    terms=(policy_gradient(),),
    reduction=sequence_mean,
  )
  score = step.scorer_of(CONFIG, PARAMS, 1.0)
  one = ROLLOUT.prompts
  logprobs = jax.jit(score)(
    one.tokens[:1], one.mask[:1], ROLLOUT.tokens[:1], MASK[:1], None
  )["logprobs"]
  advantage = np.asarray(SCORES.advantages)[0]
  close(metrics["loss/policy"], -(advantage * logprobs[0]).sum() / 5)
  close(metrics["loss/total"], metrics["loss/policy"])
  close(metrics["optim/grad_norm"], changed_norm(state.params) / 0.5)


def changed_norm(params):
  return np.sqrt(
    sum(
      ((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2).sum()
      for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True
      )
    )
  )


def test_a_gradient_that_is_not_finite_changes_nothing():
  settings = {"optimizer": ADAM}
  before = state_of(recipe(**settings))
  bad = np.asarray(SCORES.advantages).copy()
  bad[0, 0] = np.inf
  state, metrics = updated(scores=scores(advantages=bad), **settings)
  assert metrics["optim/nonfinite_updates"] == 1
  tree_close(state.params, before.params, rtol=0, atol=0)
  tree_close(state.opt_state, before.opt_state, rtol=0, atol=0)
  # A finite one changes both.
  state, metrics = updated(**settings)
  assert metrics["optim/nonfinite_updates"] == 0
  assert changed(state.params, before.params) > 0
  assert changed(state.opt_state, before.opt_state) > 0


ADAM = optax.adam(0.05)


def test_a_response_of_weight_0_may_hold_anything():
  drop = [1, 1, 1, 1, 0, 1, 1, 1]
  state, metrics = updated(scores=scores(weights=drop))
  odd = np.asarray(SCORES.advantages).copy()
  odd[4] = 1e6
  other, _ = updated(scores=scores(advantages=odd, weights=drop))
  tree_close(other.params, state.params, rtol=0, atol=0)
  assert np.isfinite(metrics["optim/grad_norm"])


# Scores and the whole step.

REWARDS = np.array([1, 0, 1, 0, 0, 1, 1, 0], np.float32)


@functools.cache
def jitted_score_and_update(**changes):
  made = recipe(**changes)
  return made, jax.jit(
    functools.partial(step.score_and_update, made),
  )


def scored(rewards=REWARDS, rollout=ROLLOUT, reference=None, **changes):
  made, run = jitted_score_and_update(**changes)
  signals = Signals(outcome={"correct": jnp.asarray(rewards)})
  return run(state_of(made), reference, rollout, signals)


def test_a_missing_reward_takes_no_part():
  rewards = REWARDS.copy()
  rewards[2] = np.nan
  state, metrics, result = scored(rewards)
  assert result.weights.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
  assert (np.asarray(result.advantages)[2] == 0).all()
  assert metrics["reward/correct/missing"] == 1
  for name, value in metrics.items():
    assert np.isfinite(value), name
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  assert changed(state.params, PARAMS) > 1e-3
  # What its tokens and log-probs are doesn't matter, as of nobody else.
  for row, same in ((2, True), (1, False)):
    old = ROLLOUT.behavior_logprobs.at[row].add(-0.5 * MASK[row])
    other, _, _ = scored(rewards, ragged(behavior_logprobs=old))
    assert (changed(other.params, state.params) == 0) == same


def test_all_rewards_missing_leave_the_parameters():
  # The entropy's term too: nothing counts.
  state, metrics, _ = scored(np.full((P * G,), np.nan, np.float32))
  tree_close(state.params, PARAMS, rtol=0, atol=0)
  assert metrics["reward/correct/missing"] == P * G
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
  assert metrics["response/count"] == P * G
  assert metrics["response/length_max"] == T
  close(metrics["response/truncated"], 1 - ROLLOUT.finished.mean())


def test_the_reference_is_run_only_if_asked_for():
  made, _ = jitted_score_and_update()
  assert made.required_probes == frozenset()
  state, metrics, _ = scored()  # and takes no reference at all
  assert "policy/ref_kl" not in metrics
  with_kl = {
    "terms": (CLIPPED, entropy_bonus(weight=0.1), KL),
    "has_reference": True,
  }
  assert recipe(**with_kl).required_probes == {"ref_logprobs"}
  pulled, metrics, _ = scored(reference=REFERENCE, **with_kl)
  assert metrics["policy/ref_kl"] > 0
  close(metrics["loss/kl"], metrics["policy/ref_kl"])
  assert changed(pulled.params, state.params) > 1e-3
  # From the policy itself there is no distance, and no pull.
  still, metrics, _ = scored(reference=PARAMS, **with_kl)
  close(metrics["policy/ref_kl"], 0.0)
  tree_close(still.params, state.params, atol=1e-5)


KL = kl_penalty(weight=0.5, estimator="k3")


def test_the_ratio_can_be_taken_against_the_trainers_own_logprobs():
  own = {"old_logprobs": "recomputed"}
  assert recipe(**own).required_probes == {"logprobs"}
  state, metrics, _ = scored(**own)
  # All ratios are 1: nothing is clipped, whatever the sampler says.
  assert metrics["policy/clip_fraction"] == 0
  assert scored()[1]["policy/clip_fraction"] > 0
  odd = ragged(behavior_logprobs=2 * ROLLOUT.behavior_logprobs)
  other, _, _ = scored(rollout=odd, **own)
  tree_close(other.params, state.params, rtol=0, atol=0)


# Fused and split.


class Letters:
  """A vocabulary in which every id is one letter."""

  eos_id = tiny.END

  def decode(self, ids):
    return "".join(chr(ord("a") + i) for i in ids)


SAMPLED = {"group_size": 8}  # enough for some to end by themselves


@pytest.fixture(scope="module")
def sampled():
  """Returns the recipe, prompts and responses of a batch.

  The references are what the first response that ended in each group says, so
  that some responses are right.
  """
  made = recipe(**SAMPLED)
  prompts = tiny.prompts(lengths=(5, 2, 3, 4))
  run = jax.jit(functools.partial(step.sample_batch, made, PARAMS))
  rollout = jax.device_get(run(prompts, KEY, jnp.int32(0)))
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
  return made, run, prompts, rollout


def test_fused_and_split_steps_are_one(sampled):
  made, run, prompts, _ = sampled
  state = state_of(made)
  verifier = exact_match_verifier(delimiter=(), end_id=tiny.END)
  fused_state, fused_metrics, fused, fused_signals, fused_scores = jax.jit(
    functools.partial(step.fused_step, made, verifier)
  )(state, None, prompts)

  rollout = run(prompts, state.key, state.step)
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
    [{}] * (P * 8),
    np.asarray(rollout.finished),
  )
  split_state, metrics, split_scores = jax.jit(
    functools.partial(step.score_and_update, made)
  )(state, None, rollout, signals)

  np.testing.assert_array_equal(fused.tokens, rollout.tokens)
  np.testing.assert_array_equal(
    fused_signals.verdicts["correct"], signals.verdicts["correct"]
  )
  rewards = np.asarray(signals.outcome["correct"])
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
  flipped = Signals(
    outcome={"correct": jnp.asarray(rewards).at[known].set(1 - rewards[known])},
    verdicts=signals.verdicts,
  )
  other, _, _ = jax.jit(functools.partial(step.score_and_update, made))(
    state, None, rollout, flipped
  )
  must_fail(tree_close, other.params, fused_state.params)


def test_each_step_has_its_own_noise(sampled):
  _, run, prompts, rollout = sampled
  again = run(prompts, KEY, jnp.int32(0))
  np.testing.assert_array_equal(again.tokens, rollout.tokens)
  later = run(prompts, KEY, jnp.int32(1))
  assert (later.tokens != rollout.tokens).any(1).mean() > 0.9
  other = run(prompts, jax.random.key(8), jnp.int32(0))
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
    optimizer=ADAM,
  )
  run = jax.jit(functools.partial(step.supervised_step, made))
  targets = dataclasses.replace(
    make.rollout(group_sizes=(1,) * P, num_tokens=T), prompts=ROLLOUT.prompts
  )
  state, losses = state_of(made), []
  for _ in range(12):
    state, metrics = run(
      state, targets.prompts, targets.tokens, targets.completion_mask
    )
    losses.append(float(metrics["loss/likelihood"]))
  assert losses[-1] < 0.5 * losses[0]
  assert int(state.step) == 12
  assert metrics["response/tokens"] == targets.completion_mask.sum()
  assert "policy/behavior_kl" not in metrics
  # The first loss is the mean over the tokens of -log π.
  found = jax.jit(step.scorer_of(CONFIG, PARAMS, 1.0))(
    targets.prompts.tokens,
    targets.prompts.mask,
    targets.tokens,
    targets.completion_mask,
    None,
  )
  mask = np.asarray(targets.completion_mask)
  close(losses[0], -np.asarray(found["logprobs"])[mask].mean())


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


def test_reductions_are_taken_as_they_are():
  # Dr. GRPO's constant: half the length, twice the gradient.
  moved = [
    changed_norm(updated(reduction=r)[0].params) for r in (LENGTH_5, LENGTH_10)
  ]
  close(moved[0], 2 * moved[1], rtol=1e-3)


LENGTH_5 = functools.partial(constant_length, length=5)
LENGTH_10 = functools.partial(constant_length, length=10)
