"""The update: what must not change its numbers, and what must."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import update as update_lib
from rlvr.scorers import scorer_of
from tests import make
from tests.compare import must_fail
from tests.stepping import (
  CONFIG,
  MASK,
  PARAMS,
  ROLLOUT,
  SCORES,
  WEIGHTS,
  B,
  G,
  P,
  T,
  changed,
  changed_norm,
  close,
  recipe,
  scored_tokens,
  scores,
  state_of,
  tree_close,
  updated,
)


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
  for name in metrics.keys() - {"update/useful_tokens"}:
    close(other_metrics[name], metrics[name], rtol=1e-3, err_msg=name)
  close(other_metrics["update/useful_tokens"], MASK.sum() / (B * (T + 3)))
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
  # Where one prompt alone counts, its update moves the parameters as the single
  # update does, and the other one, in which nothing counts, not at all: momentum
  # would have moved them once more.
  for prompt in range(P):
    only = scores(weights=np.asarray(ROLLOUT.group) == prompt)
    (two, metrics), (one, _) = (
      updated(variant, scores=only) for variant in ("two_updates", "plain")
    )
    assert metrics["optim/empty_updates"] == 1
    tree_close(two.params, one.params)
    must_fail(tree_close, two.params, PARAMS)
  assert updated("two_updates")[1]["optim/empty_updates"] == 0


def test_pieces_keep_prompts_and_responses_together():
  made = recipe(updates_per_batch=2, micro_batches=2, passes_per_batch=3)
  order = np.array([[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
  prompts = np.asarray(update_lib._cut(made, jnp.arange(P), order))
  responses = np.asarray(
    update_lib._cut(
      made,
      jnp.arange(B),
      update_lib.response_order(order, jnp.repeat(jnp.arange(P), G)),
    )
  )
  # Updates of all passes, their pieces, the prompts in a piece.
  np.testing.assert_array_equal(prompts, order.reshape(6, 2, 1))
  np.testing.assert_array_equal(
    responses, prompts * G + np.arange(G)[None, None]
  )


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


def test_the_only_update_is_its_own_old_policy():
  # As against log-probs of a pass of their own, which isn't run.
  own, metrics = updated("recomputed")
  logprobs = scored_tokens()["logprobs"]
  told = dataclasses.replace(
    ROLLOUT, behavior_logprobs=jnp.asarray(logprobs, jnp.float32)
  )
  expected, expected_metrics = updated(rollout=told)
  tree_close(own.params, expected.params)
  for name in metrics.keys() - {"policy/behavior_kl"}:
    close(metrics[name], expected_metrics[name], rtol=1e-3, err_msg=name)
  close(metrics["policy/old_logprob_mean"], logprobs[MASK].mean())
  assert metrics["policy/clip_fraction"] == 0
  # The sampler's are others here, and would make another update.
  must_fail(tree_close, updated()[0].params, expected.params)
  # At a temperature the sampler's are the trainer's only if both have it.
  half = jax.jit(scorer_of(CONFIG, PARAMS, 0.7))(
    ROLLOUT.prompts.tokens, ROLLOUT.prompts.mask, ROLLOUT.tokens, MASK, None
  )["logprobs"]
  must_fail(close, np.asarray(half)[MASK], logprobs[MASK])


# Uneven groups.

UNEVEN_SIZES = (7, 1, 2, 6)
UNEVEN = make.rollout(
  3, group_sizes=UNEVEN_SIZES, num_tokens=T, prompt_tokens=5, answer_tokens=T
)
UNEVEN_SCORES = dataclasses.replace(
  SCORES, advantages=SCORES.advantages * UNEVEN.completion_mask
)


@pytest.mark.parametrize(
  "variant", ["uneven", "uneven_two_pieces", "uneven_two_updates"]
)
def test_even_groups_are_a_case_of_uneven_ones(variant):
  # Two updates of whole groups: the same order of prompts cuts both alike.
  even, metrics = updated(variant.removeprefix("uneven").strip("_") or "plain")
  other, other_metrics = updated(variant)
  tree_close(other.params, even.params)
  for name in metrics:
    close(other_metrics[name], metrics[name], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("variant", ["uneven", "uneven_two_pieces", "eight"])
def test_uneven_groups_are_responses_with_their_own_prompts(variant):
  state, metrics = updated(variant, rollout=UNEVEN, scores=UNEVEN_SCORES)
  # Every response as a group of its own, its prompt repeated.
  alone = dataclasses.replace(
    UNEVEN,
    prompts=jax.tree.map(lambda x: x[UNEVEN.group], UNEVEN.prompts),
    group=jnp.arange(B),
  )
  expected, expected_metrics = updated("alone", alone, UNEVEN_SCORES)
  tree_close(state.params, expected.params)
  assert changed(state.params, PARAMS) > 1e-2
  for name in metrics:
    close(metrics[name], expected_metrics[name], rtol=1e-3, err_msg=name)
  # Another prompt behind a response shows.
  wrong = dataclasses.replace(
    UNEVEN, group=jnp.repeat(jnp.arange(P), jnp.array((6, 2, 2, 6)))
  )
  other, _ = updated(variant, rollout=wrong, scores=UNEVEN_SCORES)
  must_fail(tree_close, other.params, expected.params)


def test_touched_prompts_by_hand():
  # A piece begins inside prompt 2's group, then all of 0's, then some of 3's.
  group = jnp.array([2, 2, 0, 3, 3])
  prompts, local = jax.jit(update_lib.touched_prompts)(UNEVEN.prompts, group)
  assert local.tolist() == [0, 0, 1, 2, 2]
  np.testing.assert_array_equal(
    prompts.tokens[:3], UNEVEN.prompts.tokens[jnp.array([2, 0, 3])]
  )
  # No more prompts than responses.
  prompts, local = update_lib.touched_prompts(UNEVEN.prompts, group[1:3])
  assert prompts.tokens.shape[0] == 2
  assert local.tolist() == [0, 1]


def test_responses_follow_their_prompts_order():
  order = jnp.array([[2, 0, 1], [0, 1, 2]])
  group = jnp.array([0, 0, 1, 2, 2])
  found = update_lib.response_order(order, group)
  assert found.tolist() == [[3, 4, 0, 1, 2], [0, 1, 2, 3, 4]]
