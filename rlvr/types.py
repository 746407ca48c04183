"""The contracts between the stations of the road.

    prompts -> Rollout -> Signals -> Context -> Scores -> TrainState

Legend, everywhere: `P` prompts, `G` responses per prompt, `B` responses (`P*G`
where groups are even), `S` prompt tokens, `T` response tokens, `K` reasoning
steps, `R` tokens of a reference answer, `V` vocabulary, `D` width.

Alignment, stated once: `logprobs[:, t]`, `advantages[:, t]` and everything
else of shape `[B, T]` belongs to `tokens[:, t]`: `logprobs[:, t]` scores
`tokens[:, t]` given the prompt and `tokens[:, :t]`. Responses are in group-major
order: `group` never decreases.

Missing values: a reward of NaN means "nobody knows" (a verifier that failed, a
judge that did not answer). It is never read as 0. `rlvr.rewards.algebra` says
what each station does with one.
"""

import dataclasses
import enum
import typing
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any  # a pytree of arrays
_C = TypeVar("_C", bound=type)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls: _C) -> _C:
  """Returns `cls` as a frozen keyword-only dataclass that is a JAX pytree."""
  made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  return jax.tree_util.register_dataclass(made)


class Verdict(enum.IntEnum):
  """What a verifier found out about one response.

  The last two are the verifier's failures, not the response's: such a response
  has no reward (NaN) and is masked from the update unless a chain says
  otherwise.
  """

  CORRECT = 0
  WRONG = 1
  NO_ANSWER = 2
  MALFORMED = 3
  VERIFIER_FAILED = 4
  TIMED_OUT = 5


@pytree
class Prompts:
  """A batch of prompts with what their verifiers need, on the device."""

  tokens: Array  # int32 [P, S], padded on the left
  mask: Array  # bool [P, S], true on the prompt's tokens
  answer_tokens: (
    Array  # int32 [P, R], the reference answer, padded on the right
  )
  answer_mask: Array  # bool [P, R]


@pytree
class Rollout:
  """Responses as they were sampled."""

  prompts: Prompts
  tokens: Array  # int32 [B, T], padded on the right
  completion_mask: Array  # bool [B, T], sampled tokens, the end token included
  behavior_logprobs: Array  # float32 [B, T], nats, of the sampled distribution
  group: Array  # int32 [B], the response's prompt in 0..P-1, not decreasing
  step_index: Array  # int32 [B, T], reasoning step of each token, -1 outside
  finished: Array  # bool [B], ended by itself (false: truncated)

  @property
  def num_prompts(self) -> int:
    return self.prompts.tokens.shape[0]

  @property
  def lengths(self) -> Array:
    """int32 [B]: tokens of each response, its end token included."""
    return self.completion_mask.sum(axis=-1, dtype=jnp.int32)


@pytree
class Signals:
  """Named rewards as they came from verifiers; NaN where there is none.

  A name is used once over the three kinds. Anything that a verifier measures
  and a transform reads (stated confidence, per-test verdicts) travels here.
  """

  outcome: dict[str, Array] = dataclasses.field(default_factory=dict)  # f32 [B]
  step: dict[str, Array] = dataclasses.field(default_factory=dict)  # f32 [B, K]
  token: dict[str, Array] = dataclasses.field(
    default_factory=dict
  )  # f32 [B, T]
  verdicts: dict[str, Array] = dataclasses.field(
    default_factory=dict
  )  # int32 [B], Verdict


@pytree
class Context:
  """What a transform may look at besides the rewards."""

  rollout: Rollout
  probes: dict[str, Array]  # only those that some transform requires
  progress: Array  # float32 [], share of the training that is done, 0..1
  step: Array  # int32 [], updates done
  key: Array  # PRNG key; `chain` gives each transform its own


@pytree
class Scores:
  """What flows through a chain: rewards at its start, advantages at its end."""

  outcome: dict[str, Array]  # float32 [B]
  step: dict[str, Array]  # float32 [B, K]
  token: dict[str, Array]  # float32 [B, T]
  advantages: Array | None  # float32 [B, T], None before an advantage estimator
  weights: Array  # float32 [B], share of each response in the loss, 0 drops it
  metrics: dict[str, Array]  # float32 [], by name


@pytree
class TrainState:
  """All that a run needs to go on exactly where it stopped."""

  params: Params
  opt_state: Any
  chain_state: Any  # the scoring chain's state
  step: Array  # int32 [], batches of rollouts consumed
  key: Array  # PRNG key of the run; a step uses fold_in(key, step)


def scores_from_signals(signals: Signals, num_responses: int) -> Scores:
  """Returns the `Scores` with which a chain starts.

  Args:
    signals: named rewards.
    num_responses: B.

  Raises:
    ValueError: a name stands in two kinds, or a reward's shape is not the
      kind's.
  """
  seen: dict[str, str] = {}
  for kind, rank in (("outcome", 1), ("step", 2), ("token", 2)):
    for name, value in getattr(signals, kind).items():
      if name in seen:
        raise ValueError(
          f"reward {name!r} is given as {seen[name]} and as {kind}: rename one"
        )
      seen[name] = kind
      if value.ndim != rank or value.shape[0] != num_responses:
        raise ValueError(
          f"{kind} reward {name!r} has shape {value.shape}; expected rank"
          f" {rank} with {num_responses} responses first"
        )
  return Scores(
    outcome={k: v.astype(jnp.float32) for k, v in signals.outcome.items()},
    step={k: v.astype(jnp.float32) for k, v in signals.step.items()},
    token={k: v.astype(jnp.float32) for k, v in signals.token.items()},
    advantages=None,
    weights=jnp.ones((num_responses,), jnp.float32),
    metrics={},
  )
