"""Compiles a configuration's step for a TPU slice, on a machine without one.

    python -m rlvr.infra.aot --gin_file=... --topology=v5e:4x4 \
      [--mesh=data:1,fsdp:16,tensor:1] [--gin.X=Y]

prints what sample, score and update take on each device, and ends with 1 where
they don't fit in the chip's memory, 2 where the command line is wrong or the
compiler fails. Needs libtpu (pip install -r requirements-tpu.lock); reads no
data and makes no arrays.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

# The compiler is libtpu, the platform of this process the host's. Set before
# JAX starts, so that it doesn't look for chips.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from rlvr.infra.abstract import job_from_gin
from rlvr.infra.chips import (
  Chip,
  chip_of,
  compiler_version,
  topology_devices,
)
from rlvr.infra.programs import (
  PROGRAMS,
  Report,
  compile_programs,
  size_text,
)
from rlvr.main import load_config, split_bindings
from rlvr.meshes import AXES, MeshShape


def mesh_shape(text: str) -> MeshShape:
  """Returns the mesh of `data:1,fsdp:16,tensor:1`; axes left out are 1.

  Args:
    text: axes and sizes; -1 takes the rest of the devices.

  Raises:
    ValueError: an unknown axis or no number behind it.
  """
  sizes = {}
  for part in text.split(","):
    name, _, size = part.partition(":")
    if name not in AXES or not size.lstrip("-").isdigit() or name in sizes:
      raise ValueError(
        f"--mesh={text}: {part!r} is no AXIS:SIZE; write for instance"
        f" data:1,fsdp:16,tensor:1 (axes: {', '.join(AXES)}; -1 is the rest)"
      )
    sizes[name] = int(size)
  return MeshShape(**sizes)


def parse_args(
  argv: Sequence[str],
) -> tuple[argparse.Namespace, list[str]]:
  """Returns flags and gin bindings of a command line.

  Raises:
    SystemExit: 2, wrong usage.
  """
  parser = argparse.ArgumentParser(
    prog="python -m rlvr.infra.aot",
    description="Compiles a configuration's step for a TPU slice.",
    epilog="--gin.NAME=VALUE binds a parameter or macro, after the files.",
  )
  parser.add_argument(
    "--gin_file",
    action="append",
    required=True,
    help="configuration, as for rlvr.main; repeatable",
  )
  parser.add_argument(
    "--topology", required=True, help="slice: v5e:4x4, v5p:2x2x4, v6e:8x8, ..."
  )
  parser.add_argument(
    "--mesh",
    help="data:1,fsdp:16,tensor:1; without it the configuration's own (DATA,"
    " FSDP, TENSOR)",
  )
  parser.add_argument(
    "--programs",
    default="sample,score,update",
    help=f"which of {', '.join(PROGRAMS)}, with commas between",
  )
  parser.add_argument(
    "--reward",
    action="append",
    default=[],
    help="name of an outcome reward that a host verifier gives; repeatable."
    " Without it the verifier's first",
  )
  parser.add_argument(
    "--json", metavar="FILE", help="write all figures there; - is the output"
  )
  try:
    rest, bindings = split_bindings(argv)
  except ValueError as error:
    parser.error(str(error))
  return parser.parse_args(rest), bindings


def check_output(path: str | None) -> None:
  """Raises ValueError where --json can't be written: compiling takes minutes.

  Args:
    path: of the file; None or - for none.
  """
  if path in (None, "-"):
    return
  folder = os.path.dirname(os.path.abspath(path))
  at = path if os.path.exists(path) else folder
  if not os.path.isdir(folder) or not os.access(at, os.W_OK):
    raise ValueError(f"--json={path}: no place that can be written")
  if os.path.isdir(path):
    raise ValueError(f"--json={path}: a folder; name a file in it")


def as_dict(report: Report, chip: Chip) -> dict[str, Any]:
  """Returns a report's figures by name, for JSON."""
  share = report.model_flops_share(chip)
  out = dataclasses.asdict(report) | {
    "compute_seconds": report.compute_seconds(chip),
    "collective_seconds": report.collective_seconds(chip),
    "model_flops_share": None if share is None else list(share),
  }
  if report.memory is not None:
    out["memory"]["total"] = report.memory.total
  else:  # NaN is no JSON
    out["listed_flops"] = out["listed_bytes"] = None
  return out


def report_text(report: Report, chip: Chip) -> str:
  """Returns a report as a person reads it; figures are of one device."""
  lines = [
    f"{report.name}: {'fits' if report.fits else 'DOES NOT FIT'}"
    f" (compiled in {report.compile_seconds:.0f} s)"
  ]

  def row(name, value):
    lines.append(f"  {name:<24}{value}")

  if report.problem:
    row("problem", report.problem)
  memory, work = report.memory, report.work
  if memory is not None:
    for name, value in dataclasses.asdict(memory).items():
      row(name, size_text(value))
    row("total", f"{size_text(memory.total)} of {size_text(chip.usable_bytes)}")
  if memory is not None and work is None:
    row("FLOPs and collectives", "jaxlib can't read this libtpu's program")
  if work is not None:
    row(
      "FLOPs",
      f"{work.flops:.4g}, of which the model's {report.model_flops:.4g}",
    )
    row(
      "by the compiler's list",
      f"{report.listed_flops:.4g} FLOPs, {report.listed_bytes:.4g} bytes moved"
      " (each loop's body once)",
    )
    for kind, c in work.collectives.items():
      row(
        kind,
        f"{c.count} times, {size_text(c.output_bytes)} of results,"
        f" {size_text(c.sent_bytes)} sent",
      )
    compute = report.compute_seconds(chip)
    links = report.collective_seconds(chip)
    share = report.model_flops_share(chip)
    if compute is None or links is None or share is None:
      row("time", "the compiler gave no estimate")
    else:
      row(
        "time",
        f"{compute:.3g} s of computation by the compiler's estimate;"
        f" collectives at least {links:.3g} s at the links' speed",
      )
      row(
        "model FLOPs share",
        f"{share[0]:.1%} of the peak with nothing overlapped, {share[1]:.1%}"
        " with all",
      )
    if work.untimed_kernels:
      row(
        "kernels not counted",
        f"{work.untimed_kernels} calls of Pallas kernels, of which the compiler"
        " estimates no time: the time is more, the share less; nor are their"
        " FLOPs in the program's",
      )
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  args, bindings = parse_args(sys.argv[1:] if argv is None else argv)
  try:
    chip = chip_of(args.topology)
    check_output(args.json)
    names = args.programs.split(",")
    if unknown := [name for name in names if name not in PROGRAMS]:
      raise ValueError(
        f"--programs: {unknown[0]!r} is none of {', '.join(PROGRAMS)}"
      )
    load_config(args.gin_file, bindings)
    job = job_from_gin(tuple(args.reward))
    shape = job.settings["mesh"]
    if args.mesh is not None:
      shape = mesh_shape(args.mesh)
    devices = topology_devices(args.topology)
    reports = compile_programs(job, devices, chip, shape, names)
  except (
    *(ValueError, OSError, TypeError, ModuleNotFoundError),
    jax.errors.JaxRuntimeError,
  ) as error:
    if os.environ.get("RLVR_TRACEBACK"):
      raise
    print(f"error: {error}", file=sys.stderr)
    print("(RLVR_TRACEBACK=1 shows where it came from)", file=sys.stderr)
    return 2
  data, fsdp, tensor = shape.over(len(devices))
  recipe = job.recipe
  head = {
    "topology": args.topology,
    "compiler": compiler_version(),
    "devices": len(devices),
    "mesh": {"data": data, "fsdp": fsdp, "tensor": tensor},
    "chip": dataclasses.asdict(chip),
    "num_prompts": recipe.num_prompts,
    "group_size": recipe.group_size,
    "prompt_length": job.prompt_length,
    "response_length": recipe.sampling.max_tokens,
    "updates_per_batch": recipe.updates_per_batch,
    "micro_batches": recipe.micro_batches,
  }
  found = head | {"programs": [as_dict(r, chip) for r in reports]}
  if args.json == "-":
    print(json.dumps(found, indent=1))
  else:
    print(
      f"{args.topology}: {len(devices)} devices as data {data} x fsdp {fsdp} x"
      f" tensor {tensor}; {recipe.num_prompts} prompts of {job.prompt_length}"
      f" tokens, {recipe.group_size} responses each of"
      f" {recipe.sampling.max_tokens}; figures of one device"
    )
    for report in reports:
      print(report_text(report, chip))
    if args.json:
      with open(args.json, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
  if all(r.fits for r in reports):
    return 0
  print(
    "does not fit: give fewer NUM_PROMPTS, more micro_batches"
    " (loops.Reinforcement), ModelConfig.remat = True, more of the mesh to"
    " fsdp or tensor, or a larger slice",
    file=sys.stderr,
  )
  return 1


if __name__ == "__main__":
  sys.exit(main())
