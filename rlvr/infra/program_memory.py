"""What a compiled program takes in memory, by the compiler's own account."""

import dataclasses
import re
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes on one device while a program runs, by class.

  arguments: what the program takes.
  output: what it gives, in memory of its own.
  aliased: of the output, in the place of donated arguments.
  temporaries: activations, caches, gathered and cast parameters.
  code: the program.
  resident: the run's arrays that this program doesn't take, and which stay.
  """

  arguments: int
  output: int
  aliased: int
  temporaries: int
  code: int
  resident: int

  @property
  def total(self) -> int:
    """Bytes in use at the most."""
    return (
      self.arguments
      + self.output
      - self.aliased
      + self.temporaries
      + self.code
      + self.resident
    )


def out_of_memory(error: Exception) -> str | None:
  """Returns the compiler's sentence about memory, None for other errors."""
  text = str(error)
  if "RESOURCE_EXHAUSTED" not in text:
    return None
  found = re.search(r"Ran out of memory.*?(?:\.\s|$)", text, re.DOTALL)
  return " ".join((found.group() if found else text[:300]).split())


def program_bytes(compiled: Any) -> int:
  """Returns what a program takes on one device, by the compiler's account."""
  return memory_of(compiled, 0).total


def memory_of(compiled: Any, resident: int) -> Memory:
  """Returns what a program takes on one device, by class.

  Args:
    compiled: from `jax.jit(...).lower(...).compile()`.
    resident: see `Memory`.
  """
  found = compiled.memory_analysis()
  return Memory(
    arguments=found.argument_size_in_bytes,
    output=found.output_size_in_bytes,
    aliased=found.alias_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
    code=found.generated_code_size_in_bytes,
    resident=resident,
  )


def size_text(count: float) -> str:
  """Returns bytes as text, in MiB or GiB."""
  if count < 1 << 30:
    return f"{count / 2**20:.1f} MiB"
  return f"{count / 2**30:.2f} GiB"
