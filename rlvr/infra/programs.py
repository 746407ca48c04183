"""The step's programs compiled for a topology, and what each of them takes."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlvr import meshes, sharding, step
from rlvr.infra import abstract
from rlvr.infra.abstract import Job
from rlvr.infra.chips import Chip
from rlvr.infra.hlo import Work, read_work
from rlvr.infra.model_flops import step_flops
from rlvr.infra.program_memory import (
  Memory,
  memory_of,
  out_of_memory,
  size_text,
)
from rlvr.sampling.slots import stages

PROGRAMS = ("sample", "score", "update", "fused")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What one program takes on one device of a topology.

  name: of the program.
  fits: whether it runs in the chip's memory beside the run's other arrays.
  problem: why it doesn't, "" if it does.
  memory: None where the compiler gave up.
  work: None where the compiler gave up, or jaxlib can't read its program.
  model_flops: by formula, a device's share.
  listed_flops: the compiler's count, in which a loop's body counts once.
  listed_bytes: moved between memory and core, by the compiler, likewise.
  compile_seconds: how long it took.
  """

  name: str
  fits: bool
  problem: str
  memory: Memory | None
  work: Work | None
  model_flops: float
  listed_flops: float
  listed_bytes: float
  compile_seconds: float

  def compute_seconds(self, chip: Chip) -> float | None:
    """Returns the compiler's estimate without collectives, None without one."""
    if self.work is None or not self.work.cycles:
      return None
    return self.work.cycles / chip.clock_hz

  def collective_seconds(self, chip: Chip) -> float | None:
    """Returns the least time of the collectives, over all of a chip's links."""
    if self.work is None:
      return None
    sent = sum(c.sent_bytes for c in self.work.collectives.values())
    return sent / chip.link_bandwidth

  def model_flops_share(self, chip: Chip) -> tuple[float, float] | None:
    """Returns the share of the peak that the model's own FLOPs come to.

    First with no collective behind computation, then with all of them.
    """
    compute = self.compute_seconds(chip)
    links = self.collective_seconds(chip)
    if compute is None or links is None:
      return None
    ideal = self.model_flops / chip.peak_flops
    return ideal / (compute + links), ideal / max(compute, links)


def bytes_per_device(tree: Any) -> int:
  """Returns the bytes that one device holds of arrays with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * _itemsize(x.dtype)
    for x in jax.tree.leaves(tree)
  )


def _itemsize(dtype: Any) -> int:
  if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return 8
  return jnp.dtype(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class _Program:
  """A function as `rlvr.running` jits it, and what it is called with."""

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  out_shardings: Any
  resident: Any = None  # the run's arrays that aren't among the arguments
  donated: tuple[int, ...] = ()


def _program(job: Job, place: sharding.Placement, name: str) -> _Program:
  recipe, verifier = job.recipe, job.verifier
  state = abstract.abstract_state(job, place)
  reference = abstract.abstract_reference(job, place)
  rollout = abstract.abstract_rollout(job, place)
  group = None if recipe.even_groups else rollout.group
  if name == "sample":

    def sample(params, prompts, key, index, group, first_id):
      drawn = step.sample_batch(
        recipe, params, prompts, key, index, group=group, first_id=first_id
      )
      if not recipe.greedy_baseline:
        return drawn, None
      return drawn, step.sample_greedy(recipe, params, prompts, key)

    return _Program(
      sample,
      (state.params, rollout.prompts, state.key, state.step, group, state.step),
      place.batch,
      resident=(state.opt_state, state.chain_state, reference),
    )
  if name == "fused":
    if verifier is None:
      raise ValueError(
        "the verifier runs on the host, so that there is no fused step: take"
        " `fused` out of --programs"
      )
    return _Program(
      lambda *args: step.fused_step(recipe, verifier, *args),
      (state, reference, rollout.prompts, group),
      (place.state, place.whole, place.batch, place.batch, None),
      donated=(0,),
    )
  arguments = (
    state,
    reference,
    rollout,
    abstract.abstract_signals(job, place),
  )
  if name == "score":
    return _Program(
      lambda *args: step.score_batch(recipe, *args), arguments, None
    )
  return _Program(
    lambda *args: step.score_and_update(recipe, *args),
    arguments,
    (place.state, place.whole, None),
    donated=(0,),
  )


def decode_turns(max_tokens: int) -> dict[int, int]:
  """Returns how often each loop of decoding runs, by its bound.

  Each goes on where the one with the shorter cache ended.

  Args:
    max_tokens: T.
  """
  bounds = stages(max_tokens)
  return {
    bound: bound - before for before, bound in itertools.pairwise([0, *bounds])
  }


def compile_program(job: Job, mesh: Mesh, chip: Chip, name: str) -> Report:
  """Returns what one program takes, by compiling it.

  Args:
    job: from `job_from_gin`.
    mesh: of the topology's devices.
    chip: of the topology.
    name: one of PROGRAMS.

  Raises:
    ValueError: no such program, or a batch that doesn't divide over the mesh.
    jax.errors.JaxRuntimeError: the compiler failed for another reason than
      memory.
  """
  if name not in PROGRAMS:
    raise ValueError(f"--programs: {name!r} is none of {', '.join(PROGRAMS)}")
  num_devices = mesh.devices.size
  model_flops = step_flops(job.recipe, prompt_length=job.prompt_length)[name]
  begin = time.perf_counter()
  place = abstract.placement_of(job, mesh)
  program = _program(job, place, name)
  resident = bytes_per_device(program.resident)
  lowered = (
    place.jit(
      program.function,
      donate_argnums=program.donated,
      out_shardings=program.out_shardings,
      # What the program takes and doesn't read lies in memory all the same.
      keep_unused=True,
    )
    .trace(*program.arguments)
    .lower(lowering_platforms=("tpu",))
  )
  memory = work = None
  flops = moved = float("nan")
  problem = ""
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    found = out_of_memory(error)
    if found is None:
      raise
    arguments = bytes_per_device(program.arguments)
    problem = (
      f"{found} The arguments take {size_text(arguments)} of it, the run's other"
      f" arrays {size_text(resident)} besides"
    )
  else:
    memory = memory_of(compiled, resident)
    if text := _text_of(compiled):
      work = read_work(
        text,
        num_devices=num_devices,
        turns=decode_turns(job.recipe.sampling.max_tokens),
      )
    costs = compiled.cost_analysis() or {}
    flops = costs.get("flops", flops)
    moved = costs.get("bytes accessed", moved)
    if memory.total > chip.usable_bytes:
      problem = (
        f"{size_text(memory.total)} in use where {size_text(chip.usable_bytes)} of"
        f" {chip.name}'s {size_text(chip.hbm_bytes)} can be used"
      )
  return Report(
    name=name,
    fits=not problem,
    problem=problem,
    memory=memory,
    work=work,
    model_flops=model_flops / num_devices,
    listed_flops=flops,
    listed_bytes=moved,
    compile_seconds=time.perf_counter() - begin,
  )


def _text_of(compiled: Any) -> str | None:
  """Returns the program's HLO, None where jaxlib can't read the compiler's."""
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    # libtpu is newer than jaxlib and writes collectives that the latter's
    # reader refuses (seen for v5p). What it takes in memory is known anyhow.
    if "RET_CHECK" not in str(error):
      raise
    return None


def compile_programs(
  job: Job,
  devices: Sequence[Any],
  chip: Chip,
  shape: meshes.MeshShape,
  names: Sequence[str],
) -> list[Report]:
  """Returns what each program takes, in the order of their names.

  Args:
    job: from `job_from_gin`.
    devices: of the topology.
    chip: theirs.
    shape: how they are laid out.
    names: of PROGRAMS.

  Raises:
    ValueError: as `compile_program`, or a mesh that doesn't cover the devices.
  """
  mesh = meshes.make_mesh(shape, devices)
  return [compile_program(job, mesh, chip, name) for name in names]
