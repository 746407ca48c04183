"""Adapters: the same model at first, and merged; their gradients and shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from rlvr import main, models, sharding
from rlvr.infra.checkpoints import Checkpoints
from rlvr.meshes import MeshShape, make_mesh
from rlvr.models import LoRA
from rlvr.models.config import PROJECTIONS
from rlvr.models.lora import adapters
from rlvr.sampling import Sampling, sample
from rlvr.scorers import scorer_of
from tests import runs, tiny
from tests.compare import must_fail

ALL = LoRA(rank=3, alpha=6.0, projections=PROJECTIONS)
CONFIG = tiny.config(lora=ALL, qkv_bias=True)
BASE = tiny.config(qkv_bias=True)
PARAMS = tiny.params(CONFIG)
PROMPTS = tiny.prompts()

forward = jax.jit(models.forward, static_argnums=1)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


def hidden(params, config):
  return np.asarray(forward(params, config, PROMPTS.tokens, PROMPTS.mask))


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def drawn_alike(params, key):
  """Asserts that the adapters are those which `init` draws with the key."""

  def check(key):
    # To rounding: under jit and outside of it.
    expected = adapters(models.init(CONFIG, key))
    jax.tree.map(
      functools.partial(close, rtol=1e-6), adapters(params), expected
    )

  check(key)
  must_fail(check, jax.random.key(99))


def test_drawn_adapters_change_nothing():
  key = jax.random.key(0)
  params, base = models.init(CONFIG, key), models.init(BASE, key)
  # The base is drawn as it is without them.
  assert models.without_adapters(CONFIG, params)[0] == BASE
  same(models.without_adapters(CONFIG, params)[1], base)
  found = adapters(params)["layers"]
  assert len(found) == 2 * len(PROJECTIONS)
  for name, leaf in found.items():
    assert leaf.dtype == jnp.float32
    if name.endswith("_b"):
      assert not leaf.any()
    else:  # normal numbers of variance 1/fan_in, others in each layer
      fan_in = np.prod(leaf.shape[1:-1])
      assert 0.6 < float(leaf.std()) * fan_in**0.5 < 1.4, name
      assert (leaf[0] != leaf[1]).all()
  np.testing.assert_array_equal(hidden(params, CONFIG), hidden(base, BASE))
  # Other numbers than 0 in B change something, in each projection.
  for name in PROJECTIONS:
    changed = {**params, "layers": dict(params["layers"])}
    changed["layers"][f"{name}_lora_b"] += 0.1
    must_fail(close, hidden(changed, CONFIG), hidden(base, BASE))


def test_merged_weights_give_the_same_logits():
  config, merged = models.merge_lora(CONFIG, PARAMS)
  assert config == BASE
  expected = hidden(PARAMS, CONFIG)
  close(hidden(merged, BASE), expected)
  # As do they not without the scale, and not without the adapters.
  unscaled = tiny.config(
    qkv_bias=True, lora=LoRA(rank=3, alpha=3.0, projections=PROJECTIONS)
  )
  must_fail(
    close, hidden(models.merge_lora(unscaled, PARAMS)[1], BASE), expected
  )
  base = models.without_adapters(CONFIG, PARAMS)[1]
  must_fail(close, hidden(base, BASE), expected)
  # The parameters given are as they were.
  same(PARAMS, tiny.params(CONFIG))
  assert models.merge_lora(BASE, base) == (BASE, base)


@pytest.mark.parametrize("unroll", [False, True])
def test_decoding_has_the_adapters(unroll):
  config = tiny.config(lora=ALL, qkv_bias=True, unroll_layers=unroll)
  sampling = Sampling(max_tokens=5, end_id=tiny.END, pad_id=tiny.PAD)
  rollout = jax.jit(
    lambda params: sample(
      *(params, config, PROMPTS, jax.random.key(1)),
      sampling=sampling,
      group_size=2,
    )
  )(PARAMS)

  def scored(params, config):
    score = jax.jit(scorer_of(config, params, 1.0))
    found = score(
      *(PROMPTS.tokens, PROMPTS.mask, rollout.tokens, rollout.completion_mask),
      None,
    )
    mask = np.asarray(rollout.completion_mask)
    close(
      np.asarray(rollout.behavior_logprobs)[mask],
      np.asarray(found["logprobs"])[mask],
    )

  scored(PARAMS, config)
  base = models.without_adapters(config, PARAMS)
  must_fail(scored, base[1], base[0])


def test_decoding_reads_them_in_the_compute_dtype():
  config = tiny.config(lora=ALL, compute_dtype="bfloat16")
  cast = models.compute_params(tiny.params(config), config)
  assert {x.dtype for x in jax.tree.leaves(adapters(cast))} == {
    jnp.dtype("bfloat16")
  }


def test_gradients_are_the_dense_ones_projected():
  # y = x (W + s A B): dA = s · dW Bᵀ and dB = s · Aᵀ dW, at the merged weights.
  def loss(params, config):
    h = models.forward(params, config, PROMPTS.tokens, PROMPTS.mask)
    return (jnp.sin(h) * PROMPTS.mask[..., None]).sum()

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  dense = grad(models.merge_lora(CONFIG, PARAMS)[1], BASE)["layers"]
  found = grad(PARAMS, CONFIG)["layers"]

  def check(name, scale):
    inputs = 2 if name == "output" else 1
    for i in range(CONFIG.num_layers):
      a = np.asarray(PARAMS["layers"][f"{name}_lora_a"][i])
      b = np.asarray(PARAMS["layers"][f"{name}_lora_b"][i])
      d = np.asarray(dense[name][i])
      rank = a.shape[-1]
      d_2d = d.reshape(np.prod(d.shape[:inputs]), -1)
      da = scale * d_2d @ b.reshape(rank, -1).T
      db = scale * a.reshape(-1, rank).T @ d_2d
      tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.abs(d).max()}
      close(found[f"{name}_lora_a"][i], da.reshape(a.shape), **tolerance)
      close(found[f"{name}_lora_b"][i], db.reshape(b.shape), **tolerance)

  for name in PROJECTIONS:
    check(name, ALL.scale)
    must_fail(check, name, 1.0)


def test_split_and_joined_are_inverse():
  config = tiny.config(lora=ALL, value_head=True)
  params = tiny.params(config)
  trained, frozen = models.split_trained(params, config)
  # The value head is trained as well: nothing else would teach it.
  assert set(trained) == {"trunk", "layers"}
  assert set(trained["trunk"]) == {"value_head"}
  assert "embedding" in frozen["trunk"] and "query" in frozen["layers"]
  same(models.joined(trained, frozen), params)
  # Without adapters everything is trained.
  assert models.split_trained(params, BASE) == (params, {})


def test_axes_of_adapters_are_those_of_their_projection():
  axes = models.logical_axes(CONFIG)["layers"]
  assert axes["query_lora_a"] == ("layers", "embed", "rank")
  assert axes["query_lora_b"] == ("layers", "rank", "heads", "head_dim")
  assert axes["output_lora_a"] == ("layers", "heads", "head_dim", "rank")
  assert axes["output_lora_b"] == ("layers", "rank", "embed")
  mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices())
  shardings = sharding.param_shardings(CONFIG, mesh)["layers"]
  cut = {name: tuple(shardings[name].spec) for name in axes if "lora" in name}
  assert cut["down_lora_a"] == (None, "tensor", None)
  assert cut["down_lora_b"] == (None, None, "fsdp")
  assert cut["key_lora_b"] == (None, None, "tensor", None)


def test_settings_that_cannot_be():
  with pytest.raises(ValueError, match=r"LoRA\.rank=0"):
    LoRA(rank=0, alpha=1.0, projections=("query",))
  with pytest.raises(ValueError, match=r"LoRA\.alpha=0"):
    LoRA(rank=1, alpha=0.0, projections=("query",))
  for projections in ((), ("q_proj",), ("up", "up")):
    with pytest.raises(ValueError, match=r"LoRA\.projections"):
      LoRA(rank=1, alpha=1.0, projections=projections)


# Loaded and written.


def test_a_published_model_gets_adapters_and_loses_them(tmp_path):
  base = models.without_adapters(CONFIG, PARAMS)[1]
  folder = models.save_huggingface(tmp_path / "base", BASE, base)
  gin.clear_config()
  main.load_config(
    [
      *(
        str(runs.ROOT / "gin" / f"{name}.gin")
        for name in (
          *("models/from_huggingface", "models/lora"),
          *("tasks/arithmetic", "runs/supervised"),
        )
      )
    ],
    [f"MODEL_PATH='{folder}'", "LORA_RANK=3", "LORA_ALPHA=6.0"],
  )
  model = gin.query_parameter("%MODEL").scoped_configurable_fn()
  gin.clear_config()
  assert model.lora == ALL
  params = models.initial_params(folder, model, key=jax.random.key(5))
  same(models.without_adapters(model, params)[1], base)
  drawn_alike(params, jax.random.key(5))
  with pytest.raises(ValueError, match="give `key`"):
    models.initial_params(folder, model)
  # Straight into their shards.
  mesh = make_mesh(MeshShape(fsdp=2, tensor=2), jax.devices()[:4])
  places = sharding.param_shardings(model, mesh)
  placed = models.initial_params(
    folder, model, shardings=places, key=jax.random.key(5)
  )
  same(placed, params)
  assert jax.tree.map(lambda x: x.sharding, placed) == places
  # Written merged: read again it is the same model, without adapters.
  merged = models.save_huggingface(tmp_path / "merged", CONFIG, PARAMS)
  config, read = models.load_huggingface(merged)
  close(hidden(read, config), hidden(PARAMS, CONFIG))
  must_fail(close, hidden(base, BASE), hidden(PARAMS, CONFIG))


def test_a_run_starts_from_checkpoints_with_adapters_or_without(tmp_path):
  base = models.without_adapters(CONFIG, PARAMS)[1]
  for name, params in (("with", PARAMS), ("without", base)):
    with Checkpoints(
      tmp_path / name, keep=1, keep_best=0, best_metric="x", save_every=1
    ) as checkpoints:
      checkpoints.save(1, {"params": params}, {})
  key = jax.random.key(5)
  same(models.initial_params(tmp_path / "with", CONFIG, key=key), PARAMS)
  found = models.initial_params(tmp_path / "without", CONFIG, key=key)
  same(models.without_adapters(CONFIG, found)[1], base)
  drawn_alike(found, key)
  # All weights can't be trained on from adapters: merge them first.
  with pytest.raises(ValueError, match="lora_a"):
    models.initial_params(tmp_path / "with", BASE, key=key)
