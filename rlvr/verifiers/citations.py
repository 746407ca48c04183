"""Citations: which chunks of a long context a response says it used.

LongRLVR (Chen et al. 2026, https://arxiv.org/abs/2603.02146): beside the answer,
the evidence that was cited is compared with the evidence that was needed. The
two become one reward in `rlvr.rewards.grounding`.

Runs in worker processes and on the spot: imports the standard library, `formats`
and `text` alone. Work is linear in the response, which is bounded.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rlvr.verifiers.answers import Source
from rlvr.verifiers.formats import check_tags
from rlvr.verifiers.text import Compare, make_text_checker

if TYPE_CHECKING:
  from rlvr.verifiers.spot import SpotVerifier

_CHUNK = re.compile(r"<CHUNK_([0-9]{1,9})>")


def f_beta(
  found: Collection[Any], wanted: Collection[Any], *, beta: float
) -> float:
  """Returns Fβ of a set against the right one, in 0..1.

      P = |found ∩ wanted| / |found|,  R = |found ∩ wanted| / |wanted|
      Fβ = (1 + β²) P R / (β² P + R)

  β = 2 is the paper's: recall counts more, because an answer needs all of its
  evidence. Source: https://arxiv.org/abs/2603.02146, section 2.3.2. Deviation
  from https://github.com/real-absolute-AI/LongRLVR at 4531306
  (`longrl_reward_manager.py`), not from the paper: there a chunk that is cited
  twice counts twice in P's denominator.

  Args:
    found: ids, each counted once.
    wanted: ids, at least one.
    beta: weight of recall, above 0.

  Returns:
    0 where they have nothing in common.

  Raises:
    ValueError: nothing is wanted, or beta isn't above 0.
  """
  found, wanted = set(found), set(wanted)
  if not wanted or not beta > 0:
    raise ValueError(
      f"f_beta: {len(wanted)} wanted ids, beta={beta}: give at least one id and"
      " a beta above 0"
    )
  common = len(found & wanted)
  return (1 + beta**2) * common / (len(found) + beta**2 * len(wanted))


def cited_chunks(text: str, *, tag: str = "useful_chunks") -> set[int] | None:
  """Returns the numbers of the chunks that a response cites.

  What stands as <CHUNK_n> between <tag> and </tag>, in any order and with
  anything between.

  Args:
    text: a response.
    tag: its name.

  Returns:
    None unless each of <tag> and </tag> occurs once, in that order: whoever
    cites twice can't have the better list counted. (The authors' code wants one
    closed pair, and overlooks a further tag that isn't closed.)
  """
  inside = single_tag(text, tag)
  if inside is None:
    return None
  return {int(number) for number in _CHUNK.findall(inside)}


def single_tag(text: str, tag: str) -> str | None:
  """Returns what a tag holds; None unless it occurs once and is closed.

  Args:
    text: a response.
    tag: its name.
  """
  opening, closing = f"<{tag}>", f"</{tag}>"
  if text.count(opening) != 1 or text.count(closing) != 1:
    return None
  before, _, rest = text.partition(opening)
  return None if closing in before else rest.partition(closing)[0].strip()


def make_citation_checker(
  *,
  compare: Compare = "exact",
  beta: float = 2.0,
  tag: str = "useful_chunks",
  answer_tag: str = "answer",
  sources: Sequence[Source] = (),
  tolerance: float = 0.05,
  max_answer_chars: int = 1000,
  max_chars: int = 1_000_000,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the item function for an answer with its evidence.

  It takes {"response", "reference", "metadata"}; `metadata["chunks"]` are the
  numbers of the chunks that hold the evidence. The verdict is the answer's, as
  in `text.make_text_checker`; the further rewards are "context", `f_beta`, and
  "f1" of the answer's words.

  A response in which either tag isn't there once, as the paper wants it, is
  NO_ANSWER with all rewards 0. VERIFIER_FAILED without evidence or reference.

  Args:
    compare: how answers are compared. The paper asks a model, which is what to
      give where answers are long.
    beta: see `f_beta`.
    tag: around the citations.
    answer_tag: around the answer.
    sources: what marks the answer inside its tag; none takes all of it.
    tolerance: see `text.within_tolerance`.
    max_answer_chars: see `text.make_text_checker`.
    max_chars: longer responses are MALFORMED with all rewards 0.

  Raises:
    ValueError: see `text.make_text_checker`, `f_beta` and `check_tags`.
  """
  check_tags((tag, answer_tag))
  f_beta((0,), (0,), beta=beta)
  check_answer = make_text_checker(
    compare=compare,
    tolerance=tolerance,
    sources=sources,
    whole=True,
    max_answer_chars=max_answer_chars,
  )
  nothing = {"reward": 0.0, "rewards": {"context": 0.0, "f1": 0.0}}

  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    response, chunks = item["response"], item["metadata"].get("chunks")
    if not chunks:
      detail = "metadata['chunks'] names no evidence"
      return {"verdict": "VERIFIER_FAILED", "detail": detail}
    if len(response) > max_chars:
      detail = f"{len(response)} characters"
      return {"verdict": "MALFORMED", "detail": detail, **nothing}
    cited = cited_chunks(response, tag=tag)
    answer = single_tag(response, answer_tag)
    found = check_answer({**item, "response": answer or ""})
    if found["verdict"] == "VERIFIER_FAILED":
      return found
    if cited is None or answer is None:
      absent = tag if cited is None else answer_tag
      detail = f"<{absent}> isn't there once"
      return {"verdict": "NO_ANSWER", "detail": detail, **nothing}
    context = f_beta(cited, [int(c) for c in chunks], beta=beta)
    return {**found, "rewards": {**found["rewards"], "context": context}}

  return check


def citation_verifier(
  *,
  compare: Compare = "exact",
  beta: float = 2.0,
  tag: str = "useful_chunks",
  answer_tag: str = "answer",
  sources: Sequence[Source] = (),
  tolerance: float = 0.05,
  max_answer_chars: int = 1000,
  max_chars: int = 1_000_000,
  truncated: Literal["no_answer", "verify"] = "no_answer",
  name: str = "correct",
) -> "SpotVerifier":
  """Returns the verifier of answers with evidence: "context" and "f1" besides.

  Args:
    compare: see `make_citation_checker`.
    beta: see `f_beta`.
    tag: see `make_citation_checker`.
    answer_tag: see `make_citation_checker`.
    sources: see `make_citation_checker`.
    tolerance: see `make_citation_checker`.
    max_answer_chars: see `make_citation_checker`.
    max_chars: see `make_citation_checker`.
    truncated: see `host.Truncated`.
    name: the reward's name.

  Raises:
    ValueError: see `make_citation_checker`.
  """
  from rlvr.verifiers.spot import SpotVerifier

  check = make_citation_checker(
    compare=compare,
    beta=beta,
    tag=tag,
    answer_tag=answer_tag,
    sources=sources,
    tolerance=tolerance,
    max_answer_chars=max_answer_chars,
    max_chars=max_chars,
  )
  return SpotVerifier(
    check, truncated=truncated, name=name, rewards=("context", "f1")
  )
