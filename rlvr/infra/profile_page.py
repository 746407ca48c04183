"""A profile of a run: the trace, and a table that says what it shows."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlvr.infra.costs import Peak, Program, Recorded, peak_of, read_program
from rlvr.infra.model_flops import step_flops
from rlvr.infra.profiling import (
  Summary,
  Trace,
  operations,
  parse_steps,
  phase_seconds,
  summarise,
)
from rlvr.infra.run_folder import write_atomically
from rlvr.recipe import Recipe

_KINDS = 20  # kinds of operation that the table lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
  """What a profile found.

  steps: traced.
  step_s: seconds of a step, a mean, as the host has it.
  host_s: seconds a step by what the host waited for, a mean.
  device_s: seconds a step that a device was at each phase, a mean over devices.
  model_flops: of each phase and step, by formula, for the tokens there were.
  peak: of all devices together.
  programs: by name.
  summary: of the trace.
  """

  steps: list[int]
  step_s: float
  host_s: Mapping[str, float]
  device_s: Mapping[str, float]
  model_flops: Mapping[str, float]
  peak: Peak
  programs: Mapping[str, Program]
  summary: Summary

  def utilisation(self, phase: str) -> float | None:
    """Returns the share of the peak in a phase, None where it has no FLOPs."""
    flops, seconds = self.model_flops.get(phase), self.device_s.get(phase)
    if not flops or not seconds:
      return None
    return flops / seconds / self.peak.flops

  def total_utilisation(self) -> float:
    """Returns the share of the peak over the whole step."""
    return sum(self.model_flops.values()) / self.step_s / self.peak.flops

  def as_json(self) -> dict[str, Any]:
    """Returns all of it as JSON has it: null for what XLA doesn't know."""
    programs = {
      name: {
        field: getattr(program, field)
        if not isinstance(getattr(program, field), float)
        or math.isfinite(getattr(program, field))
        else None
        for field in (
          "module",
          "flops",
          "bytes_accessed",
          "product_flops",
          "temporary_bytes",
        )
      }
      for name, program in self.programs.items()
    }
    return {
      "steps": self.steps,
      "step_s": self.step_s,
      "host_s": dict(self.host_s),
      "device_s": dict(self.device_s),
      "model_flops": dict(self.model_flops),
      "utilisation": {p: self.utilisation(p) for p in self.device_s},
      "step_utilisation": self.total_utilisation(),
      "peak_flops": self.peak.flops,
      "peak_source": self.peak.source,
      "device_busy": {str(k): v for k, v in self.summary.busy.items()},
      "traced_s": self.summary.wall_s,
      "programs": programs,
      "operations": [
        dict(zip(("program", "kind", "runs", "seconds"), kind, strict=True))
        for kind in self.summary.kinds[:_KINDS]
      ],
    }


def page(figures: Figures) -> str:
  """Returns the profile as Markdown; docs/profiling.md says what stands where.

  Args:
    figures: of a profile.
  """
  f = figures
  steps = f"{f.steps[0]} to {f.steps[-1]}" if len(f.steps) > 1 else f.steps[0]
  lines = [
    f"# Profile of step{'s' * (len(f.steps) > 1)} {steps}",
    "",
    f"A step takes {f.step_s:.4f} s; model FLOPs are"
    f" {f.total_utilisation():.1%} of the peak, {f.peak.flops / 1e9:,.1f} GFLOP/s"
    f" ({f.peak.source}).",
    "",
    "| phase on the device | seconds a step | share of the step | model GFLOP |"
    " utilisation |",
    "|---|---|---|---|---|",
  ]
  for phase, seconds in f.device_s.items():
    flops, share = f.model_flops.get(phase), f.utilisation(phase)
    lines.append(
      f"| {phase} | {seconds:.4f} | {seconds / f.step_s:.1%} |"
      f" {'' if flops is None else f'{flops / 1e9:,.2f}'} |"
      f" {'' if share is None else f'{share:.1%}'} |"
    )
  lines += ["", "| the host, waiting for | seconds a step |", "|---|---|"]
  lines += [f"| {name} | {value:.4f} |" for name, value in f.host_s.items()]
  lines += ["", "| device | busy | idle |", "|---|---|---|"]
  lines += [
    f"| {device} | {busy:.1%} | {1 - busy:.1%} |"
    for device, busy in f.summary.busy.items()
  ]
  lines += [
    "",
    "| program | GFLOP by XLA | GB accessed by XLA | GFLOP of products, loops"
    " counted | GB of temporaries |",
    "|---|---|---|---|---|",
  ]
  lines += [
    f"| {name} ({p.module}) | {p.flops / 1e9:,.3f} |"
    f" {p.bytes_accessed / 1e9:,.3f} | {p.product_flops / 1e9:,.3f} |"
    f" {p.temporary_bytes / 1e9:,.3f} |"
    for name, p in f.programs.items()
  ]
  everything = sum(kind[3] for kind in f.summary.kinds)
  lines += ["", "| program | operation | runs | seconds | share |"]
  lines += ["|---|---|---|---|---|"]
  lines += [
    f"| {module} | {kind} | {runs:,} | {total:.4f} | {total / everything:.1%} |"
    for module, kind, runs, total in f.summary.kinds[:_KINDS]
  ]
  return "\n".join(lines) + "\n"


class Profile:
  """Traces steps of a run and writes `profile.md` and `profile.json`.

  Whatever fails in it ends no run: `say` tells why there is no profile.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    steps: range,
    *,
    programs: Mapping[str, Recorded],
    model_flops: Callable[[float], Mapping[str, float]],
    peak: Callable[[], Peak],
    say: Callable[[str], None],
  ):
    """Notes what is wanted.

    Args:
      folder: for the trace and the tables.
      steps: that are traced; none: nothing happens.
      programs: by name, of which XLA's costs are listed.
      model_flops: (response tokens of a step) -> FLOPs, by phase.
      peak: of all devices.
      say: prints a line.
    """
    self._trace = Trace(folder, steps)
    self._programs = programs
    self._model_flops = model_flops
    self._peak = peak
    self._say = say
    self._metrics: dict[int, Mapping[str, float]] = {}
    self.step = self._trace.step
    self.borders = self._trace.borders

  def add(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes a step's metrics; after the last traced step writes the tables."""
    if step in self._trace.steps:
      self._metrics[step] = metrics
      if step == self._trace.steps[-1]:
        self.close()

  def close(self) -> None:
    """Ends the trace, if one is under way, and writes what it says."""
    try:
      if self._trace.close() and self._metrics:
        self._write()
    except Exception as error:  # the run goes on, or ends with its own error
      self._say(f"no profile: {error}")

  def _write(self) -> None:
    folder = self._trace.folder
    rows = list(self._metrics.values())
    found = operations(folder)
    programs = {
      name: read_program(compiled)
      for name, recorded in self._programs.items()
      if (compiled := recorded.compiled()) is not None
    }
    phases = {p.module: p.phases for p in programs.values()}
    host = {
      name.removeprefix("time/").removesuffix("_s"): _mean(rows, name)
      for name in rows[0]
      if name.startswith("time/") and name.endswith("_s")
    }
    device_s = {
      phase: seconds / len(rows)
      for phase, seconds in phase_seconds(found, phases).items()
    }
    flops = self._model_flops(_mean(rows, "response/tokens"))
    figures = Figures(
      steps=list(self._metrics),
      step_s=host.pop("step"),
      host_s=host,
      device_s=device_s,
      # A supervised run samples nothing.
      model_flops={k: v for k, v in flops.items() if k in device_s},
      peak=self._peak(),
      programs=programs,
      summary=summarise(found),
    )
    text = page(figures)
    write_atomically(folder / "profile.md", text)
    write_atomically(
      folder / "profile.json", json.dumps(figures.as_json(), indent=2) + "\n"
    )
    self._say(f"profile: {folder / 'profile.md'}; the trace lies beside it")


def profile_of(
  folder: str | pathlib.Path,
  steps: str,
  between: tuple[int, int],
  recipe: Recipe,
  *,
  prompt_length: int,
  programs: Mapping[str, Recorded],
  devices: Sequence[Any],
  say: Callable[[str], None],
) -> Profile:
  """Returns the profile of a run's steps.

  Args:
    folder: for the trace and the tables.
    steps: as `parse_steps` takes them; "" traces none.
    between: steps that were done before this process, and those of the run.
    recipe: the step's settings.
    prompt_length: S, tokens.
    programs: of the loop.
    devices: of the mesh.
    say: prints a line.
  """

  start, total_steps = between
  traced = parse_steps(steps, total_steps, start=start) if steps else range(0)
  if steps and not traced:
    say(f"no profile: the run is past its steps {steps}")

  def model_flops(tokens: float) -> dict[str, float]:
    length = tokens / recipe.num_prompts / recipe.group_size
    sampling = dataclasses.replace(
      recipe.sampling, max_tokens=max(1, round(length))
    )
    found = step_flops(
      dataclasses.replace(recipe, sampling=sampling),
      prompt_length=prompt_length,
    )
    return {
      "sample": found["sample"],
      "score": found["score"],
      "update": found["update"] - found["score"],
    }

  return Profile(
    folder,
    traced,
    programs=programs,
    model_flops=model_flops,
    peak=lambda: peak_of(devices, recipe.model.compute_dtype),
    say=say,
  )


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
  return sum(row.get(name, 0.0) for row in rows) / len(rows)
