import logging

import jax
import numpy as np
import pytest

from rlvr.verifiers.policy_answers import policy_answers
from tests.verifiers.test_policy_judge import (
  MODEL,
  PARAMS,
  Ascii,
  numpy_logprob,
)

PROMPTS = ["Which? so <answer>", "Why? I think <answer>"]


def make(labels=("A", "B", "C"), **options):
  settings = {"max_prompt_tokens": 64, "batch_size": 2, **options}
  return policy_answers(
    model=MODEL, vocabulary=Ascii(), labels=labels, **settings
  )


def test_answers_are_the_policys_in_the_questions_order():
  # Each question has labels of its own, in an order of its own; the reference
  # is one forward pass without padding.
  answers = make(label_prefix=" ")
  answers.use_policy(PARAMS)
  labels = [("C", "A"), ("A", "B", "C")]
  found = answers(PROMPTS, labels)
  for prompt, names, logprobs in zip(PROMPTS, labels, found, strict=True):
    expected = [numpy_logprob(prompt, " " + name) for name in names]
    np.testing.assert_allclose(logprobs, expected, atol=1e-4)
  # The control: without the prefix they are others.
  answers = make()
  answers.use_policy(PARAMS)
  (bare,) = answers(PROMPTS[:1], labels[:1])
  assert np.abs(np.subtract(bare, found[0])).min() > 1e-3


def test_the_present_parameters_answer():
  answers = make()
  with pytest.raises(RuntimeError, match="use_policy"):
    answers(PROMPTS[:1], [("A", "B")])
  answers.use_policy(PARAMS)
  (before,) = answers(PROMPTS[:1], [("A", "B")])
  answers.use_policy(jax.tree.map(lambda x: 1.5 * x, PARAMS))
  (after,) = answers(PROMPTS[:1], [("A", "B")])
  assert np.abs(np.subtract(after, before)).min() > 1e-3


def test_what_can_not_be_answered_is_none_and_said(caplog):
  answers = make()
  answers.use_policy(PARAMS)
  prompts = ["Which?", "x" * 65, PROMPTS[0]]
  with caplog.at_level(logging.WARNING):
    found = answers(prompts, [("A", "E"), ("A", "B"), ("A", "B")])
  assert found[:2] == [None, None] and found[2] is not None
  (record,) = caplog.records
  assert "2 of 3 questions" in record.message
  assert "policy_answers.labels lacks ['E']" in record.message
