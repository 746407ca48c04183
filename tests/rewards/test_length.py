import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards.length import (
  band_penalties,
  conciseness_reward,
  conciseness_rewards,
  correct_ratio,
  format_length,
  format_length_rewards,
  grpo_lambda,
  length_band,
  length_score,
  length_scores,
  shortened_rewards,
  surrogate_length_rewards,
  top_groups,
)
from tests import change, make, suite

NAN = np.nan
GROUP = np.array([0, 0, 0, 0, 1, 2, 2])


def numpy_shortened(rewards, lengths, group, penalised, alpha):
  result = rewards.astype(np.float64).copy()
  for g in np.flatnonzero(penalised):
    right = (group == g) & (rewards > 0)
    if not right.any():
      continue
    mean, std = lengths[right].mean(), lengths[right].std()
    for i in np.flatnonzero(right):
      z = (lengths[i] - mean) / (std + 1e-7)
      result[i] = rewards[i] * (1 - alpha / (1 + np.exp(-z)))
  return result


def numpy_surrogate(lengths, max_length, p):
  result = np.zeros(lengths.shape)
  for i, length in np.ndenumerate(lengths):
    x = min(length / max_length, 1.0)
    if x <= p:
      result[i] = 1 - (1 - x / p) ** 2
    else:
      result[i] = 1 - 2 * ((x - p) / (1 - p)) ** 2
  return result


def numpy_band(lengths, low, high, limit):
  result = np.zeros(lengths.shape)
  for i, length in np.ndenumerate(lengths):
    if length < low:
      result[i] = -(low - length) / low
    elif length > high:
      result[i] = -min((length - high) / (limit - high), 1.0)
  return result


def test_correct_ratio_by_hand():
  rewards = jnp.array([1.0, 0.0, NAN, 0.5, NAN, 0.0, -1.0])
  # Two of the three that are there; none there; none of two; no such group.
  result = correct_ratio(rewards, jnp.asarray(GROUP), 4)
  np.testing.assert_allclose(result, [2 / 3, 0.0, 0.0, 0.0], rtol=1e-6)


def test_top_groups_by_hand():
  ratio = jnp.array([0.5, 1.0, 0.25, 0.5, 0.9])
  counted = jnp.array([True, True, True, True, False])
  for share, expected in (
    (0.0, [0, 0, 0, 0, 0]),
    (0.2, [0, 1, 0, 0, 0]),  # ceil(0.8) = 1
    (0.25, [0, 1, 0, 0, 0]),
    (0.5, [1, 1, 0, 1, 0]),  # the second place is shared
    (1.0, [1, 1, 1, 1, 0]),
  ):
    result = top_groups(ratio, counted, share=share)
    np.testing.assert_array_equal(result, expected, f"share {share}")
  # 0.3 * 10 is above 3 in float32: still three groups.
  many = jnp.arange(10, dtype=jnp.float32)
  assert top_groups(many, many >= 0, share=0.3).sum() == 3


def test_shortened_by_hand():
  # Right answers of 2 and 6 tokens: mean 4, std 2, z = -1 and 1:
  # 1 - 0.5 σ(-1) = 1 - 0.5 * 0.268941 = 0.865529; 1 - 0.5 σ(1) = 0.634471.
  # The wrong one of 10 tokens plays no part, nor does group 1.
  result = shortened_rewards(
    jnp.array([1.0, 1.0, 0.0, 1.0]),
    jnp.array([2, 6, 10, 50]),
    jnp.array([0, 0, 0, 1]),
    jnp.array([True, False]),
    alpha=0.5,
  )
  np.testing.assert_allclose(result, [0.865529, 0.634471, 0.0, 1.0], atol=1e-6)


def test_shortened_parity():
  inputs = []
  for seed in range(2):
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 2, 7).astype(np.float32)
    rewards[rng.integers(0, 7)] = NAN
    inputs.append((rewards, rng.integers(1, 9, 7), GROUP, rng.random(3) < 0.7))

  def fn(*args):
    return shortened_rewards(*args, alpha=0.4)

  suite.numpy_parity(fn, lambda *a: numpy_shortened(*a, 0.4), inputs)
  suite.must_fail(
    suite.numpy_parity, fn, lambda *a: numpy_shortened(*a, 0.3), inputs
  )

  def of_all(r, n, g, p):  # broken: statistics over wrong answers as well
    every = shortened_rewards(jnp.abs(r) + 1.0, n, g, p, alpha=0.4)
    return jnp.where(r > 0, every / 2.0, r)

  suite.must_fail(
    suite.numpy_parity, of_all, lambda *a: numpy_shortened(*a, 0.4), inputs
  )


def lambda_case(**kwargs):
  """Groups with 3 of 4, 1 of 1 and 0 of 2 right."""
  kwargs = {"share": 1.0, "minimum_ratio": 0.0, "alpha": 0.5, **kwargs}
  case = suite.case(grpo_lambda(**kwargs), group_sizes=(4, 1, 2))
  reward = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
  case.scores.outcome["reward"] = reward
  return case, np.asarray(reward)


def test_grpo_lambda_penalises_only_groups_that_are_right_often():
  case, given = lambda_case(minimum_ratio=0.7)
  result = np.asarray(case.run(eager=True).outcome["reward"])
  lengths = np.asarray(case.context.rollout.lengths)
  expected = numpy_shortened(
    given, lengths, GROUP, np.array([True, True, False]), 0.5
  )
  np.testing.assert_allclose(result, expected, atol=1e-6)
  # A higher demand leaves the first group its 0/1 rewards.
  case, _ = lambda_case(minimum_ratio=0.8)
  np.testing.assert_array_equal(
    case.run(eager=True).outcome["reward"][:4], given[:4]
  )
  # Top third of three groups: the second, which is always right.
  case, _ = lambda_case(share=1 / 3)
  out = case.run(eager=True)
  np.testing.assert_array_equal(
    np.asarray(out.outcome["reward"]) != given, [0, 0, 0, 0, 1, 0, 0]
  )
  np.testing.assert_allclose(
    out.metrics["grpo_lambda/penalised_groups"], 1 / 3, rtol=1e-6
  )
  assert (
    lambda_case(share=0.0)[0]
    .run(eager=True)
    .metrics["grpo_lambda/penalised_groups"]
    == 0
  )


def test_grpo_lambda_never_ranks_wrong_above_right():
  case, given = lambda_case(alpha=0.9)
  result = np.asarray(case.run(eager=True).outcome["reward"])
  assert result[given > 0].min() > result[given == 0].max()


def test_lengths_are_tokens():
  # Same mask, other tokens: nothing changes; a longer mask: it does.
  case, _ = lambda_case()
  base = np.asarray(case.run(eager=True).outcome["reward"])
  rollout = case.context.rollout
  other = dataclasses.replace(
    case.context,
    rollout=dataclasses.replace(rollout, tokens=rollout.tokens + 1),
  )
  np.testing.assert_array_equal(
    case.run(context=other, eager=True).outcome["reward"], base
  )
  mask = rollout.completion_mask.at[1].set(jnp.arange(5) < 1)
  shorter = dataclasses.replace(
    case.context, rollout=dataclasses.replace(rollout, completion_mask=mask)
  )
  assert (case.run(context=shorter, eager=True).outcome["reward"] != base).any()


def test_surrogate_by_hand():
  # p = 1/2 of 8 tokens: 0 -> 0, 2 -> 1 - 1/4, 4 -> 1, 6 -> 1 - 2/4, 8 -> -1.
  result = surrogate_length_rewards(
    jnp.array([0, 2, 4, 6, 8, 100]), max_length=8
  )
  np.testing.assert_allclose(result, [0.0, 0.75, 1.0, 0.5, -1.0, -1.0])


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_surrogate_parity(p):
  inputs = [(np.arange(0, 15),), (np.array([3, 1, 12]),)]
  fn = lambda n: surrogate_length_rewards(n, max_length=12, turning_point=p)  # noqa: E731
  suite.numpy_parity(fn, lambda n: numpy_surrogate(n, 12, p), inputs)
  suite.must_fail(
    suite.numpy_parity, fn, lambda n: numpy_surrogate(n, 12, 0.4), inputs
  )


def test_surrogate_rises_then_falls():
  result = np.asarray(
    surrogate_length_rewards(jnp.arange(101), max_length=100, turning_point=0.3)
  )
  assert (np.diff(result[:31]) > 0).all()
  assert (np.diff(result[30:]) < 0).all()
  # Steeper and steeper behind the turning point.
  assert (np.diff(result[30:], 2) < 1e-6).all()


def test_format_length_by_hand():
  # Kept: 0.5 + 0.75; broken format: short earns nothing, long still loses.
  result = format_length_rewards(
    jnp.array([0.5, 0.0, 0.0, NAN]), jnp.array([0.75, 0.75, -0.4, 0.2])
  )
  np.testing.assert_allclose(result, [1.25, 0.0, -0.4, NAN], rtol=1e-6)


def test_format_is_worth_more_at_any_length():
  lengths = jnp.arange(41)
  reward = surrogate_length_rewards(lengths, max_length=40)
  kept = format_length_rewards(jnp.ones(41), reward)
  lost = format_length_rewards(jnp.zeros(41), reward)
  assert (kept >= lost + 1.0 - 1e-6).all()


def test_length_scores_and_band_by_hand():
  lengths = jnp.array([0, 2, 4, 10, 15, 20, 30])
  np.testing.assert_allclose(
    length_scores(lengths, max_length=20), [1.0, 0.9, 0.8, 0.5, 0.25, 0.0, 0.0]
  )
  # Band 4..10, limit 20: (4 - 2) / 4, (15 - 10) / 10, then at most 1.
  np.testing.assert_allclose(
    band_penalties(lengths, low=4, high=10, limit=20),
    [-1.0, -0.5, 0.0, 0.0, -0.5, -1.0, -1.0],
  )
  inputs = [(np.arange(25), 3, 7, 19), (np.arange(25), 5, 5, 6)]

  def fn(n, low, high, limit):
    return band_penalties(n, low=low, high=high, limit=limit)

  suite.numpy_parity(fn, numpy_band, inputs)
  suite.must_fail(
    suite.numpy_parity,
    fn,
    lambda n, low, high, limit: numpy_band(n, low, high, limit + 1),
    inputs,
  )
  nothing = band_penalties(lengths, low=0, high=10, limit=20)
  assert nothing[0] == 0.0


def test_conciseness_by_hand():
  # Right: 1 + 0.5 * 0.8; wrong: 0 however short; missing parts.
  outcome = jnp.array([1.0, 0.0, 1.0, 0.0, NAN])
  concise = jnp.array([0.8, 1.0, NAN, NAN, 0.5])
  half = jnp.full((5,), 0.5)
  strict = conciseness_rewards(outcome, concise, half, missing="propagate")
  np.testing.assert_allclose(strict, [1.4, 0.0, NAN, NAN, NAN], rtol=1e-6)
  skip = conciseness_rewards(outcome, concise, half, missing="skip")
  np.testing.assert_allclose(skip, [1.4, 0.0, 1.0, 0.0, NAN], rtol=1e-6)


def test_conciseness_is_annealed_and_less_on_hard_prompts():
  case = suite.case(
    conciseness_reward(outcome="o", conciseness="s", start=0.2, end=1.0),
    make_scores=lambda r, s: make.scores(r, s, names=("o", "s")),
    group_sizes=(4, 1),
  )
  case.scores.outcome.update(
    o=jnp.array([1.0, 0.0, 0.0, 0.0, 1.0]), s=jnp.full((5,), 0.5)
  )
  # Progress 0.25: a = 0.2 + 0.25 * 0.8 = 0.4. Ratios 1/4 and 1:
  # 1 + 0.4 * 0.25 * 0.5 = 1.05 and 1 + 0.4 * 0.5 = 1.2.
  np.testing.assert_allclose(
    case.run(eager=True).outcome["reward"], [1.05, 0, 0, 0, 1.2], rtol=1e-6
  )
  done = dataclasses.replace(case.context, progress=jnp.float32(1.0))
  np.testing.assert_allclose(
    case.run(context=done, eager=True).outcome["reward"],
    [1.125, 0, 0, 0, 1.5],
    rtol=1e-6,
  )


def test_length_score_feeds_conciseness():
  case = suite.case(length_score(max_length=5), kind="outcome")
  out = case.run(eager=True)
  np.testing.assert_allclose(
    out.outcome["conciseness"],
    1.0 - np.asarray(case.context.rollout.lengths) / 5,
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  ("make_transform", "scope"),
  [
    (
      lambda: grpo_lambda(
        share=0.4, minimum_ratio=0.1, alpha=0.5, reward="reward"
      ),
      "batch",
    ),
    (lambda: format_length(max_length=5, reward="reward"), "response"),
    (lambda: length_score(max_length=7), "response"),
    (lambda: length_band(low=2, high=3, limit=5), "response"),
  ],
)
def test_suite(make_transform, scope):
  suite.check_transform(make_transform, scope=scope)


@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_suite_conciseness(missing):
  suite.check_transform(
    lambda: conciseness_reward(
      outcome="o", conciseness="s", start=0.1, end=0.9, missing=missing
    ),
    make_scores=lambda r, s: make.scores(r, s, names=("o", "s")),
  )


def test_padding_would_show_in_characters():
  # Negative control of the suite's padding check: lengths of the whole row.
  case = suite.case(length_score(max_length=7))
  context = change.pad_context(case.context, case.axes, tokens=2)
  assert context.rollout.tokens.shape[1] == 7
  np.testing.assert_array_equal(
    context.rollout.lengths, case.context.rollout.lengths
  )


def test_refusals():
  with pytest.raises(ValueError, match="share=2"):
    grpo_lambda(share=2, minimum_ratio=0.5, alpha=0.5)
  with pytest.raises(ValueError, match="alpha=-1"):
    grpo_lambda(share=1, minimum_ratio=0.5, alpha=-1)
  with pytest.raises(ValueError, match=r"turning_point=1\.0"):
    format_length(max_length=5, turning_point=1.0)
  with pytest.raises(ValueError, match="max_length=0"):
    format_length(max_length=0)
  with pytest.raises(ValueError, match="max_length=0"):
    length_score(max_length=0)
  with pytest.raises(ValueError, match="high=9, limit=9"):
    length_band(low=0, high=9, limit=9)
