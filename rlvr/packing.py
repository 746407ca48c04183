"""Which responses are computed together, so that little padding is.

Most of `[B, T]` is padding where few responses are as long as the longest may
be. Under jit every shape is fixed, so the batch is gone through in pieces of a
few shapes: rows of T tokens, twice as many rows of T/2, and so on, each about as
large in memory as the others.

    left = the responses, those that need the longest pieces first
    while any are left:
      shape = that which the first of them needs
      compute the next `shape.rows` of them, cut to `shape.length` tokens

is one `while_loop` around one `switch`: the number of pieces is data, the
program the same for all lengths, nothing goes over the host, and memory is that
of one piece. Prompts are computed once beforehand (`rlvr.models.kept_prompts`),
whatever the pieces cut through; what is summed over pieces has coefficients
that were made before the cut, so that no normaliser sees it.

The alternative, several responses behind one another in rows of T with segment
ids, packs tighter (a response wastes less than half of its row here) but pays
for attention between segments that mask each other, T² for each row where a
short piece pays (T/8)², and asks for kernels that know a prompt that all
segments see, which splash attention on TPU does not.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rlvr.meshes import num_shards
from rlvr.types import Array

_Carry = TypeVar("_Carry")
_SHORTEST = 16  # tokens; shorter pieces would be more program than work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
  """How finely a batch is cut.

  lengths: how many lengths of pieces there are: T, T/2, T/4, ... Each is one
    more copy of the model in the program, and compiled.
  pieces: how many pieces of the longest length would hold all responses of an
    update. More pieces fit the lengths closer, and are smaller.
  min_tokens: response tokens that a piece has at least, below which small
    matrices cost more than padding.

  Raises:
    ValueError: a number below 1.
  """

  lengths: int = 4
  pieces: int = 16
  min_tokens: int = 2048

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        raise ValueError(f"Packing.{name}={value} must be at least 1")


PACKING = Packing()


class Shape(NamedTuple):
  """Of a piece: `rows` responses of up to `length` tokens."""

  rows: int
  length: int


def piece_shapes(
  packing: Packing,
  *,
  rows: int,
  length: int,
  prompt_length: int,
  most_rows: int,
) -> tuple[Shape, ...]:
  """Returns the pieces' shapes, the shortest first.

  Each shape takes about the memory of the longest: rows · (prompt + length)
  is the same, as each row has its prompt's keys beside it.

  Args:
    packing: the settings.
    rows: responses of an update.
    length: T.
    prompt_length: S.
    most_rows: of a piece of length T, for memory (a micro-batch's).
  """
  lengths = [length]
  while len(lengths) < packing.lengths and -(-lengths[-1] // 2) >= _SHORTEST:
    lengths.append(-(-lengths[-1] // 2))
  ways = num_shards("batch", rows)

  def fitted(count: int) -> int:
    return max(ways, min(rows, count) // ways * ways)

  longest = max(rows // packing.pieces, packing.min_tokens // length, 1)
  longest = fitted(min(longest, most_rows))
  area = longest * (prompt_length + length)
  return tuple(
    Shape(fitted(area // (prompt_length + n)), n) for n in reversed(lengths)
  )


class Plan(NamedTuple):
  """The order in which responses are computed.

  order: int32 [B + the most rows of a shape], responses; B behind the last.
  needs: int32 [B], the shape that each needs, in that order; doesn't increase.
  tokens: int32 [], places for response tokens in all pieces.
  """

  order: Array
  needs: Array
  tokens: Array


def plan(shapes: tuple[Shape, ...], lengths: Array) -> Plan:
  """Returns which responses are computed when.

  Args:
    shapes: from `piece_shapes`.
    lengths: int32 [B], none longer than the last shape.
  """
  B = lengths.shape[0]
  needs = jnp.searchsorted(jnp.array([s.length for s in shapes]), lengths)
  needs = needs.astype(jnp.int32)
  order = jnp.argsort(-needs, stable=True).astype(jnp.int32)
  needs = needs[order]
  rows = jnp.array([s.rows for s in shapes], jnp.int32)
  areas = jnp.array([s.rows * s.length for s in shapes], jnp.int32)

  def piece(state):
    start, tokens = state
    need = needs[start]
    return start + rows[need], tokens + areas[need]

  _, tokens = jax.lax.while_loop(lambda s: s[0] < B, piece, (0, 0))
  fill = jnp.full((max(s.rows for s in shapes),), B, jnp.int32)
  return Plan(jnp.concatenate([order, fill]), needs, tokens)


def saves(plan: Plan, places: int) -> Array:
  """Returns bool []: whether the pieces are less work than all in one.

  A tenth less, as pieces have costs of their own.

  Args:
    plan: from `plan`.
    places: B · T.
  """
  return plan.tokens <= 9 * places // 10


def over_pieces(
  shapes: tuple[Shape, ...],
  plan: Plan,
  carry: _Carry,
  body: Callable[[_Carry, Array, int], _Carry],
) -> _Carry:
  """Returns the carry after all pieces. Not differentiable.

  Args:
    shapes: from `piece_shapes`.
    plan: from `plan`.
    carry: arrays.
    body: (carry, int32 [rows] responses, length) -> carry. Responses of B and
      above are none: what is computed for them must be dropped.
  """
  B = plan.needs.shape[0]

  def branch(shape: Shape):
    def run(start, carry):
      rows = jax.lax.dynamic_slice(plan.order, (start,), (shape.rows,))
      return start + shape.rows, body(carry, rows, shape.length)

    return run

  branches = [branch(shape) for shape in shapes]

  def step(state):
    start, carry = state
    return jax.lax.switch(plan.needs[start], branches, start, carry)

  return jax.lax.while_loop(lambda s: s[0] < B, step, (jnp.int32(0), carry))[1]


def take_rows(tree: Any, rows: Array, length: int, full_length: int) -> Any:
  """Returns a piece's part of arrays [B, ...]; [B, T, ...] are cut to length.

  In the place of a response that is none stands the batch's last one.

  Args:
    tree: pytree of arrays; those whose second axis has T places are cut.
    rows: int32 [b].
    length: of the piece.
    full_length: T.
  """

  def take(x):
    x = x[jnp.minimum(rows, x.shape[0] - 1)]
    return x[:, :length] if x.ndim > 1 and x.shape[1] == full_length else x

  return jax.tree.map(take, tree)


def put_rows(whole: Array, rows: Array, part: Array) -> Array:
  """Returns the array with a piece's part [b, n, ...] in its place.

  Args:
    whole: [B, T, ...].
    rows: int32 [b]; B and above are left out.
    part: [b, n, ...] of the first n places.
  """
  return whole.at[rows, : part.shape[1]].set(
    part.astype(whole.dtype), mode="drop"
  )
