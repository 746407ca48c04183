"""Which prompts a step takes, how many responses each gets, which groups stay.

Three settings of `rlvr.loops.Reinforcement` and what carries them out on the
host, between the jitted parts of a step. All of it is a function of what was
verified before, is in the checkpoint and is resumed with it.

- `DomainSampling`: shares of a mixture's tasks, by their rewards so far;
- `KnapsackBudget`: responses per prompt, by its success rate so far;
- `DynamicSampling`: further rounds in the place of groups without a difference.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import segments
from rlvr.data.domains import (
  domain_quotas,
  domain_weights,
  updated_domain_rewards,
)
from rlvr.data.sources import Batch, PromptSource, take_prompts
from rlvr.infra import exchange
from rlvr.rewards.filters import useful_groups
from rlvr.sampling.budgets import (
  group_of_counts,
  knapsack_allocation,
  updated_success_rates,
)
from rlvr.sampling.dynamic import Held, merge_groups
from rlvr.types import Array, Rollout, Signals


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicSampling:
  """Draw further prompts until every group of the batch has a difference.

  DAPO, https://arxiv.org/abs/2503.14476, section 3.2: prompts whose responses
  are all right or all wrong give no gradient. Rounds of num_prompts prompts are
  sampled and verified until num_prompts groups are useful, the first ones drawn
  counting; the surplus of the last round is thrown away. What happened is in
  the metrics under `dynamic/`.

  At the cap the batch keeps the groups that it has; the places left over hold
  groups of weight 0, counted in `dynamic/groups_filled`. A batch without any
  useful group changes nothing (`optim/empty_updates`).

  reward: the outcome reward that must differ, as the verifier gives it.
  max_rounds: the cap, 1 or more; 10 in the authors' configuration.
  least_spread: by how much it must differ, more than.

  Raises:
    ValueError: a value out of range.
  """

  reward: str
  max_rounds: int
  least_spread: float = 0.0

  def __post_init__(self):
    if self.max_rounds < 1 or self.least_spread < 0:
      raise ValueError(
        f"DynamicSampling: max_rounds={self.max_rounds} must be at least 1 and"
        f" least_spread={self.least_spread} at least 0"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnapsackBudget:
  """Give each prompt the responses that it is worth, the total unchanged.

  See `rlvr.sampling.budgets.knapsack_allocation`. A prompt's success rate is
  that of its last visit; before the first one it gets the even share.

  reward: the outcome reward, 1 where right, whose mean is the success rate.
  low: least responses of a prompt.
  high: most responses of a prompt.
  confidence: see `knapsack_allocation`.
  """

  reward: str
  low: int
  high: int
  confidence: float = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainSampling:
  """Draw more from the tasks of a mixture that still earn little.

  See `rlvr.data.domains`. Before any reward is known all have equal shares.

  reward: the outcome reward whose mean is a task's.
  target_reward: see `domain_weights`.
  tau: see `domain_weights`.
  epsilon: see `domain_weights`.
  alpha: see `updated_domain_rewards`.
  """

  reward: str
  target_reward: float
  tau: float
  epsilon: float
  alpha: float


def outcome_of(signals: Signals, name: str, who: str) -> Array:
  """Returns a named outcome reward, or an error that lists those there are."""
  if name not in signals.outcome:
    raise ValueError(
      f"{who}.reward={name!r}: the verifier gives the outcome rewards"
      f" {sorted(signals.outcome)}: name one of them"
    )
  return signals.outcome[name]


class Chooser:
  """Chooses prompts and their number of responses, and learns from rewards."""

  def __init__(
    self,
    source: PromptSource,
    *,
    num_prompts: int,
    group_size: int,
    budget: KnapsackBudget | None,
    domains: DomainSampling | None,
  ):
    """Args as in `Reinforcement`.

    Raises:
      ValueError: settings that the task or the sizes don't allow.
    """
    self._source, self._num_prompts = source, num_prompts
    self._total = num_prompts * group_size
    self._budget, self._domains = budget, domains
    if (budget or domains) and source.num_shards > 1:
      raise ValueError(
        "Reinforcement.budget and .domains learn from the rewards of all"
        f" prompts, and this source gives one of {source.num_shards} shares of"
        " them: open it with num_shards=1, or set them to None"
      )
    if domains and len(source.part_names) < 2:
      raise ValueError(
        "Reinforcement.domains shares prompts out among the tasks of a mixture,"
        f" and there is only {source.part_names[0]!r}: use a mixture_task, or"
        " set it to None"
      )
    self._rates: dict[int, float] = {}  # success rate by example
    self._earned = np.full((len(source.part_names),), np.nan)
    self._notes: dict[str, float] = {}
    if budget is not None:
      self._allocate = jax.jit(
        functools.partial(
          knapsack_allocation,
          total=self._total,
          low=budget.low,
          high=budget.high,
          confidence=budget.confidence,
        )
      )
      # What can't be allocated is found before anything is sampled.
      jax.eval_shape(self._allocate, jnp.zeros((num_prompts,)))

  def next_batch(self) -> Batch:
    """Returns the next prompts."""
    if self._domains is None:
      return self._source.next_batch(self._num_prompts)
    d, unit = self._domains, self._source.unit
    weights = domain_weights(
      self._earned,
      target_reward=d.target_reward,
      tau=d.tau,
      epsilon=d.epsilon,
    )
    quotas = unit * domain_quotas(weights, self._num_prompts // unit)
    return self._source.next_batch(self._num_prompts, quotas.tolist())

  def group(self, batch: Batch) -> Array | None:
    """Returns the prompt of each response, None where groups are even."""
    if self._budget is None:
      return None
    rates = self._known_rates(batch)
    counts = self._allocate(rates)
    return group_of_counts(counts, self._total)

  def observe(
    self, batch: Batch, rollout: Rollout, signals: Signals
  ) -> dict[str, float]:
    """Learns from a batch's rewards; returns metrics."""
    metrics: dict[str, float] = {}
    if self._budget is None and self._domains is None:
      return metrics
    # Each host learns from the rewards of all, so that all choose the same.
    signals, of_prompt = exchange.whole((signals, rollout.group))
    if self._budget is not None:
      rewards = outcome_of(signals, self._budget.reward, "KnapsackBudget")
      before = self._known_rates(batch)
      group = jnp.asarray(of_prompt)
      counts = np.bincount(np.asarray(group), minlength=len(before))
      after = np.asarray(
        updated_success_rates(jnp.asarray(before), jnp.asarray(rewards), group)
      )
      for row, rate in zip(batch.rows, after, strict=True):
        if not np.isnan(rate):
          self._rates[int(row)] = float(np.clip(rate, 0.0, 1.0))
      metrics |= {
        "budget/least_responses": float(counts.min()),
        "budget/most_responses": float(counts.max()),
        "budget/prompts_unknown": float(np.isnan(before).sum()),
      }
    if self._domains is not None:
      rewards = outcome_of(signals, self._domains.reward, "DomainSampling")
      self._earned = updated_domain_rewards(
        self._earned,
        np.asarray(rewards),
        batch.parts[of_prompt],
        alpha=self._domains.alpha,
      )
      names = [n.rpartition(":")[2] or n for n in self._source.part_names]
      for i, name in enumerate(names):
        share = float((batch.parts == i).mean())
        metrics[f"domain/{name}/share"] = share
        if not np.isnan(self._earned[i]):
          metrics[f"domain/{name}/reward"] = float(self._earned[i])
    return metrics

  def _known_rates(self, batch: Batch) -> np.ndarray:
    rates = [self._rates.get(int(row), np.nan) for row in batch.rows]
    return np.asarray(rates, np.float32)

  def host_state(self) -> dict[str, Any]:
    """Returns what was learnt, as JSON."""
    state: dict[str, Any] = {}
    if self._budget is not None:
      state["success_rates"] = {str(k): v for k, v in self._rates.items()}
    if self._domains is not None:
      earned = [None if np.isnan(x) else float(x) for x in self._earned]
      state["domain_rewards"] = earned
    return state

  def restore(self, state: dict[str, Any]) -> None:
    """Takes back what `host_state` gave."""
    rates = state.get("success_rates", {})
    self._rates = {int(k): float(v) for k, v in rates.items()}
    earned = state.get("domain_rewards", [None] * self._earned.size)
    self._earned = np.array([np.nan if x is None else x for x in earned])


@functools.partial(jax.jit, static_argnames="least_spread")
def _useful(rewards: Array, rollout: Rollout, *, least_spread: float):
  """Returns bool [P] useful, bool [P] with less than two rewards, means [P]."""
  group, P = rollout.group, rollout.num_prompts
  useful = useful_groups(rewards, group, P, least_spread=least_spread)
  count = segments.group_count(~jnp.isnan(rewards), group, P)
  return useful, count < 2, segments.group_mean(rewards, group, P)


_merge = jax.jit(merge_groups)


class Rounds:
  """The rounds of one batch under dynamic sampling.

  count: rounds so far.
  """

  def __init__(self, settings: DynamicSampling):
    self.settings = settings
    self.count = 0
    self._held: Held | None = None
    self._batch: Batch | None = None
    self._useful = self._missing = self._equal = self._drawn = 0
    self._equal_reward = self._tokens = 0.0

  @property
  def full(self) -> bool:
    """Whether every group of the batch is useful."""
    return self._held is not None and bool(self._held.useful.all())

  def add(self, batch: Batch, rollout: Rollout, signals: Signals) -> None:
    """Takes a round in.

    Args:
      batch: its prompts.
      rollout: its responses, in even groups.
      signals: their rewards.
    """
    rewards = outcome_of(signals, self.settings.reward, "DynamicSampling")
    useful, missing, means = _useful(
      jnp.asarray(rewards),
      rollout,
      least_spread=self.settings.least_spread,
    )
    drawn = Held(
      rollout=rollout,
      signals=jax.tree.map(jnp.asarray, signals),
      useful=useful,
    )
    equal = np.asarray(~useful & ~missing)
    self.count += 1
    self._drawn += len(equal)
    self._useful += int(useful.sum())
    self._missing += int(missing.sum())
    self._equal += int(equal.sum())
    self._equal_reward += float(np.asarray(means)[equal].sum())
    self._tokens += float(rollout.lengths.sum())
    if self._held is None or self._batch is None:
      # Into order: what is useful first.
      self._held, index = _merge(
        drawn, dataclasses.replace(drawn, useful=jnp.zeros_like(useful))
      )
      self._batch = take_prompts([batch], np.asarray(index))
    else:
      self._held, index = _merge(self._held, drawn)
      self._batch = take_prompts([self._batch, batch], np.asarray(index))

  def result(self) -> tuple[Held, Batch, Array, dict[str, float]]:
    """Returns the batch, its prompts, weights [B], and what happened."""
    assert self._held is not None and self._batch is not None, "no round yet"
    useful = self._held.useful
    size = self._held.rollout.tokens.shape[0] // useful.shape[0]
    kept = int(useful.sum())
    weights = jnp.repeat(useful.astype(jnp.float32), size)
    return (
      self._held,
      self._batch,
      weights,
      {
        "dynamic/rounds": float(self.count),
        "dynamic/prompts_drawn": float(self._drawn),
        "dynamic/tokens_drawn": self._tokens,
        "dynamic/groups_kept": float(kept),
        "dynamic/groups_filled": float(useful.shape[0] - kept),
        "dynamic/groups_surplus": float(self._useful - kept),
        "dynamic/groups_missing": float(self._missing),
        "dynamic/groups_equal": float(self._equal),
        "dynamic/equal_reward_mean": self._equal_reward / max(self._equal, 1),
      },
    )
