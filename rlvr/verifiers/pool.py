"""A pool of worker processes with a hard wall-clock limit on every item.

What verifiers need and `concurrent.futures` does not give: an item that hangs
(in a loop in C, holding the interpreter) is killed from outside and the others
go on. No `signal.alarm` anywhere, so any thread may use the pool, and several
at once.

A `WorkerPool` is one function's share of a `dispatch.Dispatcher`, which has the
processes: its own, or one that several functions share (`sharing.take_pool`).
"""

import concurrent.futures
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlvr.verifiers.dispatch import Dispatcher
from rlvr.verifiers.jobs import Function, Job, Outcome, WorkerPoolError


class WorkerPool:
  """Runs an item function in worker processes; see the module's docstring."""

  def __init__(
    self,
    function: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_workers: int,
    time_limit_s: float,
    memory_limit_mb: int | None = None,
    start_limit_s: float = 60.0,
    max_chunk: int = 64,
    max_waiting: int = 100_000,
    dispatcher: Dispatcher | None = None,
  ):
    """Starts the workers, without waiting for them.

    Args:
      function: "module:name"; called once in each worker as `name(**kwargs)`,
        it returns the item function: JSON value in, JSON value out. Its module
        should import little: a killed worker imports it again.
      kwargs: JSON.
      num_workers: processes; of a shared dispatcher there are as many as the
        pool that asks for most has asked for.
      time_limit_s: wall seconds per item, start of the worker not included.
      memory_limit_mb: resident megabytes at which a worker is killed (its item
        has failed); one above half of it is replaced between chunks. What other
        functions took to load in the same worker doesn't count. Looked at every
        50 ms, where the system has /proc; four times as much address space is
        refused at once. None for no limit.
      start_limit_s: wall seconds for a worker to start, and to load the
        function.
      max_chunk: most items sent to a worker at a time.
      max_waiting: items that may be waiting or running; while there are as
        many, `submit` waits. (A larger job is let in when there are fewer.) Of
        a shared dispatcher, the items of all its functions.
      dispatcher: with the processes, which other pools may use too; None makes
        one of its own.

    Raises:
      ValueError: an argument out of range, or not "module:name".
      WorkerPoolError: the dispatcher has ended.
    """
    module, _, name = function.partition(":")
    if not module or not name:
      raise ValueError(f"function={function!r}: give 'package.module:name'")
    for arg, value in (
      ("num_workers", num_workers),
      ("time_limit_s", time_limit_s),
      ("start_limit_s", start_limit_s),
      ("max_chunk", max_chunk),
      ("max_waiting", max_waiting),
      ("memory_limit_mb", 1 if memory_limit_mb is None else memory_limit_mb),
    ):
      if not value > 0:
        raise ValueError(f"WorkerPool: {arg}={value} must be above 0")
    self._function = Function(
      name=function,
      kwargs=dict(kwargs or {}),
      num_workers=num_workers,
      time_limit_s=time_limit_s,
      memory_limit=(memory_limit_mb or 0) << 20,
      start_limit_s=start_limit_s,
      max_chunk=max_chunk,
      max_waiting=max_waiting,
    )
    json.dumps(self._function.kwargs)  # raises here rather than in the thread
    self._dispatcher = dispatcher if dispatcher is not None else Dispatcher()
    self._dispatcher.add(self._function)

  def map(self, items: Sequence[Any]) -> list[Outcome]:
    """Returns the outcome of each item, in order; waits for all.

    Raises:
      TypeError, ValueError: an item is not JSON.
      WorkerPoolError: the workers don't start, or the pool is closed.
    """
    return self.submit(items).result()

  def submit(
    self, items: Sequence[Any]
  ) -> "concurrent.futures.Future[list[Outcome]]":
    """Returns the future of the items' outcomes, in order.

    It can't be cancelled. A done-callback runs on the dispatcher's own thread:
    keep it short. Where much is waiting already, this waits (see
    `max_waiting`), but not in a done-callback.

    Raises:
      TypeError, ValueError: an item is not JSON.
      WorkerPoolError: the workers don't start, or the pool is closed.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    lines = [json.dumps(item) for item in items]
    job = Job(future, [None] * len(lines), len(lines))
    self._dispatcher.submit(self._function, job, lines)
    if not lines:
      future.set_result([])
    return future

  @property
  def usable(self) -> bool:
    """Whether it takes items: it isn't closed, and its workers start."""
    return self._dispatcher.serves(self._function)

  @property
  def restarts(self) -> int:
    """Workers that ended before the pool did, whatever function they ran."""
    return self._dispatcher.restarts

  def wait_until_ready(self, timeout_s: float | None = None) -> None:
    """Returns when a worker can take items.

    Raises:
      WorkerPoolError: the workers don't start.
      TimeoutError: not within `timeout_s`.
    """
    if not self._function.ready.wait(timeout_s):
      raise TimeoutError(f"no worker was ready within {timeout_s} s")
    if self._function.broken is not None:
      raise WorkerPoolError(self._function.broken)

  def worker_pids(self) -> list[int]:
    """Returns the process ids of the workers as of now."""
    return self._dispatcher.worker_pids()

  def close(self) -> None:
    """Ends the workers, unless another pool uses them too.

    Futures that aren't done get a WorkerPoolError. Can be called twice, and
    from any thread.
    """
    self._dispatcher.remove(self._function)

  def __enter__(self) -> "WorkerPool":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()
