"""A configuration's step as shapes: what it takes and gives, without arrays.

Nothing is read but the gin configuration: a stand-in takes the vocabulary's
place (its ids name tokens inside the programs and change neither shapes nor
cost), and prompts have the lengths that the configuration states.
"""

import copy
import dataclasses
import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import gin
from rlvr import models, sharding, step
from rlvr.loops import Reinforcement, Setup
from rlvr.recipe import DeviceVerifier, Recipe
from rlvr.sampling import Sampling
from rlvr.train import train
from rlvr.types import Params, Prompts, Rollout, Signals, TrainState


class StandInVocabulary:
  """Ids of a vocabulary that isn't there; every text is one token."""

  pad_id = 0
  eos_id = 1

  def encode(self, text: str) -> list[int]:
    """Returns one id."""
    del text
    return [2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A reinforcement run's static part, from its configuration.

  recipe: of the step.
  prompt_length: S.
  answer_length: R.
  verifier: the device verifier, None where a host verifies.
  rewards: names of the outcome rewards that a host verifier gives.
  settings: the configured `train` arguments that were plain values.
  """

  recipe: Recipe
  prompt_length: int
  answer_length: int
  verifier: DeviceVerifier | None
  rewards: tuple[str, ...]
  settings: dict[str, Any]


def job_from_gin(rewards: tuple[str, ...] = ()) -> Job:
  """Returns the job that gin's present configuration describes.

  Args:
    rewards: names of the outcome rewards that the verifier gives; empty takes
      the name in its spec. For host verifiers, which aren't started here.

  Raises:
    ValueError: not a reinforcement run, or settings that contradict each other.
  """
  try:
    bound = gin.get_bindings("rlvr.train.train", resolve_references=False)
  except ValueError as error:  # no file has imported it
    raise ValueError(
      "the configuration has no run: give --gin_file=gin/runs/train.gin last,"
      " after one each of gin/models/, gin/tasks/ and gin/methods/"
    ) from error
  defaults = {
    name: p.default
    for name, p in inspect.signature(train).parameters.items()
    if p.default is not inspect.Parameter.empty
  }
  stand_ins = {"vocabulary", "task", "eval_verifier", "evaluation"}
  # A reference is called when it is copied: that of the vocabulary isn't.
  given = defaults | {
    name: copy.deepcopy(value)
    for name, value in bound.items()
    if name not in stand_ins
  }
  loop = given.get("loop")
  if not isinstance(loop, Reinforcement):
    raise ValueError(
      "the configuration runs no reinforcement learning (train.loop ="
      f" {loop!r}): give --gin_file=gin/runs/train.gin last"
    )
  needed = ("model", "prompt_length", "answer_length", "max_tokens")
  if missing := [name for name in needed if given.get(name) is None]:
    raise ValueError(
      f"the configuration doesn't say train.{missing[0]}: give one --gin_file"
      " each of gin/models/ and gin/tasks/"
    )
  for name in ("prompt_length", "answer_length"):
    if given[name] < 1:
      raise ValueError(f"train.{name}={given[name]} must be at least 1 token")
  vocabulary = StandInVocabulary()
  delimiters = given["step_delimiters"]
  names = {f.name for f in dataclasses.fields(Sampling)}
  same = {k: v for k, v in given.items() if k in names - {"rules"}}
  sampling = Sampling(
    **same
    | {
      "end_id": vocabulary.eos_id,
      "pad_id": vocabulary.pad_id,
      "rules": given["sampling_rules"],
      "unroll_layers": models.unroll_sampling("tpu", given["unroll_sampling"]),
      "step_delimiters": tuple(
        i for text in delimiters for i in vocabulary.encode(text)
      ),
    }
  )
  recipe = loop.recipe(
    Setup(
      # As on the slice, whatever this machine is.
      model=models.for_platform(given["model"], "tpu", given["attention"]),
      vocabulary=vocabulary,
      source=cast(Any, None),
      sampling=sampling,
      total_steps=given["total_steps"],
      answer_delimiter=given["answer_delimiter"],
      reference=None,
    )
  )
  on_device = loop.verifier.on_device
  return Job(
    recipe=recipe,
    prompt_length=given["prompt_length"],
    answer_length=given["answer_length"],
    verifier=loop.verifier.build(vocabulary) if on_device else None,
    rewards=rewards or (loop.verifier.name,),
    settings=given,
  )


def placement_of(job: Job, mesh: Mesh) -> sharding.Placement:
  """Returns where the run's arrays lie.

  Raises:
    ValueError: num_prompts doesn't divide over the mesh.
  """
  recipe, rules = job.recipe, job.settings["rules"]
  sharding.check_rows(recipe.num_prompts, "NUM_PROMPTS", mesh, rules)
  return sharding.placement(
    step.abstract_state(recipe), recipe.model, recipe.optimizer, mesh, rules
  )


def abstract_state(job: Job, place: sharding.Placement) -> TrainState:
  """Returns the run's state as shapes with their shardings."""
  return sharding.abstract(step.abstract_state(job.recipe), place.state)


def abstract_reference(job: Job, place: sharding.Placement) -> Params | None:
  """Returns the reference model's parameters as shapes, None if it has none."""
  # Adapters leave their base as the reference: there is no second copy.
  if not job.recipe.has_reference or job.recipe.model.lora is not None:
    return None
  params = models.abstract_params(job.recipe.model)
  return sharding.abstract(params, place.params)


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
  return jax.ShapeDtypeStruct(shape, dtype)


def _on_batch(tree: Any, place: sharding.Placement) -> Any:
  return sharding.abstract(tree, jax.tree.map(lambda _: place.batch, tree))


def abstract_prompts(job: Job, place: sharding.Placement) -> Prompts:
  """Returns a batch's prompts as shapes, cut over the mesh."""
  P, S, R = job.recipe.num_prompts, job.prompt_length, job.answer_length
  return _on_batch(
    Prompts(
      tokens=_array((P, S), jnp.int32),
      mask=_array((P, S), bool),
      answer_tokens=_array((P, R), jnp.int32),
      answer_mask=_array((P, R), bool),
    ),
    place,
  )


def abstract_rollout(job: Job, place: sharding.Placement) -> Rollout:
  """Returns a batch's responses as shapes, cut over the mesh."""
  B = job.recipe.num_prompts * job.recipe.group_size
  T = job.recipe.sampling.max_tokens
  rows = {
    "tokens": _array((B, T), jnp.int32),
    "completion_mask": _array((B, T), bool),
    "behavior_logprobs": _array((B, T), jnp.float32),
    "group": _array((B,), jnp.int32),
    "step_index": _array((B, T), jnp.int32),
    "finished": _array((B,), bool),
  }
  return Rollout(prompts=abstract_prompts(job, place), **_on_batch(rows, place))


def abstract_signals(job: Job, place: sharding.Placement) -> Signals:
  """Returns a batch's rewards as shapes, cut over the mesh."""
  B = job.recipe.num_prompts * job.recipe.group_size
  if (verifier := job.verifier) is not None:
    signals = jax.eval_shape(
      lambda rollout: verifier(rollout, jax.random.key(0)),
      abstract_rollout(job, place),
    )
  else:
    signals = Signals(
      outcome={name: _array((B,), jnp.float32) for name in job.rewards},
      verdicts={job.rewards[0]: _array((B,), jnp.int32)},
    )
  if job.recipe.greedy_baseline:
    greedy = {f"greedy_{k}": v for k, v in signals.outcome.items()}
    signals = dataclasses.replace(signals, outcome=signals.outcome | greedy)
  return _on_batch(signals, place)
