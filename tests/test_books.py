"""What is written down of a step, and when."""

import math
import time

import pytest

from rlvr.books import Books, problem_of
from rlvr.infra.metrics import MetricLog, read_metrics
from rlvr.infra.profile_page import Profile
from rlvr.infra.progress import Progress
from rlvr.outcome import Outcome

GOOD = {
  "optim/nonfinite_updates": 0.0,
  "loss/total": 1.0,
  "response/tokens": 50.0,
  "response/count": 10.0,
}


class Fake:
  """An outcome that says when it is asked."""

  def __init__(self, asked, step, **figures):
    self.asked, self.step, self.figures = asked, step, GOOD | figures

  def metrics(self):
    self.asked.append(self.step)
    return dict(self.figures)

  def seconds(self):
    return 2.0

  def rows(self):
    return [{"step": self.step}]

  def ready(self):
    return self.step < 3


@pytest.fixture
def opened(tmp_path):
  with MetricLog(tmp_path / "metrics.jsonl") as log:
    profile = Profile(
      *(tmp_path / "profile", range(0)),
      programs={},
      model_flops=lambda _: {},
      peak=lambda: None,
      say=print,
    )
    books = Books(log, Progress(enabled=False), profile, max_missing=0.5)
    yield books, lambda: read_metrics(tmp_path / "metrics.jsonl")


def test_the_newest_step_is_left_to_the_device(opened):
  books, written = opened
  asked = []
  books.add(1, Fake(asked, 1), {"time/compile_s": 3.0})
  assert books.settle(keep=1) == "" and asked == []
  books.add(2, Fake(asked, 2), {})
  assert books.settle(keep=1) == "" and asked == [1]
  # On the disk, whatever becomes of the process.
  assert [row["step"] for row in written()] == [1]
  assert written()[0]["time/compile_s"] == 3.0
  assert written()[0]["throughput/tokens_per_s"] == 25.0
  # The control: without a step's grace the device would be waited for.
  assert books.settle(keep=0) == "" and asked == [1, 2]


def test_a_run_that_ends_early_keeps_what_is_done(opened):
  books, written = opened
  asked = []
  for step in (1, 2, 3):
    books.add(step, Fake(asked, step), {})
  books.close()
  # Nobody waits for the third, which the device is still at.
  assert asked == [1, 2]
  assert [row["step"] for row in written()] == [1, 2]


def test_figures_that_cannot_be_had_hide_no_error(opened, capsys):
  books, written = opened
  broken = Fake([], 1)
  broken.metrics = lambda: 1 / 0
  books.add(1, broken, {})
  books.close()
  assert written() == []
  books.add(2, Fake([], 2), {})
  # The control: in a run that goes on, it is an error.
  books.add(3, broken, {})
  with pytest.raises(ZeroDivisionError):
    books.settle(keep=0)


def test_an_evaluation_stands_with_its_step(opened):
  books, written = opened
  books.add(1, Fake([], 1), {})
  books.add(2, Fake([], 2), {})
  seen = []

  def evaluate(step, rows):
    seen.append((step, rows))
    return {"eval/accuracy": 0.5}

  books.settle(keep=0, evaluate=evaluate)
  assert seen == [(2, [{"step": 2}])]
  assert ["eval/accuracy" in row for row in written()] == [False, True]


def test_a_problem_is_found_a_step_late_and_all_is_written(opened):
  books, written = opened
  books.add(1, Fake([], 1, **{"loss/total": math.nan}), {})
  assert books.settle(keep=1) == ""
  books.add(2, Fake([], 2), {})
  problem = books.settle(keep=1, evaluate=lambda *_: pytest.fail("evaluated"))
  assert problem.startswith("step 1: loss or gradient is not finite")
  assert [row["step"] for row in written()] == [1, 2]


def test_problems():
  assert problem_of(GOOD, 0.5) == ""
  for changes, words in (
    ({"loss/total": math.inf}, "not finite"),
    ({"optim/nonfinite_updates": 1.0}, "not finite"),
    ({"reward/correct/missing": 6.0}, "reward/correct/missing is 60%"),
    (
      {
        "dynamic/groups_kept": 0.0,
        "dynamic/rounds": 2.0,
        "dynamic/groups_equal": 8.0,
        "dynamic/prompts_drawn": 8.0,
        "dynamic/equal_reward_mean": 0.0,
      },
      "no group was useful in 2 rounds",
    ),
  ):
    assert words in problem_of(GOOD | changes, 0.5)
  assert problem_of(GOOD | {"reward/correct/missing": 5.0}, 0.5) == ""


class Value:
  """An array that is there once it is waited for."""

  def __init__(self):
    self.ready = False

  def block_until_ready(self):
    time.sleep(0.01)
    self.ready = True
    return self


def test_an_outcome_waits_only_when_it_is_asked():
  now = time.perf_counter()
  values = [Value(), Value()]
  outcomes = []
  for value in values:
    outcomes.append(
      Outcome(
        begin=now,
        times={"time/data_s": 0.001},
        phase="time/update_s",
        launched=now + 0.001,
        waits_for=value,
        metrics=lambda value=value: {"ready": float(value.ready)},
        before=outcomes[0] if outcomes else None,
      )
    )
  first, second = outcomes
  assert not values[0].ready and first.done_at is None
  found = second.metrics()
  assert found["ready"] == 1.0
  # The later one was asked first: the earlier one was done before it.
  assert values[0].ready
  assert first.wait() + 0.01 <= second.wait()
  assert first.seconds() == first.wait() - now
  assert second.seconds() == second.wait() - first.wait()
  assert found["time/update_s"] == pytest.approx(second.seconds())
  assert first.metrics()["time/update_s"] == pytest.approx(
    first.seconds() - 0.001
  )
  assert found["time/data_s"] == 0.001
