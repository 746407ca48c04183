"""The number of micro-batches that a memory budget allows.

    loops.Reinforcement.micro_batches = 'auto'
    loops.Reinforcement.memory_budget_gb = 12

Before a run begins the step is compiled for 1 micro-batch and measured by XLA's
own account; where that is over the budget the least number that fits is found by
bisection over the numbers that divide the batch. The program that fits is the
one that runs: it isn't compiled again. A resumed run takes the number that its
checkpoint holds.

The fewest pieces are not always the fastest ones: on CPUs smaller pieces stay in
the cache (there 4 to 16 pieces took less time than 1). The choice is about
memory; who wants the fastest sets a number and measures.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from rlvr.infra.program_memory import out_of_memory, program_bytes, size_text

AUTO = "auto"
# Of what a device reports, the rest is for fragmentation and other programs.
SHARE = 0.92
# Where a device reports nothing, as CPUs do.
CPU_BUDGET_GB = 4.0
_log = logging.getLogger(__name__)


def budget_bytes(device: jax.Device, memory_budget_gb: float | None) -> int:
  """Returns how many bytes a program may take on each device.

  Args:
    device: one of the run's.
    memory_budget_gb: GiB; None takes SHARE of what the device reports, or
      CPU_BUDGET_GB where it reports nothing.

  Raises:
    ValueError: the budget isn't positive.
  """
  if memory_budget_gb is not None:
    if not memory_budget_gb > 0:
      raise ValueError(
        f"memory_budget_gb={memory_budget_gb} must be positive: give GiB on each"
        " device, or None for what the device has"
      )
    return int(memory_budget_gb * 2**30)
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return int(CPU_BUDGET_GB * 2**30 if limit is None else SHARE * limit)


def counts_that_divide(
  *, rows: int, ways: int, responses_of_a_row: int = 1
) -> tuple[int, ...]:
  """Returns the numbers of micro-batches that an update can be cut into.

  Args:
    rows: prompts of an update; responses where groups are uneven.
    ways: devices over which a micro-batch is cut; where possible it divides.
    responses_of_a_row: group size, 1 where groups are uneven.
  """
  counts = [n for n in range(1, rows + 1) if rows % n == 0]
  even = [n for n in counts if rows // n % ways == 0]
  several = [n for n in counts if rows // n * responses_of_a_row % ways == 0]
  return tuple(even or several or counts)


class Fit(NamedTuple):
  """What was found.

  micro_batches: how many.
  program: for that number.
  tried: bytes by number; math.inf where the compiler itself gave up.
  """

  micro_batches: int
  program: Any
  tried: dict[int, float]


def fitting(
  make: Callable[[int], Any],
  args: Sequence[Any],
  counts: Sequence[int],
  budget: int,
) -> Fit:
  """Returns the program with the fewest micro-batches that fits.

  Memory must not grow with their number. Compiles at most 2 + log2 of the
  candidates.

  Args:
    make: number of micro-batches -> jitted function.
    args: what it will be called with.
    counts: candidates, ascending.
    budget: bytes on each device.

  Raises:
    ValueError: none fits; says what to change.
  """
  programs: dict[int, Any] = {}
  tried: dict[int, float] = {}

  def fits(count: int) -> bool:
    programs[count] = make(count)
    try:
      compiled = programs[count].lower(*args).compile()
      tried[count] = program_bytes(compiled)
    except jax.errors.JaxRuntimeError as error:
      if out_of_memory(error) is None:
        raise
      tried[count] = math.inf
    if tried[count] > budget:
      del programs[count]  # with what it holds
    return tried[count] <= budget

  low, high = 0, len(counts) - 1
  if fits(counts[0]):
    high = 0
  elif high == 0 or not fits(counts[high]):
    raise ValueError(
      f"not even micro_batches={counts[high]} fits:"
      f" {_text(tried[counts[high]])} on each device, where memory_budget_gb"
      f" allows {size_text(budget)}. Raise memory_budget_gb if the device has"
      " more, set ModelConfig.remat = True, lower NUM_PROMPTS, GROUP_SIZE or"
      " MAX_TOKENS, or give more devices to FSDP"
    )
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if fits(counts[middle]) else (middle, high)
  count = counts[high]
  _log.info(
    "micro_batches=%d takes %s of %s; tried: %s",
    count,
    _text(tried[count]),
    size_text(budget),
    {n: _text(size) for n, size in sorted(tried.items())},
  )
  return Fit(count, programs[count], tried)


def _text(size: float) -> str:
  return "more than there is" if math.isinf(size) else size_text(size)


class FittedProgram:
  """A jitted function whose micro-batches are chosen at `fit` or the first call.

  count: micro-batches; None before they are chosen. May be set before that, and
    is then taken as it is.
  metrics: what was chosen, empty before.
  """

  def __init__(
    self, make: Callable[[int], Any], counts: Sequence[int], budget: int
  ):
    self.count: int | None = None
    self.metrics: dict[str, float] = {}
    self._make, self._counts, self._budget = make, counts, budget
    self._program: Any = None

  def _chosen(self, args: Sequence[Any]) -> Any:
    if self._program is not None:
      return self._program
    if self.count is not None and self.count in self._counts:
      self._program = self._make(self.count)
      self.metrics = {"update/micro_batches": float(self.count)}
      return self._program
    found = fitting(self._make, args, self._counts, self._budget)
    self.count, self._program = found.micro_batches, found.program
    self.metrics = {
      "update/micro_batches": float(found.micro_batches),
      "update/planned_gib": found.tried[found.micro_batches] / 2**30,
    }
    return self._program

  def fit(self, *args: Any) -> None:
    """Chooses the micro-batches; shapes are enough.

    Raises:
      ValueError: none fits.
    """
    self._chosen(args)

  def __call__(self, *args: Any) -> Any:
    return self._chosen(args)(*args)

  def lower(self, *args: Any) -> Any:
    """Returns what `jax.jit(...).lower` does, of the program that runs."""
    return self._chosen(args).lower(*args)
