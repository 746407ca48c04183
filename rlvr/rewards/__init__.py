"""Reward transforms, combinators and credit: pure functions over rewards."""

from rlvr.rewards.algebra import (
  Transform,
  chain,
  describe,
  map_reward,
  stateful,
  stateless,
)
from rlvr.rewards.basic import (
  clip,
  clipped_reward,
  weighted_sum,
  weighted_sum_reward,
)
from rlvr.rewards.credit import (
  discounted_step_returns,
  exact_min_form,
  exact_min_form_step_rewards,
  min_form,
  min_form_step_rewards,
  outcome_at_last_step,
  place_outcome,
  sum_form,
  token_returns,
)
from rlvr.rewards.log_sigmoid import (
  group_log_sigmoid,
  log_sigmoid,
  log_sigmoid_reward,
  log_sigmoid_sum,
  reference_quantile,
)
from rlvr.rewards.process import (
  clip_delta,
  clip_steps,
  clipped_step_rewards,
  delta_step_rewards,
  delta_steps,
)
from rlvr.rewards.statistics import signal_statistics

__all__ = [
  "Transform",
  "chain",
  "clip",
  "clip_delta",
  "clip_steps",
  "clipped_reward",
  "clipped_step_rewards",
  "delta_step_rewards",
  "delta_steps",
  "describe",
  "discounted_step_returns",
  "exact_min_form",
  "exact_min_form_step_rewards",
  "group_log_sigmoid",
  "log_sigmoid",
  "log_sigmoid_reward",
  "log_sigmoid_sum",
  "map_reward",
  "min_form",
  "min_form_step_rewards",
  "outcome_at_last_step",
  "place_outcome",
  "reference_quantile",
  "signal_statistics",
  "stateful",
  "stateless",
  "sum_form",
  "token_returns",
  "weighted_sum",
  "weighted_sum_reward",
]
