"""Verifiers that run on the device, inside the jitted step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import check_probability
from rlvr.segments import after_last_delimiter
from rlvr.types import Array, Rollout, Signals, Verdict

# A device verifier is a pure function of the rollout and a PRNG key (consumed).
DeviceVerifier = Callable[[Rollout, Array], Signals]


def exact_match(
  rollout: Rollout,
  *,
  delimiter: tuple[int, ...],
  end_id: int,
  name: str = "correct",
) -> Signals:
  """Returns 1 where a response's answer is the reference answer, else 0.

    r_b = 1[answer(b) = reference(group(b))],

  token for token, where answer(b) is what stands behind the last delimiter,
  without the end token. Nothing is stripped: if the tokenizer puts a space
  before the answer, end the delimiter or begin the reference with it.

  Verdicts, first that holds: VERIFIER_FAILED (reward NaN) where the prompt has
  no reference; NO_ANSWER where the response was truncated (its answer may be
  cut, "12" of "123"), lacks the delimiter, or has nothing behind it; CORRECT;
  WRONG. `exact_text.exact_text_verifier` says the same about text.

  Args:
    rollout: responses, with the reference in `prompts.answer_tokens`.
    delimiter: token ids that stand before the answer; empty means that the
      whole response is the answer.
    end_id: the end token's id; it is no part of the answer.
    name: the reward's name.

  Returns:
    outcome[name] float32 [B] in {0, 1, NaN}, verdicts[name] int32 [B].
  """
  prompts = rollout.prompts
  inside = rollout.completion_mask & (rollout.tokens != end_id)
  span = after_last_delimiter(rollout.tokens, inside, tuple(delimiter))
  length = span.sum(axis=-1)

  # Move the answer to the row's front, so that it lines up with the reference.
  width = prompts.answer_tokens.shape[-1]
  position = jnp.argmax(span, axis=-1)[:, None] + jnp.arange(width)[None, :]
  position = jnp.minimum(position, rollout.tokens.shape[-1] - 1)
  answer = jnp.take_along_axis(rollout.tokens, position, axis=-1)

  reference = prompts.answer_tokens[rollout.group]
  reference_mask = prompts.answer_mask[rollout.group]
  reference_length = reference_mask.sum(axis=-1)
  equal = ((answer == reference) | ~reference_mask).all(axis=-1)
  equal &= length == reference_length

  verdict = jnp.where(equal, Verdict.CORRECT, Verdict.WRONG)
  answered = rollout.finished & (length > 0)
  verdict = jnp.where(answered, verdict, Verdict.NO_ANSWER)
  verdict = jnp.where(reference_length > 0, verdict, Verdict.VERIFIER_FAILED)
  return Signals(
    outcome={name: verdict_rewards(verdict)},
    verdicts={name: verdict.astype(jnp.int32)},
  )


def random_reward(
  rollout: Rollout, key: Array, *, probability: float, name: str = "correct"
) -> Signals:
  """Returns coin flips: a reward that knows nothing about the response.

    r_b ~ Bernoulli(probability), independent of everything.

  The control for a claimed gain: what a run learns from this reward, it did not
  learn from verification. Truncated responses are flipped for as well.

  Args:
    rollout: responses; only their number counts.
    key: PRNG key, consumed.
    probability: of reward 1.
    name: the reward's name.

  Returns:
    outcome[name] float32 [B] in {0, 1}, verdicts[name] int32 [B].

  Raises:
    ValueError: probability outside [0, 1].
  """
  check_probability("probability", probability, who="random_reward")
  heads = jax.random.bernoulli(key, probability, (rollout.tokens.shape[0],))
  verdict = jnp.where(heads, Verdict.CORRECT, Verdict.WRONG)
  return Signals(
    outcome={name: heads.astype(jnp.float32)},
    verdicts={name: verdict.astype(jnp.int32)},
  )


def exact_match_verifier(
  *, delimiter: tuple[int, ...], end_id: int, name: str = "correct"
) -> DeviceVerifier:
  """Returns `exact_match` with its arguments bound; it ignores the key."""
  ids = tuple(int(i) for i in delimiter)

  def verify(rollout: Rollout, key: Array) -> Signals:
    del key
    return exact_match(rollout, delimiter=ids, end_id=end_id, name=name)

  return verify


def coin_flip_verifier(
  *, probability: float, name: str = "correct"
) -> DeviceVerifier:
  """Returns `random_reward` with its arguments bound.

  Raises:
    ValueError: probability outside [0, 1].
  """
  check_probability("probability", probability, who="coin_flip_verifier")

  def verify(rollout: Rollout, key: Array) -> Signals:
    return random_reward(rollout, key, probability=probability, name=name)

  return verify


def verdict_rewards(verdicts: Array) -> Array:
  """Returns the reward of each verdict: CORRECT 1, NaN where nobody knows.

  Args:
    verdicts: int [...], `Verdict`.

  Returns:
    float32, the same shape: 1 for CORRECT; 0 for WRONG, NO_ANSWER, MALFORMED;
    NaN for VERIFIER_FAILED, TIMED_OUT.
  """
  table = jnp.array([1.0, 0.0, 0.0, 0.0, jnp.nan, jnp.nan], jnp.float32)
  return table[verdicts]


def verdict_counts(signals: Signals) -> dict[str, Array]:
  """Returns the share of each verdict among the responses, by metric name.

  Args:
    signals: with `verdicts` int32 [B] by reward name.

  Returns:
    {"verdict/<reward>/<verdict>": float32 []}; over one reward they sum to 1.
  """
  return {
    f"verdict/{name}/{verdict.name.lower()}": jnp.mean(
      jnp.asarray(values) == verdict, dtype=jnp.float32
    )
    for name, values in signals.verdicts.items()
    for verdict in Verdict
  }
