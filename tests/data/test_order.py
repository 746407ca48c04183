"""The order of draws: parity with a plain loop, epochs, shares, resumption."""

import numpy as np
import pytest

from rlvr.data.order import Order


def loop(sizes, slots, seed, count):
  """The draws one after another, with counters in place of arithmetic."""
  starts = [sum(sizes[:i]) for i in range(len(sizes))]
  used, epochs = [0] * len(sizes), [0] * len(sizes)

  def shuffled(task):
    rng = np.random.default_rng([seed, 1 + task, epochs[task]])
    return list(rng.permutation(sizes[task]))

  decks = [shuffled(task) for task in range(len(sizes))]
  drawn, block = [], 0
  while len(drawn) < count:
    places = [task for task, n in enumerate(slots) for _ in range(n)]
    rng = np.random.default_rng([seed, 0, block])
    for task in rng.permutation(places):
      if used[task] == sizes[task]:
        used[task], epochs[task] = 0, epochs[task] + 1
        decks[task] = shuffled(task)
      drawn.append(starts[task] + decks[task][used[task]])
      used[task] += 1
    block += 1
  return drawn[:count]


@pytest.mark.parametrize(
  ("sizes", "weights"), [([7], [1.0]), ([5, 3], [1, 1]), ([4, 2, 9], [6, 1, 2])]
)
def test_parity_with_a_loop(sizes, weights):
  order = Order(sizes, weights, seed=3)
  expected = loop(sizes, order.slots, 3, 80)
  np.testing.assert_array_equal(order.rows(0, 80), expected)
  # Control: another seed draws otherwise.
  assert list(Order(sizes, weights, seed=4).rows(0, 80)) != expected


def test_any_position_in_any_order():
  order = Order([5, 3], [2, 1], seed=0)
  whole = order.rows(0, 60)
  fresh = Order([5, 3], [2, 1], seed=0)
  for start in (41, 0, 17, 55, 3):
    np.testing.assert_array_equal(
      fresh.rows(start, 5), whole[start : start + 5]
    )


def test_each_epoch_holds_each_example_once_in_its_own_order():
  epochs = Order([11], [1.0], seed=0).rows(0, 33).reshape(3, 11)
  np.testing.assert_array_equal(np.sort(epochs), [np.arange(11)] * 3)
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_shares_are_exact_in_each_block_by_hand():
  # 8 examples, weights 3:1: a block of 8 draws has 6 and 2 of them.
  order = Order([6, 2], [3, 1], seed=0)
  assert order.slots == (6, 2)
  second = order.rows(0, 80).reshape(10, 8) >= 6
  np.testing.assert_array_equal(second.sum(axis=1), [2] * 10)


def test_a_rare_task_has_a_draw_in_each_block():
  # 1 in 100 of 4 examples would be no draw: the block is 100 long instead.
  order = Order([2, 2], [99, 1], seed=0)
  assert order.slots == (99, 1)


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.7, 0.2, 0.1], [5, 3, 11]])
def test_slots_are_the_shares_up_to_rounding(weights):
  slots = np.asarray(Order([4, 5, 8], weights, seed=0).slots)
  exact = np.asarray(weights) / np.sum(weights) * slots.sum()
  assert np.all(np.abs(slots - exact) < 1)


@pytest.mark.parametrize(
  ("sizes", "weights"), [([8], [1.0]), ([6, 4], [2, 1]), ([4, 2, 8], [6, 1, 2])]
)
def test_units_are_drawn_whole(sizes, weights):
  order = Order(sizes, weights, seed=3, unit=2)
  rows = order.rows(0, 160)
  # As a loop over units, each of which is two rows.
  halves = [n // 2 for n in sizes]
  units = loop(halves, order.slots, 3, 80)
  np.testing.assert_array_equal(
    rows, [2 * u + i for u in units for i in (0, 1)]
  )
  # Any even position is reached at once.
  for start in (82, 0, 34):
    np.testing.assert_array_equal(
      Order(sizes, weights, seed=3, unit=2).rows(start, 6),
      rows[start : start + 6],
    )
  # Control: single draws tear them apart.
  single = Order(sizes, weights, seed=3).rows(0, 160).reshape(80, 2)
  assert not np.all(single[:, 0] + 1 == single[:, 1])


def test_units_are_not_cut():
  with pytest.raises(ValueError, match=r"unit=2 with \[4, 3\] examples"):
    Order([4, 3], [1, 1], seed=0, unit=2)
  with pytest.raises(ValueError, match="unit=0"):
    Order([4], [1], seed=0, unit=0)
  order = Order([4], [1], seed=0, unit=2)
  for position, count in ((1, 2), (2, 1)):
    with pytest.raises(ValueError, match="cut a unit of 2 examples"):
      order.rows(position, count)
