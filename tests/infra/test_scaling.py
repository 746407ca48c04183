"""The shipped configurations of scale: names, search, page; and that they fit.

Compiling for a TPU needs libtpu, 0.6 GB: where it isn't installed those tests
skip. Each runs in a process of its own, as the compiler must be told about the
machine before JAX starts.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlvr.infra import scaling
from rlvr.infra.chips import CHIPS
from rlvr.infra.program_memory import Memory
from rlvr.infra.scaling_page import scaling_page
from tests import runs
from tests.scripts.test_benchmarks import script as script_module

NAMES = [one.name for one in scaling.shipped()]
DOCS = runs.ROOT / "docs"

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs the TPU compiler: pip install libtpu",
)


def compiled(tmp_path, name, program):
  """Runs the script for one program; returns its status and figures."""
  file = tmp_path / "scaling.json"
  done = subprocess.run(
    [
      *(sys.executable, "scripts/make_scaling_page.py", "--no-search"),
      *(f"--only={name}", f"--programs={program}", f"--figures={file}"),
      f"--out={tmp_path / 'scaling.md'}",
    ],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )
  assert file.exists(), done.stderr
  return done.returncode, json.loads(file.read_text())[name]


# Compiling this one takes seconds, others minutes. That one that doesn't fit is
# found: tests/infra/test_aot.py.
SMALLEST = ("qwen2_5_0_5b_v5e_2x2", "sample")


@needs_compiler
@pytest.mark.parametrize(
  ("name", "program"),
  [
    pytest.param(
      *(name, program),
      marks=() if (name, program) == SMALLEST else pytest.mark.slow,
    )
    for name in NAMES
    for program in ("sample", "update")
  ],
)
def test_a_shipped_configuration_fits(tmp_path, name, program):
  code, found = compiled(tmp_path, name, program)
  result = found["programs"][program]
  assert code == 0 and result["fits"], result["problem"]


_MESHES = """
from rlvr import meshes
from rlvr.infra import scaling
from rlvr.infra.chips import topology_devices

for one in scaling.shipped():
  devices = topology_devices(one.topology)
  mesh = meshes.make_mesh(scaling.job_of(one).settings["mesh"], devices)
  assert mesh.size == len(devices), one.name
# No axis of the slice, nor several of them, is as long as one of these.
split = meshes.MeshShape(fsdp=8, tensor=2)
mesh = meshes.make_mesh(split, topology_devices("v6e:4x4"))
assert len({d.id for d in mesh.devices.flat}) == 16
print("all")
"""


@needs_compiler
def test_every_shipped_mesh_can_be_laid_out():
  done = subprocess.run(
    [sys.executable, "-c", _MESHES],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout.strip() == "all", done.stderr


def test_files_name_their_model_and_slice():
  assert len(NAMES) >= 12
  for one in scaling.shipped():
    assert (runs.ROOT / "gin/models" / f"{one.model}.gin").exists()
    chips = one.topology.partition(":")[2].split("x")
    shape = scaling.job_of(one).settings["mesh"]
    n = 1
    for size in chips:
      n *= int(size)
    assert shape.over(n)
  assert {one.chip.name for one in scaling.shipped()} == {"v5e", "v5p", "v6e"}
  for wrong in ("qwen2_5_7b", "qwen2_5_7b_v5e_", "qwen2_5_7b_v9z_2x2"):
    with pytest.raises(ValueError, match=r"MODEL_CHIP_SIZE|CHIP:SIZE"):
      scaling.shipped_of(wrong)


def test_settings_stand_in_the_job():
  job = scaling.job_of(scaling.shipped_of("qwen2_5_7b_v5e_4x8"))
  assert job.prompt_length == 512
  assert job.recipe.sampling.max_tokens == 1024
  assert job.recipe.group_size == 8
  assert job.recipe.model.remat
  assert job.recipe.sampling.unroll_layers is None
  unrolled = ["train.train.unroll_sampling=True"]
  job = scaling.job_of(scaling.shipped_of("qwen2_5_7b_v5e_4x8"), unrolled)
  assert job.recipe.sampling.unroll_layers
  # 64 prompts · 8 / (2 updates · 4 micro-batches).
  assert scaling.piece_size(job) == 64


@pytest.mark.parametrize("guess", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 9, 1000])
def test_the_search_ends_at_the_last_power_that_fits(limit, guess):
  asked = []

  def fits(size):
    asked.append(size)
    return size <= limit

  size, more = scaling.largest(fits, 1, doublings=5, guess=guess)
  expected = max(n for n in (1, 2, 4, 8, 16, 32) if n <= limit)
  assert (size, more) == (expected, limit >= 32)
  assert len(asked) == len(set(asked)) <= 5
  if 2**guess == expected and 1 < expected < 32:
    assert sorted(asked) == [expected, 2 * expected]


def test_a_search_that_is_broken_off_keeps_what_it_knows(monkeypatch):
  """64 prompts take 8 GiB, each 64 more 4: 192 fit in 16, so 128 of 2^n."""
  script = script_module("make_scaling_page")
  one = scaling.shipped_of("qwen2_5_0_5b_v5e_2x2")
  settings = {"num_prompts": 64, "micro_batch": 32, "group_size": 8}
  given = {"arguments": 0, "output": 0, "aliased": 0, "code": 0}
  first = Memory(**given, temporaries=8 << 30, resident=0)
  asked, kept = [], []

  def report_of(one, program, bindings):
    asked.append(int(bindings[0].partition("=")[2]))
    size = (4 << 30) + (asked[-1] << 26)
    if broken and len(asked) == 2:
      raise KeyboardInterrupt
    return SimpleNamespace(
      fits=size <= one.chip.usable_bytes,
      problem="" if size <= one.chip.usable_bytes else "too much",
      memory=dataclasses.replace(first, temporaries=size),
    )

  monkeypatch.setattr(script.scaling, "report_of", report_of)
  memory = dataclasses.asdict(first) | {"total": first.total}
  arguments = (one, "update", settings, {"memory": memory}, kept.append)
  broken = True
  monkeypatch.setattr(script, "BEYOND", 9.0)
  with pytest.raises(KeyboardInterrupt):
    script.search(*arguments)
  bounds = [found["update"] for found in kept]
  assert [b["largest"] for b in bounds] == [32, 64]
  assert all(b["larger_may_fit"] for b in bounds)
  broken = False
  asked.clear()
  known = dict(arguments[3], sizes=bounds[-1]["sizes"])
  script.search(*arguments[:3], known, kept.append)
  assert asked == [256]  # 128 isn't compiled again
  sizes = {"64": 8 << 30, "128": 12 << 30}
  result = {"largest": 64, "larger_may_fit": False, "sizes": sizes}
  assert kept[-1] == {"update": result}
  # What is far beyond the memory isn't compiled: 20 GiB of 15.75.
  asked.clear()
  monkeypatch.setattr(script, "BEYOND", 1.25)
  script.search(*arguments)
  assert asked == [128]
  assert kept[-1] == {"update": result}


def test_a_guess_from_one_compilation():
  given = {"arguments": 3 << 30, "output": 0, "aliased": 0, "code": 0}
  memory = Memory(**given, temporaries=2 << 30, resident=1 << 30)
  chip = dataclasses.replace(CHIPS["v5e"], usable_bytes=13 << 30)
  # 4 GiB stay and 2 are the batch's, of which 9 could be: two doublings.
  assert scaling.doublings_left(memory, "sample", chip) == 2
  # Of an update's one is the gradients': 1 of 8, three doublings.
  assert scaling.doublings_left(memory, "update", chip) == 3
  full = dataclasses.replace(chip, usable_bytes=6 << 30)
  assert scaling.doublings_left(memory, "sample", full) == 0


def test_what_a_larger_batch_is_expected_to_take():
  totals = {64: 10.0, 128: 14.0, 256: 20.0}
  assert scaling.expected_bytes({64: 10.0}, 128) == 10.0
  assert scaling.expected_bytes(totals, 512) == pytest.approx(32.0)
  # Only from those below: what is searched downwards from a guess too high.
  assert scaling.expected_bytes(totals, 256) == pytest.approx(22.0)


def figures(**changes):
  """Returns made-up figures of one configuration."""
  program = {
    "fits": True,
    "problem": "",
    "memory": {"total": 3 << 30},
    "model_flops_share": [0.25, 0.5],
    "largest": 256,
    "larger_may_fit": False,
  }
  return {
    **{"num_params": 2_000_000_000, "usable_bytes": CHIPS["v5e"].usable_bytes},
    **{"data": 1, "fsdp": 4, "tensor": 2, "num_prompts": 16, "group_size": 8},
    **{"prompt_length": 512, "response_length": 1024, "micro_batch": 32},
    "programs": {"sample": program, "update": program},
    **changes,
  }


def test_a_row_of_the_page():
  page = scaling_page({"a": figures()})
  half = "3.00 | {} | 256 | 25.0%"
  assert (
    "| a | 2.00 B | 8 (1 x 4 x 2) | 15.75 GiB |"
    f" {half.format(128)} | {half.format(32)} |" in page
  )
  assert "does not fit" not in page


def test_what_does_not_fit_is_named_and_what_is_missing_is_a_dash():
  bad = {
    **figures()["programs"]["sample"],
    **{"fits": False, "problem": "20 GiB of 16", "memory": None},
  }
  del bad["largest"]
  page = scaling_page({"a": figures(programs={"update": bad})})
  assert "| - | 128 | - | - | **too much** | 32 | - | 25.0% |" in page
  assert "- a, update: 20 GiB of 16" in page


def test_figures_of_other_lengths_are_refused():
  both = {"a": figures(), "b": figures(prompt_length=256)}
  with pytest.raises(ValueError, match="2 settings"):
    scaling_page(both)


def test_the_page_is_that_of_the_figures():
  """And the figures are of the configurations as they are."""
  found = json.loads((DOCS / "scaling.json").read_text())
  assert scaling_page(found) == (DOCS / "scaling.md").read_text()
  assert set(found) <= set(NAMES)
  for name, stored in found.items():
    job = scaling.job_of(scaling.shipped_of(name))
    mesh = job.settings["mesh"]
    now = (mesh.data, mesh.fsdp, mesh.tensor, job.recipe.num_prompts)
    was = tuple(stored[k] for k in ("data", "fsdp", "tensor", "num_prompts"))
    assert now == was, f"{name}: run scripts/make_scaling_page.py --only {name}"
    assert stored["micro_batch"] == scaling.piece_size(job)
    for program in stored["programs"].values():
      assert program["fits"], f"{name} is shipped and doesn't fit"
