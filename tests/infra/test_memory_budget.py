"""The number of micro-batches that fits: what is tried, taken, and reported."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.infra import memory_budget
from rlvr.infra.memory_budget import (
  FittedProgram,
  budget_bytes,
  counts_that_divide,
  fitting,
)
from tests.compare import must_fail

ROWS, WIDTH = 64, 1024


def make(count):
  """A sum over rows in `count` pieces: one piece's products lie in memory."""

  def run(x):
    def piece(total, rows):
      # A product of two things keeps both: no fusion makes it nothing.
      wide = jnp.sort(rows[:, None] * jnp.arange(WIDTH)[None], axis=-1)
      return total + (wide * wide[:, ::-1]).sum(), None

    return jax.lax.scan(piece, jnp.zeros(()), x.reshape(count, -1))[0]

  return jax.jit(run)


X = jnp.linspace(0, 1, ROWS)
COUNTS = (1, 2, 4, 8, 16, 32, 64)


@functools.cache
def sizes():
  """Returns each candidate's bytes, by the compiler."""
  return {
    n: memory_budget.program_bytes(make(n).lower(X).compile()) for n in COUNTS
  }


def compilations():
  """Returns a list that grows with every compilation, and its end."""
  found = []

  def listen(event, duration, **_):
    del duration
    if "backend_compile" in event:
      found.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return found


@pytest.mark.parametrize("best", COUNTS)
def test_the_fewest_that_fit(best):
  assert sorted(sizes().values(), reverse=True) == list(sizes().values())
  found = fitting(make, (X,), COUNTS, sizes()[best])
  assert found.micro_batches == best
  assert found.tried[best] == sizes()[best]
  # 7 candidates: the first, the last, and log2 of those between.
  assert len(found.tried) <= 2 + math.ceil(math.log2(len(COUNTS)))
  if best > 1:
    one_less = fitting(make, (X,), COUNTS, sizes()[best // 2])
    assert one_less.micro_batches == best // 2


def test_the_program_that_fits_is_not_compiled_again():
  program = FittedProgram(make, COUNTS, sizes()[8])
  assert (program.count, program.metrics) == (None, {})
  jax.block_until_ready(X + 1)
  found = compilations()
  first = program(X)
  tried = len(found)
  assert 2 < tried <= 5
  assert program.count == 8
  assert program.metrics == {
    "update/micro_batches": 8.0,
    "update/planned_gib": sizes()[8] / 2**30,
  }
  np.testing.assert_allclose(program(X), first, rtol=0)
  program.lower(X).compile()
  assert len(found) == tried
  # What isn't compiled yet is seen.
  make(16)(X)
  must_fail(lambda: np.testing.assert_equal(len(found), tried))
  np.testing.assert_allclose(make(1)(X), first, rtol=1e-5)


def test_a_number_from_a_checkpoint_is_taken():
  # Though 1 would fit: the run goes on as it began.
  program = FittedProgram(make, COUNTS, 1 << 40)
  program.count = 4
  program(X)
  assert program.count == 4
  assert program.metrics == {"update/micro_batches": 4.0}
  # One that the batch can't be cut into any more is chosen anew.
  program = FittedProgram(make, COUNTS, 1 << 40)
  program.count = 3
  program(X)
  assert program.count == 1


def test_nothing_fits():
  with pytest.raises(
    ValueError, match=r"not even micro_batches=64 fits: .*memory_budget_gb"
  ) as error:
    fitting(make, (X,), COUNTS, 100)
  for knob in ("ModelConfig.remat", "NUM_PROMPTS", "MAX_TOKENS", "FSDP"):
    assert knob in str(error.value)


class Refusing:
  """A program of which the compiler says that memory is short, or something."""

  def __init__(self, text):
    self.text = text

  def lower(self, *args):
    del args
    return self

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.text)


def test_a_compiler_that_gives_up_means_that_it_does_not_fit():
  text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm."
  found = fitting(
    lambda n: Refusing(text) if n < 4 else make(n), (X,), COUNTS, 1 << 40
  )
  assert found.micro_batches == 4
  assert found.tried[1] == math.inf
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    fitting(lambda n: Refusing("INTERNAL: a bug"), (X,), COUNTS, 1 << 40)


def test_the_budget():
  class Device:
    def __init__(self, stats):
      self.stats = stats

    def memory_stats(self):
      return self.stats

  assert budget_bytes(Device(None), 2.0) == 2 << 30
  assert budget_bytes(Device(None), None) == 4 << 30
  assert budget_bytes(Device({"bytes_limit": 1000}), None) == 920
  with pytest.raises(ValueError, match="memory_budget_gb=0 must be positive"):
    budget_bytes(Device(None), 0)


def test_counts_divide_the_batch_and_where_possible_the_mesh():
  assert counts_that_divide(rows=12, ways=1) == (1, 2, 3, 4, 6, 12)
  # 12, 6 and 4 prompts over 2 devices.
  assert counts_that_divide(rows=12, ways=2) == (1, 2, 3, 6)
  # 3 prompts over 2 devices: their 12 responses are cut instead.
  assert counts_that_divide(rows=3, ways=2, responses_of_a_row=4) == (1, 3)
  assert counts_that_divide(rows=3, ways=2) == (1, 3)
