"""The shipped configurations of scale, gin/scale/*.gin, and how far they go.

Each is for one model and one slice, which its name says:
gin/scale/qwen2_5_7b_v5e_4x8.gin is gin/models/qwen2_5_7b.gin on v5e:4x8.
"""

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from rlvr import meshes, step
from rlvr.infra.abstract import Job, job_from_gin
from rlvr.infra.chips import (
  Chip,
  chip_of,
  compiler_version,
  topology_devices,
)
from rlvr.infra.program_memory import Memory
from rlvr.infra.programs import Report, compile_program
from rlvr.main import load_config
from rlvr.rewards.algebra import Transform

ROOT = pathlib.Path(__file__).resolve().parents[2]
_NAME = re.compile(r"(?P<model>\w+)_(?P<chip>v\d+[a-z]?)_(?P<size>\d+(x\d+)+)")


@dataclasses.dataclass(frozen=True)
class Shipped:
  """One file of gin/scale."""

  name: str  # the file's, without its ending
  model: str  # file in gin/models
  topology: str

  @property
  def files(self) -> list[str]:
    """The gin files of a run with it, GRPO on GSM8K."""
    parts = ("tasks/gsm8k", "methods/grpo", "runs/train")
    names = (f"models/{self.model}", *parts, f"scale/{self.name}")
    return [str(ROOT / "gin" / f"{name}.gin") for name in names]

  @property
  def chip(self) -> Chip:
    """Of the slice."""
    return chip_of(self.topology)


def shipped_of(name: str) -> Shipped:
  """Returns what a file's name says.

  Args:
    name: without folder and ending.

  Raises:
    ValueError: not MODEL_CHIP_SIZE.
  """
  if not (found := _NAME.fullmatch(name)):
    raise ValueError(
      f"gin/scale/{name}.gin: name it MODEL_CHIP_SIZE.gin, such as"
      " qwen2_5_7b_v5e_4x8.gin"
    )
  topology = f"{found['chip']}:{found['size']}"
  chip_of(topology)
  return Shipped(name, found["model"], topology)


def shipped(folder: pathlib.Path | None = None) -> list[Shipped]:
  """Returns all of gin/scale, by name.

  Args:
    folder: None for the repository's.
  """
  folder = folder or ROOT / "gin" / "scale"
  return sorted(
    (shipped_of(path.stem) for path in folder.glob("*.gin")),
    key=lambda one: one.name,
  )


def job_of(one: Shipped, bindings: Sequence[str] = ()) -> Job:
  """Returns the job of a shipped configuration; changes gin's.

  Args:
    one: from `shipped`.
    bindings: gin bindings over it.
  """
  load_config(one.files, bindings)
  return job_from_gin()


def _text(value: Any) -> str:
  """Returns a value as text that is the same in every process.

  Functions are given by their names, a chain by what its parts say of
  themselves. What is off (None, False, 0, empty) is left out of dataclasses, so
  that a new setting that is off changes nothing.
  """
  if isinstance(value, Transform):
    return _text(value.spec)
  fields: Any = getattr(value, "_fields", None)
  if dataclasses.is_dataclass(value):
    fields = [f.name for f in dataclasses.fields(value)]
  if fields is not None:
    given = {name: getattr(value, name) for name in sorted(fields)}
    inside = (f"{k}={_text(v)}" for k, v in given.items() if v)
    return f"{type(value).__name__}({', '.join(inside)})"
  if isinstance(value, Mapping):
    items = sorted((str(k), _text(v)) for k, v in value.items())
    return "{" + ", ".join(f"{k}: {v}" for k, v in items) + "}"
  if isinstance(value, (set, frozenset)):
    return f"{{{', '.join(sorted(map(_text, value)))}}}"
  if isinstance(value, (tuple, list)):
    return f"({', '.join(map(_text, value))})"
  if callable(value):
    return getattr(value, "__qualname__", type(value).__name__)
  return repr(value)


def digest(job: Job) -> str:
  """Returns 12 hexadecimal digits of what the job's programs depend on.

  The model's configuration, sampling, batch, objective, lengths, mesh and
  rules. Of the optimizer the state's shapes: its rates change no program's
  size. Not the number of steps, and not the code.

  Args:
    job: from `job_of`.
  """
  recipe, given = job.recipe, job.settings
  names = {f.name for f in dataclasses.fields(recipe)}
  state = jax.tree_util.tree_leaves_with_path(step.abstract_state(recipe))
  parts = {
    **{n: getattr(recipe, n) for n in names - {"optimizer", "total_steps"}},
    "state": [
      (jax.tree_util.keystr(path), x.shape, str(x.dtype)) for path, x in state
    ],
    **{n: given[n] for n in ("mesh", "rules")},
    "lengths": (job.prompt_length, job.answer_length),
    "rewards": job.rewards,
  }
  # As of the recipe: a new field that is off changes nothing.
  text = _text({name: value for name, value in parts.items() if value})
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def report_of(
  one: Shipped, program: str, bindings: Sequence[str] = ()
) -> Report:
  """Returns what a program of a shipped configuration takes.

  Args:
    one: from `shipped`.
    program: one of `rlvr.infra.programs.PROGRAMS`.
    bindings: gin bindings over it.
  """
  job = job_of(one, bindings)
  mesh = meshes.make_mesh(job.settings["mesh"], topology_devices(one.topology))
  return compile_program(job, mesh, one.chip, program)


def largest(
  fits: Callable[[int], bool], first: int, *, doublings: int = 6, guess: int = 1
) -> tuple[int, bool]:
  """Returns the largest of first · 2ⁿ that fits, and whether a larger may.

  Asks for two sizes where the guess is right, else goes on by one doubling at
  a time from there.

  Args:
    fits: whether a size does; none larger than one that doesn't.
    first: known to fit.
    doublings: n at the most.
    guess: n to begin with, from `doublings_left` say.
  """
  good, bad = 0, doublings + 1
  n = min(max(guess, 1), doublings)
  while bad - good > 1:
    if fits(first << n):
      good, n = n, n + 1
    else:
      bad, n = n, n - 1
  return first << good, good == doublings


def doublings_left(memory: Memory, program: str, chip: Chip) -> int:
  """Returns how often the batch can probably be doubled; 0 or more.

  From one compilation: parameters, their gradients, what stays and the code
  are taken as they are, the rest of the memory as the batch's.

  Args:
    memory: of a program that fits.
    program: which one.
    chip: its memory.
  """
  fixed = memory.arguments + memory.resident + memory.code
  if program == "update":  # arguments: parameters and two moments
    fixed += memory.arguments // 3
  batch = max(memory.total - fixed, 1)
  return int(math.log2(max((chip.usable_bytes - fixed) / batch, 1)))


def expected_bytes(totals: Mapping[int, int], size: int) -> float:
  """Returns what a size takes, on the line through the two nearest below it.

  An estimate, which was from a tenth too low to a fifth too high: what it rules
  out must be well beyond the memory. With one size known it's that one's.

  Args:
    totals: bytes by size, of what was compiled and fits.
    size: larger than one of them.
  """
  below = sorted(known for known in totals if known < size)[-2:]
  first, last = below[0], below[-1]
  if first == last:
    return totals[last]
  slope = (totals[last] - totals[first]) / (last - first)
  return totals[last] + slope * (size - last)


def piece_size(job: Job) -> int:
  """Returns the responses of a micro-batch."""
  recipe = job.recipe
  pieces = recipe.updates_per_batch * recipe.micro_batches
  return recipe.num_prompts * recipe.group_size // pieces


def figures(report: Report, chip: Chip) -> dict[str, Any]:
  """Returns a report's figures of one device as JSON has them."""
  share = report.model_flops_share(chip)
  memory = report.memory
  return {
    "compiler": compiler_version(),
    "fits": report.fits,
    "problem": report.problem,
    "memory": None
    if memory is None
    else dataclasses.asdict(memory) | {"total": memory.total},
    "flops": None if report.work is None else report.work.flops,
    "model_flops": report.model_flops,
    "compute_seconds": report.compute_seconds(chip),
    "collective_seconds": report.collective_seconds(chip),
    "model_flops_share": None if share is None else list(share),
  }
