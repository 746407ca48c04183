import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import segments
from tests import make, suite

NAN = float("nan")


def members(values, group, g):
  own = values[group == g]
  return own[~np.isnan(own)].astype(np.float64)


def numpy_group_mean(values, group, num_groups):
  return np.array(
    [
      own.mean() if own.size else 0.0
      for own in (members(values, group, g) for g in range(num_groups))
    ]
  )


def numpy_group_std(values, group, num_groups, ddof):
  return np.array(
    [
      own.std(ddof=ddof) if own.size > ddof else 0.0
      for own in (members(values, group, g) for g in range(num_groups))
    ]
  )


def inputs():
  rng = np.random.default_rng(0)
  values = rng.normal(size=9).astype(np.float32) + 3.0
  group = np.array([0, 0, 0, 1, 3, 3, 3, 3, 4], np.int32)
  holes = values.copy()
  holes[[0, 3]] = NAN
  return [(values, group, 5), (holes, group, 6)]


def test_group_statistics_by_hand():
  values = jnp.array([1.0, 3.0, 8.0, NAN, 5.0])
  group = jnp.array([0, 0, 2, 2, 2])
  np.testing.assert_allclose(segments.group_mean(values, group, 3), [2, 0, 6.5])
  # (1 + 1) / 1; nothing; (1.5^2 + 1.5^2) / 1
  std = segments.group_std(values, group, 3, ddof=1)
  np.testing.assert_allclose(std, [np.sqrt(2), 0, np.sqrt(4.5)], rtol=1e-6)
  count = segments.group_count(values > 2, group, 3)
  np.testing.assert_array_equal(count, [1, 0, 2])
  pairs = jnp.ones((5, 2))
  np.testing.assert_array_equal(
    segments.group_sum(pairs, group, 3), [[2, 2], [0, 0], [3, 3]]
  )


def test_group_mask_leaves_out():
  values, group = jnp.array([1.0, 3.0, 100.0]), jnp.zeros((3,), jnp.int32)
  mask = jnp.array([True, True, False])
  assert segments.group_mean(values, group, 1, mask) == 2.0
  assert segments.group_std(values, group, 1, mask, ddof=0) == 1.0


def test_group_mean_parity():
  suite.numpy_parity(segments.group_mean, numpy_group_mean, inputs())
  suite.must_fail(
    suite.numpy_parity,
    lambda v, g, n: segments.group_mean(jnp.nan_to_num(v), g, n),
    numpy_group_mean,
    inputs(),
  )


@pytest.mark.parametrize("ddof", [0, 1])
def test_group_std_parity(ddof):
  def reference(v, g, n):
    return numpy_group_std(v, g, n, ddof)

  suite.numpy_parity(
    lambda v, g, n: segments.group_std(v, g, n, ddof=ddof), reference, inputs()
  )
  suite.must_fail(
    suite.numpy_parity,
    lambda v, g, n: segments.group_std(v, g, n, ddof=1 - ddof),
    reference,
    inputs(),
  )


def test_masked_mean():
  values = jnp.array([[1.0, 3.0, NAN], [5.0, NAN, NAN]])
  mask = jnp.array([[True, True, False], [False, False, False]])
  np.testing.assert_array_equal(segments.masked_mean(values, mask, 1), [2, 0])
  assert segments.masked_mean(values, mask) == 2.0


STEPS = [
  # 9 ends a step, 8 as well; the mask ends behind the last token but one.
  ([5, 9, 5, 5, 8, 5, 0], [0, 0, 1, 1, 1, 2, -1]),
  # Two delimiters in sequence belong to one step.
  ([5, 9, 8, 5, 5, 9, 0], [0, 0, 0, 1, 1, 1, -1]),
  # A delimiter at the beginning ends a step of its own.
  ([9, 5, 5, 5, 5, 5, 0], [0, 1, 1, 1, 1, 1, -1]),
  # None: one step.
  ([5, 5, 5, 5, 5, 5, 0], [0, 0, 0, 0, 0, 0, -1]),
  # More than K = 3: the rest belongs to the last.
  ([9, 5, 9, 5, 9, 5, 0], [0, 1, 1, 2, 2, 2, -1]),
]


@pytest.mark.parametrize(("tokens", "expected"), STEPS)
def test_step_indices_by_hand(tokens, expected):
  tokens = jnp.array([tokens])
  mask = jnp.arange(7)[None, :] < 6
  result = segments.step_indices(tokens, mask, (9, 8), 3)
  np.testing.assert_array_equal(result, [expected])


@pytest.mark.parametrize("seed", range(3))
def test_step_indices_count_up_and_no_step_is_empty(seed):
  rollout = make.rollout(seed, num_tokens=9, lengths=[9, 1, 4, 6, 9, 2])
  tokens = jnp.where(rollout.completion_mask, rollout.tokens % 3, 2)
  index = segments.step_indices(tokens, rollout.completion_mask, (2,), 4)
  for row, mask in zip(
    np.asarray(index), np.asarray(rollout.completion_mask), strict=True
  ):
    assert row[0] == 0
    assert set(np.diff(row[mask])) <= {0, 1}
    assert (row[~mask] == -1).all()


def test_step_indices_without_delimiters_and_steps():
  tokens, mask = jnp.array([[1, 2, 3]]), jnp.array([[True, True, False]])
  np.testing.assert_array_equal(
    segments.step_indices(tokens, mask, (), 2), [[0, 0, -1]]
  )
  with pytest.raises(ValueError, match="num_steps=0"):
    segments.step_indices(tokens, mask, (2,), 0)


def test_step_mask_and_spread():
  index = jnp.array([[0, 0, 1, -1], [0, -1, -1, -1], [-1, -1, -1, -1]])
  mask = segments.step_mask(index, 3)
  expected = [[True, True, False], [True, False, False], [False] * 3]
  np.testing.assert_array_equal(mask, expected)
  values = jnp.array([[1.0, 2.0, NAN], [3.0, NAN, NAN], [NAN, NAN, NAN]])
  np.testing.assert_array_equal(
    segments.spread_steps(values, index, fill=-7.0),
    [[1, 1, 2, -7], [3, -7, -7, -7], [-7] * 4],
  )


def test_last_token_mask():
  mask = jnp.array([[True, True, False], [True] * 3, [False] * 3])
  np.testing.assert_array_equal(
    segments.last_token_mask(mask),
    [[False, True, False], [False, False, True], [False] * 3],
  )


DELIMITED = [
  ((7,), [1, 7, 2, 7, 3, 4], [0, 0, 0, 0, 1, 1]),  # the last one counts
  ((7, 8), [7, 8, 2, 7, 3, 4], [0, 0, 1, 1, 1, 1]),  # all of it in sequence
  ((7,), [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]),  # none: no answer
  ((7,), [1, 2, 3, 4, 5, 7], [0, 0, 0, 0, 0, 0]),  # nothing behind it
  ((), [1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1]),  # all is the answer
  ((1,) * 9, [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]),  # longer than T
]


@pytest.mark.parametrize(("delimiter", "tokens", "expected"), DELIMITED)
def test_after_last_delimiter_by_hand(delimiter, tokens, expected):
  tokens = jnp.array([tokens])
  mask = jnp.ones((1, 6), bool)
  result = segments.after_last_delimiter(tokens, mask, delimiter)
  np.testing.assert_array_equal(result, np.array([expected], bool))
  # A delimiter outside the mask is none.
  padded = jnp.pad(tokens, ((0, 0), (0, 2)), constant_values=7)
  result = segments.after_last_delimiter(
    padded, jnp.pad(mask, ((0, 0), (0, 2))), delimiter
  )
  np.testing.assert_array_equal(result[:, :6], np.array([expected], bool))
  assert not result[:, 6:].any()
