"""Rows of verifiers of SQL, choices and texts."""

from rlvr.catalogue.rows import Method, functions_of, row, tests_of

FAMILY = "verifiers"

ROWS: tuple[Method, ...] = (
  row(
    FAMILY,
    "sql_partial_rewards",
    "2503.23157",
    "Reasoning-SQL: Reinforcement Learning with SQL Tailored Partial Rewards"
    " for Reasoning-Enhanced Text-to-SQL",
    summary="SQL by what it returns, and partly by its tables, columns and tokens",
    functions=(
      *functions_of(
        "verifiers.sql_text",
        "ngram_similarity schema_similarity extract_sql is_ordered",
      ),
      *functions_of("verifiers.sql_run", "run_query same_rows"),
      *functions_of("verifiers.sql", "make_sql_checker sql_verifier"),
      *functions_of("data.sql_tasks", "spider_task build_databases"),
    ),
    tests=(
      *tests_of(
        "verifiers/test_sql",
        "verdicts_and_partial_rewards attacks rows_by_hand ngrams_by_hand"
        " schema_by_hand spider_gold_against_itself",
      ),
      *tests_of("data/test_sql_tasks", "rows_are_the_same_for_the_same_seed"),
    ),
    tasks=("gin/tasks/spider.gin",),
    signals=("syntax", "schema", "ngram"),
    notes="without the paper's judge; weights as others report them, not read in"
    " the paper's text",
  ),
  row(
    FAMILY,
    "bleuberi",
    "2505.11080",
    "BLEUBERI: BLEU is a surprisingly effective reward for instruction following",
    summary="BLEU against reference responses, on the prompts where the base model"
    " has least of it",
    functions=functions_of(
      "verifiers.overlap",
      "bleu rouge_l bleu_score rouge_l_score bleu_rouge_score hardest_prompts"
      " make_overlap_scorer overlap_verifier",
    ),
    tests=tests_of(
      "verifiers/test_overlap",
      "bleu_by_hand bleu_agrees_with_the_authors rouge_by_hand"
      " hardest_prompts overlap_verdicts",
    ),
    tasks=("gin/tasks/reference_texts.gin",),
    signals=("bleu",),
  ),
  row(
    FAMILY,
    "mixed_rewards",
    "2505.24164",
    "Mixed-R1: Unified Reward Perspective For Reasoning Capability in Multimodal"
    " Large Language Models",
    summary="each task by its own measure: matching, tolerance, boxes, similarity"
    " of embeddings",
    functions=(
      *functions_of("verifiers.similarity", "bmas bmas_rewards bmas_verifier"),
      *functions_of("verifiers.boxes", "box_iou box_verifier"),
      *functions_of("verifiers.text", "within_tolerance text_verifier"),
      *functions_of("verifiers.mixed", "make_mixed_checker mixed_verifier"),
    ),
    tests=(
      *tests_of(
        "verifiers/test_similarity",
        "bmas_by_hand bmas_parity bmas_verdicts",
      ),
      *tests_of("verifiers/test_boxes", "iou_by_hand box_verdicts"),
      *tests_of("verifiers/test_text", "tolerance_by_hand"),
      *tests_of("verifiers/test_mixed", "each_kind_has_its_measure"),
    ),
    notes="from the abstract: neither text nor code of the paper could be read",
  ),
  row(
    FAMILY,
    "answer_consistent",
    "2510.10104",
    "Answer-Consistent Chain-of-thought Reinforcement Learning For Multi-modal"
    " Large Langauge Models",
    summary="a right answer counts fully if it stays when the options change places",
    functions=(
      *functions_of(
        "rewards.answer_consistency",
        "answer_consistent_reward answer_consistent",
      ),
      *functions_of("verifiers.choice", "option_order choice_verifier"),
      *functions_of(
        "verifiers.second_answer", "second_question second_answer_verifier"
      ),
      *functions_of("verifiers.policy_answers", "policy_answers"),
    ),
    tests=(
      *tests_of(
        "rewards/test_answer_consistency", "by_hand numpy_parity suite"
      ),
      *tests_of("verifiers/test_choice", "option_order_is_never_the_same"),
      *tests_of(
        "verifiers/test_second_answer", "second_answer_of_each_response"
      ),
      *tests_of(
        "verifiers/test_policy_answers", "a_run_in_which_the_policy_asks_itself"
      ),
    ),
    tasks=("gin/tasks/aqua.gin", "gin/tasks/aqua_second_answer.gin"),
    signals=("second",),
    notes="the paper's three values could not be read",
  ),
  row(
    FAMILY,
    "longrlvr",
    "2603.02146",
    "LongRLVR: Long-Context Reinforcement Learning Requires Verifiable Context"
    " Rewards",
    summary="the evidence that a response cites is rewarded beside its answer",
    functions=(
      *functions_of(
        "rewards.grounding", "grounded_answer_reward grounded_answer"
      ),
      *functions_of(
        "verifiers.citations",
        "f_beta cited_chunks make_citation_checker citation_verifier",
      ),
    ),
    tests=(
      *tests_of(
        "rewards/test_grounding", "by_hand agrees_with_the_authors suite"
      ),
      *tests_of("verifiers/test_citations", "f_beta_by_hand citation_verdicts"),
    ),
    tasks=("gin/tasks/long_context.gin",),
    signals=("context",),
    notes="answers are compared by rule, where the authors ask a model",
  ),
)
