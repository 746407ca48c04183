"""Hugging Face folders in and out, on the golden checkpoints of the families."""

import dataclasses
import json
import os
import pathlib
import subprocess
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlvr import models, sharding
from rlvr.infra.safetensors_files import SafetensorsFolder
from rlvr.meshes import MeshShape, make_mesh
from rlvr.models import huggingface
from tests import tiny
from tests.compare import must_fail
from tests.models import folders
from tests.models.test_families import CASES, case, config_of, params_of

LLAMA = "llama3"


@pytest.fixture
def folder(tmp_path):
  return folders.write_case(LLAMA, tmp_path / "model")


# In.


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parity
def test_a_folder_gives_the_logits_of_transformers(name, tmp_path):
  folder = folders.write_case(name, tmp_path / "one")
  config, params = models.load_huggingface(folder)
  assert config == config_of(name)
  folders.same(params, params_of(name))
  folders.check_golden(name, config, params)
  # Another order of the query's heads, which no shape shows.
  broken = {**params, "layers": dict(params["layers"])}
  broken["layers"]["query"] = params["layers"]["query"][:, :, ::-1]
  must_fail(folders.check_golden, name, config, broken)


def test_several_files_and_other_dtypes_give_the_same(tmp_path, folder):
  expected = models.load_huggingface(folder)[1]
  for dtype, shards in (("float16", 3), ("float32", 1), ("float64", 2)):
    other = folders.write_case(
      LLAMA, tmp_path / dtype, dtype=dtype, shards=shards
    )
    found = models.load_huggingface(other)[1]
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("float32")}
    folders.same(found, expected)
  # bfloat16 holds fewer digits: those, and no others.
  rounded = jax.tree.map(
    lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), expected
  )
  stored = folders.write_case(
    LLAMA, tmp_path / "bf16", dtype=ml_dtypes.bfloat16
  )
  found = models.load_huggingface(stored)[1]
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("float32")}
  folders.same(found, jax.tree.map(lambda x: x.astype(np.float32), rounded))
  must_fail(folders.same, found, expected)
  # And asked for.
  found = models.load_huggingface(folder, dtype="bfloat16")[1]
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
  folders.same(found, rounded)
  with pytest.raises(ValueError, match=r"dtype='int8': give one of float32"):
    models.load_huggingface(folder, dtype="int8")


def test_tensors_that_the_decoder_does_not_read_may_be_there(tmp_path, folder):
  tensors = folders.weights("smollm2")
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, "f4")
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  folders.write_config(tmp_path / "more", case("smollm2")[1]["config"])
  folders.write_tensors(tmp_path / "more", tensors)
  folders.same(
    models.load_huggingface(tmp_path / "more")[1], params_of("smollm2")
  )


# Straight to shards.


class Watch:
  """Bytes that were read of a folder, and Python's own peak between reads."""

  def __init__(self, monkeypatch):
    self.by_tensor = {}
    read = SafetensorsFolder.read

    def counted(folder, name, index):
      found = read(folder, name, index)
      self.by_tensor[name] = self.by_tensor.get(name, 0) + found.nbytes
      return found

    monkeypatch.setattr(SafetensorsFolder, "read", counted)


MESHES = [
  MeshShape(data=8),
  MeshShape(fsdp=8),
  MeshShape(data=2, fsdp=2, tensor=2),
  MeshShape(fsdp=2, tensor=4),
]
# Of all axes, 8 is a divisor.
WIDE = tiny.config(
  vocab_size=32, num_heads=8, num_kv_heads=8, qkv_bias=True, qk_norm=False
)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("config", [WIDE, tiny.config(tie_embeddings=False)])
def test_each_device_gets_its_part_and_each_part_is_read_once(
  mesh, config, tmp_path, monkeypatch
):
  params = tiny.params(config)
  folder = models.save_huggingface(tmp_path / "model", config, params)
  places = sharding.param_shardings(config, make_mesh(mesh, jax.devices()))
  watch = Watch(monkeypatch)
  found = models.load_huggingface(folder, shardings=places)[1]
  folders.same(found, params)
  assert jax.tree.map(lambda x: x.sharding, found) == places
  for name, tensor in huggingface.hf_tensors(config).items():
    leaf, place = found, places
    for key in tensor.path:
      leaf, place = leaf[key], place[key]
    parts = {
      tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
      for index in place.devices_indices_map(leaf.shape).values()
    }
    sizes = [np.prod([b - a for a, b in part]) for part in parts]
    whole = sum(sizes) // (1 if tensor.layer is None else config.num_layers)
    if name.endswith("bias"):
      # A vector whose heads are read whole for each part.
      whole *= len(parts)
    assert watch.by_tensor[name] == 4 * whole, name


def test_a_host_reads_the_parts_of_its_own_devices(tmp_path, monkeypatch):
  params = tiny.params(WIDE)
  folder = models.save_huggingface(tmp_path / "model", WIDE, params)
  places = sharding.param_shardings(
    WIDE, make_mesh(MeshShape(fsdp=8), jax.devices())
  )
  # As on a host with the first 2 of 8 devices.
  monkeypatch.setattr(
    jax,
    "make_array_from_callback",
    lambda shape, place, part: [
      part(index)
      for index in list(place.devices_indices_map(shape).values())[:2]
    ],
  )
  watch = Watch(monkeypatch)
  found = models.load_huggingface(folder, shardings=places)[1]
  gate = np.asarray(params["layers"]["gate"])
  (axis,) = [
    i
    for i, x in enumerate(found["layers"]["gate"][0].shape)
    if x != gate.shape[i]
  ]
  np.testing.assert_array_equal(
    np.concatenate(found["layers"]["gate"], axis), np.split(gate, 4, axis)[0]
  )
  read = sum(n for k, n in watch.by_tensor.items() if "gate_proj" in k)
  assert read == gate.nbytes // 4


def traced_peak(load, folder, monkeypatch):
  """Returns how far the host's memory goes above what is loaded so far.

  As a multiple of the greatest array: 1 is the array that is being made.
  """
  loaded, worst = 0, 0
  greatest = 0
  array = huggingface._array

  def watched(shape, *rest):
    nonlocal loaded, worst, greatest
    made = array(shape, *rest)
    # NumPy's memory and Python's; JAX's own is not in it, so arrays that JAX
    # took over without a copy are let through as loaded.
    above = tracemalloc.get_traced_memory()[1] - base - loaded - made.nbytes
    worst, greatest = max(worst, above), max(greatest, made.nbytes)
    loaded += made.nbytes
    tracemalloc.reset_peak()
    return made

  monkeypatch.setattr(huggingface, "_array", watched)
  tracemalloc.start()
  base = tracemalloc.get_traced_memory()[0]
  try:
    load(folder)
  finally:
    tracemalloc.stop()
  monkeypatch.undo()
  return worst / greatest


def test_the_model_is_never_held_twice(tmp_path, monkeypatch):
  config = tiny.config(embed_dim=64, mlp_dim=128, num_layers=8, vocab_size=256)
  folder = models.save_huggingface(
    tmp_path / "model", config, tiny.params(config), max_shard_bytes=1 << 20
  )
  models.load_huggingface(folder)  # what is imported and cached stays

  def all_read_first(folder):
    with SafetensorsFolder(folder) as tensors:
      held = {
        name: tensors.read(name, (slice(None),) * len(tensors.shape(name)))
        for name in tensors.names()
      }

      class Held:
        names = tensors.names
        shape = tensors.shape

        def read(self, name, index):
          return held[name][index]

      return huggingface.assemble(
        config, Held(), "here", shardings=None, dtype="float32"
      )

  def check(load):
    assert traced_peak(load, folder, monkeypatch) < 1.5

  check(models.load_huggingface)
  must_fail(check, all_read_first)


def test_shardings_of_another_model_are_refused(folder):
  mesh = make_mesh(MeshShape(fsdp=2), jax.devices()[:2])
  places = sharding.param_shardings(WIDE, mesh)
  with pytest.raises(ValueError, match=r"shardings and .* differ in \['layers"):
    models.load_huggingface(folder, shardings=places)


# What is wrong with a folder.


def changed(folder, change):
  """Changes the tensors in a folder's only file."""
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  folders.write_tensors(folder, tensors)


def test_tensors_that_do_not_fit_are_named(folder):
  down = "model.layers.1.mlp.down_proj.weight"
  kept = load_file(folder / "model.safetensors")
  changed(folder, lambda t: t.pop(down))
  with pytest.raises(ValueError, match=rf"missing: {down};.*config\.json is"):
    models.load_huggingface(folder)
  changed(folder, lambda t: t.update(kept, extra=kept[down]))
  with pytest.raises(ValueError, match=r"unexpected: extra;"):
    models.load_huggingface(folder)
  folders.write_tensors(folder, {**kept, down: kept[down].T.copy()})
  with pytest.raises(
    ValueError, match=rf"{down} is \[28, 20\], not \[20, 28\]"
  ):
    models.load_huggingface(folder)
  # More than five are counted.
  folders.write_tensors(
    folder, {"model.norm.weight": kept["model.norm.weight"]}
  )
  with pytest.raises(ValueError, match=r"missing: (\S+, ){4}\S+ and 24 more"):
    models.load_huggingface(folder)
  folders.write_tensors(folder, {**kept, down: kept[down].astype(np.int8)})
  with pytest.raises(ValueError, match=rf"{down} is I8, .*quantised"):
    models.load_huggingface(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  "name",
  [
    "model.embed_tokens.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
  ],
)
def test_a_tensor_that_is_not_finite_is_named(name, bad, folder):
  models.load_huggingface(folder)  # the control
  changed(folder, lambda t: t[name].reshape(-1).__setitem__(-1, bad))
  with pytest.raises(ValueError, match=rf"tensor {name} holds {bad};.*again"):
    models.load_huggingface(folder)


def test_a_number_that_the_dtype_cannot_hold_is_named(folder):
  name = "model.layers.0.mlp.up_proj.weight"
  kept = {k: v.astype(np.float32) for k, v in folders.weights(LLAMA).items()}
  kept[name][0, 0] = 1e5
  folders.write_tensors(folder, kept)
  models.load_huggingface(folder)
  with (
    np.errstate(over="ignore"),
    pytest.raises(ValueError, match=rf"tensor {name} holds inf"),
  ):
    models.load_huggingface(folder, dtype="float16")


def test_configs_that_do_not_fit_are_named(tmp_path, folder):
  with pytest.raises(FileNotFoundError, match=r"config\.json \(there is no"):
    models.load_huggingface(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(
    FileNotFoundError, match=r"empty has no config\.json: give"
  ):
    models.load_huggingface(tmp_path / "empty")
  fields = case(LLAMA)[1]["config"]
  folders.write_config(folder, fields | {"model_type": "mamba"})
  with pytest.raises(ValueError, match=r"model_type='mamba'.*there are"):
    models.load_huggingface(folder)
  folders.write_config(folder, fields | {"intermediate_size": 30})
  with pytest.raises(ValueError, match=r"gate_proj\.weight is \[28, 20\], not"):
    models.load_huggingface(folder)
  (folder / "config.json").write_text("<html>")
  with pytest.raises(ValueError, match=r"config\.json is no JSON"):
    models.load_huggingface(folder)
  (folder / "config.json").write_text("[1]")
  with pytest.raises(ValueError, match=r"config\.json .*object"):
    models.load_huggingface(folder)


# Out.


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_was_read(name, tmp_path):
  source = folders.write_case(name, tmp_path / "source", dtype="float32")
  config, params = models.load_huggingface(source)
  family = case(name)[1]["config"]["model_type"]
  out = models.save_huggingface(tmp_path / "out", config, params, family=family)
  theirs, ours = (
    load_file(folder / "model.safetensors") for folder in (source, out)
  )
  assert ours.keys() == theirs.keys()
  for tensor, array in theirs.items():
    assert ours[tensor].tobytes() == array.tobytes(), tensor
    assert ours[tensor].shape == array.shape
  again, read = models.load_huggingface(out)
  assert again == config
  folders.same(read, params)
  fields = json.loads((out / "config.json").read_text())
  assert fields["architectures"] == [case(name)[1]["architecture"]]
  assert fields["torch_dtype"] == "float32"
  assert not (out / "model.safetensors.index.json").exists()


def test_shards_have_an_index_and_their_size(tmp_path):
  config, params = config_of(LLAMA), params_of(LLAMA)
  out = models.save_huggingface(
    tmp_path / "out", config, params, dtype="bfloat16", max_shard_bytes=3000
  )
  index = json.loads((out / "model.safetensors.index.json").read_text())
  files = sorted(p.name for p in out.glob("*.safetensors"))
  assert len(files) > 3
  assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  assert set(index["weight_map"].values()) == set(files)
  assert index["metadata"]["total_size"] == 2 * models.num_params(config)
  for file in files:
    # Plus the header of each.
    assert (out / file).stat().st_size < 3000 + 1500
  read = models.load_huggingface(out)[1]
  folders.same(
    read,
    jax.tree.map(
      lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype("f4"), params
    ),
  )


def test_sharded_parameters_are_written_the_same(tmp_path):
  params = tiny.params(WIDE)
  mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices())
  placed = jax.device_put(params, sharding.param_shardings(WIDE, mesh))
  files = [
    models.save_huggingface(tmp_path / name, WIDE, p) / "model.safetensors"
    for name, p in (("one", params), ("eight", placed))
  ]
  assert files[0].read_bytes() == files[1].read_bytes()
  assert len(files[0].read_bytes()) > 4 * models.num_params(WIDE)


def test_a_value_head_is_left_out(tmp_path):
  config = tiny.config(value_head=True)
  params = tiny.params(config)
  out = models.save_huggingface(tmp_path / "out", config, params)
  read_config, read = models.load_huggingface(out)
  assert not read_config.value_head
  expected = {**params, "trunk": dict(params["trunk"])}
  del expected["trunk"]["value_head"]
  folders.same(read, expected)


def test_nothing_is_overwritten_or_left_half_written(tmp_path, monkeypatch):
  config, params = tiny.CONFIG, tiny.params(tiny.CONFIG)
  out = models.save_huggingface(tmp_path / "out", config, params)
  # Readable by whom the umask lets.
  modes = {p.name: p.stat().st_mode for p in out.iterdir()}
  assert len(set(modes.values())) == 1, modes
  with pytest.raises(FileExistsError, match=r"out exists: give another folder"):
    models.save_huggingface(out, config, params)

  def full(*_, **__):
    raise OSError("disk full")

  monkeypatch.setattr(huggingface, "write_safetensors", full)
  with pytest.raises(OSError, match="disk full"):
    models.save_huggingface(tmp_path / "new", config, params)
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_written_is_named(tmp_path):
  config, params = tiny.CONFIG, tiny.params(tiny.CONFIG)
  out = tmp_path / "out"
  other = dataclasses.replace(config, mlp_dim=25)
  with pytest.raises(
    ValueError, match=r"params\[layers\.down\] is \(2, 24, 16\)"
  ):
    models.save_huggingface(out, other, params)
  with pytest.raises(ValueError, match=r"params\[layers.key_bias\] is None"):
    models.save_huggingface(out, tiny.config(qkv_bias=True), params)
  with pytest.raises(ValueError, match=r"max_shard_bytes=0"):
    models.save_huggingface(out, config, params, max_shard_bytes=0)
  with pytest.raises(ValueError, match=r"dtype='float8'"):
    models.save_huggingface(out, config, params, dtype="float8")
  with pytest.raises(ValueError, match=r"family='gpt'"):
    models.save_huggingface(out, config, params, family="gpt")
  with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
    models.save_huggingface(out, config, params, tokenizer_files_from=tmp_path)
  assert not list(tmp_path.iterdir())


# And beside transformers, live.

_SCRIPT = """
import sys, numpy, torch, transformers
for folder in sys.argv[2:]:
  model, about = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True,
    attn_implementation="eager")
  bad = {k: v for k, v in about.items() if v}
  assert not bad, bad
  ids = torch.tensor(numpy.load(sys.argv[1]))
  with torch.no_grad():
    numpy.save(folder + "/logits.npy", model(ids).logits.numpy())
"""


@pytest.mark.parity
def test_transformers_loads_what_is_written(tmp_path):
  python = folders.transformers_python()
  tokens = np.random.default_rng(0).integers(1, 48, size=(2, 24))
  np.save(tmp_path / "tokens.npy", tokens)
  outs = {}
  for name in CASES:
    config = config_of(name)
    outs[name] = models.save_huggingface(
      tmp_path / name,
      config,
      params_of(name),
      family=case(name)[1]["config"]["model_type"],
      max_shard_bytes=4000,
    )
  done = subprocess.run(
    [
      *(python, "-c", _SCRIPT, str(tmp_path / "tokens.npy")),
      *map(str, outs.values()),
    ],
    capture_output=True,
    text=True,
    env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
    cwd=pathlib.Path(tmp_path),
  )
  assert done.returncode == 0, done.stderr[-3000:]

  def check(name, params):
    config = config_of(name)
    hidden = folders.forward(
      params, config, tokens.astype(np.int32), np.ones(tokens.shape, bool)
    )
    np.testing.assert_allclose(
      models.logits(params, config, hidden),
      np.load(outs[name] / "logits.npy"),
      rtol=0,
      atol=5e-5,  # as in test_families
    )

  for name in CASES:
    check(name, params_of(name))
    must_fail(check, name, jax.tree.map(lambda x: 1.01 * x, params_of(name)))
