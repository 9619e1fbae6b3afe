"""Athena's saved queries: their dialect by a parser's grammar of it, their answers by DuckDB's twin of them.

The table is made by the transform itself, from trades of the simulator in the words of six exchanges: numbered one by
one (Coinbase, Binance), with ids that skip by nature (Kraken, OKX, Bitfinex), and with texts for ids (Bybit).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlglot
import zstandard
from samtranslator.yaml_helper import yaml_parse
from sqlglot import ErrorLevel, exp

from local.exchange_sim.world import build_world
from schemahub.mappings import exchanges, load_mapping
from schemahub.streams import Segment, Stream
from schemahub.transform import transform_files
from tests.unit.pages import ROOT

QUERIES: dict[str, dict[str, Any]] = {
    name: resource["Properties"]
    for name, resource in yaml_parse((ROOT / "template.yaml").read_text())["Resources"].items()
    if resource["Type"] == "AWS::Athena::NamedQuery"
}
STREAMS = {"coinbase": "BTC-USD", "binance": "BTC-USDT", "kraken": "BTC-USD", "okx": "BTC-USDT",
           "bitfinex": "BTC-USD", "bybit": "BTC-USDT"}  # fmt: skip
DENSE = {"COINBASE", "BINANCE"}
TRADES, LOST = 200, 3
"""So many trades of each stream, of which so many in its middle are not in the table."""
COMMITTED_MS = 1_790_000_000_000
Answer = tuple[dict[str, str], list[dict[str, Any]]]
Ask = Callable[[str], Answer]


def tree(name: str) -> exp.Expression:
    """The query in Athena's grammar, or an error that says where it is not of it."""
    return sqlglot.parse_one(QUERIES[name]["QueryString"], dialect="athena", error_level=ErrorLevel.RAISE)


def twin(name: str, now: dt.datetime) -> str:
    """The same query in DuckDB's dialect, asked at ``now``."""
    moment = exp.cast(exp.Literal.string(now.isoformat()), "timestamptz", dialect="duckdb")
    at = tree(name).transform(lambda node: moment.copy() if isinstance(node, exp.CurrentTimestamp) else node)
    return at.sql(dialect="duckdb", unsupported_level=ErrorLevel.RAISE)


def files_of(exchange: str, product: str, folder: Path) -> list[Path]:
    """Data files of a stream, made by the transform from the simulator's trades without the lost ones."""
    listings = build_world().exchanges[exchange].listings.values()
    source = next(one for one in listings if f"{one.base}-{one.quote}" == product).source
    sent = source.oldest(source.first_id, source.first_id + TRADES - 1, TRADES)
    kept = [row[1] for row in (*sent[: TRADES // 2], *sent[TRADES // 2 + LOST :])]
    if load_mapping(exchange).fields.id_type == "text":
        kept = [json.dumps({**json.loads(row), "execId": str(uuid.UUID(int=n))}) for n, row in enumerate(kept)]
    content = "".join(f"{row}\n" for row in kept).encode()
    raw = folder / f"{exchange}.jsonl.zst"
    raw.write_bytes(zstandard.ZstdCompressor().compress(content))
    sha256 = hashlib.sha256(content).hexdigest()
    segment = Segment(
        Stream(exchange, product), 1, 2**62, len(kept), (), str(raw), sha256, "lambda", "run", "commit", COMMITTED_MS
    )
    done = transform_files(load_mapping(exchange), [(segment, raw)], folder / exchange, threads=1)
    assert done.rows == len(kept)
    return [file.path for file in done.files]


@pytest.fixture(scope="module")
def trades(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("table")
    return [path for exchange, product in STREAMS.items() for path in files_of(exchange, product, folder)]


def engine() -> duckdb.DuckDBPyConnection:
    """A DuckDB whose times are UTC, as Athena's are."""
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    return db


@pytest.fixture(scope="module")
def ask(trades: list[Path]) -> Ask:
    """What a saved query answers: its columns with their types, and its rows by column."""
    db = engine()
    files = [str(path) for path in trades]
    db.execute("CREATE TABLE unified_trades AS SELECT * FROM read_parquet(?, hive_partitioning = false)", [files])
    (now,) = db.execute("SELECT max(trade_ts) + INTERVAL 90 SECOND FROM unified_trades").fetchone() or ()

    def answer(name: str) -> Answer:
        found = db.execute(twin(name, now))
        columns = {column[0]: str(column[1]) for column in found.description or ()}
        return columns, [dict(zip(columns, row, strict=True)) for row in found.fetchall()]

    return answer


@pytest.fixture(scope="module")
def rows(trades: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """The table's rows of each exchange as plain values, by time and id."""
    import pyarrow.parquet as pq

    found: dict[str, list[dict[str, Any]]] = {}
    for path in trades:
        for row in pq.read_table(path, partitioning=None).to_pylist():
            found.setdefault(row["exchange"], []).append(row)
    for line in found.values():
        line.sort(key=lambda row: (row["trade_ts"], len(row["trade_id"]), row["trade_id"]))
    return found


COLUMNS = {
    "OhlcvQuery": {
        "minute": "TIMESTAMP WITH TIME ZONE", "open": "DOUBLE", "high": "DOUBLE", "low": "DOUBLE", "close": "DOUBLE",
        "volume": "DOUBLE", "trades": "BIGINT",
    },
    "CompletenessQuery": {
        "exchange": "VARCHAR", "symbol": "VARCHAR", "trades": "BIGINT", "first_id": "BIGINT", "last_id": "BIGINT",
        "missing": "BIGINT", "duplicates": "BIGINT", "first_trade": "TIMESTAMP WITH TIME ZONE",
        "last_trade": "TIMESTAMP WITH TIME ZONE",
    },
    "LastTradesQuery": {
        "exchange": "VARCHAR", "symbol": "VARCHAR", "price": "DOUBLE", "quantity": "DOUBLE", "side": "VARCHAR",
        "trade_ts": "TIMESTAMP WITH TIME ZONE", "minutes_old": "BIGINT",
    },
    "VwapQuery": {
        "exchange": "VARCHAR", "symbol": "VARCHAR", "hour": "TIMESTAMP WITH TIME ZONE", "vwap": "DOUBLE",
        "volume": "DOUBLE", "taker_buy_share": "DOUBLE",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", QUERIES)
def test_a_saved_query_is_of_athenas_dialect_and_reads_the_table_alone(name: str) -> None:
    parsed = tree(name)
    assert isinstance(parsed, exp.Select)
    assert {table.name for table in parsed.find_all(exp.Table)} == {"unified_trades"}
    assert not list(parsed.find_all(exp.Anonymous)), "a function that the parser does not know"


@pytest.mark.parametrize("name", QUERIES)
def test_a_saved_query_answers_with_the_columns_that_it_promises(name: str, ask: Ask) -> None:
    columns, found = ask(name)
    assert columns == COLUMNS[name]
    assert found


def test_bars_are_those_of_the_trades(ask: Ask, rows: dict[str, list[dict[str, Any]]]) -> None:
    _, bars = ask("OhlcvQuery")
    line = rows["COINBASE"]
    assert [bar["minute"] for bar in bars] == sorted({r["trade_ts"].replace(second=0, microsecond=0) for r in line})
    for bar in bars:
        prices = [r["price"] for r in line if bar["minute"] <= r["trade_ts"] < bar["minute"] + dt.timedelta(minutes=1)]
        assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (
            prices[0], max(prices), min(prices), prices[-1])  # fmt: skip
        assert bar["trades"] == len(prices)
    assert sum(bar["volume"] for bar in bars) == pytest.approx(sum(r["quantity"] for r in line))


def test_ids_are_missing_only_where_an_exchange_numbers_its_trades_one_by_one(
    ask: Ask, rows: dict[str, list[dict[str, Any]]]
) -> None:
    _, found = ask("CompletenessQuery")
    assert {r["exchange"] for r in found} == set(rows)
    for row in found:
        ids = [r["trade_id"] for r in rows[row["exchange"]]]
        numbers = sorted(map(int, ids)) if all(map(str.isdigit, ids)) else [None]
        assert (row["trades"], row["duplicates"]) == (TRADES - LOST, 0)
        assert row["missing"] == (LOST if row["exchange"] in DENSE else None)
        assert (row["first_id"], row["last_id"]) == (numbers[0], numbers[-1])
    assert any(row["first_id"] is None for row in found), "no stream of this test has texts for ids"
    skipping = [r for r in found if r["exchange"] not in DENSE and r["first_id"] is not None]
    assert all(r["last_id"] - r["first_id"] + 1 > TRADES for r in skipping)


def test_the_exchanges_whose_ids_may_be_missing_are_those_that_number_their_trades_one_by_one() -> None:
    listed = {exchange for exchange in exchanges() if load_mapping(exchange).counted}
    (where,) = tree("CompletenessQuery").find_all(exp.In)
    assert {value.name for value in where.expressions} == {exchange.upper() for exchange in listed}
    text = squeezed(QUERIES["CompletenessQuery"]["Description"])
    titles = {"binance": "Binance", "binance_us": "Binance.US", "coinbase": "Coinbase"}
    assert f"({', '.join(titles[exchange] for exchange in sorted(listed))})" in text


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_last_trade_is_the_newest_of_each_product(ask: Ask, rows: dict[str, list[dict[str, Any]]]) -> None:
    _, found = ask("LastTradesQuery")
    assert {r["exchange"] for r in found} == set(rows)
    newest = max(line[-1]["trade_ts"] for line in rows.values())
    for row in found:
        last = rows[row["exchange"]][-1]
        assert row["trade_ts"] == last["trade_ts"]
        assert (row["price"], row["quantity"], row["side"]) == (last["price"], last["quantity"], last["side"])
        assert 0 <= row["minutes_old"] <= (newest - last["trade_ts"]).total_seconds() // 60 + 2


def test_the_average_price_and_the_takers_share_are_those_of_the_trades(
    ask: Ask, rows: dict[str, list[dict[str, Any]]]
) -> None:
    _, found = ask("VwapQuery")
    for row in found:
        end = row["hour"] + dt.timedelta(hours=1)
        hour = [r for r in rows[row["exchange"]] if row["hour"] <= r["trade_ts"] < end]
        volume = sum(r["quantity"] for r in hour)
        assert row["vwap"] == pytest.approx(sum(r["price"] * r["quantity"] for r in hour) / volume)
        bought = sum(r["quantity"] for r in hour if r["side"] == "BUY")
        assert (row["volume"], row["taker_buy_share"]) == (pytest.approx(volume), pytest.approx(bought / volume))


def test_of_trades_of_the_same_time_the_highest_number_is_the_last_one() -> None:
    """As text 9 would be behind 10."""
    now = dt.datetime(2026, 6, 1, 10, 1, tzinfo=dt.UTC)
    with engine() as db:
        db.execute(
            "CREATE TABLE unified_trades AS SELECT 'COINBASE' AS exchange, 'BTC-USD' AS symbol, 'SELL' AS side, "
            "trade_id, trade_id::DOUBLE AS price, 1.0::DOUBLE AS quantity, TIMESTAMPTZ '2026-06-01 10:00:00+00' "
            "AS trade_ts FROM (VALUES ('10'), ('9')) AS ids(trade_id)"
        )
        assert [row[2] for row in db.execute(twin("LastTradesQuery", now)).fetchall()] == [10.0]
        assert [row[1:5] for row in db.execute(twin("OhlcvQuery", now)).fetchall()] == [(9.0, 10.0, 9.0, 10.0)]


def test_an_hour_in_which_no_taker_bought_has_a_share_of_nothing() -> None:
    """Not NULL: a sum over no rows has no value."""
    now = dt.datetime(2026, 6, 1, 10, 30, tzinfo=dt.UTC)
    with engine() as db:
        db.execute(
            "CREATE TABLE unified_trades AS SELECT 'OKX' AS exchange, 'BTC-USDT' AS symbol, 'SELL' AS side, "
            "1.0::DOUBLE AS price, 2.0::DOUBLE AS quantity, TIMESTAMPTZ '2026-06-01 10:00:00+00' AS trade_ts"
        )
        assert db.execute(twin("VwapQuery", now)).fetchall()[0][3:] == (1.0, 2.0, 0.0)


def test_every_saved_query_says_what_it_does_not_hold_for() -> None:
    for name, limits in {
        "OhlcvQuery": ("Minutes without a trade", "texts (Bybit)"),
        "CompletenessQuery": ("`missing` holds only where", "never issued", "NULL where ids skip"),
        "LastTradesQuery": ("last 7 days", "texts (Bybit)"),
        "VwapQuery": ("quote currency", "first hour"),
    }.items():
        text = squeezed(QUERIES[name]["Description"])
        assert all(limit in text for limit in limits), name
        assert len(text) <= 1024, "CloudFormation's limit"
    texts = {exchange for exchange in exchanges() if load_mapping(exchange).fields.id_type == "text"}
    assert texts == {"bybit"}, "the descriptions name the exchanges whose ids are texts"
