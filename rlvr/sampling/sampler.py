"""Prefill once per prompt, then decode all responses in one jitted loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.meshes import (
  Rules,
  constrain,
  constrain_rows,
  constrain_tree,
  use_rules,
)
from rlvr.models import (
  ModelConfig,
  compute_params,
  decode,
  logical_axes,
  logits,
  prefill,
  unstack_layers,
)
from rlvr.sampling.filters import draw, filtered_logprobs
from rlvr.segments import step_indices
from rlvr.types import Array, Params, Prompts, Rollout

_KV_HEADS = ("batch", None, "act_kv_heads")  # of a cache [B, T, K, N]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How responses are drawn; hashable, static under jit.

  Raises:
    ValueError: a value out of range, with its name.
  """

  max_tokens: int  # T, the end token included
  end_id: int  # the token that ends a response
  pad_id: int
  temperature: float = 1.0  # 0 takes the likeliest token
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  step_delimiters: tuple[int, ...] = ()  # tokens that end a reasoning step
  max_steps: int = 1  # K
  # How parameters and batch lie on the mesh while responses are drawn: moved
  # there once for a batch. None: as in training.
  rules: Rules | None = None

  def __post_init__(self):
    checks = (
      ("max_tokens", self.max_tokens >= 1, "at least 1"),
      ("temperature", self.temperature >= 0, "at least 0"),
      ("top_k", self.top_k >= 0, "0 (off) or more"),
      ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
      ("min_p", 0 <= self.min_p < 1, "in [0, 1)"),
      ("max_steps", self.max_steps >= 1, "at least 1"),
    )
    for name, good, want in checks:
      if not good:
        raise ValueError(
          f"Sampling.{name}={getattr(self, name)} must be {want}"
        )

  @property
  def truncates(self) -> bool:
    """Whether some tokens are cut from the policy's own distribution."""
    return (
      self.temperature == 0
      or self.top_k > 0
      or self.top_p < 1
      or self.min_p > 0
    )


def sample(
  params: Params,
  config: ModelConfig,
  prompts: Prompts,
  key: Array,
  *,
  sampling: Sampling,
  group_size: int | None = None,
  group: Array | None = None,
  response_ids: Array | None = None,
) -> Rollout:
  """Returns responses to each prompt, group-major.

  The noise of a response depends on `key` and the response's id alone, so
  that neither the batch that it is in nor its place there changes its tokens.

  Args:
    params: the policy's parameters.
    config: the model's shape.
    prompts: P prompts, padded on the left.
    key: PRNG key, consumed; derive it from the run's seed and step.
    sampling: how to draw.
    group_size: G responses for each prompt; exclusive with `group`.
    group: int32 [B], the prompt of each response, not decreasing, for uneven
      groups.
    response_ids: int32 [B], names the noise of each response; None numbers
      the responses of the batch from 0.

  Returns:
    A `Rollout`; `behavior_logprobs` are those of the distribution after
    temperature and cuts, in float32. With temperature 0 they are 0: the token
    is certain.

  Raises:
    ValueError: both or neither of group_size and group.
  """
  if (group_size is None) == (group is None):
    raise ValueError(
      f"group_size={group_size} with group"
      f" {'missing' if group is None else 'given'}: give one of the two"
    )
  P = prompts.tokens.shape[0]
  even = group_size is not None
  if group_size is not None:
    if group_size < 1:
      raise ValueError(f"group_size={group_size} must be at least 1")
    group = jnp.repeat(
      jnp.arange(P, dtype=jnp.int32),
      group_size,
      total_repeat_length=P * group_size,
    )
  assert group is not None
  if response_ids is None:
    response_ids = jnp.arange(group.shape[0], dtype=jnp.int32)
  with use_rules(sampling.rules):
    rollout = _draw(
      params, config, prompts, key, sampling, group, even, response_ids
    )
  return constrain_rows(rollout)


def _draw(params, config, prompts, key, sampling, group, even, response_ids):
  """`sample`, under the rules of sampling."""
  B, T = group.shape[0], sampling.max_tokens
  params = constrain_tree(compute_params(params, config), logical_axes(config))
  prompts = constrain_rows(prompts)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(response_ids)
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (T,)))(keys)
  uniform = constrain(uniform, "batch")

  last_hidden, (prompt_k, prompt_v) = prefill(
    params, config, prompts.tokens, prompts.mask
  )
  prompt_mask = prompts.mask
  if not even:
    # Uneven groups: the prompt's keys are gathered for each response.
    prompt_k, prompt_v = prompt_k[:, group], prompt_v[:, group]
    prompt_mask = prompt_mask[group]
  dtype = jnp.dtype(config.compute_dtype)
  shape = (B, T, config.num_kv_heads, config.head_dim)
  prompt_cache: Any
  cache: Any
  if config.unroll_layers:
    axes = _KV_HEADS
    prompt_cache = [
      (constrain(prompt_k[i], *axes), constrain(prompt_v[i], *axes))
      for i in range(config.num_layers)
    ]
    layers = unstack_layers(params, config)
    empty = constrain(jnp.zeros(shape, dtype), *axes)
    cache = [(empty, empty) for _ in range(config.num_layers)]
  else:
    axes = (None, *_KV_HEADS)
    prompt_cache = constrain(prompt_k, *axes), constrain(prompt_v, *axes)
    layers = params["layers"]
    empty = constrain(jnp.zeros((config.num_layers, *shape), dtype), *axes)
    cache = empty, empty
  prompt_lengths = prompts.mask.sum(-1, dtype=jnp.int32)[group]

  def pick(z, u):
    # Sums over the vocabulary are then in one order on every mesh.
    z = constrain(z, "batch")
    if sampling.temperature == 0:
      return jnp.argmax(z, axis=-1).astype(jnp.int32), jnp.zeros(z.shape[:1])
    logprobs = filtered_logprobs(
      z,
      temperature=sampling.temperature,
      top_k=sampling.top_k,
      top_p=sampling.top_p,
      min_p=sampling.min_p,
    )
    token = draw(logprobs, u)
    return token, jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]

  def put(array, column, t):
    return jax.lax.dynamic_update_slice_in_dim(
      array, column[:, None], t, axis=1
    )

  def record(t, z, ended, tokens, mask, logprobs):
    u = jax.lax.dynamic_index_in_dim(uniform, t, axis=1, keepdims=False)
    token, logprob = pick(z, u)
    token = jnp.where(ended, sampling.pad_id, token)
    logprob = jnp.where(ended, 0.0, logprob)
    tokens, mask = put(tokens, token, t), put(mask, ~ended, t)
    logprobs = put(logprobs, logprob, t)
    return token, ended | (token == sampling.end_id), tokens, mask, logprobs

  z = logits(params, config, last_hidden)[group]
  token, ended, tokens, mask, logprobs = record(
    jnp.int32(0),
    z,
    jnp.zeros((B,), bool),
    jnp.full((B, T), sampling.pad_id, jnp.int32),
    jnp.zeros((B, T), bool),
    jnp.zeros((B, T), jnp.float32),
  )

  def going(carry):
    t, _, ended, *_ = carry
    return (t < T) & ~ended.all()

  def body(carry):
    t, token, ended, tokens, mask, logprobs, cache = carry
    hidden, cache = decode(
      params,
      layers,
      config,
      token,
      t - 1,
      prompt_lengths,
      prompt_mask,
      prompt_cache,
      cache,
    )
    cache = jax.tree.map(lambda x: constrain(x, *axes), cache)
    token, ended, tokens, mask, logprobs = record(
      t, logits(params, config, hidden), ended, tokens, mask, logprobs
    )
    return t + 1, token, ended, tokens, mask, logprobs, cache

  carry = (jnp.int32(1), token, ended, tokens, mask, logprobs, cache)
  _, _, ended, tokens, mask, logprobs, _ = jax.lax.while_loop(
    going, body, carry
  )
  return Rollout(
    prompts=prompts,
    tokens=tokens,
    completion_mask=mask,
    behavior_logprobs=logprobs,
    group=group,
    step_index=step_indices(
      tokens, mask, sampling.step_delimiters, sampling.max_steps
    ),
    finished=ended,
  )
