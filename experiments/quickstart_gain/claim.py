"""Runs the quickstart over seeds, with its reward and with coin flips.

    python experiments/quickstart_gain/claim.py --out runs/claim

Each run is `scripts/quickstart.sh` as a user calls it; runs that are there are
not repeated. Writes results.json beside this file and prints the table.
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


def accuracies(run_dir: pathlib.Path) -> tuple[float, float, float]:
  """Returns held-out accuracy before and after RL, and minutes of both runs."""
  rows = read_metrics(run_dir / "rl" / "metrics.jsonl")
  warm = read_metrics(run_dir / "warm" / "metrics.jsonl")
  found = [r["eval/accuracy"] for r in rows if "eval/accuracy" in r]
  seconds = sum(r[-1]["time"] - r[0]["time"] for r in (warm, rows))
  return found[0], found[-1], seconds / 60


def finished(run_dir: pathlib.Path) -> bool:
  """Whether the RL run in the folder came to its end."""
  about = run_dir / "rl" / "about.json"
  return (
    about.exists() and json.loads(about.read_text())["status"] == "finished"
  )


def main() -> int:
  """Returns 0 if the claim holds, 1 if not."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument(
    "--control_seeds", type=int, nargs="+", help="--seeds, if not given"
  )
  args = parser.parse_args()
  control_seeds = args.control_seeds or args.seeds
  if min(len(args.seeds), len(control_seeds)) < 2:
    parser.error("--seeds: an interval needs two or more")
  results = {}
  for kind, flags, seeds in (
    ("reward", [], args.seeds),
    ("coin flips", ["--coin_flips"], control_seeds),
  ):
    runs = []
    for seed in seeds:
      run_dir = args.out / f"{kind.replace(' ', '_')}-{seed}"
      if not finished(run_dir):
        # Both start from the same warm start: copied, not made again.
        warm = args.out / f"reward-{seed}" / "warm"
        if warm.exists() and not (run_dir / "warm").exists():
          shutil.copytree(warm, run_dir / "warm")
        shutil.rmtree(run_dir / "rl", ignore_errors=True)
        subprocess.run(
          [
            ROOT / "scripts/quickstart.sh",
            *flags,
            "--seed",
            str(seed),
            "--run_dir",
            str(run_dir),
          ],
          check=True,
        )
      before, after, minutes = accuracies(run_dir)
      runs.append(
        {"seed": seed, "before": before, "after": after, "minutes": minutes}
      )
    gain = mean_interval([100 * (r["after"] - r["before"]) for r in runs])
    results[kind] = {"runs": runs, "gain_points": list(gain)}
  (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
  print("| reward | seed | before | after | gain | minutes |")
  print("|---|---|---|---|---|---|")
  for kind, result in results.items():
    for r in result["runs"]:
      print(
        f"| {kind} | {r['seed']} | {r['before']:.1%} | {r['after']:.1%} |"
        f" {100 * (r['after'] - r['before']):+.1f} | {r['minutes']:.1f} |"
      )
    mean, low, high = result["gain_points"]
    print(f"| {kind} | mean | | | {mean:+.1f} [{low:+.1f}, {high:+.1f}] | |")
  gains = {
    kind: [100 * (r["after"] - r["before"]) for r in result["runs"]]
    for kind, result in results.items()
  }
  # Every seed, not only their mean; and the control below all of them.
  holds = min(gains["reward"]) >= 25 and max(gains["coin flips"]) < 5
  print("verdict:", "holds" if holds else "does not hold")
  return 0 if holds else 1


if __name__ == "__main__":
  sys.exit(main())
