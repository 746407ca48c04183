import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.advantages import group_relative_advantages
from rlvr.rewards import chain, sum_form
from rlvr.rewards.outcome_process import (
  flaw_aware,
  flaw_aware_reward,
  flawed_process,
  gated_accumulation,
  gated_sum,
  renorm,
  renormalized_step_rewards,
)
from tests import make, suite

NAN = np.nan


def prefix(counts, width):
  return np.arange(width) < np.asarray(counts)[:, None]


def steps_and_outcomes(rollout, seed, *, binary=True):
  """Scores with outcomes "correct" and "format" and step "process", 0..1."""
  rng = np.random.default_rng(seed)
  b = rollout.tokens.shape[0]
  scores = make.scores(rollout, seed)
  outcome = {
    name: jnp.asarray(
      np.arange(b) % 2 if name == "correct" else rng.integers(0, 2, b),
      jnp.float32,
    )
    for name in ("correct", "format")
  }
  process = jnp.asarray(rng.uniform(size=(b, 3)), jnp.float32)
  return dataclasses.replace(scores, outcome=outcome, step={"process": process})


# ReNorm.


def numpy_renorm(values, outcome, mask):
  result = np.zeros_like(values)
  for i, k in np.argwhere(mask):
    result[i, k] = (values[i, k] - 0.5) + (outcome[i] - 0.5)
  return result


def renorm_inputs():
  rng = np.random.default_rng(0)
  values = rng.uniform(size=(5, 4)).astype(np.float32)
  outcome = np.array([1, 0, 1, 0, 0.5], np.float32)
  return [(values, outcome, prefix([4, 3, 1, 2, 0], 4))]


def test_renorm_by_hand():
  values = jnp.array([[0.9, 0.2, 7.0], [0.9, 0.2, 7.0]])
  mask = jnp.asarray(prefix([2, 2], 3))
  result = renormalized_step_rewards(values, jnp.array([1.0, 0.0]), mask)
  # Right: 0.9 + 1 - 1, 0.2 + 1 - 1. Wrong: 0.9 - 1, 0.2 - 1. Outside: 0.
  expected = [[0.9, 0.2, 0.0], [-0.1, -0.8, 0.0]]
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_renorm_parity():
  suite.numpy_parity(renormalized_step_rewards, numpy_renorm, renorm_inputs())
  suite.must_fail(
    suite.numpy_parity,
    lambda v, o, m: renormalized_step_rewards(v, o, m) + 0.5 * m,
    numpy_renorm,
    renorm_inputs(),
  )


def sign_is_the_outcomes(fn):
  rng = np.random.default_rng(1)
  values = jnp.asarray(rng.uniform(size=(8, 5)), jnp.float32)
  outcome = jnp.arange(8.0) % 2
  result = np.asarray(fn(values, outcome, jnp.ones((8, 5), bool)))
  assert (result[1::2] >= 0).all()
  assert (result[::2] <= 0).all()


def test_a_step_earns_only_where_the_outcome_is_right():
  sign_is_the_outcomes(renormalized_step_rewards)
  # Adding the outcome without centring pays for steps of failed responses.
  suite.must_fail(sign_is_the_outcomes, lambda v, o, m: v + o[:, None])


def test_renorm_takes_the_outcome_out_and_keeps_missing_ones_missing():
  rollout = make.rollout(0, lengths=[3] * 6, steps=[3] * 6)
  scores = steps_and_outcomes(rollout, 0)
  process = scores.step["process"].at[1, 0].set(NAN)
  correct = scores.outcome["correct"].at[0].set(NAN)
  scores = dataclasses.replace(
    scores,
    step={"process": process},
    outcome={**scores.outcome, "correct": correct},
  )
  transform = renorm(outcome="correct", out="reward")
  out, _ = transform.apply(scores, (), make.context(rollout, names=()))
  assert set(out.step) == {"reward"}
  assert set(out.outcome) == {"format"}
  missing = np.isnan(out.step["reward"])
  assert missing[0].all()
  np.testing.assert_array_equal(missing[1], [True, False, False])
  assert not missing[2:].any()


# FAPO.


def test_flawed_process_by_hand():
  values = jnp.array(
    [[1, 1, 0], [1, 0.4, 1], [1, NAN, 0.4], [1, NAN, 1], [0.5, NAN, 0]]
  )
  mask = jnp.asarray(prefix([2, 3, 3, 3, 1], 3))
  # No flaw (the third step isn't the response's); the second; the third, so
  # the unjudged one doesn't matter; unknown; 0.5 is not below 0.5.
  result = flawed_process(values, mask, threshold=0.5)
  np.testing.assert_array_equal(result, [0, 1, 1, NAN, 0])


def numpy_flaw_aware(correct, flawed, penalty):
  result = np.zeros_like(correct)
  for i, right in enumerate(correct):
    if np.isnan(right):
      result[i] = NAN
    elif right == 1:
      result[i] = 1 - penalty * flawed[i]
    else:
      result[i] = -1
  return result


def test_flaw_aware_by_hand():
  correct = jnp.array([1.0, 1.0, 0.0, 0.0, NAN, 1.0, 0.0])
  flawed = jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, NAN, NAN])
  # A wrong answer is -1 whatever the judge says, or doesn't say, of it.
  result = flaw_aware_reward(correct, flawed)
  np.testing.assert_array_equal(result, [1, 0, -1, -1, NAN, NAN, -1])


@pytest.mark.parametrize("penalty", [0.5, 1.0])
def test_flaw_aware_parity(penalty):
  rng = np.random.default_rng(0)
  inputs = [rng.integers(0, 2, (2, 9)).astype(np.float32)]
  suite.numpy_parity(
    lambda c, f: flaw_aware_reward(c, f, penalty=penalty),
    lambda c, f: numpy_flaw_aware(c, f, penalty),
    inputs,
  )
  suite.must_fail(
    suite.numpy_parity,
    lambda c, f: flaw_aware_reward(c, f, penalty=penalty + 0.1),
    lambda c, f: numpy_flaw_aware(c, f, penalty),
    inputs,
  )


def flawed_advantage(sound, wrong, **kwargs):
  """The advantage of one flawed right answer among sound and wrong ones."""
  correct = jnp.array([1.0] + [1.0] * sound + [0.0] * wrong)
  flawed = jnp.array([1.0] + [0.0] * (sound + wrong))
  rewards = flaw_aware_reward(correct, flawed, **kwargs)
  group = jnp.zeros(correct.shape, jnp.int32)
  advantages = jax.jit(
    lambda r: group_relative_advantages(r, group, 1, scale_by_std=True)
  )
  return advantages(rewards)[0]


def test_flawed_answers_are_stepping_stones_until_sound_ones_prevail():
  assert flawed_advantage(sound=1, wrong=4) > 0.1
  assert abs(flawed_advantage(sound=2, wrong=2)) < 1e-6
  assert flawed_advantage(sound=4, wrong=1) < -0.1
  # Without a penalty they are always reinforced.
  assert flawed_advantage(sound=4, wrong=1, penalty=0.0) > 0.1


# Gated accumulation.


def numpy_gated(rewards, thresholds):
  """The definition, reward by reward: the product over all higher ones."""
  total = np.zeros_like(rewards[0])
  for index in np.ndindex(total.shape):
    for i, values in enumerate(rewards):
      passed = all(rewards[j][index] >= thresholds[j] for j in range(i))
      total[index] += values[index] if passed else 0.0
  return total


def gated_inputs():
  rng = np.random.default_rng(0)
  shape = (6, 4)
  return [[rng.uniform(size=shape).astype(np.float32) for _ in range(3)]]


def test_gated_sum_by_hand():
  high = jnp.array([1.0, 1.0, 0.0, 0.5])
  middle = jnp.array([0.4, 0.1, 0.4, 0.4])
  low = jnp.array([0.2, 0.2, 0.2, 0.2])
  # Gates at 0.5 and 0.3. 1 + 0.4 + 0.2; 1 + 0.1 (middle too low); 0 (high too
  # low, so the open middle gate doesn't count); 0.5 reaches 0.5.
  total, gate = gated_sum([high, middle, low], [0.5, 0.3, 0.2])
  np.testing.assert_allclose(total, [1.6, 1.1, 0.0, 1.1], atol=1e-6)
  np.testing.assert_array_equal(gate, [1, 0, 0, 1])


def test_gated_sum_parity():
  thresholds = [0.5, 0.4, 0.9]
  suite.numpy_parity(
    lambda *r: gated_sum(r, thresholds)[0],
    lambda *r: numpy_gated(r, thresholds),
    gated_inputs(),
  )

  # Gates that don't chain: each reward looks at the next higher one only.
  def unchained(*rewards):
    total = rewards[0]
    for i in (1, 2):
      total += jnp.where(rewards[i - 1] >= thresholds[i - 1], rewards[i], 0.0)
    return total

  suite.must_fail(
    suite.numpy_parity,
    unchained,
    lambda *r: numpy_gated(r, thresholds),
    gated_inputs(),
  )


def test_what_is_missing_behind_a_closed_gate_does_not_matter():
  high = jnp.array([0.0, 1.0, NAN, NAN])
  low = jnp.array([NAN, NAN, 1.0, NAN])
  total, gate = gated_sum([high, low], [0.5, 0.5])
  np.testing.assert_array_equal(total, [0.0, NAN, NAN, NAN])
  np.testing.assert_array_equal(gate, [0.0, NAN, NAN, NAN])


def test_outcomes_gate_steps_and_end_up_at_the_last_step():
  rollout = make.rollout(0, lengths=[5] * 6, steps=[3, 2, 1, 3, 2, 1])
  scores = steps_and_outcomes(rollout, 0)
  outcome = {
    "correct": jnp.array([1.0, 1.0, 0.0, 0.0, 1.0, NAN]),
    "format": jnp.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0]),
  }
  process = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.3]), (6, 3))
  scores = dataclasses.replace(
    scores, outcome=outcome, step={"process": process}
  )
  transform = gated_accumulation(
    levels=("correct", "format", "process"), thresholds=(1.0, 1.0)
  )
  out, _ = transform.apply(scores, (), make.context(rollout, names=()))
  # 1: both open, 0.1, 0.2, 0.3 + 2. 2: format is 0, so no steps: 1 at the
  # second step. 3, 4: wrong. 5: 0.1, 0.2 + 2. 6: missing.
  expected = [
    [0.1, 0.2, 2.3],
    [0.0, 1.0, 0.0],
    [0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0],
    [0.1, 2.2, 0.0],
    [NAN, 0.0, 0.0],
  ]
  np.testing.assert_allclose(out.step["reward"], expected, atol=1e-6)
  assert not out.outcome
  # 3 of the 5 that are known are right; 2 of these have the form.
  np.testing.assert_allclose(out.metrics["gate/correct"], 3 / 5)
  np.testing.assert_allclose(out.metrics["gate/format"], 2 / 5)


def test_ungated_steps_pay_for_failure_and_gated_ones_do_not():
  rollout = make.rollout(0)
  scores = steps_and_outcomes(rollout, 0)

  def first_returns(threshold):
    both = chain(
      gated_accumulation(
        levels=("correct", "process"), thresholds=(threshold,)
      ),
      sum_form(gamma=1.0, reward="reward"),
    )
    context = make.context(rollout, names=())
    out, _ = jax.jit(both.apply)(scores, both.init(), context)
    return np.asarray(out.token["reward"][:, 0])

  wrong = np.asarray(scores.outcome["correct"]) == 0
  assert (first_returns(1.0)[wrong] == 0).all()
  assert (first_returns(0.0)[wrong] > 0).all()


def test_outcomes_alone_give_an_outcome():
  rollout = make.rollout(0)
  transform = gated_accumulation(
    levels=("correct", "format"), thresholds=(1.0,)
  )
  scores = steps_and_outcomes(rollout, 0)
  out, _ = transform.apply(scores, (), make.context(rollout, names=()))
  correct, form = scores.outcome["correct"], scores.outcome["format"]
  np.testing.assert_array_equal(out.outcome["reward"], correct + correct * form)
  assert set(out.step) == {"process"}


def test_steps_gate_the_same_step():
  rollout = make.rollout(0, lengths=[5] * 6, steps=[3] * 6)
  scores = make.scores(rollout, kind="step", names=("valid", "useful"))
  scores.step["valid"] = jnp.broadcast_to(jnp.array([1.0, 0.0, 1.0]), (6, 3))
  scores.step["useful"] = jnp.full((6, 3), 0.5)
  transform = gated_accumulation(levels=("valid", "useful"), thresholds=(1.0,))
  out, _ = transform.apply(scores, (), make.context(rollout, names=()))
  expected = jnp.broadcast_to(jnp.array([1.5, 0.0, 1.5]), (6, 3))
  np.testing.assert_allclose(out.step["reward"], expected)


@pytest.mark.parametrize(
  "make_transform",
  [
    lambda: renorm(outcome="correct", reward="process"),
    lambda: flaw_aware(correct="correct", process="process", threshold=0.5),
    lambda: gated_accumulation(
      levels=("correct", "format", "process"), thresholds=(1.0, 0.5)
    ),
    lambda: gated_accumulation(levels=("correct", "format"), thresholds=(1.0,)),
  ],
)
def test_suite(make_transform):
  # The metrics are over the batch, the rewards over a response.
  suite.check_transform(
    make_transform, make_scores=steps_and_outcomes, scope="response"
  )


def test_errors():
  with pytest.raises(ValueError, match="penalty=-1"):
    flaw_aware(correct="a", process="b", threshold=0.5, penalty=-1.0)
  with pytest.raises(ValueError, match="two or more"):
    gated_accumulation(levels=("a", "a"), thresholds=(1.0,))
  with pytest.raises(ValueError, match="1 thresholds for 3"):
    gated_accumulation(levels=("a", "b", "c"), thresholds=(1.0,))
  rollout = make.rollout(0)
  scores = steps_and_outcomes(rollout, 0)
  context = make.context(rollout, names=())
  backwards = gated_accumulation(
    levels=("process", "correct"), thresholds=(1.0,)
  )
  with pytest.raises(ValueError, match="put outcomes first"):
    backwards.apply(scores, (), context)
  two = dataclasses.replace(
    scores, step={**scores.step, "other": scores.step["process"]}
  )
  with pytest.raises(ValueError, match=r"renorm\.reward"):
    renorm(outcome="correct").apply(two, (), context)
