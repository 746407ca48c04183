"""What the user sees and what is kept: files, metrics, progress, checkpoints.

Names are loaded when they are first used, so that importing this package loads
neither Orbax nor matplotlib.
"""

import importlib
from typing import Any

_WHERE = {
  "Checkpoints": "checkpoints",
  "restore_params": "checkpoints",
  "MetricLog": "metrics",
  "SampleLog": "metrics",
  "read_metrics": "metrics",
  "read_samples": "metrics",
  "Progress": "progress",
  "write_report": "report",
  "RunFolder": "run_folder",
  "open_run_folder": "run_folder",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
