"""Rows of intrinsic rewards."""

from rlvr.catalogue.rows import (
  ARITHMETIC,
  PAIRS,
  SIGNALS,
  Method,
  functions_of,
  row,
  tests_of,
)

FAMILY = "intrinsic"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "self_certainty",
    "2502.18581",
    "Scalable Best-of-N Selection for Large Language Models via Self-Certainty",
    summary="mean KL of the policy's token distributions from uniform; Borda votes",
    functions=(
      *functions_of(
        "rewards.intrinsic", "self_certainty_reward self_certainty"
      ),
      *functions_of("rewards.voting", "borda_weights borda_winners"),
    ),
    tests=(
      *tests_of("rewards/test_intrinsic", "self_certainty_by_hand suite"),
      *tests_of("rewards/test_voting", "borda_by_hand borda_parity"),
    ),
    notes="the paper selects with it; as a reward it is our use",
  ),
  row(
    FAMILY,
    "confidence_reward",
    "2510.13501",
    "Confidence as a Reward: Transforming LLMs into Reward Models",
    summary="mean probability of the final answer's tokens; CRew-DPO's pairs",
    functions=functions_of(
      "rewards.intrinsic",
      "answer_confidence_reward confidence_pairs answer_confidence",
    ),
    tests=tests_of(
      "rewards/test_intrinsic",
      "answer_confidence_by_hand confidence_pairs_by_hand suite",
    ),
    notes="the paper trains by DPO on pairs; as an RL reward it is our use",
  ),
  row(
    FAMILY,
    "laser",
    "2510.14943",
    "LaSeR: Reinforcement Learning with Last-Token Self-Rewarding",
    summary="β (log π(z_c|x,y) − c_ref) is taught to be the verifier's reward, and"
    " has a share in the advantage",
    functions=(
      *functions_of(
        "rewards.intrinsic",
        "last_token_reward integrated_reward class_weights last_token"
        " self_reward_integration class_balance",
      ),
      *functions_of(
        "objectives.passes", "last_token_loss last_token_self_reward"
      ),
    ),
    tests=(
      *tests_of(
        "rewards/test_intrinsic",
        "last_token_by_hand integrated_parity class_weights_by_hand"
        " suite_of_combined",
      ),
      *tests_of("objectives/test_passes", "last_token_by_hand"),
    ),
  ),
  row(
    FAMILY,
    "co_reward",
    "2508.00410",
    "Co-Reward: Self-supervised Reinforcement Learning for Large Language"
    " Model Reasoning via Contrastive Agreement",
    summary="the majority answer to a question's paraphrase labels its responses,"
    " and the other way about",
    functions=(
      *functions_of("rewards.intrinsic", "co_reward_labels co_reward"),
      *functions_of("rewards.voting", "majority_answers"),
    ),
    tasks=(ARITHMETIC, SIGNALS, PAIRS),
    tests=(
      *tests_of(
        "rewards/test_intrinsic",
        "co_reward_by_hand co_reward_parity suite_of_co_reward",
      ),
      *tests_of("rewards/test_voting", "majority_by_hand"),
    ),
    notes="a paraphrase is the same expression in another order of its terms",
  ),
)
