"""Compiles gin/scale/*.gin for their slices; writes docs/scaling.md and .json.

  python scripts/make_scaling_page.py                 # all: hours on few cores
  python scripts/make_scaling_page.py --only qwen2_5_7b_v5e_4x8 --no-search
  python scripts/make_scaling_page.py --known         # what is missing
  python scripts/make_scaling_page.py --page          # from the figures there are

Figures are added to those in docs/scaling.json as they come, so that a run that
is broken off, or several at a time, lose nothing. Needs libtpu. Ends with 1
where something doesn't fit, 2 where the command line is wrong.

Each configuration's figures carry a digest of what its programs depend on;
figures of another are stale. So are those of a program whose code has changed,
which no digest sees: give it `"stale": true` in the figures. Figures from before there was one have none: they
count as the present configuration's, and --page fills it in, this once.
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
from rlvr.infra.chips import check_compiler  # noqa: E402
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
    "digest": scaling.digest(job),
  }


def stale(before: dict, settings: dict) -> bool:
  """Returns whether figures are of another configuration than this.

  Args:
    before: what the file has of a configuration.
    settings: from `settings_of`. A digest that the file lacks is no difference.
  """
  return any(
    before.get(name) != value
    for name, value in settings.items()
    if name != "digest" or name in before
  )


def change(file: pathlib.Path, how: Callable[[dict[str, Any]], None]) -> None:
  """Changes the file's figures, while no other process does."""
  file.touch()
  with open(file, "r+", encoding="utf-8") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    text = f.read()
    every = json.loads(text) if text else {}
    how(every)
    f.seek(0)
    f.truncate()
    f.write(json.dumps(every, indent=1, sort_keys=True) + "\n")


def save(file: pathlib.Path, name: str, settings: dict, found: dict) -> None:
  """Adds figures of one configuration to the file."""

  def add(every):
    before = every.get(name, {})
    programs = {} if stale(before, settings) else before["programs"]
    for program, new in found.items():
      old = programs.get(program, {})
      programs[program] = ({} if old.get("stale") else old) | new
    every[name] = settings | {"programs": programs}

  change(file, add)


def fill_in(file: pathlib.Path, compiler: str | None) -> None:
  """Adds to the file's figures what those from before it was kept lack.

  The digest, where all other settings are the present ones; and the compiler.

  Args:
    file: of the figures.
    compiler: version to fill in; None leaves it open.
  """

  def add(every):
    for one in scaling.shipped():
      if (entry := every.get(one.name)) is None:
        continue
      if "digest" not in entry:
        settings = settings_of(one)
        if stale(entry, settings):
          print(f"{one.name}: settings have changed, no digest filled in")
        else:
          entry["digest"] = settings["digest"]
          print(f"{one.name}: digest filled in")
      for program in entry["programs"].values():
        if compiler is not None and program.get("compiler") is None:
          program["compiler"] = compiler

  change(file, add)


def known(file: pathlib.Path, name: str, settings: dict, program: str) -> dict:
  """Returns the figures that the file has of a program; {} if none or stale."""
  if not file.exists():
    return {}
  before = json.loads(file.read_text(encoding="utf-8") or "{}").get(name, {})
  if stale(before, settings):
    return {}
  found = before["programs"].get(program, {})
  return {} if found.get("stale") else found


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


def chosen_by(args: argparse.Namespace) -> list[scaling.Shipped]:
  """Returns what to compile.

  Raises:
    ValueError: a flag that names nothing.
    ModuleNotFoundError: no compiler.
  """
  every = {one.name: one for one in scaling.shipped()}
  for name in args.only or ():
    if name not in every:
      raise ValueError(f"--only={name}: gin/scale has {', '.join(every)}")
  for program in args.programs.split(","):
    if program not in PROGRAMS:
      raise ValueError(f"--programs: {program!r} is none of {PROGRAMS}")
  if args.page:
    if not args.figures.exists():
      raise ValueError(f"--figures={args.figures}: no such file")
    return []
  check_compiler()
  return [every[name] for name in args.only or every]


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
  parser.add_argument(
    "--page",
    action="store_true",
    help="compile nothing; fill in the digests that figures lack",
  )
  parser.add_argument(
    "--compiler",
    metavar="VERSION",
    help="with --page: libtpu's, for figures that don't say which made them",
  )
  parser.add_argument(
    "--figures", type=pathlib.Path, default=docs / "scaling.json"
  )
  parser.add_argument("--out", type=pathlib.Path, default=docs / "scaling.md")
  args = parser.parse_args()
  try:
    chosen = chosen_by(args)
  except (ValueError, ModuleNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if args.page:
    fill_in(args.figures, args.compiler)
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
