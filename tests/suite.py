"""The behaviours that every transform and estimator has, as checks.

    suite.check_transform(lambda: group_relative(scale_by_std=True))
    suite.check_transform(lambda: clip_delta(eta=0.1), kinds=("step",))

`check_transform` runs all behaviours on the kinds of reward given. Each is a
function of a `Case` as well and can be called alone:

    suite.jit_agrees(suite.case(transform, kind="outcome"))

`tests/test_suite.py` shows for each that a broken transform fails it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlvr.rewards.algebra import KINDS, Kind, Transform, reward_names
from rlvr.types import Array, Context, Rollout, Scores
from tests import change, compare, make
from tests.compare import ATOL, assert_same, must_fail, numpy_parity

__all__ = [
  "BEHAVIOURS",
  "Case",
  "assert_same",
  "case",
  "check_transform",
  "must_fail",
  "numpy_parity",
]

MakeScores = Callable[[Rollout, int], Scores]
MakeProbes = Callable[[Rollout, int], dict[str, Array]]
Scope = Literal["response", "group", "batch"]

# What stands outside the response in a padded reward; nothing may read it.
OUTSIDE = (77.0, float("nan"))


@dataclasses.dataclass
class Case:
  """A transform with inputs.

  transform: what is checked.
  scores: its input.
  context: its context, with the required probes and no others.
  axes: axes of each probe ("BT", "BR", "BTD", ...).
  scope: what a response's result may depend on besides the response itself.
  """

  transform: Transform
  scores: Scores
  context: Context
  axes: Mapping[str, str]
  scope: Scope = "group"

  def __post_init__(self):
    self._jitted = jax.jit(self.transform.apply)

  def run(
    self,
    scores: Scores | None = None,
    context: Context | None = None,
    *,
    eager: bool = False,
  ) -> Scores:
    """Returns the transform's scores from a fresh state, jitted or eager."""
    out, _ = (self.transform.apply if eager else self._jitted)(
      self.scores if scores is None else scores,
      self.transform.init(),
      self.context if context is None else context,
    )
    return out

  @property
  def is_estimator(self) -> bool:
    spec = self.transform.spec
    return (spec.takes, spec.gives) == ("rewards", "advantages")


def case(
  transform: Transform,
  *,
  kind: Kind = "outcome",
  seed: int = 0,
  make_scores: MakeScores | None = None,
  make_probes: MakeProbes | None = None,
  probe_axes: Mapping[str, str] | None = None,
  group_sizes: Sequence[int] = make.GROUP_SIZES,
  scope: Scope = "group",
) -> Case:
  """Returns a case with random inputs.

  Args:
    transform: what is checked.
    kind: of the reward named "reward" that the scores hold; not used with
      `make_scores`.
    seed: of all random inputs.
    make_scores: `(rollout, seed) -> Scores` for transforms that need rewards of
      other names or values.
    make_probes: `(rollout, seed) -> probes` for probes that `make.PROBE_AXES`
      does not list, or for other values; only the required ones are used.
    probe_axes: axes of those probes, a letter each: B, T and R are permuted
      and padded, others left alone.
    group_sizes: responses of each prompt.
    scope: "response", "group" or "batch": what a response's result may depend
      on.
  """
  rollout = make.rollout(seed, group_sizes=group_sizes)
  needs_advantages = transform.spec.takes == "advantages"
  scores = (
    make_scores(rollout, seed)
    if make_scores
    else make.scores(rollout, seed, kind=kind, advantages=needs_advantages)
  )
  extra = make_probes(rollout, seed) if make_probes else {}
  axes = {**make.PROBE_AXES, **(probe_axes or {})}
  unknown = transform.requires - set(axes)
  if unknown:
    raise ValueError(f"probes {sorted(unknown)} have no axes: give probe_axes")
  known = sorted((transform.requires & set(make.PROBE_AXES)) - set(extra))
  context = make.context(
    rollout,
    seed,
    names=known,
    extra={k: v for k, v in extra.items() if k in transform.requires},
  )
  return Case(transform, scores, context, axes, scope)


def check_transform(
  make_transform: Callable[[], Transform],
  *,
  kinds: Sequence[Kind] = ("outcome",),
  make_scores: MakeScores | None = None,
  make_probes: MakeProbes | None = None,
  probe_axes: Mapping[str, str] | None = None,
  group_sizes: Sequence[int] = make.GROUP_SIZES,
  scope: Scope = "group",
  seeds: Sequence[int] = (0,),
  without: Mapping[str, str] | None = None,
) -> None:
  """Asserts all shared behaviours of a transform.

  Args:
    make_transform: makes the transform.
    kinds: kinds of reward that it takes; with `make_scores` one is enough.
    make_scores: see `case`.
    make_probes: see `case`.
    probe_axes: see `case`.
    group_sizes: see `case`.
    scope: see `case`.
    seeds: of the inputs.
    without: behaviours that the transform has a reason not to have: name of
      the behaviour -> the reason.
  """
  unknown = set(without or {}) - set(BEHAVIOURS)
  if unknown:
    raise ValueError(f"no such behaviour: {unknown}; have {list(BEHAVIOURS)}")
  for kind in kinds:
    for seed in seeds:
      this = case(
        make_transform(),
        kind=kind,
        seed=seed,
        make_scores=make_scores,
        make_probes=make_probes,
        probe_axes=probe_axes,
        group_sizes=group_sizes,
        scope=scope,
      )
      for name, behaviour in BEHAVIOURS.items():
        if name not in (without or {}):
          behaviour(this)


# The behaviours.


def output_keeps_contract(case: Case) -> None:
  """Shapes, dtypes and finiteness of the result are the contract's."""
  out, rollout = case.run(), case.context.rollout
  b, t = rollout.tokens.shape
  ranks = {"outcome": 1, "step": 2, "token": 2}
  for kind in KINDS:
    for name, values in getattr(out, kind).items():
      assert values.dtype == jnp.float32, (kind, name, values.dtype)
      assert values.ndim == ranks[kind], (kind, name, values.shape)
      assert values.shape[0] == b, (kind, name, values.shape)
      assert kind != "token" or values.shape == (b, t), (name, values.shape)
  names = reward_names(out)
  assert len(names) == len(set(names)), f"a name is used twice: {names}"
  assert out.weights.shape == (b,)
  assert out.weights.dtype == jnp.float32
  assert np.isfinite(out.weights).all(), "weights are not finite"
  assert (out.weights >= 0).all(), "a weight is negative"
  if case.transform.spec.gives == "advantages":
    assert out.advantages is not None, "spec.gives advantages, there are none"
    assert out.advantages.shape == (b, t), out.advantages.shape
    assert out.advantages.dtype == jnp.float32
    assert np.isfinite(out.advantages).all(), "advantages are not finite"
    outside = np.asarray(out.advantages)[~np.asarray(rollout.completion_mask)]
    assert (outside == 0).all(), "advantages are not 0 outside the response"
  else:
    assert out.advantages is None, "spec.gives rewards, yet advantages are set"
  for name, value in out.metrics.items():
    assert value.shape == (), f"metric {name} has shape {value.shape}"
    assert value.dtype == jnp.float32, f"metric {name} is {value.dtype}"
    assert np.isfinite(value), f"metric {name} is {value}"


def jit_agrees(case: Case) -> None:
  """The eager and the jitted transform give the same."""
  assert_same(case.run(eager=True), case.run(), case.context.rollout)


def padding_changes_nothing(case: Case) -> None:
  """More masked tokens, prompt padding, empty steps: the same result.

  Whatever stands outside the response in step and token rewards, a number or
  NaN, is not read.
  """
  base, rollout = case.run(), case.context.rollout
  context = change.pad_context(case.context, case.axes, tokens=2)
  for fill in OUTSIDE:
    scores = change.pad_scores(
      case.scores, rollout, tokens=2, steps=2, fill=fill
    )
    out = case.run(scores, context)
    if out.advantages is not None:
      beyond = np.asarray(out.advantages)[:, rollout.tokens.shape[1] :]
      assert (beyond == 0).all(), "padding got advantages"
    assert_same(base, change.crop(out, base), rollout)


def permutation_permutes(case: Case) -> None:
  """Permuting the responses inside groups permutes the result."""
  order = change.order_inside_groups(np.asarray(case.context.rollout.group))
  context = dataclasses.replace(
    case.context,
    rollout=change.permute_rollout(case.context.rollout, order),
    probes={
      name: value[order] if case.axes[name].startswith("B") else value
      for name, value in case.context.probes.items()
    },
  )
  out = case.run(change.permute_scores(case.scores, order), context)
  expected = change.permute_scores(case.run(), order)
  assert_same(expected, out, context.rollout)


def missing_stays_put(case: Case) -> None:
  """A missing reward reaches neither other groups nor any advantage.

  For each named reward: one response missing, a whole group missing, all
  missing. Responses outside the scope keep their results; nobody else's reward
  becomes NaN; advantages, weights and metrics stay finite; an estimator gives
  the missing response advantage 0 and weight 0 (where its reward is used).
  """
  base = case.run()
  group = np.asarray(case.context.rollout.group)
  rows = np.arange(group.size)
  absences = [rows == 1, group == group[0], rows >= 0]
  for name in reward_names(case.scores):
    for absent in absences:
      scores = change.with_missing(case.scores, name, absent)
      if case.transform.spec.takes == "advantages":
        # As an estimator leaves a response whose reward is missing.
        keep = jnp.asarray(~absent, jnp.float32)
        scores = dataclasses.replace(
          scores,
          advantages=scores.advantages * keep[:, None],
          weights=scores.weights * keep,
        )
      out = case.run(scores)
      touched = {
        "response": absent,
        "group": np.isin(group, group[absent]),
        "batch": np.full(group.shape, absent.any()),
      }[case.scope]
      assert_same(base, out, case.context.rollout, rows=~touched, metrics=False)
      _assert_no_new_nan(base, out, case.context.rollout, ~absent, name)
      if case.is_estimator and not _rewards_unused(case, name):
        assert (np.asarray(out.advantages)[absent] == 0).all(), (
          f"a response without reward {name!r} has an advantage"
        )
        assert (np.asarray(out.weights)[absent] == 0).all(), (
          f"a response without reward {name!r} has a weight"
        )


def names_stay_apart(case: Case) -> None:
  """A reward that the transform was not told to read touches nothing.

  A bystander is added: its missing values change no other result, and the
  others' missing values don't change it.
  """
  b = case.context.rollout.tokens.shape[0]
  bystander = jnp.arange(b, dtype=jnp.float32)
  scores = dataclasses.replace(
    case.scores, outcome={**case.scores.outcome, "bystander": bystander}
  )
  rows = np.arange(b)
  base = case.run(scores)
  assert "bystander" in base.outcome, "a reward that isn't used was dropped"
  np.testing.assert_array_equal(base.outcome["bystander"], bystander)
  out = case.run(change.with_missing(scores, "bystander", rows == 1))
  assert_same(
    change.without_reward(base, "bystander"),
    change.without_reward(out, "bystander"),
    case.context.rollout,
  )
  for name in reward_names(case.scores):
    out = case.run(change.with_missing(scores, name, rows == 1))
    np.testing.assert_array_equal(
      out.outcome["bystander"],
      bystander,
      f"missing {name!r} changed another reward",
    )


def probe_gradients_stop(case: Case) -> None:
  """No gradient flows into the probes."""
  floats = _floating(case.context.probes)
  if not floats:
    return

  def total(probes):
    context = dataclasses.replace(
      case.context, probes={**case.context.probes, **probes}
    )
    out, _ = case.transform.apply(case.scores, case.transform.init(), context)
    return _probe_sum(out, case.context.rollout)

  for name, gradient in jax.jit(jax.grad(total))(floats).items():
    assert (np.asarray(gradient) == 0).all(), (
      f"a gradient flows into probe {name!r}: use jax.lax.stop_gradient"
    )


def reward_gradients_stop(case: Case) -> None:
  """No gradient flows from the advantages into the rewards (estimators)."""
  if not case.is_estimator:
    return

  def total(rewards):
    scores = dataclasses.replace(case.scores, **rewards)
    out, _ = case.transform.apply(scores, case.transform.init(), case.context)
    return _probe_sum(out, case.context.rollout, rewards=False)

  rewards = {kind: getattr(case.scores, kind) for kind in KINDS}
  gradients = jax.jit(jax.grad(total))(rewards)
  for kind in KINDS:
    for name, gradient in gradients[kind].items():
      assert (np.asarray(gradient) == 0).all(), (
        f"advantages carry a gradient to reward {name!r}: use"
        " jax.lax.stop_gradient"
      )


def state_keeps_structure(case: Case) -> None:
  """The state goes through `apply` with its structure, shapes and dtypes.

  So it can be the carry of a scan and be restored from a checkpoint.
  """
  state = case.transform.init()
  for leaf in jax.tree.leaves(state):
    assert hasattr(leaf, "dtype"), f"state leaf {leaf!r} is no array"
  _, after = jax.eval_shape(
    case.transform.apply, case.scores, state, case.context
  )
  before_tree, after_tree = jax.tree.structure(state), jax.tree.structure(after)
  assert before_tree == after_tree, f"state {before_tree} became {after_tree}"
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    new = dict(jax.tree_util.tree_leaves_with_path(after))[path]
    where = jax.tree_util.keystr(path)
    assert leaf.dtype == new.dtype, f"{where}: {leaf.dtype} -> {new.dtype}"
    assert leaf.shape == new.shape, f"{where}: {leaf.shape} -> {new.shape}"
  if not jax.tree.leaves(state):
    return

  def body(carry, _):
    _, carry = case.transform.apply(case.scores, carry, case.context)
    return carry, None

  scanned, _ = jax.jit(lambda s: jax.lax.scan(body, s, length=2))(state)
  for leaf in jax.tree.leaves(scanned):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      assert np.isfinite(leaf).all(), "the state is not finite"


def equal_rewards_give_zero(case: Case) -> None:
  """Equal rewards inside each group give zero advantages (estimators)."""
  if not case.is_estimator:
    return
  group = case.context.rollout.group
  # Values whose group means round: a one-pass variance would not give 0.
  level = (0.1 + 0.7 * group).astype(jnp.float32)
  rewards = {
    kind: {
      name: jnp.broadcast_to(
        level.reshape((-1,) + (1,) * (values.ndim - 1)), values.shape
      )
      for name, values in getattr(case.scores, kind).items()
    }
    for kind in KINDS
  }
  out = case.run(dataclasses.replace(case.scores, **rewards))
  np.testing.assert_allclose(out.advantages, 0.0, atol=ATOL)


def requires_is_honest(case: Case) -> None:
  """`requires` names exactly the probes that are read."""

  def trace(probes):
    context = dataclasses.replace(case.context, probes=probes)
    jax.eval_shape(
      lambda s, c: case.transform.apply(s, case.transform.init(), c),
      case.scores,
      context,
    )

  have = dict(case.context.probes)
  assert set(have) == set(case.transform.requires)
  try:
    trace(have)
  except KeyError as error:
    raise AssertionError(
      f"probe {error} is read but not in requires={set(have)}"
    ) from error
  for name in have:
    rest = {k: v for k, v in have.items() if k != name}
    try:
      trace(rest)
    except KeyError:
      continue
    raise AssertionError(f"probe {name!r} is in requires but is not read")


BEHAVIOURS: dict[str, Callable[[Case], None]] = {
  fn.__name__: fn
  for fn in (
    output_keeps_contract,
    jit_agrees,
    padding_changes_nothing,
    permutation_permutes,
    missing_stays_put,
    names_stay_apart,
    probe_gradients_stop,
    reward_gradients_stop,
    state_keeps_structure,
    equal_rewards_give_zero,
    requires_is_honest,
  )
}


def _rewards_unused(case: Case, name: str) -> bool:
  """Whether a changed reward changes no advantage."""
  rewards = {
    kind: {
      k: v
      + jnp.arange(v.shape[0], dtype=v.dtype).reshape(
        (-1,) + (1,) * (v.ndim - 1)
      )
      if k == name
      else v
      for k, v in getattr(case.scores, kind).items()
    }
    for kind in KINDS
  }
  out = case.run(dataclasses.replace(case.scores, **rewards))
  return bool(np.allclose(out.advantages, case.run().advantages))


def _assert_no_new_nan(
  base: Scores, out: Scores, rollout: Rollout, rows: np.ndarray, name: str
) -> None:
  for kind in KINDS:
    for other, values in getattr(out, kind).items():
      before = getattr(base, kind)[other]
      mask = compare.own_mask(kind, values, rollout) & compare.column(
        rows, values.ndim
      )
      new = np.isnan(values) & ~np.isnan(before) & mask
      assert not new.any(), (
        f"missing {name!r} made {kind} reward {other!r} of another response NaN"
      )
  if out.advantages is not None:
    assert np.isfinite(out.advantages).all(), (
      f"missing {name!r} shows in the advantages"
    )
  assert np.isfinite(out.weights).all(), (
    f"missing {name!r} shows in the weights"
  )
  for metric, value in out.metrics.items():
    assert np.isfinite(value), (
      f"missing {name!r} makes metric {metric!r} {value}"
    )


def _floating(probes: Mapping[str, Array]) -> dict[str, Array]:
  return {
    name: value
    for name, value in probes.items()
    if jnp.issubdtype(value.dtype, jnp.floating)
  }


def _probe_sum(scores: Scores, rollout: Rollout, rewards: bool = True) -> Array:
  """Returns a sum of all outputs in which nothing cancels."""
  total = jnp.float32(0.0)
  arrays = [scores.weights]
  if scores.advantages is not None:
    arrays.append(scores.advantages)
  if rewards:
    for kind in KINDS:
      for values in getattr(scores, kind).values():
        mask = jnp.asarray(compare.own_mask(kind, values, rollout))
        arrays.append(jnp.where(mask, values, 0.0))
  for values in arrays:
    slope = jnp.sin(1.0 + jnp.arange(values.size, dtype=jnp.float32))
    total += (values.reshape(-1) * slope).sum()
  return total
