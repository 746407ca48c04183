"""Verifiers: responses and references in, named rewards and verdicts out.

- device verifiers (`exact`): pure functions of the `Rollout`, jitted with the
  step;
- host verifiers (`host`): text in, NumPy `Signals` out, run in worker
  processes (`pool`, `dispatch`, `process`, `worker`), one set for all of a host
  (`sharing`), that import neither JAX nor TensorFlow. What runs inside:
  - mathematics: `answers` finds an answer, `mathematics` compares two (with
    `notation`, `units`, `structures`, `algebra`, `costs`); `reasoning`;
  - code: `code`, `code_tests`, in a sandbox (`sandbox` and what it starts);
  - SQL: `sql`, `sql_text`, `sql_run`;
  - texts: `choice`, `text`, `overlap`, `formats`, `citations`, `boxes`,
    `similarity`, `mixed`; `instructions`, `reasoning_instructions`;
- on the spot, without workers (`spot`): `exact_text.exact_text_verifier`,
  `arithmetic`, and those of the above that say so;
- judges (`judge_protocol`, `judges`, `judge_clients`, `policy_judge`): models
  that are asked; `policy_answers`, the policy in training. `hybrid` asks them about the rule's negatives alone, `rating`
  and `rubrics` make rewards of what they say, `trust_judge` has the formulas.

Submodules are imported on first use, because workers import this package too.
"""

import importlib
import pathlib
from typing import Any

# What a module offers under the package's name.
_OFFERS = {
  "arithmetic": (
    "ArithmeticSignalsVerifier",
    "arithmetic_signals_verifier",
  ),
  "boxes": ("box_verifier",),
  "choice": ("choice_verifier",),
  "citations": ("citation_verifier",),
  "code": ("code_verifier",),
  "exact": (
    "DeviceVerifier",
    "coin_flip_verifier",
    "exact_match",
    "exact_match_verifier",
    "random_reward",
    "verdict_counts",
  ),
  "exact_text": ("exact_text_verifier",),
  "formats": ("format_verifier",),
  "host": (
    "HostVerifier",
    "PoolVerifier",
    "math_verifier",
    "reasoning_gym_verifier",
  ),
  "hybrid": (
    "hybrid_verifier",
    "judge_verifier",
  ),
  "instructions": ("instruction_verifier",),
  "judge_clients": ("HttpJudge",),
  "judge_protocol": ("Judge",),
  "judges": ("YesNoJudge",),
  "mixed": ("mixed_verifier",),
  "overlap": ("overlap_verifier",),
  "jobs": (
    "Outcome",
    "WorkerPoolError",
  ),
  "policy_judge": ("PolicyJudge",),
  "pool": ("WorkerPool",),
  "rating": ("rating_verifier",),
  "reasoning_instructions": ("reasoning_instruction_verifier",),
  "rubrics": ("rubric_verifier",),
  "sandbox": (
    "Limits",
    "Sandbox",
    "SandboxError",
  ),
  "second_answer": ("second_answer_verifier",),
  "similarity": ("bmas_verifier",),
  "sql": ("sql_verifier",),
  "text": ("text_verifier",),
}
_HOME = {name: module for module, names in _OFFERS.items() for name in names}
_SUBMODULES = frozenset(
  path.stem
  for path in pathlib.Path(__file__).parent.glob("*.py")
  if path.stem != "__init__"
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
