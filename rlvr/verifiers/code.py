"""Programs: found in a response, run in a sandbox, judged outside of it.

A test of a program is one of

    {"stdin": text, "stdout": text}          the whole program is run
    {"function": name, "arguments": [...], "expected": value}
                                             as JSON has it: lists for tuples,
                                             texts for keys
    {"assert": Python text}                  see `code_tests`

In all three, the program gets the input and its sandbox the input alone: what is
due stays in the process that compares, or (for test code that can't be split) in
a second sandbox that runs the test code without the program (`inside_tests`). So a
program can't write its own verdict: what it can forge is a returned value, and to
return the right value it has to know it.

What it can do: look at the inputs of all tests as they come, recognise them, and
answer from memory; and where a test says little (`assert f(3)`), guess.

Runs in worker processes, but for `code_verifier`: standard library only.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlvr.verifiers import code_tests
from rlvr.verifiers.plain import unpack
from rlvr.verifiers.programs import (
  Found,
  complete_program,
  extract_program,
  same_output,
)
from rlvr.verifiers.sandbox import (
  Answer,
  Isolation,
  Limits,
  Program,
  Sandbox,
)
from rlvr.verifiers.session import Ended, Session

if TYPE_CHECKING:  # it brings in JAX, which workers have no use for
  from rlvr.verifiers.host import PoolVerifier

# "all": 1 if every test passes; "share": weight of the tests that pass.
Scoring = Literal["all", "share"]


class Result(NamedTuple):
  """What became of one test.

  passed: None where nobody knows, by the verifier's fault.
  why: for people; empty if passed.
  no_program: whether the text isn't a program at all, so that no test passes.
  """

  passed: bool | None
  why: str = ""
  no_program: bool = False


class BadTest(ValueError):
  """The task's tests aren't as this module describes them."""


class _Bench:
  """One response's program and tests, and the sandboxes that they need."""

  def __init__(
    self,
    sandbox: Sandbox,
    program: str,
    metadata: Mapping[str, Any],
    *,
    time_limit_s: float,
  ):
    self._sandbox, self._text = sandbox, program
    self._deadline = time.monotonic() + time_limit_s
    self._late = Result(False, f"over time_limit_s={time_limit_s:g} in all")
    self._program: Program | None = None
    self._judge: Session | None = None
    self._setup = str(metadata.get("setup", ""))
    self._defined = code_tests.defined_names(self._setup)
    self._functions = frozenset(metadata.get("functions", ()))

  def close(self) -> None:
    """Ends all that runs."""
    if self._program is not None:
      self._program.close()
    self._end_judge()

  def _end_judge(self) -> None:
    if self._judge is not None:
      self._judge.close()
    self._judge = None

  def ask(self, request: Mapping[str, Any]) -> Answer:
    """Returns the program's answer, from a new sandbox if the last ended."""
    if self._program is None or self._program.ended:
      if self._program is not None:
        self._program.close()
      self._program = self._sandbox.start(self._text)
    return self._program.run(request)

  def result(self, test: Mapping[str, Any]) -> Result:
    """Returns what becomes of one test.

    Raises:
      BadTest: the test isn't as it should be.
    """
    if self._is_late():
      return self._late
    match test:
      case {"stdin": str(stdin), "stdout": str(expected)}:
        answer = self.ask({"stdin": stdin})
        if answer.status != "returned":
          return _failed(answer)
        if same_output(answer.stdout, expected):
          return Result(True)
        return Result(False, f"it printed {answer.stdout[:80]!r}")
      case {"function": str(name), "arguments": list(args), "expected": due}:
        request: dict[str, Any] = {"function": name, "args": (tuple(args), {})}
        return _compare(self.ask(request), due, "json")
      case {"assert": str(source)}:
        return self._assertion(source)
    raise BadTest(f"no test of a program: {str(test)[:100]}")

  def _is_late(self) -> bool:
    return time.monotonic() > self._deadline

  def _assertion(self, source: str) -> Result:
    names = self._functions or code_tests.asked_names(source, self._defined)
    split = code_tests.split_assertion(source, names)
    if split is None:
      return self._judged(source, names)
    request = {"setup": self._setup, "expression": split.expression}
    return _compare(self.ask(request), split.expected, split.how)

  def _judged(self, source: str, names: frozenset[str]) -> Result:
    """Returns the verdict of test code that runs in a sandbox of its own."""
    called = False
    try:
      if self._judge is None:
        # It serves all of a response's tests.
        self._judge = self._sandbox.session("inside_tests", {"cpu_s": 600})
      self._judge.send(
        {"setup": self._setup, "test": source, "names": sorted(names)}
      )
      seconds = self._sandbox.limits.wall_s
      while "call" in (message := self._judge.receive(seconds=seconds)):
        if self._is_late():
          self._end_judge()
          return self._late
        request = {"function": message["call"], "args": unpack(message["args"])}
        try:
          answer = self.ask(request)
        except ValueError as error:  # such as a Decimal: no message carries it
          self._end_judge()
          # A program that was called before may have made the argument.
          why = f"an argument of {message['call']} isn't plain data: {error}"
          return Result(False if called else None, why)
        called = True
        fields = ("status", "detail", "value")
        self._judge.send({field: getattr(answer, field) for field in fields})
    except Ended as error:
      self._end_judge()
      # With something of the program's in play, it is the program's fault.
      return Result(False if called else None, f"the test code: {error}")
    passed = {"passed": True, "failed": False}.get(message["verdict"])
    return Result(passed, message["detail"])


def _failed(answer: Answer) -> Result:
  why = f"{answer.status}: {answer.detail}".rstrip(": ")
  return Result(False, why, no_program=answer.status == "syntax")


def _compare(answer: Answer, expected: Any, how: str) -> Result:
  if answer.status != "returned":
    return _failed(answer)
  try:
    value = unpack(answer.value)
    if how == "json":
      value = _listed(value)
    if how == "truth":
      passed = bool(value) is expected
    elif how == "same":
      passed = type(value) is type(expected) and value == expected
    else:
      passed = bool(value == expected)
  except (ValueError, ArithmeticError, RecursionError) as error:
    # ArithmeticError: a signalling NaN may not be compared.
    return Result(False, f"no value: {error}"[:300])
  return Result(passed, "" if passed else f"it returned {answer.value[:80]}")


def _listed(value: Any) -> Any:
  """Returns a value as JSON has it: lists for tuples, texts for keys."""
  if isinstance(value, (list, tuple)):
    return [_listed(v) for v in value]
  if isinstance(value, dict):
    return {_key(k): _listed(v) for k, v in value.items()}
  return value


def _key(key: Any) -> Any:
  """Returns a mapping's key as JSON writes it."""
  plain = key is None or isinstance(key, (bool, int, float))
  return json.dumps(key) if plain else key


def make_code_checker(
  *,
  limits: Mapping[str, Any] | None = None,
  time_limit_s: float = 30.0,
  isolation: Isolation = "bubblewrap",
  python: str | None = None,
  libraries: Sequence[str] = (),
  source: Found = "fenced_or_whole",
  delimiter: str = "",
  scoring: Scoring = "all",
  per_test: bool = True,
  max_program_chars: int = 50_000,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the function that verifies one item.

  item: {"response": text, "metadata": {"tests": [...], and optional: "weights",
  one positive number for each test; "setup", "functions" (for test code);
  "entry_point", "prefix", "preamble" (see
  `programs.complete_program`)}}.

  Verdicts, first that holds: NO_ANSWER (no program); MALFORMED (a block without
  an end, a program over the limit of length, one that is no Python: no test
  passes); WRONG (a test fails: whatever the program does, runs out of time or
  memory included, is its own fault); VERIFIER_FAILED (no tests, bad ones, no
  sandbox); CORRECT.

  Args:
    limits: fields of `sandbox.Limits`.
    time_limit_s: wall seconds for a response; tests that it doesn't reach fail.
    isolation, python, libraries: see `Sandbox`.
    source, delimiter: see `programs.extract_program`.
    scoring: see `Scoring`.
    per_test: whether each test's verdict comes back as step reward "tests" (0,
      1, NaN where nobody knows); false stops at the first that fails, where the
      scoring allows.
    max_program_chars: longer programs are MALFORMED.

  Raises:
    SandboxError: there is no isolation here.
    ValueError: an unknown option.
  """
  for name, value, known in (
    ("source", source, ("fenced", "whole", "fenced_or_whole")),
    ("scoring", scoring, ("all", "share")),
  ):
    if value not in known:
      raise ValueError(f"code_verifier.{name}={value!r}: give one of {known}")
  sandbox = Sandbox(
    Limits(**dict(limits or {})),
    isolation=isolation,
    python=python,
    libraries=libraries,
  )
  all_needed = per_test or scoring == "share"

  def verdict(
    name: str, why: str, results: Sequence[Result], weights: Sequence[float]
  ) -> dict[str, Any]:
    found: dict[str, Any] = {"verdict": name, "detail": why}
    if scoring == "share":
      gained = sum(
        w for w, r in zip(weights, results, strict=False) if r.passed
      )
      found["reward"] = gained / sum(weights)
    if per_test:
      verdicts = {True: 1.0, False: 0.0, None: None}
      found["steps"] = {"tests": [verdicts[r.passed] for r in results]}
    return found

  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    metadata = item["metadata"]
    try:
      tests, weights = read_tests(metadata)
    except BadTest as error:
      return {"verdict": "VERIFIER_FAILED", "detail": str(error)}
    nothing = [Result(False)] * len(tests)
    program, malformed = extract_program(
      item["response"], source=source, delimiter=delimiter
    )
    if malformed:
      return verdict("MALFORMED", "an open block", nothing, weights)
    if program is None:
      return verdict("NO_ANSWER", "", nothing, weights)
    if len(program) > max_program_chars:
      why = f"{len(program)} characters"
      return verdict("MALFORMED", why, nothing, weights)
    results: list[Result] = []
    bench = None
    try:
      bench = _Bench(
        sandbox,
        complete_program(program, metadata),
        metadata,
        time_limit_s=time_limit_s,
      )
      for test in tests:
        results.append(bench.result(test))
        if results[-1].no_program:
          return verdict("MALFORMED", results[-1].why, nothing, weights)
        if results[-1].passed is False and not all_needed:
          break
    except ValueError as error:  # the task's, not the program's
      return {"verdict": "VERIFIER_FAILED", "detail": str(error)}
    finally:
      if bench is not None:
        bench.close()
    problems = [(i, r) for i, r in enumerate(results, start=1) if not r.passed]
    # One test that fails is enough to be wrong, whatever the others say, but a
    # share is known only where all are.
    unknown_last = scoring == "all"
    problems.sort(key=lambda pair: (pair[1].passed is None) == unknown_last)
    if not problems:
      return verdict("CORRECT", "", results, weights)
    number, first = problems[0]
    why = f"test {number} of {len(tests)}: {first.why}"
    name = "VERIFIER_FAILED" if first.passed is None else "WRONG"
    return verdict(name, why, results, weights)

  return check


def read_tests(
  metadata: Mapping[str, Any],
) -> tuple[list[Mapping[str, Any]], list[float]]:
  """Returns a task's tests and their weights.

  Raises:
    BadTest: there are none, or the weights don't fit.
  """
  tests = metadata.get("tests")
  if not isinstance(tests, list) or not tests:
    raise BadTest("the metadata have no list of `tests`")
  weights = metadata.get("weights") or [1.0] * len(tests)
  if len(weights) != len(tests) or any(not w > 0 for w in weights):
    raise BadTest(
      f"{len(weights)} `weights` for {len(tests)} tests: one above 0 for each"
    )
  return tests, list(weights)


def code_verifier(
  *,
  num_workers: int,
  time_limit_s: float,
  max_tests: int = 0,
  limits: Mapping[str, Any] | None = None,
  isolation: Isolation = "bubblewrap",
  python: str | None = None,
  libraries: Sequence[str] = (),
  source: Found = "fenced_or_whole",
  delimiter: str = "",
  scoring: Scoring = "all",
  max_program_chars: int = 50_000,
  memory_limit_mb: int | None = 1024,
  truncated: Literal["no_answer", "verify"] = "no_answer",
  name: str = "correct",
) -> "PoolVerifier":
  """Returns the verifier of programs by their tests, in a sandbox.

  The tests come in `metadata`: see `make_code_checker`, which also says what the
  verdicts mean.

  Args:
    num_workers: processes; each runs one program at a time.
    time_limit_s: wall seconds for all tests of a response.
    max_tests: K; above 0, each test's verdict comes as step reward "tests" [B,
      K], and a task with more tests is VERIFIER_FAILED. 0: no step reward, and
      the first test that fails ends it, unless scoring="share".
    limits: fields of `sandbox.Limits` that are to differ from its own.
    isolation: see `Sandbox`.
    python: see `Sandbox`.
    libraries: see `Sandbox`.
    source: see `programs.extract_program`.
    delimiter: see `programs.extract_program`.
    scoring: see `Scoring`.
    max_program_chars: longer programs are MALFORMED.
    memory_limit_mb: of a worker, not of a program; see `WorkerPool`.
    truncated: see `host.Truncated`.
    name: the reward's name.

  Raises:
    SandboxError: there is no isolation here, and `isolation` asks for it.
    ValueError: an unknown option, or a limit that isn't above 0.
  """
  from rlvr.verifiers.host import PoolVerifier

  kwargs: dict[str, Any] = {
    "limits": dict(limits or {}),
    "time_limit_s": time_limit_s,
    "isolation": isolation,
    "python": python,
    "libraries": list(libraries),
    "source": source,
    "delimiter": delimiter,
    "scoring": scoring,
    "per_test": max_tests > 0,
    "max_program_chars": max_program_chars,
  }
  make_code_checker(**kwargs)  # raises here rather than in every worker

  def unanswered(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tests, _ = read_tests(metadata)
    return {"steps": {"tests": [0.0] * len(tests)}}

  wall_s = Limits(**kwargs["limits"]).wall_s
  return PoolVerifier(
    "rlvr.verifiers.code:make_code_checker",
    kwargs,
    num_workers=num_workers,
    # What the checker enforces itself, and room for what it waits for.
    time_limit_s=time_limit_s + 2 * wall_s + 60.0,
    memory_limit_mb=memory_limit_mb,
    truncated=truncated,
    name=name,
    steps=("tests",) if max_tests else (),
    max_steps=max_tests,
    unanswered=unanswered if max_tests else None,
  )
