"""Compiled programs: kept on disk between runs, and counted in a run.

The cache is JAX's own. On a CPU, XLA compiles for the very processor that it
finds, and a program with instructions that another lacks must not be loaded
there: the folder's name says the processor's instruction sets, so that a home
on a network serves machines of several kinds.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import platform
import threading
import time
from collections.abc import Mapping

import jax

from rlvr.infra.profiling import covered

_ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = 0.2  # of compiling, for a program to be kept
_MAX_BYTES = 4 << 30

_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILE = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"


def default_folder(environment: Mapping[str, str] = os.environ) -> pathlib.Path:
  """Returns where this machine's programs are kept.

  Args:
    environment: for XDG_CACHE_HOME.
  """
  given = environment.get("XDG_CACHE_HOME", "")
  # A relative one is to be ignored, by the XDG Base Directory Specification.
  base = (
    pathlib.Path(given)
    if os.path.isabs(given)
    else pathlib.Path(os.path.expanduser("~")) / ".cache"
  )
  return base / "rlvr" / "jax" / processor_key()


def processor_key(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> str:
  """Returns a name that machines share which run the same instructions.

  Args:
    cpuinfo: Linux's list of processors; elsewhere the platform's name counts.
  """
  kinds = {platform.processor()}
  with contextlib.suppress(OSError):
    text = pathlib.Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    fields = ("flags", "Features", "model name", "CPU part")
    kinds = {
      f"{name.strip()}:{' '.join(sorted(value.split()))}"
      for name, _, value in (line.partition(":") for line in text.splitlines())
      if name.strip() in fields
    }
  digest = hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()
  return f"{platform.machine() or 'unknown'}-{digest[:12]}"


def use_cache(folder: str | None) -> str:
  """Turns the cache on or off for this process; returns a line that says so.

  A folder that can't be used is no reason to end a run: the line says why, and
  everything is compiled.

  Args:
    folder: where programs are kept; "" keeps none; None is the folder in
      JAX_COMPILATION_CACHE_DIR, or `default_folder()`.
  """
  if folder == "":
    jax.config.update("jax_enable_compilation_cache", False)
    return "compile cache: off"
  if not jax.config.values["jax_enable_compilation_cache"]:
    return "compile cache: off (JAX_ENABLE_COMPILATION_CACHE)"
  if folder is None and _ENVIRONMENT in os.environ:
    given = os.environ[_ENVIRONMENT]
    return f"compile cache: {given or 'off'} ({_ENVIRONMENT})"
  path = str(default_folder()) if folder is None else folder
  if "://" not in path:
    path = os.path.abspath(os.path.expanduser(path))
    try:
      # Whoever writes here has his programs run: nobody else.
      os.makedirs(path, mode=0o700, exist_ok=True)
      if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError("it can't be written")
      prune(pathlib.Path(path), max_bytes=_MAX_BYTES)
    except OSError as error:
      jax.config.update("jax_enable_compilation_cache", False)
      return (
        f"warning: no compile cache in {path}: {error}. Everything is compiled;"
        " give another folder as --compile_cache=FOLDER"
      )
  jax.config.update("jax_compilation_cache_dir", path)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update(
      "jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS
    )
  return f"compile cache: {path} (--compile_cache='' is without)"


def prune(folder: pathlib.Path, *, max_bytes: int) -> int:
  """Deletes the programs unused for longest; returns how many.

  Args:
    folder: of the cache.
    max_bytes: that stay at the most.
  """
  found = []
  for path in folder.glob("*-cache"):
    with contextlib.suppress(FileNotFoundError):  # another process prunes too
      about = path.stat()
      used = max(about.st_atime, about.st_mtime)
      found.append((used, about.st_size, path))
  total, count = sum(size for _, size, _ in found), 0
  for _, size, path in sorted(found):
    if total <= max_bytes:
      break
    path.unlink(missing_ok=True)
    path.with_name(path.name.removesuffix("-cache") + "-atime").unlink(
      missing_ok=True
    )
    total, count = total - size, count + 1
  return count


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What was compiled in some time.

  seconds: of tracing, lowering and compiling, or of reading the cache; a
    function that is traced inside another counts once.
  names: of the programs.
  cached: how many of them came from the disk.
  """

  seconds: float
  names: tuple[str, ...]
  cached: int

  def text(self, *, names: bool = False) -> str:
    """Returns "7 programs in 12.3 s, 5 of them from the cache".

    Args:
      names: say which.
    """
    number = len(self.names)
    text = f"{number} program{'s' * (number != 1)} in {self.seconds:.1f} s"
    if self.cached:
      text += f", {self.cached} of them from the cache"
    return f"{text} ({', '.join(self.names)})" if names else text

  def metrics(self) -> dict[str, float]:
    """Returns what stands in a step's figures."""
    return {
      "time/compile_s": self.seconds,
      "time/compile_count": float(len(self.names)),
    }


class CompileWatch:
  """Counts what JAX compiles in this process, from `start` to `close`."""

  def __init__(self):
    # Verifiers and loaders have threads that may compile.
    self._lock = threading.Lock()
    self._intervals: list[tuple[float, float]] = []
    self._names: list[str] = []
    self._cached = 0
    self._total = Compiled(0.0, (), 0)

  def take(self) -> Compiled:
    """Returns what was compiled since the last call."""
    with self._lock:
      found = Compiled(
        covered(self._intervals), tuple(self._names), self._cached
      )
      self._intervals, self._names, self._cached = [], [], 0
      before = self._total
      self._total = Compiled(
        before.seconds + found.seconds,
        before.names + found.names,
        before.cached + found.cached,
      )
    return found

  def total(self) -> Compiled:
    """Returns what was compiled since the watch began."""
    self.take()
    return self._total

  def _on_duration(
    self, event: str, duration_secs: float, **about: str | int
  ) -> None:
    if event not in (_TRACE, _LOWER, _COMPILE):
      return
    now = time.perf_counter()
    with self._lock:
      self._intervals.append((now - duration_secs, now))
      if event == _COMPILE:
        self._names.append(str(about.get("fun_name", "?")))

  def _on_event(self, event: str, **_: str | int) -> None:
    if event == _HIT:
      with self._lock:
        self._cached += 1

  def start(self) -> None:
    """Begins to count."""
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    jax.monitoring.register_event_listener(self._on_event)

  def close(self) -> None:
    """Stops counting; may be called twice."""
    with contextlib.suppress(AssertionError, ValueError):  # closed before
      jax.monitoring.unregister_event_duration_listener(self._on_duration)
      jax.monitoring.unregister_event_listener(self._on_event)
