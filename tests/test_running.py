"""The loop in progress: dynamic sampling, budgets, domains, greedy baselines."""

import dataclasses
import functools
import json
import logging
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr import loops
from rlvr.advantages import group_relative
from rlvr.data.sources import Batch
from rlvr.objectives import policy_gradient, token_mean
from rlvr.rewards.algebra import chain
from rlvr.sampling import Sampling
from rlvr.selection import (
  Chooser,
  DomainSampling,
  DynamicSampling,
  KnapsackBudget,
)
from rlvr.step import init_state
from rlvr.types import Prompts, Signals
from rlvr.verifiers.exact import verdict_rewards
from rlvr.verifiers.host import host_signals
from rlvr.verifiers.specs import VerifierSpec
from tests import tiny
from tests.compare import must_fail

P, G, T = 4, 4, 4
CONFIG = tiny.config(num_layers=1, unroll_layers=True)
PARAMS = tiny.params(CONFIG)
KEY = jax.random.key(3)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


class Letters:
  """A vocabulary in which every id is one letter."""

  eos_id, pad_id = tiny.END, tiny.PAD

  def decode(self, ids):
    return "".join(chr(ord("a") + i) for i in ids)

  def encode(self, text):
    return [ord(c) - ord("a") for c in text]


class Source:
  """Prompts n = 0, 1, 2, ... of one token, 6 + n mod 12, in two parts."""

  unit, num_shards = 1, 1
  part_names = ("task:low", "task:high")

  def __init__(self):
    self.position, self.part_draws = 0, [0, 0]

  def next_batch(self, num_prompts, counts=None):
    numbers = self.position + np.arange(num_prompts)
    self.position += num_prompts
    parts = (numbers % 12 >= 6).astype(int)
    if counts is not None:
      parts = np.repeat([0, 1], counts)
      numbers = 6 * parts + np.arange(num_prompts) % 6
    tokens = (6 + numbers % 12).astype(np.int32)[:, None]
    ones = np.ones((num_prompts, 1), bool)
    return Batch(
      prompts=Prompts(
        tokens=tokens, mask=ones, answer_tokens=tokens, answer_mask=ones
      ),
      targets=None,
      target_mask=None,
      prompt_texts=[str(n) for n in numbers],
      references=[str(n) for n in numbers],
      metadata=[{"n": int(n)} for n in numbers],
      real=ones[:, 0],
      rows=numbers % 12,
      parts=parts,
    )

  def seek(self, position, part_draws=None):
    self.position, self.part_draws = position, list(part_draws or [0, 0])


def right(prompt_token, first_token):
  """Odd prompts: nothing is right. Even ones: an even first token."""
  return (prompt_token % 2 == 0) & (first_token % 2 == 0)


def device_verifier(rollout, key):
  prompt = rollout.prompts.tokens[rollout.group, -1]
  verdicts = jnp.where(right(prompt, rollout.tokens[:, 0]), 0, 1)
  return Signals(
    outcome={"correct": verdict_rewards(verdicts)},
    verdicts={"correct": verdicts},
  )


class HostVerifier:
  """The same on text: the first letter against the prompt's number."""

  def start(self, responses, references, metadata, finished):
    verdicts = [
      0
      if right(6 + m["n"] % 12, Letters().encode(r)[0] if r else tiny.END)
      else 1
      for r, m in zip(responses, metadata, strict=True)
    ]
    signals = host_signals("correct", verdicts)

    class Done:
      def result(self):
        return signals

    return Done()


def setup():
  return loops.Setup(
    model=CONFIG,
    vocabulary=Letters(),
    source=Source(),
    sampling=Sampling(max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD),
    total_steps=10,
    answer_delimiter="",
    reference=None,
  )


def settings(*, host=False, **changes):
  given = {
    "num_prompts": P,
    "group_size": G,
    "chain": chain(group_relative(scale_by_std=False, reward="correct")),
    "terms": [policy_gradient()],
    "reduction": token_mean,
    "optimizer": optax.sgd(0.5, momentum=0.9),
    "verifier": VerifierSpec(
      "correct", not host, lambda _: HostVerifier() if host else device_verifier
    ),
  }
  return loops.Reinforcement(**{**given, **changes})


def fresh(loop):
  """Returns the first state; it is donated, key and all."""
  return init_state(
    loop.recipe, jax.random.key(3), jax.tree.map(jnp.copy, PARAMS)
  )


_LOOPS: dict[tuple, object] = {}  # equal settings are compiled once


def start(**changes):
  """Returns a loop that has done nothing yet, its state, and its source."""
  made, given = setup(), settings(**changes)
  key = tuple(sorted(changes.items()))
  if key not in _LOOPS:
    _LOOPS[key] = given.start(made)
  loop = _LOOPS[key]
  loop._setup, loop._ahead, loop._last = made, None, None
  loop._before = None
  loop._choose = Chooser(
    made.source,
    num_prompts=P,
    group_size=G,
    budget=given.budget,
    domains=given.domains,
  )
  return loop, fresh(loop), made.source


def advance(loop, state, times=1, drain=False):
  for _ in range(times):
    step = int(state.step)
    state, outcome = loop.dispatch(state, step=step, drain=drain)
    metrics, rows = outcome.metrics(), outcome.rows()
  return state, metrics, rows


def changed(params):
  return max(
    float(np.abs(np.asarray(a) - np.asarray(b)).max())
    for a, b in zip(
      jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True
    )
  )


def tree_close(a, b):
  jax.tree.map(close, a, b)


DYNAMIC = DynamicSampling(reward="correct", max_rounds=5)


@pytest.fixture(scope="module")
def plain():
  """Returns a loop without any of the settings, after one step."""
  loop, state, _ = start()
  return loop, *advance(loop, state)


# Under way.


def slow_verifier(rollout, key):
  """The same, after products that take far longer than the rest."""
  signals = device_verifier(rollout, key)
  big = jnp.full((256, 256), 0.01) * rollout.tokens.sum()
  big = jax.lax.fori_loop(0, 400, lambda _, x: jnp.tanh(x @ x), big)
  nothing = jnp.where(big.sum() == 12345.678, 1.0, 0.0)
  outcome = {k: v + nothing for k, v in signals.outcome.items()}
  return dataclasses.replace(signals, outcome=outcome)


def test_a_step_is_dispatched_without_waiting_for_it():
  # No host callback in it: on a CPU, JAX waits for programs that have one.
  slow = VerifierSpec("correct", True, lambda _: slow_verifier)
  loop, state, _ = start(verifier=slow)
  state, _, _ = advance(loop, state, times=2)  # compiles
  begin = time.perf_counter()
  state, first = loop.dispatch(state, step=2, drain=False)
  state, second = loop.dispatch(state, step=3, drain=False)
  dispatched = time.perf_counter() - begin
  # The device has two steps to do, and this thread got here all the same.
  assert not state.step.is_ready() and first.done_at is None
  losses = [outcome.metrics()["loss/total"] for outcome in (first, second)]
  assert losses[0] != losses[1]
  # The control: who asks for the figures waits.
  assert time.perf_counter() - begin > 2 * dispatched
  assert int(state.step) == 4
  assert first.done_at < second.done_at
  fused = first.times["time/fused_step_s"]
  assert fused == pytest.approx(first.seconds(), rel=0.5)


@pytest.mark.parametrize("depth", [0, 1])
def test_the_next_batch_is_sampled_while_this_one_is_verified(
  depth, monkeypatch
):
  loop, state, _ = start(host=True, depth=depth)
  events, verifier, launch = [], loop._verifier, loop._launch

  class Recording:
    def start(self, *args):
      pending = verifier.start(*args)
      events.append("verifying")

      class Pending:
        def result(self):
          events.append("verified")
          return pending.result()

      return Pending()

  def launching(*args):
    events.append("sampling")
    return launch(*args)

  monkeypatch.setattr(loop, "_verifier", Recording())
  monkeypatch.setattr(loop, "_launch", launching)
  advance(loop, state, times=2)
  at_once = ["sampling", "verifying", "verified"]
  ahead = ["verifying", "sampling", "verified"]
  assert events == (["sampling", *2 * ahead] if depth else 2 * at_once)


# Dynamic sampling.


@pytest.mark.parametrize("host", [False, True])
def test_dynamic_sampling_fills_the_batch_with_groups_that_differ(host):
  loop, state, source = start(host=host, dynamic_sampling=DYNAMIC)
  state, metrics, rows = advance(loop, state)
  rollout, signals = loop._last
  rewards = np.asarray(signals.outcome["correct"]).reshape(P, G)
  assert (np.ptp(rewards, axis=1) > 0).all()
  # Two of four prompts are odd and teach nothing: one round can't do.
  assert metrics["dynamic/rounds"] >= 2
  assert source.position == P * metrics["dynamic/rounds"]
  assert metrics["dynamic/prompts_drawn"] == source.position
  assert metrics["dynamic/groups_kept"] == P
  assert metrics["dynamic/groups_filled"] == 0
  assert metrics["dynamic/groups_missing"] == 0
  assert metrics["dynamic/prompts_drawn"] == sum(
    metrics[f"dynamic/groups_{k}"] for k in ("kept", "surplus", "equal")
  )
  assert metrics["dynamic/tokens_drawn"] > metrics["response/tokens"]
  assert metrics["response/weight_mean"] == 1
  # The first useful ones count, in the order in which they were drawn; texts
  # and rewards go with the tokens.
  prompts = np.asarray(rollout.prompts.tokens)[:, 0]
  assert (prompts % 2 == 0).all()
  first = np.asarray(rollout.tokens)[:, 0]
  np.testing.assert_array_equal(
    rewards.reshape(-1), right(np.repeat(prompts, G), first)
  )
  assert [row["prompt"] for row in rows] == [str(prompts[0] - 6)] * G
  assert changed(state.params) > 1e-3


def test_host_and_device_verifier_draw_the_same_rounds():
  found = []
  for host in (False, True):
    loop, state, _ = start(host=host, dynamic_sampling=DYNAMIC)
    state, _, _ = advance(loop, state, times=2)
    found.append((loop._last[0].tokens, state.params))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  tree_close(found[0][1], found[1][1])


def test_at_the_cap_the_rest_counts_for_nothing(plain):
  once = dataclasses.replace(DYNAMIC, max_rounds=1)
  loop, state, _ = start(dynamic_sampling=once)
  state, metrics, _ = advance(loop, state)
  kept = metrics["dynamic/groups_kept"]
  assert 0 < kept < P
  assert metrics["dynamic/groups_filled"] == P - kept
  close(metrics["response/weight_mean"], kept / P)
  # The same responses as without dynamic sampling, whose token mean counts the
  # others as well: the same direction, a longer step.
  rollout = loop._last[0]
  useful = np.repeat(np.arange(P) < kept, G)
  tokens = np.asarray(rollout.completion_mask).sum(-1)
  factor = tokens.sum() / tokens[useful].sum()
  _, other, _, _ = plain
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(
      a - c, factor * (b - c), rtol=1e-3, atol=1e-5
    ),
    *jax.device_get((state.params, other.params, PARAMS)),
  )


def test_rounds_of_a_batch_have_noise_of_their_own():
  loop, state, _ = start(dynamic_sampling=DYNAMIC)
  prompts = Source().next_batch(P).prompts
  run = loop._sample
  args = (state.params, prompts, KEY, np.int32(0), None)
  first, _ = run(*args, np.int32(0))
  second, _ = run(*args, np.int32(P * G))
  again, _ = run(*args, np.int32(0))
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert (first.tokens != second.tokens).any(1).mean() > 0.8


def test_a_batch_without_a_useful_group_changes_nothing():
  hopeless = VerifierSpec(
    "correct",
    True,
    lambda _: (
      lambda rollout, key: Signals(
        outcome={"correct": jnp.zeros(rollout.tokens.shape[0])},
        verdicts={"correct": jnp.ones(rollout.tokens.shape[0], jnp.int32)},
      )
    ),
  )
  loop, state, _ = start(dynamic_sampling=DYNAMIC, verifier=hopeless)
  state, metrics, _ = advance(loop, state)
  assert metrics["dynamic/rounds"] == DYNAMIC.max_rounds
  assert metrics["dynamic/groups_kept"] == 0
  assert metrics["dynamic/equal_reward_mean"] == 0
  assert metrics["optim/empty_updates"] == 1
  assert changed(state.params) == 0


def test_dynamic_sampling_says_which_rewards_there_are():
  wrong = dataclasses.replace(DYNAMIC, reward="corect")
  loop, state, _ = start(dynamic_sampling=wrong)
  with pytest.raises(ValueError, match=r"'corect'.*\['correct'\]"):
    advance(loop, state)


# Budgets.

BUDGET = KnapsackBudget(reward="correct", low=2, high=8)


@pytest.mark.parametrize("host", [False, True])
def test_a_budget_gives_more_to_prompts_that_are_sometimes_solved(host):
  loop, state, _ = start(host=host, budget=BUDGET)
  # Nothing is known: even shares.
  state, metrics, _ = advance(loop, state)
  assert metrics["budget/prompts_unknown"] == P
  assert metrics["budget/most_responses"] == G
  # Three batches go through the twelve prompts; then all are known.
  state, metrics, _ = advance(loop, state, times=3)
  assert metrics["budget/prompts_unknown"] == 0
  rates = loop.host_state()["success_rates"]
  assert sorted(map(int, rates)) == list(range(12))
  sizes = np.bincount(loop._last[0].group, minlength=P)
  assert sizes.sum() == P * G
  assert sizes.min() >= 2 and sizes.max() <= 8
  assert metrics["budget/most_responses"] == sizes.max()
  assert changed(state.params) > 1e-3


def test_known_prompts_share_the_budget_by_their_rates():
  source = Source()
  chooser = Chooser(
    source, num_prompts=P, group_size=G, budget=BUDGET, domains=None
  )
  chooser.restore({"success_rates": {"0": 1.0, "1": 0.3, "2": 0.0, "3": 0.9}})
  group = np.asarray(chooser.group(source.next_batch(P)))
  sizes = np.bincount(group, minlength=P)
  # The always solved one gets the least, the one next to 1/3 the most.
  assert sizes[0] == 2
  assert sizes.argmax() == 1
  assert sizes.sum() == P * G
  assert json.loads(json.dumps(chooser.host_state())) == chooser.host_state()


def test_fused_and_split_budgets_are_one():
  found = []
  for host in (False, True):
    loop, state, _ = start(host=host, budget=BUDGET)
    state, _, _ = advance(loop, state, times=4)
    found.append((loop._last[0].group, state.params))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  tree_close(found[0][1], found[1][1])


def test_budgets_that_cannot_be():
  with pytest.raises(ValueError, match=r"high=3: give .* between 8 and 12"):
    start(budget=dataclasses.replace(BUDGET, high=3))
  with pytest.raises(ValueError, match="set one of the two to None"):
    settings(budget=BUDGET, dynamic_sampling=DYNAMIC)


# Domains.

DOMAINS = DomainSampling(
  reward="correct", target_reward=1.0, tau=0.1, epsilon=0.1, alpha=0.5
)


def test_domains_that_earn_little_get_more():
  loop, state, _ = start(domains=DOMAINS)
  _, metrics, _ = advance(loop, state)
  assert metrics["domain/low/share"] == metrics["domain/high/share"] == 0.5
  loop.restore({"domain_rewards": [0.9, 0.1]})
  assert loop.host_state() == {"domain_rewards": [0.9, 0.1]}
  state = fresh(loop)
  _, metrics, _ = advance(loop, state)
  # Shares 0.1 + 0.8 · softmax((0.1, 0.9) / 0.1) = 0.1003, 0.8997; of 4: 0, 4.
  assert metrics["domain/low/share"] == 0
  assert metrics["domain/high/share"] == 1
  # α 0.1 + (1 - α) mean of the batch; nothing new is known of the other.
  mean = float(np.mean(loop._last[1].outcome["correct"]))
  close(metrics["domain/high/reward"], 0.5 * 0.1 + 0.5 * mean)
  close(metrics["domain/low/reward"], 0.9)


def test_domains_need_a_mixture():
  source = Source()
  source.part_names = ("task:only",)
  with pytest.raises(ValueError, match=r"'task:only'.*use a mixture_task"):
    Chooser(source, num_prompts=P, group_size=G, budget=None, domains=DOMAINS)
  source.num_shards = 2
  with pytest.raises(ValueError, match="one of 2 shares"):
    Chooser(source, num_prompts=P, group_size=G, budget=BUDGET, domains=None)


# Greedy baselines.


@pytest.mark.parametrize("host", [False, True])
def test_greedy_rewards_are_those_of_the_likeliest_responses(host):
  loop, state, _ = start(host=host, greedy_baseline=True)
  advance(loop, state)
  rollout, signals = loop._last
  found = np.asarray(signals.outcome["greedy_correct"])
  greedy = setup().sampling
  from rlvr.sampling import sample

  expected = jax.jit(
    lambda params: sample(
      params,
      CONFIG,
      rollout.prompts,
      KEY,
      sampling=dataclasses.replace(greedy, temperature=0.0),
      group_size=1,
    )
  )(PARAMS)
  prompts = np.asarray(rollout.prompts.tokens)[:, 0]
  want = right(prompts, np.asarray(expected.tokens)[:, 0])
  np.testing.assert_array_equal(found, np.repeat(want, G))
  must_fail(np.testing.assert_array_equal, found, np.repeat(~want, G))
  assert set(signals.verdicts) == {"correct"}


# Resumption.


@pytest.mark.parametrize("changes", [{"budget": BUDGET}, {"domains": DOMAINS}])
def test_what_was_learnt_goes_through_a_checkpoint(changes):
  loop, state, source = start(**changes)
  state, _, _ = advance(loop, state, times=4, drain=True)
  kept = json.loads(json.dumps(loop.host_state()))
  position, draws = source.position, list(source.part_draws)
  saved = jax.tree.map(jnp.copy, state)
  rest, _, _ = advance(loop, state, times=2)

  def resumed(host_state):
    loop, _, source = start(**changes)
    loop.restore(host_state)
    source.position, source.part_draws = position, list(draws)
    return advance(loop, jax.tree.map(jnp.copy, saved), times=2)[0]

  jax.tree.map(np.testing.assert_array_equal, resumed(kept).params, rest.params)
  # With other knowledge the run goes on with other groups or other prompts.
  others = [{}, {"domain_rewards": [1.0, 0.0]}, {"domain_rewards": [0.0, 1.0]}]
  assert any(distance(resumed(other), rest) > 0 for other in others)


def distance(a, b):
  """Returns the greatest difference of two states' parameters."""
  differences = jax.tree.map(
    lambda x, y: float(jnp.abs(x - y).max()), a.params, b.params
  )
  return max(jax.tree.leaves(differences))


# Sampling ahead.


def test_sampling_ahead_with_rounds_is_the_same_after_a_drain():
  # With a drain at each step nothing is sampled ahead: depth 1 is depth 0.
  found = []
  for depth in (0, 1):
    loop, state, _ = start(host=True, depth=depth, dynamic_sampling=DYNAMIC)
    state, _, _ = advance(loop, state, times=2, drain=True)
    found.append(state.params)
  tree_close(*found)
  loop, state, _ = start(host=True, depth=1, dynamic_sampling=DYNAMIC)
  state, metrics, _ = advance(loop, state, times=3)
  assert loop._ahead is not None
  assert metrics["dynamic/groups_kept"] == P


# Micro-batches by memory.


class Compiled(logging.Handler):
  """The names of the programs that are compiled while it is entered."""

  def __init__(self):
    super().__init__()
    self.names = []

  def emit(self, record):
    if found := re.match(r"Compiling jit\((\w+)\)", record.getMessage()):
      self.names.append(found[1])

  def of(self, *names):
    return [name for name in self.names if name in names]

  def __enter__(self):
    logging.getLogger("jax").addHandler(self)
    return self

  def __exit__(self, *_):
    logging.getLogger("jax").removeHandler(self)


@pytest.mark.parametrize("host", [False, True])
def test_micro_batches_by_memory(host):
  def first(**changes):
    loop, state, _ = start(host=host, **changes)
    return loop, *advance(loop, state)[:2]

  loop, state, metrics = first(micro_batches="auto", memory_budget_gb=1.0)
  assert metrics["update/micro_batches"] == 1
  assert 0 < metrics["update/planned_gib"] < 1
  assert loop.host_state()["micro_batches"] == 1
  # As the number given by hand.
  _, plain, plain_metrics = first()
  assert "update/micro_batches" not in plain_metrics
  tree_close(state.params, plain.params)
  with pytest.raises(ValueError, match="not even micro_batches=4 fits"):
    first(micro_batches="auto", memory_budget_gb=1e-6)
  # A run goes on with what it began with.
  loop, state, _ = start(host=host, micro_batches="auto", memory_budget_gb=2.0)
  loop.restore({"micro_batches": 2})
  _, metrics, _ = advance(loop, state)
  assert metrics["update/micro_batches"] == 2


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"host": True},
    {"dynamic_sampling": DYNAMIC},
    {"budget": KnapsackBudget(reward="correct", low=1, high=8)},
    {"host": True, "greedy_baseline": True},
  ],
)
def test_memory_is_asked_before_anything_runs(changes):
  auto = {"micro_batches": "auto", **changes}
  loop = settings(memory_budget_gb=1e-6, **auto).start(setup())
  with pytest.raises(ValueError, match=r"not even micro_batches=\d+ fits"):
    loop.fit()
  with jax.log_compiles(), Compiled() as compiled:
    made = setup()
    loop = settings(memory_budget_gb=1.0, **auto).start(made)
    loop.fit()
    assert made.source.position == 0
    fitted = compiled.of("fused_step", "score_and_update")
    assert len(fitted) == 1
    state = jax.device_put(fresh(loop), loop._place.state)
    _, metrics, _ = advance(loop, state, times=2)
    assert metrics["update/micro_batches"] == 1
    # The program that was measured is the one that ran.
    assert compiled.of("fused_step", "score_and_update") == fitted
    # Control: one that wasn't compiled before is seen.
    loop = settings(memory_budget_gb=1.0, **auto).start(setup())
    advance(loop, jax.device_put(fresh(loop), loop._place.state))
    assert len(compiled.of("fused_step", "score_and_update")) == 2


def test_a_verifier_that_takes_no_empty_batch_is_fitted_by_the_first(
  monkeypatch,
):
  def start(self, responses, *rest):
    assert responses, "no empty batch"
    return real(self, responses, *rest)

  real = HostVerifier.start
  monkeypatch.setattr(HostVerifier, "start", start)
  given = settings(host=True, micro_batches="auto", memory_budget_gb=1e-6)
  loop = given.start(setup())
  loop.fit()
  with pytest.raises(ValueError, match="not even micro_batches=4 fits"):
    advance(loop, fresh(loop))


def test_micro_batches_that_are_no_number():
  with pytest.raises(ValueError, match="micro_batches='many'"):
    settings(micro_batches="many")
