"""TensorFlow stays away until a source is opened."""

import subprocess
import sys

_MODULES = """
import sys, importlib, pkgutil
import rlvr.data
for module in pkgutil.iter_modules(rlvr.data.__path__):
  importlib.import_module(f"rlvr.data.{module.name}")
rlvr.data.arithmetic_task(
  num_train=1, num_heldout=1, num_operations=1, operand_min=0, operand_max=9
)
"""
_CHECK = """
heavy = {"tensorflow", "seqio", "reasoning_gym"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def run(code):
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )


def test_importing_data_imports_no_tensorflow():
  result = run(_MODULES + _CHECK)
  assert result.returncode == 0, result.stderr


def test_the_check_can_fail():
  # A stand-in: the real import takes seconds and is made in the other tests.
  result = run("import sys\nsys.modules['tensorflow'] = sys" + _CHECK)
  assert "imported: {'tensorflow'}" in result.stderr
