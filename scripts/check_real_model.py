"""Says how a published model does here, and beside `transformers`.

  python scripts/check_real_model.py --model SmolLM2-135M-Instruct.Q4_1.gguf \
    --data gsm8k/test.jsonl --transformers_python /path/to/python

Prints greedy continuations, the perplexity of GSM8K's questions and the share of
problems that are answered right, each with its 95 % interval. With
--transformers_python, an interpreter that has torch and transformers, those say
the same: of the folder itself, or of the folder that a .gguf file is exported
to; the exit status is 1 where the perplexities differ in three digits or the
continuations at all, and 2 where something that is given can't be used.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import models
from rlvr.data import chat_prompt, gsm8k_task, huggingface_vocabulary
from rlvr.evaluate import decode_responses
from rlvr.evaluation import ratio_interval, wilson_interval
from rlvr.sampling import Sampling, sample
from rlvr.types import Prompts, Verdict
from rlvr.verifiers import math_verifier
from rlvr.verifiers.answers import DEFAULT_SOURCES

TEXTS = (
  "Once upon a time, there was a little",
  "The sun rises in the",
  "The capital of France is",
)
_STEP = 64  # widths of padded batches are multiples: few compilations


def padded(rows, width, left):
  """Returns tokens and mask of rows of ids."""
  tokens = np.zeros((len(rows), width), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(rows):
    part = slice(width - len(row), width) if left else slice(0, len(row))
    tokens[i, part], mask[i, part] = row, True
  return jnp.asarray(tokens), jnp.asarray(mask)


def batches(rows, size):
  """Yields `size` indices of rows by length, the last of them again and again.

  With each the rows' width, and how many of the indices are no repetition.
  """
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  for start in range(0, len(rows), size):
    chosen = order[start : start + size]
    width = -(-len(rows[chosen[-1]]) // _STEP) * _STEP
    yield chosen + chosen[-1:] * (size - len(chosen)), width, len(chosen)


def nats_of(config, params, rows, size):
  """Returns each row's negative log-likelihood in nats, but its first token's."""

  @jax.jit
  def nats(params, tokens, mask):
    hidden = models.forward(params, config, tokens, mask)
    found = models.token_statistics(
      params, config, hidden[:, :-1], tokens[:, 1:], temperature=1.0
    )
    return -jnp.where(mask[:, 1:], found.logprobs, 0.0).sum(-1)

  found = np.zeros(len(rows))
  for chosen, width, _ in batches(rows, size):
    tokens, mask = padded([rows[i] for i in chosen], width, left=False)
    found[chosen] = np.asarray(nats(params, tokens, mask))
  return found


def continued(config, params, vocabulary, rows, size, sampling, seed=0):
  """Returns each row's continuation as (ids, text, whether it ended)."""
  run = jax.jit(
    functools.partial(sample, sampling=sampling, group_size=1),
    static_argnums=1,
  )
  found = [None] * len(rows)
  for chosen, width, count in batches(rows, size):
    tokens, mask = padded([rows[i] for i in chosen], width, left=True)
    nothing = jnp.zeros((size, 1), jnp.int32)
    prompts = Prompts(
      tokens=tokens,
      mask=mask,
      answer_tokens=nothing,
      answer_mask=nothing.astype(bool),
    )
    # A row's number names its noise: the batches change nothing.
    ids = jnp.asarray(chosen, jnp.int32)
    key = jax.random.key(seed)
    rollout = run(params, config, prompts, key, response_ids=ids)
    rollout = jax.device_get(rollout)
    texts = decode_responses(vocabulary, rollout)
    for row, i in enumerate(chosen[:count]):
      kept = rollout.tokens[row][rollout.completion_mask[row]].tolist()
      found[i] = kept, texts[row], bool(rollout.finished[row])
  return found


def answered(examples, replies):
  """Returns whether each reply is right, by math-verify."""
  verifier = math_verifier(
    num_workers=1,
    time_limit_s=20.0,
    truncated="verify",
    # A model that nobody told how to mark its answer: the last number counts.
    sources=(*DEFAULT_SOURCES, "last_number"),
  )
  try:
    signals = verifier.verify(
      [text for _, text, _ in replies],
      [example.answer for example in examples],
      [example.metadata for example in examples],
      np.array([ended for *_, ended in replies]),
    )
  finally:
    verifier.close()
  return next(iter(signals.verdicts.values())) == Verdict.CORRECT


def perplexity(nats, counts):
  """Returns the perplexity and the ends of its interval over the texts."""
  return [math.exp(x) for x in ratio_interval(nats, counts)]


# Of the other interpreter's processes: nothing of this one's packages.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}


def check_transformers(python):
  """Raises ValueError where an interpreter can't import transformers."""
  command = [python, "-c", "import torch, transformers"]
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, env=_ENVIRONMENT
    )
  except OSError as error:
    raise ValueError(
      f"--transformers_python={python} can't be started ({error.strerror}): give"
      " the path of a Python that has torch and transformers"
    ) from error
  if done.returncode:
    said = (
      done.stderr.strip() or f"exit status {done.returncode}"
    ).splitlines()
    raise ValueError(
      f"--transformers_python={python} can't import torch and transformers"
      f" ({said[-1]}): give the path of a Python that has both"
    )


def theirs(args, folder):
  """Returns what transformers says of a folder, in a process of its own."""
  script = pathlib.Path(__file__).with_name("transformers_figures.py")
  command = [
    *(args.transformers_python, script, folder, "--data", args.data),
    *("--prefix", args.prefix, "--num_questions", args.num_questions),
    *("--texts", json.dumps(TEXTS), "--num_tokens", args.continuation_tokens),
  ]
  done = subprocess.run(
    [str(part) for part in command],
    capture_output=True,
    text=True,
    env=_ENVIRONMENT,
  )
  if done.returncode:
    raise RuntimeError(
      f"--transformers_python={args.transformers_python} failed on {folder}:\n"
      f"{done.stderr[-2000:]}"
    )
  return json.loads(done.stdout.splitlines()[-1])


def compare(figures, nats, counts, continuations, found):
  """Returns whether transformers found the same; fills in `figures`."""
  if found["counts"] != counts:
    print("transformers cuts the questions into other tokens")
    return False
  figures["transformers_perplexity"] = perplexity(found["nats"], counts)
  figures["perplexity_ratio"] = perplexity(
    nats - np.array(found["nats"]), counts
  )
  worst = float(np.abs(nats - found["nats"]).max())
  figures["greatest_difference_nats"] = worst
  equal = [a == b for a, b in zip(continuations, found["ids"], strict=True)]
  figures["equal_continuations"] = sum(equal)
  value, *_ = figures["transformers_perplexity"]
  ratio, low, high = figures["perplexity_ratio"]
  print(
    f"transformers {found['transformers']}: perplexity {value:.4f}; ours over"
    f" theirs {ratio:.7f} [{low:.7f}, {high:.7f}]; greatest difference of a"
    f" question {worst:.1e} nats; {sum(equal)} of {len(equal)} continuations"
    " equal"
  )
  return f"{value:.3g}" == f"{figures['perplexity'][0]:.3g}" and all(equal)


def accuracy(args, config, params, vocabulary, examples):
  """Returns figures of the problems that are answered right."""
  # A template says itself how a text begins.
  template = args.prompt_template or chat_prompt(
    args.model, default=args.prefix + "{question}"
  )
  prompts = [
    vocabulary.encode(template.replace("{question}", e.question))
    for e in examples
  ]
  sampling = Sampling(
    max_tokens=args.max_new_tokens,
    end_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    temperature=args.temperature,
  )
  replies = continued(
    *(config, params, vocabulary, prompts, args.batch, sampling, args.seed)
  )
  right = answered(examples, replies)
  share, n = float(np.mean(right)), len(examples)
  low, high = wilson_interval(int(right.sum()), n)
  ended = sum(e for *_, e in replies)
  print(
    f"GSM8K: {right.sum()} of {n} right, {share:.1%} [{low:.1%}, {high:.1%}];"
    f" temperature {args.temperature}, {ended} ended within"
    f" {args.max_new_tokens} tokens; prompt {template!r}"
  )
  for i in sorted({0, int(np.argmax(right))}):
    verdict = "right" if right[i] else "wrong"
    print(f"  {verdict}, for {examples[i].answer}: {replies[i][1]!r}")
  return {
    "accuracy": [share, low, high],
    "right": int(right.sum()),
    "problems": n,
    "ended": ended,
    "max_new_tokens": args.max_new_tokens,
    "temperature": args.temperature,
    "prompt": template,
  }


def parse_args(argv):
  """Returns the flags of a command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--model", required=True, help="Hugging Face folder or .gguf file")
  add("--data", required=True, help="GSM8K's test.jsonl")
  add("--transformers_python", help="an interpreter")
  add("--export", help="folder to make of the model; a .gguf file's may go")
  add("--num_questions", type=int, default=200, help="of the perplexity")
  add("--num_problems", type=int, default=200, help="to answer; 0: none")
  add("--prefix", default="", help="before texts without template, as <s>")
  add("--prompt_template", help="with {question}; by default the model's chat")
  add("--temperature", type=float, default=0.0, help="of answers; 0: greedy")
  add("--seed", type=int, default=0, help="of answers with a temperature")
  add("--max_new_tokens", type=int, default=256, help="of an answer")
  add("--continuation_tokens", type=int, default=40)
  add("--batch", type=int, default=20, help="rows computed at a time")
  add("--output", type=pathlib.Path, help="JSON file of the figures")
  args = parser.parse_args(argv)
  if args.num_questions < 2:
    parser.error(f"--num_questions={args.num_questions}: give at least 2")
  return args


def read_examples(args):
  """Returns GSM8K's problems; raises ValueError where they are too few."""
  examples = gsm8k_task(heldout_path=args.data).examples("heldout")
  if len(examples) < 2:
    raise ValueError(
      f"--data={args.data} holds {len(examples)} problems: give at least 2, as"
      " in GSM8K's test.jsonl"
    )
  return examples


def main(argv=None) -> int:
  """Returns 0, 1 where transformers differs, 2 where it can't be said."""
  args = parse_args(argv)
  try:
    return check(args)
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    if os.environ.get("RLVR_TRACEBACK"):
      raise
    print(f"error: {error}", file=sys.stderr)
    return 2


def check(args) -> int:
  """Returns 0, or 1 where transformers differs."""
  # What takes no time first: a model's figures take many minutes.
  examples = read_examples(args)
  if args.export and os.path.exists(args.export):
    raise ValueError(f"--export={args.export} exists: give another folder")
  if args.transformers_python:
    check_transformers(args.transformers_python)
  jax.devices()  # what JAX itself takes is not the model's
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  config, params = models.load_pretrained(args.model)
  jax.block_until_ready(params)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  count = models.num_params(config)
  size = 4 * count
  print(config)
  print(
    f"{count:,} parameters, {size / 2**20:,.0f} MiB in float32; the process's"
    f" peak rose by {(peak - before) * 1024 / size:.2f} times that"
  )
  vocabulary = huggingface_vocabulary(args.model)

  def encode(text):
    return vocabulary.encode(args.prefix + text)

  # Without end: transformers is told to go on as well.
  greedy = Sampling(
    max_tokens=args.continuation_tokens,
    end_id=-1,
    pad_id=vocabulary.pad_id,
    temperature=0.0,
  )
  replies = continued(
    *(config, params, vocabulary, [encode(t) for t in TEXTS]),
    *(len(TEXTS), greedy),
  )
  for text, (_, reply, _) in zip(TEXTS, replies, strict=True):
    print(f"  {text} |{reply}".replace("\n", "\\n"))
  rows = [encode(e.question) for e in examples[: args.num_questions]]
  nats = nats_of(config, params, rows, args.batch)
  counts = [len(row) - 1 for row in rows]
  figures = {
    "model": pathlib.Path(args.model).name,
    "parameters": count,
    "questions": len(rows),
    "tokens": sum(counts),
    "perplexity": perplexity(nats, counts),
    "continuations": [reply for _, reply, _ in replies],
  }
  value, low, high = figures["perplexity"]
  print(
    f"perplexity {value:.4f} [{low:.4f}, {high:.4f}] of {len(rows):,} questions,"
    f" {sum(counts):,} tokens"
  )
  agrees = True
  with contextlib.ExitStack() as stack:
    folder = args.model
    if args.export or (args.transformers_python and folder.endswith(".gguf")):
      folder = args.export or (
        pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "hf"
      )
      models.save_huggingface(
        folder, config, params, tokenizer_files_from=args.model
      )
    if args.transformers_python:
      ids = [ids for ids, *_ in replies]
      found = theirs(args, folder)
      agrees = compare(figures, nats, counts, ids, found)
      figures["agrees"] = agrees
      print("the same in three digits" if agrees else "NOT the same")
  if args.num_problems:
    figures |= accuracy(
      *(args, config, params, vocabulary, examples[: args.num_problems])
    )
  if args.output:
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
  return 0 if agrees else 1


if __name__ == "__main__":
  sys.exit(main())
