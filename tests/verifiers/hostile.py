"""Hostile programs, and what judges them, for the tests of the sandbox."""

import time

from rlvr.verifiers import WorkerPool

LIMITS = {"cpu_s": 1.0, "wall_s": 3.0, "memory_mb": 128, "processes": 4}
LIMITS |= {"file_mb": 4, "disk_mb": 8, "files": 500, "output_kb": 64}
HONEST = "def f(x): return x + 1"


def make_pool(isolation):
  return WorkerPool(
    "rlvr.verifiers.code:make_code_checker",
    {"limits": LIMITS, "isolation": isolation, "source": "whole"},
    num_workers=1,
    time_limit_s=60.0,
  )


def item(program, *tests, setup=""):
  metadata = {"tests": list(tests), "setup": setup}
  return {"response": program, "reference": "", "metadata": metadata}


def calls(expected=42, argument=1):
  return {"function": "f", "arguments": [argument], "expected": expected}


def judge(pool, *items):
  """Returns the items' (verdict, detail); an honest one follows them."""
  before = pool.restarts
  outcomes = pool.map([*items, item(HONEST, calls(2))])
  assert {o.status for o in outcomes} == {"ok"}, outcomes
  assert pool.restarts == before  # the worker itself came to no harm
  *found, honest = [o.value for o in outcomes]
  assert honest["verdict"] == "CORRECT"
  return [(value["verdict"], value["detail"]) for value in found]


def attack(pool, program, *tests, setup=""):
  """Returns verdict and detail of one attack."""
  (found,) = judge(pool, item(program, *(tests or [calls()]), setup=setup))
  return found


def names(detail):
  """Returns the status in a detail like "test 1 of 1: timed_out: 1 s"."""
  return detail.partition(": ")[2].partition(":")[0]


def wait_for(condition, seconds=5.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.01)


# What takes too much, with the statuses that say so.

TOO_MUCH = {
  "loop": ("def f(x):\n  while True: pass", "timed_out"),
  "sleep": ("import time\ndef f(x): time.sleep(60)", "timed_out"),
  "loop at import": ("while True: pass", "timed_out"),
  "loop in C": ("def f(x): return 9 ** 9 ** 9", "timed_out"),
  "no SIGXCPU": (
    "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
    "while True: pass",
    "timed_out",
  ),
  "stops itself": (
    "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
    "timed_out",
  ),
  "memory": ("def f(x): return len(bytearray(1 << 30))", "memory"),
  "little by little": (
    "def f(x):\n  a = []\n  while True: a.append(bytearray(1 << 20))",
    "memory",
  ),
  "endless output": ("def f(x):\n  while True: print('x' * 999)", "output"),
  "endless errors": (
    "import os\ndef f(x):\n  while True: os.write(2, b'x' * 999)",
    "output",
  ),
  "a megabyte returned": ("def f(x): return 'x' * (1 << 20)", "output"),
  "huge file": (
    "def f(x):\n  with open('a', 'wb') as a:\n"
    "    while True: a.write(bytes(1 << 16))",
    "file_size",
  ),
  "open files": (
    "import os\ndef f(x):\n  while True: os.open('/dev/null', 0)",
    "descriptors",
  ),
  "deep recursion": ("def f(x): return f(x)", "raised"),
  "bottomless recursion": (
    "import sys\nsys.setrecursionlimit(10**9)\n"
    "class A:\n  def __repr__(self): return repr(self)\n"
    "def f(x): return repr(A())",
    ("killed", "memory"),
  ),
  "deep value": (
    "def f(x):\n  a = []\n  for _ in range(10**5): a = [a]\n  return a",
    "raised",
  ),
  "value in itself": (
    "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "raised",
  ),
}


BOMBS = {
  "fork": """
import os
def f(x):
  while True:
    try: os.fork()
    except OSError: pass
""",
  "fork and leave": """
import os
def f(x):
  while True:
    try:
      if os.fork(): os._exit(0)
      os.setsid()
    except OSError: pass
""",
  "threads": """
import threading, time
def f(x):
  while True:
    try: threading.Thread(target=time.sleep, args=(60,)).start()
    except RuntimeError: time.sleep(0.01)
""",
}


# What ends before it has answered.

LEAVES = {
  "sys.exit": "import sys\ndef f(x): sys.exit(0)",
  "os._exit": "import os\ndef f(x): os._exit(0)",
  "exit at import": "import sys\ndef f(x): return 42\nsys.exit(0)",
  "exit by exec": "import os\ndef f(x): os.execv('/usr/bin/true', ['true'])",
  "generator": "def f(x): yield 42",
  "closes all": "import os\ndef f(x):\n  os.closerange(0, 256)\n  return 42",
  "raises SystemExit": "def f(x): raise SystemExit",
  "kills itself": "import os\ndef f(x): os.kill(os.getpid(), 9)",
}
