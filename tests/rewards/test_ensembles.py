import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import ensembles
from rlvr.rewards.ensembles import (
  MaxMinState,
  annotator_loglikelihoods,
  assigned_models,
  averaged,
  centred_preference_losses,
  ensemble_mean,
  ensemble_mean_minus_std,
  ensemble_median,
  ensemble_min,
  expected_rewards,
  maxmin,
  mean_minus_std_reward,
  mean_reward,
  median_reward,
  min_reward,
  mixture_loglikelihood,
  mixture_losses,
  mixture_shares,
  preference_loglikelihoods,
  responsibilities,
  worst_off_reward,
)
from tests import make, suite

NAN = np.nan


def members_of(rollout, seed):
  return make.scores(rollout, seed, names=("a", "b", "c"))


def mean_minus_two_std(members, *, missing):
  return mean_minus_std_reward(members, coefficient=2.0, missing=missing)


AGGREGATES = [
  (mean_reward, np.mean),
  (median_reward, np.median),
  (min_reward, np.min),
  (mean_minus_two_std, lambda v: np.mean(v) - 2.0 * np.std(v)),
]


def numpy_aggregate(members, of, skip):
  result = np.full(members.shape[1:], np.nan)
  for i in np.ndindex(result.shape):
    column = members[(slice(None), *i)]
    there = column[~np.isnan(column)]
    if there.size == column.size or (skip and there.size):
      result[i] = of(there)
  return result


def test_ensembles_by_hand():
  # Members 1, 2, 6, 3: mean 3; median (2 + 3) / 2; min 1; variance
  # (4 + 1 + 9 + 0) / 4 = 3.5, so 3 - 2 sqrt(3.5) = -0.741657.
  members = jnp.array([[1.0], [2.0], [6.0], [3.0]])
  for fn, expected in (
    (mean_reward, 3.0),
    (median_reward, 2.5),
    (min_reward, 1.0),
    (mean_minus_two_std, -0.741657),
  ):
    np.testing.assert_allclose(
      fn(members, missing="propagate"), [expected], atol=1e-6
    )


@pytest.mark.parametrize("missing", ["propagate", "skip"])
@pytest.mark.parametrize("which", range(4))
def test_ensembles_parity(which, missing):
  fn, of = AGGREGATES[which]
  rng = np.random.default_rng(which)
  inputs = []
  for m in (3, 4):
    members = rng.normal(size=(m, 3, 5)).astype(np.float32)
    inputs.append((np.where(rng.random(members.shape) < 0.3, NAN, members),))
  inputs[0][0][:, 0, 0] = NAN  # nobody has this one
  inputs = [(m.astype(np.float32),) for (m,) in inputs]
  call = lambda m: fn(m, missing=missing)  # noqa: E731
  suite.numpy_parity(
    call, lambda m: numpy_aggregate(m, of, missing == "skip"), inputs
  )
  other = AGGREGATES[which - 1][1]
  suite.must_fail(
    suite.numpy_parity,
    call,
    lambda m: numpy_aggregate(m, other, missing == "skip"),
    inputs,
  )
  suite.must_fail(
    suite.numpy_parity,
    call,
    lambda m: numpy_aggregate(m, of, missing != "skip"),
    inputs,
  )


def test_centring_fixes_the_constant():
  # σ(2) either way: −log σ(2) = 0.126928; (3 + 1)² · 0.1 = 1.6 besides.
  plus, minus = jnp.array([1.0, 3.0]), jnp.array([-1.0, 1.0])
  losses = centred_preference_losses(plus, minus, centring=0.1)
  np.testing.assert_allclose(losses, [0.126928, 1.726928], atol=1e-5)
  plain = centred_preference_losses(plus, minus, centring=0.0)
  assert plain[0] == plain[1]


# Both values of `missing` are in the parity tests of each function.
@pytest.mark.parametrize(
  "make_transform",
  [
    lambda: ensemble_mean(rewards=("a", "b", "c"), missing="skip"),
    lambda: ensemble_median(rewards=("a", "b", "c"), missing="skip"),
    lambda: ensemble_min(rewards=("a", "b", "c")),
    lambda: ensemble_mean_minus_std(rewards=("a", "b", "c"), coefficient=0.5),
  ],
)
def test_suite_ensembles(make_transform):
  suite.check_transform(
    make_transform, make_scores=members_of, scope="response"
  )


def test_ensembles_refuse():
  with pytest.raises(ValueError, match="no reward is named"):
    ensemble_min(rewards=())
  with pytest.raises(ValueError, match="named twice"):
    ensemble_mean(rewards=("a", "a"))
  with pytest.raises(ValueError, match=r"coefficient=-1\.0"):
    ensemble_mean_minus_std(rewards=("a",), coefficient=-1.0)


# Mixtures.


def test_e_steps_by_hand():
  # Annotator 0: pairs 0 and 2; annotator 1: pair 1 (pair 3 is not scored by
  # the second model, so it is left out for the first as well).
  loglik = jnp.log(jnp.array([[0.9, 0.5], [0.2, 0.8], [0.5, 0.5], [0.9, NAN]]))
  annotator = jnp.array([0, 1, 0, 1])
  per = annotator_loglikelihoods(loglik, annotator, 3)
  np.testing.assert_allclose(
    per, np.log([[0.45, 0.25], [0.2, 0.8], [1.0, 1.0]]), atol=1e-6
  )
  np.testing.assert_array_equal(assigned_models(per), [[1, 0], [0, 1], [1, 0]])
  # 0.5 * 0.45 / (0.5 * 0.45 + 0.5 * 0.25) = 0.642857; an annotator without
  # labels has the shares themselves.
  shares = jnp.array([0.5, 0.5])
  soft = responsibilities(per, shares)
  np.testing.assert_allclose(
    soft, [[0.642857, 0.357143], [0.2, 0.8], [0.5, 0.5]], atol=1e-6
  )
  np.testing.assert_allclose(
    mixture_shares(soft),
    [(0.642857 + 0.7) / 3, (0.357143 + 1.3) / 3],
    atol=1e-6,
  )
  # log 0.35 + log 0.5 + log 1
  np.testing.assert_allclose(
    mixture_loglikelihood(per, shares), np.log(0.35 * 0.5), atol=1e-6
  )


def test_mixture_losses_by_hand():
  loglik = jnp.log(jnp.array([[0.9, 0.5], [0.2, 0.8], [0.5, NAN]]))
  z = jnp.array([[0.25, 0.75], [1.0, 0.0]])
  # Model 0: 0.25 log 0.9, 1 log 0.2, 0.25 log 0.5 over 1.5; model 1: pair 0.
  expected = [
    -(0.25 * np.log(0.9) + np.log(0.2) + 0.25 * np.log(0.5)) / 1.5,
    -np.log(0.5),
  ]
  result = mixture_losses(loglik, z, jnp.array([0, 1, 0]))
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  gradient = jax.grad(
    lambda z: mixture_losses(loglik, z, jnp.array([0, 1, 0])).sum()
  )(z)
  assert (gradient == 0).all()


def two_peoples(seed=0, annotators=6, labels=8):
  """Linear tastes +w and −w; two of three annotators are of the majority."""
  rng = np.random.default_rng(seed)
  people = np.arange(annotators) % 3 == 2
  annotator = np.repeat(np.arange(annotators), labels)
  difference = rng.normal(size=(annotators * labels, 2))
  taste = np.where(people[annotator], -3.0, 3.0)[:, None] * np.array([1.0, 0.5])
  prefers = 1 / (1 + np.exp(-(difference * taste).sum(-1)))
  sign = np.where(rng.random(prefers.size) < prefers, 1.0, -1.0)
  features = jnp.asarray(difference * sign[:, None], jnp.float32)
  return features, jnp.asarray(annotator), people


@functools.partial(jax.jit, static_argnames=("e_step", "num_annotators"))
def em_step(features, annotator, weights, shares, rate, num_annotators, e_step):
  """One round of EM for linear reward models, the M-step one of descent."""

  def logliks(weights):
    # The preferred response's features minus the other's: chosen − rejected.
    chosen = features @ weights
    return preference_loglikelihoods(chosen, jnp.zeros_like(chosen))

  def per_annotator(weights):
    return annotator_loglikelihoods(logliks(weights), annotator, num_annotators)

  z = e_step(per_annotator(weights), shares)
  loss = lambda w: mixture_losses(logliks(w), z, annotator).sum()  # noqa: E731
  weights = weights - rate * jax.grad(loss)(weights)
  likelihoods, shares = per_annotator(weights), mixture_shares(z)
  return weights, shares, likelihoods


def em(features, annotator, weights, e_step, rate=0.5):
  """Returns the annotators' models and the trace of the likelihood."""
  m = weights.shape[1]
  shares, trace = jnp.full((m,), 1.0 / m), []
  for _ in range(20):
    weights, shares, per = em_step(
      features, annotator, weights, shares, rate, 6, e_step
    )
    trace.append(float(mixture_loglikelihood(per, shares)))
  return assigned_models(per), np.array(trace)


def hard(loglikelihoods, _):
  return assigned_models(loglikelihoods)


def test_em_finds_both_peoples_and_never_loses_likelihood():
  features, annotator, people = two_peoples()
  start = jnp.array([[0.1, -0.1], [0.0, 0.05]])
  found, trace = em(features, annotator, start, responsibilities)
  np.testing.assert_array_equal(found[:, 1], people)
  assert (np.diff(trace) >= -1e-4).all(), trace
  assert trace[-1] > trace[0] + 1.0
  # The likelihood doesn't rise of itself: an M-step uphill lowers it.
  _, uphill = em(features, annotator, start, responsibilities, rate=-0.5)
  assert (np.diff(uphill) < -1e-4).any()
  # One model for all: the minority's labels cannot be explained.
  _, one = em(features, annotator, start[:, :1], responsibilities)
  assert one[-1] < trace[-1] - 1.0
  # The paper's hard E-step finds them as well.
  found, _ = em(features, annotator, start, hard)
  np.testing.assert_array_equal(found[:, 1], people)


# Max-min.


def test_maxmin_takes_the_least_expectation_not_the_least_reward():
  # Expected 0.5 and 0.6: the first for everyone, although the second has the
  # least of the third response.
  members = jnp.array([[0.5, 0.5, 0.5], [0.9, 0.9, 0.0]])
  empty = MaxMinState(total=jnp.zeros(2), weight=jnp.zeros(2))
  state = averaged(members, empty, decay=0.0)
  np.testing.assert_allclose(expected_rewards(state), [0.5, 0.6], rtol=1e-6)
  result = worst_off_reward(
    members, expected_rewards(state), missing="propagate"
  )
  np.testing.assert_allclose(result, [0.5, 0.5, 0.5])
  least = min_reward(members, missing="propagate")
  np.testing.assert_allclose(least, [0.5, 0.5, 0.0])


def test_average_has_no_bias_of_its_start():
  # Batches with means 1 and 4, decay 1/2: (0.5 * 1 + 4) / (0.5 + 1) = 3.
  state = MaxMinState(total=jnp.zeros(2), weight=jnp.zeros(2))
  assert np.isnan(expected_rewards(state)).all()
  state = averaged(jnp.array([[0.0, 2.0], [NAN, NAN]]), state, decay=0.5)
  np.testing.assert_allclose(expected_rewards(state), [1.0, NAN])
  state = averaged(jnp.array([[4.0, NAN], [2.0, 2.0]]), state, decay=0.5)
  np.testing.assert_allclose(expected_rewards(state), [3.0, 2.0])


def test_maxmin_missing():
  members = jnp.array([[0.1, NAN, NAN, 0.4], [1.0, 2.0, NAN, NAN]])
  means = jnp.array([0.2, 0.6])
  strict = worst_off_reward(members, means, missing="propagate")
  np.testing.assert_allclose(strict, [0.1, NAN, NAN, NAN])
  skip = worst_off_reward(members, means, missing="skip")
  np.testing.assert_allclose(skip, [0.1, 2.0, NAN, 0.4])
  # A group that was never heard is not the worst off.
  unheard = worst_off_reward(
    members[:, :1], jnp.array([NAN, 0.6]), missing="skip"
  )
  np.testing.assert_allclose(unheard, [1.0])


def test_maxmin_state_goes_on():
  case = suite.case(
    maxmin(rewards=("a", "b"), decay=0.9),
    make_scores=lambda r, s: make.scores(r, s, names=("a", "b")),
  )
  low, high = jnp.zeros(6), jnp.ones(6)
  first = {**case.scores.outcome, "a": low, "b": high}
  second = {**case.scores.outcome, "a": 2 * high, "b": high}
  transform, state, chosen = case.transform, case.transform.init(), []
  for outcome in (first, second):
    case.scores.outcome.update(outcome)
    out, state = transform.apply(case.scores, state, case.context)
    chosen.append(float(out.outcome["reward"][0]))
    assert set(out.metrics) == {"maxmin/a", "maxmin/b"}
  # a: 0, then (0.9 * 0 + 2) / 1.9 = 1.0526 > 1: the choice goes over to b.
  assert chosen == [0.0, 1.0]
  np.testing.assert_allclose(out.metrics["maxmin/a"], 2 / 1.9, rtol=1e-6)


@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_suite_maxmin(missing):
  suite.check_transform(
    lambda: maxmin(rewards=("a", "b", "c"), decay=0.9, missing=missing),
    make_scores=members_of,
    scope="batch",
  )


def test_maxmin_depends_on_the_whole_batch():
  # Without the second response's 9, the first reward has the least mean.
  transform = maxmin(rewards=("a", "b"), decay=0.0)
  case = suite.case(
    transform,
    make_scores=lambda r, s: make.scores(r, s, names=("a", "b")),
    scope="group",
  )
  level = jnp.array([0.0, 9.0, 0.0, 0.0, 0.0, 0.0])
  case.scores.outcome.update(a=level, b=jnp.ones(6))
  suite.must_fail(suite.missing_stays_put, case)


def test_maxmin_refuses():
  with pytest.raises(ValueError, match=r"decay=1\.0"):
    maxmin(rewards=("a", "b"), decay=1.0)
  with pytest.raises(ValueError, match="'drop'"):
    maxmin(rewards=("a", "b"), decay=0.0, missing="drop")


def test_every_public_function_is_tested():
  public = {
    name
    for name, value in vars(ensembles).items()
    if getattr(value, "__module__", "") == ensembles.__name__
    and not name.startswith("_")
  }
  assert public <= set(globals()), public - set(globals())
