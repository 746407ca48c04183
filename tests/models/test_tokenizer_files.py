"""The tokenizer's files beside exported weights, and its tokens' ids."""

import json

import pytest

from rlvr.models.tokenizer_files import token_ids_of, write_tokenizer_files
from tests.models import folders


def test_files_are_carried_over_as_they_are(tmp_path):
  source, out = tmp_path / "source", tmp_path / "out"
  source.mkdir()
  out.mkdir()
  folders.write_tokenizer(source)
  (source / "chat_template.jinja").write_text(folders.TEMPLATE)
  (source / "model.safetensors").write_text("not the tokenizer's")
  wanted = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
  # By the folder or the file in it.
  for given in (source, source / "tokenizer.json"):
    assert sorted(write_tokenizer_files(out, given)) == wanted
    assert sorted(p.name for p in out.iterdir()) == wanted
    for name in wanted:
      assert (out / name).read_bytes() == (source / name).read_bytes()


def test_ids_are_those_of_the_config_and_then_of_generation(tmp_path):
  folders.write_tokenizer(tmp_path)
  assert token_ids_of(tmp_path) == {}
  folders.write_config(
    tmp_path, {"eos_token_id": 5, "pad_token_id": None, "bos_token_id": 1}
  )
  assert token_ids_of(tmp_path) == {"eos_token_id": 5, "bos_token_id": 1}
  # Several may end; generation's word counts.
  (tmp_path / "generation_config.json").write_text(
    json.dumps({"eos_token_id": [5, 7], "temperature": 0.6})
  )
  assert token_ids_of(tmp_path) == {"eos_token_id": [5, 7], "bos_token_id": 1}


def test_a_gguf_file_gives_names_and_ids(tmp_path):
  pytest.importorskip("gguf", reason="pip install 'rlvr[gguf]'")
  from tests.infra.test_tokenizer_json import write_vocabulary

  path = write_vocabulary(tmp_path / "model.gguf")
  assert token_ids_of(path) == {"bos_token_id": 1, "eos_token_id": 2}
  out = tmp_path / "out"
  out.mkdir()
  write_tokenizer_files(out, path)
  fields = json.loads((out / "tokenizer_config.json").read_text())
  assert fields == {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
  }


def test_no_tokenizer_there(tmp_path):
  for function in (token_ids_of, lambda p: write_tokenizer_files(tmp_path, p)):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json: give"):
      function(tmp_path)
