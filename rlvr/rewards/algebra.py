"""The algebra of rewards: `Transform`, `chain`, and how to make transforms.

A transform is a triple of pure functions and data, as in Optax:

    init()                          -> state
    apply(scores, state, context)   -> (scores, state)
    requires                        -> names of the probes that `apply` reads

plus a `spec`, by which a chain is checked when it is built and explains itself
(`describe`). A paper's function is written over plain arrays; the helpers here
(`stateless`, `map_reward`) lift it to a transform.

Missing values (NaN) by station:

- reward transforms keep NaN where it was and never let it reach another
  response or another reward;
- combinators have an argument `missing`: "propagate" (the default: one missing
  part makes the combined reward missing) or "skip" (the parts that are there
  are used, the result is missing only where all are);
- credit keeps a missing reward missing on each of the response's tokens;
- group statistics of advantage estimators are taken over the rewards that are
  there; a response with a missing reward has advantage 0 and weight 0, is
  counted in the metrics, and so takes no part in the update.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlvr.types import Array, Context, Scores

State = Any
Kind = Literal["outcome", "step", "token"]
KINDS: tuple[Kind, ...] = ("outcome", "step", "token")
SHAPES = {"outcome": "[B]", "step": "[B, K]", "token": "[B, T]"}
Stage = Literal["rewards", "advantages"]


class Spec(NamedTuple):
  """What a transform says about itself.

  name: the public function that made it.
  params: its hyperparameters, for `describe`.
  takes: "rewards" or "advantages": what must be there before it.
  gives: the same, after it. An advantage estimator takes rewards and gives
    advantages.
  parts: the transforms inside, for `chain` and its like.
  """

  name: str
  params: Mapping[str, Any]
  takes: Stage
  gives: Stage
  parts: tuple["Transform", ...] = ()


class Transform(NamedTuple):
  """One link of a chain; see the module's docstring."""

  init: Callable[[], State]
  apply: Callable[[Scores, State, Context], tuple[Scores, State]]
  requires: frozenset[str]
  spec: Spec


def stateless(
  name: str,
  fn: Callable[[Scores, Context], Scores],
  *,
  takes: Stage = "rewards",
  gives: Stage = "rewards",
  requires: Iterable[str] = (),
  params: Mapping[str, Any] | None = None,
) -> Transform:
  """Returns the transform without state that applies `fn`."""

  def apply(scores, state, context):
    return fn(scores, context), state

  return Transform(
    init=lambda: (),
    apply=apply,
    requires=frozenset(requires),
    spec=Spec(name, dict(params or {}), takes, gives),
  )


def stateful(
  name: str,
  init: Callable[[], State],
  apply: Callable[[Scores, State, Context], tuple[Scores, State]],
  *,
  takes: Stage = "rewards",
  gives: Stage = "rewards",
  requires: Iterable[str] = (),
  params: Mapping[str, Any] | None = None,
) -> Transform:
  """Returns the transform with the state that `init` makes."""
  return Transform(
    init,
    apply,
    frozenset(requires),
    Spec(name, dict(params or {}), takes, gives),
  )


def chain(*links: Transform, transforms: Sequence[Transform] = ()) -> Transform:
  """Returns the transform that applies the given ones in order.

  Each link gets its own key (`fold_in` of the context's key with its index) and
  its own state. `requires` is the union of the links'.

  Args:
    *links: transforms, first applied first.
    transforms: the same as a sequence, appended; gin binds this one.

  Raises:
    ValueError: nothing to chain, a link is no transform, or a link takes what
      the link before does not give (an advantage transform before any
      advantage estimator, a reward transform after one).
  """
  parts = (*links, *transforms)
  if not parts:
    raise ValueError("chain() needs at least one transform: give `transforms`")
  for i, part in enumerate(parts):
    if not isinstance(part, Transform):
      raise ValueError(
        f"chain: link {i} is {part!r}, not a Transform; in gin, write"
        " `@name()` with the brackets"
      )
  for i, (before, after) in enumerate(itertools.pairwise(parts)):
    if before.spec.gives != after.spec.takes:
      hint = (
        "put an advantage estimator before it"
        if after.spec.takes == "advantages"
        else "move it before the advantage estimator"
      )
      raise ValueError(
        f"chain: link {i + 1} ({after.spec.name}) takes {after.spec.takes},"
        f" but link {i} ({before.spec.name}) gives {before.spec.gives}: {hint}"
      )

  def init():
    return tuple(part.init() for part in parts)

  def apply(scores, state, context):
    if len(state) != len(parts):
      raise ValueError(
        f"chain of {len(parts)} transforms was given a state of {len(state)}:"
        " the state belongs to another chain (a checkpoint of another method?)"
      )
    new_state = []
    for i, (part, part_state) in enumerate(zip(parts, state, strict=True)):
      key = jax.random.fold_in(context.key, i)
      scores, part_state = part.apply(
        scores, part_state, dataclasses.replace(context, key=key)
      )
      new_state.append(part_state)
    return scores, tuple(new_state)

  return Transform(
    init,
    apply,
    frozenset().union(*(part.requires for part in parts)),
    Spec("chain", {}, parts[0].spec.takes, parts[-1].spec.gives, parts),
  )


def describe(transform: Transform, indent: int = 0) -> str:
  """Returns what the transform does, a line per link, with parameters."""
  spec = transform.spec
  pad = "  " * indent
  args = ", ".join(f"{k}={_short(v)}" for k, v in spec.params.items())
  line = f"{pad}{spec.name}({args})" if not spec.parts else f"{pad}{spec.name}"
  if spec.parts and args:
    line += f" ({args})"
  if spec.takes != spec.gives:
    line += f": {spec.takes} -> {spec.gives}"
  if transform.requires and not spec.parts:
    line += f"  [probes: {', '.join(sorted(transform.requires))}]"
  lines = [line, *(describe(part, indent + 1) for part in spec.parts)]
  if spec.parts and indent == 0:
    probes = ", ".join(sorted(transform.requires)) or "none"
    lines.append(f"probes: {probes}")
  return "\n".join(lines)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + "..."


# Reading and writing named rewards.


def reward_names(scores: Scores) -> list[str]:
  """Returns the names of all rewards in the scores, in a fixed order."""
  return [name for kind in KINDS for name in getattr(scores, kind)]


def find_reward(
  scores: Scores, name: str | None, kinds: Sequence[Kind] = KINDS, *, who: str
) -> tuple[Kind, str, Array]:
  """Returns kind, name and values of a named reward.

  Args:
    scores: where to look.
    name: the reward's name; None means the only one, or "reward" where several
      are left.
    kinds: what the caller can work with.
    who: the caller's name, for the error.

  Raises:
    ValueError: no such reward, a choice that isn't unique, or a wrong kind.
  """
  names = reward_names(scores)
  if name is None:
    if len(names) == 1:
      name = names[0]
    elif "reward" in names:
      name = "reward"
    else:
      raise ValueError(
        f"{who}: which reward? There are {names}: set `{who}.reward`, or put a"
        " combinator before it"
      )
  for kind in KINDS:
    if name in getattr(scores, kind):
      if kind not in kinds:
        wanted = " or ".join(f"{k} {SHAPES[k]}" for k in kinds)
        hint = (
          "put a credit transform before it"
          if "token" in kinds and kind == "step"
          else "name another reward or use a transform for that kind"
        )
        raise ValueError(
          f"{who}: reward {name!r} is {kind} {SHAPES[kind]}, but {wanted} is"
          f" needed: {hint}"
        )
      return kind, name, getattr(scores, kind)[name]
  raise ValueError(
    f"{who}: there is no reward {name!r}; there are {names}. Check"
    f" `{who}.reward` and what the verifier returns"
  )


def put_reward(
  scores: Scores,
  kind: Kind,
  name: str,
  values: Array,
  *,
  drop: Sequence[str] = (),
) -> Scores:
  """Returns the scores with `name` set, and the rewards in `drop` taken out."""
  kinds: dict[str, Any] = {
    k: {n: v for n, v in getattr(scores, k).items() if n not in (*drop, name)}
    for k in KINDS
  }
  kinds[kind][name] = values
  return dataclasses.replace(scores, **kinds)


def add_metrics(scores: Scores, **metrics: Array) -> Scores:
  """Returns the scores with metrics added; `/` in names is written `__`."""
  named = {
    k.replace("__", "/"): jnp.asarray(v, jnp.float32)
    for k, v in metrics.items()
  }
  return dataclasses.replace(scores, metrics={**scores.metrics, **named})


def map_reward(
  name: str,
  fn: Callable[[Array, Context], Array],
  *,
  reward: str | None,
  out: str | None = None,
  kinds: Sequence[Kind] = KINDS,
  requires: Iterable[str] = (),
  params: Mapping[str, Any] | None = None,
) -> Transform:
  """Returns the transform that replaces one named reward by `fn` of it.

  Args:
    name: the transform's name.
    fn: `(values, context) -> values` of the same shape. NaN in `values` is kept
      as NaN whatever `fn` makes of it.
    reward: which reward; None means the only one (see `find_reward`).
    out: the result's name; None replaces the reward in place.
    kinds: the kinds of reward that `fn` works on.
    requires: probes that `fn` reads from the context.
    params: hyperparameters for `describe`.
  """

  def apply(scores, context):
    kind, found, values = find_reward(scores, reward, kinds, who=name)
    result = fn(values, context)
    if result.shape != values.shape:
      raise ValueError(
        f"{name}: the reward has shape {values.shape}, the result"
        f" {result.shape}: a reward transform keeps the shape"
      )
    result = jnp.where(jnp.isnan(values), jnp.nan, result)
    return put_reward(scores, kind, out or found, result)

  return stateless(
    name, apply, requires=requires, params={"reward": reward, **(params or {})}
  )


def check_probability(name: str, value: float, *, who: str) -> float:
  """Returns `value`; raises ValueError unless it lies in [0, 1]."""
  if not 0.0 <= value <= 1.0:
    raise ValueError(f"{who}: {name}={value} is no probability; give 0..1")
  return value


def check_positive(name: str, value: float, *, who: str) -> float:
  """Returns `value`; raises ValueError unless it is above 0."""
  if not value > 0.0:
    raise ValueError(f"{who}: {name}={value} must be above 0")
  return value


def present_mean(values: Array, mask: Array | None = None) -> Array:
  """Returns the mean of the values that are neither NaN nor masked; 0 if none."""
  here = ~jnp.isnan(values)
  if mask is not None:
    here &= mask
  return jnp.where(here, values, 0.0).sum() / jnp.maximum(here.sum(), 1)
