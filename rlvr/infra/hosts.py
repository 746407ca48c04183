"""Several hosts: one process on each, joined by `jax.distributed`.

    hosts = connect(HostSettings(coordinator="10.0.0.2:8476", ...))
    hosts.at("step 3: verifying")  # shown when it stays there too long
    hosts.barrier("step 3")        # all are there, or the run ends

The run ends on all hosts when it ends on one. A host that fails writes why to
the key-value store of JAX's coordination service, which runs in process 0. A
thread on each host reads it there and ends its process, whatever the main
thread waits for: a collective whose other side is gone may never return. The
same thread shows that its host lives; process 0 watches these signs of life and
names a host that was killed, or that stays at one place for too long.

Exit statuses: 1 where a host failed with an error, 75 (EX_TEMPFAIL) where a
host was lost and the same command with --resume can go on.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn

import jax
from jax._src import distributed

from rlvr.infra.abort import abort_again, answers, on_abort

LOST = os.EX_TEMPFAIL  # exit status where a host was lost
_ROOT = "rlvr/"


class HostLost(RuntimeError):
  """Another host is gone, or doesn't come."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostSettings:
  """How the processes of a run find one another, and how long they wait.

  distributed: "auto" asks the environment (Cloud TPU, Kubernetes, Slurm); None
    does so only where a coordinator is given.
  coordinator: address:port of process 0.
  num_processes: how many there are.
  process_id: this one's number, 0 and up.
  heartbeat_seconds: how long a host may be silent.
  barrier_seconds: how long a host may stay at one place (a step, a compilation,
    a batch of the evaluation), and the others wait for it.
  connect_seconds: how long the processes wait for one another at the start.

  Raises:
    ValueError: flags that miss one another, or a time that isn't positive.
  """

  distributed: Literal["auto"] | None = None
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  heartbeat_seconds: float = 60.0
  barrier_seconds: float = 1800.0
  connect_seconds: float = 300.0

  def __post_init__(self):
    given = (self.coordinator, self.num_processes, self.process_id)
    if any(x is not None for x in given):
      if self.distributed:
        raise ValueError(
          "--distributed=auto asks the environment for what --coordinator,"
          " --num_processes and --process_id say: give one or the other"
        )
      if None in given:
        raise ValueError(
          f"--coordinator={given[0]} --num_processes={given[1]}"
          f" --process_id={given[2]}: give all three of them"
        )
    if self.coordinator is not None:
      _, _, port = self.coordinator.rpartition(":")
      if not port.isdecimal():
        raise ValueError(
          f"--coordinator={self.coordinator!r}: give ADDRESS:PORT of process 0"
        )
    index, count = self.process_id, self.num_processes
    if count is not None and count < 1:
      raise ValueError(f"--num_processes={count}: give at least 1")
    if index is not None and count is not None and not 0 <= index < count:
      raise ValueError(
        f"--process_id={index}: give 0 to {count - 1} for --num_processes="
        f"{count}"
      )
    for name in ("heartbeat_seconds", "barrier_seconds", "connect_seconds"):
      if getattr(self, name) <= 0:
        raise ValueError(f"--{name}={getattr(self, name)}: give more than 0")

  @property
  def wanted(self) -> bool:
    """Whether there is anybody to connect to."""
    return self.distributed is not None or self.coordinator is not None


class Hosts:
  """The processes of a run, seen from one of them.

  index: this process.
  count: how many there are. With one, nothing here does anything.
  main: whether this is the one that writes logs and reports: 0.
  """

  def __init__(
    self,
    settings: HostSettings | None = None,
    *,
    index: int = 0,
    count: int = 1,
    client: Any = None,
  ):
    self.index, self.count, self.main = index, count, index == 0
    self._settings = settings or HostSettings()
    self._client = client
    self._place, self._places, self._barriers = "starting", 0, 0
    self._callbacks: list[Callable[[str], None]] = []
    self._posted: float | None = None  # when this host wrote why it fails
    self._left = False
    self._poll_s = min(1.0, self._settings.heartbeat_seconds / 10)
    self._watch: threading.Thread | None = None
    if count > 1:
      self._watch = threading.Thread(target=self._watching, daemon=True)
      self._watch.start()

  @property
  def several(self) -> bool:
    return self.count > 1

  def at(self, place: str) -> None:
    """Says where this host is; starts its time there anew."""
    self._place, self._places = place, self._places + 1

  def barrier(self, place: str) -> None:
    """Returns once all hosts are there.

    Args:
      place: what for; all hosts call their barriers in the same order.

    Raises:
      HostLost: the time limit passed; the error names those who are missing.
    """
    self.at(place)
    if not self.several:
      return
    self._barriers += 1
    limit = self._settings.barrier_seconds
    name = f"{_ROOT}barrier/{self._barriers}"
    try:
      self._client.wait_at_barrier(name, round(1000 * limit))
    except jax.errors.JaxRuntimeError as error:
      late = [
        f"host {i} (at {found.place!r})"
        for i, found in self._beats().items()
        if found.progress[0] < self._barriers
      ]
      raise HostLost(
        f"{', '.join(late) or 'a host'} did not come to {place!r} in"
        f" --barrier_seconds={limit:g}"
      ) from error
    self.at(place)

  def share(self, name: str, value: str = "") -> str:
    """Returns what process 0 gave under a name that is used once.

    Args:
      name: the same on all.
      value: of process 0; the others' is not looked at.
    """
    if not self.several:
      return value
    key, limit = f"{_ROOT}share/{name}", self._settings.barrier_seconds
    if self.main:
      self._client.key_value_set(key, value)
      return value
    return self._client.blocking_key_value_get(key, round(1000 * limit))

  def check_same(self, name: str, value: str, fix: str) -> None:
    """Checks that all hosts have what process 0 has.

    Args:
      name: of the value, used once.
      value: this host's.
      fix: what to change where they differ.

    Raises:
      ValueError: they differ.
    """
    if (first := self.share(name, value)) != value:
      raise ValueError(
        f"{name} of host {self.index} is {value}, of host 0 {first}: {fix}"
      )

  def on_failure(self, callback: Callable[[str], None]) -> None:
    """Calls back, in another thread, before another host's failure ends us.

    Args:
      callback: takes the cause. Must not wait for other hosts or the device.
    """
    self._callbacks.append(callback)

  def post(self, error: BaseException) -> None:
    """Tells the other hosts that this one fails; they end with the cause.

    An error of the runtime is more often another host's death than a fault of
    this one: such a host waits first for somebody else to be named, and is then
    ended with that cause.

    Args:
      error: what this host fails with.
    """
    if not self.several or self._posted is not None or self._left:
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      self.at("waiting for the cause of a failure")
      time.sleep(self._settings.heartbeat_seconds + 3 * self._poll_s)
    self._posted = time.monotonic()
    self._post(self.index, f"failed: {type(error).__name__}: {error}")

  def leave(self, status: int) -> None:
    """Ends the connection; a failed process ends here and now.

    Without it the interpreter's exit would wait for the other hosts.

    Args:
      status: exit status; 0 waits for the others, and returns.
    """
    if not self.several:
      return
    if status == 0:
      # All are through before process 0 takes the coordination service down.
      self.barrier("the end of the run")
      self._left = True
      jax.distributed.shutdown()
      return
    self._exit(status)

  def _post(self, host: int, why: str) -> None:
    # Another process may have been first, or the service be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError, RuntimeError):
      self._client.key_value_set(f"{_ROOT}failed/{host}", why[:4000])

  def _beats(self) -> "dict[int, _Beat]":
    """Returns the last sign of life of each host that gave one."""
    found = self._client.key_value_dir_get(f"{_ROOT}beat/")
    out = {}
    for key, value in found:
      beat, barriers, places, place = value.split(" ", 3)
      progress = int(barriers), int(places)
      out[_number(key)] = _Beat(int(beat), progress, place)
    return out

  def _watching(self) -> None:
    """The thread: shows life, looks for failures, ends the process."""
    beat, seen = 0, _Seen(self.count, self._settings)
    while not self._left:
      beat += 1
      try:
        self._client.key_value_set(
          f"{_ROOT}beat/{self.index}",
          f"{beat} {self._barriers} {self._places} {self._place}",
          allow_overwrite=True,
        )
        failed = self._client.key_value_dir_get(f"{_ROOT}failed/")
        if self.main and not failed and (why := seen.update(self._beats())):
          self._post(*why)
          failed = self._client.key_value_dir_get(f"{_ROOT}failed/")
      except (jax.errors.JaxRuntimeError, RuntimeError):
        if self._left:
          return
        self._end("host 0 (the coordinator) can't be reached", LOST)
      if failed and self._posted is None:
        host, why = _number(failed[0][0]), failed[0][1]
        lost = why.startswith(_SILENT)
        self._end(f"host {host} {why}", LOST if lost else 1)
      limit = self._settings.heartbeat_seconds
      if self._posted is not None and time.monotonic() - self._posted > limit:
        self._exit(1)  # it did not come to its end by itself
      time.sleep(self._poll_s)

  def _end(self, cause: str, status: int) -> NoReturn:
    """Ends this process because of another host."""
    for callback in self._callbacks:
      with contextlib.suppress(Exception):
        callback(cause)
    print(f"error: the run ended on all hosts: {cause}", file=sys.stderr)
    self._exit(status)

  def _exit(self, status: int) -> NoReturn:
    """Ends the process at once; the coordinator once the others know."""
    key, until = f"{_ROOT}told/", self._settings.heartbeat_seconds
    with contextlib.suppress(jax.errors.JaxRuntimeError, RuntimeError):
      self._client.key_value_set(f"{key}{self.index}", "", allow_overwrite=True)
      deadline = time.monotonic() + until
      while self.main and time.monotonic() < deadline:
        # A host that was lost can't be told.
        failed = self._client.key_value_dir_get(f"{_ROOT}failed/")
        lost = {_number(k) for k, why in failed if why.startswith(_SILENT)}
        told = {_number(k) for k, _ in self._client.key_value_dir_get(key)}
        if len(told | lost) >= self.count:
          break
        time.sleep(self._poll_s / 2)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


_SILENT = "was not heard of for"


def _number(key: str) -> int:
  """Returns the host of a key that ends with its number."""
  return int(key.rpartition("/")[2])


class _Beat(NamedTuple):
  """A sign of life."""

  beat: int  # how many there were
  progress: tuple[int, int]  # barriers that it came to, places
  place: str  # where it is


class _Seen:
  """What process 0 knows of the others' signs of life."""

  def __init__(self, count: int, settings: HostSettings):
    now = time.monotonic()
    self._settings = settings
    self._beat = {i: (0, now) for i in range(count)}
    self._place = {i: ((0, 0), "starting", now) for i in range(count)}

  def update(self, beats: dict[int, _Beat]) -> tuple[int, str] | None:
    """Returns which host is lost and why, None if none is."""
    now, limits = time.monotonic(), self._settings
    for i, (beat, progress, place) in beats.items():
      if beat != self._beat[i][0]:
        self._beat[i] = beat, now
      if progress != self._place[i][0]:
        self._place[i] = progress, place, now
    for i, (_, since) in self._beat.items():
      if now - since > limits.heartbeat_seconds:
        return i, (
          f"{_SILENT} --heartbeat_seconds={limits.heartbeat_seconds:g}: it was"
          f" killed or its machine is lost (last at {self._place[i][1]!r})."
          " --resume goes on from the last checkpoint"
        )
    # Those behind hold the others up.
    first, where, since = min(self._place.values())
    if now - since > limits.barrier_seconds:
      late = [i for i, x in self._place.items() if x[0] == first]
      others = "".join(f", and so are hosts {late[1:]}" for _ in late[1:2])
      return late[0], (
        f"is at {where!r} for more than --barrier_seconds="
        f"{limits.barrier_seconds:g}{others}"
      )
    return None


_current = Hosts()


def current() -> Hosts:
  """Returns the hosts of this run; one, unless `connect` found others."""
  return _current


def connect(settings: HostSettings) -> Hosts:
  """Returns the hosts, connected; call it before JAX computes anything.

  Args:
    settings: who and how long.

  Raises:
    ValueError: the environment names no cluster.
    HostLost: the others did not come in time.
  """
  global _current
  if not settings.wanted:
    return _current
  # What a simulated run on CPUs needs; other platforms have their own.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # Else SIGTERM would be caught, for a save that nobody asks for.
  jax.config.update("jax_enable_preemption_service", False)
  limit = settings.heartbeat_seconds
  missing = (
    f"the {settings.num_processes or ''} processes did not all meet at"
    f" --coordinator={settings.coordinator} in --connect_seconds="
    f"{settings.connect_seconds:g}: check that process 0 runs, that its port"
    " can be reached, and that each --process_id runs once"
  )
  on_abort(missing, LOST)
  try:
    jax.distributed.initialize(
      settings.coordinator,
      settings.num_processes,
      settings.process_id,
      cluster_detection_method=None if settings.distributed else "deactivate",
      initialization_timeout=round(settings.connect_seconds),
      # Behind ours, which say more: JAX's aborts the process.
      heartbeat_timeout_seconds=round(2 * limit + 10),
      shutdown_timeout_seconds=max(1, round(limit)),
    )
  except jax.errors.JaxRuntimeError as error:
    raise HostLost(f"{missing} ({error})") from error
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      "--distributed=auto: the environment names no cluster that JAX knows"
      f" ({error}): give --coordinator, --num_processes and --process_id, or"
      " leave it out on one host"
    ) from error
  finally:
    abort_again()
  state = distributed.global_state
  _current = Hosts(
    settings,
    index=jax.process_index(),
    count=jax.process_count(),
    client=state.client,
  )
  if _current.index > 0 and (address := state.coordinator_address) is not None:
    on_abort(
      f"the run ended on all hosts: host 0 (the coordinator, {address}) is gone:"
      " it was killed, or its machine is lost. --resume goes on from the last"
      " checkpoint",
      LOST,
      when=lambda: not answers(address),
    )
  return _current
