"""The picture of a chain's credit: what it traces and what it draws."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import advantages, rewards
from rlvr.evaluation.credit_plot import plot_credit, trace_chain
from rlvr.rewards.algebra import put_reward, stateful
from tests import make


def noisy_counter():
  """A transform with a key and a state, in which a wrong one would show."""

  def apply(scores, state, context):
    noise = jax.random.normal(context.key, scores.outcome["reward"].shape)
    values = scores.outcome["reward"] + noise + state
    return put_reward(scores, "outcome", "reward", values), state + 1.0

  return stateful("noisy_counter", lambda: jnp.float32(3.0), apply)


@pytest.fixture
def context():
  return make.context(make.rollout(lengths=[5, 3, 2, 4, 5, 1]), names=())


def numbers_of(svg):
  """Text of each table row, a list per row."""
  rows = ET.fromstring(svg).find("table").findall("tr")
  return [["".join(cell.itertext()) for cell in row] for row in rows]


def test_trace_is_what_the_chain_does(context):
  inner = rewards.chain(noisy_counter(), rewards.clip(low=-1.0, high=4.0))
  chain = rewards.chain(
    noisy_counter(), inner, advantages.group_relative(scale_by_std=True)
  )
  scores = make.scores(context.rollout)
  trace = trace_chain(chain, scores, chain.init(), context)
  assert [link.name for link in trace] == [
    *("signals", "noisy_counter", "noisy_counter", "clip", "group_relative")
  ]
  expected, _ = chain.apply(scores, chain.init(), context)
  for a, b in zip(
    jax.tree.leaves(trace[-1].scores), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert trace[3].params == {"reward": None, "low": -1.0, "high": 4.0}
  assert trace[0].scores is scores
  # Control: with the key of another place in the chain it is another result.
  other = trace_chain(inner, scores, inner.init(), context)
  assert not np.allclose(other[1].rewards["reward"], trace[2].rewards["reward"])


def test_a_transform_that_is_no_chain(context):
  scores = make.scores(context.rollout)
  trace = trace_chain(rewards.clip(low=0.0, high=1.0), scores, (), context)
  assert [link.name for link in trace] == ["signals", "clip"]
  expected = np.clip(scores.outcome["reward"], 0, 1)
  np.testing.assert_array_equal(trace[1].rewards["reward"], expected)


@pytest.fixture
def drawn(context):
  """Two steps of a response of four tokens, with what its chain left."""
  rollout = make.rollout(lengths=[4, 3, 2, 4, 5, 1], steps=[2, 1, 1, 2, 2, 1])
  scores = make.scores(rollout, kind="step", names=("process",))
  values = scores.step["process"].at[0].set(jnp.array([0.25, 1.0, 9.0]))
  scores = dataclasses.replace(
    scores,
    step={"process": values},
    outcome={"correct": jnp.full((6,), jnp.nan).at[0].set(-0.5)},
  )
  chain = rewards.chain(
    rewards.clip_steps(eta=1.0, reward="process"),
    rewards.sum_form(gamma=1.0, reward="process", out="return"),
    advantages.token_group_relative(scale_by_std=False, reward="return"),
  )
  context = dataclasses.replace(context, rollout=rollout)
  return trace_chain(chain, scores, chain.init(), context), rollout


TEXTS = ["<b>", "&", " \n\x01", "é"]


def test_the_rewards_after_each_link(drawn):
  trace, rollout = drawn
  svg = plot_credit(TEXTS, trace, rollout, response=0, title="a < b")
  head, *rows = numbers_of(svg)
  assert head == ["after", "correct", "process", "return"]
  # min(0.25 − 1, 0), min(1 − 1, 0); returns −0.75 + 0 in the first step, 0 in
  # the second. The step beyond the response, 9, is not shown.
  assert rows[0] == ["signals", "−0.5", "0.25 1", ""]
  assert rows[1] == [
    "clip_steps(reward=process, eta=1.0)", "−0.5", "−0.75 0", ""
  ]  # fmt: skip
  first = int((rollout.step_index[0] == 0).sum())
  returns = ["−0.75"] * first + ["0"] * (4 - first)
  assert rows[2][2:] == ["", " ".join(returns)]
  assert rows[3][3] == rows[2][3]
  # Bold is what changed: not the outcome, nor the returns in the last row.
  bold = [b.text for b in ET.fromstring(svg).find("table").iter("b")]
  assert bold == ["−0.75 0", " ".join(returns)]


def test_runs_and_missing_values(drawn):
  trace, rollout = drawn
  # Response 4: five tokens; its outcome is missing.
  svg = plot_credit(list("abcde"), trace, rollout, response=4)
  rows = numbers_of(svg)
  assert rows[1][1] == "missing"
  changed = trace[-1].scores.token["return"].at[4].set(1.0)
  last = dataclasses.replace(trace[-1].scores, token={"return": changed})
  trace = (*trace[:-1], trace[-1]._replace(scores=last))
  rows = numbers_of(plot_credit(list("abcde"), trace, rollout, response=4))
  assert rows[-1][-1] == "1×5"


def test_tokens_are_coloured_by_their_advantages(drawn):
  trace, rollout = drawn
  values = jnp.zeros((6, 5)).at[0].set(jnp.array([2.0, -1.0, 0.0, -2.0, 99.0]))
  last = dataclasses.replace(trace[-1].scores, advantages=values)
  trace = (*trace[:-1], trace[-1]._replace(scores=last))
  svg = plot_credit(TEXTS, trace, rollout, response=0)
  painted = re.findall(
    r'background:rgb\((\d+),(\d+),(\d+)\).*?title="(.*?)"', svg
  )
  # The scale ends at 2 (99 is outside the response): full blue; half red,
  # 247 + (178 − 247) / 2 = 212.5, 247 + (24 − 247) / 2 = 135.5, 145; none; full.
  assert painted == [
    ("33", "102", "172", "2"),
    ("212", "136", "145", "−1"),
    ("247", "247", "247", "0"),
    ("178", "24", "43", "−2"),
  ]
  shown = "".join(ET.fromstring(svg).find("div").itertext())
  assert "<b>" in shown and "·⏎␁" in shown and "step 1" in shown
  assert "weight" not in svg


def test_no_credit_at_all_and_a_dropped_response(drawn):
  trace, rollout = drawn
  last = dataclasses.replace(
    trace[-1].scores, advantages=jnp.zeros((6, 5)), weights=jnp.zeros((6,))
  )
  trace = (*trace[:-1], trace[-1]._replace(scores=last))
  svg = plot_credit(TEXTS, trace, rollout, response=0)
  assert svg.count("background:rgb(247,247,247)") == 4
  assert "weight 0: takes no part in the update" in svg


def test_errors(drawn):
  trace, rollout = drawn
  with pytest.raises(ValueError, match=r"response=6: there are 0\.\.5"):
    plot_credit(TEXTS, trace, rollout, response=6)
  with pytest.raises(ValueError, match="3 texts for the 4 tokens"):
    plot_credit(TEXTS[:3], trace, rollout, response=0)
  with pytest.raises(ValueError, match="ends with 'sum_form', which gives"):
    plot_credit(TEXTS, trace[:-1], rollout, response=0)
