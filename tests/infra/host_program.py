"""Processes of a run over several hosts, as the tests start them.

    python -m tests.infra.host_program small WHAT --coordinator=... (flags)
    python -m tests.infra.host_program main FLAGS OF rlvr.main

`small` connects and does nothing else, in seconds. `main` is `rlvr.main`; with
RLVR_TEST_FAIL=1 process 1's verifier raises in the second step.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from tests import runs

FLAGS = ("--heartbeat_seconds=4", "--barrier_seconds=120")


def start(arguments, *, count=2, kind="main", devices=4, env=None):
  """Returns the started processes of a run, which meet at a free port."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  flags = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
  xla = [
    flag
    for flag in os.environ["XLA_FLAGS"].split()
    if "device_count" not in flag
  ]
  xla.append(f"--xla_force_host_platform_device_count={devices}")
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.infra.host_program", kind),
        *(*map(str, arguments), *flags, f"--process_id={i}"),
      ],
      cwd=runs.ROOT,
      env={**runs.environment(), "XLA_FLAGS": " ".join(xla), **(env or {})},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(count)
  ]


def ends(processes, timeout=240):
  """Returns (exit status, output) of each; kills them where they hang."""
  outputs = [""] * len(processes)

  def read(i):
    # All at once: a full pipe would hold its process up.
    outputs[i], _ = processes[i].communicate()

  readers = [
    threading.Thread(target=read, args=(i,)) for i in range(len(processes))
  ]
  for reader in readers:
    reader.start()
  deadline = time.monotonic() + timeout
  for reader in readers:
    reader.join(max(0.0, deadline - time.monotonic()))
  hanging = [i for i, p in enumerate(processes) if p.poll() is None]
  for process in processes:
    process.kill()
  for reader in readers:
    reader.join()
  assert not hanging, f"processes {hanging} hang:\n" + "\n----\n".join(outputs)
  return [(p.returncode, o) for p, o in zip(processes, outputs, strict=True)]


def small(what, arguments):
  """Connects, and goes wrong as `what` says."""
  from rlvr import main
  from rlvr.infra import hosts

  args, _ = main.parse_args(["--gin_file=none", *arguments])
  names = hosts.HostSettings.__dataclass_fields__
  found = hosts.connect(
    hosts.HostSettings(**{n: getattr(args, n) for n in names if n in args})
  )
  status = 0
  try:
    found.barrier("together")
    if what == f"kill {found.index}":
      os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise" and found.index == 1:
      raise ValueError("the verifier's answer is 17")
    if what == "late" and found.index == 1:
      found.at("lost in thought")
      time.sleep(600)
    found.barrier("the next step")
    found.check_same("a number", "1", "agree")
    found.check_same("a name", str(found.index * (what == "differ")), "agree")
  except Exception as error:
    found.post(error)
    print(f"error: {error}", flush=True)
    status = 1
  found.leave(status)
  print("left", flush=True)


def run_main(arguments):
  """Runs `rlvr.main`, with a verifier that fails where it is told to."""
  from rlvr import main, running

  verify = running.verify_text
  calls = []

  def fails(*args):
    calls.append(args)
    if len(calls) == 2 and "--process_id=1" in arguments:
      raise ValueError("the verifier's answer is 17")
    return verify(*args)

  if os.environ.get("RLVR_TEST_FAIL"):
    running.verify_text = fails
  return main.main(arguments)


if __name__ == "__main__":
  kind, *rest = sys.argv[1:]
  sys.exit(run_main(rest) if kind == "main" else small(rest[0], rest[1:]))
