import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards.combine import (
  harmonic_reward,
  hybrid_aspects,
  hybrid_reward,
  lambda_harmonic,
  response_step_mean,
  step_mean,
)
from tests import make, suite

NAN = np.nan


def named_scores(*names, kind="outcome"):
  def build(rollout, seed):
    return make.scores(rollout, seed, kind=kind, names=names)

  return build


def numpy_harmonic(a, b, lambda_, skip):
  result = np.full(a.shape, np.nan)
  for i in np.ndindex(a.shape):
    terms = [(lambda_, a[i]), (1 - lambda_, b[i])]
    there = [(w, max(r, 0.0) + 1e-8) for w, r in terms if not np.isnan(r)]
    if len(there) == 2:
      result[i] = 1.0 / sum(w / r for w, r in there)
    elif there and skip:
      result[i] = there[0][1]
  return result


def numpy_hybrid(model, rule, confidence, skip):
  result = np.full(rule.shape, np.nan)
  for i in np.ndindex(rule.shape):
    c = confidence[i]
    if skip and np.isnan(c):
      c = 0.5
    terms = [(c, rule[i]), (1 - c, model[i])]
    if skip:
      terms = [(w, r) for w, r in terms if w > 0 and not np.isnan(r)]
      if not terms:
        continue
    result[i] = sum(w * r for w, r in terms) / sum(w for w, _ in terms)
  return result


def with_nan(rng, shape, low=-0.3, high=1.0):
  values = rng.uniform(low, high, shape).astype(np.float32)
  return np.where(rng.random(shape) < 0.3, np.float32(NAN), values)


def test_harmonic_by_hand():
  # a = 0.2, b = 0.8, λ = 0.25: 1 / (0.25 / 0.2 + 0.75 / 0.8)
  #   = 1 / (1.25 + 0.9375) = 0.457143; the weighted mean would be 0.65.
  result = harmonic_reward(
    jnp.array([0.2, 0.5, 0.0, -3.0]),
    jnp.array([0.8, 0.5, 1.0, 1.0]),
    lambda_=0.25,
    missing="propagate",
  )
  np.testing.assert_allclose(result, [0.457143, 0.5, 4e-8, 4e-8], atol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_harmonic_parity(lambda_, missing):
  rng = np.random.default_rng(0)
  inputs = [(with_nan(rng, 20), with_nan(rng, 20)) for _ in range(2)]
  reference = lambda a, b: numpy_harmonic(a, b, lambda_, missing == "skip")  # noqa: E731

  def fn(a, b, lambda_=lambda_):
    return harmonic_reward(a, b, lambda_=lambda_, missing=missing)

  suite.numpy_parity(fn, reference, inputs)
  suite.must_fail(
    suite.numpy_parity, lambda a, b: fn(a, b, 0.5), reference, inputs
  )


def test_harmonic_lies_below_the_mean_and_between_the_scores():
  rng = np.random.default_rng(1)
  a, b = jnp.asarray(rng.uniform(0.01, 1, (2, 200)), jnp.float32)
  result = harmonic_reward(a, b, lambda_=0.3, missing="propagate")
  assert (result <= 0.3 * a + 0.7 * b + 1e-6).all()
  assert (result >= jnp.minimum(a, b) - 1e-6).all()
  # The mean itself is not below the geometric mean: the bound says something.
  assert (0.3 * a + 0.7 * b > a**0.3 * b**0.7 + 1e-6).any()
  assert (result <= a**0.3 * b**0.7 + 1e-6).all()


def test_hybrid_by_hand():
  # Sure of 0.8: 0.8 * 1 + 0.2 * 0.5 = 0.9; a silent rule leaves the model.
  model, rule = jnp.array([0.5, 0.5, NAN]), jnp.array([1.0, NAN, 1.0])
  skip = hybrid_reward(model, rule, 0.8, missing="skip")
  np.testing.assert_allclose(skip, [0.9, 0.5, 1.0], atol=1e-6)
  strict = hybrid_reward(model, rule, 0.8, missing="propagate")
  np.testing.assert_allclose(strict, [0.9, NAN, NAN], atol=1e-6)
  # A rule without confidence is no score, even where the model is silent.
  nothing = hybrid_reward(model, rule, 0.0, missing="skip")
  np.testing.assert_allclose(nothing, [0.5, 0.5, NAN], atol=1e-6)


@pytest.mark.parametrize("missing", ["propagate", "skip"])
def test_hybrid_parity(missing):
  rng = np.random.default_rng(2)
  inputs = [
    (with_nan(rng, 30), with_nan(rng, 30), with_nan(rng, 30, 0.0))
    for _ in range(2)
  ]
  fn = lambda m, r, c: hybrid_reward(m, r, c, missing=missing)  # noqa: E731
  suite.numpy_parity(
    fn, lambda m, r, c: numpy_hybrid(m, r, c, missing == "skip"), inputs
  )
  suite.must_fail(
    suite.numpy_parity,
    fn,
    lambda m, r, c: numpy_hybrid(r, m, c, missing == "skip"),
    inputs,
  )


def test_hybrid_aspects_by_hand():
  rollout = make.rollout(group_sizes=(2, 1))
  scores = make.scores(rollout, names=("m", "r", "follows", "length", "other"))
  values = {
    "m": jnp.array([0.5, 0.0, 1.0]),
    "r": jnp.array([1.0, 0.0, NAN]),
    "follows": jnp.array([1.0, 0.0, 1.0]),
    "length": jnp.array([-0.5, 0.0, NAN]),
  }
  scores.outcome.update(values)
  kwargs = dict(
    model="m",
    rule="r",
    confidence=0.8,
    aspects={"follows": 0.25, "length": 0.5},
  )
  out, _ = hybrid_aspects(**kwargs).apply(scores, (), make.context(rollout))
  assert set(out.outcome) == {"reward", "other"}
  # 0.9 + 0.25 * 1 - 0.5 * 0.5 = 0.9
  np.testing.assert_allclose(out.outcome["reward"], [0.9, 0.0, NAN], atol=1e-6)
  skip = hybrid_aspects(**kwargs, missing="skip")
  out, _ = skip.apply(scores, (), make.context(rollout))
  # The third: model 1 alone, (1 + 0.25) * (1.75 / 1.25) = 1.75
  np.testing.assert_allclose(out.outcome["reward"], [0.9, 0.0, 1.75], atol=1e-6)


def test_step_mean_by_hand():
  values = jnp.array([[1.0, 0.0, 77.0], [0.5, NAN, NAN], [NAN, NAN, 1.0]])
  mask = jnp.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
  strict = response_step_mean(values, mask, missing="propagate")
  np.testing.assert_allclose(strict, [0.5, NAN, NAN])
  skip = response_step_mean(values, mask, missing="skip")
  np.testing.assert_allclose(skip, [0.5, 0.5, NAN])


@pytest.mark.parametrize(
  ("make_transform", "kind", "names"),
  [
    (
      lambda: lambda_harmonic(first="a", second="b", lambda_=0.3),
      "outcome",
      "ab",
    ),
    (
      lambda: lambda_harmonic(
        first="a", second="b", lambda_=0.3, missing="skip"
      ),
      "step",
      "ab",
    ),
    (
      lambda: hybrid_aspects(
        model="a", rule="b", confidence=0.7, aspects={"c": 0.2}, missing="skip"
      ),
      "outcome",
      "abc",
    ),
    (lambda: step_mean(reward="a", out="mean"), "step", "a"),
    (lambda: step_mean(reward="a", missing="skip"), "step", "a"),
  ],
)
def test_suite(make_transform, kind, names):
  suite.check_transform(
    make_transform,
    make_scores=named_scores(*names, kind=kind),
    scope="response",
  )


def test_a_name_of_the_confidence_is_used_up():
  case = suite.case(
    hybrid_aspects(model="a", rule="b", confidence="c", aspects={}),
    make_scores=named_scores("a", "b", "c"),
  )
  given, out = case.scores.outcome, case.run()
  assert set(out.outcome) == {"reward"}
  expected = given["c"] * given["b"] + (1 - given["c"]) * given["a"]
  np.testing.assert_allclose(out.outcome["reward"], expected, rtol=1e-5)


def test_refusals():
  with pytest.raises(ValueError, match=r"lambda_=1\.5"):
    lambda_harmonic(first="a", second="b", lambda_=1.5)
  with pytest.raises(ValueError, match="'drop'"):
    lambda_harmonic(first="a", second="b", lambda_=0.5, missing="drop")
  with pytest.raises(ValueError, match="'drop'"):
    step_mean(missing="drop")
  with pytest.raises(ValueError, match=r"\['a'\] named twice"):
    lambda_harmonic(first="a", second="a", lambda_=0.5)
  with pytest.raises(ValueError, match="confidence=7"):
    hybrid_aspects(model="a", rule="b", confidence=7, aspects={})

  def mixed(rollout, seed):
    one = make.scores(rollout, seed, names=("a",))
    two = make.scores(rollout, seed, kind="step", names=("b",))
    one.step.update(two.step)
    return one

  case = suite.case(
    lambda_harmonic(first="a", second="b", lambda_=0.5), make_scores=mixed
  )
  with pytest.raises(ValueError, match="different kinds"):
    case.run()
