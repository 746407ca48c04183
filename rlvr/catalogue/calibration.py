"""Rows of calibration rewards."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "calibration"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "rlcr",
    "2507.16806",
    "Beyond Binary Rewards: Training LMs to Reason About Their Uncertainty",
    summary="correctness minus Brier's penalty on the confidence; logarithmic and"
    " spherical rules",
    functions=functions_of(
      "rewards.calibration",
      "brier_reward log_score_reward spherical_reward brier log_score"
      " spherical",
    ),
    tests=tests_of(
      "rewards/test_calibration",
      "rules_by_hand honest_confidence_is_best suite"
      " linear_rule_is_not_proper bounded_rules_prefer_the_better_answer",
    ),
    notes="the answer's mean token probability stands in for a stated confidence",
  ),
  row(
    FAMILY,
    "say_self",
    "2405.20974",
    "SaySelf: Teaching LLMs to Express Confidence with Self-Reflective"
    " Rationales",
    summary="1 − 2 (correct − confidence)²",
    functions=functions_of("rewards.calibration", "say_self_reward say_self"),
    tests=tests_of(
      "rewards/test_calibration",
      "rules_by_hand honest_confidence_is_best suite",
    ),
    notes="the answer's mean token probability stands in for a stated confidence",
  ),
  row(
    FAMILY,
    "ppo_calibrated",
    "2410.09724",
    "Taming Overconfidence in LLMs: Reward Calibration in RLHF",
    summary="r + w (r − moving average)(confidence − ½); a reward model's loss on"
    " pairs with confidence",
    functions=functions_of(
      "rewards.calibration",
      "difference_calibrated_reward threshold_calibrated_reward"
      " calibrated_reward_model_loss ppo_calibrated ppo_calibrated_threshold",
    ),
    tests=tests_of(
      "rewards/test_calibration",
      "ppo_calibrated_by_hand threshold_by_hand difference_parity"
      " reward_model_loss_by_hand suite_moving_average",
    ),
    notes="correctness stands in for a reward model, the answer's mean token"
    " probability for a stated confidence",
  ),
)
