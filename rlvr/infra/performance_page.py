"""docs/performance.md from the figures of docs/performance.json."""

import fcntl
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HEAD = """# How fast, beside what

Written by `python scripts/make_performance_page.py` from
docs/performance.json, to which each command below adds its figures.
{machine}What carries over to others are ratios taken in one run.
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

`python scripts/bench_step.py --trace=$(mktemp -d) --figures=docs/performance.json`,
the same step: the operations that take most of each phase, by
what they compute and the shape of their result (a fusion goes by its last
operation).

{table}
"""

_PRODUCTS = """
### The products alone

`python scripts/bench_products.py --figures=docs/performance.json`: {about}, decoded
with nothing but the products with parameters. *Model*: with its own parameters, which no cache holds as a whole; *one
layer*: with one layer's for all, which stay in a cache; *peak*: as many FLOPs at
the rate of a product of 1,024 x 1,024 x 1,024. What a rollout takes beyond the
first row is its prefill, attention, normalisation and drawing: no sampler on this
compiler's products goes below that row.

{table}
"""

_SLOTS = """
## Skewed lengths

`python scripts/bench_slots.py --figures=docs/performance.json`: {about}. *Useful*: tokens of responses over
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
the slope of log seconds over log size, over all points. *Fixed*: what all points of
a table share, as scripts/bench_step.py names it; micro-batches have about 3,072
tokens.
"""

_DEVICES = """
### Devices

`python scripts/measure_shards.py --figures=docs/performance.json`: score and update
compiled for simulated devices; MiB that one device holds, and that this program
makes it send in a step, responses at full length. Seconds would say nothing here: the
devices share the same cores. In brackets the limits: the state over the devices that
share it; to send, of the gradient 2(n - 1)/n of its bytes over n devices of data x
fsdp, of each layer's activations as much over those of tensor, four times. Exponents
are over that axis alone, of what is sent from 2 devices on. Each piece of a packed
batch (rlvr/packing.py) sends a gradient of its own, and few devices make more pieces.{fixed}

{table}
"""

_ACCELERATORS = """
## On an accelerator

{device}, peaks {peaks}; random parameters at the published sizes, float32 kept and bfloat16 computed, layers recomputed; {shape}. In
brackets, of prefill, score and update the model FLOPs' share of the peak (recomputation
counts nothing), of decoding the share of the least seconds: parameters, keys and
values read once for each token. *Decoding*: with layers unrolled
(`Sampling.unroll_layers`) or in a loop. Error: the largest between the sampler's and
the trainer's log-probs of a token, nats.

```
{commands}
```

{table}
"""

AXES = {
  "batch": ("Batch", "responses"),
  "length": ("Response length", "tokens"),
  "model": ("Model size", "parameters"),
  "group": ("Group size, at 4 prompts", "responses to a prompt"),
}
PHASES = ("rollout", "score", "update")
_GROWN = tuple(f"growth_{axis}" for axis in AXES)
# In the page's order.
_TABLES = (
  *("peers", "trace", "products", "slots"),
  *(*_GROWN, "growth_chain", "devices"),
)


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
    ValueError: figures that don't say of which machine they are.
  """
  tables = [name for name in _TABLES if name in figures]
  origins = {name: _origin(figures, name) for name in tables}
  first = origins[tables[0]] if tables else None
  machine = f"Where no other machine is named: {first}. " if first else ""
  parts = [_HEAD.format(machine=machine)]
  rates = None
  for name in tables:
    found = figures[name]
    if name in _GROWN and rates is None:
      rates = found["rates"]
      parts.append(_GROWTH.format(rates=_rates(rates)))
    parts.append(_section(name, figures))
    where = "" if origins[name] == first else f"Measured on {origins[name]}. "
    if name in _GROWN and found["rates"] != rates:
      where += f"Rates: {_rates(found['rates'])}."
    if where:
      parts.append(f"\n{where.strip()}\n")
  if one := [v for k, v in figures.items() if k.startswith("accelerator/")]:
    parts.append(_accelerators(one))
  return "".join(parts)


def _origin(figures: Mapping[str, Any], name: str) -> str:
  """Returns a table's machine and JAX; older figures have one for all."""
  own = figures[name] if isinstance(figures[name], Mapping) else {}
  machine = own.get("machine", figures.get("machine"))
  if machine is None:
    raise ValueError(
      f"the figures under {name!r} don't say of which machine they are: run the"
      " command that measures them again, which adds it"
    )
  return f"{machine}, jax {own['jax']}" if "jax" in own else machine


def _rates(rates: Mapping[str, float]) -> str:
  flops, moved = rates["flops"] / 1e9, rates["bytes"] / 1e9
  return f"{flops:.0f} GFLOP/s, {moved:.0f} GB/s"


def _section(name: str, figures: Mapping[str, Any]) -> str:
  """Returns one command's section."""
  found = figures[name]
  if name == "peers":
    return _PEERS.format(**_peers(found))
  if name == "trace":
    return _TRACE.format(table=_trace(_list(found, "rows")))
  if name == "products":
    rows = [[n, f"{s:.2f}", f"{r:.0f}"] for n, s, r in found["rows"]]
    table = table_of(("products", "seconds", "GFLOP/s"), rows)
    return _PRODUCTS.format(about=found["about"], table=table)
  if name == "slots":
    return _SLOTS.format(about=found["about"], table=_slots(found))
  if name == "growth_chain":
    return _chain(figures)
  if name == "devices":
    return _DEVICES.format(
      table=_devices(_list(found, "lines")), fixed=_fixed(found)
    )
  return _axis(name.removeprefix("growth_"), found)


def _list(found: Any, key: str) -> Sequence[Any]:
  """Returns the rows, which older figures consist of."""
  return found[key] if isinstance(found, Mapping) else found


def _fixed(found: Any) -> str:
  sizes = found.get("fixed", {}) if isinstance(found, Mapping) else {}
  named = ", ".join(f"{k} {v:,}" for k, v in sizes.items())
  return f"\n\nFixed: {named}." if named else ""


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


def _axis(axis: str, found: Mapping[str, Any]) -> str:
  (title, unit), points = AXES[axis], found["points"]
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
  table = table_of((unit, *seconds, "peak MB"), rows)
  return f"\n### {title}{_fixed(found)}\n\n{table}\n"


def _accelerators(found: Sequence[Mapping[str, Any]]) -> str:
  """Returns a section for each device and workload of the base."""
  sections: dict[tuple[str, str, str], list[list[str]]] = {}
  commands: dict[tuple[str, str, str], dict[str, None]] = {}
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
      commands.setdefault(key, {})[_command(one)] = None
  columns = [
    *("model", "change", "attention", "decoding", "prefill s"),
    *("decode s", "tokens/s", "score s", "update s", "peak GiB", "error"),
  ]
  return "".join(
    _ACCELERATORS.format(
      device=key[0],
      peaks=key[1],
      shape=key[2],
      commands="\n".join(commands[key]),
      table=table_of(columns, rows),
    )
    for key, rows in sections.items()
  )


def _command(one: Mapping[str, Any]) -> str:
  """Returns the command that adds a model's figures."""
  work = one["points"]["base"]["workload"]
  sizes = ("num_prompts", "group_size", "prompt_len", "new_tokens")
  given = {
    "model": f"gin/models/{one['model']}.gin",
    "attention": one["attention"],
    **{k: work[k] for k in sizes},
    **{k: one[k] for k in ("weights", "cache")},
    **{k: one[k] for k in ("peak_tflops", "peak_gbs")},
  }
  axes = {name.partition("=")[0]: None for name in one["points"]}
  flags = [
    *(
      f"--{k}={v:g}" if isinstance(v, float) else f"--{k}={v}"
      for k, v in given.items()
      if v
    ),
    *(f"--axis={axis}" for axis in axes if axis != "base"),
    *([] if one["unrolled"] else ["--scan"]),
    *([] if one.get("remat", True) else ["--no_remat"]),
    "--figures=docs/performance.json",
  ]
  return " ".join(["python scripts/bench_accelerator.py", *flags])


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
  batch = figures.get("growth_batch", {})
  whole = None
  if _machine(figures, "growth_batch") == _machine(figures, "growth_chain"):
    for point in batch["points"]:
      if point["value"] == 256:
        whole = sum(point[p] for p in PHASES)
  limit = "" if whole is None else f" ({whole * 10:.0f})"
  rows = []
  for point in points:
    share = "" if whole is None else f"{point['score'] / whole:.3%}"
    cell = f"{point['score'] * 1e3:.3f}{limit}"
    count, added = point["value"], point["score"] - points[0]["score"]
    each = f"{added / count * 1e6:.1f}" if count else ""
    rows.append([str(count), cell, share, each])
  some = [p for p in points if p["value"]]
  if len(some) > 1:
    slope = exponent([p["value"] for p in some], [p["score"] for p in some])
    rows.append(["exponent, from 1 on", f"{slope:.2f}", "", ""])
  sizes = [p["value"] for p in points]
  slope = np.polyfit(sizes, [p["score"] for p in points], 1)[0]
  text = (
    "\n### Transforms in the chain\n\n256 responses of 128 tokens, 16 steps each;"
    " log-sigmoid, clip and delta in turn on an outcome and a step reward, then"
    " min-form credit and leave-one-out advantages, which read both. The least of"
    " many calls. Limit, in brackets: 1% of the step of 256 responses above; share:"
    " of that step. A transform adds"
    f" {max(slope, 0) * 1e6:.1f} µs (the slope of a line through all points).\n\n"
  )
  columns = (
    *("transforms", "milliseconds (limit)", "share of the step"),
    "µs more for each",
  )
  return text + table_of(columns, rows) + "\n"


def _machine(figures: Mapping[str, Any], name: str) -> str | None:
  """Returns a table's machine; None where there is no such table."""
  if name not in figures:
    return None
  return figures[name].get("machine", figures.get("machine"))


def _devices(found: Sequence[Mapping[str, Any]]) -> str:
  rows = []
  for line in found:
    sent = ", ".join(
      f"{kind} {size / 2**20:.1f}"
      for kind, size in sorted(line["sent"].items())
      if size
    )
    limit = {
      k: f" ({v / 2**20:.1f})" for k, v in line.get("limits", {}).items()
    }
    rows.append(
      [
        line["mesh"],
        f"{line['held'] / 2**20:.1f}{limit.get('held', '')}",
        f"{line['temporaries'] / 2**20:.1f}",
        f"{sum(line['sent'].values()) / 2**20:.1f}{limit.get('sent', '')}",
        sent or "-",
      ]
    )
  for at, axis in enumerate(("data", "fsdp", "tensor")):
    rows.extend(_device_exponents(found, at, axis))
  columns = ("data x fsdp x tensor", "state and batch (limit)", "temporaries")
  return table_of((*columns, "sent (limit)", "of that"), rows)


def _device_exponents(
  found: Sequence[Mapping[str, Any]], at: int, axis: str
) -> list[list[str]]:
  """Returns the row of exponents over one axis of the mesh, if it grows."""
  lines = []
  for line in found:
    mesh = [int(n) for n in line["mesh"].split(" x ")]
    if math.prod(mesh) == mesh[at]:
      lines.append((mesh[at], line))
  several = [(n, line) for n, line in lines if n > 1]
  if len(several) < 2:
    return []

  def slope(key: str) -> str:
    sizes = [n for n, _ in lines]
    found = exponent(sizes, [line[key] for _, line in lines])
    return f"{round(found, 2) + 0.0:.2f}"  # no -0.00

  sent = exponent(
    [n for n, _ in several], [sum(line["sent"].values()) for _, line in several]
  )
  name = f"exponent, {axis}"
  return [[name, slope("held"), slope("temporaries"), f"{sent:.2f}", ""]]
