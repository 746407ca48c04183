"""Importance weights between sampler and trainer."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.advantages import (
  importance_ratios,
  masked_importance_sampling,
  masked_weights,
  truncated_importance_sampling,
  truncated_weights,
)
from rlvr.advantages.importance import CORRECTIONS, mismatch_statistics
from rlvr.objectives import clipped_policy_loss
from tests import make, suite
from tests.references import cases, check

LEVELS = ("token", "sequence", "geometric")


def numpy_ratios(logprobs, behavior, mask, level):
  result = np.ones_like(logprobs)
  for i in range(len(mask)):
    own = logprobs[i, mask[i]] - behavior[i, mask[i]]
    if level == "sequence":
      own = np.full_like(own, own.sum())
    if level == "geometric":
      own = np.full_like(own, own.mean())
    result[i, mask[i]] = np.exp(own)
  return result


def inputs(seed=0):
  rollout = make.rollout(seed)
  rng = np.random.default_rng(seed)
  behavior = np.asarray(rollout.behavior_logprobs)
  # Numbers outside the response are there: nothing may read them.
  logprobs = behavior + 0.5 * rng.normal(size=behavior.shape)
  return logprobs.astype(np.float32), behavior, rollout.completion_mask


def test_ratios_by_hand():
  # ln 2 and ln 1/4: 2 and 1/4, the product 1/2, its root √(1/2).
  logprobs = jnp.log(jnp.array([[0.5, 0.25, 9.0]]))
  behavior = jnp.log(jnp.array([[0.25, 1.0, 1.0]]))
  mask = jnp.array([[True, True, False]])
  expected = {
    "token": [[2.0, 0.25, 1.0]],
    "sequence": [[0.5, 0.5, 1.0]],
    "geometric": [[np.sqrt(0.5), np.sqrt(0.5), 1.0]],
  }
  for level, values in expected.items():
    result = importance_ratios(logprobs, behavior, mask, level=level)
    np.testing.assert_allclose(result, values, rtol=1e-6)


def test_weights_by_hand():
  ratios = jnp.array([0.1, 0.5, 1.0, 2.0, 5.0, 7.0])
  np.testing.assert_allclose(
    truncated_weights(ratios, cap=2.0), [0.1, 0.5, 1, 2, 2, 2]
  )
  np.testing.assert_allclose(
    masked_weights(ratios, low=0.5, high=5.0), [0, 0.5, 1, 2, 5, 0]
  )


def test_mismatch_by_hand():
  # x = ln 2, −ln 2 and 0; what is outside the response is never read.
  logprobs = jnp.log(jnp.array([[0.5, 0.25], [0.5, 1.0]]))
  behavior = jnp.log(jnp.array([[0.25, 0.5], [0.5, 0.001]]))
  mask = jnp.array([[True, True], [True, False]])
  found = mismatch_statistics(logprobs, behavior, mask)
  np.testing.assert_allclose(found["change_mean"], 2 / 3 * np.log(2), 1e-6)
  np.testing.assert_allclose(found["change_max"], np.log(2), 1e-6)
  # (2 − 1 − ln 2) + (1/2 − 1 + ln 2) + 0 = 1/2, over 3.
  np.testing.assert_allclose(found["kl"], 1 / 6, 1e-5)
  # (2 + 1/2 + 1)² / (3 · (4 + 1/4 + 1))
  np.testing.assert_allclose(found["ess"], 3.5**2 / (3 * 5.25), 1e-6)
  equal = mismatch_statistics(behavior, behavior, mask)
  assert [float(equal[k]) for k in ("change_mean", "kl", "ess")] == [0, 0, 1]
  far = mismatch_statistics(behavior - 1e4, behavior + 1e4, mask)
  assert all(np.isfinite(v) for v in far.values())
  none = mismatch_statistics(logprobs, behavior, mask & False)
  assert float(none["ess"]) == 1 and float(none["change_max"]) == 0


def test_corrections_are_named():
  made = (
    truncated_importance_sampling(level="token", cap=2.0),
    masked_importance_sampling(level="token", low=0.5, high=2.0),
  )
  assert {t.spec.name for t in made} == CORRECTIONS


def test_ratios_stay_finite():
  far = jnp.array([[-1e4, 1e4, 0.0]])
  for level in LEVELS:
    ratios = importance_ratios(
      far, jnp.zeros((1, 3)), jnp.ones((1, 3), bool), level=level
    )
    assert np.isfinite(ratios).all()
    assert (truncated_weights(ratios, cap=2.0) <= 2.0).all()


@pytest.mark.parity
@pytest.mark.parametrize("level", LEVELS)
def test_ratios_parity(level):
  def ours(*args, level=level):
    return importance_ratios(*args, level=level)

  def reference(*args):
    return numpy_ratios(*args, level)

  suite.numpy_parity(ours, reference, [inputs(0), inputs(1)])
  other = LEVELS[LEVELS.index(level) - 1]
  suite.must_fail(
    suite.numpy_parity, lambda *a: ours(*a, level=other), reference, [inputs()]
  )


@pytest.mark.parity
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_truncated_weights_are_verls(level):
  inputs, outputs = cases("importance_verl")[level]

  def ours(inputs):
    mask = np.arange(5) < inputs["lengths"][:, None]
    given = jnp.asarray(inputs["log_ratio"])
    ratios = importance_ratios(given, 0 * given, mask, level=level)
    weights = truncated_weights(ratios, cap=inputs["cap"])
    return {"weights": np.where(mask, weights, 0.0)}

  # The first weight is cut before and after one more.
  check(ours, inputs, outputs, change="lengths")
  assert (outputs["weights"] == np.float32(inputs["cap"])).any()


def test_a_weight_is_a_factor_of_the_advantage():
  # w · min(r A, clip(r) A) = min(r (w A), clip(r) (w A)) as w ≥ 0.
  rng = np.random.default_rng(0)
  new, old, advantages = rng.normal(size=(3, 64)).astype(np.float32)
  ratios = np.exp(rng.normal(size=64)).astype(np.float32)
  for weights in (
    truncated_weights(ratios, cap=1.2),
    masked_weights(ratios, low=0.5, high=2.0),
  ):

    def loss(advantages):
      return clipped_policy_loss(
        new, old, advantages, clip_low=0.2, clip_high=0.2
      )

    np.testing.assert_allclose(
      weights * loss(advantages), loss(weights * advantages), rtol=1e-5
    )
    suite.must_fail(
      np.testing.assert_allclose,
      -weights * loss(advantages),
      loss(-weights * advantages),
      rtol=1e-5,
    )


def test_sequence_weights_make_the_sampler_the_trainer():
  # E_μ[(π/μ) A] = E_π[A], over all pairs of tokens.
  rng = np.random.default_rng(1)
  trainer, sampler = rng.dirichlet(np.ones(3), size=(2, 2))
  pairs = np.array([(a, b) for a in range(3) for b in range(3)])
  at = np.arange(2)
  p, q = trainer[at, pairs], sampler[at, pairs]
  value = rng.normal(size=9)
  ratios = importance_ratios(
    jnp.log(p), jnp.log(q), jnp.ones((9, 2), bool), level="sequence"
  )
  found = (q.prod(axis=1) * np.asarray(ratios)[:, 0] * value).sum()
  np.testing.assert_allclose(found, (p.prod(axis=1) * value).sum(), rtol=1e-5)


def shaped(transform, seed=0):
  rollout = make.rollout(seed)
  logprobs, behavior, mask = inputs(seed)
  scores = make.scores(rollout, seed, advantages=True)
  context = make.context(rollout, names=(), extra={"logprobs": logprobs})
  out, _ = transform.apply(scores, (), context)
  return scores, out, np.asarray(logprobs - behavior), np.asarray(mask)


def test_truncated_transform():
  scores, out, log_ratio, mask = shaped(
    truncated_importance_sampling(level="token", cap=1.1)
  )
  ratios = np.exp(log_ratio)
  expected = scores.advantages * np.minimum(ratios, 1.1)
  np.testing.assert_allclose(out.advantages, expected, rtol=1e-5)
  np.testing.assert_array_equal(out.weights, scores.weights)
  np.testing.assert_allclose(
    out.metrics["importance/ratio_mean"], ratios[mask].mean(), rtol=1e-5
  )
  cut = (ratios > 1.1)[mask].mean()
  assert 0 < cut < 1
  np.testing.assert_allclose(out.metrics["importance/cut"], cut, rtol=1e-5)


def test_masked_transform():
  scores, out, log_ratio, mask = shaped(
    masked_importance_sampling(level="token", low=0.8, high=1.3)
  )
  ratios = np.exp(log_ratio)
  inside = (ratios >= 0.8) & (ratios <= 1.3)
  np.testing.assert_allclose(
    out.advantages, scores.advantages * ratios * inside, rtol=1e-5
  )
  assert 0 < inside[mask].mean() < 1
  np.testing.assert_allclose(
    out.metrics["importance/cut"], 1 - inside[mask].mean(), rtol=1e-5
  )


def test_same_log_probs_change_nothing():
  for transform in (
    truncated_importance_sampling(level="sequence", cap=1.0),
    masked_importance_sampling(level="token", low=1.0, high=1.0),
  ):
    case = suite.case(transform)
    probes = {"logprobs": case.context.rollout.behavior_logprobs}
    out = case.run(context=dataclasses.replace(case.context, probes=probes))
    np.testing.assert_array_equal(out.advantages, case.scores.advantages)
    assert out.metrics["importance/cut"] == 0


@pytest.mark.parametrize("level", LEVELS)
def test_suite_truncated(level):
  suite.check_transform(
    lambda: truncated_importance_sampling(level=level, cap=1.5),
    scope="response",
  )


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_suite_masked(level):
  suite.check_transform(
    lambda: masked_importance_sampling(level=level, low=0.5, high=2.0),
    scope="response",
  )


def test_errors():
  with pytest.raises(ValueError, match="level='word'"):
    truncated_importance_sampling(level="word", cap=2.0)
  with pytest.raises(ValueError, match=r"cap=0\.0"):
    truncated_importance_sampling(level="token", cap=0.0)
  for low, high in ((1.5, 2.0), (0.5, 0.9), (-0.1, 2.0)):
    with pytest.raises(ValueError, match=f"low={low} and high={high}"):
      masked_importance_sampling(level="token", low=low, high=high)
