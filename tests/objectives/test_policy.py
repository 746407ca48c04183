"""Policy losses: by hand, against NumPy, and against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.objectives import (
  LossInputs,
  clipped_policy_gradient,
  clipped_policy_loss,
  entropy_bonus,
  likelihood,
  policy_gradient,
  policy_gradient_loss,
)
from tests.compare import must_fail, numpy_parity

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
LOW, HIGH = 0.2, 0.28
SHAPE = (4, 5)


def random(seed=0):
  rng = np.random.default_rng(seed)
  old = -rng.exponential(size=SHAPE).astype(np.float32)
  new = (old + 0.4 * rng.normal(size=SHAPE)).astype(np.float32)
  return new, old, rng.normal(size=SHAPE).astype(np.float32)


def inputs(logprobs, old, advantages):
  return LossInputs(
    logprobs=logprobs,
    entropies=jnp.full(SHAPE, 0.5),
    old_logprobs=old,
    advantages=advantages,
    mask=jnp.ones(SHAPE, bool),
    probes={},
  )


def clipped(new, old, advantages, low=LOW, high=HIGH):
  out = np.zeros(new.shape)
  for i in np.ndindex(new.shape):
    ratio = np.exp(new[i] - old[i])
    inside = min(max(ratio, 1 - low), 1 + high)
    out[i] = -min(ratio * advantages[i], inside * advantages[i])
  return out


def test_policy_gradient_by_hand():
  # Â = 2: -2 ln 1/2 = 2 ln 2; Â = -1: ln 1/4 = -2 ln 2; π = 1: nothing.
  logprobs = jnp.log(jnp.array([[0.5, 0.25, 1.0]]))
  loss = policy_gradient_loss(logprobs, jnp.array([[2.0, -1.0, 5.0]]))
  close(loss, [[2 * np.log(2), -2 * np.log(2), 0.0]])


def test_clipped_loss_by_hand():
  # Ratios 2, 2, 1/2, 1/2, 1.1 with ε = 0.2 and 0.28:
  # Â = 1: min(2, 1.28) = 1.28; Â = -1: min(-2, -1.28) = -2, the worse one;
  # Â = 1: min(0.5, 0.8) = 0.5; Â = -1: min(-0.5, -0.8) = -0.8; 1.1 · 3.
  ratio = jnp.array([[2.0, 2.0, 0.5, 0.5, 1.1]])
  loss = clipped_policy_loss(
    jnp.log(ratio),
    jnp.zeros((1, 5)),
    jnp.array([[1.0, -1.0, 1.0, -1.0, 3.0]]),
    clip_low=LOW,
    clip_high=HIGH,
  )
  close(loss, [[-1.28, 2.0, -0.5, 0.8, -3.3]])


@pytest.mark.parity
def test_losses_are_numpys():
  loss = functools.partial(clipped_policy_loss, clip_low=LOW, clip_high=HIGH)
  numpy_parity(loss, clipped, [random(s) for s in range(3)])
  numpy_parity(
    policy_gradient_loss,
    lambda new, advantages: -new * advantages,
    [(random(0)[0], random(0)[2])],
  )
  swapped = functools.partial(clipped, low=HIGH, high=LOW)
  must_fail(numpy_parity, loss, swapped, [random(0)])


def finite_differences(loss, x, step=1e-6):
  """Returns the gradient of the sum of an elementwise loss, in float64."""
  return (np.asarray(loss(x + step)) - np.asarray(loss(x - step))) / (2 * step)


@pytest.mark.parametrize("name", ["clipped", "plain"])
def test_gradients_are_finite_differences(name):
  new, old, advantages = (np.asarray(x, np.float64) for x in random(1))
  # Â = -2, ratio 2: the clip doesn't hold where it would help the policy.
  new[0, 0], old[0, 0], advantages[0, 0] = np.log(2.0), 0.0, -2.0
  with jax.enable_x64(True):
    if name == "clipped":
      loss = jax.jit(
        lambda x: clipped_policy_loss(
          x, old, advantages, clip_low=LOW, clip_high=HIGH
        )
      )
    else:
      loss = jax.jit(lambda x: policy_gradient_loss(x, advantages))
    gradient = np.asarray(jax.jit(jax.grad(lambda x: loss(x).sum()))(new))
    assert gradient.dtype == np.float64
    expected = finite_differences(loss, new)
  close(gradient, expected, rtol=1e-6, atol=1e-7)
  must_fail(close, gradient, -expected)
  if name == "clipped":
    ratio = np.exp(new - old)
    cut = ((ratio > 1 + HIGH) & (advantages > 0)) | (
      (ratio < 1 - LOW) & (advantages < 0)
    )
    assert cut.any()
    assert (~cut).any()
    np.testing.assert_array_equal(gradient == 0, cut)
    close(gradient[0, 0], 4.0)  # -Â ρ


def test_on_policy_the_clipped_gradient_is_the_plain_one():
  new, _, advantages = random(2)

  @jax.jit
  def gradients(x):
    return (
      jax.grad(
        lambda x: clipped_policy_loss(
          x, new, advantages, clip_low=LOW, clip_high=HIGH
        ).sum()
      )(x),
      jax.grad(lambda x: policy_gradient_loss(x, advantages).sum())(x),
    )

  close(*gradients(new))


def test_constants_get_no_gradient():
  new, old, advantages = random(3)

  def total(old, advantages):
    terms = (
      policy_gradient(),
      clipped_policy_gradient(clip_low=LOW, clip_high=HIGH),
    )
    return sum(
      term.loss(inputs(new, old, advantages))[0].sum() for term in terms
    )

  for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(old, advantages):
    assert (gradient == 0).all()


def test_terms():
  new, old, advantages = random(4)
  given = inputs(new, old, advantages)
  term = clipped_policy_gradient(clip_low=LOW, clip_high=HIGH)
  assert (term.name, term.weight, term.requires) == ("policy", 1.0, frozenset())
  assert term.params == {"clip_low": LOW, "clip_high": HIGH}
  value, metrics = jax.jit(term.loss)(given)
  close(value, clipped(new, old, advantages))
  ratio = np.exp(new - old)
  cut = np.where(advantages > 0, ratio > 1 + HIGH, ratio < 1 - LOW)
  np.testing.assert_array_equal(metrics["policy/clip_fraction"], cut)
  assert 0 < cut.mean() < 1

  close(policy_gradient().loss(given)[0], -advantages * new)
  close(likelihood().loss(given)[0], -new)
  bonus = entropy_bonus(weight=0.01)
  assert bonus.weight == 0.01
  close(bonus.loss(given)[0], np.full(SHAPE, -0.5))


@pytest.mark.parametrize(
  ("low", "high"), [(0.0, 0.2), (1.2, 0.2), (0.2, 0.0), (0.2, -1.0)]
)
def test_bounds_out_of_range(low, high):
  with pytest.raises(ValueError, match=f"clip_low={low} .*clip_high={high}"):
    clipped_policy_gradient(clip_low=low, clip_high=high)
