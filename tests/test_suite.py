"""The shared suite passes good transforms and fails each broken one.

For each behaviour there is at least one deliberately broken transform: without
these, the suite could pass everything.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import segments
from rlvr.rewards.algebra import (
  add_metrics,
  map_reward,
  put_reward,
  stateful,
  stateless,
)
from tests import make, suite

# Transforms that do what they should.


def centre(values, context):
  rollout = context.rollout
  mean = segments.group_mean(values, rollout.group, rollout.num_prompts)
  return values - mean[rollout.group]


def spread(scores, rollout, values):
  here = ~jnp.isnan(values)
  values = jax.lax.stop_gradient(jnp.where(here, values, 0.0))
  return dataclasses.replace(
    scores,
    advantages=values[:, None] * rollout.completion_mask,
    weights=scores.weights * here,
  )


def good_reward():
  return map_reward("good_reward", centre, reward=None, kinds=("outcome",))


def good_estimator():
  def fn(scores, context):
    values = centre(scores.outcome["reward"], context)
    return spread(scores, context.rollout, values)

  return stateless("good_estimator", fn, gives="advantages")


def good_shaping():
  def fn(scores, context):
    entropy = jax.lax.stop_gradient(context.probes["entropies"])
    return dataclasses.replace(scores, advantages=scores.advantages * entropy)

  return stateless(
    "good_shaping",
    fn,
    takes="advantages",
    gives="advantages",
    requires=("entropies",),
  )


def good_step():
  def fn(values, context):
    rollout = context.rollout
    mask = segments.step_mask(rollout.step_index, values.shape[1])
    total = jnp.where(mask, values, 0.0).sum(axis=-1, keepdims=True)
    return values - total

  return map_reward("good_step", fn, reward=None, kinds=("step",))


def good_average():
  def apply(scores, state, context):
    values = scores.outcome["reward"]
    here = ~jnp.isnan(values)
    mean = jnp.where(here, values, 0.0).sum() / jnp.maximum(here.sum(), 1)
    new = {"mean": 0.9 * state["mean"] + 0.1 * mean, "n": state["n"] + 1}
    return put_reward(scores, "outcome", "reward", values - state["mean"]), new

  def init():
    return {"mean": jnp.float32(0.0), "n": jnp.int32(0)}

  return stateful("good_average", init, apply)


@pytest.mark.parametrize(
  ("make_transform", "kind"),
  [
    (good_reward, "outcome"),
    (good_estimator, "outcome"),
    (good_shaping, "outcome"),
    (good_step, "step"),
    (good_average, "outcome"),
  ],
)
def test_good_transforms_pass(make_transform, kind):
  suite.check_transform(make_transform, kinds=(kind,))


# Broken ones: (behaviour that must fail, kind of reward, transform).


def broken_reward(fn, kinds=("outcome", "step", "token"), **kwargs):
  return map_reward("broken", fn, reward=None, kinds=kinds, **kwargs)


def broken_estimator(fn):
  return stateless("broken", fn, gives="advantages")


def with_python_branch():
  """Takes another way when it sees a concrete array."""

  def fn(values, _):
    traced = isinstance(values, jax.core.Tracer)
    return values * (2.0 if traced else 1.0)

  return broken_reward(fn)


def with_unmasked_steps():
  return broken_reward(lambda v, _: v - v.mean(axis=-1, keepdims=True))


def with_nan_from_outside():
  """Holds a response for missing because of a step that it doesn't have."""

  def fn(values, _):
    absent = jnp.isnan(values).any(axis=-1, keepdims=True)
    return jnp.where(absent, jnp.nan, values)

  return broken_reward(fn, kinds=("step",))


def with_length_from_shape():
  return broken_reward(
    lambda v, c: v - 0.1 * c.rollout.tokens.shape[1], kinds=("outcome",)
  )


def with_prompt_shape():
  return broken_reward(lambda v, c: v * c.rollout.prompts.tokens.shape[1])


def with_position_in_group():
  return broken_reward(lambda v, c: v + jnp.arange(v.shape[0]))


def with_batch_mean():
  return broken_reward(lambda v, _: v - jnp.nanmean(v))


def with_nan_for_the_group():
  def fn(values, context):
    group = context.rollout.group
    total = segments.group_sum(values, group, context.rollout.num_prompts)
    return values - total[group]

  return broken_reward(fn)


def with_nan_in_advantages():
  def fn(scores, context):
    values = centre(scores.outcome["reward"], context)
    return dataclasses.replace(
      scores, advantages=values[:, None] * context.rollout.completion_mask
    )

  return broken_estimator(fn)


def with_weight_for_missing():
  def fn(scores, context):
    values = centre(scores.outcome["reward"], context)
    out = spread(scores, context.rollout, values)
    return dataclasses.replace(out, weights=scores.weights)

  return broken_estimator(fn)


def with_missing_read_as_zero():
  def fn(scores, context):
    values = jnp.nan_to_num(scores.outcome["reward"])
    return spread(scores, context.rollout, centre(values, context))

  return broken_estimator(fn)


def with_nan_metric():
  def fn(scores, _):
    return add_metrics(scores, mean=scores.outcome["reward"].mean())

  return stateless("broken", fn)


def with_dropped_rewards():
  def fn(scores, _):
    return dataclasses.replace(
      scores, outcome={"reward": scores.outcome["reward"]}
    )

  return stateless("broken", fn)


def with_sum_of_all():
  def fn(scores, _):
    return put_reward(scores, "outcome", "reward", sum(scores.outcome.values()))

  return stateless("broken", fn)


def with_probe_gradient():
  return broken_reward(
    lambda v, c: v + c.probes["logprobs"].sum(axis=-1),
    requires=("logprobs",),
  )


def with_reward_gradient():
  def fn(scores, context):
    values = centre(scores.outcome["reward"], context)
    here = ~jnp.isnan(values)
    values = jnp.where(here, values, 0.0)
    return dataclasses.replace(
      scores,
      advantages=values[:, None] * context.rollout.completion_mask,
      weights=scores.weights * here,
    )

  return broken_estimator(fn)


def with_state_that_changes_dtype():
  def apply(scores, state, _):
    return scores, state + 0.5

  return stateful("broken", lambda: jnp.int32(0), apply)


def with_state_that_grows():
  def apply(scores, state, _):
    return scores, (*state, jnp.float32(0.0))

  return stateful("broken", lambda: (jnp.float32(0.0),), apply)


def with_python_state():
  return stateful("broken", lambda: 0.0, lambda s, state, _: (s, state + 1.0))


def with_state_of_nan():
  def apply(scores, state, _):
    return scores, state + jnp.log(-jnp.ones(()))

  return stateful("broken", lambda: jnp.float32(0.0), apply)


def without_baseline():
  def fn(scores, context):
    return spread(scores, context.rollout, scores.outcome["reward"])

  return broken_estimator(fn)


def with_undeclared_probe():
  return broken_reward(lambda v, c: v + c.probes["logprobs"].sum(axis=-1))


def with_unread_probe():
  return broken_reward(lambda v, _: v, requires=("ref_logprobs",))


def with_float16():
  return broken_reward(lambda v, _: v.astype(jnp.float16))


def with_advantages_outside():
  def fn(scores, context):
    out = good_estimator().apply(scores, (), context)[0]
    return dataclasses.replace(out, advantages=out.advantages + 1.0)

  return broken_estimator(fn)


def with_forgotten_advantages():
  return broken_estimator(lambda scores, _: scores)


def with_negative_weights():
  def fn(scores, _):
    return dataclasses.replace(scores, weights=scores.weights - 2.0)

  return stateless("broken", fn)


BROKEN = [
  ("output_keeps_contract", "outcome", with_float16),
  ("output_keeps_contract", "outcome", with_advantages_outside),
  ("output_keeps_contract", "outcome", with_forgotten_advantages),
  ("output_keeps_contract", "outcome", with_negative_weights),
  ("jit_agrees", "outcome", with_python_branch),
  ("padding_changes_nothing", "step", with_unmasked_steps),
  ("padding_changes_nothing", "token", with_unmasked_steps),
  ("padding_changes_nothing", "step", with_nan_from_outside),
  ("padding_changes_nothing", "outcome", with_length_from_shape),
  ("padding_changes_nothing", "outcome", with_prompt_shape),
  ("permutation_permutes", "outcome", with_position_in_group),
  ("missing_stays_put", "outcome", with_batch_mean),
  ("missing_stays_put", "outcome", with_nan_for_the_group),
  ("missing_stays_put", "outcome", with_nan_in_advantages),
  ("missing_stays_put", "outcome", with_weight_for_missing),
  ("missing_stays_put", "outcome", with_missing_read_as_zero),
  ("missing_stays_put", "outcome", with_nan_metric),
  ("names_stay_apart", "outcome", with_dropped_rewards),
  ("names_stay_apart", "outcome", with_sum_of_all),
  ("probe_gradients_stop", "outcome", with_probe_gradient),
  ("reward_gradients_stop", "outcome", with_reward_gradient),
  ("state_keeps_structure", "outcome", with_state_that_changes_dtype),
  ("state_keeps_structure", "outcome", with_state_that_grows),
  ("state_keeps_structure", "outcome", with_python_state),
  ("state_keeps_structure", "outcome", with_state_of_nan),
  ("equal_rewards_give_zero", "outcome", without_baseline),
  ("requires_is_honest", "outcome", with_undeclared_probe),
  ("requires_is_honest", "outcome", with_unread_probe),
]


@pytest.mark.parametrize(
  ("behaviour", "kind", "make_transform"),
  BROKEN,
  ids=[f"{name}-{kind}-{make.__name__}" for name, kind, make in BROKEN],
)
def test_each_behaviour_fails_a_broken_transform(
  behaviour, kind, make_transform
):
  case = suite.case(make_transform(), kind=kind)
  suite.must_fail(suite.BEHAVIOURS[behaviour], case)
  # Alone it is no proof: the whole suite has to stop it, too.
  with pytest.raises((AssertionError, KeyError)):
    suite.check_transform(make_transform, kinds=(kind,))


def test_every_behaviour_has_a_negative_control():
  assert {name for name, _, _ in BROKEN} == set(suite.BEHAVIOURS)


def test_without_needs_a_known_behaviour():
  with pytest.raises(ValueError, match="no such behaviour"):
    suite.check_transform(good_reward, without={"nonsense": "a reason"})


def test_scope_says_what_a_missing_reward_may_touch():
  # Centring in a group is right for scope "group", wrong for "response".
  suite.missing_stays_put(suite.case(good_reward(), scope="group"))
  suite.must_fail(
    suite.missing_stays_put, suite.case(good_reward(), scope="response")
  )
  suite.missing_stays_put(suite.case(with_batch_mean(), scope="batch"))


def test_numpy_parity():
  values = np.array([1.0, 2.0, 4.0], np.float32)
  inputs = [(values, 2), (values * 3.0, 5)]
  suite.numpy_parity(lambda x, n: x**n, lambda x, n: x**n, inputs)
  suite.must_fail(
    suite.numpy_parity, lambda x, n: x**n, lambda x, n: x**n + 0.01, inputs
  )
  suite.must_fail(suite.numpy_parity, lambda x: x, lambda x: x, [])


@pytest.mark.parametrize("seed", range(8))
def test_made_rollouts_keep_the_contract(seed):
  rollout = make.rollout(seed)
  mask = np.asarray(rollout.completion_mask)
  lengths = mask.sum(axis=1)
  assert lengths.max() == mask.shape[1] and lengths.min() == 1
  assert (mask == (np.arange(mask.shape[1]) < lengths[:, None])).all()
  assert (np.diff(rollout.group) >= 0).all()
  assert len(set(np.bincount(rollout.group))) > 1  # uneven
  steps = np.asarray(rollout.step_index)
  assert ((steps >= 0) == mask).all()
  for row, own in zip(steps, mask, strict=True):
    assert row[0] == 0 and set(np.diff(row[own])) <= {0, 1}
  assert not rollout.finished.all()
  assert len(set(np.asarray(make.num_steps(rollout)))) > 1  # ragged
