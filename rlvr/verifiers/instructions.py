"""Instructions that a program can check: the families of IFEval.

Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models,
https://arxiv.org/abs/2311.07911. Ids and arguments are those of its data, and
the checks agree with its code (github.com/josejg/instruction_following_eval at
0c495b2, the published one as a package), except:

- words that the data gives are looked for as they are, not as regular
  expressions;
- a letter that isn't one ("!", "#" in the data) is counted as any other, where
  the code draws a random one;
- an argument that is missing is an error, where the code draws a random one;
- sentences are counted as `instruction_text.count_sentences` says;
- JSON has no NaN, and is no deeper than Python's recursion allows.

The reward hacks that IFEval's definitions leave open stay open: a response of
one word is without commas. Reward instructions beside the task, not alone.

Runs in worker processes, but for `instruction_verifier`: standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlvr.verifiers.instruction_checks import FAMILIES, IS_KIND, Family
from rlvr.verifiers.instruction_text import Detection, language_detector
from rlvr.verifiers.reasoning import text_between

if TYPE_CHECKING:  # it brings in JAX, which workers have no use for
  from rlvr.verifiers.host import PoolVerifier

REWARDS = ("followed", "correct_loose", "followed_loose")


class BadInstruction(ValueError):
  """The task's instructions can't be read."""


class Instruction(NamedTuple):
  """One instruction with its arguments, checked by `read_instructions`."""

  id: str
  family: Family
  arguments: Mapping[str, Any]

  def follows(self, text: str, *, detection: Detection) -> bool:
    """Returns whether a text follows it; a blank text follows nothing."""
    if not text.strip():
      return False
    more = {"detection": detection} if self.family.needs_language else {}
    return self.family.check(text, **self.arguments, **more)


def read_instructions(
  ids: Any, arguments: Any, *, families: Mapping[str, Family] = FAMILIES
) -> list[Instruction]:
  """Returns instructions as IFEval's data gives them.

  Args:
    ids: list of ids, `instruction_id_list` there.
    arguments: list of each one's arguments, `kwargs` there; null, and
      arguments that are null, are left out.
    families: the ids that there are.

  Raises:
    BadInstruction: none, an id that isn't known, or wrong arguments.
  """
  if not isinstance(ids, (list, tuple)) or not ids:
    raise BadInstruction(f"instruction_id_list={ids!r}: give a list of ids")
  if not isinstance(arguments, (list, tuple)) or len(arguments) != len(ids):
    raise BadInstruction(
      f"kwargs={str(arguments)[:80]}: give one mapping for each of {ids}"
    )
  read = []
  for name, given in zip(ids, arguments, strict=True):
    if name not in families:
      raise BadInstruction(
        f"instruction {name!r} is not known; there are {sorted(families)}"
      )
    given = {k: v for k, v in (given or {}).items() if v is not None}
    wanted = families[name].arguments
    if given.keys() != wanted.keys():
      raise BadInstruction(
        f"{name} takes {sorted(wanted)}, the data gives {sorted(given)}"
      )
    for key, kind in wanted.items():
      if not IS_KIND[kind](given[key]):
        raise BadInstruction(f"{name}: {key}={given[key]!r} is no {kind}")
    read.append(Instruction(name, families[name], given))
  return read


def loose_variants(text: str) -> list[str]:
  """Returns a response with what models put around answers taken away.

  As it is, without asterisks, and without its first, its last, and both lines,
  these three with and without asterisks: IFEval's loose accuracy accepts an
  instruction that one of them follows.
  """
  lines = text.split("\n")
  cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1])]
  cut.append("\n".join(lines[1:-1]).strip())
  bare = [part.replace("*", "") for part in (text, *cut)]
  return [text, *cut, *bare]


def followed(
  instructions: Sequence[Instruction],
  text: str,
  *,
  loose: bool,
  detection: Detection,
) -> list[bool]:
  """Returns for each instruction whether a response follows it.

  Args:
    instructions: from `read_instructions`.
    text: the response.
    loose: whether one of `loose_variants` is enough.
    detection: see `instruction_text.Detection`.
  """
  texts = list(dict.fromkeys(loose_variants(text))) if loose else [text]
  return [
    any(i.follows(t, detection=detection) for t in texts) for i in instructions
  ]


def accuracies(results: Sequence[Sequence[bool]]) -> dict[str, float]:
  """Returns IFEval's two accuracies, "prompt" and "instruction".

  The share of the responses that follow all of their instructions, and of the
  instructions that are followed; NaN without any.

  Args:
    results: for each response, from `followed`.
  """
  flat = [value for result in results for value in result]
  nan = float("nan")
  return {
    "prompt": sum(map(all, results)) / len(results) if results else nan,
    "instruction": sum(flat) / len(flat) if flat else nan,
  }


def instruction_verdict(
  instructions: Sequence[Instruction],
  text: str,
  *,
  detection: Detection,
) -> dict[str, Any]:
  """Returns verdict, rewards and steps of a text that isn't blank."""
  options: dict[str, Any] = {"detection": detection}
  strict = followed(instructions, text, loose=False, **options)
  loose = followed(instructions, text, loose=True, **options)
  broken = [i.id for i, ok in zip(instructions, strict, strict=True) if not ok]
  return {
    "verdict": "WRONG" if broken else "CORRECT",
    "detail": ", ".join(broken),
    "rewards": {
      "followed": sum(strict) / len(strict),
      "correct_loose": float(all(loose)),
      "followed_loose": sum(loose) / len(loose),
    },
    "steps": {"instructions": [float(ok) for ok in strict]},
  }


def none_followed(
  verdict: str, detail: str, instructions: Sequence[Instruction]
) -> dict[str, Any]:
  """Returns what a response gets that follows nothing."""
  return {
    "verdict": verdict,
    "detail": detail,
    "rewards": dict.fromkeys(REWARDS, 0.0),
    "steps": {"instructions": [0.0] * len(instructions)},
  }


def make_instruction_checker(
  *,
  detection: Detection,
  delimiter: str = "",
  end_delimiter: str = "",
  per_instruction: bool = False,
  max_response_chars: int = 50_000,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the item function for `WorkerPool`.

  It takes {"response", "metadata": {"instruction_id_list", "kwargs"}}. Verdicts,
  first that holds: VERIFIER_FAILED (the instructions can't be read), NO_ANSWER
  (blank), MALFORMED (too long), CORRECT (all followed, strictly), WRONG.

  Args:
    detection: see `instruction_text.Detection`.
    delimiter, end_delimiter: where not empty, only the text between them
      counts, see `reasoning.text_between`; "</think>", for instance.
    per_instruction: whether each instruction's verdict comes back as well.
    max_response_chars: a longer response is MALFORMED.

  Raises:
    ImportError: langdetect isn't installed.
    ValueError: `detection` isn't known.
  """
  if detection not in ("published", "careful"):
    raise ValueError(f"detection={detection!r}: give 'published' or 'careful'")
  language_detector()

  def judge(item: Mapping[str, Any]) -> dict[str, Any]:
    metadata = item["metadata"]
    try:
      instructions = read_instructions(
        metadata.get("instruction_id_list"), metadata.get("kwargs")
      )
    except BadInstruction as error:
      return {"verdict": "VERIFIER_FAILED", "detail": str(error)}
    text: str | None = item["response"]
    if delimiter or end_delimiter:
      text = text_between(item["response"], delimiter, end_delimiter)
    if not text or not text.strip():
      return none_followed("NO_ANSWER", "", instructions)
    if len(text) > max_response_chars:
      why = f"{len(text)} characters"
      return none_followed("MALFORMED", why, instructions)
    return instruction_verdict(instructions, text, detection=detection)

  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    result = judge(item)
    if not per_instruction:
      result.pop("steps", None)
    return result

  return check


def instruction_verifier(
  *,
  num_workers: int,
  time_limit_s: float,
  detection: Detection,
  max_instructions: int = 0,
  delimiter: str = "",
  end_delimiter: str = "",
  max_response_chars: int = 50_000,
  memory_limit_mb: int | None = 1024,
  truncated: Literal["no_answer", "verify"] = "no_answer",
  name: str = "correct",
) -> "PoolVerifier":
  """Returns the verifier of instructions in the response.

  Outcome rewards: the first (`name`), 1 where all instructions are followed;
  "followed", the share that is; "correct_loose" and "followed_loose", the same
  by IFEval's loose accuracy (`loose_variants`).

  Args:
    num_workers: processes.
    time_limit_s: wall seconds per response.
    detection: see `instruction_text.Detection`; "published" for numbers to
      compare with IFEval's, "careful" for training.
    max_instructions: K; above 0, each instruction's verdict comes as step
      reward "instructions" [B, K].
    delimiter: see `make_instruction_checker`.
    end_delimiter: see `make_instruction_checker`.
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
    "delimiter": delimiter,
    "end_delimiter": end_delimiter,
    "per_instruction": max_instructions > 0,
    "max_response_chars": max_response_chars,
  }
  make_instruction_checker(**kwargs)  # raises here

  def unanswered(metadata: Mapping[str, Any]) -> dict[str, Any]:
    given = metadata.get("instruction_id_list") or []
    result = none_followed("NO_ANSWER", "", given)
    return result if max_instructions else {"rewards": result["rewards"]}

  return PoolVerifier(
    "rlvr.verifiers.instructions:make_instruction_checker",
    kwargs,
    num_workers=num_workers,
    time_limit_s=time_limit_s,
    memory_limit_mb=memory_limit_mb,
    truncated=truncated,
    name=name,
    rewards=REWARDS,
    steps=("instructions",) if max_instructions else (),
    max_steps=max_instructions,
    unanswered=unanswered,
  )
