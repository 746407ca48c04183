"""Slots that are refilled, and a cache that grows: the same responses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.sampling import Sampling, sample, slots
from tests import tiny
from tests.compare import must_fail

# A window that cuts, and layers of both kinds: places matter to the masks.
CONFIG = tiny.config(layer_pattern=("local", "global"), sliding_window=4)
PARAMS = tiny.params(CONFIG)
PROMPTS = tiny.prompts()
P, G, T = 3, 6, 9
B = P * G
SAMPLING = Sampling(max_tokens=T, end_id=tiny.END, pad_id=tiny.PAD)


@functools.cache
def drawn(
  num_slots=0,
  unrolled=False,
  group=None,
  end_id=tiny.END,
  unroll_sampling=None,
):
  config = tiny.config(
    layer_pattern=CONFIG.layer_pattern,
    sliding_window=CONFIG.sliding_window,
    unroll_layers=unrolled,
  )
  settings = Sampling(
    **{
      **vars(SAMPLING),
      "slots": num_slots,
      "end_id": end_id,
      "unroll_layers": unroll_sampling,
    }
  )
  run = jax.jit(
    lambda key: sample(
      PARAMS,
      config,
      PROMPTS,
      key,
      sampling=settings,
      group_size=G if group is None else None,
      group=None if group is None else jnp.array(group, jnp.int32),
    )
  )
  return jax.device_get(run(jax.random.key(2)))


def assert_same(found, expected):
  for name in ("tokens", "completion_mask", "finished", "group"):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(expected, name), name
    )
  np.testing.assert_allclose(
    found.behavior_logprobs, expected.behavior_logprobs, rtol=1e-4, atol=1e-5
  )


@pytest.fixture
def short_stages(monkeypatch):
  """Stages from 2 tokens on, so that few tokens go through several."""
  monkeypatch.setattr(slots, "stages", functools.partial(slots.stages, first=2))


@pytest.fixture
def fewer_slots(monkeypatch, short_stages):
  """What is left over moves to a few slots less, then to fewer still."""
  monkeypatch.setattr(slots, "widths", lambda n, _: [n - 1, max(1, n - 4)])
  drawn.cache_clear()
  yield
  drawn.cache_clear()


def test_moving_to_fewer_slots_changes_no_token(fewer_slots, monkeypatch):
  uneven = (0,) * 9 + (1,) + (2,) * 8
  moves = []
  real = slots._moved

  def watched(held, *args, **kwargs):
    moves.append(held.ended.shape[0])
    return real(held, *args, **kwargs)

  monkeypatch.setattr(slots, "_moved", watched)
  found = [drawn(), drawn(4), drawn(17), drawn(5, unrolled=True)]
  assert moves == [18, 17, 4, 3, 17, 16, 5, 4]
  in_groups = drawn(group=uneven)
  monkeypatch.undo()
  drawn.cache_clear()
  for each in found:
    assert_same(each, drawn())
  assert_same(in_groups, drawn(group=uneven))


def test_a_lost_response_would_be_seen(fewer_slots, monkeypatch):
  # The control: one that moves fewer than are alive.
  real = jnp.nonzero

  def loses_the_last(alive, **kwargs):
    return real(alive & (jnp.cumsum(alive) < alive.sum()), **kwargs)

  monkeypatch.setattr(jnp, "nonzero", loses_the_last)
  broken = drawn()
  monkeypatch.undo()
  drawn.cache_clear()
  must_fail(assert_same, broken, drawn())


@pytest.mark.parametrize("num_slots", [1, 4, 17])
def test_slots_change_no_token(num_slots, short_stages):
  expected = drawn()
  assert 0 < expected.finished.sum() < B, "both kinds are to be there"
  assert len(set(expected.lengths.tolist())) > 3
  assert_same(drawn(num_slots), expected)
  must_fail(assert_same, drawn(num_slots, end_id=7), expected)


def test_slots_of_an_unrolled_model(short_stages):
  assert_same(drawn(5, unrolled=True), drawn())


def test_decoding_alone_may_be_unrolled():
  seen = {}
  real = slots.decode
  for model in (False, True):
    for sampling in (None, False, True):

      def watched(reading, config, *args, key=(model, sampling)):
        seen[key] = config.unroll_layers
        return real(reading, config, *args)

      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "decode", watched)
        drawn.cache_clear()
        found = drawn(5, unrolled=model, unroll_sampling=sampling)
      assert_same(found, drawn())
  assert seen == {
    (m, s): m if s is None else s
    for m in (False, True)
    for s in (None, False, True)
  }


def test_slots_of_uneven_groups():
  group = (0,) * 9 + (1,) + (2,) * 8
  assert_same(drawn(4, group=group), drawn(group=group))
  must_fail(assert_same, drawn(4, group=group), drawn())


def test_as_many_slots_as_responses_are_no_slots():
  assert_same(drawn(B), drawn())
  assert_same(drawn(B + 5), drawn())


def test_slots_save_steps(monkeypatch):
  # Each response alone needs its length less one steps: its first token comes
  # from its prompt. Side by side the longest counts, with one slot the sum.
  calls = []
  real = slots.decode

  def counting(*args):
    jax.debug.callback(lambda: calls.append(1))
    return real(*args)

  monkeypatch.setattr(slots, "decode", counting)

  def steps(num_slots):
    calls.clear()
    drawn.cache_clear()
    rollout = drawn(num_slots)
    jax.effects_barrier()
    return rollout.lengths, len(calls)

  lengths, all_at_once = steps(0)
  assert all_at_once == lengths.max() - 1
  _, one = steps(1)
  assert one == (lengths - 1).sum()
  _, four = steps(4)
  assert (lengths - 1).sum() / 4 <= four <= (lengths - 1).sum() / 4 + T
  drawn.cache_clear()


def test_widths():
  assert slots.widths(64, 64) == []
  assert slots.widths(64, 65) == [16, 4]
  assert slots.widths(256, 512) == [64, 16]
  assert slots.widths(17, 512) == [4]
  assert slots.widths(8, 512) == []


def test_stages_double_up_to_the_last():
  assert slots.stages(32) == [32]
  assert slots.stages(64) == [64]
  assert slots.stages(512) == [64, 128, 256, 512]
  assert slots.stages(100) == [50, 100]
  assert slots.stages(9, first=2) == [2, 3, 5, 9]


def test_each_response_has_its_limit():
  limits = np.arange(B) % 5 + 1

  def run(num_slots, limits):
    settings = Sampling(**{**vars(SAMPLING), "slots": num_slots})
    return jax.device_get(
      jax.jit(
        lambda key, limits: sample(
          PARAMS,
          CONFIG,
          PROMPTS,
          key,
          sampling=settings,
          group_size=G,
          limits=limits,
        )
      )(jax.random.key(2), limits)
    )

  free = drawn()
  found = run(0, limits)
  np.testing.assert_array_equal(found.lengths, np.minimum(free.lengths, limits))
  kept = found.completion_mask
  np.testing.assert_array_equal(found.tokens[kept], free.tokens[kept])
  np.testing.assert_array_equal(
    found.finished, free.finished & (free.lengths <= limits)
  )
  assert_same(run(4, limits), found)
  must_fail(assert_same, run(4, limits + 1), found)


def test_slots_out_of_range():
  with pytest.raises(ValueError, match=r"Sampling\.slots=-1 must be 0"):
    Sampling(max_tokens=T, end_id=1, pad_id=0, slots=-1)
