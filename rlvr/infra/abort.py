"""What a process says when JAX's coordination service aborts it.

The service runs in process 0. When that process dies, or doesn't find all the
others, JAX aborts at once, from a thread of C++, with a stack trace that
doesn't say who is missing. Python handlers of the signal would run too late (in
the main thread, after the abort), so the handler is set in C and calls back.
"""

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

_kept: list[Any] = []  # C holds no reference to its callbacks


def on_abort(
  message: str, status: int, *, when: Callable[[], bool] = lambda: True
) -> None:
  """Makes an abort end the process with a message.

  Args:
    message: goes to standard error.
    status: exit status.
    when: whether the message is the cause; else the abort goes on.
  """
  line = f"error: {message}\n".encode()

  def handle(_):
    if when():
      os.write(2, line)
      os._exit(status)

  callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  _kept.append(callback)
  ctypes.CDLL(None).signal(signal.SIGABRT, callback)


def abort_again() -> None:
  """Makes an abort what it is without `on_abort`."""
  signal.signal(signal.SIGABRT, signal.SIG_DFL)


def answers(address: str) -> bool:
  """Returns whether anybody listens at address:port."""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
  except OSError:
    return False
  return True
