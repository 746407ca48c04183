"""The main loop of a worker process.

Run as a file, not as a module, and made of the standard library alone: what a
worker imports is what its item function needs. It talks over a socket of its
own, in lines of JSON (never pickle: what runs here may be hostile, and reading
JSON cannot run code in the parent):

    parent: [entry of sys.path, ...]
    worker: ["ready"]
    parent: ["load", id, address space, "module:name", {kwargs}]
    worker: ["loaded"]                      or ["unable", traceback] and the end
    parent: ["run", id, address space, [item, item, ...]]
    worker: ["ok", value, "", seconds]      or ["failed", null, error, seconds]

with one line back for each item, as soon as it is done: from them the parent
knows which item is running, and for how long. What is loaded stays; a function
is loaded before its items come.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def main() -> None:
  """Serves items until the socket closes."""
  descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
  os.set_inheritable(descriptor, False)
  _die_with_parent(parent)
  channel = socket.socket(fileno=descriptor)
  lines = channel.makefile("rb")

  def encode(message: list) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"

  sys.path[:] = json.loads(lines.readline())
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  channel.sendall(encode(["ready"]))
  functions: dict[int, Callable[[Any], Any]] = {}
  sizes: dict[int, int] = {}  # bytes of address space that loading took
  for line in lines:
    command, key, space, *rest = json.loads(line)
    # Each has its own limit, and what the others loaded doesn't count for it.
    if space is not None:
      space += sum(size for other, size in sizes.items() if other != key)
    if command == "load":
      before = _address_space()
      try:
        _limit_address_space(space)
        functions[key] = _make(*rest)
      except BaseException:
        _limit_address_space(None)
        channel.sendall(encode(["unable", traceback.format_exc(limit=-4)]))
        return
      sizes[key] = max(0, _address_space() - before)
      channel.sendall(encode(["loaded"]))
      continue
    _limit_address_space(space)
    for item in rest[0]:
      start = time.perf_counter()
      try:
        value = functions[key](item)
        answer = encode(["ok", value, "", time.perf_counter() - start])
      except (KeyboardInterrupt, Exception) as error:
        # SystemExit goes through: an item that ends the worker has failed,
        # which the parent sees.
        seconds = time.perf_counter() - start
        answer = encode(["failed", None, describe_error(error), seconds])
      channel.sendall(answer)


def _make(name: str, kwargs: Mapping[str, Any]) -> Callable[[Any], Any]:
  module, _, attribute = name.partition(":")
  return getattr(importlib.import_module(module), attribute)(**kwargs)


def _address_space() -> int:
  """Returns bytes of address space in use; 0 where there is no /proc."""
  try:
    with open("/proc/self/statm", "rb") as file:
      return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  except (OSError, IndexError, ValueError):
    return 0


def _limit_address_space(size: int | None) -> None:
  # The soft limit alone: the next function may have a higher one.
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  soft = hard if size is None else size
  if hard != resource.RLIM_INFINITY:
    soft = min(soft, hard)
  resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def describe_error(error: BaseException) -> str:
  """Returns type and message, shortened; printing a value may itself fail."""
  try:
    message = str(error)[:500]
  except BaseException:
    message = "(its message cannot be printed)"
  return f"{type(error).__name__}: {message}"


def _die_with_parent(parent: int) -> None:
  """Makes this process end when its parent has ended, however that happened.

  A closed socket ends an idle worker; this is for one that is busy. On Linux
  the kernel does it, even against a loop in C.
  """
  try:
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
  except (ImportError, OSError, AttributeError):

    def watch() -> None:
      while os.getppid() == parent:
        time.sleep(1.0)
      os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
  if os.getppid() != parent:  # it ended before we asked
    os._exit(1)


if __name__ == "__main__":
  with contextlib.suppress(BrokenPipeError, ConnectionResetError):
    main()
