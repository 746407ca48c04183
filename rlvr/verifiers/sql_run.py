"""Running a query on a SQLite database that it can't harm, and comparing rows.

The connection is read-only, and an authorizer lets nothing through but reading:
no write, no ATTACH, no PRAGMA, no extension. What a query may cost is counted in
instructions of SQLite's virtual machine, so that the verdict is the same on a
busy machine; memory, rows, and the length of every value are bounded. What takes
long within one instruction (LIKE on a long text) is left to the worker's time
limit.

Runs in worker processes: imports the standard library alone.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import sqlite3
from collections.abc import Iterator, Sequence

Row = tuple
_INSTRUCTIONS_PER_CALL = 1000
_VALUE_BYTES = 32  # of a small object in Python
_ALLOWED = frozenset(
  (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
  )
)
_DENIED_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What a query may cost.

  instructions: of the virtual machine, in millions.
  rows: of the result.
  value_bytes: of any text or blob, on the way to the result too.
  result_mb: of the result, about 32 bytes a value and what texts and blobs
    have. The other limits together would allow more than a worker may hold, and
    a worker that is killed has not judged.
  memory_mb: that SQLite may hold at a time, all connections of the process
    together; sorting is done in memory, nothing goes to disk.

  Raises:
    ValueError: one isn't above 0.
  """

  instructions: float = 20.0
  rows: int = 10_000
  value_bytes: int = 1_000_000
  result_mb: float = 64.0
  memory_mb: int = 256

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not value > 0:
        raise ValueError(f"Limits.{name}={value} must be above 0")


class QueryFailed(Exception):
  """A query isn't one that the database can run, or is not allowed."""


class QueryTooCostly(Exception):
  """A query went over a limit."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a query gave.

  rows: all of them, in order.
  """

  rows: tuple[Row, ...]

  @property
  def says_nothing(self) -> bool:
    """Whether there is no row, or nothing but NULL in them."""
    return all(value is None for row in self.rows for value in row)


@contextlib.contextmanager
def open_database(
  path: str | pathlib.Path, limits: Limits
) -> Iterator[sqlite3.Connection]:
  """Opens a database for reading and nothing else.

  Args:
    path: the file.
    limits: what queries may cost.

  Raises:
    FileNotFoundError: no such file.
    sqlite3.Error: it is no database.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f"there is no database {str(path)!r}")
  connection = sqlite3.connect(
    f"{file.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None
  )
  try:
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")
    heap = limits.memory_mb << 20
    connection.execute(f"PRAGMA hard_heap_limit = {heap}").fetchone()
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.value_bytes)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200)
    connection.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 50)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200)
    connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.set_authorizer(_authorize)
    yield connection
  finally:
    connection.close()


def _authorize(action, first, second, database, trigger) -> int:
  del first, database, trigger
  if action in _ALLOWED and second not in _DENIED_FUNCTIONS:
    return sqlite3.SQLITE_OK
  return sqlite3.SQLITE_DENY


def schema_names(path: str | pathlib.Path) -> frozenset[str]:
  """Returns the names of a database's tables and columns, in small letters.

  Args:
    path: the file.

  Raises:
    sqlite3.Error: it is no database.
  """
  uri = f"{pathlib.Path(path).resolve().as_uri()}?mode=ro"
  with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
    rows = connection.execute(
      "SELECT m.name, p.name FROM sqlite_master AS m"
      " JOIN pragma_table_info(m.name) AS p WHERE m.type IN ('table', 'view')"
    )
    return frozenset(name.lower() for row in rows for name in row)


def run_query(
  connection: sqlite3.Connection, query: str, limits: Limits
) -> Result:
  """Returns the rows of a query.

  Args:
    connection: from `open_database`.
    query: hostile text.
    limits: what it may cost.

  Raises:
    QueryFailed: SQLite can't run it, or it isn't allowed to.
    QueryTooCostly: it went over a limit.
  """
  calls = math.ceil(limits.instructions * 1e6 / _INSTRUCTIONS_PER_CALL)
  left = calls

  def tick() -> int:
    nonlocal left
    left -= 1
    return left < 0

  connection.set_progress_handler(tick, _INSTRUCTIONS_PER_CALL)
  try:
    cursor = connection.execute(query)
    rows = _fetch(cursor, limits)
    cursor.close()
  except MemoryError:
    raise QueryTooCostly(f"more than {limits.memory_mb} MB") from None
  except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
    # ValueError: a null character, or text that is no Unicode.
    if left < 0:
      millions = limits.instructions
      raise QueryTooCostly(f"more than {millions} million steps") from None
    if isinstance(error, sqlite3.DataError):
      raise QueryTooCostly(f"{error}") from None
    raise QueryFailed(f"{type(error).__name__}: {str(error)[:120]}") from None
  finally:
    connection.set_progress_handler(None, 0)
  return Result(tuple(rows))


def _fetch(cursor: sqlite3.Cursor, limits: Limits) -> list[Row]:
  """Returns the rows; raises QueryTooCostly for too many or too large ones."""
  rows: list[Row] = []
  size = 0
  for row in cursor:
    rows.append(row)
    size += _VALUE_BYTES * len(row)
    size += sum(len(v) for v in row if isinstance(v, (str, bytes)))
    if len(rows) > limits.rows:
      raise QueryTooCostly(f"more than {limits.rows} rows")
    if size > limits.result_mb * 1e6:
      raise QueryTooCostly(f"a result of more than {limits.result_mb} MB")
  return rows


def same_rows(
  first: Sequence[Row],
  second: Sequence[Row],
  *,
  ordered: bool,
  distinct: bool = False,
) -> bool:
  """Returns whether two results are the same.

  As lists where ordered, else as multisets; columns in their order, whatever
  their names. Numbers are equal whatever their type, and up to rounding (sums
  in another order): to nine digits. A text is never a number.

  Args:
    first: rows.
    second: rows.
    ordered: whether the order of rows counts.
    distinct: whether rows count once, as sets (then in no order).
  """
  if distinct:
    first, second = list(dict.fromkeys(first)), list(dict.fromkeys(second))
    ordered = False
  if len(first) != len(second):
    return False
  if not ordered:
    if collections.Counter(first) == collections.Counter(second):
      return True
    first, second = sorted(first, key=_rank), sorted(second, key=_rank)
  return all(map(_same_row, first, second))


def _rank(row: Row) -> tuple:
  """Sorts rows so that those that differ by rounding alone come together."""
  exact = tuple((type(v).__name__, v) for v in row if not _is_number(v))
  exact = tuple((kind, "" if v is None else v) for kind, v in exact)
  kinds = "".join("n" if _is_number(v) else "x" for v in row)
  numbers = tuple(v if _is_number(v) else 0 for v in row)
  return kinds, exact, tuple(float(f"{n:.6g}") for n in numbers), numbers


def _is_number(value) -> bool:
  return isinstance(value, (int, float))


def _same_row(first: Row, second: Row) -> bool:
  return len(first) == len(second) and all(map(_same_value, first, second))


def _same_value(first, second) -> bool:
  if _is_number(first) and _is_number(second):
    if isinstance(first, int) and isinstance(second, int):
      return first == second
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)
  return first == second
