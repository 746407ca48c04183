"""Prefill once per prompt, then decode all responses in one jitted loop."""

import dataclasses

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
  logical_axes,
  logits,
  prefill,
)
from rlvr.models.decoding import (
  Reading,
  kept_as,
  layers_to_read,
  take_rows,
)
from rlvr.models.precision import (
  AS_TRAINED,
  Precision,
  sampling_axes,
  sampling_params,
)
from rlvr.sampling.filters import draw, filtered_logits, likeliest
from rlvr.sampling.slots import decode_all, decode_queued, first_tokens
from rlvr.segments import step_indices
from rlvr.types import Array, Params, Prompts, Rollout


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
  # Responses that decode at a time; one that ends makes room for the next.
  # 0: all of a batch.
  slots: int = 0
  precision: Precision = AS_TRAINED  # of the model that is sampled from
  # Whether decoding has an operation for each layer rather than a loop over
  # them, which reads each layer's weights and keys through a copy on GPUs, but
  # compiles sooner. None: as `ModelConfig.unroll_layers` says.
  unroll_layers: bool | None = None

  def __post_init__(self):
    checks = (
      ("max_tokens", self.max_tokens >= 1, "at least 1"),
      ("temperature", self.temperature >= 0, "at least 0"),
      ("top_k", self.top_k >= 0, "0 (off) or more"),
      ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
      ("min_p", 0 <= self.min_p < 1, "in [0, 1)"),
      ("max_steps", self.max_steps >= 1, "at least 1"),
      ("slots", self.slots >= 0, "0 (as many as responses) or more"),
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
  limits: Array | None = None,
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
    limits: int32 [B], tokens that each response may have, from 1 to max_tokens;
      None: max_tokens.

  Returns:
    A `Rollout`; `behavior_logprobs` are those of the distribution after
    temperature and cuts, in float32, by the model at `Sampling.precision`. With
    temperature 0 they are 0: the token is certain.

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
  if limits is None:
    limits = jnp.full(group.shape, sampling.max_tokens, jnp.int32)
  with use_rules(sampling.rules):
    rollout = _draw(
      params, config, prompts, key, sampling, group, even, response_ids, limits
    )
  return constrain_rows(rollout)


def _draw(
  params, config, prompts, key, sampling, group, even, response_ids, limits
):
  """`sample`, under the rules of sampling."""
  B, T = group.shape[0], sampling.max_tokens
  precision = sampling.precision
  config = precision.config(config)
  if sampling.unroll_layers is not None:
    config = dataclasses.replace(config, unroll_layers=sampling.unroll_layers)
  params = sampling_params(params, config, precision)
  params = constrain_tree(params, sampling_axes(logical_axes(config), params))
  prompts = constrain_rows(prompts)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(response_ids)
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (T,)))(keys)
  uniform = constrain(uniform, "batch")

  last_hidden, prompt_cache = prefill(
    params, config, prompts.tokens, prompts.mask
  )
  prompt_cache = kept_as(prompt_cache, precision.cache, prompts.mask)
  prompt_lengths = prompts.mask.sum(-1, dtype=jnp.int32)
  reading = Reading(
    trunk=params["trunk"],
    layers=layers_to_read(params, config),
    prompts=prompt_cache,
    prompt_mask=prompts.mask,
    prompt_lengths=prompt_lengths,
  )

  def pick(z, u):
    # The product is cut like the table: were only what follows constrained, the
    # compiler would gather the table, in every step. Sums over the vocabulary
    # are in one order on every mesh once the logits are whole.
    z = constrain(constrain(z, "batch", "act_vocab"), "batch")
    if sampling.temperature == 0:
      return likeliest(z), jnp.zeros(z.shape[:1])
    z = filtered_logits(
      z,
      temperature=sampling.temperature,
      top_k=sampling.top_k,
      top_p=sampling.top_p,
      min_p=sampling.min_p,
    )
    return draw(z, u)

  ids = {"end_id": sampling.end_id, "pad_id": sampling.pad_id}
  z = logits(params, config, last_hidden)[group]
  first = first_tokens(z, uniform, pick, **ids)
  if 0 < sampling.slots < B:
    drawn = decode_queued(
      reading,
      config,
      first,
      group,
      uniform,
      limits,
      pick,
      num_slots=sampling.slots,
      **ids,
    )
  else:
    reading = reading._replace(prompt_lengths=prompt_lengths[group])
    if not even:
      # Uneven groups: the prompt's keys are gathered for each response.
      reading = reading._replace(
        prompts=take_rows(prompt_cache, group, config),
        prompt_mask=prompts.mask[group],
      )
    drawn = decode_all(reading, config, first, uniform, limits, pick, **ids)
  mask = jnp.arange(T, dtype=jnp.int32)[None] < drawn.lengths[:, None]
  return Rollout(
    prompts=prompts,
    tokens=drawn.tokens,
    completion_mask=mask,
    behavior_logprobs=drawn.logprobs,
    group=group,
    step_index=step_indices(
      drawn.tokens, mask, sampling.step_delimiters, sampling.max_steps
    ),
    finished=drawn.finished,
  )
