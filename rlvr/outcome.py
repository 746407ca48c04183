"""What a step gives, while the device may still be at it.

A loop dispatches a step and returns at once; its figures are fetched when the
next step has been dispatched, so that the device never waits for the host to
decode, count and write:

    host    dispatch k | write k-1 | dispatch k+1 | write k | ...
    device  ....step k-1 | step k               | step k+1 ...
"""

import time
from collections.abc import Callable
from typing import Any

import jax

Rows = list[dict[str, Any]]


class Outcome:
  """A step's figures and responses, fetched when they are asked for."""

  def __init__(
    self,
    *,
    begin: float,
    times: dict[str, float],
    phase: str,
    launched: float,
    waits_for: Any,
    metrics: Callable[[], dict[str, float]],
    rows: Callable[[], Rows] = list,
    before: "Outcome | None" = None,
  ):
    """Notes what is under way.

    Args:
      begin: when the host began with the step, as are all times in seconds of
        `time.perf_counter`.
      times: seconds by metric's name, of what is done; the phase joins them.
      phase: metric's name of the time in `waits_for`.
      launched: when that was dispatched.
      waits_for: arrays that are there once the step is done.
      metrics: fetches the other figures.
      rows: fetches the responses.
      before: the outcome before, whose program runs ahead of this one's.
    """
    self.begin = begin
    self.times = times
    self.done_at: float | None = None
    self._phase = phase
    self._launched = launched
    self._waits_for = waits_for
    self._metrics = metrics
    self._rows = rows
    self._before = before

  def ready(self) -> bool:
    """Returns whether the device is done with it, without waiting."""
    return all(x.is_ready() for x in jax.tree.leaves(self._waits_for))

  def wait(self) -> float:
    """Returns when the step was done, once it is.

    The device goes through the steps in order: the phase begins where the step
    before ended, if that was later than its dispatch.
    """
    if self.done_at is None:
      started = max(self._launched, self.begin)
      if self._before is not None:
        started = max(started, self._before.wait())
        self.begin = max(self.begin, self._before.wait())
        self._before = None  # else every outcome would keep all before it
      jax.block_until_ready(self._waits_for)
      self.done_at = time.perf_counter()
      self.times[self._phase] = self.done_at - started
    return self.done_at

  def seconds(self) -> float:
    """Returns the time from the step before's end to this one's."""
    return self.wait() - self.begin

  def metrics(self) -> dict[str, float]:
    """Returns all figures, times among them; waits for them."""
    self.wait()
    return self._metrics() | self.times

  def rows(self) -> Rows:
    """Returns the responses of one prompt, for display."""
    return self._rows()
