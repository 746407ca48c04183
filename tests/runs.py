"""Command lines of tiny runs, for the tests of the whole program."""

import os
import pathlib
import subprocess
import sys
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="rlvr-tests-")
ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = (
  "models.ModelConfig.embed_dim=16",
  "models.ModelConfig.num_layers=1",
  "models.ModelConfig.num_heads=2",
  "models.ModelConfig.num_kv_heads=1",
  "models.ModelConfig.head_dim=8",
  "models.ModelConfig.mlp_dim=32",
  "WARMUP_UPDATES=1",
  "data.arithmetic_task.num_train=64",
  "data.arithmetic_task.num_heldout=16",
  "evaluate.Evaluation.num_prompts=16",
  "train.train.tensorboard=False",
  # One of the simulated devices.
  "FSDP=1",
)
RL = ("NUM_PROMPTS=4", "GROUP_SIZE=4")


def argv(kind, run_dir, *bindings, method="grpo", tasks=("arithmetic",)):
  """Returns the arguments of a tiny run.

  Args:
    kind: "train" or "supervised".
    run_dir: folder of the run.
    *bindings: gin bindings over the tiny ones.
    method: file in gin/methods.
    tasks: files in gin/tasks.
  """
  files = ["models/tiny", *(f"tasks/{t}" for t in tasks)]
  if kind == "train":
    files += [f"methods/{method}"]
    bindings = (*RL, *bindings)
  files += [f"runs/{kind}"]
  tiny = TINY
  if "arithmetic" not in tasks:
    tiny = [b for b in TINY if not b.startswith("data.arithmetic_task")]
  return [
    *(f"--gin_file=gin/{f}.gin" for f in files),
    f"--run_dir={run_dir}",
    *(f"--gin.{b}" for b in (*tiny, *bindings)),
  ]


def environment():
  """Returns the environment of a process of its own."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    # The same programs are compiled again and again.
    "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def start(arguments):
  """Starts the program in a process of its own, as a user would."""
  return subprocess.Popen(
    [sys.executable, "-m", "rlvr.main", *map(str, arguments)],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(arguments):
  """Runs the program to its end; returns the exit status and its output."""
  process = start(arguments)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output
