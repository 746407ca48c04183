#!/usr/bin/env python3
"""Trains a SentencePiece model for small experiments.

    python scripts/train_sentencepiece.py --input train.jsonl \\
        --field question --field answer --vocab_size 1024 --output gsm8k.model

Ids are 0 for padding, 1 for the end, 2 for the unknown, as
`rlvr.data.sentencepiece_vocabulary` wants them. Three settings differ from
SentencePiece's own, for the sake of answers that are compared by token: digits
are pieces of their own; no space is put before a text, so that "42" alone and
"42" behind "#" are the same tokens; and white space (line ends, which separate
steps) is kept as it is.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2


def read_texts(paths: Sequence[str], fields: Sequence[str]) -> Iterator[str]:
  """Yields texts: lines of text files, the named fields of JSON lines.

  Args:
    paths: files; those named `*.jsonl` are JSON lines.
    fields: fields to take from each record.

  Raises:
    FileNotFoundError: no such file.
    ValueError: JSON lines without `fields`, a line that is no JSON object, or
      one without text under a field.
  """
  for path in map(Path, paths):
    if not path.exists():
      raise FileNotFoundError(f"--input {path}: there is no such file")
    if path.suffix == ".jsonl" and not fields:
      raise ValueError(f"--input {path}: name the fields to read with --field")
    with path.open(encoding="utf-8") as lines:
      for number, line in enumerate(lines, start=1):
        if not line.strip():
          continue
        if path.suffix != ".jsonl":
          yield line.rstrip("\n")
          continue
        where = f"{path}, line {number}"
        try:
          record = json.loads(line)
        except json.JSONDecodeError as error:
          raise ValueError(f"{where}: no JSON ({error})") from error
        for field in fields:
          text = record.get(field) if isinstance(record, dict) else None
          if not isinstance(text, str):
            raise ValueError(f"{where}: no text under --field {field}")
          yield text


def train(
  texts: Iterator[str],
  *,
  vocab_size: int,
  output: str,
  model_type: str = "bpe",
  byte_fallback: bool = False,
) -> int:
  """Writes a model trained on the texts and returns how many there were.

  Args:
    texts: what to train on.
    vocab_size: pieces, the three special ones included.
    output: the model's file.
    model_type: "bpe" or "unigram".
    byte_fallback: whether unseen characters become bytes (256 pieces) in place
      of the unknown token.

  Raises:
    ValueError: nothing to train on, or a vocabulary that these texts can't
      fill or that doesn't hold their characters.
  """
  import sentencepiece

  kept = [text for text in texts if text.strip()]
  if not kept:
    raise ValueError("there is no text to train on: --input is empty")
  model = io.BytesIO()
  # Line ends can't stand in SentencePiece's own input lines: as a piece that is
  # always cut out they need not be learnt.
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(line for text in kept for line in text.split("\n")),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNK_ID,
      bos_id=-1,
      character_coverage=1.0,
      split_digits=True,
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      normalization_rule_name="identity",
      user_defined_symbols=["\n"],
      byte_fallback=byte_fallback,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"--vocab_size {vocab_size} doesn't suit these {len(kept)} texts:"
      f" {str(error).strip()[-200:]}"
    ) from error
  Path(output).write_bytes(model.getvalue())
  return len(kept)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit status."""
  parser = argparse.ArgumentParser(
    description="Trains a SentencePiece model (0 pads, 1 ends, 2 unknown)."
  )
  parser.add_argument(
    "--input", nargs="+", required=True, help="text files or *.jsonl"
  )
  parser.add_argument(
    "--field",
    action="append",
    default=[],
    help="field of JSON lines to read; give it again for more",
  )
  parser.add_argument("--vocab_size", type=int, required=True)
  parser.add_argument("--output", required=True, help="the model's file")
  parser.add_argument("--model_type", choices=("bpe", "unigram"), default="bpe")
  parser.add_argument("--byte_fallback", action="store_true")
  args = parser.parse_args(argv)
  try:
    count = train(
      read_texts(args.input, args.field),
      vocab_size=args.vocab_size,
      output=args.output,
      model_type=args.model_type,
      byte_fallback=args.byte_fallback,
    )
  except (OSError, ValueError) as error:
    print(f"train_sentencepiece: {error}", file=sys.stderr)
    return 1
  print(f"{args.output}: {args.vocab_size} pieces from {count} texts")
  return 0


if __name__ == "__main__":
  sys.exit(main())
