"""Scores of reasoning-gym's own verifiers.

Runs in worker processes: imports the standard library here, reasoning-gym late,
JAX and TensorFlow never.
"""

import functools
import importlib.util
import json
import math
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any


@functools.cache
def import_reasoning_gym() -> types.ModuleType:
  """Returns `reasoning_gym`, imported quietly and without a C compiler.

  It imports pycosat, for which there are no wheels, though only its zebra
  puzzles call it. Where it isn't installed, a stand-in takes its place and
  raises when a puzzle calls it.

  Raises:
    ImportError: reasoning-gym isn't installed.
  """
  if importlib.util.find_spec("pycosat") is None:
    sys.modules.setdefault("pycosat", _NoPycosat("pycosat"))
  with warnings.catch_warnings():
    # Its dependencies have invalid escapes in strings, reported whenever they
    # are compiled, and use pkg_resources.
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", UserWarning)
    try:
      import reasoning_gym
    except ModuleNotFoundError as error:
      raise ImportError(
        f"{error}: pip install 'rlvr[gym]' for reasoning-gym's data sets"
      ) from error
  return reasoning_gym


class _NoPycosat(types.ModuleType):
  """Stands in for pycosat until something of it is used."""

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    raise ImportError(
      "this reasoning-gym data set needs pycosat, which is built from source:"
      " install a C compiler, then pip install pycosat==0.6.6"
    )


def text_between(text: str, delimiter: str, end_delimiter: str) -> str | None:
  """Returns what stands behind the last delimiter, up to the end delimiter.

  Args:
    text: a response.
    delimiter: empty means from the start.
    end_delimiter: empty, or not behind the delimiter, means to the end.

  Returns:
    The text, stripped; None without the delimiter.
  """
  if delimiter:
    _, found, text = text.rpartition(delimiter)
    if not found:
      return None
  if end_delimiter:
    text = text.partition(end_delimiter)[0]
  return text.strip()


def make_reasoning_gym_scorer(
  *,
  configs: Mapping[str, Mapping[str, Any]] | None = None,
  delimiter: str = "",
  end_delimiter: str = "",
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the item function for `WorkerPool`.

  It takes {"response", "metadata"} and returns {"verdict", "reward", "detail"},
  where reward is the data set's `score_answer(answer, entry)`: CORRECT iff it
  is 1, else WRONG with the partial score as reward; NO_ANSWER with reward 0.

  The entry is `metadata["entry"]` (a dict, or its JSON text) as reasoning-gym
  made it, whose `entry["metadata"]["source_dataset"]` names the data set; or
  else it is made again from `metadata["dataset"]` and `metadata["index"]`.
  JSON has no tuples: arc_agi and rearc compare them, and need the second form.

  Args:
    configs: arguments of `reasoning_gym.create_dataset` (size and seed among
      them) by data set; those named here are created before the first item.
    delimiter: see `text_between`; "<answer>", for instance.
    end_delimiter: "</answer>", for instance.
  """
  reasoning_gym = import_reasoning_gym()

  @functools.cache
  def dataset(name: str) -> Any:
    return reasoning_gym.create_dataset(name, **(configs or {}).get(name, {}))

  @functools.cache
  def scorer(name: str) -> Callable[[str, Any], float]:
    if name in (configs or {}):
      return dataset(name).score_answer
    return reasoning_gym.get_score_answer_fn(name)

  for name in configs or {}:
    dataset(name)

  def read_entry(metadata: Mapping[str, Any]) -> tuple[str, Any]:
    if "entry" in metadata:
      entry = metadata["entry"]
      entry = json.loads(entry) if isinstance(entry, str) else entry
      return entry["metadata"]["source_dataset"], entry
    if "dataset" in metadata and metadata["dataset"] in (configs or {}):
      name = metadata["dataset"]
      return name, dataset(name)[int(metadata["index"])]
    raise ValueError(
      f"metadata has {sorted(metadata)}: give `entry`, or `dataset` and `index`"
      f" with `configs` for the data set (there are {sorted(configs or {})})"
    )

  def score(item: Mapping[str, Any]) -> dict[str, Any]:
    name, entry = read_entry(item["metadata"])
    answer = text_between(item["response"], delimiter, end_delimiter)
    if not answer:
      return {"verdict": "NO_ANSWER", "reward": 0.0, "detail": ""}
    reward = float(scorer(name)(answer, entry))
    if not math.isfinite(reward):
      detail = f"{name} scored {reward}"
      return {"verdict": "VERIFIER_FAILED", "detail": detail}
    verdict = "CORRECT" if reward == 1.0 else "WRONG"
    return {"verdict": verdict, "reward": reward, "detail": ""}

  return score
