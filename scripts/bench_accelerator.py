"""Times prefill, decoding, scoring and update on an accelerator; one process.

  python scripts/bench_accelerator.py --model=gin/models/qwen2_5_0_5b.gin \
    --peak_tflops=989 --peak_gbs=3350 --axis=batch --axis=length
  python scripts/make_performance_page.py              # the tables

The base is --num_prompts x --group_size responses of --new_tokens behind prompts
of --prompt_len, random parameters, every response at its full length; GRPO with
a reference model and AdamW, float32 parameters, the rest as the model's file
says (--attention changes it; decoding has its layers unrolled unless --scan).
Several --model and --attention give a base each. An axis adds points around the
first base; `slots` times skewed lengths as scripts/bench_slots.py does.

All programs are compiled first, several at a time, then timed one by one: the
median of --repeats after one that isn't counted. Figures:

  prefill, score, update   model FLOPs (rlvr.infra.model_flops) of them over
                           seconds and --peak_tflops; recomputation counts nothing
  decode                   the least seconds in which memory can be read once for
                           each token (parameters and keys and values, as they are
                           kept) or the arithmetic done, over seconds

Peaks are the maker's of all devices: H100 SXM 989 and 3350, v5e 197 and 819.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gin
from rlvr import models
from rlvr import step as step_lib
from rlvr.infra.performance_page import add_figures
from rlvr.models import prefill
from rlvr.models.precision import Precision, sampling_params
from rlvr.recipe import Recipe
from rlvr.types import Signals

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bench_slots
import bench_step
from bench_common import figures_file, positive

AXES = ("batch", "length", "group", "slots")
FACTORS = {
  "batch": (0.25, 0.5, 1, 2, 4),
  "length": (0.25, 0.5, 1, 2, 4),
  "group": (0.25, 0.5, 1, 2, 4),
}
FIELDS = {
  "batch": "num_prompts",
  "length": "new_tokens",
  "group": "group_size",
}


def model_of(file: pathlib.Path) -> models.ModelConfig:
  """Returns the model that a file of gin/models describes.

  Raises:
    ValueError: it describes none.
  """
  gin.clear_config()
  try:
    gin.parse_config_file(str(file))
    found = gin.query_parameter("%MODEL")
    return found.scoped_configurable_fn()
  # Gin raises whatever the file's imports and bindings do.
  except Exception as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"{file} describes no model ({reason}): give one of gin/models/"
    ) from error


@dataclasses.dataclass
class Variant:
  """A model with a kernel, and what was found of it."""

  name: str
  config: models.ModelConfig
  found: dict[str, Any]


def variant_of(file: pathlib.Path, attention: str, args) -> Variant:
  """Returns a model with a kernel of attention, nothing found yet."""
  config = dataclasses.replace(
    model_of(file),
    attention=attention,
    **({"remat": False} if args.no_remat else {}),
  )
  config = models.for_platform(config, jax.devices()[0].platform)
  found = {
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "model": file.stem,
    "parameters": models.num_params(config),
    "attention": config.attention,
    "unrolled": not args.scan,
    "remat": config.remat,
    "weights": args.weights,
    "cache": args.cache,
    "peak_tflops": args.peak_tflops,
    "peak_gbs": args.peak_gbs,
    "points": {},
  }
  name = f"accelerator/{file.stem}/{config.attention}"
  if args.scan:
    name += "/scanned"
  if args.weights or args.cache:
    name += f"/{args.weights or ''}-{args.cache or ''}"
  return Variant(name, config, found)


@dataclasses.dataclass
class Point:
  """Programs of one workload, compiled."""

  workload: dict[str, Any]
  programs: dict[str, Any]
  compile_s: dict[str, float]


def abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def pieces_of(workload: dict[str, Any], about: int) -> int:
  """Returns micro-batches of about so many tokens, of whole groups."""
  P, G = workload["num_prompts"], workload["group_size"]
  tokens = P * G * (workload["prompt_len"] + workload["new_tokens"])
  wanted = max(1, round(tokens / about))
  return min(
    (n for n in range(1, P + 1) if P % n == 0), key=lambda n: abs(n - wanted)
  )


def recipe_of(config, workload, args) -> Recipe:
  """Returns bench_step.py's recipe at the precision given."""
  settings = argparse.Namespace(
    micro_batches=pieces_of(workload, args.piece_tokens)
  )
  recipe = bench_step.recipe_of(config, workload, -1, 0, settings)
  precision = Precision(
    weights=args.weights,
    cache=args.cache,
    allow_uncorrected=True,  # time is what is asked
  )
  sampling = dataclasses.replace(
    recipe.sampling, precision=precision, unroll_layers=not args.scan
  )
  return dataclasses.replace(recipe, sampling=sampling)


def lower(config, workload, args) -> dict[str, Any]:
  """Returns the lowered programs of one workload, which are then compiled."""
  recipe = recipe_of(config, workload, args)
  P, S = workload["num_prompts"], workload["prompt_len"]
  params = models.abstract_params(config)
  state = jax.eval_shape(
    functools.partial(step_lib.init_state, recipe), jax.random.key(0), params
  )
  prompts = abstract(bench_step.prompt_batch([[0] * S] * P, S, 0))
  first = jax.jit(functools.partial(prefill_only, config))
  draw = jax.jit(functools.partial(step_lib.sample_batch, recipe))
  score = jax.jit(functools.partial(step_lib.score_batch, recipe))
  update = jax.jit(functools.partial(step_lib.update, recipe), donate_argnums=0)
  number = jax.ShapeDtypeStruct((), jnp.int32)
  drawing = (params, prompts, state.key, number)
  rollout = jax.eval_shape(draw, *drawing)
  even = jax.ShapeDtypeStruct((rollout.tokens.shape[0],), jnp.float32)
  signals = Signals(outcome={"even": even})
  scoring = (state, params, rollout, signals)
  scores, _, probes = jax.eval_shape(score, *scoring)
  return {
    "prefill": first.lower(params, prompts),
    "rollout": draw.lower(*drawing),
    "score": score.lower(*scoring),
    "update": update.lower(state, rollout, scores, probes),
  }


def prefill_only(config, params, prompts):
  """Returns something of the prompts' keys, values and hidden states."""
  params = models.compute_params(params, config)
  return prefill(params, config, prompts.tokens, prompts.mask)


def compiled(lowered: dict[str, Any], pool) -> dict[str, Any]:
  """Returns futures of (program, seconds)."""

  def one(program):
    begin = time.perf_counter()
    return program.compile(), time.perf_counter() - begin

  return {name: pool.submit(one, x) for name, x in lowered.items()}


def timed(run, repeats: int):
  """Returns the median seconds of `run` after one more, and its last result."""
  out = jax.block_until_ready(run())
  found = []
  for _ in range(repeats):
    begin = time.perf_counter()
    out = jax.block_until_ready(run())
    found.append(time.perf_counter() - begin)
  return statistics.median(found), out


def measure(config, point: Point, args) -> dict[str, Any]:
  """Returns a point's seconds and shares."""
  work, programs = point.workload, point.programs
  P, S = work["num_prompts"], work["prompt_len"]
  B = P * work["group_size"]
  recipe = recipe_of(config, work, args)
  params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(0))
  reference = jax.tree.map(jnp.copy, params)
  make_state = jax.jit(functools.partial(step_lib.init_state, recipe))
  carry = [make_state(jax.random.key(1), params)]  # donated in each update
  del params
  rng = np.random.default_rng(0)
  rows = rng.integers(0, config.vocab_size, (P, S)).tolist()
  prompts = bench_step.prompt_batch(rows, S, 0)
  seconds = {}
  seconds["prefill"], _ = timed(
    lambda: programs["prefill"](carry[0].params, prompts), args.repeats
  )
  seconds["rollout"], rollout = timed(
    lambda: programs["rollout"](
      carry[0].params, prompts, carry[0].key, np.int32(0)
    ),
    args.repeats,
  )
  even = jnp.asarray((np.asarray(rollout.tokens) % 2 == 0).mean(-1))
  signals = Signals(outcome={"even": even.astype(jnp.float32)})
  seconds["score"], (scores, _, probes) = timed(
    lambda: programs["score"](carry[0], reference, rollout, signals),
    args.repeats,
  )

  def step():
    carry[0], metrics = programs["update"](carry[0], rollout, scores, probes)
    return metrics

  seconds["update"], metrics = timed(step, args.repeats)
  if not np.isfinite(float(metrics["loss/total"])):
    raise ValueError(f"the loss is not finite: {metrics}")
  error = float(
    jnp.abs(probes["ref_logprobs"] - rollout.behavior_logprobs).max()
  )
  line = {
    "workload": {k: work[k] for k in sorted(SIZES)},
    "responses": B,
    "micro_batches": recipe.micro_batches,
    "seconds": seconds,
    "compile_s": point.compile_s,
    "sampler_trainer_error": error,
  }
  memory = jax.local_devices()[0].memory_stats() or {}
  line["peak_bytes"] = memory.get("peak_bytes_in_use")
  return line | shares(config, work, seconds, args)


SIZES = ("num_prompts", "group_size", "prompt_len", "new_tokens")


def shares(config, work, seconds, args) -> dict[str, Any]:
  """Returns each phase's share of the peak, None where it isn't given."""
  P, G, S, T = (work[k] for k in SIZES)
  B = P * G
  whole = bench_step.model_flops(config, work)
  prompts = bench_step.model_flops(config, work | {"new_tokens": 0})["rollout"]
  decode_s = max(seconds["rollout"] - seconds["prefill"], 1e-9)
  precision = Precision(weights=args.weights, cache=args.cache)
  kept = jax.eval_shape(
    lambda: sampling_params(
      models.init(config, jax.random.key(0)), config, precision
    )
  )
  # A prompt's keys are read once for its group.
  read = precision.cache_bytes(config) * (P * T * S + B * T * T / 2)
  read += T * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
  flops, bandwidth = args.peak_tflops, args.peak_gbs
  out: dict[str, Any] = {"decode_s": decode_s, "tokens_per_s": B * T / decode_s}
  out["decode_read_gb"] = read / 1e9
  if flops:
    peak = flops * 1e12
    out["prefill_share"] = prompts / peak / seconds["prefill"]
    out["score_share"] = whole["score"] / peak / seconds["score"]
    out["update_share"] = whole["update"] / peak / seconds["update"]
    arithmetic = (whole["rollout"] - prompts) / peak
    out["decode_flops_share"] = arithmetic / decode_s
    if bandwidth:
      least = max(read / (bandwidth * 1e9), arithmetic)
      out["decode_share"] = least / decode_s
  return out


def skewed(config, args) -> dict[str, Any]:
  """Returns the seconds of skewed lengths through slots and otherwise."""
  given = argparse.Namespace(
    seed=0,
    mean=args.new_tokens / 8,
    sigma=1.0,
    cap=args.new_tokens,
    responses=4 * args.num_prompts * args.group_size,
  )
  params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(0))
  return bench_slots.compare(
    params,
    dataclasses.replace(config, unroll_layers=not args.scan),
    bench_slots.lengths_of(given),
    slots=args.num_prompts * args.group_size,
    group_size=args.group_size,
    prompt_len=args.prompt_len,
    cap=given.cap,
    repeats=args.repeats,
  )


def points_of(args) -> dict[str, dict[str, Any]]:
  """Returns the workloads by axis and value, the base under "base"."""
  base = bench_step.WORKLOAD | {k: getattr(args, k) for k in SIZES}
  out = {"base": base}
  for axis in args.axis or ():
    if axis == "slots":
      continue
    field = FIELDS[axis]
    for factor in FACTORS[axis]:
      value = int(base[field] * factor)
      if value >= 1 and value != base[field] and factor <= args.most:
        out[f"{axis}={value}"] = base | {field: value}
  return out


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--model", type=pathlib.Path, action="append", required=True
  )
  count, amount = positive(int), positive(float)
  parser.add_argument("--num_prompts", type=count, default=32)
  parser.add_argument("--group_size", type=count, default=8)
  parser.add_argument("--prompt_len", type=count, default=256)
  parser.add_argument("--new_tokens", type=count, default=512)
  parser.add_argument(
    "--attention", action="append", help="a kernel, plain if none is given"
  )
  parser.add_argument("--scan", action="store_true", help="in decoding, too")
  parser.add_argument("--no_remat", action="store_true")
  parser.add_argument("--weights", help="while sampling: int8")
  parser.add_argument("--cache", help="while sampling: int8")
  parser.add_argument("--axis", action="append", choices=AXES)
  parser.add_argument("--most", type=amount, default=4, help="times the base")
  parser.add_argument("--piece_tokens", type=count, default=32768)
  parser.add_argument("--compile_threads", type=count, default=8)
  parser.add_argument("--repeats", type=count, default=3)
  parser.add_argument("--peak_tflops", type=amount, help="of all devices")
  parser.add_argument("--peak_gbs", type=amount, help="memory, of all devices")
  parser.add_argument("--figures", type=figures_file, help="JSON to add to")
  args = parser.parse_args(argv)
  for file in args.model:
    if not file.is_file():
      parser.error(f"--model={file} is no file: give one of gin/models/")
    try:
      model_of(file)
    except ValueError as error:
      parser.error(f"--model: {error}")
  variants = [
    variant_of(file, attention, args)
    for file in args.model
    for attention in args.attention or ["plain"]
  ]
  begin = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(args.compile_threads) as pool:
    waiting = [
      (variant, key, work, compiled(lower(variant.config, work, args), pool))
      for variant in variants
      for key, work in points_of(args).items()
      # Axes are of the first; of the others the base.
      if variant is variants[0] or key == "base"
    ]
    concurrent.futures.wait([f for *_, x in waiting for f in x.values()])
  print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)

  def keep(variant: Variant, key: str, value: Any) -> None:
    print(variant.name, json.dumps({key: value}), flush=True)
    variant.found["points"][key] = value
    if args.figures:  # as they come: a run may be broken off
      add_figures(args.figures, variant.name, variant.found)

  # The bases first.
  for variant, key, work, futures in sorted(
    waiting, key=lambda x: x[1] != "base"
  ):
    try:
      done = {n: f.result() for n, f in futures.items()}
      point = Point(
        work,
        {n: program for n, (program, _) in done.items()},
        {n: seconds for n, (_, seconds) in done.items()},
      )
      keep(variant, key, measure(variant.config, point, args))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
      keep(variant, key, {"error": str(error).splitlines()[0][:300]})
  if "slots" in (args.axis or ()):
    keep(variants[0], "slots", skewed(variants[0].config, args))
  return 0


if __name__ == "__main__":
  sys.exit(main())
