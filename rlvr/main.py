"""The command line: `python -m rlvr.main --gin_file=... --gin.X=Y`."""

import argparse
import dataclasses
import difflib
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import gin

_LOOPS = frozenset({"rlvr.loops.Reinforcement", "rlvr.loops.Supervised"})
_ROOT = pathlib.Path(__file__).resolve().parent.parent


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns flags and gin bindings of a command line.

  Raises:
    SystemExit: unknown flag or missing --gin_file.
  """
  parser = argparse.ArgumentParser(
    prog="python -m rlvr.main",
    description="Runs a gin-configured experiment.",
    epilog="--gin.NAME=VALUE binds a parameter or macro, after the files:"
    " --gin.train.total_steps=10, --gin.SEED=1. Strings need their quotes:"
    " --gin.train.run_dir=\"'runs/x'\".",
  )
  parser.add_argument(
    "--gin_file",
    action="append",
    required=True,
    help="configuration, from the working folder or the repository's root;"
    " repeatable",
  )
  parser.add_argument(
    "--run_dir", help="folder for all that the run leaves (train.run_dir)"
  )
  parser.add_argument(
    "--resume", action="store_true", help="go on with the run in run_dir"
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="print the plan and stop"
  )
  parser.add_argument(
    "--profile",
    action="store_true",
    help="trace the third and fourth step into run_dir/profile; docs/profiling.md",
  )
  parser.add_argument(
    "--profile_steps",
    metavar="FIRST-LAST",
    help="trace these steps (10-12) instead, or +3-4 counted from the start of"
    " this process",
  )
  parser.add_argument(
    "--compile_cache",
    metavar="FOLDER",
    help="keep compiled programs here (JAX_COMPILATION_CACHE_DIR, else"
    " ~/.cache/rlvr/jax); '' keeps none",
  )
  hosts = parser.add_argument_group(
    "several hosts", "start the same command on each; see docs/hosts.md"
  )
  hosts.add_argument(
    "--distributed",
    choices=["auto"],
    help="find the other hosts by the environment (Cloud TPU, GKE, Slurm)",
  )
  hosts.add_argument("--coordinator", help="ADDRESS:PORT of process 0")
  hosts.add_argument("--num_processes", type=int, help="how many there are")
  hosts.add_argument("--process_id", type=int, help="this one's number, from 0")
  for name, text in (
    ("heartbeat_seconds", "how long a host may be silent (60)"),
    ("barrier_seconds", "how long a host may stay at one place (1800)"),
    ("connect_seconds", "how long the hosts wait for one another (300)"),
  ):
    hosts.add_argument(
      f"--{name}", type=float, help=text, default=argparse.SUPPRESS
    )
  try:
    rest, bindings = split_bindings(argv)
  except ValueError as error:
    parser.error(str(error))
  return parser.parse_args(rest), bindings


def split_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns a command line's other arguments, and its gin bindings.

  Raises:
    ValueError: a binding without a value.
  """
  bindings, rest = [], []
  for arg in argv:
    if arg.startswith("--gin."):
      if "=" not in arg:
        raise ValueError(f"{arg}: write --gin.NAME=VALUE")
      name, _, value = arg.removeprefix("--gin.").partition("=")
      bindings.append(f"{name} = {value}")
    else:
      rest.append(arg)
  return rest, bindings


def load_config(files: Sequence[str], bindings: Sequence[str]) -> None:
  """Parses gin files and bindings into gin's global configuration.

  Raises:
    FileNotFoundError: no such file.
    ValueError: an unknown parameter or function, or a macro that nothing uses;
      each with the nearest known name. Or settings of a loop that isn't run.
  """
  gin.clear_config()
  gin.add_config_file_search_path(str(_ROOT))
  for file in files:
    if not (os.path.exists(file) or (_ROOT / file).exists()):
      raise FileNotFoundError(
        f"--gin_file={file}: no such file here or under {_ROOT}"
      )
  gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
  unused = unused_macros()
  given = {binding.partition("=")[0].strip() for binding in bindings}
  if mistyped := [name for name in unused if name in given]:
    known = sorted(_used_macros())
    near = difflib.get_close_matches(mistyped[0], known, 1)
    raise ValueError(
      f"--gin.{mistyped[0]}: nothing in the configuration uses this macro"
      + (f"; did you mean {near[0]}?" if near else f"; there are {known}")
    )
  if unused:
    # A task names a verifier that a supervised run has no use for; but a
    # mistyped macro in a file shows here too.
    print(f"macros bound in files and not used: {', '.join(unused)}")
  _check_loop()
  gin.finalize()


def _check_loop() -> None:
  """Raises where another loop than the one that runs is set, to no effect."""
  train = gin.config._CONFIG.get(("", "rlvr.train.train"), {})
  loop = train.get("loop")
  if not isinstance(loop, gin.config.ConfigurableReference):
    return
  runs = loop.configurable.selector
  for other in _LOOPS - {runs}:
    for (_, selector), parameters in gin.config._CONFIG.items():
      if selector == other:
        names = [f"{other.removeprefix('rlvr.')}.{name}" for name in parameters]
        raise ValueError(
          f"{', '.join(names)}: nothing reads it, as this run's loop is"
          f" {runs.removeprefix('rlvr.')}. Leave out the --gin_file or binding"
          " that sets it (gin/methods/ and gin/sampling/ are for"
          " gin/runs/train.gin), or end with the other one of gin/runs/"
        )


def _references(value: Any):
  if isinstance(value, gin.config.ConfigurableReference):
    yield value
    return
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, list | tuple):
    for item in value:
      yield from _references(item)


def _used_macros() -> set[str]:
  used = set()
  for parameters in gin.config._CONFIG.values():
    for value in parameters.values():
      for reference in _references(value):
        if reference.selector in ("gin.macro", "macro"):
          used.add(reference.scoped_selector.rpartition("/")[0])
  return used


def unused_macros() -> list[str]:
  """Returns macros that are bound but used by no binding, sorted."""
  bound = {
    scope for (scope, selector) in gin.config._CONFIG if selector == "gin.macro"
  }
  return sorted(bound - _used_macros())


def _run(args: argparse.Namespace, bindings: Sequence[str]) -> None:
  """Runs what the configuration names."""
  load_config(args.gin_file, bindings)
  flags: dict[str, Any] = {"resume": args.resume, "dry_run": args.dry_run}
  if args.run_dir is not None:
    flags["run_dir"] = args.run_dir
  if args.profile or args.profile_steps is not None:
    steps = "+3-4" if args.profile_steps is None else args.profile_steps
    if not steps:
      raise ValueError("--profile_steps='': write FIRST-LAST such as 10-12")
    flags["profile_steps"] = steps
  if not any(key[1] == "rlvr.launch.run" for key in gin.config._CONFIG):
    raise ValueError(
      "the configuration names nothing to run: give a --gin_file of gin/runs/"
      " last, which binds `launch.run.entry`"
    )
  gin.get_configurable("rlvr.launch.run")(
    **flags,
    config_text=gin.config_str(),
    operative_config=gin.operative_config_str,
  )


def main(
  argv: Sequence[str] | None = None, *, compile_cache: bool = False
) -> int:
  """Runs the command line; returns the exit status.

  Args:
    argv: None takes the process's own.
    compile_cache: keep compiled programs on disk where no flag says otherwise.
      Whoever calls this from a program of his own decides that himself.
  """
  argv = sys.argv[1:] if argv is None else argv
  args, bindings = parse_args(argv)
  # Not at the top: a mistyped flag is answered before seconds of imports.
  from rlvr.infra import hosts

  names = [field.name for field in dataclasses.fields(hosts.HostSettings)]
  status = 1
  try:
    hosts.connect(
      hosts.HostSettings(**{n: getattr(args, n) for n in names if n in args})
    )
    if compile_cache or args.compile_cache is not None:
      from rlvr.infra.compilation import use_cache

      said = use_cache(args.compile_cache)
      if hosts.current().main:
        print(said)
    _run(args, bindings)
    hosts.current().leave(0)
    return 0
  except (ValueError, OSError, TypeError, RuntimeError) as error:
    # The others must know before this process says anything else.
    hosts.current().post(error)
    if os.environ.get("RLVR_TRACEBACK"):
      if not hosts.current().several:
        raise
      traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    print("(RLVR_TRACEBACK=1 shows where it came from)", file=sys.stderr)
    status = hosts.LOST if isinstance(error, hosts.HostLost) else 1
  except KeyboardInterrupt as error:
    hosts.current().post(error)
    print("interrupted; --resume goes on from the last checkpoint")
    status = 130
  except BaseException as error:
    hosts.current().post(error)
    if not hosts.current().several:
      raise
    traceback.print_exc()
  # With several hosts this ends the process here: none waits for another.
  hosts.current().leave(status)
  return status


if __name__ == "__main__":
  sys.exit(main(compile_cache=True))
