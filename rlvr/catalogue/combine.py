"""Rows of the combinators."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "combine"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "reward_ensembles",
    "2312.09244",
    "Helping or Herding? Reward Model Ensembles Mitigate but do not"
    " Eliminate Reward Hacking",
    summary="mean, median, least, or mean minus k deviations over reward models",
    functions=functions_of(
      "rewards.ensembles",
      "mean_reward median_reward min_reward mean_minus_std_reward"
      " centred_preference_losses ensemble_mean ensemble_median ensemble_min"
      " ensemble_mean_minus_std",
    ),
    tests=tests_of(
      "rewards/test_ensembles",
      "ensembles_by_hand ensembles_parity suite_ensembles"
      " centring_fixes_the_constant",
    ),
    notes="three signals stand in for three reward models in the shipped file",
  ),
  row(
    FAMILY,
    "pref_grpo",
    "2508.20751",
    "Pref-GRPO: Pairwise Preference Reward-based GRPO for Stable"
    " Text-to-Image Reinforcement Learning",
    summary="the share of its group that a response beats replaces its reward",
    functions=functions_of(
      "rewards.pairwise",
      "compared win_rates win_rate bradley_terry_win_rate",
    ),
    tests=tests_of(
      "rewards/test_pairwise",
      "win_rates_by_hand win_rates_parity suite_win_rates"
      " win_rates_average_to_a_half_and_forget_the_scale",
    ),
    notes="pairs are judged by a point reward in the shipped file",
  ),
  row(
    FAMILY,
    "lambda_harmonic",
    "2407.12164",
    "Subject-driven Text-to-Image Generation via Preference-based"
    " Reinforcement Learning",
    summary="1 / (λ/a + (1−λ)/b): a response must do well in both",
    functions=(
      *functions_of("rewards.combine", "harmonic_reward lambda_harmonic"),
      *functions_of(
        "rewards.pairwise",
        "bradley_terry_probability bradley_terry_labels",
      ),
    ),
    tests=(
      *tests_of(
        "rewards/test_combine",
        "harmonic_by_hand harmonic_parity suite"
        " harmonic_lies_below_the_mean_and_between_the_scores",
      ),
      *tests_of("rewards/test_pairwise", "bradley_terry_by_hand"),
    ),
  ),
  row(
    FAMILY,
    "parrot_pareto",
    "2401.05675",
    "Parrot: Pareto-optimal Multi-Reward Reinforcement Learning Framework"
    " for Text-to-Image Generation",
    summary="responses that another one dominates take no part in the update",
    functions=functions_of(
      "rewards.pairwise",
      "non_dominated pareto_front parrot_pareto",
    ),
    tests=tests_of(
      "rewards/test_pairwise",
      "front_by_hand front_is_exactly_the_non_dominated_set"
      " parrot_drops_exactly_the_dominated suite_pareto",
    ),
  ),
  row(
    FAMILY,
    "maxmin_rlhf",
    "2402.08925",
    "MaxMin-RLHF: Towards Equitable Alignment of Large Language Models with"
    " Diverse Human Preferences",
    summary="the reward of the group of people that fares worst; EM for the groups'"
    " reward models",
    functions=functions_of(
      "rewards.ensembles",
      "preference_loglikelihoods annotator_loglikelihoods assigned_models"
      " responsibilities mixture_shares mixture_losses mixture_loglikelihood"
      " worst_off_reward maxmin",
    ),
    tests=tests_of(
      "rewards/test_ensembles",
      "e_steps_by_hand mixture_losses_by_hand suite_maxmin"
      " em_finds_both_peoples_and_never_loses_likelihood"
      " maxmin_takes_the_least_expectation_not_the_least_reward",
    ),
    notes="three signals stand in for three groups in the shipped file",
  ),
  row(
    FAMILY,
    "hybrid_aspects",
    "2510.05283",
    "Beyond Monolithic Rewards: A Hybrid and Multi-Aspect Reward"
    " Optimization for MLLM Alignment",
    summary="a rule's reward where the rule is sure, a model's elsewhere; format and"
    " length on top",
    functions=(
      *functions_of("rewards.combine", "hybrid_reward hybrid_aspects"),
      *functions_of("rewards.length", "band_penalties length_band"),
    ),
    tests=(
      *tests_of(
        "rewards/test_combine",
        "hybrid_by_hand hybrid_parity hybrid_aspects_by_hand suite",
      ),
      *tests_of("rewards/test_length", "length_scores_and_band_by_hand"),
    ),
  ),
)
