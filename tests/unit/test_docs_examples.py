"""The examples of the documentation are executed: queries."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pyarrow as pa
import pytest
from samtranslator.yaml_helper import yaml_parse

from schemahub import instruments_table, table
from tests.unit.pages import ROOT, blocks, rows_under, text_of

TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text())


def engine() -> duckdb.DuckDBPyConnection:
    """A DuckDB whose times are UTC, whatever this machine's are."""
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    return db


# --- queries ----------------------------------------------------------------------------------------------------


def squeezed(sql: str) -> str:
    return " ".join(sql.split())


def test_the_athena_example_is_the_saved_query() -> None:
    shown = re.findall(r"<!-- saved query: (\w+) -->\n```sql\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert shown
    for name, sql in shown:
        assert squeezed(sql) == squeezed(TEMPLATE["Resources"][name]["Properties"]["QueryString"])


def example_trades() -> pa.Table:
    """Three recent trades of two exchanges."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=123_456)
    rows = [
        ("COINBASE", "BTC-USD", "9", "BUY", 100.0, 1.0),
        ("COINBASE", "BTC-USD", "10", "SELL", 102.0, 3.0),
        ("BINANCE", "BTC-USDT", "7", "BUY", 101.0, 2.0),
    ]
    columns: dict[str, Any] = {c.name: [r[i] for r in rows] for i, c in enumerate(table.COLUMNS[:6])}
    times = pa.array([now] * 3, pa.timestamp("us", "UTC"))
    schema = pa.schema(
        [
            pa.field(c.name, {"string": pa.string(), "double": pa.float64()}.get(c.kind, times.type), nullable=False)
            for c in table.COLUMNS
        ]
    )
    return pa.table({**columns, "trade_ts": times, "ingest_ts": times}, schema=schema)


def test_the_command_line_example_runs() -> None:
    sql = re.search(r'^schemahub query "([^"]+)"', text_of("README.md"), re.MULTILINE)
    assert sql
    with engine() as db:
        db.register("trades", example_trades())
        assert db.execute(sql[1]).fetchall() == [("COINBASE", "BTC-USD", 2), ("BINANCE", "BTC-USDT", 1)]


def test_the_command_line_example_joins_trades_with_their_instruments() -> None:
    (sql,) = re.findall(r'^schemahub query "([^"]+ JOIN instruments [^"]+)"', text_of("README.md"), re.MULTILINE)
    with engine() as db:
        db.register("trades", example_trades())
        db.execute("CREATE TABLE instruments (exchange TEXT, symbol TEXT, quote TEXT, status TEXT)")
        db.execute(
            "INSERT INTO instruments VALUES ('COINBASE', 'BTC-USD', 'USD', 'online'), "
            "('BINANCE', 'BTC-USDT', 'USDT', 'delisted'), ('BINANCE', 'BTC-USD', 'USD', 'online')"
        )
        assert db.execute(sql).fetchall() == [("USD", "online", 1, 406.0), ("USDT", "delisted", 1, 202.0)]


def test_the_columns_of_instruments_are_described() -> None:
    described = [name for row in rows_under("docs/architecture.md", "The instruments table") for name in names(row[0])]
    assert described == [column.name for column in instruments_table.COLUMNS]


def names(cell: str) -> list[str]:
    return [name.strip("` ") for name in cell.split(",")]


@pytest.fixture
def published(aws: boto3.Session, tmp_path: Path) -> None:
    """The unified table in Glue, its files on this machine's disk."""
    from pyiceberg.catalog import load_catalog

    aws.client("glue").create_database(DatabaseInput={"Name": "schemahub_dev"})
    made = load_catalog("glue", type="glue").create_table(
        "schemahub_dev.unified_trades",
        table.iceberg_schema(),
        location=f"file://{tmp_path}",
        partition_spec=table.partition_spec(),
        sort_order=table.sort_order(),
    )
    made.append(example_trades())


CHECKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "duckdb": lambda names: [row[1:] for row in names["bars"]] == [(100.0, 102.0, 100.0, 102.0, 4.0)],
    "polars": lambda names: names["vwap"].select("vwap", "trades").rows() == [(101.5, 2)],
}


@pytest.mark.parametrize("library", CHECKS)
def test_a_python_example_runs(library: str, published: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    code = next(block for block in blocks("README.md", "python") if f"import {library}" in block)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert CHECKS[library](names)
