import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr import models, step
from rlvr.advantages import group_relative
from rlvr.objectives.passes import (
  last_token_loss,
  last_token_self_reward,
  reference_likelihood,
  reference_likelihood_loss,
)
from rlvr.objectives.reductions import token_mean
from rlvr.objectives.terms import LossInputs
from rlvr.probes.compute import ProbeSettings
from rlvr.sampling import Sampling
from rlvr.types import Signals
from tests import make, suite

NAN = np.nan
LOGPROBS = np.array([[-1.0, -2.0], [-3.0, -9.0], [-1.0, -1.0]], np.float32)
MASK = np.array([[True, True], [True, False], [True, True]])


def test_reference_likelihood_by_hand():
  # -0.5 (-1 - 2) = 1.5; -2 (-3) = 6; a missing coefficient: 0.
  loss = reference_likelihood_loss(LOGPROBS, MASK, jnp.asarray([0.5, 2, NAN]))
  np.testing.assert_allclose(loss, [1.5, 6.0, 0.0])


def test_reference_likelihood_parity():
  def loop(logprobs, mask, r, power=1):
    return np.array(
      [
        -(c**power) * row[m].sum()
        for row, m, c in zip(logprobs, mask, r, strict=True)
      ]
    )

  inputs = [(LOGPROBS, MASK, np.array([0.5, 2.0, 0.1], np.float32))]
  suite.numpy_parity(reference_likelihood_loss, loop, inputs)
  suite.must_fail(
    suite.numpy_parity,
    reference_likelihood_loss,
    lambda *a: loop(*a, power=2),
    inputs,
  )


def test_gradient_is_that_of_the_likelihood():
  # With R = π(y*|z): -∇ loss = π ∇ log π = ∇ π. R itself carries no gradient:
  # else it would be ∇ (π log π).
  def loss(x):
    total = jnp.where(MASK, x, 0.0).sum(-1)
    return reference_likelihood_loss(x, MASK, jnp.exp(total)).sum()

  def likelihood(x):
    return jnp.exp(jnp.where(MASK, x, 0.0).sum(-1)).sum()

  x = jnp.asarray(LOGPROBS)
  np.testing.assert_allclose(
    -jax.grad(loss)(x), jax.grad(likelihood)(x), rtol=1e-6
  )


def test_last_token_by_hand():
  # 2 (0.1 (-18 + 23) - 1)^2 = 0.5; 1 (0.1 (-13 + 23) - 0)^2 = 1; missing: 0.
  loss = last_token_loss(
    jnp.asarray([-18.0, -13.0, -5.0, -5.0]),
    jnp.asarray([1.0, 0.0, NAN, 1.0]),
    jnp.asarray([2.0, 1.0, 1.0, NAN]),
    beta=0.1,
    reference=-23.0,
  )
  np.testing.assert_allclose(loss, [0.5, 1.0, 0.0, 0.0], rtol=1e-6)


def test_last_token_gradients():
  args = (jnp.asarray([-18.0, -5.0]), jnp.asarray([1.0, NAN]), jnp.ones(2))

  def total(logprobs, rewards, weights):
    return last_token_loss(
      logprobs, rewards, weights, beta=0.1, reference=-23.0
    ).sum()

  by_logprob, by_reward, by_weight = jax.grad(total, (0, 1, 2))(*args)
  # 2 * 0.1 * (0.5 - 1) = -0.1: the log-prob is to rise; missing: 0, not NaN.
  np.testing.assert_allclose(by_logprob, [-0.1, 0.0], rtol=1e-6)
  np.testing.assert_array_equal(by_reward, 0.0)
  np.testing.assert_array_equal(by_weight, 0.0)


def inputs_of(**kwargs):
  zeros = jnp.zeros((3, 4))
  return LossInputs(
    logprobs=zeros,
    entropies=zeros,
    old_logprobs=zeros,
    advantages=zeros,
    mask=zeros == 0,
    probes={},
    **kwargs,
  )


@pytest.mark.parametrize("coefficient", ["r", None])
def test_reference_likelihood_term(coefficient):
  term = reference_likelihood(coefficient=coefficient)
  r = jnp.asarray([0.5, 2.0, 0.25])
  extra = {"answer_logprobs": jnp.asarray(LOGPROBS), "answer_mask": MASK}
  loss, metrics = jax.jit(term.loss)(inputs_of(extra=extra, rewards={"r": r}))
  scale = [1, 1, 1] if coefficient is None else [0.5, 2, 0.25]
  np.testing.assert_allclose(loss, np.array(scale) * [3.0, 3.0, 2.0])
  np.testing.assert_allclose(metrics["policy/reference_logprob"], [-3, -3, -2])
  assert term.per_response and term.passes == set(extra)
  assert term.rewards == ({"r"} if coefficient else frozenset())


def test_last_token_term():
  term = last_token_self_reward(reference=-23.0)
  inputs = inputs_of(
    extra={"last_token_logprobs": jnp.asarray([-18.0, -13.0, -5.0])},
    rewards={
      "correct": jnp.asarray([1.0, 0.0, NAN]),
      "class_weight": jnp.asarray([2.0, 1.0, NAN]),
    },
  )
  loss, metrics = jax.jit(term.loss)(inputs)
  np.testing.assert_allclose(loss, [0.5, 1.0, 0.0], rtol=1e-6)
  # 0.5 isn't above a half: says wrong, was right; says right, was wrong.
  np.testing.assert_allclose(metrics["laser/agreement"], [0, 0, 0])
  assert term.weight == 0.1 and term.per_response
  assert term.rewards == {"correct", "class_weight"}
  alike = last_token_self_reward(reference=-23.0, class_weight=None)
  np.testing.assert_allclose(alike.loss(inputs)[0], [0.25, 1.0, 0], rtol=1e-6)


def one_step(terms, *, micro_batches):
  """Parameters after a step without policy gradient, and its metrics."""
  config = models.ModelConfig(
    vocab_size=make.VOCABULARY + 1,
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_dim=8,
  )
  rollout = make.rollout(group_sizes=(2, 2, 2, 2))
  recipe = step.Recipe(
    model=config,
    sampling=Sampling(max_tokens=5, end_id=1, pad_id=0),
    num_prompts=4,
    group_size=2,
    chain=group_relative(scale_by_std=False, reward="r"),
    terms=terms,
    reduction=token_mean,
    optimizer=optax.sgd(0.01),
    probe_settings=ProbeSettings(
      end_id=1, answer_delimiter=(2,), self_reward_id=make.VOCABULARY
    ),
    total_steps=10,
    has_reference=False,
    micro_batches=micro_batches,
  )
  state = step.init_state(
    recipe, jax.random.key(0), models.init(config, jax.random.key(1))
  )
  signals = Signals(outcome={"r": jnp.linspace(0.0, 1.0, 8)})
  run = jax.jit(
    lambda s: step.score_and_update(recipe, s, None, rollout, signals),
    # Compiling is all that takes time here.
    compiler_options={"xla_backend_optimization_level": 0},
  )
  state, metrics, _ = run(state)
  _, later, _ = run(state)
  return state.params, metrics, later


def test_in_the_step():
  terms = (
    reference_likelihood(coefficient="r"),
    # Weighty: the other term takes probability from every other token.
    last_token_self_reward(
      reference=-3.0, reward="r", class_weight=None, beta=1.0, weight=2.0
    ),
  )
  whole, metrics, later = one_step(terms, micro_batches=1)
  # Each piece has its own prompts: answers must not be those of others.
  cut, cut_metrics, _ = one_step(terms, micro_batches=2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    whole,
    cut,
  )
  for term in terms:
    name = f"loss/{term.name}"
    np.testing.assert_allclose(metrics[name], cut_metrics[name], rtol=1e-4)
    assert later[name] < metrics[name], f"{name} carries no gradient"
  # ~ log 1/12 a token of an untrained model; answers have 1 to 3 tokens.
  assert -9.0 < metrics["policy/reference_logprob"] < -1.0
