"""Responses as the trainer sees them, their masks, and their noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import models
from rlvr.sampling import Sampling, sample, slots
from tests import tiny
from tests.compare import must_fail
from tests.sampling.test_filters import in_numpy

CONFIG = tiny.CONFIG
PARAMS = tiny.params(CONFIG)
PROMPTS = tiny.prompts()
P, G, T = 3, 4, 7
B = P * G
SAMPLING = Sampling(
  max_tokens=T,
  end_id=tiny.END,
  pad_id=tiny.PAD,
  step_delimiters=(6, 7, 8, 9, 10),
  max_steps=3,
)
# float32 by two roads through the same model.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


@functools.cache
def jitted(grouped=True, **changes):
  settings = SAMPLING if not changes else _changed(**changes)

  @jax.jit
  def run(prompts, key, ids, group):
    size = ids.shape[0] // prompts.tokens.shape[0]
    return sample(
      PARAMS,
      CONFIG,
      prompts,
      key,
      sampling=settings,
      group_size=size if grouped else None,
      group=None if grouped else group,
      response_ids=ids,
    )

  return run


def _changed(**changes):
  return Sampling(**{**vars(SAMPLING), **changes})


def drawn(seed=0, *, ids=None, prompts=PROMPTS, group=None, **changes):
  """Returns responses as NumPy arrays."""
  count = prompts.tokens.shape[0] * G if group is None else len(group)
  ids = np.arange(count) if ids is None else np.asarray(ids)
  run = jitted(grouped=group is None, **changes)
  rollout = run(
    prompts,
    jax.random.key(seed),
    ids.astype(np.int32),
    None if group is None else np.asarray(group, np.int32),
  )
  return jax.device_get(rollout)


@jax.jit
def _trainer_logits(prompts, tokens, mask, group):
  hidden = models.forward_responses(
    PARAMS, CONFIG, prompts.tokens, prompts.mask, tokens, mask, group
  )
  return models.logits(PARAMS, CONFIG, hidden)


def trainer_logits(rollout):
  return np.asarray(
    _trainer_logits(
      rollout.prompts, rollout.tokens, rollout.completion_mask, rollout.group
    )
  )


def assert_logprobs_are_the_trainers(rollout, temperature, cuts=(0, 1.0, 0.0)):
  """Asserts that the behavior log-probs are those of the sampled tokens."""
  mask = rollout.completion_mask
  p = in_numpy(trainer_logits(rollout)[mask], temperature, *cuts)
  chosen = p[np.arange(len(p)), rollout.tokens[mask]]
  assert (chosen > 0).all(), "a token was sampled that is cut"
  close(rollout.behavior_logprobs[mask], np.log(chosen))
  assert (rollout.behavior_logprobs[~mask] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers(temperature):
  changes = {} if temperature == 1.0 else {"temperature": temperature}
  rollout = drawn(**changes)
  assert_logprobs_are_the_trainers(rollout, temperature)
  must_fail(assert_logprobs_are_the_trainers, rollout, temperature + 0.05)


def test_cut_logprobs_are_those_of_what_is_left():
  rollout = drawn(temperature=1.2, top_k=6, top_p=0.8, min_p=0.1)
  assert_logprobs_are_the_trainers(rollout, 1.2, (6, 0.8, 0.1))
  must_fail(assert_logprobs_are_the_trainers, rollout, 1.2)


def test_greedy_takes_the_likeliest_and_is_certain():
  rollout = drawn(temperature=0.0)
  mask = rollout.completion_mask
  best = trainer_logits(rollout).argmax(-1)
  np.testing.assert_array_equal(rollout.tokens[mask], best[mask])
  assert (rollout.behavior_logprobs == 0).all()
  for row in range(0, B, G):  # the same for each response to a prompt
    assert (rollout.tokens[row : row + G] == rollout.tokens[row]).all()


def check_ends(rollout):
  """The mask ends with the end token; behind it is padding."""
  assert rollout.completion_mask.dtype == bool
  for tokens, mask, logprobs, finished in zip(
    rollout.tokens,
    rollout.completion_mask,
    rollout.behavior_logprobs,
    rollout.finished,
    strict=True,
  ):
    ends = np.flatnonzero(tokens == tiny.END)
    length = ends[0] + 1 if len(ends) else T
    assert mask.tolist() == [t < length for t in range(T)]
    assert (tokens[length:] == tiny.PAD).all()
    assert (logprobs[:length] < 0).all()
    assert finished == (len(ends) > 0)


def test_responses_end_at_the_end_token():
  rollout = drawn()
  check_ends(rollout)
  ended = rollout.finished
  assert 0 < ended.sum() < B, "both kinds are to be there: take another seed"
  assert (rollout.lengths < T).any()
  broken = rollout.completion_mask & (rollout.tokens != tiny.END)
  object.__setattr__(rollout, "completion_mask", broken)
  must_fail(check_ends, rollout)


def test_the_loop_ends_with_the_last_response(monkeypatch):
  # Every response ends with the first token that greedy takes, at once. The
  # pad token's place is then filled without a pass of the model.
  prompts = tiny.prompts(lengths=(4,))
  calls = []
  real = slots.decode

  def counting(*args):
    jax.debug.callback(lambda: calls.append(1))
    return real(*args)

  monkeypatch.setattr(slots, "decode", counting)

  def run(end_id):
    calls.clear()
    settings = _changed(temperature=0.0, end_id=end_id)
    rollout = jax.jit(
      lambda key: sample(
        PARAMS, CONFIG, prompts, key, sampling=settings, group_size=2
      )
    )(jax.random.key(0))
    jax.effects_barrier()
    return jax.device_get(rollout), len(calls)

  free, count = run(end_id=-1)
  assert count == T - 1
  assert not free.finished.any()
  first = free.tokens[0, 0]
  rollout, count = run(end_id=int(first))
  assert count == 0
  assert rollout.tokens.tolist() == [[first] + [tiny.PAD] * (T - 1)] * 2
  assert rollout.finished.all()
  # The end at its first other token: as many passes as tokens before it.
  later = int(np.argmax(free.tokens[0] != first))
  assert later > 0
  _, count = run(end_id=int(free.tokens[0, later]))
  assert count == later


def test_noise_is_the_keys_and_the_ids_alone():
  base = drawn()
  again = drawn()
  np.testing.assert_array_equal(base.tokens, again.tokens)
  # Other places in the group: the tokens move with their ids.
  order = np.arange(B).reshape(P, G)[:, [2, 0, 3, 1]].reshape(-1)
  moved = drawn(ids=order)
  np.testing.assert_array_equal(moved.tokens, base.tokens[order])
  assert (moved.tokens != base.tokens).any()
  # Another batch: the last prompt alone, with its ids.
  alone = drawn(
    ids=np.arange(B - G, B),
    prompts=jax.tree.map(lambda x: x[-1:], PROMPTS),
  )
  np.testing.assert_array_equal(alone.tokens, base.tokens[-G:])
  # Other ids and other keys: other tokens.
  assert (drawn(ids=np.arange(B) + B).tokens != base.tokens).any(1).all()
  assert (drawn(seed=1).tokens != base.tokens).any(1).all()
  # The responses of one prompt differ.
  assert len(np.unique(base.tokens[:G], axis=0)) == G


def test_ids_default_to_the_places():
  rollout = jax.eval_shape(
    lambda key: sample(
      PARAMS, CONFIG, PROMPTS, key, sampling=SAMPLING, group_size=2
    ),
    jax.random.key(0),
  )
  assert rollout.tokens.shape == (2 * P, T)
  assert drawn().group.tolist() == [0] * G + [1] * G + [2] * G


def test_uneven_groups():
  even = drawn()
  as_index = drawn(group=np.repeat(np.arange(P), G))
  np.testing.assert_array_equal(as_index.tokens, even.tokens)
  close(as_index.behavior_logprobs, even.behavior_logprobs)
  group = [0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
  uneven = drawn(group=group)
  assert uneven.group.tolist() == group
  check_ends(uneven)
  assert_logprobs_are_the_trainers(uneven, 1.0)
  object.__setattr__(uneven, "group", even.group)
  must_fail(assert_logprobs_are_the_trainers, uneven, 1.0)


def test_steps_end_at_the_delimiters():
  rollout = drawn()
  for tokens, mask, index in zip(
    rollout.tokens, rollout.completion_mask, rollout.step_index, strict=True
  ):
    step, expected, ended = 0, [], False
    for token, inside in zip(tokens, mask, strict=True):
      delimiter = token in SAMPLING.step_delimiters
      if ended and not delimiter:
        step += 1
      ended = delimiter
      expected.append(min(step, 2) if inside else -1)
    assert index.tolist() == expected
  assert rollout.step_index.max() == 2


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
    ({"temperature": -0.1}, "temperature=-0.1 must be at least 0"),
    ({"top_k": -1}, "top_k=-1 must be 0"),
    ({"top_p": 0.0}, "top_p=0.0 must be in"),
    ({"top_p": 1.5}, "top_p=1.5 must be in"),
    ({"min_p": 1.0}, "min_p=1.0 must be in"),
    ({"max_steps": 0}, "max_steps=0 must be at least 1"),
  ],
)
def test_settings_out_of_range(changes, message):
  with pytest.raises(ValueError, match=f"Sampling.{message}"):
    _changed(**changes)


def test_group_size_or_group():
  call = functools.partial(
    sample, PARAMS, CONFIG, PROMPTS, jax.random.key(0), sampling=SAMPLING
  )
  with pytest.raises(ValueError, match="group_size=None with group missing"):
    call()
  with pytest.raises(ValueError, match="group_size=2 with group given"):
    call(group_size=2, group=jnp.zeros((2,), jnp.int32))
  with pytest.raises(ValueError, match="group_size=0 must be at least 1"):
    call(group_size=0)


def test_truncates():
  assert not SAMPLING.truncates
  for changes in (
    {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}
  ):  # fmt: skip
    assert _changed(**changes).truncates
