"""The launcher of Cloud TPU: what it shows, what it runs, what the hosts do.

No cloud here: a `gcloud` that writes down its arguments stands in, and where a
host is needed, one that runs the command of `tpu-vm ssh` in a folder of its own.
"""

import json
import math
import os
import pathlib
import shlex
import shutil
import subprocess
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
  shutil.which("git") is None, reason="the launcher installs a git commit"
)

# Notes its arguments; answers from files, one line a call, the last for ever.
FAKE_GCLOUD = r"""#!/usr/bin/env bash
{ printf '%s\037' gcloud "$@"; echo; } >>"$FAKE/calls"
answer() {
  head -n 1 "$FAKE/$1"
  [ "$(wc -l <"$FAKE/$1")" -le 1 ] || sed -i 1d "$FAKE/$1"
}
command="" worker=""
for word in "$@"; do
  case $word in --command=*) command=${word#--command=} ;; --worker=*) worker=${word#*=} ;; esac
done
case $* in
  *queued-resources\ describe*)
    line=$(answer states)
    if [ "$line" = NOT_FOUND ]; then echo "ERROR: NOT_FOUND: none" >&2; exit 1; fi
    echo "$line" ;;
  storage\ ls*) [ -e "$FAKE/bucket${3#gs:/}" ] ;;
  storage\ rsync*)
    args=("$@"); from=${args[-2]/#gs:\//$FAKE/bucket} to=${args[-1]/#gs:\//$FAKE/bucket}
    mkdir -p "$to" && cp -r "$from/." "$to" ;;
  storage\ cp*)
    args=("$@"); from=${args[-2]/#gs:\//$FAKE/bucket} to=${args[-1]/#gs:\//$FAKE/bucket}
    mkdir -p "$(dirname "$to")" && cp -r "$from" "$to" ;;
  *tpu-vm\ ssh*)
    if [ -e "$FAKE/answers" ]; then
      case $command in *worker.sh\ status*) answer answers ;; esac
    else
      cd "$FAKE/home" && HOME=$FAKE/home bash -c "$command"
    fi ;;
  *tpu-vm\ scp*)
    [ -e "$FAKE/answers" ] || cp -r "${5/#*:/$FAKE/home/}" "${6/#*:/$FAKE/home/}" ;;
esac
"""

# In the place of the environment's Python: a run that leaves a run folder.
FAKE_PYTHON = r"""#!/usr/bin/env bash
for word in "$@"; do
  case $word in --run_dir=*) folder=${word#*=} ;; --gin.SLEEP=*) nap=${word#*=} ;; --gin.FAIL=*) fail=1 ;; esac
done
mkdir -p "$folder"
echo "$*" >>"$folder/metrics.jsonl"
sleep "${nap:-0}"
if [ -n "${fail:-}" ]; then
  echo "error: no such macro" >&2
  echo "(RLVR_TRACEBACK=1 shows where it came from)" >&2
  exit 1
fi
echo page >"$folder/report.html"
"""

SETTINGS = {
  "PROJECT": "my-project",
  "ZONE": "us-central1-a",
  "NAME": "tpu-1",
  "ACCELERATOR_TYPE": "v5litepod-16",
  "BUCKET": "gs://bucket/runs",
  "POLL_SECONDS": "0",
}
RUN = ["--", "--gin_file=gin/models/tiny.gin", "--gin.PATH='it''s \"a\" $x'"]


def write(path: pathlib.Path, text: str) -> pathlib.Path:
  path.write_text(text)
  path.chmod(0o755)
  return path


class Desk:
  """A checkout of its own, and a machine with the stand-in for gcloud."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.fake = folder / "fake"
    (self.fake / "home").mkdir(parents=True)
    self.checkout = folder / "checkout"
    shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
    (self.checkout / "gin/models").mkdir(parents=True)
    (self.checkout / "gin/models/tiny.gin").write_text("")
    python = write(self.fake / "python", FAKE_PYTHON)
    write(
      self.checkout / "scripts/setup.sh", f'echo "{python}" # $RLVR_EXTRA\n'
    )
    write(folder / "gcloud", FAKE_GCLOUD)
    write(folder / "sudo", "#!/bin/sh\nexit 0\n")
    self.git("init", "-q")
    self.git("add", ".")
    self.git("commit", "-qm", "one")
    for name in ("states", "answers"):
      (self.fake / name).write_text("ACTIVE\n")

  def git(self, *args: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, *args], cwd=self.checkout, check=True)

  def launch(
    self, *args: str, gcloud: bool = True, **settings: str
  ) -> subprocess.CompletedProcess:
    env = {
      "PATH": f"{self.folder}:{os.environ['PATH']}",
      "HOME": str(self.fake),
      "FAKE": str(self.fake),
      "TMPDIR": str(self.folder),
      "TPU_WORKER_ID": "0",
      **(SETTINGS | settings),
    }
    if not gcloud:
      env["PATH"] = str(self.without_gcloud())
    script = self.checkout / "scripts/launch_tpu.sh"
    return subprocess.run(
      ["bash", script, *args],
      cwd=self.folder,
      env=env,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def without_gcloud(self) -> pathlib.Path:
    tools = self.folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("bash", "git", "sed", "awk", "tr", "dirname", "tail"):
      if not (tools / name).exists():
        (tools / name).symlink_to(shutil.which(name) or "")
    return tools

  def calls(self) -> list[list[str]]:
    """What gcloud was called with so far, and forgets it."""
    path = self.fake / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.split("\x1f")[:-1] for line in lines]


@pytest.fixture
def desk(tmp_path):
  return Desk(tmp_path)


def shown(done: subprocess.CompletedProcess, *, only_gcloud=False):
  """The commands that --print shows, as words."""
  assert done.returncode == 0, done.stderr
  lines = [shlex.split(s, comments=True) for s in done.stdout.splitlines()]
  return [x for x in lines if x and (x[0] == "gcloud" or not only_gcloud)]


def remote(words: list[str]) -> list[str]:
  """The words of the command that a host is given."""
  command = [x for x in words if x.startswith("--command=")]
  return shlex.split(command[0].removeprefix("--command="))


WHERE = ["--project=my-project", "--zone=us-central1-a"]


def test_create_names_the_slice_its_type_and_its_runtime(desk):
  (words,) = shown(desk.launch("create", "--print", "--spot"))
  assert words == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "tpu-1"),
    *WHERE,
    "--node-id=tpu-1",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
  ]
  assert not desk.calls()  # nothing was run


@pytest.mark.parametrize(
  "accelerator, runtime, aot, hosts",
  [
    ("v4-8", "tpu-ubuntu2204-base", "v4:2x2x1", 1),
    ("v5litepod-8", "v2-alpha-tpuv5-lite", "v5e:2x4", 1),
    ("v5litepod-256", "v2-alpha-tpuv5-lite", "v5e:16x16", 64),
    ("v5p-32", "v2-alpha-tpuv5", "v5p:2x2x4", 4),
    ("v6e-16", "v2-alpha-tpuv6e", "v6e:4x4", 4),
  ],
)
def test_runtime_topology_and_hosts_follow_from_the_type(
  desk, accelerator, runtime, aot, hosts
):
  done = desk.launch("--print", "create", ACCELERATOR_TYPE=accelerator)
  (words,) = shown(done)
  assert f"--runtime-version={runtime}" in words
  assert "--spot" not in words
  assert f"--topology={aot} " in done.stdout
  assert f" on {hosts} host(s)" in done.stdout


def test_flags_win_over_the_environment(desk):
  done = desk.launch(
    "--zone=b", "--print", "create", "--runtime_version", "v9", "--name=other",
    "--create_flag=--network=mine",
  )  # fmt: skip
  (words,) = shown(done)
  assert words[5] == "other" and "--zone=b" in words
  assert {"--runtime-version=v9", "--network=mine"} <= set(words)


def test_install_copies_the_commit_to_all_hosts(desk):
  (desk.folder / "a b.jsonl").write_text("")
  done = desk.launch("install", "--print", "--copy=a b.jsonl", "--copy=gs://m")
  archive, copy, unpack, file, bucket = shown(done)
  assert archive[:2] == ["git", "-C"] and "archive" in archive
  assert copy[4] == "scp" and copy[6] == "tpu-1:rlvr.tar.gz"
  assert f"--output={copy[5]}" in archive
  assert "rlvr/scripts/tpu/worker.sh install" in " ".join(remote(unpack))
  assert file[5:7] == ["a b.jsonl", "tpu-1:rlvr-files/"]
  assert "--recurse" in file
  assert remote(bucket)[-2:] == ["gs://m", "rlvr-files/"]
  for words in (copy, unpack, file, bucket):
    assert "--worker=all" in words and set(WHERE) <= set(words)
  assert "NOT installed" not in done.stdout

  (desk.checkout / "new.py").write_text("")
  done = desk.launch("install", "--print")
  assert "uncommitted changes are NOT installed" in done.stdout

  done = desk.launch(
    "install", "--print", "--git_url=https://x/y", "--git_ref=v1"
  )
  (clone,) = shown(done)
  assert "git clone --quiet https://x/y rlvr" in " ".join(remote(clone))
  assert "checkout --quiet v1" in " ".join(remote(clone))


@pytest.mark.parametrize("command", ["run", "resume"])
def test_run_gives_every_host_the_same_arguments(desk, command):
  done = desk.launch(command, "--print", *RUN)
  words = shown(done)[-1]
  assert "--worker=all" in words
  resumes = ["--resume"] if command == "resume" else []
  assert remote(words) == [
    "rlvr/scripts/tpu/worker.sh", "start", "--run_name", "tpu-1",
    "--bucket", "gs://bucket/runs", *resumes, *RUN,
  ]  # fmt: skip


def test_the_other_commands(desk):
  (words,) = shown(desk.launch("wait", "--print"))
  assert "describe" in words and "--format=value(state.state)" in words
  (words,) = shown(desk.launch("logs", "--print", "--host=2"))
  assert "--worker=2" in words
  assert remote(words)[-2:] == ["-F", "rlvr-runs/tpu-1.log"]
  (words,) = shown(desk.launch("stop", "--print"))
  assert "--worker=all" in words and "stop" in remote(words)
  describe, status = shown(desk.launch("status", "--print"))
  assert "describe" in describe and "status" in remote(status)
  (words,) = shown(desk.launch("delete", "--print"))
  assert words[4] == "delete" and {"--force", "--quiet"} <= set(words)
  make, sync, log = shown(desk.launch("fetch", "--print", "--fetch_to=out"))
  assert make == ["mkdir", "-p", "out/tpu-1"]
  assert sync[-2:] == ["gs://bucket/runs/tpu-1/run", "out/tpu-1"]
  assert log[-1] == "out/tpu-1.log"
  make, pack, copy, unpack = shown(desk.launch("fetch", "--print", BUCKET=""))
  assert "--exclude=tpu-1/checkpoints" in remote(pack)
  assert copy[5:7] == ["tpu-1:rlvr-fetch.tar.gz", "runs/tpu-1.tar.gz"]
  assert "--worker=0" in copy and unpack[0] == "tar"


SEQUENCE = [
  ["create"],
  ["wait"],
  ["install", "--copy=gs://data/x"],
  ["run", *RUN],
  ["resume", *RUN],
  ["status"],
  ["logs"],
  ["stop"],
  ["delete"],
]


def differences(desk: Desk) -> list[list[str]]:
  """The commands whose calls differ from what --print shows."""
  found = []
  for command in SEQUENCE:
    expected = shown(desk.launch("--print", *command), only_gcloud=True)
    done = desk.launch(*command)
    assert done.returncode == 0, done.stderr
    if desk.calls() != expected:
      found.append(command)
  return found


def test_what_runs_is_what_print_shows(desk):
  assert differences(desk) == []


def test_negative_control_a_call_that_print_does_not_show_is_seen(desk):
  script = desk.checkout / "scripts/launch_tpu.sh"
  text = script.read_text()
  broken = text.replace('    "$@"\n', '    "${@/--quiet/--async}"\n', 1)
  assert broken != text
  script.write_text(broken)
  assert ["create"] not in differences(desk)  # has no --quiet
  assert ["delete"] in differences(desk)


def test_nothing_needs_gcloud_to_be_shown(desk):
  done = desk.launch("supervise", "--print", *RUN, gcloud=False)
  assert len(shown(done, only_gcloud=True)) >= 7
  done = desk.launch("create", gcloud=False)
  assert done.returncode == 1 and "gcloud is not installed" in done.stderr


@pytest.mark.parametrize(
  "settings, args, message",
  [
    ({"PROJECT": ""}, ["create"], "no project: give --project or PROJECT"),
    ({"ZONE": ""}, ["delete"], "no zone: give --zone or ZONE"),
    ({"NAME": ""}, ["run", *RUN], "no name: give --name or NAME"),
    ({"NAME": "My_TPU"}, ["create"], "name 'My_TPU': give lower-case"),
    ({"ACCELERATOR_TYPE": ""}, ["create"], "no accelerator_type"),
    ({}, ["create", "--accelerator_type=v6e-12"], "'v6e-12': give v5litepod-N"),
    ({}, ["create", "--accelerator_type=h100-8"], "unknown accelerator_type"),
    ({"BUCKET": "bucket"}, ["run", *RUN], "bucket 'bucket': give gs://"),
    ({"BUCKET": ""}, ["run", *RUN], "has 4 hosts, whose checkpoints need one"),
    ({"BUCKET": ""}, ["supervise", *RUN], "no bucket: give --bucket or BUCKET"),
    ({}, ["run"], "nothing to run"),
    ({}, ["run", "--", "--run_dir=x"], "--run_dir=x is given by this script"),
    ({}, ["run", "--gin_file=x"], "--gin_file=x goes behind --"),
    ({}, ["create", "--acelerator=x"], "unknown option --acelerator; see"),
    ({}, ["crate"], "unknown command 'crate'"),
    ({}, ["create", "run"], "two commands, create and run"),
    ({}, ["create", "--zone"], "--zone needs a value"),
    ({"POLL_SECONDS": "1m"}, ["wait"], "poll_seconds '1m': give a whole"),
    ({}, [], "no command"),
    ({}, ["gke", *RUN], "no image: give --image or IMAGE"),
    ({"IMAGE": "i"}, ["xpk", *RUN], "no cluster: give --cluster or CLUSTER"),
    ({}, ["install", "--git_ref=v1"], "--git_ref=v1 without --git_url: HEAD"),
    ({"GIT_REF": "v1"}, ["supervise", *RUN], "--git_ref=v1 without --git_url"),
    ({}, ["create", "--copy=/no/file"], "--copy=/no/file: no such file"),
    ({}, ["install", "--copy=/no/file"], "--copy=/no/file: no such file"),
    ({}, ["supervise", "--copy=/no/file", *RUN], "--copy=/no/file: no such"),
    ({}, ["run", *RUN, "--coordinator=a:1"], "--coordinator=a:1 is given by"),
    ({}, ["run", *RUN, "--coordinator", "a:1"], "--coordinator is given by"),
    ({}, ["resume", *RUN, "--num_processes=2"], "--num_processes=2 is given"),
    (
      {},
      ["gke", "--image=i", *RUN, "--process_id=0"],
      "--process_id=0 is give",
    ),
    ({}, ["run", *RUN, "--gin_file=no.gin"], "--gin_file=no.gin is not in the"),
    ({}, ["run", *RUN, "--gin_file", "no.gin"], "--gin_file=no.gin is not in"),
    ({}, ["supervise", *RUN, "--gin_file=no.gin"], "--gin_file=no.gin is not"),
  ],
)
def test_errors_name_what_to_give(desk, settings, args, message):
  for shows in ([], ["--print"]):
    done = desk.launch(*shows, *args, **settings)
    assert done.returncode == 2
    assert message in done.stderr
    assert not desk.calls()


@pytest.mark.parametrize(
  "args",
  [
    ["create", "--copy=here", "--copy=gs://nowhere/here"],
    ["install", "--git_ref=v1", "--git_url=https://x/y"],
    ["run", *RUN, "--gin_file=/on/the/host.gin"],
    ["run", *RUN, "--gin_file=../rlvr-files/mine.gin"],
    ["run", *RUN, "--gin_file", "./gin/models/tiny.gin"],
    ["run", "--git_url=https://x/y", *RUN, "--gin_file=theirs.gin"],
    ["gke", "--image=i", *RUN, "--gin_file=the_images.gin"],
    ["run", *RUN, "--gin.NAME='--process_id'", "--barrier_seconds=9"],
  ],
)
def test_what_may_be_there_is_not_refused(desk, args):
  (desk.folder / "here").mkdir()
  done = desk.launch("--print", *args)
  assert done.returncode == 0, done.stderr


def test_a_configuration_must_be_committed(desk):
  more = [*RUN, "--gin_file=new.gin"]
  (desk.checkout / "new.gin").write_text("")
  assert desk.launch("run", "--print", *more).returncode == 2
  desk.git("add", ".")
  desk.git("commit", "-qm", "two")
  assert desk.launch("run", "--print", *more).returncode == 0


def test_a_run_in_the_bucket_is_not_overwritten(desk):
  (desk.fake / "bucket/bucket/runs/tpu-1").mkdir(parents=True)
  done = desk.launch("run", *RUN)
  assert done.returncode == 1 and "holds another run" in done.stderr
  assert desk.launch("resume", *RUN).returncode == 0


@pytest.mark.parametrize(
  "states, message",
  [("SUSPENDED", "delete it and create it again"), ("NOT_FOUND", "create it")],
)
def test_wait_ends_where_waiting_is_no_use(desk, states, message):
  (desk.fake / "states").write_text(f"PROVISIONING\n{states}\n")
  done = desk.launch("wait")
  assert done.returncode == 1 and message in done.stderr


def kinds(calls: list[list[str]]) -> list[str]:
  """A word for each call, questions about state left out."""
  words = []
  for call in calls:
    text = " ".join(call)
    for word in ("create", "delete", "scp", "install", "start", "rsync"):
      if word in call or f"worker.sh {word}" in text:
        words.append(word)
        break
  return words


def supervise(desk: Desk, states: str, answers: str, *args: str):
  (desk.fake / "states").write_text("\n".join(states.split()) + "\n")
  (desk.fake / "answers").write_text(answers.replace(", ", "\n") + "\n")
  (desk.fake / "bucket/bucket/runs/tpu-1/run").mkdir(parents=True)
  (desk.fake / "bucket/bucket/runs/tpu-1/host-0.log").write_text("log")
  done = desk.launch("supervise", *args, *RUN)
  calls = desk.calls()
  return done, kinds(calls), calls


FIRST = ["create", "scp", "install", "start"]
AGAIN = ["delete", *FIRST]


def test_supervise_begins_again_when_the_slice_is_taken_away(desk):
  done, words, calls = supervise(
    desk,
    "NOT_FOUND WAITING_FOR_RESOURCES ACTIVE ACTIVE SUSPENDING SUSPENDED"
    " PROVISIONING ACTIVE ACTIVE ACTIVE",
    "absent, running, absent, running, finished",
    "--spot",
  )
  assert done.returncode == 0, done.stderr
  assert words == [*FIRST, *AGAIN, "rsync"]
  assert (desk.folder / "runs/tpu-1.log").read_text() == "log"
  starts = [c for c in calls if "worker.sh start" in " ".join(c)]
  assert all("--resume" in remote(c) for c in starts)
  # The same commands as it shows.
  expected = shown(
    desk.launch("supervise", "--print", "--spot", *RUN), only_gcloud=True
  )
  assert {tuple(x) for x in calls} == {tuple(x) for x in expected}


def test_supervise_resumes_what_a_restarted_host_has_lost(desk):
  done, words, _ = supervise(
    desk, "ACTIVE", "running, stopped, running, finished"
  )
  assert done.returncode == 0 and words == ["start", "rsync"]


def test_supervise_tells_a_failed_run_from_a_slice_that_goes(desk):
  # The peers of a host that is taken away fail first.
  done, words, _ = supervise(
    desk,
    "ACTIVE ACTIVE SUSPENDED ACTIVE",
    "failed: lost host 1, failed: lost host 1, absent, finished",
  )
  assert done.returncode == 0 and words == [*AGAIN, "rsync"]


def test_supervise_stops_at_a_run_that_fails_by_itself(desk):
  done, words, _ = supervise(desk, "ACTIVE", "failed: error: no such macro")
  assert done.returncode == 1 and words == []
  assert "failed on a healthy slice: error: no such macro" in done.stderr


def test_supervise_gives_up_after_max_restarts(desk):
  done, words, _ = supervise(desk, "FAILED", "absent", "--max_restarts=2")
  assert done.returncode == 1 and "is FAILED for the time 3" in done.stderr
  assert words == ["delete", "create"] * 2


# ---- the host's side


def said(desk: Desk) -> str:
  return desk.launch("status", BUCKET="").stdout.splitlines()[-1]


def until(desk: Desk, *wanted: str) -> str:
  end = time.monotonic() + 30
  while (text := said(desk)) == "running" and "running" not in wanted:
    assert time.monotonic() < end, "the run does not end"
    time.sleep(0.05)
  return text


@pytest.fixture
def slice_of_one(desk):
  """A desk whose gcloud runs the commands for hosts here."""
  (desk.fake / "answers").unlink()
  yield desk
  desk.launch("stop")


@pytest.mark.parametrize("bucket", ["", SETTINGS["BUCKET"]])
def test_from_create_to_delete(slice_of_one, bucket):
  desk = slice_of_one
  one_host = {"ACCELERATOR_TYPE": "v5litepod-8", "BUCKET": bucket}
  assert said(desk) == "absent"
  for command in (["create"], ["wait"], ["install"], ["run", *RUN]):
    done = desk.launch(*command, **one_host)
    assert done.returncode == 0, done.stderr
  assert until(desk) == "finished"
  done = desk.launch("fetch", **one_host)
  assert done.returncode == 0, done.stderr
  assert (desk.folder / "runs/tpu-1/report.html").read_text() == "page\n"
  (line,) = (desk.folder / "runs/tpu-1/metrics.jsonl").read_text().splitlines()
  assert line.startswith(f"-m rlvr.main {' '.join(RUN[1:])} --distributed=auto")
  checkpoints = f"--gin.train.train.checkpoint_dir='{bucket}/tpu-1/checkpoints'"
  assert (checkpoints in line) == bool(bucket)
  assert not line.endswith("--resume")
  assert desk.launch("delete", **one_host).returncode == 0
  if bucket:  # the disks went with the slice: the next takes up the folder
    shutil.rmtree(desk.fake / "home")
    (desk.fake / "home").mkdir()
    for command in (["install"], ["resume", *RUN]):
      assert desk.launch(*command, **one_host).returncode == 0
    assert until(desk) == "finished"
    assert desk.launch("fetch", **one_host).returncode == 0
    lines = (desk.folder / "runs/tpu-1/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and lines[1].endswith("--resume")


def test_status_of_a_run_that_goes_on_is_stopped_or_fails(slice_of_one):
  desk = slice_of_one
  settings = {"ACCELERATOR_TYPE": "v5litepod-8", "BUCKET": ""}
  desk.launch("install", **settings)
  desk.launch("run", *RUN, "--gin.SLEEP=60", **settings)
  assert said(desk) == "running"
  done = desk.launch("run", *RUN, **settings)
  assert done.returncode == 1 and "is going on: stop it" in done.stderr
  done = desk.launch("install", **settings)
  assert done.returncode == 1 and "is going on here: stop it" in done.stderr
  assert desk.launch("stop", **settings).returncode == 0
  assert said(desk) == "stopped"
  desk.launch("resume", *RUN, "--gin.FAIL=1", **settings)
  assert until(desk) == "failed: error: no such macro"


@pytest.mark.parametrize("number", ["0", "1"])
def test_metrics_reach_the_bucket_while_the_run_goes_on(slice_of_one, number):
  """From host 0 alone: the others have no metrics."""
  desk = slice_of_one
  settings = {"TPU_WORKER_ID": number, "RLVR_COPY_SECONDS": "0.1"}
  copy = desk.fake / "bucket/bucket/runs/tpu-1/run/metrics.jsonl"
  desk.launch("install", **settings)
  desk.launch("run", *RUN, "--gin.SLEEP=60", **settings)
  end = time.monotonic() + (30 if number == "0" else 0.5)
  while not copy.exists() and time.monotonic() < end:
    time.sleep(0.05)
  assert copy.exists() == (number == "0")
  assert said(desk) == "running"


# ---- Kubernetes


@pytest.mark.parametrize(
  "accelerator, label, topology, chips_per_host",
  [
    ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4),
    ("v5litepod-8", "tpu-v5-lite-podslice", "2x4", 8),
    ("v6e-64", "tpu-v6e-slice", "8x8", 4),
    ("v5p-128", "tpu-v5p-slice", "4x4x4", 4),
    ("v4-16", "tpu-v4-podslice", "2x2x2", 4),
  ],
)
def test_jobset_has_a_pod_for_each_host(
  desk, accelerator, label, topology, chips_per_host
):
  done = desk.launch(
    "gke", "--image=host/image:1", "--spot", *RUN, ACCELERATOR_TYPE=accelerator
  )
  assert done.returncode == 0, done.stderr
  jobset = yaml.safe_load(done.stdout)
  assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "tpu-1"
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 20
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  chips = math.prod(int(n) for n in topology.split("x"))
  hosts = chips // chips_per_host
  assert spec["completions"] == spec["parallelism"] == hosts
  assert spec["backoffLimit"] == 0
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": label,
    "cloud.google.com/gke-tpu-topology": topology,
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["image"] == "host/image:1"
  for kind in ("requests", "limits"):
    assert container["resources"][kind] == {"google.com/tpu": chips_per_host}
  assert container["command"] == [
    "scripts/tpu/worker.sh", "run", "--run_name", "tpu-1",
    "--bucket", "gs://bucket/runs", "--resume", *RUN,
  ]  # fmt: skip
  assert json.dumps(jobset).count("@") == 0  # nothing was left to fill in


def test_jobset_without_spot_asks_for_no_spot_nodes(desk):
  done = desk.launch("gke", "--image=i", *RUN)
  assert "gke-tpu-topology" in done.stdout and "gke-spot" not in done.stdout


def test_xpk_submits_the_same_command(desk):
  args = ["xpk", "--print", "--image=i", "--cluster=c", *RUN]
  (words,) = shown(desk.launch(*args))
  assert words[:3] == ["xpk", "workload", "create"]
  assert {
    *WHERE, "--cluster=c", "--workload=tpu-1", "--tpu-type=v5litepod-16",
    "--num-slices=1", "--docker-image=i", "--max-restarts=20",
  } <= set(words)  # fmt: skip
  assert remote(words)[:2] == ["cd", "/rlvr"]
  assert remote(words)[-len(RUN) :] == RUN


def test_the_lock_for_tpus_is_what_this_jax_asks_for():
  from importlib import metadata

  (wanted,) = (
    text
    for text in metadata.requires("jax") or []
    if text.startswith("libtpu") and "tpu" in text.partition(";")[2]
  )
  prefix = wanted.partition(";")[0].strip().removesuffix(".*")
  locked = (ROOT / "requirements-tpu.lock").read_text().split()
  assert any(line.startswith(prefix) for line in locked), (prefix, locked)


@pytest.mark.skipif(
  shutil.which("shellcheck") is None, reason="shellcheck is not installed"
)
def test_the_shell_scripts_pass_shellcheck():
  scripts = [*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/tpu/*.sh")]
  assert len(scripts) >= 5
  done = subprocess.run(
    ["shellcheck", *scripts], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
