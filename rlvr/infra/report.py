"""The report of a run: one HTML file without anything around it.

    python -m rlvr.infra.report RUN_DIR [RUN_DIR2 ...] [--out FILE]

It is made from the files of the run folder alone, so it can be made again at
any time, also of a run that is still going. Several folders give a comparison.
"""

import argparse
import dataclasses
import html
import itertools
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlvr.infra import plots
from rlvr.infra.metrics import read_metrics, read_samples
from rlvr.infra.progress import duration, shorten, visible
from rlvr.infra.run_folder import RunFolder, write_atomically

_SAMPLES = 6  # responses shown of each evaluation
_MAX_CHARS = 1500
# What the table of figures lists, where it is there: name, how it is written.
_FIGURES = (
  ("eval/accuracy", "held-out accuracy", "{:.1%}"),
  ("eval/pass@*", "", "{:.1%}"),
  ("reward/*/mean", "", "{:.3f}"),
  ("response/length_mean", "response length (tokens)", "{:.0f}"),
  ("response/truncated", "truncated responses", "{:.1%}"),
  ("policy/entropy", "policy entropy (nats)", "{:.3f}"),
  ("policy/ref_kl", "KL from the reference (nats)", "{:.4f}"),
  (
    "advantage/zero_variance_groups",
    "groups without a signal",
    "{:.1%}",
  ),
  ("optim/grad_norm", "gradient norm", "{:.3g}"),
  ("throughput/tokens_per_s", "tokens per second", "{:,.0f}"),
)


@dataclasses.dataclass(frozen=True)
class _Run:
  name: str
  folder: RunFolder
  rows: list[dict[str, Any]]
  samples: list[dict[str, Any]]
  about: dict[str, Any]


def write_report(
  folder: RunFolder | str | os.PathLike,
  *,
  title: str | None = None,
  compare: Sequence[str | os.PathLike] = (),
  out: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Writes the report and returns its path.

  Args:
    folder: the run; its samples, chain and configuration are shown.
    title: heading; None takes the run's own (`about.json`) or its folder's name.
    compare: further runs, plotted over the first one.
    out: where to; None is `report.html` in the folder, `comparison.html` for
      several runs.

  Raises:
    ValueError: a folder has no metrics.
  """
  paths = [folder.path if isinstance(folder, RunFolder) else folder, *compare]
  runs = [_load(pathlib.Path(path)) for path in paths]
  runs = _named_apart(runs)
  if out is None:
    first = runs[0].folder
    out = first.path / "comparison.html" if compare else first.report
  heading = title or _heading(runs)
  target = pathlib.Path(out)
  write_atomically(target, _page(heading, runs))
  return target


def _load(path: pathlib.Path) -> _Run:
  folder = RunFolder(path.absolute())
  if not folder.metrics.is_file():
    raise ValueError(
      f"no {folder.metrics.name} in {path}: give the run_dir of a run that has"
      " done a step"
    )
  rows = read_metrics(folder.metrics)
  if not rows:
    raise ValueError(
      f"{folder.metrics} is empty: the run has not finished its first step"
    )
  return _Run(
    name=folder.path.name,
    folder=folder,
    rows=rows,
    samples=read_samples(folder.samples),
    about=folder.read_about(),
  )


def _named_apart(runs: list[_Run]) -> list[_Run]:
  """Returns the runs, longer named where two folders have the same name."""
  names = [run.name for run in runs]
  return [
    dataclasses.replace(run, name=f"{run.folder.path.parent.name}/{run.name}")
    if names.count(run.name) > 1
    else run
    for run in runs
  ]


def _heading(runs: list[_Run]) -> str:
  if len(runs) > 1:
    return "Comparison: " + ", ".join(run.name for run in runs)
  return str(runs[0].about.get("title") or runs[0].name)


def _page(title: str, runs: list[_Run]) -> str:
  first = runs[0]
  single = len(runs) == 1
  body = [f"<h1>{_text(title)}</h1>"]
  body += [_head(run, single) for run in runs]
  body.append(_figures_table(runs))
  body.append(_plots(runs))
  if single:
    body.append(_samples(first.samples))
    if first.folder.credit.exists():
      page = first.folder.credit.read_text(encoding="utf-8")
      body.append(_section("Credit of one response", page))
    body.append(_profile(first.folder))
    body.append(
      _section("Score chain", _pre(first.about.get("chain")))
      if first.about.get("chain")
      else _absent("Score chain", "about.json names no chain")
    )
  for run in runs:
    body.append(_config(run, single))
  return _PAGE.format(
    title=_text(title), style=_style(), body="\n".join(b for b in body if b)
  )


def accuracy_line(rows: Sequence[Mapping[str, Any]]) -> str | None:
  """Returns "held-out accuracy 41.2% → 78.5% (95% interval 75.1–81.6%)".

  First and last evaluation, the last one's interval; None without evaluations.
  """
  steps, values = plots.series(rows, "eval/accuracy")
  if not steps.size:
    return None
  at, low, high = plots.accuracy_band(rows)
  text = f"held-out accuracy {values[0]:.1%}"
  if steps.size > 1:
    text += f" → {values[-1]:.1%}"
  if at.size and at[-1] == steps[-1]:
    text += f" (95% interval {100 * low[-1]:.1f}–{high[-1]:.1%})"
  return text


def _head(run: _Run, single: bool) -> str:
  about = run.about
  last = max(row["step"] for row in run.rows)
  total = about.get("total_steps")
  facts = {
    "status": about.get("status") or _status(last, total),
    "steps": f"{last:,} of {total:,}" if total else f"{last:,}",
    "time": _wall_time(run.rows),
  }
  seeds = about.get("seeds", about.get("seed"))
  facts["seeds"] = (
    ", ".join(map(str, seeds)) if isinstance(seeds, list) else seeds
  )
  facts |= {
    k: v
    for k, v in about.items()
    if k not in ("title", "status", "total_steps", "seeds", "seed", "chain")
    and isinstance(v, str | int | float)
  }
  lost = sum(int(row.get("nonfinite", 0)) for row in run.rows)
  if lost:
    facts["figures that weren't finite"] = lost
  items = "".join(
    f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>"
    for k, v in facts.items()
    if v not in (None, "")
  )
  verdict = accuracy_line(run.rows) or "no held-out evaluation yet"
  name = "" if single else f"<h2>{_text(run.name)}</h2>"
  verdict = verdict[0].upper() + verdict[1:]
  return (
    f'<header>{name}<p class="verdict">{_text(verdict)}</p>'
    f"<dl>{items}</dl></header>"
  )


def _status(last: int, total: int | None) -> str:
  if not total:
    return ""
  return "finished" if last >= total else "not finished"


def _wall_time(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the time in steps; a resumed run's pauses are not in it."""
  steps = plots.series(rows, "time/step_s")[1]
  if steps.size:
    return f"{duration(float(steps.sum()))} in steps"
  times = [row["time"] for row in rows if "time" in row]
  return duration(max(times) - min(times)) if len(times) > 1 else ""


def _figures_table(runs: list[_Run]) -> str:
  head = "<tr><th>figure</th>" + "".join(
    f'<th colspan="3">{_text(run.name)}</th>' for run in runs
  )
  sub = "<tr><th></th>" + "<th>first</th><th>last</th><th>range</th>" * len(
    runs
  )
  lines = []
  rows = [row for run in runs for row in run.rows]
  for pattern, label, form in _FIGURES:
    for name in plots.matching(rows, [pattern]):
      cells = ""
      for run in runs:
        values = plots.series(run.rows, name)[1]
        cells += (
          f"<td>{form.format(values[0])}</td><td>{form.format(values[-1])}</td>"
          f'<td class="range">{form.format(values.min())} –'
          f" {form.format(values.max())}</td>"
          if values.size
          else "<td>–</td>" * 3
        )
      lines.append(f"<tr><th>{_text(label or name)}</th>{cells}</tr>")
  if not lines:
    return ""
  head = f"{head}</tr>" if len(runs) > 1 else ""
  table = f"<table><thead>{head}{sub}</tr></thead>{''.join(lines)}</table>"
  return _section("Figures", f'<div class="scroll">{table}</div>')


def _plots(runs: list[_Run]) -> str:
  rows = {run.name: run.rows for run in runs}
  figures, absent = [], []
  for panel in plots.PANELS:
    plot = plots.draw(panel, rows)
    if plot is None:
      absent.append(panel.title.lower())
      continue
    legend = "".join(
      f'<span><i style="background:{colour}"></i>{_text(label)}</span>'
      for label, colour in plot.legend
    )
    metric = f"<code>{_text(plot.metric)}</code>" if plot.metric else ""
    about = " · ".join(filter(None, (metric, _text(panel.note))))
    figures.append(
      f"<figure><h3>{_text(panel.title)}</h3>"
      f'<div class="legend">{legend}</div>{plot.svg}'
      f"<figcaption>{about}</figcaption></figure>"
    )
  left_out = (
    f'<p class="quiet">Not recorded, so not plotted: {", ".join(absent)}.</p>'
    if absent
    else ""
  )
  grid = f'<div class="grid">{"".join(figures)}</div>'
  return _section("Course of training", grid + left_out)


def _samples(samples: list[dict[str, Any]]) -> str:
  if not samples:
    return _absent("Sampled responses", "samples.jsonl holds none")
  steps = sorted({row["step"] for row in samples})
  picked = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
  kinds = {"eval": "held-out, greedy", "train": "training"}
  parts = []
  for step, kind in itertools.product(picked, kinds):
    rows = [
      row
      for row in samples
      if row["step"] == step and row.get("kind", "eval") == kind
    ]
    if not rows:
      continue
    lines = "".join(_sample_row(row) for row in rows[:_SAMPLES])
    more = f", {_SAMPLES} of {len(rows)}" if len(rows) > _SAMPLES else ""
    parts.append(
      f'<h3>Step {step}, {kinds[kind]}{more}</h3><div class="scroll"><table class="samples">'
      "<thead><tr><th>prompt</th><th>response</th><th>reference</th>"
      "<th>verdict</th><th>rewards</th><th>advantage</th></tr></thead>"
      f"{lines}</table></div>"
    )
  return _section("Sampled responses", "".join(parts))


def _sample_row(row: Mapping[str, Any]) -> str:
  verdict = str(row.get("verdict", "")).lower()
  kind = {"correct": "good", "": ""}.get(verdict, "bad")
  if verdict in ("verifier_failed", "timed_out"):
    kind = "unknown"
  rewards = "".join(
    f"<div>{_text(k)} <b>{_number(v)}</b></div>"
    for k, v in (row.get("rewards") or {}).items()
  )
  long = [
    f'<td class="long">{_text(shorten(str(row.get(k) or ""), _MAX_CHARS))}</td>'
    for k in ("prompt", "response", "reference")
  ]
  return (
    f"<tr>{''.join(long)}"
    f'<td><span class="chip {kind}">{_text(verdict.replace("_", " "))}</span>'
    f"</td><td>{rewards}</td><td>{_number(row.get('advantage'))}</td></tr>"
  )


def _profile(folder: RunFolder) -> str:
  page = folder.profile / "profile.md"
  if not page.is_file():
    return ""
  where = (
    f"Trace and figures lie in {folder.profile.name}/ of the run's folder."
  )
  return _section(
    "Profile",
    f'<p class="quiet">{_text(where)}</p>'
    + _pre(page.read_text(encoding="utf-8")),
  )


def _config(run: _Run, single: bool) -> str:
  title = "Configuration" if single else f"Configuration of {run.name}"
  for path in (run.folder.config_operative, run.folder.config_given):
    if path.is_file():
      text = path.read_text(encoding="utf-8", errors="replace")
      what = f"<p class='quiet'>{_text(path.name)}</p>"
      return (
        f"<details><summary><h2>{_text(title)}</h2></summary>"
        f"{what}{_pre(text)}</details>"
      )
  return _absent(title, "the run folder holds none")


def _section(title: str, content: str) -> str:
  return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _absent(title: str, why: str) -> str:
  return _section(title, f'<p class="quiet">Left out: {_text(why)}.</p>')


def _pre(text: Any) -> str:
  return f"<pre>{_text(text)}</pre>"


def _text(value: Any) -> str:
  return html.escape(visible(str(value)))


def _number(value: Any) -> str:
  missing = value is None or not math.isfinite(value)
  return "–" if missing else f"{value:+.3f}"


def _style() -> str:
  light = "".join(f"{k}:{a};" for k, (a, _) in plots.PALETTE.items())
  dark = "".join(f"{k}:{b};" for k, (_, b) in plots.PALETTE.items())
  return (
    f":root{{{light}{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{dark}{_DARK}}}}}{_CSS}"
  )


_LIGHT = "--bg:#fff;--card:#f7f8fa;--fg:#1c2128;--quiet:#5b6470;--line:#e3e6ea;"
_DARK = (
  "--bg:#14181d;--card:#1c2128;--fg:#e4e8ee;--quiet:#9aa3af;--line:#333a44;"
)
_CSS = """
*{box-sizing:border-box}
html{color-scheme:light dark}
body{margin:0 auto;max-width:1180px;padding:2rem 1.25rem 4rem;background:var(--bg);
color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.7rem;margin:0 0 .75rem}
h2{font-size:1.15rem;margin:2.2rem 0 .8rem}
h3{font-size:.95rem;margin:0 0 .3rem}
header h2{margin:.2rem 0}
header{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:1rem 1.25rem;margin-bottom:.75rem}
.verdict{font-size:1.2rem;font-weight:600;margin:0 0 .6rem}
dl{display:flex;flex-wrap:wrap;gap:.5rem 2rem;margin:0}
dt{color:var(--quiet);font-size:.8rem}
dd{margin:0;overflow-wrap:anywhere}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr))}
figure{margin:0;padding:.8rem;border:1px solid var(--line);border-radius:10px;
background:var(--card)}
.legend{display:flex;flex-wrap:wrap;gap:0 .9rem;font-size:.8rem;color:var(--quiet)}
.legend i{display:inline-block;width:.9em;height:.3em;margin-right:.35em;
vertical-align:middle;border-radius:2px}
figure{display:flex;flex-direction:column}
figcaption{margin-top:auto;padding-top:.3rem}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:inherit}
figcaption,.quiet{color:var(--quiet);font-size:.85rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{text-align:left;padding:.4rem .7rem;border-bottom:1px solid var(--line);
vertical-align:top}
tbody th,table>tr>th{font-weight:500}
thead th{color:var(--quiet);font-weight:500}
td{font-variant-numeric:tabular-nums}
.range{color:var(--quiet)}
.samples{margin-bottom:1.5rem;min-width:860px}
.samples .long{white-space:pre-wrap;overflow-wrap:anywhere;min-width:7rem;
font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.8rem}
.samples td:nth-child(2){min-width:20rem}
.chip{padding:.1rem .5rem;border-radius:99px;white-space:nowrap;
border:1px solid currentColor}
.good{color:var(--c2)}.bad{color:var(--c5)}.unknown{color:var(--c4)}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:1rem;overflow-x:auto;font-size:.82rem;line-height:1.45}
summary{cursor:pointer}summary h2{display:inline-block}
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def main(args: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m rlvr.infra.report",
    description="Writes report.html of a run, or comparison.html of several.",
  )
  parser.add_argument("run_dir", nargs="+", help="folders of runs")
  parser.add_argument("--title", help="heading")
  parser.add_argument("--out", help="file to write")
  given = parser.parse_args(args)
  first, *others = given.run_dir
  try:
    path = write_report(first, title=given.title, compare=others, out=given.out)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(path)
  return 0


if __name__ == "__main__":
  sys.exit(main())
