"""Compiles gin/scale/*.gin for their slices; writes docs/scaling.md and .json.

  python scripts/make_scaling_page.py                 # all: hours on few cores
  python scripts/make_scaling_page.py --only qwen2_5_7b_v5e_4x8 --no-search
  python scripts/make_scaling_page.py --known         # what is missing
  python scripts/make_scaling_page.py --page          # from the figures there are

Figures are added to those in docs/scaling.json as they come, so that a run that
is broken off, or several at a time, lose nothing. Needs libtpu.
"""

import argparse
import fcntl
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from rlvr import models  # noqa: E402
from rlvr.infra import scaling  # noqa: E402
from rlvr.infra.program_memory import Memory  # noqa: E402
from rlvr.infra.programs import size_text  # noqa: E402
from rlvr.infra.scaling_page import scaling_page  # noqa: E402

PROGRAMS = ("sample", "update")
# A batch that is expected to take this many times the memory isn't compiled:
# what can't fit takes the compiler the longest.
BEYOND = 1.25


def settings_of(one: scaling.Shipped) -> dict:
  """Returns what a configuration says, for JSON."""
  job = scaling.job_of(one)
  mesh, recipe = job.settings["mesh"], job.recipe
  return {
    "model": one.model,
    "topology": one.topology,
    "num_params": models.num_params(recipe.model),
    "usable_bytes": one.chip.usable_bytes,
    "data": mesh.data,
    "fsdp": mesh.fsdp,
    "tensor": mesh.tensor,
    "num_prompts": recipe.num_prompts,
    "group_size": recipe.group_size,
    "prompt_length": job.prompt_length,
    "response_length": recipe.sampling.max_tokens,
    "micro_batch": scaling.piece_size(job),
  }


def save(file: pathlib.Path, name: str, settings: dict, found: dict) -> None:
  """Adds figures of one configuration to the file."""
  file.touch()
  with open(file, "r+", encoding="utf-8") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    text = f.read()
    every = json.loads(text) if text else {}
    before = every.get(name, {})
    if any(before.get(k) != v for k, v in settings.items()):
      before = {}  # the configuration has changed: its figures are stale
    programs = before.get("programs", {})
    for program, new in found.items():
      programs[program] = programs.get(program, {}) | new
    every[name] = settings | {"programs": programs}
    f.seek(0)
    f.truncate()
    f.write(json.dumps(every, indent=1, sort_keys=True) + "\n")


def known(file: pathlib.Path, name: str, settings: dict, program: str) -> dict:
  """Returns the figures that the file has of a program; {} if none or stale."""
  if not file.exists():
    return {}
  before = json.loads(file.read_text(encoding="utf-8") or "{}").get(name, {})
  if any(before.get(k) != v for k, v in settings.items()):
    return {}
  return before["programs"].get(program, {})


def search(
  one: scaling.Shipped,
  program: str,
  settings: dict,
  figures: dict,
  keep: Callable[[dict[str, Any]], None],
) -> None:
  """Looks for the largest batch that fits, by doubling the prompts.

  What is known so far is kept after each compilation, as a lower bound, and
  a size that an earlier search found to fit isn't compiled again.
  """
  first = settings["num_prompts"]
  taken = dict(figures["memory"])
  totals = {int(n): total for n, total in figures.get("sizes", {}).items()}
  totals[first] = taken.pop("total")  # of the others

  def found(num_prompts: int, open_end: bool) -> None:
    whole = settings["group_size"] * num_prompts
    if program == "update":
      whole = settings["micro_batch"] * num_prompts // first
    sizes = {str(n): total for n, total in totals.items()}
    bound = {"largest": whole, "larger_may_fit": open_end, "sizes": sizes}
    keep({program: bound})

  found(max(totals), True)

  def fits(num_prompts: int) -> bool:
    if num_prompts <= max(totals):
      return True
    expected = scaling.expected_bytes(totals, num_prompts)
    if expected > BEYOND * one.chip.usable_bytes:
      said = f"{size_text(int(expected))} expected, not compiled"
      print(f"{one.name} {program} {num_prompts} prompts: {said}", flush=True)
      return False
    jax.clear_caches()
    report = scaling.report_of(one, program, [f"NUM_PROMPTS={num_prompts}"])
    if report.fits:
      totals[num_prompts] = report.memory.total
      found(max(totals), True)
    said = report.problem or size_text(report.memory.total)
    print(f"{one.name} {program} {num_prompts} prompts: {said}", flush=True)
    return report.fits

  guess = scaling.doublings_left(Memory(**taken), program, one.chip)
  found(*scaling.largest(fits, first, guess=guess))


def main() -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  docs = ROOT / "docs"
  parser.add_argument("--only", action="append", help="file; repeatable")
  parser.add_argument("--programs", default=",".join(PROGRAMS))
  parser.add_argument(
    "--no-search", action="store_true", help="don't look for larger batches"
  )
  parser.add_argument(
    "--known",
    action="store_true",
    help="keep the figures that there are, and go on with what is missing",
  )
  parser.add_argument("--page", action="store_true", help="compile nothing")
  parser.add_argument(
    "--figures", type=pathlib.Path, default=docs / "scaling.json"
  )
  parser.add_argument("--out", type=pathlib.Path, default=docs / "scaling.md")
  args = parser.parse_args()
  chosen = [] if args.page else scaling.shipped()
  if args.only:
    chosen = [scaling.shipped_of(name) for name in args.only]
  code = 0
  for one in chosen:
    settings = settings_of(one)
    for program in args.programs.split(","):
      found = {}
      if args.known:
        found = known(args.figures, one.name, settings, program)
      if not found:
        jax.clear_caches()
        found = scaling.figures(scaling.report_of(one, program), one.chip)
        save(args.figures, one.name, settings, {program: found})
      print(f"{one.name} {program}: {found['problem'] or 'fits'}", flush=True)
      if not found["fits"]:
        code = 1
      elif not args.no_search and found.get("larger_may_fit", True):
        keep = functools.partial(save, args.figures, one.name, settings)
        search(one, program, settings, found, keep)
  figures = json.loads(args.figures.read_text(encoding="utf-8"))
  args.out.write_text(scaling_page(figures), encoding="utf-8")
  print(f"wrote {args.out}")
  return code


if __name__ == "__main__":
  sys.exit(main())
