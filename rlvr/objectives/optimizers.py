"""Optimizers from gin: Optax's own functions, put in a row."""

from collections.abc import Sequence

import optax


def optimizer(
  transforms: Sequence[optax.GradientTransformation],
) -> optax.GradientTransformation:
  """Returns `optax.chain` of the transforms; gin can't bind its varargs.

  Args:
    transforms: e.g. [optax.clip_by_global_norm(1.0), optax.adamw(1e-3)].

  Raises:
    ValueError: nothing to chain.
  """
  if not transforms:
    raise ValueError("optimizer: `transforms` is empty; give e.g. optax.adamw")
  return optax.chain(*transforms)
