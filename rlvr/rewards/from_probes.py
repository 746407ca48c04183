"""How a reward that no verifier gives is made from probes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.rewards.algebra import (
  Transform,
  put_reward,
  reward_names,
  stateless,
)
from rlvr.types import Array, Context, Scores


def probe_reward(
  name: str,
  fn: Callable[[Context], Array],
  *,
  out: str,
  requires: Iterable[str] = (),
  params: Mapping[str, Any] | None = None,
) -> Transform:
  """Returns the transform that adds an outcome reward computed from probes.

  The reward carries no gradient: a model that is trained to raise its own
  probe through the reward would not be trained by policy gradient any more.

  Args:
    name: the transform's name.
    fn: `context -> float [B]`; NaN where there is nothing to judge by.
    out: the reward's name.
    requires: probes that `fn` reads.
    params: hyperparameters for `describe`.
  """

  def apply(scores, context):
    values = fn(context)
    return add_outcome(scores, out, values, context, who=name)

  return stateless(
    name, apply, requires=requires, params={**(params or {}), "out": out}
  )


def add_outcome(
  scores: Scores, out: str, values: Array, context: Context, *, who: str
) -> Scores:
  """Returns the scores with a new outcome reward, without gradient.

  Raises:
    ValueError: the name is taken, or the values are not [B].
  """
  if out in reward_names(scores):
    raise ValueError(
      f"{who}: there is a reward {out!r} already: set `{who}.out` to a name"
      f" other than {reward_names(scores)}"
    )
  responses = context.rollout.tokens.shape[0]
  if values.shape != (responses,):
    raise ValueError(
      f"{who}: values of shape {values.shape} for {responses} responses"
    )
  values = jax.lax.stop_gradient(values.astype(jnp.float32))
  return put_reward(scores, "outcome", out, values)
