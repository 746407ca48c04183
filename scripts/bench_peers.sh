#!/usr/bin/env bash
# Times one GRPO step of rlvr beside other libraries', in turn, and prints ratios.
#
#   scripts/bench_peers.sh HARNESS [ROUNDS]
#
# HARNESS is a folder with the other libraries' scripts: setup.sh (once, makes
# their environments), run_all.sh TAG ITEM..., common.py, config.json. Each round
# runs roofline (the machine's limits), then every library once, one process at a
# time; scripts/bench_ratios.py makes the table of all rounds. PEERBENCH_HOME is where the
# harness keeps its environments and results; PEERS are its items (default: the
# best known setting of each: trlcompile32_m tunix16).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
harness=${1:?usage: scripts/bench_peers.sh HARNESS [ROUNDS]}
rounds=${2:-1}
if [ ! -x "$harness/run_all.sh" ]; then
  echo "bench_peers.sh: no $harness/run_all.sh: give the harness's folder" >&2
  exit 2
fi
export PEERBENCH_HOME=${PEERBENCH_HOME:-$HOME/.cache/rlvr-peerbench}
read -ra peers <<<"${PEERS:-trlcompile32_m tunix16}"
python=$("$root/scripts/setup.sh")
results=$PEERBENCH_HOME/results
mkdir -p "$results"
"$harness/setup.sh" >&2
JAX_PLATFORMS=cpu "$python" "$root/scripts/bench_step.py" --harness "$harness" --check >&2
for round in $(seq "$rounds"); do
  tag=rlvr$round
  "$harness/run_all.sh" "$tag" roofline "${peers[@]}"
  JAX_PLATFORMS=cpu "$python" "$root/scripts/bench_step.py" --harness "$harness" \
    2>"$results/rlvr.$tag.err" | grep '^{"lib"' >"$results/rlvr.$tag.json"
done
found=()
for item in roofline rlvr "${peers[@]}"; do
  found+=("$results/$item".rlvr*.json)
done
JAX_PLATFORMS=cpu "$python" "$root/scripts/bench_ratios.py" \
  --figures="$root/docs/performance.json" "${found[@]}"
