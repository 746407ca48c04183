import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import likelihood
from rlvr.types import Scores
from tests import make, suite

LOG = np.log
# Two answers: of tokens 1/2 and 1/4, and of a single token 1/5; one prompt has
# no reference answer.
LOGPROBS = jnp.asarray(
  [[LOG(0.5), LOG(0.25)], [LOG(0.2), 0.0], [0.0, 0.0]], jnp.float32
)
MASK = jnp.asarray([[True, True], [True, False], [False, False]])


def scores_of(weights=None, **outcome):
  outcome = {k: jnp.asarray(v, jnp.float32) for k, v in outcome.items()}
  b = next(iter(outcome.values())).shape[0]
  return Scores(
    outcome=outcome,
    step={},
    token={},
    advantages=None,
    weights=jnp.ones(b) if weights is None else jnp.asarray(weights),
    metrics={},
  )


@pytest.mark.parametrize(
  "fn, expected",
  [
    # log 1/2 + log 1/4 = log 1/8; log 1/5
    (likelihood.answer_log_probability_reward, [LOG(1 / 8), LOG(0.2)]),
    (likelihood.answer_probability_reward, [1 / 8, 0.2]),
    # log 1/8 / 2; log 1/5 / 1
    (likelihood.mean_answer_log_probability_reward, [LOG(1 / 8) / 2, LOG(0.2)]),
    # (1/2 + 1/4) / 2 = 3/8
    (likelihood.mean_answer_probability_reward, [3 / 8, 0.2]),
  ],
)
def test_answer_rewards_by_hand(fn, expected):
  result = fn(LOGPROBS, MASK)
  np.testing.assert_allclose(result, [*expected, np.nan], rtol=1e-6)


def numpy_answer(combine):
  def fn(logprobs, mask):
    return np.array(
      [
        combine(row[m].astype(np.float64))
        for row, m in zip(logprobs, mask, strict=True)
      ]
    )

  return fn


@pytest.mark.parametrize(
  "fn, combine, wrong",
  [
    (likelihood.answer_log_probability_reward, np.sum, np.mean),
    (
      likelihood.answer_probability_reward,
      lambda x: np.prod(np.exp(x)),
      lambda x: np.exp(np.mean(x)),
    ),
    (likelihood.mean_answer_log_probability_reward, np.mean, np.sum),
    (
      likelihood.mean_answer_probability_reward,
      lambda x: np.mean(np.exp(x)),
      lambda x: np.exp(np.mean(x)),
    ),
  ],
)
def test_answer_rewards_parity(fn, combine, wrong):
  rng = np.random.default_rng(0)
  mask = np.arange(4) < rng.integers(2, 5, 6)[:, None]
  logprobs = (-rng.exponential(size=(6, 4))).astype(np.float32)
  inputs = [(logprobs, mask)]
  suite.numpy_parity(fn, numpy_answer(combine), inputs)
  suite.must_fail(suite.numpy_parity, fn, numpy_answer(wrong), inputs)


def test_probability_gain_by_hand():
  # 3/8 - (1/4 + 1/8)/2 = 3/16; 1/5 - 4/5 < 0; no answer: nobody knows.
  base = jnp.asarray([[LOG(0.25), LOG(0.125)], [LOG(0.8), 0], [0, 0]])
  result = likelihood.probability_gain_reward(LOGPROBS, base, MASK)
  np.testing.assert_allclose(result, [3 / 16, 0.0, np.nan], rtol=1e-6)
  swapped = likelihood.probability_gain_reward(base, LOGPROBS, MASK)
  np.testing.assert_allclose(swapped, [0.0, 0.6, np.nan], rtol=1e-5)


def test_self_aligned_by_hand():
  # ppl(a|q) = 2, ppl(a) = 4: (4 - 2)/4 = 1/2. The same: 0.
  # ppl(a|q) = e^50, ppl(a) = 1: limited to -1, without overflow.
  q = jnp.asarray([[LOG(0.5), LOG(0.5)], [-1.0, 7.0], [-50.0, -50.0]])
  a = jnp.asarray([[LOG(0.5), LOG(0.125)], [-1.0, 9.0], [0.0, 0.0]])
  mask = jnp.asarray([[True, True], [True, False], [True, True]])
  result = likelihood.self_aligned_reward(q, a, mask)
  np.testing.assert_allclose(result, [0.5, 0.0, -1.0], atol=1e-6)
  gradient = jax.grad(
    lambda x: likelihood.self_aligned_reward(x, a, mask).sum()
  )(jnp.full_like(q, -500.0))
  assert np.isfinite(gradient).all()


def test_self_aligned_parity():
  def loop(q, a, mask, up=True):
    result = []
    for one, two, m in zip(q, a, mask, strict=True):
      given = np.exp(-one[m].astype(np.float64).mean())
      alone = np.exp(-two[m].astype(np.float64).mean())
      below = alone if up else given
      result.append(np.clip((alone - given) / below, -1, 1))
    return np.array(result)

  rng = np.random.default_rng(1)
  q, a = -rng.exponential(size=(2, 6, 5)).astype(np.float32)
  mask = np.arange(5) < rng.integers(1, 6, 6)[:, None]
  inputs = [(q, a, mask)]
  suite.numpy_parity(likelihood.self_aligned_reward, loop, inputs)
  suite.must_fail(
    suite.numpy_parity,
    likelihood.self_aligned_reward,
    lambda *args: loop(*args, up=False),
    inputs,
  )


def test_nover_by_hand():
  # nll = 3 log 2 / 2 per token, |z| = 10: N = 2; |z| = 1 and 0: N = 1.
  lengths = jnp.asarray([10, 1, 5])
  result = likelihood.reasoning_perplexity(LOGPROBS, MASK, lengths)
  np.testing.assert_allclose(result, [2**0.75, 5.0, np.nan], rtol=1e-6)
  at_zero = likelihood.reasoning_perplexity(LOGPROBS, MASK, lengths * 0)
  np.testing.assert_allclose(at_zero, [2**1.5, 5.0, np.nan], rtol=1e-6)
  # Group 0: 1 < 3 < 4: 3/3, 2/3, 1/3. Group 1: a tie of two shares rank 1/2:
  # (2 - 1/2)/2 = 3/4, one missing. Group 2: alone: 1.
  ppl = jnp.asarray([3.0, 1.0, 4.0, 2.0, np.nan, 2.0, 9.0])
  group = jnp.asarray([0, 0, 0, 1, 1, 1, 2])
  rank = likelihood.perplexity_rank_reward(ppl, group)
  np.testing.assert_allclose(
    rank, [2 / 3, 1, 1 / 3, 0.75, np.nan, 0.75, 1], rtol=1e-6
  )
  # Beaten, of two others: response 0 beats 2 (shorter, surer), not 1; response
  # 1 is surer than both but longer than 0.
  lengths = jnp.asarray([2, 3, 4, 1, 1, 1, 1])
  share = likelihood.short_and_sure_reward(ppl, lengths, group)
  np.testing.assert_allclose(share, [0.5, 0.5, 0, 0, np.nan, 0, 0])


def rewards_of(spreads):
  """Groups of two rewards, each with the given standard deviation (n - 1)."""
  half = np.asarray(spreads) / np.sqrt(2)
  return np.stack([half, -half], axis=1).reshape(-1).astype(np.float32)


def test_filter_by_hand():
  transform = likelihood.low_deviation_filter(scale=0.5, decay=0.9, warmup=2)
  context = make.context(make.rollout(group_sizes=(2, 2)), names=())
  state = transform.init()

  def step(state, spreads):
    scores = scores_of(reward=rewards_of(spreads))
    out, state = transform.apply(scores, state, context)
    return out.weights, state

  # Warm-up, plain mean of the batches' means: 2, then (2 + 1)/2 = 1.5.
  weights, state = step(state, [1.0, 3.0])
  np.testing.assert_allclose(weights, [1, 1, 1, 1])
  np.testing.assert_allclose(state["mean"], 2.0, rtol=1e-6)
  weights, state = step(state, [0.0, 2.0])
  np.testing.assert_allclose(weights, [1, 1, 1, 1])
  np.testing.assert_allclose(state["mean"], 1.5, rtol=1e-6)
  # Threshold 0.75: the first prompt goes. Mean 0.9 * 1.5 + 0.1 * 0.75 = 1.425
  weights, state = step(state, [0.5, 1.0])
  np.testing.assert_allclose(weights, [0, 0, 1, 1])
  np.testing.assert_allclose(state["mean"], 1.425, rtol=1e-6)
  # A batch without any reward changes nothing and drops nothing.
  weights, after = step(state, [np.nan, np.nan])
  np.testing.assert_allclose(weights, [1, 1, 1, 1])
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_filter_keeps_weights_of_others():
  transform = likelihood.low_deviation_filter(warmup=0)
  context = make.context(make.rollout(group_sizes=(2, 2)), names=())
  state = {"mean": jnp.float32(1.0), "batches": jnp.int32(5)}
  scores = scores_of(
    reward=rewards_of([0.4, 0.6]), weights=[1.0, 1.0, 0.0, 0.5]
  )
  out, _ = transform.apply(scores, state, context)
  np.testing.assert_allclose(out.weights, [0, 0, 0, 0.5])
  np.testing.assert_allclose(out.metrics["filter/dropped_prompts"], 0.5)
  np.testing.assert_allclose(out.metrics["filter/threshold"], 0.5)


@pytest.mark.parametrize("bad", [{"decay": 1.5}, {"scale": -1}, {"warmup": -2}])
def test_filter_refuses(bad):
  with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
    likelihood.low_deviation_filter(**bad)


def test_reasoning_only_by_hand():
  rollout = make.rollout(group_sizes=(1, 1, 1), lengths=(5, 3, 4))
  span = jnp.asarray([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]) > 0
  context = make.context(rollout, names=(), extra={"answer_span": span})
  scores = dataclasses.replace(
    scores_of(reward=np.zeros(3)),
    advantages=jnp.where(rollout.completion_mask, 2.0, 0.0),
  )
  out, _ = likelihood.reasoning_only().apply(scores, (), context)
  # Before the answer; all without one; nothing if it is the answer at once.
  expected = [[2, 2, 0, 0, 0], [2, 2, 2, 0, 0], [0, 0, 0, 0, 0]]
  np.testing.assert_array_equal(out.advantages, expected)


def test_unfinished_responses():
  rollout = make.rollout()
  assert not rollout.finished.all() and rollout.finished.any()
  context = make.context(rollout, names=("answer_logprobs", "answer_mask"))
  plain, _ = likelihood.answer_probability().apply(
    scores_of(x=np.zeros(6)), (), context
  )
  cut, _ = likelihood.answer_probability(unfinished=0.0).apply(
    scores_of(x=np.zeros(6)), (), context
  )
  plain, cut = plain.outcome["likelihood"], cut.outcome["likelihood"]
  assert (plain > 0).all()
  np.testing.assert_array_equal(cut, jnp.where(rollout.finished, plain, 0.0))


def test_taken_name_is_refused():
  context = make.context(make.rollout())
  with pytest.raises(ValueError, match=r"'x' already.*probability_gain\.out"):
    likelihood.probability_gain(out="x").apply(
      scores_of(x=np.zeros(6)), (), context
    )


@pytest.mark.parametrize(
  "make_transform",
  [
    likelihood.answer_log_probability,
    likelihood.mean_answer_log_probability,
    likelihood.mean_answer_probability,
    lambda: likelihood.answer_probability(unfinished=0.0),
    likelihood.probability_gain,
    likelihood.self_aligned,
    lambda: likelihood.perplexity_rank(efficiency_out="short"),
    lambda: likelihood.low_deviation_filter(warmup=0),
    likelihood.reasoning_only,
  ],
)
def test_suite(make_transform):
  suite.check_transform(make_transform)
