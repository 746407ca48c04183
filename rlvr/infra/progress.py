"""What a run says while it runs: its plan, where it stands, what it samples.

On a terminal: a progress bar with the figures that matter. Elsewhere (a log
file, a pipe): plain lines, one every few seconds, without control codes.
Responses come from a model: their control characters are shown, never sent.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

# Label, metric, how it is written. The reward stands apart: its name varies.
_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
  ("held-out", "eval/accuracy", lambda v: f"{v:.1%}"),
  ("length", "response/length_mean", lambda v: f"{v:.0f}"),
  ("tokens/s", "throughput/tokens_per_s", lambda v: f"{v:,.0f}"),
)
_PLAIN_WIDTH = 120  # columns of a table in a log file
_RECENT = 0.8  # weight of the past in the moving average of a step's time


class Progress:
  """Says on a console how a run goes on."""

  def __init__(
    self,
    *,
    every_s: float = 10.0,
    max_chars: int = 400,
    enabled: bool = True,
    console: rich.console.Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Makes the display; nothing is shown before `start`.

    Args:
      every_s: seconds between two lines where the output is no terminal.
      max_chars: characters of a prompt or response that are shown; the middle
        of a longer one is left out.
      enabled: false says nothing (the processes of a slice other than 0).
      console: where to write; None is standard output.
      clock: seconds; tests give their own.
    """
    self._every_s = every_s
    self._max_chars = max_chars
    self._enabled = enabled
    self._console = console or rich.console.Console(highlight=False)
    self._live = self._console.is_terminal
    if not self._live:
      # Plain output is read in files: fixed width, no colour whatever the
      # environment asks for.
      self._console = rich.console.Console(
        file=self._console.file,
        width=_PLAIN_WIDTH,
        highlight=False,
        color_system=None,
        force_terminal=False,
      )
    self._clock = clock
    self._bar: rich.progress.Progress | None = None
    self._task = rich.progress.TaskID(0)
    self._total = 0
    self._step = 0
    self._latest: dict[str, float] = {}
    self._last_update: float | None = None
    self._last_line: float | None = None
    self._step_s: float | None = None

  def start(self, total_steps: int, start_step: int = 0) -> None:
    """Begins; `start_step` is the step that a resumed run goes on from."""
    self._total, self._step = total_steps, start_step
    self._last_update = self._last_line = self._clock()
    self._step_s = None
    if start_step:
      self.message(f"going on from step {start_step} of {total_steps}")
    if not (self._enabled and self._live):
      return
    self._bar = rich.progress.Progress(
      rich.progress.BarColumn(bar_width=24),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn("{task.fields[figures]}", markup=False),
      console=self._console,
      # Warnings and library output would otherwise tear the bar apart.
      redirect_stdout=True,
      redirect_stderr=True,
    )
    self._task = self._bar.add_task(
      "train", total=total_steps, completed=start_step, figures="compiling"
    )
    self._bar.start()

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the figures after `step` steps.

    Args:
      step: updates done.
      metrics: the step's metrics. A figure that is not among them (held-out
        accuracy between evaluations) keeps its last value.
    """
    now = self._clock()
    self._measure(step, now)
    self._latest.update({k: float(v) for k, v in metrics.items()})
    if not self._enabled:
      return
    if self._bar is not None:
      self._bar.update(self._task, completed=step, figures=self._line())
      return
    due = self._last_line is None or now - self._last_line >= self._every_s
    if due or step >= self._total or "eval/accuracy" in metrics:
      self._last_line = now
      self._say(f"step {step}/{self._total}  {self._line()}")

  def print_samples(
    self, rows: Sequence[Mapping[str, Any]], title: str = ""
  ) -> None:
    """Prints responses with what they were given for what.

    Args:
      rows: as in `rlvr.infra.metrics.SampleLog.write`.
      title: a line above.
    """
    table = rich.table.Table(
      title=rich.text.Text(title) if title else None,
      title_justify="left",
      box=rich.box.ROUNDED if self._live else rich.box.ASCII2,
      show_lines=True,
      expand=True,
    )
    table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("response", ratio=5, overflow="fold")
    table.add_column("reference", ratio=1, min_width=9, overflow="fold")
    table.add_column("verdict", overflow="fold")
    table.add_column("rewards", no_wrap=True)
    table.add_column("advantage", justify="right", no_wrap=True)
    for row in rows:
      verdict = row.get("verdict", "")
      verdict = str(getattr(verdict, "name", verdict)).lower()
      rewards = row.get("rewards") or {}
      table.add_row(
        *(self._cell(row.get(k)) for k in ("prompt", "response", "reference")),
        rich.text.Text(visible(verdict), style=_style(verdict)),
        rich.text.Text(
          "\n".join(f"{visible(k)} {_number(v)}" for k, v in rewards.items())
        ),
        _number(row.get("advantage")),
      )
    self._say(table)

  def print_plan(self, plan: Mapping[str, Any]) -> None:
    """Prints what the run is going to do, before it does it.

    Args:
      plan: sections by title; each a mapping, a list of lines, or text.
    """
    for title, content in plan.items():
      self._say(rich.text.Text(visible(title), style="bold"))
      if isinstance(content, Mapping):
        grid = rich.table.Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="cyan")
        grid.add_column(overflow="fold")
        for key, value in content.items():
          grid.add_row(
            rich.text.Text("  " + visible(str(key))),
            rich.text.Text(visible(str(value))),
          )
        self._say(grid)
        continue
      lines = (
        content.splitlines()
        if isinstance(content, str)
        else [str(line) for line in content]
      )
      for line in lines:
        self._say("  " + line)

  def message(self, text: str) -> None:
    """Prints a line above the bar."""
    self._say(text)

  def close(self) -> None:
    """Takes the bar down; may be called twice."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _say(self, what: Any) -> None:
    if not self._enabled:
      return
    if isinstance(what, str):
      what = rich.text.Text(visible(what))
    # soft_wrap: a log line stays one line, for grep.
    plain_text = isinstance(what, rich.text.Text) and not self._live
    self._console.print(what, soft_wrap=plain_text)

  def _measure(self, step: int, now: float) -> None:
    """Keeps a moving average of the seconds per step."""
    done = step - self._step
    if done <= 0 or self._last_update is None:
      return
    seconds = (now - self._last_update) / done
    if self._step_s is None:
      # The first step compiled: it stands for the others only until the second.
      self._step_s = -seconds
    elif self._step_s < 0:
      self._step_s = seconds
    else:
      self._step_s = _RECENT * self._step_s + (1 - _RECENT) * seconds
    self._step, self._last_update = step, now

  def _line(self) -> str:
    parts = []
    reward = _reward_name(self._latest)
    if reward is not None:
      parts.append(f"reward {self._latest[reward]:.3f}")
    for label, name, text in _FIGURES:
      value = self._latest.get(name)
      if value is not None:
        parts.append(f"{label} {text(value) if math.isfinite(value) else '?'}")
    if self._step_s is not None and self._step < self._total:
      left = abs(self._step_s) * (self._total - self._step)
      parts.append(f"{duration(left)} left")
    return "  ".join(parts)

  def _cell(self, value: Any) -> rich.text.Text:
    return rich.text.Text(shorten(visible(str(value or "")), self._max_chars))


def visible(text: str) -> str:
  """Returns the text with control characters as pictures (ESC is ␛).

  A response could otherwise move the cursor or rewrite the screen. New lines
  and tabs stay; carriage returns don't.
  """

  def show(char: str) -> str:
    code = ord(char)
    if char in "\n\t" or 0x20 <= code < 0x7F or code > 0x9F:
      # Surrogates can't be written, bidirectional controls reorder the line.
      bad = 0xD800 <= code <= 0xDFFF or char in _BIDIRECTIONAL
      return "\N{REPLACEMENT CHARACTER}" if bad else char
    if code == 0x7F:
      return "\N{SYMBOL FOR DELETE}"
    if code < 0x20:
      return chr(0x2400 + code)
    return "\N{REPLACEMENT CHARACTER}"

  return "".join(map(show, text))


_BIDIRECTIONAL = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shorten(text: str, max_chars: int) -> str:
  """Returns the text, its middle left out where it is too long.

  The end stays, because that is where the answer stands.
  """
  if len(text) <= max_chars:
    return text
  head = max_chars // 2
  tail = max_chars - head
  gap = len(text) - head - tail
  return f"{text[:head]} […{gap} characters…] {text[len(text) - tail :]}"


def duration(seconds: float) -> str:
  """Returns seconds as a person says them: 45s, 12m 03s, 5h 07m, 2d 04h."""
  s = max(0, round(seconds))
  if s < 60:
    return f"{s}s"
  if s < 3600:
    return f"{s // 60}m {s % 60:02d}s"
  if s < 86400:
    return f"{s // 3600}h {s % 3600 // 60:02d}m"
  return f"{s // 86400}d {s % 86400 // 3600:02d}h"


def _reward_name(metrics: Mapping[str, float]) -> str | None:
  """Returns which metric the bar calls "reward": the combined or first one."""
  names = [
    k for k in metrics if k.startswith("reward/") and k.endswith("/mean")
  ]
  return (
    "reward/reward/mean"
    if "reward/reward/mean" in names
    else next(iter(names), None)
  )


def _number(value: Any) -> str:
  return "-" if value is None or math.isnan(value) else f"{value:+.3f}"


def _style(verdict: str) -> str:
  if verdict == "correct":
    return "green"
  return "yellow" if verdict in ("verifier_failed", "timed_out") else "red"
