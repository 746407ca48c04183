"""The tokenizer's files of a checkpoint, carried over to an exported folder."""

import json
import os
import pathlib
import shutil
from typing import Any

from rlvr.infra.tokenizer_json import gguf_tokenizer

_NAMES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_tokenizer_files(
  folder: pathlib.Path, source: str | os.PathLike
) -> list[str]:
  """Writes the tokenizer of `source` into `folder`; returns the files' names.

  Args:
    folder: exists.
    source: a Hugging Face folder, its tokenizer.json, or a .gguf file.

  Raises:
    FileNotFoundError: no tokenizer.json there.
  """
  given = pathlib.Path(source)
  if given.suffix == ".gguf":
    text, config = gguf_tokenizer(given)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
      json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return ["tokenizer.json", "tokenizer_config.json"]
  origin = _folder_of(given)
  written = [name for name in _NAMES if (origin / name).is_file()]
  for name in written:
    shutil.copyfile(origin / name, folder / name)
  return written


def token_ids_of(source: str | os.PathLike) -> dict[str, Any]:
  """Returns the ids of the tokens that begin, end and pad, as far as known.

  From the folder's generation_config.json and config.json, which may give
  several that end, or the GGUF file's metadata.

  Args:
    source: as of `write_tokenizer_files`.

  Raises:
    FileNotFoundError: no tokenizer.json there.
  """
  given = pathlib.Path(source)
  if given.suffix == ".gguf":
    text, config = gguf_tokenizer(given)
    vocabulary = json.loads(text)["model"]["vocab"]
    return {
      f"{name}_id": vocabulary[config[name]]
      for name in ("bos_token", "eos_token", "pad_token")
      if name in config
    }
  origin = _folder_of(given)
  found: dict[str, Any] = {}
  for name in ("config.json", "generation_config.json"):
    file = origin / name
    if file.is_file():
      fields = json.loads(file.read_text(encoding="utf-8"))
      found |= {
        key: fields[key] for key in _TOKEN_IDS if fields.get(key) is not None
      }
  return found


def _folder_of(given: pathlib.Path) -> pathlib.Path:
  folder = given if given.is_dir() else given.parent
  if not (folder / "tokenizer.json").is_file():
    raise FileNotFoundError(
      f"{given} has no tokenizer.json: give the folder of a model, a"
      " tokenizer.json or a .gguf file"
    )
  return folder
