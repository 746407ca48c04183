"""One set of worker processes for all verifiers of a host.

A run with a mixture's verifiers and another one for evaluation has as many
worker processes as the verifier that asks for most has asked for, and not the
sum: each process serves them all. Limits belong to a verifier and hold while
its items run. The processes end with the last verifier.
"""

import json
import threading
from collections.abc import Mapping
from typing import Any

from rlvr.verifiers.dispatch import Dispatcher
from rlvr.verifiers.jobs import WorkerPoolError
from rlvr.verifiers.pool import WorkerPool

_lock = threading.Lock()
_dispatcher: Dispatcher | None = None  # the host's; guarded by the lock
_pools: dict[str, WorkerPool] = {}  # by settings; guarded by the lock
_users: dict[WorkerPool, int] = {}  # guarded by the lock


def take_pool(
  function: str, kwargs: Mapping[str, Any] | None = None, **settings: Any
) -> WorkerPool:
  """Returns a pool of these settings: one that is in use already, or a new one.

  All of them share their processes. Give it back by `give_back`; don't close
  it.

  Args:
    function, kwargs, settings: see `WorkerPool`.

  Raises:
    ValueError: see `WorkerPool`.
  """
  key = json.dumps([function, dict(kwargs or {}), settings], sort_keys=True)
  with _lock:
    pool = _pools.get(key)
    if pool is None or not pool.usable:
      pool = _pools[key] = _new_pool(function, kwargs, settings)
    _users[pool] = _users.get(pool, 0) + 1
    return pool


def _new_pool(
  function: str, kwargs: Mapping[str, Any] | None, settings: dict[str, Any]
) -> WorkerPool:
  global _dispatcher
  if _dispatcher is not None:
    try:
      return WorkerPool(function, kwargs, **settings, dispatcher=_dispatcher)
    except WorkerPoolError:
      pass  # it has ended with the last of its functions
  _dispatcher = Dispatcher()
  return WorkerPool(function, kwargs, **settings, dispatcher=_dispatcher)


def give_back(pool: WorkerPool) -> None:
  """Closes a pool that `take_pool` gave, if nobody else uses it.

  Raises:
    KeyError: it was not taken, or given back as often.
  """
  with _lock:
    _users[pool] -= 1
    last = not _users[pool]
    if last:
      del _users[pool]
      for key in [key for key, value in _pools.items() if value is pool]:
        del _pools[key]
  if last:
    pool.close()
