from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from schemahub.errors import BadConfig, BadQuery
from schemahub.query import connect, coverage_sql, ohlcv_sql, select, single_select
from schemahub.streams import Absent, Stream
from tests.lake import BTC, Lake, S3Door, coinbase_row

ETH = Stream("coinbase", "ETH-USD")


@pytest.fixture
def lake(aws: boto3.Session, tmp_path: Path) -> Lake:
    return Lake(aws, tmp_path)


@pytest.fixture
def door(lake: Lake) -> Iterator[S3Door]:
    door = S3Door(lake.objects)
    yield door
    door.close()


class Session:
    """The session that tests have, but for S3's address."""

    def __init__(self, real: Any, url: str) -> None:
        self._real, self._url = real, url

    def client(self, name: str) -> Any:
        return self._real.client(name, endpoint_url=self._url)

    def get_credentials(self) -> Any:
        return self._real.get_credentials()


def opened(lake: Lake, door: S3Door) -> Any:
    return connect(Session(lake.session, door.url), lake.table(), threads=1)


def test_a_query_sees_what_was_published(lake: Lake, door: S3Door) -> None:
    lake.publish(lake.transform(lake.commit(1, 100)), lake.transform(lake.commit(1, 10, stream=ETH)))
    columns, rows = select(
        opened(lake, door), "SELECT symbol, count(*) AS n, min(trade_ts) FROM trades GROUP BY 1 ORDER BY 1"
    )
    assert columns == ["symbol", "n", "min(trade_ts)"]
    assert [r[:2] for r in rows] == [["BTC-USD", 100], ["ETH-USD", 10]]
    assert rows[0][2] == dt.datetime(2024, 3, 1, 0, 1, 40, 1, tzinfo=dt.UTC)


def test_only_the_files_of_the_asked_day_are_opened(lake: Lake, door: S3Door) -> None:
    lake.publish(lake.transform(lake.commit(1, 864 * 6)))
    db = opened(lake, door)
    door.asked.clear()
    _, rows = select(
        db, "SELECT count(*), sum(price) > 0 FROM trades WHERE trade_ts >= '2024-03-03' AND trade_ts < '2024-03-04'"
    )
    assert rows == [[864, True]]
    days = {key.split("trade_day=")[1][:10] for key in door.asked if key.endswith(".parquet")}
    assert days <= {"2024-03-03", "2024-03-04"}


def test_an_empty_table_answers_with_nothing(lake: Lake, door: S3Door) -> None:
    assert select(opened(lake, door), "SELECT count(*) FROM trades") == (["count_star()"], [[0]])


def test_rows_are_cut_where_asked(lake: Lake, door: S3Door) -> None:
    lake.publish(lake.transform(lake.commit(1, 100)))
    assert len(select(opened(lake, door), "FROM trades", max_rows=7)[1]) == 7


@pytest.mark.parametrize("sql", [
    "", "SELECT 1; SELECT 2", "DELETE FROM trades", "DROP VIEW trades", "CREATE TABLE x AS SELECT 1",
    "COPY (SELECT 1) TO 'x.csv'", "SET threads = 1", "ATTACH 'x.db'", "INSTALL spatial", "PRAGMA database_list",
    "SELECT 1; DROP VIEW trades", "EXPORT DATABASE 'x'", "SELEC 1", "EXPLAIN ANALYZE DELETE FROM trades",
])  # fmt: skip
def test_anything_but_one_select_is_refused(sql: str) -> None:
    with pytest.raises(BadQuery):
        single_select(sql)


@pytest.mark.parametrize("sql", ["SELECT 1", "  with a as (select 1) from a;", "FROM trades", "SELECT 1 -- ; DROP"])
def test_one_select_passes(sql: str) -> None:
    assert single_select(sql) == sql


def test_the_engine_s_own_words_reach_the_person(lake: Lake, door: S3Door) -> None:
    with pytest.raises(BadQuery, match="nonsense"):
        select(opened(lake, door), "SELECT nonsense FROM trades")


def test_bars_open_and_close_in_the_order_of_ids_within_a_microsecond(lake: Lake, door: S3Door) -> None:
    same = "2024-03-10T10:00:59.000000Z"
    rows = [
        coinbase_row(9, price="10", size="1", time=same),
        coinbase_row(10, price="11", size="2", time=same),  # as text, 10 would come before 9
        coinbase_row(11, price="7", size="1", time="2024-03-10T10:01:00Z"),
    ]
    lake.publish(lake.transform(lake.commit(9, 11, rows=rows)))
    columns, bars = select(opened(lake, door), ohlcv_sql("BTC-USD", "1m", "coinbase"))
    bar = dict(zip(columns, bars[0], strict=True))
    assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (10, 11, 10, 11)
    assert (bar["volume"], bar["trades"]) == (3, 2)
    assert bar["vwap"] == pytest.approx(32 / 3)
    assert [b[columns.index("bar")].minute for b in bars] == [0, 1]


@pytest.mark.parametrize(
    ("symbol", "interval"), [("BTC-USD", "0m"), ("BTC-USD", "1"), ("BTC-USD", "1 m"), ("x' OR 1", "1m")]
)
def test_bars_of_nonsense_are_refused(symbol: str, interval: str) -> None:
    with pytest.raises(BadQuery):
        ohlcv_sql(symbol, interval)


def test_coverage_counts_holes_and_duplicates(lake: Lake, door: S3Door) -> None:
    gone = (Absent(5, 7, "exchange_skipped"),)
    lake.publish(lake.transform(lake.commit(1, 20, absent=gone)), lake.transform(lake.commit(1, 10, stream=ETH)))
    db = opened(lake, door)

    def found(**explained: Any) -> list[tuple[Any, ...]]:
        columns, rows = select(db, coverage_sql(**explained))
        wanted = [columns.index(n) for n in ("symbol", "first_id", "last_id", "trades", "duplicates", "missing")]
        return [tuple(row[i] for i in wanted) for row in rows]

    assert found() == [("BTC-USD", 1, 20, 17, 0, 3), ("ETH-USD", 1, 10, 10, 0, 0)]
    assert found(explained={BTC: 3}) == [("BTC-USD", 1, 20, 17, 0, 0), ("ETH-USD", 1, 10, 10, 0, 0)]


def test_coverage_sees_a_row_that_stands_twice() -> None:
    import duckdb

    with duckdb.connect() as db:
        ids = "unnest(['1', '2', '2', '9']) AS trade_id, now() AS trade_ts"
        db.execute(f"CREATE VIEW trades AS SELECT 'COINBASE' AS exchange, 'BTC-USD' AS symbol, {ids}")
        columns, rows = select(db, coverage_sql())
    assert (rows[0][columns.index("duplicates")], rows[0][columns.index("missing")]) == (1, 6)


def test_a_session_without_credentials_is_told_so(lake: Lake, door: S3Door) -> None:
    session = Session(lake.session, door.url)
    session.get_credentials = lambda: None  # type: ignore[method-assign]
    with pytest.raises(BadConfig, match="credentials"):
        connect(session, lake.table())
