"""Verifiers as a gin file names them: made when a run starts, not before.

A gin file knows neither token ids nor when worker processes should start. A
spec is a name and how to make the verifier once the vocabulary is there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from rlvr.verifiers.exact import coin_flip_verifier, exact_match_verifier


class VerifierSpec(NamedTuple):
  """How to make a verifier.

  name: of the reward that it gives.
  on_device: whether it runs inside the jitted step.
  build: vocabulary -> device or host verifier.
  """

  name: str
  on_device: bool
  build: Callable[[Any], Any]


def exact_match(*, delimiter: str) -> VerifierSpec:
  """Returns the spec of `rlvr.verifiers.exact.exact_match`, on the device.

  Args:
    delimiter: text before the final answer, "" if the response is the answer.
      With a vocabulary of word pieces the same text can be other tokens in
      another place: use a host verifier there.
  """

  def build(vocabulary):
    return exact_match_verifier(
      delimiter=tuple(vocabulary.encode(delimiter)) if delimiter else (),
      end_id=vocabulary.eos_id,
    )

  return VerifierSpec("correct", True, build)


def coin_flip(*, probability: float) -> VerifierSpec:
  """Returns the spec of a reward that knows nothing: a control.

  Args:
    probability: of reward 1, whatever the response.
  """
  return VerifierSpec(
    "correct", True, lambda _: coin_flip_verifier(probability=probability)
  )


def on_host(*, factory: Callable[[], Any]) -> VerifierSpec:
  """Returns the spec of a host verifier.

  Args:
    factory: e.g. `@verifiers.math_verifier`, without brackets.
  """
  return VerifierSpec("correct", False, lambda _: factory())
