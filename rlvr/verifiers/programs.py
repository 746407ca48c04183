"""Where the program stands in a response, and what it printed.

Runs in worker processes: standard library only.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

# "fenced": the last block between lines of ```, less the fence's own indentation
# (a block in a list has it); "whole": all of the response;
# "fenced_or_whole": the first where there is a fence, else the second.
Found = Literal["fenced", "whole", "fenced_or_whole"]

_FENCE = "```"


class Extracted(NamedTuple):
  """The program in a response.

  program: None where there is none.
  malformed: a block begins and does not end.
  """

  program: str | None
  malformed: bool = False


def extract_program(
  text: str, *, source: Found = "fenced_or_whole", delimiter: str = ""
) -> Extracted:
  """Returns the program of a response.

  Args:
    text: a response.
    source: where it stands, see `Found`.
    delimiter: where not empty, only what follows its last occurrence is looked
      at; a text without it has no program.
  """
  if delimiter:
    _, found, text = text.rpartition(delimiter)
    if not found:
      return Extracted(None)
  if source != "whole":
    lines = text.split("\n")
    block: list[str] | None = None
    last: list[str] | None = None
    indent = 0  # of the line that opens the block
    for line in lines:
      mark = line.strip()
      if block is None:
        # ```text``` on a line of its own is no block.
        opens = mark.startswith(_FENCE) and _FENCE not in mark[3:]
        block = [] if opens else None
        indent = len(line) - len(line.lstrip(" "))
      elif mark == _FENCE:
        last, block = block, None
      else:
        block.append(line[:indent].lstrip(" ") + line[indent:])
    if block is not None:
      return Extracted(None, malformed=True)
    if last is not None:
      return _unless_empty("\n".join(last))
    if source == "fenced":
      return Extracted(None)
  return _unless_empty(text)


def _unless_empty(program: str) -> Extracted:
  return Extracted(program if program.strip() else None)


def complete_program(program: str, metadata: Mapping[str, Any]) -> str:
  """Returns the program with what the task's prompt has given already.

  A program that defines the entry point gets the prompt's imports and helpers
  before it, one that doesn't is the prompt's continuation.

  Args:
    program: as it was found.
    metadata: "entry_point", a function's name; "preamble", imports and helpers;
      "prefix", the prompt's code up to where the response goes on. Without
      "prefix", nothing is added.
  """
  prefix = metadata.get("prefix")
  if not prefix:
    return program
  name = re.escape(str(metadata.get("entry_point", "")))
  defines = rf"^(?:async )?(?:def|class) {name}\b|^{name} ?="
  if name and re.search(defines, program, re.MULTILINE):
    return f"{metadata.get('preamble', '')}\n{program}"
  return f"{prefix}{program}"


def same_output(printed: str, expected: str) -> bool:
  """Whether two outputs agree, but for spaces at the ends of lines.

  And but for empty lines at the end.
  """

  def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]

  return lines(printed) == lines(expected)
