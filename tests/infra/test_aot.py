"""Ahead of time: the command line, and programs compiled for a topology.

Where the TPU compiler (libtpu, 0.6 GB) isn't installed what needs it skips.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from rlvr.infra import abstract, aot, programs
from rlvr.infra.chips import CHIPS
from rlvr.infra.hlo import Collective, Work
from rlvr.main import load_config
from rlvr.meshes import MeshShape, make_mesh
from tests import runs

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs the TPU compiler: pip install -r requirements-tpu.lock",
)
FILES = [
  str(runs.ROOT / "gin" / f"{name}.gin")
  for name in ("models/tiny", "tasks/arithmetic", "methods/grpo", "runs/train")
]
SMALL = [
  "models.ModelConfig.unroll_layers=False",
  *(b for b in runs.TINY if b.startswith("models.") and "layers" not in b),
  "NUM_PROMPTS=4",
  "GROUP_SIZE=4",
]


def run(*flags, files=FILES, bindings=SMALL):
  """Runs the command line in a process of its own."""
  return subprocess.run(
    [
      *(sys.executable, "-m", "rlvr.infra.aot"),
      *(f"--gin_file={f}" for f in files),
      *(f"--gin.{b}" for b in bindings),
      *flags,
    ],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )


@needs_compiler
def test_a_small_topology(tmp_path):
  file = tmp_path / "figures.json"
  flags = ("--topology=v5e:2x2", "--mesh=fsdp:2,tensor:2")
  done = run(*flags, "--programs=sample,score", f"--json={file}")
  assert done.returncode == 0, done.stderr
  for part in ("arguments", "temporaries", "code", "all-gather", "share"):
    assert part in done.stdout
  found = json.loads(file.read_text())
  assert found["devices"] == 4
  sample, score = found["programs"]
  # Formula and compiled program agree but for attention to padding.
  flops = sample["work"]["flops"], sample["model_flops"]
  assert 1 <= flops[0] / flops[1] < 1.5
  memory = sample["memory"]
  assert memory["total"] == sum(
    memory[k] for k in ("arguments", "output", "temporaries", "code", "resident")
  ) - memory["aliased"]  # fmt: skip
  # Adam's moments lie there meanwhile.
  assert memory["resident"] > 0
  # GRPO scores without a pass; the state is in memory all the same.
  assert score["work"]["flops"] == 0
  assert score["memory"]["arguments"] > 2 * memory["arguments"]
  assert score["memory"]["resident"] == 0


@needs_compiler
def test_kernels_hide_nothing_of_the_program_around_them(tmp_path):
  file = tmp_path / "figures.json"
  flags = ("--topology=v5e:2x2", "--mesh=fsdp:4", "--programs=update")
  # Without packing there is one length to compile.
  more = ["ATTENTION='splash'", "loops.Reinforcement.packing=None"]
  done = run(*flags, f"--json={file}", bindings=[*SMALL, *more])
  assert done.returncode == 0, done.stderr
  (update,) = json.loads(file.read_text())["programs"]
  # Of attention's own products, in the kernels, the compiler lists none.
  assert 0.7 < update["work"]["flops"] / update["model_flops"] < 1.5
  # Forward, and two kernels backward, of a layer at least.
  assert update["work"]["untimed_kernels"] >= 3
  assert "calls of Pallas kernels" in done.stdout


@needs_compiler
def test_what_does_not_fit_ends_with_1():
  model = str(runs.ROOT / "gin/models/qwen2_5_7b.gin")
  done = run(
    *("--topology=v5e:2x2", "--mesh=fsdp:4", "--programs=score"),
    files=[model, *FILES[1:]],
    bindings=["NUM_PROMPTS=4", "GROUP_SIZE=4", "UPDATES_PER_BATCH=1"],
  )
  assert done.returncode == 1, done.stderr
  assert "DOES NOT FIT" in done.stdout
  assert "larger slice" in done.stderr


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=h100:8"], "CHIP:SIZE"),
    (["--topology=v5e:2x2", "--programs=sample,train"], "none of"),
    (["--topology=v5e:2x2", "--gin.NUM_PROMTS=3"], "NUM_PROMPTS"),
    pytest.param(
      *(["--topology=v5e:2x2", "--mesh=fsdp:3"], "doesn't cover"),
      marks=needs_compiler,
    ),
    (["--topology=v5e:2x2", "--mesh=fdsp:4"], "AXIS:SIZE"),
    (["--topology=v5e:2x2x2"], "2 dimensions"),
    (["--topology=v5e:16x32"], "largest slice is v5e:16x16"),
    # Found before anything is compiled.
    (["--topology=v5e:2x2", "--json=/nope/x.json"], "--json=/nope/x.json"),
    (["--topology=v5e:2x2", "--json=/"], "a folder"),
    (
      ["--topology=v5e:2x2", "--gin.train.train.prompt_length=0"],
      "train.prompt_length=0",
    ),
  ],
)
def test_wrong_usage_ends_with_2(capsys, flags, message):
  files = [f"--gin_file={f}" for f in FILES]
  assert aot.main([*files, *flags]) == 2
  assert message in capsys.readouterr().err


def test_missing_flags_end_with_2(capsys):
  with pytest.raises(SystemExit) as ended:
    aot.main([f"--gin_file={FILES[0]}"])
  assert ended.value.code == 2
  assert "--topology" in capsys.readouterr().err


def test_another_run_than_reinforcement_is_refused(capsys):
  files = [*FILES[:2], str(runs.ROOT / "gin/runs/supervised.gin")]
  flags = [f"--gin_file={f}" for f in files]
  assert aot.main([*flags, "--topology=v5e:2x2"]) == 2
  assert "runs/train.gin" in capsys.readouterr().err


def test_a_configuration_without_a_run_is_refused():
  """In a process of its own: gin keeps what others have registered."""
  done = run("--topology=v5e:2x2", files=FILES[:1], bindings=[])
  assert done.returncode == 2
  assert "gin/runs/train.gin" in done.stderr


def test_a_compiler_that_fails_is_no_program_that_does_not_fit(
  capsys, monkeypatch
):
  def fail(*_):
    raise jax.errors.JaxRuntimeError("INTERNAL: nobody knows")

  monkeypatch.setattr(aot, "topology_devices", lambda _: [None] * 4)
  monkeypatch.setattr(aot, "compile_programs", fail)
  files = [f"--gin_file={f}" for f in FILES]
  assert aot.main([*files, "--topology=v5e:2x2"]) == 2
  assert "nobody knows" in capsys.readouterr().err


def test_meshes_from_the_command_line():
  assert aot.mesh_shape("fsdp:4,tensor:2") == MeshShape(1, 4, 2)
  assert aot.mesh_shape("data:2,fsdp:-1") == MeshShape(2, -1, 1)
  for wrong in ("4x4", "fsdp", "fsdp:x", "fsdp:2,fsdp:2", ""):
    with pytest.raises(ValueError, match="AXIS:SIZE"):
      aot.mesh_shape(wrong)


def report(**changes):
  """Returns a made-up report: 2 s of computation, 1 s of links, on v5e."""
  chip = CHIPS["v5e"]
  work = Work(
    flops=4,
    cycles=int(2 * chip.clock_hz),
    collectives={"all-gather": Collective(3, 4, int(chip.link_bandwidth))},
    loops=(),
  )
  memory = programs.Memory(
    arguments=10, output=7, aliased=5, temporaries=20, code=3, resident=100
  )
  settings = {
    **{"name": "sample", "fits": True, "problem": "", "memory": memory},
    # 1.5 s at the peak.
    **{"work": work, "model_flops": 1.5 * chip.peak_flops},
    **{"listed_flops": 1.0, "listed_bytes": 2.0, "compile_seconds": 1.0},
  }
  return programs.Report(**settings | changes)


def test_figures_by_hand():
  chip = CHIPS["v5e"]
  found = report()
  assert found.memory.total == 10 + 7 - 5 + 20 + 3 + 100
  assert found.compute_seconds(chip) == pytest.approx(2)
  assert found.collective_seconds(chip) == pytest.approx(1)
  # 1.5 of 2 + 1 s, and of 2 s.
  assert found.model_flops_share(chip) == pytest.approx((0.5, 0.75))
  text = aot.report_text(found, chip)
  assert "50.0% of the peak with nothing overlapped, 75.0%" in text


def test_kernels_without_an_estimate_are_named():
  text = aot.report_text(report(), CHIPS["v5e"])
  assert "kernels" not in text
  work = dataclasses.replace(report().work, untimed_kernels=12)
  text = aot.report_text(report(work=work), CHIPS["v5e"])
  assert "12 calls of Pallas kernels" in text


def test_a_program_that_cannot_be_read_still_has_its_memory():
  text = aot.report_text(report(work=None), CHIPS["v5p"])
  assert "can't read" in text and "total" in text
  assert "FLOPs share" not in text


def test_turns_of_decoding_add_up_to_the_response():
  assert programs.decode_turns(32) == {32: 32}
  assert programs.decode_turns(256) == {64: 64, 128: 64, 256: 128}
  assert sum(programs.decode_turns(1000).values()) == 1000


def test_without_an_estimate_there_is_no_share():
  chip = CHIPS["v5e"]
  found = report(work=dataclasses.replace(report().work, cycles=0))
  assert found.model_flops_share(chip) is None
  assert "no estimate" in aot.report_text(found, chip)


def test_bytes_on_a_device_are_the_state_cut_over_the_mesh():
  """Of the simulated devices: shapes alone, nothing is compiled."""
  load_config(FILES, [*SMALL, "NUM_PROMPTS=8"])
  job = abstract.job_from_gin()

  def state_bytes(shape):
    place = abstract.placement_of(job, make_mesh(shape))
    return programs.bytes_per_device(abstract.abstract_state(job, place).params)

  whole, halved = state_bytes(MeshShape()), state_bytes(MeshShape(2, 4, 1))
  # Cut 4 ways but for norms; copied over `data`.
  assert 0.25 * whole <= halved < 0.3 * whole
  load_config(FILES, [*SMALL, "NUM_PROMPTS=6"])
  with pytest.raises(ValueError, match="NUM_PROMPTS=6"):
    abstract.placement_of(
      abstract.job_from_gin(), make_mesh(MeshShape(2, 4, 1))
    )
