"""Prints what `transformers` says about a folder: continuations, perplexity.

  python scripts/transformers_figures.py FOLDER --data gsm8k/test.jsonl

Needs torch and transformers and nothing of rlvr: scripts/check_real_model.py
runs it, in an environment of its own.
"""

import argparse
import json
import sys

import torch
import transformers


def main() -> int:
  """Prints JSON; returns 0."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder")
  parser.add_argument("--data", required=True)
  parser.add_argument("--num_questions", type=int)
  parser.add_argument("--prefix", default="")
  parser.add_argument("--texts", default="[]", help="JSON: texts to continue")
  parser.add_argument("--num_tokens", type=int, default=40)
  args = parser.parse_args()
  # With several, each waits in a loop for the others where cores are shared.
  torch.set_num_threads(1)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    args.folder, dtype=torch.float32
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(args.folder)

  def encode(text):
    ids = tokenizer(args.prefix + text, add_special_tokens=False).input_ids
    return torch.tensor([ids])

  continuations = []
  for text in json.loads(args.texts):
    ids = encode(text)
    # By hand: `generate` would follow the folder's own sampling settings.
    for _ in range(args.num_tokens):
      with torch.no_grad():
        best = model(ids).logits[0, -1].argmax()
      ids = torch.cat([ids, best[None, None]], dim=1)
    continuations.append(ids[0, -args.num_tokens :].tolist())
  with open(args.data, encoding="utf-8") as file:
    questions = [json.loads(line)["question"] for line in file]
  nats, counts = [], []
  for question in questions[: args.num_questions]:
    ids = encode(question)
    with torch.no_grad():
      # In float32, a sum over the vocabulary is off by some 1e-6 of itself.
      logits = model(ids).logits[0, :-1].double()
    nats.append(
      torch.nn.functional.cross_entropy(
        logits, ids[0, 1:], reduction="sum"
      ).item()
    )
    counts.append(ids.shape[1] - 1)
  print(
    json.dumps(
      {
        "transformers": transformers.__version__,
        "ids": continuations,
        "nats": nats,
        "counts": counts,
      }
    )
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
