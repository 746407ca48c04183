"""Times how a GRPO step's cost grows along one axis; adds it to the figures.

  python scripts/bench_growth.py                        # every axis: half an hour
  python scripts/bench_growth.py --axis batch --axis length
  python scripts/make_performance_page.py               # the tables

Axes, each from a base of the step that scripts/bench_step.py times (11 M
parameters, prompts of 64 tokens, 128 new ones):

  batch    prompts in a batch, 8 responses each
  length   tokens of a response, 2 prompts x 4 responses
  model    parameters, 2 prompts x 4 responses of 64 tokens
  group    responses to each of 4 prompts
  chain    transforms in the chain of rewards, 256 responses

Every point but those of `chain` is a process of its own, bench_step.py with the
sizes as flags, so that none finds the others' memory. Beside each phase stands
its limit: the operations at the best rates of this machine, which are measured
first (a float32 matrix product and a sum over memory); where the figures have
better ones of the same machine these count, for all its axes. Each axis says on
which machine it was measured.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_common import figures_file, measured_on, positive

from rlvr import advantages, models, objectives, rewards
from rlvr import step as step_lib
from rlvr.infra.model_flops import forward_flops
from rlvr.infra.performance_page import add_figures
from rlvr.probes.compute import ProbeSettings
from rlvr.recipe import Recipe
from rlvr.sampling import Sampling
from rlvr.types import Prompts, Rollout, Signals

ROOT = pathlib.Path(__file__).resolve().parent.parent
PHASES = ("rollout", "score", "update")

BASE: dict[str, int] = {
  "vocab_size": 4096,
  "embed_dim": 384,
  "num_layers": 6,
  "num_heads": 6,
  "num_kv_heads": 2,
  "head_dim": 64,
  "mlp_dim": 1024,
  "num_prompts": 8,
  "group_size": 8,
  "prompt_len": 64,
  "new_tokens": 128,
}
# Widths of decoders from 1 M parameters to SmolLM2-135M's.
WIDTHS = (
  dict(vocab_size=1024, embed_dim=128, num_layers=4, num_heads=2, mlp_dim=384),
  dict(vocab_size=2048, embed_dim=256, num_layers=5, num_heads=4, mlp_dim=704),
  dict(),
  dict(vocab_size=8192, embed_dim=512, num_layers=10, num_heads=8)
  | dict(mlp_dim=1536),
  dict(vocab_size=49152, embed_dim=576, num_layers=30, num_heads=9)
  | dict(num_kv_heads=3, mlp_dim=1536),
)
SMALL = {"num_prompts": 2, "group_size": 4}
AXES: dict[str, list[dict[str, int]]] = {
  "batch": [{"num_prompts": n} for n in (2, 4, 8, 16, 32)],
  "length": [{**SMALL, "new_tokens": n} for n in (64, 256, 1024, 4096)],
  "model": [{**SMALL, "new_tokens": 64, **width} for width in WIDTHS],
  "group": [{"num_prompts": 4, "group_size": n} for n in (2, 4, 8, 16, 32)],
}
LINKS = (0, 1, 2, 4, 8, 16, 32)


def best(run: Callable[[], object], repeats: int) -> float:
  """Returns the least seconds of a call, after one that isn't counted."""
  jax.block_until_ready(run())
  least = float("inf")
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(run())
    least = min(least, time.perf_counter() - begin)
  return least


def machine() -> dict[str, float]:
  """Returns the best float32 FLOP/s and bytes/s that this machine shows."""
  product = jax.jit(jnp.matmul)
  rates = []
  for m, k, n in ((1024,) * 3, (2048,) * 3, (64, 384, 1024), (64, 384, 4096)):
    a, b = jnp.ones((m, k)), jnp.ones((k, n))
    seconds = best(functools.partial(product, a, b), 30)
    rates.append(2 * m * k * n / seconds)
  total = jax.jit(jnp.sum)
  moved = []
  for count in (1 << 27, 11 << 20):
    x = jnp.ones((count,), jnp.float32)
    moved.append(4 * count / best(functools.partial(total, x), 10))
  return {"flops": max(rates), "bytes": max(moved)}


def limits(sizes: dict[str, int], rates: dict[str, float]) -> dict[str, float]:
  """Returns the least seconds of each phase at the machine's best rates.

  Linear layers and attention are bounded apart and added, in decoding each by
  the slower of arithmetic and memory.
  """
  config = config_of(sizes)
  P, G = sizes["num_prompts"], sizes["group_size"]
  S, T, B = sizes["prompt_len"], sizes["new_tokens"], P * G

  def forward(length: int) -> int:
    return forward_flops(
      config,
      num_prompts=P,
      prompt_length=S,
      group_size=G,
      response_length=length,
    )

  prefill, whole = forward(0), forward(T)
  pair = 4 * config.num_layers * config.num_heads * config.head_dim
  attention = pair * B * (T * S + T * T / 2)
  # Bytes of the parameters in each token's step, and of keys and values.
  parameters = 4 * models.num_params(config)
  row = 8 * config.num_layers * config.num_kv_heads * config.head_dim
  read = row * B * (T * S + T * T / 2)
  decode = max(
    (whole - prefill - attention) / rates["flops"],
    T * parameters / rates["bytes"],
  ) + max(attention / rates["flops"], read / rates["bytes"])
  return {
    "rollout": prefill / rates["flops"] + decode,
    "score": whole / rates["flops"],
    # AdamW reads four arrays of the parameters' size and writes three.
    "update": 3 * whole / rates["flops"] + 7 * parameters / rates["bytes"],
  }


def config_of(sizes: dict[str, int]) -> models.ModelConfig:
  """Returns the decoder of the sizes."""
  shape = (
    *("vocab_size", "embed_dim", "num_layers", "num_heads"),
    *("num_kv_heads", "head_dim", "mlp_dim"),
  )
  return models.ModelConfig(
    **{k: sizes[k] for k in shape}, qk_norm=True, rope_theta=1e6
  )


def measured(sizes: dict[str, int], steps: int) -> dict[str, float]:
  """Returns bench_step.py's line for the sizes.

  Raises:
    RuntimeError: it failed.
  """
  responses = sizes["num_prompts"] * sizes["group_size"]
  tokens = responses * (sizes["prompt_len"] + sizes["new_tokens"])
  done = subprocess.run(
    [
      *(sys.executable, str(ROOT / "scripts" / "bench_step.py")),
      *(f"--{k}={v}" for k, v in sizes.items()),
      # About 3,000 tokens in a micro-batch.
      f"--micro_batches={micro_batches(sizes['num_prompts'], tokens)}",
      *("--warmup=1", f"--steps={steps}"),
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  if done.returncode:
    raise RuntimeError(f"bench_step.py with {sizes} failed:\n{done.stderr}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def micro_batches(num_prompts: int, tokens: int, about: int = 3072) -> int:
  """Returns in how many pieces of whole groups to cut the batch."""
  return max(
    n
    for n in range(1, num_prompts + 1)
    if num_prompts % n == 0 and (n == 1 or tokens / n >= about)
  )


def grown(axis: str, steps: int, rates: dict[str, float]) -> Iterator[dict]:
  """Gives the points of an axis as they come."""
  for change in AXES[axis]:
    sizes = {**BASE, **change}
    line = measured(sizes, steps)
    value = {
      "batch": sizes["num_prompts"] * sizes["group_size"],
      "length": sizes["new_tokens"],
      "model": line["parameters"],
      "group": sizes["group_size"],
    }[axis]
    yield {
      "value": value,
      **{k: line[f"{k}_s_median"] for k in PHASES},
      "limits": limits(sizes, rates),
      "peak_rss_mb": line["peak_rss_mb"],
    }


def fixed_of(axis: str) -> dict[str, int]:
  """Returns the sizes that all points of an axis share, for the page."""
  points = [{**BASE, **change} for change in AXES[axis]]
  names = ("num_prompts", "group_size", "prompt_len", "new_tokens")
  sizes = {k: points[0][k] for k in names}
  sizes["parameters"] = models.num_params(config_of(points[0]))
  varying = {k for p in points for k in p if p[k] != points[0][k]}
  if varying - set(names):
    varying.add("parameters")
  return {k: v for k, v in sizes.items() if k not in varying}


def one_machines_rates(
  file: pathlib.Path, machine: str, rates: dict[str, float]
) -> dict[str, float]:
  """Returns the best rates that a machine showed in this run or those before.

  What the file has of it is held against them too, so that the limits of all
  its axes are of the same rates.

  Args:
    file: figures; may not be there.
    machine: its name.
    rates: of this run.
  """
  text = file.read_text() if file.exists() else ""
  saved = json.loads(text) if text else {}

  def here(name: str) -> bool:
    own = saved.get(name, {}).get("machine", saved.get("machine"))
    return name in saved and own == machine

  names = [axis for axis in AXES if here(f"growth_{axis}")]
  if not names:
    return rates
  found = [saved[f"growth_{axis}"]["rates"] for axis in names]
  rates = {k: max([v, *(r[k] for r in found)]) for k, v in rates.items()}
  for axis in names:
    figures = saved[f"growth_{axis}"] | {"rates": rates}
    figures["fixed"] = fixed_of(axis)
    for change, point in zip(AXES[axis], figures["points"], strict=False):
      point["limits"] = limits({**BASE, **change}, rates)
    add_figures(file, f"growth_{axis}", figures)
  return rates


def links(count: int) -> list[rewards.Transform]:
  """Returns a chain's transforms on outcome and step rewards."""
  cycle = (
    lambda: rewards.log_sigmoid(reference=0.5, reward="even"),
    lambda: rewards.clip_steps(eta=0.5, reward="process"),
    lambda: rewards.delta_steps(reward="process"),
    lambda: rewards.clip(low=-5.0, high=5.0, reward="even"),
  )
  return [cycle[i % len(cycle)]() for i in range(count)]


def chain_batch() -> tuple[Rollout, Signals]:
  """Returns 256 responses of 128 tokens in 16 steps, and two rewards of each."""
  P, G, T, K = 32, 8, 128, 16
  B = P * G
  rng = np.random.default_rng(0)
  prompts = Prompts(
    tokens=jnp.zeros((P, 64), jnp.int32),
    mask=jnp.ones((P, 64), bool),
    answer_tokens=jnp.zeros((P, 1), jnp.int32),
    answer_mask=jnp.ones((P, 1), bool),
  )
  rollout = Rollout(
    prompts=prompts,
    tokens=jnp.zeros((B, T), jnp.int32),
    completion_mask=jnp.ones((B, T), bool),
    behavior_logprobs=jnp.zeros((B, T), jnp.float32),
    group=jnp.repeat(jnp.arange(P, dtype=jnp.int32), G),
    step_index=jnp.broadcast_to(
      jnp.arange(T, dtype=jnp.int32) * K // T, (B, T)
    ),
    finished=jnp.ones((B,), bool),
  )
  signals = Signals(
    outcome={"even": jnp.asarray(rng.random(B), jnp.float32)},
    step={"process": jnp.asarray(rng.random((B, K)), jnp.float32)},
  )
  return rollout, signals


def both_rewards() -> rewards.Transform:
  """Returns advantages of which both chained rewards are a part.

  What an estimator doesn't read XLA removes, with the transforms before it.
  """
  return advantages.token_leave_one_out(reward="process", outcome="even")


def chain_score(
  config: models.ModelConfig,
  count: int,
  *,
  estimator: rewards.Transform | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Returns `score_batch` with so many links, jitted, and its state's maker."""
  rollout, signals = chain_batch()
  recipe = Recipe(
    model=config,
    sampling=Sampling(
      max_tokens=rollout.tokens.shape[1],
      end_id=-1,
      pad_id=0,
      max_steps=signals.step["process"].shape[1],
    ),
    num_prompts=rollout.num_prompts,
    group_size=rollout.tokens.shape[0] // rollout.num_prompts,
    chain=rewards.chain(
      *links(count),
      rewards.min_form(reward="process"),
      estimator or both_rewards(),
    ),
    terms=(objectives.clipped_policy_gradient(clip_low=0.2, clip_high=0.2),),
    reduction=objectives.sequence_mean,
    optimizer=optax.sgd(1e-3),
    probe_settings=ProbeSettings(end_id=-1),
    total_steps=1,
    has_reference=False,
  )

  @jax.jit
  def run(state, rollout, signals):
    scores, chain_state, _ = step_lib.score_batch(
      recipe, state, None, rollout, signals
    )
    return scores.advantages, scores.metrics, chain_state

  make = functools.partial(step_lib.init_state, recipe, jax.random.key(1))
  return run, make


def check_reads(run: Callable[[Signals], Any], signals: Signals) -> None:
  """Raises RuntimeError where the advantages don't follow one of the rewards.

  Args:
    run: from signals to (advantages, ...).
    signals: with outcome and step rewards.
  """
  before = run(signals)[0]
  for kind in ("outcome", "step"):
    twice = jax.tree.map(lambda x: 2 * x, getattr(signals, kind))
    after = run(dataclasses.replace(signals, **{kind: twice}))[0]
    if bool(jnp.array_equal(before, after)):
      raise RuntimeError(
        f"the advantages don't depend on the {kind} reward"
        f" {', '.join(twice)}: its transforms were removed and would be timed as"
        " nothing; end the chain with an estimator that reads it"
      )


def chain_points(rounds: int) -> Iterator[dict]:
  """Gives the seconds of `score_batch` with chains of more and more links.

  The chains take turns, so that what disturbs the machine disturbs all of them.
  """
  config = config_of(BASE)
  params = models.init(config, jax.random.key(0))
  rollout, signals = chain_batch()
  calls = {}
  for count in LINKS:
    run, make_state = chain_score(config, count)
    score = functools.partial(run, make_state(params), rollout)
    check_reads(score, signals)
    calls[count] = functools.partial(score, signals)
  least = dict.fromkeys(LINKS, float("inf"))
  for _ in range(rounds):
    for count, call in calls.items():
      least[count] = min(least[count], best(call, 3))
  for count, seconds in least.items():
    yield {"value": count, "score": seconds}


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = (*AXES, "chain")
  parser.add_argument("--axis", action="append", choices=names)
  parser.add_argument(
    "--steps", type=positive(int), default=3, help="that are timed"
  )
  parser.add_argument(
    "--figures",
    type=figures_file,
    default=str(ROOT / "docs/performance.json"),
  )
  args = parser.parse_args(argv)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  rates = machine()
  origin = measured_on()
  print(
    f"{origin['machine']}: {rates['flops'] / 1e9:.1f} GFLOP/s,"
    f" {rates['bytes'] / 1e9:.1f} GB/s",
    flush=True,
  )
  rates = one_machines_rates(args.figures, origin["machine"], rates)
  for axis in args.axis or names:
    points = []
    found = (
      chain_points(500) if axis == "chain" else grown(axis, args.steps, rates)
    )
    for point in found:
      print(axis, json.dumps(point), flush=True)
      points.append(point)
      # As they come: the last ones take minutes.
      figures = {"rates": rates, "points": points} | origin
      if axis != "chain":
        figures["fixed"] = fixed_of(axis)
      add_figures(args.figures, f"growth_{axis}", figures)
  return 0


if __name__ == "__main__":
  sys.exit(main())
