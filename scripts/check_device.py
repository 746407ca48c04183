"""Checks on this machine's device what the tests show on simulated ones.

  python scripts/check_device.py          # a minute or two; exit code 1: a check failed

Kernels of attention for this platform against the plain one, values and
gradients; the sampler's log-probs against the trainer's; slots against all at
once; micro-batches and packing against neither; the same call twice. Each line
has what was found, what it may be, and a control: the same with something
broken, which must be past it. Random parameters, nothing is read or written.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlvr import advantages, models, objectives, rewards
from rlvr import step as step_lib
from rlvr.packing import PACKING
from rlvr.probes.compute import ProbeSettings
from rlvr.recipe import Recipe
from rlvr.sampling import Sampling, sample
from rlvr.types import Array, Prompts, Signals

CONFIG = models.ModelConfig(
  vocab_size=512,
  embed_dim=256,
  num_layers=4,
  num_heads=8,
  num_kv_heads=2,
  head_dim=64,
  mlp_dim=512,
  qk_norm=True,
  qkv_bias=True,
)
# Kernels besides the plain one, with the models that each is asked for.
KERNELS = {
  "tpu": ("splash", "xla"),
  "gpu": ("cudnn", "xla"),
  "cpu": ("xla",),
}
SHAPES: dict[str, dict[str, Any]] = {
  "grouped heads": {},
  "head size 128": {"head_dim": 128, "num_heads": 4},
  "window": {"layer_pattern": ("local", "global"), "sliding_window": 40},
}
P, G, S, T = 4, 4, 65, 191  # odd, and past a block of 128


class Checks:
  """Lines of a table, and whether all are as they should be."""

  def __init__(self):
    self.good = True
    print("| check | found | at most | with something broken | |")
    print("|---|---|---|---|---|")

  def add(self, name: str, found: float, most: float, control: float) -> None:
    """Adds a line: `found` may be `most`, `control` must be more."""
    good = found <= most < control
    self.good &= bool(good)
    verdict = "ok" if good else "FAILED"
    print(
      f"| {name} | {found:.3g} | {most:.3g} | {control:.3g} | {verdict} |",
      flush=True,
    )

  def note(self, name: str, found: float) -> None:
    """Adds a line that only tells."""
    print(f"| {name} | {found:.3g} | | | |", flush=True)


def prompts_of(seed: int) -> Prompts:
  """Returns P prompts, some of them padded."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, CONFIG.vocab_size, (P, S)).astype(np.int32)
  mask = np.arange(S) >= np.array([0, 20, 3, 50])[:, None]
  return Prompts(
    tokens=jnp.asarray(np.where(mask, tokens, 0)),
    mask=jnp.asarray(mask),
    answer_tokens=jnp.zeros((P, 1), jnp.int32),
    answer_mask=jnp.ones((P, 1), bool),
  )


def drawn(config: models.ModelConfig) -> Any:
  """Returns parameters with biases and norms that are neither 0 nor 1."""
  params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(1), 64))

  def one(path, x):
    name = jax.tree_util.keystr(path)
    if "norm" in name or "bias" in name:
      return x + 0.3 * jax.random.normal(next(keys), x.shape)
    return x

  return jax.tree_util.tree_map_with_path(one, params)


def distance(a: Any, b: Any) -> float:
  """Returns the norm of a - b in units of b's."""
  a, b = (jax.tree.map(lambda x: x.astype(jnp.float32), t) for t in (a, b))
  apart = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
  return float(apart / optax.tree.norm(b))


def check_kernels(checks: Checks, platform: str) -> None:
  """Values and gradients of each kernel against the plain one in float32."""
  prompts = prompts_of(0)
  rng = np.random.default_rng(1)
  tokens = jnp.asarray(rng.integers(2, CONFIG.vocab_size, (P * G, T)))
  lengths = jnp.asarray(rng.integers(1, T + 1, P * G))
  mask = jnp.arange(T)[None] < lengths[:, None]
  slope = jnp.asarray(rng.normal(size=(P * G, T)), jnp.float32)

  @functools.partial(jax.jit, static_argnums=1)
  def run(params, config, prompt_mask):
    def loss(params):
      hidden = models.forward_responses(
        params, config, prompts.tokens, prompt_mask, tokens, mask
      )
      found = models.token_statistics(
        params, config, hidden, tokens, temperature=1.0
      )
      values = jnp.where(mask, found.logprobs, 0.0)
      return (slope * values).sum(), values

    (_, values), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return values, grads

  for shape, change in SHAPES.items():
    exact = dataclasses.replace(CONFIG, **change)
    params = drawn(exact)
    with jax.default_matmul_precision("highest"):
      truth = run(params, exact, prompts.mask)
    half = dataclasses.replace(exact, compute_dtype="bfloat16")
    plain = run(params, half, prompts.mask)
    for kernel in KERNELS.get(platform, KERNELS["cpu"]):
      config = dataclasses.replace(half, attention=kernel)
      found = run(params, config, prompts.mask)
      wrong = run(params, config, jnp.ones_like(prompts.mask))
      for what, i in (("values", 0), ("gradients", 1)):
        checks.add(
          f"{kernel}, {shape}: error of {what} in bfloat16; 1.5 of plain's",
          distance(found[i], truth[i]),
          1.5 * distance(plain[i], truth[i]),
          distance(wrong[i], truth[i]),
        )


def rollout_of(params, config, prompts, *, slots=0, seed=2, ids=None):
  """Returns responses of random lengths."""
  limits = jax.random.randint(jax.random.key(3), (P * G,), 1, T + 1)
  settings = Sampling(max_tokens=T, end_id=-1, pad_id=0, slots=slots)
  return jax.jit(
    lambda params: sample(
      params,
      config,
      prompts,
      jax.random.key(seed),
      sampling=settings,
      group_size=G,
      limits=limits,
      response_ids=ids,
    )
  )(params)


def sampler_error(params, config, prompts, change: float = 0.0) -> float:
  """Returns the largest |sampler's log-prob - trainer's|.

  Args:
    params: the parameters that are sampled with.
    config: the model.
    prompts: prompts.
    change: what the trainer's parameters are multiplied by, less 1.
  """
  rollout = rollout_of(params, config, prompts)
  trained = jax.tree.map(lambda x: x * (1 + change), params)

  @jax.jit
  def logprobs(params):
    hidden = models.forward_responses(
      params,
      config,
      prompts.tokens,
      prompts.mask,
      rollout.tokens,
      rollout.completion_mask,
    )
    return models.token_statistics(
      params, config, hidden, rollout.tokens, temperature=1.0
    ).logprobs

  apart = jnp.abs(logprobs(trained) - rollout.behavior_logprobs)
  return float(jnp.where(rollout.completion_mask, apart, 0).max())


def check_sampler(checks: Checks) -> None:
  """Log-probs against the trainer's, slots against all at once."""
  prompts, params = prompts_of(0), drawn(CONFIG)
  half = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
  with jax.default_matmul_precision("highest"):
    checks.add(
      "sampler against trainer, float32, nats",
      sampler_error(params, CONFIG, prompts),
      1e-4,
      sampler_error(params, CONFIG, prompts, 1e-3),
    )
    whole = rollout_of(params, CONFIG, prompts).tokens
    same = lambda x: float((x.tokens == whole).all(-1).mean())  # noqa: E731
    checks.add(
      "responses that 4 slots give other tokens, share; 1 in 16 may tie",
      1 - same(rollout_of(params, CONFIG, prompts, slots=4)),
      1 / 16,
      1 - same(rollout_of(params, CONFIG, prompts, slots=4, seed=4)),
    )
    again = rollout_of(params, CONFIG, prompts)
    checks.add(
      "the same call twice: share of tokens that differ",
      float((again.tokens != whole).mean()),
      0.0,
      float(
        (rollout_of(params, CONFIG, prompts, seed=4).tokens != whole).mean()
      ),
    )
  checks.note(
    "sampler against trainer, float32 at the device's default precision",
    sampler_error(params, CONFIG, prompts),
  )
  checks.note(
    "sampler against trainer, bfloat16", sampler_error(params, half, prompts)
  )


def check_update(checks: Checks) -> None:
  """One update cut in pieces, packed or not, against one piece."""
  prompts, params = prompts_of(0), drawn(CONFIG)
  rollout = rollout_of(params, CONFIG, prompts)
  outcome = jnp.asarray(np.random.default_rng(5).random(P * G), jnp.float32)

  def change(outcome: Array, **settings: Any) -> Any:
    recipe = Recipe(
      model=CONFIG,
      sampling=Sampling(max_tokens=T, end_id=-1, pad_id=0),
      num_prompts=P,
      group_size=G,
      chain=rewards.chain(
        advantages.group_relative(scale_by_std=True, reward="score")
      ),
      terms=(
        objectives.clipped_policy_gradient(clip_low=0.2, clip_high=0.2),
        objectives.kl_penalty(weight=0.05, estimator="k3"),
      ),
      reduction=objectives.token_mean,
      optimizer=optax.sgd(1.0),
      probe_settings=ProbeSettings(end_id=-1),
      total_steps=10,
      has_reference=True,
      **settings,
    )
    reference = jax.tree.map(lambda x: x * 1.01, params)

    @jax.jit
    def step(params):
      state = step_lib.init_state(recipe, jax.random.key(0), params)
      signals = Signals(outcome={"score": outcome})
      new, _, _ = step_lib.score_and_update(
        recipe, state, reference, rollout, signals
      )
      return jax.tree.map(jnp.subtract, new.params, params)

    return step(params)

  with jax.default_matmul_precision("highest"):
    one = change(outcome, packing=None)
    broken = change(outcome.at[0].add(0.1), packing=None)
    cuts: dict[str, dict[str, Any]] = {
      "4 micro-batches": {"micro_batches": 4, "packing": None},
      "packed": {"packing": dataclasses.replace(PACKING, min_tokens=128)},
    }
    for name, settings in cuts.items():
      checks.add(
        f"{name}: error of an update",
        distance(change(outcome, **settings), one),
        1e-4,
        distance(broken, one),
      )


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.parse_args(argv)
  device = jax.devices()[0]
  print(f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}\n")
  checks = Checks()
  parts: tuple[Callable[..., None], ...] = (
    lambda checks: check_kernels(checks, device.platform),
    check_sampler,
    check_update,
  )
  for part in parts:
    part(checks)
  return 0 if checks.good else 1


if __name__ == "__main__":
  sys.exit(main())
