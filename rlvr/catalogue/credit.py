"""Rows of credit assignment."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "credit"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "pure_min_form",
    "2504.15275",
    "Stop Summation: Min-Form Credit Assignment Is All Process Reward Model"
    " Needs for Reasoning",
    summary="a step's return is about the least reward that follows, not their sum",
    functions=(
      *functions_of(
        "rewards.credit",
        "min_form_step_rewards exact_min_form_step_rewards"
        " discounted_step_returns min_form exact_min_form",
      ),
      *functions_of(
        "advantages.token_group",
        "token_leave_one_out_advantages token_leave_one_out",
      ),
    ),
    tests=(
      *tests_of(
        "rewards/test_credit",
        "min_form_by_hand min_form_parity suite"
        " min_form_is_within_its_temperature_of_the_minimum"
        " returns_of_min_form_are_near_the_worst_step_then_zero",
      ),
      *tests_of("advantages/test_group", "token_leave_one_out_by_hand"),
    ),
    notes="verdicts of steps, less 1, stand in for a process reward model; each"
    " prompt has a verifiable answer, in the paper one in ten",
  ),
  row(
    FAMILY,
    "gated_reward_accumulation",
    "2508.10548",
    "Stabilizing Long-term Multi-turn Reinforcement Learning with Gated"
    " Rewards",
    summary="rewards of lower priority count where those of higher priority reach"
    " their thresholds",
    functions=functions_of(
      "rewards.outcome_process",
      "gated_sum gated_accumulation",
    ),
    tests=tests_of(
      "rewards/test_outcome_process",
      "gated_sum_by_hand gated_sum_parity suite"
      " ungated_steps_pay_for_failure_and_gated_ones_do_not",
    ),
  ),
)
