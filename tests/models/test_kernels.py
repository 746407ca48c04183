"""Every kernel of attention against the plain one, and who chooses it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from rlvr.meshes import MeshShape, make_mesh, on_mesh
from rlvr.models import kernels, kinds, splash
from rlvr.models.rope import positions_of
from tests import tiny
from tests.compare import must_fail

# Sums over up to 600 keys, in another order.
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)

P, G, H, K, D = 2, 2, 4, 2, 6
# What changes, kernel, and the lengths of prompts and responses. Those beyond
# 128 are several blocks of the kernel: 384 is three, and 5 and 7 are padding
# nearly all through.
SHORT, LONG = (5, 7), (70, 300)
CASES = {
  "causal": ({}, SHORT),
  "scaled": ({"query_scale": 0.9}, SHORT),
  "capped": ({"attention_softcap": 0.7}, SHORT),
  "window": ({"layer_pattern": ("local",), "sliding_window": 3}, SHORT),
  "both_kinds": (
    {"layer_pattern": ("local", "global"), "sliding_window": 4},
    SHORT,
  ),
  "all_blocks": (
    {
      "layer_pattern": ("local",),
      "sliding_window": 90,
      "attention_softcap": 0.7,
    },
    LONG,
  ),
}
RUNS = [
  *(("splash_interpret", case) for case in CASES),
  *(("xla", case) for case in ("causal", "scaled", "both_kinds")),
]


def config_of(attention, **changes):
  return tiny.config(head_dim=D, attention=attention, **changes)


@functools.cache
def inputs(S, T):
  """Queries, keys and values of prompts and of responses, and their masks."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  prompts = draw(P, S, H, D), draw(P, S, K, D), draw(P, S, K, D)
  own = draw(P * G, T, H, D), draw(P * G, T, K, D), draw(P * G, T, K, D)
  prompt_mask = np.arange(S) >= np.array([0, S // 2])[:, None]
  lengths = np.array([T, T // 2, T - 1, 1])
  return prompts, own, prompt_mask, np.arange(T) < lengths[:, None]


@functools.cache
def run(attention, case, *, group=False, wrong=""):
  """Returns outputs on tokens, and gradients of all queries, keys, values.

  Args:
    attention: which kernel.
    case: of `CASES`.
    group: the prompts' keys once for each response, as with a `group`.
    wrong: what is broken, for the negative controls.
  """
  changes, (S, T) = CASES[case]
  config = config_of(attention, **changes)
  prompts, own, prompt_mask, mask = inputs(S, T)
  kernel = kernels.choose(config)
  seen = prompt_mask | (wrong == "padding")
  window = "sliding_window"
  if wrong == "window":
    config = config_of(attention, **(changes | {window: changes[window] + 1}))

  def both(prompts, own, is_local):
    q, k, v = prompts
    at = positions_of(jnp.asarray(prompt_mask))
    causal = jnp.tril(jnp.ones((S, S), bool))[None] & seen[:, None]
    masks = kinds.masks_by_kind(config, causal, at, at, S)
    first = kernel.sequences(config, q, k, v, masks, seen, is_local)
    shared_mask = jnp.asarray(seen)
    if group:
      k, v, shared_mask = (jnp.repeat(x, G, 0) for x in (k, v, shared_mask))
    steps = jnp.arange(T, dtype=jnp.int32)[None]
    causal = jnp.tril(jnp.ones((T, T), bool))[None]
    second = kernel.responses(
      config,
      own[0],
      k,
      v,
      kinds.prompt_masks_by_kind(config, shared_mask, steps, S + T),
      shared_mask,
      own[1],
      own[2],
      kinds.masks_by_kind(config, causal, steps, steps, T),
      is_local,
    )
    # Only tokens count: what padding gets differs by kernel.
    return (
      jnp.where(prompt_mask[..., None, None], first, 0),
      jnp.where(mask[..., None, None], second, 0),
    )

  rng = np.random.default_rng(1)
  slopes = [rng.normal(size=x[0].shape) for x in (prompts, own)]

  @jax.jit
  def out_and_gradients(prompts, own, is_local):
    def total(prompts, own):
      out = both(prompts, own, is_local)
      return sum((s * x).sum() for s, x in zip(slopes, out, strict=True)), out

    gradients, out = jax.grad(total, argnums=(0, 1), has_aux=True)(prompts, own)
    return out, gradients

  flags = [None]
  if len(set(config.layer_kinds)) > 1:
    flags = [jnp.array(True), jnp.array(False)]
  return [
    jax.tree.map(np.asarray, out_and_gradients(prompts, own, flag))
    for flag in flags
  ]


def same(found, expected):
  jax.tree.map(close, found, expected)


@pytest.mark.parity
@pytest.mark.parametrize(("attention", "case"), RUNS)
def test_values_and_gradients_are_the_plain_ones(attention, case):
  same(run(attention, case), run("plain", case))


@pytest.mark.parametrize("case", ["causal", "both_kinds", "all_blocks"])
def test_plain_attention_in_blocks_is_that_of_whole_sequences(
  case, monkeypatch
):
  size = 2 if CASES[case][1] == SHORT else 64
  with monkeypatch.context() as patch:
    patch.setattr(kernels, "_BLOCKS", 1)
    whole = run.__wrapped__("plain", case)
  monkeypatch.setattr(kernels, "_QUERIES", size)
  assert len(kernels.causal_blocks(CASES[case][1][1])) > 3
  same(run.__wrapped__("plain", case), whole)
  wrong = "padding" if case == "causal" else "window"
  must_fail(same, run.__wrapped__("plain", case, wrong=wrong), whole)


def test_blocks_cover_a_sequence_once():
  for length in (1, 255, 256, 257, 1000, 2048, 2049, 5000):
    rows = [i for b in kernels.causal_blocks(length) for i in range(length)[b]]
    assert rows == list(range(length))
    assert len(kernels.causal_blocks(length)) <= 8
  assert kernels.causal_blocks(256) == [slice(0, 256)]


def test_a_gathered_prompt_is_the_shared_one():
  same(
    run("splash_interpret", "causal", group=True)[0][0],
    run("plain", "causal")[0][0],
  )


@pytest.mark.parametrize(
  ("wrong", "case"), [("padding", "causal"), ("window", "window")]
)
def test_a_wrong_mask_shows(wrong, case):
  broken = run("splash_interpret", case, wrong=wrong)
  must_fail(same, broken, run("plain", case))


@pytest.mark.parametrize("case", ["scaled", "capped"])
def test_scale_and_soft_cap_count(case):
  must_fail(same, run("splash_interpret", case), run("plain", "causal"))


def test_kinds_of_layers_differ():
  local, whole = run("splash_interpret", "both_kinds")
  must_fail(same, local, whole)


P_TOKENS = tiny.prompts()
MASK = np.arange(4) < np.array([4, 2, 1, 3, 4, 1])[:, None]
TOKENS = (np.random.default_rng(3).integers(1, 20, MASK.shape) * MASK).astype(
  np.int32
)


@functools.cache
def of_model(attention, mesh=None, **changes):
  """Returns hidden states on tokens, and the gradient of the parameters."""
  config = tiny.config(attention=attention, remat=True, **changes)
  prompts, mask, tokens = P_TOKENS, MASK, TOKENS
  if mesh is not None:  # as many prompts as divide
    prompts = jax.tree.map(lambda x: x[:2], prompts)
    mask, tokens = mask[:4], tokens[:4]
  slope = np.random.default_rng(0).normal(size=(*mask.shape, 16))

  def total(params, prompt_tokens, prompt_mask, tokens):
    hidden = models.forward_responses(
      params, config, prompt_tokens, prompt_mask, tokens, mask
    )
    hidden = jnp.where(mask[..., None], hidden, 0)
    return (slope * hidden).sum(), hidden

  function = jax.grad(total, has_aux=True)
  if mesh is not None:
    devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
    function = on_mesh(function, make_mesh(mesh, devices))
  out = jax.jit(function)(
    tiny.params(config), prompts.tokens, prompts.mask, tokens
  )
  return jax.tree.map(np.asarray, out)


MIXED = {
  "layer_pattern": ("local", "global"),
  "sliding_window": 3,
  "attention_softcap": 0.7,
}


@pytest.mark.parity
def test_the_model_is_the_same():
  found = of_model("splash_interpret", **MIXED)
  same(found, of_model("plain", **MIXED))
  must_fail(same, found, of_model("plain"))


@pytest.mark.parametrize(
  "mesh",
  [
    MeshShape(data=2, tensor=2),
    MeshShape(tensor=4),  # of two key heads
  ],
)
def test_on_a_mesh_each_device_has_its_rows_and_heads(mesh):
  found = of_model("splash_interpret", mesh=mesh)
  same(found, of_model("plain", mesh=MeshShape()))


def test_lengths_and_blocks_by_hand():
  assert [splash.up_to_lanes(n) for n in (1, 128, 129)] == [128, 128, 256]


def test_the_platform_chooses():
  auto = tiny.config(attention="auto")
  low = tiny.config(attention="auto", compute_dtype="bfloat16", head_dim=64)
  capped = tiny.config(attention="auto", attention_softcap=2.0)
  chosen = {
    (platform, name): models.for_platform(config, platform).attention
    for platform in ("cpu", "tpu", "gpu")
    for name, config in (("f32", auto), ("bf16", low), ("capped", capped))
  }
  assert chosen == {
    ("cpu", "f32"): "plain",
    ("cpu", "bf16"): "plain",
    ("cpu", "capped"): "plain",
    ("tpu", "f32"): "splash",
    ("tpu", "bf16"): "splash",
    ("tpu", "capped"): "splash",
    ("gpu", "f32"): "plain",
    ("gpu", "bf16"): "cudnn",
    ("gpu", "capped"): "plain",
  }
  named = tiny.config(attention="xla")
  assert models.for_platform(named, "tpu") is named
  with pytest.raises(ValueError, match=r"attention='auto'.*for_platform"):
    kernels.choose(auto)


def test_cudnn_asks_for_cudnn():
  # Nothing of it runs here; what is asked for does not fall back to another.
  config = tiny.config(attention="cudnn", compute_dtype="bfloat16", head_dim=8)
  with pytest.raises(RuntimeError, match="cuDNN"):
    jax.eval_shape(
      functools.partial(models.forward, config=config),
      models.abstract_params(config),
      tokens=P_TOKENS.tokens,
      mask=P_TOKENS.mask,
    )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"attention": "flash"}, r"attention='flash': give one of"),
    ({"attention": "xla", "attention_softcap": 2.0}, r"'xla'.*softcap=2\.0"),
    ({"attention": "cudnn"}, r"'cudnn' needs compute_dtype='bfloat16'"),
    (
      {"attention": "cudnn", "compute_dtype": "bfloat16", "head_dim": 4},
      r"'cudnn' takes a head_dim .* not 4",
    ),
  ],
)
def test_what_a_kernel_lacks_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny.config(**changes)


def test_what_a_run_asks_for_goes_before_the_model():
  named = tiny.config(attention="xla")
  assert models.for_platform(named, "tpu", "auto").attention == "splash"
  assert models.for_platform(named, "tpu", "plain").attention == "plain"
  capped = tiny.config(attention_softcap=2.0)
  with pytest.raises(ValueError, match=r"'xla' has no soft-cap"):
    models.for_platform(capped, "cpu", "xla")


def test_decoding_is_unrolled_on_gpus():
  chosen = {p: models.unroll_sampling(p) for p in ("cpu", "tpu", "gpu", "cuda")}
  assert chosen == {"cpu": None, "tpu": None, "gpu": True, "cuda": True}
  for platform in ("gpu", "tpu"):
    for asked in (True, False):
      assert models.unroll_sampling(platform, asked) is asked
