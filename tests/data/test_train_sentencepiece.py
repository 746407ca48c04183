"""The script that trains a SentencePiece model."""

import importlib.util
import json
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "scripts" / "train_sentencepiece.py"
_SPEC = importlib.util.spec_from_file_location("train_sentencepiece", _PATH)
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)

TEXTS = [
  f"{a} plus {b} is {a + b}.\nso: {a + b}" for a in range(9) for b in (1, 20)
]


@pytest.fixture
def jsonl(tmp_path):
  path = tmp_path / "texts.jsonl"
  lines = [json.dumps({"question": t, "answer": "end"}) for t in TEXTS]
  path.write_text("\n".join(lines) + "\n\n")
  return path


def arguments(source, output, size=36):
  return [
    *("--input", str(source), "--field", "question", "--field", "answer"),
    *("--vocab_size", str(size), "--output", str(output)),
  ]


def test_model_has_the_ids_and_keeps_texts(jsonl, tmp_path, capsys):
  import sentencepiece

  output = tmp_path / "small.model"
  assert script.main(arguments(jsonl, output)) == 0
  assert "36 texts" in capsys.readouterr().out  # 18 questions, 18 answers
  model = sentencepiece.SentencePieceProcessor(model_file=str(output))
  special = model.pad_id(), model.eos_id(), model.unk_id(), model.bos_id()
  assert special == (0, 1, 2, -1)
  assert model.GetPieceSize() == 36
  for text in (*TEXTS, " 2  plus\n\n"):
    assert model.DecodeIds(model.EncodeAsIds(text)) == text


def test_an_answer_is_the_same_tokens_wherever_it_stands(jsonl, tmp_path):
  import sentencepiece

  output = tmp_path / "small.model"
  script.main(arguments(jsonl, output))
  model = sentencepiece.SentencePieceProcessor(model_file=str(output))
  alone, behind = model.EncodeAsIds("28"), model.EncodeAsIds("so:28")
  assert len(alone) == 2
  assert behind[-2:] == alone


def test_text_files_are_read_by_line(tmp_path):
  path = tmp_path / "texts.txt"
  path.write_text("one\n\ntwo\n")
  assert list(script.read_texts([str(path)], [])) == ["one", "two"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", "--input is empty"),
    ('{"question": "a", "answer": "b"}\n{oops\n', "line 2: no JSON"),
    ('{"question": "a"}\n', "line 1: no text under --field answer"),
    ('["a"]\n', "line 1: no text under --field question"),
    ('{"question": "a", "answer": "b"}\n', "--vocab_size 36 doesn't suit"),
  ],
)
def test_errors_say_what_to_change(tmp_path, capsys, content, message):
  path = tmp_path / "bad.jsonl"
  path.write_text(content)
  assert script.main(arguments(path, tmp_path / "out.model")) == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out.model").exists()


def test_missing_file_and_missing_field(tmp_path, capsys):
  missing = tmp_path / "none.jsonl"
  assert script.main(arguments(missing, tmp_path / "out.model")) == 1
  assert "there is no such file" in capsys.readouterr().err
  missing.write_text("{}\n")
  with pytest.raises(ValueError, match="--field"):
    list(script.read_texts([str(missing)], []))
