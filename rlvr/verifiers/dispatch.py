"""The worker processes of a pool, and the one thread that owns them.

The thread hands out chunks of items, reads results, enforces the limits, and
replaces workers that died, hung or grew. Callers (`pool.WorkerPool`, on any
thread) only put tasks into its inbox and wait on futures.

All processes serve all functions: a worker loads what it has not loaded yet
when it is idle, or when it is its turn, and keeps it. A chunk holds items of one
function, and its limits hold while it runs. Functions with items waiting take
turns, so that a slow one delays the others by a chunk and not by its queue.
"""

import atexit
import collections
import contextlib
import json
import math
import os
import selectors
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Literal

from rlvr.verifiers.jobs import (
  CHUNK_S,
  Function,
  Job,
  Outcome,
  Task,
  Worker,
  WorkerPoolError,
)
from rlvr.verifiers.process import WorkerProcess

_CHUNK_BYTES = 1 << 20
_MEMORY_POLL_S = 0.05


class Dispatcher:
  """Runs items of several functions in one set of worker processes.

  There are as many as the function that asks for most has asked for. It ends by
  itself, and with it the processes, when no function is left that they can
  serve.
  """

  def __init__(self) -> None:
    """Makes it; processes start with the first function."""
    self.restarts = 0  # workers that ended before the functions did
    self._lock = threading.Lock()
    self._room = threading.Condition(self._lock)
    self._waiting = 0  # items that aren't done; guarded by the lock
    self._inbox: list[Task] = []  # guarded by the lock
    self._functions: list[Function] = []  # guarded by the lock
    self._load_ids: dict[str, int] = {}  # guarded by the lock
    self._closing = False  # guarded by the lock
    self._broken: str | None = None  # guarded by the lock

    self._turns: collections.deque[Function] = collections.deque()
    self._num_workers = 0
    self._workers: dict[int, Worker] = {}  # by pid
    # Workers that came to nothing before they had anything to do, since the
    # last item that was done. Crashes of many idle workers at once are no
    # reason yet to give up.
    self._useless = 0
    self._next_look = 0.0  # when memory is looked at again
    self._selector = selectors.DefaultSelector()
    self._wake_read, wake_write = os.pipe()
    os.set_blocking(self._wake_read, False)
    os.set_blocking(wake_write, False)
    self._wake_write: int | None = wake_write  # guarded by the lock
    self._selector.register(self._wake_read, selectors.EVENT_READ, None)
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
    return list(self._workers.copy())

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
      self._num_workers = max(f.num_workers for f in self._functions)
    while len(self._workers) < self._num_workers and self._broken is None:
      self._start_worker()
    self._hand_out()
    for key, _ in self._selector.select(self._patience()):
      if key.data is None:
        with contextlib.suppress(BlockingIOError):
          os.read(self._wake_read, 4096)
        continue
      worker, what = key.data
      if worker.process.pid not in self._workers:
        continue  # dropped by an earlier event of this round
      if what == "stderr":
        if not worker.process.drain_stderr():
          self._selector.unregister(worker.process.stderr)
      else:
        worker.process.flush()
        self._read(worker)
    look = time.monotonic() >= self._next_look
    if look:
      self._next_look = time.monotonic() + _MEMORY_POLL_S
    for worker in list(self._workers.values()):
      if worker.process.pid in self._workers:
        self._enforce_time(worker)
      if look and worker.tasks:
        self._enforce_memory(worker)
    return True

  def _start_worker(self) -> None:
    try:
      process = WorkerProcess()
    except OSError as error:
      self._count_useless(None, f"{type(error).__name__}: {error}")
      return
    worker = Worker(process, time.monotonic())
    self._workers[process.pid] = worker
    self._selector.register(
      process.channel, selectors.EVENT_READ, (worker, "channel")
    )
    self._selector.register(
      process.stderr, selectors.EVENT_READ, (worker, "stderr")
    )

  def _hand_out(self) -> None:
    for worker in list(self._workers.values()):
      if self._limit(worker) is None:  # it idles
        if len(self._workers) > self._num_workers:
          self._drop(worker)  # whoever wanted so many has gone
          continue
        function = self._next_function(worker)
        if function is None:
          pass
        elif function.load_id not in worker.footprints:
          self._load(worker, function)
        elif worker.function is not function and worker.outgrown(function):
          self._drop(worker)  # by what others did in it
          continue
        else:
          self._send_chunk(worker, function)
      events = selectors.EVENT_READ
      if worker.process.unsent:
        events |= selectors.EVENT_WRITE
      channel = worker.process.channel
      key = self._selector.get_key(channel)
      if key.events != events:
        self._selector.modify(channel, events, key.data)

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

  def _load(self, worker: Worker, function: Function) -> None:
    worker.loading = function
    worker.memory_before = worker.process.memory()
    worker.since = time.monotonic()
    worker.process.send(
      [
        *("load", function.load_id, function.address_space),
        *(function.name, dict(function.kwargs)),
      ]
    )

  def _send_chunk(self, worker: Worker, function: Function) -> None:
    pending = function.pending
    size = min(
      function.max_chunk,
      max(1, int(CHUNK_S / max(function.mean_s, 1e-6))),
      math.ceil(len(pending) / self._num_workers),
    )
    worker.function = function
    # Few bytes too: a chunk's transfer counts for its first item's time.
    size_b = 0
    while pending and len(worker.tasks) < size:
      if worker.tasks and size_b > _CHUNK_BYTES:
        break
      worker.tasks.append(pending.popleft())
      size_b += len(worker.tasks[-1].line)
    lines = ", ".join(task.line for task in worker.tasks)
    space = json.dumps(function.address_space)
    worker.since = time.monotonic()
    worker.process.send_line(f'["run", {function.load_id}, {space}, [{lines}]]')

  def _patience(self) -> float | None:
    """Returns how long nothing has to be done."""
    if len(self._workers) < self._num_workers:
      return 0.0
    now = time.monotonic()
    until = [
      worker.since + limit - now
      for worker in self._workers.values()
      if (limit := self._limit(worker)) is not None
    ]
    if any(
      w.tasks and w.function is not None and w.function.memory_limit
      for w in self._workers.values()
    ):
      until.append(_MEMORY_POLL_S)
    return max(min(until), 0.0) if until else None

  def _limit(self, worker: Worker) -> float | None:
    """Returns the seconds that it has for what it does; None if it idles."""
    if not worker.ready:
      return max(f.start_limit_s for f in self._functions)
    if worker.loading is not None:
      return worker.loading.start_limit_s
    if worker.tasks:
      return worker.tasks[0].function.time_limit_s
    return None

  def _read(self, worker: Worker) -> None:
    for message in worker.process.receive():
      match message:
        case ["ready"] if not worker.ready:
          worker.ready = True
        case ["loaded"] if worker.loading is not None:
          if not self._loaded(worker, worker.loading):
            return
        case ["unable", str(error)] if worker.loading is not None:
          function = worker.loading
          self._drop(worker)
          self._count_useless(function, error)
          return
        case [
          ("ok" | "failed") as status,
          value,
          str(error),
          float(seconds),
        ] if worker.tasks:
          now = time.monotonic()
          function = worker.tasks[0].function
          function.mean_s += 0.1 * (now - worker.since - function.mean_s)
          worker.since = now
          self._useless = function.useless = 0
          self._done(
            worker.tasks.popleft(), Outcome(value, status, error, seconds)
          )
        case _:  # somebody else writes to the worker's socket
          worker.process.ended = True
          break
    if worker.process.ended:
      self._lost(worker)
    elif (
      not worker.tasks
      and worker.function is not None
      and worker.outgrown(worker.function)
    ):
      self._drop(worker)

  def _loaded(self, worker: Worker, function: Function) -> bool:
    """Notes what a worker has loaded; returns whether it is still there."""
    worker.loading = None
    memory = worker.process.memory()
    worker.footprints[function.load_id] = max(0, memory - worker.memory_before)
    if worker.outgrown(function):
      used = worker.memory_of(function) >> 20
      self._drop(worker)
      # Where items ran before, what they left may be to blame: a new worker,
      # in which none did, will show it.
      if worker.function is None:
        self._count_useless(
          function,
          f"it holds {used} MB before its first item, over half of"
          f" memory_limit_mb={function.memory_limit >> 20}: raise that",
        )
      return False
    function.ready.set()
    return True

  def _lost(self, worker: Worker) -> None:
    """Deals with a worker that has ended by itself."""
    seconds = time.monotonic() - worker.since
    running, how = self._drop(worker)
    if running is None:
      self._count_useless(worker.loading, how)
    else:
      error = f"the worker ended while running this item: {how}"
      self._done(running, Outcome(None, "failed", error, seconds))

  def _enforce_time(self, worker: Worker) -> None:
    if not self._is_late(worker):
      return
    self._read(worker)  # news may have come since this thread last looked
    if worker.process.pid not in self._workers or not self._is_late(worker):
      return
    if worker.tasks:
      error = f"over time_limit_s={worker.tasks[0].function.time_limit_s}"
      self._give_up(worker, "timed_out", error)
      return
    limit = self._limit(worker)
    self._drop(worker)
    self._count_useless(worker.loading, f"not ready in start_limit_s={limit}")

  def _is_late(self, worker: Worker) -> bool:
    limit = self._limit(worker)
    return limit is not None and time.monotonic() - worker.since > limit

  def _enforce_memory(self, worker: Worker) -> None:
    function = worker.tasks[0].function
    limit = function.memory_limit
    if limit and (memory := worker.memory_of(function)) > limit:
      error = (
        f"the worker was at {memory >> 20} MB, over"
        f" memory_limit_mb={limit >> 20}"
      )
      self._give_up(worker, "failed", error)

  def _give_up(
    self, worker: Worker, status: Literal["timed_out", "failed"], error: str
  ) -> None:
    """Kills a worker for the sake of the item that it runs."""
    seconds = time.monotonic() - worker.since
    running, _ = self._drop(worker)
    if running is not None:
      self._useless = running.function.useless = 0
      self._done(running, Outcome(None, status, error, seconds))

  def _drop(self, worker: Worker) -> tuple[Task | None, str]:
    """Kills a worker; returns its running item, and how it had ended.

    Its other items go back to the front of the queue: they weren't started.
    """
    del self._workers[worker.process.pid]
    for file in (worker.process.channel, worker.process.stderr):
      with contextlib.suppress(KeyError):
        self._selector.unregister(file)
    how = worker.process.kill()
    self.restarts += 1
    running = worker.tasks.popleft() if worker.tasks else None
    if worker.tasks:
      worker.tasks[0].function.pending.extendleft(reversed(worker.tasks))
      worker.tasks.clear()
    return running, how

  def _done(self, task: Task, outcome: Outcome) -> None:
    job = task.job
    job.outcomes[task.index] = outcome
    job.remaining -= 1
    with self._room:
      self._waiting -= 1
      self._room.notify_all()
    if not job.remaining:
      job.future.set_result(job.outcomes)

  def _count_useless(self, function: Function | None, why: str) -> None:
    """Counts a worker that came to nothing, for a function or for all."""
    if function is not None:
      function.useless += 1
      count = function.useless
    else:
      self._useless += 1
      count = self._useless
    if count < max(3, 2 * self._num_workers):
      return
    if function is not None:
      self._end(function, _came_to_nothing([function], count, why), broken=True)
    else:
      self._broken = _came_to_nothing(self._functions, count, why)

  def _end(
    self, function: Function, reason: str, *, broken: bool = False
  ) -> None:
    """Serves a function no longer; its jobs that aren't done get an error."""
    for worker in list(self._workers.values()):
      if worker.tasks and worker.tasks[0].function is function:
        running, _ = self._drop(worker)
        if running is not None:
          function.pending.appendleft(running)
      elif worker.loading is function:
        self._drop(worker)
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
    for worker in self._workers.values():
      worker.process.hang_up()
    deadline = time.monotonic() + 0.5
    for worker in list(self._workers.values()):
      if worker.ready and self._limit(worker) is None:  # it leaves by itself
        worker.process.wait(deadline - time.monotonic())
    reason = self._broken or "the pool was closed before this job was done"
    for function in list(self._functions):
      if self._broken is not None and function.broken is None:
        self._end(function, self._broken, broken=True)
      self._end(function, reason)
    for worker in list(self._workers.values()):
      self._drop(worker)
    self._selector.close()
    with self._lock:
      os.close(self._wake_write)
      os.close(self._wake_read)
      self._wake_write = None


def _came_to_nothing(
  functions: Iterable[Function], count: int, why: str
) -> str:
  names = ", ".join(sorted({repr(function.name) for function in functions}))
  return (
    f"{count} workers for {names} in a row came to nothing; the last: {why}"
  )


# A dispatcher that nobody closed is closed when the interpreter exits; its
# thread is a daemon, so that the exit gets that far. If the parent is killed
# instead, the kernel and the closed sockets end the workers.
_OPEN: "weakref.WeakSet[Dispatcher]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
  for dispatcher in list(_OPEN):
    dispatcher.close()
