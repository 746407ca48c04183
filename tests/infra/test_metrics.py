"""Metrics and samples: what is written, and what a killed run leaves."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.infra.metrics import (
  MetricLog,
  SampleLog,
  read_metrics,
  read_samples,
)
from rlvr.types import Verdict


def _untimed(path):
  return [
    {k: v for k, v in r.items() if k != "time"} for r in read_metrics(path)
  ]


def _lines(path):
  return path.read_text(encoding="utf-8").splitlines()


def test_a_line_per_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with MetricLog(path) as log:
    log.write(1, {"a": 0.5, "b": jnp.float32(2), "c": np.array([3])})
    # Flushed: another process reads it while the run goes on.
    assert _untimed(path) == [{"step": 1, "a": 0.5, "b": 2.0, "c": 3.0}]
    log.write(2, {"a": 1})
  rows = read_metrics(path)
  assert [r["step"] for r in rows] == [1, 2]
  assert rows[0]["time"] <= rows[1]["time"]


def test_what_is_not_finite_is_valid_json_and_counted(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with MetricLog(path) as log:
    log.write(1, {"a": math.nan, "b": math.inf, "c": 1.0})

  def refuse(text):
    raise AssertionError(f"{text} is no JSON")

  (row,) = [json.loads(x, parse_constant=refuse) for x in _lines(path)]
  assert row["a"] is None and row["b"] is None and row["nonfinite"] == 2
  assert list(row) == ["step", "time", "a", "b", "c", "nonfinite"]
  (read,) = read_metrics(path)
  assert math.isnan(read["a"]) and read["c"] == 1.0


@pytest.mark.parametrize(
  "scalars, name",
  [({"x": np.ones(2)}, "'x'"), ({"x": "high"}, "'x'"), ({"step": 1}, "'step'")],
)
def test_what_is_no_figure_is_refused_and_leaves_no_line(
  tmp_path, scalars, name
):
  path = tmp_path / "metrics.jsonl"
  with MetricLog(path) as log:
    with pytest.raises(ValueError, match=f"metric.*{name}"):
      log.write(1, scalars)
    log.write(2, {"a": 1.0})
  assert [r["step"] for r in read_metrics(path)] == [2]


@pytest.mark.parametrize(
  "torn", ['{"step": 3, "a": 0.', '{"step": 3, "a": 1}', '{"s', "\ud83d"]
)
def test_a_torn_line_is_left_out_and_does_not_spoil_the_next(tmp_path, torn):
  path = tmp_path / "metrics.jsonl"
  with MetricLog(path) as log:
    log.write(1, {"a": 1.0})
    log.write(2, {"a": 2.0})
  with path.open("ab") as file:
    file.write(torn.encode("utf-8", "surrogatepass"))
  assert [r["step"] for r in read_metrics(path)] == [1, 2]
  with MetricLog(path) as log:
    log.write(3, {"a": 3.0})
  assert [r["a"] for r in read_metrics(path)] == [1.0, 2.0, 3.0]


def test_a_spoilt_line_in_the_middle_is_an_error(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2\n{"step": 3}\n')
  with pytest.raises(ValueError, match="line 2 is no JSON object"):
    read_metrics(path)


def test_a_resumed_run_leaves_the_file_of_one_that_never_stopped(tmp_path):
  def figures(step):
    return {"reward": step / 7, "bad": math.nan if step == 2 else 0.0}

  whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
  with MetricLog(whole) as log:
    for step in range(1, 7):
      log.write(step, figures(step))
  with MetricLog(resumed) as log:
    for step in range(1, 6):
      log.write(step, figures(step))
  with MetricLog(resumed) as log:
    assert log.truncate_after(3) == 2  # steps 4 and 5
    for step in range(4, 7):
      log.write(step, figures(step))

  def lines(path):
    rows = [json.loads(line) for line in _lines(path)]
    return [[(k, v) for k, v in r.items() if k != "time"] for r in rows]

  assert lines(resumed) == lines(whole)
  # Negative control: without cutting, the files differ.
  with MetricLog(resumed) as log:
    log.write(6, figures(6))
  assert lines(resumed) != lines(whole)


def test_truncating_keeps_the_earlier_lines_as_they_were(tmp_path):
  path = tmp_path / "m.jsonl"
  with MetricLog(path) as log:
    log.write(1, {"a": 0.1})
    before = path.read_bytes()
    log.write(2, {"a": 0.2})
    assert log.truncate_after(1) == 1
    assert path.read_bytes() == before
    assert log.truncate_after(1) == 0
    log.write(2, {"a": 0.3})
  assert [r["a"] for r in read_metrics(path)] == [0.1, 0.3]


def test_no_path_keeps_nothing(tmp_path):
  with MetricLog(None, tensorboard=tmp_path / "tb") as log:
    log.write(1, {"a": 1.0})
    assert log.truncate_after(0) == 0
  assert not any(tmp_path.iterdir())


def test_samples_come_back(tmp_path):
  path = tmp_path / "samples.jsonl"
  assert read_samples(path) == []
  row = {
    "prompt": "1+1?\n\x1b[2J",
    "response": "é 数 \ud800",  # half a surrogate pair, as tokenizers make
    "reference": "2",
    "verdict": Verdict.TIMED_OUT,
    "rewards": {"a": np.float32(0.5), "b": jnp.float32(math.nan)},
    "advantage": None,
  }
  with SampleLog(path) as log:
    log.write(3, [row, row])
    log.write(4, [row])
    log.truncate_after(3)
  first, _ = read_samples(path)
  assert first == {
    "step": 3,
    **row,
    "response": "é 数 ?",
    "verdict": "timed_out",
    "rewards": {"a": 0.5, "b": None},
  }


def test_tensorboard_events(tmp_path):
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  folder = tmp_path / "tb"
  with MetricLog(tmp_path / "m.jsonl", tensorboard=folder) as log:
    log.write(1, {"a/b": 0.25, "bad": math.nan})
    log.write(2, {"a/b": 0.5})
  events = event_accumulator.EventAccumulator(
    str(folder), size_guidance={event_accumulator.TENSORS: 0}
  )
  events.Reload()
  assert events.Tags()["tensors"] == ["a/b"]
  got = [
    (e.step, tensor_util.make_ndarray(e.tensor_proto).item())
    for e in events.Tensors("a/b")
  ]
  assert got == [(1, 0.25), (2, 0.5)]
