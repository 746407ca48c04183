#!/usr/bin/env bash
# What happens on one host of a TPU slice, whether a TPU VM or a pod of GKE:
# scripts/launch_tpu.sh and scripts/tpu/jobset.yaml call it, people need not.
#
#   worker.sh install                 Python, packages with libtpu, sandbox
#   worker.sh start --run_name NAME [--bucket gs://...] [--resume] -- ARGS
#                                     rlvr.main in the background
#   worker.sh run ...                 the same in the foreground
#   worker.sh status --run_name NAME  absent, running, finished, stopped, or
#                                     "failed: why", in one line
#   worker.sh stop --run_name NAME    ends it
#   worker.sh idle                    fails while a run is going on
#
# The run's folder is ~/rlvr-runs/NAME, its log ~/rlvr-runs/NAME.log. Metrics are
# appended line by line, which a bucket can't do: with --bucket, host 0 copies the
# folder to BUCKET/NAME/run every RLVR_COPY_SECONDS (60), and --resume copies it
# back. Checkpoints go to BUCKET/NAME/checkpoints at once, from all hosts.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
runs=${RLVR_RUNS:-$HOME/rlvr-runs}
export RLVR_EXTRA=${RLVR_EXTRA-tpu} RLVR_VENV=${RLVR_VENV:-$HOME/rlvr-venv}

die() {
  echo "worker.sh: $1" >&2
  exit "${2:-1}"
}

command=${1:-}
[ $# -eq 0 ] || shift
run_name="" bucket="" resume=""
while [ $# -gt 0 ]; do
  case $1 in
    --run_name) run_name=${2:?--run_name needs a name}; shift 2 ;;
    --bucket) bucket=${2:?--bucket needs gs://...}; bucket=${bucket%/}; shift 2 ;;
    --resume) resume=--resume; shift ;;
    --) shift; break ;;
    *) die "unknown option $1; see the head of scripts/tpu/worker.sh" 2 ;;
  esac
done
folder=$runs/$run_name log=$runs/$run_name.log

need_run_name() {
  [ -n "$run_name" ] || die "give --run_name" 2
}

# The number of this host in its slice: from GKE, else as JAX finds it.
host_number() {
  if [ -n "${TPU_WORKER_ID:-}" ]; then
    echo "$TPU_WORKER_ID"
  else
    curl -sf --retry 5 -H 'Metadata-Flavor: Google' \
      http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
  fi
}

# Whether the process (group) of a pid file lives.
alive() {
  [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null
}

install() {
  local wanted=()
  # Ubuntu 22.04, which TPU VMs come with, has Python 3.10.
  if ! command -v python3.11 >/dev/null && ! python3 -c \
    'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    wanted=(python3.11 python3.11-venv)
  fi
  command -v bwrap >/dev/null || wanted+=(bubblewrap)
  if [ ${#wanted[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || die "install ${wanted[*]} on this host"
    # A fresh VM updates itself in the background and holds the lock meanwhile.
    local apt=(sudo DEBIAN_FRONTEND=noninteractive apt-get -q
      -o DPkg::Lock::Timeout=600)
    "${apt[@]}" update
    "${apt[@]}" install -y "${wanted[@]}"
  fi
  "$root/scripts/setup.sh"
}

copy_up() {
  [ ! -d "$folder" ] ||
    gcloud storage rsync --recursive --no-user-output-enabled \
      "$folder" "$bucket/$run_name/run" || echo "(no copy to $bucket)" >&2
  [ ! -e "$log" ] ||
    gcloud storage cp --no-user-output-enabled \
      "$log" "$bucket/$run_name/host-0.log" || true
}

copy_now_and_then() {
  local nap=""
  trap 'kill "$nap"; exit' TERM
  while :; do
    sleep "${RLVR_COPY_SECONDS:-60}" &
    nap=$!
    wait "$nap"
    copy_up
  done
}

copy_down() {
  # Nothing there is what the first start finds; any other trouble must stop.
  if gcloud storage ls "$bucket/$run_name/run/" >/dev/null 2>&1; then
    mkdir -p "$folder"
    gcloud storage rsync --recursive --no-user-output-enabled \
      "$bucket/$run_name/run" "$folder"
  fi
}

run() {
  local python host child copier="" status=0
  local flags=(--distributed=auto "--run_dir=$folder")
  mkdir -p "$runs"
  rm -f "$runs/$run_name.exit"
  python=$("$root/scripts/setup.sh")
  host=$(host_number) || die "no number of this host: set TPU_WORKER_ID"
  if [ -n "$bucket" ]; then
    flags+=("--gin.train.train.checkpoint_dir='$bucket/$run_name/checkpoints'")
    if [ "$host" = 0 ]; then
      [ -z "$resume" ] || copy_down
      copy_now_and_then &
      copier=$!
    fi
  fi
  cd "$root"
  # Both named: without a TPU the run must fail, not go on at a crawl.
  JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu} "$python" -m rlvr.main "$@" \
    "${flags[@]}" $resume &
  child=$!
  # A host that is taken away gets some seconds: the last metrics are saved.
  trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
  wait "$child" || status=$?
  # A trapped signal ends `wait` early: the process itself may still be ending.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || status=$?
  done
  if [ -n "$copier" ]; then
    kill "$copier" 2>/dev/null || true
    copy_up
  fi
  echo "$status" >"$runs/$run_name.exit"
  return "$status"
}

stop() {
  local pid="$runs/$run_name.pid" tries=0
  if alive "$pid"; then
    # To the leader alone, once: the last copy to the bucket must not be hit.
    kill -TERM "$(cat "$pid")" 2>/dev/null || true
    while alive "$pid" && [ $tries -lt 300 ]; do
      sleep 0.2
      tries=$((tries + 1))
    done
    # Whatever is left of the group, such as verifier processes.
    kill -KILL -- "-$(cat "$pid")" 2>/dev/null || true
  fi
  rm -f "$pid"
}

start() {
  if alive "$runs/$run_name.pid"; then
    # What is left of a run whose other hosts ended holds the chips.
    [ -n "$resume" ] || die "run $run_name is going on: stop it, or see its log"
    stop
  fi
  mkdir -p "$runs"
  rm -f "$runs/$run_name.exit"
  local options=(--run_name "$run_name")
  [ -z "$resume" ] || options+=(--resume)
  [ -z "$bucket" ] || options+=(--bucket "$bucket")
  setsid nohup "$root/scripts/tpu/worker.sh" run "${options[@]}" -- "$@" \
    >>"$log" 2>&1 </dev/null &
  echo $! >"$runs/$run_name.pid"
  echo "$(hostname): run $run_name started, log $log"
}

status() {
  local code
  if alive "$runs/$run_name.pid"; then
    echo running
  elif [ -e "$runs/$run_name.exit" ]; then
    code=$(cat "$runs/$run_name.exit")
    if [ "$code" = 0 ]; then
      echo finished
    elif [ "$code" -ge 128 ]; then
      echo stopped # by a signal: as the host went away, or by `stop`
    else
      echo "failed: $(grep -v '^(' "$log" | tail -n 1)"
    fi
  elif [ -e "$log" ]; then
    echo stopped
  else
    echo absent
  fi
}

case $command in
  install) install ;;
  start) need_run_name; start "$@" ;;
  run) need_run_name; run "$@" ;;
  status) need_run_name; status ;;
  stop) need_run_name; stop ;;
  idle)
    for pid in "$runs"/*.pid; do
      if alive "$pid"; then
        die "$(basename "$pid" .pid) is going on here: stop it first"
      fi
    done
    ;;
  *) die "unknown command '$command'; see the head of scripts/tpu/worker.sh" 2 ;;
esac
