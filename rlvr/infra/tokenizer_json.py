"""Hugging Face's `tokenizer.json` made from a token list.

GGUF files and llama2.c checkpoints carry their vocabulary as a list of tokens
with merges (byte-level BPE, as GPT-2's) or with scores (SentencePiece's BPE, as
Llama's). Both are written here as the `tokenizers` package reads them, so that
such a model has one kind of vocabulary with all others.

Formats: https://huggingface.co/docs/tokenizers/api/models and
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import collections
import functools
import json
import os
from collections.abc import Sequence
from typing import Any

from rlvr.infra.gguf_files import GGUFFile

# GGUF's and SentencePiece's kinds of token.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SPACE = "\u2581"  # SentencePiece's mark of a space

# How a text is cut before merging, by the families' published tokenizers; the
# names are those of `tokenizer.ggml.pre`.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
  r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
  return {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": use_regex,
  }


def _split(pattern: str) -> dict[str, Any]:
  split = {
    "type": "Split",
    "pattern": {"Regex": pattern},
    "behavior": "Isolated",
    "invert": False,
  }
  return {"type": "Sequence", "pretokenizers": [split, _byte_level(False)]}


_DIGITS = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS = {
  "gpt-2": _byte_level(True),
  "smollm": {
    "type": "Sequence",
    "pretokenizers": [_DIGITS, _byte_level(True)],
  },
  "qwen2": _split(_WORDS.format(digits=r"\p{N}")),
  "llama-bpe": _split(_WORDS.format(digits=r"\p{N}{1,3}")),
}


def byte_level_bpe(
  tokens: Sequence[str],
  merges: Sequence[str],
  kinds: Sequence[int],
  *,
  pre_tokenizer: str,
) -> str:
  """Returns the tokenizer.json of a byte-level BPE vocabulary.

  Args:
    tokens: the token of each id, bytes as GPT-2's printable characters.
    merges: "left right", the first merged first.
    kinds: of each token: `NORMAL`, `CONTROL`, ...
    pre_tokenizer: how texts are cut: "gpt-2", "smollm", "qwen2", "llama-bpe".

  Raises:
    ValueError: an unknown pre_tokenizer, or kinds of another length.
  """
  if pre_tokenizer not in _PRE_TOKENIZERS:
    raise ValueError(
      f"pre_tokenizer={pre_tokenizer!r} is not known; there are"
      f" {sorted(_PRE_TOKENIZERS)}: give the family's own tokenizer.json"
    )
  model = _bpe_model(
    tokens,
    [merge.split(" ", 1) for merge in merges],
    # Llama 3 has words that no sequence of its merges makes.
    ignore_merges=pre_tokenizer == "llama-bpe",
  )
  return _tokenizer(
    tokens,
    kinds,
    # Of the families here, Qwen's alone composes characters.
    normalizer={"type": "NFC"} if pre_tokenizer == "qwen2" else None,
    pre_tokenizer=_PRE_TOKENIZERS[pre_tokenizer],
    decoder=_byte_level(True),
    model=model,
  )


def sentencepiece_bpe(
  tokens: Sequence[str],
  scores: Sequence[float],
  kinds: Sequence[int],
  *,
  add_space_prefix: bool = True,
) -> str:
  """Returns the tokenizer.json of a SentencePiece BPE vocabulary with scores.

  SentencePiece merges the neighbours whose piece has the highest score; so the
  merges are all ways to cut a piece in two pieces, by falling score.

  Args:
    tokens: the piece of each id, spaces as U+2581, bytes as "<0x0A>".
    scores: of each piece.
    kinds: of each token: `NORMAL`, `CONTROL`, `BYTE`, ...
    add_space_prefix: whether a text begins with a space that it doesn't have.

  Raises:
    ValueError: no unknown token, or lengths that differ.
  """
  if len(scores) != len(tokens):
    raise ValueError(f"{len(scores)} scores for {len(tokens)} tokens")
  _check_kinds(tokens, kinds)
  unknown = [
    t for t, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN
  ]
  if not unknown:
    raise ValueError("the vocabulary has no unknown token (kind 2)")
  pieces = {
    token: index
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    if kind in (NORMAL, USER_DEFINED)
  }
  merges = []
  for piece in sorted(pieces, key=lambda p: (-scores[pieces[p]], pieces[p])):
    cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    merges += [
      list(cut) for cut in cuts if cut[0] in pieces and cut[1] in pieces
    ]
  spaces = {
    "type": "Replace",
    "pattern": {"String": " "},
    "content": _SPACE,
  }
  prefix = [{"type": "Prepend", "prepend": _SPACE}] if add_space_prefix else []
  strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
  decoders = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    *(strip if add_space_prefix else []),
  ]
  return _tokenizer(
    tokens,
    kinds,
    normalizer={"type": "Sequence", "normalizers": [*prefix, spaces]},
    pre_tokenizer=None,
    decoder={"type": "Sequence", "decoders": decoders},
    model=_bpe_model(tokens, merges, unknown=unknown[0]),
  )


def _bpe_model(
  tokens: Sequence[str],
  merges: list[list[str]],
  unknown: str | None = None,
  ignore_merges: bool = False,
) -> dict[str, Any]:
  return {
    "type": "BPE",
    "ignore_merges": ignore_merges,
    "dropout": None,
    "unk_token": unknown,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": unknown is not None,
    "byte_fallback": unknown is not None,
    "vocab": {token: index for index, token in enumerate(tokens)},
    "merges": merges,
  }


def _tokenizer(
  tokens: Sequence[str], kinds: Sequence[int], **parts: Any
) -> str:
  _check_kinds(tokens, kinds)
  counts = collections.Counter(tokens)
  if doubled := sorted(t for t, n in counts.items() if n > 1)[:5]:
    raise ValueError(f"tokens that occur twice in the vocabulary: {doubled}")
  added = [
    {
      "id": index,
      "content": token,
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
      "normalized": False,
      "special": kind != USER_DEFINED,
    }
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    if kind in (UNKNOWN, CONTROL, USER_DEFINED)
  ]
  return json.dumps(
    {
      "version": "1.0",
      "truncation": None,
      "padding": None,
      "added_tokens": added,
      "post_processor": None,
      **parts,
    },
    ensure_ascii=False,
  )


def _check_kinds(tokens: Sequence[str], kinds: Sequence[int]) -> None:
  if len(kinds) != len(tokens):
    raise ValueError(f"{len(kinds)} kinds for {len(tokens)} tokens")


def gguf_tokenizer(path: str | os.PathLike) -> tuple[str, dict[str, Any]]:
  """Returns a GGUF file's vocabulary as (tokenizer.json, tokenizer_config).

  The second holds `eos_token`, `pad_token`, `bos_token` and `chat_template`
  as texts, where the file names them.

  Raises:
    ValueError: a kind of vocabulary that isn't known.
  """
  path = os.path.abspath(path)
  return _gguf_tokenizer(
    path, os.path.getmtime(path) if os.path.exists(path) else 0
  )


@functools.lru_cache(maxsize=4)
def _gguf_tokenizer(path: str, modified: float) -> tuple[str, dict[str, Any]]:
  del modified  # a part of the cache's key
  file = GGUFFile(path)

  def get(name: str, *default: Any) -> Any:
    return file.get(f"tokenizer.ggml.{name}", *default)

  tokens, kinds, kind = get("tokens"), get("token_type"), get("model")
  if kind == "gpt2":
    text = byte_level_bpe(
      tokens, get("merges"), kinds, pre_tokenizer=get("pre", "gpt-2")
    )
  elif kind == "llama":
    text = sentencepiece_bpe(
      tokens,
      get("scores"),
      kinds,
      add_space_prefix=get("add_space_prefix", True),
    )
  else:
    raise ValueError(
      f"{path}: tokenizer.ggml.model={kind!r} is neither 'gpt2' nor 'llama':"
      " give the family's tokenizer.json as VOCABULARY_PATH"
    )
  named = {"eos_token": "eos", "pad_token": "padding", "bos_token": "bos"}
  config = {}
  for option, name in named.items():
    index = get(f"{name}_token_id", None)
    if index is not None and 0 <= index < len(tokens):
      config[option] = tokens[index]
  if template := file.get("tokenizer.chat_template", None):
    config["chat_template"] = template
  return text, config
