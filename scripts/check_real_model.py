"""Loads a published model and says how it does, beside `transformers`.

  python scripts/check_real_model.py MODEL --gsm8k gsm8k/test.jsonl \
    --export /tmp/exported --transformers_python /path/to/python

MODEL is a Hugging Face folder or a .gguf file. Prints greedy continuations, the
perplexity on GSM8K's questions and the accuracy of greedy answers with its
interval. With --transformers_python, an interpreter that has torch and
transformers, the model is exported and compared; the exit status is 1 if
perplexities differ in three digits or continuations differ at all.
"""

import argparse
import functools
import json
import math
import pathlib
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import models
from rlvr.data import gsm8k_task, huggingface_vocabulary
from rlvr.evaluate import decode_responses
from rlvr.evaluation.metrics import wilson_interval
from rlvr.sampling import Sampling, sample
from rlvr.types import Prompts, Verdict
from rlvr.verifiers import math_verifier

TEXTS = (
  "Once upon a time, there was a little",
  "The sun rises in the",
  "The capital of France is",
)
CHATML = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
_STEP = 32  # widths of padded batches are multiples: few compilations


def padded(rows, width, left):
  """Returns tokens and mask of rows of ids."""
  tokens = np.zeros((len(rows), width), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(rows):
    part = slice(width - len(row), width) if left else slice(0, len(row))
    tokens[i, part], mask[i, part] = row, True
  return jnp.asarray(tokens), jnp.asarray(mask)


def batches(rows, size):
  """Yields indices of rows by length, the width, and how many rows to add."""
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  for start in range(0, len(rows), size):
    chosen = order[start : start + size]
    width = -(-len(rows[chosen[-1]]) // _STEP) * _STEP
    yield chosen, width


def question_nlls(config, params, rows, size):
  """Returns each row's negative log-likelihood in nats, but its first token's."""

  @jax.jit
  def nll(params, tokens, mask):
    hidden = models.forward(params, config, tokens, mask)
    found = models.token_statistics(
      params, config, hidden[:, :-1], tokens[:, 1:], temperature=1.0
    )
    return -jnp.where(mask[:, 1:], found.logprobs, 0.0).sum(-1)

  nlls = np.zeros(len(rows))
  for chosen, width in batches(rows, size):
    filled = [rows[i] for i in chosen] + [[0]] * (size - len(chosen))
    tokens, mask = padded(filled, width, left=False)
    nlls[chosen] = np.asarray(nll(params, tokens, mask))[: len(chosen)]
  return nlls


def greedy(config, params, vocabulary, rows, size, num_tokens):
  """Returns each row's greedy continuation as (ids, text, whether it ended)."""
  sampling = Sampling(
    max_tokens=num_tokens,
    end_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    temperature=0.0,
  )
  run = jax.jit(
    functools.partial(sample, sampling=sampling, group_size=1),
    static_argnums=1,
  )
  found = [None] * len(rows)
  for chosen, width in batches(rows, size):
    filled = [rows[i] for i in chosen]
    filled += filled[:1] * (size - len(chosen))
    tokens, mask = padded(filled, width, left=True)
    nothing = jnp.zeros((size, 1), jnp.int32)
    prompts = Prompts(tokens, mask, nothing, nothing.astype(bool))
    rollout = jax.device_get(run(params, config, prompts, jax.random.key(0)))
    texts = decode_responses(vocabulary, rollout)
    for row, i in enumerate(chosen):
      ids = rollout.tokens[row][rollout.completion_mask[row]].tolist()
      found[i] = ids, texts[row], bool(rollout.finished[row])
  return found


def answered(examples, replies):
  """Returns how many of the replies are right, by math-verify."""
  verifier = math_verifier(num_workers=1, time_limit_s=20.0, truncated="verify")
  try:
    signals = verifier.verify(
      [text for _, text, _ in replies],
      [example.answer for example in examples],
      [example.metadata for example in examples],
      np.array([ended for *_, ended in replies]),
    )
  finally:
    verifier.close()
  verdicts = next(iter(signals.verdicts.values()))
  return int((verdicts == Verdict.CORRECT).sum())


def compare(args, vocabulary, figures, continuations):
  """Returns whether transformers says the same of the exported folder."""
  command = [
    *(args.transformers_python, "scripts/transformers_figures.py"),
    *(args.export, "--gsm8k", args.gsm8k, "--prefix", args.prefix),
    *("--texts", json.dumps(TEXTS), "--tokens", str(args.continue_tokens)),
  ]
  if args.questions:
    command += ["--questions", str(args.questions)]
  root = pathlib.Path(__file__).resolve().parent.parent
  script = str(root / command[1])
  done = subprocess.run(
    [command[0], script, *map(str, command[2:])],
    check=True,
    capture_output=True,
    text=True,
    env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
  )
  theirs = json.loads(done.stdout.splitlines()[-1])
  perplexity = math.exp(sum(theirs["nlls"]) / sum(theirs["counts"]))
  worst = np.abs(np.array(theirs["nlls"]) - figures["nlls"]).max()
  same = [
    ours == their
    for ours, their in zip(continuations, theirs["continuations"], strict=True)
  ]
  figures["transformers_perplexity"] = perplexity
  figures["worst_question_nll_difference"] = float(worst)
  figures["same_continuations"] = sum(same)
  print(
    f"transformers: perplexity {perplexity:.4f} over {sum(theirs['counts']):,}"
    f" tokens; greatest difference of a question's nats {worst:.2e};"
    f" {sum(same)} of {len(same)} continuations equal"
  )
  return (
    theirs["counts"] == figures["counts"]
    and f"{perplexity:.3g}" == f"{figures['perplexity']:.3g}"
    and all(same)
  )


def main() -> int:
  """Returns 0, or 1 where transformers differs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("model")
  parser.add_argument("--gsm8k", required=True, help="test.jsonl")
  parser.add_argument("--questions", type=int, help="of the perplexity; all")
  parser.add_argument("--answers", type=int, default=200, help="0: none")
  parser.add_argument("--prefix", default="", help="before texts, as <s>")
  parser.add_argument("--prompt_template", default=CHATML)
  parser.add_argument("--max_tokens", type=int, default=256)
  parser.add_argument("--continue_tokens", type=int, default=40)
  parser.add_argument("--batch", type=int, default=20)
  parser.add_argument("--export", help="folder to make")
  parser.add_argument("--transformers_python", help="interpreter")
  parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
  args = parser.parse_args()
  if args.transformers_python and not args.export:
    parser.error("--transformers_python needs --export, which it reads")

  begin = time.perf_counter()
  config, params = models.load_pretrained(args.model)
  jax.block_until_ready(params)
  count = models.num_params(config)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(config)
  print(
    f"{count:,} parameters, {4 * count / 2**20:,.0f} MiB in float32, loaded in"
    f" {time.perf_counter() - begin:.1f} s; the process's peak is"
    f" {peak / 2**20:,.0f} MiB"
  )
  vocabulary = huggingface_vocabulary(args.model)
  examples = gsm8k_task(heldout_path=args.gsm8k).examples("heldout")

  def encode(text):
    return vocabulary.encode(args.prefix + text)

  replies = greedy(
    *(config, params, vocabulary, [encode(t) for t in TEXTS]),
    *(len(TEXTS), args.continue_tokens),
  )
  for text, (_, reply, _) in zip(TEXTS, replies, strict=True):
    print(f"  {text} |{reply}".replace("\n", "\\n"))
  rows = [encode(e.question) for e in examples[: args.questions]]
  nlls = question_nlls(config, params, rows, args.batch)
  counts = [len(row) - 1 for row in rows]
  perplexity = math.exp(nlls.sum() / sum(counts))
  print(
    f"perplexity {perplexity:.4f} on {len(rows):,} questions,"
    f" {sum(counts):,} tokens"
  )
  figures = {
    "model": pathlib.Path(args.model).name,
    "parameters": count,
    "questions": len(rows),
    "perplexity": perplexity,
    "nlls": nlls.tolist(),
    "counts": counts,
  }
  agrees = True
  if args.export:
    models.save_huggingface(
      args.export, config, params, tokenizer_files_from=args.model
    )
  if args.transformers_python:
    continued = [ids for ids, *_ in replies]
    agrees = compare(args, vocabulary, figures, continued)
    print("the same in three digits" if agrees else "NOT the same")
  if args.answers:
    chosen = examples[: args.answers]
    prompts = [
      vocabulary.encode(
        args.prefix + args.prompt_template.replace("{question}", e.question)
      )
      for e in chosen
    ]
    replies = greedy(
      *(config, params, vocabulary, prompts, args.batch, args.max_tokens)
    )
    right = answered(chosen, replies)
    low, high = wilson_interval(right, len(chosen))
    figures |= {"answers": len(chosen), "right": right}
    print(
      f"GSM8K: {right} of {len(chosen)} right, {right / len(chosen):.1%}"
      f" [{low:.1%}, {high:.1%}]; {sum(e for *_, e in replies)} ended within"
      f" {args.max_tokens} tokens"
    )
    print(f"  the first: {replies[0][1]!r}")
  if args.json:
    args.json.write_text(json.dumps(figures) + "\n")
  return 0 if agrees else 1


if __name__ == "__main__":
  sys.exit(main())
