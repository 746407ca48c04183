"""Overlap with reference texts: BLEU and ROUGE-L as rewards.

BLEUBERI (Chang et al. 2025, https://arxiv.org/abs/2505.11080): GRPO with BLEU
against one or several reference outputs as the reward, trained on the prompts
where the base model's BLEU is lowest.

Runs in worker processes: imports the standard library alone. Work grows with
the product of the lengths only in `lcs_length`, 64 pairs at a time and more.
"""

import collections
import functools
import html
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
  from rlvr.verifiers.host import PoolVerifier

Measure = Literal["bleu", "rouge_l", "bleu_rouge"]

# mteval-v13a's: punctuation is a token, but for a period or comma between
# digits; so is a dash behind a digit.
_PUNCTUATION = re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])")
_NOT_BEHIND_DIGIT = re.compile(r"([^0-9])([\.,])")
_NOT_BEFORE_DIGIT = re.compile(r"([\.,])([^0-9])")
_DASH = re.compile(r"([0-9])(-)")
_ROUGE_TOKEN = re.compile(r"[a-z0-9]+")


def words_13a(text: str) -> list[str]:
  """Returns the tokens by which BLEU is counted: those of mteval-v13a.

  Case is kept.

  Args:
    text: any.
  """
  text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
  if "&" in text:
    for entity in ("quot", "amp", "lt", "gt"):
      text = text.replace(f"&{entity};", html.unescape(f"&{entity};"))
  text = _PUNCTUATION.sub(r" \1 ", f" {text} ")
  text = _NOT_BEHIND_DIGIT.sub(r"\1 \2 ", text)
  text = _NOT_BEFORE_DIGIT.sub(r" \1 \2", text)
  return _DASH.sub(r"\1 \2 ", text).split()


def words_rouge(text: str) -> list[str]:
  """Returns the tokens by which ROUGE is counted: a-z and 0-9, small letters.

  As the package rouge-score without stemming: what isn't ASCII is no token.

  Args:
    text: any.
  """
  return _ROUGE_TOKEN.findall(text.lower())


def bleu(
  tokens: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  max_order: int = 4,
  smooth: bool = True,
) -> float:
  """Returns BLEU of one text against its references, in 0..1.

      BLEU = BP · exp(1/N Σ_n ln p_n),  BP = min(1, exp(1 − r/c)),
      p_n = (m_n + 1) / (t_n + 1) smoothed, m_n / t_n otherwise

  over n = 1..N: t_n n-grams in the text, m_n of them in a reference, each at
  most as often as in the reference that has most of it; c tokens in the text, r
  in the shortest reference.

  Source: Papineni et al. 2002 with the smoothing of Lin and Och 2004, as
  BLEUBERI (https://arxiv.org/abs/2505.11080) computes it: `bleu_reward` of
  https://github.com/lilakk/BLEUBERI at e0d1563, whose numbers are those of
  https://github.com/tensorflow/nmt at 0be8642, nmt/scripts/bleu.py. Several
  references are one pool of n-grams, neither a maximum nor a mean. sacrebleu's
  sentence BLEU is another number: it adds nothing to p_1 and takes the length
  of the closest reference.

  An order for which the text is too short has t_n = 0: smoothed it counts as
  p_n = 1, unsmoothed BLEU is 0. Unsmoothed, so it is with any m_n = 0.

  Args:
    tokens: the text's, see `words_13a`.
    references: tokens of each reference, at least one.
    max_order: N.
    smooth: whether to add 1.

  Raises:
    ValueError: no references, or max_order below 1.
  """
  if not references or max_order < 1:
    raise ValueError(
      f"bleu: {len(references)} references, max_order={max_order}: give at"
      " least one of each"
    )
  shortest = min(len(reference) for reference in references)
  if not tokens or not shortest:
    return 0.0
  log_sum = 0.0
  for order in range(1, max_order + 1):
    allowed: collections.Counter = collections.Counter()
    for reference in references:
      allowed |= _ngrams(reference, order)
    matches = (_ngrams(tokens, order) & allowed).total()
    total = max(0, len(tokens) - order + 1)
    if not smooth and not matches:
      return 0.0
    log_sum += math.log((matches + smooth) / (total + smooth))
  brevity = min(1.0, math.exp(1.0 - shortest / len(tokens)))
  return brevity * math.exp(log_sum / max_order)


def _ngrams(tokens: Sequence[str], order: int) -> collections.Counter:
  return collections.Counter(
    zip(*(tokens[i:] for i in range(order)), strict=False)
  )


def rouge_l(tokens: Sequence[str], reference: Sequence[str]) -> float:
  """Returns ROUGE-L of two texts, in 0..1: F1 of their common subsequence.

      P = LCS / |tokens|,  R = LCS / |reference|,  F = 2 P R / (P + R)

  Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries",
  section 3.1, with β = 1 as the package rouge-score has it.

  Args:
    tokens: the text's, see `words_rouge`.
    reference: the reference's.

  Returns:
    0 where either is empty.
  """
  total = len(tokens) + len(reference)
  return 2.0 * lcs_length(tokens, reference) / total if total else 0.0


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
  """Returns the length of the longest common subsequence.

  A row of the table of dynamic programming is the bits of one number (Hyyrö
  2004, "Bit-parallel LCS-length computation revisited"): bit i of `row` is 0
  where the length grows at first[i].

  Args:
    first: tokens.
    second: tokens.
  """
  where: dict[str, int] = {}
  for i, token in enumerate(first):
    where[token] = where.get(token, 0) | (1 << i)
  full = (1 << len(first)) - 1
  row = full
  for token in second:
    hits = row & where.get(token, 0)
    row = ((row + hits) | (row - hits)) & full
  return len(first) - row.bit_count()


def bleu_score(text: str, references: Sequence[str]) -> float:
  """Returns `bleu` of texts, smoothed, cut as BLEUBERI cuts them.

  Args:
    text: a response.
    references: at least one.
  """
  return bleu(words_13a(text), [words_13a(r) for r in references])


def rouge_l_score(text: str, references: Sequence[str]) -> float:
  """Returns the greatest `rouge_l` of a text over its references.

  Args:
    text: a response.
    references: at least one.
  """
  tokens = words_rouge(text)
  return max(rouge_l(tokens, words_rouge(r)) for r in references)


def bleu_rouge_score(text: str, references: Sequence[str]) -> float:
  """Returns the harmonic mean of BLEU and ROUGE-L, BLEUBERI's ablation.

      2 b r / (b + r), 0 where both are 0

  Args:
    text: a response.
    references: at least one.
  """
  return _mean(bleu_score(text, references), rouge_l_score(text, references))


def _mean(bleu: float, rouge_l: float) -> float:
  total = bleu + rouge_l
  return 2.0 * bleu * rouge_l / total if total else 0.0


REWARDS = ("bleu", "rouge_l")
_MEASURES: dict[str, Callable[[str, Sequence[str]], float]] = {
  "bleu": bleu_score,
  "rouge_l": rouge_l_score,
}


def hardest_prompts(scores: Iterable[float], *, count: int) -> list[int]:
  """Returns the prompts with the lowest scores, lowest first.

  BLEUBERI's training set: the 5,000 of 50,000 prompts where the BLEU of the
  base model's output is lowest (`create_training_data.py`, mode "hard").

  Args:
    scores: of the base model's output to each prompt, NaN where there is none:
      such a prompt isn't taken.
    count: how many; all that have a score if they are fewer.

  Returns:
    Indices into the scores; among equal scores the first go first.

  Raises:
    ValueError: count below 1.
  """
  if count < 1:
    raise ValueError(f"hardest_prompts: count={count} must be 1 or more")
  known = [(s, i) for i, s in enumerate(scores) if not math.isnan(s)]
  return [i for _, i in sorted(known)[:count]]


def make_overlap_scorer(
  *,
  measure: Measure,
  delimiter: str = "",
  max_chars: int = 50_000,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the item function that measures overlap with references.

  It takes {"response", "reference", "metadata"}; `metadata["references"]`, a
  list of texts, goes before the reference. The reward is the measure in 0..1;
  CORRECT iff it is 1 (smoothed BLEU is 1 for a text that is its reference),
  else WRONG; NO_ANSWER without the delimiter or any text; MALFORMED above
  `max_chars`; both with rewards 0; VERIFIER_FAILED without references. The
  further rewards "bleu" and "rouge_l" are there whatever the measure is.

  Args:
    measure: "bleu"; "rouge_l"; "bleu_rouge", their harmonic mean.
    delimiter: where not empty, only what follows its last occurrence counts.
    max_chars: longer responses are not looked at.

  Raises:
    ValueError: an unknown measure.
  """
  if measure not in get_args(Measure):
    raise ValueError(
      f"measure={measure!r}: give one of {list(get_args(Measure))}"
    )
  words = functools.partial(re.search, r"[^\s" + string.punctuation + "]")

  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    references = item["metadata"].get("references") or [item["reference"]]
    if not any(words(reference) for reference in references):
      return {"verdict": "VERIFIER_FAILED", "detail": "no reference"}
    references = [r for r in references if words(r)]
    response = item["response"]

    def nothing(verdict: str, detail: str) -> dict[str, Any]:
      rewards = dict.fromkeys(REWARDS, 0.0)
      return {"verdict": verdict, "detail": detail, "rewards": rewards}

    if len(response) > max_chars:
      return nothing("MALFORMED", f"{len(response)} characters")
    found = True
    if delimiter:
      _, found, response = response.rpartition(delimiter)
    if not found or not response.strip():
      return nothing("NO_ANSWER", "")
    both = {name: _MEASURES[name](response, references) for name in REWARDS}
    score = _mean(**both) if measure == "bleu_rouge" else both[measure]
    return {
      "verdict": "CORRECT" if score == 1.0 else "WRONG",
      "reward": score,
      "rewards": both,
      "detail": "",
    }

  return check


def overlap_verifier(
  *,
  num_workers: int,
  time_limit_s: float,
  measure: Measure = "bleu",
  delimiter: str = "",
  max_chars: int = 50_000,
  memory_limit_mb: int | None = 1024,
  truncated: Literal["no_answer", "verify"] = "no_answer",
  name: str = "correct",
) -> "PoolVerifier":
  """Returns the verifier whose reward is BLEU or ROUGE-L, in workers.

  "bleu" and "rouge_l" are further rewards.

  Args:
    num_workers: processes.
    time_limit_s: wall seconds per response.
    measure: see `make_overlap_scorer`.
    delimiter: see `make_overlap_scorer`.
    max_chars: see `make_overlap_scorer`.
    memory_limit_mb: see `WorkerPool`.
    truncated: see `host.Truncated`.
    name: the reward's name.

  Raises:
    ValueError: an unknown measure.
  """
  from rlvr.verifiers.host import PoolVerifier

  kwargs: dict[str, Any] = {
    "measure": measure,
    "delimiter": delimiter,
    "max_chars": max_chars,
  }
  make_overlap_scorer(**kwargs)  # raises here
  return PoolVerifier(
    "rlvr.verifiers.overlap:make_overlap_scorer",
    kwargs,
    num_workers=num_workers,
    time_limit_s=time_limit_s,
    memory_limit_mb=memory_limit_mb,
    truncated=truncated,
    name=name,
    rewards=REWARDS,
  )
