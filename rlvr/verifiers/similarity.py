"""BMAS: how well two texts' token embeddings cover each other.

The open-ended reward of Mixed-R1 (Xu et al. 2025,
https://arxiv.org/abs/2505.24164). A device verifier: it runs inside the jitted
step, over the tokens that are there anyway, with a table of embeddings.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rlvr.segments import after_last_delimiter
from rlvr.types import Array, Rollout, Signals, Verdict
from rlvr.verifiers.exact import DeviceVerifier
from rlvr.verifiers.specs import VerifierSpec


def bmas(
  first: Array, second: Array, first_mask: Array, second_mask: Array
) -> Array:
  """Returns the bidirectional max-average similarity of two texts, in −1..1.

      s_ij = cos(x_i, y_j)
      BMAS = ½ (1/N Σ_i max_j s_ij + 1/M Σ_j max_i s_ij)

  Source: Mixed-R1, https://arxiv.org/abs/2505.24164, by its abstract and name
  ("tokenizer embedding matching"); the paper's equation, its code
  (https://github.com/xushilin1/mixed-r1) and other implementations were looked
  for and not found, so cosine and the plain half are read from the name. The
  order of words doesn't count, and neither does
  saying a thing twice.

  An embedding of length 0 is similar to nothing, itself included.

  Args:
    first: float [N, D]: embeddings x of one text's tokens.
    second: float [M, D]: embeddings y of the other's.
    first_mask: bool [N], true on tokens.
    second_mask: bool [M], true on tokens.

  Returns:
    float32 []; 0 where a text has no tokens.
  """
  similarity = jnp.matmul(
    _unit(first), _unit(second).T, precision=jax.lax.Precision.HIGHEST
  )
  both = first_mask[:, None] & second_mask[None, :]
  similarity = jnp.where(both, similarity, -jnp.inf)
  forth = _mean(similarity.max(axis=1, initial=-jnp.inf), first_mask)
  back = _mean(similarity.max(axis=0, initial=-jnp.inf), second_mask)
  return jnp.where(both.any(), 0.5 * (forth + back), 0.0)


def _unit(x: Array) -> Array:
  x = x.astype(jnp.float32)
  # By the largest component first, so that no square over- or underflows.
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0)
  x = x / jnp.where(largest > 0, largest, 1.0)
  norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
  return x / jnp.where(norm > 0, norm, 1.0)


def _mean(values: Array, mask: Array) -> Array:
  kept = jnp.where(mask & jnp.isfinite(values), values, 0.0)
  return kept.sum() / jnp.maximum(mask.sum(), 1)


def bmas_rewards(
  rollout: Rollout,
  table: Array,
  *,
  delimiter: tuple[int, ...],
  end_id: int,
  name: str = "correct",
) -> Signals:
  """Returns `bmas` of each response with its prompt's reference answer.

  Verdicts, first that holds: VERIFIER_FAILED (reward NaN) where the prompt has
  no reference; NO_ANSWER (reward 0) where the response was truncated, lacks the
  delimiter, or has nothing behind it; CORRECT where all tokens of each side are
  found on the other; WRONG. The reward is BMAS, not below 0.

  Responses go one after the other: T·R similarities are held, never B·T·R.

  Args:
    rollout: responses, with the reference in `prompts.answer_tokens`.
    table: float [V, D]: embedding of each token.
    delimiter: token ids that stand before the answer; empty means that the
      whole response is the answer.
    end_id: the end token's id; it is no part of the answer.
    name: the reward's name.

  Returns:
    outcome[name] float32 [B] in 0..1 or NaN, verdicts[name] int32 [B].
  """
  inside = rollout.completion_mask & (rollout.tokens != end_id)
  span = after_last_delimiter(rollout.tokens, inside, tuple(delimiter))
  reference = rollout.prompts.answer_tokens[rollout.group]
  reference_mask = rollout.prompts.answer_mask[rollout.group]

  def one(parts):
    tokens, mask, wanted, wanted_mask = parts
    score = bmas(table[tokens], table[wanted], mask, wanted_mask)
    same = (tokens[:, None] == wanted[None, :]) & (
      mask[:, None] & wanted_mask[None, :]
    )
    covered = (same.any(axis=1) | ~mask).all()
    return score, covered & (same.any(axis=0) | ~wanted_mask).all()

  score, covered = jax.lax.map(
    one, (rollout.tokens, span, reference, reference_mask)
  )
  answered = rollout.finished & span.any(axis=-1)
  known = reference_mask.any(axis=-1)
  verdict = jnp.where(covered, Verdict.CORRECT, Verdict.WRONG)
  verdict = jnp.where(answered, verdict, Verdict.NO_ANSWER)
  verdict = jnp.where(known, verdict, Verdict.VERIFIER_FAILED)
  reward = jnp.where(answered, jnp.clip(score, 0.0, 1.0), 0.0)
  return Signals(
    outcome={name: jnp.where(known, reward, jnp.nan)},
    verdicts={name: verdict.astype(jnp.int32)},
  )


def bmas_verifier(
  table: Array | np.ndarray,
  *,
  delimiter: tuple[int, ...],
  end_id: int,
  name: str = "correct",
) -> DeviceVerifier:
  """Returns `bmas_rewards` with its arguments bound; it ignores the key.

  Args:
    table: float [V, D]: embedding of each token, for instance the policy's at
      the start of training. It becomes a constant of the compiled step.
    delimiter: see `bmas_rewards`.
    end_id: see `bmas_rewards`.
    name: the reward's name.

  Returns:
    The verifier.

  Raises:
    ValueError: the table isn't [V, D], or not finite.
  """
  rows = np.asarray(table, np.float32)
  if rows.ndim != 2 or not np.isfinite(rows).all():
    raise ValueError(
      f"bmas_verifier.table has shape {rows.shape}: give finite numbers [V, D]"
    )
  ids = tuple(int(i) for i in delimiter)

  def verify(rollout: Rollout, key: Array) -> Signals:
    del key
    return bmas_rewards(
      rollout, jnp.asarray(rows), delimiter=ids, end_id=end_id, name=name
    )

  return verify


def bmas_spec(*, table_path: str, delimiter: str) -> VerifierSpec:
  """Returns the spec of `bmas_verifier`, for gin.

  Args:
    table_path: a NumPy file (.npy) with the embeddings [V, D].
    delimiter: text before the answer, "" if the response is the answer.
  """

  def build(vocabulary) -> Callable:
    with epath.Path(table_path).open("rb") as file:
      table = np.load(file, allow_pickle=False)
    if len(table) < vocabulary.vocab_size:
      raise ValueError(
        f"bmas_spec.table_path={table_path!r} has {len(table)} rows, the"
        f" vocabulary {vocabulary.vocab_size}: give a row for each token"
      )
    return bmas_verifier(
      table,
      delimiter=tuple(vocabulary.encode(delimiter)) if delimiter else (),
      end_id=vocabulary.eos_id,
    )

  return VerifierSpec("correct", True, build)
