#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice, from asking for it to the report.
# docs/tpu.md walks through it. Nothing is billed before `create`, and all of it
# until `delete`.
#
#   scripts/launch_tpu.sh [OPTIONS] COMMAND [OPTIONS] [-- ARGUMENTS OF rlvr.main]
#
#   create     asks for the slice: a queued resource
#   wait       returns when it is there
#   install    the commit HEAD of this checkout and its packages, on all hosts
#   run        python -m rlvr.main ARGUMENTS on all hosts, in the background
#   logs       follows the log of host 0
#   status     of the slice and of the run
#   stop       ends the run, on all hosts
#   resume     goes on with the run: run with --resume, after what may be left
#              of it has been ended
#   fetch      report, metrics, samples and log to FETCH_TO
#   delete     gives the slice back, with the disks of its hosts
#   supervise  all of it until the run has finished: asks again when the slice
#              is taken away (Spot), resumes, and fetches at the end
#   gke        writes a GKE JobSet for the run to the standard output
#   xpk        submits the run with XPK
#
#   --print    shows the commands, ready to paste, and runs none of them
#
# Options, each --option=VALUE or --option VALUE; NAME in capitals is the
# environment variable that gives its default:
#   --project PROJECT  --zone ZONE  --name NAME      of the slice
#   --accelerator_type ACCELERATOR_TYPE              v5litepod-16, v6e-8, v5p-32, ...
#   --runtime_version RUNTIME_VERSION                by the accelerator
#   --spot (SPOT=1)                                  cheap, may be taken away
#   --bucket BUCKET          gs://bucket[/folder] for checkpoints and metrics;
#                            needed with several hosts and by supervise
#   --run_name RUN_NAME      NAME; folder in the bucket and on the hosts
#   --git_url GIT_URL  --git_ref GIT_REF             clone instead of this checkout
#   --copy PATH              a file or folder here or gs://..., to ../rlvr-files/
#                            beside the code of each host; repeatable
#   --fetch_to FETCH_TO      runs
#   --host HOST              whose log is followed; 0
#   --poll_seconds POLL_SECONDS      30
#   --max_restarts MAX_RESTARTS      20: how often supervise, GKE or XPK begin again
#   --max_failures MAX_FAILURES      0: how often supervise resumes a run that
#                                    failed by itself, on a healthy slice
#   --create_flag FLAG       for gcloud's create (--create_flag=--network=mine)
#   --ssh_flag FLAG          for gcloud's ssh and scp (--ssh_flag=--internal-ip)
#   --image IMAGE  --cluster CLUSTER  --service_account SERVICE_ACCOUNT
#                            of Kubernetes, for gke and xpk
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORKER=rlvr/scripts/tpu/worker.sh # on a host, from its home folder
LOOKS=4 # supervise believes a failure that it has seen so many times in a row

die() {
  echo "launch_tpu.sh: $1" >&2
  exit "${2:-1}"
}

project=${PROJECT:-} zone=${ZONE:-} name=${NAME:-}
accelerator_type=${ACCELERATOR_TYPE:-} runtime_version=${RUNTIME_VERSION:-}
spot=${SPOT:-} bucket=${BUCKET:-} run_name=${RUN_NAME:-}
git_url=${GIT_URL:-} git_ref=${GIT_REF:-} fetch_to=${FETCH_TO:-runs}
host=0 poll_seconds=${POLL_SECONDS:-30}
max_restarts=${MAX_RESTARTS:-20} max_failures=${MAX_FAILURES:-0}
image=${IMAGE:-} cluster=${CLUSTER:-}
service_account=${SERVICE_ACCOUNT:-default}
command="" print="" copies=() create_flags=() ssh_flags=() arguments=()

while [ $# -gt 0 ]; do
  case $1 in
    --print) print=1; shift; continue ;;
    --spot) spot=1; shift; continue ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; arguments=("$@"); break ;;
    --gin* | --resume | --run_dir* | --distributed*)
      die "$1 goes behind --, or is given by this script; see --help" 2 ;;
    --*=*) option=${1%%=*} value=${1#*=}; shift ;;
    --*)
      option=$1
      [ $# -gt 1 ] || die "$1 needs a value" 2
      value=$2; shift 2 ;;
    *)
      [ -z "$command" ] ||
        die "two commands, $command and $1: give one, and rlvr.main's arguments behind --" 2
      command=$1; shift; continue ;;
  esac
  case $option in
    --copy) copies+=("$value") ;;
    --create_flag) create_flags+=("$value") ;;
    --ssh_flag) ssh_flags+=("$value") ;;
    --project | --zone | --name | --accelerator_type | --runtime_version | \
      --bucket | --run_name | --git_url | --git_ref | --fetch_to | --host | \
      --poll_seconds | --max_restarts | --max_failures | --image | --cluster | \
      --service_account) printf -v "${option#--}" %s "$value" ;;
    *) die "unknown option $option; see --help" 2 ;;
  esac
done
run_name=${run_name:-$name} bucket=${bucket%/}

# ---- what is shown and what is run: the same words

# Words as a shell reads them, on one line.
quoted() {
  local word line=""
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_./:=@%+,-]*)
        word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command, or shows it.
step() {
  if [ -n "$print" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

note() {
  if [ -n "$print" ]; then echo "# $1"; else echo "launch_tpu.sh: $1" >&2; fi
}

# ---- checks of the settings

need() {
  local setting
  for setting in "$@"; do
    [ -n "${!setting}" ] ||
      die "no $setting: give --$setting or $(echo "$setting" | tr '[:lower:]' '[:upper:]')" 2
  done
}

need_tool() {
  [ -n "$print" ] || command -v "$1" >/dev/null ||
    die "$1 is not installed ($2); --print shows the commands without it"
}

# Sets chips, hosts (VMs), topology, chips_per_host and the names that Cloud TPU
# and GKE have for an accelerator type. Sources: docs/tpu.md.
describe_slice() {
  local kind=${accelerator_type%-*} size=${accelerator_type##*-}
  topology="" generation=$kind chips=$size chips_per_host=4
  case $kind in
    v5litepod | v6e)
      case $size in
        1) topology=1x1 chips_per_host=1 ;; 4) topology=2x2 ;;
        8) topology=2x4 chips_per_host=8 ;; 16) topology=4x4 ;;
        32) topology=4x8 ;; 64) topology=8x8 ;;
        128) topology=8x16 ;; 256) topology=16x16 ;;
      esac ;;
    v4 | v5p) # named by cores, two on a chip
      case $size in
        8) topology=2x2x1 ;; 16) topology=2x2x2 ;; 32) topology=2x2x4 ;;
        64) topology=2x4x4 ;; 128) topology=4x4x4 ;; 256) topology=4x4x8 ;;
        512) topology=4x8x8 ;; 1024) topology=8x8x8 ;; 2048) topology=8x8x16 ;;
      esac
      [ -z "$topology" ] || chips=$((size / 2)) ;;
  esac
  [ -n "$topology" ] || die \
    "unknown accelerator_type '$accelerator_type': give v5litepod-N or v6e-N with N = 1, 4, 8, 16, ..., 256 chips, or v4-N or v5p-N with N = 8, 16, ..., 2048 cores" 2
  case $kind in
    v5litepod) generation=v5e runtime=v2-alpha-tpuv5-lite gke=tpu-v5-lite-podslice ;;
    v6e) runtime=v2-alpha-tpuv6e gke=tpu-v6e-slice ;;
    v5p) runtime=v2-alpha-tpuv5 gke=tpu-v5p-slice ;;
    v4) runtime=tpu-ubuntu2204-base gke=tpu-v4-podslice ;;
  esac
  hosts=$((chips / chips_per_host))
  runtime_version=${runtime_version:-$runtime}
}

check_names() {
  need name
  case $name in
    [!a-z]* | *[!a-z0-9-]* | *-) die "name '$name': give lower-case letters, digits and -, beginning with a letter" 2 ;;
  esac
  case $run_name in
    *[!A-Za-z0-9._-]*) die "run_name '$run_name': give letters, digits, . _ and -" 2 ;;
  esac
  case $bucket in
    "" | gs://?*) ;;
    *) die "bucket '$bucket': give gs://bucket or gs://bucket/folder" 2 ;;
  esac
  local number
  for number in host poll_seconds max_restarts max_failures; do
    case ${!number} in
      "" | *[!0-9]*) die "$number '${!number}': give a whole number" 2 ;;
    esac
  done
}

# Before anything is billed: what can only fail once the slice is there.
check_install() {
  local path
  [ -z "$git_ref" ] || [ -n "$git_url" ] ||
    die "--git_ref=$git_ref without --git_url: HEAD of this checkout would be installed; give --git_url too, or check $git_ref out" 2
  for path in ${copies[@]+"${copies[@]}"}; do
    case $path in
      gs://*) ;;
      *) [ -e "$path" ] || die "--copy=$path: no such file or folder here" 2 ;;
    esac
  done
}

# Whether the commit that is installed has a configuration. Another repository
# may have what this one has not, and so may the hosts, outside of the code.
check_gin_file() {
  case $1 in /* | ../* | *://*) return ;; esac
  [ -z "$git_url" ] && git -C "$root" rev-parse -q --verify HEAD >/dev/null 2>&1 ||
    return 0
  git -C "$root" cat-file -e "HEAD:./$1" 2>/dev/null ||
    die "--gin_file=$1 is not in the commit HEAD of this checkout: commit it or correct the name (with --git_url, as for install, nothing is looked for here)" 2
}

check_run() {
  local argument before=""
  [ ${#arguments[@]} -gt 0 ] ||
    die "nothing to run: give rlvr.main's arguments behind --, as in: run -- --gin_file=gin/models/tiny.gin ..." 2
  for argument in "${arguments[@]}"; do
    case $argument in
      --run_dir* | --resume | --distributed*)
        die "$argument is given by this script: leave it out (run_name and bucket say where, resume resumes)" 2 ;;
      --coordinator | --coordinator=* | --num_processes* | --process_id*)
        die "$argument is given by this script: leave it out (the hosts find one another)" 2 ;;
    esac
    # For gke and xpk it is the image that has them.
    case $command/$before/$argument in
      gke/* | xpk/*) ;;
      */--gin_file/*) check_gin_file "$argument" ;;
      */*/--gin_file=*) check_gin_file "${argument#*=}" ;;
    esac
    before=$argument
  done
  [ -z "$accelerator_type" ] || describe_slice
  [ -n "$bucket" ] || [ "${hosts:-1}" = 1 ] ||
    die "$accelerator_type has $hosts hosts, whose checkpoints need one place: give --bucket or BUCKET" 2
}

# ---- the commands of Cloud TPU

in_zone() {
  where=("--project=$project" "--zone=$zone")
}

# A command on one host or all of them; $1 is a number or "all".
on_hosts() {
  step gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    --quiet ${ssh_flags[@]+"${ssh_flags[@]}"} "--command=$2"
}

copy_between() {
  step gcloud compute tpus tpu-vm scp "$2" "$3" "${where[@]}" "--worker=$1" \
    --quiet ${ssh_flags[@]+"${ssh_flags[@]}"} ${4:+"$4"}
}

queue() {
  step gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"
}

create() {
  note "$accelerator_type: $chips chips on $hosts host(s). Does the run fit? python -m rlvr.infra.aot --topology=$generation:$topology --gin_file=..."
  note "billed from when it is ACTIVE until: scripts/launch_tpu.sh delete"
  queue create "--node-id=$name" "--accelerator-type=$accelerator_type" \
    "--runtime-version=$runtime_version" ${spot:+--spot} \
    ${create_flags[@]+"${create_flags[@]}"}
}

# The state of the queued resource, NOT_FOUND, or UNKNOWN with the error shown.
state() {
  local text
  if text=$(queue describe '--format=value(state.state)' 2>&1); then
    printf '%s\n' "$text" | tail -n 1 # warnings come before
  elif [[ $text == *NOT_FOUND* || $text == *"not found"* ]]; then
    echo NOT_FOUND
  else
    printf '%s\n' "$text" >&2
    echo UNKNOWN
  fi
}

wait_for_slice() {
  local now before="" unknown=0
  if [ -n "$print" ]; then
    note "every $poll_seconds s until it says ACTIVE:"
    state
    return
  fi
  while :; do
    now=$(state)
    [ "$now" = "$before" ] || note "$name is $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      UNKNOWN) unknown=$((unknown + 1)); [ $unknown -lt 10 ] || die "gcloud has failed 10 times: see above" ;;
      NOT_FOUND) die "there is no queued resource $name in $zone: create it" ;;
      SUSPEND* | FAILED | DELETING)
        die "$name is $now: delete it and create it again, or let supervise do that" ;;
      *) unknown=0 ;;
    esac
    sleep "$poll_seconds"
  done
}

install() {
  local archive commit path
  if [ -n "$git_url" ]; then
    on_hosts all "$(unpack "git clone --quiet $(quoted "$git_url") rlvr${git_ref:+; git -C rlvr checkout --quiet $(quoted "$git_ref")}")" ||
      return
  else
    commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null) ||
      die "$root is no git checkout: give --git_url"
    [ -z "$(git -C "$root" status --porcelain)" ] ||
      note "uncommitted changes are NOT installed: what runs is the commit $commit"
    archive=${TMPDIR:-/tmp}/rlvr-$commit.tar.gz
    step git -C "$root" archive --format=tar.gz "--output=$archive" "$commit" &&
      copy_between all "$archive" "$name:rlvr.tar.gz" &&
      on_hosts all "$(unpack "mkdir rlvr; tar -xzf rlvr.tar.gz -C rlvr")" ||
      return
  fi
  for path in ${copies[@]+"${copies[@]}"}; do
    case $path in
      gs://*) on_hosts all "gcloud storage cp --recursive $(quoted "$path") rlvr-files/" || return ;;
      *) copy_between all "$path" "$name:rlvr-files/" --recurse || return ;;
    esac
  done
}

# A running run must not lose its code.
unpack() {
  echo "set -e; mkdir -p rlvr-files; if [ -x $WORKER ]; then $WORKER idle; fi; rm -rf rlvr; $1; $WORKER install"
}

# The words of a run for worker.sh; $1 is start or run, $2 empty or --resume.
worker_words() {
  words=("$1" --run_name "$run_name")
  [ -z "$bucket" ] || words+=(--bucket "$bucket")
  [ -z "$2" ] || words+=("$2")
  words+=(-- "${arguments[@]}")
}

start() {
  if [ -n "$bucket" ] && [ -z "$1" ]; then
    local listing=(gcloud storage ls "$bucket/$run_name/")
    if [ -n "$print" ]; then
      note "must find nothing:"
      quoted "${listing[@]}"
    elif "${listing[@]}" >/dev/null 2>&1; then
      die "$bucket/$run_name holds another run: resume it, or give another --run_name"
    fi
  fi
  worker_words start "$1"
  on_hosts all "$WORKER $(quoted "${words[@]}")"
}

run_status() {
  on_hosts 0 "if [ -x $WORKER ]; then $WORKER status --run_name $run_name; else echo absent; fi"
}

fetch() {
  local to=$fetch_to/$run_name
  step mkdir -p "$to"
  if [ -n "$bucket" ]; then # there even when the slice is gone
    step gcloud storage rsync --recursive "$bucket/$run_name/run" "$to" && {
      step gcloud storage cp "$bucket/$run_name/host-0.log" "$to.log" ||
        note "no log in the bucket: pods have theirs in kubectl logs"
    }
  else
    # tar's status 1: a file grew meanwhile.
    on_hosts 0 "tar -C rlvr-runs -czf rlvr-fetch.tar.gz --exclude=$run_name/checkpoints $run_name $run_name.log || [ \$? = 1 ]" &&
      copy_between 0 "$name:rlvr-fetch.tar.gz" "$to.tar.gz" &&
      step tar -xzf "$to.tar.gz" -C "$fetch_to"
  fi || die "not all of run $run_name was fetched: see above"
  note "the report: $to/report.html"
}

delete() {
  [ -n "$bucket" ] || note "without a bucket all is on the disks of the slice: fetch first"
  queue delete --force --quiet
}

supervise() {
  local now said="" before="" restarts=0 failures=0 failed=0 unknown=0
  if [ -n "$print" ]; then
    note "when there is none:"; create
    wait_for_slice
    note "when ACTIVE and absent:"; install
    note "when ACTIVE and absent or stopped:"; start --resume
    note "every $poll_seconds s:"; run_status
    note "when SUSPENDED or FAILED, before the next create:"; delete
    note "when finished:"; fetch
    return
  fi
  while :; do
    now=$(state) said=""
    if [ "$now" = ACTIVE ]; then
      said=$(run_status 2>/dev/null | tail -n 1) || said=unreachable
    fi
    [ "$now $said" = "$before" ] || note "slice $now${said:+, run $said}"
    before="$now $said"
    case $said in failed:*) failed=$((failed + 1)) ;; *) failed=0 ;; esac
    case $now in UNKNOWN) unknown=$((unknown + 1)) ;; *) unknown=0 ;; esac
    [ $unknown -lt 10 ] || die "gcloud has failed 10 times: see above"
    case $now/$said in
      ACTIVE/finished)
        fetch
        note "finished; the slice is billed until: scripts/launch_tpu.sh delete"
        return ;;
      ACTIVE/absent)
        # It may be taken away while this goes on: then the state says so.
        if ! { install && start --resume; }; then
          failures=$((failures + 1))
          note "install or start failed, time $failures"
          [ $failures -le $((max_failures + 2)) ] ||
            die "install or start fails: see above; the slice is still billed"
        fi ;;
      ACTIVE/stopped) start --resume || note "no start: trying again" ;;
      # A host that is taken away fails the run before the queue knows of it.
      ACTIVE/failed:*)
        if [ $failed -ge $LOOKS ]; then
          failures=$((failures + 1))
          [ $failures -le "$max_failures" ] ||
            die "the run failed on a healthy slice: ${said#failed: } (see logs; resume goes on; the slice is still billed)"
          start --resume || note "no start: trying again"
        fi ;;
      SUSPENDED/ | FAILED/ | NOT_FOUND/)
        if [ "$now" != NOT_FOUND ]; then
          restarts=$((restarts + 1))
          [ $restarts -le "$max_restarts" ] ||
            die "$name is $now for the time $restarts: see gcloud compute tpus queued-resources describe $name, and max_restarts"
          delete || note "not deleted: trying again"
        fi
        # Still there after a failed delete? Then the next round sees it.
        create || note "not created: trying again" ;;
    esac
    sleep "$poll_seconds"
  done
}

# ---- the commands of Kubernetes

# Words as a YAML (and JSON) list.
yaml_list() {
  local word list=""
  for word in "$@"; do
    word=$(printf %s "$word" | sed 's/[\\"]/\\&/g')
    list="$list${list:+, }\"$word\""
  done
  printf '[%s]\n' "$list"
}

jobset() {
  worker_words run --resume
  local drop='# only with --spot'
  [ -z "$spot" ] || drop='no such line'
  VALUES="NAME=$name
IMAGE=$image
SERVICE_ACCOUNT=$service_account
GKE_ACCELERATOR=$gke
TOPOLOGY=$topology
HOSTS=$hosts
CHIPS_PER_HOST=$chips_per_host
MAX_RESTARTS=$max_restarts
COMMAND=$(yaml_list scripts/tpu/worker.sh "${words[@]}")" DROP=$drop awk '
    BEGIN {
      n = split(ENVIRON["VALUES"], lines, "\n")
      for (i = 1; i <= n; i++) {
        at = index(lines[i], "=")
        values["@" substr(lines[i], 1, at - 1) "@"] = substr(lines[i], at + 1)
      }
    }
    index($0, ENVIRON["DROP"]) { next }
    {
      for (key in values)
        if (at = index($0, key))
          $0 = substr($0, 1, at - 1) values[key] substr($0, at + length(key))
      print
    }' "$root/scripts/tpu/jobset.yaml"
}

xpk() {
  worker_words run --resume
  step xpk workload create "--project=$project" "--zone=$zone" \
    "--cluster=$cluster" "--workload=$name" "--tpu-type=$accelerator_type" \
    --num-slices=1 "--docker-image=$image" "--max-restarts=$max_restarts" \
    "--command=cd /rlvr && scripts/tpu/worker.sh $(quoted "${words[@]}")"
}

# ---- which

gcloud_hint="https://cloud.google.com/sdk/docs/install"
case $command in
  create | wait | install | run | logs | status | stop | resume | fetch | delete | supervise)
    need project zone name
    check_names
    need_tool gcloud "$gcloud_hint"
    in_zone ;;
esac
case $command in
  create) need accelerator_type; describe_slice; check_install; create ;;
  wait) wait_for_slice ;;
  install) check_install; install ;;
  run) check_run; start "" ;;
  resume) check_run; start --resume ;;
  logs) on_hosts "$host" "tail -n 100 -F rlvr-runs/$run_name.log" ;;
  status)
    now=$(state)
    echo "$now"
    if [ -n "$print" ] || [ "$now" = ACTIVE ]; then run_status; fi ;;
  stop) on_hosts all "$WORKER stop --run_name $run_name" ;;
  fetch) fetch ;;
  delete) delete ;;
  supervise)
    need accelerator_type bucket
    describe_slice; check_install; check_run; supervise ;;
  gke)
    need accelerator_type image bucket
    check_names; describe_slice; check_run; jobset ;;
  xpk)
    need project zone cluster accelerator_type image bucket
    check_names; describe_slice; check_run
    need_tool xpk "pip install xpk"
    xpk ;;
  "") die "no command; see --help" 2 ;;
  *) die "unknown command '$command'; see --help" 2 ;;
esac
