"""What ``verify`` makes of the rows of streams whose positions cannot be counted, one thing wrong at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from schemahub import ranges
from schemahub.ranges import Held, Originals, count_all, count_ranges, count_segments, judge_ranges
from schemahub.streams import Absent, Segment, Stream
from schemahub.verify import Aside

BYBIT, OKX, SECOND = Stream("bybit", "BTC-USDT"), Stream("okx", "BTC-USDT"), 10**9


def segment(stream: Stream, first: int, last: int, count: int, *absent: Absent) -> Segment:
    return Segment(stream, first, last, count, absent, "key", "", "rest", "run", "commit", 1, counted=False)


TIMES = (
    segment(BYBIT, 100 * SECOND, 110 * SECOND - 1, 10),
    segment(BYBIT, 110 * SECOND, 120 * SECOND - 1, 6, Absent(110 * SECOND, 114 * SECOND - 1, "lost")),
)


@pytest.fixture
def db() -> Iterator[Any]:
    with duckdb.connect() as db:
        db.execute(
            "CREATE TABLE trades (exchange VARCHAR, symbol VARCHAR, trade_id VARCHAR, side VARCHAR, price DOUBLE, "
            "quantity DOUBLE, trade_ts TIMESTAMPTZ)"
        )
        for second in (*range(100, 110), *range(114, 120)):
            add(db, f"t{second}", second)
        yield db


def add(db: Any, trade_id: str, second: float, price: float = 1.0, stream: Stream = BYBIT) -> None:
    db.execute(
        "INSERT INTO trades VALUES (?, ?, ?, 'BUY', ?, 1, to_timestamp(?))",
        [stream.exchange.upper(), stream.product, trade_id, price, second],
    )


def kinds(db: Any, aside: dict[tuple[int, int], int], deep: dict[Segment, Held]) -> tuple[list[Any], list[Aside], int]:
    table = count_segments(db, BYBIT, True, TIMES, bool(deep))
    found, gone = judge_ranges(TIMES, table, aside, Originals(deep))
    return [(f.kind, f.span) for f in found], gone, count_all(db, BYBIT, True, None) - sum(h.rows for h in table)


@pytest.mark.parametrize("slice_rows", [1, 2_000_000])
def test_whole_ranges_are_found_whole(db: Any, slice_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "SLICE_ROWS", slice_rows)
    originals = dict(zip(TIMES, count_segments(db, BYBIT, True, TIMES, True), strict=True))
    assert [h.rows for h in originals.values()] == [10, 6]
    assert kinds(db, {}, originals) == ([], [], 0)


FIRST = (100 * SECOND, 110 * SECOND - 1)


def test_each_damage_is_named_with_its_range(db: Any) -> None:
    originals = dict(zip(TIMES, count_segments(db, BYBIT, True, TIMES, True), strict=True))
    add(db, "late", 112)  # within the lost part, where nothing was committed
    add(db, "beyond", 120)
    assert kinds(db, {}, {}) == ([], [], 2)
    db.execute("DELETE FROM trades WHERE trade_id IN ('late', 'beyond')")
    add(db, "t105", 105)
    assert kinds(db, {}, {})[0] == [("rows_doubled", FIRST)]
    db.execute("DELETE FROM trades WHERE trade_id = 't105'")
    assert kinds(db, {}, {})[0] == [("rows_missing", FIRST)]
    assert kinds(db, {FIRST: 1}, {}) == ([], [Aside(*FIRST, 1)], 0)
    add(db, "t105", 105, price=2.0)
    assert kinds(db, {}, {})[0] == []
    assert kinds(db, {}, originals)[0] == [("rows_changed", FIRST)]
    add(db, "new", 106)
    assert kinds(db, {}, originals)[0] == [("rows_stray", FIRST)]
    db.execute("DELETE FROM trades WHERE trade_id IN ('t105', 't104')")
    assert kinds(db, {}, {})[0] == [("rows_missing", FIRST)], "one row too many does not make up for two missing"


def test_ids_that_skip_numbers_are_ranges_of_ids_and_only_ids(db: Any) -> None:
    for trade_id in ("7", "21", "100", "x9"):
        add(db, trade_id, 100, stream=OKX)
    assert [h.rows for h in count_ranges(db, OKX, False, [(1, 20, 1), (21, 99, 1), (100, 100, 1)])] == [1, 1, 1]
    assert (count_all(db, OKX, False, None), count_all(db, OKX, False, (1, 99))) == (4, 2)
