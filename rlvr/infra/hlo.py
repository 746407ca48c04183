"""What a compiled program does, read from its HLO text.

XLA's own cost analysis counts the body of a loop once. A decoder's layers are a
loop, and so are micro-batches and decoding: here every instruction counts as
often as it runs. Loops run to the bound in their condition; a loop that may end
earlier (sampling ends when all responses have, packing has fewer pieces of
short ones) is counted to its bound, one without a bound once.

Sizes and counts are those of one device.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
# A computation for another core says so behind its brace.
_END = re.compile(r'^\}(, execution_thread="[^"]*")?\s*$')
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s}])([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
  r"(condition|body|calls|to_apply|true_computation|false_computation)"
  r"=%([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"^[su]32\[\]\S* constant\((\d+)\)")
# All in one list, {{0,1},{2,3}}; by iota, [2,8]<=[16]; or by mesh axes,
# mesh['axis_0'=2,'axis_1'=8] {'axis_1'}.
_GROUP_LIST = re.compile(r"replica_groups=\{\{([0-9,]*)\}")
_GROUP_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_GROUP_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
# A Pallas kernel of a TPU; of its time the compiler knows nothing.
_KERNEL = 'custom_call_target="tpu_custom_call"'
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)


class Instruction(NamedTuple):
  """One line of HLO."""

  name: str
  opcode: str
  result: str  # its shape or tuple of shapes
  operands: tuple[str, ...]
  text: str  # the whole line


@dataclasses.dataclass(frozen=True)
class Collective:
  """What the collectives of one kind amount to, over a run of the program.

  count: how often one runs.
  output_bytes: of their results.
  sent_bytes: that a device must send at the least.
  """

  count: int
  output_bytes: int
  sent_bytes: int


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does in a run of the program.

  flops: of matrix products and convolutions, without those in kernels.
  cycles: the compiler's estimates of its instructions, one after the other;
    collectives have none. 0: it gave none.
  collectives: by kind.
  loops: largest bounds of the loops, for display.
  untimed_kernels: how often a kernel runs that the cycles don't have.
  """

  flops: int
  cycles: int
  collectives: dict[str, Collective]
  loops: tuple[int, ...]
  untimed_kernels: int = 0


def shape_bytes(text: str) -> int:
  """Returns the bytes of all arrays in a shape or a tuple of them."""
  total = 0
  for kind, dims in _SHAPE.findall(text):
    bits = _BITS.get(kind)
    if bits is None:
      found = re.search(r"\d+", kind)
      bits = int(found.group()) if found else 0
    total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
  return total


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Returns the instructions of each computation, and the entry's name.

  Args:
    text: from `compiled.as_text()`.

  Raises:
    ValueError: it has no entry computation.
  """
  lines: dict[str, list[str]] = {}
  current: list[str] | None = None
  entry = ""
  for line in text.splitlines():
    if current is None:
      if head := _HEAD.match(line):
        current = lines.setdefault(head.group(2), [])
        entry = head.group(2) if head.group(1) else entry
    elif _END.match(line):
      current = None
    elif _INSTRUCTION.match(line):
      current.append(line)
    elif current:
      # Attributes of kernels go on over several lines, the last of which begins
      # with braces as the end of a computation does.
      current[-1] += f" {line}"
  if not entry:
    raise ValueError("the text is no HLO module: it has no ENTRY computation")
  return {
    name: [i for line in found if (i := _instruction(line))]
    for name, found in lines.items()
  }, entry


def _instruction(line: str) -> Instruction | None:
  """Returns what a line says, None if it names no operation."""
  found = _INSTRUCTION.match(line)
  if found is None or (opcode := _OPCODE.search(found.group(3))) is None:
    return None
  rest = found.group(3)
  inside = rest[opcode.end() : rest.find(")", opcode.end())]
  return Instruction(
    name=found.group(2),
    opcode=opcode.group(1),
    result=rest[: opcode.start()],
    operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
    text=rest,
  )


def _bound(computations, condition: str) -> int:
  """Returns the largest integer that a loop's condition has; 0: it has none."""
  found = [0]
  for i in computations.get(condition, ()):
    if constant := _CONSTANT.match(i.text):
      found.append(int(constant.group(1)))
    if called := re.search(r"calls=%([\w.\-]+)", i.text):
      found.append(_bound(computations, called.group(1)))
  return max(found)


def _dims(text: str) -> list[int]:
  found = _SHAPE.search(text)
  return [int(d) for d in found.group(2).split(",") if d] if found else []


def _window(text: str, rank: int) -> list[dict[str, int]]:
  """Returns each spatial dimension's window."""
  given: dict[str, str] = {}
  if found := _WINDOW.search(text):
    given = dict(part.split("=") for part in found.group(1).split())
  out = []
  for d in range(rank):
    item = {"size": 1, "stride": 1, "lhs_dilate": 1, "rhs_dilate": 1}
    for name in item:
      if name in given:
        item[name] = int(given[name].split("x")[d])
    pad = given.get("pad", "x".join(["0_0"] * rank)).split("x")[d]
    item["pad"] = int(pad.split("_")[0])
    out.append(item)
  return out


def convolution_flops(result: str, lhs: str, rhs: str, text: str) -> int:
  """Returns the FLOPs of a convolution, which is what a matrix product becomes.

  Only positions where the window meets a number count: products with batch
  axes are written with a dilated and padded window.

  Args:
    result: the result's shape.
    lhs: the left operand's shape.
    rhs: the right operand's.
    text: the instruction, for `window` and `dim_labels`.

  Raises:
    ValueError: no `dim_labels` in the text.
  """
  labels = _LABELS.search(text)
  if labels is None:
    raise ValueError(f"a convolution without dim_labels: {text[:200]}")
  left, right, out = labels.groups()
  left_dims, right_dims, out_dims = _dims(lhs), _dims(rhs), _dims(result)
  rank = len(out) - 2
  pairs = 1
  for d, w in enumerate(_window(text, rank)):
    inputs = left_dims[left.index(str(d))]
    steps = out_dims[out.index(str(d))]
    dilated = (inputs - 1) * w["lhs_dilate"] + 1 if inputs else 0
    if w["size"] == 1 and w["pad"] == 0 and w["lhs_dilate"] == 1:
      pairs *= steps
      continue
    at = np.arange(steps)[:, None] * w["stride"] - w["pad"]
    at = at + np.arange(w["size"])[None] * w["rhs_dilate"]
    inside = (at >= 0) & (at < dilated) & (at % w["lhs_dilate"] == 0)
    pairs *= int(inside.sum())
  return (
    2
    * out_dims[out.index("b")]
    * out_dims[out.index("f")]
    * right_dims[right.index("i")]
    * pairs
  )


def _dot_flops(result: str, lhs: str, text: str) -> int:
  found = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", text)
  dims = _dims(lhs)
  axes = [int(d) for d in found.group(1).split(",") if d] if found else []
  return 2 * math.prod(_dims(result)) * math.prod(dims[a] for a in axes)


def _group_size(text: str, num_devices: int) -> int:
  if found := _GROUP_LIST.search(text):
    return found.group(1).count(",") + 1 if found.group(1) else num_devices
  if found := _GROUP_IOTA.search(text):
    return int(found.group(1))
  if found := _GROUP_MESH.search(text):
    sizes = {name: int(size) for name, size in _AXIS.findall(found.group(1))}
    used = re.findall(r"'(\w+)'", found.group(2))
    return math.prod(sizes.get(name, 1) for name in used)
  return num_devices


def _sent(kind: str, operand_bytes: int, output_bytes: int, group: int) -> int:
  """Returns the bytes that a device sends at the least (ring, n devices)."""
  n = group
  if kind == "all-gather":
    return output_bytes * (n - 1) // n
  if kind == "all-reduce":
    return 2 * output_bytes * (n - 1) // n
  if kind in ("collective-permute", "collective-broadcast"):
    return output_bytes
  return operand_bytes * (n - 1) // n


def read_work(
  text: str,
  *,
  num_devices: int,
  turns: Mapping[int, int] | None = None,
) -> Work:
  """Returns what a compiled program does in a run, on one device.

  Of the branches of a conditional the one with the most FLOPs is counted.

  Args:
    text: from `compiled.as_text()`.
    num_devices: of the program.
    turns: how often a loop of the entry runs, by its bound, where it doesn't
      begin at 0; None: all do.

  Raises:
    ValueError: the text is no HLO module.
  """
  computations, entry = parse(text)
  flops = cycles = kernels = 0
  loops: set[int] = set()
  # A fused collective stands in several fusions, in pieces, under one channel.
  # One that starts before a loop has pieces in each of its turns.
  per_channel: dict[tuple[str, str], tuple[int, int, int]] = {}
  own_flops: dict[str, int] = {}

  def flops_of(name: str) -> int:
    """FLOPs of a computation's own instructions, what it calls left out."""
    if name not in own_flops:
      shapes = {i.name: i.result for i in computations[name]}
      total = 0
      for i in computations[name]:
        if i.opcode == "convolution":
          total += convolution_flops(
            i.result, shapes[i.operands[0]], shapes[i.operands[1]], i.text
          )
        elif i.opcode == "dot":
          total += _dot_flops(i.result, shapes[i.operands[0]], i.text)
      own_flops[name] = total
    return own_flops[name]

  def turns_of(name: str, condition: str) -> int:
    bound = _bound(computations, condition) or 1
    return (turns or {}).get(bound, bound) if name == entry else bound

  def branches_of(text: str) -> list[str]:
    found: list[str] = []
    for branch in _BRANCHES.findall(text):
      found += re.findall(r"%([\w.\-]+)", branch)
    return found

  @functools.cache
  def all_flops(name: str) -> int:
    """FLOPs of a computation with all that it calls."""
    total = flops_of(name)
    for i in computations[name]:
      parts = dict(_CALLED.findall(i.text))
      if i.opcode == "while":
        again = turns_of(name, parts["condition"])
        total += again * all_flops(parts["body"])
        continue
      total += sum(all_flops(c) for _, c in _CALLED.findall(i.text))
      total += max((all_flops(c) for c in branches_of(i.text)), default=0)
    return total

  def visit(name: str, times: int, timed: bool) -> None:
    nonlocal flops, cycles, kernels
    flops += times * flops_of(name)
    shapes = {i.name: i.result for i in computations[name]}
    for i in computations[name]:
      if timed and (estimate := _CYCLES.search(i.text)):
        cycles += times * int(estimate.group(1))
      elif timed and _KERNEL in i.text:
        kernels += times
      kind = i.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        operand = sum(shape_bytes(shapes.get(o, "")) for o in i.operands)
        output = shape_bytes(i.result)
        if i.opcode.endswith("-start"):
          # The result holds the operands (and contexts) besides the output.
          output = operand
          if kind == "all-gather":
            output *= _group_size(i.text, num_devices)
        channel = _CHANNEL.search(i.text)
        key = (kind, channel.group(1) if channel else f"{name}/{i.name}")
        sent = _sent(kind, operand, output, _group_size(i.text, num_devices))
        before = per_channel.get(key, (times, 0, 0))
        per_channel[key] = (
          min(before[0], times),
          *max(before[1:], (output, sent)),
        )
      if i.opcode == "while":
        parts = dict(_CALLED.findall(i.text))
        bound = turns_of(name, parts["condition"])
        loops.add(bound)
        visit(parts["body"], times * bound, timed)
        continue
      called = [c for _, c in _CALLED.findall(i.text)]
      if branches := branches_of(i.text):
        called.append(max(branches, key=all_flops))
      for callee in called:
        # The estimate stands on the fusion, not on what is in it.
        visit(callee, times, timed and i.opcode in ("call", "conditional"))

  visit(entry, 1, True)
  sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
  for (kind, _), (times, output, sent) in per_channel.items():
    sums[kind][0] += times
    sums[kind][1] += times * output
    sums[kind][2] += times * sent
  return Work(
    flops=flops,
    cycles=cycles,
    collectives={k: Collective(*sums[k]) for k in sorted(sums)},
    loops=tuple(sorted(loops, reverse=True)),
    untimed_kernels=kernels,
  )
