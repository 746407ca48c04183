"""Vocabularies: text to token ids and back, all of them seqio's kind.

Every vocabulary has `encode(text) -> list of ids` (without end token),
`decode(ids) -> text` (through the first end token, padding and end left out),
`vocab_size`, `eos_id` and `pad_id`. Give `decode` the tokens that a mask holds:
where padding and end are one id, a padded row would end before it begins.
"""

import functools
import json
from typing import TYPE_CHECKING, Any

from etils import epath

from rlvr.data.late import import_seqio, import_tensorflow
from rlvr.infra.tokenizer_json import gguf_tokenizer

if TYPE_CHECKING:
  import seqio

# End and padding tokens under the names that model families give them; used
# where neither the caller nor tokenizer_config.json names one.
_EOS_NAMES = (
  "</s>",
  "<eos>",
  "<|im_end|>",
  "<|eot_id|>",
  "<end_of_turn>",
  "<|end_of_text|>",
  "<|endoftext|>",
)
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")


def byte_vocabulary() -> "seqio.Vocabulary":
  """Returns the vocabulary of UTF-8 bytes: 0 pads, 1 ends, byte b is b + 3."""
  return import_seqio().ByteVocabulary()


def sentencepiece_vocabulary(path: str) -> "seqio.Vocabulary":
  """Returns the vocabulary of a SentencePiece model.

  Args:
    path: the model's file (`scripts/train_sentencepiece.py` makes one).

  Raises:
    FileNotFoundError: no such file.
    ValueError: no SentencePiece model, or one without end token or with a
      padding id that isn't 0, as seqio wants it.
  """
  file = _existing(path, "sentencepiece_vocabulary.path")
  vocabulary = import_seqio().SentencePieceVocabulary(str(file))
  try:
    tokenizer = vocabulary.tokenizer
  except Exception as error:  # protobuf and SentencePiece have their own kinds
    raise ValueError(
      f"sentencepiece_vocabulary.path={path!r} is no SentencePiece model"
      f" ({error}); for a tokenizer.json, use huggingface_vocabulary"
    ) from error
  if tokenizer.pad_id() != 0 or tokenizer.eos_id() < 0:
    raise ValueError(
      f"SentencePiece model {path!r} has pad_id={tokenizer.pad_id()} and"
      f" eos_id={tokenizer.eos_id()}; padding must be 0 and an end token must"
      " be there: train it with pad_id=0 and eos_id=1"
      " (scripts/train_sentencepiece.py), or use the family's tokenizer.json"
      " with huggingface_vocabulary"
    )
  return vocabulary


def huggingface_vocabulary(
  path: str, eos_token: str | None = None, pad_token: str | None = None
) -> "seqio.Vocabulary":
  """Returns the vocabulary of a Hugging Face `tokenizer.json`, or of a GGUF file.

  Special tokens written in a text are encoded as such (chat templates need
  that); none is added, and other than padding and end they are decoded as text.

  Args:
    path: the `tokenizer.json`, the folder that holds it, or a .gguf file.
    eos_token: the end token's text; None takes it from the
      `tokenizer_config.json` beside it or the GGUF file's metadata, or else the
      only well-known name in the vocabulary.
    pad_token: the same for padding.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no tokenizer.json, a token that isn't in it, or no way to tell
      which token ends or pads.
  """
  given = epath.Path(path)
  if given.suffix == ".gguf":
    text, configured = gguf_tokenizer(
      _existing(path, "huggingface_vocabulary.path")
    )
    return _huggingface_class()(path, text, configured, eos_token, pad_token)
  file = given / "tokenizer.json" if given.is_dir() else given
  file = _existing(str(file), "huggingface_vocabulary.path")
  return _huggingface_class()(
    str(file), file.read_text(), _configured(file), eos_token, pad_token
  )


def required_vocab_size(vocabulary: "seqio.Vocabulary") -> int:
  """Returns how many token ids a model must know for this vocabulary.

  One more than the greatest id that encoding, padding or ending can produce; a
  model's vocabulary may be larger, never smaller.
  """
  ids = (vocabulary.eos_id, vocabulary.pad_id, vocabulary.unk_id)
  return max(vocabulary.vocab_size, *(i + 1 for i in ids if i is not None))


def _existing(path: str, option: str) -> epath.Path:
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(f"{option}={path!r}: there is no such file")
  return file


def _configured(file: epath.Path) -> dict[str, str]:
  """Returns the tokens that the tokenizer_config.json beside `file` names."""
  config = file.parent / "tokenizer_config.json"
  if not config.exists():
    return {}
  named = json.loads(config.read_text())
  tokens = {key: named.get(key) for key in ("eos_token", "pad_token")}
  # Older files have {"content": "</s>", ...} in place of the text.
  texts = {
    key: value.get("content") if isinstance(value, dict) else value
    for key, value in tokens.items()
  }
  return {key: text for key, text in texts.items() if text}


def _named_id(
  tokenizer: Any,
  option: str,
  given: str | None,
  configured: str | None,
  known: tuple[str, ...],
  path: str,
) -> int:
  """Returns the id of the token that ends or pads; see huggingface_vocabulary."""
  name = given or configured
  if name is None:
    found = [k for k in known if tokenizer.token_to_id(k) is not None]
    if len(found) != 1:
      what = f"several of the known names, {found}" if found else "none"
      raise ValueError(
        f"{path}: no {option} is given, and the vocabulary has {what}: set"
        f" huggingface_vocabulary.{option} to the token's text"
        + (" (the end token may pad too)" if option == "pad_token" else "")
      )
    name = found[0]
  token_id = tokenizer.token_to_id(name)
  if token_id is None:
    special = sorted(
      t.content for t in tokenizer.get_added_tokens_decoder().values()
    )
    raise ValueError(
      f"{path}: {option}={name!r} is not in the vocabulary: set"
      f" huggingface_vocabulary.{option} to one of its tokens; the special"
      f" ones are {special[:20]}"
    )
  return token_id


@functools.cache
def _huggingface_class() -> type:
  """Returns the class; made late, as its base class is TensorFlow's company."""
  base: Any = import_seqio().Vocabulary

  class HuggingFaceVocabulary(base):
    """seqio's view on a `tokenizers.Tokenizer`."""

    def __init__(
      self,
      path: str,
      text: str,
      configured: dict[str, str],
      eos_token: str | None,
      pad_token: str | None,
    ):
      import tokenizers

      super().__init__()
      try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
      except Exception as error:  # the Rust side raises bare Exception
        raise ValueError(
          f"huggingface_vocabulary.path={path!r} is no tokenizer.json ({error})"
        ) from error
      # A tokenizer.json may truncate or pad by itself: nothing here does.
      tokenizer.no_truncation()
      tokenizer.no_padding()
      self._path, self._tokenizer = path, tokenizer
      self._eos_id = _named_id(
        tokenizer,
        "eos_token",
        eos_token,
        configured.get("eos_token"),
        _EOS_NAMES,
        path,
      )
      self._pad_id = _named_id(
        tokenizer,
        "pad_token",
        pad_token,
        configured.get("pad_token"),
        _PAD_NAMES,
        path,
      )
      unknown = json.loads(text).get("model", {}).get("unk_token")
      self._unk_id = None if unknown is None else tokenizer.token_to_id(unknown)
      # Ids may have gaps: the greatest counts, not how many there are.
      self._size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def eos_id(self) -> int:
      return self._eos_id

    @property
    def pad_id(self) -> int:
      return self._pad_id

    @property
    def unk_id(self) -> int | None:
      return self._unk_id

    @property
    def _base_vocab_size(self) -> int:
      return self._size

    def _encode(self, s: str | bytes) -> list[int]:
      text = s.decode() if isinstance(s, bytes) else s
      return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _decode(self, ids) -> str:
      silent = (self._eos_id, self._pad_id)
      shown = [int(i) for i in ids if i not in silent]
      return self._tokenizer.decode(shown, skip_special_tokens=False)

    def _encode_tf(self, s):
      tf = import_tensorflow()

      def encode(text):
        return tf.constant(self._encode(text.numpy()), tf.int32)

      ids = tf.py_function(encode, [s], tf.int32)
      ids.set_shape([None])
      return ids

    def _decode_tf(self, ids):
      tf = import_tensorflow()
      text = tf.py_function(
        lambda i: self._decode(i.numpy().tolist()), [ids], tf.string
      )
      text.set_shape([])
      return text

    def __eq__(self, other):
      return type(other) is type(self) and (
        self._path,
        self._eos_id,
        self._pad_id,
      ) == (other._path, other._eos_id, other._pad_id)

    def __hash__(self):
      return hash((self._path, self._eos_id, self._pad_id))

    def __str__(self) -> str:
      return f"HuggingFaceVocabulary({self._path!r})"

  return HuggingFaceVocabulary
