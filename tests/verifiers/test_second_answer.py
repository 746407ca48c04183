import concurrent.futures
import math
import threading

import numpy as np
import pytest

from rlvr.types import Verdict
from rlvr.verifiers.choice import choice_verifier, option_order
from rlvr.verifiers.host import host_signals
from rlvr.verifiers.second_answer import (
  reasoning_of,
  second_answer_verifier,
  second_question,
  second_reward,
)

OPTIONS = ["red", "green", "blue"]
META = {"question": "Which?", "options": OPTIONS}
TAGS = {"delimiter": "<answer>", "end_delimiter": "</answer>"}


def test_reasoning_of():
  response = "I <answer>A</answer> think <answer>B</answer>"
  assert reasoning_of(response, delimiter="<answer>") == (
    "I <answer>A</answer> think <answer>"
  )
  assert reasoning_of("B", delimiter="<answer>") is None


def test_second_question():
  asked = second_question("Which?", OPTIONS, "B", "so <answer>", seed=0)
  order = option_order(3, seed=0, key="Which?")
  texts = [OPTIONS[i] for i in order]
  assert asked.prompt == (
    f"Which?\nA) {texts[0]}\nB) {texts[1]}\nC) {texts[2]}\nso <answer>"
  )
  assert asked.labels == ("A", "B", "C") and asked.order == tuple(order)
  assert texts["ABC".index(asked.right)] == "green"
  # The same for all responses; what a response says isn't filled in.
  again = second_question("Which?", OPTIONS, "B", "{options}", seed=0)
  assert again.order == asked.order and again.prompt.endswith("\n{options}")
  with pytest.raises(ValueError, match="'Z'"):
    second_question("Which?", OPTIONS, "Z", "", seed=0)


def test_every_option_finds_its_new_letter():
  for seed in range(20):
    for reference, text in zip("ABC", OPTIONS, strict=True):
      asked = second_question("Which?", OPTIONS, reference, "", seed=seed)
      assert f"\n{asked.right}) {text}\n" in asked.prompt


def test_second_reward():
  asked = second_question("Which?", OPTIONS, "B", "", seed=0)
  place = asked.labels.index(asked.right)
  logprobs = [-5.0] * 3
  logprobs[place] = -0.1
  assert second_reward(asked, logprobs) == 1.0
  logprobs[(place + 1) % 3] = -0.05
  assert second_reward(asked, logprobs) == 0.0
  logprobs[place] = -math.inf
  assert second_reward(asked, logprobs) == 0.0
  # Among equals the first counts, as with whoever decodes greedily.
  for tie in ([-1.0, -1.0, -9.0], [-9.0, -1.0, -1.0]):
    first = asked.labels[tie.index(-1.0)]
    assert second_reward(asked, tie) == (first == asked.right)
    assert second_reward(asked._replace(right=first), tie) == 1.0
  for unknown in (None, [0.0], [math.nan] * 3, [-math.inf] * 3):
    assert math.isnan(second_reward(asked, unknown))


class Reader:
  """Answers with the option that the reasoning names, else with A."""

  def __init__(self):
    self.prompts = []

  def __call__(self, prompts, labels):
    self.prompts += prompts
    return [
      self.answer(p, names) for p, names in zip(prompts, labels, strict=True)
    ]

  def answer(self, prompt, names):
    lines = dict(line.split(") ") for line in prompt.splitlines()[1:4])
    thought = prompt.splitlines()[-1]
    if "dunno" in thought:
      return None
    said = [n for n in names if lines[n] in thought] or ["A"]
    return [0.0 if n == said[0] else -9.0 for n in names]


def test_second_answer_of_each_response():
  # Where the right option isn't A, with which the reader would be right by luck.
  seed = next(
    seed
    for seed in range(9)
    if second_question("Which?", OPTIONS, "B", "", seed=seed).right != "A"
  )
  reader = Reader()
  verifier = second_answer_verifier(
    choice_verifier(**TAGS), reader, delimiter="<answer>", seed=seed
  )
  responses = [
    "it is green <answer>B</answer>",  # right, and its reasoning leads there
    "it is red <answer>B</answer>",  # right, for no reason
    "it is green <answer>C</answer>",  # wrong, in spite of its reasoning
    "it is red <answer>A</answer>",
    "it is green",  # no answer: nobody is asked
    "it is green <answer>A or B</answer>",
    "dunno <answer>B</answer>",  # nobody can say
    "it is green <answer>B</answer>",  # truncated
    "it is green <answer>B</answer>",  # no reference
  ]
  finished = np.array([True] * 7 + [False, True])
  references = ["B"] * 8 + ["?"]
  pending = verifier.start(responses, references, [META] * 9, finished)
  signals = pending.result(30)
  assert pending.done()
  nan = np.nan
  np.testing.assert_array_equal(
    signals.outcome["correct"], [1, 1, 0, 0, 0, 0, 1, 0, nan]
  )
  np.testing.assert_array_equal(
    signals.outcome["second"], [1, 0, 1, 0, 0, 0, nan, 0, nan]
  )
  assert len(reader.prompts) == 5
  assert signals.verdicts["correct"][5] == Verdict.MALFORMED
  signals = verifier.verify(["none"], ["B"], [META], np.ones(1, bool))
  assert len(reader.prompts) == 5 and signals.outcome["second"] == [0.0]
  verifier.close()


def test_bad_options():
  for options, words in (
    ({"delimiter": ""}, "delimiter is empty"),
    ({"template": "{reasoning} {question}"}, "must end with"),
    ({"second": "correct"}, "first reward's name"),
  ):
    with pytest.raises(ValueError, match=words):
      second_answer_verifier(
        choice_verifier(),
        Reader(),
        **{"delimiter": "<answer>", "seed": 0, **options},
      )


def test_a_question_that_can_not_be_asked_is_missing():
  # One without options; one with "stem" alone, which is enough; texts in braces
  # are what they are.
  asked = []

  def ask(prompts, labels):
    asked.extend(prompts)
    return [[0.0] * len(each) for each in labels]

  verifier = second_answer_verifier(
    choice_verifier(**TAGS),
    ask,
    delimiter="<answer>",
    seed=0,
  )
  response = "so <answer>A</answer>"
  odd = ["{reasoning}", "{options}", "blue"]
  metadata = [
    {**META, "options": "?"},
    {"stem": "Which {options}?", "options": odd},
    {"options": OPTIONS},
  ]
  # A reference in small letters is the option that the first verifier takes it
  # for.
  signals = verifier.verify(
    [response] * 3, ["A", " a", "A"], metadata, [True] * 3
  )
  verifier.close()
  # The first one failed in the first verifier, the last here.
  assert np.isnan(signals.outcome["second"]).tolist() == [True, False, True]
  assert np.isnan(signals.outcome["correct"]).tolist() == [True, False, False]
  ((problem, why),) = verifier.problems
  assert problem == response and why == "KeyError: 'question'"
  (prompt,) = asked
  assert prompt.startswith("Which {options}?\n")
  assert prompt.count("so <answer>") == 1 and ") {reasoning}\n" in prompt


class Policy:
  """Notes with which parameters it was asked, when it is let go."""

  def __init__(self):
    self.params, self.asked = None, []
    self.reached, self.go = threading.Event(), threading.Event()

  def use_policy(self, params):
    self.params = params

  def __call__(self, prompts, labels):
    self.reached.set()
    assert self.go.wait(30)
    self.asked.append(self.params)
    return [[0.0] * len(names) for names in labels]


def test_a_batch_is_asked_with_the_parameters_it_started_with():
  first, policy = choice_verifier(**TAGS), Policy()
  given = []
  first.use_policy = given.append
  verifier = second_answer_verifier(first, policy, delimiter="<answer>", seed=0)
  item = ["so <answer>A</answer>"], ["A"], [META], np.ones(1, bool)
  verifier.use_policy("old")
  pending = verifier.start(*item)
  assert policy.reached.wait(30)
  update = threading.Thread(target=verifier.use_policy, args=("new",))
  update.start()
  update.join(0.2)  # it waits for the batch before
  assert update.is_alive() and policy.params == "old"
  policy.go.set()
  pending.result(30)
  update.join(30)
  verifier.verify(*item)
  verifier.close()
  assert policy.asked == ["old", "new"] and given == ["old", "new"]


class TimesOut:
  """A first verifier that knows nothing in time."""

  name = "correct"

  def start(self, responses, references, metadata, finished):
    del references, metadata, finished
    done = concurrent.futures.Future()
    verdicts = [Verdict.TIMED_OUT] * len(responses)
    done.set_result(host_signals("correct", verdicts))
    return done

  def close(self):
    pass


def test_where_the_first_verifier_knew_nothing_the_second_is_missing():
  verifier = second_answer_verifier(
    TimesOut(), Reader(), delimiter="<answer>", seed=0
  )
  signals = verifier.verify(
    ["so <answer>A</answer>"], ["A"], [META], np.ones(1, bool)
  )
  verifier.close()
  assert np.isnan(signals.outcome["second"]).all()
