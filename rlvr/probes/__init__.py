"""Probes: further forward passes that some transform asked for.

A transform names in `requires` what it reads; the step computes the union of
all names, each once, with gradients stopped, and puts the arrays into
`Context.probes`. All log-probs are in nats and zero outside their mask.

| name | shape | what |
|---|---|---|
| `logprobs` | [B, T] | the policy's log-probs of the response tokens, as the trainer computes them |
| `entropies` | [B, T] | entropy of the policy's distribution at each response token |
| `uniform_kl` | [B, T] | KL(uniform ‖ p_t) at each response token (self-certainty) |
| `values` | [B, T] | value head's prediction before each response token |
| `ref_logprobs` | [B, T] | reference model's log-probs of the response tokens |
| `prompt_free_logprobs` | [B, T] | policy's log-probs of the response without its prompt |
| `answer_logprobs` | [B, R] | policy's log-probs of the reference answer's tokens after prompt and reasoning (the response up to its answer) |
| `answer_logprobs_no_reasoning` | [B, R] | the same straight after the prompt |
| `answer_mask` | bool [B, R] | the reference answer's tokens (no forward pass) |
| `answer_span` | bool [B, T] | the response's own final answer tokens (no forward pass) |
| `answer_ids` | int32 [B] | equal for two responses of the batch iff their final answers are the same tokens; -1 without an answer (no forward pass) |
| `last_token_logprobs` | [B] | policy's log-prob of the self-reward token z_c after the response |
| `ref_last_token_logprobs` | [B] | the same under the reference model |
"""
