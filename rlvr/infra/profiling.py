"""A trace of some steps, and what it says.

    trace = Trace(folder, range(3, 5))
    for step in ...:
      with trace.step(step):
        ...

The trace is read by TensorBoard's profile plugin (`*.xplane.pb`) and by Perfetto
(`*.trace.json.gz`). What is counted here are the operations that ran on each
device: how long it had at least one under way, the rest is idle, and which kinds
of operation took the time. Operations inside a loop are counted each time.
"""

import collections
import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

import jax

_NUMBER = re.compile(r"(\.\d+)+$")
_STEPS = re.compile(r"(\+?)(\d+)(?:-(\d+))?")


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation's run on a device.

  name: of the compiled program's instruction.
  module: the program.
  device: ordinal.
  start_ns: nanoseconds from the trace's start.
  duration_ns: nanoseconds.
  """

  name: str
  module: str
  device: int
  start_ns: float
  duration_ns: float

  @property
  def kind(self) -> str:
    """The instruction's name without its number."""
    return _NUMBER.sub("", self.name)


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a trace says.

  wall_s: seconds from the first operation's start to the last one's end.
  busy: share of that in which a device ran something, by device.
  kinds: (program, kind, runs, seconds), longest first; seconds add up over
    devices, and over operations that ran side by side.
  """

  wall_s: float
  busy: dict[int, float]
  kinds: list[tuple[str, str, int, float]]


def operations(folder: pathlib.Path) -> list[Operation]:
  """Returns the operations of the newest trace under a folder.

  Raises:
    ValueError: there is no trace.
  """
  files = sorted(folder.rglob("*.xplane.pb"))
  if not files:
    raise ValueError(f"{folder} holds no trace (*.xplane.pb)")
  newest = max(file.parent.name for file in files)  # named by its time
  found = []
  for file in (f for f in files if f.parent.name == newest):
    data = jax.profiler.ProfileData.from_file(str(file))
    for plane in data.planes:
      for line in plane.lines:
        for event in line.events:
          stats = dict(event.stats)
          if "hlo_op" in stats:
            found.append(
              Operation(
                name=str(stats["hlo_op"]),
                module=str(stats.get("hlo_module", "")),
                device=int(stats.get("device_ordinal", 0)),
                start_ns=event.start_ns,
                duration_ns=event.duration_ns,
              )
            )
  return found


def covered(intervals: Iterable[tuple[float, float]]) -> float:
  """Returns the length of the union of (start, end) intervals."""
  total, reached = 0.0, float("-inf")
  for start, end in sorted(intervals):
    total += max(0.0, end - max(start, reached))
    reached = max(reached, end)
  return total


def phase_seconds(
  found: Iterable[Operation], phases: Mapping[str, Mapping[str, str]]
) -> dict[str, float]:
  """Returns how long the devices were at each phase, a mean over them.

  Args:
    found: operations.
    phases: by program and instruction. One without a phase counts as "other",
      one of a program that isn't here as "other programs".
  """
  spans = collections.defaultdict(list)
  for op in found:
    phase = "other programs"
    if op.module in phases:
      phase = phases[op.module].get(op.name, "other")
    spans[phase, op.device].append((op.start_ns, op.start_ns + op.duration_ns))
  devices = len({device for _, device in spans})
  seconds: dict[str, float] = collections.defaultdict(float)
  for (phase, _), intervals in spans.items():
    seconds[phase] += covered(intervals) / 1e9 / devices
  return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def summarise(found: list[Operation]) -> Summary:
  """Returns what the operations of a trace come to.

  Raises:
    ValueError: there are none.
  """
  if not found:
    raise ValueError(
      "the trace holds no operation of a device: profile steps that run"
    )
  begin = min(op.start_ns for op in found)
  end = max(op.start_ns + op.duration_ns for op in found)
  wall = max(end - begin, 1.0)
  by_device = collections.defaultdict(list)
  runs: collections.Counter[tuple[str, str]] = collections.Counter()
  seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
  for op in found:
    interval = (op.start_ns, op.start_ns + op.duration_ns)
    by_device[op.device].append(interval)
    runs[op.module, op.kind] += 1
    seconds[op.module, op.kind] += op.duration_ns / 1e9
  return Summary(
    wall_s=wall / 1e9,
    busy={
      device: covered(intervals) / wall
      for device, intervals in sorted(by_device.items())
    },
    kinds=[
      (*key, runs[key], total)
      for key, total in sorted(seconds.items(), key=lambda item: -item[1])
    ],
  )


def parse_steps(text: str, total_steps: int, *, start: int = 0) -> range:
  """Returns the steps that a profile traces.

  Args:
    text: "10-12" or "10", by number; "+3-4" counts from the process's start.
    total_steps: of the run.
    start: steps that were done before this process.

  Returns:
    Empty, where a resumed run has them behind it.

  Raises:
    ValueError: another text, or steps that the run doesn't have.
  """
  found = _STEPS.fullmatch(text.strip())
  if not found:
    raise ValueError(
      f"profile_steps={text!r}: write FIRST-LAST such as 10-12, or +3-4 for the"
      " third and fourth step of this process"
    )
  counts_from_start, first_text, last_text = found.groups()
  first, last = int(first_text), int(last_text or first_text)
  if not 1 <= first <= last or last > total_steps:
    raise ValueError(
      f"profile_steps={text!r}: give steps between 1 and the run's last,"
      f" {total_steps}, the first one first"
    )
  if counts_from_start:
    first, last = first + start, last + start
  return range(max(first, start + 1), min(last, total_steps) + 1)


class Trace:
  """Traces some steps into a folder.

  A step is dispatched ahead of the one before being done, so that the loop has
  to wait for it before the trace begins and before it ends.
  """

  def __init__(self, folder: str | pathlib.Path, steps: range):
    """Notes what is wanted; nothing is written before the first of the steps.

    Args:
      folder: for the trace.
      steps: that are traced; the very first ones of a run compile.
    """
    self.folder = pathlib.Path(folder)
    self.steps = steps
    self._running = False

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Traces what is dispatched inside, if the step is one of the traced."""
    if step not in self.steps:
      yield
      return
    if not self._running:
      self.folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(str(self.folder))
      self._running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def borders(self, step: int) -> bool:
    """Whether what was dispatched must be done after this step."""
    return bool(self.steps) and step in (self.steps[0] - 1, self.steps[-1])

  def close(self) -> bool:
    """Ends the trace, which writes it; returns whether one was under way."""
    running, self._running = self._running, False
    if running:
      jax.profiler.stop_trace()
    return running
