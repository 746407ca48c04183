"""Bytes on each device of one training step, as the mesh grows.

    python scripts/measure_shards.py

Compiles score and update for simulated CPU devices, without running them, and
prints what XLA's buffer assignment says, and what the program sends when every
response has its full length. Needs no accelerator; the parts that XLA fuses
elsewhere (softmax, attention) take less there. In brackets the least that a
device must hold and send, see `limits`.
"""

import argparse
import os
import sys

# Before JAX reads its flags.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import jax.numpy as jnp
import optax
from bench_common import figures_file, measured_on, positive

from rlvr import models, sharding, step
from rlvr.advantages import group_relative
from rlvr.infra.hlo import read_work
from rlvr.infra.performance_page import add_figures
from rlvr.meshes import MeshShape, make_mesh
from rlvr.objectives import clipped_policy_gradient, token_mean
from rlvr.probes.compute import ProbeSettings
from rlvr.rewards.algebra import chain
from rlvr.sampling import Sampling
from rlvr.types import Prompts, Rollout, Signals

_SHAPES = (
  (1, 1, 1),
  (2, 1, 1),
  (4, 1, 1),
  (8, 1, 1),
  (1, 2, 1),
  (1, 4, 1),
  (1, 8, 1),
  (1, 1, 2),
  (1, 1, 4),
  (1, 1, 8),
  (2, 2, 2),
)


def recipe_of(prompts: int, group_size: int, tokens: int) -> step.Recipe:
  """Returns a GRPO step of a small decoder with wide enough axes to cut."""
  return step.Recipe(
    model=models.ModelConfig(
      vocab_size=8192,
      embed_dim=256,
      num_layers=4,
      num_heads=8,
      num_kv_heads=8,
      head_dim=32,
      mlp_dim=1024,
      remat=True,
    ),
    sampling=Sampling(max_tokens=tokens, end_id=1, pad_id=0),
    num_prompts=prompts,
    group_size=group_size,
    chain=chain(group_relative(scale_by_std=False)),
    terms=(clipped_policy_gradient(clip_low=0.2, clip_high=0.2),),
    reduction=token_mean,
    optimizer=optax.adamw(1e-4),
    probe_settings=ProbeSettings(end_id=1),
    total_steps=1,
    has_reference=False,
  )


def compiled(recipe: step.Recipe, shape: tuple[int, int, int]):
  """Returns score and update, compiled for a mesh of the first devices."""
  count = shape[0] * shape[1] * shape[2]
  mesh = make_mesh(MeshShape(*shape), jax.devices()[:count])
  state = step.abstract_state(recipe)
  place = sharding.placement(state, recipe.model, recipe.optimizer, mesh)
  P, T = recipe.num_prompts, recipe.sampling.max_tokens
  B = P * recipe.group_size

  def array(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype)

  prompts = Prompts(
    tokens=array(jnp.int32, P, T),
    mask=array(jnp.bool_, P, T),
    answer_tokens=array(jnp.int32, P, 8),
    answer_mask=array(jnp.bool_, P, 8),
  )
  rollout = Rollout(
    prompts=prompts,
    tokens=array(jnp.int32, B, T),
    completion_mask=array(jnp.bool_, B, T),
    behavior_logprobs=array(jnp.float32, B, T),
    group=array(jnp.int32, B),
    step_index=array(jnp.int32, B, T),
    finished=array(jnp.bool_, B),
  )
  run = place.jit(
    lambda state, rollout, signals: step.score_and_update(
      recipe, state, None, rollout, signals
    )[:2],
    donate_argnums=0,
    in_shardings=(place.state, place.batch, place.batch),
    out_shardings=(place.state, place.whole),
  )
  signals = Signals(outcome={"reward": array(jnp.float32, B)})
  return run.lower(state, rollout, signals).compile()


def limits(
  recipe: step.Recipe, shape: tuple[int, int, int]
) -> dict[str, float]:
  """Returns the least bytes that a device must hold and send in a step.

  held: the state over fsdp x tensor devices.
  sent: over n = data x fsdp devices 2 (n - 1) / n of the gradient's bytes (an
    all-reduce; or each parameter gathered once and its gradient scattered), and
    over t = tensor devices 2 (t - 1) / t of each layer's activations of the
    responses, four times: attention and MLP, forward and backward.
  """
  data, fsdp, tensor = shape
  config, n = recipe.model, data * fsdp
  state = step.abstract_state(recipe)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  gradient = 4 * models.num_params(config) / tensor
  tokens = recipe.num_prompts * recipe.group_size * recipe.sampling.max_tokens
  layer = 4 * config.embed_dim * tokens / n
  return {
    "held": size / (fsdp * tensor),
    "sent": 2 * (n - 1) / n * gradient
    + 2 * (tensor - 1) / tensor * 4 * config.num_layers * layer,
  }


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  count = positive(int)
  parser.add_argument("--prompts", type=count, default=16)
  parser.add_argument("--group_size", type=count, default=4)
  parser.add_argument("--tokens", type=count, default=128)
  parser.add_argument("--figures", type=figures_file, help="JSON to add to")
  args = parser.parse_args(argv)
  most = max(data * fsdp for data, fsdp, _ in _SHAPES)
  if args.prompts % most:
    parser.error(
      f"--prompts={args.prompts} must be a multiple of {most}, the most devices"
      " over which prompts are cut"
    )
  recipe = recipe_of(args.prompts, args.group_size, args.tokens)
  print(
    f"{models.num_params(recipe.model):,} parameters, {args.prompts} prompts x"
    f" {args.group_size} responses x {args.tokens} tokens; MiB on each device\n"
  )
  print(
    "| data x fsdp x tensor | state and batch | temporaries | together | sent |"
  )
  print("|---|---|---|---|---|")
  lines = []
  fixed = {
    "num_prompts": args.prompts,
    "group_size": args.group_size,
    "prompt_len": args.tokens,
    "new_tokens": args.tokens,
    "parameters": models.num_params(recipe.model),
    **{k: getattr(recipe.model, k) for k in ("embed_dim", "num_layers")},
  }
  for shape in _SHAPES:
    program = compiled(recipe, shape)
    found = program.memory_analysis()
    sent = {
      kind: one.sent_bytes
      for kind, one in read_work(
        program.as_text(),
        num_devices=shape[0] * shape[1] * shape[2],
      ).collectives.items()
    }
    held, temporary = (
      n / 2**20
      for n in (found.argument_size_in_bytes, found.temp_size_in_bytes)
    )
    name = " x ".join(map(str, shape))
    least = limits(recipe, shape)
    print(
      f"| {name} | {held:.1f} ({least['held'] / 2**20:.1f}) | {temporary:.1f} |"
      f" {held + temporary:.1f} | {sum(sent.values()) / 2**20:.1f}"
      f" ({least['sent'] / 2**20:.1f}) |",
      flush=True,
    )
    lines.append(
      {
        "mesh": name,
        "held": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "sent": sent,
        "limits": least,
      }
    )
    if args.figures:
      kept = {"lines": lines, "fixed": fixed} | measured_on()
      add_figures(args.figures, "devices", kept)
  return 0


if __name__ == "__main__":
  sys.exit(main())
