"""The decode loop: responses in slots, each slot refilled when one has ended.

With as many slots as responses all of them decode side by side, and share what
a group shares. With fewer, a slot whose response has ended takes the next one,
with its own prompt, so that a few long responses don't keep the others' places
idle. Both run in one jitted loop without a word from the host.

The cache grows by stages, each a loop of its own: a token attends to a cache of
at most twice its place instead of to one of the greatest length. When no response
waits and few are left, these move to fewer slots: the last long ones don't pay
for the width of all.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr.meshes import num_shards
from rlvr.models import ModelConfig, logits
from rlvr.models.decoding import (
  Cache,
  Reading,
  cache_dtype,
  decode,
  empty_cache,
  longer_cache,
  put_rows,
  take_rows,
)
from rlvr.types import Array

# logits [N, V], uniform [N] -> tokens int32 [N], log-probs float32 [N]
Pick = Callable[[Array, Array], tuple[Array, Array]]


class Drawn(NamedTuple):
  """What was drawn so far, a row for each response."""

  tokens: Array  # int32 [B, T], padded
  logprobs: Array  # float32 [B, T], 0 on padding
  lengths: Array  # int32 [B], the end token included
  finished: Array  # bool [B], ended by itself


class _Slots(NamedTuple):
  response: Array  # int32 [N], which response is in the slot; B: none
  position: Array  # int32 [N], place of `token` in its response; [] for all
  token: Array  # int32 [N], the last one drawn
  ended: Array  # bool [N]: nothing is left to draw here
  cache: Cache


def stages(max_tokens: int, first: int = 64) -> list[int]:
  """Returns the lengths that the cache grows through, the last max_tokens.

  Args:
    max_tokens: T.
    first: the shortest.
  """
  out = [max_tokens]
  while out[0] > first:
    out.insert(0, -(-out[0] // 2))
  return out


def widths(num_slots: int, max_tokens: int, least: int = 64) -> list[int]:
  """Returns the numbers of slots that what is left over moves to, in turn.

  Each is a loop to compile: short responses aren't worth it. Nor is it where
  the mesh cuts the batch: what is left would cross it to be moved, and then
  leave most of it without work.

  Args:
    num_slots: N.
    max_tokens: T.
    least: T up to which there is no move.
  """
  if max_tokens <= least or num_shards("batch", num_slots) > 1:
    return []
  return [n for n in (num_slots // 4, num_slots // 16) if n >= 4]


def decode_all(
  reading: Reading,
  config: ModelConfig,
  first: Drawn,
  uniform: Array,
  limits: Array,
  pick: Pick,
  *,
  end_id: int,
  pad_id: int,
) -> Drawn:
  """Returns the responses, each with a slot of its own.

  Args:
    reading: parameters and prompts.
    config: the model's shape.
    first: with each response's first token.
    uniform: float32 [B, T], the noise of each token.
    limits: int32 [B], tokens that each response may have.
    pick: draws tokens.
    end_id: ends a response.
    pad_id: fills up.
  """
  B, T = uniform.shape
  slots = _Slots(
    response=jnp.arange(B, dtype=jnp.int32),
    position=jnp.int32(0),
    token=first.tokens[:, 0],
    ended=_done(first, limits),
    cache=empty_cache(
      config, B, min(stages(T)[0], T), cache_dtype(reading.prompts)
    ),
  )
  step = _stepper(config, uniform, limits, pick, end_id, pad_id)

  narrower = widths(B, T)
  enough = narrower[0] if narrower else 0

  def going(length, carry):
    slots, _ = carry
    return (slots.position + 1 < length) & (_alive(slots) > enough)

  carry = slots, first
  for length in stages(T):
    slots, drawn = carry
    slots = slots._replace(cache=longer_cache(slots.cache, length))
    carry = jax.lax.while_loop(
      functools.partial(going, length),
      lambda c: step(reading, *c),
      (slots, drawn),
    )
  slots, drawn = carry
  if not narrower:
    return drawn
  places = jnp.broadcast_to(slots.position, (B,))
  own = reading
  if reading.prompt_mask.shape[0] < B:  # a group's prompt is kept once
    prompt = jnp.arange(B) // (B // reading.prompt_mask.shape[0])
    slots, own = _moved(
      slots._replace(position=places),
      own,
      narrower[0],
      config,
      prompt_of=prompt,
    )
  else:
    slots, own = _moved(
      slots._replace(position=places), own, narrower[0], config
    )
  return _decode_rest(slots, drawn, own, narrower, step, config)


def decode_queued(
  reading: Reading,
  config: ModelConfig,
  first: Drawn,
  group: Array,
  uniform: Array,
  limits: Array,
  pick: Pick,
  *,
  num_slots: int,
  end_id: int,
  pad_id: int,
) -> Drawn:
  """Returns the responses, of which `num_slots` decode at a time.

  Args:
    reading: parameters and prompts, a row for each of P prompts;
      prompt_lengths and the like by prompt.
    config: the model's shape.
    first: with each response's first token.
    group: int32 [B], the prompt of each response.
    uniform: float32 [B, T], the noise of each token.
    limits: int32 [B], tokens that each response may have.
    pick: draws tokens.
    num_slots: N, at most B.
    end_id: ends a response.
    pad_id: fills up.
  """
  B, T = uniform.shape
  done = _done(first, limits)
  # Those that ended with their first token never take a slot.
  queue = jnp.argsort(done, stable=True).astype(jnp.int32)
  waiting = (~done).sum(dtype=jnp.int32)
  # Slots are refilled some at a time: each refill costs a pass over as many
  # prompts' keys, each wait a slot's step.
  batch = max(1, num_slots // 16)
  narrower = widths(num_slots, T)
  enough = narrower[0] if narrower else 0
  step = _stepper(config, uniform, limits, pick, end_id, pad_id)

  def at(response, x, fill):
    return x.at[response].get(mode="fill", fill_value=fill)

  def rows_for(response):
    """The prompts' rows of responses [n]; those of B are never read."""
    prompt = at(response, group, 0)
    return (
      take_rows(reading.prompts, prompt, config),
      reading.prompt_mask[prompt],
      reading.prompt_lengths[prompt],
    )

  def refill(carry):
    slots, drawn, own, taken = carry
    free = jnp.nonzero(slots.ended, size=batch, fill_value=num_slots)[0]
    turn = taken + jnp.arange(batch, dtype=jnp.int32)
    fits = (turn < waiting) & (free < num_slots)
    response = jnp.where(fits, queue[jnp.minimum(turn, B - 1)], B)
    where = jnp.where(fits, free, num_slots)
    prompts, mask, lengths = rows_for(response)
    own = own._replace(
      prompts=put_rows(own.prompts, where, prompts, config),
      prompt_mask=own.prompt_mask.at[where].set(mask, mode="drop"),
      prompt_lengths=own.prompt_lengths.at[where].set(lengths, mode="drop"),
    )

    def put(x, y):
      return x.at[where].set(y, mode="drop")

    slots = slots._replace(
      response=put(slots.response, response),
      position=put(slots.position, 0),
      token=put(slots.token, at(response, drawn.tokens[:, 0], pad_id)),
      ended=put(slots.ended, False),
    )
    return slots, drawn, own, taken + fits.sum(dtype=jnp.int32)

  def busy(slots, taken, length):
    """Whether there is a step to do before slots are refilled."""
    left = waiting - taken
    free = slots.ended.sum(dtype=jnp.int32)
    refillable = (left > 0) & (free >= jnp.minimum(batch, left))
    fits = jnp.where(slots.ended, 0, slots.position + 1).max() < length
    return (_alive(slots) > jnp.where(left > 0, 0, enough)) & ~refillable & fits

  def going(length, carry):
    slots, _, _, taken = carry
    alive = (_alive(slots) > enough) | (taken < waiting)
    return alive & (
      jnp.where(slots.ended, 0, slots.position + 1).max() < length
    )

  def run(length, carry):
    """Steps until slots are to be refilled, then refills some."""
    slots, drawn, own, taken = carry
    slots, drawn = jax.lax.while_loop(
      lambda c: busy(c[0], taken, length),
      lambda c: step(own, *c),
      (slots, drawn),
    )
    return refill((slots, drawn, own, taken))

  start = jnp.full((num_slots,), B, jnp.int32)
  prompts, mask, lengths = rows_for(start)
  own = reading._replace(
    prompts=prompts, prompt_mask=mask, prompt_lengths=lengths
  )
  slots = _Slots(
    response=start,
    position=jnp.zeros((num_slots,), jnp.int32),
    token=jnp.full((num_slots,), pad_id, jnp.int32),
    ended=jnp.ones((num_slots,), bool),
    cache=empty_cache(
      config, num_slots, stages(T)[0], cache_dtype(reading.prompts)
    ),
  )
  carry: Any = (slots, first, own, jnp.int32(0))
  for length in stages(T):
    slots, *rest = carry
    slots = slots._replace(cache=longer_cache(slots.cache, length))
    carry = jax.lax.while_loop(
      functools.partial(going, length),
      functools.partial(run, length),
      (slots, *rest),
    )
  slots, drawn, own, _ = carry
  if narrower:
    slots, own = _moved(slots, own, narrower[0], config)
  return _decode_rest(slots, drawn, own, narrower, step, config)


def _alive(slots: _Slots) -> Array:
  return (~slots.ended).sum(dtype=jnp.int32)


def _moved(
  slots: _Slots,
  reading: Reading,
  width: int,
  config: ModelConfig,
  prompt_of: Array | None = None,
) -> tuple[_Slots, Reading]:
  """Returns the slots that are alive, at most `width`, in as many slots.

  Args:
    slots: with a position each.
    reading: with a row of prompts for each slot, or as `prompt_of` says.
    width: how many slots.
    config: the model's shape.
    prompt_of: int32 [N], each slot's row of prompts; None: its own.
  """
  N = slots.ended.shape[0]
  # Past the end stands for none: such a slot has ended.
  rows = jnp.nonzero(~slots.ended, size=width, fill_value=N)[0]
  kept = jnp.minimum(rows, N - 1)
  prompts = kept if prompt_of is None else prompt_of[kept]
  return _Slots(
    response=slots.response[kept],
    position=slots.position[kept],
    token=slots.token[kept],
    ended=slots.ended.at[rows].get(mode="fill", fill_value=True),
    cache=take_rows(slots.cache, kept, config),
  ), reading._replace(
    prompts=take_rows(reading.prompts, prompts, config),
    prompt_mask=reading.prompt_mask[prompts],
    prompt_lengths=reading.prompt_lengths[kept],
  )


def _decode_rest(
  slots: _Slots,
  drawn: Drawn,
  reading: Reading,
  narrower: list[int],
  step: Callable[..., tuple[_Slots, Drawn]],
  config: ModelConfig,
) -> Drawn:
  """Returns the responses; the slots are already as few as narrower[0]."""
  for width, enough in itertools.pairwise([*narrower, 0]):
    if slots.ended.shape[0] > width:
      slots, reading = _moved(slots, reading, width, config)

    def body(carry, reading=reading):
      return step(reading, *carry)

    def going(carry, enough=enough):
      return _alive(carry[0]) > enough

    slots, drawn = jax.lax.while_loop(going, body, (slots, drawn))
  return drawn


def first_tokens(
  logits_BxV: Array, uniform: Array, pick: Pick, *, end_id: int, pad_id: int
) -> Drawn:
  """Returns the responses with their first token.

  Args:
    logits_BxV: behind each response's prompt.
    uniform: float32 [B, T], the noise of each token.
    pick: draws tokens.
    end_id: ends a response.
    pad_id: fills up.
  """
  B, T = uniform.shape
  token, logprob = pick(logits_BxV, uniform[:, 0])
  return Drawn(
    tokens=jnp.full((B, T), pad_id, jnp.int32).at[:, 0].set(token),
    logprobs=jnp.zeros((B, T), jnp.float32).at[:, 0].set(logprob),
    lengths=jnp.ones((B,), jnp.int32),
    finished=token == end_id,
  )


def _done(drawn: Drawn, limits: Array) -> Array:
  return drawn.finished | (drawn.lengths >= limits)


def _column(x: Array, at: Array, values: Array, keep: Array) -> Array:
  """Returns x [B, T] with `values` [B] in column `at`, but in rows to keep."""
  values = jnp.where(keep, x[:, at], values)
  return jax.lax.dynamic_update_slice(x, values[:, None], (0, at))


def _stepper(config, uniform, limits, pick, end_id, pad_id):
  """Returns (reading, slots, drawn) -> (slots, drawn) after one more token."""
  B = uniform.shape[0]

  def step(reading: Reading, slots: _Slots, drawn: Drawn):
    hidden, cache = decode(
      reading, config, slots.token, slots.position, slots.cache
    )
    position = slots.position + jnp.where(
      slots.ended if slots.position.ndim else False, 0, 1
    )
    z = logits({"trunk": reading.trunk}, config, hidden)
    # An ended slot draws too and what it draws is written nowhere.
    if slots.position.ndim:
      response = jnp.where(slots.ended, B, slots.response)
      u = uniform.at[response, position].get(mode="fill", fill_value=0.0)
      limit = limits.at[response].get(mode="fill", fill_value=0)
    else:  # all at one place, in their own rows: a column
      u, limit = uniform[:, position], limits
    token, logprob = pick(z, u)
    token = jnp.where(slots.ended, pad_id, token)
    finished = (token == end_id) & ~slots.ended
    if slots.position.ndim:

      def put(x, *where_and_value):
        *where, value = where_and_value
        return x.at[(response, *where)].set(value, mode="drop")

      drawn = Drawn(
        tokens=put(drawn.tokens, position, token),
        logprobs=put(drawn.logprobs, position, logprob),
        lengths=put(drawn.lengths, position + 1),
        finished=put(drawn.finished, finished),
      )
    else:
      drawn = Drawn(
        tokens=_column(drawn.tokens, position, token, slots.ended),
        logprobs=_column(drawn.logprobs, position, logprob, slots.ended),
        lengths=jnp.where(slots.ended, drawn.lengths, position + 1),
        finished=drawn.finished | finished,
      )
    ended = slots.ended | finished | (position + 1 >= limit)
    return slots._replace(
      position=position, token=token, ended=ended, cache=cache
    ), drawn

  return step
