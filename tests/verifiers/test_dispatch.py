"""Several functions in one set of worker processes."""

import threading
import time

import numpy as np
import pytest

from rlvr.verifiers import PoolVerifier, WorkerPool, WorkerPoolError
from rlvr.verifiers.dispatch import Dispatcher
from tests.verifiers.test_pool import alive, wait_for

ITEMS = "tests.verifiers.items:make_item_function"
HEAVY = "tests.verifiers.items:make_heavy"
SCRIPTED = "tests.verifiers.items:make_echo_math"
NOTHING = "tests.verifiers.items:make_nothing"


@pytest.fixture
def dispatcher():
  made = Dispatcher()
  yield made
  made.close()


def use(dispatcher, function=ITEMS, kwargs=None, **changes):
  settings = {"num_workers": 1, "time_limit_s": 20.0, **changes}
  return WorkerPool(function, kwargs, dispatcher=dispatcher, **settings)


def values(outcomes):
  return [o.value for o in outcomes]


def test_functions_share_their_processes(dispatcher):
  one = use(dispatcher, kwargs={"offset": 1})
  two = use(dispatcher, kwargs={"offset": 2})
  first = one.submit([("add", i) for i in range(200)])
  second = two.submit([("add", i) for i in range(200)])
  assert values(first.result(30)) == [i + 1 for i in range(200)]
  assert values(second.result(30)) == [i + 2 for i in range(200)]
  (pid,) = one.worker_pids()
  assert one.map([("pid", 0)])[0].value == pid
  assert two.map([("pid", 0)])[0].value == pid
  assert dispatcher.restarts == 0
  # The control: a pool of its own has a process of its own.
  with use(None, kwargs={"offset": 1}) as alone:
    assert alone.map([("pid", 0)])[0].value != pid


def test_verifiers_of_one_host_have_the_workers_of_the_greatest():
  known = {"responses": ["CORRECT"] * 40, "references": [""] * 40}
  batch = [*known.values(), [{}] * 40, np.ones(40, bool)]
  with (
    PoolVerifier(SCRIPTED, num_workers=2, time_limit_s=20.0) as train,
    PoolVerifier(SCRIPTED, num_workers=3, time_limit_s=21.0) as evaluation,
    PoolVerifier(
      "tests.verifiers.items:make_parts", num_workers=1, time_limit_s=20.0
    ) as other,
  ):
    pending = [v.start(*batch) for v in (train, evaluation)]
    assert all((p.result(30).outcome["correct"] == 1).all() for p in pending)
    pids = train.pool.worker_pids()
    assert len(pids) == 3
    for verifier in (evaluation, other):
      assert verifier.pool.worker_pids() == pids
    evaluation.close()  # who wanted three has gone
    wait_for(lambda: len(train.pool.worker_pids()) == 2)
    assert set(train.pool.worker_pids()) < set(pids)
    assert train.verify(*batch).outcome["correct"].sum() == 40
  assert not any(alive(pid) for pid in pids)


def test_a_crash_fails_no_item_of_another_function(dispatcher):
  one = use(dispatcher, num_workers=2)
  two = use(dispatcher, kwargs={"offset": 5}, num_workers=2)
  # Cheap ones, so that several travel together.
  one.map([("add", 0)] * 300)
  two.map([("add", 0)] * 300)
  bad = [("exit", 1) if i % 20 == 7 else ("add", i) for i in range(100)]
  first = one.submit(bad)
  second = two.submit([("add", i) for i in range(100)])
  assert [o.status for o in first.result(60)] == [
    "failed" if i % 20 == 7 else "ok" for i in range(100)
  ]
  assert values(second.result(60)) == [i + 5 for i in range(100)]
  assert dispatcher.restarts >= 5


def test_back_pressure_holds_over_all_functions(dispatcher):
  one = use(dispatcher, max_waiting=3)
  two = use(dispatcher, kwargs={"offset": 5}, max_waiting=3)
  one.wait_until_ready(30)
  two.wait_until_ready(30)
  first = one.submit([("sleep", 0.5)] * 4)
  late = []
  thread = threading.Thread(target=lambda: late.append(two.map([("add", 1)])))
  thread.start()
  time.sleep(0.1)
  with dispatcher._lock:
    assert dispatcher._waiting == 4  # of the first alone: the second waits
  assert not late
  thread.join(20)
  assert values(late[0]) == [6]
  assert first.result(20)[0].status == "ok"
  # A bound of its own lets it in (the control).
  three = use(dispatcher, kwargs={"offset": 7}, max_waiting=5)
  one.submit([("sleep", 0.5)] * 4)
  start = time.monotonic()
  waiting = three.submit([("add", 1)])
  assert time.monotonic() - start < 0.4
  assert values(waiting.result(20)) == [8]


def test_functions_take_turns(dispatcher):
  slow = use(dispatcher)
  quick = use(dispatcher, kwargs={"offset": 5})
  quick.wait_until_ready(30)
  first = slow.submit([("sleep", 0.2)] * 12)
  assert values(quick.map([("add", 1)])) == [6]
  assert not first.done()
  assert len(first.result(30)) == 12


def test_limits_travel_with_the_items(dispatcher):
  strict = use(dispatcher, time_limit_s=4.0, memory_limit_mb=200)
  lenient = use(dispatcher, time_limit_s=20.0)
  items = [("sleep", 6.0), ("hoard", 300), ("add", 1)]
  found = [pool.map(items) for pool in (strict, lenient)]
  assert [o.status for o in found[0]] == ["timed_out", "failed", "ok"]
  assert "4" in found[0][0].error
  assert [o.status for o in found[1]] == ["ok"] * 3
  # What the lenient one hoards in a worker isn't the strict one's: it gets a
  # new worker rather than a failed item.
  (pid,) = lenient.worker_pids()
  assert found[1][1].value == pid
  outcome = strict.map([("pid", 0)])[0]
  assert outcome.status == "ok" and outcome.value != pid


def test_what_another_function_loads_counts_for_nobody_else(dispatcher):
  heavy = use(dispatcher, HEAVY, {"megabytes": 200})
  heavy.wait_until_ready(30)
  light = use(dispatcher, memory_limit_mb=120)
  (pid,) = heavy.worker_pids()
  assert light.map([("pid", 0)] * 3)[0].value == pid
  assert heavy.map([("pid", 0)])[0].value == pid
  assert light.map([("grow", 0)])[0].status == "failed"
  assert dispatcher.restarts == 1
  # The control: what it takes to load counts for itself.
  strict = use(dispatcher, HEAVY, {"megabytes": 201}, memory_limit_mb=120)
  with pytest.raises(WorkerPoolError, match="memory_limit_mb=120"):
    strict.map([("add", 1)])
  assert values(heavy.map([("add", 1)])) == [1]


def test_a_function_that_does_not_load_leaves_the_others_alone(dispatcher):
  good, bad = use(dispatcher), use(dispatcher, NOTHING)
  first, second = good.submit([("add", 3)]), bad.submit([("add", 3)])
  with pytest.raises(WorkerPoolError, match=r"(?s)make_nothing.*no such libr"):
    second.result(30)
  assert values(first.result(30)) == [3]
  assert good.usable and not bad.usable
  with pytest.raises(WorkerPoolError, match="came to nothing"):
    bad.submit([("add", 1)])
  assert values(good.map([("add", 4)])) == [4]
  bad.close()
  assert values(good.map([("add", 4)])) == [4]


def test_address_space_of_another_function_counts_for_nobody_else(dispatcher):
  # 80 MB of memory are 320 MB of addresses, which the heavy one alone has taken.
  heavy = use(dispatcher, HEAVY, {"megabytes": 330})
  assert values(heavy.map([("add", 1)])) == [1]
  light = use(dispatcher, memory_limit_mb=80)
  (outcome,) = light.map([("hoard", 8)])
  assert (outcome.status, outcome.error) == ("ok", "")
  assert [outcome.value] == heavy.worker_pids()  # and it is the same worker
  # The control: what it takes itself counts.
  (outcome,) = light.map([("hoard", 330)])
  assert outcome.status == "failed"


def test_address_space_is_limited_anew_for_each_chunk(dispatcher):
  strict = use(dispatcher, memory_limit_mb=80)
  lenient = use(dispatcher, kwargs={"offset": 5}, memory_limit_mb=1024)
  assert values(strict.map([("add", 1)])) == [1]
  assert values(lenient.map([("add", 1)])) == [6]  # its limit came last
  (outcome,) = strict.map([("hoard", 400)])
  assert outcome.error.startswith("MemoryError")  # refused, not killed for it
  (outcome,) = lenient.map([("hoard", 400)])  # the control
  assert outcome.status == "ok"


def test_workers_end_when_no_function_can_be_served(dispatcher):
  bad = use(dispatcher, NOTHING)
  with pytest.raises(WorkerPoolError, match="came to nothing"):
    bad.map([("add", 1)])
  wait_for(lambda: not dispatcher.worker_pids())
  with pytest.raises(WorkerPoolError, match="closed"):
    use(dispatcher)


def test_closing_one_fails_its_own_items_only(dispatcher):
  one = use(dispatcher, num_workers=2)
  two = use(dispatcher, kwargs={"offset": 5}, num_workers=2)
  two.wait_until_ready(30)
  gone = one.submit([("sleep", 60)] * 3)
  stays = two.submit([("sleep", 0.3), *[("add", i) for i in range(20)]])
  time.sleep(0.1)
  one.close()
  with pytest.raises(WorkerPoolError, match="closed"):
    gone.result(5)
  with pytest.raises(WorkerPoolError, match="closed"):
    one.submit([("add", 1)])
  assert values(stays.result(30))[1:] == [i + 5 for i in range(20)]
  pids = two.worker_pids()
  two.close()
  assert not any(alive(pid) for pid in pids)
  with pytest.raises(WorkerPoolError, match="closed"):
    use(dispatcher)


def test_closing_one_fails_what_runs_and_makes_room(dispatcher):
  one = use(dispatcher, time_limit_s=60.0)
  two = use(dispatcher, kwargs={"offset": 5}, max_waiting=1)
  assert values(one.map([("add", 1)])) == [1]
  gone = one.submit([("sleep", 60)])  # nothing of it waits: it runs
  time.sleep(0.3)
  one.close()
  with pytest.raises(WorkerPoolError, match="closed"):
    gone.result(10)
  # It counts no longer among those that wait, or this would never begin.
  found = []
  thread = threading.Thread(
    target=lambda: found.extend(two.map([("add", 1)])), daemon=True
  )
  thread.start()
  thread.join(20)
  assert values(found) == [6]


def test_a_dispatcher_nobody_used_can_be_closed():
  made = Dispatcher()
  made.close()
  made.close()
  assert made.worker_pids() == []
