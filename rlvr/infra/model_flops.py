"""FLOPs that a model needs, by formula: what a program's FLOPs are held against.

With N the parameters that multiply (embeddings count once, as the head), a
token costs 2·N forward and 6·N with its gradient (Kaplan et al. 2020, section
2.1, https://arxiv.org/abs/2001.08361). Attention adds 4·L·H·N_h FLOPs for each
key that a query sees (scores and weighted sum, Chowdhery et al. 2022, appendix
B, https://arxiv.org/abs/2204.02311), here with causal masks counted as such: a
response token sees its prompt and the response before it.

Recomputed activations count nothing: they are what a program does on top.
"""

import math

import jax

from rlvr import models
from rlvr.probes.compute import POLICY_PROBES
from rlvr.recipe import Recipe


def forward_flops(
  config: models.ModelConfig,
  *,
  num_prompts: int,
  prompt_length: int,
  group_size: int,
  response_length: int,
) -> int:
  """Returns the FLOPs of a pass over prompts and their responses.

    2·N_layers·(P·S + B·T) + 2·V·D·B·T + 4·L·H·N_h·(P·S²/2 + B·(T·S + T²/2))

  A prompt is computed once for its group; the head runs on response tokens.

  Args:
    config: the model's shape.
    num_prompts: P.
    prompt_length: S, tokens.
    group_size: responses for each prompt; B = P · group_size.
    response_length: T, tokens.
  """
  c, P, S, T = config, num_prompts, prompt_length, response_length
  B = P * group_size
  layers = models.abstract_params(config)["layers"]
  # Matrices alone multiply: norms and biases are [L, n] or [L, heads, n].
  per_token = sum(
    math.prod(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(layers)
    if not any(w in jax.tree_util.keystr(path) for w in ("norm", "bias"))
  )
  linear = 2 * per_token * (P * S + B * T)
  head = 2 * c.vocab_size * c.embed_dim * B * T
  seen = P * S * S / 2 + B * (T * S + T * T / 2)
  attention = 4 * c.num_layers * c.num_heads * c.head_dim * seen
  return int(linear + head + attention)


def step_flops(recipe: Recipe, *, prompt_length: int) -> dict[str, int]:
  """Returns the model FLOPs of a batch in `sample`, `score` and `update`.

    sample  forward            (prompts, and every response token once)
    score   forward · passes   (policy and reference, where a probe asks)
    update  score + 3 · forward · passes_per_batch

  Probes that lengthen a response or leave something out count nothing.

  Args:
    recipe: the step's settings.
    prompt_length: S, tokens.
  """
  forward = forward_flops(
    recipe.model,
    num_prompts=recipe.num_prompts,
    prompt_length=prompt_length,
    group_size=recipe.group_size,
    response_length=recipe.sampling.max_tokens,
  )
  probes = recipe.required_probes
  passes = int(bool(probes & POLICY_PROBES))
  passes += int(any(name.startswith("ref_") for name in probes))
  score = forward * passes
  update = score + 3 * forward * recipe.passes_per_batch
  return {
    "sample": forward,
    "score": score,
    "update": update,
    "fused": forward + update,
  }
