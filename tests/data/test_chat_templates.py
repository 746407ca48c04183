"""Chat templates as prompts: whose they are, and what they may not do."""

import pytest

import gin
from rlvr.data.chat_templates import chat_prompt
from tests import runs
from tests.models import folders

USER = "<|user|>{question}<|end|>:"


def folder_with(folder, template, **fields):
  folder.mkdir(exist_ok=True)
  folders.write_tokenizer(folder, chat_template=template, **fields)
  return str(folder)


def test_a_folders_template_asks_the_question(tmp_path):
  path = folder_with(tmp_path / "a", folders.TEMPLATE)
  assert chat_prompt(path) == USER
  assert chat_prompt(f"{path}/tokenizer.json") == USER
  assert chat_prompt(path, system="Be brief.") == (
    "<|user|>Be brief.<|end|>" + USER
  )
  # Several by name, and the file of its own, which goes first.
  named = [
    {"name": "tool_use", "template": "no"},
    {"name": "default", "template": folders.TEMPLATE},
  ]
  assert chat_prompt(folder_with(tmp_path / "b", named)) == USER
  (tmp_path / "b" / "chat_template.jinja").write_text(
    "Q: {{ messages[0].content }}"
  )
  assert chat_prompt(str(tmp_path / "b")) == "Q: {question}"


def test_a_model_without_template_has_none(tmp_path):
  folders.write_tokenizer(tmp_path)
  for _ in range(2):  # with tokenizer.json and without the file beside it
    assert chat_prompt(str(tmp_path), default="{question}") == "{question}"
    with pytest.raises(ValueError, match=r"has no chat template .*by hand"):
      chat_prompt(str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
  with pytest.raises(FileNotFoundError, match=r"nowhere.*isn't there"):
    chat_prompt(str(tmp_path / "nowhere"))


def test_a_folder_without_a_tokenizer_is_no_base_model(tmp_path):
  missing = "no tokenizer.json, no tokenizer_config.json: give a Hugging"
  with pytest.raises(FileNotFoundError, match=f"has no config.json, {missing}"):
    chat_prompt(str(tmp_path))
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match=f"has {missing}"):
    chat_prompt(str(tmp_path))
  assert chat_prompt(str(tmp_path), default="{question}") == "{question}"


def test_templates_have_what_published_ones_use(tmp_path):
  # Special tokens, in both forms; loop controls; trimmed blocks; tojson.
  template = (
    "{{ bos_token }}\n"
    "{% for m in messages %}\n"
    "  {%- if loop.index0 > 5 %}{% break %}{% endif %}\n"
    "{{ m['content'] | trim }}|{{ {'é': 1} | tojson }}{{ eos_token }}\n"
    "{% endfor %}"
  )
  path = folder_with(tmp_path, template, bos_token={"content": "<s>"})
  assert chat_prompt(path) == '<s>\n{question}|{"é": 1}<|end|>\n'


def test_ggufs_are_asked_as_well(tmp_path):
  gguf = pytest.importorskip("gguf", reason="pip install 'rlvr[gguf]'")
  from tests.models import gguf_models

  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  gguf_models.add_vocabulary(writer)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  assert chat_prompt(str(path)) == USER


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% if %}", "TemplateSyntaxError"),
    ("{{ messages[0]['content'] | upper }}", "QUESTION.*stand there once"),
    ("{{ messages[0].content * 2 }}", "stand there once"),
    # Out of the sandbox; a change of what it was given.
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"),
  ],
)
def test_a_template_that_does_not_serve(template, message, tmp_path):
  path = folder_with(tmp_path, template)
  with pytest.raises(ValueError, match=rf"(?s){message}.*chat_\*\.gin"):
    chat_prompt(path)


def test_the_shipped_form_is_that_of_published_templates(tmp_path):
  # As Qwen's and SmolLM2's read without their own system turn.
  chatml = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content +"
    " '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
  )
  gin.clear_config()
  gin.parse_config_file(str(runs.ROOT / "gin" / "tasks" / "chat_chatml.gin"))
  shipped = gin.query_parameter("train.train.prompt_template")
  gin.clear_config()
  assert chat_prompt(folder_with(tmp_path, chatml)) == shipped
