import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import intrinsic
from tests import make, suite
from tests.rewards.test_calibration import scores_of

LOG, NAN = np.log, np.nan


def test_self_certainty_by_hand():
  # KL(U || p) for p = (1/4, 3/4): log 1/2 - (log 1/4 + log 3/4)/2 = 0.143841;
  # for p uniform 0. Mean over the two tokens: 0.071921; padding is not read.
  kl = -LOG(2) - 0.5 * (LOG(0.25) + LOG(0.75))
  result = intrinsic.self_certainty_reward(
    jnp.asarray([[kl, 0.0, 99.0]]), jnp.asarray([[True, True, False]])
  )
  np.testing.assert_allclose(result, [0.071921], atol=1e-6)


def test_answer_confidence_by_hand():
  # Mean of the probabilities 1/2 and 1/4, not of their logarithms.
  logprobs = jnp.asarray([[LOG(0.9), LOG(0.5), LOG(0.25)], [-1.0, -1.0, -1.0]])
  span = jnp.asarray([[False, True, True], [False, False, False]])
  result = intrinsic.answer_confidence_reward(logprobs, span)
  np.testing.assert_allclose(result, [0.375, NAN], rtol=1e-6)
  context = make.context(
    make.rollout(group_sizes=(2,), num_tokens=3),
    names=(),
    extra={"logprobs": logprobs, "answer_span": span},
  )
  for no_answer, expected in ((0.0, 0.0), (None, NAN)):
    out, _ = intrinsic.answer_confidence(no_answer=no_answer).apply(
      scores_of(x=[0, 0]), (), context
    )
    np.testing.assert_allclose(
      out.outcome["confidence"], [0.375, expected], rtol=1e-6
    )


def test_confidence_pairs_by_hand():
  # Group 0: right 0 (0.9) and 1 (0.4), wrong 2 (0.5): margins 0.4 and -0.1.
  # Group 1: right 3 (0.8), wrong 4 (0.1): 0.7; 5 is missing. Never 0 with 4.
  confidence = jnp.asarray([0.9, 0.4, 0.5, 0.8, 0.1, 0.0])
  correct = jnp.asarray([1, 1, 0, 1, 0, NAN])
  group = jnp.asarray([0, 0, 0, 1, 1, 1])
  chosen, rejected, margin = intrinsic.confidence_pairs(
    confidence, correct, group, num_pairs=4
  )
  np.testing.assert_array_equal(chosen, [3, 0, 1, -1])
  np.testing.assert_array_equal(rejected, [4, 2, 2, -1])
  np.testing.assert_allclose(margin, [0.7, 0.4, -0.1, 0], rtol=1e-6)
  with pytest.raises(ValueError, match="num_pairs=37"):
    intrinsic.confidence_pairs(confidence, correct, group, num_pairs=37)


def test_last_token_by_hand():
  # 0.1 (-13 - (-23)) = 1; of -18: 0.5.
  result = intrinsic.last_token_reward(
    jnp.asarray([-13.0, -18.0]), -23.0, beta=0.1
  )
  np.testing.assert_allclose(result, [1.0, 0.5], rtol=1e-6)


def test_last_token_limits_and_unfinished():
  rollout = make.rollout(group_sizes=(4,), lengths=(5, 2, 3, 1))
  rollout = dataclasses.replace(
    rollout, finished=jnp.asarray([True, True, True, False])
  )
  logprobs = jnp.asarray([-1.0, -30.0, -18.0, -13.0])
  reference = jnp.asarray([-23.0, -23.0, -20.0, -23.0])
  extra = {
    "last_token_logprobs": logprobs,
    "ref_last_token_logprobs": reference,
  }
  context = make.context(rollout, names=(), extra=extra)
  # 2.2 and -0.7 are limited; truncated: 0.
  for given, third in ((-23.0, 0.5), (None, 0.2)):
    out, _ = intrinsic.last_token(reference=given).apply(
      scores_of(x=np.zeros(4)), (), context
    )
    np.testing.assert_allclose(
      out.outcome["self_reward"], [1, 0, third, 0], atol=1e-6
    )
    # (-1 - 30 - 18)/3
    np.testing.assert_allclose(
      out.metrics["laser/last_token_logprob"], -49 / 3, rtol=1e-6
    )


def numpy_integrated(r, s, group, mix, threshold):
  result = np.full(r.shape, NAN)
  for g in set(group):
    own = (group == g) & ~np.isnan(r)
    if own.sum() < 2:
      result[own] = 0.0
      continue
    z = [(x[own] - x[own].mean()) / (x[own].std(ddof=1) + 1e-6) for x in (r, s)]
    tau = mix if s[own].std(ddof=1) > threshold else 0.0
    result[own] = (1 - tau) * z[0] + tau * z[1]
  return result


def test_integrated_parity():
  rng = np.random.default_rng(0)
  group = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3])
  r = rng.normal(size=9).astype(np.float32)
  r[7] = NAN
  s = rng.normal(size=9).astype(np.float32)
  s[3:5] = 0.5 + 0.01 * s[3:5]  # hardly differ: not mixed in
  inputs = [(r, s, group)]
  fn = lambda r, s, g: intrinsic.integrated_reward(  # noqa: E731
    r, s, g, 4, mix=0.3, threshold=0.1
  )
  suite.numpy_parity(
    fn, lambda *a: numpy_integrated(*a, 0.3, 0.1), inputs, rtol=1e-4
  )
  for wrong in ((0.3, 0.0), (0.7, 0.1)):
    suite.must_fail(
      suite.numpy_parity,
      fn,
      lambda *a, w=wrong: numpy_integrated(*a, *w),
      inputs,
      rtol=1e-4,
    )


def test_integration_waits():
  rollout = make.rollout()
  scores = scores_of(
    correct=[1, 0, 1, 1, 0, 1], self_reward=[0.1, 0.9, 0.4, 0.5, 0.9, 0.3]
  )
  run = intrinsic.self_reward_integration(warmup=3, mix=1.0).apply

  def at(step):
    context = make.context(rollout, names=(), step=step)
    return run(scores, (), context)[0].outcome["reward"]

  # Group 2 (0, 1 with self-rewards 0.9, 0.3): the sign turns with the mixture.
  np.testing.assert_allclose(at(2)[4:], [-(0.5**0.5), 0.5**0.5], rtol=1e-4)
  np.testing.assert_allclose(at(3)[4:], [0.5**0.5, -(0.5**0.5)], rtol=1e-4)


def test_class_weights_by_hand():
  # Counted: right 1 of 4, wrong 3 of 4: 4/2 = 2 and 4/6 = 2/3; mean 1.
  correct = jnp.asarray([1.0, 0, 0, 0, 1, NAN])
  counted = jnp.asarray([True, True, True, True, False, True])
  weights = intrinsic.class_weights(correct, counted)
  np.testing.assert_allclose(weights, [2, 2 / 3, 2 / 3, 2 / 3, 0, 0], rtol=1e-6)
  none = intrinsic.class_weights(jnp.ones(4), jnp.ones(4, bool))
  np.testing.assert_allclose(none, 0.5)


def test_co_reward_by_hand():
  # Prompt 0 says 4 4 9, prompt 1 says 9: 9 is right in 0, nothing in 1.
  # Prompt 2 has no answer: nothing is right in 3, nor in 2.
  ids = jnp.asarray([4, 4, 9, 9, -1, -1, 5, 5], jnp.int32)
  group = jnp.asarray([0, 0, 0, 1, 2, 2, 3, 3], jnp.int32)
  result = intrinsic.co_reward_labels(ids, group, 4)
  np.testing.assert_array_equal(result, [0, 0, 1, 0, 0, 0, 0, 0])
  # The same answers everywhere agree.
  same = intrinsic.co_reward_labels(jnp.full(8, 3), group, 4)
  np.testing.assert_array_equal(same, np.ones(8))


def test_co_reward_parity():
  def loop(ids, group, own=False):
    result = np.zeros(len(ids), np.float32)
    for i, answer in enumerate(ids):
      other = group[i] if own else group[i] ^ 1
      votes = [
        a for a, g in zip(ids, group, strict=True) if g == other and a >= 0
      ]
      if votes:
        label = max(sorted(set(votes)), key=votes.count)
        result[i] = answer == label
    return result

  rng = np.random.default_rng(2)
  group = np.repeat(np.arange(4), 4).astype(np.int32)
  inputs = [(rng.integers(-1, 3, 16).astype(np.int32), group)]
  fn = lambda i, g: intrinsic.co_reward_labels(i, g, 4)  # noqa: E731
  suite.numpy_parity(fn, loop, inputs)
  suite.must_fail(suite.numpy_parity, fn, lambda *a: loop(*a, own=True), inputs)


def test_co_reward_refuses_odd():
  context = make.context(make.rollout(), names=("answer_ids",))
  with pytest.raises(ValueError, match="num_prompts=3 is odd"):
    intrinsic.co_reward().apply(scores_of(x=np.zeros(6)), (), context)


@pytest.mark.parametrize(
  "make_transform",
  [
    intrinsic.self_certainty,
    lambda: intrinsic.answer_confidence(no_answer=0.0),
    lambda: intrinsic.last_token(reference=-1.0),
    lambda: intrinsic.last_token(reference=None),
  ],
)
def test_suite(make_transform):
  suite.check_transform(make_transform, scope="response")


def both(rollout, seed):
  rng = np.random.default_rng(seed)
  b = rollout.tokens.shape[0]
  return scores_of(correct=rng.integers(0, 2, b), self_reward=rng.random(b))


def test_suite_of_combined():
  suite.check_transform(
    lambda: intrinsic.self_reward_integration(warmup=0, mix=0.5),
    make_scores=both,
  )
  suite.check_transform(
    intrinsic.class_balance, make_scores=both, scope="batch"
  )


def test_suite_of_co_reward():
  # No equal votes: those go to the answer that was sampled first.
  ids = jnp.array([4, 4, 1, 4, 1, 1, -1, 1], jnp.int32)
  suite.check_transform(
    intrinsic.co_reward,
    make_probes=lambda *_: {"answer_ids": ids},
    group_sizes=(3, 1, 2, 2),
    scope="batch",
  )
