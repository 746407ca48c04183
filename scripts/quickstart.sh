#!/usr/bin/env bash
# Sets up (scripts/setup.sh) and runs the main job: a tiny policy is warm-started
# on a few worked examples, then trained with verifiable rewards on arithmetic.
# The report page says how far held-out accuracy came.
#
#   scripts/quickstart.sh [--seed N] [--coin_flips] [--run_dir DIR]
#
#   --seed N       of everything; 0
#   --coin_flips   the control: the reward is a coin flip, whatever the response
#   --run_dir DIR  runs/quickstart
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
seed=0 run_dir="" reward=()
while [ $# -gt 0 ]; do
  case $1 in
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --coin_flips) reward=(--gin_file=gin/tasks/coin_flips.gin); shift ;;
    --run_dir) run_dir=${2:?--run_dir needs a folder}; shift 2 ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
done
python=$("$root/scripts/setup.sh")
run_dir=${run_dir:-$root/runs/quickstart}
mkdir -p "$run_dir"
run_dir=$(cd "$run_dir" && pwd)
cd "$root"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
model=(--gin_file=gin/models/tiny.gin --gin_file=gin/tasks/arithmetic.gin)

if [ ! -e "$run_dir/warm/report.html" ]; then
  echo "== 1 of 2: supervised warm start"
  "$python" -m rlvr.main "${model[@]}" --gin_file=gin/runs/supervised.gin \
    --run_dir="$run_dir/warm" --gin.SEED="$seed"
fi
echo "== 2 of 2: reinforcement learning"
"$python" -m rlvr.main "${model[@]}" "${reward[@]}" \
  --gin_file=gin/methods/grpo.gin --gin_file=gin/runs/train.gin \
  --run_dir="$run_dir/rl" --gin.SEED="$seed" \
  --gin.INITIAL_PARAMS="'$run_dir/warm/checkpoints'"
