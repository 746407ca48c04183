import json
import logging
import warnings

import jax
import numpy as np
import pytest

from rlvr.types import Verdict, scores_from_signals
from rlvr.verifiers import (
  PoolVerifier,
  exact_text_verifier,
  math_verifier,
  reasoning_gym_verifier,
  verdict_counts,
)
from rlvr.verifiers.host import host_signals, read_outcome
from rlvr.verifiers.jobs import Outcome
from rlvr.verifiers.reasoning import text_between

SCRIPTED = "tests.verifiers.items:make_echo_math"


def names(signals, name="correct"):
  return [Verdict(int(v)).name for v in signals.verdicts[name]]


def arguments(responses, *, finished=None, references=None, metadata=None):
  n = len(responses)
  return (
    responses,
    references or ["r"] * n,
    metadata or [{}] * n,
    np.ones(n, bool) if finished is None else np.asarray(finished),
  )


@pytest.fixture(scope="module")
def scripted():
  with PoolVerifier(SCRIPTED, num_workers=2, time_limit_s=0.5) as verifier:
    yield verifier


def test_each_verdict_has_its_reward(scripted, caplog):
  responses = ["CORRECT", "WRONG", "NO_ANSWER", "MALFORMED"]
  responses += ["VERIFIER_FAILED", "HANG", "DIE", "NONSENSE", "PARTIAL"]
  with caplog.at_level(logging.WARNING):
    signals = scripted.verify(*arguments(responses))
  assert names(signals) == [
    *("CORRECT", "WRONG", "NO_ANSWER", "MALFORMED", "VERIFIER_FAILED"),
    *("TIMED_OUT", "VERIFIER_FAILED", "VERIFIER_FAILED", "WRONG"),
  ]
  nan = np.nan
  np.testing.assert_array_equal(
    signals.outcome["correct"], [1, 0, 0, 0, nan, nan, nan, nan, 0.25]
  )
  assert signals.outcome["correct"].dtype == np.float32
  assert signals.verdicts["correct"].dtype == np.int32
  # Counted, named, logged.
  assert "4 of 9" in caplog.text
  assert [text for text, _ in scripted.problems] == responses[4:8]
  assert "time_limit_s" in scripted.problems[1][1]
  shares = verdict_counts(signals)
  assert float(shares["verdict/correct/timed_out"]) == pytest.approx(1 / 9)


def test_rewards_of_verdicts_by_hand():
  nan = np.nan
  own = host_signals("correct", list(Verdict))
  assert names(own) == [verdict.name for verdict in Verdict]
  np.testing.assert_array_equal(own.outcome["correct"], [1, 0, 0, 0, nan, nan])
  # Whatever reward is given, nobody knows that of a failed verification.
  given = host_signals("correct", list(Verdict), [0.5] * 6)
  np.testing.assert_array_equal(given.outcome["correct"], [0.5] * 4 + [nan] * 2)


def test_signals_go_into_the_jitted_step(scripted):
  signals = scripted.verify(*arguments(["CORRECT", "WRONG"]))
  scores = jax.jit(lambda s: scores_from_signals(s, 2))(signals)
  np.testing.assert_array_equal(scores.outcome["correct"], [1.0, 0.0])


def test_start_does_not_wait_and_batches_do_not_mix(scripted):
  first = scripted.start(*arguments(["HANG", "CORRECT", "WRONG"]))
  second = scripted.start(*arguments(["WRONG", "CORRECT"]))
  assert not first.done()
  assert names(second.result(30)) == ["WRONG", "CORRECT"]
  assert names(first.result(30)) == ["TIMED_OUT", "CORRECT", "WRONG"]
  assert first.done() and first.result() is first.result()


def test_truncated_responses(scripted):
  given = arguments(["CORRECT", "CORRECT"], finished=[True, False])
  assert names(scripted.verify(*given)) == ["CORRECT", "NO_ANSWER"]
  with PoolVerifier(
    SCRIPTED, num_workers=1, time_limit_s=5, truncated="verify", name="right"
  ) as lenient:
    signals = lenient.verify(*given)
  assert names(signals, "right") == ["CORRECT", "CORRECT"]
  # The text form of the device verifier has the same default.
  text = exact_text_verifier(delimiter="")
  given = arguments(["5", "5"], references=["5"] * 2, finished=[True, False])
  assert names(text.verify(*given)) == ["CORRECT", "NO_ANSWER"]


def test_all_truncated(scripted):
  given = arguments(["CORRECT"], finished=[False])
  assert names(scripted.verify(*given)) == ["NO_ANSWER"]


@pytest.mark.parametrize("kind", ["pool", "text"])
def test_lengths_are_checked(scripted, kind):
  verifier = scripted if kind == "pool" else exact_text_verifier(delimiter="")
  with pytest.raises(ValueError, match=r"\[2, 1, 2, 2\]"):
    verifier.verify(["a", "b"], ["r"], [{}, {}], np.ones(2, bool))


def test_an_unknown_treatment_of_truncation_is_an_error():
  with pytest.raises(ValueError, match="'maybe'"):
    PoolVerifier(SCRIPTED, num_workers=1, time_limit_s=1, truncated="maybe")


@pytest.mark.parametrize(
  "value",
  [None, 3, [], {}, {"verdict": 0}, {"verdict": "CORRECT", "reward": "x"}],
)
def test_a_value_that_is_no_verdict_is_a_failure(value):
  verdict, reward, why = read_outcome(Outcome(value, "ok", "", 0.0))
  assert verdict == Verdict.VERIFIER_FAILED and np.isnan(reward)
  assert "returned" in why


def test_math_verifier():
  responses = [r"\boxed{\frac12}", "#### 2", "what?", r"\boxed{1", "#### 1"]
  references = ["0.5", "3", "1", "1", ""]
  with math_verifier(num_workers=1, time_limit_s=10.0) as verifier:
    signals = verifier.verify(*arguments(responses, references=references))
  assert names(signals) == [
    *("CORRECT", "WRONG", "NO_ANSWER", "MALFORMED", "VERIFIER_FAILED")
  ]
  np.testing.assert_array_equal(
    signals.outcome["correct"], [1, 0, 0, 0, np.nan]
  )


def test_text_between():
  text = "<answer>1</answer> no <answer> 2 </answer> end"
  assert text_between(text, "<answer>", "</answer>") == "2"
  assert text_between(text, "no ", "") == "<answer> 2 </answer> end"
  assert text_between(" 5 ", "", "") == "5"
  assert text_between("5", "=", "") is None
  assert text_between("=5", "=", "</answer>") == "5"


def test_reasoning_gym_verifier():
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies' SyntaxWarnings
    import reasoning_gym

    seeded = {"size": 3, "seed": 4}
    sums = reasoning_gym.create_dataset("chain_sum", **seeded)
    grids = reasoning_gym.create_dataset("arc_agi", **seeded)
  entry, grid = sums[0], grids[1]
  by_entry = {"entry": json.loads(json.dumps(entry))}
  by_index = {"dataset": "arc_agi", "index": 1}
  gold = entry["answer"]
  cases = [
    (f"so <answer>{gold}</answer>", by_entry, 1.0, "CORRECT"),
    (f"<answer>{gold}</answer>", {"entry": json.dumps(entry)}, 1.0, "CORRECT"),
    ("<answer>rubbish</answer>", by_entry, None, "WRONG"),
    (f"<answer>{gold} or so</answer>", by_entry, None, "WRONG"),
    ("no tag", by_entry, 0.0, "NO_ANSWER"),
    ("<answer></answer>", by_entry, 0.0, "NO_ANSWER"),
    (f"<answer>{grid['answer']}</answer>", by_index, 1.0, "CORRECT"),
    # Without its tuples, arc_agi can't recognise a right answer.
    ("<answer>1</answer>", {}, np.nan, "VERIFIER_FAILED"),
    ("<answer>1</answer>", {"entry": "{"}, np.nan, "VERIFIER_FAILED"),
  ]
  responses, metadata, rewards, verdicts = zip(*cases, strict=True)
  with reasoning_gym_verifier(
    num_workers=1,
    time_limit_s=20.0,
    configs={"arc_agi": seeded},
    delimiter="<answer>",
    end_delimiter="</answer>",
  ) as verifier:
    signals = verifier.verify(
      *arguments(list(responses), metadata=list(metadata))
    )
  assert names(signals) == list(verdicts)
  for reward, response, expected in zip(
    signals.outcome["correct"], responses, rewards, strict=True
  ):
    if expected is None:  # a partial score: the data set's own
      answer = text_between(response, "<answer>", "</answer>")
      expected = sums.score_answer(answer, entry)
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
  # The two partial scores differ from each other: not just "not right".
  assert signals.outcome["correct"][2] < signals.outcome["correct"][3] < 1


@pytest.mark.parametrize("reward", [float("inf"), float("nan"), "1e9", True])
def test_a_reward_that_is_no_finite_number_is_a_failure(reward):
  value = {"verdict": "CORRECT", "reward": reward}
  verdict, found, why = read_outcome(Outcome(value, "ok", "", 0.0))
  assert verdict == Verdict.VERIFIER_FAILED and np.isnan(found)
  assert "no finite number" in why
  fine = read_outcome(Outcome({"verdict": "WRONG", "reward": 0.5}, "ok", "", 0))
  assert fine[:2] == (Verdict.WRONG, 0.5)


def test_truncated_with_metadata_that_can_not_be_read_is_a_failure():
  # The run goes on, as it does where the same task's response has ended.
  def unanswered(metadata):
    if "steps" not in metadata:
      raise ValueError("no steps")
    return {"rewards": {"extra": 0.0}}

  with PoolVerifier(
    SCRIPTED,
    num_workers=1,
    time_limit_s=5.0,
    rewards=("extra",),
    unanswered=unanswered,
  ) as verifier:
    signals = verifier.verify(
      *arguments(
        ["a", "b"], finished=[False, False], metadata=[{}, {"steps": 1}]
      )
    )
    assert names(signals) == ["VERIFIER_FAILED", "NO_ANSWER"]
    for reward in ("correct", "extra"):
      np.testing.assert_array_equal(signals.outcome[reward], [np.nan, 0.0])
    assert verifier.problems[-1] == ("a", "no steps")
  with pytest.raises(RuntimeError, match="'correct' is closed"):
    verifier.start(*arguments(["a"]))
