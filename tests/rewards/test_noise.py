import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.advantages import group_relative, leave_one_out
from rlvr.rewards import chain
from rlvr.rewards.noise import (
  appeal_counts,
  backward_corrected_reward,
  backward_correction,
  estimate_false_negative_rate,
  flip_noise,
  forward_correction,
  forward_weights,
  noisy_reward,
  sample_appeals,
)
from tests import make, suite

NAN = np.nan
RATES = [(0.0, 0.0), (0.1, 0.3), (0.3, 0.1), (0.4, 0.45), (0.0, 0.9)]


def expectation(fn, truth, fp, fn_rate):
  """E[fn(r̃) | r* = truth], by enumeration of the two values of r̃."""
  seen_one = 1.0 - fn_rate if truth == 1 else fp
  zero, one = (float(v) for v in fn(jnp.array([0.0, 1.0])))
  return (1.0 - seen_one) * zero + seen_one * one


def binary_scores(rollout, seed):
  """Scores with outcome "reward", 0 or 1, "appeals" and "truth"."""
  rng = np.random.default_rng(seed)
  b = rollout.tokens.shape[0]
  truth = np.arange(b) % 2
  return dataclasses.replace(
    make.scores(rollout, seed),
    outcome={
      "reward": jnp.asarray(1 - truth, jnp.float32),
      "appeals": jnp.asarray(
        np.where(rng.random(b) < 0.7, truth, NAN), jnp.float32
      ),
      "truth": jnp.asarray(truth, jnp.float32),
    },
  )


# The corrections.


def test_backward_by_hand():
  # ρ0 = 0.1, ρ1 = 0.4: (1 - 0.1) / 0.5 = 1.8, (0 - 0.1) / 0.5 = -0.2.
  result = backward_corrected_reward(
    jnp.array([1.0, 0.0, NAN]), false_positive_rate=0.1, false_negative_rate=0.4
  )
  np.testing.assert_allclose(result, [1.8, -0.2, NAN], rtol=1e-6)


def test_forward_by_hand():
  result = forward_weights(jnp.array([1.0, 0.0, NAN]), false_negative_rate=0.4)
  np.testing.assert_allclose(result, [0.4, -0.6, NAN], rtol=1e-6)


def backward_is_unbiased(fp, fn_rate, corrected):
  for truth in (0, 1):
    mean = expectation(corrected, truth, fp, fn_rate)
    np.testing.assert_allclose(mean, truth, atol=1e-5)


@pytest.mark.parametrize(("fp", "fn_rate"), RATES)
def test_backward_is_unbiased(fp, fn_rate):
  def corrected(values):
    return backward_corrected_reward(
      values, false_positive_rate=fp, false_negative_rate=fn_rate
    )

  backward_is_unbiased(fp, fn_rate, corrected)
  if fp != fn_rate:
    # The rates in the wrong order, and no correction at all.
    suite.must_fail(backward_is_unbiased, fn_rate, fp, corrected)
    suite.must_fail(backward_is_unbiased, fp, fn_rate, lambda values: values)


def forward_expectation(fp, fn_rate, weights):
  for truth in (0, 1):
    mean = expectation(weights, truth, fp, fn_rate)
    expected = (1.0 - fp - fn_rate) * (truth - 1)
    np.testing.assert_allclose(mean, expected, atol=1e-6)


@pytest.mark.parametrize(("fp", "fn_rate"), RATES)
def test_forward_expectation(fp, fn_rate):
  def weights(values):
    return forward_weights(values, false_negative_rate=fn_rate)

  forward_expectation(fp, fn_rate, weights)
  suite.must_fail(forward_expectation, fp, fn_rate + 0.05, weights)


def test_forward_points_where_the_true_gradient_does():
  # One step, three answers, the first right. The policy gradient of the true
  # reward, and the expectation of Σ w ∇ log π over answers and verdicts.
  logits, truth, fp, fn_rate = jnp.array([0.3, -0.2, 0.5]), [1, 0, 0], 0.2, 0.3
  probs = jax.nn.softmax(logits)
  scores = jnp.eye(3) - probs[None]  # ∇ log π of each answer
  true = (probs * jnp.array(truth)) @ scores

  def seen(fn):
    means = [expectation(fn, r, fp, fn_rate) for r in truth]
    return (probs * jnp.array(means)) @ scores

  forward = seen(lambda v: forward_weights(v, false_negative_rate=fn_rate))
  np.testing.assert_allclose(forward, (1 - fp - fn_rate) * true, atol=1e-6)
  backward = seen(
    lambda v: backward_corrected_reward(
      v, false_positive_rate=fp, false_negative_rate=fn_rate
    )
  )
  np.testing.assert_allclose(backward, true, atol=1e-6)


def test_parity():
  values = np.array([0, 1, 1, 0], np.float32)
  rates = np.array([0.1, 0.2, 0.3, 0.4], np.float32)

  def backward(v, r):
    return np.array(
      [(x - 0.2) / (0.8 - q) for x, q in zip(v, r, strict=True)], np.float32
    )

  def forward(v, r):
    return np.array(
      [q if x else q - 1 for x, q in zip(v, r, strict=True)], np.float32
    )

  inputs = [(values, rates)]
  suite.numpy_parity(
    lambda v, r: backward_corrected_reward(
      v, false_positive_rate=0.2, false_negative_rate=r
    ),
    backward,
    inputs,
  )
  ours = lambda v, r: forward_weights(v, false_negative_rate=r)  # noqa: E731
  suite.numpy_parity(ours, forward, inputs)
  suite.must_fail(suite.numpy_parity, ours, backward, inputs)


def advantages_of(estimator):
  rollout = make.rollout(0)
  both = chain(
    backward_correction(
      false_positive_rate=0.1, false_negative_rate=0.4, reward="reward"
    ),
    estimator,
  )
  plain = chain(estimator)
  scores, context = binary_scores(rollout, 0), make.context(rollout, names=())
  return [
    np.asarray(jax.jit(c.apply)(scores, c.init(), context)[0].advantages)
    for c in (both, plain)
  ]


def test_what_estimators_leave_of_the_backward_correction():
  # As the docstring says: a factor 1 / (1 - 0.5), or nothing.
  corrected, plain = advantages_of(leave_one_out(reward="reward"))
  np.testing.assert_allclose(corrected, 2.0 * plain, atol=1e-5)
  assert np.abs(plain).max() > 0.1
  corrected, plain = advantages_of(
    group_relative(scale_by_std=True, reward="reward")
  )
  np.testing.assert_allclose(corrected, plain, atol=1e-4)


# The noise.


def test_noise_by_hand():
  values = jnp.array([0.0, 1.0, 1.0, NAN])
  group = jnp.array([0, 0, 1, 1])

  def noisy(fp, fn_rate):
    return noisy_reward(
      values,
      jax.random.key(0),
      group,
      2,
      false_positive_rate=fp,
      false_negative_rate=fn_rate,
      by_prompt=False,
    )

  np.testing.assert_array_equal(noisy(0.0, 0.0), [0, 1, 1, NAN])
  np.testing.assert_array_equal(noisy(1.0, 0.0), [1, 1, 1, NAN])
  np.testing.assert_array_equal(noisy(0.0, 1.0), [0, 0, 0, NAN])
  np.testing.assert_array_equal(noisy(1.0, 1.0), [1, 0, 0, NAN])


def flips(key, *, by_prompt, fp=0.3, fn_rate=0.1, n=4000):
  """Returns truth [2n] and whether it was flipped, prompts of 4 responses."""
  truth = jnp.arange(2 * n) % 2
  group = jnp.arange(2 * n) // 4
  seen = noisy_reward(
    truth.astype(jnp.float32),
    key,
    group,
    n // 2,
    false_positive_rate=fp,
    false_negative_rate=fn_rate,
    by_prompt=by_prompt,
  )
  return np.asarray(truth), np.asarray(seen != truth)


def test_noise_has_its_rates():
  truth, flipped = flips(jax.random.key(0), by_prompt=False)
  # Four deviations of a mean of 4000 draws are 0.03 and 0.02.
  assert abs(flipped[truth == 0].mean() - 0.3) < 0.03
  assert abs(flipped[truth == 1].mean() - 0.1) < 0.02


def test_the_same_key_makes_the_same_flips():
  _, first = flips(jax.random.key(0), by_prompt=False)
  _, again = flips(jax.random.key(0), by_prompt=False)
  _, other = flips(jax.random.key(1), by_prompt=False)
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def whole_prompts_are_flipped(by_prompt):
  _, flipped = flips(
    jax.random.key(0), by_prompt=by_prompt, fp=0.4, fn_rate=0.4
  )
  share = flipped.reshape(-1, 4).mean(axis=1)
  assert np.isin(share, [0, 1]).all()
  assert abs(share.mean() - 0.4) < 0.05


def test_prompts_are_flipped_whole():
  whole_prompts_are_flipped(True)
  suite.must_fail(whole_prompts_are_flipped, False)


def test_links_of_a_chain_draw_for_themselves():
  rollout = make.rollout(0, group_sizes=(32,))
  noise = dict(
    false_positive_rate=0.5, false_negative_rate=0.5, by_prompt=False
  )
  both = chain(
    flip_noise(**noise, reward="reward", out="one"),
    flip_noise(**noise, reward="reward", out="two"),
  )
  scores, context = binary_scores(rollout, 0), make.context(rollout, names=())
  out, _ = both.apply(scores, both.init(), context)
  assert (out.outcome["one"] != out.outcome["two"]).any()


# The online estimate.


def test_appeal_counts_by_hand():
  values = jnp.array([0, 0, 0, 0, 0, 0, 1, 1, NAN], jnp.float32)
  appeals = jnp.array([1, 0, 1, NAN, NAN, NAN, 0, NAN, 1], jnp.float32)
  # 6 rejected, 3 rechecked, 2 overturned: 2 · 6/3 = 4 false negatives; 2
  # accepted. What is said of accepted and missing ones is not read.
  counts = appeal_counts(values, appeals)
  np.testing.assert_allclose(counts, (4.0, 2.0))
  # Nothing rechecked: no evidence. Nothing rejected: none to recheck.
  nobody = jnp.full(9, NAN)
  np.testing.assert_allclose(appeal_counts(values, nobody), (0.0, 0.0))
  np.testing.assert_allclose(appeal_counts(jnp.ones(3), nobody[:3]), (0.0, 3.0))


ESTIMATE = dict(
  appeals="appeals",
  reward="reward",
  initial_rate=0.2,
  initial_count=10.0,
  decay=0.5,
  max_rate=0.5,
)


def test_state_by_hand():
  rollout = make.rollout(0)
  scores = binary_scores(rollout, 0)
  scores.outcome["reward"] = jnp.array([1.0, 1.0, 0.0, 0.0, 0.0, NAN])
  scores.outcome["appeals"] = jnp.array([NAN, NAN, 1.0, 0.0, NAN, 1.0])
  context = make.context(rollout, names=())
  transform = estimate_false_negative_rate(**ESTIMATE)
  # The guess: 10 right answers, 2 of them rejected: 0.2.
  out, state = transform.apply(scores, transform.init(), context)
  np.testing.assert_allclose(out.outcome["false_negative_rate"], [0.2] * 6)
  np.testing.assert_allclose(out.metrics["noise/false_negative_rate"], 0.2)
  # Then 1 · 3/2 and 2 accepted: F = 0.5 · 2 + 1.5, A = 0.5 · 8 + 2.
  np.testing.assert_allclose(state["false_negatives"], 2.5)
  np.testing.assert_allclose(state["accepted"], 6.0)
  # A batch that says nothing forgets nothing.
  scores.outcome["reward"] = jnp.full(6, NAN)
  out, after = transform.apply(scores, state, context)
  np.testing.assert_allclose(
    out.outcome["false_negative_rate"], [2.5 / 8.5] * 6, rtol=1e-6
  )
  assert jax.tree.all(jax.tree.map(jnp.array_equal, state, after))


def estimate_converges(share, asked, truth_rate=0.3):
  """Runs noise, appeals and estimate for 60 batches of 128 from a bad guess."""
  rollout = make.rollout(0, group_sizes=(64, 64))
  links = chain(
    flip_noise(
      false_positive_rate=0.0,
      false_negative_rate=truth_rate,
      by_prompt=False,
      reward="truth",
      out="reward",
    ),
    sample_appeals(checker=asked, share=share, reward="reward"),
    estimate_false_negative_rate(**{**ESTIMATE, "decay": 0.95}),
  )
  scores, context = binary_scores(rollout, 0), make.context(rollout, names=())
  b = rollout.tokens.shape[0]
  scores.outcome["zero"] = jnp.zeros(b)

  def body(state, key):
    out, state = links.apply(
      scores, state, dataclasses.replace(context, key=key)
    )
    return state, out.metrics["noise/false_negative_rate"]

  keys = jax.random.split(jax.random.key(0), 60)
  _, rates = jax.lax.scan(body, links.init(), keys)
  # The window holds about 20 batches of 64 right answers.
  np.testing.assert_allclose(rates[-1], truth_rate, atol=0.06)


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_the_estimate_finds_the_rate(share):
  estimate_converges(share, "truth")


def test_a_checker_that_agrees_with_the_verifier_finds_nothing():
  suite.must_fail(estimate_converges, 1.0, "zero")


def test_the_state_is_all_that_there_is_to_resume():
  rollout = make.rollout(0)
  transform = chain(
    estimate_false_negative_rate(**ESTIMATE),
    backward_correction(
      false_positive_rate=0.1,
      false_negative_rate="false_negative_rate",
      reward="reward",
    ),
  )
  scores, context = binary_scores(rollout, 0), make.context(rollout, names=())
  _, state = transform.apply(scores, transform.init(), context)
  first, _ = transform.apply(scores, state, context)
  leaves, tree = jax.tree.flatten(state)
  stored = [np.asarray(leaf) for leaf in leaves]
  restored = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in stored])
  again, _ = transform.apply(scores, restored, context)
  np.testing.assert_array_equal(
    first.outcome["reward"], again.outcome["reward"]
  )
  fresh, _ = transform.apply(scores, transform.init(), context)
  assert (fresh.outcome["reward"] != first.outcome["reward"]).any()
  assert "false_negative_rate" not in first.outcome


# Transforms.

PLACES = {"permutation_permutes": "draws belong to places in the batch"}


@pytest.mark.parametrize(
  ("make_transform", "scope", "without"),
  [
    (
      lambda: flip_noise(
        false_positive_rate=0.4,
        false_negative_rate=0.4,
        by_prompt=True,
        reward="reward",
      ),
      "response",
      {},
    ),
    (
      lambda: flip_noise(
        false_positive_rate=0.4,
        false_negative_rate=0.2,
        by_prompt=False,
        reward="reward",
        out="noisy",
      ),
      "response",
      PLACES,
    ),
    (
      lambda: sample_appeals(
        checker="truth", share=0.5, reward="reward", out="asked"
      ),
      "response",
      PLACES,
    ),
    (lambda: estimate_false_negative_rate(**ESTIMATE), "batch", {}),
    (
      lambda: backward_correction(
        false_positive_rate=0.1, false_negative_rate="truth", reward="reward"
      ),
      "response",
      {},
    ),
    (
      lambda: forward_correction(false_negative_rate=0.3, reward="reward"),
      "response",
      {"equal_rewards_give_zero": "weights of the score function, no baseline"},
    ),
  ],
)
def test_suite(make_transform, scope, without):
  suite.check_transform(
    make_transform, make_scores=binary_scores, scope=scope, without=without
  )


def test_errors():
  with pytest.raises(ValueError, match="add up to 1 or more"):
    backward_correction(false_positive_rate=0.5, false_negative_rate=0.5)
  with pytest.raises(ValueError, match="add up to 1 or more"):
    backward_correction(false_positive_rate=0.5, false_negative_rate="rate")
  with pytest.raises(ValueError, match="add up to 1 or more"):
    backward_corrected_reward(
      jnp.ones(2), false_positive_rate=0.7, false_negative_rate=0.4
    )
  with pytest.raises(ValueError, match=r"false_positive_rate=-0\.1"):
    backward_correction(false_positive_rate=-0.1, false_negative_rate=0.5)
  with pytest.raises(ValueError, match=r"false_negative_rate=1\.2"):
    backward_correction(false_positive_rate=0.0, false_negative_rate=1.2)
  with pytest.raises(ValueError, match=r"false_negative_rate=1\.2"):
    forward_correction(false_negative_rate=1.2)
  with pytest.raises(ValueError, match=r"false_negative_rate=-0\.2"):
    forward_weights(jnp.ones(2), false_negative_rate=-0.2)
  with pytest.raises(ValueError, match="false_positive_rate=2"):
    flip_noise(false_positive_rate=2.0, false_negative_rate=0.0, by_prompt=True)
  with pytest.raises(ValueError, match=r"max_rate=0\.6"):
    estimate_false_negative_rate(**{**ESTIMATE, "max_rate": 0.6})
  with pytest.raises(ValueError, match="is above max_rate"):
    estimate_false_negative_rate(**{**ESTIMATE, "max_rate": 0.1})
  with pytest.raises(ValueError, match="share=2"):
    sample_appeals(checker="a", share=2.0)
