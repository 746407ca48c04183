"""Rows of the reward transforms."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "transform"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "log_sigmoid_transform",
    "2402.00742",
    "Transforming and Combining Rewards for Aligning Large Language Models",
    summary="log σ(r − r_ref): gains above a reference hardly count; the sum over"
    " properties is a logical and",
    functions=functions_of(
      "rewards.log_sigmoid",
      "log_sigmoid_reward reference_quantile log_sigmoid group_log_sigmoid"
      " log_sigmoid_sum",
    ),
    tests=tests_of(
      "rewards/test_log_sigmoid",
      "log_sigmoid_by_hand reference_quantile_by_hand"
      " sum_orders_as_the_probability_of_all_properties suite_log_sigmoid"
      " suite_group_log_sigmoid suite_log_sigmoid_sum",
    ),
    notes="the shipped file takes r_ref from the group, the paper from the base"
    " policy's rewards on the prompt (`log_sigmoid` takes those by name)",
  ),
  row(
    FAMILY,
    "clip_delta",
    "2410.15115",
    "On Designing Effective RL Reward at Training Time for LLM Reasoning",
    summary="clip and delta make the return from a step that step's own reward:"
    " repeating good steps earns nothing",
    functions=functions_of(
      "rewards.process",
      "clipped_step_rewards delta_step_rewards clip_steps delta_steps"
      " clip_delta",
    ),
    tests=tests_of(
      "rewards/test_process",
      "clip_by_hand delta_by_hand return_of_delta_is_the_steps_own_reward"
      " suite repeated_steps_pay_in_the_sum_but_not_refined",
    ),
    notes="verdicts of steps stand in for a process reward model",
  ),
  row(
    FAMILY,
    "unlikeliness_reward",
    "2506.02355",
    "Rewarding the Unlikely: Lifting GRPO Beyond Distribution Sharpening",
    summary="of the right responses of a group, the likely ones earn less; two"
    " updates per batch",
    functions=functions_of(
      "rewards.unlikeliness",
      "likelihood_ranks unlikeliness_reward unlikeliness",
    ),
    tests=tests_of(
      "rewards/test_unlikeliness",
      "by_hand parity wrong_responses_are_left_alone"
      " rare_right_responses_have_the_higher_advantage suite",
    ),
  ),
  row(
    FAMILY,
    "ppr_renorm",
    "2509.25598",
    "Hybrid Reward Normalization for Process-supervised Non-verifiable"
    " Agentic Tasks",
    summary="r_k + r_o − 1: a step earns only where the outcome is right and loses"
    " only where it is wrong",
    functions=functions_of(
      "rewards.outcome_process",
      "renormalized_step_rewards renorm",
    ),
    tests=tests_of(
      "rewards/test_outcome_process",
      "renorm_by_hand renorm_parity suite"
      " a_step_earns_only_where_the_outcome_is_right",
    ),
    notes="critic-free, where the paper trains with PPO",
  ),
  row(
    FAMILY,
    "fapo",
    "2510.22543",
    "FAPO: Flawed-Aware Policy Optimization for Efficient and Reliable"
    " Reasoning",
    summary="right answers by a flawed process earn less than sound ones",
    functions=functions_of(
      "rewards.outcome_process",
      "flawed_process flaw_aware_reward flaw_aware",
    ),
    tests=tests_of(
      "rewards/test_outcome_process",
      "flaw_aware_by_hand flaw_aware_parity suite"
      " flawed_answers_are_stepping_stones_until_sound_ones_prevail",
    ),
    notes="verdicts of steps stand in for the paper's generative judge",
  ),
  row(
    FAMILY,
    "verpo",
    "2601.03525",
    "VeRPO: Verifiable Dense Reward Policy Optimization for Code Generation",
    summary="partial success: unit tests weigh by the difficulty that the group's"
    " pass rates tell, joined with the whole suite's verdict",
    functions=functions_of(
      "rewards.unit_tests",
      "pass_rates difficulty_weights partial_success_reward partial_success",
    ),
    tests=tests_of(
      "rewards/test_unit_tests",
      "difficulty_weights_by_hand partial_success_by_hand parity"
      " cardinality_bias_is_corrected suite",
    ),
    notes="steps of the working stand in for unit tests in the shipped file",
  ),
)
