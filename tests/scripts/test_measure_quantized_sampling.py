"""What the sampler's precision changes: the sketch, and the page's tables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs
from tests.scripts.test_benchmarks import script

measuring = script("measure_quantized_sampling")


def test_a_sketch_keeps_inner_products(monkeypatch):
  monkeypatch.setattr(measuring, "_SKETCH", 4096)
  rng = np.random.default_rng(0)
  one = {"a": rng.normal(size=(130, 70)), "b": rng.normal(size=5000)}
  two = {k: x + 0.5 * rng.normal(size=x.shape) for k, x in one.items()}
  a, b = (
    measuring.sketched(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), t))
    for t in (one, two)
  )
  assert a.shape == (4096,)
  exact = sum((one[k] * two[k]).sum() for k in one)
  # The standard error is about a 64th of the norms' product.
  assert float(a @ b) == pytest.approx(exact, rel=0.1)
  assert abs(float(a @ -b[::-1])) < 0.2 * exact


def test_the_page_is_made_of_the_figures():
  every = json.loads((runs.ROOT / "docs" / "precision.json").read_text())
  page = (runs.ROOT / "docs" / "precision.md").read_text()
  assert every
  for name, found in every.items():
    assert measuring.table_of(name, found) in page, name
    # A run of some options alone has a page too.
    row = found["options"].pop("as trained")
    assert "| as trained |" not in measuring.table_of(name, found)
    assert row["change_max"] < 1e-4
