"""Writes docs/performance.md from docs/performance.json; measures nothing.

  python scripts/make_performance_page.py

What measures, and adds to the figures: scripts/bench_peers.sh, bench_slots.py,
bench_growth.py, measure_shards.py.
"""

import argparse
import json
import pathlib
import sys

from rlvr.infra.performance_page import performance_page

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--figures", type=pathlib.Path, default=DOCS / "performance.json"
  )
  parser.add_argument(
    "--out", type=pathlib.Path, default=DOCS / "performance.md"
  )
  args = parser.parse_args(argv)
  try:
    page = performance_page(json.loads(args.figures.read_text()))
  except (OSError, ValueError) as error:
    print(f"error: {args.figures}: {error}", file=sys.stderr)
    return 1
  args.out.write_text(page, encoding="utf-8")
  return 0


if __name__ == "__main__":
  sys.exit(main())
