"""A killed run that is resumed equals the run that was not killed."""

import signal
import time
import warnings

import jax
import numpy as np

from rlvr.infra.metrics import read_metrics
from tests import runs

# Host verification one batch ahead: the hardest case, since a batch is always
# under way. Checkpoints every 5 steps; killed between two of them.
_BINDINGS = (
  "STEPS=36",
  "SAVE_EVERY=5",
  "EVALUATE_EVERY=18",
  "DEPTH=1",
  "LEARNING_RATE=0.01",
)
_CLOCK = ("time", "throughput")


def figures(folder):
  """Returns the metrics without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if not k.startswith(_CLOCK)}
    for row in read_metrics(folder / "metrics.jsonl")
  ]


def final_arrays(folder):
  """Returns the arrays of the last checkpoint."""
  import orbax.checkpoint as ocp

  with (
    warnings.catch_warnings(),
    ocp.CheckpointManager(folder / "checkpoints") as manager,
  ):
    # It is read without saying where to put it: on the one device.
    warnings.simplefilter("ignore", UserWarning)
    step = manager.latest_step()
    restored = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore())
    )
  return step, jax.tree.map(np.asarray, restored["state"])


def between_checkpoints(folder):
  """Whether a checkpoint is on the disk and steps were done after it."""
  saved = [
    int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()
  ]
  path = folder / "metrics.jsonl"
  if not saved or not path.exists():
    return False
  # The last line may be torn.
  return len(path.read_bytes().splitlines()) - 2 > max(saved) + 1


def test_resume_after_kill_9_changes_nothing(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  tasks = ("arithmetic", "arithmetic_signals")

  def arguments(folder, *extra):
    # A reward that an untrained policy gets as well, from probes, and a chain
    # with a state (a moving threshold): else there would be nothing to resume.
    method = runs.argv("train", folder, *_BINDINGS, method="rlpr", tasks=tasks)
    return [*method, *extra]

  code, output = runs.run(arguments(whole))
  assert code == 0, output

  process = runs.start(arguments(killed))
  while process.poll() is None and not between_checkpoints(killed):
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL, "finished before it was killed"
  assert read_metrics(killed / "metrics.jsonl")[-1]["step"] < 36

  code, output = runs.run(arguments(killed, "--resume"))
  assert code == 0, output
  assert "going on from step" in output
  assert figures(killed) == figures(whole)
  (step_a, a), (step_b, b) = final_arrays(whole), final_arrays(killed)
  assert step_a == step_b == 36
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert jax.tree.leaves({k: v for k, v in a.items() if "chain_state" in k})
  assert min(r["optim/grad_norm"] for r in figures(whole)[1:3]) > 0
  # Steps differ from one another: equal figures were not trivially equal.
  entropies = [r["policy/entropy"] for r in figures(whole)[1:]]
  assert len(set(entropies)) == len(entropies)
