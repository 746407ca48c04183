"""Rows of likelihood rewards."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "likelihood"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "rlpr",
    "2506.18254",
    "RLPR: Extrapolating RLVR to General Domains without Verifiers",
    summary="how much the reasoning raises the mean probability of the reference"
    " answer's tokens; prompts without spread dropped",
    functions=functions_of(
      "rewards.likelihood",
      "mean_answer_probability_reward probability_gain_reward"
      " mean_answer_probability probability_gain low_deviation_filter",
    ),
    tests=tests_of(
      "rewards/test_likelihood",
      "answer_rewards_by_hand probability_gain_by_hand filter_by_hand"
      " filter_keeps_weights_of_others suite",
    ),
  ),
  row(
    FAMILY,
    "verifree",
    "2505.21493",
    "Reinforcing General Reasoning without Verifiers",
    summary="the reference answer's probability after the reasoning: as reward of"
    " the reasoning, and as weight of the answer's own gradient",
    functions=(
      *functions_of(
        "rewards.likelihood",
        "answer_probability_reward answer_probability reasoning_only",
      ),
      *functions_of(
        "objectives.passes",
        "reference_likelihood_loss reference_likelihood",
      ),
    ),
    tests=(
      *tests_of(
        "rewards/test_likelihood",
        "answer_rewards_by_hand reasoning_only_by_hand suite",
      ),
      *tests_of(
        "objectives/test_passes",
        "reference_likelihood_by_hand gradient_is_that_of_the_likelihood",
      ),
    ),
  ),
  row(
    FAMILY,
    "self_aligned_reward",
    "2509.05489",
    "Self-Aligned Reward: Towards Effective and Efficient Reasoners",
    summary="the share by which the prompt lowers the response's perplexity, added"
    " to the verifiable reward",
    functions=functions_of(
      "rewards.likelihood",
      "self_aligned_reward self_aligned",
    ),
    tests=tests_of(
      "rewards/test_likelihood",
      "self_aligned_by_hand self_aligned_parity suite",
    ),
  ),
  row(
    FAMILY,
    "log_prob_reward",
    "2602.03979",
    "Likelihood-Based Reward Designs for General LLM Reasoning",
    summary="log-probability of the reference answer as reward, and the paper's"
    " other forms: probability, per token, JEPO, NOVER",
    functions=(
      *functions_of(
        "rewards.likelihood",
        "answer_log_probability_reward mean_answer_log_probability_reward"
        " reasoning_perplexity perplexity_rank_reward short_and_sure_reward"
        " answer_log_probability mean_answer_log_probability perplexity_rank",
      ),
      *functions_of(
        "advantages.likelihood", "jepo_advantages jepo_coefficients jepo"
      ),
    ),
    tests=(
      *tests_of(
        "rewards/test_likelihood",
        "answer_rewards_by_hand answer_rewards_parity nover_by_hand suite",
      ),
      *tests_of("advantages/test_likelihood", "jepo_by_hand jepo_parity"),
    ),
  ),
)
