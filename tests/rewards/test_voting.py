import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.rewards import voting
from tests import suite

# Group 0: answers 7 7 3 and none; group 1: a tie of 5 and 2; group 2: none.
IDS = np.array([7, 7, 3, -1, 5, 2, -1], np.int32)
GROUP = np.array([0, 0, 0, 0, 1, 1, 2], np.int32)
SCORES = np.array([1.0, 2.0, 4.0, 3.0, 0.5, 0.5, 9.0], np.float32)


def test_majority_by_hand():
  result = voting.majority_answers(IDS, GROUP, 3)
  # Of equally frequent answers the one that was sampled first.
  np.testing.assert_array_equal(result, [7, 5, -1])


def test_borda_by_hand():
  # Group 0 has ranks 4 3 1 2: votes 1 2 4 3 to the power p; the third's answer
  # has 4^p, the first two's 1 + 2^p, and nobody gets the fourth's 3^p.
  weights = voting.borda_weights(jnp.asarray(SCORES), GROUP, power=2.0)
  np.testing.assert_allclose(weights, [1, 4, 16, 9, 4, 1, 1])
  votes = voting.answer_votes(weights, IDS, GROUP)
  np.testing.assert_allclose(votes, [5, 5, 16, 0, 4, 1, 0])

  def winners(p):
    return voting.borda_winners(jnp.asarray(SCORES), IDS, GROUP, 3, power=p)

  np.testing.assert_array_equal(winners(2.0), [3, 5, -1])
  # p = 0 is majority voting; 1 + 2^0.5 > 4^0.5.
  np.testing.assert_array_equal(winners(0.0), [7, 5, -1])
  np.testing.assert_array_equal(winners(0.5), [7, 5, -1])


def numpy_borda(scores, ids, group, p, reverse=True):
  result = np.full(3, -1)
  for g in range(3):
    members = [i for i in range(len(ids)) if group[i] == g]
    order = sorted(members, key=lambda i: scores[i], reverse=reverse)
    count = {}
    for rank, i in enumerate(order):
      if ids[i] >= 0:
        vote = (len(members) - rank) ** p
        count[ids[i]] = count.get(ids[i], 0.0) + vote
    if count:
      sampled = [ids[i] for i in members]  # max takes the first of equals
      result[g] = max(sorted(count, key=sampled.index), key=count.get)
  return result


@pytest.mark.parametrize("power", [0.3, 1.2])
def test_borda_parity(power):
  rng = np.random.default_rng(0)
  inputs = []
  for _ in range(3):
    group = np.sort(rng.integers(0, 3, 9)).astype(np.int32)
    ids = rng.integers(-1, 3, 9).astype(np.int32)
    inputs.append((rng.normal(size=9).astype(np.float32), ids, group))
  fn = lambda s, i, g: voting.borda_winners(s, i, g, 3, power=power)  # noqa: E731
  suite.numpy_parity(fn, lambda *a: numpy_borda(*a, power), inputs)
  suite.must_fail(
    suite.numpy_parity,
    fn,
    lambda *a: numpy_borda(*a, power, reverse=False),
    inputs,
  )


def test_missing_score_has_no_vote():
  scores = jnp.asarray(SCORES).at[2].set(np.nan)
  weights = voting.borda_weights(scores, GROUP, power=1.0)
  np.testing.assert_allclose(weights[:4], [1, 2, 0, 3])
  votes = voting.answer_votes(
    jnp.where(jnp.isnan(scores), jnp.nan, weights), IDS, GROUP
  )
  np.testing.assert_allclose(votes[:4], [3, 3, 0, 0])
