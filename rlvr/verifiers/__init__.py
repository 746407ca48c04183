"""Verifiers: responses and references in, named rewards and verdicts out.

- device verifiers (`exact`): pure functions of the `Rollout`, jitted with the
  step;
- host verifiers (`host`): text in, NumPy `Signals` out, run in worker
  processes (`pool`, `process`, `worker`) that import neither JAX nor
  TensorFlow. `mathematics` and `reasoning` are what runs inside. Two work on
  the spot, without workers: `host.exact_text_verifier` and `arithmetic`.

Submodules are imported on first use, because workers import this package too.
"""

import importlib
from typing import Any

_HOME = {
  "ArithmeticSignalsVerifier": "arithmetic",
  "arithmetic_signals_verifier": "arithmetic",
  "DeviceVerifier": "exact",
  "coin_flip_verifier": "exact",
  "exact_match": "exact",
  "exact_match_verifier": "exact",
  "random_reward": "exact",
  "verdict_counts": "exact",
  "HostVerifier": "host",
  "PoolVerifier": "host",
  "exact_text_verifier": "host",
  "math_verifier": "host",
  "reasoning_gym_verifier": "host",
  "Outcome": "pool",
  "WorkerPool": "pool",
  "WorkerPoolError": "pool",
}
_SUBMODULES = (
  "arithmetic",
  "exact",
  "host",
  "mathematics",
  "pool",
  "process",
  "reasoning",
  "worker",
)


def __getattr__(name: str) -> Any:
  if name in _HOME:
    module = importlib.import_module(f"rlvr.verifiers.{_HOME[name]}")
    return getattr(module, name)
  if name in _SUBMODULES:
    return importlib.import_module(f"rlvr.verifiers.{name}")
  raise AttributeError(f"module 'rlvr.verifiers' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOME, *_SUBMODULES})
