"""Small vocabularies, made once."""

import pytest

TEXTS = [
  f"{a}+{b}={a + b}\nsum of {a}: {b}" for a in range(30) for b in (1, 20)
]


@pytest.fixture(scope="session")
def bytes_vocabulary():
  from rlvr.data import byte_vocabulary

  return byte_vocabulary()


@pytest.fixture(scope="session")
def sentencepiece_path(tmp_path_factory):
  import sentencepiece

  path = tmp_path_factory.mktemp("sentencepiece") / "small.model"
  with path.open("wb") as writer:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(TEXTS),
      model_writer=writer,
      vocab_size=40,
      model_type="bpe",
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      add_dummy_prefix=False,
      minloglevel=2,
    )
  return path


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
  """A byte-level tokenizer.json with padding 5 and end 7, as families have."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  fillers = [f"<|filler_{i}|>" for i in range(5)]
  tokenizer.train_from_iterator(
    TEXTS,
    trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=[*fillers, "<pad>", "<|user|>", "<|im_end|>"],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
  tokenizer.save(str(path))
  return path
