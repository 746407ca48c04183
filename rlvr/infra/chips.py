"""TPU chips by what Google publishes of them, and topologies by name."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """What one chip has.

  peak_flops: bfloat16 FLOP/s.
  hbm_bytes: memory as published (decimal or binary GB, as the page has it).
  usable_bytes: what the compiler lets a program use, as its own message of
    running out of memory says (libtpu 0.0.42), or a hundredth of a GiB less.
  hbm_bandwidth: bytes/s.
  link_bandwidth: bytes/s that a chip can send over all of its links.
  flops_per_cycle: bfloat16 FLOPs of its matrix units a cycle; with the peak
    this gives the clock.
  largest_slice: as published; with its dimensions, all slices' number of them.
  source: the page.
  """

  name: str
  peak_flops: float
  hbm_bytes: int
  usable_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  flops_per_cycle: int
  largest_slice: tuple[int, ...]
  source: str

  @property
  def clock_hz(self) -> float:
    """Cycles a second: peak over FLOPs a cycle."""
    return self.peak_flops / self.flops_per_cycle


_GIB = 1 << 30
_DOCS = "https://cloud.google.com/tpu/docs/"
# One MXU of 128 x 128 does 2 · 128² FLOPs a cycle. The compiler's estimates for
# v6e only make sense with four times the 2 · 256² of one MXU.
_MXU = 2 * 128 * 128
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      peak_flops=275e12,
      hbm_bytes=32 * _GIB,
      usable_bytes=int(30.75 * _GIB),
      hbm_bandwidth=1200e9,
      link_bandwidth=300e9,
      flops_per_cycle=8 * _MXU,
      largest_slice=(16, 16, 16),
      source=_DOCS + "v4",
    ),
    Chip(
      name="v5e",
      peak_flops=197e12,
      hbm_bytes=16 * _GIB,
      usable_bytes=int(15.75 * _GIB),
      hbm_bandwidth=819e9,
      link_bandwidth=200e9,
      flops_per_cycle=4 * _MXU,
      largest_slice=(16, 16),
      source=_DOCS + "v5e",
    ),
    Chip(
      name="v5p",
      peak_flops=459e12,
      hbm_bytes=95 * _GIB,
      usable_bytes=int(95.73 * _GIB),
      hbm_bandwidth=2765e9,
      link_bandwidth=600e9,
      flops_per_cycle=8 * _MXU,
      largest_slice=(16, 16, 24),
      source=_DOCS + "v5p",
    ),
    Chip(
      name="v6e",
      peak_flops=918e12,
      hbm_bytes=32 * _GIB,
      usable_bytes=int(31.24 * _GIB),
      hbm_bandwidth=1638e9,
      link_bandwidth=400e9,
      flops_per_cycle=16 * _MXU,
      largest_slice=(16, 16),
      source=_DOCS + "v6e",
    ),
  )
}


def chip_of(topology: str) -> Chip:
  """Returns the chip of a topology's name.

  Args:
    topology: as Cloud TPU writes it: "v5e:4x4", "v5p:2x2x4".

  Raises:
    ValueError: no known chip, no size behind it, or none that its slices have.
  """
  name, _, size = topology.partition(":")
  dims = size.split("x")
  if name not in CHIPS or not all(d.isdecimal() and int(d) for d in dims):
    raise ValueError(
      f"--topology={topology}: write CHIP:SIZE such as v5e:4x4 or v5p:2x2x4;"
      f" the chips are {', '.join(CHIPS)}"
    )
  chip = CHIPS[name]
  _check_size(topology, [int(d) for d in dims], chip)
  return chip


def _check_size(topology: str, dims: list[int], chip: Chip) -> None:
  """Raises ValueError for a size that the compiler takes amiss.

  It compiles v5e:2x2x2 as some 8 chips, and aborts the process at v5e:16x32. A
  plane is bounded on each side; the cubes of a 3-D slice are joined freely.
  """
  largest = chip.largest_slice
  published = f"{chip.name}:{'x'.join(map(str, largest))}"
  if len(dims) != len(largest):
    raise ValueError(
      f"--topology={topology}: {chip.name} slices have {len(largest)}"
      f" dimensions, as {published} has"
    )
  if math.prod(dims) > math.prod(largest) or (
    len(dims) == 2 and max(dims) > max(largest)
  ):
    raise ValueError(
      f"--topology={topology}: the largest slice is {published} ({chip.source})"
    )


def check_compiler() -> None:
  """Raises ModuleNotFoundError where the compiler, libtpu, isn't installed."""
  if importlib.util.find_spec("libtpu") is None:
    raise ModuleNotFoundError(
      "compiling for a TPU needs its compiler, the package libtpu: pip install"
      " -r requirements-tpu.lock"
    )


def compiler_version() -> str | None:
  """Returns libtpu's version, such as 0.0.42; None where it isn't installed."""
  try:
    return importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    return None


def topology_devices(topology: str) -> list[Any]:
  """Returns the devices of a TPU topology, of which none needs to be here.

  Args:
    topology: as in `chip_of`.

  Raises:
    ValueError: an unknown topology.
    ModuleNotFoundError: libtpu isn't installed.
  """
  chip = chip_of(topology)
  check_compiler()
  # No chip is opened: no question to a cloud's metadata server (minutes of
  # waiting elsewhere), and no quarrel with a process that holds the chips.
  for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    # Else libtpu complains on the terminal that it finds no such machine.
    ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_STDERR_LOG_LEVEL", "3"),
  ):
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  # As JAX on a v4 host has it: the two cores of a chip are one device.
  more = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **more
    )
  except Exception as error:  # the plugin's own kinds
    text = str(error).splitlines()[0]
    raise ValueError(f"--topology={topology}: {text}") from error
  return list(found.devices)
