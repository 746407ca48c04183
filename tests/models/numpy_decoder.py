"""The decoder once more: float64, one sequence, one head at a time.

Written from the papers, not from `rlvr.models`: rotary positions as complex
numbers, attention as a loop over queries and heads. No padding, no cache.
"""

import jax
import numpy as np


def hidden_states(params, config, tokens):
  """Returns the normalised hidden states [n, D] of one sequence of n tokens."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = p["trunk"]["embedding"][np.asarray(tokens)]
  if config.scale_embeddings:
    x = x * np.sqrt(config.embed_dim)
  for i in range(config.num_layers):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
    x = x + _attention(config, layer, _norm(config, x, layer["attention_norm"]))
    h = _norm(config, x, layer["mlp_norm"])
    gate = h @ layer["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["up"])) @ layer["down"]
  return _norm(config, x, p["trunk"]["final_norm"])


def logits(params, config, tokens):
  """Returns logits [n, V]: row i is of the token after `tokens[i]`."""
  trunk = params["trunk"]
  if config.tie_embeddings:
    table = np.asarray(trunk["embedding"], np.float64).T
  else:
    table = np.asarray(trunk["unembedding"], np.float64)
  return hidden_states(params, config, tokens) @ table


def log_softmax(z):
  """Returns log-probs over the last axis."""
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def next_logprobs(params, config, prompt, response, temperature=1.0):
  """Returns log-probs [len(response), V] at each response token."""
  z = logits(params, config, [*prompt, *response])
  first = len(prompt) - 1
  return log_softmax(z[first : first + len(response)] / temperature)


def token_logprobs(params, config, prompt, response, temperature=1.0):
  """Returns the log-prob of each response token, [len(response)]."""
  every = next_logprobs(params, config, prompt, response, temperature)
  return np.array([row[t] for row, t in zip(every, response, strict=True)])


def _norm(config, x, params):
  rows = [v / np.sqrt((v @ v) / v.size + config.norm_epsilon) for v in x]
  return np.array(rows) * params["scale"]


def _rotate(config, vector, position):
  half = vector.size // 2
  frequency = 1.0 / config.rope_theta ** (2 * np.arange(half) / vector.size)
  z = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * frequency)
  return np.concatenate([z.real, z.imag])


def _attention(config, layer, x):
  n, heads = len(x), config.num_heads
  out = np.zeros_like(x)
  for head in range(heads):
    shared = head * config.num_kv_heads // heads
    q = x @ layer["query"][:, head]
    k = x @ layer["key"][:, shared]
    v = x @ layer["value"][:, shared]
    if config.qkv_bias:
      q = q + layer["query_bias"][head]
      k = k + layer["key_bias"][shared]
      v = v + layer["value_bias"][shared]
    if config.qk_norm:
      q = _norm(config, q, layer["query_norm"])
      k = _norm(config, k, layer["key_norm"])
    q = [_rotate(config, q[i], i) for i in range(n)]
    k = [_rotate(config, k[i], i) for i in range(n)]
    for i in range(n):
      scores = np.array([q[i] @ k[j] for j in range(i + 1)])
      weights = np.exp(log_softmax(scores / np.sqrt(config.head_dim)))
      attended = sum(w * v[j] for j, w in enumerate(weights))
      out[i] += attended @ layer["output"][head]
  return out
