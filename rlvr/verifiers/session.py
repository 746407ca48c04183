"""One running sandbox as its parent sees it: messages, looks, and its end.

Messages go in marshalled (it is our own text that reads them) and come out as
lines of JSON, since everything that comes out is hostile. Standard library only.
"""

import contextlib
import json
import marshal
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_LOOK_S = 0.02
_CHUNK = 1 << 16
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Ended(Exception):
  """The sandbox has ended, or was ended, before it answered.

  status: see `sandbox.Answer`.
  detail: for people.
  """

  def __init__(self, status: str, detail: str):
    super().__init__(f"{status}: {detail}")
    self.status, self.detail = status, detail


class Use(NamedTuple):
  """What a tree of processes uses.

  pids: its processes, the root first.
  tasks: processes and their threads.
  memory: resident bytes, without what files back.
  """

  pids: list[int]
  tasks: int
  memory: int


class Bounds(NamedTuple):
  """What is looked at from outside.

  memory: bytes of all processes together.
  tasks: processes and threads of all, those that serve among them.
  files: in the private folder.
  answer: bytes of one answer.
  """

  memory: int
  tasks: int
  files: int
  answer: int


class Session:
  """Talks to a sandbox, and ends it when it uses too much."""

  def __init__(
    self,
    command: Sequence[str],
    *,
    bounds: Bounds,
    environment: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    folder: str | None = None,
    user: int | None = None,
  ):
    """Starts the processes.

    Args:
      command: command line.
      bounds: see `Bounds`.
      environment: all of it.
      pass_fds: descriptors to hand over.
      folder: where there are no walls: the private folder, removed at the end.
      user: user and group to become; None to stay.

    Raises:
      OSError: they can't be started.
    """
    self._bounds, self._folder = bounds, folder
    as_user: dict[str, Any] = {}
    if user is not None:
      as_user = {"user": user, "group": user, "extra_groups": []}
    self._process = subprocess.Popen(
      list(command),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=dict(environment),
      pass_fds=tuple(pass_fds),
      cwd=folder,
      start_new_session=folder is not None,
      **as_user,
    )
    self.pid = self._process.pid
    pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
    self._pipes = [pipe for pipe in pipes if pipe is not None]  # all three
    for pipe in self._pipes:
      os.set_blocking(pipe.fileno(), False)
    self._input, self._output, self._errors = (
      pipe.fileno() for pipe in self._pipes
    )
    self._unread, self._unsent = bytearray(), memoryview(b"")
    self.ended: Ended | None = None

  def exchange(self, message: Any, *, seconds: float) -> dict[str, Any]:
    """Sends a message and returns the answer to it.

    Args:
      message: what `marshal` takes: plain data.
      seconds: wall time to wait.

    Raises:
      Ended: there was none; the sandbox has ended.
    """
    self.send(message)
    return self.receive(seconds=seconds)

  def send(self, message: Any) -> None:
    """Sends a message; what the pipe doesn't take now, `receive` sends.

    Raises:
      Ended: the sandbox has ended.
      ValueError: the message isn't plain data.
    """
    data = marshal.dumps(message)
    self.send_bytes(len(data).to_bytes(4, "big") + data)

  def send_bytes(self, data: bytes) -> None:
    """Sends bytes; see `send`."""
    if self.ended is not None:
      raise self.ended
    self._unsent = memoryview(bytes(self._unsent) + data)

  def receive(self, *, seconds: float) -> dict[str, Any]:
    """Returns the next answer; see `exchange`."""
    if self.ended is not None:
      raise self.ended
    deadline = time.monotonic() + seconds
    look = time.monotonic() + _LOOK_S
    poll = select.poll()
    poll.register(self._output, select.POLLIN)
    if self._unsent:
      poll.register(self._input, select.POLLOUT)
    while b"\n" not in self._unread:
      now = time.monotonic()
      if now >= look:
        self._look()
        look = now + _LOOK_S
      if now >= deadline:
        self._end("timed_out", f"no answer within {seconds:g} s")
      for descriptor, _ in poll.poll(1000 * _LOOK_S):
        if descriptor == self._input:
          if not self._feed():
            poll.unregister(self._input)
          continue
        data = self._read()
        if data == b"":
          self._end("lost", "it ended from within")
        self._unread += data or b""
        if len(self._unread) > self._bounds.answer:
          self._end("output", f"an answer over {self._bounds.answer} bytes")
    line, _, rest = self._unread.partition(b"\n")
    self._unread = bytearray(rest)
    try:
      answer = json.loads(line)
    except (ValueError, RecursionError):
      answer = None
    if not isinstance(answer, dict):
      self._end("lost", "what serves inside was overwritten")
    return answer

  def errors(self) -> str:
    """Returns what was printed on stderr, shortened; for people."""
    with contextlib.suppress(OSError):
      return os.read(self._errors, 2000).decode("utf-8", "replace").strip()
    return ""

  def close(self) -> None:
    """Ends all processes, and removes the private folder."""
    if self.ended is None:
      self.ended = Ended("lost", "it was closed")
    self._kill()
    self._process.wait()
    for pipe in self._pipes:
      with contextlib.suppress(OSError):
        pipe.close()
    if self._folder is not None:
      shutil.rmtree(self._folder, ignore_errors=True)

  def __enter__(self) -> "Session":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _end(self, status: str, detail: str) -> None:
    self.ended = Ended(status, detail)
    self._kill()
    raise self.ended

  def _kill(self) -> None:
    # In a process-id namespace, all end with the first. Elsewhere they are
    # found as descendants, while there is somebody to descend from.
    if self._folder is not None and self._process.poll() is None:
      _end_tree(self.pid)
    self._process.kill()

  def _feed(self) -> bool:
    """Writes what the pipe takes; False when all is written."""
    try:
      sent = os.write(self._input, self._unsent[:_CHUNK])
      self._unsent = self._unsent[sent:]
    except BlockingIOError:
      pass
    except OSError:
      self._unsent = memoryview(b"")  # reading says why
    return bool(self._unsent)

  def _read(self) -> bytes | None:
    try:
      return os.read(self._output, _CHUNK)
    except BlockingIOError:
      return None
    except OSError:
      return b""

  def _look(self) -> None:
    """Ends the sandbox if it uses more than it may."""
    use = tree_use(self.pid)
    if use.memory > self._bounds.memory:
      self._end("memory", f"{use.memory >> 20} MB in all processes together")
    if use.tasks > self._bounds.tasks:
      self._end("processes", f"{use.tasks} processes and threads")
    files = self._files(use.pids)
    if files > self._bounds.files:
      self._end("files", f"{files} files")

  def _files(self, pids: Sequence[int]) -> int:
    """Returns how many files the private folder has."""
    if self._folder is not None:
      return _count_files(self._folder, self._bounds.files)
    with contextlib.suppress(OSError):
      # The last one is inside, the first may not be yet.
      info = os.statvfs(f"/proc/{pids[-1]}/root/tmp")
      if len(pids) > 2:
        return info.f_files - info.f_ffree
    return 0


def tree_use(root: int) -> Use:
  """Returns what a process and its descendants use now."""
  pids, tasks, memory = [root], 0, 0
  for pid in pids:  # it grows meanwhile
    with contextlib.suppress(OSError, ValueError, IndexError):
      for thread in os.listdir(f"/proc/{pid}/task"):
        tasks += 1
        pids += map(int, _text(f"/proc/{pid}/task/{thread}/children").split())
      _, resident, shared = map(int, _text(f"/proc/{pid}/statm").split()[:3])
      memory += (resident - shared) * _PAGE
  return Use(pids, tasks, memory)


def processes_of(user: int) -> int:
  """Returns how many processes and threads a user has now."""
  count = 0
  for name in os.listdir("/proc"):
    with contextlib.suppress(OSError):
      if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
        count += len(os.listdir(f"/proc/{name}/task"))
  return count


def _text(path: str) -> str:
  with open(path) as file:
    return file.read()


def _count_files(folder: str, enough: int) -> int:
  count = 0
  for _, folders, files in os.walk(folder):
    count += len(folders) + len(files)
    if count > enough:
      break
  return count


def _end_tree(root: int) -> None:
  """Kills the descendants of a process, as far as they can be found."""
  deadline = time.monotonic() + 2.0
  while time.monotonic() < deadline:
    rest = tree_use(root).pids[1:]
    living = [pid for pid in rest if _lives(pid)]
    if not living:
      return
    for pid in living:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.001)


def _lives(pid: int) -> bool:
  with contextlib.suppress(OSError, IndexError):
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] != "Z"
  return False
