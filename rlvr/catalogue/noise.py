"""Rows of noise and its correction."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "noise"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "noisy_verifier_correction",
    "2510.00915",
    "Reinforcement Learning with Verifiable yet Noisy Rewards under"
    " Imperfect Verifiers",
    summary="the reward of a verifier with known error rates, made unbiased; the"
    " false negative rate estimated from appeals",
    functions=functions_of(
      "rewards.noise",
      "backward_corrected_reward forward_weights appeal_counts"
      " backward_correction forward_correction sample_appeals"
      " estimate_false_negative_rate",
    ),
    tests=tests_of(
      "rewards/test_noise",
      "backward_by_hand forward_by_hand parity suite backward_is_unbiased"
      " forward_expectation the_estimate_finds_the_rate",
    ),
    variants=("gin/methods/noisy_verifier_correction_forward.gin",),
  ),
  row(
    FAMILY,
    "reasoning_pattern_reward",
    "2505.22653",
    "The Climb Carves Wisdom Deeper Than the Summit: On the Noisy Rewards in"
    " Learning to Reason",
    summary="phrases of reasoning earn, which makes up for low rewards of a noisy"
    " judge; rewards flipped for whole questions",
    functions=(
      *functions_of(
        "rewards.phrases",
        "phrase_counts repeated_ngram_share reasoning_pattern_reward"
        " calibrated_reward reasoning_pattern calibrate_low",
      ),
      *functions_of("rewards.noise", "noisy_reward flip_noise"),
    ),
    tests=(
      *tests_of(
        "rewards/test_phrases",
        "counts_by_hand pattern_by_hand calibration_by_hand suite"
        " calibration_rewards_reasoning_of_rejected_answers_only",
      ),
      *tests_of(
        "rewards/test_noise",
        "noise_by_hand noise_has_its_rates prompts_are_flipped_whole",
      ),
    ),
    notes="the phrases of the arithmetic task are its signs",
  ),
)
