"""What the output distribution says about tokens, without keeping it.

The logits of a batch, [B, T, V], are the largest array of a training step. Here
they are made for a chunk of tokens at a time and recomputed in the backward
pass, so that memory is chunk · V instead of B · T · V.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rlvr.meshes import constrain, num_shards
from rlvr.models.config import ModelConfig
from rlvr.models.decoder import logits
from rlvr.types import Array, Params, pytree


@pytree
class TokenStatistics:
  """Statistics of the policy's distribution at each token, float32 [B, T]."""

  logprobs: Array  # log p(token), nats
  entropies: Array  # -sum p log p, nats
  uniform_kl: Array  # KL(uniform || p), nats
  token_logits: Array  # logit of the token, divided by the temperature
  max_logits: Array  # greatest logit, divided by the temperature
  max_logprobs: Array  # log-prob of the likeliest token, nats
  # What the caller asked for besides.
  extra: dict[str, Array]


def token_statistics(
  params: Params,
  config: ModelConfig,
  hidden: Array,
  tokens: Array,
  *,
  temperature: float,
  chunk_tokens: int | None = None,
  extra: Mapping[str, Callable[[Array, Array], Array]] | None = None,
) -> TokenStatistics:
  """Returns log-probs, entropies and the like at every token.

  Args:
    params: the model's parameters.
    config: the model's shape.
    hidden: [B, T, D], from `forward_responses`.
    tokens: int32 [B, T].
    temperature: divides the logits, as in sampling.
    chunk_tokens: logits held at once, in numbers (tokens times V), on each
      device of a mesh; a batch that fits is computed in one piece without
      recomputation. None: `ModelConfig.logits_at_once`.
    extra: further functions by name, (logits [N, V], tokens [N]) -> [N].
  """
  B, T, D = hidden.shape
  V = config.vocab_size

  def chunk(weights, hidden_NxD, tokens_N):
    z = logits(weights, config, hidden_NxD) / temperature
    z = constrain(z, "batch", "act_vocab")
    log_norm = jax.nn.logsumexp(z, axis=-1)
    chosen = jnp.take_along_axis(z, tokens_N[:, None], axis=-1)[:, 0]
    p = jnp.exp(z - log_norm[:, None])
    most = z.max(-1)
    return TokenStatistics(
      logprobs=chosen - log_norm,
      entropies=log_norm - (p * z).sum(-1),
      uniform_kl=log_norm - z.mean(-1) - jnp.log(float(V)),
      token_logits=chosen,
      max_logits=most,
      max_logprobs=most - log_norm,
      extra={k: f(z, tokens_N) for k, f in (extra or {}).items()},
    )

  # Gathered over the devices that share out its width once, not in each chunk.
  weights = {"trunk": _gathered_head(params["trunk"])}
  # Each device's rows are cut into chunks of their own.
  n = num_shards("batch", B)
  flat_hidden = hidden.reshape(n, B // n * T, D)
  flat_tokens = tokens.reshape(n, B // n * T)
  if chunk_tokens is None:
    chunk_tokens = config.logits_at_once
  rows = max(1, chunk_tokens * num_shards("act_vocab", V) // V)
  if rows >= B // n * T:
    flat = chunk(weights, flat_hidden.reshape(-1, D), flat_tokens.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(B, T), flat)
  pad = -(B // n * T) % rows
  flat_hidden = jnp.pad(flat_hidden, ((0, 0), (0, pad), (0, 0)))
  flat_tokens = jnp.pad(flat_tokens, ((0, 0), (0, pad)))
  one = jax.checkpoint(functools.partial(chunk, weights), prevent_cse=False)

  def piece(args):
    hidden, tokens = args
    flat = one(hidden.reshape(-1, D), tokens.reshape(-1))
    return jax.tree.map(lambda x: constrain(x.reshape(n, rows), "batch"), flat)

  flat = jax.lax.map(
    piece,
    (
      constrain(
        flat_hidden.reshape(n, -1, rows, D).swapaxes(0, 1), None, "batch"
      ),
      constrain(flat_tokens.reshape(n, -1, rows).swapaxes(0, 1), None, "batch"),
    ),
  )
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(n, -1)[:, : B // n * T].reshape(B, T),
    flat,
  )


def _gathered_head(trunk: Params) -> Params:
  axes = {
    "embedding": ("vocab", "act_embed"),
    "unembedding": ("act_embed", "vocab"),
  }
  name = "unembedding" if "unembedding" in trunk else "embedding"
  return {**trunk, name: constrain(trunk[name], *axes[name])}
