"""What the benchmarks share: types of their flags, and where they were run."""

import argparse
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
  """Returns an argparse type: numbers of the kind (int, float) above 0."""

  def number(text: str) -> Any:
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not value > 0:
      what = "an integer" if kind is int else "a number"
      raise argparse.ArgumentTypeError(f"{text!r}: give {what} above 0")
    return value

  return number


def figures_file(text: str) -> pathlib.Path:
  """Returns the path of an argparse flag, to which figures can be added.

  Raises:
    argparse.ArgumentTypeError: they can't; said before anything is measured.
  """
  file = pathlib.Path(text)
  try:
    if not file.exists():
      if not os.access(file.parent, os.W_OK):
        raise ValueError(f"{file.parent} is no folder that can be written to")
      return file
    with open(file, "r+", encoding="utf-8") as f:
      every = json.loads(f.read() or "{}")
    if not isinstance(every, dict):
      raise ValueError("no JSON object")
  except (OSError, ValueError) as error:
    raise argparse.ArgumentTypeError(
      f"{file}: {error}: give docs/performance.json or a new file"
    ) from error
  return file


def machine_name() -> str:
  """Returns the cores and the device; on Linux a CPU by its maker's name."""
  kind = jax.devices()[0].device_kind
  file = pathlib.Path("/proc/cpuinfo")
  if kind == "cpu" and file.exists():
    for line in file.read_text().splitlines():
      if line.startswith("model name"):
        kind = line.partition(":")[2].strip()
        break
  return f"{os.cpu_count()} cores, {kind}"


def measured_on() -> dict[str, str]:
  """Returns what each table's figures say of their origin."""
  return {"machine": machine_name(), "jax": jax.__version__}
