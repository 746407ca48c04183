"""Two processes of four simulated devices: the same run, and the same end."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from rlvr import main, models
from rlvr.infra import hosts
from rlvr.infra.metrics import read_metrics
from rlvr.models import export
from tests import runs, tiny
from tests.compare import must_fail
from tests.infra import host_program
from tests.models import folders

MESH = ("DATA=2", "FSDP=-1")
SETTINGS = (
  "NUM_PROMPTS=8",
  "GROUP_SIZE=4",
  "UPDATES_PER_BATCH=1",
  "SAVE_EVERY=2",
  "EVALUATE_EVERY=4",
  "LEARNING_RATE=0.003",
  "models.ModelConfig.num_kv_heads=2",
  "MAX_TOKENS=10",
)


def arguments(
  folder, *bindings, method="rlpr", tasks=("arithmetic", "arithmetic_signals")
):
  """Returns a run's flags; its reward is one an untrained policy gets too."""
  given = (*SETTINGS, *bindings)
  return runs.argv("train", folder, *given, method=method, tasks=tasks)


def rows(folder):
  return {row["step"]: row for row in read_metrics(folder / "metrics.jsonl")}


def alone(folder, *bindings, flags=(), **kind):
  """Returns the figures of a run in one process, this one."""
  assert main.main([*arguments(folder, *bindings, **kind), *flags]) == 0
  return rows(folder)


def together(folder, *bindings, flags=(), env=None, **kind):
  """Returns exit status and output of the two processes of a run."""
  given = [*arguments(folder, *bindings, **kind), *host_program.FLAGS, *flags]
  return host_program.ends(host_program.start(given, env=env))


# What the gradient of the whole batch moves.
LEARNED = ("loss/total", "optim/grad_norm")


def same(found, expected):
  # Seen: losses that differ by 4e-8, norms by 8e-5 of themselves, and the rest by
  # less (docs/hosts.md).
  assert found.keys() == expected.keys()
  for step, row in expected.items():
    for name, value in row.items():
      if not name.startswith(("time", "throughput")):
        np.testing.assert_allclose(
          found[step][name], value, rtol=2e-4, atol=5e-7, err_msg=name
        )


# The run: one for all of the next tests.


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """The folder of a run of two processes, and what they said."""
  folder = tmp_path_factory.mktemp("two") / "run"
  # The hardest order of things: sampling is ahead of the host's verifier.
  ended = together(folder, "STEPS=4", "DEPTH=1", *MESH)
  assert [status for status, _ in ended] == [0, 0], ended
  return folder, [output for _, output in ended]


def learned(row):
  return {name: row[name] for name in LEARNED}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """The figures of the same run in one process of eight devices."""
  folder = tmp_path_factory.mktemp("one") / "run"
  return alone(folder, "STEPS=4", "DEPTH=1", *MESH)


def test_two_processes_train_as_one(two, one):
  folder, _ = two
  found = rows(folder)
  same(found, one)
  counted = [k for k in found[4] if k.startswith("verdict/")]
  assert sum(found[4][k] for k in counted) in (32, 1), counted
  assert found[4]["response/count"] == 32
  assert min(found[step]["optim/grad_norm"] for step in range(1, 5)) > 0
  # Control: each by itself, as it was a step before.
  for name in LEARNED:
    must_fail(same, {**found, 4: found[4] | {name: found[3][name]}}, one)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("judge", "mesh"),
  [
    ("self_judge", MESH),
    ("self_judge", ("FSDP=2", "TENSOR=4")),
    ("policy_judge", MESH),
  ],
)
def test_each_host_asks_a_policy(judge, mesh, two, tmp_path):
  given = (
    *("STEPS=3", "DEPTH=1", *mesh),
    f"policy_judge.{judge}.max_prompt_tokens=512",
    f"policy_judge.{judge}.batch_size=8",
  )
  if judge == "policy_judge":
    given = (*given, f"JUDGE_CHECKPOINT='{two[0] / 'checkpoints'}'")
  kind = {"method": "trust_judge", "tasks": ("arithmetic", judge)}
  ended = together(tmp_path / "two", *given, **kind)
  assert [status for status, _ in ended] == [0, 0], ended
  found = rows(tmp_path / "two")
  expected = alone(tmp_path / "one", *given, **kind)
  same(found, expected)
  assert found[3]["verdict/correct/verifier_failed"] == 0
  for name in LEARNED:
    must_fail(same, {**found, 3: found[3] | {name: found[2][name]}}, expected)


def test_a_host_whose_part_is_dropped_would_show(one, tmp_path):
  # The control of the test before: the first half of the prompts alone, whose
  # responses have the same noise.
  half = alone(
    tmp_path / "half",
    *("STEPS=1", "loops.Reinforcement.depth=1", "NUM_PROMPTS=4"),
    *("FSDP=4", "TENSOR=2"),
  )
  expected = learned(one[1])
  for name in LEARNED:
    dropped = {1: expected | {name: half[1][name]}}
    must_fail(same, dropped, {1: expected})


def test_process_0_alone_speaks_and_writes(two):
  folder, (first, second) = two
  assert "step 4/4" in first and "report: " in first
  assert "step " not in second and "report: " not in second
  steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl")]
  assert steps == [0, 1, 2, 3, 4]
  about = json.loads((folder / "about.json").read_text())
  assert about["hosts"] == 2 and about["status"] == "finished"
  assert (folder / "report.html").stat().st_size > 1000
  assert not list(folder.glob(".hosts"))


def test_one_host_goes_on_from_a_checkpoint_of_two(two, one, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two[0], folder)
  shutil.rmtree(folder / "checkpoints" / "4")
  bindings = ("STEPS=4", "DEPTH=1", "FSDP=4", "TENSOR=2")
  found = alone(folder, *bindings, flags=["--resume"])
  same(found, one)
  # It did go on from there: later lines are its own.
  before, after = rows(two[0]), rows(folder)
  assert after[2]["time"] == before[2]["time"]
  assert after[3]["time"] > before[4]["time"]


# The end of one is the end of all.


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_host_is_named(killed):
  begin = time.monotonic()
  ended = host_program.ends(
    host_program.start(
      [f"kill {killed}", "--heartbeat_seconds=2"], kind="small", devices=1
    )
  )
  assert ended[killed][0] == -signal.SIGKILL
  status, output = ended[1 - killed]
  assert status == hosts.LOST, output
  assert f"the run ended on all hosts: host {killed}" in output
  assert "left" not in output and "--resume" in output
  # The machine is shared; what is asserted is that nobody waits for minutes.
  assert time.monotonic() - begin < 100


def test_an_error_ends_all_with_its_cause():
  (status_0, first), (status_1, second) = host_program.ends(
    host_program.start(["raise"], kind="small", devices=1)
  )
  assert (status_0, status_1) == (1, 1)
  assert "error: the verifier's answer is 17" in second
  cause = "host 1 failed: ValueError: the verifier's answer is 17"
  assert f"the run ended on all hosts: {cause}" in first


def test_a_host_that_does_not_come_is_named_with_its_place():
  (status_0, first), (status_1, _) = host_program.ends(
    host_program.start(["late", "--barrier_seconds=3"], kind="small", devices=1)
  )
  assert status_0 != 0 and status_1 != 0
  assert "host 1" in first and "lost in thought" in first
  assert "--barrier_seconds=3" in first


def test_what_process_0_makes_of_the_signs_of_life(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(hosts.time, "monotonic", lambda: clock[0])
  limits = hosts.HostSettings(heartbeat_seconds=5.0, barrier_seconds=20.0)
  seen, beat = hosts._Seen(3, limits), hosts._Beat

  def at(seconds, *beats):
    clock[0] = seconds
    return seen.update(dict(enumerate(beats)))

  assert at(4.0, *[beat(1, (1, 1), "step 1")] * 3) is None
  # Where two of them wait for the third, it's the third that is named.
  waiting, late = beat(2, (2, 9), "step 2"), beat(2, (1, 9), "sampling")
  assert at(8.0, waiting, late, waiting) is None
  waiting, late = waiting._replace(beat=3), late._replace(beat=3)
  assert at(12.0, waiting, late, waiting) is None
  for i in range(4, 9):
    waiting, late = waiting._replace(beat=i), late._replace(beat=i)
    found = at(4.0 * i, waiting, late, waiting)
  assert found is not None and found[0] == 1
  assert "'sampling'" in found[1] and "--barrier_seconds=20" in found[1]
  # Silence comes before it: host 2 doesn't beat any more.
  moved = beat(9, (3, 10), "step 3")
  assert at(34.0, moved, moved, moved) is None
  assert at(38.0, *[moved._replace(beat=10)] * 2, moved) is None
  found = at(40.0, *[moved._replace(beat=11)] * 2, moved)
  assert found is not None and found[0] == 2
  assert "--heartbeat_seconds=5" in found[1] and "killed" in found[1]


def test_hosts_that_do_not_meet_and_clusters_that_are_not_there():
  given = ["", "--connect_seconds=1"]
  first, second = host_program.start(given, kind="small", devices=1)
  second.kill()
  ((status, output),) = host_program.ends([first])
  host_program.ends([second])
  assert status == hosts.LOST, output
  assert "the 2 processes did not all meet" in output
  assert "--connect_seconds=1:" in output


def test_hosts_that_were_given_other_things():
  ended = host_program.ends(
    host_program.start(["differ"], kind="small", devices=1)
  )
  assert [status for status, _ in ended] == [1, 1]
  said = "a name of host 1 is 1, of host 0 0: agree"
  assert all(said in output for _, output in ended)


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ({"coordinator": "a:1"}, "give all three"),
    ({"process_id": 0, "num_processes": 2}, "give all three"),
    (
      {"coordinator": "a", "process_id": 0, "num_processes": 2},
      "ADDRESS:PORT",
    ),
    ({"coordinator": "a:1", "process_id": 2, "num_processes": 2}, "0 to 1"),
    (
      {"coordinator": "a:1", "process_id": 0, "num_processes": 0},
      "--num_processes=0: give at least 1",
    ),
    ({"distributed": "auto", "process_id": 0}, "one or the other"),
    ({"heartbeat_seconds": 0.0}, "more than 0"),
  ],
)
def test_flags_that_do_not_fit(flags, said):
  with pytest.raises(ValueError, match=said):
    hosts.HostSettings(**flags)


def test_a_mistyped_flag_is_answered_by_name(capsys, tmp_path):
  given = [*arguments(tmp_path / "run"), "--num_processes=2"]
  assert main.main(given) == 1
  assert "--coordinator=None --num_processes=2" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_one_process_is_one_host():
  found = hosts.connect(hosts.HostSettings())
  assert (found.index, found.count, found.main) == (0, 1, True)
  found.barrier("nobody waits")
  found.check_same("name", "value", "fix")
  assert found.share("name", "value") == "value"
  found.post(ValueError("nobody to tell"))
  found.leave(1)
  assert jax.process_count() == 1


# The whole program again: minutes.


@pytest.mark.slow
@pytest.mark.parametrize(
  ("method", "tasks"),
  [
    # The verifier on the device, inside the one jitted step.
    ("self_certainty", ("arithmetic",)),
    # Rounds, budgets, shares of tasks: what one batch taught chooses the next.
    # Rewards are coin flips: an untrained policy would get none.
    ("dapo", ("arithmetic", "coin_flips")),
    ("knapsack_rl", ("arithmetic", "coin_flips")),
    ("rule_reasoner", ("arithmetic", "arithmetic_mixture", "coin_flips")),
  ],
)
def test_methods_over_two_processes(method, tasks, tmp_path):
  kind = {"method": method, "tasks": tasks}
  ended = together(tmp_path / "two", "STEPS=4", *MESH, **kind)
  assert [status for status, _ in ended] == [0, 0], ended
  found = rows(tmp_path / "two")
  same(found, alone(tmp_path / "one", "STEPS=4", *MESH, **kind))
  special = {"dapo": "dynamic/", "knapsack_rl": "budget/"}
  special["rule_reasoner"] = "domain/"
  assert any(name.startswith(special.get(method, "")) for name in found[4])
  norm = {"optim/grad_norm": found[3]["optim/grad_norm"]}
  must_fail(same, {**found, 4: found[4] | norm}, found)


@pytest.mark.slow
def test_adapters_on_a_published_model_over_two_processes(tmp_path):
  config = tiny.config(vocab_size=260, qkv_bias=True, max_positions=64)
  published = models.save_huggingface(
    tmp_path / "published", config, tiny.params(config)
  )
  folders.write_tokenizer(published, chat_template=folders.TEMPLATE)

  def given(folder):
    files = (
      *("models/from_huggingface", "models/lora", "tasks/arithmetic"),
      *("tasks/coin_flips", "tasks/huggingface", "tasks/chat_of_model"),
      *("methods/reinforce_plus_plus", "runs/train"),
    )
    bindings = (
      *(f"MODEL_PATH='{published}'", "INITIAL_PARAMS=%MODEL_PATH"),
      *("VOCABULARY_PATH=%MODEL_PATH", "LORA_RANK=4", "STEPS=3", *MESH),
      *("NUM_PROMPTS=8", "GROUP_SIZE=4", "WARMUP_UPDATES=1", "MAX_TOKENS=8"),
      *("SAVE_EVERY=3", "EVALUATE_EVERY=3", "LEARNING_RATE=0.01"),
      *("data.arithmetic_task.num_train=64", "train.train.prompt_length=16"),
      *("data.arithmetic_task.num_heldout=8", "train.train.tensorboard=False"),
      "evaluate.Evaluation.num_prompts=8",
    )
    return [
      *(f"--gin_file=gin/{name}.gin" for name in files),
      f"--run_dir={folder}",
      *(f"--gin.{b}" for b in bindings),
    ]

  started = host_program.start([*given(tmp_path / "two"), *host_program.FLAGS])
  ended = host_program.ends(started)
  assert [status for status, _ in ended] == [0, 0], ended
  assert main.main(given(tmp_path / "one")) == 0
  found = rows(tmp_path / "two")
  same(found, rows(tmp_path / "one"))
  # The adapters moved, and the reference model is the policy without them.
  assert min(found[step]["optim/grad_norm"] for step in (1, 2, 3)) > 0
  exported = tmp_path / "exported"
  arguments = [f"--run={tmp_path / 'two'}", f"--output={exported}"]
  assert export.main([*arguments, "--dtype=float32"]) == 0
  trained = models.load_huggingface(exported)[1]
  before = models.load_huggingface(published)[1]
  moved = {
    jax.tree_util.keystr(path): bool((a != b).any())
    for (path, a), b in zip(
      jax.tree.leaves_with_path(trained), jax.tree.leaves(before), strict=True
    )
  }
  assert any(moved.values())
  assert not any(y for x, y in moved.items() if "embedding" in x or "norm" in x)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_resume_after_kill_9_of_one_host(killed, two, tmp_path):
  folder = tmp_path / "run"
  given = [
    *arguments(folder, "STEPS=4", "DEPTH=1", *MESH),
    *host_program.FLAGS,
  ]
  processes = host_program.start(given)
  while processes[killed].poll() is None:
    path = folder / "metrics.jsonl"
    if (folder / "checkpoints" / "2").exists() and len(
      path.read_bytes().splitlines()
    ) > 2:
      processes[killed].kill()
    time.sleep(0.001)
  ended = host_program.ends(processes, timeout=100)
  assert ended[killed][0] == -signal.SIGKILL, "it ended before it was killed"
  status, output = ended[1 - killed]
  assert status == hosts.LOST, output
  assert f"the run ended on all hosts: host {killed}" in output
  assert max(rows(folder)) < 4
  ended = together(
    folder,
    *("STEPS=4", "DEPTH=1", *MESH),
    flags=["--resume"],
  )
  assert [status for status, _ in ended] == [0, 0], ended
  assert "going on from step 2" in ended[0][1]
  exact = [
    {
      step: {
        k: v for k, v in row.items() if not k.startswith(("time", "throughput"))
      }
      for step, row in rows(path).items()
    }
    for path in (folder, two[0])
  ]
  assert exact[0] == exact[1]


@pytest.mark.slow
def test_an_error_in_one_hosts_verifier(tmp_path):
  folder = tmp_path / "run"
  (status_0, first), (status_1, second) = together(
    folder, "STEPS=4", *MESH, env={"RLVR_TEST_FAIL": "1"}
  )
  assert (status_0, status_1) == (1, 1)
  assert "error: the verifier's answer is 17" in second
  cause = "host 1 failed: ValueError: the verifier's answer is 17"
  assert f"the run ended on all hosts: {cause}" in first
  assert cause in json.loads((folder / "about.json").read_text())["status"]
