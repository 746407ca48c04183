"""KL estimators: values, expectations by enumeration, and the reward's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.objectives import LossInputs, kl_in_reward, kl_penalty
from rlvr.objectives.kl import k1_kl, k2_kl, k3_kl
from tests import make, suite
from tests.compare import must_fail, numpy_parity

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
ESTIMATORS = {"k1": k1_kl, "k2": k2_kl, "k3": k3_kl}


def in_numpy(name, logprobs, ref):
  x = np.asarray(ref, np.float64) - logprobs
  return {"k1": -x, "k2": x**2 / 2, "k3": np.exp(x) - 1 - x}[name]


def test_estimates_by_hand():
  # π = 1/2, π_ref = 1/4: k1 = ln 2, k2 = (ln 2)²/2, k3 = 1/2 - 1 + ln 2.
  logprobs, ref = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
  close(k1_kl(logprobs, ref), [[np.log(2)]])
  close(k2_kl(logprobs, ref), [[np.log(2) ** 2 / 2]])
  close(k3_kl(logprobs, ref), [[np.log(2) - 0.5]])
  for kl in ESTIMATORS.values():
    assert kl(ref, ref) == 0


@pytest.mark.parity
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_numpys(name):
  rng = np.random.default_rng(0)
  cases = [
    tuple(-rng.exponential(size=(4, 5)).astype(np.float32) for _ in "ab")
    for _ in range(3)
  ]
  numpy_parity(ESTIMATORS[name], functools.partial(in_numpy, name), cases)
  other = {"k1": "k2", "k2": "k3", "k3": "k1"}[name]
  must_fail(
    numpy_parity, ESTIMATORS[name], functools.partial(in_numpy, other), cases
  )


def test_k3_near_0_doesnt_cancel():
  # x = 1e-4: e^x - 1 - x is x²/2 = 5e-9, under the rounding of e^x.
  close(k3_kl(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-4)), [[5e-9]], atol=1e-10)


LOGITS = np.array([1.8, -0.5, 1.2, 0.0])
REFERENCE = np.log(np.array([0.1, 0.4, 0.2, 0.3]))


def expectation(kl, logits):
  """E_π[k(y)] with the distribution that is averaged over held still."""
  logprobs = jax.nn.log_softmax(logits)
  p = jnp.exp(jax.lax.stop_gradient(logprobs))
  return (p * kl(logprobs, REFERENCE)).sum()


def true_kl(logits):
  logprobs = jax.nn.log_softmax(logits)
  return (jnp.exp(logprobs) * (logprobs - REFERENCE)).sum()


def test_expectations_by_enumeration():
  with jax.enable_x64(True):
    truth, true_gradient = jax.jit(jax.value_and_grad(true_kl))(LOGITS)
    found = {
      name: jax.jit(jax.value_and_grad(functools.partial(expectation, kl)))(
        LOGITS
      )
      for name, kl in ESTIMATORS.items()
    }
    truth, true_gradient = float(truth), np.asarray(true_gradient)
    values = {name: float(v) for name, (v, _) in found.items()}
    gradients = {name: np.asarray(g) for name, (_, g) in found.items()}
  # k1 and k3 are unbiased, k2 is not.
  close(values["k1"], truth)
  close(values["k3"], truth)
  assert abs(values["k2"] - truth) > 1e-2
  # As a loss, k2 has the gradient of the KL divergence; k1's averages to 0,
  # k3's is that of the reverse: π - π_ref over the logits.
  close(gradients["k2"], true_gradient)
  close(gradients["k1"], np.zeros(4), atol=1e-12)
  p = np.exp(LOGITS) / np.exp(LOGITS).sum()
  close(gradients["k3"], p - np.exp(REFERENCE))
  must_fail(close, gradients["k3"], true_gradient)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_penalty_is_a_term(name):
  rollout = make.rollout()
  given = make.probes(rollout)
  term = kl_penalty(weight=0.3, estimator=name)
  assert term.requires == {"ref_logprobs"}
  assert term.weight == 0.3

  @jax.jit
  def loss_and_gradients(logprobs, ref):
    def loss(logprobs, ref):
      inputs = LossInputs(
        logprobs=logprobs,
        entropies=logprobs,
        old_logprobs=logprobs,
        advantages=logprobs,
        mask=rollout.completion_mask,
        probes={"ref_logprobs": ref},
      )
      value, _ = term.loss(inputs)
      return value.sum(), value

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(logprobs, ref)

  (_, value), (own, ref) = loss_and_gradients(
    given["logprobs"], given["ref_logprobs"]
  )
  close(value, in_numpy(name, given["logprobs"], given["ref_logprobs"]))
  assert np.abs(own).max() > 0.1
  assert (ref == 0).all(), "a gradient flows into the reference"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_kl_in_reward_behaves(name):
  suite.check_transform(
    lambda: kl_in_reward(weight=0.1, estimator=name),
    kinds=("outcome", "token"),
  )


def test_kl_in_reward_by_hand():
  # Responses of 2 and 1 tokens. k1 of the first: 0.5 + (-0.2) = 0.3, of the
  # second 1. With β = 2 outcomes 1 and 5 become 0.4 and 3.
  rollout = make.rollout(group_sizes=(2,), lengths=(2, 1), num_tokens=2)
  context = make.context(rollout, names=())
  context = dataclasses.replace(
    context,
    probes={
      "logprobs": jnp.array([[-0.5, -1.2], [-1.0, 0.0]]),
      "ref_logprobs": jnp.array([[-1.0, -1.0], [-2.0, -9.0]]),
    },
  )
  transform = kl_in_reward(weight=2.0, estimator="k1")
  for kind, given, expected in (
    ("outcome", [1.0, 5.0], [0.4, 3.0]),
    ("token", [[1.0, 5.0], [1.0, 7.0]], [[0.0, 5.4], [-1.0, 7.0]]),
  ):
    scores = dataclasses.replace(
      make.scores(rollout, names=()), **{kind: {"r": jnp.array(given)}}
    )
    out, _ = jax.jit(transform.apply)(scores, (), context)
    close(getattr(out, kind)["r"], expected)


def test_unknown_estimators():
  for make_it in (kl_penalty, kl_in_reward):
    with pytest.raises(
      ValueError, match=rf"{make_it.__name__}: estimator='k4'.*'k1', 'k2', 'k3'"
    ):
      make_it(weight=0.1, estimator="k4")
