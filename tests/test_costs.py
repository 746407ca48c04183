"""What is computed once and what lies in memory, read off the programs.

Each of these would be slower with the same results: no test of values sees it.
"""

import functools

import jax
import pytest

from rlvr import step
from rlvr.sampling import Sampling, sample
from rlvr.sampling.slots import stages
from tests import make, stepping, tiny

P, G, S = 3, 5, 37
B = P * G
CONFIGS = {
  "scanned": tiny.CONFIG,
  "unrolled": tiny.config(unroll_layers=True),
}
HEADS = tiny.CONFIG.num_kv_heads, tiny.CONFIG.head_dim


def inner_jaxprs(value):
  """Returns the programs within an equation's parameter."""
  found = value if isinstance(value, list | tuple) else [value]
  return [
    getattr(x, "jaxpr", x)
    for x in found
    if hasattr(getattr(x, "jaxpr", x), "eqns")
  ]


def equations(jaxpr):
  """Yields all equations, those of inner programs too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in inner_jaxprs(value):
        yield from equations(inner)


def shapes(jaxpr):
  """Returns the shapes of all that is computed."""
  return {v.aval.shape for eqn in equations(jaxpr) for v in eqn.outvars}


def prompts(count=P):
  return tiny.prompts(lengths=(S,) * count, num_tokens=S)


def sampler(config, max_tokens=4, **changes):
  """Returns (params, prompts) -> rollout."""
  sampling = Sampling(
    max_tokens=max_tokens, end_id=tiny.END, pad_id=tiny.PAD, **changes
  )

  def run(params, prompts, group_size):
    return sample(
      params,
      config,
      prompts,
      jax.random.key(0),
      sampling=sampling,
      group_size=group_size,
    )

  return run


def flops(function, *args):
  costs = jax.jit(function).lower(*args).compile().cost_analysis()
  return costs["flops"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_prompt_is_prefilled_once_and_kept_once_for_its_group(kind):
  config = CONFIGS[kind]
  params, run = tiny.params(config), sampler(config)
  once = functools.partial(run, group_size=G)
  each = functools.partial(run, group_size=1)
  ratio = flops(once, params, prompts()) / flops(each, params, prompts(B))
  assert ratio < 1.5 / G + 0.15
  K, N = HEADS
  kept = {(B, K, N, S), (B, K, S, N)}
  kept |= {(config.num_layers, *shape) for shape in kept}
  assert not kept & shapes(jax.make_jaxpr(once)(params, prompts()).jaxpr)
  # The control: where each response has its own prompt they are seen.
  assert kept & shapes(jax.make_jaxpr(each)(params, prompts(B)).jaxpr)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("slots", [0, 4])
def test_the_cache_is_as_long_as_the_longest_response_so_far(kind, slots):
  config, max_tokens = CONFIGS[kind], 250
  run = sampler(config, max_tokens, slots=slots)
  params = jax.eval_shape(lambda: tiny.params(config))
  jaxpr = jax.make_jaxpr(functools.partial(run, group_size=G))(
    params, prompts()
  )
  K, N = HEADS
  lengths = [
    shape[-1]
    for eqn in equations(jaxpr.jaxpr)
    if eqn.primitive.name == "while"
    for shape in {v.aval.shape for v in eqn.outvars}
    if shape[-3:-1] == (K, N) and shape[-1] != S  # not the prompts'
  ]
  # Slots have a loop within the loop; those that are moved have the last.
  assert list(dict.fromkeys(lengths)) == stages(max_tokens) == [63, 125, 250]


def test_a_layers_cache_is_read_before_it_is_written():
  """XLA for TPU copies what is written and read in one turn of a loop."""

  def written_and_read(config):
    run = sampler(config, 4)
    jaxpr = jax.make_jaxpr(functools.partial(run, group_size=G))(
      tiny.params(config), prompts()
    )
    loop = next(
      e for e in equations(jaxpr.jaxpr) if e.primitive.name == "while"
    )
    inner = list(equations(loop.params["body_jaxpr"].jaxpr))
    written = [
      eqn.outvars[0]
      for eqn in inner
      if eqn.primitive.name == "dynamic_update_slice"
      and len(eqn.outvars[0].aval.shape) >= 4
    ]
    read = {id(v) for eqn in inner for v in eqn.invars}
    return len(written), sum(id(v) in read for v in written)

  assert written_and_read(CONFIGS["scanned"]) == (2, 0)
  # The control: unrolled layers do so, at no price.
  L = tiny.CONFIG.num_layers
  assert written_and_read(CONFIGS["unrolled"]) == (2 * L, 2 * L)


def test_a_prompt_is_computed_once_for_its_group_in_training():
  """Against the same responses, each with a prompt of its own."""
  once = make.rollout(
    group_sizes=(4, 4, 4, 4), lengths=(2,) * 16, num_tokens=5, prompt_tokens=40
  )
  each = make.rollout(
    group_sizes=(1,) * 16, lengths=(2,) * 16, num_tokens=5, prompt_tokens=40
  )

  def cost(rollout, **changes):
    recipe = stepping.recipe(**changes)
    state = step.init_state(recipe, stepping.KEY, stepping.PARAMS)
    run = functools.partial(step.update, recipe)
    return flops(run, state, rollout, stepping.SCORES, {})

  shared = cost(once)
  own = cost(each, num_prompts=16, group_size=1)
  # 4 x 40 tokens of prompts and 16 x 5 of responses, against 16 x 45.
  assert shared / own < (4 * 40 + 16 * 5) / (16 * 45) + 0.15
