"""What the compiled programs of a run cost, by XLA's account of each.

XLA counts the body of a loop once, and decoding, layers and micro-batches are
loops: `rlvr.infra.hlo` counts matrix products as often as they run, and the
model's own FLOPs come from a formula (`rlvr.infra.model_flops`).
"""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.infra.chips import CHIPS
from rlvr.infra.hlo import read_work

PHASES = ("sample", "verify", "score", "update")
# As JAX names the chips.
_KINDS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
}
_MODULE = re.compile(r"^HloModule ([\w.\-]+)")
_NAMED = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*op_name=\"([^\"]*)\"")
_SCOPE = re.compile(rf"/({'|'.join(PHASES)})/")


class Recorded:
  """A jitted function that keeps the shapes of its first arguments."""

  def __init__(self, function: Callable[..., Any]):
    """Wraps what `jax.jit` gave."""
    self._function = function
    self._arguments: tuple[Any, ...] | None = None

  def __call__(self, *arguments: Any) -> Any:
    if self._arguments is None:
      self._arguments = jax.tree.map(_abstract, arguments)
    return self._function(*arguments)

  def compiled(self) -> Any:
    """Returns the compiled program, None before the first call.

    JAX doesn't give out the one that ran: this compiles it again, or reads it
    from the cache on disk.
    """
    if self._arguments is None:
      return None
    lowered: Any = self._function
    return lowered.lower(*self._arguments).compile()


def _abstract(x: Any) -> Any:
  if isinstance(x, jax.Array):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  return x


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program's cost on one device.

  module: its name in a trace.
  flops: XLA's count, loop bodies once.
  bytes_accessed: likewise, between memory and processor.
  product_flops: of matrix products, as often as they run; loops to their bound.
  temporary_bytes: memory besides arguments and results.
  phases: by instruction, which of PHASES it belongs to.
  """

  module: str
  flops: float
  bytes_accessed: float
  product_flops: float
  temporary_bytes: float
  phases: Mapping[str, str]


def read_program(compiled: Any) -> Program:
  """Returns what a compiled program costs.

  Args:
    compiled: from `jax.stages.Lowered.compile`.
  """
  text = compiled.as_text()
  found = compiled.cost_analysis() or {}
  memory = compiled.memory_analysis()
  module = _MODULE.match(text)
  return Program(
    module=module.group(1) if module else "",
    flops=found.get("flops", float("nan")),
    bytes_accessed=found.get("bytes accessed", float("nan")),
    product_flops=read_work(text, num_devices=1).flops,
    temporary_bytes=getattr(memory, "temp_size_in_bytes", float("nan")),
    phases=phases_of(text),
  )


def phases_of(text: str) -> dict[str, str]:
  """Returns the phase of each instruction that has one, by its scope.

  Args:
    text: HLO.
  """
  found = {}
  for line in text.splitlines():
    named = _NAMED.match(line)
    if named and (scope := _SCOPE.search(named.group(2) + "/")):
      found[named.group(1)] = scope.group(1)
  return found


@dataclasses.dataclass(frozen=True)
class Peak:
  """The most FLOP/s that all devices do together, and how that is known."""

  flops: float
  source: str


def peak_of(devices: Sequence[Any], dtype: str) -> Peak:
  """Returns the devices' peak: as published for a TPU, else measured.

  Measured is the best of some matrix products on the first device; devices of
  one CPU share its cores, so that they count once.

  Args:
    devices: of the mesh.
    dtype: in which the model computes.
  """
  first = devices[0]
  if chip := CHIPS.get(_KINDS.get(first.device_kind, "")):
    return Peak(chip.peak_flops * len(devices), f"{chip.name}, {chip.source}")
  size = 1024 if first.platform == "cpu" else 8192
  x = jax.device_put(jnp.ones((size, size), dtype), first)
  product = jax.jit(lambda a, b: a @ b)
  product(x, x).block_until_ready()
  best = float("inf")
  for _ in range(8):
    begin = time.perf_counter()
    product(x, x).block_until_ready()
    best = min(best, time.perf_counter() - begin)
  count = 1 if first.platform == "cpu" else len(devices)
  return Peak(
    2 * size**3 / best * count,
    f"measured: {dtype} matrix product of {size} x {size}",
  )
