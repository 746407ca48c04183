"""Functions and their items, and the one thread that has them run.

The thread owns the worker processes (`worker_set.WorkerSet`), replaces those
that died, says whose items are next, and completes jobs. Callers
(`pool.WorkerPool`, on any thread) only put tasks into its inbox and wait on
futures.

All processes serve all functions: a worker loads what it has not loaded yet
when it is idle, or when it is its turn, and keeps it. A chunk holds items of one
function, and its limits hold while it runs. Functions with items waiting take
turns, so that a slow one delays the others by a chunk and not by its queue.
"""

import atexit
import collections
import contextlib
import json
import os
import threading
import weakref
from collections.abc import Sequence

from rlvr.verifiers.jobs import (
  Function,
  Job,
  Outcome,
  Task,
  Worker,
  WorkerPoolError,
)
from rlvr.verifiers.worker_set import WorkerSet


class Dispatcher:
  """Runs items of several functions in one set of worker processes.

  There are as many as the function that asks for most has asked for. It ends by
  itself, and with it the processes, when no function is left that they can
  serve.
  """

  def __init__(self) -> None:
    """Makes it; processes start with the first function."""
    self._lock = threading.Lock()
    self._room = threading.Condition(self._lock)
    self._waiting = 0  # items that aren't done; guarded by the lock
    self._inbox: list[Task] = []  # guarded by the lock
    self._functions: list[Function] = []  # guarded by the lock
    self._load_ids: dict[str, int] = {}  # guarded by the lock
    self._closing = False  # guarded by the lock
    self._broken: str | None = None  # guarded by the lock

    self._turns: collections.deque[Function] = collections.deque()
    self._wake_read, wake_write = os.pipe()
    os.set_blocking(self._wake_read, False)
    os.set_blocking(wake_write, False)
    self._wake_write: int | None = wake_write  # guarded by the lock
    self._workers = WorkerSet(
      wake=self._wake_read, done=self._done, useless=self._came_to_nothing
    )
    self._thread = threading.Thread(
      target=self._run, name="rlvr workers", daemon=True
    )
    _OPEN.add(self)

  # For callers, on any thread.

  def add(self, function: Function) -> None:
    """Starts to serve a function.

    Raises:
      WorkerPoolError: it has ended.
    """
    with self._lock:
      if self._closing:
        raise WorkerPoolError("the pool is closed: make a new one")
      key = json.dumps([function.name, function.kwargs], sort_keys=True)
      function.load_id = self._load_ids.setdefault(key, len(self._load_ids))
      self._functions.append(function)
      if self._thread.ident is None:
        self._thread.start()
    self._wake()

  def submit(self, function: Function, job: Job, lines: Sequence[str]) -> None:
    """Takes a job's items, as JSON; see `WorkerPool.submit`."""
    tasks = [Task(function, job, i, line) for i, line in enumerate(lines)]
    with self._room:
      if not self._on_own_thread():
        self._room.wait_for(
          lambda: (
            not self._serves(function) or self._waiting < function.max_waiting
          )
        )
      if function.broken is not None:
        raise WorkerPoolError(function.broken)
      if not self._serves(function):
        raise WorkerPoolError("the pool is closed: make a new one")
      self._inbox.extend(tasks)
      self._waiting += len(tasks)
    self._wake()

  def serves(self, function: Function) -> bool:
    """Returns whether it takes items of this function."""
    with self._lock:
      return self._serves(function)

  def _serves(self, function: Function) -> bool:
    gone = self._closing or function.closing
    return not gone and function.broken is None

  def worker_pids(self) -> list[int]:
    """Returns the process ids of the workers as of now."""
    return self._workers.pids()

  @property
  def restarts(self) -> int:
    """Workers that ended before the functions did."""
    return self._workers.restarts

  def remove(self, function: Function) -> None:
    """Ends a function; with the last one, the workers. Can be called twice."""
    with self._room:
      function.closing = True
      self._room.notify_all()
    self._wake()
    if not self._on_own_thread():
      function.ended.wait()
      if self._closing:
        self._thread.join()

  def close(self) -> None:
    """Ends all; futures that aren't done get a WorkerPoolError."""
    with self._room:
      self._closing = True
      started = self._thread.ident is not None
      self._room.notify_all()
    self._wake()
    if not started:
      self._shut_down()
    elif not self._on_own_thread():
      self._thread.join()

  def _on_own_thread(self) -> bool:
    return threading.current_thread() is self._thread

  def _wake(self) -> None:
    # Under the lock, so that a closed descriptor's number isn't written to. A
    # full pipe wakes the thread anyway.
    with self._lock, contextlib.suppress(BlockingIOError):
      if self._wake_write is not None:
        os.write(self._wake_write, b"!")

  # On the dispatcher's own thread.

  def _run(self) -> None:
    try:
      while self._round():
        pass
    except BaseException as error:
      self._broken = (
        f"the pool's thread failed: {type(error).__name__}: {error}"
      )
      raise
    finally:
      with self._room:
        self._closing = True
        self._room.notify_all()
      self._shut_down()

  def _round(self) -> bool:
    """Does what is to be done now and waits for news; False ends it all."""
    with self._lock:
      for task in self._inbox:
        task.function.pending.append(task)
      self._inbox.clear()
      for function in self._functions:
        if function not in self._turns and function.broken is None:
          self._turns.append(function)
      leaving = [f for f in self._functions if f.closing]
    for function in leaving:
      self._end(function, "the pool was closed before this job was done")
    with self._lock:
      if self._closing or self._broken is not None:
        return False
      functions = list(self._functions)
    self._workers.num_workers = max(f.num_workers for f in functions)
    self._workers.start_limit_s = max(f.start_limit_s for f in functions)
    while not self._workers.complete and self._broken is None:
      self._workers.start_one()
    self._workers.hand_out(self._next_function)
    self._workers.serve()
    return True

  def _next_function(self, worker: Worker) -> Function | None:
    """Returns whose turn it is, else what an idle worker may load, or None."""
    for function in self._turns:
      if function.pending:
        self._turns.remove(function)
        self._turns.append(function)
        return function
    for function in self._turns:
      if function.load_id not in worker.footprints:
        return function
    return None

  def _done(self, task: Task, outcome: Outcome) -> None:
    job = task.job
    job.outcomes[task.index] = outcome
    job.remaining -= 1
    with self._room:
      self._waiting -= 1
      self._room.notify_all()
    if not job.remaining:
      job.future.set_result(job.outcomes)

  def _came_to_nothing(
    self, function: Function | None, count: int, why: str
  ) -> None:
    """Ends a function, or all, for which no worker is of use."""
    functions = self._functions if function is None else [function]
    names = ", ".join(sorted({repr(f.name) for f in functions}))
    reason = (
      f"{count} workers for {names} in a row came to nothing; the last: {why}"
    )
    if function is None:
      self._broken = reason
    else:
      self._end(function, reason, broken=True)

  def _end(
    self, function: Function, reason: str, *, broken: bool = False
  ) -> None:
    """Serves a function no longer; its jobs that aren't done get an error."""
    self._workers.release(function)
    with contextlib.suppress(ValueError):
      self._turns.remove(function)
    with self._room:
      if broken:
        function.broken = reason
      else:
        self._functions.remove(function)
      # Those that are broken have users, who will hear of it, but no use.
      if all(f.broken is not None for f in self._functions):
        self._closing = True
      left = [task for task in self._inbox if task.function is function]
      self._inbox = [t for t in self._inbox if t.function is not function]
      left.extend(function.pending)
      function.pending.clear()
      self._waiting -= len(left)
      self._room.notify_all()
    for job in {id(task.job): task.job for task in left}.values():
      job.future.set_exception(WorkerPoolError(reason))
    function.ready.set()
    if not broken:
      function.ended.set()

  def _shut_down(self) -> None:
    if self._wake_write is None:
      return
    self._workers.hang_up()
    reason = self._broken or "the pool was closed before this job was done"
    for function in list(self._functions):
      if self._broken is not None and function.broken is None:
        self._end(function, self._broken, broken=True)
      self._end(function, reason)
    self._workers.close()
    with self._lock:
      os.close(self._wake_write)
      os.close(self._wake_read)
      self._wake_write = None


# A dispatcher that nobody closed is closed when the interpreter exits; its
# thread is a daemon, so that the exit gets that far. If the parent is killed
# instead, the kernel and the closed sockets end the workers.
_OPEN: "weakref.WeakSet[Dispatcher]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
  for dispatcher in list(_OPEN):
    dispatcher.close()
