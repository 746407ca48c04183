"""`import rlvr` is quick and brings in nothing heavy."""

import subprocess
import sys

import pytest

_HEAVY = ("tensorflow", "seqio", "jax", "flax", "gin", "matplotlib")
_MATHEMATICS = (
  "rlvr.rewards",
  "rlvr.advantages",
  "rlvr.objectives",
  "rlvr.probes.compute",
  "rlvr.step",
)


def loaded(code):
  """Returns which modules a fresh process has after running the code."""
  code += "\nimport sys\nprint(' '.join(sorted(sys.modules)))"
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  return set(result.stdout.split())


def test_import_rlvr_brings_in_nothing_heavy():
  # What takes the time is what is imported: this holds on any machine, where
  # a limit in seconds would not.
  found = loaded("import rlvr")
  assert not found & set(_HEAVY)
  assert len(found & {m for m in found if m.startswith("rlvr")}) == 1


@pytest.mark.parametrize("module", _MATHEMATICS)
def test_mathematics_imports_no_tensorflow_and_no_gin(module):
  found = loaded(f"import {module}")
  assert not found & {"tensorflow", "seqio", "gin", "matplotlib"}


def test_the_check_can_fail():
  assert "gin" in loaded("import rlvr.main")
