import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.advantages import leave_one_out
from rlvr.rewards import (
  chain,
  clip,
  describe,
  map_reward,
  stateful,
  stateless,
  weighted_sum,
)
from rlvr.rewards.algebra import (
  add_metrics,
  check_positive,
  check_probability,
  find_reward,
  present_mean,
  put_reward,
)
from rlvr.types import Scores, Signals, scores_from_signals
from tests import make, suite

NAN = float("nan")


def add(value):
  return map_reward("add", lambda v, _: v + value, reward="reward")


def scale(value):
  return map_reward("scale", lambda v, _: v * value, reward="reward")


def counter():
  def apply(scores, state, _):
    values = scores.outcome["reward"] + state
    return put_reward(scores, "outcome", "reward", values), state + 1.0

  return stateful("counter", lambda: jnp.float32(0.0), apply)


def probing(name):
  def fn(scores, context):
    return add_metrics(scores, **{name: context.probes[name].sum()})

  return stateless("probing", fn, requires=(name,))


def inputs(**outcome):
  rollout = make.rollout()
  scores = make.scores(rollout)
  if outcome:
    scores = dataclasses.replace(scores, outcome=outcome)
  return scores, make.context(rollout)


# chain


def test_chain_applies_in_order():
  scores, context = inputs(reward=jnp.ones((6,)))
  # (1 + 2) * 10 = 30, not 1 * 10 + 2 = 12
  link = chain(add(2.0), scale(10.0))
  out, _ = link.apply(scores, link.init(), context)
  np.testing.assert_array_equal(out.outcome["reward"], 30.0)
  link = chain(scale(10.0), transforms=[add(2.0)])
  out, _ = link.apply(scores, link.init(), context)
  np.testing.assert_array_equal(out.outcome["reward"], 12.0)


def test_chain_of_chains_is_the_chain():
  scores, context = inputs()
  links = [add(1.0), scale(3.0), add(-0.5), clip(low=-1.0, high=1.0)]
  flat, nested = chain(*links), chain(chain(*links[:2]), chain(*links[2:]))
  one, _ = flat.apply(scores, flat.init(), context)
  two, _ = nested.apply(scores, nested.init(), context)
  suite.assert_same(one, two, context.rollout)


def test_chain_keeps_each_state():
  scores, context = inputs(reward=jnp.zeros((6,)))
  link = chain(counter(), add(1.0), counter())
  state = link.init()
  assert jax.tree.leaves(state) == [0.0, 0.0]
  for step in range(3):
    out, state = link.apply(scores, state, context)
    np.testing.assert_array_equal(out.outcome["reward"], 2 * step + 1.0)
  assert jax.tree.leaves(state) == [3.0, 3.0]


def test_chain_gives_each_link_its_own_key():
  def noise():
    def fn(scores, context):
      draw = jax.random.normal(context.key, (6,))
      return put_reward(scores, "outcome", f"n{len(scores.outcome)}", draw)

    return stateless("noise", fn)

  scores, context = inputs(reward=jnp.zeros((6,)))
  link = chain(noise(), noise())
  out, _ = link.apply(scores, link.init(), context)
  assert (out.outcome["n1"] != out.outcome["n2"]).all()
  again, _ = link.apply(scores, link.init(), context)
  suite.assert_same(out, again, context.rollout)


def test_chain_requires_the_union():
  link = chain(probing("logprobs"), add(1.0), chain(probing("values")))
  assert link.requires == {"logprobs", "values"}
  suite.requires_is_honest(suite.case(link))


def test_chain_passes_the_suite():
  suite.check_transform(lambda: chain(add(1.0), counter(), add(2.0)))
  suite.check_transform(
    lambda: chain(
      weighted_sum({"a": 1.0, "b": 2.0}), leave_one_out(reward="reward")
    ),
    make_scores=lambda r, s: make.scores(r, s, names=("a", "b")),
  )


@pytest.mark.parametrize(
  ("links", "message"),
  [
    ((), "at least one"),
    ((add(1.0), clip), "link 1 is .* with the brackets"),
    ((leave_one_out(), add(1.0)), "move it before the advantage estimator"),
    ((leave_one_out(), leave_one_out()), "link 1"),
    (
      (
        add(1.0),
        stateless("s", None, takes="advantages", gives="advantages"),
      ),
      "put an advantage estimator before it",
    ),
  ],
)
def test_chain_refuses(links, message):
  with pytest.raises(ValueError, match=message):
    chain(*links)


def test_chain_refuses_another_chains_state():
  scores, context = inputs()
  with pytest.raises(ValueError, match=r"chain of 2 .* state of 1"):
    chain(add(1.0), add(2.0)).apply(scores, chain(add(1.0)).init(), context)


# describe


def test_describe():
  link = chain(
    clip(low=-1.0, high=2.0, reward="r"), probing("values"), leave_one_out()
  )
  assert describe(link).splitlines() == [
    "chain: rewards -> advantages",
    "  clip(reward='r', low=-1.0, high=2.0)",
    "  probing()  [probes: values]",
    "  leave_one_out(reward=None): rewards -> advantages",
    "probes: values",
  ]
  assert "probes: none" in describe(chain(add(1.0)))


# Finding and putting rewards.


def test_find_reward():
  rollout = make.rollout()
  scores = make.scores(rollout, kind="step", names=("process",))
  kind, name, values = find_reward(scores, None, who="me")
  assert (kind, name, values.shape) == ("step", "process", (6, 3))
  scores.outcome["reward"] = jnp.zeros((6,))
  assert find_reward(scores, None, who="me")[1] == "reward"
  assert find_reward(scores, "process", who="me")[0] == "step"


def test_find_reward_refuses():
  scores, _ = inputs(a=jnp.zeros((6,)), b=jnp.zeros((6,)))
  with pytest.raises(ValueError, match=r"me: which reward\? .*'a', 'b'"):
    find_reward(scores, None, who="me")
  with pytest.raises(ValueError, match=r"no reward 'c'.*'a', 'b'.*me\.reward"):
    find_reward(scores, "c", who="me")
  with pytest.raises(ValueError, match=r"'a' is outcome \[B\], but step"):
    find_reward(scores, "a", ("step",), who="me")
  step = make.scores(make.rollout(), kind="step")
  with pytest.raises(ValueError, match="put a credit transform before it"):
    find_reward(step, "reward", ("token",), who="me")


def test_put_reward_moves_between_kinds_and_changes_nothing_in_place():
  scores, _ = inputs(a=jnp.zeros((6,)), b=jnp.zeros((6,)))
  out = put_reward(scores, "token", "a", jnp.ones((6, 5)), drop=["b"])
  assert (set(out.outcome), set(out.token)) == (set(), {"a"})
  assert (set(scores.outcome), set(scores.token)) == ({"a", "b"}, set())


def test_map_reward_keeps_missing_missing_and_the_shape():
  scores, context = inputs(reward=jnp.array([1.0, NAN, 2.0, 3.0, 4.0, 5.0]))
  zero = map_reward("zero", lambda v, _: jnp.zeros_like(v), reward=None)
  out, _ = zero.apply(scores, (), context)
  np.testing.assert_array_equal(out.outcome["reward"], [0, NAN, 0, 0, 0, 0])
  short = map_reward("short", lambda v, _: v[:2], reward=None)
  with pytest.raises(ValueError, match=r"short: .*\(6,\).*\(2,\)"):
    short.apply(scores, (), context)
  named = map_reward("m", lambda v, _: -v, reward="reward", out="minus")
  out, _ = named.apply(scores, (), context)
  assert set(out.outcome) == {"reward", "minus"}


def test_add_metrics():
  scores, _ = inputs()
  out = add_metrics(add_metrics(scores, a__b=1), c=jnp.int32(2))
  assert {k: float(v) for k, v in out.metrics.items()} == {"a/b": 1.0, "c": 2.0}
  assert all(v.dtype == jnp.float32 for v in out.metrics.values())


def test_checks():
  assert check_probability("p", 1.0, who="f") == 1.0
  assert check_positive("t", 0.5, who="f") == 0.5
  for value in (-0.1, 1.1, NAN):
    with pytest.raises(ValueError, match="f: p="):
      check_probability("p", value, who="f")
  for value in (0.0, -1.0, NAN):
    with pytest.raises(ValueError, match="f: t="):
      check_positive("t", value, who="f")


def test_present_mean():
  values = jnp.array([1.0, NAN, 5.0])
  assert present_mean(values) == 3.0
  assert present_mean(values, jnp.array([True, True, False])) == 1.0
  assert present_mean(jnp.full((3,), NAN)) == 0.0


# Scores from signals.


def test_scores_from_signals():
  signals = Signals(
    outcome={"a": jnp.array([1, 0], jnp.int32)}, step={"b": jnp.ones((2, 3))}
  )
  scores = scores_from_signals(signals, 2)
  assert isinstance(scores, Scores)
  assert scores.outcome["a"].dtype == jnp.float32
  np.testing.assert_array_equal(scores.weights, [1.0, 1.0])
  assert scores.advantages is None


def test_scores_from_signals_refuses():
  twice = Signals(outcome={"a": jnp.ones(2)}, step={"a": jnp.ones((2, 3))})
  with pytest.raises(ValueError, match=r"'a' is given as outcome and as step"):
    scores_from_signals(twice, 2)
  with pytest.raises(ValueError, match=r"'a' has shape \(2,\)"):
    scores_from_signals(Signals(outcome={"a": jnp.ones(2)}), 3)
  with pytest.raises(ValueError, match="rank 2"):
    scores_from_signals(Signals(token={"a": jnp.ones(2)}), 2)


def test_importing_rewards_imports_no_tensorflow_and_no_gin():
  code = (
    "import sys, rlvr.rewards, rlvr.advantages;"
    "bad = {'tensorflow', 'gin', 'flax', 'seqio'} & set(sys.modules);"
    "assert not bad, bad"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
