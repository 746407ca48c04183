"""The two loops in progress: what `rlvr.loops` describes, at work.

Both have

    advance(state, drain) -> (state, metrics, rows)

A reinforcement loop goes through the step fused, where the verifier runs on the
device and every batch is used as it comes; or split, where a host verifies or
where groups that teach nothing are replaced by further ones (dynamic sampling).
"""

import dataclasses
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
from rlvr.infra.hosts import current
from rlvr.infra.memory_budget import FittedProgram, budget_bytes
from rlvr.recipe import Noise, Recipe, batch_key
from rlvr.selection import Chooser, Rounds
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
  from rlvr.loops import Reinforcement, Setup, Supervised


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
    verifier = self._verifier
    self._fused = None
    self._by_memory: FittedProgram | None = None
    self._place = place = _placement(recipe, setup)
    state, params, rows, whole = (
      *(place.state, place.params, place.batch, place.whole),
    )
    reference = None if setup.reference is None else params
    group = None if recipe.even_groups else rows
    if self._on_device and settings.dynamic_sampling is None:
      self._fused = self._fitted(
        lambda recipe: place.jit(
          lambda state, reference, prompts, group: step_lib.fused_step(
            recipe, verifier, state, reference, prompts, group
          ),
          donate_argnums=0,
          in_shardings=(state, reference, rows, group),
          out_shardings=(state, whole, rows, rows, None),
        )
      )
      return

    def sample(params, prompts, key, step, group, first_id):
      rollout = step_lib.sample_batch(
        recipe, params, prompts, key, step, group=group, first_id=first_id
      )
      greedy = None
      if recipe.greedy_baseline:
        greedy = step_lib.sample_greedy(recipe, params, prompts, key)
      return rollout, greedy

    self._sample = place.jit(
      sample,
      in_shardings=(params, rows, whole, whole, group, whole),
      out_shardings=rows,
    )
    self._judge = place.jit(
      lambda rollout, key: verifier(rollout, key),
      in_shardings=(rows, whole),
      out_shardings=rows,
    )
    self._join = place.jit(step_lib.with_greedy_signals, out_shardings=rows)
    self._update = self._fitted(
      lambda recipe: place.jit(
        lambda state, reference, rollout, signals, weights: (
          step_lib.score_and_update(
            recipe, state, reference, rollout, signals, weights
          )
        ),
        donate_argnums=0,
        in_shardings=(state, reference, rows, rows, rows),
        out_shardings=(state, whole, None),
      )
    )

  def _fitted(self, make: Callable[[Recipe], Any]) -> Any:
    """Returns the program, for the micro-batches that memory allows."""
    if not self._settings.fits_memory:
      return make(self.recipe)
    mesh, rules = self._place.mesh, self._place.rules
    self._by_memory = FittedProgram(
      lambda count: make(dataclasses.replace(self.recipe, micro_batches=count)),
      self._settings.micro_batch_counts(sharding.ways("batch", mesh, rules)),
      budget_bytes(mesh.local_devices[0], self._settings.memory_budget_gb),
    )
    return self._by_memory

  def advance(
    self, state: TrainState, *, drain: bool
  ) -> tuple[TrainState, dict[str, float], list[dict[str, Any]]]:
    """Returns the state after one batch, its metrics, and its responses.

    Args:
      state: donated.
      drain: don't sample ahead of this batch: the next one is then sampled
        from the new parameters. Set at every checkpoint, so that a resumed run
        does what the run without interruption did.
    """
    if self._fused is not None:
      state, parts, times = self._advance_fused(state)
    else:
      state, parts, times = self._advance_split(state, drain)
    gathered, metrics, scores = parts
    self._last = gathered.rollout, gathered.signals
    metrics, rollout, signals, scores = exchange.whole(
      (metrics, gathered.rollout, gathered.signals, scores)
    )
    metrics = {k: float(v) for k, v in metrics.items()}
    metrics |= gathered.metrics | times
    if self._by_memory is not None:
      metrics |= self._by_memory.metrics
    metrics |= {k: float(v) for k, v in verdict_counts(signals).items()}
    shown = int((rollout.group == rollout.group[0]).sum())
    rows = response_rows(
      self._setup.vocabulary,
      gathered.batch,
      jax.tree.map(
        lambda x: x[:shown], dataclasses.replace(rollout, prompts=None)
      ),
      signals,
      kind="train",
      advantages=scores.advantages,
    )
    return state, metrics, rows

  def _advance_fused(self, state):
    begin = time.perf_counter()
    batch = self._choose.next_batch()
    group = self._choose.group(batch)
    ready = time.perf_counter()
    state, metrics, rollout, signals, scores = self._fused(
      *(state, self._setup.reference, *self._put((batch.prompts, group)))
    )
    jax.block_until_ready(metrics)
    done = time.perf_counter()
    found = self._choose.observe(batch, rollout, signals)
    gathered = _Gathered(batch, rollout, signals, None, found)
    times = {"time/data_s": ready - begin, "time/fused_step_s": done - ready}
    return state, (gathered, metrics, scores), times

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

  def _verify(self, launched: _Launched, state: TrainState) -> Any:
    """Starts the verification; returns what has a `result`."""
    step, key = int(state.step), exchange.whole(state.key)
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

    def judged(rollout, use):
      verify_key = batch_key(key, jnp.int32(step), use)
      if launched.round:
        verify_key = jax.random.fold_in(verify_key, launched.round)
      return self._judge(rollout, exchange.put(verify_key, self._place.whole))

    found = [judged(rollout, use) for rollout, use in parts]
    return _Pending(
      lambda: found, lambda a, b: self._join(a, b, launched.rollout.group)
    )

  def _gather(self, state, drain: bool, times: dict[str, float]) -> _Gathered:
    """Samples and verifies until a batch is full; adds to the times."""
    step, key = int(state.step), state.key
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
      jax.block_until_ready(launched.rollout)
      current().at(f"step {step + 1}, verifying")
      sampled = time.perf_counter()
      pending = self._verify(launched, state)
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

  def _advance_split(self, state, drain):
    times = {"time/data_s": 0.0, "time/sample_s": 0.0, "time/verify_s": 0.0}
    gathered = self._gather(state, drain, times)
    begin = time.perf_counter()
    # Rounds of dynamic sampling, and signals from the host, lie elsewhere.
    current().at(f"step {int(state.step) + 1}, updating")
    batch = self._put((gathered.rollout, gathered.signals, gathered.weights))
    state, *rest = self._update(state, self._setup.reference, *batch)
    jax.block_until_ready(rest)
    times["time/score_update_s"] = time.perf_counter() - begin
    return state, (gathered, *rest), times

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


def _placement(recipe: Recipe, setup: "Setup") -> sharding.Placement:
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


class SupervisedLoop:
  """A `Supervised` in progress."""

  def __init__(self, settings: "Supervised", setup: "Setup"):
    self.recipe = settings.recipe(setup)
    self._settings = settings
    self._setup = setup
    recipe = self.recipe
    self._place = place = _placement(recipe, setup)
    rows = place.batch
    self._step = place.jit(
      lambda state, prompts, targets, mask: step_lib.supervised_step(
        recipe, state, prompts, targets, mask
      ),
      donate_argnums=0,
      in_shardings=(place.state, rows, rows, rows),
      out_shardings=(place.state, place.whole),
    )

  def advance(
    self, state: TrainState, *, drain: bool
  ) -> tuple[TrainState, dict[str, float], list[dict[str, Any]]]:
    """Returns the state after one update, its metrics, and no responses."""
    del drain
    begin = time.perf_counter()
    batch = self._setup.source.next_batch(self._settings.num_prompts)
    ready = time.perf_counter()
    rows = (batch.prompts, batch.targets, batch.target_mask)
    place = self._place
    state, metrics = self._step(
      state, *sharding.put_batch(rows, place.mesh, place.rules)
    )
    metrics = {k: float(v) for k, v in exchange.whole(metrics).items()}
    done = time.perf_counter()
    metrics |= {"time/data_s": ready - begin, "time/update_s": done - ready}
    return state, metrics, []

  def credit_page(self, state: TrainState) -> str:
    """Returns nothing: targets have no credit."""
    del state
    return ""

  def host_state(self) -> dict[str, Any]:
    """Returns nothing: there is nothing besides the state."""
    return {}

  def restore(self, host_state: dict[str, Any]) -> None:
    """Takes nothing back."""
    del host_state

  def close(self) -> None:
    """Nothing to end."""
