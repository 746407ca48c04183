"""Rows of length rewards."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "length"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "grpo_lambda",
    "2505.18086",
    "Stable Reinforcement Learning for Efficient Reasoning",
    summary="length costs only in the groups that are right often enough",
    functions=functions_of(
      "rewards.length",
      "correct_ratio top_groups shortened_rewards grpo_lambda",
    ),
    tests=tests_of(
      "rewards/test_length",
      "correct_ratio_by_hand top_groups_by_hand shortened_by_hand"
      " grpo_lambda_penalises_only_groups_that_are_right_often"
      " grpo_lambda_never_ranks_wrong_above_right suite",
    ),
  ),
  row(
    FAMILY,
    "conciseness_reward",
    "2511.09158",
    "Efficient Reasoning via Reward Model",
    summary="conciseness counts with a right outcome alone, annealed, less on hard"
    " prompts",
    functions=functions_of(
      "rewards.length",
      "conciseness_rewards length_scores conciseness_reward length_score",
    ),
    tests=tests_of(
      "rewards/test_length",
      "conciseness_by_hand suite_conciseness"
      " conciseness_is_annealed_and_less_on_hard_prompts"
      " length_score_feeds_conciseness",
    ),
    notes="the number of tokens stands in for a conciseness reward model",
  ),
  row(
    FAMILY,
    "format_length",
    "2505.19439",
    "Surrogate Signals from Format and Length: Reinforcement Learning for"
    " Solving Mathematical Problems without Ground Truth Answers",
    summary="format and a length that is neither short nor long, without reference"
    " answers",
    functions=functions_of(
      "rewards.length",
      "surrogate_length_rewards format_length_rewards format_length",
    ),
    tests=tests_of(
      "rewards/test_length",
      "surrogate_by_hand surrogate_parity format_length_by_hand"
      " format_is_worth_more_at_any_length suite",
    ),
  ),
)
