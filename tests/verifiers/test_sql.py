"""SQL: verdicts, partial rewards, attacks, and Spider's gold queries."""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import sqlite3

import numpy as np
import pytest

from rlvr.data import sql_tasks
from rlvr.types import Verdict
from rlvr.verifiers.sql import make_sql_checker, sql_verifier
from rlvr.verifiers.sql_run import (
  Limits,
  QueryFailed,
  QueryTooCostly,
  open_database,
  run_query,
  same_rows,
)
from rlvr.verifiers.sql_text import (
  UnreadableSQL,
  extract_sql,
  is_ordered,
  jaccard,
  ngram_similarity,
  schema_items,
  schema_similarity,
  sql_tokens,
)

DATA = os.environ.get("RLVR_DATA")
PEOPLE = [(1, "Ann", 30), (2, "Bob", 25), (3, "Cid", 30), (4, "Dee", None)]


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
  folder = tmp_path_factory.mktemp("databases")
  file = folder / "town" / "town.sqlite"
  file.parent.mkdir()
  with contextlib.closing(sqlite3.connect(file)) as connection, connection:
    connection.execute("CREATE TABLE person (id INTEGER, name TEXT, age REAL)")
    connection.executemany("INSERT INTO person VALUES (?, ?, ?)", PEOPLE)
    connection.execute("CREATE TABLE empty (x)")
  return folder


def said(query):
  return f"<reasoning>so</reasoning>\n<answer>\n{query}\n</answer>"


def judge(databases, queries, references, **options):
  check = make_sql_checker(databases=str(databases), **options)
  return [
    check(
      {
        "response": query,
        "reference": reference,
        "metadata": {"db_id": "town"},
      }
    )
    for query, reference in zip(queries, references, strict=True)
  ]


ADULTS = "SELECT name FROM person WHERE age > 26"


def test_verdicts_and_partial_rewards(databases):
  items = [
    (said(ADULTS), ADULTS + ";"),
    # As a multiset: another order, another way to say it, another column name.
    (
      said(
        "SELECT p.name AS n FROM person p WHERE p.age = 30 ORDER BY id DESC"
      ),
      ADULTS,
    ),
    (said("SELECT name FROM person"), ADULTS),
    (said("SELECT nam FROM person"), ADULTS),
    (said("I don't know"), ADULTS),
    ("I don't know", ADULTS),
    (ADULTS, ADULTS),
    (said(ADULTS), "SELECT name FROM person WHERE age > 99"),
    (said(ADULTS), "SELECT max(age) FROM person WHERE age > 99"),
    (said(ADULTS), "SELECT nam FROM person"),
    (said("SELECT 'x' --" + "x" * 20_000), ADULTS),
  ]
  found = judge(databases, *zip(*items, strict=True))
  assert [f["verdict"] for f in found] == [
    *("CORRECT", "CORRECT", "WRONG", "MALFORMED", "MALFORMED", "NO_ANSWER"),
    *("CORRECT", *["VERIFIER_FAILED"] * 3, "MALFORMED"),
  ]
  assert found[0]["rewards"] == dict.fromkeys(
    ("syntax", "schema", "ngram", "format"), 1.0
  )
  # Of "select name, name from, from person, person where, where age, age >, >
  # 26", 3 are in the shorter query, which has no others; of the names person,
  # name and age 2.
  assert found[2]["rewards"] == {
    "syntax": 1.0,
    "schema": pytest.approx(2 / 3),
    "ngram": pytest.approx(3 / 7),
    "format": 1.0,
  }
  # "nam" is no name of the database's: only person, of three. Of bigrams only
  # "from person" of 7 + 3 - 1.
  assert found[3]["rewards"] == {
    "syntax": 0.0,
    "schema": pytest.approx(1 / 3),
    "ngram": pytest.approx(1 / 9),
    "format": 1.0,
  }
  assert found[4]["rewards"]["syntax"] == 0.0
  assert set(found[5]["rewards"].values()) == {0.0}
  assert found[6]["rewards"]["format"] == 0.0
  assert "rewards" not in found[7]


def test_order_counts_where_the_reference_has_it(databases):
  up, down = ADULTS + " ORDER BY name", ADULTS + " ORDER BY name DESC"
  found = judge(
    databases, map(said, (up, down, up, down)), (up, up, ADULTS, down)
  )
  verdicts = [f["verdict"] for f in found]
  assert verdicts == ["CORRECT", "WRONG", "CORRECT", "CORRECT"]
  assert is_ordered(up) and is_ordered("SELECT 1 UNION SELECT 2 ORDER BY 1")
  assert is_ordered(f"(({up}))")
  assert not is_ordered(f"SELECT * FROM ({up})") and not is_ordered(ADULTS)


def test_rows_as_sets_and_empty_references(databases):
  ages, distinct = "SELECT age FROM person", "SELECT DISTINCT age FROM person"
  (as_rows,) = judge(databases, [said(distinct)], [ages])
  (as_sets,) = judge(databases, [said(distinct)], [ages], rows="set")
  assert (as_rows["verdict"], as_sets["verdict"]) == ("WRONG", "CORRECT")
  empty = "SELECT x FROM empty"
  (found,) = judge(databases, [said(empty)], [empty], empty_reference="compare")
  assert found["verdict"] == "CORRECT"


def test_too_many_rows(databases):
  everyone = "SELECT name FROM person"
  limits = {"rows": 3}
  found = judge(
    databases, [said(everyone), said(ADULTS)], [ADULTS] * 2, limits=limits
  )
  assert [f["detail"] for f in found] == ["more than 3 rows", ""]
  (found,) = judge(databases, [said(ADULTS)], [everyone], limits=limits)
  assert found["verdict"] == "VERIFIER_FAILED"


def test_too_large_results(databases):
  queries = [
    "SELECT " + ", ".join(["p.age"] * 100) + " FROM person p, person q",
    "SELECT hex(zeroblob(300000)) FROM person p, person q",
  ]
  for query in queries:
    item = {"response": said(query), "reference": ADULTS}
    item["metadata"] = {"db_id": "town"}
    free = make_sql_checker(databases=str(databases))
    assert free(item)["detail"] == ""
    tight = make_sql_checker(
      databases=str(databases), limits={"result_mb": 0.04}
    )
    found = tight(item)
    assert found["verdict"] == "WRONG" and "MB" in found["detail"]
    assert found["rewards"]["syntax"] == 0.0


def test_each_wall_stands_alone(databases):
  file = databases / "town" / "town.sqlite"
  write = "INSERT INTO person VALUES (9, 'x', 1)"
  with open_database(file, Limits()) as connection:
    for name in ("load_extension('x')", "fts3_tokenizer('simple')"):
      function = name.partition("(")[0]
      # Some builds of SQLite don't have them at all.
      with pytest.raises(QueryFailed, match=f"(use|such) function: {function}"):
        run_query(connection, f"SELECT {name}", Limits())
    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
      connection.execute(write)
    connection.set_authorizer(None)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
      connection.execute(write)
    connection.execute("PRAGMA query_only = OFF")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
      connection.execute(write)  # the file is open for reading alone


def test_a_value_has_a_limit(databases):
  limits = Limits(value_bytes=1000)
  with open_database(databases / "town" / "town.sqlite", limits) as connection:
    assert run_query(connection, "SELECT zeroblob(1000)", limits).rows
    for query in ("zeroblob(1001)", "length(zeroblob(600) || zeroblob(600))"):
      with pytest.raises(QueryTooCostly, match="too big"):
        run_query(connection, f"SELECT {query}", limits)


def test_rows_by_hand():
  assert same_rows([(1, "a"), (2, "b")], [(2.0, "b"), (1, "a")], ordered=False)
  assert not same_rows([(1,), (2,)], [(2,), (1,)], ordered=True)
  assert not same_rows([(1,), (1,), (2,)], [(1,), (2,), (2,)], ordered=False)
  assert same_rows(
    [(1,), (1,), (2,)], [(1,), (2,), (2,)], ordered=False, distinct=True
  )
  assert not same_rows([(1, 2)], [(2, 1)], ordered=False)  # columns in order
  assert not same_rows([("1",)], [(1,)], ordered=False)
  assert not same_rows([(None,)], [(0,)], ordered=False)
  assert not same_rows([(b"a",)], [("a",)], ordered=False)
  assert not same_rows([(1,)], [(1, 1)], ordered=True)
  # Rounding: 0.1 + 0.2 isn't 0.3 to the bit; the seventh digit counts.
  third = [(0.1 + 0.2, "x"), (0.3, "a")]
  assert same_rows(third, [(0.3, "a"), (0.3, "x")], ordered=False)
  assert same_rows(third, [(0.3, "x"), (0.3, "a")], ordered=True)
  assert not same_rows([(0.3000001,)], [(0.3,)], ordered=False)
  assert not same_rows([(2**60,)], [(2**60 + 1,)], ordered=False)
  assert same_rows([], [], ordered=True)


@pytest.mark.parametrize(
  ("response", "query"),
  [
    ("<answer>SELECT 1;</answer>", "SELECT 1"),
    ("```sql\nSELECT 1\n```", "SELECT 1"),
    ("<answer>a ```sql\nSELECT 1; ``` b</answer>", "SELECT 1"),
    ("```sql\nSELECT 1\n``` or ```SQL\nSELECT 2\n```", "SELECT 2"),
    ("```python\n1\n``` ```\nSELECT 1\n```", "SELECT 1"),
    ("```sql\nSELECT 1", "SELECT 1"),
    ("<answer>1</answer><answer>select 2</answer>", "select 2"),
    (" ( SELECT 1 )", "( SELECT 1 )"),
    *[(q, q) for q in ("with a as (select 1) select * from a", "values (1)")],
    ("Take SELECT 1", None),
    ("<answer> ; </answer>", None),
    ("", None),
    ("`" * 99_999, None),
  ],
)
def test_extract_sql(response, query):
  assert extract_sql(response) == query


def test_jaccard():
  assert jaccard("abc", "bcde") == 2 / 5
  assert jaccard([], []) == 1.0 and jaccard("a", "") == 0.0


def test_ngrams_by_hand():
  assert sql_tokens("Select \"A\" , 'B'  FROM t -- x") == (
    *("select", "a", ",", "'B'", "from", "t"),
  )
  # {select a, a from, from t} and {select b, b from, from t}: 1 of 5.
  assert ngram_similarity("SELECT a FROM t", "select  b\nfrom T") == 1 / 5
  # {select, a, from, t} and {select, b, from, t}: 3 of 5.
  assert ngram_similarity("SELECT a FROM t", "SELECT b FROM t", n=1) == 3 / 5
  assert ngram_similarity("a", "a") == 1.0
  with pytest.raises(UnreadableSQL):
    ngram_similarity("SELECT 'a", "SELECT 1")


def test_schema_by_hand():
  query = (
    "WITH old AS (SELECT p.Name AS n FROM Person AS p JOIN Home h ON p.id ="
    ' h.owner) SELECT n, count(*) FROM old WHERE n != "Ann"'
  )
  # Without a database "Ann" could be a column.
  assert schema_items(query) == {
    *("person", "home", "name", "id", "owner", "n", "ann"),
  }
  known = {"person", "home", "name", "id", "owner", "age"}
  assert schema_items(query, known=known) == known - {"age"}
  # person and name of person, name and age.
  assert schema_similarity(
    "SELECT name FROM person", "SELECT name, age FROM person", known=known
  ) == pytest.approx(2 / 3)
  for unread in ("SELEC x", "SELECT 1; SELECT 2", "DROP TABLE t", "", "("):
    with pytest.raises(UnreadableSQL):
      schema_items(unread)


DEEP = 3000
HOSTILE = {
  # Not allowed, or no SQL.
  "MALFORMED": [
    "INSERT INTO person VALUES (9, 'x', 1)",
    "DELETE FROM person",
    "DROP TABLE person",
    "CREATE TEMP TABLE x AS SELECT 1",
    "ATTACH '{evil}' AS e",
    "VACUUM INTO '{evil}'",
    "PRAGMA query_only = OFF",
    "SELECT * FROM pragma_hard_heap_limit(0)",
    "SELECT load_extension('x')",
    "BEGIN EXCLUSIVE",
    "SELECT 1; DROP TABLE person",
    "SELECT 1\x00",
    "SELECT '\ud800'",
    "SELECT " + "1+" * 500_000 + "1",  # a megabyte
    *[f"SELECT {'(' * n}1{')' * n}" for n in (300, DEEP)],
    "SELECT " + "NOT " * 2000 + "1",
    "SELECT " + "- " * DEEP + "1",
    "SELECT " + "1+" * DEEP + "1",
    "SELECT " + "CASE WHEN 1 THEN " * 500 + "1" + " END" * 500,
    "SELECT * FROM " + "(SELECT * FROM " * 200 + "person" + ")" * 200,
    " UNION ".join(["SELECT 1"] * 900),
    "SELECT 1 FROM " + " JOIN ".join(["person"] * 70),  # slow to parse
  ],
  # Too costly, or simply wrong.
  "WRONG": [
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
    " SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
    " SELECT x FROM c",
    "SELECT 1 FROM " + ", ".join(["person"] * 15),  # 4^15 rows: 10^9
    "SELECT count(*) FROM " + ", ".join(["person"] * 15),
    "SELECT zeroblob(2000000000)",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
    " SELECT randomblob(900000), x FROM c ORDER BY random()",
    "SELECT printf('%.900000c', 'x')",
    # Within every other limit, and 9 GB.
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
    " SELECT hex(zeroblob(450000)), x FROM c LIMIT 9999",
    "EXPLAIN SELECT 1",
    "/* SELECT 1",
  ],
}


def test_attacks(databases, tmp_path):
  evil = tmp_path / "evil.db"
  file = databases / "town" / "town.sqlite"
  before = hashlib.sha256(file.read_bytes()).hexdigest()
  queries = [q for queries in HOSTILE.values() for q in queries]
  expected = [v for v, queries in HOSTILE.items() for _ in queries]
  responses = [said(q.replace("{evil}", str(evil))) for q in queries]
  responses.append(said(ADULTS))
  n = len(responses)
  with sql_verifier(
    databases=str(databases),
    num_workers=1,
    time_limit_s=60.0,
    limits={"instructions": 2.0, "memory_mb": 64},
  ) as verifier:
    signals = verifier.verify(
      responses, [ADULTS] * n, [{"db_id": "town"}] * n, np.ones(n, bool)
    )
    restarts = verifier.pool.restarts
  found = [Verdict(v).name for v in signals.verdicts["correct"]]
  assert dict(zip(queries, found, strict=False)) == dict(
    zip(queries, expected, strict=True)
  )
  assert found[-1] == "CORRECT" and restarts == 0
  assert hashlib.sha256(file.read_bytes()).hexdigest() == before
  assert not evil.exists() and sorted(file.parent.iterdir()) == [file]
  # Nothing is won by them, but for the format.
  for name in ("correct", "schema"):
    assert not signals.outcome[name][: len(HOSTILE["MALFORMED"])].any()


@pytest.mark.parametrize(
  "name", ["", "none", "../town", "town/../town", "/etc", ".", "..", "a" * 200]
)
def test_a_database_that_is_not_there(databases, name):
  check = make_sql_checker(databases=str(databases))
  item = {"response": said("SELECT 1"), "reference": "SELECT 1"}
  found = check({**item, "metadata": {"db_id": name}})
  assert found["verdict"] == "VERIFIER_FAILED"


def test_a_database_outside_the_folder(databases, tmp_path):
  file = databases / "town" / "town.sqlite"
  (tmp_path / "other.sqlite").write_bytes(file.read_bytes())
  check = make_sql_checker(databases=str(databases))
  item = {"response": said(ADULTS), "reference": ADULTS}
  found = check({**item, "metadata": {"db_id": str(tmp_path / "other")}})
  assert found["verdict"] == "VERIFIER_FAILED"


def test_a_file_that_is_no_database(tmp_path):
  file = tmp_path / "town" / "town.sqlite"
  file.parent.mkdir()
  file.write_text("no database" * 1000)
  (found,) = judge(tmp_path, [said("SELECT 1")], ["SELECT 1"])
  assert found["verdict"] == "VERIFIER_FAILED"


def test_bad_options(databases, tmp_path):
  pool = {"num_workers": 1, "time_limit_s": 1.0}
  for options, words in (
    ({"databases": str(tmp_path / "none")}, "no folder"),
    ({"databases": str(databases), "rows": "bag"}, "'bag'"),
    ({"databases": str(databases), "empty_reference": "?"}, "'?'"),
    ({"databases": str(databases), "limits": {"rows": 0}}, "Limits.rows=0"),
    ({"databases": str(databases), "tags": ("a", "a")}, "tags"),
  ):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
      sql_verifier(**pool, **options)
  assert Limits().instructions > 0


@pytest.mark.skipif(
  not DATA, reason="set RLVR_DATA to a folder that holds spider/dev.json"
)
def test_spider_gold_against_itself(tmp_path):
  folder = pathlib.Path(DATA, "spider")
  questions = json.loads((folder / "dev.json").read_text())
  schemas = sql_tasks.read_schemas(str(folder / "tables.json"))
  values = sql_tasks.values_of(questions)
  sql_tasks.build_databases(
    [schemas[name] for name in values], tmp_path, values=values
  )
  check = make_sql_checker(databases=str(tmp_path))
  compare = make_sql_checker(databases=str(tmp_path), empty_reference="compare")
  verdicts, details = collections.Counter(), collections.Counter()
  for question in questions:
    item = {
      "response": said(question["query"]),
      "reference": question["query"],
      "metadata": {"db_id": question["db_id"]},
    }
    found = check(item)
    verdicts[found["verdict"]] += 1
    if found["verdict"] != "CORRECT":
      details[found["detail"]] += 1
      found = compare(item)
    assert found["verdict"] == "CORRECT", question["query"]
    assert set(found["rewards"].values()) == {1.0}, question["query"]
  # Those that made-up rows answer with nothing can tell nothing apart.
  assert sum(verdicts.values()) == 1034 and set(details) == {
    "the reference's result says nothing"
  }
  assert verdicts["VERIFIER_FAILED"] <= 50
