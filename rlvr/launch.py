"""What a gin file in `gin/runs/` binds: the entry function of a run."""

from collections.abc import Callable
from typing import Any


def run(entry: Callable[..., Any], **flags: Any) -> Any:
  """Returns what the entry function returns.

  Args:
    entry: e.g. `@train.train`.
    **flags: what the command line says of this one run.
  """
  return entry(**flags)
