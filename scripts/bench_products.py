"""Times a decoder's matrix products alone: what is left to gain around them.

  python scripts/bench_products.py
  python scripts/bench_products.py --rows=256 --embed_dim=896 ...

Decodes --steps tokens in --rows responses with nothing but the products with
parameters: no attention, normalisation or drawing, each product's input made
from the one before by taking columns. Three times: with the model's parameters,
which no cache holds as a whole (`model`); with one layer's for all layers
(`one layer`), which stays in a cache; and each product in a size at which the
machine is fastest (`peak`: 1,024 x 1,024 x 1,024, the same FLOPs). Prints the
seconds and GFLOP/s of each.
"""

import argparse
import sys
import time
from typing import Any

import bench_step
import jax
import jax.numpy as jnp
from bench_common import figures_file, measured_on, positive

from rlvr.infra.performance_page import add_figures

SHAPE = bench_step.SHAPE


def products(shape: dict[str, int]) -> list[tuple[int, int]]:
  """Returns (columns in, columns out) of a layer's products, in order."""
  D, F = shape["embed_dim"], shape["mlp_dim"]
  query = shape["num_heads"] * shape["head_dim"]
  key = shape["num_kv_heads"] * shape["head_dim"]
  attention = [(D, query), (D, key), (D, key), (query, D)]
  return [*attention, (D, F), (D, F), (F, D)]


def parameters(shape: dict[str, int], *, shared: bool) -> list[list[Any]]:
  """Returns each layer's matrices, and the head's as a last layer."""
  keys = iter(jax.random.split(jax.random.key(0), 10_000))

  def draw(rows, columns):
    return jax.random.normal(next(keys), (rows, columns)) / rows**0.5

  def layer():
    return [draw(*sizes) for sizes in products(shape)]

  if shared:
    layers = [layer()] * shape["num_layers"]
  else:
    layers = [layer() for _ in range(shape["num_layers"])]
  return [*layers, [draw(shape["embed_dim"], shape["vocab_size"])]]


def columns(x: Any, count: int) -> Any:
  """Returns x with that many columns: some of it, or it repeated."""
  while x.shape[1] < count:
    x = jnp.concatenate([x, x], axis=1)
  return x[:, :count]


def run(x: Any, layers: list[list[Any]], steps: int) -> Any:
  """Returns x after `steps` tokens' products."""

  def step(x, _):
    y = x
    for layer in layers:
      for matrix in layer:
        y = columns(y, matrix.shape[0]) @ matrix
    return columns(y, x.shape[1]) * 0.5, None

  return jax.lax.scan(step, x, None, length=steps)[0]


def seconds(function: Any, *args: Any, repeats: int) -> float:
  """Returns the least seconds of a call, compiled before."""
  jax.block_until_ready(function(*args))
  best = float("inf")
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(function(*args))
    best = min(best, time.perf_counter() - begin)
  return best


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  count = positive(int)
  parser.add_argument("--rows", type=count, default=64, help="responses")
  parser.add_argument("--steps", type=count, default=127, help="tokens of each")
  parser.add_argument("--repeats", type=count, default=5)
  parser.add_argument("--figures", type=figures_file, help="JSON to add to")
  for name, value in SHAPE.items():
    parser.add_argument(f"--{name}", type=count, default=value)
  args = parser.parse_args(argv)
  shape = {name: getattr(args, name) for name in SHAPE}
  jitted = jax.jit(run, static_argnums=2)
  x = jax.random.normal(jax.random.key(1), (args.rows, shape["embed_dim"]))
  layers = parameters(shape, shared=False)
  size = sum(m.size for layer in layers for m in layer)
  work = 2 * size * args.rows * args.steps / 1e9
  rows: list[list[Any]] = []

  def add(name, took, gflop):
    rate = gflop / took
    rows.append([name, round(work / rate, 4), round(rate, 1)])
    print(f"{name}: {work / rate:.3f} s, {rate:.0f} GFLOP/s", flush=True)

  def time_of(layers):
    return seconds(jitted, x, layers, args.steps, repeats=args.repeats)

  add("model", time_of(layers), work)
  add("one layer", time_of(parameters(shape, shared=True)), work)
  square = jax.random.normal(jax.random.key(2), (1024, 1024)) / 32
  took = seconds(jax.jit(jnp.matmul), square, square, repeats=20)
  add("peak", took, 2 * 1024**3 / 1e9)
  about = f"{args.rows} responses of {args.steps} tokens, {size:,} parameters"
  if args.figures:
    found = {"about": about, "rows": rows}
    add_figures(args.figures, "products", found | measured_on())
  return 0


if __name__ == "__main__":
  sys.exit(main())
