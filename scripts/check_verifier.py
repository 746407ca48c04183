"""Measures how often a verifier is wrong, and lists every pair that it gets wrong.

  python scripts/check_verifier.py --verifier=math --data gsm8k/test.jsonl
  python scripts/check_verifier.py --verifier=math --data math/test.parquet \
    --variants=500 --hacking=50 --probes=50 --disagreements=wrong.jsonl
  python scripts/check_verifier.py --verifier=my.module:make_verifier --probes=100

Without data, the variants, patterns and probes are about made-up answers. A
verifier is "math", "exact", or "module:function", a function without arguments
that returns a host verifier (for a judge: one that calls
`rlvr.verifiers.hybrid.judge_verifier`). With --markdown the tables and the
disagreements go into a page; what is to be said about one stands in PAGE.json,
where the page is PAGE.md: {"about": [line, ...], "reasons": {reference: text}}.
"""

import argparse
import importlib
import json
import pathlib
import random
import sys
import time

from rlvr.evaluation.gold_pairs import answers, gold_pairs
from rlvr.evaluation.judge_probes import MASTER_KEYS, probe_pairs
from rlvr.evaluation.verifier_accuracy import (
  Checked,
  Pair,
  check_pairs,
  disagreements,
  hacking_pairs,
  markdown_table,
  tally,
  variant_pairs,
  write_disagreements,
)
from rlvr.verifiers import exact_text, host
from rlvr.verifiers.answers import extract_answer

MADE_UP = [
  ("", "18"),
  ("", "-7"),
  ("", "2500"),
  ("", "0.25"),
  ("", r"\frac{7}{3}"),
  ("", r"-\frac{1}{2}"),
  ("", "(3, -2)"),
  ("", "[1, 5)"),
  ("", "2, 3, 7"),
  ("", r"\text{Evelyn}"),
  ("", "x^2+3x+2"),
  ("", r"2\sqrt{3}"),
  ("", r"\frac{\pi}{2}"),
  ("", "y = 2x+1"),
]


def make_verifier(name: str, workers: int, time_limit_s: float):
  """Returns the verifier that a name stands for."""
  if name == "math":
    return host.math_verifier(num_workers=workers, time_limit_s=time_limit_s)
  if name == "exact":
    return exact_text.exact_text_verifier(delimiter="#### ")
  module, colon, function = name.partition(":")
  if not colon:
    raise SystemExit(
      f"--verifier={name!r}: give 'math', 'exact' or 'module:function'"
    )
  sys.path.insert(0, "")
  return getattr(importlib.import_module(module), function)()


def why(row: dict) -> str:
  """Returns the class of a disagreement that nothing else is said about."""
  kind, reference = row["kind"], row["reference"]
  if kind.startswith(("form: ", "miss: ", "hack: ", "probe ")):
    return kind
  if not reference.strip():
    return "the data set has no answer"
  if reference.count("{") != reference.count("}"):
    return "the reference is cut off"
  if kind.endswith("another problem's answer"):
    return "another problem's answer that is the same by the verifier's rules"
  letters = iter(c for c in row["response"] if c.isalnum())
  if kind.endswith("answer field") and all(
    c in letters for c in reference if c.isalnum()
  ):
    return (
      "the answer field lost text, signs or row ends; the solution has them"
    )
  return "other"


def page(
  command: str, sections: list[tuple[str, list[Checked]]], notes: dict
) -> str:
  """Returns a page with each section's table, and every disagreement."""
  lines = ["# Accuracy of a verifier", "", "Made by", "", f"    {command}", ""]
  lines += [*notes.get("about", []), ""]
  reasons = notes.get("reasons", {})
  for title, checked in sections:
    lines += [f"## {title}", "", markdown_table(tally(checked)), ""]
  found = [row for _, checked in sections for row in disagreements(checked)]
  lines += ["## Every disagreement", ""]
  if not found:
    lines += ["None.", ""]
  classes: dict[str, list[dict]] = {}
  for row in found:
    name = reasons.get(row["reference"]) or why(row)
    classes.setdefault(name, []).append(row)
  for name, rows in sorted(classes.items(), key=lambda item: -len(item[1])):
    lines += [f"### {len(rows)}: {name}", ""]
    for row in rows:
      given = extract_answer(row["response"]).answer or row["response"][-60:]
      side = "right" if row["right"] else "wrong"
      lines.append(
        f"- {row['kind']}, {side}, judged {row['verdict']}: reference"
        f" {_code(row['reference'])}, answer {_code(given)}"
      )
    lines.append("")
  return "\n".join(lines)


def _code(text: str) -> str:
  text = " ".join(text.replace("`", "'").split())
  return f"`{text[:100]}`" if text else "(empty)"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--verifier", required=True)
  parser.add_argument("--data", nargs="*", default=[])
  parser.add_argument("--limit", type=int, help="pairs per file, drawn")
  parser.add_argument("--variants", type=int, default=0, help="answers to vary")
  parser.add_argument("--hacking", type=int, default=0, help="questions")
  parser.add_argument("--probes", type=int, default=0, help="questions")
  parser.add_argument("--num_workers", type=int, default=2)
  parser.add_argument("--time_limit_s", type=float, default=5.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--disagreements", type=pathlib.Path)
  parser.add_argument("--markdown", type=pathlib.Path)
  args = parser.parse_args()

  rng = random.Random(args.seed)
  gold: list[Pair] = []
  known: dict[tuple[str, str], None] = {}
  for path in args.data:
    pairs = gold_pairs(path)
    if args.limit and len(pairs) > args.limit:
      pairs = rng.sample(pairs, args.limit)
    gold += pairs
    known |= dict.fromkeys(answers(pairs))
  questions = list(known) or MADE_UP

  def drawn(count: int) -> list[tuple[str, str]]:
    return rng.sample(questions, min(count, len(questions)))

  wanted = [
    ("Published answers", gold),
    (
      "The same answer in other forms, and near misses",
      variant_pairs(drawn(args.variants), seed=args.seed),
    ),
    (
      "Patterns that talk models into yes",
      hacking_pairs(drawn(args.hacking)),
    ),
    (
      "Probes of a word or a sign",
      probe_pairs(drawn(args.probes), MASTER_KEYS),
    ),
  ]
  verifier = make_verifier(args.verifier, args.num_workers, args.time_limit_s)
  sections = []
  try:
    for title, pairs in wanted:
      if not pairs:
        continue
      start = time.perf_counter()
      checked = check_pairs(verifier, pairs)
      seconds = time.perf_counter() - start
      print(f"\n{title}: {len(pairs):,} pairs in {seconds:.1f} s\n")
      print(markdown_table(tally(checked)))
      sections.append((title, checked))
  finally:
    verifier.close()
  everything = [item for _, checked in sections for item in checked]
  print(f"\ndisagreements: {len(disagreements(everything))}")
  if args.disagreements:
    write_disagreements(str(args.disagreements), everything)
    print(f"written to {args.disagreements}")
  if args.markdown:
    names = " ".join(
      f"{pathlib.Path(p).parent.name}/{pathlib.Path(p).name}" for p in args.data
    )
    command = (
      f"python scripts/check_verifier.py --verifier={args.verifier} --data"
      f" {names} --variants={args.variants} --hacking={args.hacking}"
      f" --probes={args.probes} --seed={args.seed}"
    )
    beside = args.markdown.with_suffix(".json")
    notes = json.loads(beside.read_text()) if beside.exists() else {}
    args.markdown.write_text(page(command, sections, notes), encoding="utf-8")


if __name__ == "__main__":
  main()
