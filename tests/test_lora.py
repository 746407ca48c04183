"""A run with adapters: what its updates change, its reference, its resumption."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr import main, models, sharding, step
from rlvr.infra import shards
from rlvr.infra.checkpoints import restore_params
from rlvr.infra.metrics import read_metrics
from rlvr.meshes import MeshShape, make_mesh
from rlvr.models import LoRA, export
from rlvr.models.config import PROJECTIONS
from rlvr.models.lora import adapters
from rlvr.scorers import scorer_of
from rlvr.types import Signals
from tests import runs, stepping, tiny
from tests.compare import must_fail
from tests.stepping import CONFIG as BASE
from tests.stepping import KEY, ROLLOUT, SCORES, changed, close, tree_close

LORA = LoRA(rank=2, alpha=4.0, projections=PROJECTIONS)
CONFIG = dataclasses.replace(BASE, lora=LORA)


def recipe(**changes):
  return stepping.recipe(
    **{
      "model": CONFIG,
      "micro_batches": 2,
      "optimizer": optax.adamw(0.05, weight_decay=0.1),
      **changes,
    }
  )


def base_of(params):
  return models.without_adapters(CONFIG, params)[1]


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.cache
def updated():
  """Returns the state before and after an update."""
  made = recipe()
  before = step.init_state(made, KEY, tiny.params(CONFIG))
  run = jax.jit(functools.partial(step.update, made))
  return before, run(before, ROLLOUT, SCORES, {})[0]


def test_only_adapters_change():
  before, after = updated()
  for name, leaf in adapters(after.params)["layers"].items():
    assert changed(leaf, before.params["layers"][name]) > 1e-3, name
  # Bit by bit, weight decay or not.
  same(base_of(after.params), base_of(before.params))
  # Where everything is trained, everything changes.
  everything, _ = stepping.updated("two_pieces")
  must_fail(same, everything.params, stepping.PARAMS)


def shapes(tree):
  return sorted(x.shape for x in jax.tree.leaves(tree))


def test_optimizer_state_is_of_adapters_alone():
  before, after = updated()
  own = shapes(adapters(before.params))
  for state in (before, after):
    assert shapes(state.opt_state) == sorted([*own, *own, ()])
  # And is cut like them over a mesh.
  mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices())
  place = sharding.placement(before, CONFIG, recipe().optimizer, mesh)
  moments = place.state.opt_state[0].mu
  assert moments == models.trained(place.params, CONFIG)
  assert moments["layers"]["up_lora_b"].spec == jax.P(None, None, "tensor")


def carried(made, state):
  """Returns the shapes of everything that a scan of the update carries."""
  found = set()

  def look(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "scan":
        found.update(v.aval.shape for v in eqn.outvars)
      for inner in jax.tree.leaves(list(eqn.params.values())):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          look(inner)

  look(
    jax.make_jaxpr(functools.partial(step.update, made))(
      state, ROLLOUT, SCORES, {}
    ).jaxpr
  )
  return found


def test_no_gradient_of_the_base_is_made():
  # Summed over the micro-batches it would be carried from one to the next.
  before, _ = updated()
  base = set(shapes(base_of(before.params)))
  # Norms of one layer are as large as sums of tokens are.
  base = {shape for shape in base if len(shape) > 2} | {(20, 16)}

  def check(made, state):
    assert not base & carried(made, state)

  check(recipe(), before)
  full = stepping.recipe(micro_batches=2)
  must_fail(check, full, stepping.state_of(full))


def test_memory_that_is_planned_is_of_adapters_and_one_base():
  mesh = make_mesh(MeshShape())
  found, full = (
    shards.totals(
      config, mesh, optimizer=recipe().optimizer, use_reference=True
    )
    for config in (CONFIG, BASE)
  )
  own = sum(x.size for x in jax.tree.leaves(adapters(updated()[0].params)))
  assert found["gradients"] == 4 * own
  assert found["optimizer state"] == 8 * own + 4  # two moments and a count
  assert found["parameters"] == full["parameters"] + 4 * own
  assert "reference model" not in found
  assert full["reference model"] == full["parameters"]


def test_reference_is_the_base_also_after_training():
  made = recipe(
    has_reference=True, terms=(*recipe().terms, stepping.KL), micro_batches=1
  )
  before, after = updated()
  context = jax.jit(
    lambda state: step.scoring_context(made, state, None, ROLLOUT).probes
  )
  score = jax.jit(scorer_of(BASE, base_of(before.params), 1.0))
  prompts = ROLLOUT.prompts
  expected = score(
    prompts.tokens, prompts.mask, ROLLOUT.tokens, stepping.MASK, None
  )
  mask = stepping.MASK
  for state in (before, after):
    found = context(state)
    close(found["ref_logprobs"][mask], expected["logprobs"][mask])
  # What is trained is another model by now.
  policy = jax.jit(scorer_of(CONFIG, after.params, 1.0))(
    prompts.tokens, prompts.mask, ROLLOUT.tokens, mask, None
  )
  must_fail(close, policy["logprobs"][mask], expected["logprobs"][mask])
  with pytest.raises(ValueError, match="give reference=None"):
    step.scoring_context(made, after, before.params, ROLLOUT)


def test_a_step_on_a_mesh_is_the_step_on_one_device():
  made = recipe(
    has_reference=True,
    terms=(*recipe().terms, stepping.KL),
    micro_batches=1,
    # Not Adam: it would turn a rounding near 0 into a whole step.
    optimizer=optax.sgd(0.1, momentum=0.9),
  )

  def verifier(rollout, key):
    del key
    sums = (rollout.tokens * rollout.completion_mask % 7).sum(-1)
    return Signals(outcome={"reward": sums / 8.0})

  def stepped(shape, devices):
    place = sharding.placement(
      step.abstract_state(made),
      *(CONFIG, made.optimizer, make_mesh(shape, jax.devices()[:devices])),
    )
    state = step.init_state(made, KEY, tiny.params(CONFIG))
    prompts = tiny.prompts(lengths=(5, 2, 3, 4))
    run = place.jit(
      lambda state, prompts: step.fused_step(
        made, verifier, state, None, prompts
      )[:2],
      in_shardings=(place.state, place.batch),
      out_shardings=(place.state, place.whole),
    )
    return jax.device_get(run(jax.device_put(state, place.state), prompts))

  (one, one_metrics), (many, many_metrics) = (
    stepped(MeshShape(), 1),
    stepped(MeshShape(data=2, fsdp=2, tensor=2), 8),
  )
  tree_close(many.params, one.params, rtol=1e-3, atol=1e-5)
  close(many_metrics["policy/ref_kl"], one_metrics["policy/ref_kl"], rtol=1e-3)
  assert one_metrics["policy/ref_kl"] > 1e-3
  assert changed(one.params, tiny.params(CONFIG)) > 1e-3


# The whole program.

_BINDINGS = (
  "STEPS=4",
  "SAVE_EVERY=2",
  "EVALUATE_EVERY=4",
  "LORA_RANK=2",
  "LEARNING_RATE=0.05",
  "train.train.keep=9",
  # A qwen3 model, then.
  "models.ModelConfig.scale_embeddings=False",
)


def arguments(folder, *extra):
  # A reference model, and a reward that an untrained policy gets as well.
  tiny_run = runs.argv("train", folder, *_BINDINGS, method="self_certainty")
  tiny_run.insert(1, "--gin_file=gin/models/lora.gin")
  return [*map(str, tiny_run), *extra]


def figures(folder):
  clock = ("time", "throughput")
  return [
    {k: v for k, v in row.items() if not k.startswith(clock)}
    for row in read_metrics(folder / "metrics.jsonl")
  ]


def test_resumed_run_is_the_uninterrupted_one_and_is_exported(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(runs.ROOT)
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  assert main.main(arguments(whole)) == 0
  config, _ = export.configured(whole)
  assert config.lora.rank == 2
  like = models.abstract_params(config)

  def at(folder, step):
    return restore_params(folder / "checkpoints", like, step)

  # As if it had been killed after its second step.
  shutil.copytree(whole, cut)
  shutil.rmtree(cut / "checkpoints" / "4")
  assert main.main(arguments(cut, "--resume")) == 0
  assert figures(cut) == figures(whole)
  same(at(cut, 4), at(whole, 4))
  # Something was learnt in between, and by the adapters alone.
  must_fail(same, adapters(at(whole, 2)), adapters(at(whole, 4)))
  same(*(models.without_adapters(config, at(whole, n))[1] for n in (2, 4)))
  # The first step's policy is the reference: it was not the last's.
  kl = [r["policy/ref_kl"] for r in figures(whole) if "policy/ref_kl" in r]
  assert abs(kl[0]) < 1e-6 < kl[-1]

  assert export.main([
    *(f"--run={whole}", f"--output={tmp_path / 'out'}", "--dtype=float32"),
    "--family=qwen3",
  ]) == 0  # fmt: skip
  fields = json.loads((tmp_path / "out" / "config.json").read_text())
  assert not [name for name in fields if "lora" in name]
  read_config, read = models.load_huggingface(tmp_path / "out")
  tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
  mask = jnp.ones(tokens.shape, bool)
  forward = jax.jit(models.forward, static_argnums=1)
  expected = forward(at(whole, 4), config, tokens, mask)
  close(forward(read, read_config, tokens, mask), expected, atol=2e-5)
  base_config, base = models.without_adapters(config, at(whole, 4))
  must_fail(close, forward(base, base_config, tokens, mask), expected)
