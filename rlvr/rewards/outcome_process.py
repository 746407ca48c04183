"""Rewards in which the outcome decides what the process is worth.

Step rewards are easier to please than the task is to solve. Three ways to keep
them in their place:

- `renorm` (catalogue: ppr_renorm): a step earns only where the outcome is
  right, and loses only where it is wrong;
- `flaw_aware` (fapo): a right answer by a flawed process earns less;
- `gated_accumulation` (gated_reward_accumulation): rewards of lower priority
  count where those of higher priority have reached their thresholds.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from rlvr import segments
from rlvr.rewards.algebra import (
  Transform,
  add_metrics,
  find_reward,
  present_mean,
  put_reward,
  stateless,
)
from rlvr.rewards.credit import outcome_at_last_step
from rlvr.types import Array


def renormalized_step_rewards(
  values: Array, outcome: Array, mask: Array
) -> Array:
  """Returns step rewards whose sign is the outcome's: r̂_k = r_k + r_o − 1.

  Both rewards in 0..1 are centred at 1/2 and added. With a right answer
  (r_o = 1) each step has a reward in 0..1, with a wrong one (r_o = 0) in −1..0:
  a good step of a failed response loses nothing, and no step of it earns.

  Source: PPR (ReNorm), https://arxiv.org/abs/2509.25598. The equation is put
  together from the paper's summaries (the outcome is given to each step, both
  are centred by 1/2, the sign is the outcome's); the paper's text was not at
  hand.

  Args:
    values: float [B, K], step rewards r_k in 0..1.
    outcome: float [B], outcome reward r_o in 0..1.
    mask: bool [B, K], true on the response's steps.

  Returns:
    float [B, K] in −1..1, 0 outside the response.
  """
  return jnp.where(mask, values + outcome[:, None] - 1.0, 0.0)


def flawed_process(values: Array, mask: Array, *, threshold: float) -> Array:
  """Returns whether a response has a step whose reward is below a threshold.

  Args:
    values: float [B, K], step rewards.
    mask: bool [B, K], true on the response's steps.
    threshold: a reward below it is a flaw, in the rewards' unit.

  Returns:
    float [B]: 1 where there is a flaw, 0 where there is none, NaN where no flaw
    was found and a step was not judged.
  """
  flawed = ((values < threshold) & mask).any(axis=-1)
  unknown = (jnp.isnan(values) & mask).any(axis=-1)
  return jnp.where(flawed, 1.0, jnp.where(unknown, jnp.nan, 0.0))


def flaw_aware_reward(
  correct: Array, flawed: Array, *, penalty: float = 1.0
) -> Array:
  """Returns 1 for a right response, −1 for a wrong one, 1 − λ for a flawed one.

      R = 2c − 1 − λ · [c = 1 and the process is flawed]

  With group-relative advantages λ = 1 needs no schedule: a flawed right answer
  has reward 0, which is above the group's mean while wrong answers outnumber
  sound ones (it is a stepping stone) and below it afterwards (it is unlearnt).

  Source: FAPO, https://arxiv.org/abs/2510.22543, and the reference code,
  https://github.com/volcengine/verl, recipe/fapo (there a judge that fails
  counts as "no flaw"; here the reward is missing then).

  Args:
    correct: float [B], 1 where the answer is right, 0 where it is wrong.
    flawed: float [B], 1 where the process is flawed; read only where the answer
      is right.
    penalty: λ, in the reward's unit. The paper's is 1.

  Returns:
    float [B].
  """
  plain = 2.0 * correct - 1.0
  return jnp.where(correct > 0.5, plain - penalty * flawed, plain)


def gated_sum(
  rewards: Sequence[Array],
  thresholds: Sequence[float],
  is_open: Array | None = None,
) -> tuple[Array, Array]:
  """Returns the sum of the rewards whose gates are open, and the last gate.

      R = Σ_i r_i Π_{j < i} [r_j ≥ v_j]

  with the rewards in order of priority, the highest first.

  Source: G-RA, https://arxiv.org/abs/2508.10548. The equation is taken from
  summaries of the paper, which disagree on whether a reward that equals the
  threshold opens the gate; here it does.

  Args:
    rewards: float arrays of one shape, the highest priority first; NaN where
      missing.
    thresholds: v_j of each reward, in its unit.
    is_open: float, the rewards' shape: the gate before the first reward, 1, 0
      or NaN; None means open.

  Returns:
    the sum, NaN where a reward or a gate that matters is missing, and the gate
    behind the last reward; float, the rewards' shape. Rewards behind a closed
    gate do not matter.
  """
  gate = jnp.ones_like(rewards[0]) if is_open is None else is_open
  total = jnp.zeros_like(rewards[0])
  for values, threshold in zip(rewards, thresholds, strict=True):
    closed = gate == 0
    total = total + jnp.where(closed, 0.0, gate * values)
    reached = jnp.where(jnp.isnan(values), jnp.nan, values >= threshold)
    gate = jnp.where(closed, 0.0, gate * reached)
  return total, gate


def renorm(
  *, outcome: str, reward: str | None = None, out: str | None = None
) -> Transform:
  """Makes each step reward r_k + r_o − 1, see `renormalized_step_rewards`.

  The outcome reward is taken out: it is in each step now. The paper trains with
  a critic (PPO, GAE); with another estimator, put `sum_form` behind this.

  Args:
    outcome: which outcome reward, in 0..1.
    reward: which step reward, in 0..1; None means the only one.
    out: the result's name; None replaces the step reward.
  """

  def apply(scores, context):
    _, success_name, success = find_reward(
      scores, outcome, ("outcome",), who="renorm"
    )
    step_name = reward or _only(scores.step, who="renorm")
    _, name, values = find_reward(scores, step_name, ("step",), who="renorm")
    mask = segments.step_mask(context.rollout.step_index, values.shape[1])
    result = renormalized_step_rewards(values, success, mask)
    return put_reward(
      scores, "step", out or name, result, drop=[name, success_name]
    )

  return stateless(
    "renorm", apply, params={"outcome": outcome, "reward": reward, "out": out}
  )


def flaw_aware(
  *,
  correct: str,
  process: str,
  threshold: float,
  penalty: float = 1.0,
  out: str = "reward",
) -> Transform:
  """Merges correctness and a step reward, see `flaw_aware_reward`.

  The judge of the process is whatever gives the step reward; for one that gives
  the place of the first error, let the steps behind it be 0.

  Args:
    correct: which outcome reward, 0 or 1.
    process: which step reward; the process is flawed where one is below the
      threshold.
    threshold: in the step reward's unit.
    penalty: λ.
    out: name of the merged reward; the parts are taken out.

  Raises:
    ValueError: the penalty is negative.
  """
  if penalty < 0:
    raise ValueError(
      f"flaw_aware: penalty={penalty} would reward flaws: give 0 or more"
    )

  def apply(scores, context):
    _, name, right = find_reward(
      scores, correct, ("outcome",), who="flaw_aware"
    )
    _, steps, values = find_reward(scores, process, ("step",), who="flaw_aware")
    mask = segments.step_mask(context.rollout.step_index, values.shape[1])
    flawed = flawed_process(values, mask, threshold=threshold)
    result = flaw_aware_reward(right, flawed, penalty=penalty)
    among_right = jnp.where(right > 0.5, flawed, jnp.nan)
    scores = add_metrics(scores, fapo__flawed_share=present_mean(among_right))
    return put_reward(scores, "outcome", out, result, drop=[name, steps])

  return stateless(
    "flaw_aware",
    apply,
    params={
      "correct": correct,
      "process": process,
      "threshold": threshold,
      "penalty": penalty,
      "out": out,
    },
  )


def gated_accumulation(
  *, levels: Sequence[str], thresholds: Sequence[float], out: str = "reward"
) -> Transform:
  """Merges rewards of several priorities, see `gated_sum`.

  Outcome rewards come first; a step reward's gate opens the same step of the
  lower ones. With a step reward among the levels the result is a step reward,
  with what the outcomes add up to on the response's last step: a credit
  transform (`sum_form`) goes behind this. Of outcomes alone it is an outcome.

  The metric `gate/<level>` is the share of the responses in which a level's
  gate, and all before it, are open.

  Args:
    levels: names of the rewards, the highest priority first.
    thresholds: of all levels but the last, each in its reward's unit.
    out: name of the merged reward; the parts are taken out.

  Raises:
    ValueError: fewer than two levels, a level twice, a wrong number of
      thresholds; an outcome reward behind a step reward (at trace time).
  """
  levels, thresholds = tuple(levels), tuple(thresholds)
  if len(levels) < 2 or len(set(levels)) < len(levels):
    raise ValueError(
      f"gated_accumulation: levels={levels}; give two or more different names"
    )
  if len(thresholds) != len(levels) - 1:
    raise ValueError(
      f"gated_accumulation: {len(thresholds)} thresholds for {len(levels)}"
      " levels; give one for each level but the last"
    )
  limits = dict(zip(levels, (*thresholds, -jnp.inf), strict=True))

  def apply(scores, context):
    outcomes: dict[str, Array] = {}
    steps: dict[str, Array] = {}
    for name in levels:
      kind, _, values = find_reward(
        scores, name, ("outcome", "step"), who="gated_accumulation"
      )
      if kind == "outcome" and steps:
        raise ValueError(
          f"gated_accumulation: outcome {name!r} stands behind step reward"
          f" {next(iter(steps))!r}: put outcomes first in"
          " `gated_accumulation.levels`"
        )
      (outcomes if kind == "outcome" else steps)[name] = values
    _, _, first = find_reward(scores, levels[0], who="gated_accumulation")
    gate = jnp.ones(first.shape[:1], jnp.float32)
    total = jnp.zeros_like(gate)
    for name, values in outcomes.items():
      part, gate = gated_sum([values], [limits[name]], gate)
      total = total + part
      scores = add_metrics(scores, **{f"gate__{name}": present_mean(gate)})
    if not steps:
      return put_reward(scores, "outcome", out, total, drop=levels)
    shapes = {name: values.shape for name, values in steps.items()}
    if len(set(shapes.values())) > 1:
      raise ValueError(
        f"gated_accumulation: step rewards of different shapes, {shapes}"
      )
    result, _ = gated_sum(
      list(steps.values()),
      [limits[name] for name in steps],
      jnp.broadcast_to(gate[:, None], next(iter(shapes.values()))),
    )
    mask = segments.step_mask(context.rollout.step_index, result.shape[1])
    result = jnp.where(mask, result, 0.0)
    if outcomes:
      result = outcome_at_last_step(result, total, mask, weight=1.0)
    return put_reward(scores, "step", out, result, drop=levels)

  return stateless(
    "gated_accumulation",
    apply,
    params={"levels": levels, "thresholds": thresholds, "out": out},
  )


def _only(rewards: dict[str, Array], *, who: str) -> str:
  if len(rewards) != 1:
    raise ValueError(
      f"{who}: which step reward? There are {sorted(rewards)}: set"
      f" `{who}.reward`"
    )
  return next(iter(rewards))
