"""Instructions about the reasoning: ReasonIF's six kinds, on the trace alone.

Kwon et al. 2025, ReasonIF: Large Reasoning Models Fail to Follow Instructions
During Reasoning, https://arxiv.org/abs/2510.15211. Ids and arguments are those of
its data, and the checks those of its code (github.com/ykwon0407/reasonIF at
706b953, src/instructions): the language, fewer words than a limit, capitals
throughout, a closing disclaimer, JSON, no commas.

Deviation: languages are told by langdetect, as in IFEval, where the code has a
fastText model, which is compiled; formulas in a trace mislead both.

A trace that is hardly there follows four of the six. `min_words` refuses it.

Runs in worker processes, but for `reasoning_instruction_verifier`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlvr.verifiers.instruction_checks import FAMILIES, Family
from rlvr.verifiers.instruction_text import (
  Detection,
  count_words,
  language_detector,
)
from rlvr.verifiers.instructions import (
  REWARDS,
  BadInstruction,
  instruction_verdict,
  none_followed,
  read_instructions,
)

if TYPE_CHECKING:  # it brings in JAX, which workers have no use for
  from rlvr.verifiers.host import PoolVerifier


def _fewer_words(text: str, *, num_words: float) -> bool:
  return count_words(text) < num_words


# The paper's names are, in this order: multilinguality, word limit, uppercase
# only, disclaimer, JSON formatting, remove commas.
REASONING_FAMILIES: dict[str, Family] = {
  "language:reasoning_language": FAMILIES["language:response_language"],
  "length_constraint_checkers:number_words": Family(
    _fewer_words, {"num_words": "number"}
  ),
  "change_case:english_capital": FAMILIES["change_case:english_capital"],
  "startend:end_checker": FAMILIES["startend:end_checker"],
  "detectable_format:json_format": FAMILIES["detectable_format:json_format"],
  "punctuation:no_comma": FAMILIES["punctuation:no_comma"],
}


class Trace(NamedTuple):
  """The reasoning of a response, and what stands behind it.

  reasoning: None where there is none.
  problem: why it can't be told, or "".
  """

  reasoning: str | None
  answer: str = ""
  problem: str = ""


def split_trace(
  response: str, *, start_tag: str, end_tag: str, start_in_prompt: bool
) -> Trace:
  """Returns reasoning and answer of a response.

  Each tag must be there once, the end behind the start. Whoever writes the end
  tag twice, or the start tag again, could otherwise choose what counts.

  Args:
    response: text without the end token.
    start_tag: "<think>", for instance.
    end_tag: "</think>", for instance.
    start_in_prompt: whether the prompt ends in the start tag, so that the
      response may begin with the reasoning itself.
  """
  starts, ends = response.count(start_tag), response.count(end_tag)
  if not starts and not ends:
    return Trace(None, response)
  if starts > 1 or ends != 1 or not (starts or start_in_prompt):
    found = f"{start_tag} {starts} times and {end_tag} {ends} times"
    return Trace(None, response, found)
  before, _, answer = response.partition(end_tag)
  if starts:
    preamble, found, before = before.partition(start_tag)
    if not found:
      return Trace(None, response, f"{end_tag} before {start_tag}")
    if preamble.strip():
      return Trace(None, response, f"text before {start_tag}")
  return Trace(before, answer)


def instruction_following_score(
  followed: Sequence[float], kinds: Sequence[str] | None = None
) -> dict[str, float]:
  """Returns ReasonIF's IFS, the share of traces that follow: all, and by kind.

  Args:
    followed: length B, 1 where a response's trace follows all of its
      instructions, else 0; NaN where nobody knows, which counts nowhere.
    kinds: length B, each response's instruction; None for "all" alone.

  Returns:
    {"all": share, kind: share, ...}; NaN for a kind without known responses.

  Raises:
    ValueError: the lengths differ.
  """
  names = ["all"] * len(followed) if kinds is None else list(kinds)
  if len(names) != len(followed):
    raise ValueError(
      f"{len(followed)} values and {len(names)} kinds: give one kind for each"
    )
  groups: dict[str, list[float]] = {"all": [], **{name: [] for name in names}}
  for name, value in zip(names, followed, strict=True):
    for key in {"all", name}:
      if not math.isnan(value):
        groups[key].append(float(value))
  return {
    name: sum(values) / len(values) if values else math.nan
    for name, values in groups.items()
  }


def make_reasoning_checker(
  *,
  detection: Detection,
  start_tag: str = "<think>",
  end_tag: str = "</think>",
  start_in_prompt: bool = False,
  min_words: int = 1,
  max_response_chars: int = 200_000,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the item function for `WorkerPool`.

  It takes {"response", "metadata": {"constraint_name", "constraint_args"}}, both
  lists, as ReasonIF's data has them. Verdicts, first that holds: VERIFIER_FAILED
  (the instructions can't be read), MALFORMED (too long, or tags that don't make
  one trace), NO_ANSWER (no trace, or fewer than `min_words` words), CORRECT (the
  trace follows all), WRONG.

  Args:
    detection: see `instruction_text.Detection`.
    start_tag, end_tag, start_in_prompt: see `split_trace`.
    min_words: a trace of fewer words is no trace.
    max_response_chars: a longer response is MALFORMED.

  Raises:
    ImportError: langdetect isn't installed.
    ValueError: an argument is out of range.
  """
  if detection not in ("published", "careful"):
    raise ValueError(f"detection={detection!r}: give 'published' or 'careful'")
  if not start_tag or not end_tag or start_tag == end_tag:
    raise ValueError(
      f"start_tag={start_tag!r}, end_tag={end_tag!r}: give two tags"
    )
  language_detector()

  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    metadata, response = item["metadata"], item["response"]
    try:
      instructions = read_instructions(
        metadata.get("constraint_name"),
        metadata.get("constraint_args"),
        families=REASONING_FAMILIES,
      )
    except BadInstruction as error:
      return {"verdict": "VERIFIER_FAILED", "detail": str(error)}
    trace, problem = Trace(None), f"{len(response)} characters"
    if len(response) <= max_response_chars:
      trace = split_trace(
        response,
        start_tag=start_tag,
        end_tag=end_tag,
        start_in_prompt=start_in_prompt,
      )
      problem = trace.problem
    if problem:
      result = none_followed("MALFORMED", problem, instructions)
    elif not trace.reasoning or count_words(trace.reasoning) < min_words:
      result = none_followed("NO_ANSWER", "", instructions)
    else:
      result = instruction_verdict(
        instructions, trace.reasoning, detection=detection
      )
    del result["steps"]
    return result

  return check


def reasoning_instruction_verifier(
  *,
  num_workers: int,
  time_limit_s: float,
  detection: Detection,
  start_tag: str = "<think>",
  end_tag: str = "</think>",
  start_in_prompt: bool = False,
  min_words: int = 1,
  max_response_chars: int = 200_000,
  memory_limit_mb: int | None = 1024,
  truncated: Literal["no_answer", "verify"] = "no_answer",
  name: str = "correct",
) -> "PoolVerifier":
  """Returns the verifier of instructions about the reasoning.

  Outcome rewards as `instructions.instruction_verifier`'s: the first (`name`) is
  the paper's, 1 where the trace follows all; its mean is the IFS
  (`instruction_following_score`). The answer behind the trace isn't looked at.

  Args:
    num_workers: processes.
    time_limit_s: wall seconds per response.
    detection: see `instruction_text.Detection`.
    start_tag: see `split_trace`.
    end_tag: see `split_trace`.
    start_in_prompt: see `split_trace`.
    min_words: a trace of fewer words is NO_ANSWER.
    max_response_chars: a longer response is MALFORMED.
    memory_limit_mb: see `WorkerPool`.
    truncated: see `host.Truncated`.
    name: the first reward's name.

  Raises:
    ImportError: langdetect isn't installed.
    ValueError: an argument is out of range.
  """
  from rlvr.verifiers.host import PoolVerifier

  kwargs: dict[str, Any] = {
    "detection": detection,
    "start_tag": start_tag,
    "end_tag": end_tag,
    "start_in_prompt": start_in_prompt,
    "min_words": min_words,
    "max_response_chars": max_response_chars,
  }
  make_reasoning_checker(**kwargs)  # raises here
  return PoolVerifier(
    "rlvr.verifiers.reasoning_instructions:make_reasoning_checker",
    kwargs,
    num_workers=num_workers,
    time_limit_s=time_limit_s,
    memory_limit_mb=memory_limit_mb,
    truncated=truncated,
    name=name,
    rewards=REWARDS,
  )
