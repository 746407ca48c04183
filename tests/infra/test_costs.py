"""What programs cost: phases by scope, XLA's account, the peak."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.infra.chips import CHIPS
from rlvr.infra.costs import Recorded, peak_of, phases_of, read_program

N = 16


def step(x, scoped):
  scope = jax.named_scope if scoped else lambda _: jax.named_scope("other")
  with scope("sample"):
    x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=10)
  with scope("update"):
    return jax.grad(lambda x: jnp.sin(x @ x).sum())(x)


@pytest.fixture(scope="module")
def compiled():
  recorded = Recorded(jax.jit(lambda x: step(x, True), donate_argnums=0))
  assert recorded.compiled() is None, "nothing is known before the first call"
  x = jnp.eye(N)
  expected = step(jnp.eye(N), True)
  np.testing.assert_allclose(recorded(x), expected, rtol=1e-5)
  return recorded.compiled()


def test_instructions_have_the_phase_of_their_scope(compiled):
  program = read_program(compiled)
  assert set(program.phases.values()) == {"sample", "update"}
  assert program.module.startswith("jit_")
  # The control: the same program without the scopes has no phases.
  bare = jax.jit(lambda x: step(x, False)).lower(jnp.eye(N)).compile()
  assert read_program(bare).phases == {}


def test_a_loop_counts_as_often_as_it_runs(compiled):
  program = read_program(compiled)
  # Products of the scan: 10 · 2·16³ = 81,920; forward and two backward ones of
  # the gradient, of which x @ x and its transposes: 2 or 3 · 2·16³.
  assert program.product_flops in (12 * 2 * N**3, 13 * 2 * N**3)
  # XLA counts the loop's body once, and elementwise operations as well.
  assert 3 * 2 * N**3 <= program.flops < program.product_flops
  assert program.bytes_accessed > 4 * N * N
  assert program.temporary_bytes >= 0


def test_phases_by_hand():
  text = """HloModule jit_f
  %dot.1 = f32[2]{0} dot(%a), metadata={op_name="jit(f)/sample/dot" id=1}
  ROOT %add.2 = f32[2]{0} add(%b), metadata={op_name="jit(f)/jvp(update)/add"}
  %mul = f32[2]{0} multiply(%b), metadata={op_name="jit(f)/update/jvp()/score/mul"}
  %copy = f32[2]{0} copy(%c)
"""
  assert phases_of(text) == {"dot.1": "sample", "mul": "update"}


def test_the_peak_is_published_or_measured():
  def device(kind):
    return types.SimpleNamespace(device_kind=kind, platform="tpu")

  for kind, name in (("TPU v5 lite", "v5e"), ("TPU v5p", "v5p")):
    peak = peak_of([device(kind)] * 4, "bfloat16")
    assert peak.flops == 4 * CHIPS[name].peak_flops
    assert CHIPS[name].source in peak.source
  # Eight simulated devices share the cores of one machine.
  peak = peak_of(jax.devices(), "float32")
  assert "measured: float32" in peak.source
  assert 1e8 < peak.flops < 1e15
