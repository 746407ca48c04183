"""Tasks that a gin file can name.

`arithmetic_task`, `reasoning_gym_task`, `gsm8k_task` and `mixture_task` return
a `TaskSpec`: a name and how to make examples, nothing loaded yet.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from rlvr.data.arithmetic import arithmetic_examples
from rlvr.data.examples import Example, Split, TaskSpec
from rlvr.data.late import import_seqio
from rlvr.verifiers.reasoning import import_reasoning_gym


def arithmetic_task(
  *,
  num_train: int,
  num_heldout: int,
  num_operations: int | Sequence[int],
  operand_min: int,
  operand_max: int,
  operators: Sequence[str] = ("+", "-", "*"),
  parentheses: bool = False,
  working: bool = True,
  answer_delimiter: str = "#",
  step_delimiter: str = ";",
  paraphrases: bool = False,
  seed: int = 0,
  name: str = "arithmetic",
) -> TaskSpec:
  """Returns the task of generated arithmetic expressions.

  See `rlvr.data.arithmetic`, which also says why no expression is in both
  splits, whatever seeds and sizes. With paraphrases, every training batch holds
  both of a problem's two orders, one after the other (`TaskSpec.unit` is 2);
  the held-out examples stay the same, so that accuracies can be compared.

  Args:
    num_train: training expressions.
    num_heldout: held-out expressions.
    name: the task's name.
    num_operations, operand_min, operand_max, operators, parentheses, working,
      answer_delimiter, step_delimiter, paraphrases, seed: see
      `arithmetic_examples`.
  """

  def examples(split: Split) -> list[Example]:
    return arithmetic_examples(
      split,
      num_examples=num_train if split == "train" else num_heldout,
      num_operations=num_operations,
      operand_min=operand_min,
      operand_max=operand_max,
      operators=operators,
      parentheses=parentheses,
      working=working,
      answer_delimiter=answer_delimiter,
      step_delimiter=step_delimiter,
      paraphrases=paraphrases and split == "train",
      seed=seed,
    )

  return TaskSpec(name, examples, unit=2 if paraphrases else 1)


def reasoning_gym_task(
  dataset: str,
  *,
  size: int,
  heldout_size: int,
  seed: int = 0,
  config: Mapping[str, Any] | None = None,
  name: str | None = None,
) -> TaskSpec:
  """Returns the task of one of reasoning-gym's procedural data sets.

  Entry i of nearly every data set there is drawn with seed `seed + i`, so that
  the seeds 0 and 1 share all but one entry. The held-out split therefore has
  the seed `seed + size`, and questions of the training split, and repeated
  ones, are left out of it and replaced by further ones.

  `metadata["entry"]` is the whole entry and `metadata["dataset"]` its data
  set's name, so that its own scorer can be called:
  `reasoning_gym.get_score_answer_fn(dataset)(answer, entry)`. The reference
  answer is empty where the data set has none (graph colouring, for one).

  Args:
    dataset: the data set's name in reasoning-gym, e.g. "chain_sum".
    size: training examples.
    heldout_size: held-out examples.
    seed: of the generator.
    config: the data set's own options.
    name: the task's name; None means the data set's.
  """
  options = dict(config or {})
  if taken := {"seed", "size"} & options.keys():
    raise ValueError(
      f"reasoning_gym_task.config sets {sorted(taken)}: use the task's own"
      " `seed` and `size`"
    )
  if size < 1 or heldout_size < 1 or seed < 0:
    raise ValueError(
      f"reasoning_gym_task: size={size}, heldout_size={heldout_size},"
      f" seed={seed}: sizes are 1 or more, the seed 0 or more"
    )

  def entries(first: int, count: int) -> Iterable[dict[str, Any]]:
    gym = import_reasoning_gym()
    try:
      made = gym.create_dataset(dataset, seed=first, size=count, **options)
    except (ValueError, TypeError, AssertionError) as error:
      raise ValueError(
        f"reasoning_gym_task.dataset={dataset!r} with config={options}:"
        f" {error}; see the data set's Config class for its options"
      ) from error
    return (made[i] for i in range(count))

  @functools.cache
  def train_questions() -> frozenset[str]:
    return frozenset(e["question"] for e in entries(seed, size))

  def heldout() -> list[dict[str, Any]]:
    kept: dict[str, dict[str, Any]] = {}
    # Twice as many candidates each time, until four were drawn for each.
    for count in (heldout_size, 2 * heldout_size, 4 * heldout_size):
      for entry in entries(seed + size, count):
        if entry["question"] not in train_questions():
          kept.setdefault(entry["question"], entry)
      if len(kept) >= heldout_size:
        return list(kept.values())[:heldout_size]
    raise ValueError(
      f"reasoning_gym_task: {dataset!r} gave only {len(kept)} of"
      f" heldout_size={heldout_size} questions that aren't among the"
      f" {size} for training: lower `heldout_size` or `size`, or make the"
      " data set larger by its `config`"
    )

  def examples(split: Split) -> list[Example]:
    made = entries(seed, size) if split == "train" else heldout()
    return [
      Example(
        question=entry["question"],
        answer=_text(entry["answer"]),
        target=_text(entry["answer"]) or None,
        metadata={"dataset": dataset, "entry": entry},
      )
      for entry in made
    ]

  return TaskSpec(name or dataset, examples)


def gsm8k_task(
  *,
  train_path: str | None = None,
  heldout_path: str | None = None,
  tfds: bool = False,
  calculator_annotations: bool = False,
  name: str = "gsm8k",
) -> TaskSpec:
  """Returns GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168).

  From JSON lines with `question` and `answer` (a solution whose last line is
  `#### N`), or from TensorFlow Datasets' `gsm8k`, whose test split is held out.
  The reference answer is N without thousands separators; the target is the
  solution with its last line.

  Args:
    train_path: JSON lines of the training split.
    heldout_path: JSON lines of the held-out split (GSM8K's `test.jsonl`).
    tfds: true reads TensorFlow Datasets in place of files (it downloads).
    calculator_annotations: whether the targets keep `<<48/2=24>>`.
    name: the task's name.

  Raises:
    ValueError: both files and `tfds`, or neither.
  """
  paths = {"train": train_path, "heldout": heldout_path}
  if tfds == any(paths.values()):
    raise ValueError(
      f"gsm8k_task: train_path={train_path!r}, heldout_path={heldout_path!r},"
      f" tfds={tfds}: give paths of JSON lines, or tfds=True, and not both"
    )

  def records(split: Split) -> Iterable[tuple[str, dict[str, Any]]]:
    if tfds:
      return _tfds_records("gsm8k", "train" if split == "train" else "test")
    path, option = paths[split], f"gsm8k_task.{split}_path"
    if not path:
      raise ValueError(f"{option} is not set: give the JSON lines of {split}")
    return json_lines(path, option=option)

  def examples(split: Split) -> list[Example]:
    return [
      _gsm8k_example(where, record, calculator_annotations)
      for where, record in records(split)
    ]

  return TaskSpec(name, examples)


def mixture_task(
  tasks: Sequence[TaskSpec],
  weights: Sequence[float],
  *,
  name: str = "mixture",
) -> TaskSpec:
  """Returns the mixture of tasks.

  Args:
    tasks: the tasks, of different names; mixtures among them are allowed.
    weights: share of each in the prompts drawn, up to a common factor.
    name: the mixture's name.

  Raises:
    ValueError: no tasks, other lengths, weights that aren't positive, a name
      that occurs twice, or tasks of different units (`TaskSpec.unit`).
  """
  if not tasks or len(tasks) != len(weights):
    raise ValueError(
      f"mixture_task: {len(tasks)} tasks and {len(weights)} weights: give one"
      " weight for each, and at least one task"
    )
  if any(not weight > 0 for weight in weights):
    raise ValueError(
      f"mixture_task.weights={list(weights)}: each must be above 0; leave a"
      " task out in place of giving it 0"
    )
  names = [name, *(n for task in tasks for n in _names(task))]
  if twice := sorted({n for n in names if names.count(n) > 1}):
    raise ValueError(
      f"mixture_task: the names {twice} occur twice: set each task's `name`"
    )
  units = {task.name: task.unit for task in tasks}
  if len(set(units.values())) > 1:
    raise ValueError(
      f"mixture_task: examples belong together in different units, {units}:"
      " mix tasks of one unit (arithmetic_task.paraphrases makes pairs)"
    )
  parts = tuple(zip(tasks, weights, strict=True))
  return TaskSpec(name, None, parts, unit=tasks[0].unit)


def json_lines(
  path: str, *, option: str
) -> Iterable[tuple[str, dict[str, Any]]]:
  """Yields ("file, line n", record) for each line that isn't blank.

  Args:
    path: the file.
    option: the option that named it, for the error.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a line that is no JSON object.
  """
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(f"{option}={path!r}: there is no such file")
  with file.open("r") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      where = f"{path}, line {number}"
      try:
        record = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(
          f"{where}: no JSON ({error}): {line.strip()[:60]!r}"
        ) from error
      if not isinstance(record, dict):
        raise ValueError(f"{where}: {line.strip()[:60]!r} is no JSON object")
      yield where, record


def _gsm8k_example(
  where: str, record: dict[str, Any], annotations: bool
) -> Example:
  for key in ("question", "answer"):
    if not isinstance(record.get(key), str):
      raise ValueError(
        f"{where}: no text under {key!r}; the keys are {sorted(record)}"
      )
  solution, mark, answer = record["answer"].rpartition("####")
  answer = answer.strip().replace(",", "")
  if not mark or not answer:
    raise ValueError(
      f"{where}: the answer doesn't end in '#### N': {record['answer'][-60:]!r}"
    )
  solution = solution.strip()
  if not annotations:
    solution = re.sub(r"<<[^<>]*>>", "", solution)
  return Example(
    question=record["question"].strip(),
    answer=answer,
    target=f"{solution}\n#### {answer}",
    metadata={"solution": record["answer"]},
  )


def _tfds_records(
  dataset: str, split: str
) -> Iterable[tuple[str, dict[str, Any]]]:
  import_seqio()  # quiets TensorFlow before tensorflow_datasets brings it in
  import tensorflow_datasets

  loaded = tensorflow_datasets.load(dataset, split=split)
  for i, record in enumerate(tensorflow_datasets.as_numpy(loaded)):
    texts = {key: value.decode() for key, value in record.items()}
    yield f"TensorFlow Datasets {dataset}, {split}, example {i}", texts


def _names(task: TaskSpec) -> list[str]:
  return [task.name, *(n for part, _ in task.parts for n in _names(part))]


def _text(answer: Any) -> str:
  return "" if answer is None else str(answer)
