"""Item functions that run on the spot: no workers, no time limit.

For measures that cannot run away: their input is bounded, and the work grows
with it at most linearly. Everything else goes to a `PoolVerifier`, whose
contract for item functions this is.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlvr.types import Signals
from rlvr.verifiers.host import (
  Pending,
  Truncated,
  check_lengths,
  merged_signals,
)
from rlvr.verifiers.jobs import Outcome
from rlvr.verifiers.parts import FurtherRewards, Parts
from rlvr.verifiers.worker import describe_error

ItemFunction = Callable[[Mapping[str, Any]], dict[str, Any]]


class SpotVerifier:
  """A host verifier whose items run in this process, when they are started.

  An item that raises is VERIFIER_FAILED, as in a worker.
  """

  def __init__(
    self,
    check: ItemFunction,
    *,
    truncated: Truncated = "no_answer",
    name: str = "correct",
    rewards: Sequence[str] = (),
  ):
    """Makes the verifier of an item function.

    Args:
      check: the item function, see `PoolVerifier`.
      truncated: see `Truncated`.
      name: the reward's name.
      rewards: names of the further outcome rewards.

    Raises:
      ValueError: an argument is out of range, or a name occurs twice.
    """
    if truncated not in ("no_answer", "verify"):
      raise ValueError(f"truncated={truncated!r}: give 'no_answer' or 'verify'")
    self.name = name
    self.truncated = truncated
    self.parts = Parts(tuple(rewards))
    self.parts.check(name)
    self._check = check
    # (response, why) of the last responses that could not be judged
    self.problems: collections.deque[tuple[str, str]] = collections.deque(
      maxlen=100
    )

  def start(self, responses, references, metadata, finished) -> Pending:
    """See `HostVerifier`; the work is done on the spot."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(self.verify(responses, references, metadata, finished))
    return future

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    check_lengths(responses, references, metadata, finished)
    outcomes = [
      self._outcome(
        {"response": response, "reference": reference, "metadata": dict(more)}
      )
      if ended or self.truncated == "verify"
      else None
      for response, reference, more, ended in zip(
        responses, references, metadata, finished, strict=True
      )
    ]
    return merged_signals(self, responses, outcomes, lambda _: self._nothing())

  def close(self) -> None:
    """Does nothing: there is nothing to end."""

  def _nothing(self) -> FurtherRewards:
    return FurtherRewards(dict.fromkeys(self.parts.rewards, 0.0), {})

  def _outcome(self, item: Mapping[str, Any]) -> Outcome:
    try:
      return Outcome(self._check(item), "ok", "", 0.0)
    except Exception as error:
      return Outcome(None, "failed", describe_error(error), 0.0)
