"""What a term of the objective is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlvr.types import Array, pytree


@pytree
class LossInputs:
  """What a loss may look at; all [B, T] and float32 unless said otherwise.

  `logprobs` and `entropies` carry the gradient, the rest is constant.
  """

  logprobs: Array  # of the parameters being trained
  entropies: Array  # of the parameters being trained, nats
  old_logprobs: Array  # of the policy that the ratio is taken against
  advantages: Array
  mask: Array  # bool
  probes: dict[str, Array]  # those that the terms require


class Term(NamedTuple):
  """One summand of the objective.

  name: for the metrics, `loss/<name>`.
  loss: inputs -> (loss [B, T], metrics by name [B, T]), unmasked, unreduced.
  requires: probes that it reads.
  weight: multiplies the loss.
  params: hyperparameters, for the report.
  """

  name: str
  loss: Callable[[LossInputs], tuple[Array, Mapping[str, Array]]]
  requires: frozenset[str] = frozenset()
  weight: float = 1.0
  params: Mapping[str, Any] = {}
