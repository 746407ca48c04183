"""The update: from scores to new parameters, in pieces that change nothing.

A batch is cut into `updates_per_batch` updates, each into `micro_batches`
pieces, by responses in the order of a permutation of the prompts. With even
groups a piece holds whole groups and computes each prompt once; with uneven
ones it may end inside a group, and computes the prompts that it touches.

Where that is less work an update is cut otherwise, by the responses' lengths
(`rlvr.packing`), with its prompts computed before and their gradient behind it.
"""

import dataclasses
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from rlvr import models, packing
from rlvr.meshes import constrain_rows, constrain_tree
from rlvr.models.kept_prompts import KeptPrompts, keep_prompts
from rlvr.objectives.terms import LossInputs
from rlvr.probes.compute import ANSWER_PROBES, OTHER_PROMPTS, compute_probes
from rlvr.recipe import Noise, Recipe, batch_key
from rlvr.scorers import (
  kept_scorer_of,
  scorer_of,
  shared_ways,
  trainer_temperature,
)
from rlvr.segments import masked_mean
from rlvr.types import Array, Params, Prompts, Rollout, Scores, TrainState


def _loss(
  recipe: Recipe,
  params: Params,
  piece,
  kept: KeptPrompts | None = None,
  ways: int = 1,
):
  """Returns the sum of coefficient · loss over one piece, and metric sums.

  Args:
    recipe: the step's settings.
    params: the policy's parameters.
    piece: rows of an update with their coefficients, and their prompts.
    kept: what responses need of the prompts, where that is computed already.
    ways: see `forward_behind`.
  """
  rollout = piece["rollout"]
  passes = frozenset().union(*(t.passes for t in recipe.terms))
  statistics = recipe.statistics
  own = {"values"} if recipe.model.value_head else set()
  coefficients = piece["coefficients"]
  temperature = trainer_temperature(recipe.sampling)
  if kept is None:
    policy = scorer_of(recipe.model, params, temperature, statistics)
  else:
    policy = kept_scorer_of(
      recipe.model, params, kept, temperature, statistics, ways=ways
    )
  # As probes, so that what shares a forward pass with the response's (z_c
  # behind it) costs no second one.
  found = compute_probes(
    passes | own | {"logprobs", "entropies"},
    rollout,
    policy=policy,
    reference=None,
    settings=recipe.probe_settings,
    even_groups=recipe.even_groups and kept is None,
    stop_gradient=False,
    statistics=statistics,
  )
  mask = rollout.completion_mask
  old = piece.get("old_logprobs", jax.lax.stop_gradient(found["logprobs"]))
  inputs = LossInputs(
    logprobs=found["logprobs"],
    entropies=found["entropies"],
    old_logprobs=jnp.where(mask, old, found["logprobs"]),
    advantages=piece["advantages"],
    mask=mask,
    probes=piece["probes"],
    extra={name: found[name] for name in (*passes, *statistics)},
    rewards=piece["rewards"],
    values=found.get("values"),
  )
  total, sums = jnp.zeros(()), {}

  def add(name, values, weights):
    sums[name] = jnp.where(weights != 0, weights * values, 0.0).sum()

  for term in recipe.terms:
    values, extra = term.loss(inputs)
    own, share = coefficients, piece["share"]
    if term.per_response:
      own = share = piece["response_coefficients"]
    # Padding may hold anything; 0 · inf would be NaN.
    values = jnp.where(own != 0, values, 0.0)
    part = (own * values).sum()
    total = total + term.weight * part
    sums[f"loss/{term.name}"] = part
    for name, value in extra.items():
      add(name, value, share)
  change = jax.lax.stop_gradient(found["logprobs"] - rollout.behavior_logprobs)
  if recipe.own_old_logprobs:
    add("policy/old_logprob_mean", old, piece["share"])
  add("policy/entropy", found["entropies"], piece["share"])
  add("policy/behavior_kl", jnp.expm1(change) - change, piece["share"])
  if "ref_logprobs" in piece["probes"]:
    x = piece["probes"]["ref_logprobs"] - found["logprobs"]
    add("policy/ref_kl", jnp.expm1(x) - x, piece["share"])
  sums["loss/total"] = total
  return total, jax.lax.stop_gradient(sums)


def _cut(recipe: Recipe, tree: Any, order: Array) -> Any:
  """[N, ...] -> [updates of all passes, micro_batches, rest, ...].

  order: int32 [passes, N], the rows' order in each pass.
  """
  U, M = recipe.updates_per_batch, recipe.micro_batches
  passes, N = order.shape

  def cut(x):
    x = x[None] if U == passes == 1 else x[order]
    return x.reshape(passes * U, M, N // (U * M), *x.shape[2:])

  # A piece lies over all devices, as the batch did: each works on its share.
  return constrain_rows(jax.tree.map(cut, tree), None, None)


def response_order(order: Array, group: Array) -> Array:
  """Returns int32 [passes, B]: the responses by their prompts' order.

  Args:
    order: int32 [passes, P], each row a permutation of the prompts.
    group: int32 [B], not decreasing.
  """
  rank = jnp.argsort(order, axis=-1)[:, group]
  return jnp.argsort(rank, axis=-1, stable=True)


def touched_prompts(prompts: Prompts, group: Array) -> tuple[Prompts, Array]:
  """Returns the prompts of a piece of a batch, and each response's among them.

  Args:
    prompts: P prompts of the batch.
    group: int32 [b], the batch's prompt of each response of the piece; equal
      ones stand together.

  Returns:
    min(b, P) prompts, those in use first, and int32 [b], not decreasing.
  """
  P, b = prompts.tokens.shape[0], group.shape[0]
  starts = jnp.concatenate([jnp.zeros((1,), bool), group[1:] != group[:-1]])
  local = jnp.cumsum(starts.astype(jnp.int32))
  rows = jnp.zeros((min(b, P),), jnp.int32).at[local].set(group)
  return jax.tree.map(lambda x: x[rows], prompts), local


def _shapes(
  recipe: Recipe, shape: tuple[int, ...], prompts: Prompts
) -> tuple[packing.Shape, ...]:
  """Returns the pieces into which an update [b, T] can be cut; one: it can't."""
  rows, length = shape
  whole = (packing.Shape(rows, length),)
  if recipe.packing is None:
    return whole
  if OTHER_PROMPTS.union() & frozenset().union(
    *(t.passes for t in recipe.terms)
  ):
    return whole
  return packing.piece_shapes(
    recipe.packing,
    rows=rows,
    length=length,
    prompt_length=prompts.tokens.shape[1],
    most_rows=rows // recipe.micro_batches,
  )


def _kept_in_pieces(
  recipe: Recipe, params: Params, prompts: Prompts
) -> KeptPrompts:
  """Returns what responses need of the prompts; memory as of a micro-batch."""
  pieces = math.gcd(recipe.micro_batches, prompts.tokens.shape[0])

  def keep(args):
    return keep_prompts(params, recipe.model, *args)

  given = (prompts.tokens, prompts.mask)
  if pieces == 1:
    return keep(given)
  given = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), given)
  kept = jax.lax.map(jax.checkpoint(keep), constrain_rows(given, None))

  def joined(x, axis):
    x = jnp.moveaxis(x, 0, axis)
    shape = (*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return x.reshape(shape)

  return KeptPrompts(
    last=joined(kept.last, 0),
    keys=joined(kept.keys, 1),
    values=joined(kept.values, 1),
  )


def update(
  recipe: Recipe,
  state: TrainState,
  rollout: Rollout,
  scores: Scores,
  probes: dict[str, Array],
) -> tuple[TrainState, dict[str, Array]]:
  """Returns the state after all updates on one batch, and metrics.

  A model with adapters has these trained alone (`models.trained`).

  An update whose gradient isn't finite leaves parameters and optimizer as they
  are and is counted in `optim/nonfinite_updates`; so does one in which no
  response has a weight (momentum would move the parameters for no reason),
  counted in `optim/empty_updates`.

  Args:
    recipe: the step's settings.
    state: the run's state; its chain state and step are taken over unchanged.
    rollout: responses; in even groups where the recipe says so.
    scores: advantages and weights.
    probes: from `score_batch`.
  """
  mask = rollout.completion_mask
  old = rollout.behavior_logprobs
  if recipe.old_logprobs == "recomputed" and not recipe.own_old_logprobs:
    old = probes["logprobs"]
  wanted = frozenset().union(*(t.requires for t in recipe.terms))
  wanted |= {"ref_logprobs"} & probes.keys()
  read = frozenset().union(*(t.rewards for t in recipe.terms))
  readable = scores.outcome | scores.token
  if absent := read - readable.keys():
    raise ValueError(
      f"the objective's terms read rewards {sorted(absent)}, but the chain"
      f" leaves outcome rewards {sorted(scores.outcome)} and token rewards"
      f" {sorted(scores.token)}: name one of those in the term, or add the"
      " transform that makes it to the chain"
    )
  P, B = rollout.num_prompts, rollout.tokens.shape[0]
  order = jnp.arange(P)[None]
  if recipe.updates_per_batch * recipe.passes_per_batch > 1:
    keys = jax.random.split(
      batch_key(state.key, state.step, Noise.UPDATE), recipe.passes_per_batch
    )
    order = jax.vmap(lambda k: jax.random.permutation(k, P))(keys)
  pieces = _cut(
    recipe,
    {
      # The prompts are cut by themselves: they aren't one for each response.
      "rollout": dataclasses.replace(rollout, prompts=cast(Prompts, None)),
      **({} if recipe.own_old_logprobs else {"old_logprobs": old}),
      "advantages": scores.advantages,
      "weights": scores.weights,
      "probes": {k: v for k, v in probes.items() if k in wanted},
      "rewards": {k: v for k, v in readable.items() if k in read},
    },
    response_order(order, rollout.group),
  )
  if recipe.even_groups:
    pieces["prompts"] = _cut(recipe, rollout.prompts, order)

  axes = models.trained(models.logical_axes(recipe.model), recipe.model)
  first, frozen = models.split_trained(state.params, recipe.model)

  def micro(trained, piece):
    piece, group = dict(piece), piece["rollout"].group
    if recipe.even_groups:
      # The piece has its own prompts, which count from 0.
      prompts = piece.pop("prompts")
      group = jnp.repeat(jnp.arange(prompts.tokens.shape[0]), B // P)
    else:
      prompts, group = touched_prompts(rollout.prompts, group)
    piece["rollout"] = dataclasses.replace(
      piece["rollout"], prompts=prompts, group=group
    )
    found, grads = jax.value_and_grad(
      # What is frozen is no argument: its gradient is never made.
      lambda p: _loss(recipe, models.joined(p, frozen), piece),
      has_aux=True,
    )(trained)
    # Cut like the parameters at once, not summed whole on every device.
    return found, constrain_tree(grads, axes)

  def in_micro_batches(trained, pieces):
    if recipe.micro_batches == 1:
      return micro(trained, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.eval_shape(micro, trained, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)

    def accumulate(total, piece):
      return jax.tree.map(jnp.add, total, micro(trained, piece)), None

    return jax.lax.scan(accumulate, zeros, pieces)[0]

  def by_length(trained, flat, shapes, plan):
    flat = dict(flat)
    prompts = flat.pop("prompts", rollout.prompts)
    (num_prompts, _), (rows, T) = prompts.tokens.shape, flat["share"].shape
    group, ways = flat["rollout"].group, 1
    if recipe.even_groups:
      group = jnp.repeat(jnp.arange(num_prompts), rows // num_prompts)
      ways = shared_ways(rows, num_prompts)
    # [B, R], which may be T places without being the response's.
    of_answers = {k: v for k, v in flat["probes"].items() if k in ANSWER_PROBES}
    flat["probes"] = {
      k: v for k, v in flat["probes"].items() if k not in ANSWER_PROBES
    }

    def keep(trained):
      return _kept_in_pieces(recipe, models.joined(trained, frozen), prompts)

    kept, pull = jax.vjp(keep, trained)

    def piece_of(chosen, length):
      piece = packing.take_rows(flat, chosen, length, T)
      real = packing.real_rows(chosen, rows)
      for name in ("coefficients", "share"):
        piece[name] = jnp.where(real[:, None], piece[name], 0.0)
      name = "response_coefficients"
      piece[name] = jnp.where(real, piece[name], 0.0)
      piece["probes"] |= packing.take_rows(of_answers, chosen, length, None)
      piece["rollout"] = dataclasses.replace(
        piece["rollout"],
        prompts=prompts,
        group=packing.take_rows(group, chosen, length, None),
        completion_mask=piece["rollout"].completion_mask & real[:, None],
      )
      return piece

    def part(chosen, length):
      piece = piece_of(chosen, length)
      found, (grads, to_kept) = jax.value_and_grad(
        lambda p, kept: _loss(
          recipe, models.joined(p, frozen), piece, kept, ways
        ),
        argnums=(0, 1),
        has_aux=True,
      )(trained, kept)
      return found, constrain_tree(grads, axes), to_kept

    some = jax.ShapeDtypeStruct(
      (plan.order.shape[0], shapes[0].rows // plan.order.shape[0]), jnp.int32
    )
    zeros = jax.eval_shape(lambda rows: part(rows, shapes[0].length), some)
    found, grads, to_kept = packing.over_pieces(
      shapes,
      plan,
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros),
      lambda total, *chosen: jax.tree.map(jnp.add, total, part(*chosen)),
    )
    (of_prompts,) = pull(to_kept)
    return found, constrain_tree(jax.tree.map(jnp.add, grads, of_prompts), axes)

  def one_update(carry, pieces):
    trained, opt_state = carry
    # Coefficients over the whole update, before it is cut into pieces.
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pieces)
    flat_mask, weights = flat["rollout"].completion_mask, flat["weights"]
    coefficients = recipe.reduction(flat_mask, weights)
    share = flat_mask / jnp.maximum(flat_mask.sum(), 1)
    shape = pieces["rollout"].completion_mask.shape
    pieces = {
      **pieces,
      "coefficients": coefficients.reshape(shape),
      "share": share.astype(jnp.float32).reshape(shape),
      "response_coefficients": (
        weights / jnp.where(weights.sum() > 0, weights.sum(), 1.0)
      ).reshape(shape[:2]),
    }
    lengths = flat_mask.sum(-1, dtype=jnp.int32)
    shapes = _shapes(recipe, flat_mask.shape, rollout.prompts)
    if len(shapes) == 1:
      computed = jnp.int32(flat_mask.size)
      (_, sums), grads = in_micro_batches(trained, pieces)
    else:
      plan = packing.plan(shapes, lengths)
      computed = plan.tokens
      # As they were before the cut into micro-batches.
      flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pieces)
      (_, sums), grads = by_length(trained, flat, shapes, plan)
    sums["update/useful_tokens"] = lengths.sum() / computed
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss/total"])
    empty = ~(weights > 0).any()
    updates, new_opt = recipe.optimizer.update(grads, opt_state, trained)
    new = (optax.apply_updates(trained, updates), new_opt)
    carry = jax.tree.map(
      lambda a, b: jnp.where(finite & ~empty, a, b), new, (trained, opt_state)
    )
    sums["optim/grad_norm"] = norm
    sums["optim/nonfinite_updates"] = (~finite).astype(jnp.float32)
    sums["optim/empty_updates"] = empty.astype(jnp.float32)
    return carry, sums

  carry = (first, state.opt_state)
  if recipe.updates_per_batch * recipe.passes_per_batch == 1:
    carry, metrics = one_update(carry, jax.tree.map(lambda x: x[0], pieces))
  else:
    carry, stacked = jax.lax.scan(one_update, carry, pieces)
    metrics = {k: v.mean() for k, v in stacked.items()}
    for name in ("optim/nonfinite_updates", "optim/empty_updates"):
      metrics[name] = stacked[name].sum()
  last, opt_state = carry
  if not recipe.own_old_logprobs:
    metrics["policy/old_logprob_mean"] = masked_mean(old, mask)
  return (
    dataclasses.replace(
      state, params=models.joined(last, frozen), opt_state=opt_state
    ),
    metrics,
  )
