"""The report: made from the run's files alone, self-contained, nothing hidden."""

import html.parser
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from rlvr.evaluation.metrics import wilson_interval
from rlvr.infra import plots, report
from rlvr.infra.metrics import MetricLog, SampleLog
from rlvr.infra.run_folder import RunFolder, open_run_folder

EVIL = "<script>alert('x')</script> & \x1b[31m"


def _run(path, *, steps=6, gain=0.1, samples=True):
  run = open_run_folder(path, resume=False)
  with MetricLog(run.metrics) as log, SampleLog(run.samples) as kept:
    for step in range(1, steps + 1):
      metrics = {
        "reward/correct/mean": gain * step,
        "optim/grad_norm": math.nan if step == 2 else 0.5,
        "time/sample_s": 1.0,
        "time/score_update_s": 2.0,
        "time/step_s": 100.0 if step == 1 else 4.0,
        "verdict/math/correct": 0.5,
      }
      if step % 2 == 0:
        metrics |= {"eval/accuracy": gain * step, "eval/num_prompts": 50.0}
        rows = [
          {
            "prompt": f"p{step}-{i} {EVIL}",
            "response": EVIL,
            "reference": "4",
            "verdict": "WRONG",
            "rewards": {EVIL: 1.0, "b": None},
            "advantage": 0.5,
          }
          for i in range(8)
        ]
        if samples:
          kept.write(step, rows)
      log.write(step, metrics)
  return run


class _Page(html.parser.HTMLParser):
  """What a browser would load, and whether tags are balanced."""

  VOID = ("meta", "br", "img", "link")

  def __init__(self, text):
    super().__init__()
    self.open, self.loads, self.tags, self.ids = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.ids += [v for k, v in attrs if k == "id"]
    self.loads += [
      v for k, v in attrs if k in ("src", "href", "xlink:href", "action")
    ]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
    self.open.pop()


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
  run = _run(tmp_path / "run")
  run.write_about(
    title=EVIL, status="finished", total_steps=6, seeds=[3], chain="clip(<low>)"
  )
  run.config_operative.write_text(f"a = 1\n# {EVIL}\n")
  path = report.write_report(run)
  assert path == run.report
  text = path.read_text(encoding="utf-8")
  page = _Page(text)
  assert page.open == []
  assert all(load.startswith("#") for load in page.loads), page.loads
  assert not re.search(r"@import|url\((?!#)|<link|<iframe", text)
  assert "script" not in page.tags and "\x1b" not in text
  # Negative control: the parser does see a script that is not escaped.
  assert "script" in _Page(f"<p>{EVIL}</p>").tags
  assert len(page.ids) == len(set(page.ids))
  for piece in (
    "6 of 6",
    "finished",
    "clip(&lt;low&gt;)",
    "a = 1",
    "<dd>3</dd>",
  ):
    assert piece in text, piece
  # 6 steps: 100 s and five of 4 s.
  assert "2m 00s in steps" in text


def test_the_verdict_line_by_hand(tmp_path):
  run = _run(tmp_path / "run")
  # Accuracies 0.2, 0.4, 0.6 of 50: 30 of 50 at the end.
  low, high = wilson_interval(30, 50)
  line = report.accuracy_line(report._load(run.path).rows)
  assert line == (
    "held-out accuracy 20.0% → 60.0%"
    f" (95% interval {100 * low:.1f}–{100 * high:.1f}%)"
  )
  assert line[1:] in report.write_report(run).read_text()
  rows = [{"step": 1, "eval/accuracy": 0.5}]
  assert report.accuracy_line(rows) == "held-out accuracy 50.0%"
  assert report.accuracy_line([{"step": 1}]) is None


def test_samples_of_the_first_middle_and_last_evaluation(tmp_path):
  text = report.write_report(_run(tmp_path / "run", steps=10)).read_text()
  shown = sorted({int(s) for s in re.findall(r">p(\d+)-0 ", text)})
  assert shown == [2, 6, 10]
  assert "Step 6, held-out, greedy, 6 of 8" in text and ">p6-5 " in text
  assert ">p6-6 " not in text


def test_what_is_absent_is_said(tmp_path):
  text = report.write_report(_run(tmp_path / "r", samples=False)).read_text()
  absent = re.search(r"Not recorded, so not plotted: (.*?)\.", text)[1]
  assert "policy entropy" in absent and "reward" not in absent.split(", ")
  for line in (
    "samples.jsonl holds none",
    "names no chain",
    "folder holds none",
  ):
    assert line in text, line
  assert "figures that weren&#x27;t finite" in text


def test_a_run_that_has_only_begun(tmp_path):
  text = report.write_report(_run(tmp_path / "r", steps=1)).read_text()
  assert "No held-out evaluation yet" in text


def test_several_runs_are_compared(tmp_path):
  a, b = _run(tmp_path / "x" / "run"), _run(tmp_path / "y" / "run", gain=0.05)
  path = report.write_report(a, compare=[b.path])
  assert path == a.path / "comparison.html" and not a.report.exists()
  text = path.read_text()
  page = _Page(text)
  assert page.open == [] and len(page.ids) == len(set(page.ids))
  for piece in ("x/run", "y/run", "→ 60.0%", "→ 30.0%"):
    assert piece in text, piece


def test_nothing_to_report(tmp_path):
  with pytest.raises(ValueError, match=r"no metrics\.jsonl in"):
    report.write_report(tmp_path)
  (tmp_path / "metrics.jsonl").write_text("")
  with pytest.raises(ValueError, match="is empty"):
    report.write_report(RunFolder(tmp_path))


def test_the_command_line(tmp_path, capsys):
  run = _run(tmp_path / "run")
  out = tmp_path / "out.html"
  assert report.main([str(run.path), "--title", "T&C", "--out", str(out)]) == 0
  assert capsys.readouterr().out.strip() == str(out)
  assert "<title>T&amp;C</title>" in out.read_text()
  assert report.main([str(tmp_path / "none")]) == 1
  assert capsys.readouterr().err.startswith("error: no metrics.jsonl")


def test_the_same_files_give_the_same_page(tmp_path):
  run = _run(tmp_path / "run")
  first = report.write_report(run).read_bytes()
  assert report.write_report(run).read_bytes() == first


@pytest.mark.parametrize("steps", [1, 3, 200])
@pytest.mark.parametrize("num_runs", [1, 2])
def test_every_panel_draws(steps, num_runs):
  rng = np.random.default_rng(0)

  def name(pattern):
    return pattern.replace("*", "k")

  runs = {
    f"run{r}": [
      {"step": s, "time/step_s": 1.0}
      | {name(p): rng.uniform() for x in plots.PANELS for p in x.patterns}
      for s in range(1, steps + 1)
    ]
    for r in range(num_runs)
  }
  panels = plots.PANELS if steps == 3 else plots.PANELS[::5]
  for panel in panels:
    plot = plots.draw(panel, runs)
    root = ET.fromstring(plot.svg)
    assert root.tag.endswith("svg") and root.get("viewBox")
    assert "#0303" not in plot.svg and "var(--c0)" in plot.svg
    if num_runs == 2:
      assert [label for label, _ in plot.legend] == ["run0", "run1"]


def test_a_panel_without_metrics_is_none():
  assert plots.draw(plots.PANELS[0], {"a": [{"step": 1, "x": 1.0}]}) is None
  rows = [{"step": 1, "eval/accuracy": math.nan}]
  assert plots.draw(plots.PANELS[0], {"a": rows}) is None


def test_series_takes_the_last_finite_value_of_a_step():
  rows = [
    {"step": 2, "a": 1.0},
    {"step": 1, "a": 3.0},
    {"step": 2, "a": 2.0},
    {"step": 3, "a": math.nan},
    {"step": 4},
  ]
  steps, values = plots.series(rows, "a")
  assert steps.tolist() == [1, 2] and values.tolist() == [3.0, 2.0]


def test_accuracy_band_prefers_what_the_run_wrote():
  rows = [
    {"step": 1, "eval/accuracy": 0.5, "eval/num_prompts": 10.0},
    {"step": 2, "eval/accuracy_low": 0.1, "eval/accuracy_high": 0.9},
    {"step": 3, "eval/accuracy": 0.5},
  ]
  steps, low, high = plots.accuracy_band(rows)
  assert steps.tolist() == [1, 2]
  assert (low[0], high[0]) == wilson_interval(5, 10)
  assert (low[1], high[1]) == (0.1, 0.9)


def test_smoothed_is_a_centred_mean():
  x = np.random.default_rng(0).normal(size=80)
  got = plots.smoothed(x)  # half a window is 80 // 40 = 2
  reach = [min(2, i, 79 - i) for i in range(80)]
  want = [x[i - r : i + r + 1].mean() for i, r in enumerate(reach)]
  np.testing.assert_allclose(got, want, atol=1e-12)
  # A straight line stays one, also at its ends; a trailing mean would not.
  line = np.arange(80.0)
  np.testing.assert_allclose(plots.smoothed(line), line, atol=1e-9)
  trailing = np.convolve(line, np.ones(5) / 5)[:80]
  assert np.abs(trailing - line).max() > 1
