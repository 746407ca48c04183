"""The two kinds of training step, as a run's loop calls them.

`Reinforcement` and `Supervised` hold what a gin file sets. `start` binds them
to a model, a vocabulary and a source of prompts and gives an object with

    advance(state, drain) -> (state, metrics, rows)

so that the loop in `rlvr.train` doesn't know which of the two it runs.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rlvr import step as step_lib
from rlvr.data.sources import Batch, PromptSource
from rlvr.evaluate import response_rows, verify_text
from rlvr.evaluation.credit_plot import plot_credit, trace_chain
from rlvr.models import ModelConfig
from rlvr.objectives.policy import likelihood
from rlvr.objectives.reductions import token_mean
from rlvr.objectives.terms import Term
from rlvr.probes.compute import ProbeSettings
from rlvr.recipe import Recipe, Reduction
from rlvr.rewards.algebra import Transform, describe, stateless
from rlvr.sampling import Sampling
from rlvr.types import (
  Params,
  Rollout,
  Signals,
  TrainState,
  scores_from_signals,
)
from rlvr.verifiers.exact import verdict_counts
from rlvr.verifiers.specs import VerifierSpec


class Setup(NamedTuple):
  """What a run has before its first step."""

  model: ModelConfig
  vocabulary: Any
  source: PromptSource
  sampling: Sampling
  total_steps: int
  answer_delimiter: str
  reference: Params | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reinforcement:
  """Sample, verify, score, update; see `rlvr.step.Recipe` for the sizes.

  depth: with a host verifier, how many batches sampling is ahead of the update:
    0 waits, 1 samples batch k+1 while batch k is verified (its responses then
    come from the parameters before update k, which the ratio to the stored
    sampling log-probs corrects).
  """

  num_prompts: int
  group_size: int
  chain: Transform
  terms: Sequence[Term]
  reduction: Reduction
  optimizer: optax.GradientTransformation
  verifier: VerifierSpec
  use_reference: bool = False
  updates_per_batch: int = 1
  micro_batches: int = 1
  passes_per_batch: int = 1
  old_logprobs: str = "behavior"
  depth: int = 0
  start_token: str | None = None  # stands in for a prompt, for some probes
  self_reward_token: str | None = None

  def __post_init__(self):
    if self.depth not in (0, 1):
      raise ValueError(f"Reinforcement.depth={self.depth}: give 0 or 1")

  needs_targets = False

  def recipe(self, setup: Setup) -> Recipe:
    """Returns the static part of the step."""
    encode = setup.vocabulary.encode
    eos = setup.vocabulary.eos_id

    def token(text, name):
      ids = encode(text)
      if len(ids) != 1:
        raise ValueError(
          f"Reinforcement.{name}={text!r} is {len(ids)} tokens of this"
          " vocabulary: give a text that is one token"
        )
      return ids[0]

    return Recipe(
      model=setup.model,
      sampling=setup.sampling,
      num_prompts=self.num_prompts,
      group_size=self.group_size,
      chain=self.chain,
      terms=tuple(self.terms),
      reduction=self.reduction,
      optimizer=self.optimizer,
      probe_settings=ProbeSettings(
        end_id=eos,
        answer_delimiter=tuple(encode(setup.answer_delimiter))
        if setup.answer_delimiter
        else (),
        start_id=eos
        if self.start_token is None
        else token(self.start_token, "start_token"),
        self_reward_id=None
        if self.self_reward_token is None
        else token(self.self_reward_token, "self_reward_token"),
      ),
      total_steps=setup.total_steps,
      has_reference=self.use_reference,
      updates_per_batch=self.updates_per_batch,
      micro_batches=self.micro_batches,
      passes_per_batch=self.passes_per_batch,
      old_logprobs=self.old_logprobs,
    )

  def start(self, setup: Setup) -> "ReinforcementLoop":
    """Returns the running loop; makes the verifier."""
    return ReinforcementLoop(self, setup)

  def plan(self, setup: Setup) -> dict[str, Any]:
    """Returns what a step does, for `--dry_run`."""
    recipe = self.recipe(setup)
    responses = self.num_prompts * self.group_size
    per_update = self.num_prompts // self.updates_per_batch
    where = "device (fused step)"
    if not self.verifier.on_device:
      where = f"host (split step, depth {self.depth})"
    return {
      "prompts per step": self.num_prompts,
      "responses per step": f"{responses} ({self.group_size} for each prompt)",
      "response tokens per step": "at most"
      f" {responses * setup.sampling.max_tokens:,}"
      f" ({responses} x {setup.sampling.max_tokens})",
      "updates per step": f"{self.updates_per_batch * self.passes_per_batch},"
      f" each on {per_update} prompts ({per_update * self.group_size}"
      f" responses); each response is used {self.passes_per_batch}x",
      "micro-batches per update": f"{self.micro_batches}, each of"
      f" {per_update // self.micro_batches} prompts"
      f" ({per_update // self.micro_batches * self.group_size} responses)",
      "verifier": where,
      "reference model": "yes" if self.use_reference else "no",
      "probes": ", ".join(sorted(recipe.required_probes)) or "none",
      "objective": " + ".join(
        f"{t.weight:g}*{t.name}({_params(t)})" for t in self.terms
      ),
      "reduction": getattr(self.reduction, "__name__", str(self.reduction)),
    }

  def text(self) -> str:
    """Returns the scoring chain's description."""
    return describe(self.chain)


def _params(term: Term) -> str:
  return ", ".join(f"{k}={v}" for k, v in term.params.items())


class ReinforcementLoop:
  """A `Reinforcement` in progress."""

  def __init__(self, settings: Reinforcement, setup: Setup):
    self.recipe = settings.recipe(setup)
    self._settings = settings
    self._setup = setup
    self._verifier = settings.verifier.build(setup.vocabulary)
    self._last: tuple[Rollout, Signals] | None = None
    self._ahead: tuple[Batch, Rollout, Any, float] | None = None
    recipe = self.recipe
    if settings.verifier.on_device:
      self._fused = jax.jit(
        lambda state, reference, prompts: step_lib.fused_step(
          recipe, self._verifier, state, reference, prompts
        ),
        donate_argnums=0,
      )
    else:
      self._sample = jax.jit(
        lambda params, prompts, key, step: step_lib.sample_batch(
          recipe, params, prompts, key, step
        )
      )
      self._update = jax.jit(
        lambda state, reference, rollout, signals: step_lib.score_and_update(
          recipe, state, reference, rollout, signals
        ),
        donate_argnums=0,
      )

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
    if self._settings.verifier.on_device:
      state, parts, times = self._advance_fused(state)
    else:
      state, parts, times = self._advance_split(state, drain)
    batch, metrics, rollout, signals, scores = parts
    self._last = rollout, signals
    metrics, rollout, signals, scores = jax.device_get(
      (metrics, rollout, signals, scores)
    )
    metrics = {k: float(v) for k, v in metrics.items()} | times
    metrics |= {k: float(v) for k, v in verdict_counts(signals).items()}
    rows = response_rows(
      self._setup.vocabulary,
      batch,
      jax.tree.map(
        lambda x: x[: self._settings.group_size],
        dataclasses.replace(rollout, prompts=None),
      ),
      signals,
      kind="train",
      advantages=scores.advantages,
    )
    return state, metrics, rows

  def _advance_fused(self, state):
    begin = time.perf_counter()
    batch = self._setup.source.next_batch(self._settings.num_prompts)
    ready = time.perf_counter()
    state, *rest = self._fused(state, self._setup.reference, batch.prompts)
    jax.block_until_ready(rest)
    done = time.perf_counter()
    times = {"time/data_s": ready - begin, "time/fused_step_s": done - ready}
    return state, (batch, *rest), times

  def _launch(self, params, key, step):
    """Samples a batch and hands it to the verifier."""
    begin = time.perf_counter()
    batch = self._setup.source.next_batch(self._settings.num_prompts)
    ready = time.perf_counter()
    rollout = self._sample(params, batch.prompts, key, np.int32(step))
    return batch, rollout, {"time/data_s": ready - begin}

  def _verify(self, batch, rollout):
    return verify_text(self._verifier, self._setup.vocabulary, rollout, batch)

  def _advance_split(self, state, drain):
    step, key = int(state.step), state.key
    begin = time.perf_counter()
    if self._ahead is None:
      batch, rollout, times = self._launch(state.params, key, step)
    else:
      batch, rollout, times = self._ahead
      self._ahead = None
    jax.block_until_ready(rollout)
    sampled = time.perf_counter()
    pending = self._verify(batch, rollout)
    if self._settings.depth and not drain:
      # The device samples batch k+1 while the workers verify batch k. It is
      # dispatched before the update, which donates these parameters.
      self._ahead = self._launch(state.params, key, step + 1)
    signals: Signals = pending.result()
    verified = time.perf_counter()
    state, *rest = self._update(state, self._setup.reference, rollout, signals)
    jax.block_until_ready(rest)
    done = time.perf_counter()
    metrics, scores = rest
    times = times | {
      "time/sample_s": sampled - begin,
      "time/verify_s": verified - sampled,
      "time/score_update_s": done - verified,
    }
    return state, (batch, metrics, rollout, signals, scores), times

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
    context = jax.jit(
      lambda state, reference, rollout: step_lib.scoring_context(
        self.recipe, state, reference, rollout
      )
    )(state, self._setup.reference, rollout)
    trace = trace_chain(
      self.recipe.chain,
      scores_from_signals(signals, rollout.tokens.shape[0]),
      state.chain_state,
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Supervised:
  """Maximum likelihood on the task's targets: a warm start."""

  num_prompts: int
  optimizer: optax.GradientTransformation
  reduction: Reduction = token_mean
  micro_batches: int = 1

  needs_targets = True
  use_reference = False

  def recipe(self, setup: Setup) -> Recipe:
    """Returns the static part of the step."""
    return Recipe(
      model=setup.model,
      sampling=dataclasses.replace(setup.sampling, temperature=1.0),
      num_prompts=self.num_prompts,
      group_size=1,
      chain=_no_chain(),
      terms=(likelihood(),),
      reduction=self.reduction,
      optimizer=self.optimizer,
      probe_settings=ProbeSettings(end_id=setup.vocabulary.eos_id),
      total_steps=setup.total_steps,
      has_reference=False,
      micro_batches=self.micro_batches,
    )

  def start(self, setup: Setup) -> "SupervisedLoop":
    """Returns the running loop."""
    return SupervisedLoop(self, setup)

  def plan(self, setup: Setup) -> dict[str, Any]:
    """Returns what a step does, for `--dry_run`."""
    self.recipe(setup)
    return {
      "examples per step": self.num_prompts,
      "target tokens per step": "at most"
      f" {self.num_prompts * setup.sampling.max_tokens:,}",
      "updates per step": 1,
      "micro-batches per update": self.micro_batches,
      "objective": "likelihood of the targets",
      "reduction": getattr(self.reduction, "__name__", str(self.reduction)),
    }

  def text(self) -> str:
    """Returns what stands in the place of a scoring chain."""
    return "supervised: no rewards"


def _no_chain() -> Transform:
  return stateless("supervised", lambda scores, _: scores, gives="advantages")


class SupervisedLoop:
  """A `Supervised` in progress."""

  def __init__(self, settings: Supervised, setup: Setup):
    self.recipe = settings.recipe(setup)
    self._settings = settings
    self._setup = setup
    recipe = self.recipe
    self._step = jax.jit(
      lambda state, prompts, targets, mask: step_lib.supervised_step(
        recipe, state, prompts, targets, mask
      ),
      donate_argnums=0,
    )

  def advance(
    self, state: TrainState, *, drain: bool
  ) -> tuple[TrainState, dict[str, float], list[dict[str, Any]]]:
    """Returns the state after one update, its metrics, and no responses."""
    del drain
    begin = time.perf_counter()
    batch = self._setup.source.next_batch(self._settings.num_prompts)
    ready = time.perf_counter()
    state, metrics = self._step(
      state, batch.prompts, batch.targets, batch.target_mask
    )
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    done = time.perf_counter()
    metrics |= {"time/data_s": ready - begin, "time/update_s": done - ready}
    return state, metrics, []

  def credit_page(self, state: TrainState) -> str:
    """Returns nothing: targets have no credit."""
    del state
    return ""

  def close(self) -> None:
    """Nothing to end."""
