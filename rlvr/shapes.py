"""What a run's programs are called with, as shapes, before anything runs.

Shapes say where their arrays will lie: JAX traces and compiles anew for those
that lie on no mesh.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import sharding
from rlvr import step as step_lib
from rlvr.recipe import Recipe
from rlvr.types import Signals

if TYPE_CHECKING:
  from rlvr.loops import Setup

_log = logging.getLogger(__name__)


def fused_shapes(
  recipe: Recipe, setup: "Setup", place: sharding.Placement
) -> tuple[Any, ...]:
  """Returns what the fused step takes: state, reference, prompts, group.

  Args:
    recipe: the step's settings.
    setup: whose source gives a batch's shapes, and stays where it is.
    place: where the state lies.
  """
  state = sharding.abstract(step_lib.abstract_state(recipe), place.state)
  source, P = setup.source, recipe.num_prompts
  position, draws = source.position, list(source.part_draws)
  prompts = _rows(source.next_batch(source.unit).prompts, P, place)
  source.seek(position, draws)
  group = None
  if not recipe.even_groups:
    group = _row((P * recipe.group_size,), jnp.int32, place)
  return state, setup.reference, prompts, group


def update_shapes(
  recipe: Recipe,
  setup: "Setup",
  place: sharding.Placement,
  sample: Callable[..., Any],
  signals: Callable[..., Signals] | Signals | None,
  *,
  weighted: bool,
) -> tuple[Any, ...] | None:
  """Returns what the update takes: state, reference, rollout, signals, weights.

  Args:
    recipe: the step's settings.
    setup: see `fused_shapes`.
    place: where the state lies.
    sample: (params, prompts, key, step, group, first_id) -> (rollout, greedy
      rollout or None).
    signals: (rollout, key) -> signals, for the device; or a host verifier's, of
      any number of responses. None if they aren't known.
    weighted: whether the responses have weights before the chain.

  Returns:
    None if the signals aren't known.
  """
  if signals is None:
    return None
  state, reference, prompts, group = fused_shapes(recipe, setup, place)
  number = jax.ShapeDtypeStruct((), jnp.int32)
  B = recipe.num_prompts * recipe.group_size
  rollout, greedy = place.abstract(
    sample, state.params, prompts, state.key, number, group, number
  )
  given = signals
  if callable(signals):
    given = place.abstract(signals, rollout, state.key)
  given = _rows(given, B, place)
  if greedy is not None:
    given = jax.eval_shape(
      step_lib.with_greedy_signals, given, given, rollout.group
    )
  batch = _rows((rollout, given), None, place)
  weights = _row((B,), jnp.float32, place) if weighted else None
  return state, reference, *batch, weights


def _row(shape: tuple[int, ...], dtype: Any, place: sharding.Placement) -> Any:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place.batch)


def _rows(tree: Any, count: int | None, place: sharding.Placement) -> Any:
  """Returns the shapes of a batch's arrays, with `count` rows if given."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape if count is None else (count, *x.shape[1:]),
      x.dtype,
      sharding=place.batch,
      weak_type=getattr(x, "weak_type", False),  # a program's own, too
    ),
    tree,
  )


def signals_of_nothing(verifier: Any) -> Signals | None:
  """Returns a host verifier's signals of no response: names and dtypes.

  Returns:
    None if the verifier takes no empty batch.
  """
  try:
    return verifier.start([], [], [], np.zeros((0,), bool)).result()
  except Exception as error:  # it was made for batches; the first one shows
    _log.info("the verifier takes no empty batch: %s", error)
    return None
