"""The two kinds of training step, as a gin file sets them.

`Reinforcement` and `Supervised` hold the settings. `start` binds them to a
model, a vocabulary and a source of prompts and gives a loop of `rlvr.running`,
so that `rlvr.train` doesn't know which of the two it runs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from rlvr import sharding
from rlvr.advantages.importance import CORRECTIONS
from rlvr.data.sources import PromptSource
from rlvr.infra.memory_budget import AUTO, budget_bytes, counts_that_divide
from rlvr.infra.program_memory import size_text
from rlvr.meshes import ONE_DEVICE, RULES, Rules, make_mesh
from rlvr.models import ModelConfig
from rlvr.objectives.policy import likelihood
from rlvr.objectives.reductions import token_mean
from rlvr.objectives.terms import Term
from rlvr.packing import PACKING, Packing
from rlvr.probes.compute import ProbeSettings
from rlvr.recipe import Recipe, Reduction, names_in
from rlvr.rewards.algebra import Transform, describe, stateless
from rlvr.running import ReinforcementLoop
from rlvr.sampling import AS_TRAINED, Precision, Sampling
from rlvr.selection import DomainSampling, DynamicSampling, KnapsackBudget
from rlvr.supervised_loop import SupervisedLoop
from rlvr.types import Params
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
  mesh: Mesh | None = None  # None is one device
  rules: Rules = RULES


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reinforcement:
  """Sample, verify, score, update; see `rlvr.step.Recipe` for the sizes.

  depth: with a host verifier, how many batches sampling is ahead of the update:
    0 waits, 1 samples batch k+1 while batch k is verified (its responses then
    come from the parameters before update k, which the ratio to the stored
    sampling log-probs corrects).
  dynamic_sampling: draw further prompts in the place of groups whose rewards
    are all equal; None uses every batch as it comes.
  budget: share num_prompts · group_size responses out among the prompts by what
    they are worth; None gives each group_size.
  domains: share num_prompts out among a mixture's tasks by what they still have
    to teach; None keeps the mixture's weights.
  micro_batches: pieces of an update, see `Recipe`; "auto" takes the fewest that
    fit in memory, see `rlvr.infra.memory_budget`.
  memory_budget_gb: what "auto" may use of each device, GiB; None: most of what
    the device has.
  packing: how padding is left out, see `rlvr.packing`; None leaves none out.
  old_logprobs: what the ratio is taken against, see `Recipe`. None: "behavior"
    where the sampler's log-probs are the trainer's, which is in float32, else
    "recomputed"; see `chosen_old_logprobs`.
  greedy_baseline: sample and verify a greedy response to each prompt as well;
    its rewards are outcome rewards "greedy_<name>" of its group.
  precision: of the model that responses are sampled from; evaluations are of
    the policy as it is trained.
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
  micro_batches: int | str = 1
  memory_budget_gb: float | None = None
  packing: Packing | None = PACKING
  passes_per_batch: int = 1
  old_logprobs: str | None = None
  depth: int = 0
  start_token: str | None = None  # stands in for a prompt, for some probes
  self_reward_token: str | None = None
  dynamic_sampling: DynamicSampling | None = None
  budget: KnapsackBudget | None = None
  domains: DomainSampling | None = None
  greedy_baseline: bool = False
  precision: Precision = AS_TRAINED

  def __post_init__(self):
    if isinstance(self.micro_batches, str) and not self.fits_memory:
      raise ValueError(
        f"Reinforcement.micro_batches={self.micro_batches!r}: give a number, or"
        f" {AUTO!r}"
      )
    if (budget := self.memory_budget_gb) is not None:
      if not self.fits_memory:
        raise ValueError(
          f"Reinforcement.memory_budget_gb={budget} does nothing with"
          f" micro_batches={self.micro_batches}: set micro_batches={AUTO!r}, or"
          " memory_budget_gb to None"
        )
      if not 0 < budget < math.inf:
        raise ValueError(
          f"Reinforcement.memory_budget_gb={budget} must be positive: give GiB"
          " on each device, or None for most of what the device has"
        )
    if self.depth not in (0, 1):
      raise ValueError(f"Reinforcement.depth={self.depth}: give 0 or 1")
    if self.budget and self.dynamic_sampling:
      raise ValueError(
        "Reinforcement.dynamic_sampling replaces whole groups of group_size,"
        " `budget` makes groups of other sizes: set one of the two to None"
      )

  needs_targets = False

  @property
  def fits_memory(self) -> bool:
    """Whether the number of micro-batches is chosen from memory."""
    return self.micro_batches == AUTO

  def micro_batch_counts(self, ways: int) -> tuple[int, ...]:
    """Returns the numbers of micro-batches that an update can be cut into.

    Args:
      ways: devices over which a batch is cut.
    """
    even = self.budget is None
    rows = self.num_prompts if even else self.num_prompts * self.group_size
    return counts_that_divide(
      rows=rows // self.updates_per_batch,
      ways=ways,
      responses_of_a_row=self.group_size if even else 1,
    )

  @property
  def samples_ahead(self) -> bool:
    """Whether responses come from parameters of an update before."""
    fused = self.verifier.on_device and self.dynamic_sampling is None
    return self.depth > 0 and not fused

  def chosen_old_logprobs(self, model: ModelConfig, sampling: Sampling) -> str:
    """Returns what the ratio is taken against: what is set, else by precision.

    With fewer bits than float32 the sampler's log-probs are not those that the
    trainer gives the same tokens, and the ratio that is clipped would hold the
    difference (docs/precision.md has how much). What is sampled ahead needs the
    ratio to the policy that sampled, unless the chain weighs that.

    Args:
      model: as it is trained.
      sampling: with this loop's precision.
    """
    if self.old_logprobs is not None:
      return self.old_logprobs
    precision = sampling.precision
    differs = precision.differs(model)
    exact = model.compute_dtype == "float32" and not differs
    if exact or sampling.truncates:  # the latter is refused by `Recipe`
      return "behavior"
    weighed = names_in(self.chain) & CORRECTIONS
    if self.samples_ahead and not weighed:
      # A sampler that differs and isn't weighed is refused: for the weights.
      refused = differs and not precision.allow_uncorrected
      return "recomputed" if refused else "behavior"
    return "recomputed"

  def recipe(self, setup: Setup) -> Recipe:
    """Returns the static part of the step."""
    sampling = setup.sampling
    if self.precision != AS_TRAINED:
      sampling = dataclasses.replace(sampling, precision=self.precision)
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
      sampling=sampling,
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
      # Until the program is compiled, where memory decides.
      micro_batches=1 if self.fits_memory else int(self.micro_batches),
      packing=self.packing,
      passes_per_batch=self.passes_per_batch,
      old_logprobs=self.chosen_old_logprobs(setup.model, sampling),
      even_groups=self.budget is None,
      greedy_baseline=self.greedy_baseline,
    )

  def start(self, setup: Setup) -> "ReinforcementLoop":
    """Returns the running loop; makes the verifier."""
    return ReinforcementLoop(self, setup)

  def _counts_text(self, setup: Setup) -> str:
    mesh = make_mesh(ONE_DEVICE) if setup.mesh is None else setup.mesh
    counts = self.micro_batch_counts(sharding.ways("batch", mesh, setup.rules))
    budget = budget_bytes(mesh.local_devices[0], self.memory_budget_gb)
    return (
      f"the fewest of {', '.join(map(str, counts))} that fit in"
      f" {size_text(budget)} on each device, found when the run starts"
    )

  def plan(self, setup: Setup) -> dict[str, Any]:
    """Returns what a step does, for `--dry_run`."""
    recipe = self.recipe(setup)
    responses = self.num_prompts * self.group_size
    per_update = self.num_prompts // self.updates_per_batch
    where = "device (fused step)"
    if not self.verifier.on_device:
      where = f"host (split step, depth {self.depth})"
    each = f"{self.group_size} for each prompt"
    if self.budget is not None:
      each = f"{self.budget.low} to {self.budget.high} for a prompt, by budget"
    prompts = f"{self.num_prompts}"
    if (dynamic := self.dynamic_sampling) is not None:
      prompts += (
        f", drawn in 1 to {dynamic.max_rounds} rounds until {dynamic.reward!r}"
        " differs in each group"
      )
    if self.domains is not None:
      prompts += ", shared out among the tasks by their rewards"
    return {
      "prompts per step": prompts,
      "responses per step": f"{responses} ({each})",
      "response tokens per step": "at most"
      f" {responses * setup.sampling.max_tokens:,}"
      f" ({responses} x {setup.sampling.max_tokens})",
      "decoding": _decoding(recipe),
      **_precision(self.precision),
      "ratio against": _ratio(recipe, chosen=self.old_logprobs is None),
      "updates per step": f"{self.updates_per_batch * self.passes_per_batch},"
      f" each on {per_update} prompts ({per_update * self.group_size}"
      f" responses); each response is used {self.passes_per_batch}x",
      "micro-batches per update": self._counts_text(setup)
      if self.fits_memory
      else f"{recipe.micro_batches}, each of"
      f" {per_update // recipe.micro_batches} prompts"
      f" ({per_update // recipe.micro_batches * self.group_size} responses)",
      "padding": _padding(self.packing, setup.sampling.max_tokens),
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


def _precision(precision: Precision) -> dict[str, str]:
  if precision == AS_TRAINED:
    return {}
  asked = {k: v for k, v in vars(precision).items() if v}
  return {"sampled with": ", ".join(f"{k}={v}" for k, v in asked.items())}


def _decoding(recipe: Recipe) -> str:
  """Returns how responses decode, in words."""
  responses = recipe.num_prompts * recipe.group_size
  slots, unrolled = recipe.sampling.slots, recipe.sampling.unroll_layers
  if unrolled is None:
    unrolled = recipe.model.unroll_layers
  text = f"all {responses} responses at a time"
  if 0 < slots < responses:
    text = f"{slots} of {responses} responses at a time, in refilled slots"
  layers = "an operation for each layer" if unrolled else "a loop over layers"
  return f"{text}; {layers}"


def _padding(packing: Packing | None, max_tokens: int) -> str:
  """Returns what becomes of padding in score and update, in words."""
  if packing is None:
    return "computed like tokens (packing=None)"
  if -(-max_tokens // 2) < packing.shortest:
    return (
      f"computed like tokens: responses of fewer than {2 * packing.shortest}"
      " aren't packed"
    )
  return (
    "left out: responses are packed by length, in pieces of up to"
    f" {packing.lengths} lengths"
  )


def _ratio(recipe: Recipe, *, chosen: bool) -> str:
  """Returns what the ratio is taken against, in words."""
  if recipe.old_logprobs == "behavior":
    text = "the sampler's log-probs"
  elif recipe.own_old_logprobs:
    text = "the trainer's log-probs, those of the update itself"
  else:
    text = "the trainer's log-probs, by a pass before the first update"
  if not chosen:
    return f"{text} (old_logprobs={recipe.old_logprobs!r})"
  dtype = recipe.model.compute_dtype
  why = f"{dtype} throughout, the sampler's are the trainer's"
  if recipe.old_logprobs == "recomputed":
    why = f"the sampler's differ: {dtype} is trained"
    if recipe.sampling.precision.differs(recipe.model):
      why += ", and other numbers sampled with"
  elif dtype != "float32" or recipe.sampling.precision.differs(recipe.model):
    why = "responses are sampled ahead, and nothing else weighs that"
  return f"{text} ({why})"


def _params(term: Term) -> str:
  return ", ".join(f"{k}={v}" for k, v in term.params.items())


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
