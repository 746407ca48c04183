"""Answers compared as text, on the spot."""

import concurrent.futures

from rlvr.types import Signals, Verdict
from rlvr.verifiers.host import Pending, check_lengths, host_signals


class ExactTextVerifier:
  """See `exact_text_verifier`."""

  def __init__(self, *, delimiter: str, name: str = "correct"):
    self.name = name
    self.delimiter = delimiter

  def start(self, responses, references, metadata, finished) -> Pending:
    """See `HostVerifier`; the work is done on the spot."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(self.verify(responses, references, metadata, finished))
    return future

  def verify(self, responses, references, metadata, finished) -> Signals:
    """See `HostVerifier`."""
    check_lengths(responses, references, metadata, finished)
    return host_signals(
      self.name,
      [
        self._verdict(*item)
        for item in zip(responses, references, finished, strict=True)
      ],
    )

  def close(self) -> None:
    """Does nothing: there is nothing to end."""

  def _verdict(self, response: str, reference: str, ended: bool) -> Verdict:
    found, answer = True, response
    if self.delimiter:
      _, mark, answer = response.rpartition(self.delimiter)
      found = bool(mark)
    if not reference:
      return Verdict.VERIFIER_FAILED
    if not ended or not found or not answer:
      return Verdict.NO_ANSWER
    return Verdict.CORRECT if answer == reference else Verdict.WRONG


def exact_text_verifier(
  *, delimiter: str, name: str = "correct"
) -> ExactTextVerifier:
  """Returns the verifier that compares text, as `exact.exact_match` does ids.

  The answer is what stands behind the last delimiter; nothing is stripped. For
  a vocabulary in which a text has one tokenization (bytes, characters) the two
  agree on every response.

  Args:
    delimiter: empty means that the whole response is the answer.
    name: the reward's name.
  """
  return ExactTextVerifier(delimiter=delimiter, name=name)
