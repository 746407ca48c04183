"""What a pool keeps of its work: functions, jobs, items, workers, outcomes."""

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Mapping
from typing import Any, Literal

from rlvr.verifiers.process import WorkerProcess

CHUNK_S = 0.02  # a chunk is to take about this long: cheap items travel packed


class WorkerPoolError(RuntimeError):
  """The pool cannot work: its workers don't start, or it was closed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one item.

  value: what the item function returned, as JSON gives it back; None unless
    `status` is "ok".
  status: "timed_out": killed at the time limit. "failed": it raised, or its
    worker died or outgrew the memory limit while running it.
  error: why, for people; empty if ok.
  seconds: wall time that it ran.
  """

  value: Any
  status: Literal["ok", "timed_out", "failed"]
  error: str
  seconds: float


@dataclasses.dataclass(eq=False, kw_only=True)
class Function:
  """One use of an item function: its settings, what waits for it, its state.

  `pool.WorkerPool` says what the settings mean. Two uses with the same `name`
  and `kwargs` are one function to a worker.
  """

  name: str  # "module:name"
  kwargs: Mapping[str, Any]
  num_workers: int
  time_limit_s: float
  memory_limit: int  # bytes; 0: none
  start_limit_s: float
  max_chunk: int
  max_waiting: int

  # Guarded by the dispatcher's lock.
  load_id: int = -1  # what workers call it
  broken: str | None = None  # why no worker can serve it
  closing: bool = False  # its user has gone
  # A worker has loaded it, or none will.
  ready: threading.Event = dataclasses.field(default_factory=threading.Event)
  # Nothing of it is left.
  ended: threading.Event = dataclasses.field(default_factory=threading.Event)

  # The dispatcher's thread's own.
  pending: "collections.deque[Task]" = dataclasses.field(
    default_factory=collections.deque
  )
  mean_s: float = CHUNK_S  # moving average of the seconds per item
  useless: int = 0  # workers that came to nothing, since the last item done

  @property
  def address_space(self) -> int | None:
    """Bytes of address space that it gets, None for no limit."""
    return 4 * self.memory_limit or None


@dataclasses.dataclass
class Job:
  """A batch of items with one future."""

  future: concurrent.futures.Future
  outcomes: list[Outcome | None]
  remaining: int


@dataclasses.dataclass
class Task:
  """One item of a job."""

  function: Function
  job: Job
  index: int
  line: str  # the item as JSON


@dataclasses.dataclass(eq=False)
class Worker:
  """A worker process, what it has loaded and what it has been given.

  footprints: bytes by which it grew while loading, by `Function.load_id`.
  function: whose items it runs or ran last.
  tasks: the first is running; all are `function`'s.
  """

  process: WorkerProcess
  since: float  # when it was started, began to load, or began the running item
  ready: bool = False
  loading: Function | None = None
  memory_before: int = 0  # bytes, when it began to load
  function: Function | None = None
  footprints: dict[int, int] = dataclasses.field(default_factory=dict)
  tasks: collections.deque[Task] = dataclasses.field(
    default_factory=collections.deque
  )

  def memory_of(self, function: Function) -> int:
    """Returns resident bytes, less what other functions took to load."""
    others = sum(
      size for key, size in self.footprints.items() if key != function.load_id
    )
    return self.process.memory() - others

  def outgrown(self, function: Function) -> bool:
    """Returns whether it has grown too much to go on with this function."""
    limit = function.memory_limit
    return bool(limit) and self.memory_of(function) > limit // 2
