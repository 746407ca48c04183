"""What a process says when JAX's coordination service aborts it.

The service runs in process 0. When that process dies, JAX aborts the others at
once, from a thread of C++, with a stack trace that doesn't say who died. Python
handlers of the signal would run too late (in the main thread, after the abort),
so the handler is set in C and calls back.
"""

import ctypes
import os
import signal
import socket
from typing import Any

_kept: list[Any] = []  # C holds no reference to its callbacks


def on_abort(coordinator: str, status: int) -> None:
  """Makes an abort end the process with a message that names process 0.

  Where process 0 still answers, the cause is another one and the abort goes on.

  Args:
    coordinator: address:port of process 0.
    status: exit status where process 0 is gone.
  """
  host, _, port = coordinator.rpartition(":")
  message = (
    f"error: the run ended on all hosts: host 0 (the coordinator, {coordinator})"
    " is gone: it was killed, or its machine is lost. --resume goes on from the"
    " last checkpoint\n"
  ).encode()

  def handle(_):
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
      os.write(2, message)
      os._exit(status)

  callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  _kept.append(callback)
  ctypes.CDLL(None).signal(signal.SIGABRT, callback)
