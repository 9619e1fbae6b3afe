"""SQL on a deployed stack: what is sent, how its result is read in pieces with its types, and when it is stopped."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import IncompleteReadError
from typer.testing import CliRunner

from schemahub.errors import BadQuery, QueryTimeout, StoreUnavailable
from schemahub_cli import athena, athena_result, target
from schemahub_cli.main import app

RUNNER = CliRunner()
BUCKET = "schemahub-test-athena"
KEY = "schemahub/athena/q.csv"
TRADES = "trades AS (SELECT * FROM unified_trades)"


@pytest.mark.parametrize(
    ("sql", "sent"),
    [
        ("SELECT 1 FROM trades;", f"WITH {TRADES} SELECT 1 FROM trades"),
        ("with a as (select 1) select * from a", f"WITH {TRADES}, a as (select 1) select * from a"),
        ("-- mine\nWITH a AS (SELECT 1) TABLE a", f"WITH {TRADES}, a AS (SELECT 1) TABLE a"),
        ("WITH RECURSIVE a(n) AS (SELECT 1) TABLE a", f"WITH RECURSIVE {TRADES}, a(n) AS (SELECT 1) TABLE a"),
        ("/* x */ EXPLAIN SELECT 1", f"EXPLAIN WITH {TRADES} SELECT 1"),
        ("explain analyze with a as (select 1) table a", f"explain analyze WITH {TRADES}, a as (select 1) table a"),
        ("EXPLAIN (TYPE IO) SELECT 1", f"EXPLAIN (TYPE IO) WITH {TRADES} SELECT 1"),
        ("EXPLAIN ANALYZE DELETE FROM trades", f"EXPLAIN ANALYZE WITH {TRADES} DELETE FROM trades"),
        ("SHOW TABLES", "SHOW TABLES"),
        ("DESCRIBE trades;", "DESCRIBE unified_trades"),
        ("show columns in Trades", "show columns in unified_trades"),
        ("DESCRIBE instruments", "DESCRIBE instruments"),
        ("DROP TABLE unified_trades", f"WITH {TRADES} DROP TABLE unified_trades"),
    ],
)
def test_trades_names_the_unified_table_in_athena_too(sql: str, sent: str) -> None:
    assert athena.with_trades(sql) == sent


class FakeAthena:
    """Athena with a scripted course; its result is in the bucket, or in its own pages."""

    def __init__(self, *states: str, columns: list[dict[str, Any]], place: str = "", lines: list[Any] = []) -> None:  # noqa: B006
        self.states, self.columns, self.place, self.lines = list(states), columns, place, lines
        self.stopped: list[str] = []

    def start_query_execution(self, **arguments: Any) -> dict[str, str]:
        assert arguments["WorkGroup"] == "wg"
        return {"QueryExecutionId": "q"}

    def get_query_execution(self, QueryExecutionId: str) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        status = {"State": state, "StateChangeReason": "line 1: no such column"}
        where = {"OutputLocation": self.place}
        statistics = {"DataScannedInBytes": 9}
        return {"QueryExecution": {"Status": status, "Statistics": statistics, "ResultConfiguration": where}}

    def stop_query_execution(self, QueryExecutionId: str) -> None:
        self.stopped.append(QueryExecutionId)

    def get_query_results(self, QueryExecutionId: str, MaxResults: int) -> dict[str, Any]:
        return {"ResultSet": {"ResultSetMetadata": {"ColumnInfo": self.columns}, "Rows": []}}

    def get_paginator(self, name: str) -> Any:
        def page(line: list[str | None]) -> dict[str, Any]:
            return {"ResultSet": {"Rows": [{"Data": [{"VarCharValue": c} if c is not None else {} for c in line]}]}}

        return SimpleNamespace(paginate=lambda QueryExecutionId: map(page, self.lines))


def column(name: str, kind: str, precision: int = 0, scale: int = 0) -> dict[str, Any]:
    return {"Name": name, "Type": kind, "Precision": precision, "Scale": scale}


class Stack:
    """A deployed stack over a bucket with one result."""

    local, database, outputs = False, "db", {"AthenaWorkgroupName": "wg"}

    def __init__(self, session: boto3.Session) -> None:
        self.s3: Any = session.client("s3")
        self.s3.create_bucket(Bucket=BUCKET)
        self.athena = FakeAthena("FAILED", columns=[])

    def client(self, service: str) -> Any:
        return self.s3 if service == "s3" else self.athena

    def result(self, columns: list[dict[str, Any]], rows: str, *states: str) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=KEY, Body=rows.encode())
        place = f"s3://{BUCKET}/{KEY}"
        self.athena = FakeAthena(*(states or ("QUEUED", "RUNNING", "SUCCEEDED")), columns=columns, place=place)

    def rows(self, sql: str = "SELECT 1", **options: Any) -> list[dict[str, Any]]:
        got: Any = athena.run(self, sql, timeout_s=60, sleep=lambda seconds: None, **options)  # type: ignore[arg-type]
        return list(pa.Table.from_batches(got.batches, got.schema).to_pylist())


@pytest.fixture
def stack(aws: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Stack:
    made = Stack(aws)
    monkeypatch.setattr(target, "resolve", lambda name: made)
    monkeypatch.setattr(athena.time, "sleep", lambda seconds: None)
    return made


def test_a_result_has_athena_s_types_and_tells_null_from_an_empty_text(stack: Stack) -> None:
    columns = [
        column("s", "varchar"), column("i", "bigint"), column("d", "double"), column("x", "decimal", 18, 8),
        column("b", "boolean"), column("t", "timestamp with time zone"), column("l", "timestamp"),
        column("day", "date"), column("raw", "varbinary"), column("list", "array"),
    ]  # fmt: skip
    stack.result(columns, (
        '"s","i","d","x","b","t","l","day","raw","list"\n'
        '"a ""b"",\nc","9007199254740993","1.0E-8","0.00000001","true","2024-03-01 00:01:40.000001 UTC",'
        '"2024-03-01 00:01:40.000","2024-03-01","00 ff","[1, 2]"\n'
        '"",,"NaN",,,"2024-03-01 01:00:00.000 Europe/Berlin",,,,\n,,"-Infinity",,,,,,,\n'
    ))  # fmt: skip
    first, second, third = stack.rows()
    day = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)
    assert first == {
        "s": 'a "b",\nc', "i": 9007199254740993, "d": 1e-8, "x": Decimal("0.00000001"), "b": True,
        "t": day + dt.timedelta(seconds=100, microseconds=1), "l": dt.datetime(2024, 3, 1, 0, 1, 40),  # noqa: DTZ001
        "day": dt.date(2024, 3, 1), "raw": b"\x00\xff", "list": "[1, 2]",
    }  # fmt: skip
    assert (second["s"], second["t"], second["i"], str(second["d"])) == ("", day, None, "nan")
    assert (third["s"], third["d"]) == (None, float("-inf"))


def test_a_large_result_is_read_in_pieces_and_only_as_far_as_it_is_taken(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(athena_result, "PIECE_BYTES", 1 << 20)
    wide, rows = "x" * 90, 600_000  # 62 pieces, of which Arrow reads 32 ahead
    lines = "".join(f'"{n}","{wide}"\n' for n in range(rows))
    stack.result([column("n", "bigint"), column("wide", "varchar")], f'"n","wide"\n{lines}')
    asked: list[str] = []
    real = stack.s3.get_object
    monkeypatch.setattr(stack.s3, "get_object", lambda **how: asked.append(how["Range"]) or real(**how))
    got = athena.run(stack, "SELECT n", timeout_s=60)  # type: ignore[arg-type]
    assert next(iter(got.batches))["n"][0].as_py() == 0
    assert len(asked) < 45
    asked.clear()
    assert [row["n"] for row in stack.rows()] == list(range(rows))
    assert len(asked) > 45


def test_a_connection_that_breaks_costs_one_piece(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.result([column("n", "bigint")], '"n"\n"1"\n')
    real, broken = stack.s3.get_object, [1, 2]

    def get_object(**how: Any) -> Any:
        if broken:
            broken.pop()
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
        return real(**how)

    monkeypatch.setattr(stack.s3, "get_object", get_object)
    assert stack.rows() == [{"n": 1}]
    broken += [1] * 9
    with pytest.raises(StoreUnavailable, match="broke off"):
        stack.rows()


def test_a_value_that_is_not_of_its_type_is_named(stack: Stack) -> None:
    stack.result([column("n", "bigint")], '"n"\n"one"\n')
    with pytest.raises(BadQuery, match="column n is not all int64") as refused:
        stack.rows()
    assert "CAST" in refused.value.remedy


def test_show_and_explain_come_without_a_csv(stack: Stack) -> None:
    stack.athena = FakeAthena(
        "SUCCEEDED",
        columns=[column("tab_name", "string")],
        place=f"s3://{BUCKET}/q.txt",
        lines=[["instruments"], ["unified_trades"]],
    )
    assert stack.rows("SHOW TABLES") == [{"tab_name": "instruments"}, {"tab_name": "unified_trades"}]


def test_a_query_that_takes_too_long_is_stopped_in_athena_too(stack: Stack) -> None:
    stack.athena = FakeAthena("RUNNING", columns=[])
    ticks = iter(range(100))
    with pytest.raises(QueryTimeout, match="within 60 s"):
        stack.rows(clock=lambda: 10 * next(ticks))
    assert stack.athena.stopped == ["q"]


def test_ctrl_c_stops_the_query_in_athena_too(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.athena = FakeAthena("RUNNING", columns=[])

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(athena.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        athena.run(stack, "SELECT 1", timeout_s=60, sleep=interrupted)  # type: ignore[arg-type]
    assert stack.athena.stopped == ["q"]


def test_a_query_that_athena_refuses_is_exit_code_1_with_its_words(stack: Stack) -> None:
    result = RUNNER.invoke(app, ["query", "SELECT nothing", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "BadQuery"
    assert "no such column" in json.loads(result.stdout)["message"]


def test_a_deployed_stack_exports_whole_files_with_types(stack: Stack, tmp_path: Path) -> None:
    columns = [column("n", "bigint"), column("price", "double")]
    stack.result(columns, '"n","price"\n' + "".join(f'"{n}","{n}.5"\n' for n in range(30_000)), "SUCCEEDED")
    path = tmp_path / "rows.parquet"
    assert RUNNER.invoke(app, ["query", "FROM x", "-o", str(path)]).exit_code == 0
    table = pq.read_table(path)
    assert (table.num_rows, str(table.schema.types)) == (30_000, "[DataType(int64), DataType(double)]")
    said = RUNNER.invoke(app, ["query", "FROM x", "--csv"])
    assert list(csv.reader(io.StringIO(said.stdout)))[-1] == ["29999", "29999.5"]
    document = json.loads(RUNNER.invoke(app, ["query", "FROM x", "--json", "--max-rows", "2"]).stdout)
    assert (document["rows"], document["truncated"], document["scanned_bytes"]) == ([[0, 0.5], [1, 1.5]], True, 9)


def test_duckdb_s_memory_is_not_athena_s(stack: Stack) -> None:
    said = RUNNER.invoke(app, ["query", "--memory", "2GB", "SELECT 1"])
    assert said.exit_code == 1
    assert "Leave it out" in said.stderr
