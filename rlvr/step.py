"""The step: sample, score and update as pure functions, fused or split.

    fused:  prompts -> sample -> verify on the device -> score -> update
    split:  prompts -> sample | verify on the host | score -> update

Both are made of the same functions, so that they give the same numbers. All
randomness of batch n comes from `fold_in(state.key, n)`. The scopes name each
operation's phase in a profile (`rlvr.infra.costs`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rlvr import models
from rlvr.probes.compute import POLICY_PROBES, Scorer, compute_probes
from rlvr.recipe import DeviceVerifier, Noise, Recipe, batch_key
from rlvr.rewards.statistics import signal_statistics
from rlvr.sampling import sample
from rlvr.scorers import (
  packed_scorer_of,
  prompt_scorer_of,
  trainer_temperature,
)
from rlvr.types import (
  Array,
  Context,
  Params,
  Prompts,
  Rollout,
  Scores,
  Signals,
  TrainState,
  scores_from_signals,
)
from rlvr.update import update


def init_state(recipe: Recipe, key: Array, params: Params) -> TrainState:
  """Returns the state of a run that starts from `params`.

  Args:
    recipe: the step's settings.
    key: the run's PRNG key, kept in the state.
    params: the policy's parameters.
  """
  return TrainState(
    params=params,
    opt_state=recipe.optimizer.init(models.trained(params, recipe.model)),
    chain_state=recipe.chain.init(),
    step=jnp.zeros((), jnp.int32),
    key=key,
  )


def abstract_state(recipe: Recipe) -> TrainState:
  """Returns the shapes and dtypes of a run's state without making an array."""

  def make():
    key = jax.random.key(0)
    return init_state(recipe, key, models.init(recipe.model, key))

  return jax.eval_shape(make)


@jax.named_scope("sample")
def sample_batch(
  recipe: Recipe,
  params: Params,
  prompts: Prompts,
  key: Array,
  step: Array,
  *,
  group: Array | None = None,
  first_id: int | Array = 0,
) -> Rollout:
  """Returns the responses of batch `step`.

  Args:
    recipe: the step's settings.
    params: the policy's parameters.
    prompts: P prompts.
    key: the run's key.
    step: int32 [], index of the batch: names the noise.
    group: int32 [B], the prompt of each response, where groups are uneven.
    first_id: names the noise within the batch: a further round of sampling for
      the same batch goes on where the one before stopped counting.

  Raises:
    ValueError: `group` is missing where groups are uneven, or given where they
      are even, or doesn't name num_prompts · group_size responses.
  """
  B = recipe.num_prompts * recipe.group_size
  if (group is None) != recipe.even_groups or (
    group is not None and group.shape != (B,)
  ):
    raise ValueError(
      f"sample_batch: even_groups={recipe.even_groups} with `group`"
      f" {'missing' if group is None else f'of shape {group.shape}'}: give int32"
      f" [{B}] for uneven groups, nothing for even ones"
    )
  return sample(
    params,
    recipe.model,
    prompts,
    batch_key(key, step, Noise.SAMPLE),
    sampling=recipe.sampling,
    group_size=recipe.group_size if recipe.even_groups else None,
    group=group,
    response_ids=first_id + jnp.arange(B, dtype=jnp.int32),
  )


@jax.named_scope("sample")
def sample_greedy(
  recipe: Recipe, params: Params, prompts: Prompts, key: Array
) -> Rollout:
  """Returns the likeliest response to each prompt, token by token.

  Args:
    recipe: the step's settings.
    params: the policy's parameters.
    prompts: P prompts.
    key: any key: nothing is drawn.

  Returns:
    A `Rollout` of P responses.
  """
  greedy = dataclasses.replace(
    recipe.sampling, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0
  )
  return sample(
    params, recipe.model, prompts, key, sampling=greedy, group_size=1
  )


def with_greedy_signals(
  signals: Signals, greedy: Signals, group: Array
) -> Signals:
  """Returns the signals with the greedy responses' outcome rewards added.

  Args:
    signals: of B responses.
    greedy: of P greedy ones, by the same verifier.
    group: int32 [B].

  Returns:
    Signals with outcome rewards "greedy_<name>" [B], each prompt's spread over
    its group.
  """
  added = {f"greedy_{k}": v[group] for k, v in greedy.outcome.items()}
  return dataclasses.replace(signals, outcome={**signals.outcome, **added})


@jax.named_scope("verify")
def verify_on_device(
  verifier: DeviceVerifier,
  rollout: Rollout,
  key: Array,
  step: Array,
  *,
  use: Noise = Noise.VERIFY,
) -> Signals:
  """Returns a device verifier's signals for batch `step`."""
  return verifier(rollout, batch_key(key, step, use))


def _reference_scorer(
  recipe: Recipe, state: TrainState, reference: Params | None
) -> Scorer | None:
  """Returns the reference model's forward pass, None if there is none."""
  model = recipe.model
  if model.lora is not None:
    if reference is not None:
      raise ValueError(
        "the reference of a model with adapters (ModelConfig.lora) is the model"
        " without them, which the state holds: give reference=None"
      )
    if recipe.has_reference:
      model, reference = models.without_adapters(model, state.params)
  if reference is None:
    return None
  return packed_scorer_of(
    model,
    reference,
    trainer_temperature(recipe.sampling),
    recipe.packing,
    frozenset({"logprobs"}),
  )


def scoring_context(
  recipe: Recipe,
  state: TrainState,
  reference: Params | None,
  rollout: Rollout,
) -> Context:
  """Returns what the chain sees of a batch: all probes that are asked for.

  Args:
    recipe: the step's settings.
    state: the run's state.
    reference: the reference model's parameters; None if there is none, or if it
      is the policy without its adapters.
    rollout: responses.
  """
  probes = compute_probes(
    recipe.required_probes,
    rollout,
    policy=packed_scorer_of(
      recipe.model,
      state.params,
      trainer_temperature(recipe.sampling),
      recipe.packing,
      frozenset({"logprobs"}) | recipe.required_probes & POLICY_PROBES,
    ),
    reference=_reference_scorer(recipe, state, reference),
    settings=recipe.probe_settings,
    even_groups=recipe.even_groups,
    score_prompts=prompt_scorer_of(
      recipe.model, state.params, trainer_temperature(recipe.sampling)
    ),
    unembedding=models.unembedding(state.params, recipe.model)
    / trainer_temperature(recipe.sampling)
    if "unembedding" in recipe.required_probes
    else None,
  )
  return Context(
    rollout=rollout,
    probes=probes,
    progress=(state.step / recipe.total_steps).astype(jnp.float32),
    step=state.step,
    key=batch_key(state.key, state.step, Noise.SCORE),
  )


@jax.named_scope("score")
def score_batch(
  recipe: Recipe,
  state: TrainState,
  reference: Params | None,
  rollout: Rollout,
  signals: Signals,
  weights: Array | None = None,
) -> tuple[Scores, Any, dict[str, Array]]:
  """Returns scores, the chain's new state, and the probes.

  Args:
    recipe: the step's settings.
    state: the run's state.
    reference: the reference model's parameters; None if there is none, or if it
      is the policy without its adapters.
    rollout: responses.
    signals: named rewards.
    weights: float32 [B] that the responses have before the chain; None: 1.
  """
  context = scoring_context(recipe, state, reference, rollout)
  scores = scores_from_signals(signals, rollout.tokens.shape[0])
  if weights is not None:
    scores = dataclasses.replace(scores, weights=weights)
  scores, chain_state = recipe.chain.apply(scores, state.chain_state, context)
  statistics = signal_statistics(signals, rollout)
  metrics = {**statistics, **scores.metrics}
  scores = dataclasses.replace(scores, metrics=metrics)
  return scores, chain_state, context.probes


def score_and_update(
  recipe: Recipe,
  state: TrainState,
  reference: Params | None,
  rollout: Rollout,
  signals: Signals,
  weights: Array | None = None,
) -> tuple[TrainState, dict[str, Array], Scores]:
  """Returns the next state, all metrics, and the scores (for display)."""
  scores, chain_state, probes = score_batch(
    recipe, state, reference, rollout, signals, weights
  )
  with jax.named_scope("update"):
    state, metrics = update(recipe, state, rollout, scores, probes)
  state = dataclasses.replace(
    state, chain_state=chain_state, step=state.step + 1
  )
  lengths = rollout.lengths.astype(jnp.float32)
  metrics |= scores.metrics | {
    "response/length_mean": lengths.mean(),
    "response/length_max": lengths.max(),
    "response/truncated": 1.0 - rollout.finished.mean(dtype=jnp.float32),
    "response/tokens": lengths.sum(),
    "response/count": jnp.float32(lengths.size),
    "response/weight_mean": scores.weights.mean(),
  }
  return state, metrics, scores


def fused_step(
  recipe: Recipe,
  verifier: DeviceVerifier,
  state: TrainState,
  reference: Params | None,
  prompts: Prompts,
  group: Array | None = None,
) -> tuple[TrainState, dict[str, Array], Rollout, Signals, Scores]:
  """Returns everything of one whole step: sample, verify, score, update."""
  key, step = state.key, state.step
  rollout = sample_batch(recipe, state.params, prompts, key, step, group=group)
  signals = verify_on_device(verifier, rollout, key, step)
  if recipe.greedy_baseline:
    greedy = verify_on_device(
      verifier,
      sample_greedy(recipe, state.params, prompts, key),
      key,
      step,
      use=Noise.VERIFY_GREEDY,
    )
    signals = with_greedy_signals(signals, greedy, rollout.group)
  state, metrics, scores = score_and_update(
    recipe, state, reference, rollout, signals
  )
  return state, metrics, rollout, signals, scores


def supervised_step(
  recipe: Recipe,
  state: TrainState,
  prompts: Prompts,
  targets: Array,
  target_mask: Array,
) -> tuple[TrainState, dict[str, Array]]:
  """Returns the state after an update on given responses, one per prompt.

  The same update as in RL, with the targets in the place of samples: the
  objective's terms see advantages of 1.

  Args:
    recipe: the step's settings; its chain is not used.
    state: the run's state.
    prompts: P prompts.
    targets: int32 [P, T], padded on the right, with the end token.
    target_mask: bool [P, T].
  """
  P, T = targets.shape
  zeros = jnp.zeros((P, T), jnp.float32)
  rollout = Rollout(
    prompts=prompts,
    tokens=targets,
    completion_mask=target_mask,
    behavior_logprobs=zeros,
    group=jnp.arange(P, dtype=jnp.int32),
    step_index=jnp.where(target_mask, 0, -1),
    finished=jnp.ones((P,), bool),
  )
  scores = Scores(
    outcome={},
    step={},
    token={},
    advantages=zeros + 1.0,
    weights=jnp.ones((P,), jnp.float32),
    metrics={},
  )
  with jax.named_scope("update"):
    state, metrics = update(recipe, state, rollout, scores, {})
  for name in ("policy/behavior_kl", "policy/old_logprob_mean"):
    metrics.pop(name, None)
  metrics["response/tokens"] = target_mask.sum(dtype=jnp.float32)
  return dataclasses.replace(state, step=state.step + 1), metrics
