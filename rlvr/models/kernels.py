"""Which kernel attention runs on: the one place where it is chosen.

    config = for_platform(config, "tpu")  # where `attention` is "auto"
    kernel = choose(config)
    kernel.sequences(...), kernel.responses(...)

| `ModelConfig.attention` | what runs |
|---|---|
| "plain" | `rlvr.models.attention`: einsums, fused by XLA, in causal blocks |
| "xla" | `jax.nn.dot_product_attention(implementation="xla")` |
| "cudnn" | the same with "cudnn": NVIDIA GPUs, bfloat16, no soft-cap |
| "splash" | `rlvr.models.splash`: TPU |
| "splash_interpret" | the same kernel without a TPU, slowly: for tests |
| "auto" | to be replaced by `for_platform` before anything is traced |

The choice is data: a program for TPU is often traced and compiled on a machine
that has none. Decoding always takes `attention.attend_token`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvr.models.attention import attend, attend_shared
from rlvr.models.config import ModelConfig
from rlvr.models.kinds import of_layer
from rlvr.models.splash import splash_attend
from rlvr.types import Array

IsLocal = Array | str | None  # see `kinds.of_layer`


class Kernel(NamedTuple):
  """Attention of whole sequences, and of responses to prompt and themselves.

  Both take masks in two forms, of which a kernel reads one: whole ones by kind
  of layer, from `rlvr.models.kinds`, and which keys are tokens. Padding is at
  a sequence's ends. What a query on padding gets depends on the kernel.

  sequences: (config, q, k, v, masks, mask, is_local) -> [B, S, H, D]; mask is
    bool [B, S].
  responses: (config, q, prompt_k, prompt_v, prompt_masks, prompt_mask, k, v,
    masks, is_local) -> [B, T, H, D]; prompt_mask is bool [P, S]. Prompts are
    padded on the left, responses on the right; responses are group-major.
  """

  sequences: Callable[..., Array]
  responses: Callable[..., Array]


def score_settings(config: ModelConfig) -> dict[str, float | None]:
  """Returns how attention makes scores of queries and keys."""
  return {"scale": config.query_scale, "softcap": config.attention_softcap}


_QUERIES = 256  # of a block, at the least
_BLOCKS = 8  # at the most: each is operations of its own to compile


def causal_blocks(length: int) -> list[slice]:
  """Returns the queries in blocks, each of which sees no key behind its end.

  So half of the scores are never computed, and a block's are all that is in
  memory. One block where the sequence is short.

  Args:
    length: of the sequence.
  """
  size = max(_QUERIES, -(-length // _BLOCKS))
  ends = range(size, length + size, size)
  return [slice(end - size, min(end, length)) for end in ends]


def _plain_sequences(config, q, k, v, masks, mask, is_local: IsLocal) -> Array:
  mask_BxTxS = of_layer(masks, is_local)
  return jnp.concatenate(
    [
      attend(
        q[:, rows],
        k[:, : rows.stop],
        v[:, : rows.stop],
        mask_BxTxS[:, rows, : rows.stop],
        **score_settings(config),
      )
      for rows in causal_blocks(q.shape[1])
    ],
    axis=1,
  )


def _plain_responses(
  config,
  q,
  prompt_k,
  prompt_v,
  prompt_masks,
  prompt_mask,
  k,
  v,
  masks,
  is_local: IsLocal,
) -> Array:
  own, shared = of_layer(masks, is_local), of_layer(prompt_masks, is_local)
  moves = shared.ndim == 3 and shared.shape[1] > 1  # with the query
  return jnp.concatenate(
    [
      attend_shared(
        q[:, rows],
        prompt_k,
        prompt_v,
        shared[:, rows] if moves else shared,
        k[:, : rows.stop],
        v[:, : rows.stop],
        own[:, rows, : rows.stop],
        **score_settings(config),
      )
      for rows in causal_blocks(q.shape[1])
    ],
    axis=1,
  )


def _behind(prompts: Array, own: Array) -> Array:
  """[P, S, ..], [B, T, ..] -> [B, S + T, ..]: each prompt for its responses."""
  spread = jnp.repeat(prompts, own.shape[0] // prompts.shape[0], axis=0)
  return jnp.concatenate([spread, own], axis=1)


def _library(config, q, k, v, mask_BxTxS) -> Array:
  T, S = q.shape[1], k.shape[1]
  # cuDNN's backward pass takes even lengths.
  q, k, v = (
    jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (q, k, v)
  )
  mask = jnp.pad(mask_BxTxS, [(0, 0), (0, T % 2), (0, S % 2)])
  out = jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=mask[:, None],
    scale=config.query_scale,
    implementation=config.attention,
  )
  return out[:, :T]


def _library_sequences(
  config, q, k, v, masks, mask, is_local: IsLocal
) -> Array:
  return _library(config, q, k, v, of_layer(masks, is_local))


def _library_responses(
  config,
  q,
  prompt_k,
  prompt_v,
  prompt_masks,
  prompt_mask,
  k,
  v,
  masks,
  is_local: IsLocal,
) -> Array:
  B, T = q.shape[:2]
  shared, own = of_layer(prompt_masks, is_local), of_layer(masks, is_local)
  if shared.ndim == 2:
    shared = shared[:, None]
  shared = jnp.broadcast_to(shared, (shared.shape[0], T, shared.shape[2]))
  both = jnp.concatenate(
    [
      jnp.repeat(shared, B // shared.shape[0], axis=0),
      jnp.broadcast_to(own, (B, T, T)),
    ],
    axis=2,
  )
  return _library(config, q, _behind(prompt_k, k), _behind(prompt_v, v), both)


def _splash(
  config, q, k, v, q_segments, k_segments, offset, is_local: IsLocal
) -> Array:
  def call(window: int | None) -> Array:
    return splash_attend(
      q,
      k,
      v,
      q_segments.astype(jnp.int32),
      k_segments.astype(jnp.int32),
      offset=offset,
      window=window,
      **score_settings(config),
      interpret=config.attention == "splash_interpret",
    )

  size = config.sliding_window
  if size is not None and size >= k.shape[1]:
    size = None  # it cuts nothing off
  windows = {"global": None, "local": size}
  kinds = {windows[kind]: kind for kind in config.layer_kinds}
  if len(kinds) == 1:
    return call(next(iter(kinds)))
  if isinstance(is_local, str):
    return call(windows[is_local])
  # A kernel's mask is part of its program: one of two kernels runs.
  return jax.lax.cond(
    is_local, lambda: call(windows["local"]), lambda: call(None)
  )


def _splash_sequences(config, q, k, v, masks, mask, is_local: IsLocal) -> Array:
  return _splash(config, q, k, v, mask, mask, 0, is_local)


def _splash_responses(
  config,
  q,
  prompt_k,
  prompt_v,
  prompt_masks,
  prompt_mask,
  k,
  v,
  masks,
  is_local: IsLocal,
) -> Array:
  # One call over each response's prompt and itself: a padded prompt ends where
  # the response begins, so that places differ as positions do. It repeats the
  # prompt's keys for each of the group's responses, one layer's at a time. Two
  # calls, the prompt's for the whole group, could be merged by their sums, but
  # the library's kernel has no gradient of those.
  own = jnp.ones(q.shape[:2], bool)  # right padding is behind every token
  return _splash(
    config,
    q,
    _behind(prompt_k, k),
    _behind(prompt_v, v),
    own,
    _behind(prompt_mask, own),
    prompt_k.shape[1],
    is_local,
  )


_PLAIN = Kernel(_plain_sequences, _plain_responses)
_LIBRARY = Kernel(_library_sequences, _library_responses)
_SPLASH = Kernel(_splash_sequences, _splash_responses)
_KERNELS = {
  "plain": _PLAIN,
  "xla": _LIBRARY,
  "cudnn": _LIBRARY,
  "splash": _SPLASH,
  "splash_interpret": _SPLASH,
}
# A GPU's platform has either name, by where in JAX one reads it.
_GPUS = ("gpu", "cuda")
_BY_PLATFORM = {"tpu": "splash"} | dict.fromkeys(_GPUS, "cudnn")


def choose(config: ModelConfig) -> Kernel:
  """Returns the kernel that `ModelConfig.attention` names.

  Raises:
    ValueError: it is "auto".
  """
  if config.attention not in _KERNELS:
    raise ValueError(
      f"ModelConfig.attention={config.attention!r} doesn't say which kernel:"
      " models.for_platform(config, platform) does, before anything is traced."
      f" Or give one of {sorted(_KERNELS)}"
    )
  return _KERNELS[config.attention]


def for_platform(
  config: ModelConfig, platform: str, attention: str | None = None
) -> ModelConfig:
  """Returns the config with a kernel in the place of "auto".

  TPU: "splash". GPU: "cudnn" where the model can have it. Else "plain". A config
  that names its kernel comes back as it is.

  Args:
    config: the model's shape.
    platform: `jax.Device.platform` of the devices that will run the program,
      such as those of `Mesh.devices`: not of the machine that compiles it.
    attention: what goes before `ModelConfig.attention`; None for nothing.

  Raises:
    ValueError: the model can't have that kernel; "auto" never raises.
  """
  if attention is not None:
    config = dataclasses.replace(config, attention=attention)
  if config.attention != "auto":
    return config
  try:
    return dataclasses.replace(
      config, attention=_BY_PLATFORM.get(platform, "plain")
    )
  except ValueError:  # the config refuses what the kernel lacks
    return dataclasses.replace(config, attention="plain")


def unroll_sampling(platform: str, asked: bool | None = None) -> bool | None:
  """Returns `Sampling.unroll_layers` for a platform.

  On GPUs a loop over the layers reads each layer's weights and keys through a
  copy: decoding took 1.75 times as long as unrolled (docs/performance.md).

  Args:
    platform: see `for_platform`.
    asked: what goes before; None: unrolled on GPUs, else as the model says.
  """
  return True if asked is None and platform in _GPUS else asked
