"""docs/performance.md from the figures of docs/performance.json."""

import fcntl
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HEAD = """# How fast, beside what

Written by `python scripts/make_performance_page.py` from
docs/performance.json, to which each command below adds its figures. They are of
one machine: {machine}. Seconds are of that machine; what carries over are ratios
taken in one run.
"""

_PEERS = """
## One GRPO step beside other libraries

`scripts/bench_peers.sh HARNESS`: the same Qwen3-shaped checkpoint of 11 M parameters,
8 prompts of 64 tokens x 8 responses of 128, reference KL on, float32, AdamW,
strings in, new parameters out; each library in turn at its best known setting, in
a process of its own, steps that another process disturbed left out, {rounds}.
The limit is
the sum of the operations at the best rate that the machine showed for their
shapes in the same run; in training a group's prompt is computed once in it.

{table}
"""

_TRACE = """
### Where the time goes

`scripts/bench_step.py --trace=FOLDER`, the same step: the operations that take
most of each phase, by what they compute and the shape of their result (a fusion
goes by its last operation).

{table}
"""

_PRODUCTS = """
### The products alone

`scripts/bench_products.py`: {about}, decoded with nothing but the products with
parameters. *Model*: with its own parameters, which no cache holds as a whole; *one
layer*: with one layer's for all, which stay in a cache; *peak*: as many FLOPs at
the rate of a product of 1,024 x 1,024 x 1,024. What a rollout takes beyond the
first row is its prefill, attention, normalisation and drawing: no sampler on this
compiler's products goes below that row.

{table}
"""

_SLOTS = """
## Skewed lengths

`python scripts/bench_slots.py`: {about}. *Useful*: tokens of responses over
rows x steps at full width; the loop moves what is left to fewer rows at the end,
so that it computes less than that. *Tokens*: equal to those of the run with a slot
for each response. Another library's row, where there is one, is its own sampler on
the static batches, in the same run (`--tunix_python`), each with a cache of
exactly the length of its longest; strings in, strings out.

{table}
"""

_GROWTH = """
## How cost grows

`python scripts/bench_growth.py`, least disturbed: medians. Each phase's limit,
in brackets, is its operations at this machine's best rates ({rates}). The exponent is
the slope of log seconds over log size, over all points.
"""

_DEVICES = """
### Devices

`python scripts/measure_shards.py`: score and update compiled for simulated devices;
MiB that one device holds, and that it must send in a step at the least. Seconds
would say nothing here: the devices share the same cores.

{table}
"""

_ACCELERATORS = """
## On an accelerator

`python scripts/bench_accelerator.py`: {device}, peaks {peaks}; random parameters at the
published sizes, float32 kept and bfloat16 computed, layers recomputed; {shape}. In
brackets, of prefill, score and update the model FLOPs' share of the peak (recomputation
counts nothing), of decoding the share of the least seconds: parameters, keys and
values read once for each token. *Decoding*: with layers unrolled
(`Sampling.unroll_layers`) or in a loop. Error: the largest between the sampler's and
the trainer's log-probs of a token, nats.

{table}
"""

AXES = {
  "batch": ("Batch", "responses"),
  "length": ("Response length", "tokens"),
  "model": ("Model size", "parameters"),
  "group": ("Group size, at 4 prompts", "responses to a prompt"),
}
PHASES = ("rollout", "score", "update")


def add_figures(file: pathlib.Path, name: str, figures: Any) -> None:
  """Adds what one command measured to the file; others' figures stay.

  Args:
    file: JSON; made where it isn't there.
    name: whose figures.
    figures: anything that JSON has.
  """
  file.touch()
  with open(file, "r+", encoding="utf-8") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    text = f.read()
    every = json.loads(text) if text else {}
    every[name] = figures
    f.seek(0)
    f.truncate()
    f.write(json.dumps(every, indent=1, sort_keys=True) + "\n")


def performance_page(figures: Mapping[str, Any]) -> str:
  """Returns the page, in Markdown; what wasn't measured isn't in it.

  Args:
    figures: by command, as `add_figures` saves them.

  Raises:
    ValueError: no figures of the machine (scripts/bench_growth.py gives them).
  """
  if "machine" not in figures:
    raise ValueError(
      "the figures don't say of which machine they are: run"
      " scripts/bench_growth.py, which adds it"
    )
  parts = [_HEAD.format(machine=figures["machine"])]
  if "peers" in figures:
    parts.append(_PEERS.format(**_peers(figures["peers"])))
  if "trace" in figures:
    parts.append(_TRACE.format(table=_trace(figures["trace"])))
  if "products" in figures:
    found = figures["products"]
    rows = [[n, f"{s:.2f}", f"{r:.0f}"] for n, s, r in found["rows"]]
    table = table_of(("products", "seconds", "GFLOP/s"), rows)
    parts.append(_PRODUCTS.format(about=found["about"], table=table))
  if "slots" in figures:
    found = figures["slots"]
    parts.append(_SLOTS.format(about=found["about"], table=_slots(found)))
  grown = {k: figures[f"growth_{k}"] for k in AXES if f"growth_{k}" in figures}
  if grown:
    rates = next(iter(grown.values()))["rates"]
    text = (
      f"{rates['flops'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.0f} GB/s"
    )
    parts.append(_GROWTH.format(rates=text))
    parts.extend(_axis(k, found["points"]) for k, found in grown.items())
  if "growth_chain" in figures:
    parts.append(_chain(figures))
  if found := [v for k, v in figures.items() if k.startswith("accelerator/")]:
    parts.append(_accelerators(found))
  if "devices" in figures:
    parts.append(_DEVICES.format(table=_devices(figures["devices"])))
  return "".join(parts)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
  """Returns the slope of log seconds over log size, by least squares."""
  return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _peers(found: Mapping[str, Any]) -> dict[str, str]:
  phases = ("step", *PHASES)
  own = found["libraries"]["rlvr"]
  rows = []
  for name, line in found["libraries"].items():
    cells = [f"{line[phase]:.2f}" for phase in phases]
    if name != "rlvr":
      cells = [
        f"{cell} ({line[p] / own[p]:.2f}x)"
        for cell, p in zip(cells, phases, strict=True)
      ]
    rows.append([line["name"], *cells, f"{line['peak_rss_mb']:,.0f}"])
  limit = found["limits"]
  rows.append(["limit", *(f"{limit[p]:.2f}" for p in phases), ""])
  shares = [f"{limit[p] / own[p]:.0%}" for p in phases]
  rows.append(["rlvr: share of the limit", *shares, ""])
  seconds = [f"{p} s" for p in phases]
  return {
    "table": table_of(("library", *seconds, "peak MB"), rows),
    "rounds": f"rounds: {own.get('rounds', 1)}",
  }


def _trace(rows: Sequence[Sequence[Any]]) -> str:
  columns = ("phase", "operation", "result", "runs", "seconds", "of the phase")
  cells = [
    [phase, name, shape, f"{runs:,}", f"{seconds:.3f}", f"{share:.0%}"]
    for phase, name, shape, runs, seconds, share in rows
  ]
  return table_of(columns, cells)


def _slots(found: Mapping[str, Any]) -> str:
  rows = [
    [
      *(road["name"], f"{road['seconds']:.1f}"),
      f"{road['seconds'] / found['roads'][0]['seconds']:.2f}x",
      *(f"{road['useful']:.0%}", road["same"]),
    ]
    for road in found["roads"]
  ]
  return table_of(("road", "seconds", "beside slots", "useful", "tokens"), rows)


def _axis(axis: str, points: Sequence[Mapping[str, Any]]) -> str:
  title, unit = AXES[axis]
  rows = [
    [
      f"{point['value']:,}",
      *(f"{_s(point[p])} ({_s(point['limits'][p])})" for p in PHASES),
      f"{point['peak_rss_mb']:,.0f}",
    ]
    for point in points
  ]
  sizes = [point["value"] for point in points]
  slopes = [exponent(sizes, [point[p] for point in points]) for p in PHASES]
  rows.append(["exponent", *(f"{slope:.2f}" for slope in slopes), ""])
  seconds = [f"{p} s (limit)" for p in PHASES]
  return f"\n### {title}\n\n{table_of((unit, *seconds, 'peak MB'), rows)}\n"


def _accelerators(found: Sequence[Mapping[str, Any]]) -> str:
  """Returns a section for each device and workload of the base."""
  sections: dict[tuple[str, str, str], list[list[str]]] = {}
  for one in found:
    peaks = " and ".join(
      f"{one[key]:,.0f} {unit}" if one[key] else f"no {unit} given"
      for key, unit in (("peak_tflops", "TFLOP/s"), ("peak_gbs", "GB/s"))
    )
    for name, point in one["points"].items():
      # One that failed, skewed lengths, or an axis whose base failed.
      if "seconds" not in point or "seconds" not in one["points"]["base"]:
        continue
      work = one["points"]["base"]["workload"]
      shape = (
        f"{work['num_prompts']} prompts of {work['prompt_len']} tokens x"
        f" {work['group_size']} responses of {work['new_tokens']}"
      )
      key = (f"{one['device']}, jax {one['jax']}", peaks, shape)
      sections.setdefault(key, []).append(_accelerator_row(one, name, point))
  columns = [
    *("model", "change", "attention", "decoding", "prefill s"),
    *("decode s", "tokens/s", "score s", "update s", "peak GiB", "error"),
  ]
  return "".join(
    _ACCELERATORS.format(
      device=device, peaks=peaks, shape=shape, table=table_of(columns, rows)
    )
    for (device, peaks, shape), rows in sections.items()
  )


def _accelerator_row(
  one: Mapping[str, Any], name: str, point: Mapping[str, Any]
) -> list[str]:
  def cell(key: str, seconds: float) -> str:
    share = point.get(f"{key}_share")
    return _s(seconds) + ("" if share is None else f" ({share:.0%})")

  seconds, peak = point["seconds"], point["peak_bytes"]
  kept = "/".join(one[k] for k in ("weights", "cache") if one[k])
  return [
    " ".join(filter(None, (one["model"], kept))),
    "" if name == "base" else name,
    one["attention"],
    "unrolled" if one["unrolled"] else "loop",
    cell("prefill", seconds["prefill"]),
    cell("decode", point["decode_s"]),
    f"{point['tokens_per_s']:,.0f}",
    cell("score", seconds["score"]),
    cell("update", seconds["update"]),
    "" if peak is None else f"{peak / 2**30:.1f}",
    f"{point['sampler_trainer_error']:.2g}",
  ]


def _s(seconds: float) -> str:
  return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def _chain(figures: Mapping[str, Any]) -> str:
  points = figures["growth_chain"]["points"]
  whole = None
  for point in figures.get("growth_batch", {}).get("points", ()):
    if point["value"] == 256:
      whole = sum(point[p] for p in PHASES)
  rows = []
  for point in points:
    share = "" if whole is None else f"{point['score'] / whole:.3%}"
    rows.append([str(point["value"]), f"{point['score'] * 1e3:.2f}", share])
  sizes = [p["value"] for p in points]
  slope = np.polyfit(sizes, [p["score"] for p in points], 1)[0]
  text = (
    "\n### Transforms in the chain\n\n256 responses of 128 tokens, 16 steps each;"
    " log-sigmoid, clip and delta in turn, then min-form credit and group-relative"
    " advantages. Share: of the step of 256 responses above. A transform adds"
    f" {max(slope, 0) * 1e6:.0f} µs.\n\n"
  )
  columns = ("transforms", "milliseconds", "share of the step")
  return text + table_of(columns, rows) + "\n"


def _devices(found: Sequence[Mapping[str, Any]]) -> str:
  rows = []
  for line in found:
    sent = ", ".join(
      f"{kind} {size / 2**20:.1f}"
      for kind, size in sorted(line["sent"].items())
      if size
    )
    rows.append(
      [
        line["mesh"],
        f"{line['held'] / 2**20:.1f}",
        f"{line['temporaries'] / 2**20:.1f}",
        f"{sum(line['sent'].values()) / 2**20:.1f}",
        sent or "-",
      ]
    )
  columns = ("data x fsdp x tensor", "state and batch", "temporaries")
  return table_of((*columns, "sent", "of that"), rows)
