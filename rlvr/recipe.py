"""What a step is made of: everything static, checked when it is put together."""

import dataclasses
import enum
from collections.abc import Callable

import jax
import optax

from rlvr import models
from rlvr.advantages.importance import CORRECTIONS
from rlvr.objectives.terms import Statistic, Term
from rlvr.packing import PACKING, Packing
from rlvr.probes.compute import PROBES, ProbeSettings, check_probes
from rlvr.rewards.algebra import Transform
from rlvr.sampling import Sampling
from rlvr.types import Array, Rollout, Signals

Reduction = Callable[[Array, Array], Array]
DeviceVerifier = Callable[[Rollout, Array], Signals]


class Noise(enum.IntEnum):
  """What a batch's key is used for; each use has noise of its own."""

  SAMPLE = 0
  VERIFY = 1
  SCORE = 2
  UPDATE = 3
  VERIFY_GREEDY = 4


def batch_key(key: Array, step: Array, use: Noise) -> Array:
  """Returns the PRNG key of one use in batch `step` of a run.

  Args:
    key: the run's key.
    step: int32 [], index of the batch.
    use: what for.
  """
  return jax.random.fold_in(jax.random.fold_in(key, step), int(use))


def names_in(chain: Transform) -> frozenset[str]:
  """Returns the names of a transform and of all those inside it."""
  inside = (names_in(part) for part in chain.spec.parts)
  return frozenset({chain.spec.name}).union(*inside)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
  """Everything static that a step is made of.

  Batch sizes, in words: a batch has `num_prompts` prompts with `group_size`
  responses each. It is used for `updates_per_batch` optimizer updates, each on
  num_prompts / updates_per_batch prompts with all of their responses, computed
  in `micro_batches` pieces (which changes memory, not the result); and all of
  this `passes_per_batch` times over, each time in another order.

  With `even_groups` False the same num_prompts · group_size responses are
  shared out among the prompts unevenly (a budget), and an update has
  num_prompts · group_size / updates_per_batch responses.

  Raises:
    ValueError: settings that contradict each other, with the fix.
  """

  model: models.ModelConfig
  sampling: Sampling
  num_prompts: int
  group_size: int
  chain: Transform
  terms: tuple[Term, ...]
  reduction: Reduction
  optimizer: optax.GradientTransformation
  probe_settings: ProbeSettings
  total_steps: int
  has_reference: bool
  updates_per_batch: int = 1
  micro_batches: int = 1
  passes_per_batch: int = 1
  # What the ratio π/π_old is taken against: the sampler's log-probs (nothing is
  # computed for them; they are the trainer's where both compute in float32 and
  # all of the distribution is sampled from; with fewer bits the ratio holds the
  # difference), or the trainer's own before the first update, see
  # `own_old_logprobs`. `loops.Reinforcement` chooses by precision.
  old_logprobs: str = "behavior"
  even_groups: bool = True
  # Whether a greedy response to each prompt is sampled and verified as well:
  # its rewards are outcome rewards "greedy_<name>" of all its group.
  greedy_baseline: bool = False
  # How score and update leave padding out; None computes all of [B, T].
  packing: Packing | None = PACKING

  def __post_init__(self):
    pieces = self.updates_per_batch * self.micro_batches
    for name in (
      "num_prompts",
      "group_size",
      "updates_per_batch",
      "micro_batches",
      "passes_per_batch",
      "total_steps",
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if not self.even_groups:
      responses = self.num_prompts * self.group_size
      if responses % pieces:
        raise ValueError(
          f"num_prompts * group_size = {responses} responses can't be cut into"
          f" updates_per_batch={self.updates_per_batch} times micro_batches="
          f"{self.micro_batches} equal pieces: make them a multiple"
        )
    elif self.num_prompts % pieces:
      raise ValueError(
        f"num_prompts={self.num_prompts} can't be cut into updates_per_batch="
        f"{self.updates_per_batch} times micro_batches={self.micro_batches}"
        " equal pieces: make it a multiple of their product"
      )
    if self.old_logprobs not in ("behavior", "recomputed"):
      raise ValueError(
        f"old_logprobs={self.old_logprobs!r}: give 'behavior' or 'recomputed'"
      )
    if self.old_logprobs == "behavior" and self.sampling.truncates:
      raise ValueError(
        "top_k, top_p, min_p or temperature 0 change the distribution that is"
        " sampled from, so that π/π_behavior is no ratio of policies: set"
        " old_logprobs = 'recomputed', or sample from the whole distribution"
      )
    self._check_precision()
    if self.chain.spec.gives != "advantages":
      last = (self.chain, *self.chain.spec.parts)[-1]
      raise ValueError(
        f"the chain ends with {last.spec.name!r}, which"
        " gives rewards: end it with an advantage estimator"
      )
    if not self.terms:
      raise ValueError("the objective has no terms: give `terms`")
    check_probes(
      self.required_probes,
      self.probe_settings,
      has_reference=self.has_reference,
      has_values=self.model.value_head,
    )
    for term in self.terms:
      if with_reference := {n for n in term.passes if n.startswith("ref_")}:
        raise ValueError(
          f"term {term.name!r}: passes {sorted(with_reference)} are the"
          " reference model's, which isn't trained: put them in `requires`"
        )
      check_probes(
        term.passes,
        self.probe_settings,
        has_reference=False,
        has_values=self.model.value_head,
      )
    _ = self.statistics

  def _check_precision(self):
    """Checks that what a sampler of other numbers draws is weighed."""
    precision = self.sampling.precision
    if precision.allow_uncorrected or not precision.differs(self.model):
      return
    what = (
      f"Sampling.precision draws with other numbers than are trained"
      f" (compute_dtype={precision.compute_dtype!r}, weights="
      f"{precision.weights!r}, cache={precision.cache!r})"
    )
    anyway = "Precision.allow_uncorrected=True runs without, to show the bias"
    if self.old_logprobs != "recomputed":
      raise ValueError(
        f"{what}, so that old_logprobs={self.old_logprobs!r} would put the"
        " sampler's error into the ratio that is clipped: set old_logprobs ="
        f" 'recomputed'. {anyway}"
      )
    if not names_in(self.chain) & CORRECTIONS:
      raise ValueError(
        f"{what}, and nothing in the chain corrects that: put"
        " truncated_importance_sampling (or masked_) behind the advantage"
        " estimator, as in gin/methods/importance_sampling.gin."
        f" {anyway}"
      )

  @property
  def statistics(self) -> dict[str, Statistic]:
    """The functions of the logits that the terms ask for, by name.

    Raises:
      ValueError: two terms use one name for two things, or a probe's name.
    """
    out: dict[str, Statistic] = {}
    for term in self.terms:
      for name, function in term.statistics.items():
        if name in PROBES or out.setdefault(name, function) is not function:
          raise ValueError(
            f"term {term.name!r}: the statistic {name!r} has the name of a"
            " probe or of another term's: rename it"
          )
    return out

  @property
  def required_probes(self) -> frozenset[str]:
    """The union of what the chain, the terms and the ratio ask for."""
    names = self.chain.requires.union(*(t.requires for t in self.terms))
    if self.old_logprobs == "recomputed" and not self.own_old_logprobs:
      names |= {"logprobs"}
    return names

  @property
  def own_old_logprobs(self) -> bool:
    """Whether π_old is what an update itself computes, without another pass.

    The parameters of a batch's only update are those before it.
    """
    once = self.updates_per_batch * self.passes_per_batch == 1
    return self.old_logprobs == "recomputed" and once
