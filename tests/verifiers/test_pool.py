import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from rlvr.verifiers import WorkerPool, WorkerPoolError
from rlvr.verifiers.process import WorkerProcess

ITEMS = "tests.verifiers.items:make_item_function"
ROOT = pathlib.Path(__file__).parents[2]


def make_pool(**changes):
  settings = {"num_workers": 2, "time_limit_s": 0.5, **changes}
  return WorkerPool(ITEMS, **settings)


@pytest.fixture(scope="module")
def pool():
  with make_pool() as made:
    yield made


def wait_for(condition, seconds=10.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.01)


def alive(pid):
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def test_order_is_kept_over_many_chunks(pool):
  outcomes = pool.map([("add", i) for i in range(1000)])
  assert [o.value for o in outcomes] == list(range(1000))
  assert {o.status for o in outcomes} == {"ok"}


def test_kwargs_reach_the_function():
  with WorkerPool(
    ITEMS, {"offset": 10}, num_workers=1, time_limit_s=1
  ) as small:
    assert small.map([("add", 1)])[0].value == 11


def test_no_items_need_no_worker(pool):
  assert pool.map([]) == []


def test_cheap_items_travel_packed(pool):
  pool.map([("add", 0)] * 100)  # the pool learns that they are cheap
  start = time.perf_counter()
  pool.map([("add", i) for i in range(2000)])
  # Far under a millisecond each, also where other things run.
  assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize("item", [("sleep", 60), ("c_loop", 9)])
def test_an_item_over_time_is_killed_and_the_others_are_not(pool, item):
  start = time.monotonic()
  outcomes = pool.map([("add", 1), item, ("add", 2), ("sleep", 0.01)])
  assert [o.status for o in outcomes] == ["ok", "timed_out", "ok", "ok"]
  assert [o.value for o in outcomes] == [1, None, 2, "slept"]
  assert "time_limit_s=0.5" in outcomes[1].error
  assert outcomes[1].seconds >= 0.5
  assert time.monotonic() - start < 10


def test_the_limit_is_per_item_not_per_chunk():
  with make_pool(num_workers=1) as single:
    single.map([("add", 0)] * 200)  # so that the next eight are one chunk
    outcomes = single.map([("sleep", 0.1)] * 8)
  assert {o.status for o in outcomes} == {"ok"}


def test_time_limit_off_the_main_thread_and_from_several_at_once(pool):
  def work(k):
    assert threading.current_thread() is not threading.main_thread()
    items = [("add", k), ("sleep", 60), ("add", -k)]
    return [(o.status, o.value) for o in pool.map(items)]

  with concurrent.futures.ThreadPoolExecutor(3) as threads:
    results = list(threads.map(work, [1, 2, 3]))
  for k, result in enumerate(results, 1):
    assert result == [("ok", k), ("timed_out", None), ("ok", -k)]


@pytest.mark.parametrize(
  ("item", "words"),
  [
    (("raise", "a reason"), "ValueError: a reason"),
    (("unprintable", 0), "Unprintable: (its message cannot be printed)"),
    (("exit", 7), "exited with status 7"),
    (("system_exit", 4), "exited with status 4"),
    (("not_json", 0), "TypeError"),
  ],
)
def test_a_failing_item_is_failed_with_its_reason(pool, item, words):
  outcomes = pool.map([("add", 1), item, ("add", 2)])
  assert [o.status for o in outcomes] == ["ok", "failed", "ok"]
  assert words in outcomes[1].error
  assert outcomes[1].value is None


def test_kill_9_in_the_middle_of_a_batch_fails_one_item_only():
  with make_pool(num_workers=1, time_limit_s=5) as single:
    single.wait_until_ready(30)
    future = single.submit([("sleep", 0.3), *[("add", i) for i in range(50)]])
    time.sleep(0.1)
    (pid,) = single.worker_pids()
    os.kill(pid, signal.SIGKILL)
    outcomes = future.result(30)
    assert outcomes[0].status == "failed"
    assert "SIGKILL" in outcomes[0].error
    assert [o.value for o in outcomes[1:]] == list(range(50))
    assert single.worker_pids() != [pid]
    assert single.restarts == 1


def test_an_idle_worker_that_was_killed_costs_nothing():
  with make_pool(num_workers=1) as single:
    single.wait_until_ready(30)
    (pid,) = single.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: single.restarts == 1)
    assert single.map([("add", 5)])[0].value == 5


def test_deaths_of_idle_workers_do_not_add_up_over_a_run():
  # Three in a row break a pool of one worker; an item done begins a new count.
  with make_pool(num_workers=1, time_limit_s=20.0) as single:
    for i in range(4):
      assert single.map([("add", i)])[0].value == i
      (pid,) = single.worker_pids()
      os.kill(pid, signal.SIGKILL)
      wait_for(lambda n=i: single.restarts == n + 1)
    assert single.map([("add", 5)])[0].value == 5


def test_a_chunk_is_small_in_bytes_too(monkeypatch):
  # It is sent before its first item runs, whose time it takes.
  sent = []
  send = WorkerProcess.send_line

  def record(process, line):
    sent.append(len(line))
    send(process, line)

  monkeypatch.setattr(WorkerProcess, "send_line", record)
  with make_pool(num_workers=1, time_limit_s=20.0) as single:
    single.map([("add", 0)] * 200)  # the pool learns that they are cheap
    sent.clear()
    single.map([("add", 0)] * 100)
    assert len(sent) < 20  # the control: many in one where they are small
    sent.clear()
    texts = ["x" * 700_000] * 8
    outcomes = single.map([("echo", text) for text in texts])
  assert [o.value for o in outcomes] == texts
  assert len(sent) >= 4 and max(sent) < 1.5e6


def test_printing_does_not_reach_the_channel(pool):
  outcomes = pool.map([("noise", 0), ("add", 3)])
  assert [o.value for o in outcomes] == ["quiet", 3]


def test_strings_of_any_kind_come_back_as_they_went(pool):
  text = 'a\n"\u2028\ud800\x00é' + "z" * 3_000_000
  outcomes = pool.map([("echo", text), ("echo", ""), ("echo", None)])
  assert [o.value for o in outcomes] == [text, "", None]
  assert {o.status for o in outcomes} == {"ok"}


def test_what_workers_import_imports_neither_jax_nor_tensorflow():
  probe = """
import sys
from rlvr.verifiers.mathematics import make_math_checker
from rlvr.verifiers.reasoning import make_reasoning_gym_scorer
make_math_checker()
make_reasoning_gym_scorer()
print([name for name in ("jax", "tensorflow", "flax") if name in sys.modules])
"""
  run = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", probe],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert run.stdout.strip() == "[]"


def test_a_running_worker_has_neither_jax_nor_tensorflow(pool):
  import jax

  assert "jax" in sys.modules and jax.__version__  # here it is, there it isn't
  assert pool.map([("loaded", 0)])[0].value == []


def test_growth_is_stopped_and_said():
  with make_pool(num_workers=1, time_limit_s=20, memory_limit_mb=150) as single:
    outcomes = single.map([("grow", 0), ("add", 1)])
  assert [o.status for o in outcomes] == ["failed", "ok"]
  assert "memory_limit_mb=150" in outcomes[0].error


def test_a_worker_that_has_grown_is_replaced_between_chunks():
  with make_pool(num_workers=1, time_limit_s=20, memory_limit_mb=200) as single:
    first = single.map([("hoard", 120)])[0]
    assert first.status == "ok"
    second = single.map([("pid", 0)])[0]
    assert second.value != first.value
    # A worker that has not grown stays (the control).
    assert single.map([("pid", 0)])[0].value == second.value


def test_a_memory_limit_that_no_worker_can_keep_is_an_error():
  with (
    make_pool(memory_limit_mb=15) as mine,
    pytest.raises(
      WorkerPoolError, match=r"memory_limit_mb|MemoryError|status \d"
    ),
  ):
    mine.map([("add", 1)])


@pytest.mark.parametrize(
  ("function", "words"),
  [
    ("tests.verifiers.items:make_nothing", "there is no such library"),
    ("tests.verifiers.items:make_and_exit", "status 3.*out of luck"),
    ("tests.verifiers.items:make_what", "make_what"),
    ("no_such_module:make", "no_such_module"),
  ],
)
def test_workers_that_do_not_start_are_an_error(function, words):
  with WorkerPool(function, num_workers=1, time_limit_s=1) as broken:
    with pytest.raises(WorkerPoolError, match=f"(?s){words}"):
      broken.map([("add", 1)])
    with pytest.raises(WorkerPoolError, match="came to nothing"):
      broken.submit([("add", 1)])
    with pytest.raises(WorkerPoolError, match="came to nothing"):
      broken.wait_until_ready(5)
    assert broken.worker_pids() == []


def test_close_leaves_no_process_and_fails_what_waits():
  mine = make_pool(time_limit_s=60)
  mine.wait_until_ready(30)
  future = mine.submit([("sleep", 60)] * 3)
  time.sleep(0.1)
  pids = mine.worker_pids()
  assert len(pids) == 2 and all(alive(pid) for pid in pids)
  start = time.monotonic()
  mine.close()
  mine.close()
  assert time.monotonic() - start < 5
  assert not any(alive(pid) for pid in pids)
  with pytest.raises(WorkerPoolError, match="closed"):
    future.result(5)
  with pytest.raises(WorkerPoolError, match="closed"):
    mine.map([("add", 1)])


@pytest.mark.parametrize("how", ["exit", "SIGINT", "SIGTERM", "SIGKILL"])
def test_workers_end_with_their_parent(how):
  # Two busy workers, one of them in a loop in C, and no `close`.
  script = f"""
    import sys, time
    from rlvr.verifiers.pool import WorkerPool
    pool = WorkerPool({ITEMS!r}, num_workers=2, time_limit_s=100)
    future = pool.submit([("add", 1)])
    future.result()
    pool.submit([("sleep", 60), ("c_loop", 9)])
    time.sleep(0.3)
    print(*pool.worker_pids(), flush=True)
    if {how!r} != "exit":
      pool.submit([("sleep", 60)]).result()
    """
  parent = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(script)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  with parent:
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    if how != "exit":
      assert all(alive(pid) for pid in pids)
      parent.send_signal(signal.Signals[how])
    parent.wait(20)
  wait_for(lambda: not any(alive(pid) for pid in pids))


def test_a_stopped_pool_does_not_leak_descriptors():
  make_pool().close()
  before = psutil.Process().num_fds()
  for _ in range(3):
    with make_pool() as mine:
      mine.map([("add", 1), ("exit", 1)])
  assert psutil.Process().num_fds() == before


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"num_workers": 0}, "num_workers=0"),
    ({"time_limit_s": -1.0}, "time_limit_s=-1.0"),
    ({"memory_limit_mb": 0}, "memory_limit_mb=0"),
  ],
)
def test_arguments_are_checked(changes, words):
  with pytest.raises(ValueError, match=words):
    make_pool(**changes)
  with pytest.raises(ValueError, match="module:name"):
    WorkerPool("json", num_workers=1, time_limit_s=1)


def test_an_item_that_is_not_json_is_refused_at_once(pool):
  with pytest.raises(TypeError):
    pool.map([{1, 2}])
