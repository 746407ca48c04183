"""docs/scaling.md from the figures of docs/scaling.json."""

from collections.abc import Mapping
from typing import Any

_HEAD = """# What fits on which slice

Written by `python scripts/make_scaling_page.py` from docs/scaling.json. Every
row is a file of gin/scale, compiled ahead of time for its slice by the TPU
compiler, libtpu {compiler} (`rlvr.infra.aot`); nothing here ran on a TPU. GRPO with AdamW, float32
parameters and moments, bfloat16 computation, layers recomputed in the backward
pass; prompts of {prompt} tokens, {group} responses each of {response}.

- **sample, update**: GiB in use on a device at the most, with everything that
  the run keeps there; of what the compiler lets a program use.
- **batch, micro-batch**: responses that the configuration samples at once, and
  that one gradient is computed from at once.
- **most**: the largest of them, by doubling, that still fits. The next size was
  compiled and didn't fit, or isn't by far expected to. A batch may have any
  number of micro-batches.
- **model FLOPs**: share of the chips' peak that the model's own FLOPs come to,
  by the compiler's estimate of the cycles and the links' published speed, with
  no collective behind computation. An estimate, to compare settings by.

{table}
A dash: not compiled yet; `>=`: known to fit, and the search isn't ended; a
star: the program has changed since it was compiled.
`python scripts/make_scaling_page.py --known` goes on with all three, `--only
NAME` compiles one file again.
"""

_COLUMNS = (
  *("gin/scale", "parameters", "chips (data x fsdp x tensor)", "of"),
  *("sample", "batch", "most", "model FLOPs"),
  *("update", "micro-batch", "most", "model FLOPs"),
)


def scaling_page(figures: Mapping[str, Any]) -> str:
  """Returns the page, in Markdown.

  Args:
    figures: by file of gin/scale, as scripts/make_scaling_page.py saves them.

  Raises:
    ValueError: no figures, or of different lengths of prompts and responses.
  """
  settings = {
    (f["prompt_length"], f["group_size"], f["response_length"])
    for f in figures.values()
  }
  if len(settings) != 1:
    raise ValueError(
      f"the figures are of {len(settings)} settings {sorted(settings)}; the page"
      " has one: compile those of gin/scale that differ again"
    )
  prompt, group, response = settings.pop()
  compilers = {
    program.get("compiler") or "of a version not kept"
    for f in figures.values()
    for program in f["programs"].values()
  }
  rows = sorted(figures.items(), key=lambda x: (x[1]["num_params"], x[0]))
  lines = [
    f"| {' | '.join(_COLUMNS)} |",
    f"|{' --- |' * len(_COLUMNS)}",
    *(f"| {' | '.join(_cells(name, f))} |" for name, f in rows),
    "",
  ]
  problems = [
    f"- {name}, {program}: {p['problem']}"
    for name, f in rows
    for program, p in sorted(f["programs"].items())
    if p.get("problem")
  ]
  if problems:
    lines += ["What does not fit:", "", *problems, ""]
  return _HEAD.format(
    compiler=", ".join(sorted(compilers)),
    prompt=prompt,
    group=group,
    response=response,
    table="\n".join(lines),
  )


def _cells(name: str, f: Mapping[str, Any]) -> list[str]:
  sizes = f["data"], f["fsdp"], f["tensor"]
  batch = f["num_prompts"] * f["group_size"]
  out = [
    name,
    f"{f['num_params'] / 1e9:.2f} B",
    f"{sizes[0] * sizes[1] * sizes[2]} ({' x '.join(map(str, sizes))})",
    f"{f['usable_bytes'] / 2**30:.2f} GiB",
  ]
  for program, shipped in (("sample", batch), ("update", f["micro_batch"])):
    found = f["programs"].get(program)
    out += ["-", str(shipped), "-", "-"] if found is None else []
    if found is None:
      continue
    memory, share = found["memory"], found["model_flops_share"]
    size = "too much" if memory is None else f"{memory['total'] / 2**30:.2f}"
    if not found["fits"]:
      size = f"**{size}**"
    if found.get("stale"):
      size += " \\*"
    most = "-"
    if "largest" in found:
      most = (">= " if found["larger_may_fit"] else "") + str(found["largest"])
    out += [
      *(size, str(shipped), most),
      "-" if share is None else f"{share[0]:.1%}",
    ]
  return out
