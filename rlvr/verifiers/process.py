"""One worker process, as its parent sees it."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import IO, Any

_WORKER = str(pathlib.Path(__file__).with_name("worker.py"))
_STDERR_TAIL = 2000  # characters of a worker's last words that errors quote
_MAX_UNREAD = 8 << 20  # bytes without a line's end: no honest worker does so
_ONE_THREAD = {
  name: "1"
  for name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
  )
}


class WorkerProcess:
  """A running worker: non-blocking messages, memory in use, and its end.

  It is started by exec, never by a bare fork (JAX's threads do not survive
  one), in a session of its own: Ctrl-C does not reach it, and `kill` takes its
  children with it. Its stdout goes nowhere, of its stderr the tail is kept.
  """

  def __init__(self) -> None:
    """Starts the process; what it is to load and to run, `send` says.

    Raises:
      OSError: the process can't be started.
    """
    self.channel, theirs = socket.socketpair()
    try:
      self._process = subprocess.Popen(
        [
          *(sys.executable, "-P", "-W", "ignore", _WORKER),
          *(str(theirs.fileno()), str(os.getpid())),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,
        env={**os.environ, **_ONE_THREAD},
      )
    except BaseException:
      self.channel.close()
      raise
    finally:
      theirs.close()
    self.pid = self._process.pid
    assert self._process.stderr is not None
    self.stderr: IO[bytes] = self._process.stderr
    os.set_blocking(self.stderr.fileno(), False)
    self.channel.setblocking(False)
    self.ended = False  # the worker has closed the channel, or talked nonsense
    self._unsent = bytearray()
    self._unread = bytearray()
    self._last_words = b""
    self.send([entry or os.getcwd() for entry in sys.path])

  def send(self, message: Any) -> None:
    """Sends a message, or what of it the socket takes now."""
    self.send_line(json.dumps(message))

  def send_line(self, line: str) -> None:
    """Sends a message that is JSON already."""
    self._unsent += line.encode("ascii") + b"\n"
    self.flush()

  @property
  def unsent(self) -> bool:
    """Whether `flush` has something left to do."""
    return bool(self._unsent)

  def flush(self) -> None:
    """Sends what the socket takes now."""
    try:
      while self._unsent:
        sent = self.channel.send(self._unsent)
        del self._unsent[:sent]
    except BlockingIOError:
      pass
    except OSError:  # it has ended; reading says so, after its last messages
      self._unsent.clear()

  def receive(self) -> list[list]:
    """Returns the messages that have arrived; sets `ended` at the last."""
    # Only what is new is looked through: a long message comes in many parts.
    complete = False
    try:
      while data := self.channel.recv(1 << 16):
        complete |= b"\n" in data
        self._unread += data
        if len(self._unread) > _MAX_UNREAD:
          break
      self.ended = True
    except BlockingIOError:
      pass
    except OSError:
      self.ended = True
    if not complete:
      return []
    *lines, rest = self._unread.split(b"\n")
    self._unread = bytearray(rest)
    messages = []
    for line in lines:
      try:
        message = json.loads(line)
      except (ValueError, RecursionError):
        message = None
      if not isinstance(message, list) or not message:
        self.ended = True  # somebody else writes to its socket: trust no more
        break
      messages.append(message)
    return messages

  def drain_stderr(self) -> bool:
    """Reads what the worker printed; returns False at its end."""
    try:
      while data := os.read(self.stderr.fileno(), 1 << 16):
        self._last_words = (self._last_words + data)[-_STDERR_TAIL:]
    except BlockingIOError:
      return True
    except (OSError, ValueError):
      pass
    return False

  def memory(self) -> int:
    """Returns resident bytes; 0 where the system does not tell (no /proc)."""
    try:
      with open(f"/proc/{self.pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
      return 0

  def kill(self) -> str:
    """Ends the process and its children; returns how it had ended."""
    # An exit by itself is reaped (and its status kept) before the kill; the
    # group is killed in both cases, for what the worker left behind.
    how = self._exit(grace_s=0.2 if self.ended else 0.0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=10.0)
    self.drain_stderr()
    self.channel.close()
    self.stderr.close()
    words = self._last_words.decode("utf-8", "replace").strip()
    return f"{how}; it printed: {words}" if words else how

  def hang_up(self) -> None:
    """Closes the channel: an idle worker then exits by itself."""
    with contextlib.suppress(OSError):
      self.channel.shutdown(socket.SHUT_RDWR)

  def wait(self, seconds: float) -> None:
    """Waits until the process has ended, at most so long."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=max(0.0, seconds))

  def _exit(self, grace_s: float) -> str:
    deadline = time.monotonic() + grace_s
    while (code := self._process.poll()) is None:
      if time.monotonic() >= deadline:
        return "killed"
      time.sleep(0.002)
    if code < 0:
      try:
        return f"ended by {signal.Signals(-code).name}"
      except ValueError:
        return f"ended by signal {-code}"
    return f"exited with status {code}"
