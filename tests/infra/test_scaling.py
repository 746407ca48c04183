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
  reason="needs the TPU compiler: pip install -r requirements-tpu.lock",
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


# The same layers and mesh, fewer and on fewer tokens: most of a minute.
_CHEAP = """
import json
from rlvr.infra import scaling

one = scaling.shipped_of("qwen2_5_0_5b_v5e_2x2")
report = scaling.report_of(one, "update", [
  "NUM_PROMPTS=8",
  "MAX_TOKENS=128",
  "UPDATES_PER_BATCH=1",
  "train.train.prompt_length=128",
  "models.ModelConfig.num_layers=2",
  "loops.Reinforcement.micro_batches=2",
  "loops.Reinforcement.packing=None",
])
print(json.dumps(scaling.figures(report, one.chip)))
"""


def in_process(code):
  """Runs code as a process of its own: the TPU compiler is not for this one."""
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )


@needs_compiler
def test_an_update_like_a_shipped_one_fits_and_does_what_the_model_does():
  done = in_process(_CHEAP)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["fits"], found["problem"]
  # Layers computed again in the backward pass are a third more; the formula's
  # attention is causal, the program's isn't. With the loop of micro-batches
  # counted once it would be half of that.
  assert 1 < found["flops"] / found["model_flops"] < 1.5
  assert found["compiler"]


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
  done = in_process(_MESHES)
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
    "compiler": "0.0.42",
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
  assert "libtpu 0.0.42 (" in page


def test_what_does_not_fit_is_named_and_what_is_missing_is_a_dash():
  bad = {
    **figures()["programs"]["sample"],
    **{"fits": False, "problem": "20 GiB of 16", "memory": None},
  }
  del bad["largest"]
  page = scaling_page({"a": figures(programs={"update": bad})})
  assert "| - | 128 | - | - | **too much** | 32 | - | 25.0% |" in page
  assert "- a, update: 20 GiB of 16" in page


def test_a_stale_program_has_a_star_and_is_compiled_again(tmp_path):
  script = script_module("make_scaling_page")
  one = figures()
  sample, update = (one["programs"][k] for k in ("sample", "update"))
  programs = {"sample": sample, "update": {**update, "stale": True}}
  assert scaling_page({"a": one}).count(r"3.00 \*") == 0
  assert scaling_page({"a": figures(programs=programs)}).count(r"3.00 \*") == 1
  file = tmp_path / "figures.json"
  settings = {k: v for k, v in one.items() if k != "programs"}
  file.write_text(json.dumps({"a": figures(programs=programs)}))
  assert script.known(file, "a", settings, "sample") == sample
  assert script.known(file, "a", settings, "update") == {}
  # Nothing of the old figures stays beside new ones, such as its largest batch.
  new = {"fits": True, "memory": {"total": 1}}
  script.save(file, "a", settings, {"sample": new, "update": new})
  saved = json.loads(file.read_text())["a"]["programs"]
  assert saved == {"sample": {**sample, **new}, "update": new}


def test_figures_of_other_lengths_are_refused():
  both = {"a": figures(), "b": figures(prompt_length=256)}
  with pytest.raises(ValueError, match="2 settings"):
    scaling_page(both)


def test_the_page_is_that_of_the_figures():
  """And the figures are of the configurations as they are."""
  found = json.loads((DOCS / "scaling.json").read_text())
  assert scaling_page(found) == (DOCS / "scaling.md").read_text()
  assert set(found) == set(NAMES)
  script = script_module("make_scaling_page")
  for name, stored in found.items():
    now = script.settings_of(scaling.shipped_of(name))
    was = {key: stored.get(key) for key in now}
    assert was == now, f"{name}: run scripts/make_scaling_page.py --only {name}"
    for program in stored["programs"].values():
      assert program["fits"], f"{name} is shipped and doesn't fit"
      assert program["compiler"], f"{name}: which libtpu made this?"


ONE = scaling.shipped_of("qwen2_5_0_5b_v5e_2x2")


@pytest.mark.parametrize(
  ("binding", "changes"),
  [
    ("models.ModelConfig.remat=False", True),
    ("models.ModelConfig.num_layers=23", True),
    ("train.train.prompt_length=256", True),
    ("MAX_TOKENS=512", True),
    ("UPDATES_PER_BATCH=1", True),
    ("FSDP=2", True),
    ("loops.Reinforcement.packing=None", True),
    ("sampling/sharding.Rules.embed='fsdp'", True),
    ("ATTENTION='splash'", True),
    # Neither a program's size nor its operations.
    ("STEPS=7", False),
    ("LEARNING_RATE=1e-5", False),
    # Off is what a setting is without which there was none.
    ("models.ModelConfig.lora=None", False),
  ],
)
def test_a_digest_is_of_what_the_programs_depend_on(binding, changes):
  before = scaling.digest(scaling.job_of(ONE))
  assert before == scaling.digest(scaling.job_of(ONE))
  after = scaling.digest(scaling.job_of(ONE, [binding]))
  assert (after != before) is changes


def test_a_digest_is_the_same_in_another_process():
  """No addresses, and no order of sets, which differs between processes."""
  code = (
    "from rlvr.infra import scaling as s;"
    f" print(s.digest(s.job_of(s.shipped_of('{ONE.name}'))))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=runs.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "3"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split()[-1] == scaling.digest(scaling.job_of(ONE))


def test_figures_without_a_digest_are_kept_and_filled_in_once(tmp_path, capsys):
  script = script_module("make_scaling_page")
  file = tmp_path / "scaling.json"
  settings = script.settings_of(ONE)
  old = {k: v for k, v in settings.items() if k != "digest"}
  sample = {"fits": True}

  def stored():
    return json.loads(file.read_text())[ONE.name]

  file.write_text(
    json.dumps({ONE.name: old | {"programs": {"sample": sample}}})
  )
  assert script.known(file, ONE.name, settings, "sample") == sample
  script.fill_in(file, "0.0.42")
  assert stored()["digest"] == settings["digest"]
  assert stored()["programs"]["sample"] == {"fits": True, "compiler": "0.0.42"}
  # What an update adds leaves the sampler's figures.
  script.save(file, ONE.name, settings, {"update": {"compiler": "0.0.51"}})
  assert set(stored()["programs"]) == {"sample", "update"}
  script.fill_in(file, "0.0.42")
  assert stored()["programs"]["update"]["compiler"] == "0.0.51"
  # Of another digest they are stale, and it isn't written over.
  other = settings | {"digest": "0" * 12}
  assert script.known(file, ONE.name, other, "sample") == {}
  script.save(file, ONE.name, other, {"update": {}})
  assert set(stored()["programs"]) == {"update"}
  script.fill_in(file, None)
  assert stored()["digest"] == "0" * 12
  # Nor is one filled in where another setting has changed.
  changed = old | {"num_prompts": 1, "programs": {"sample": sample}}
  file.write_text(json.dumps({ONE.name: changed}))
  script.fill_in(file, None)
  assert "digest" not in stored()
  assert "settings have changed" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--only=nope"], "--only=nope: gin/scale has"),
    (["--only=qwen2_5_7b_v5e_2x2"], "gin/scale has"),
    (["--programs=train"], "'train' is none of"),
    (["--page", "--figures=/nope.json"], "no such file"),
    ([], "requirements-tpu.lock"),
  ],
)
def test_wrong_usage_of_the_script_ends_with_2(
  monkeypatch, capsys, flags, message
):
  script = script_module("make_scaling_page")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(sys, "argv", ["make_scaling_page.py", *flags])
  assert script.main() == 2
  assert message in capsys.readouterr().err
