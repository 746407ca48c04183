"""Plots of a run's metrics, or of several runs' over one another, as SVG.

Text stays text and colours are CSS variables, so that the page that holds the
plots decides how they look in the light and in the dark (`PALETTE`).
"""

import dataclasses
import fnmatch
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot's own choice: a server has no screen
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from rlvr.evaluation.metrics import wilson_interval

Rows = Sequence[Mapping[str, Any]]
Series = tuple[np.ndarray, np.ndarray]  # steps, values

# Stand-ins that the SVG's text is searched for, and what they become. The light
# and the dark value of each variable are the page's (see `PALETTE`).
_INK, _GRID = "#010101", "#020202"
_COLOURS = tuple(f"#03030{i}" for i in range(8))
PALETTE = {  # variable: (light, dark)
  "--ink": ("#40454d", "#b4bac4"),
  "--grid": ("#e3e6ea", "#333a44"),
  "--c0": ("#1f6feb", "#6ea8ff"),
  "--c1": ("#d1570c", "#ff9a57"),
  "--c2": ("#1a8754", "#4cc38a"),
  "--c3": ("#a626a4", "#d98ae0"),
  "--c4": ("#b8860b", "#e3b341"),
  "--c5": ("#c9302c", "#ff7b72"),
  "--c6": ("#0e7c86", "#4fc1cc"),
  "--c7": ("#6b7280", "#9aa3af"),
}
_SMOOTH_FROM = 40  # points from which on a line is smoothed


@dataclasses.dataclass(frozen=True)
class Panel:
  """One plot: which metrics it shows and how."""

  title: str
  patterns: tuple[str, ...]  # names with *, in order of preference
  unit: str = ""
  percent: bool = False
  stacked: bool = False  # one run: shares of `total` over one another
  total: str = ""
  points: bool = False  # measured now and then, as evaluations are
  note: str = ""
  at_most: int = 8


PANELS = (
  Panel(
    "Held-out accuracy",
    ("eval/accuracy", "eval/pass@*"),
    percent=True,
    points=True,
    note="band: 95% interval (Wilson) over held-out prompts",
  ),
  Panel(
    "Reward",
    ("reward/reward/mean", "reward/*/mean"),
    note="mean over the responses",
  ),
  Panel(
    "Response length",
    ("response/length_mean", "eval/length_mean"),
    unit="tokens",
  ),
  Panel("Truncated responses", ("response/truncated",), percent=True),
  Panel("Policy entropy", ("policy/entropy",), unit="nats per token"),
  Panel(
    "Divergence",
    ("policy/ref_kl", "policy/behavior_kl", "loss/kl"),
    unit="nats",
    note="from the reference model and from the sampler",
  ),
  Panel(
    "Groups without a signal",
    ("advantage/zero_variance_groups", "reward/*/zero_variance_groups"),
    percent=True,
    note="share of prompts whose responses all got the same reward",
  ),
  Panel("Clip fraction", ("policy/clip_fraction",), percent=True),
  Panel("Largest probability ratio", ("policy/ratio_max",)),
  Panel("Loss", ("loss/total", "loss/policy")),
  Panel("Gradient norm", ("optim/grad_norm",)),
  Panel("Learning rate", ("optim/learning_rate",)),
  Panel(
    "Verdicts",
    ("verdict/*/*",),
    percent=True,
    note="share of the responses",
  ),
  Panel(
    "Rewards that nobody knows",
    ("reward/*/missing", "verdict/*/verifier_failed", "verdict/*/timed_out"),
    percent=True,
    note="missing rewards, failed and timed-out verifiers; not counted as wrong",
  ),
  Panel(
    "Time per step",
    (
      "time/data_s",
      "time/sample_s",
      "time/verify_s",
      "time/score_update_s",
      "time/fused_step_s",
      "time/update_s",
      "time/eval_s",
    ),
    unit="seconds",
    stacked=True,
    total="time/step_s",
    note="the axis is cut above the first steps, which compile",
  ),
  Panel("Throughput", ("throughput/tokens_per_s",), unit="tokens per second"),
)


def series(rows: Rows, name: str) -> Series:
  """Returns steps and finite values of a metric, the last line of each step."""
  by_step = {
    row["step"]: row[name]
    for row in rows
    if name in row and math.isfinite(row[name])
  }
  steps = sorted(by_step)
  return np.array(steps, int), np.array([by_step[s] for s in steps], float)


def matching(rows: Rows, patterns: Sequence[str]) -> list[str]:
  """Returns the metrics with some finite value that match, in pattern order."""
  names = sorted(
    {
      k
      for row in rows
      for k, v in row.items()
      if isinstance(v, int | float) and math.isfinite(v)
    }
  )
  found: dict[str, None] = {}
  for pattern in patterns:
    found |= dict.fromkeys(fnmatch.filter(names, pattern))
  return list(found)


def accuracy_band(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns steps, low and high ends of the held-out accuracy's 95% interval.

  The run's own ends where it wrote them, else Wilson's from `eval/num_prompts`,
  else nothing.
  """
  ends: dict[int, tuple[float, float]] = {}
  for row in rows:
    low, high = row.get("eval/accuracy_low"), row.get("eval/accuracy_high")
    p, n = row.get("eval/accuracy"), row.get("eval/num_prompts")
    if low is not None and high is not None:
      ends[row["step"]] = (low, high)
    elif p is not None and n is not None and math.isfinite(p):
      ends[row["step"]] = wilson_interval(p * n, int(n))
  steps = sorted(s for s, e in ends.items() if all(map(math.isfinite, e)))
  return (
    np.array(steps, int),
    np.array([ends[s][0] for s in steps], float),
    np.array([ends[s][1] for s in steps], float),
  )


@dataclasses.dataclass(frozen=True)
class Plot:
  """A panel as it was drawn."""

  svg: str
  legend: tuple[tuple[str, str], ...]  # label, colour as CSS
  metric: str | None  # the one metric that is plotted


def draw(panel: Panel, runs: Mapping[str, Rows]) -> Plot | None:
  """Returns the panel drawn; None where no run has any of its metrics.

  One run: a colour per metric. Several: a colour per run, and only the first of
  the panel's metrics that some run has (a plot of all could not be read).

  Args:
    panel: what to plot.
    runs: metrics by the run's name.
  """
  several = len(runs) > 1
  patterns = panel.patterns
  if several and panel.stacked:
    patterns = (panel.total, *patterns)
  everything = [row for rows in runs.values() for row in rows]
  names = matching(everything, patterns)[: 1 if several else panel.at_most]
  if not names:
    return None
  with matplotlib.rc_context(_style(panel.title)):
    figure = matplotlib.figure.Figure(figsize=(4.3, 2.5), layout="constrained")
    axes = figure.add_subplot()
    if panel.stacked and not several:
      labels = _stack(axes, panel, everything, names)
    else:
      lines = [(run, name) for run in runs for name in names]
      labels = [run if several else _label(name) for run, name in lines]
      for i, (run, name) in enumerate(lines):
        _line(axes, *series(runs[run], name), _COLOURS[i % 8], panel)
        if name == "eval/accuracy":
          _band(axes, runs[run], _COLOURS[i % 8])
    _dress(axes, panel)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
  shown = labels if len(labels) > 1 else []
  return Plot(
    svg=_themed(buffer.getvalue(), panel.title),
    legend=tuple((x, f"var(--c{i % 8})") for i, x in enumerate(shown)),
    metric=names[0] if several or len(names) == 1 else None,
  )


def _stack(axes, panel, rows, names) -> list[str]:
  """Draws shares of a total over one another, what is left of it on top."""
  total_steps, total = series(rows, panel.total)
  steps = total_steps if total.size else series(rows, names[0])[0]
  parts = [_at(steps, *series(rows, name)) for name in names]
  labels = [_label(name) for name in names]
  if total.size:
    # Phases overlap where sampling runs ahead: then nothing is left over.
    parts.append(np.maximum(total - sum(parts), 0))
    labels.append("other")
  axes.stackplot(steps, *parts, colors=_COLOURS[: len(parts)], alpha=0.75)
  _cap(axes, sum(parts))
  return labels


def _cap(axes, values):
  """Cuts the axis above what the first steps take, which compile."""
  ceiling = 1.5 * float(np.quantile(values, 0.95))
  if values.max() > ceiling > 0:
    axes.set_ylim(0, max(ceiling, axes.get_ylim()[0]))


def _at(steps, known_steps, values):
  """Returns the value at each step, 0 where the run wrote none."""
  known = dict(zip(known_steps.tolist(), values.tolist(), strict=True))
  return np.array([known.get(s, 0.0) for s in steps.tolist()])


def _line(axes, steps, values, colour, panel):
  if not steps.size:
    return
  if panel.points or steps.size < _SMOOTH_FROM:
    marker = {"marker": "o", "markersize": 3} if steps.size < 60 else {}
    axes.plot(steps, values, color=colour, linewidth=1.5, **marker)
  else:
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.7)
    axes.plot(steps, smoothed(values), color=colour, linewidth=1.6)
  if panel.stacked:
    _cap(axes, values)


def smoothed(values: np.ndarray) -> np.ndarray:
  """Returns the mean over a centred window of a twentieth of the points.

  Near the ends the window shrinks on both sides, so that the line is not bent.
  """
  half = max(1, len(values) // 40)
  total = np.concatenate([[0.0], np.cumsum(values)])
  i = np.arange(len(values))
  reach = np.minimum(half, np.minimum(i, len(values) - 1 - i))
  return (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)


def _band(axes, rows, colour):
  steps, low, high = accuracy_band(rows)
  if steps.size > 1:
    axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
  elif steps.size:
    axes.vlines(steps, low, high, color=colour, alpha=0.4)


def _label(name: str) -> str:
  """Returns the part of a metric's name in which it differs from its like."""
  first, *rest = name.split("/")
  if first == "time":
    return rest[0].removesuffix("_s").replace("_", " + ")
  if rest and rest[-1] == "mean":
    rest = rest[:-1]
  if first in ("loss", "eval", "response", "policy", "advantage"):
    rest = [first, *rest]
  return " ".join(rest).replace("_", " ").lower()


def _dress(axes, panel):
  axes.grid(True, linewidth=0.7)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_xlabel("step")
  axes.set_ylabel(panel.unit)
  axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
  axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
  axes.margins(x=0.02)
  # A power of ten above the axis is easily overlooked; 1e-06 at the tick isn't.
  if not panel.percent and abs(axes.get_ylim()[1]) < 1e-3:
    axes.yaxis.set_major_formatter("{x:.1e}")
  if panel.percent:
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    low, high = axes.get_ylim()
    # A share that never moves gets an axis that says so, not a magnified nothing.
    axes.set_ylim(max(low, -0.02), min(max(high, 0.05), 1.03))


def _style(salt: str) -> Any:  # matplotlib's type lists every setting
  return {
    "svg.fonttype": "none",  # text, which can be read aloud and found
    "svg.hashsalt": salt,  # the same figures give the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
  }


def _themed(svg: str, title: str) -> str:
  """Returns the figure for a page: variables for colours, names of its own."""
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = svg.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
  for i, stand_in in enumerate(_COLOURS):
    svg = svg.replace(stand_in, f"var(--c{i})")
  # The page holds many figures, each with a "figure_1" and a "patch_2".
  slug = re.sub(r"[^a-z]+", "-", title.lower())
  svg = re.sub(r'\bid="', f'id="{slug}-', svg)
  svg = svg.replace("url(#", f"url(#{slug}-")
  svg = svg.replace('href="#', f'href="#{slug}-')
  size = r'<svg ([^>]*?)width="[\d.]+pt"'
  svg = re.sub(size, rf'<svg role="img" aria-label="{title}" \1', svg, count=1)
  return re.sub(r'(<svg [^>]*?)height="[\d.]+pt"', r"\1", svg, count=1)
