"""What a run says, on a terminal and in a file."""

import io

import pytest
import rich.console

from rlvr.infra import progress as progress_lib
from rlvr.infra.progress import Progress, duration, shorten, visible
from rlvr.types import Verdict

ROW = {
  "prompt": "What is [bold]2+2[/bold]?",
  "response": "so 4\x1b[2J\x1b]0;owned\x07 \\boxed{4}",
  "reference": "4",
  "verdict": Verdict.CORRECT,
  "rewards": {"[red]correct": 1.0, "length": float("nan")},
  "advantage": 0.5,
}
METRICS = {
  "reward/correct/mean": 0.25,
  "response/length_mean": 31.4,
  "throughput/tokens_per_s": 12345.0,
}


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def _plain(**kwargs):
  out = io.StringIO()
  clock = Clock()
  console = rich.console.Console(file=out)
  return out, clock, Progress(console=console, clock=clock, **kwargs)


def _terminal(**kwargs):
  out = io.StringIO()
  console = rich.console.Console(file=out, force_terminal=True, width=120)
  return out, Progress(console=console, **kwargs)


def test_plain_lines_one_every_few_seconds():
  out, clock, progress = _plain(every_s=10)
  with progress:
    progress.start(100)
    for step in range(1, 101):
      clock.now += 1.0
      progress.update(step, METRICS)
  lines = out.getvalue().splitlines()
  assert [line.split()[1] for line in lines] == [
    f"{s}/100" for s in range(10, 101, 10)
  ]
  # 90 steps of 1 s are left at step 10.
  assert lines[0] == (
    "step 10/100  reward 0.250  length 31  tokens/s 12,345  1m 30s left"
  )
  assert "left" not in lines[-1]
  assert "\x1b" not in out.getvalue()


def test_an_evaluation_is_said_at_once_and_remembered():
  out, clock, progress = _plain(every_s=1e9)
  progress.start(10)
  progress.update(1, METRICS)
  assert out.getvalue() == ""
  progress.update(2, {**METRICS, "eval/accuracy": 0.5})
  clock.now += 1e9
  progress.update(3, METRICS)
  second, third = out.getvalue().splitlines()
  assert "held-out 50.0%" in second and "held-out 50.0%" in third


def test_time_left_forgets_the_compilation():
  out, clock, progress = _plain(every_s=0)
  progress.start(11)
  for step, seconds in ((1, 600.0), (2, 2.0), (3, 2.0)):
    clock.now += seconds
    progress.update(step, {})
  lefts = [line.split("  ")[-1] for line in out.getvalue().splitlines()]
  # 10 x 600 s; then 9 x 2 s and 8 x 2 s.
  assert lefts == ["1h 40m left", "18s left", "16s left"]


def test_a_resumed_run_counts_from_where_it_was():
  out, clock, progress = _plain(every_s=0)
  progress.start(20, 10)
  for step in (11, 12):
    clock.now += 3.0
    progress.update(step, {})
  lines = out.getvalue().splitlines()
  assert lines[0] == "going on from step 10 of 20"
  assert lines[-1] == "step 12/20  24s left"  # 8 steps of 3 s


def test_samples_show_everything_and_send_no_control_codes():
  for out, progress in (_plain()[::2], _terminal()):
    progress.print_samples([ROW], title="step 3")
    text = out.getvalue()
    # The response's escape sequences are shown; markup is not interpreted.
    assert "\x1b[2J" not in text and "\x1b]0" not in text and "\x07" not in text
    flat = text.replace("\n", "")
    for piece in (
      "␛",
      "[bold]",
      "[red]",
      "step 3",
      "correct",
      "+1.000",
      "+0.500",
    ):
      assert piece in flat, piece
    assert "length -" in flat  # a missing reward is not a zero
  # Negative control: the raw text does carry the codes.
  assert "\x1b[2J" in ROW["response"]


def test_plain_tables_hold_no_control_codes_even_if_colour_is_forced(
  monkeypatch,
):
  monkeypatch.setenv("FORCE_COLOR", "1")
  out = io.StringIO()
  console = rich.console.Console(file=out, force_terminal=False)
  progress = Progress(console=console)
  progress.print_samples([ROW])
  progress.print_plan({"Model": {"width": 8}})
  assert out.getvalue() and "\x1b" not in out.getvalue()


def test_the_bar_shows_the_figures():
  out, progress = _terminal()
  with progress:
    progress.start(4)
    progress.update(1, {**METRICS, "eval/accuracy": 0.5})
    progress.message("saved [checkpoint] 1")
  text = out.getvalue()
  for piece in ("1/4", "reward 0.250", "held-out 50.0%", "12,345"):
    assert piece in text, piece
  assert "saved [checkpoint] 1" in text
  progress.close()  # twice is fine


def test_the_plan():
  out, _, progress = _plain()
  progress.print_plan(
    {
      "Model": {"parameters": "1.2 M", "[red]name": "x" * 150},
      "Chain": "chain\n  clip(low=0)",
      "Notes": ["one", "two"],
    }
  )
  lines = [line.rstrip() for line in out.getvalue().splitlines()]
  assert lines[0] == "Model" and lines[1].split() == ["parameters", "1.2", "M"]
  assert any("[red]name" in line for line in lines)
  at = lines.index("Chain")
  assert lines[at + 1 :] == [
    "  chain",
    "    clip(low=0)",
    "Notes",
    "  one",
    "  two",
  ]


def test_disabled_says_nothing():
  out, _, progress = _plain(enabled=False, every_s=0)
  with progress:
    progress.start(2, 1)
    progress.update(2, METRICS)
    progress.print_samples([ROW])
    progress.print_plan({"a": "b"})
    progress.message("c")
  assert out.getvalue() == ""


def test_the_combined_reward_goes_before_its_parts():
  both = {"reward/part/mean": 1.0, "reward/reward/mean": 2.0}
  assert progress_lib._reward_name(both) == "reward/reward/mean"
  assert progress_lib._reward_name({"reward/a/mean": 1.0}) == "reward/a/mean"
  assert progress_lib._reward_name({"reward/a/std": 1.0}) is None


@pytest.mark.parametrize(
  "seconds, text",
  [
    (0.4, "0s"),
    (59.4, "59s"),
    (63, "1m 03s"),
    (3660, "1h 01m"),
    (90000, "1d 01h"),
  ],
)
def test_duration(seconds, text):
  assert duration(seconds) == text


def test_shorten_keeps_both_ends():
  # 10 characters of 16: five at each end, six left out.
  assert shorten("abcdefghijklmnop", 10) == "abcde […6 characters…] lmnop"
  assert shorten("abc", 3) == "abc"


def test_visible():
  assert visible("a\tb\nc é 数") == "a\tb\nc é 数"
  assert visible("\x1b\r\x7f\x00") == "␛␍␡␀"
  assert visible("\x9b\ud800\u202e") == "\ufffd" * 3
