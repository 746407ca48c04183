"""Writes a run's checkpoint as a Hugging Face folder.

  python -m rlvr.models.export --run=runs/first --output=exported

The model and its tokenizer are those of the run's own configuration
(`config_given.gin` in the run's folder); flags replace what differs. Adapters of
a run with LoRA are merged into the weights.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import gin
from rlvr.infra.checkpoints import restore_params
from rlvr.models.config import ModelConfig
from rlvr.models.decoder import abstract_params
from rlvr.models.huggingface import save_huggingface


def configured(run: pathlib.Path) -> tuple[ModelConfig, str | None]:
  """Returns the run's model and its tokenizer's path, None without one.

  Raises:
    FileNotFoundError: no config_given.gin in the folder.
    ValueError: its configuration binds no model.
  """
  file = run / "config_given.gin"
  if not file.is_file():
    raise FileNotFoundError(f"--run={run}: no {file.name} in this folder")
  gin.clear_config()
  gin.parse_config(file.read_text(encoding="utf-8"))
  try:
    model = _value("train.train.model")
  except ValueError as error:
    raise ValueError(f"{file}: no train.train.model ({error})") from error
  try:
    tokenizer = _value("data.huggingface_vocabulary.path")
  except ValueError:  # bytes or a SentencePiece model
    tokenizer = None
  return model, tokenizer


def _value(parameter: str) -> Any:
  """Returns what gin would give to the parameter."""
  value = gin.query_parameter(parameter)
  while isinstance(value, gin.config.ConfigurableReference):
    value = value.scoped_configurable_fn()
  return value


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags of a command line."""
  parser = argparse.ArgumentParser(
    prog="python -m rlvr.models.export",
    description="Writes a run's checkpoint as a Hugging Face folder.",
  )
  parser.add_argument(
    "--run", type=pathlib.Path, required=True, help="folder of the run"
  )
  parser.add_argument(
    "--output", type=pathlib.Path, required=True, help="folder to make"
  )
  parser.add_argument("--step", type=int, help="checkpoint; the newest")
  parser.add_argument(
    "--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"]
  )
  parser.add_argument(
    "--family", help="llama, qwen2, ...: by default the first that can be it"
  )
  parser.add_argument(
    "--max_shard_gb", type=float, default=5.0, help="10^9 bytes of a file"
  )
  parser.add_argument(
    "--tokenizer",
    help="folder, tokenizer.json or .gguf file; by default the run's",
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  args = parse_args(sys.argv[1:] if argv is None else argv)
  try:
    config, tokenizer = configured(args.run)
    params = restore_params(
      args.run / "checkpoints", abstract_params(config), args.step
    )
    folder = save_huggingface(
      args.output,
      config,
      params,
      dtype=args.dtype,
      max_shard_bytes=int(args.max_shard_gb * 1e9),
      family=args.family,
      tokenizer_files_from=args.tokenizer or tokenizer,
    )
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"{folder}: " + ", ".join(sorted(p.name for p in folder.iterdir())))
  return 0


if __name__ == "__main__":
  sys.exit(main())
