"""Times a GRPO step: strings in, new parameters out; one JSON line.

  python scripts/bench_step.py                          # random parameters
  python scripts/bench_step.py --checkpoint=FOLDER      # a Hugging Face folder
  python scripts/bench_step.py --harness=FOLDER         # beside other libraries
  python scripts/bench_step.py --num_prompts=16 --compute_dtype=bfloat16 \
    --embed_dim=896 --num_layers=24 ... --peak_tflops=197

The step is the library's own: `sample_batch`, `score_batch` (with the reference
model's log-probs) and `update`. Prompts are tokenised and responses decoded
within it; the reward is the share of even token ids, taken from the text.

With --harness the prompts, the reward, the sizes and the rules of timing are
those of `common.py` and `config.json` in that folder, so that what other
libraries' scripts print there compares with this line. --check compares the
log-probs of the loaded parameters with its `reference_logps.npz`.

Phases: `rollout_s` tokenise, sample, decode; `score_s` reference log-probs and
chain; `update_s` gradient and AdamW. Model FLOPs are 2 · parameters for a token
that is only passed through, 6 · parameters for one that is trained on, and
attention's products over the tokens that are seen; utilisation is against
--peak_tflops.

--trace=FOLDER traces one more step, and prints which operations took the time:
by what they compute and the shape that they give.
"""

import argparse
import collections
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import random
import re
import resource
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_common import figures_file, measured_on, positive

from rlvr import advantages, models, objectives, rewards
from rlvr import step as step_lib
from rlvr.infra.costs import Recorded
from rlvr.infra.model_flops import forward_flops
from rlvr.infra.performance_page import add_figures
from rlvr.infra.profiling import operations
from rlvr.models.huggingface import load_huggingface
from rlvr.probes.compute import ProbeSettings
from rlvr.recipe import Recipe
from rlvr.sampling import Sampling
from rlvr.types import Prompts, Rollout, Signals

WORKLOAD: dict[str, Any] = {
  "num_prompts": 8,
  "group_size": 8,
  "prompt_len": 64,
  "new_tokens": 128,
  "temperature": 1.0,
  "clip_epsilon": 0.2,
  "kl_beta": 0.04,
  "learning_rate": 1e-5,
}
SHAPE: dict[str, int] = {
  "vocab_size": 4096,
  "embed_dim": 384,
  "num_layers": 6,
  "num_heads": 6,
  "num_kv_heads": 2,
  "head_dim": 64,
  "mlp_dim": 1024,
}


class Words:
  """The vocabulary t0 t1 ..., for parameters without a tokenizer."""

  def encode_all(self, texts: list[str]) -> list[list[int]]:
    return [[int(word[1:]) for word in text.split()] for text in texts]

  def decode_all(self, rows: list[list[int]]) -> list[str]:
    return [" ".join(f"t{i}" for i in row) for row in rows]


class Tokenizer:
  """A folder's tokenizer.json."""

  def __init__(self, folder: pathlib.Path):
    import tokenizers

    self._tokenizer = tokenizers.Tokenizer.from_file(
      str(folder / "tokenizer.json")
    )

  def encode_all(self, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in self._tokenizer.encode_batch(texts)]

  def decode_all(self, rows: list[list[int]]) -> list[str]:
    return self._tokenizer.decode_batch(rows)


def even_share(completions: list[str]) -> list[float]:
  """Returns the share of even ids in each text of words t<id>."""
  out = []
  for text in completions:
    ids = [int(word[1:]) for word in text.split()]
    out.append(sum(i % 2 == 0 for i in ids) / max(1, len(ids)))
  return out


class Clock:
  """Seconds of each phase and step; as the harness's `Timers`, without rules."""

  def __init__(self, warmup: int, measured: int):
    self.warmup, self.need = warmup, measured
    self.steps: list[dict[str, float]] = []
    self.now: dict[str, float] = {}
    self._mark: float | None = None

  def want_more(self) -> bool:
    return len(self.steps) < self.warmup + self.need

  def add(self, name: str, seconds: float) -> None:
    self.now[name] = self.now.get(name, 0.0) + seconds

  def boundary(self) -> None:
    at = time.perf_counter()
    if self._mark is not None:
      self.steps.append({**self.now, "step": at - self._mark})
    self._mark, self.now = at, {}

  def median(self, name: str) -> float:
    return statistics.median(s[name] for s in self.steps[self.warmup :])


def make_prompts(workload, vocab_size: int, count: int) -> list[list[str]]:
  """Returns `count` batches of prompts: words t<id>, all of one length."""
  rng = random.Random(7)
  return [
    [
      " ".join(
        f"t{rng.randrange(vocab_size - 2)}"
        for _ in range(workload["prompt_len"])
      )
      for _ in range(workload["num_prompts"])
    ]
    for _ in range(count)
  ]


def model_flops(
  config: models.ModelConfig, workload: dict[str, Any]
) -> dict[str, float]:
  """Returns the FLOPs that each phase needs, prompts computed once a group."""
  forward = forward_flops(
    config,
    num_prompts=workload["num_prompts"],
    prompt_length=workload["prompt_len"],
    group_size=workload["group_size"],
    response_length=workload["new_tokens"],
  )
  return {"rollout": forward, "score": forward, "update": 3 * forward}


def recipe_of(
  config: models.ModelConfig, workload, end_id: int, pad_id: int, args
) -> Recipe:
  """Returns GRPO with a reference model, one update a batch."""
  return Recipe(
    model=config,
    sampling=Sampling(
      max_tokens=workload["new_tokens"],
      end_id=end_id,
      pad_id=pad_id,
      temperature=workload["temperature"],
    ),
    num_prompts=workload["num_prompts"],
    group_size=workload["group_size"],
    chain=rewards.chain(
      advantages.group_relative(scale_by_std=True, reward="even")
    ),
    terms=(
      objectives.clipped_policy_gradient(
        clip_low=workload["clip_epsilon"], clip_high=workload["clip_epsilon"]
      ),
      objectives.kl_penalty(weight=workload["kl_beta"], estimator="k3"),
    ),
    reduction=objectives.sequence_mean,
    optimizer=optax.adamw(workload["learning_rate"], weight_decay=0.0),
    probe_settings=ProbeSettings(end_id=end_id),
    total_steps=1000,
    has_reference=True,
    micro_batches=args.micro_batches,
  )


def problem_of(args: argparse.Namespace) -> str | None:
  """Returns what is wrong with flags that exclude or need one another."""
  flag, ignored = "", ()
  if args.harness is not None:
    flag, ignored = "--harness", (*WORKLOAD, *SHAPE, "warmup", "steps")
  elif args.checkpoint is not None:
    flag, ignored = "--checkpoint", tuple(SHAPE)
  for name in ignored:
    if getattr(args, name) is not None:
      return (
        f"--{name} has no effect beside {flag}, whose folder says it: leave one"
        " out"
      )
  for folder, file in (
    (args.harness, "common.py"),
    (args.checkpoint, "config.json"),
  ):
    if folder is not None and not (folder / file).is_file():
      return f"{folder} has no {file}: give another folder"
  if args.check and args.harness is None:
    return "--check compares with a harness: give --harness"
  if args.figures is not None and args.trace is None:
    return "--figures is for the table of --trace: give both"
  if args.warmup is not None and args.warmup < 0:
    return f"--warmup={args.warmup} must be 0 or more"
  return None


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", type=pathlib.Path)
  parser.add_argument("--harness", type=pathlib.Path)
  parser.add_argument("--check", action="store_true")
  parser.add_argument("--compute_dtype", default="float32")
  parser.add_argument("--micro_batches", type=positive(int), default=4)
  parser.add_argument("--warmup", type=int, help="steps before, 2 if not given")
  parser.add_argument("--steps", type=positive(int), help="5 if not given")
  parser.add_argument("--scan_layers", action="store_true")
  parser.add_argument("--remat", action="store_true")
  parser.add_argument(
    "--peak_tflops", type=positive(float), help="of all devices"
  )
  parser.add_argument("--no_wait", action="store_true")
  parser.add_argument("--trace", type=pathlib.Path, help="of one more step")
  parser.add_argument("--figures", type=figures_file, help="JSON for its table")
  for name, value in WORKLOAD.items():
    # A temperature or a weight may be 0.
    kind = positive(int) if isinstance(value, int) else float
    parser.add_argument(f"--{name}", type=kind)
  for name in SHAPE:
    parser.add_argument(f"--{name}", type=positive(int))
  args = parser.parse_args(argv)
  if problem := problem_of(args):
    parser.error(problem)
  args.warmup, args.steps = _or(args.warmup, 2), _or(args.steps, 5)
  workload = {k: _or(getattr(args, k), v) for k, v in WORKLOAD.items()}

  harness, checkpoint = None, args.checkpoint
  if args.harness is not None:
    sys.path.insert(0, str(args.harness.resolve()))
    harness = importlib.import_module("common")
    settings = harness.load_config()
    workload |= {k: settings["workload"][k] for k in WORKLOAD}
    checkpoint = checkpoint or pathlib.Path(settings["model_dir"])
  layout = {
    "compute_dtype": args.compute_dtype,
    "unroll_layers": not args.scan_layers,
    "remat": args.remat,
  }
  if checkpoint is None:
    shape = {k: _or(getattr(args, k), v) for k, v in SHAPE.items()}
    config = models.ModelConfig(**shape, qk_norm=True, rope_theta=1e6, **layout)
    params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(0))
    words: Any = Words()
    # Ids that no vocabulary has: every response has its full length.
    end_id, pad_id = -1, 0
  else:
    config, params = load_huggingface(checkpoint)
    config = dataclasses.replace(config, **layout)
    words = Tokenizer(checkpoint)
    fields = json.loads((checkpoint / "config.json").read_text())
    end_id, pad_id = fields["eos_token_id"], fields["pad_token_id"]
  if args.check:
    return check(params, config, harness)

  recipe = recipe_of(config, workload, end_id, pad_id, args)
  sample = Recorded(jax.jit(functools.partial(step_lib.sample_batch, recipe)))
  score = Recorded(jax.jit(functools.partial(step_lib.score_batch, recipe)))
  update = Recorded(
    jax.jit(functools.partial(step_lib.update, recipe), donate_argnums=0)
  )
  # The reference is read only: as long as the policy is untrained they are one.
  reference = jax.tree.map(jnp.copy, params)
  state = step_lib.init_state(recipe, jax.random.key(1), params)
  # Parameters that were read lie on a device for good and the rest doesn't yet:
  # the second step would compile everything again.
  state = jax.device_put(state, jax.devices()[0])
  del params

  if harness is None:
    clock: Any = Clock(args.warmup, args.steps)
    reward: Any = even_share
    count = args.warmup + args.steps
    batches = make_prompts(workload, config.vocab_size, count)
  else:
    clock, reward = harness.Timers(settings), harness.Reward()
    batches = harness.make_prompts(settings, settings["workload"]["max_steps"])
    if not args.no_wait:
      harness.wait_for_quiet()

  def one_step(number: int, texts: list[str], state):
    begin = time.perf_counter()
    rollout = sample(
      state.params,
      prompt_batch(words.encode_all(texts), workload["prompt_len"], pad_id),
      state.key,
      np.int32(number),
    )
    completions = words.decode_all(response_ids(rollout, end_id))
    sampled = time.perf_counter()
    signals = Signals(
      outcome={"even": np.asarray(reward(completions=completions), np.float32)}
    )
    scores, _, probes = jax.block_until_ready(
      score(state, reference, rollout, signals)
    )
    scored = time.perf_counter()
    state, metrics = jax.block_until_ready(
      update(state, rollout, scores, probes)
    )
    done = time.perf_counter()
    clock.add("rollout", sampled - begin)
    clock.add("score", scored - sampled)
    clock.add("update", done - scored)
    if not np.isfinite(float(metrics["loss/total"])):
      raise ValueError(f"step {number}: the loss is not finite: {metrics}")
    return state

  clock.boundary()
  for number, texts in enumerate(batches):
    if not clock.want_more():
      break
    state = one_step(number, texts, state)
    clock.boundary()
  if args.trace is not None:
    with jax.profiler.trace(str(args.trace)):
      state = one_step(number + 1, batches[-1], state)
    programs = {"rollout": sample, "score": score, "update": update}
    rows = where_time_goes(args.trace, programs)
    for row in rows:
      print(" | ".join(map(str, row)), file=sys.stderr)
    if args.figures is not None:
      add_figures(args.figures, "trace", {"rows": rows} | measured_on())

  notes = (
    f"sample_batch | score_batch | update, {config.compute_dtype},"
    f" {args.micro_batches} micro-batches, prompts computed once a group"
  )
  version = (
    f"{importlib.import_module('rlvr').__version__} (jax {jax.__version__})"
  )
  if harness is not None:
    harness.report("rlvr", version, settings, clock, reward, notes)
    return 0
  flops = model_flops(config, workload)
  tokens = (
    workload["num_prompts"] * workload["group_size"] * workload["new_tokens"]
  )
  line = {
    "lib": "rlvr",
    "version": version,
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "parameters": models.num_params(config),
    "step_s_median": round(clock.median("step"), 4),
    **{f"{k}_s_median": round(clock.median(k), 4) for k in flops},
    "generated_tokens_per_s": round(tokens / clock.median("rollout"), 1),
    "model_tflops": {k: round(v / 1e12, 3) for k, v in flops.items()},
    "peak_rss_mb": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1
    ),
    "warmup_step_s": [round(s["step"], 3) for s in clock.steps[: args.warmup]],
    "step_s": [round(s["step"], 3) for s in clock.steps[args.warmup :]],
    "notes": notes,
  }
  memory = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in memory:
    line["peak_device_mb"] = round(memory["peak_bytes_in_use"] / 2**20, 1)
  if args.peak_tflops:
    line["utilisation"] = {
      k: round(v / 1e12 / clock.median(k) / args.peak_tflops, 4)
      for k, v in flops.items()
    }
  print(json.dumps(line), flush=True)
  return 0


_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\w+\[[\d,]*\])?")
_NAME = re.compile(r'op_name="[^"]*?([^"/]*)"')


def where_time_goes(
  folder: pathlib.Path, programs: dict[str, Recorded], most: int = 6
) -> list[list[Any]]:
  """Returns [phase, operation, result, runs, seconds, share of the phase].

  Args:
    folder: with the trace.
    programs: by phase.
    most: rows of a phase.
  """
  found = operations(folder)
  rows: list[list[Any]] = []
  for phase, program in programs.items():
    text = program.compiled().as_text()
    module = text.split(None, 2)[1].rstrip(",")
    kinds = {}
    for line in text.splitlines():
      if head := _INSTRUCTION.match(line):
        name = _NAME.search(line)
        kinds[head.group(1)] = (name.group(1) if name else "", head.group(2))
    runs: collections.Counter[Any] = collections.Counter()
    seconds: collections.Counter[Any] = collections.Counter()
    for op in found:
      if op.module == module:
        name, shape = kinds.get(op.name, ("", None))
        key = (name or op.kind, shape or "several")
        runs[key] += 1
        seconds[key] += op.duration_ns / 1e9
    whole = sum(seconds.values())
    rows.extend(
      [phase, *key, runs[key], round(took, 4), round(took / whole, 4)]
      for key, took in seconds.most_common(most)
    )
  return rows


def prompt_batch(rows: list[list[int]], length: int, pad_id: int) -> Prompts:
  """Returns prompts padded on the left, without reference answers."""
  tokens = np.full((len(rows), length), pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(rows):
    tokens[i, length - len(row) :] = row
    mask[i, length - len(row) :] = True
  return Prompts(
    tokens=jnp.asarray(tokens),
    mask=jnp.asarray(mask),
    answer_tokens=jnp.zeros((len(rows), 1), jnp.int32),
    answer_mask=jnp.ones((len(rows), 1), bool),
  )


def response_ids(rollout: Rollout, end_id: int) -> list[list[int]]:
  """Returns each response's tokens, its end token left out."""
  tokens = np.asarray(rollout.tokens)
  lengths = np.asarray(rollout.lengths)
  return [
    [int(i) for i in row[:n] if i != end_id]
    for row, n in zip(tokens, lengths, strict=True)
  ]


def check(params, config: models.ModelConfig, harness: Any) -> int:
  """Compares log-probs with the harness's; 1 where they differ by over 1e-4."""
  if harness is None:
    raise ValueError("--check compares with a harness: give --harness")
  file = pathlib.Path(harness.HOME) / "results" / "reference_logps.npz"
  with np.load(file) as given:
    ids, expected = given["ids"], given["logps"]
  hidden = models.forward(
    params, config, jnp.asarray(ids), jnp.ones(ids.shape, bool)
  )
  first = ids.shape[1] - expected.shape[1]  # the others are the prompt
  z = models.logits(params, config, hidden[:, first - 1 : -1])
  z = np.asarray(jax.nn.log_softmax(z, axis=-1))
  found = np.take_along_axis(z, ids[:, first:, None], -1)[..., 0]
  worst = float(np.abs(found - expected).max())
  print(f"largest difference of a log-prob: {worst:.3g}")
  return int(worst > 1e-4)


def _or(value, default):
  return default if value is None else value


if __name__ == "__main__":
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
  sys.exit(main())
