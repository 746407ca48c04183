"""rlvr: reinforcement learning with verifiable rewards, as an algebra.

Submodules are imported on first use, so that `import rlvr` costs nothing and
pulls in neither JAX nor TensorFlow.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
  "advantages",
  "data",
  "evaluation",
  "infra",
  "models",
  "objectives",
  "probes",
  "recipe",
  "rewards",
  "sampling",
  "segments",
  "step",
  "types",
  "verifiers",
)


def __getattr__(name: str) -> Any:
  if name in _SUBMODULES:
    return importlib.import_module(f"rlvr.{name}")
  raise AttributeError(f"module 'rlvr' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *_SUBMODULES])
