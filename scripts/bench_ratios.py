"""Prints what one round or more of scripts/bench_peers.sh measured, with ratios.

  python scripts/bench_ratios.py [--figures=docs/performance.json] RESULT.json ...

Each file holds one JSON line: a library's step, or the machine's limits. Files of
one library are rounds; the table has the medians over rounds. The faster peer is
the one with the shorter step. --figures names the machine that this runs on: run
it where the files were measured, as bench_peers.sh does.
"""

import argparse
import json
import pathlib
import statistics
import sys

from bench_common import figures_file, measured_on

from rlvr.infra.performance_page import add_figures

PHASES = ("step", "rollout", "score", "update")


def read(paths: list[str]) -> dict[str, list[dict]]:
  """Returns the results by library.

  Raises:
    ValueError: a file without a result.
  """
  found: dict[str, list[dict]] = {}
  for path in paths:
    text = pathlib.Path(path).read_text(encoding="utf-8").strip()
    if not text:
      raise ValueError(f"{path} is empty: that run failed, see its .err file")
    line = json.loads(text.splitlines()[-1])
    found.setdefault(line["lib"], []).append(line)
  return found


def median(lines: list[dict], name: str) -> float:
  """Returns the median over rounds of a figure."""
  return statistics.median(line[name] for line in lines)


def limits(lines: list[dict]) -> dict[str, float]:
  """Returns the limits in seconds; in training a group's prompt counts once."""
  bounds = [line["lower_bound_s"] for line in lines]

  def of(key: str) -> float:
    return statistics.median(bound[key] for bound in bounds)

  found = {
    "rollout": of("rollout_opwise"),
    "score": of("reference_forward_prefix_shared"),
    "update": of("update_prefix_shared"),
  }
  return {"step": sum(found.values())} | found


def _kept(found: dict[str, list[dict]], machine: list[dict]) -> dict:
  """Returns what docs/performance.md has of the results."""
  return {
    "libraries": {
      lib: {
        "name": lib,
        "rounds": len(lines),
        "peak_rss_mb": median(lines, "peak_rss_mb"),
        **{phase: median(lines, f"{phase}_s_median") for phase in PHASES},
      }
      for lib, lines in found.items()
    },
    "limits": limits(machine),
  }


def main(argv: list[str] | None = None) -> int:
  """Prints the table; returns 1 where a file has no result."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--figures", type=figures_file, help="JSON to add to")
  parser.add_argument("paths", nargs="+", metavar="RESULT.json")
  args = parser.parse_args(argv)
  try:
    found = read(args.paths)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  machine = found.pop("roofline", [])
  names = [f"{phase}_s_median" for phase in PHASES]
  print("| library | rounds | quiet | " + " | ".join(PHASES) + " | peak MB |")
  print("|---|---|---|" + "---|" * (len(PHASES) + 1))
  table = {}
  for lib, lines in found.items():
    table[lib] = [median(lines, name) for name in names]
    memory = median(lines, "peak_rss_mb")
    figures = " | ".join(f"{value:.2f}" for value in table[lib])
    quiet = all(line["quiet"] for line in lines)
    print(f"| {lib} | {len(lines)} | {quiet} | {figures} | {memory:,.0f} |")
  if machine:
    limit = limits(machine)
    cells = " | ".join(f"{limit[phase]:.2f}" for phase in PHASES)
    print(f"| limit | {len(machine)} | | {cells} | |")
    if "rlvr" in table:
      shares = zip(PHASES, table["rlvr"], strict=True)
      cells = " | ".join(f"{limit[p] / ours:.2f}" for p, ours in shares)
      print(f"| rlvr, share of the limit | | | {cells} | |")
    print("gigaflop/s at best:", round(median(machine, "peak_gflops"), 1))
  if args.figures and machine and "rlvr" in table:
    kept = _kept(found, machine) | measured_on()
    add_figures(args.figures, "peers", kept)
  own = table.pop("rlvr", None)
  if own and table:
    peer = min(table, key=lambda lib: table[lib][0])
    print(f"\nrlvr against {peer}, the faster:")
    for phase, theirs, ours in zip(PHASES, table[peer], own, strict=True):
      print(f"  {phase}: {theirs / ours:.2f}x")
  return 0


if __name__ == "__main__":
  sys.exit(main())
