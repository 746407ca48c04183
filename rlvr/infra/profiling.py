"""A trace of some steps, and what it says in a table.

    with Profile(folder, first_step=3, num_steps=2) as profile:
      for step in ...:
        with profile.step(step):
          ...

The trace is read by TensorBoard's profile plugin (`*.xplane.pb`) and by Perfetto
(`*.trace.json.gz`). The table counts the operations that ran on each device:
how long it had at least one under way, the rest is idle, and which kinds of
operation took the time. Operations inside a loop are counted each time.
"""

import collections
import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

_NUMBER = re.compile(r"(\.\d+)+$")


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
  """Returns the operations of all traces under a folder.

  Raises:
    ValueError: there is no trace.
  """
  files = sorted(folder.rglob("*.xplane.pb"))
  if not files:
    raise ValueError(f"{folder} holds no trace (*.xplane.pb)")
  found = []
  for file in files:
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


def table(
  summary: Summary,
  phases: Mapping[str, float],
  costs: Mapping[str, Mapping[str, float]],
  *,
  top: int = 20,
) -> str:
  """Returns the table as Markdown.

  Args:
    summary: of the trace.
    phases: seconds of each phase, a mean over the steps profiled.
    costs: by program, "flops" and "bytes accessed" as XLA counts them in one
      run; it counts a loop's body once.
    top: kinds of operation that are listed.
  """
  lines = ["# Profile", "", "| phase | seconds a step |", "|---|---|"]
  lines += [f"| {name} | {value:.4f} |" for name, value in phases.items()]
  lines += ["", "| device | busy | idle |", "|---|---|---|"]
  lines += [
    f"| {device} | {busy:.1%} | {1 - busy:.1%} |"
    for device, busy in summary.busy.items()
  ]
  if costs:
    lines += ["", "| program | GFLOP | GB accessed |", "|---|---|---|"]
    lines += [
      f"| {name} | {cost.get('flops', 0) / 1e9:,.2f} |"
      f" {cost.get('bytes accessed', 0) / 1e9:,.2f} |"
      for name, cost in costs.items()
    ]
    lines += ["", "(as XLA counts one run: a loop's body once)"]
  everything = sum(kind[3] for kind in summary.kinds)
  lines += ["", "| program | operation | runs | seconds | share |"]
  lines += ["|---|---|---|---|---|"]
  lines += [
    f"| {module} | {kind} | {runs:,} | {total:.4f} | {total / everything:.1%} |"
    for module, kind, runs, total in summary.kinds[:top]
  ]
  return "\n".join(lines) + "\n"


class Profile:
  """Traces steps first_step .. first_step + num_steps - 1 into a folder."""

  def __init__(
    self, folder: str | pathlib.Path, *, first_step: int, num_steps: int
  ):
    """Checks the settings.

    Args:
      folder: for the trace and profile.md.
      first_step: the first step that is traced; the very first ones compile.
      num_steps: how many.

    Raises:
      ValueError: a number below 1.
    """
    if first_step < 1 or num_steps < 1:
      raise ValueError(
        f"profile: first_step={first_step} and num_steps={num_steps} must be at"
        " least 1"
      )
    self.folder = pathlib.Path(folder)
    self._steps = range(first_step, first_step + num_steps)
    self._metrics: list[Mapping[str, float]] = []
    self._running = False

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Traces what happens inside, if the step is one of those asked for."""
    if step not in self._steps:
      yield
      return
    if not self._running:
      self.folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(str(self.folder))
      self._running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def add(
    self,
    step: int,
    metrics: Mapping[str, float],
    costs: Mapping[str, Mapping[str, float]] | None = None,
  ) -> str | None:
    """Notes a step's metrics; after the last step writes and returns the table.

    Args:
      step: just done.
      metrics: its metrics; those under "time/" are the phases.
      costs: see `table`.
    """
    if step not in self._steps:
      return None
    self._metrics.append(metrics)
    if step != self._steps[-1]:
      return None
    self.close()
    names = [n for n in self._metrics[0] if n.startswith("time/")]
    phases = {
      name.removeprefix("time/").removesuffix("_s"): sum(
        m.get(name, 0.0) for m in self._metrics
      )
      / len(self._metrics)
      for name in names
    }
    text = table(summarise(operations(self.folder)), phases, costs or {})
    (self.folder / "profile.md").write_text(text, encoding="utf-8")
    return text

  def close(self) -> None:
    """Ends the trace, if one is under way."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()
