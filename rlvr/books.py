"""What is written down of each step, one step behind the device."""

import collections
import math
from collections.abc import Callable

from rlvr.infra.metrics import MetricLog
from rlvr.infra.profile_page import Profile
from rlvr.infra.progress import Progress
from rlvr.outcome import Outcome, Rows

Evaluate = Callable[[int, Rows], dict[str, float]]


class Books:
  """Fetches, judges and writes the figures of steps in their order."""

  def __init__(
    self,
    metric_log: MetricLog,
    progress: Progress,
    profile: Profile,
    *,
    max_missing: float,
  ):
    """Opens the books.

    Args:
      metric_log: a line for each step.
      progress: shows it.
      profile: sees it too.
      max_missing: greatest share of responses without a reward.
    """
    self._log = metric_log
    self._progress = progress
    self._profile = profile
    self._max_missing = max_missing
    self._open: collections.deque[tuple[int, Outcome, dict[str, float]]] = (
      collections.deque()
    )

  def add(self, step: int, outcome: Outcome, figures: dict[str, float]) -> None:
    """Notes a step that was dispatched.

    Args:
      step: its number, from 1.
      outcome: what it gives.
      figures: further ones of the same step.
    """
    self._open.append((step, outcome, figures))

  def settle(self, *, keep: int, evaluate: Evaluate | None = None) -> str:
    """Writes what is open; returns why the run can't go on, "" if it can.

    Args:
      keep: newest steps that stay open, while the device is at them. After a
        problem none does.
      evaluate: (step, rows) -> figures that join those of the newest step.
    """
    problem = ""
    while len(self._open) > (0 if problem else keep):
      step, outcome, figures = self._open.popleft()
      metrics = outcome.metrics() | figures
      seconds = outcome.seconds()
      metrics["time/step_s"] = seconds
      # What dynamic sampling threw away was sampled too.
      tokens = metrics.get("dynamic/tokens_drawn", metrics["response/tokens"])
      metrics["throughput/tokens_per_s"] = tokens / seconds
      if found := problem_of(metrics, self._max_missing):
        problem = problem or f"step {step}: {found}"
      self._profile.add(step, metrics)
      if evaluate is not None and not problem and not self._open:
        metrics |= evaluate(step, outcome.rows())
      self._log.write(step, metrics)
      self._progress.update(step, metrics)
    return problem

  def close(self) -> None:
    """Writes what is done already, where a run ends before its time."""
    try:
      while self._open and self._open[0][1].ready():
        self.settle(keep=len(self._open) - 1)
    except Exception as error:  # the run's own error must not be hidden
      self._progress.message(f"the last figures are lost: {error}")


def problem_of(metrics: dict[str, float], max_missing: float) -> str:
  """Returns why the run can't go on, "" if it can.

  Args:
    metrics: of a step.
    max_missing: greatest share of responses without a reward.
  """
  if metrics["optim/nonfinite_updates"] or not math.isfinite(
    metrics["loss/total"]
  ):
    bad = sorted(k for k, v in metrics.items() if not math.isfinite(v))
    return (
      "loss or gradient is not finite; the update was left out. Not finite:"
      f" {bad or 'the gradient'}. Lower the learning rate, clip the gradient"
      " norm, or look at the rewards"
    )
  if metrics.get("dynamic/groups_kept") == 0:
    return (
      f"no group was useful in {metrics['dynamic/rounds']:.0f} rounds of dynamic"
      f" sampling; {metrics['dynamic/groups_equal']:.0f} of"
      f" {metrics['dynamic/prompts_drawn']:.0f} had equal rewards, on average"
      f" {metrics['dynamic/equal_reward_mean']:.3g}. Give other prompts, a warm"
      " start, a greater group_size or DynamicSampling.max_rounds"
    )
  for name, missing in metrics.items():
    if not name.startswith("reward/") or not name.endswith("/missing"):
      continue
    share = missing / metrics["response/count"]
    if share > max_missing:
      return (
        f"{name} is {share:.0%}: the verifier fails on more than max_missing="
        f"{max_missing:.0%} of the responses. See the verdicts in the samples"
      )
  return ""
