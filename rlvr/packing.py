"""Which responses are computed together, so that little padding is.

Most of `[B, T]` is padding where few responses are as long as the longest may
be. Under jit every shape is fixed, so the batch is gone through in pieces of a
few shapes: rows of T tokens, twice as many rows of T/2, and so on, each about as
large in memory as the others.

    left = the responses, those that need the longest pieces first
    while any are left:
      shape = that which the first of them needs
      compute the next `shape.rows` of them, cut to `shape.length` tokens

is one loop around one `switch`: the number of pieces is data, the program the
same for all lengths, nothing goes over the host, and memory is that of one
piece. On a mesh each device orders its own responses, and none leaves it. Prompts are computed once beforehand (`rlvr.models.kept_prompts`),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
  """How finely a batch is cut.

  lengths: how many lengths of pieces there are: T, T/2, T/4, ... Each is one
    more copy of the model in the program, and compiled.
  pieces: how many pieces of the longest length would hold all responses of an
    update. More pieces fit the lengths closer, and are smaller. At most twice
    the micro-batches where parameters are cut over the mesh.
  min_tokens: response tokens that a piece has at least on each device, below
    which small matrices, and weights gathered for them, cost more than padding.
  shortest: tokens that a piece's length has at least. Responses of up to fewer
    than twice as many are computed unpacked, by the program without pieces.

  Raises:
    ValueError: a number below 1.
  """

  lengths: int = 4
  pieces: int = 16
  min_tokens: int = 1024
  shortest: int = 64

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        raise ValueError(f"Packing.{name}={value} must be at least 1")


PACKING = Packing()
_WIDTH = 1 << 20  # of a model, that any mesh divides


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
  while (
    len(lengths) < packing.lengths and -(-lengths[-1] // 2) >= packing.shortest
  ):
    lengths.append(-(-lengths[-1] // 2))
  ways = num_shards("batch", rows)

  def fitted(count: int) -> int:
    return max(ways, min(rows, count) // ways * ways)

  pieces = packing.pieces
  if num_shards("embed", _WIDTH) > 1:
    # Each piece gathers the parameters anew and sends its gradient: not many
    # more pieces than micro-batches, which do that as well.
    pieces = min(pieces, 2 * (rows // most_rows))
  longest = max(rows // pieces, packing.min_tokens * ways // length, 1)
  longest = fitted(min(longest, most_rows))
  area = longest * (prompt_length + length)
  return tuple(
    Shape(fitted(area // (prompt_length + n)), n) for n in reversed(lengths)
  )


class Plan(NamedTuple):
  """The order in which responses are computed.

  Each of the W devices along the batch has n = B / W responses, counted from 0.

  order: int32 [W, n + the most rows of a shape], responses; n behind the last.
  needs: int32 [n], the shape that each place of the order needs on some device;
    doesn't increase.
  pieces: int32 [], how many there are.
  tokens: int32 [], places for response tokens in all pieces.
  """

  order: Array
  needs: Array
  pieces: Array
  tokens: Array


def plan(shapes: tuple[Shape, ...], lengths: Array) -> Plan:
  """Returns which responses are computed when.

  Args:
    shapes: from `piece_shapes`.
    lengths: int32 [B], none longer than the last shape.
  """
  B = lengths.shape[0]
  ways = num_shards("batch", B)
  limits = jnp.array([s.length for s in shapes])
  needs = jnp.searchsorted(limits, lengths.reshape(ways, -1)).astype(jnp.int32)
  order = jnp.argsort(-needs, axis=-1, stable=True).astype(jnp.int32)
  needs = jnp.take_along_axis(needs, order, axis=-1).max(0)
  rows = jnp.array([s.rows // ways for s in shapes], jnp.int32)
  areas = jnp.array([s.rows * s.length for s in shapes], jnp.int32)
  n = needs.shape[0]

  def piece(state):
    start, pieces, tokens = state
    need = needs[start]
    return start + rows[need], pieces + 1, tokens + areas[need]

  zero = jnp.int32(0)
  _, pieces, tokens = jax.lax.while_loop(
    lambda state: state[0] < n, piece, (zero, zero, zero)
  )
  fill = jnp.full((ways, max(s.rows for s in shapes) // ways), n, jnp.int32)
  return Plan(jnp.concatenate([order, fill], axis=1), needs, pieces, tokens)


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
    body: (carry, rows, length) -> carry. rows is int32 [W, r], see `Plan`; n
      is no response: what is computed for it must be dropped.
  """
  ways = plan.order.shape[0]

  def branch(shape: Shape):
    count = shape.rows // ways

    def run(start, carry):
      rows = jax.lax.dynamic_slice(plan.order, (0, start), (ways, count))
      return start + count, body(carry, rows, shape.length)

    return run

  branches = [branch(shape) for shape in shapes]

  def more(state):
    piece, _, _ = state
    return (piece < most) & (piece < plan.pieces)

  def step(state):
    piece, start, carry = state
    after = jax.lax.switch(plan.needs[start], branches, start, carry)
    return piece + 1, *after

  # A bound that the program itself has, for what counts its work
  # (`rlvr.infra.hlo`): that of responses of full length, never reached before
  # all are computed.
  most = most_pieces(shapes, plan.needs.shape[0] * ways)
  return jax.lax.while_loop(more, step, (jnp.int32(0), jnp.int32(0), carry))[2]


def most_pieces(shapes: tuple[Shape, ...], num_rows: int) -> int:
  """Returns into how many pieces responses are cut at the most.

  Args:
    shapes: from `piece_shapes`.
    num_rows: B, responses.
  """
  return -(-num_rows // min(shape.rows for shape in shapes))


def real_rows(rows: Array, num_rows: int) -> Array:
  """Returns bool [b]: which of a piece's rows are responses.

  Args:
    rows: int32 [W, r], from `over_pieces`.
    num_rows: B.
  """
  return (rows < num_rows // rows.shape[0]).reshape(-1)


def take_rows(
  tree: Any, rows: Array, length: int, full_length: int | None
) -> Any:
  """Returns a piece's part of arrays [B, ...]: [b, ...].

  In the place of what is no response stands a device's last one.

  Args:
    tree: pytree of arrays; those whose second axis has T places are cut.
    rows: int32 [W, r], from `over_pieces`.
    length: of the piece.
    full_length: T; None cuts nothing.
  """
  ways = rows.shape[0]

  def take(x):
    parts = x.reshape(ways, -1, *x.shape[1:])
    chosen = jnp.minimum(rows, parts.shape[1] - 1)
    x = jax.vmap(lambda part, at: part[at])(parts, chosen)
    x = x.reshape(-1, *x.shape[2:])
    return x[:, :length] if x.ndim > 1 and x.shape[1] == full_length else x

  return jax.tree.map(take, tree)


def put_rows(whole: Array, rows: Array, part: Array) -> Array:
  """Returns the array with a piece's part in its place.

  Args:
    whole: [B, T, ...].
    rows: int32 [W, r], from `over_pieces`.
    part: [b, length, ...].
  """
  ways, count = rows.shape

  def put(whole, at, part):
    at_first = whole.at[at, : part.shape[1]]
    return at_first.set(part.astype(whole.dtype), mode="drop")

  return jax.vmap(put)(
    whole.reshape(ways, -1, *whole.shape[1:]),
    rows,
    part.reshape(ways, count, *part.shape[1:]),
  ).reshape(whole.shape)
