"""Arithmetic expressions of any length, with step-by-step working.

After RandomCalculation (Wu et al., "Reasoning or Memorization? Unreliable
Results of Reinforcement Learning Due to Data Contamination",
https://arxiv.org/abs/2507.10532): problems that are generated, so that no model
can have seen them, and as long and as hard as one likes.

Deviations and sources: written from the paper's abstract; the section on the
construction was not at hand, so that the distribution of expressions is this
module's own. Operands are integers of a given range, and `/` stands only where
it divides exactly, so that every value in the working is an integer.

Train and held-out are disjoint by construction: an expression's split is a hash
of its canonical form (`canonical_form`), in which reordered terms and factors
are the same expression. The hash knows neither seed nor sizes nor options, so
that no expression is trained on in one run and held out in another.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from rlvr.data.examples import SPLITS, Example, Split, check_split

Node = int | tuple[str, "Node", "Node"]  # a number, or (operator, left, right)

OPERATORS = ("+", "-", "*", "/")
# One canonical form in so many is held out. Not an option: it would move
# expressions between the splits of two runs.
HELDOUT_ONE_IN = 8
# So many draws in a row without a new expression mean that there are no more.
_PATIENCE = 10_000
_MAX_OPERATIONS = 200  # trees are walked recursively
_REORDERINGS = 20  # draws of another order before a problem is left out
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def evaluate(node: Node) -> tuple[int, list[str]] | None:
  """Returns an expression's value and its working, a step per operation.

  Args:
    node: the expression.

  Returns:
    The value, and steps such as "3*4=12" in the order of evaluation (operands
    before their operator, left before right); None where a division isn't
    exact or divides by zero.
  """
  if isinstance(node, int):
    return node, []
  operator, left, right = node
  first, second = evaluate(left), evaluate(right)
  if first is None or second is None:
    return None
  (a, steps_a), (b, steps_b) = first, second
  if operator == "/":
    if b == 0 or a % b:
      return None
    value = a // b
  else:
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
  step = f"{expression_text((operator, a, b))}={value}"
  return value, [*steps_a, *steps_b, step]


def expression_text(node: Node) -> str:
  """Returns the expression as text, with the parentheses that it needs.

  A right operand of the same precedence and one that begins with a minus sign
  are in parentheses too, so that the text reads back as the same tree.
  """
  if isinstance(node, int):
    return str(node)
  operator, left, right = node
  first, second = expression_text(left), expression_text(right)
  if _precedence(left) < _PRECEDENCE[operator]:
    first = f"({first})"
  if _precedence(right) <= _PRECEDENCE[operator] or second.startswith("-"):
    second = f"({second})"
  return f"{first}{operator}{second}"


def canonical_form(node: Node) -> str:
  """Returns one text for all expressions that differ in the order of terms.

  A sum's terms and a product's factors are gathered with their signs, those of
  nested sums and products with them, and sorted: 5-(1-2*3) and 3*2+5-1 have
  the form of one expression.
  """
  if isinstance(node, int):
    return str(node)
  up, down = ("+", "-") if node[0] in "+-" else ("*", "/")
  terms = _signed_terms(node, up, down, up)
  return "(" + "".join(sorted(s + canonical_form(t) for s, t in terms)) + ")"


def reordered(node: Node, rng: np.random.Generator) -> Node:
  """Returns the expression with the terms of each sum and product shuffled.

  Terms are those of `canonical_form`, so that both have the same one; the first
  is always one that is added (or multiplied by). The result may read as the
  expression itself, and a division in it may not be exact.

  Args:
    node: the expression.
    rng: draws the orders.
  """
  if isinstance(node, int):
    return node
  up, down = ("+", "-") if node[0] in "+-" else ("*", "/")
  terms = _signed_terms(node, up, down, up)
  terms = [(sign, reordered(term, rng)) for sign, term in terms]
  terms = [terms[i] for i in rng.permutation(len(terms))]
  first = next(i for i, (sign, _) in enumerate(terms) if sign == up)
  _, result = terms.pop(first)
  for sign, term in terms:
    result = (sign, result, term)
  return result


def split_of(node: Node) -> Split:
  """Returns the split to which an expression belongs, in every run."""
  digest = hashlib.sha256(canonical_form(node).encode()).digest()
  held_out = int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0
  return "heldout" if held_out else "train"


def arithmetic_examples(
  split: Split,
  *,
  num_examples: int,
  num_operations: int | Sequence[int],
  operand_min: int,
  operand_max: int,
  operators: Sequence[str],
  parentheses: bool,
  working: bool,
  answer_delimiter: str,
  step_delimiter: str,
  seed: int,
  paraphrases: bool = False,
) -> list[Example]:
  """Returns distinct expressions of a split, the same for the same arguments.

  No question occurs twice; in the held-out split no canonical form does (with
  paraphrases: in no two pairs). Sizes are prefixes: 100 examples are the first
  100 of 1,000.

  Args:
    split: "train" or "heldout".
    num_examples: how many.
    num_operations: operators in an expression, a number or (least, most), each
      number between them being equally frequent.
    operand_min: least operand.
    operand_max: greatest operand.
    operators: of "+", "-", "*", "/", drawn with equal probability; "/" only
      where it is exact.
    parentheses: false draws chains such as 1+2*3; true draws random trees,
      (1+2)*3 among them.
    working: whether the target shows its steps: "3*4=12;12+12=24#24" for
      12+3*4 rather than "#24".
    answer_delimiter: stands before the target's answer.
    step_delimiter: stands between steps.
    seed: of the draws.
    paraphrases: whether examples 2i and 2i+1 are one problem in two orders:
      3*4+12 and 12+4*3. Problems that have only one order, such as 7-3, are
      left out then.

  Raises:
    ValueError: an option makes no sense, or there are fewer expressions than
      asked for.
  """
  check_split(split)
  low, high = _check_options(
    num_examples, num_operations, operand_min, operand_max, operators, seed
  )
  if working and not (answer_delimiter and step_delimiter):
    raise ValueError(
      f"working=True with answer_delimiter={answer_delimiter!r} and"
      f" step_delimiter={step_delimiter!r}: steps and answer couldn't be told"
      " apart; give both, e.g. '#' and ';'"
    )
  if paraphrases and num_examples % 2:
    raise ValueError(
      f"arithmetic: num_{split}={num_examples} with paraphrases=True: examples"
      " come in pairs, give an even number"
    )
  rng = np.random.default_rng([seed, SPLITS.index(split)])
  examples: list[Example] = []
  seen: set[str] = set()
  misses = 0
  while len(examples) < num_examples:
    count = int(rng.integers(low, high + 1))
    draw = _random_tree if parentheses else _random_chain
    node = draw(rng, count, operand_min, operand_max, tuple(operators))
    key = canonical_form(node) if split == "heldout" else expression_text(node)
    usable = (
      evaluate(node) is not None and key not in seen and split_of(node) == split
    )
    other = _paraphrase(node, rng) if paraphrases and usable else None
    if paraphrases and (other is None or expression_text(other) in seen):
      usable = False
    if not usable:
      misses += 1
      if misses > _PATIENCE:
        raise ValueError(
          f"arithmetic: only {len(examples)} of {num_examples} {split}"
          f" expressions found with num_operations={num_operations}, operands"
          f" {operand_min}..{operand_max}, operators={list(operators)}: ask"
          f" for fewer (num_{split}), or widen the operands or operations"
        )
      continue
    misses = 0
    seen.add(key)
    together = [node] if other is None else [node, other]
    seen.update(expression_text(n) for n in together)
    for expression in together:
      value, steps = evaluate(expression)  # type: ignore[misc]
      shown = step_delimiter.join(steps) if working else ""
      examples.append(
        Example(
          question=expression_text(expression),
          answer=str(value),
          target=f"{shown}{answer_delimiter}{value}",
          metadata={
            "num_operations": count,
            "canonical_form": canonical_form(expression),
          },
        )
      )
  return examples


def _paraphrase(node: Node, rng: np.random.Generator) -> Node | None:
  """Returns the expression in another order, None if none was found."""
  for _ in range(_REORDERINGS):
    other = reordered(node, rng)
    if (
      expression_text(other) != expression_text(node)
      and evaluate(other) is not None
    ):
      return other
  return None


def _precedence(node: Node) -> int:
  return 3 if isinstance(node, int) else _PRECEDENCE[node[0]]


def _signed_terms(
  node: Node, up: str, down: str, sign: str
) -> list[tuple[str, Node]]:
  """Returns the terms of nested sums (or factors) with their signs."""
  if isinstance(node, int) or node[0] not in (up, down):
    return [(sign, node)]
  operator, left, right = node
  flipped = down if sign == up else up
  right_sign = sign if operator == up else flipped
  return [
    *_signed_terms(left, up, down, sign),
    *_signed_terms(right, up, down, right_sign),
  ]


def _random_chain(
  rng: np.random.Generator,
  count: int,
  low: int,
  high: int,
  operators: tuple[str, ...],
) -> Node:
  operands = [int(n) for n in rng.integers(low, high + 1, size=count + 1)]
  chosen = [operators[i] for i in rng.integers(len(operators), size=count)]
  # Products bind first, then sums, both from the left.
  terms: list[Node] = [operands[0]]
  signs: list[str] = []
  for operator, operand in zip(chosen, operands[1:], strict=True):
    if _PRECEDENCE[operator] == 2:
      terms[-1] = (operator, terms[-1], operand)
    else:
      signs.append(operator)
      terms.append(operand)
  node = terms[0]
  for sign, term in zip(signs, terms[1:], strict=True):
    node = (sign, node, term)
  return node


def _random_tree(
  rng: np.random.Generator,
  count: int,
  low: int,
  high: int,
  operators: tuple[str, ...],
) -> Node:
  if count == 0:
    return int(rng.integers(low, high + 1))
  left = int(rng.integers(count))
  return (
    operators[int(rng.integers(len(operators)))],
    _random_tree(rng, left, low, high, operators),
    _random_tree(rng, count - 1 - left, low, high, operators),
  )


def _check_options(
  num_examples: int,
  num_operations: int | Sequence[int],
  operand_min: int,
  operand_max: int,
  operators: Sequence[str],
  seed: int,
) -> tuple[int, int]:
  if isinstance(num_operations, int):
    num_operations = (num_operations, num_operations)
  if len(num_operations) != 2:
    raise ValueError(
      f"num_operations={num_operations}: give a number or (least, most)"
    )
  low, high = num_operations
  if not 1 <= low <= high <= _MAX_OPERATIONS:
    raise ValueError(
      f"num_operations={low}..{high}: give 1 <= least <= most <="
      f" {_MAX_OPERATIONS}"
    )
  if operand_min > operand_max:
    raise ValueError(
      f"operand_min={operand_min} is above operand_max={operand_max}: swap them"
    )
  unknown = [o for o in operators if o not in OPERATORS]
  if unknown or not operators:
    raise ValueError(
      f"operators={list(operators)}: give some of {list(OPERATORS)}"
    )
  if num_examples < 1:
    raise ValueError(f"{num_examples} examples: ask for 1 or more")
  if seed < 0:
    raise ValueError(f"seed={seed}: give 0 or more")
  return low, high
