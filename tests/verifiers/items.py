"""Item functions that misbehave in every way, for workers to run."""

import json
import os
import pathlib
import sys
import time


def make_item_function(*, offset=0):
  """Returns a function of (command, argument)."""

  def run(item):
    command, argument = item
    if command == "add":
      return argument + offset
    if command == "sleep":
      time.sleep(argument)
      return "slept"
    if command == "c_loop":  # holds the interpreter: no signal, no thread runs
      return len(str(9 ** (9**argument)))
    if command == "raise":
      raise ValueError(argument)
    if command == "unprintable":
      raise Unprintable
    if command == "exit":
      os._exit(argument)
    if command == "system_exit":
      sys.exit(argument)
    if command == "not_json":
      return {1, 2}
    if command == "noise":
      print('["ok", 666, "", 0.0]')
      os.write(1, b'["ok", 666, "", 0.0]\n')
      os.write(2, b"x" * 200_000)
      return "quiet"
    if command == "loaded":
      names = ("jax", "jaxlib", "tensorflow", "flax", "torch")
      return [name for name in names if name in sys.modules]
    if command == "grow":
      hoard = []
      while True:
        hoard.append(bytearray(b"x" * (4 << 20)))
        time.sleep(0.002)
    if command == "hoard":
      HOARD.append(bytearray(b"x") * (argument << 20))
      return os.getpid()
    if command == "echo":
      return argument
    if command == "pid":
      return os.getpid()
    raise AssertionError(command)

  return run


HOARD: list[bytearray] = []


def make_heavy(*, megabytes):
  """An item function that takes memory to load; answers as the first one."""
  HOARD.append(bytearray(b"x") * (megabytes << 20))
  return make_item_function()


class Unprintable(Exception):
  def __str__(self):
    raise RuntimeError("no")


def make_nothing():
  raise ImportError("there is no such library")


def make_and_exit():
  os.write(2, b"out of luck")
  os._exit(3)


def make_echo_math():
  """A verifier's item function that answers what the response asks for."""

  def run(item):
    response = item["response"]
    if response == "HANG":
      time.sleep(60)
    if response == "DIE":
      os._exit(1)
    if response == "NONSENSE":
      return {"verdict": "PERHAPS"}
    if response == "PARTIAL":
      return {"verdict": "WRONG", "reward": 0.25}
    return {"verdict": response, "detail": "as asked"}

  return run


def make_parts():
  """A verifier's item function that returns what the response spells out."""

  def run(item):
    return {"verdict": "WRONG", **json.loads(item["response"])}

  return run


def make_slow(*, folder, seconds):
  """A verifier's item function that takes its time and says that it does."""

  def run(item):
    busy = pathlib.Path(folder) / str(os.getpid())
    busy.touch()
    time.sleep(seconds)
    busy.unlink()
    right = len(item["response"]) % 2 == 0
    return {"verdict": "CORRECT" if right else "WRONG"}

  return run


def slow_verifier(*, folder, seconds):
  """Returns a verifier that can be caught at work; for a gin file."""
  from rlvr.verifiers import PoolVerifier

  return PoolVerifier(
    "tests.verifiers.items:make_slow",
    {"folder": folder, "seconds": seconds},
    num_workers=2,
    time_limit_s=60.0,
    truncated="verify",
  )
