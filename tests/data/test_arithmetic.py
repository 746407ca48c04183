"""Expressions, their working, and the disjointness of the splits."""

import itertools

import numpy as np
import pytest

from rlvr.data.arithmetic import (
  arithmetic_examples,
  canonical_form,
  evaluate,
  expression_text,
  reordered,
  split_of,
)

OPTIONS = dict(
  num_examples=60,
  num_operations=(1, 3),
  operand_min=0,
  operand_max=12,
  operators=("+", "-", "*"),
  parentheses=False,
  working=True,
  answer_delimiter="#",
  step_delimiter=";",
  seed=0,
)


def make(split="train", **changes):
  return arithmetic_examples(split, **{**OPTIONS, **changes})


def test_working_by_hand():
  # 12+3*4: the product first, 3*4=12, then 12+12=24.
  tree = ("+", 12, ("*", 3, 4))
  assert expression_text(tree) == "12+3*4"
  assert evaluate(tree) == (24, ["3*4=12", "12+12=24"])


def test_working_with_parentheses_by_hand():
  # (2-9)*(4-(1-5)): 2-9=-7; 1-5=-4; 4-(-4)=8; -7*8=-56.
  tree = ("*", ("-", 2, 9), ("-", 4, ("-", 1, 5)))
  assert expression_text(tree) == "(2-9)*(4-(1-5))"
  assert evaluate(tree) == (
    -56,
    ["2-9=-7", "1-5=-4", "4-(-4)=8", "-7*8=-56"],
  )


def test_division_is_exact_or_refused():
  assert evaluate(("/", 12, 4)) == (3, ["12/4=3"])
  assert evaluate(("/", 12, 5)) is None
  assert evaluate(("+", 1, ("/", 12, 0))) is None


def test_target_with_and_without_working():
  shown, hidden = make(), make(working=False)
  for a, b in zip(shown, hidden, strict=True):
    assert a.question == b.question
    assert b.target == f"#{a.answer}"
    assert a.target.endswith(f"={a.answer}#{a.answer}")
    assert a.target.count(";") == a.metadata["num_operations"] - 1


@pytest.mark.parametrize("parentheses", [False, True])
def test_texts_answers_and_steps_agree_with_python(parentheses):
  examples = make(
    num_examples=150,
    parentheses=parentheses,
    operators=("+", "-", "*", "/"),
    operand_min=-9,
  )
  for example in examples:
    # Python's own grammar reads the same text; "/" is exact, so "//" is it.
    assert eval(example.question.replace("/", "//")) == int(example.answer)
    for step in example.target.split("#")[0].split(";"):
      left, _, right = step.rpartition("=")
      assert eval(left.replace("/", "//")) == int(right)


def test_reordered_expressions_have_one_form():
  tree = ("-", 5, ("-", 1, ("*", 2, 3)))  # 5-(1-2*3)
  other = ("-", ("+", ("*", 3, 2), 5), 1)  # 3*2+5-1
  assert canonical_form(tree) == canonical_form(other)
  assert split_of(tree) == split_of(other)
  # Control: another value has another form.
  assert canonical_form(tree) != canonical_form(("-", 5, ("+", 1, 6)))


def test_one_form_means_one_value():
  leaves = (1, 2, 3)
  trees = [
    tree
    for a, b, c in itertools.permutations(leaves)
    for p, q in itertools.product("+-*", repeat=2)
    for tree in ((p, (q, a, b), c), (p, a, (q, b, c)))
  ]
  values = {}
  for tree in trees:
    values.setdefault(canonical_form(tree), set()).add(evaluate(tree)[0])
  assert all(len(found) == 1 for found in values.values())
  assert len(values) < len(trees)  # control: the form does merge something


def forms(examples):
  return {example.metadata["canonical_form"] for example in examples}


def test_splits_are_disjoint_whatever_sizes_and_seeds():
  small = dict(num_operations=1, operand_max=9)
  train = [
    forms(make("train", seed=seed, num_examples=size, **small))
    for seed, size in ((0, 120), (1, 60))
  ]
  heldout = [
    forms(make("heldout", seed=seed, num_examples=size, **small))
    for seed, size in ((0, 15), (7, 20))
  ]
  for a, b in itertools.product(train, heldout):
    assert not a & b
  # Control: by seeds alone these would overlap, as two training sets do.
  assert train[0] & train[1]


def test_no_question_twice():
  train = [e.question for e in make(num_examples=200)]
  assert len(set(train)) == len(train)
  heldout = make("heldout", num_examples=40)
  assert len(forms(heldout)) == len(heldout)


def test_seed_and_size():
  assert make() == make()
  assert make() != make(seed=1)
  assert make(num_examples=10) == make()[:10]


def test_options_hold():
  examples = make(
    num_operations=(2, 4), operand_min=3, operand_max=5, operators=("+",)
  )
  counts = {e.metadata["num_operations"] for e in examples}
  assert counts == {2, 3, 4}
  for example in examples:
    assert set(example.question) <= set("345+")
    assert example.question.count("+") == example.metadata["num_operations"]


def test_long_expressions():
  (example,) = make(num_examples=1, num_operations=150, operators=("+", "-"))
  assert eval(example.question) == int(example.answer)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(num_operations=0), r"num_operations=0\.\.0"),
    (dict(num_operations=(3, 1)), r"num_operations=3\.\.1"),
    (dict(num_operations=(1, 2, 3)), "a number or"),
    (dict(operand_min=5, operand_max=4), "swap them"),
    (dict(operators=("^",)), r"operators=\['\^'\]"),
    (dict(operators=()), "operators"),
    (dict(num_examples=0), "0 examples"),
    (dict(seed=-1), "seed=-1"),
    (dict(answer_delimiter=""), "told apart"),
    (
      dict(num_operations=1, operand_max=2, num_examples=999),
      "of 999 train expressions.*num_train",
    ),
  ],
)
def test_errors_name_the_option(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)


def test_unknown_split():
  with pytest.raises(ValueError, match="split='test'"):
    make("test")


# Pairs of paraphrases.


@pytest.mark.parametrize("operators", ["+-*", "*/", "+-*/"])
@pytest.mark.parametrize("parentheses", [False, True])
def test_pairs_are_one_problem_in_two_orders(operators, parentheses):
  examples = make(
    paraphrases=True, operators=tuple(operators), parentheses=parentheses
  )
  assert len(examples) == 60
  for a, b in zip(examples[::2], examples[1::2], strict=True):
    assert a.question != b.question
    assert a.metadata == b.metadata  # the canonical form among them
    assert a.answer == b.answer
    for e in (a, b):
      # Independent of this module: Python reads the text.
      assert eval(e.question.replace("/", "//")) == int(e.answer)
      assert e.target.endswith(f"#{e.answer}")
  questions = [e.question for e in examples]
  assert len(set(questions)) == 60
  # Control: neighbours that are no pair are other problems.
  forms_of = [e.metadata["canonical_form"] for e in examples]
  assert any(
    a != b for a, b in zip(forms_of[1::2], forms_of[2::2], strict=False)
  )


def test_pairs_keep_to_their_split():
  options = dict(paraphrases=True, num_operations=2, operand_max=20)
  train = forms(make("train", num_examples=400, **options))
  heldout = make("heldout", num_examples=100, **options)
  assert not train & forms(heldout)
  # In the held-out split a form occurs in one pair alone.
  assert len(forms(heldout)) == 50
  # Without paraphrases, too, nothing of these pairs is on the other side.
  assert not train & forms(make("heldout", num_examples=100))


def test_pairs_are_prefixes_and_alone_unchanged():
  few, many = make(paraphrases=True), make(paraphrases=True, num_examples=100)
  assert many[:60] == few
  assert make(paraphrases=False) == make()


def test_problems_of_one_order_are_left_out():
  # Of the subtractions a-b and a-b-c only the latter can be reordered.
  examples = make(
    paraphrases=True, operators=("-",), num_operations=(1, 2), num_examples=20
  )
  assert {e.metadata["num_operations"] for e in examples} == {2}


def test_reordered_by_hand():
  # 12+3*4: as 12+3*4, 12+4*3, 3*4+12, 4*3+12. 5-(1-2) = 5-1+2 in six orders,
  # of which those that would begin with -1 begin with the next one.
  rng = np.random.default_rng(0)
  found = {
    expression_text(reordered(("+", 12, ("*", 3, 4)), rng)) for _ in range(60)
  }
  assert found == {"12+3*4", "12+4*3", "3*4+12", "4*3+12"}
  tree = ("-", 5, ("-", 1, 2))
  found = {expression_text(reordered(tree, rng)) for _ in range(60)}
  assert found == {"5-1+2", "5+2-1", "2-1+5", "2+5-1"}


def test_pairs_need_an_even_number():
  with pytest.raises(ValueError, match="num_train=61 with paraphrases=True"):
    make(paraphrases=True, num_examples=61)
