"""Mixed-R1's reward: by the kind of task, one of several measures.

Source: Xu et al. 2025, https://arxiv.org/abs/2505.24164: matching for yes or no
and multiple choice, a relative tolerance for values read from charts, IoU for
boxes, and BMAS for long texts, beside a reward for the format. The abstract
names the four. Looked for and not found: the paper's text, the authors' code
(https://github.com/xushilin1/mixed-r1), anybody else's. So how much a chart's
value may be off (here 5 %, ChartQA's relaxed accuracy), that IoU is the reward
itself and not a threshold on it, and the weight of the format are this
project's.

Runs on the spot: the first three are cheap, the fourth is the caller's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from rlvr.verifiers.boxes import make_box_checker
from rlvr.verifiers.choice import make_choice_checker
from rlvr.verifiers.formats import (
  DEFAULT_TAGS,
  check_tags,
  format_score,
  last_tag_content,
)
from rlvr.verifiers.text import make_text_checker

if TYPE_CHECKING:
  from rlvr.verifiers.spot import SpotVerifier

Kind = Literal["choice", "match", "chart", "box", "open"]


def make_mixed_checker(
  *,
  tags: Sequence[str] = DEFAULT_TAGS,
  tolerance: float = 0.05,
  threshold: float = 0.5,
  similarity: Callable[[str, str], float] | None = None,
  max_answer_chars: int = 1000,
  max_chars: int = 50_000,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the item function that measures by `metadata["kind"]`.

  - "choice": `choice.make_choice_checker`, options in the metadata;
  - "match": `text.exact_match`, for yes or no;
  - "chart": `text.within_tolerance`;
  - "box": IoU as the reward, CORRECT from the threshold on;
  - "open": `similarity(answer, reference)` as the reward, CORRECT iff it is 1.

  The answer is what the last tag holds, or the whole response without that tag.
  The further reward "format" is `formats.format_score`. Verdicts are the
  measure's; VERIFIER_FAILED for an unknown kind, or "open" without a
  `similarity`.

  Args:
    tags: of the format, the answer's last.
    tolerance: see `text.within_tolerance`.
    threshold: see `boxes.make_box_checker`.
    similarity: of two texts, in 0..1, such as BMAS over embeddings of their
      tokens.
    max_answer_chars: longer short answers are MALFORMED.
    max_chars: longer responses are MALFORMED, their further reward 0.

  Raises:
    ValueError: see `text.make_text_checker`, `boxes.make_box_checker` and
      `formats.check_tags`.
  """
  check_tags(tags)
  short: dict[str, Any] = {
    "sources": ("boxed", "phrase"),
    "max_answer_chars": max_answer_chars,
  }
  text = {**short, "whole": True}
  checkers: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "choice": make_choice_checker(**short),
    "match": make_text_checker(compare="exact", **text),
    "chart": make_text_checker(
      compare="tolerance", tolerance=tolerance, **text
    ),
    "box": make_box_checker(threshold=threshold),
    "open": _open_checker(similarity),
  }

  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    kind, response = item["metadata"].get("kind"), item["response"]
    if not isinstance(kind, str) or kind not in checkers:
      detail = f"metadata['kind']={kind!r}: there are {list(get_args(Kind))}"
      return {"verdict": "VERIFIER_FAILED", "detail": detail}
    if len(response) > max_chars:
      detail = f"{len(response)} characters"
      rewards = {"format": 0.0}
      return {"verdict": "MALFORMED", "detail": detail, "rewards": rewards}
    answer = last_tag_content(response, tags[-1])
    answer = response if answer is None else answer
    found = checkers[kind]({**item, "response": answer})
    return {**found, "rewards": {"format": format_score(response, tags)}}

  return check


def _open_checker(
  similarity: Callable[[str, str], float] | None,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    if similarity is None:
      detail = "an open answer, but no `similarity` was given"
      return {"verdict": "VERIFIER_FAILED", "detail": detail}
    if not item["reference"].strip():
      return {"verdict": "VERIFIER_FAILED", "detail": "no reference"}
    if not item["response"].strip():
      return {"verdict": "NO_ANSWER", "reward": 0.0, "detail": ""}
    score = float(similarity(item["response"], item["reference"]))
    if not 0 <= score <= 1:
      detail = f"`similarity` gave {score}: it must be from 0 to 1"
      return {"verdict": "VERIFIER_FAILED", "detail": detail}
    verdict = "CORRECT" if score == 1.0 else "WRONG"
    return {"verdict": verdict, "reward": score, "detail": ""}

  return check


def mixed_verifier(
  *,
  tags: Sequence[str] = DEFAULT_TAGS,
  tolerance: float = 0.05,
  threshold: float = 0.5,
  similarity: Callable[[str, str], float] | None = None,
  max_answer_chars: int = 1000,
  max_chars: int = 50_000,
  truncated: Literal["no_answer", "verify"] = "no_answer",
  name: str = "correct",
) -> "SpotVerifier":
  """Returns Mixed-R1's verifier, with the further reward "format".

  Args:
    tags: see `make_mixed_checker`.
    tolerance: see `make_mixed_checker`.
    threshold: see `make_mixed_checker`.
    similarity: see `make_mixed_checker`.
    max_answer_chars: see `make_mixed_checker`.
    max_chars: see `make_mixed_checker`.
    truncated: see `host.Truncated`.
    name: the reward's name.

  Raises:
    ValueError: see `make_mixed_checker`.
  """
  from rlvr.verifiers.spot import SpotVerifier

  check = make_mixed_checker(
    tags=tags,
    tolerance=tolerance,
    threshold=threshold,
    similarity=similarity,
    max_answer_chars=max_answer_chars,
    max_chars=max_chars,
  )
  return SpotVerifier(
    check, truncated=truncated, name=name, rewards=("format",)
  )
