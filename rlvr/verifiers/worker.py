"""The main loop of a worker process.

Run as a file, not as a module, and made of the standard library alone: what a
worker imports is what its item function needs. It talks over a socket of its
own, in lines of JSON (never pickle: what runs here may be hostile, and reading
JSON cannot run code in the parent):

    parent: {"function": "module:name", "kwargs": {...}, "path": [...]}
    worker: ["ready"]                       or ["unable", traceback]
    parent: [item, item, ...]
    worker: ["ok", value, "", seconds]      or ["failed", null, error, seconds]

with one line back for each item, as soon as it is done: from them the parent
knows which item is running, and for how long.
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


def main() -> None:
  """Serves items until the socket closes."""
  descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
  os.set_inheritable(descriptor, False)
  _die_with_parent(parent)
  channel = socket.socket(fileno=descriptor)
  lines = channel.makefile("rb")

  def encode(message: list) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"

  spec = json.loads(lines.readline())
  try:
    if spec["address_space"]:
      limit = (spec["address_space"],) * 2
      resource.setrlimit(resource.RLIMIT_AS, limit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[:] = spec["path"]
    module, _, name = spec["function"].partition(":")
    make = getattr(importlib.import_module(module), name)
    function = make(**spec["kwargs"])
  except BaseException:
    channel.sendall(encode(["unable", traceback.format_exc(limit=-4)]))
    return
  channel.sendall(encode(["ready"]))
  for line in lines:
    for item in json.loads(line):
      start = time.perf_counter()
      try:
        value = function(item)
        answer = encode(["ok", value, "", time.perf_counter() - start])
      except (KeyboardInterrupt, Exception) as error:
        # SystemExit goes through: an item that ends the worker has failed,
        # which the parent sees.
        seconds = time.perf_counter() - start
        answer = encode(["failed", None, describe_error(error), seconds])
      channel.sendall(answer)


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
