"""The reinforcement loop in progress: what `rlvr.loops` describes, at work.

It and the supervised one (`rlvr.supervised_loop`) have

    dispatch(state, step, drain) -> (state, outcome)

which doesn't wait for the update: its figures come from the outcome, later.
A reinforcement loop goes through the step fused, where the verifier runs on the
device and every batch is used as it comes; or split, where a host verifies or
where groups that teach nothing are replaced by further ones (dynamic sampling).
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import sharding
from rlvr import step as step_lib
from rlvr.data.sources import Batch
from rlvr.evaluate import response_rows, verify_text
from rlvr.evaluation.credit_plot import plot_credit, trace_chain
from rlvr.infra import exchange
from rlvr.infra.costs import Recorded
from rlvr.infra.hosts import current
from rlvr.infra.memory_budget import FittedProgram, budget_bytes
from rlvr.outcome import Outcome
from rlvr.recipe import Noise, Recipe, batch_key
from rlvr.selection import Chooser, Rounds
from rlvr.shapes import fused_shapes, signals_of_nothing, update_shapes
from rlvr.types import (
  Array,
  Rollout,
  Signals,
  TrainState,
  scores_from_signals,
)
from rlvr.verifiers.exact import verdict_counts
from rlvr.verifiers.host import give_policy

if TYPE_CHECKING:
  from rlvr.loops import Reinforcement, Setup


class _Launched(NamedTuple):
  """Responses under way."""

  batch: Batch
  rollout: Rollout
  greedy: Rollout | None  # one for each prompt
  round: int  # of dynamic sampling
  seconds: float  # waited for data


class _Gathered(NamedTuple):
  """A batch that is ready for the update."""

  batch: Batch
  rollout: Rollout
  signals: Signals
  weights: Array | None
  metrics: dict[str, float]


class ReinforcementLoop:
  """A `Reinforcement` in progress."""

  def __init__(self, settings: "Reinforcement", setup: "Setup"):
    self.recipe = recipe = settings.recipe(setup)
    self._settings = settings
    self._setup = setup
    self._on_device = settings.verifier.on_device
    self._verifier = settings.verifier.build(setup.vocabulary)
    self._choose = Chooser(
      setup.source,
      num_prompts=settings.num_prompts,
      group_size=settings.group_size,
      budget=settings.budget,
      domains=settings.domains,
    )
    if settings.dynamic_sampling and setup.source.unit > 1:
      raise ValueError(
        "Reinforcement.dynamic_sampling would tear apart examples that belong"
        f" together (the task has units of {setup.source.unit}): set it to None"
      )
    self._last: tuple[Rollout, Signals] | None = None
    self._ahead: _Launched | None = None
    self._before: Outcome | None = None
    verifier = self._verifier
    self._fused = None
    self._by_memory: FittedProgram | None = None
    self._shapes: Callable[[], tuple[Any, ...] | None] = lambda: None
    self._place = place = placement_of(recipe, setup)
    state, params, rows, whole = (
      *(place.state, place.params, place.batch, place.whole),
    )
    reference = None if setup.reference is None else params
    group = None if recipe.even_groups else rows
    if self._on_device and settings.dynamic_sampling is None:

      def make_fused(recipe: Recipe) -> Any:
        def fused_step(state, reference, prompts, group):
          return step_lib.fused_step(
            recipe, verifier, state, reference, prompts, group
          )

        return place.jit(
          fused_step,
          donate_argnums=0,
          in_shardings=(state, reference, rows, group),
          out_shardings=(state, whole, rows, rows, None),
        )

      self._fused = Recorded(
        self._fitted(make_fused, lambda: fused_shapes(recipe, setup, place))
      )
      self.programs = {"fused_step": self._fused}
      return

    def sample(params, prompts, key, step, group, first_id):
      rollout = step_lib.sample_batch(
        recipe, params, prompts, key, step, group=group, first_id=first_id
      )
      greedy = None
      if recipe.greedy_baseline:
        greedy = step_lib.sample_greedy(recipe, params, prompts, key)
      return rollout, greedy

    def verify(rollout, key):
      with jax.named_scope("verify"):
        return verifier(rollout, key)

    def make_update(recipe: Recipe) -> Any:
      def score_and_update(state, reference, rollout, signals, weights):
        return step_lib.score_and_update(
          recipe, state, reference, rollout, signals, weights
        )

      return place.jit(
        score_and_update,
        donate_argnums=0,
        in_shardings=(state, reference, rows, rows, rows),
        out_shardings=(state, whole, None),
      )

    self._sample = Recorded(
      place.jit(
        sample,
        in_shardings=(params, rows, whole, whole, group, whole),
        out_shardings=rows,
      )
    )
    self._judge = Recorded(
      place.jit(verify, in_shardings=(rows, whole), out_shardings=rows)
    )
    self._join = place.jit(step_lib.with_greedy_signals, out_shardings=rows)
    self._update = Recorded(
      self._fitted(
        make_update,
        lambda: update_shapes(
          recipe,
          setup,
          place,
          sample,
          verify if self._on_device else signals_of_nothing(verifier),
          weighted=settings.dynamic_sampling is not None,
        ),
      )
    )
    self.programs = {
      "sample": self._sample,
      "verify": self._judge,
      "score_and_update": self._update,
    }

  def _fitted(
    self,
    make: Callable[[Recipe], Any],
    shapes: Callable[[], tuple[Any, ...] | None],
  ) -> Any:
    """Returns the program, for the micro-batches that memory allows.

    Args:
      make: recipe -> jitted function.
      shapes: () -> what it will be called with, as shapes; None if that is not
        known before the first batch.
    """
    if not self._settings.fits_memory:
      return make(self.recipe)
    mesh, rules = self._place.mesh, self._place.rules
    self._by_memory = FittedProgram(
      lambda count: make(dataclasses.replace(self.recipe, micro_batches=count)),
      self._settings.micro_batch_counts(sharding.ways("batch", mesh, rules)),
      budget_bytes(mesh.local_devices[0], self._settings.memory_budget_gb),
    )
    self._shapes = shapes
    return self._by_memory

  def fit(self) -> None:
    """Finds the micro-batches that memory allows, before anything runs.

    Nothing is done where their number is given, or already known; and where a
    host verifier doesn't say which rewards it gives without responses: then the
    first update finds it. Closes the loop where it raises.

    Raises:
      ValueError: none fits.
    """
    if self._by_memory is None or self._by_memory.count is not None:
      return
    try:
      if (shapes := self._shapes()) is not None:
        self._by_memory.fit(*shapes)
    except BaseException:
      self.close()
      raise

  def dispatch(
    self, state: TrainState, *, step: int, drain: bool
  ) -> tuple[TrainState, Outcome]:
    """Returns the state after one batch, under way, and what the batch gave.

    Args:
      state: donated.
      step: updates done before, `state.step` without asking the device.
      drain: don't sample ahead of this batch: the next one is then sampled
        from the new parameters. Set at every checkpoint, so that a resumed run
        does what the run without interruption did.
    """
    begin = time.perf_counter()
    if self._fused is not None:
      state, gathered, rest, times = self._dispatch_fused(state)
      phase, launched = "time/fused_step_s", begin + times["time/data_s"]
    else:
      state, gathered, rest, times = self._dispatch_split(state, step, drain)
      phase, launched = "time/score_update_s", times.pop("launched")
    self._last = gathered.rollout, gathered.signals
    # With several hosts, the exchange stands before the next step's programs.
    parts = exchange.begin_whole(
      (*rest, gathered.rollout, gathered.signals), self._place.whole
    )
    fetch = functools.cache(lambda: exchange.whole(parts))

    by_memory = {} if self._by_memory is None else self._by_memory.metrics

    def metrics():
      found, _, _, signals = fetch()
      return {
        **{k: float(v) for k, v in found.items()},
        **gathered.metrics,
        **by_memory,
        **{k: float(v) for k, v in verdict_counts(signals).items()},
      }

    def rows():
      _, scores, rollout, signals = fetch()
      shown = int((rollout.group == rollout.group[0]).sum())
      return response_rows(
        self._setup.vocabulary,
        gathered.batch,
        jax.tree.map(
          lambda x: x[:shown], dataclasses.replace(rollout, prompts=None)
        ),
        signals,
        kind="train",
        advantages=scores.advantages,
      )

    self._before = Outcome(
      begin=begin,
      times=times,
      phase=phase,
      launched=launched,
      waits_for=rest[0],
      metrics=metrics,
      rows=rows,
      before=self._before,
    )
    return state, self._before

  def _dispatch_fused(self, state):
    begin = time.perf_counter()
    batch = self._choose.next_batch()
    group = self._choose.group(batch)
    ready = time.perf_counter()
    state, metrics, rollout, signals, scores = self._fused(
      *(state, self._setup.reference, *self._put((batch.prompts, group)))
    )
    # Waits for the rewards, where the next batch is chosen by them.
    found = self._choose.observe(batch, rollout, signals)
    gathered = _Gathered(batch, rollout, signals, None, found)
    times = {"time/data_s": ready - begin}
    return state, gathered, (metrics, scores), times

  def _put(self, tree: Any) -> Any:
    return sharding.put_batch(tree, self._place.mesh, self._place.rules)

  def _launch(self, params, key, step: int, round_: int = 0) -> _Launched:
    """Starts sampling a batch, or a further round of one."""
    begin = time.perf_counter()
    batch = self._choose.next_batch()
    group = self._choose.group(batch)
    ready = time.perf_counter()
    first_id = round_ * self.recipe.num_prompts * self.recipe.group_size
    prompts, group = self._put((batch.prompts, group))
    rollout, greedy = self._sample(
      *(params, prompts, key, np.int32(step), group, np.int32(first_id))
    )
    return _Launched(batch, rollout, greedy, round_, ready - begin)

  def _verify(self, launched: _Launched, state: TrainState, step: int) -> Any:
    """Starts the verification; returns what has a `result`."""
    parts = [(launched.rollout, Noise.VERIFY)]
    if launched.greedy is not None:
      parts.append((launched.greedy, Noise.VERIFY_GREEDY))
    if not self._on_device:
      vocabulary = self._setup.vocabulary
      # Who asks the policy is done with these parameters when its signals are
      # there, which is before the update donates them.
      give_policy(self._verifier, state.params)
      pending = [
        verify_text(self._verifier, vocabulary, rollout, launched.batch)
        for rollout, _ in parts
      ]
      return _Pending(
        lambda: [p.result() for p in pending],
        lambda a, b: step_lib.with_greedy_signals(
          a,
          b,
          exchange.whole(launched.rollout.group),
        ),
      )

    key = exchange.whole(state.key)

    def judged(rollout, use):
      verify_key = batch_key(key, jnp.int32(step), use)
      if launched.round:
        verify_key = jax.random.fold_in(verify_key, launched.round)
      return self._judge(rollout, exchange.put(verify_key, self._place.whole))

    found = [judged(rollout, use) for rollout, use in parts]
    return _Pending(
      lambda: found, lambda a, b: self._join(a, b, launched.rollout.group)
    )

  def _gather(
    self, state, step: int, drain: bool, times: dict[str, float]
  ) -> _Gathered:
    """Samples and verifies until a batch is full; adds to the times."""
    key = state.key
    settings = self._settings
    dynamic = settings.dynamic_sampling
    rounds = None if dynamic is None else Rounds(dynamic)
    launched, self._ahead = self._ahead, None
    while True:
      begin = time.perf_counter()
      if launched is None:
        count = 0 if rounds is None else rounds.count
        launched = self._launch(state.params, key, step, count)
      current().at(f"step {step + 1}, sampling")
      if self._before is not None:
        # The device is at the update before until then.
        begin = max(begin, self._before.wait())
      jax.block_until_ready(launched.rollout)
      current().at(f"step {step + 1}, verifying")
      sampled = time.perf_counter()
      pending = self._verify(launched, state, step)
      if settings.depth and not drain and launched.round == 0:
        # The device samples batch k+1 while the workers verify batch k. It is
        # dispatched before the update, which donates these parameters.
        self._ahead = self._launch(state.params, key, step + 1)
      signals = jax.block_until_ready(pending.result())
      verified = time.perf_counter()
      times["time/data_s"] += launched.seconds
      times["time/sample_s"] += sampled - begin
      times["time/verify_s"] += verified - sampled
      batch, rollout = launched.batch, launched.rollout
      metrics = self._choose.observe(batch, rollout, signals)
      if rounds is None:
        return _Gathered(batch, rollout, signals, None, metrics)
      if current().several:
        # What is kept is decided on each host, from all that was drawn.
        rollout, signals = exchange.whole((rollout, signals))
      rounds.add(batch, rollout, signals)
      if rounds.full or rounds.count == rounds.settings.max_rounds:
        held, batch, weights, found = rounds.result()
        return _Gathered(
          batch, held.rollout, held.signals, weights, metrics | found
        )
      launched = None

  def _dispatch_split(self, state, step: int, drain: bool):
    times = {"time/data_s": 0.0, "time/sample_s": 0.0, "time/verify_s": 0.0}
    gathered = self._gather(state, step, drain, times)
    times["launched"] = time.perf_counter()
    # Rounds of dynamic sampling, and signals from the host, lie elsewhere.
    current().at(f"step {step + 1}, updating")
    batch = self._put((gathered.rollout, gathered.signals, gathered.weights))
    state, *rest = self._update(state, self._setup.reference, *batch)
    return state, gathered, rest, times

  def host_state(self) -> dict[str, Any]:
    """Returns what the loop knows besides the state, for the checkpoint."""
    found = self._choose.host_state()
    if self._by_memory is not None and self._by_memory.count is not None:
      found["micro_batches"] = self._by_memory.count
    return found

  def restore(self, host_state: dict[str, Any]) -> None:
    """Takes back what `host_state` gave."""
    host_state = dict(host_state)
    count = host_state.pop("micro_batches", None)
    if self._by_memory is not None:
      self._by_memory.count = count
    self._choose.restore(host_state)

  def credit_page(self, state: TrainState) -> str:
    """Returns HTML: a response of the last batch, coloured by its credit.

    The response is one whose advantage is greatest, up or down, so that it
    comes from a group that differs.

    Args:
      state: whose policy and chain state are shown; not changed.
    """
    if self._last is None:
      return ""
    rollout, signals = self._last
    context = self._place.jit(
      lambda state, reference, rollout: step_lib.scoring_context(
        self.recipe, state, reference, rollout
      )
    )(state, self._setup.reference, self._put(rollout))
    chain_state = state.chain_state
    if current().several:
      rollout, signals, chain_state, context = exchange.whole(
        (rollout, signals, chain_state, context)
      )
    trace = trace_chain(
      self.recipe.chain,
      scores_from_signals(signals, rollout.tokens.shape[0]),
      chain_state,
      context,
    )
    advantages = np.asarray(trace[-1].scores.advantages)
    response = int(np.abs(advantages).max(-1).argmax())
    length = int(rollout.lengths[response])
    decode = self._setup.vocabulary.decode
    end = self._setup.vocabulary.eos_id
    texts = [
      "⏎" if int(token) == end else decode([int(token)])
      for token in np.asarray(rollout.tokens)[response, :length]
    ]
    return plot_credit(texts, trace, rollout, response=response)

  def close(self) -> None:
    """Ends the verifier's processes."""
    if hasattr(self._verifier, "close"):
      self._verifier.close()


def placement_of(recipe: Recipe, setup: "Setup") -> sharding.Placement:
  """Returns where the run's arrays lie.

  Raises:
    ValueError: the mesh doesn't cut the prompts evenly.
  """
  place = sharding.placement(
    step_lib.abstract_state(recipe),
    *(recipe.model, recipe.optimizer, setup.mesh, setup.rules),
  )
  sharding.check_rows(
    recipe.num_prompts, "NUM_PROMPTS", place.mesh, place.rules
  )
  return place


class _Pending:
  """Signals of the samples and, where there are any, of greedy responses."""

  def __init__(self, wait, join):
    self._wait, self._join = wait, join

  def result(self) -> Signals:
    first, *greedy = self._wait()
    return self._join(first, *greedy) if greedy else first
