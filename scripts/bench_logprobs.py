"""Memory and time of log-probs and entropies, chunked against the plain form.

    python scripts/bench_logprobs.py --tokens 4096 --vocabulary 32768 --width 256

Both give the loss's gradient with respect to hidden states and embedding. The
plain form holds the logits of all tokens, [B, T, V]; the chunked one those of a
chunk, and makes them again in the backward pass. Memory is XLA's own account of
what the compiled program needs besides its arguments and results. Times
alternate between the two and are given as a ratio.
"""

import argparse
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import models


def forms(config: models.ModelConfig, chunk: int):
  """Returns the two gradients, by name."""

  def loss(params, hidden, tokens, chunk_tokens):
    found = models.token_statistics(
      params,
      config,
      hidden,
      tokens,
      temperature=1.0,
      chunk_tokens=chunk_tokens,
    )
    return (found.logprobs + 0.1 * found.entropies).sum()

  def gradient(chunk_tokens):
    return jax.jit(
      lambda params, hidden, tokens: jax.grad(loss, argnums=(0, 1))(
        params, hidden, tokens, chunk_tokens
      )
    )

  return {"plain": gradient(sys.maxsize), "chunked": gradient(chunk)}


def main(argv: list[str] | None = None) -> int:
  """Prints a table; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tokens", type=int, default=4096, help="B*T")
  parser.add_argument("--vocabulary", type=int, default=32768, help="V")
  parser.add_argument("--width", type=int, default=256, help="D")
  parser.add_argument(
    "--chunk",
    type=int,
    default=1 << 25,
    help="logits held at once, in numbers; the step has 2**25",
  )
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args(argv)
  if min(args.tokens, args.vocabulary, args.width, args.repeats) < 1:
    parser.error("--tokens, --vocabulary, --width, --repeats: give 1 or more")
  config = models.ModelConfig(
    vocab_size=args.vocabulary,
    embed_dim=args.width,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=8,
  )
  rng = np.random.default_rng(0)
  table = rng.normal(size=(args.vocabulary, args.width)).astype(np.float32)
  params = {"trunk": {"embedding": jnp.asarray(table / args.width**0.5)}}
  hidden = jnp.asarray(rng.normal(size=(1, args.tokens, args.width)), "float32")
  tokens = jnp.asarray(rng.integers(0, args.vocabulary, (1, args.tokens)))
  compiled = {
    name: f.lower(params, hidden, tokens).compile()
    for name, f in forms(config, args.chunk).items()
  }
  results = {name: f(params, hidden, tokens) for name, f in compiled.items()}
  for a, b in zip(*map(jax.tree.leaves, results.values()), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  times: dict[str, list[float]] = {name: [] for name in compiled}
  for _ in range(args.repeats):
    for name, f in compiled.items():
      begin = time.perf_counter()
      jax.block_until_ready(f(params, hidden, tokens))
      times[name].append(time.perf_counter() - begin)
  memory = {
    name: f.memory_analysis().temp_size_in_bytes for name, f in compiled.items()
  }
  print(
    f"{jax.devices()[0].device_kind}: {args.tokens:,} tokens, vocabulary"
    f" {args.vocabulary:,}, width {args.width}; chunks of {args.chunk:,} logits"
  )
  logits = 4 * args.tokens * args.vocabulary
  print(f"  the logits of all tokens are {logits / 2**20:,.0f} MiB")
  for name, seconds in times.items():
    print(
      f"  {name:8} {memory[name] / 2**20:10,.1f} MiB temporary,"
      f" median {statistics.median(seconds):.3f} s"
    )
  ratios = [b / a for a, b in zip(*times.values(), strict=True)]
  print(
    f"  chunked/plain: memory {memory['chunked'] / memory['plain']:.3f}, time"
    f" {statistics.median(ratios):.2f} (pairs {min(ratios):.2f} to"
    f" {max(ratios):.2f})"
  )
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
