import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import calibration
from rlvr.types import Scores
from tests import suite

LOG = np.log
NAN = np.nan


def scores_of(**outcome):
  outcome = {k: jnp.asarray(v, jnp.float32) for k, v in outcome.items()}
  b = next(iter(outcome.values())).shape[0]
  return Scores(
    outcome=outcome,
    step={},
    token={},
    advantages=None,
    weights=jnp.ones(b),
    metrics={},
  )


def log_score(correct, confidence):
  return calibration.log_score_reward(correct, confidence, epsilon=1e-6)


RULES = {
  "brier": calibration.brier_reward,
  "log": log_score,
  "spherical": calibration.spherical_reward,
  "say_self": calibration.say_self_reward,
}


@pytest.mark.parametrize(
  "rule, expected",
  [
    # (c, q) = (1, 0.8), (0, 0.6), (1, 1), (0, 1)
    # 1 - 0.04; 0 - 0.36; 1; -1
    ("brier", [0.96, -0.36, 1.0, -1.0]),
    # 1 + log 0.8; log 0.4; 1 + log(1 - 1e-6); log 1e-6
    ("log", [1 + LOG(0.8), LOG(0.4), 1 + LOG(1 - 1e-6), LOG(1e-6)]),
    # 1 + 0.8/sqrt(0.68) - 1; 0.4/sqrt(0.52) - 1; 1; -1
    ("spherical", [0.8 / 0.68**0.5, 0.4 / 0.52**0.5 - 1, 1.0, -1.0]),
    # 1 - 2*0.04; 1 - 2*0.36; 1; -1
    ("say_self", [0.92, 0.28, 1.0, -1.0]),
  ],
)
def test_rules_by_hand(rule, expected):
  c, q = jnp.asarray([1.0, 0, 1, 0]), jnp.asarray([0.8, 0.6, 1, 1])
  # 1 - q of q near 1 is known to a float32's 6e-8.
  np.testing.assert_allclose(RULES[rule](c, q), expected, rtol=5e-3, atol=1e-6)
  np.testing.assert_allclose(RULES[rule](c, q)[:2], expected[:2], rtol=1e-5)


def expected_reward(rule, probability, confidence):
  right = rule(jnp.ones_like(confidence), confidence)
  wrong = rule(jnp.zeros_like(confidence), confidence)
  return probability * right + (1 - probability) * wrong


def best_confidence(rule, probability):
  grid = jnp.linspace(0.0, 1.0, 1001)
  return float(grid[jnp.argmax(expected_reward(rule, probability, grid))])


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("probability", [0.05, 0.3, 0.5, 0.62, 0.9])
def test_honest_confidence_is_best(rule, probability):
  # float32 is flat to 1e-7 around the maximum: 1 in 1000 is told apart.
  best = best_confidence(RULES[rule], probability)
  np.testing.assert_allclose(best, probability, atol=2e-3)


def test_linear_rule_is_not_proper():
  # The negative control: with c q - (1 - c) q, one is best absolutely sure.
  best = best_confidence(lambda c, q: c * q - (1 - c) * q, 0.62)
  with pytest.raises(AssertionError):
    np.testing.assert_allclose(best, 0.62, atol=2e-3)


@pytest.mark.parametrize("rule", ["brier", "spherical"])
def test_bounded_rules_prefer_the_better_answer(rule):
  # RLCR's theorem: with honest confidence, more probably right is worth more.
  p = jnp.linspace(0.0, 1.0, 21)
  value = expected_reward(RULES[rule], p, p)
  assert (jnp.diff(value) > 0).all()
  # Not so for SaySelf's: being surely wrong is worth as much as surely right.
  value = expected_reward(RULES["say_self"], p, p)
  assert not (jnp.diff(value) > 0).all()


@pytest.mark.parametrize(
  "transform, rule",
  [
    (calibration.brier, "brier"),
    (calibration.spherical, "spherical"),
    (calibration.say_self, "say_self"),
    (
      lambda **k: calibration.log_score(epsilon=1e-6, **{"malformed": -1, **k}),
      "log",
    ),
  ],
)
def test_malformed_and_missing(transform, rule):
  correct = [1.0, 1, 1, 1, NAN, NAN]
  said = [0.8, NAN, 1.5, -0.1, 0.8, NAN]
  scores = scores_of(correct=correct, confidence=said)
  out, _ = transform().apply(scores, (), None)
  good = float(RULES[rule](jnp.float32(1.0), jnp.float32(0.8)))
  np.testing.assert_allclose(
    out.outcome["reward"], [good, -1, -1, -1, NAN, NAN], rtol=1e-6
  )
  assert set(out.outcome) == {"reward", "confidence"}
  np.testing.assert_allclose(
    out.metrics["calibration/malformed"], 4 / 6, rtol=1e-6
  )
  np.testing.assert_allclose(out.metrics["calibration/brier"], 0.04, rtol=1e-5)
  out, _ = transform(malformed=None).apply(scores, (), None)
  np.testing.assert_allclose(
    out.outcome["reward"], [good, NAN, NAN, NAN, NAN, NAN], rtol=1e-6
  )


def test_ppo_calibrated_by_hand():
  # Average before: 1; batch mean (3 + 1)/2 = 2; after: 0.9 + 0.2 = 1.1.
  # 3 + 2 (3 - 1.1)(0.75 - 0.5) = 3.95; 1 + 2 (1 - 1.1)(1 - 0.5) = 0.9; a
  # missing reward stays missing; a malformed confidence adjusts nothing.
  transform = calibration.ppo_calibrated(weight=2.0, initial=1.0, reward="r")
  scores = scores_of(r=[3, 1, NAN, 2], confidence=[0.75, 1.0, 0.5, NAN])
  out, state = transform.apply(scores, transform.init(), None)
  np.testing.assert_allclose(state["average"], 1.1, rtol=1e-6)
  np.testing.assert_allclose(out.outcome["r"], [3.95, 0.9, NAN, 2], rtol=1e-6)
  scores = scores_of(r=[NAN, NAN], confidence=[0.5, 0.5])
  _, after = transform.apply(scores, state, None)
  np.testing.assert_array_equal(after["average"], state["average"])


def test_threshold_by_hand():
  # |r| counts: -2 < 1: -2 - 2 * 2 * 0.25 = -3; 3 >= 1: 3 + 2 * 3 * 0.25 = 4.5
  result = calibration.threshold_calibrated_reward(
    jnp.asarray([-2.0, 3.0]), jnp.asarray([0.75, 0.75]), 1.0, weight=2.0
  )
  np.testing.assert_allclose(result, [-3.0, 4.5])


def test_difference_parity():
  def loop(r, q, mean, sign=1.0):
    return np.array(
      [
        a + 0.7 * (a - mean) * sign * (b - 0.5)
        for a, b in zip(r, q, strict=True)
      ]
    )

  rng = np.random.default_rng(0)
  r, q = rng.normal(size=6).astype("f"), rng.random(6).astype("f")
  fn = lambda r, q, m: calibration.difference_calibrated_reward(  # noqa: E731
    r, q, m, weight=0.7
  )
  suite.numpy_parity(fn, loop, [(r, q, 0.3)])
  suite.must_fail(
    suite.numpy_parity, fn, lambda *a: loop(*a, sign=-1.0), [(r, q, 0.3)]
  )


def test_reward_model_loss_by_hand():
  # Equal rewards: 2 log 2. Differences of log 3 the right way: 2 log 4/3.
  zero, three = jnp.zeros(1), jnp.full(1, np.log(3.0))
  loss = calibration.calibrated_reward_model_loss
  np.testing.assert_allclose(
    loss(zero, zero, zero, zero), 2 * LOG(2), rtol=1e-6
  )
  right = loss(three, zero, zero, three)
  np.testing.assert_allclose(right, 2 * LOG(4 / 3), rtol=1e-6)
  # Confidence after a rejected response is bad: the wrong way costs more.
  wrong = loss(three, zero, three, zero)
  np.testing.assert_allclose(wrong, LOG(4 / 3) + LOG(4), rtol=1e-6)


def test_refusals():
  with pytest.raises(ValueError, match=r"epsilon=0.5"):
    calibration.log_score(epsilon=0.5, malformed=None)
  with pytest.raises(ValueError, match=r"decay=1.1"):
    calibration.ppo_calibrated(weight=1, initial=0, decay=1.1)
  with pytest.raises(ValueError, match="no reward 'confidence'"):
    calibration.brier().apply(scores_of(correct=[1.0]), (), None)


def both(rollout, seed):
  rng = np.random.default_rng(seed)
  b = rollout.tokens.shape[0]
  return scores_of(correct=rng.integers(0, 2, b), confidence=rng.random(b))


@pytest.mark.parametrize(
  "make_transform",
  [
    calibration.brier,
    calibration.spherical,
    calibration.say_self,
    lambda: calibration.log_score(epsilon=1e-3, malformed=-3.0),
  ],
)
def test_suite(make_transform):
  suite.check_transform(make_transform, make_scores=both, scope="response")


@pytest.mark.parametrize(
  "transform",
  [calibration.ppo_calibrated, calibration.ppo_calibrated_threshold],
)
def test_suite_moving_average(transform):
  suite.check_transform(
    lambda: transform(weight=2.0, initial=0.0, reward="correct"),
    make_scores=both,
    scope="batch",  # the average
  )
