"""Trains a published 135 M-parameter model on sums, with a coin-flip control.

    python experiments/real_model/claim.py --model SmolLM2-135M-Instruct.gguf \
      --out runs/real_model

The model is a .gguf file or a Hugging Face folder of SmolLM2-135M-Instruct.
Runs that are there are not repeated. Writes results.json beside this file and
prints the table.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

from rlvr.evaluation.metrics import mean_interval
from rlvr.infra.metrics import read_metrics

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHOWN = ("accuracy", "accuracy_low", "accuracy_high")


def figures(run_dir: pathlib.Path) -> dict[str, object]:
  """Returns held-out accuracy with its interval at both ends, and minutes."""
  rows = read_metrics(run_dir / "metrics.jsonl")
  found = [r for r in rows if "eval/accuracy" in r]
  first, last = found[0], found[-1]
  return {
    "before": [first[f"eval/{name}"] for name in SHOWN],
    "after": [last[f"eval/{name}"] for name in SHOWN],
    "verdicts": {
      name: verdicts(run_dir, step)
      for name, step in (("before", first["step"]), ("after", last["step"]))
    },
    "minutes": (rows[-1]["time"] - rows[0]["time"]) / 60,
  }


def verdicts(run_dir: pathlib.Path, step: int) -> dict[str, int]:
  """Returns how often each verdict was given to held-out answers."""
  counts: dict[str, int] = {}
  with (run_dir / "samples.jsonl").open(encoding="utf-8") as lines:
    for row in map(json.loads, lines):
      if row["step"] == step and row["kind"] == "eval":
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
  return counts


def finished(run_dir: pathlib.Path) -> bool:
  """Whether the run in the folder came to its end."""
  about = run_dir / "about.json"
  return (
    about.exists() and json.loads(about.read_text())["status"] == "finished"
  )


def percent(accuracy: list[float]) -> str:
  """Returns an accuracy with its interval."""
  return "{:.1%} [{:.1%}, {:.1%}]".format(*accuracy)


def train(
  run_dir: pathlib.Path, model: pathlib.Path, seed: int, *flags: str
) -> None:
  """Runs one seed, from the start where a run was stopped."""
  if finished(run_dir):
    return
  shutil.rmtree(run_dir, ignore_errors=True)
  subprocess.run(
    [
      *(sys.executable, "-m", "rlvr.main"),
      f"--gin_file={HERE / 'run.gin'}",
      *flags,
      f"--run_dir={run_dir}",
      f"--gin.MODEL_PATH='{model}'",
      f"--gin.SEED={seed}",
    ],
    check=True,
    cwd=ROOT,
  )


def main() -> int:
  """Returns 0 if the claim holds, 1 if not."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
  parser.add_argument("--control_seeds", type=int, nargs="+", default=[0, 1, 2])
  args = parser.parse_args()
  if not args.model.exists():
    parser.error(f"--model={args.model}: no such file or folder")
  for flag in ("seeds", "control_seeds"):
    if len(getattr(args, flag)) < 2:
      parser.error(f"--{flag}: an interval needs two or more")
  results = {}
  for kind, flags, seeds in (
    ("reward", [], args.seeds),
    ("coin flips", ["--gin_file=gin/tasks/coin_flips.gin"], args.control_seeds),
  ):
    runs = []
    for seed in seeds:
      run_dir = args.out.resolve() / f"{kind.replace(' ', '_')}-{seed}"
      train(run_dir, args.model.resolve(), seed, *flags)
      runs.append({"seed": seed, **figures(run_dir)})
    gains = [100 * (r["after"][0] - r["before"][0]) for r in runs]
    interval = list(mean_interval(gains))
    results[kind] = {"runs": runs, "gain_points": interval}
  (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
  print("| reward | seed | before | after | gain | minutes |")
  print("|---|---|---|---|---|---|")
  for kind, result in results.items():
    for run in result["runs"]:
      gain = 100 * (run["after"][0] - run["before"][0])
      print(
        f"| {kind} | {run['seed']} | {percent(run['before'])} |"
        f" {percent(run['after'])} | {gain:+.1f} | {run['minutes']:.1f} |"
      )
    mean, low, high = result["gain_points"]
    print(f"| {kind} | mean | | | {mean:+.1f} [{low:+.1f}, {high:+.1f}] | |")
  # With the reward, the intervals before and after don't touch at any seed;
  # with coin flips no seed ends above where it began by that much.
  rises = {
    kind: [r["after"][1] > r["before"][2] for r in result["runs"]]
    for kind, result in results.items()
  }
  holds = all(rises["reward"]) and not any(rises["coin flips"])
  print("verdict:", "holds" if holds else "does not hold")
  return 0 if holds else 1


if __name__ == "__main__":
  sys.exit(main())
