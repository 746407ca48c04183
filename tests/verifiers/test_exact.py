import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.types import Prompts, Rollout, Signals, Verdict
from rlvr.verifiers import (
  coin_flip_verifier,
  exact_match,
  exact_match_verifier,
  exact_text_verifier,
  random_reward,
  verdict_counts,
)

END = 0  # no text below holds a zero byte
KEY = jax.random.key(0)


def rollout_of(texts, references, group, finished, *, extra=0):
  """A byte-token rollout; a finished text gets the end token."""
  ids = [
    [*text.encode("latin-1"), *([END] if done else [])]
    for text, done in zip(texts, finished, strict=True)
  ]
  answers = [list(text.encode("latin-1")) for text in references]

  def pad(rows):
    width = max(1, *map(len, rows)) + extra
    # Padding that looks like text: only the mask says that it is none.
    tokens = np.full((len(rows), width), ord("7"), np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      mask[i, : len(row)] = True
    return jnp.asarray(tokens), jnp.asarray(mask)

  tokens, mask = pad(ids)
  answer_tokens, answer_mask = pad(answers)
  return Rollout(
    prompts=Prompts(
      tokens=jnp.zeros((len(references), 1), jnp.int32),
      mask=jnp.ones((len(references), 1), bool),
      answer_tokens=answer_tokens,
      answer_mask=answer_mask,
    ),
    tokens=tokens,
    completion_mask=mask,
    behavior_logprobs=jnp.zeros(tokens.shape),
    group=jnp.asarray(group, jnp.int32),
    step_index=jnp.where(mask, 0, -1),
    finished=jnp.asarray(finished),
  )


def verdicts(signals):
  return [Verdict(int(v)).name for v in signals.verdicts["correct"]]


def test_by_hand():
  cases = [  # reference "12", delimiter "=>"
    ("1+11=>12", True, "CORRECT"),
    ("=>3 no =>12", True, "CORRECT"),  # the last delimiter counts
    ("=>12 no =>3", True, "WRONG"),
    ("=>123", True, "WRONG"),  # longer
    ("=>1", True, "WRONG"),  # a prefix
    ("=> 12", True, "WRONG"),  # a space is a token as any other
    ("12", True, "NO_ANSWER"),
    ("1=>", True, "NO_ANSWER"),
    ("", True, "NO_ANSWER"),
    ("=>12", False, "NO_ANSWER"),  # truncated: "12" of "123"
    ("=>=>12", True, "CORRECT"),
    ("==>12", True, "CORRECT"),
  ]
  texts, finished, expected = zip(*cases, strict=True)
  rollout = rollout_of(texts, ["12"], [0] * len(cases), finished)
  signals = exact_match(rollout, delimiter=tuple(b"=>"), end_id=END)
  assert verdicts(signals) == list(expected)
  np.testing.assert_array_equal(
    signals.outcome["correct"], [float(v == "CORRECT") for v in expected]
  )
  assert signals.outcome["correct"].dtype == jnp.float32
  assert signals.verdicts["correct"].dtype == jnp.int32


def test_a_missing_reference_has_no_reward():
  rollout = rollout_of(["5", ""], ["", "5"], [0, 1], [True, True])
  signals = exact_match(rollout, delimiter=(), end_id=END)
  assert verdicts(signals) == ["VERIFIER_FAILED", "NO_ANSWER"]
  np.testing.assert_array_equal(signals.outcome["correct"], [np.nan, 0.0])


def random_case(seed, delimiter):
  """48 texts: marked and not, right and not; some references are empty."""
  rng = np.random.default_rng(seed)

  def draw(least, most):
    return "".join(rng.choice(list("ab=>"), rng.integers(least, most)))

  references = ["a", *(draw(0, 3) for _ in range(3))]
  group = np.repeat(np.arange(4), 12)
  texts = []
  for g in group:
    mark = delimiter if rng.random() < 0.6 else ""
    tail = references[g] if rng.random() < 0.5 else draw(0, 4)
    texts.append(draw(0, 5) * (rng.random() < 0.5) + mark + tail)
  return texts, references, group, rng.random(len(group)) < 0.8


@pytest.mark.parametrize("delimiter", ["", "=", "=>", "=="])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_device_and_text_form_agree(seed, delimiter):
  texts, references, group, finished = random_case(seed, delimiter)
  rollout = rollout_of(texts, references, group, finished)
  device = exact_match_verifier(delimiter=tuple(delimiter.encode()), end_id=END)
  host = exact_text_verifier(delimiter=delimiter)
  arguments = (texts, [references[g] for g in group], [{}] * 48, finished)
  expected = host.verify(*arguments)
  for signals in (
    device(rollout, KEY),
    jax.jit(device)(rollout, KEY),
    host.start(*arguments).result(),
  ):
    for kind in ("outcome", "verdicts"):
      np.testing.assert_array_equal(
        getattr(signals, kind)["correct"], getattr(expected, kind)["correct"]
      )
  assert {"CORRECT", "WRONG", "NO_ANSWER"} <= set(verdicts(expected))
  # The control: comparing with the end of the text only is another verifier.
  broken = [
    float(done and text.endswith(references[g]))
    for text, g, done in zip(texts, group, finished, strict=True)
  ]
  assert broken != list(np.asarray(expected.outcome["correct"]))


def test_padding_changes_nothing():
  case = random_case(3, "=")
  plain = exact_match(rollout_of(*case), delimiter=tuple(b"="), end_id=END)
  wide = rollout_of(*case, extra=4)
  padded = exact_match(wide, delimiter=tuple(b"="), end_id=END)
  np.testing.assert_array_equal(
    plain.verdicts["correct"], padded.verdicts["correct"]
  )
  # The control: padding inside the mask does change something.
  filled = dataclasses.replace(
    wide, completion_mask=jnp.ones_like(wide.completion_mask)
  )
  spoilt = exact_match(filled, delimiter=tuple(b"="), end_id=END)
  assert (spoilt.verdicts["correct"] != plain.verdicts["correct"]).any()


def test_exact_match_ignores_the_key_and_takes_a_name():
  rollout = rollout_of(["5"], ["5"], [0], [True])
  verifier = exact_match_verifier(delimiter=(), end_id=END, name="right")
  for seed in range(3):
    signals = verifier(rollout, jax.random.key(seed))
    assert signals.outcome["right"] == 1.0
    assert set(signals.verdicts) == {"right"}


def test_coin_flips_know_nothing_about_the_response():
  many = 4000
  right = rollout_of(["5"] * many, ["5"], [0] * many, [True] * many)
  wrong = rollout_of(["6"] * many, ["5"], [0] * many, [False] * many)
  verifier = coin_flip_verifier(probability=0.3)
  a, b = verifier(right, KEY), jax.jit(verifier)(wrong, KEY)
  np.testing.assert_array_equal(a.outcome["correct"], b.outcome["correct"])
  # Standard error sqrt(.3 * .7 / 4000) = 0.0072; five of them.
  assert abs(float(a.outcome["correct"].mean()) - 0.3) < 0.036
  other = verifier(right, jax.random.key(1))
  assert (other.outcome["correct"] != a.outcome["correct"]).any()
  np.testing.assert_array_equal(
    a.outcome["correct"] == 1.0, a.verdicts["correct"] == Verdict.CORRECT
  )
  for probability in (0.0, 1.0):
    sure = random_reward(right, KEY, probability=probability)
    assert (sure.outcome["correct"] == probability).all()


def test_a_coin_needs_a_probability():
  with pytest.raises(ValueError, match=r"probability=1\.5"):
    coin_flip_verifier(probability=1.5)


def test_verdict_counts_by_hand():
  signals = Signals(
    verdicts={
      # 2 of 4 correct, 1 wrong, 1 timed out
      "correct": jnp.array([0, 5, 0, 1], jnp.int32),
      "format": jnp.array([2, 3, 4, 4], jnp.int32),
    }
  )
  expected = {
    "correct": {"correct": 0.5, "wrong": 0.25, "timed_out": 0.25},
    "format": {"no_answer": 0.25, "malformed": 0.25, "verifier_failed": 0.5},
  }
  for counts in (verdict_counts(signals), jax.jit(verdict_counts)(signals)):
    assert len(counts) == 12
    for name in expected:
      for verdict in Verdict:
        key = verdict.name.lower()
        share = counts[f"verdict/{name}/{key}"]
        assert float(share) == expected[name].get(key, 0.0)
