"""Writes docs/methods.md from the catalogue and the figures, if there are any.

  python scripts/make_methods_page.py
  python scripts/make_methods_page.py --check    # exit status 1 if it is stale

Figures come from docs/methods_figures.json, which scripts/run_methods.py writes.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlvr.catalogue.page import methods_page  # noqa: E402


def page(figures: pathlib.Path) -> str:
  """Returns the page with the figures of a file, without them if it's absent."""
  if not figures.exists():
    return methods_page()
  return methods_page(json.loads(figures.read_text(encoding="utf-8")))


def main() -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  docs = ROOT / "docs"
  parser.add_argument("--out", type=pathlib.Path, default=docs / "methods.md")
  parser.add_argument(
    "--figures", type=pathlib.Path, default=docs / "methods_figures.json"
  )
  parser.add_argument("--check", action="store_true", help="write nothing")
  args = parser.parse_args()
  text = page(args.figures)
  if args.check:
    if args.out.exists() and args.out.read_text(encoding="utf-8") == text:
      return 0
    print(
      f"{args.out} is stale: run python scripts/make_methods_page.py",
      file=sys.stderr,
    )
    return 1
  args.out.parent.mkdir(parents=True, exist_ok=True)
  args.out.write_text(text, encoding="utf-8")
  print(f"wrote {args.out}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
