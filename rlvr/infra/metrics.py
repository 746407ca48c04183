"""Metrics and samples of a run as JSON lines, and as TensorBoard events.

The JSON lines are what everything else is made from. A line is written whole
and flushed, so a killed run loses at most the line that was being written; the
next run cuts a torn line off and goes on. JSON has no NaN: a figure that isn't
finite is written as null and counted under "nonfinite".
"""

import enum
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlvr.infra.run_folder import write_atomically

Row = dict[str, Any]


class JsonLines:
  """A file of JSON objects, one per line, that only grows at its end."""

  def __init__(self, path: str | os.PathLike | None):
    """Opens the file for appending.

    Args:
      path: the file, made where it is missing, repaired where its last line is
        torn; None keeps nothing (the processes of a slice other than 0).
    """
    self._path = None if path is None else pathlib.Path(path)
    self._file = None
    if self._path is not None:
      _cut_torn_line(self._path)
      self._file = self._path.open("a", encoding="utf-8")

  def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows, whole and flushed."""
    if self._file is None:
      return
    # allow_nan=False: a NaN that slipped through must not make the file unreadable.
    lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
    self._file.write("".join(lines))
    self._file.flush()

  def truncate_after(self, step: int) -> int:
    """Drops the rows of later steps, in one rename; returns how many.

    A resumed run calls this with the step that it restored: the steps behind it
    are run again, and the file becomes the one of a run that never stopped.
    """
    if self._file is None or self._path is None:
      return 0
    self._file.close()
    rows = read_json_lines(self._path)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
      write_atomically(
        self._path, "".join(json.dumps(row) + "\n" for row in kept)
      )
    self._file = self._path.open("a", encoding="utf-8")
    return len(rows) - len(kept)

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      self._file = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class MetricLog(JsonLines):
  """The scalars of a run: `metrics.jsonl`, and TensorBoard if wanted."""

  def __init__(
    self,
    path: str | os.PathLike | None,
    *,
    tensorboard: str | os.PathLike | None = None,
  ):
    """Opens the log.

    Args:
      path: `RunFolder.metrics`, or None to keep nothing.
      tensorboard: folder for event files through clu, or None for none. This
        imports TensorFlow (seconds). Events of steps that a resumed run repeats
        stay in the old event file; `metrics.jsonl` has each step once.
    """
    super().__init__(path)
    self._tensorboard = None
    if path is not None and tensorboard is not None:
      self._tensorboard = _tensorboard_writer(tensorboard)

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes a step's figures: one line with "step" and "time" (Unix seconds).

    Args:
      step: the step that they belong to.
      scalars: numbers or arrays of one element, by name.

    Raises:
      ValueError: a name is "step", "time" or "nonfinite", or a value is no
        single number.
    """
    values = {name: _number(name, value) for name, value in scalars.items()}
    finite = {k: v for k, v in values.items() if math.isfinite(v)}
    row: Row = {"step": int(step), "time": time.time()}
    row |= {k: finite.get(k) for k in values}
    if len(finite) < len(values):
      row["nonfinite"] = len(values) - len(finite)
    self.append([row])
    if self._tensorboard is not None:
      self._tensorboard.write_scalars(int(step), finite)

  def close(self) -> None:
    super().close()
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tensorboard = None


class SampleLog(JsonLines):
  """Sampled responses with their rewards: `samples.jsonl`."""

  def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes responses of a step.

    Args:
      step: the step whose policy sampled them.
      rows: mappings with `prompt`, `response`, `reference`, `verdict` (a
        `Verdict` or text),
        `rewards` (number by name) and `advantage` (number or None); `kind`
        ("eval" or "train") where both are kept. Numbers that aren't finite are
        written as null.
    """
    self.append([{"step": int(step), **_jsonable(row)} for row in rows])


def read_json_lines(path: str | os.PathLike) -> list[Row]:
  """Returns the rows of a file of JSON lines; a torn last line is left out.

  Raises:
    ValueError: another line is no JSON object: the file was edited or mixed up.
  """
  rows = []
  lines = pathlib.Path(path).read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    # What follows the last newline was being written when the run was killed.
    if number == len(lines) or not line.strip():
      continue
    row = _parse(line)
    if row is None:
      raise ValueError(
        f"{path}: line {number} is no JSON object: {line[:80]!r}; take the line"
        " out, or give the run's own file"
      )
    rows.append(row)
  return rows


def read_metrics(path: str | os.PathLike) -> list[Row]:
  """Returns the lines of `metrics.jsonl`; null figures come back as NaN."""
  return [
    {k: math.nan if v is None else v for k, v in row.items()}
    for row in read_json_lines(path)
  ]


def read_samples(path: str | os.PathLike) -> list[Row]:
  """Returns the lines of `samples.jsonl`; none where there is no file."""
  return read_json_lines(path) if os.path.exists(path) else []


def _parse(line: bytes) -> Row | None:
  try:
    row = json.loads(line)
  except ValueError:  # UnicodeDecodeError is one too
    return None
  return row if isinstance(row, dict) else None


def _cut_torn_line(path: pathlib.Path) -> None:
  """Cuts what follows the file's last newline, lest the next line join it."""
  if not path.exists() or path.stat().st_size == 0:
    return
  with path.open("r+b") as file:
    data = file.read()
    file.truncate(data.rfind(b"\n") + 1)


def _number(name: str, value: Any) -> float:
  if name in ("step", "time", "nonfinite"):
    raise ValueError(f"the metric name {name!r} is taken: rename the metric")
  try:
    # item() is what NumPy and JAX scalars and arrays of one element have.
    return float(value.item() if hasattr(value, "item") else value)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"metric {name!r} is {str(value)[:80]!r}, not one number: reduce it first"
    ) from error


def _jsonable(value: Any) -> Any:
  """Returns the value as JSON has it: NumPy and JAX numbers become plain ones."""
  if isinstance(value, enum.Enum):
    return value.name.lower()  # a Verdict
  if isinstance(value, Mapping):
    return {str(k): _jsonable(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_jsonable(v) for v in value]
  if isinstance(value, str):
    # A tokenizer may hand over half a surrogate pair, which is not UTF-8.
    return value.encode("utf-8", "replace").decode("utf-8")
  if hasattr(value, "tolist"):  # NumPy and JAX numbers and arrays
    return _jsonable(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _tensorboard_writer(folder: str | os.PathLike):
  # Late: clu imports TensorFlow, which takes seconds.
  from clu import metric_writers

  return metric_writers.AsyncWriter(
    metric_writers.SummaryWriter(os.fspath(folder))
  )
