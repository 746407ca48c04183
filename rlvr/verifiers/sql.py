"""SQL: a query is right if its result is, and partly right by its parts.

Reasoning-SQL (Pourreza et al. 2025, https://arxiv.org/abs/2503.23157). Five
rewards, which a chain adds up: "correct" (the results are the same), "syntax"
(the query runs), "schema" (Jaccard of tables and columns), "ngram" (Jaccard of
bigrams) and "format" (the tags). The paper's sixth, a model's judgement where
the result is wrong, is for a judge to give.

Runs in worker processes: imports the standard library here, sqlglot late.
"""

import functools
import pathlib
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlvr.verifiers.formats import check_tags, format_score
from rlvr.verifiers.sql_run import (
  Limits,
  QueryFailed,
  QueryTooCostly,
  Result,
  open_database,
  run_query,
  same_rows,
  schema_names,
)
from rlvr.verifiers.sql_text import (
  UnreadableSQL,
  extract_sql,
  is_ordered,
  ngram_similarity,
  schema_similarity,
)

if TYPE_CHECKING:
  from rlvr.verifiers.host import PoolVerifier

REWARDS = ("syntax", "schema", "ngram", "format")
DEFAULT_TAGS = ("reasoning", "answer")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Reference(NamedTuple):
  """What is known about a right query.

  result: its rows.
  ordered: whether their order counts.
  known: names of the database's tables and columns.
  problem: why it can't be used; empty otherwise.
  """

  result: Result
  ordered: bool
  known: frozenset[str]
  problem: str = ""


def make_sql_checker(
  *,
  databases: str,
  tags: Sequence[str] = DEFAULT_TAGS,
  rows: Literal["multiset", "set"] = "multiset",
  empty_reference: Literal["fail", "compare"] = "fail",
  limits: Mapping[str, float] | None = None,
  max_query_chars: int = 10_000,
  max_chars: int = 1_000_000,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the item function for SQL.

  It takes {"response", "reference", "metadata"}: the reference is a query, and
  `metadata["db_id"]` names the database <databases>/<db_id>/<db_id>.sqlite, as
  Spider and BIRD lay them out.

  - CORRECT: the query's rows are the reference's: in order where the reference
    as a whole has ORDER BY, else as multisets;
  - WRONG: they aren't, or the query went over a limit;
  - NO_ANSWER: no query was found (`sql_text.extract_sql`);
  - MALFORMED: SQLite can't run it, it isn't allowed, or it is too long;
  - VERIFIER_FAILED: no such database, or a reference that doesn't run, or whose
    result says nothing (no rows, or only NULL), which whatever comes to nothing
    would match.

  "syntax" is 1 where the query ran (one that went over a limit did not), "schema"
  and "ngram" are 0 where it can't be parsed or doesn't read, "format" is 1 where
  the tags are kept. Without a usable reference all are missing.

  Rows that the reference's ORDER BY leaves in any order are compared in the
  order that SQLite gives them.

  Args:
    databases: folder.
    tags: the format, the answer's last.
    rows: "set": rows count once and in no order, as BIRD evaluates.
    empty_reference: "compare" takes references that say nothing for good.
    limits: fields of `sql_run.Limits` that are to differ from its own.
    max_query_chars: longer queries are MALFORMED.
    max_chars: longer responses are MALFORMED.

  Raises:
    ValueError: an unknown option, or a limit that isn't above 0.
  """
  check_tags(tags)
  if rows not in ("multiset", "set"):
    raise ValueError(f"rows={rows!r}: give 'multiset' or 'set'")
  if empty_reference not in ("fail", "compare"):
    raise ValueError(
      f"empty_reference={empty_reference!r}: give 'fail' or 'compare'"
    )
  cost = Limits(**(limits or {}))  # type: ignore[arg-type]
  import sqlglot  # noqa: F401  the import is the worker's start-up, once

  folder = pathlib.Path(databases)

  @functools.lru_cache(maxsize=256)
  def reference_of(name: str, query: str) -> Reference:
    nothing = Reference(Result(()), False, frozenset())
    if not _NAME.fullmatch(name) or name.startswith("."):
      return nothing._replace(problem=f"metadata['db_id']={name[:60]!r}")
    path = folder / name / f"{name}.sqlite"
    try:
      with open_database(path, cost) as database:
        found = run_query(database, query, cost)
      known = schema_names(path)
      ordered = is_ordered(query)
    except (OSError, sqlite3.Error) as error:
      return nothing._replace(problem=f"database {name}: {error}")
    except (QueryFailed, QueryTooCostly, UnreadableSQL) as error:
      return nothing._replace(problem=f"reference: {error}")
    problem = ""
    if found.says_nothing and empty_reference == "fail":
      problem = "the reference's result says nothing"
    return Reference(found, ordered, known, problem)

  def check(item: Mapping[str, Any]) -> dict[str, Any]:
    name = str(item["metadata"].get("db_id", ""))
    wanted = item["reference"].strip().rstrip("; \t\n")
    reference = reference_of(name, wanted)
    if reference.problem:
      return {"verdict": "VERIFIER_FAILED", "detail": reference.problem}
    response = item["response"]
    rewards = dict.fromkeys(REWARDS, 0.0)

    def said(verdict: str, detail: str = "") -> dict[str, Any]:
      return {"verdict": verdict, "detail": detail, "rewards": rewards}

    if len(response) > max_chars:
      return said("MALFORMED", f"{len(response)} characters")
    rewards["format"] = format_score(response, tags)
    query = extract_sql(response, tag=tags[-1])
    if query is None:
      return said("NO_ANSWER")
    if len(query) > max_query_chars:
      return said("MALFORMED", f"a query of {len(query)} characters")
    try:
      rewards["schema"] = schema_similarity(
        query, wanted, known=reference.known
      )
      rewards["ngram"] = ngram_similarity(query, wanted)
    except UnreadableSQL:
      pass  # SQLite has the last word on what is SQL
    try:
      with open_database(folder / name / f"{name}.sqlite", cost) as database:
        found = run_query(database, query, cost)
    except QueryFailed as error:
      return said("MALFORMED", str(error))
    except QueryTooCostly as error:
      return said("WRONG", str(error))
    rewards["syntax"] = 1.0
    same = same_rows(
      found.rows,
      reference.result.rows,
      ordered=reference.ordered,
      distinct=rows == "set",
    )
    return said("CORRECT" if same else "WRONG")

  return check


def sql_verifier(
  *,
  databases: str,
  num_workers: int,
  time_limit_s: float,
  tags: Sequence[str] = DEFAULT_TAGS,
  rows: Literal["multiset", "set"] = "multiset",
  empty_reference: Literal["fail", "compare"] = "fail",
  limits: Mapping[str, float] | None = None,
  max_query_chars: int = 10_000,
  max_chars: int = 1_000_000,
  memory_limit_mb: int | None = 1024,
  truncated: Literal["no_answer", "verify"] = "no_answer",
  name: str = "correct",
) -> "PoolVerifier":
  """Returns the verifier of SQL, with the further rewards `REWARDS`.

  The paper adds them up: correct 3, syntax 1, schema 1, ngram 1, format 1 (and
  the judge 2), see gin/methods/sql_partial_rewards.gin.

  Args:
    databases: see `make_sql_checker`.
    num_workers: processes.
    time_limit_s: wall seconds per response; the limit in instructions should
      come first.
    tags: see `make_sql_checker`.
    rows: see `make_sql_checker`.
    empty_reference: see `make_sql_checker`.
    limits: see `make_sql_checker`.
    max_query_chars: see `make_sql_checker`.
    max_chars: see `make_sql_checker`.
    memory_limit_mb: see `WorkerPool`.
    truncated: see `host.Truncated`.
    name: the first reward's name.

  Raises:
    ValueError: see `make_sql_checker`; there is no such folder.
  """
  from rlvr.verifiers.host import PoolVerifier

  if not pathlib.Path(databases).is_dir():
    raise ValueError(
      f"sql_verifier.databases={databases!r} is no folder: build Spider's with"
      " `python -m rlvr.data.sql_tasks`, or give those that were published"
    )
  kwargs: dict[str, Any] = {
    "databases": str(pathlib.Path(databases).resolve()),
    "tags": list(tags),
    "rows": rows,
    "empty_reference": empty_reference,
    "limits": dict(limits or {}),
    "max_query_chars": max_query_chars,
    "max_chars": max_chars,
  }
  make_sql_checker(**kwargs)  # raises here
  return PoolVerifier(
    "rlvr.verifiers.sql:make_sql_checker",
    kwargs,
    num_workers=num_workers,
    time_limit_s=time_limit_s,
    memory_limit_mb=memory_limit_mb,
    truncated=truncated,
    name=name,
    rewards=REWARDS,
  )
