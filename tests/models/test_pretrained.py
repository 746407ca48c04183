"""What a run starts from: a folder, a GGUF file, another run's checkpoints."""

import dataclasses

import jax
import numpy as np
import pytest

from rlvr import models, sharding
from rlvr.infra.checkpoints import Checkpoints
from rlvr.meshes import MeshShape, make_mesh
from rlvr.models import pretrained
from tests import tiny
from tests.models import folders

CONFIG = tiny.config(tie_embeddings=False)
PARAMS = tiny.params(CONFIG)


@pytest.fixture
def folder(tmp_path):
  return models.save_huggingface(tmp_path / "model", CONFIG, PARAMS)


def test_a_path_says_what_loads_it(folder, tmp_path):
  assert pretrained.loader_of(folder) is models.load_huggingface
  assert pretrained.loader_of(tmp_path / "any.gguf") is models.load_gguf
  assert pretrained.loader_of(tmp_path) is None
  config, params = models.load_pretrained(folder)
  assert config.num_layers == CONFIG.num_layers
  folders.same(params, PARAMS)
  low = models.load_pretrained(folder, dtype="bfloat16")[1]
  assert {x.dtype for x in jax.tree.leaves(low)} == {np.dtype("bfloat16")}
  with pytest.raises(FileNotFoundError, match="give a Hugging Face folder"):
    models.load_pretrained(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match=r"give a \.gguf file"):
    models.load_pretrained(tmp_path / "nowhere.gguf")


def test_a_config_is_the_folders_with_what_a_run_sets(folder):
  config = models.config_from_folder(str(folder), value_head=True, remat=True)
  assert config == dataclasses.replace(
    CONFIG, value_head=True, remat=True, max_positions=config.max_positions
  )
  with pytest.raises(TypeError, match=r"\['num_layers'\] come from the folder"):
    models.config_from_folder(str(folder), num_layers=3)


@pytest.mark.parametrize("mesh", [None, MeshShape(fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("value_head", [False, True])
def test_a_run_starts_from_a_folder(folder, mesh, value_head):
  model = models.config_from_folder(str(folder), value_head=value_head)
  places = None
  if mesh is not None:
    places = sharding.param_shardings(model, make_mesh(mesh, jax.devices()[:4]))
  found = models.initial_params(folder, model, shardings=places)
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("float32")}
  if places is not None:
    assert jax.tree.map(lambda x: x.sharding, found) == places
  trunk = dict(found["trunk"])
  if value_head:
    # No published model has one: it starts as a drawn one does.
    drawn = models.init(model, jax.random.key(0))["trunk"]["value_head"]
    np.testing.assert_array_equal(trunk.pop("value_head"), drawn)
  folders.same({**found, "trunk": trunk}, PARAMS)


def test_a_run_starts_from_another_runs_checkpoints(tmp_path):
  with Checkpoints(
    tmp_path / "run", keep=1, keep_best=0, best_metric="x", save_every=1
  ) as checkpoints:
    checkpoints.save(1, {"params": PARAMS, "step": np.int32(1)}, {})
  mesh = make_mesh(MeshShape(fsdp=2), jax.devices()[:2])
  places = sharding.param_shardings(CONFIG, mesh)
  for shardings in (None, places):
    found = models.initial_params(tmp_path / "run", CONFIG, shardings=shardings)
    folders.same(found, PARAMS)
  assert jax.tree.map(lambda x: x.sharding, found) == places


def test_another_model_is_refused_before_it_is_read(folder, monkeypatch):
  (folder / "model.safetensors").unlink()
  model = dataclasses.replace(CONFIG, mlp_dim=25, qk_norm=True)
  with pytest.raises(ValueError) as caught:
    models.initial_params(folder, model)
  message = str(caught.value)
  assert "  mlp_dim: 24 there, 25 in this run\n" in message
  assert "  qk_norm: False there, True in this run\n" in message
  assert "gin/models/from_huggingface.gin" in message
  assert message.count(" there, ") == 2
