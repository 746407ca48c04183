"""Packing: what is computed when, and that no number knows of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import packing, sharding, step
from rlvr import update as update_lib
from rlvr.infra.hlo import read_work
from rlvr.meshes import MeshShape, make_mesh, use
from rlvr.models import LoRA
from rlvr.objectives import clipped_value, entropy_bonus, sequence_mean
from rlvr.objectives.passes import reference_likelihood
from rlvr.packing import Packing, Shape, piece_shapes
from rlvr.probes.compute import ProbeSettings
from rlvr.sampling import Sampling
from rlvr.scorers import packed_scorer_of, scorer_of
from rlvr.types import Scores, Signals
from tests import make, stepping, tiny
from tests.compare import must_fail
from tests.stepping import CLIPPED, CONFIG, KL, PARAMS, REFERENCE, close

P, G, T, S = 4, 4, 32, 5
B = P * G
# 3 of 16 responses need the long pieces.
LENGTHS = (3, 1, 2, 32, 1, 16, 7, 1, 17, 5, 4, 5, 2, 31, 3, 1)
# Pieces of 2 x 32 and 3 x 16 tokens.
FINE = Packing(lengths=2, pieces=8, min_tokens=1, shortest=16)
SHAPES = (Shape(3, 16), Shape(2, 32))


def test_shapes_take_about_the_same_memory():
  found = piece_shapes(
    Packing(lengths=3, pieces=4, min_tokens=1, shortest=25),
    rows=64,
    length=100,
    prompt_length=20,
    most_rows=64,
  )
  # 64 / 4 = 16 rows of 100; 16 · 120 / 70 = 27.4; 16 · 120 / 45 = 42.7.
  assert found == ((42, 25), (27, 50), (16, 100))
  shape = functools.partial(piece_shapes, rows=64, prompt_length=0)
  # A micro-batch bounds them, min_tokens makes them larger, up to the update.
  (found,) = shape(Packing(lengths=1, pieces=4), length=8, most_rows=2)
  assert found == (2, 8)
  (found,) = shape(Packing(min_tokens=80), length=8, most_rows=64)
  assert found == (10, 8)
  (found,) = shape(Packing(min_tokens=4000), length=8, most_rows=64)
  assert found == (64, 8)
  # No piece is shorter than `shortest`.
  for shortest, expected in ((18, [18, 35, 70]), (19, [35, 70]), (36, [70])):
    found = shape(Packing(shortest=shortest), length=70, most_rows=64)
    assert [s.length for s in found] == expected


@pytest.mark.parametrize(
  "field", ["lengths", "pieces", "min_tokens", "shortest"]
)
def test_a_number_below_1_names_itself(field):
  with pytest.raises(ValueError, match=f"Packing.{field}=0"):
    Packing(**{field: 0})


def test_a_plan_by_hand():
  found = packing.plan(SHAPES, jnp.array(LENGTHS))
  # 3, 8 and 13 are above 16; 16 itself is not.
  assert found.order[0, :B].tolist() == [3, 8, 13] + [
    i for i in range(B) if i not in (3, 8, 13)
  ]
  assert found.needs.tolist() == [1] * 3 + [0] * 13
  # Two pieces of 2 x 32 hold 4 responses, the other 12 are 4 pieces of 3 x 16.
  assert int(found.pieces) == 6
  assert int(found.tokens) == 2 * 64 + 4 * 48
  assert found.order[0, B:].tolist() == [B] * 3


def computed(shapes, lengths):
  """Returns how often each token place of each response is computed."""
  places = jnp.broadcast_to(jnp.arange(T), (B, T))

  def body(counts, rows, length):
    part = packing.take_rows((counts, places), rows, length, T)
    assert part[0].shape == (rows.size, length)
    return packing.put_rows(counts, rows, part[0] + 1)

  plan = packing.plan(shapes, lengths)
  return packing.over_pieces(shapes, plan, jnp.zeros((B, T), jnp.int32), body)


def test_every_token_is_computed_once():
  run = jax.jit(functools.partial(computed, SHAPES))

  def once(counts, lengths):
    counts, own = (
      np.asarray(counts),
      np.arange(T)[None] < np.asarray(lengths)[:, None],
    )
    assert (counts[own] == 1).all()
    assert (counts <= 1).all()

  rng = np.random.default_rng(0)
  batches = [rng.integers(0, T + 1, B) for _ in range(20)]
  for lengths in (*batches, LENGTHS, [0] * B, [T] * B):
    once(run(jnp.asarray(lengths)), lengths)
  # Little of the padding is.
  assert run(jnp.array(LENGTHS)).sum() == 4 * 32 + 12 * 16
  # Limits that are too high put a response into a piece that cuts it.
  wrong = jax.jit(functools.partial(computed, (Shape(3, 8), Shape(2, 16))))
  must_fail(once, wrong(jnp.array(LENGTHS)), LENGTHS)


# The same numbers.

ROLLOUT = make.rollout(
  group_sizes=(G,) * P,
  lengths=LENGTHS,
  num_tokens=T,
  prompt_tokens=S,
  answer_tokens=T,  # [B, R] that could be taken for [B, T]
)
MASK = np.asarray(ROLLOUT.completion_mask)
RNG = np.random.default_rng(1)
SCORES = Scores(
  outcome={"outcome": jnp.asarray(RNG.random(B), jnp.float32)},
  step={},
  token={},
  advantages=jnp.asarray(RNG.normal(size=(B, 1)) * MASK, jnp.float32),
  weights=jnp.asarray(stepping.WEIGHTS, jnp.float32),
  metrics={},
)
_likelihood = reference_likelihood(weight=0.3, coefficient="outcome")
# Its mask comes with the probes, to be cut into pieces as they are.
LIKELIHOOD = _likelihood._replace(
  passes=frozenset({"answer_logprobs"}),
  requires=frozenset({"answer_mask"}),
  loss=lambda inputs: _likelihood.loss(
    dataclasses.replace(inputs, extra=inputs.extra | inputs.probes)
  ),
)


def recipe(**changes):
  return stepping.recipe(
    **{
      "sampling": Sampling(max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD),
      "terms": (CLIPPED, entropy_bonus(weight=0.1), KL, LIKELIHOOD),
      "has_reference": True,
      "reduction": sequence_mean,
      "packing": FINE,
      "probe_settings": ProbeSettings(
        end_id=tiny.END, answer_delimiter=(tiny.DELIMITER,)
      ),
      **changes,
    }
  )


PROBES = {
  "ref_logprobs": jnp.asarray(RNG.normal(-2, 0.5, (B, T)) * MASK, jnp.float32),
  "answer_mask": ROLLOUT.prompts.answer_mask[ROLLOUT.group],
}


def updated(made, rollout=ROLLOUT):
  run = jax.jit(functools.partial(step.update, made))
  return run(stepping.state_of(made), rollout, SCORES, PROBES)


@functools.cache
def plain():
  return updated(recipe(packing=None))


def same_update(found, expected):
  (state, metrics), (other, other_metrics) = found, expected
  stepping.tree_close(state.params, other.params)
  assert metrics.keys() == other_metrics.keys()
  for name in metrics.keys() - {"update/useful_tokens"}:
    close(metrics[name], other_metrics[name], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(
  "changes", [{}, {"even_groups": False, "micro_batches": 2}]
)
def test_an_update_is_the_same(changes):
  found = updated(recipe(**changes))
  same_update(found, plain())
  assert stepping.changed(found[0].params, PARAMS) > 1e-2
  useful = sum(LENGTHS)
  close(plain()[1]["update/useful_tokens"], useful / (B * T))
  # With two micro-batches of 8 responses a piece of 32 may have 2 all the same.
  close(found[1]["update/useful_tokens"], useful / (2 * 64 + 4 * 48))


def test_a_prompt_without_its_gradient_would_show(monkeypatch):
  real = update_lib.keep_prompts
  monkeypatch.setattr(
    update_lib,
    "keep_prompts",
    lambda *args: jax.lax.stop_gradient(real(*args)),
  )
  must_fail(same_update, updated(recipe()), plain())


def test_a_response_that_is_none_would_show(monkeypatch):
  # 2 x 32 and 3 x 16: the last piece has a place that no response fills.
  shorter = (Shape(5, 16), Shape(2, 32))
  monkeypatch.setattr(packing, "piece_shapes", lambda *_, **__: shorter)
  same_update(updated(recipe()), plain())
  monkeypatch.setattr(
    packing, "real_rows", lambda rows, _: jnp.ones((rows.size,), bool)
  )
  must_fail(same_update, updated(recipe()), plain())


def same_scores(found, expected):
  for name in found:
    mask = MASK if expected[name].ndim == 2 else MASK[..., None]
    close(
      np.where(mask, found[name], 0),
      np.where(mask, expected[name], 0),
      rtol=1e-4,
      atol=1e-5,
      err_msg=name,
    )


@pytest.mark.parametrize("group", [None, ROLLOUT.group])
def test_scores_are_the_same(group):
  names = frozenset({"logprobs", "hidden"})
  prompts = ROLLOUT.prompts
  args = (prompts.tokens, prompts.mask, ROLLOUT.tokens, MASK)
  run = jax.jit(packed_scorer_of(CONFIG, REFERENCE, 0.7, FINE, names))
  found = run(*args, group)
  assert found.keys() == names
  expected = jax.jit(scorer_of(CONFIG, REFERENCE, 0.7))(*args, group)
  same_scores(found, expected)
  wrong = jnp.roll(ROLLOUT.group, 1)
  must_fail(same_scores, run(*args, wrong), expected)


def test_cut_parameters_are_gathered_for_few_pieces():
  shape = functools.partial(
    piece_shapes,
    Packing(lengths=1, pieces=16, min_tokens=1, shortest=8),
    rows=64,
    length=8,
    prompt_length=0,
    most_rows=32,
  )
  assert shape() == ((4, 8),)
  devices = jax.devices()[:4]
  with use(make_mesh(MeshShape(data=4), devices)):
    assert shape() == ((4, 8),)
  with use(make_mesh(MeshShape(data=2, fsdp=2), devices)):
    # Two micro-batches: four pieces.
    assert shape() == ((16, 8),)


def test_a_mesh_changes_nothing():
  made = recipe(micro_batches=2)
  mesh = make_mesh(MeshShape(data=2, fsdp=2), jax.devices()[:4])
  place = sharding.placement(
    step.abstract_state(made), made.model, made.optimizer, mesh
  )
  run = place.jit(
    functools.partial(step.update, made), out_shardings=(place.state, None)
  )
  state = jax.device_put(stepping.state_of(made), place.state)
  rows = sharding.put_batch((ROLLOUT, SCORES, PROBES), mesh, place.rules)
  compiled = run.lower(state, *rows).compile()
  found = compiled(state, *rows)
  same_update(found, plain())
  assert float(found[1]["update/useful_tokens"]) > 1.2 * np.mean(MASK)
  other = dataclasses.replace(
    SCORES, advantages=jnp.roll(SCORES.advantages, 1, axis=0)
  )
  rows = sharding.put_batch((ROLLOUT, other, PROBES), mesh, place.rules)
  must_fail(same_update, compiled(state, *rows), plain())


def test_the_whole_step_scores_in_pieces():
  signals = Signals(outcome={"outcome": SCORES.outcome["outcome"]})

  def stepped(packing):
    made = recipe(packing=packing)
    return jax.jit(functools.partial(step.score_batch, made))(
      stepping.state_of(made), REFERENCE, ROLLOUT, signals
    )

  (found, _, probes), (expected, _, expected_probes) = map(
    stepped, (FINE, None)
  )
  close(found.advantages, expected.advantages)
  assert probes.keys() == expected_probes.keys()
  same_scores(
    {"ref": probes["ref_logprobs"]}, {"ref": expected_probes["ref_logprobs"]}
  )


def test_a_program_says_how_often_its_pieces_run():
  # Old log-probs of all responses in pieces of two, then two updates in pieces
  # of one: as many FLOPs as without pieces, for responses of full length.
  signals = Signals(outcome={"outcome": SCORES.outcome["outcome"]})

  def flops(packing):
    made = recipe(
      packing=packing,
      terms=(CLIPPED,),
      has_reference=False,
      updates_per_batch=2,
      old_logprobs="recomputed",
    )
    run = jax.jit(functools.partial(step.score_and_update, made))
    compiled = run.lower(
      stepping.state_of(made), None, ROLLOUT, signals
    ).compile()
    return read_work(compiled.as_text(), num_devices=1)

  found, expected = flops(FINE), flops(None)
  assert 8 in found.loops and 8 not in expected.loops
  assert 0.95 < found.flops / expected.flops < 1.05


def test_terms_with_other_prompts_take_whole_rows():
  term = CLIPPED._replace(passes=frozenset({"prompt_free_logprobs"}))
  settings = ProbeSettings(end_id=tiny.END, start_id=tiny.END)
  made = recipe(terms=(term,), probe_settings=settings)
  shape = update_lib._shapes(made, (B, T), ROLLOUT.prompts)
  assert shape == ((B, T),)
  assert len(update_lib._shapes(recipe(), (B, T), ROLLOUT.prompts)) == 2


VALUE = clipped_value(weight=0.5, clip=0.2, returns="returns")
MODELS = {
  "windows, soft-caps, post-norms, scanned": tiny.config(
    layer_pattern=("local", "global"),
    sliding_window=6,
    attention_softcap=5.0,
    final_softcap=8.0,
    post_norms=True,
    qk_norm=True,
  ),
  "adapters": tiny.config(
    num_layers=1,
    lora=LoRA(rank=2, alpha=4.0, projections=("query", "value", "down")),
  ),
  "value head": tiny.config(num_layers=1, value_head=True),
  "recomputed layers": tiny.config(remat=True),
  "another kernel": tiny.config(num_layers=1, attention="xla"),
  "a TPU's kernel": tiny.config(num_layers=1, attention="splash_interpret"),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_is_the_same_in_pieces(name):
  config = MODELS[name]
  params = tiny.params(config)
  terms, probes, scores = (CLIPPED,), {}, SCORES
  if config.value_head:
    terms = (CLIPPED, VALUE)
    drawn = np.random.default_rng(2).normal(size=(2, B, T)) * MASK
    values, returns = jnp.asarray(drawn, jnp.float32)
    probes = {"values": values}
    scores = dataclasses.replace(SCORES, token={"returns": returns})

  def run(packing):
    made = recipe(
      model=config, terms=terms, packing=packing, has_reference=False
    )
    state = step.init_state(made, stepping.KEY, params)
    return jax.jit(functools.partial(step.update, made))(
      state, ROLLOUT, scores, probes
    )

  found, expected = run(FINE), run(None)
  same_update(found, expected)
  assert stepping.changed(found[0].params, params) > 1e-3
  assert found[1]["update/useful_tokens"] > expected[1]["update/useful_tokens"]
  must_fail(
    same_update,
    (dataclasses.replace(found[0], params=params), found[1]),
    expected,
  )
