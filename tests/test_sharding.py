"""The same numbers on one device and on every shape of mesh."""

import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlvr import models, sharding, step
from rlvr.infra.checkpoints import Checkpoints
from rlvr.meshes import MeshShape, Rules, make_mesh
from rlvr.sampling import Sampling, sample
from rlvr.types import Signals
from tests import stepping, tiny
from tests.compare import must_fail

# 8 responses on each of 8 devices; two updates of two pieces.
P, G, T, STEPS = 32, 2, 4, 3
CONFIG = tiny.config(num_heads=4, num_kv_heads=2)
GATHERED = Rules(embed=None)
LENGTHS = (5, 2, 3, 4, 1, 5, 2, 3) * (P // 8)
PROMPTS = jax.tree.map(np.asarray, tiny.prompts(lengths=LENGTHS))
SAMPLING = Sampling(
  max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD, rules=GATHERED
)
SHAPES = {
  "one": MeshShape(),
  "data": MeshShape(data=8),
  "fsdp": MeshShape(fsdp=8),
  "tensor": MeshShape(tensor=4),  # more than there are key and value heads
  "all": MeshShape(data=2, fsdp=2, tensor=2),
}
# Sums over devices in another order; Adam isn't used, as it would turn a
# rounding of a gradient near 0 into a whole step.
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6)


def recipe(**changes):
  return stepping.recipe(
    **{
      "model": CONFIG,
      "sampling": SAMPLING,
      "num_prompts": P,
      "group_size": G,
      "updates_per_batch": 2,
      "micro_batches": 2,
      "optimizer": optax.sgd(0.02, momentum=0.9),
      **changes,
    }
  )


def mesh_of(name):
  shape = SHAPES[name]
  return make_mesh(
    shape, jax.devices()[: math.prod(dataclasses.astuple(shape))]
  )


def place_of(name, made):
  return sharding.placement(
    step.abstract_state(made), made.model, made.optimizer, mesh_of(name)
  )


def first_state(name, made):
  # Fresh arrays: the state is donated.
  state = step.init_state(made, jax.random.key(7), tiny.params(made.model))
  return jax.device_put(state, place_of(name, made).state)


def verifier(rollout, key):
  del key
  sums = (rollout.tokens * rollout.completion_mask % 7).sum(-1)
  return Signals(outcome={"reward": sums / 8.0})


class Counted:
  """Counts what XLA compiles inside the block."""

  def __enter__(self):
    self.names = []
    jax.monitoring.register_event_duration_secs_listener(self._see)
    return self

  def _see(self, event, _, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
      self.names.append(kwargs)

  def __exit__(self, *_):
    jax.monitoring.unregister_event_duration_listener(self._see)


@functools.cache
def steps_on(name):
  """Returns the metrics and tokens of each step, the state, compilations."""
  made = recipe()
  place = place_of(name, made)
  run = place.jit(
    lambda state, prompts: step.fused_step(
      made, verifier, state, None, prompts
    ),
    donate_argnums=0,
    in_shardings=(place.state, place.batch),
    out_shardings=(place.state, place.whole, place.batch, place.batch, None),
  )
  state, out = first_state(name, made), []
  with Counted() as counted:
    for _ in range(STEPS):
      state, metrics, rollout, *_ = run(state, PROMPTS)
      out.append((jax.device_get(metrics), np.asarray(rollout.tokens)))
  return out, state, len(counted.names)


def same_steps(found, expected):
  for (a, a_tokens), (b, b_tokens) in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a_tokens, b_tokens)
    assert a.keys() == b.keys()
    for key, value in a.items():
      close(value, b[key], err_msg=key)


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "one"])
def test_the_same_run_on_every_mesh(name):
  expected, one_state, _ = steps_on("one")
  found, state, compilations = steps_on(name)
  same_steps(found, expected)
  stepping.tree_close(
    jax.device_get(state.params),
    jax.device_get(one_state.params),
    rtol=1e-3,
    atol=1e-5,
  )
  losses = [m["loss/total"] for m, _ in expected]
  assert len({f"{x:.3f}" for x in losses}) == STEPS, "each step is another"
  assert compilations == 1, "the state that comes out is the one that went in"
  # And it lies where it is said to.
  wanted = place_of(name, recipe()).state
  for leaf, place in zip(
    jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_the_split_step_on_a_mesh_gives_the_same_run():
  made, expected = recipe(), steps_on("one")[0]
  place = place_of("all", made)
  rows, whole = place.batch, place.whole
  draw = place.jit(
    lambda params, prompts, key, n: step.sample_batch(
      made, params, prompts, key, n
    ),
    in_shardings=(place.params, rows, whole, whole),
    out_shardings=rows,
  )
  learn = place.jit(
    lambda state, rollout, signals: step.score_and_update(
      made, state, None, rollout, signals
    ),
    donate_argnums=0,
    in_shardings=(place.state, rows, rows),
    out_shardings=(place.state, whole, None),
  )
  state, found = first_state("all", made), []
  for _ in range(STEPS):
    rollout = draw(state.params, PROMPTS, state.key, state.step)
    # As a host verifier gives them: NumPy.
    signals = jax.tree.map(np.asarray, verifier(rollout, None))
    state, metrics, _ = learn(state, rollout, signals)
    found.append((jax.device_get(metrics), np.asarray(rollout.tokens)))
  same_steps(found, expected)


def test_a_mean_of_the_devices_means_would_be_found_out():
  # Each device divides by its own tokens, and the means are averaged: wrong,
  # since responses differ in length.
  def mean_of_means(mask, weights):
    own = (mask * weights[:, None]).reshape(8, -1)
    return (own / own.sum(-1, keepdims=True) / 8).reshape(mask.shape)

  made, (expected, *_) = recipe(reduction=mean_of_means), steps_on("one")
  run = jax.jit(functools.partial(step.fused_step, made, verifier))
  _, metrics, rollout, *_ = run(first_state("one", made), None, PROMPTS)
  broken = [(jax.device_get(metrics), np.asarray(rollout.tokens))]
  must_fail(lambda: same_steps(broken, expected[:1]))
  # It is the mean that is found out, not what was sampled.
  np.testing.assert_array_equal(broken[0][1], expected[0][1])


def test_bytes_of_a_device_fall_as_the_mesh_grows():
  def held(name):
    _, state, _ = steps_on(name)
    device = jax.devices()[0]
    return sum(
      s.data.nbytes
      for leaf in jax.tree.leaves((state.params, state.opt_state))
      for s in leaf.addressable_shards
      if s.device == device
    )

  whole = held("one")
  assert held("data") == whole  # copies
  # All but the norms' 16 numbers of a head; 2 kv heads don't divide by 4.
  assert held("fsdp") == whole // 8
  assert whole / 4 < held("tensor") < whole / 2
  assert whole / 4 <= held("all") < whole / 3.5


@functools.cache
def decode_gathers(rules):
  """Returns the weights' shapes that the decoding loop gathers, as HLO."""
  place = place_of("fsdp", made := recipe())
  settings = dataclasses.replace(SAMPLING, rules=rules)
  run = place.jit(
    lambda params, prompts, key: sample(
      params, CONFIG, prompts, key, sampling=settings, group_size=G
    ),
    in_shardings=(place.params, place.batch, place.whole),
    out_shardings=place.batch,
  )
  params = first_state("fsdp", made).params
  lines = run.lower(params, PROMPTS, stepping.KEY).compile().as_text()
  mlp = f"[{CONFIG.embed_dim},{CONFIG.mlp_dim}]"
  return [
    line
    for line in lines.splitlines()
    if "all-gather(" in line and mlp in line and "while/body" in line
  ]


def test_sampling_gathers_the_parameters_once():
  # The prefill's scan over layers is a loop too, in both.
  once, each = decode_gathers(GATHERED), decode_gathers(None)
  assert len(once) < len(each)
  assert not once


def test_log_probs_in_chunks_on_a_mesh():
  mesh = mesh_of("all")
  params = tiny.params(CONFIG)
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(8, 6, CONFIG.embed_dim)).astype(np.float32)
  tokens = rng.integers(0, CONFIG.vocab_size, (8, 6)).astype(np.int32)

  def loss(params, chunk):
    found = models.token_statistics(
      params, CONFIG, hidden, tokens, temperature=0.7, chunk_tokens=chunk
    )
    return found.logprobs.sum() + found.entropies[:, 1].sum(), found

  def run(mesh, chunk):
    one = functools.partial(loss, chunk=chunk)
    function = jax.value_and_grad(one, has_aux=True)
    if mesh is not None:
      function = sharding.on_mesh(function, mesh)
    return jax.jit(function)(params)

  # A piece of 5 tokens doesn't divide a device's 12 either.
  stepping.tree_close(run(mesh, 5 * CONFIG.vocab_size // 2), run(None, 1 << 25))


@pytest.mark.parametrize("name", ["tensor", "one"])
def test_a_checkpoint_comes_back_on_another_mesh(tmp_path, name):
  made = recipe(optimizer=optax.adam(1e-3))
  state = first_state("all", made)
  place = place_of(name, made)
  with Checkpoints(
    tmp_path, keep=1, keep_best=0, best_metric="x", save_every=1
  ) as checkpoints:
    checkpoints.save(1, state, {})
    like = sharding.abstract(step.abstract_state(made), place.state)
    found, _ = checkpoints.restore(like)
  for a, b, where in zip(
    jax.tree.leaves(found),
    jax.tree.leaves(state),
    jax.tree.leaves(place.state),
    strict=True,
  ):
    assert a.sharding.is_equivalent_to(where, a.ndim)
    if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(
    *(jax.random.key_data(x.key) for x in (found, state))
  )


def test_optimizer_state_lies_as_its_parameters():
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.linear_schedule(0.0, 1.0, 3)),
    optax.adafactor(1e-3, min_dim_size_to_factor=2),
  )
  made = recipe(optimizer=optimizer)
  place = place_of("all", made)
  adam = place.state.opt_state[1][0]
  assert jax.tree.all(jax.tree.map(lambda a, b: a == b, adam.mu, place.params))
  cut = NamedSharding(place.mesh, PartitionSpec(None, "fsdp", "tensor"))
  assert adam.nu["layers"]["gate"] == cut
  whole = sharding.replicated(place.mesh)
  assert adam.count == whole
  assert place.state.key == place.state.step == whole
  # Factored: of another shape than the parameter.
  assert place.state.opt_state[2][0].v_row["layers"]["gate"] == whole


def test_prompts_that_do_not_divide():
  mesh = mesh_of("all")
  sharding.check_rows(8, "NUM_PROMPTS", mesh)
  with pytest.raises(ValueError, match=r"NUM_PROMPTS=6 .* multiple of 4"):
    sharding.check_rows(6, "NUM_PROMPTS", mesh)
