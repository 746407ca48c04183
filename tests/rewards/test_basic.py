import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import clip, clipped_reward, weighted_sum, weighted_sum_reward
from tests import make, suite

NAN = float("nan")


def numpy_weighted_sum(a, b, weights, missing):
  result = np.zeros_like(a)
  for i in np.ndindex(a.shape):
    pairs = list(zip((a[i], b[i]), weights, strict=True))
    there = [(v, w) for v, w in pairs if not np.isnan(v)]
    if not there or (missing == "propagate" and len(there) < 2):
      result[i] = NAN
      continue
    total = sum(v * w for v, w in there)
    share = sum(abs(w) for _, w in there) / sum(abs(w) for w in weights)
    result[i] = total / share
  return result


def test_clip_by_hand():
  values = jnp.array([-2.0, 0.3, 7.0, NAN])
  result = clipped_reward(values, low=-1.0, high=1.0)
  np.testing.assert_array_equal(result, np.float32([-1.0, 0.3, 1.0, NAN]))


def test_weighted_sum_by_hand():
  rewards = {
    "a": jnp.array([1.0, NAN, 2.0, NAN]),
    "b": jnp.array([3.0, 3.0, NAN, NAN]),
    "unused": jnp.full((4,), NAN),
  }
  weights = {"a": 1.0, "b": -0.5}
  # 1 - 1.5 = -0.5
  result = weighted_sum_reward(rewards, weights, missing="propagate")
  np.testing.assert_allclose(result, [-0.5, NAN, NAN, NAN])
  # b alone: -1.5 of 0.5 / 1.5 of the weight: -4.5; a alone: 2 / (1 / 1.5) = 3
  result = weighted_sum_reward(rewards, weights, missing="skip")
  np.testing.assert_allclose(result, [-0.5, -4.5, 3.0, NAN], rtol=1e-6)


@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_weighted_sum_parity(missing):
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 6, 3)).astype(np.float32)
  a[0], b[1, 1] = NAN, NAN

  def fn(a, b, weights=(0.7, -2.0)):
    named = dict(zip("ab", weights, strict=True))
    return weighted_sum_reward({"a": a, "b": b}, named, missing=missing)

  def reference(a, b):
    return numpy_weighted_sum(a, b, (0.7, -2.0), missing)

  suite.numpy_parity(fn, reference, [(a, b)])
  suite.must_fail(
    suite.numpy_parity,
    lambda a, b: fn(a, b, weights=(0.7, 2.0)),
    reference,
    [(a, b)],
  )


def test_suite_clip():
  suite.check_transform(
    lambda: clip(low=-0.5, high=0.5, reward="reward"),
    kinds=("outcome", "step", "token"),
    scope="response",
  )


@pytest.mark.parametrize("kind", ["outcome", "step"])
@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_suite_weighted_sum(kind, missing):
  suite.check_transform(
    lambda: weighted_sum({"a": 1.0, "b": 0.5}, missing=missing),
    make_scores=lambda r, s: make.scores(r, s, kind=kind, names=("a", "b")),
    scope="response",
  )


def test_weighted_sum_takes_the_parts_out():
  rollout = make.rollout()
  scores = make.scores(rollout, names=("a", "b", "c"))
  out, _ = weighted_sum({"a": 1.0, "b": 1.0}, out="sum").apply(scores, (), None)
  assert set(out.outcome) == {"sum", "c"}
  # The input isn't changed in place.
  assert set(scores.outcome) == {"a", "b", "c"}


def test_refusals():
  with pytest.raises(ValueError, match=r"low=2\.0 is above high=1\.0"):
    clip(low=2.0, high=1.0)
  with pytest.raises(ValueError, match="names no reward"):
    weighted_sum({})
  with pytest.raises(ValueError, match="'drop'"):
    weighted_sum({"a": 1.0}, missing="drop")
  with pytest.raises(ValueError, match="are 0"):
    weighted_sum({"a": 0.0})


def test_kinds_are_not_mixed():
  rollout = make.rollout()
  scores = make.scores(rollout, kind="step", names=("a",))
  scores.outcome["b"] = jnp.zeros((6,))
  with pytest.raises(ValueError, match="different kinds"):
    weighted_sum({"a": 1.0, "b": 1.0}).apply(scores, (), None)
