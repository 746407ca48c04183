"""tokenizer.json from token lists, against the `tokenizers` package and run.c's way."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rlvr.infra import tokenizer_json
from rlvr.infra.tokenizer_json import (
  BYTE,
  CONTROL,
  NORMAL,
  UNKNOWN,
  USER_DEFINED,
  byte_level_bpe,
  sentencepiece_bpe,
)
from tests.compare import must_fail
from tests.models import folders

TEXTS = [
  "the cat sat on the mat, the other cat didn't",
  "  two  spaces\n\nand 1234 plus 5 is 1239.",
  "Größe und çà 漢字 \u00e9 e\u0301 🙂",
  "",
]


def encoder(text):
  tokenizer = tokenizers.Tokenizer.from_str(text)
  return tokenizer, lambda x: tokenizer.encode(x, add_special_tokens=False)


def trained():
  """Returns a byte-level tokenizer that the package itself trained."""
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.train_from_iterator(
    [*TEXTS * 3, *["ab abc bc bca ca cab xab xbc xca"] * 9],
    trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=["<|end|>"],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  return made


def parts(made):
  """Returns tokens and merges as a GGUF file lists them."""
  model = json.loads(made.to_str())["model"]
  vocabulary = sorted(model["vocab"], key=model["vocab"].get)
  return vocabulary, [" ".join(pair) for pair in model["merges"]]


@pytest.mark.parity
def test_byte_level_is_the_tokenizer_that_it_lists():
  made = trained()
  tokens, merges = parts(made)
  assert len(merges) > 20
  kinds = [CONTROL if t == "<|end|>" else NORMAL for t in tokens]
  # Words that it wasn't trained on, where the order of the merges matters.
  rng = np.random.default_rng(0)
  words = ["".join(rng.choice(list("abcx"), size=9)) for _ in range(40)]

  def check(merges):
    built, encode = encoder(
      byte_level_bpe(tokens, merges, kinds, pre_tokenizer="gpt-2")
    )
    for text in [*TEXTS, "the<|end|> cat", *words]:
      expected = made.encode(text)
      assert encode(text).ids == expected.ids
      assert built.decode(encode(text).ids, skip_special_tokens=False) == text

  check(merges)
  must_fail(check, merges[::-1])


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("gpt-2", ["ab", " 1234", "'s", "\n"]),
    ("smollm", ["ab", " ", "1", "2", "3", "4", "'s", "\n"]),
    ("qwen2", ["ab", " ", "1", "2", "3", "4", "'s", "\n"]),
    ("llama-bpe", ["ab", " ", "123", "4", "'s", "\n"]),
  ],
)
def test_texts_are_cut_as_the_family_does(name, expected):
  tokens = folders.byte_tokens()
  text = byte_level_bpe(tokens, [], [NORMAL] * 256, pre_tokenizer=name)
  cut = tokenizers.Tokenizer.from_str(text).pre_tokenizer
  found = [
    "ab 1234's\n"[a:b] for _, (a, b) in cut.pre_tokenize_str("ab 1234's\n")
  ]
  assert found == expected


def test_qwen_alone_composes_characters():
  tokens = folders.byte_tokens()
  for name, composed in (("qwen2", True), ("llama-bpe", False)):
    _, encode = encoder(
      byte_level_bpe(tokens, [], [NORMAL] * 256, pre_tokenizer=name)
    )
    same = encode("e\u0301").ids == encode("\u00e9").ids
    assert same == composed, name


def test_llama_3_takes_whole_words_before_it_merges():
  tokens = [*folders.byte_tokens(), "bc", "abc"]  # "abc" by no merge
  for name, expected in (("llama-bpe", [257]), ("qwen2", [97, 256])):
    _, encode = encoder(
      byte_level_bpe(tokens, ["b c"], [NORMAL] * 258, pre_tokenizer=name)
    )
    assert encode("abc").ids == expected, name


def test_special_tokens_are_one_token_and_others_text():
  text = folders.tokenizer()
  tokenizer, encode = encoder(text)
  assert encode("12<|end|>1").ids == [256, 257, 49]
  assert tokenizer.decode([256, 257, 49]) == "121"  # special ones are silent
  kinds = [NORMAL] * 256 + [USER_DEFINED]
  user, _ = encoder(
    byte_level_bpe(
      [*folders.byte_tokens(), "<x>"], [], kinds, pre_tokenizer="gpt-2"
    )
  )
  assert user.encode("a<x>").ids == [97, 256]
  assert user.decode([97, 256]) == "a<x>"


# SentencePiece's, as llama2.c's run.c and llama.cpp do it.

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
WORDS = {
  **{c: -50.0 - i for i, c in enumerate("▁abcdehnot")},
  **{"▁t": -3.0, "he": -1.0, "▁the": -7.0, "th": -2.0, "the": -4.0},
  **{"▁ca": -6.0, "at": -5.0, "cat": -9.0, "▁cat": -8.0, "ab": -5.5},
  **{"▁a": -5.2, "ca": -10.0, "▁▁": -11.0},
}


def merged_by_score(text, tokens, scores):
  """Returns ids by joining the best pair of neighbours, again and again."""
  known = {t: i for i, t in enumerate(tokens)}
  ids = []
  for char in "▁" + text.replace(" ", "▁") if text else "":
    if char in known:
      ids.append(known[char])
    else:
      ids += [3 + byte for byte in char.encode()]
  while True:
    best = None
    for i in range(len(ids) - 1):
      joined = known.get(tokens[ids[i]] + tokens[ids[i + 1]])
      if joined is not None and (best is None or scores[joined] > best[0]):
        best = scores[joined], i, joined
    if best is None:
      return ids
    ids[best[1] : best[1] + 2] = [best[2]]


def sentencepieces(scores_of=WORDS):
  tokens = [*PIECES, *WORDS]
  scores = [0.0] * len(PIECES) + list(scores_of.values())
  kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(WORDS)
  return tokens, scores, kinds


def test_pieces_are_joined_by_their_scores():
  tokens, scores, kinds = sentencepieces()
  rng = np.random.default_rng(0)
  texts = ["the cat", "that", "  the  cab", "é the", "a\nb", ""]
  texts += [
    "".join(rng.choice(list("abcdehnot  "), size=12)) for _ in range(60)
  ]

  def check(given):
    built, encode = encoder(sentencepiece_bpe(tokens, given, kinds))
    for text in texts:
      assert encode(text).ids == merged_by_score(text, tokens, scores), text
      assert built.decode(encode(text).ids, skip_special_tokens=False) == text

  check(scores)
  must_fail(check, [-s for s in scores])
  # Special ones in a text are theirs, and the rest goes on.
  _, encode = encoder(sentencepiece_bpe(tokens, scores, kinds))
  assert encode("<s>").ids == [1]


def test_the_space_before_a_text_can_be_left_out():
  tokens, scores, kinds = sentencepieces()
  built, encode = encoder(
    sentencepiece_bpe(tokens, scores, kinds, add_space_prefix=False)
  )
  assert [tokens[i] for i in encode("the cat").ids] == ["the", "▁cat"]
  assert built.decode(encode(" the").ids) == " the"


def test_lists_that_are_wrong_are_named():
  tokens = folders.byte_tokens()
  with pytest.raises(
    ValueError, match=r"pre_tokenizer='x' is not known.*qwen2"
  ):
    byte_level_bpe(tokens, [], [NORMAL] * 256, pre_tokenizer="x")
  with pytest.raises(ValueError, match=r"3 kinds for 256 tokens"):
    byte_level_bpe(tokens, [], [NORMAL] * 3, pre_tokenizer="gpt-2")
  with pytest.raises(ValueError, match=r"occur twice.*\['a'\]"):
    byte_level_bpe([*tokens, "a"], [], [NORMAL] * 257, pre_tokenizer="gpt-2")
  with pytest.raises(ValueError, match=r"2 scores for 3 tokens"):
    sentencepiece_bpe(["<unk>", "a", "b"], [0.0, 1.0], [UNKNOWN, 1, 1])
  with pytest.raises(ValueError, match=r"2 kinds for 3 tokens"):
    sentencepiece_bpe(["<unk>", "a", "b"], [0.0, 1.0, 2.0], [UNKNOWN, 1])
  with pytest.raises(ValueError, match=r"no unknown token"):
    sentencepiece_bpe(["a"], [0.0], [NORMAL])


# Of GGUF files.


def write_vocabulary(path, **given):
  gguf = pytest.importorskip("gguf", reason="pip install 'rlvr[gguf]'")
  tokens, scores, kinds = sentencepieces()
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model(given.get("model", "llama"))
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_scores(scores)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(given.get("end", 2))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_a_gguf_file_gives_the_same(tmp_path):
  path = write_vocabulary(tmp_path / "a.gguf")
  text, config = tokenizer_json.gguf_tokenizer(path)
  assert json.loads(text) == json.loads(sentencepiece_bpe(*sentencepieces()))
  assert config == {"bos_token": "<s>", "eos_token": "</s>"}
  # An id that isn't there is no token.
  path = write_vocabulary(tmp_path / "b.gguf", end=999_999)
  assert tokenizer_json.gguf_tokenizer(path)[1] == {"bos_token": "<s>"}
  path = write_vocabulary(tmp_path / "c.gguf", model="bert")
  with pytest.raises(ValueError, match=r"model='bert' is neither.*VOCABULARY"):
    tokenizer_json.gguf_tokenizer(path)
  with pytest.raises(FileNotFoundError, match=r"no file .*nowhere"):
    tokenizer_json.gguf_tokenizer(tmp_path / "nowhere.gguf")
