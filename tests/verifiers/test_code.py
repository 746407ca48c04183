"""The code verifier; what it withstands is in `test_attacks`."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rlvr.data import code_tasks
from rlvr.rewards import unit_tests
from rlvr.types import Verdict, scores_from_signals
from rlvr.verifiers import bwrap
from rlvr.verifiers.code import code_verifier, make_code_checker
from rlvr.verifiers.programs import (
  complete_program,
  extract_program,
  same_output,
)
from rlvr.verifiers.sandbox import SandboxError
from tests.verifiers import walls

LIMITS = {"cpu_s": 2.0, "wall_s": 4.0}
NAN = np.nan


def make(**changes):
  """Returns a checker, with walls where this machine has them."""
  settings = {"limits": LIMITS, "isolation": isolation(), **changes}
  return make_code_checker(**settings)


def isolation():
  return "limits_only" if walls.missing() else "bubblewrap"


@pytest.fixture(scope="module")
def check():
  return make()


@pytest.fixture(scope="module")
def sharing():
  return make(scoring="share")


def item(response, *tests, **metadata):
  return {"response": response, "metadata": {"tests": list(tests), **metadata}}


def verdict(check, *args, **metadata):
  return check(item(*args, **metadata))["verdict"]


def two(name="f", start=1):
  """Returns tests of "plus one"."""
  return [
    {"function": name, "arguments": [k], "expected": k + 1}
    for k in range(start, start + 2)
  ]


GOOD, BAD = "def f(x): return x + 1", "def f(x): return x - 1"
HALF = "def f(x): return 2 * x"  # right for 1 alone

# Finding the program.


@pytest.mark.parametrize(
  ("text", "source", "program", "malformed"),
  [
    ("```python\na\n```", "fenced", "a", False),
    ("x\n```\na\n```\ny\n  ```py\n b\nc\n  ```  \nz", "fenced", "b\nc", False),
    (
      "1. so:\n   ```py\n   a:\n     b\n\n   c\n   ```",
      "fenced",
      "a:\n  b\n\nc",
      False,
    ),
    ("```\n  a\n```", "fenced", "  a", False),
    ("```python\na\n", "fenced", None, True),
    ("```\na\n```\n```\nb", "fenced", None, True),
    ("a", "fenced", None, False),
    ("```\n \n```", "fenced", None, False),
    ("see ```a``` or\n```a```\n", "fenced", None, False),
    ("a", "fenced_or_whole", "a", False),
    ("```\na\n```", "fenced_or_whole", "a", False),
    ("```\na", "fenced_or_whole", None, True),
    ("```\na\n```", "whole", "```\na\n```", False),
    (" \n", "whole", None, False),
    ("", "fenced_or_whole", None, False),
    ("```\r\na\r\n```\r\n", "fenced", "a\r", False),
  ],
)
def test_extraction(text, source, program, malformed):
  assert extract_program(text, source=source) == (program, malformed)


def test_extraction_behind_a_delimiter():
  text = "```\na\n```</think>b</think>```\nc\n```"
  assert extract_program(text, delimiter="</think>").program == "c"
  assert extract_program("a", delimiter="</think>").program is None


def test_programs_are_completed():
  metadata = {"entry_point": "f", "prefix": "import m\ndef f(x):\n"}
  metadata["preamble"] = "import m"
  whole = "def f(x):\n  return 1"
  assert complete_program(whole, metadata) == f"import m\n{whole}"
  assert complete_program("f = abs", metadata) == "import m\nf = abs"
  rest = "  return ff(x)"
  assert complete_program(rest, metadata) == f"import m\ndef f(x):\n{rest}"
  assert complete_program(rest, {}) == rest
  # Another function's name that begins alike is not it.
  assert "import m\ndef f(x):\n" in complete_program("def f2(): 1", metadata)


def test_outputs():
  assert same_output("a b \r\nc\n\n", "a b\nc")
  assert same_output("", "\n")
  for other in ("a  b\nc", " a b\nc", "a b\n\nc", "a b c", "a b\nC"):
    assert not same_output(other, "a b\nc")


# Verdicts.


def test_verdicts(check):
  bad_setup = {"assert": "assert abs(f(1) - 2) < 1"}
  assert verdict(check, GOOD, *two()) == "CORRECT"
  assert verdict(check, f"so:\n```python\n{GOOD}\n```", *two()) == "CORRECT"
  assert verdict(check, BAD, *two()) == "WRONG"
  assert verdict(check, HALF, *two()) == "WRONG"
  assert verdict(check, "", *two()) == "NO_ANSWER"
  assert verdict(check, "```\ndef f(x): return", *two()) == "MALFORMED"
  assert verdict(check, "I do not know", *two()) == "MALFORMED"
  assert verdict(check, "#" * 50_001, *two()) == "MALFORMED"
  assert verdict(check, GOOD) == "VERIFIER_FAILED"
  assert verdict(check, GOOD, {"input": "1"}) == "VERIFIER_FAILED"
  assert verdict(check, GOOD, *two(), weights=[1]) == "VERIFIER_FAILED"
  assert verdict(check, GOOD, *two(), weights=[1, 0]) == "VERIFIER_FAILED"
  assert verdict(check, GOOD, {"assert": "assert ("}) == "VERIFIER_FAILED"
  # Test code that fails by itself.
  assert verdict(check, GOOD, bad_setup, setup="1 / 0") == "VERIFIER_FAILED"
  assert verdict(check, GOOD, bad_setup, setup="z = 1") == "CORRECT"


def test_each_test_has_its_verdict(check):
  found = check(item(HALF, *two(), *two(start=0)))
  assert found["steps"]["tests"] == [1.0, 0.0, 0.0, 1.0]
  assert found["detail"].startswith("test 2 of 4: it returned 4")
  nothing = check(item("", *two()))
  assert nothing["steps"]["tests"] == [0.0, 0.0]
  unknown = [{"assert": "assert abs(f(1)) < undefined()[0]"}]
  # A name that nobody defines is asked of the program, which lacks it.
  assert check(item(GOOD, *unknown))["verdict"] == "WRONG"
  broken = {"assert": "import nothing\nassert f(1)"}
  found = check(item(GOOD, *two(), broken))
  assert found["steps"]["tests"] == [1.0, 1.0, None]
  assert found["verdict"] == "VERIFIER_FAILED"
  assert check(item(BAD, *two(), broken))["verdict"] == "WRONG"


def test_shares_and_weights(sharing):
  tests = [*two(), *two(start=0)]
  assert sharing(item(HALF, *tests))["reward"] == 0.5
  found = sharing(item(HALF, *tests, weights=[5, 1, 1, 3]))
  assert found["reward"] == 0.8 and found["verdict"] == "WRONG"
  assert sharing(item(GOOD, *tests, weights=[5, 1, 1, 3]))["reward"] == 1.0
  assert sharing(item("", *tests))["reward"] == 0.0


def test_without_verdicts_per_test_the_first_failure_ends_it():
  slow = "import time\ndef f(x):\n  time.sleep(0.4)\n  return 0"
  hasty = make(per_test=False, limits={**LIMITS, "wall_s": 0.3})
  thorough = make(limits={**LIMITS, "wall_s": 0.3})
  seconds = []
  for one in (hasty, thorough):
    start = time.monotonic()
    found = one(item(slow, *two(), *two()))
    seconds.append(time.monotonic() - start)
    assert found["verdict"] == "WRONG" and "timed_out" in found["detail"]
    assert ("steps" in found) == (one is thorough)
  # Four tests that take 0.3 s each, against one; starting takes both as long.
  assert seconds[1] - seconds[0] > 0.5


def test_the_time_of_all_tests_together():
  slow = "import time\ndef f(x):\n  time.sleep(0.3)\n  return x + 1"
  short = make(time_limit_s=0.4)
  found = short(item(slow, *two(), *two()))
  assert found["steps"]["tests"] == [1.0, 1.0, 0.0, 0.0]
  assert "time_limit_s=0.4" in found["detail"]
  endless = {"assert": "while f(1): pass"}
  assert short(item(GOOD, endless))["verdict"] == "WRONG"


def test_json_has_lists_for_tuples(check):
  test = {
    "function": "f",
    "arguments": [[1, 2]],
    "expected": [[1, 2], {"a": []}],
  }
  assert verdict(check, "def f(x): return x, {'a': ()}", test) == "CORRECT"
  assert verdict(check, "def f(x): return x, {'a': 0}", test) == "WRONG"
  keys = {"function": "f", "arguments": [], "expected": {"1": 2, "null": 0}}
  assert verdict(check, "def f(): return {1: 2, None: 0}", keys) == "CORRECT"
  assert verdict(check, "def f(): return {2: 2, None: 0}", keys) == "WRONG"
  assertion = {"assert": "assert f([1, 2]) == [[1, 2], {'a': []}]"}
  assert verdict(check, "def f(x): return x, {'a': ()}", assertion) == "WRONG"


def test_assertions(check):
  program = "def f(x): return x"
  for source, value, due in (
    ("assert f({}) == 1", "1", "CORRECT"),
    ("assert f({}) == 1", "True", "CORRECT"),  # as in Python
    ("assert f({}) is True", "True", "CORRECT"),
    ("assert f({}) is True", "1", "WRONG"),
    ("assert f({}) is None", "0", "WRONG"),
    ("assert f({})", "[0]", "CORRECT"),
    ("assert f({})", "[]", "WRONG"),
    ("assert not f({})", "[]", "CORRECT"),
    ("assert f({}) == (1, [2])", "(1, [2])", "CORRECT"),
    ("assert f({}) == (1, [2])", "[1, [2]]", "WRONG"),
  ):
    assert verdict(check, program, {"assert": source.format(value)}) == due


def test_scripts(check):
  tests = [
    {"stdin": "1 2\n", "stdout": "3\n"},
    {"stdin": "5 5\n", "stdout": "10"},
  ]
  assert verdict(check, "print(sum(map(int, input().split())))", *tests) == (
    "CORRECT"
  )
  found = check(item("print(3)", *tests))
  assert found["steps"]["tests"] == [1.0, 0.0]
  assert "it printed '3\\n'" in found["detail"]


def test_set_up_and_classes_of_the_program(check):
  program = "class Node:\n  def __init__(self, v): self.v = v\n"
  program += "def value(node): return node.v"
  test = {"assert": "assert value(root) == 3"}
  functions = ["Node", "value"]
  assert (
    verdict(check, program, test, setup="root = Node(3)", functions=functions)
    == "CORRECT"
  )
  assert (
    verdict(check, program, test, setup="root = Node(4)", functions=functions)
    == "WRONG"
  )


def test_test_code_in_a_sandbox_of_its_own(check):
  tests = [
    {"assert": "import math\nassert math.isclose(f(0.1), 1.1)"},
    {"assert": "for k in range(20):\n  assert f(k) == k + 1"},
    {"assert": "assert f(1) == 1 + 1 and f(f(1)) == 3"},
    {
      "assert": "try:\n  f('a')\nexcept TypeError: pass\n"
      "else: raise AssertionError"
    },
    {"assert": "assert helper(f(1)) == 4"},
  ]
  setup = "def helper(x): return 2 * x"
  functions = ["f"]
  more = {"setup": setup, "functions": functions}
  assert check(item(GOOD, *tests, **more))["steps"]["tests"] == [1.0] * 5
  # The program's own `helper` is not the tests'.
  cheat = "def helper(x): return 4\ndef f(x): return 0"
  assert check(item(cheat, *tests, **more))["steps"]["tests"] == [0.0] * 5
  objects = {"assert": "assert f(object()) in (1, 2)"}
  found = check(item("def f(x): return 1", objects, **more))
  assert found["verdict"] == "VERIFIER_FAILED"
  assert "plain data" in found["detail"]


def test_a_sandbox_that_ended_is_replaced(check):
  program = """
import os
def f(x):
  while x == 1:
    try: os.fork()
    except OSError: pass
  return x + 1
"""
  walls.require()  # no bombs without
  found = check(item(program, *two()))
  assert found["steps"]["tests"] == [0.0, 1.0]


def test_values_that_may_not_be_compared_are_wrong_not_unknown(check):
  # A program that could make its verifier fail would not be wrong, but masked.
  program = "import decimal\ndef f(x): return decimal.Decimal('sNaN')"
  for test in (
    {"assert": "assert f(1) == 2"},
    {"function": "f", "arguments": [1], "expected": 2},
    {"assert": "assert f(1) in (2, 3)"},
  ):
    assert verdict(check, program, test) == "WRONG"


def test_a_program_cannot_break_the_messages_between_the_sandboxes(check):
  # Its Decimal comes back to it as an argument, which no message carries.
  program = "import decimal\ndef f(x): return decimal.Decimal('1.5')"
  test = {"assert": "y = f(1)\nassert f(y) == 1"}
  assert verdict(check, program, test, functions=["f"]) == "WRONG"
  # The test's own Decimal is not the program's fault.
  own = {"assert": "from decimal import Decimal as D\nassert f(D(1)) < 9"}
  found = check(item(GOOD, own, functions=["f"]))
  assert found["verdict"] == "VERIFIER_FAILED"
  assert "isn't plain data" in found["detail"]


def test_test_code_that_ends_is_its_own_fault_until_it_called_the_program(
  check,
):
  # What a program returned may be what ended it (a text without end, say): then
  # to be masked would be a way out of being wrong.
  for body, expected in (
    ("os._exit(1)", "VERIFIER_FAILED"),
    ("y = f(1)\nos._exit(1)", "WRONG"),
  ):
    test = {"assert": f"import os\n{body}\nassert f(1) == 2"}
    assert verdict(check, GOOD, test, functions=["f"]) == expected


def test_a_test_that_speaks_of_syntax_says_nothing_about_the_program(check):
  test = {"assert": "assert f(1) + 0 == 3, 'syntax of the result'"}
  found = check(item(GOOD, *two(), test, functions=["f"]))
  assert found["verdict"] == "WRONG"
  assert found["steps"]["tests"] == [1.0, 1.0, 0.0]


def test_a_share_is_unknown_where_a_test_is(check, sharing):
  broken = {"assert": "import nothing\nassert f(1)"}
  tests = [*two(), broken]
  assert sharing(item(BAD, *tests))["verdict"] == "VERIFIER_FAILED"
  assert sharing(item(GOOD, *tests))["verdict"] == "VERIFIER_FAILED"
  assert check(item(BAD, *tests))["verdict"] == "WRONG"  # whatever it says


# As a host verifier.


@pytest.fixture(scope="module")
def verifier():
  settings = {"num_workers": 2, "time_limit_s": 20.0, "max_tests": 3}
  with code_verifier(**settings, isolation=isolation()) as made:
    yield made


def test_signals(verifier):
  responses = [GOOD, HALF, "", "while True", GOOD, GOOD, GOOD]
  metadata = [{"tests": two()}] * 4 + [
    {},
    {"tests": two() * 2},
    {"tests": two()},
  ]
  signals = verifier.verify(
    responses, [""] * 7, metadata, np.array([True] * 6 + [False])
  )
  assert [Verdict(int(v)).name for v in signals.verdicts["correct"]] == [
    *("CORRECT", "WRONG", "NO_ANSWER", "MALFORMED"),
    *("VERIFIER_FAILED", "VERIFIER_FAILED", "NO_ANSWER"),
  ]
  np.testing.assert_array_equal(
    signals.outcome["correct"], [1, 0, 0, 0, NAN, NAN, 0]
  )
  np.testing.assert_array_equal(
    signals.step["tests"],
    [
      [1, 1, NAN],
      [1, 0, NAN],
      *[[0, 0, NAN]] * 2,
      *[[NAN] * 3] * 2,
      [0, 0, NAN],  # truncated: no test passes
    ],
  )
  assert "max_steps=3" in verifier.problems[-1][1]


def test_the_tests_feed_verpo(verifier):
  signals = verifier.verify(
    [GOOD, HALF, BAD, BAD],
    [""] * 4,
    [{"tests": two()}] * 4,
    np.ones(4, bool),
  )

  @jax.jit
  def weights(signals):
    tests = scores_from_signals(signals, 4).step["tests"]
    group = np.zeros(4, np.int32)
    return unit_tests.pass_rates(tests, group, 1)

  np.testing.assert_array_equal(weights(signals), [[0.5, 0.25, NAN]])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"source": "first"}, "source='first'"),
    ({"scoring": "some"}, "scoring='some'"),
    ({"limits": {"cpu_s": 0}}, "cpu_s=0"),
    ({"limits": {"speed": 1}}, "speed"),
    ({"isolation": "none"}, "'none'"),
  ],
)
def test_settings_are_checked_before_any_worker_starts(changes, words):
  settings = {"num_workers": 1, "time_limit_s": 5.0, **changes}
  with pytest.raises((ValueError, TypeError), match=words):
    code_verifier(**settings)


def test_no_isolation_is_an_error_in_the_parent(monkeypatch):
  monkeypatch.setattr(bwrap.shutil, "which", lambda name: None)
  with pytest.raises(SandboxError, match="limits_only"):
    code_verifier(num_workers=1, time_limit_s=5.0)


def test_workers_import_neither_jax_nor_numpy():
  probe = """
import sys
from rlvr.verifiers.code import make_code_checker
make_code_checker(isolation="limits_only")
print([n for n in ("jax", "numpy", "tensorflow") if n in sys.modules])
"""
  done = subprocess.run(
    [sys.executable, "-c", probe], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"


# Tasks.

MBPP = {
  "task_id": 601,
  "text": "Add one.",
  "code": "import sys\r\ndef f(x):\r\n\treturn x + 1",
  "test_list": ["assert f(1) == 2", "assert f(0) == sys.float_info.dig - 14"],
  "challenge_test_list": ["assert f(-1) == 0"],
  "test_setup_code": "",
}
HUMANEVAL = {
  "task_id": "HumanEval/0",
  "prompt": "import math\ndef help(x): return x\n\ndef f(x):\n    '''Doc.'''\n",
  "entry_point": "f",
  "canonical_solution": "    return math.floor(x) + 1\n",
  "test": "def check(candidate):\n  assert candidate(1) == 2\n"
  "  for i in range(3): assert help(candidate(i)) == i + 1\n",
}


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_mbpp(tmp_path, check):
  rows = [{**MBPP, "task_id": k} for k in (5, 11, 510, 550, 601, 974)]
  path = write(tmp_path / "mbpp.jsonl", *rows)
  task = code_tasks.mbpp_task(path)
  assert task.name == "mbpp"
  assert [len(task.examples(s)) for s in ("train", "heldout")] == [2, 2]
  (example, _) = task.examples("train")
  assert example.question == (
    "Add one.\nYour code should pass these tests:\nassert f(1) == 2\n"
    "assert f(0) == sys.float_info.dig - 14"
  )
  assert example.metadata["functions"] == ["f"]
  assert example.metadata["setup"] == "import sys"
  metadata = json.loads(json.dumps(example.metadata))
  for response, due in ((example.target, "CORRECT"), (BAD, "WRONG")):
    assert check({"response": response, "metadata": metadata})["verdict"] == due
  fewer = code_tasks.mbpp_task(path, shown_tests=0, challenge_tests=True)
  (example, _) = fewer.examples("heldout")
  assert example.question == "Add one."
  assert len(example.metadata["tests"]) == 3


def test_humaneval(tmp_path, check):
  row = json.dumps(HUMANEVAL)
  path = tmp_path / "HumanEval.jsonl.gz"
  path.write_bytes(gzip.compress(f"{row}\n\n".encode()))
  task = code_tasks.humaneval_task(str(path))
  (example,) = task.examples("heldout")
  assert "def f(x):" in example.question
  assert len(example.metadata["tests"]) == 2
  metadata = json.loads(json.dumps(example.metadata))
  rest = "    return math.floor(x) + 1\n"
  for response in (example.target, rest, "def f(x): return math.floor(x) + 1"):
    assert check({"response": response, "metadata": metadata})["verdict"] == (
      "CORRECT"
    )
  # The prompt's helper is the tests', whatever the program makes of it.
  cheat = "class Any(int):\n  __eq__ = lambda *_: True\n"
  cheat += "def help(x): return Any()\ndef f(x): return Any(2)"
  found = check({"response": cheat, "metadata": metadata})
  assert found["steps"]["tests"] == [1.0, 0.0]
  with pytest.raises(ValueError, match="no training split"):
    task.examples("train")
  mbpp = code_tasks.mbpp_task(write(tmp_path / "mbpp.jsonl", MBPP))
  both = code_tasks.humaneval_task(str(path), train=mbpp)
  assert both.examples("train")[0].question.startswith("Add one.")
  base = code_tasks.humaneval_task(str(path), continuation=True)
  (example,) = base.examples("heldout")
  assert example.question == HUMANEVAL["prompt"]
  assert example.target == HUMANEVAL["canonical_solution"]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"task_id": "x"}, "line 1: no int under 'task_id'"),
    ({"code": None}, "no str under 'code'"),
    ({"test_list": ["assert ("]}, "line 1: test code is no Python"),
  ],
)
def test_bad_rows_are_named(tmp_path, change, words):
  path = write(tmp_path / "mbpp.jsonl", MBPP | change)
  with pytest.raises(ValueError, match=words):
    code_tasks.mbpp_task(path).examples("train")


def test_task_settings_are_checked():
  with pytest.raises(ValueError, match="overlap"):
    code_tasks.mbpp_task("x", heldout_ids=(900, 999))
  with pytest.raises(ValueError, match="shown_tests=-1"):
    code_tasks.mbpp_task("x", shown_tests=-1)
  with pytest.raises(FileNotFoundError, match=r"mbpp_task\.path"):
    code_tasks.mbpp_task("/no/such/file").examples("train")


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_reference_solutions_of_real_data(name, check):
  if not os.environ.get("RLVR_DATA"):
    pytest.skip("RLVR_DATA names no folder with real data")
  data = pathlib.Path(os.environ["RLVR_DATA"])
  if name == "mbpp":
    task = code_tasks.mbpp_task(str(data / "mbpp" / "mbpp.jsonl"))
  else:
    path = data / "humaneval" / "HumanEval.jsonl.gz"
    task = code_tasks.humaneval_task(str(path))
  for example in task.examples("heldout")[::25]:
    metadata = json.loads(json.dumps(example.metadata))
    found = check({"response": example.target, "metadata": metadata})
    assert found["verdict"] == "CORRECT", (example.question, found)
    names = metadata["functions"]
    nothing = "\n".join(f"def {n}(*args): return None" for n in names)
    found = check({"response": nothing, "metadata": metadata})
    assert found["verdict"] == "WRONG"
