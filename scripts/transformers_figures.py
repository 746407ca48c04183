"""Prints what `transformers` says about a folder: continuations, perplexity.

  python scripts/transformers_figures.py FOLDER --gsm8k gsm8k/test.jsonl

Needs torch and transformers and nothing of rlvr: scripts/check_real_model.py
runs it, in an environment of its own, on the folder that it exported.
"""

import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> int:
  """Prints JSON; returns 0."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder")
  parser.add_argument("--gsm8k", required=True)
  parser.add_argument("--questions", type=int)
  parser.add_argument("--prefix", default="")
  parser.add_argument("--texts", default="[]", help="JSON: texts to continue")
  parser.add_argument("--tokens", type=int, default=40)
  args = parser.parse_args()
  torch.set_num_threads(2)
  model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
  tokenizer = AutoTokenizer.from_pretrained(args.folder)

  def encode(text):
    ids = tokenizer(args.prefix + text, add_special_tokens=False).input_ids
    return torch.tensor([ids])

  continuations = []
  for text in json.loads(args.texts):
    ids = encode(text)
    with torch.no_grad():
      found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=args.tokens,
        do_sample=False,
        pad_token_id=0,
      )
    continuations.append(found[0, ids.shape[1] :].tolist())
  with open(args.gsm8k, encoding="utf-8") as file:
    questions = [json.loads(line)["question"] for line in file]
  nlls, counts = [], []
  for question in questions[: args.questions]:
    ids = encode(question)
    with torch.no_grad():
      logits = model(ids).logits[0, :-1]
    nlls.append(
      torch.nn.functional.cross_entropy(
        logits, ids[0, 1:], reduction="sum"
      ).item()
    )
    counts.append(ids.shape[1] - 1)
  print(
    json.dumps({"continuations": continuations, "nlls": nlls, "counts": counts})
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
