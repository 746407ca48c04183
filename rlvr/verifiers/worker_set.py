"""The worker processes of a dispatcher: what each does, and the limits on it.

Starts them, has them load functions, hands out chunks of items, reads results,
enforces the limits, and kills those that hung or grew. Which function is next,
and what becomes of an outcome, is the dispatcher's (`dispatch.Dispatcher`), on
whose thread all of this runs.
"""

import contextlib
import json
import math
import os
import selectors
import time
from collections.abc import Callable
from typing import Literal

from rlvr.verifiers.jobs import (
  CHUNK_S,
  Function,
  Outcome,
  Task,
  Worker,
)
from rlvr.verifiers.process import WorkerProcess

_CHUNK_BYTES = 1 << 20
_MEMORY_POLL_S = 0.05


class WorkerSet:
  """The processes of one dispatcher; for its thread alone, but for `pids`.

  num_workers: how many there are to be; the dispatcher's to set.
  start_limit_s: what a process has to get ready; likewise.
  restarts: workers that have ended, killed or by themselves.
  """

  def __init__(
    self,
    *,
    wake: int,
    done: Callable[[Task, Outcome], None],
    useless: Callable[[Function | None, int, str], None],
  ):
    """Makes it, without processes.

    Args:
      wake: descriptor, not blocking, that ends `serve`'s wait when it is
        written to.
      done: called with an item and what became of it.
      useless: called with a function, or None for all, the number of workers in
        a row that came to nothing for it, and why the last did.
    """
    self.num_workers = 0
    self.start_limit_s = 0.0
    self.restarts = 0
    self._done, self._give_up_on = done, useless
    self._workers: dict[int, Worker] = {}  # by pid
    # Workers that came to nothing before they had anything to do, since the
    # last item that was done. Crashes of many idle workers at once are no
    # reason yet to give up.
    self._useless = 0
    self._next_look = 0.0  # when memory is looked at again
    self._wake = wake
    self._selector = selectors.DefaultSelector()
    self._selector.register(wake, selectors.EVENT_READ, None)

  @property
  def complete(self) -> bool:
    """Whether there are as many as there are to be."""
    return len(self._workers) >= self.num_workers

  def pids(self) -> list[int]:
    """Returns the process ids as of now; on any thread."""
    return list(self._workers.copy())

  def start_one(self) -> None:
    """Starts a process, which counts as useless if it can't be started."""
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

  def hand_out(
    self, next_function: Callable[[Worker], Function | None]
  ) -> None:
    """Gives each idle worker something to do.

    Args:
      next_function: says whose items an idle worker is to run, or what it is
        to load; None leaves it idle.
    """
    for worker in list(self._workers.values()):
      if self._limit(worker) is None:  # it idles
        if len(self._workers) > self.num_workers:
          self._drop(worker)  # whoever wanted so many has gone
          continue
        function = next_function(worker)
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

  def serve(self) -> None:
    """Waits for news, deals with it, and enforces the limits."""
    for key, _ in self._selector.select(self._patience()):
      if key.data is None:
        with contextlib.suppress(BlockingIOError):
          os.read(self._wake, 4096)
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

  def release(self, function: Function) -> None:
    """Kills whoever runs or loads a function; its items wait again."""
    for worker in list(self._workers.values()):
      if worker.tasks and worker.tasks[0].function is function:
        running, _ = self._drop(worker)
        if running is not None:
          function.pending.appendleft(running)
      elif worker.loading is function:
        self._drop(worker)

  def hang_up(self) -> None:
    """Tells all to leave, and waits a moment for those that idle."""
    for worker in self._workers.values():
      worker.process.hang_up()
    deadline = time.monotonic() + 0.5
    for worker in list(self._workers.values()):
      if worker.ready and self._limit(worker) is None:  # it leaves by itself
        worker.process.wait(deadline - time.monotonic())

  def close(self) -> None:
    """Kills those that are left."""
    for worker in list(self._workers.values()):
      self._drop(worker)
    self._selector.close()

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
      math.ceil(len(pending) / self.num_workers),
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
    if not self.complete:
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
      return self.start_limit_s
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

  def _count_useless(self, function: Function | None, why: str) -> None:
    """Counts a worker that came to nothing, for a function or for all."""
    if function is not None:
      function.useless += 1
      count = function.useless
    else:
      self._useless += 1
      count = self._useless
    if count >= max(3, 2 * self.num_workers):
      self._give_up_on(function, count, why)
