"""What a task is before anything is tokenised: examples, and where from.

A task's examples are made when a split is asked for, not when the task is
named: naming a task in gin costs nothing.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

_TUPLE = "__tuple__"
_ITEMS = "__items__"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One question with what is known about its answer.

  question: what fills `{question}` in the prompt's template.
  answer: the reference answer; empty where the task has none and its own
    scorer judges.
  target: a whole response for the supervised warm start, or None.
  metadata: what a verifier may need besides; see `pack_metadata`.
  """

  question: str
  answer: str
  target: str | None
  metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
  """A task by name, or a mixture of tasks.

  name: letters, digits, `_`, `.` and `:`; seqio's name and a mixture's key.
  examples: makes a split's examples, in a fixed order; None for a mixture.
  parts: a mixture's tasks with their weights; empty for a task.
  unit: how many consecutive examples belong together and are always drawn
    together, in their order: 2 for pairs of paraphrases.
  """

  name: str
  examples: Callable[[Split], Sequence[Example]] | None
  parts: tuple[tuple["TaskSpec", float], ...] = ()
  unit: int = 1


def check_split(split: str) -> Split:
  """Returns `split`; raises ValueError unless it is one of `SPLITS`."""
  if split not in SPLITS:
    raise ValueError(f"split={split!r}: there are {' and '.join(SPLITS)}")
  return split  # type: ignore[return-value]


def pack_metadata(metadata: dict[str, Any]) -> str:
  """Returns `metadata` as JSON from which `unpack_metadata` makes it again.

  JSON has neither tuples nor keys that aren't strings, and a task's own scorer
  may care (two in reasoning-gym do): both are tagged.

  Raises:
    ValueError: the metadata would not come back as they were.
  """
  try:
    packed = json.dumps(_tag(metadata), ensure_ascii=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"metadata {str(metadata)[:80]} can't be written as JSON: {error}; use"
      " numbers, strings, lists, tuples and dicts"
    ) from error
  if unpack_metadata(packed) != metadata:
    raise ValueError(
      f"metadata {str(metadata)[:80]} don't survive JSON: leave out NaN and"
      f" the keys {_TUPLE!r} and {_ITEMS!r}"
    )
  return packed


def unpack_metadata(packed: str) -> dict[str, Any]:
  """Returns the metadata that `pack_metadata` was given."""
  return json.loads(packed, object_hook=_untag)


def _tag(value: Any) -> Any:
  if isinstance(value, tuple):
    return {_TUPLE: [_tag(v) for v in value]}
  if isinstance(value, list):
    return [_tag(v) for v in value]
  if isinstance(value, dict):
    if all(isinstance(k, str) for k in value):
      return {k: _tag(v) for k, v in value.items()}
    return {_ITEMS: [[_tag(k), _tag(v)] for k, v in value.items()]}
  return value


def _untag(value: dict[str, Any]) -> Any:
  if value.keys() == {_TUPLE}:
    return tuple(value[_TUPLE])
  if value.keys() == {_ITEMS}:
    return dict(value[_ITEMS])
  return value
