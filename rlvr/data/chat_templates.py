"""Chat templates of published models, as prompts with `{question}` in them.

    train.train.prompt_template = @data.chat_prompt()

Format: https://huggingface.co/docs/transformers/chat_templating. A template is
a program in a downloaded file: it runs in Jinja's sandbox, which lets it reach
nothing but what it is given.
"""

import json
from typing import Any, NoReturn

from etils import epath

from rlvr.infra.tokenizer_json import gguf_tokenizer

_QUESTION = "{question}"


def chat_prompt(
  path: str, *, system: str | None = None, default: str | None = None
) -> str:
  """Returns the prompt of one user's turn, by the model's own chat template.

  Args:
    path: a Hugging Face folder, its tokenizer.json, or a .gguf file.
    system: the system turn; None leaves it to the template.
    default: returned where the model has no template; None refuses it.

  Returns:
    Text that holds `{question}` once and ends where the answer begins.

  Raises:
    FileNotFoundError: no such file or folder, or a folder without a model.
    ValueError: no template, one that can't be rendered, or one that changes the
      question.
  """
  fields = _fields(path)
  template = fields.get("chat_template")
  if isinstance(template, list):  # several, by name
    named = {entry["name"]: entry["template"] for entry in template}
    template = named.get("default")
  if not template:
    if default is not None:
      return default
    _check_complete(path)
    raise ValueError(
      f"{path} has no chat template (a base model?): write the prompt by hand"
      " (train.train.prompt_template, gin/tasks/chat_*.gin)"
    )
  turns = [{"role": "user", "content": _QUESTION}]
  if system is not None:
    turns.insert(0, {"role": "system", "content": system})
  tokens = {
    name: _text(value)
    for name, value in fields.items()
    if name.endswith("_token") and value is not None
  }
  prompt = _render(path, template, turns, tokens)
  if prompt.count(_QUESTION) != 1:
    raise ValueError(
      f"{path}: its chat template gives {prompt!r} for the question"
      f" {_QUESTION!r}, which must stand there once: write the prompt by hand"
      " (gin/tasks/chat_*.gin)"
    )
  return prompt


def _render(
  path: str, template: str, turns: list[dict[str, str]], tokens: dict[str, str]
) -> str:
  import jinja2
  import jinja2.sandbox

  def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

  # As `transformers` sets it up: templates count on it.
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.filters["tojson"] = lambda x, **options: json.dumps(
    x, ensure_ascii=False, **options
  )
  environment.globals["raise_exception"] = raise_exception
  try:
    return environment.from_string(template).render(
      messages=turns, add_generation_prompt=True, **tokens
    )
  # What a template does wrong may raise anything.
  except Exception as error:
    raise ValueError(
      f"{path}: its chat template fails ({type(error).__name__}: {error}):"
      " write the prompt by hand (gin/tasks/chat_*.gin)"
    ) from error


def _fields(path: str) -> dict[str, Any]:
  """Returns tokenizer_config.json's fields, or a GGUF file's in that form."""
  given = epath.Path(path)
  if not given.exists():
    raise FileNotFoundError(
      f"{path!r} isn't there: give a Hugging Face folder or a .gguf file"
    )
  if given.suffix == ".gguf":
    return gguf_tokenizer(path)[1]
  folder = given if given.is_dir() else given.parent
  config = folder / "tokenizer_config.json"
  fields = json.loads(config.read_text()) if config.exists() else {}
  # Newer files have the template by itself, and it goes first.
  template = folder / "chat_template.jinja"
  if template.exists():
    fields["chat_template"] = template.read_text()
  return fields


def _check_complete(path: str) -> None:
  """Raises FileNotFoundError for a folder that holds no tokenizer at all."""
  folder = epath.Path(path)
  names = ("tokenizer.json", "tokenizer_config.json")
  if not folder.is_dir() or any((folder / name).exists() for name in names):
    return
  missing = [
    name for name in ("config.json", *names) if not (folder / name).exists()
  ]
  raise FileNotFoundError(
    f"{path} has no {', no '.join(missing)}: give a Hugging Face folder with"
    " all of a model's files"
  )


def _text(token: Any) -> str:
  # Older files have {"content": "</s>", ...} in place of the text.
  return token["content"] if isinstance(token, dict) else token
