"""The chain of Optax transforms."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr.objectives.optimizers import optimizer


def test_transforms_are_applied_in_order():
  # A gradient (3, 4) of norm 5 is clipped to norm 1, then times -0.5.
  made = optimizer([optax.clip_by_global_norm(1.0), optax.sgd(0.5)])
  gradient = jnp.array([3.0, 4.0])
  updates, _ = made.update(gradient, made.init(gradient))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  close(updates, [-0.3, -0.4])
  # The other way round nothing is left to clip: norm 2.5 is cut to 1.
  other = optimizer([optax.sgd(0.5), optax.clip_by_global_norm(1.0)])
  updates, _ = other.update(gradient, other.init(gradient))
  close(updates, [-0.6, -0.8])


def test_nothing_to_chain():
  with pytest.raises(ValueError, match="`transforms` is empty"):
    optimizer([])
