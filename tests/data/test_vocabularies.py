"""What every vocabulary does, and how each kind refuses what it can't use."""

import json

import numpy as np
import pytest

from rlvr.data import vocabularies

KINDS = ("bytes", "sentencepiece", "huggingface")


@pytest.fixture(params=KINDS)
def vocabulary(request, bytes_vocabulary, sentencepiece_path, tokenizer_path):
  if request.param == "bytes":
    return bytes_vocabulary
  if request.param == "sentencepiece":
    return vocabularies.sentencepiece_vocabulary(str(sentencepiece_path))
  return vocabularies.huggingface_vocabulary(str(tokenizer_path))


def test_text_comes_back_without_padding_and_end(vocabulary):
  ids = vocabulary.encode("12+20=32")
  assert vocabulary.eos_id not in ids and vocabulary.pad_id not in ids
  pad, eos = vocabulary.pad_id, vocabulary.eos_id
  assert vocabulary.decode(ids) == "12+20=32"
  assert vocabulary.decode([pad, *ids, eos, *ids, pad]) == "12+20=32"
  row = np.asarray([*ids, eos, pad], np.int32)
  assert vocabulary.decode(row) == "12+20=32"
  # Control: another text has other ids.
  assert vocabulary.encode("12+20=33") != ids


def test_tensorflow_tokenises_as_python_does(vocabulary):
  for text in ("12+20=32", "sum of 3: 20", "1"):
    ids = vocabulary.encode_tf(text).numpy()
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, vocabulary.encode(text))
    assert vocabulary.decode_tf(ids).numpy().decode() == text


def test_required_size_is_above_every_id(vocabulary):
  size = vocabularies.required_vocab_size(vocabulary)
  texts = [f"{a}+{b}={a + b} sum of" for a in range(9) for b in range(9)]
  ids = [i for text in texts for i in vocabulary.encode(text)]
  assert max([*ids, vocabulary.eos_id, vocabulary.pad_id]) < size
  assert size >= vocabulary.vocab_size


def test_bytes_by_hand(bytes_vocabulary):
  # "A" is byte 65, and three ids stand before the bytes; é is two bytes.
  assert bytes_vocabulary.encode("A") == [68]
  assert bytes_vocabulary.encode("é") == [0xC3 + 3, 0xA9 + 3]
  assert (bytes_vocabulary.pad_id, bytes_vocabulary.eos_id) == (0, 1)
  assert vocabularies.required_vocab_size(bytes_vocabulary) == 259


def test_huggingface_ids_and_special_text(tokenizer_path):
  vocabulary = vocabularies.huggingface_vocabulary(str(tokenizer_path))
  assert (vocabulary.pad_id, vocabulary.eos_id) == (5, 7)
  ids = vocabulary.encode("<|user|>1")
  assert ids[0] == 6
  assert vocabulary.decode(ids) == "<|user|>1"
  folder = vocabularies.huggingface_vocabulary(str(tokenizer_path.parent))
  assert folder == vocabulary
  other = vocabularies.huggingface_vocabulary(
    str(tokenizer_path), eos_token="<|user|>"
  )
  assert other.eos_id == 6
  assert other != vocabulary


def test_huggingface_reads_the_config_beside(tokenizer_path, tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text(tokenizer_path.read_text())
  config = {"eos_token": {"content": "<|user|>"}, "pad_token": "<|filler_1|>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  vocabulary = vocabularies.huggingface_vocabulary(str(path))
  assert (vocabulary.pad_id, vocabulary.eos_id) == (1, 6)
  given = vocabularies.huggingface_vocabulary(str(path), eos_token="<|im_end|>")
  assert given.eos_id == 7


def with_tokens(tokenizer_path, path, *, rename):
  text = tokenizer_path.read_text()
  for old, new in rename.items():
    text = text.replace(old, new)
  path.write_text(text)
  return str(path)


def test_huggingface_errors_name_the_fix(tokenizer_path, tmp_path):
  make = vocabularies.huggingface_vocabulary
  with pytest.raises(ValueError, match="eos_token='<end>' is not in the voc"):
    make(str(tokenizer_path), eos_token="<end>")
  none = with_tokens(
    tokenizer_path, tmp_path / "a.json", rename={"<pad>": "<hole>"}
  )
  with pytest.raises(ValueError, match=r"no pad_token is.*has none.*pad_token"):
    make(none)
  assert make(none, pad_token="<|im_end|>").pad_id == 7
  several = with_tokens(
    tokenizer_path, tmp_path / "b.json", rename={"<|user|>": "</s>"}
  )
  with pytest.raises(ValueError, match=r"several.*'</s>'.*eos_token"):
    make(several)
  with pytest.raises(FileNotFoundError, match=r"huggingface_vocabulary\.path"):
    make(str(tmp_path / "none.json"))
  (tmp_path / "c.json").write_text("{}")
  with pytest.raises(ValueError, match=r"is no tokenizer\.json"):
    make(str(tmp_path / "c.json"))


def test_sentencepiece_errors_name_the_fix(tmp_path):
  import sentencepiece

  make = vocabularies.sentencepiece_vocabulary
  with pytest.raises(
    FileNotFoundError, match=r"sentencepiece_vocabulary\.path"
  ):
    make(str(tmp_path / "none.model"))
  (tmp_path / "text.model").write_text("not a model")
  with pytest.raises(ValueError, match="is no SentencePiece model"):
    make(str(tmp_path / "text.model"))
  path = tmp_path / "default.model"  # SentencePiece's own ids: no padding
  with path.open("wb") as writer:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["1+1=2", "2+2=4"]),
      model_writer=writer,
      vocab_size=9,
      model_type="char",
      hard_vocab_limit=False,
      minloglevel=2,
    )
  with pytest.raises(ValueError, match=r"pad_id=-1.*train_sentencepiece"):
    make(str(path))
