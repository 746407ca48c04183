"""Times sampling with skewed lengths: refilled slots, static batches, all at once.

  python scripts/bench_slots.py
  python scripts/bench_slots.py --responses=256 --slots=64 --mean=64 --cap=512

Lengths are log-normal with the mean and sigma given, cut at the cap, and
imposed as each response's limit, so that every road decodes the same tokens:

  slots   all responses through N slots, one that ends makes room for the next
  static  batches of N responses in turn, each as long as its longest
  whole   all responses at once

Prints for each: seconds (the least of --repeats), decode steps, the useful share
(tokens of responses over slots x steps), and whether its tokens are those of
`whole`. A static batch is what samplers without refilling do: with

  --tunix_python=PYTHON --harness=FOLDER    # see scripts/bench_peers.sh

Tunix's sampler decodes batches of the same lengths in the same run.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_common import figures_file, measured_on, positive

from rlvr import models
from rlvr.infra.performance_page import add_figures
from rlvr.sampling import Sampling, sample
from rlvr.types import Prompts

TUNIX = "bench_slots_tunix.py"
CONFIG = models.ModelConfig(
  vocab_size=4096,
  embed_dim=384,
  num_layers=6,
  num_heads=6,
  num_kv_heads=2,
  head_dim=64,
  mlp_dim=1024,
  qk_norm=True,
  rope_theta=1e6,
  unroll_layers=True,
)


def lengths_of(args: argparse.Namespace) -> np.ndarray:
  """Returns int32 lengths, log-normal, from 1 to the cap."""
  rng = np.random.default_rng(args.seed)
  mu = np.log(args.mean) - args.sigma**2 / 2
  drawn = rng.lognormal(mu, args.sigma, args.responses)
  return np.clip(np.round(drawn), 1, args.cap).astype(np.int32)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  count = positive(int)
  parser.add_argument("--figures", type=figures_file, help="JSON to add to")
  parser.add_argument("--responses", type=count, default=256)
  parser.add_argument("--slots", type=count, default=64)
  parser.add_argument("--group_size", type=count, default=8)
  parser.add_argument("--prompt_len", type=count, default=64)
  parser.add_argument("--mean", type=positive(float), default=64, help="tokens")
  parser.add_argument("--sigma", type=float, default=1.0, help="of the log")
  parser.add_argument("--cap", type=count, default=512, help="tokens")
  parser.add_argument("--repeats", type=count, default=3)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--tunix_python", help="python of its environment")
  parser.add_argument("--harness", type=pathlib.Path, help="other libraries'")
  args = parser.parse_args(argv)
  if (args.tunix_python is None) != (args.harness is None):
    parser.error("give --tunix_python and --harness together, or neither")
  if args.sigma < 0:
    parser.error(f"--sigma={args.sigma} must be 0 or more")
  if args.responses % args.slots or args.slots % args.group_size:
    parser.error(
      f"--responses={args.responses} must be a multiple of --slots={args.slots},"
      f" and that of --group_size={args.group_size}"
    )
  lengths = lengths_of(args)
  other = None if args.harness is None else tunix_seconds(args, lengths)
  params = jax.jit(models.init, static_argnums=0)(CONFIG, jax.random.key(0))
  found = compare(
    params,
    CONFIG,
    lengths,
    slots=args.slots,
    group_size=args.group_size,
    prompt_len=args.prompt_len,
    cap=args.cap,
    repeats=args.repeats,
    other=other,
  )
  if args.figures:
    add_figures(args.figures, "slots", found | measured_on())
  seconds = {road["name"]: road["seconds"] for road in found["roads"]}
  for name, took in seconds.items():
    if name != "slots":
      print(f"slots against {name}: {took / seconds['slots']:.2f}x")
  return 0


def longest_of(lengths: np.ndarray, rows: int) -> list[int]:
  """Returns the longest response of each static batch, tokens."""
  return [
    int(lengths[i : i + rows].max()) for i in range(0, len(lengths), rows)
  ]


def tunix_seconds(
  args: argparse.Namespace, lengths: np.ndarray
) -> tuple[str, float]:
  """Returns Tunix's name and the seconds of all static batches.

  Raises:
    subprocess.CalledProcessError: it failed; what it said is on stderr.
  """
  longest = longest_of(lengths, args.slots)
  done = subprocess.run(
    [
      *(args.tunix_python, pathlib.Path(__file__).parent / TUNIX),
      *(f"--harness={args.harness}", f"--rows={args.slots}"),
      f"--longest={','.join(map(str, longest))}",
      *(f"--group_size={args.group_size}", f"--prompt_len={args.prompt_len}"),
      f"--repeats={args.repeats}",
    ],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])
  return f"{found['name']}, static", sum(found["seconds"])


def compare(
  params: Any,
  config: models.ModelConfig,
  lengths: np.ndarray,
  *,
  slots: int,
  group_size: int,
  prompt_len: int,
  cap: int,
  repeats: int,
  other: tuple[str, float] | None = None,
) -> dict[str, Any]:
  """Returns what each road takes; prints a row for each.

  Args:
    params: the model's parameters.
    config: the model.
    lengths: int32 [B], of the responses.
    slots: N, which divides B.
    group_size: G.
    prompt_len: tokens.
    cap: the most tokens of a response.
    repeats: runs, of which the fastest counts.
    other: another library's name and seconds for the static batches.
  """
  B, N, G = len(lengths), slots, group_size
  tokens = jax.random.randint(
    jax.random.key(1), (B // G, prompt_len), 0, config.vocab_size
  )

  def runner(slots: int):
    settings = Sampling(max_tokens=cap, end_id=-1, pad_id=0, slots=slots)

    @jax.jit
    def run(params, prompts, limits, ids):
      rollout = sample(
        params,
        config,
        prompts,
        jax.random.key(2),
        sampling=settings,
        group_size=G,
        limits=limits,
        response_ids=ids,
      )
      return rollout.tokens, rollout.lengths

    return run

  def prompts_of(rows) -> Prompts:
    part = tokens[rows]
    return Prompts(
      tokens=part,
      mask=jnp.ones(part.shape, bool),
      answer_tokens=jnp.zeros((len(part), 1), jnp.int32),
      answer_mask=jnp.ones((len(part), 1), bool),
    )

  ids = np.arange(B, dtype=np.int32)
  queued, together = runner(N), runner(0)

  def whole():
    return together(params, prompts_of(slice(None)), lengths, ids)[0]

  def refilled():
    return queued(params, prompts_of(slice(None)), lengths, ids)[0]

  def static():
    parts = []
    for first in range(0, B, N):
      rows = slice(first // G, (first + N) // G)
      part = slice(first, first + N)
      parts.append(
        together(params, prompts_of(rows), lengths[part], ids[part])[0]
      )
    return jnp.concatenate(parts)

  longest = [n - 1 for n in longest_of(lengths, N)]
  # A response's first token comes from its prompt, the others from a step each.
  useful = int((lengths - 1).sum())
  steps = {"static": sum(longest), "whole": int(lengths.max()) - 1}
  width = {"slots": N, "static": N, "whole": B}
  expected = np.asarray(whole())
  about = (
    f"{B} responses, lengths {lengths.min()} to {lengths.max()}, mean"
    f" {lengths.mean():.1f}; {N} slots; {jax.devices()[0].device_kind}"
  )
  print(about)
  print("| road | seconds | steps | useful share | tokens as `whole` |")
  print("|---|---|---|---|---|")
  roads: list[dict[str, Any]] = []

  def add(name, took, share, same):
    fields = {"name": name, "seconds": took, "useful": share, "same": same}
    roads.append(fields)

  for name, run in (("slots", refilled), ("static", static), ("whole", whole)):
    found = np.asarray(run())  # compiles
    best = float("inf")
    for _ in range(repeats):
      begin = time.perf_counter()
      jax.block_until_ready(run())
      best = min(best, time.perf_counter() - begin)
    count = steps.get(name) or steps_of_slots(lengths, N)
    share = useful / (width[name] * count)
    same = float((found == expected).mean())
    print(f"| {name} | {best:.3f} | {count} | {share:.1%} | {same:.2%} |")
    add(name, best, share, f"{same:.2%} equal")
  if other:
    name, took = other
    share = useful / (N * sum(longest))
    print(f"| {name} | {took:.3f} | {sum(longest)} | {share:.1%} | |")
    add(name, took, share, "")
  return {"about": about, "roads": roads}


def steps_of_slots(lengths: np.ndarray, num_slots: int) -> int:
  """Returns how many steps the slots take: the queue, played on the host."""
  queue = [int(n) - 1 for n in lengths if n > 1]
  batch = max(1, num_slots // 16)
  slots = [0] * num_slots
  steps = 0
  while queue or any(slots):
    free = [i for i, left in enumerate(slots) if not left]
    if queue and len(free) >= min(batch, len(queue)):
      for i in free[:batch]:
        if queue:
          slots[i] = queue.pop(0)
      continue
    slots = [max(0, left - 1) for left in slots]
    steps += 1
  return steps


if __name__ == "__main__":
  sys.exit(main())
