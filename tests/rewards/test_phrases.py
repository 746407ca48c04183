import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards.phrases import (
  calibrate_low,
  calibrated_reward,
  phrase_counts,
  reasoning_pattern,
  reasoning_pattern_reward,
  repeated_ngram_share,
)
from tests import make, suite

NAN = np.nan
# One compilation each where eager operations would need dozens.
repeated = jax.jit(repeated_ngram_share, static_argnames="length")
pattern_reward = jax.jit(
  reasoning_pattern_reward,
  static_argnums=2,
  static_argnames=("value", "most_per_phrase", "repetition_length"),
)
PHRASES = ((1,), (1, 2), (2, 2, 1), (1, 1, 1, 1, 1, 1, 1, 1, 1))


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, 3, (6, 8)).astype(np.int32)
  mask = np.arange(8) < np.array([8, 5, 1, 0, 7, 6])[:, None]
  return [(tokens, mask)]


def windows(row, mask, length):
  return [
    tuple(int(x) for x in row[i : i + length])
    for i in range(len(row) - length + 1)
    if mask[i : i + length].all()
  ]


def numpy_counts(tokens, mask):
  return np.array(
    [
      [windows(row, own, len(phrase)).count(phrase) for phrase in PHRASES]
      for row, own in zip(tokens, mask, strict=True)
    ]
  )


def numpy_repeated(tokens, mask, length):
  result = []
  for row, own in zip(tokens, mask, strict=True):
    every = windows(row, own, length)
    twice = [gram for gram in set(every) if every.count(gram) > 1]
    result.append(len(twice) / len(every) if every else 0.0)
  return np.array(result, np.float32)


def test_counts_by_hand():
  tokens = jnp.array([[1, 2, 1, 2, 2, 1], [1, 1, 1, 2, 2, 1]])
  mask = jnp.array([[True] * 6, [True] * 4 + [False] * 2])
  # 1: places 0, 2, 5. 1 2: 0, 2. 2 2 1: 3. The second ends after 1 1 1 2.
  result = phrase_counts(tokens, mask, PHRASES)
  np.testing.assert_array_equal(result, [[3, 2, 1, 0], [3, 1, 0, 0]])


def test_counts_parity():
  suite.numpy_parity(
    lambda t, m: phrase_counts(t, m, PHRASES), numpy_counts, inputs()
  )
  suite.must_fail(
    suite.numpy_parity,
    lambda t, m: phrase_counts(t, jnp.ones_like(m), PHRASES),
    numpy_counts,
    inputs(),
  )


def test_repetition_by_hand():
  tokens = jnp.array([[7, 8, 7, 8, 7], [7, 8, 9, 7, 5]])
  mask = jnp.ones((2, 5), bool)
  # 78 87 78 87: two of four n-grams are different ones that occur twice.
  # 78 89 97 75: none. Of tokens: 7 and 8 of five; 7 of five.
  result = repeated(tokens, mask, length=2)
  np.testing.assert_allclose(result, [0.5, 0.0])
  result = repeated(tokens, mask, length=1)
  np.testing.assert_allclose(result, [0.4, 0.2])


@pytest.mark.parametrize("length", [1, 3, 9])
def test_repetition_parity(length):
  suite.numpy_parity(
    lambda t, m: repeated_ngram_share(t, m, length=length),
    lambda t, m: numpy_repeated(t, m, length),
    inputs(),
  )
  if length == 3:
    suite.must_fail(
      suite.numpy_parity,
      lambda t, m: repeated_ngram_share(t, m, length=length - 1),
      lambda t, m: numpy_repeated(t, m, length),
      inputs(),
    )


def test_pattern_by_hand():
  tokens = jnp.array([[1, 2, 1, 2, 2, 1]])
  mask = jnp.ones((1, 6), bool)

  def pattern(**changes):
    settings = {"value": 0.25, "most_per_phrase": 1, "repetition_length": None}
    result = pattern_reward(tokens, mask, PHRASES, **{**settings, **changes})
    return float(result[0])

  # Three of four phrases occur, 3, 2 and 1 times.
  np.testing.assert_allclose(pattern(), 0.75)
  np.testing.assert_allclose(pattern(most_per_phrase=2, value=0.1), 0.5)
  np.testing.assert_allclose(pattern(most_per_phrase=9), 1.0)
  # 12 21 12 22 21: 12 and 21 of five n-grams, 0.4.
  np.testing.assert_allclose(pattern(repetition_length=2), 0.35, rtol=1e-6)
  np.testing.assert_allclose(pattern(repetition_length=2, value=0.1), 0.0)


def saying_it_again_does_not_pay(repetition_length):
  once = [1, 2, 9, 8, 7, 6, 5, 4]
  again = [1, 2, 1, 2, 1, 2, 1, 2]
  result = pattern_reward(
    jnp.array([once, again]),
    jnp.ones((2, 8), bool),
    ((1, 2),),
    value=0.3,
    most_per_phrase=9,
    repetition_length=repetition_length,
  )
  assert result[1] < result[0] + 0.5


def test_repetition_is_punished():
  saying_it_again_does_not_pay(2)
  suite.must_fail(saying_it_again_does_not_pay, None)


def test_calibration_by_hand():
  values = jnp.array([0.0, 0.4, 0.5, 1.0, NAN, 0.4, 0.9])
  pattern = jnp.array([1.0, 0.5, 1.0, 1.0, 1.0, NAN, NAN])
  # 0 + 0.1, 0.4 + 0.05; 0.5 and above are not low, whatever the pattern.
  result = calibrated_reward(values, pattern)
  np.testing.assert_allclose(
    result, [0.1, 0.45, 0.5, 1.0, NAN, NAN, 0.9], rtol=1e-6
  )


def test_calibration_parity():
  rng = np.random.default_rng(0)
  cases = [tuple(rng.uniform(size=(2, 9)).astype(np.float32))]

  def loop(values, pattern):
    return np.array(
      [
        v + 0.1 * p if v < 0.5 else v
        for v, p in zip(values, pattern, strict=True)
      ]
    )

  suite.numpy_parity(calibrated_reward, loop, cases)
  # High rewards get nothing.
  suite.must_fail(suite.numpy_parity, lambda v, p: v + 0.1 * p, loop, cases)


def test_calibration_rewards_reasoning_of_rejected_answers_only():
  rollout = make.rollout(0)
  scores = dataclasses.replace(
    make.scores(rollout),
    outcome={
      "reward": jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
      "reasoning_pattern": jnp.full(6, 0.5),
    },
  )
  context = make.context(rollout, names=())
  out, _ = calibrate_low(reward="reward").apply(scores, (), context)
  np.testing.assert_allclose(
    out.outcome["reward"], [0.05, 1.0, 0.05, 1.0, 0.05, 1.0]
  )
  assert set(out.outcome) == {"reward"}


@pytest.mark.parametrize("thought_only", [True, False])
def test_the_answer_counts_or_not(thought_only):
  rollout = make.rollout(0, group_sizes=(1,), lengths=[5], steps=[1])
  rollout = dataclasses.replace(rollout, tokens=jnp.array([[3, 3, 4, 1, 2]]))
  span = jnp.array([[False, False, False, True, True]])
  context = make.context(rollout, names=(), extra={"answer_span": span})
  transform = reasoning_pattern(
    phrases=((3,), (1, 2)), repetition_length=None, thought_only=thought_only
  )
  scores = make.scores(rollout)
  out, _ = transform.apply(scores, (), context)
  # 1/2 for each of two phrases; the second stands in the answer.
  expected = 0.5 if thought_only else 1.0
  np.testing.assert_allclose(out.outcome["reasoning_pattern"], [expected])


def with_pattern(rollout, seed):
  scores = make.scores(rollout, seed, names=("reward", "reasoning_pattern"))
  return scores


@pytest.mark.parametrize(
  "make_transform",
  [
    lambda: reasoning_pattern(
      phrases=((1,), (2, 3)),
      repetition_length=2,
      thought_only=True,
      out="pattern",
    ),
    lambda: calibrate_low(reward="reward"),
  ],
)
def test_suite(make_transform):
  suite.check_transform(
    make_transform, make_scores=with_pattern, scope="response"
  )


def test_errors():
  settings = {"repetition_length": None, "thought_only": False}
  for phrases in ((), ((),)):
    with pytest.raises(ValueError, match="give phrases"):
      reasoning_pattern(phrases=phrases, **settings)
  with pytest.raises(ValueError, match="repetition_length=0"):
    reasoning_pattern(phrases=((1,),), repetition_length=0, thought_only=False)
  with pytest.raises(ValueError, match="most_per_phrase=0"):
    reasoning_pattern(phrases=((1,),), most_per_phrase=0, **settings)
  with pytest.raises(ValueError, match="value=-1"):
    reasoning_pattern(phrases=((1,),), value=-1.0, **settings)
