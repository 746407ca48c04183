"""What a worker says of an item that failed; the loop itself is test_pool's."""

from rlvr.verifiers.worker import describe_error


class Unprintable(Exception):
  def __str__(self):
    raise SystemExit(3)


def test_errors_are_described_in_few_words():
  assert describe_error(ValueError("no")) == "ValueError: no"
  # A message that quotes a megabyte must not travel for each item.
  long = describe_error(ValueError("no" * 500_000))
  assert long == "ValueError: " + "no" * 250
  assert describe_error(Unprintable()) == (
    "Unprintable: (its message cannot be printed)"
  )
