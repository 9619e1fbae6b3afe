"""A query reads the lake's tables and nothing else: no file of the machine, no host, no setting, no credential."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pyarrow as pa
import pytest

from schemahub import query
from schemahub.errors import BadQuery, QueryOutOfMemory, QueryRefused, QueryTimeout, SchemaHubError
from tests.lake import Lake, S3Door
from tests.unit.test_query import Session

SECRET = "wJalr-not-for-queries"
PLANTED = "planted-where-no-query-may-look"


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection over one Parquet file of a folder, as a query gets it."""
    folder = tmp_path_factory.mktemp("lake")
    file = folder / "trades.parquet"
    duckdb.execute(f"COPY (SELECT 'COINBASE' AS exchange, 1.5 AS price FROM range(3)) TO '{file}' (FORMAT parquet)")
    db = query.open_files([str(file)], "400MB")
    yield db
    db.close()


ATTACKS = [
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_csv_auto(['{file}'])",
    "SELECT * FROM read_text('{file}')",
    "SELECT content FROM read_blob('{folder}/*')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM read_ndjson_objects('{file}')",
    "SELECT * FROM read_parquet('{folder}/*.parquet')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM read_duckdb('{file}')",
    "FROM '{file}'",
    'FROM "{file}"',
    "DESCRIBE '{file}'",
    "SUMMARIZE '{file}'",
    "TABLE '{file}'",
    "FROM trades, '{file}'",
    "FROM trades POSITIONAL JOIN read_text('{file}')",
    "SELECT (SELECT content FROM read_text('{file}'))",
    "SELECT (FROM (FROM (FROM read_text('{file}'))) LIMIT 1)",
    "WITH a AS (FROM read_text('{file}')) SELECT * FROM a",
    "WITH RECURSIVE a AS (SELECT content FROM read_text('{file}') UNION ALL FROM a) FROM a",
    "SELECT 1 /* ; */ FROM /* x */ read_text/**/('{file}')",
    "SELECT * FROM main.read_text('{file}')",
    "SELECT * FROM system.main.read_text('{file}')",
    "SELECT * FROM READ_TEXT('{file}')",
    "SELECT * FROM \"read_text\"('{file}')",
    "SELECT * FROM range(3) t(i), LATERAL (FROM read_text('{file}'))",
    "SELECT * FROM query('FROM read_text(''{file}'')')",
    "SELECT * FROM query_table('{file}')",
    "SELECT * FROM query_table(['{file}'])",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{file}'')'))",
    "FROM trades UNION ALL BY NAME FROM read_text('{file}')",
    "EXPLAIN ANALYZE FROM read_text('{file}')",
    "EXPLAIN (ANALYZE) FROM read_text('{file}')",
    "/* a */ EXPLAIN -- b\n ANALYZE FROM read_text('{file}')",
    "EXPLAIN ANALYZE COPY trades TO '{folder}/out.csv'",
    "EXPLAIN ANALYZE CREATE TABLE x AS FROM read_text('{file}')",
    "SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '{folder}/log'}})",
    "CALL enable_logging(storage = 'file', storage_config = {{'path': '{folder}/log'}})",
    "SELECT write_log('x')",
    "SELECT * FROM read_parquet('s3://somebody-else/x.parquet')",
    "FROM 's3://somebody-else/x.parquet'",
    "FROM iceberg_scan('s3://somebody-else/metadata/1.metadata.json')",
    "FROM read_csv('http://127.0.0.1:1/x.csv')",
    "FROM 'https://example.com/x.parquet'",
    "COPY trades TO '{folder}/out.csv'",
    "COPY (SELECT 1) TO '{folder}/out.parquet'",
    "COPY trades FROM '{file}'",
    "EXPORT DATABASE '{folder}/out'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/x.db'",
    "ATTACH ':memory:' AS other",
    "DETACH memory",
    "USE memory",
    "INSTALL spatial",
    "LOAD '{folder}/x.duckdb_extension'",
    "SET enable_external_access = true",
    "SET VARIABLE x = 1",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "/* a comment first */ PRAGMA version",
    "-- a comment first\nPRAGMA enable_profiling",
    "CALL pragma_version()",
    "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')",
    "DROP SECRET __default_s3",
    "CREATE MACRO f(p) AS TABLE FROM read_text(p)",
    "CREATE TEMP VIEW v AS FROM read_text('{file}')",
    "PREPARE p AS FROM read_text('{file}')",
    "EXECUTE p",
    "FROM duckdb_secrets()",
    "FROM which_secret('s3://x/', 's3')",
    "FROM duckdb_settings()",
    "FROM pg_settings",
    "FROM pg_catalog.pg_settings",
    "SELECT current_setting('s3_secret_access_key')",
    "SELECT system.main.current_setting('temp_directory')",
    "SELECT getenv('HOME')",
    "SELECT getvariable('x')",
    "FROM duckdb_logs()",
    "FROM duckdb_temporary_files()",
    "FROM duckdb_extensions()",
    "FROM hidden",
    "SELECT * FROM query_table('hidden')",
    "SELECT 1; FROM read_text('{file}')",
    "SELECT 1;; DROP VIEW trades",
    "INSERT INTO trades SELECT * FROM trades",
    "DELETE FROM trades",
    "FROM arrow_scan(1, 2, 3)",
    "FROM checkpoint()",
    "VACUUM",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_query_that_reaches_out_of_the_lake_is_refused_by_name(
    shut: duckdb.DuckDBPyConnection, tmp_path: Path, attack: str
) -> None:
    file = tmp_path / "planted.csv"
    file.write_text(f"a\n{PLANTED}\n")
    sql = attack.format(file=file, folder=tmp_path)
    with pytest.raises((BadQuery, QueryRefused)) as refused:
        query.select(shut, sql)
    assert len(refused.value.remedy) > 20
    assert PLANTED not in str(refused.value)
    assert list(tmp_path.iterdir()) == [file], "nothing was written"


SECOND_WALL = [
    attack
    for attack in ATTACKS
    if attack.startswith(("SELECT", "FROM", "WITH", "TABLE"))
    and ("'" in attack or "hidden" in attack)
    and "enable_logging" not in attack  # the hole in this wall that the parser's look is for
]


@pytest.mark.parametrize("attack", SECOND_WALL)
def test_where_the_parser_s_look_is_passed_the_engine_is_shut_too(
    shut: duckdb.DuckDBPyConnection, tmp_path: Path, attack: str
) -> None:
    """The second wall by itself: nothing of a planted file, or of our own variables, comes out, whatever the answer."""
    file = tmp_path / "planted.csv"
    file.write_text(f"a\n{PLANTED}\n")
    hidden = pa.table({"x": [PLANTED]})
    try:
        rows = shut.execute(attack.format(file=file, folder=tmp_path)).fetchall()
    except duckdb.Error as error:
        rows = [(str(error),)]
    assert PLANTED not in str(rows)
    assert list(tmp_path.iterdir()) == [file]
    del hidden


ALLOWED = {
    "SHOW TABLES": [["trades"], ["unified_trades"]],
    "SELECT count(*) FROM trades": [[3]],
    "select count(*) from unified_trades;": [[3]],
    "-- a comment\nSELECT count(*) FROM trades -- another": [[3]],
    "WITH a AS (SELECT 1 AS x) FROM a": [[1]],
    "FROM range(2)": [[0], [1]],
    "VALUES (1), (2)": [[1], [2]],
    "SELECT unnest([1, 2])": [[1], [2]],
    "SELECT 'read_csv(''/etc/passwd'')'": [["read_csv('/etc/passwd')"]],
    "SELECT 1 AS getenv": [[1]],
    "SELECT column_name FROM (DESCRIBE trades) ORDER BY 1": [["exchange"], ["price"]],
    "SELECT count(*) FROM duckdb_tables()": [[0]],
}


@pytest.mark.parametrize("sql", ALLOWED)
def test_what_reads_the_lake_is_answered(shut: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert query.select(shut, sql)[1] == ALLOWED[sql]


@pytest.mark.parametrize("sql", [
    "DESCRIBE trades", "DESCRIBE unified_trades", "DESCRIBE SELECT 1", "SUMMARIZE trades", "SHOW trades",
    "EXPLAIN SELECT * FROM trades", "EXPLAIN ANALYZE SELECT count(*) FROM trades", "explain select 'ö', 1",
])  # fmt: skip
def test_describe_and_explain_answer(shut: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert query.select(shut, sql)[1]


def test_no_credential_is_in_the_engine_s_settings(
    aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpfs copies the environment's keys into settings that any query may print."""
    lake = Lake(aws, tmp_path)
    lake.publish(lake.transform(lake.commit(1, 10)))
    door = S3Door(lake.objects)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    try:
        db = query.connect(Session(lake.session, door.url), lake.table(), threads=1)
        assert SECRET not in str(db.execute("FROM duckdb_settings()").fetchall())
        assert db.execute("SELECT count(*) FROM unified_trades").fetchall() == [(10,)]
        other = lake.objects.bucket
        for path in (f"s3://{other}/schemahub/plans/x.json", f"s3://{other}x/x", f"{door.url}/x", "/etc/passwd"):
            with pytest.raises(duckdb.PermissionException):
                db.execute(f"FROM read_text('{path}')")
        with pytest.raises(duckdb.Error, match="locked"):
            db.execute("SET enable_external_access = true")
    finally:
        door.close()


def test_the_spill_folder_is_the_query_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB lets a query read its spill directory: were that /tmp, so would be everybody's files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mine.txt").write_text(PLANTED)
    db = query.open_files([], "100MB")
    with pytest.raises(duckdb.PermissionException):
        db.execute(f"FROM read_text('{tmp_path}/mine.txt')")
    for spill in tmp_path.glob("schemahub-query-*"):
        assert spill.stat().st_mode & 0o077 == 0, "nobody else looks in either"


ENDLESS = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b"


@pytest.mark.parametrize("sql", [ENDLESS, "SELECT * FROM range(1000000000000)"])
def test_a_query_that_takes_too_long_is_stopped_and_says_so(sql: str) -> None:
    def rows() -> None:
        for _ in query.stream(query.open_files([], "400MB"), sql, timeout_s=0.3)[1]:
            pass

    with pytest.raises(QueryTimeout, match=r"stopped after 0\.3 s") as stopped:
        rows()
    assert "--timeout" in stopped.value.remedy


def test_a_query_that_is_read_in_time_is_not_stopped_later() -> None:
    import time

    db = query.open_files([])
    assert [len(b) for b in query.stream(db, "SELECT 1", timeout_s=0.2)[1]] == [1]
    time.sleep(0.4)
    assert query.select(db, "SELECT 1")[1] == [[1]]


def test_a_query_that_needs_too_much_memory_says_so() -> None:
    sql = "SELECT list(range) FROM range(100000000)"
    with pytest.raises(QueryOutOfMemory) as stopped:
        query.stream(query.open_files([], "60MB"), sql, timeout_s=60)
    assert "--memory" in stopped.value.remedy


@pytest.mark.parametrize("sql", ["SELECT '101'::BIT", "SELECT [1::UHUGEINT]", "SELECT 1::BIGNUM"])
def test_a_type_that_would_come_out_wrong_is_refused(sql: str) -> None:
    with pytest.raises(BadQuery, match="is a ") as refused:
        query.stream(query.open_files([]), sql)
    assert "VARCHAR" in refused.value.remedy


def test_an_error_in_the_midst_of_the_rows_has_a_name() -> None:
    sql = "SELECT CASE WHEN range < 90000 THEN 1 ELSE error('it broke') END FROM range(100000)"

    def rows() -> Any:
        return sum(len(b) for b in query.stream(query.open_files([]), sql)[1])

    with pytest.raises(SchemaHubError, match="it broke"):
        rows()
