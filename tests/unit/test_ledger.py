"""The door to StreamsTable: what is written comes back, what cannot be understood halts, the index is only a hint."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from boto3.dynamodb.conditions import Key

from schemahub.errors import CorruptState, TableAhead
from schemahub.holes import Hole
from schemahub.streams import Interval, Stream
from tests.unit.stores import NOW, STREAM, Stores, account, segment, tiles

ETH = Stream("coinbase", "ETH-USD")


@pytest.fixture(scope="module")
def module_stores() -> Iterator[Stores]:
    with account() as stores:
        yield stores


@pytest.fixture
def stores(module_stores: Stores) -> Stores:
    stores = module_stores.empty()
    stores.commit(stores.lease(), tiles(101, 130), None)
    return stores


def spoil(stores: Stores, item: str, **changes: Any) -> None:
    """Change attributes of an item behind the ledger's back (None: remove)."""
    for name, value in changes.items():
        update = "REMOVE #n" if value is None else "SET #n = :v"
        values = {} if value is None else {"ExpressionAttributeValues": {":v": value}}
        stores.tables["streams"].update_item(
            Key={"stream": str(STREAM), "item": item},
            UpdateExpression=update,
            ExpressionAttributeNames={"#n": name},
            **values,
        )


def test_segments_come_back_as_they_were_committed(stores: Stores) -> None:
    assert list(stores.ledger.segments(STREAM)) == tiles(101, 130)
    assert [s.first for s in stores.ledger.segments(STREAM, 111)] == [111, 121]
    assert stores.ledger.segment(STREAM, 111) == segment(111, 120)
    assert stores.ledger.segment(STREAM, 112) is None
    assert list(stores.ledger.segments(ETH)) == []
    assert stores.ledger.watermark(ETH) is None


def test_the_segment_that_holds_a_position(stores: Stores) -> None:
    assert stores.ledger.segment_at(STREAM, 111) == segment(111, 120)
    assert stores.ledger.segment_at(STREAM, 119) == segment(111, 120)
    assert stores.ledger.segment_at(STREAM, 130) == segment(121, 130)
    assert stores.ledger.segment_at(STREAM, 131) is None
    assert stores.ledger.segment_at(STREAM, 100) is None
    assert stores.ledger.segment_at(ETH, 111) is None


def test_positions_of_19_digits_keep_their_order(stores: Stores) -> None:
    stores.ledger.restore(
        ETH,
        1,
        2,
        [segment(9, 9, stream=ETH), segment(10, 10, stream=ETH), segment(2**63 - 1, 2**63 - 1, stream=ETH)],
        NOW,
    )
    assert [s.first for s in stores.ledger.segments(ETH)] == [9, 10, 2**63 - 1]


@pytest.mark.parametrize(
    "changes",
    [{"high": None}, {"low": "7"}, {"fence": Decimal("1.5")}, {"high": True}, {"updated_at": None}, {"low": 131}],
    ids=str,
)
def test_a_watermark_that_cannot_be_meant_halts_the_stream(stores: Stores, changes: dict[str, Any]) -> None:
    spoil(stores, "watermark", **changes)
    with pytest.raises(CorruptState, match="coinbase#BTC-USD#trades"):
        stores.ledger.watermark(STREAM)


@pytest.mark.parametrize(
    "changes",
    [
        {"last": None},
        {"count": "10"},
        {"absent": [[1, 2]]},
        {"absent": 7},
        {"sha256": None},
        {"absent": [[Decimal("101.5"), 102, "lost"]]},
        {"committed_at": Decimal("0.5")},
    ],
    ids=str,
)
def test_a_segment_that_cannot_be_read_is_never_skipped(stores: Stores, changes: dict[str, Any]) -> None:
    spoil(stores, f"segment#{111:020d}", **changes)
    with pytest.raises(CorruptState, match="coinbase#BTC-USD#trades"):
        list(stores.ledger.segments(STREAM))
    with pytest.raises(CorruptState):
        list(stores.ledger.pending())


def test_pending_holds_what_no_snapshot_names(stores: Stores) -> None:
    assert [s.first for s in stores.ledger.pending()] == [101, 111, 121]
    stores.ledger.mark_published([segment(111, 120)], "snapshot-1")
    assert [s.first for s in stores.ledger.pending()] == [101, 121]
    stored = stores.ledger.segment(STREAM, 111)
    assert stored is not None
    assert stored.published_in == "snapshot-1"


def test_marking_twice_keeps_the_first_snapshot(stores: Stores) -> None:
    for name in ("snapshot-1", "snapshot-2"):
        stores.ledger.mark_published(tiles(101, 130), name)
    assert {s.published_in for s in stores.ledger.segments(STREAM)} == {"snapshot-1"}
    assert list(stores.ledger.pending()) == []


@pytest.mark.parametrize("other", [segment(111, 120, content="b"), segment(112, 120), segment(111, 119)], ids=str)
def test_marking_what_was_not_committed_is_corrupt_state(stores: Stores, other: Any) -> None:
    with pytest.raises(CorruptState):
        stores.ledger.mark_published([other], "snapshot-1")
    assert [s.first for s in stores.ledger.pending()] == [101, 111, 121]
    assert stores.ledger.segment(STREAM, 112) is None, "no item was invented"


def test_a_lagging_index_brings_nothing_back(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = stores.tables["streams"].query(IndexName="pending", KeyConditionExpression=Key("pending").eq("trades"))[
        "Items"
    ]
    stores.ledger.mark_published(tiles(101, 110), "snapshot-1")
    query = stores.ledger._query
    late = [*stale, {**stale[0], "item": "segment#gone"}]
    monkeypatch.setattr(stores.ledger, "_query", lambda **asked: iter(late) if "IndexName" in asked else query(**asked))
    assert [s.first for s in stores.ledger.pending()] == [111, 121]


def test_a_backfill_s_pending_segments_are_read_by_the_page(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for each of 90,000 would take longer than a function may run."""
    stores.ledger.put_back([*tiles(1001, 1500), *tiles(1601, 1700), segment(1801, 1810)], [])
    stores.ledger.mark_published([segment(1201, 1210)], "snapshot-1")
    asked: list[str] = []
    for name in ("query", "get_item"):
        ask = getattr(stores.ledger.table, name)
        monkeypatch.setattr(stores.ledger.table, name, lambda ask=ask, name=name, **a: asked.append(name) or ask(**a))
    pending = [s.first for s in stores.ledger.pending()]
    assert pending == [101, 111, 121, *(n for n in range(1001, 1500, 10) if n != 1201), *range(1601, 1700, 10), 1801]
    assert len(asked) == 1 + 5, "the index, and each stretch without a hole"


def test_restoring_keeps_the_segments_that_are_there_and_never_shrinks_the_watermark(stores: Stores) -> None:
    stores.ledger.mark_published(tiles(101, 110), "snapshot-1")
    stores.ledger.restore(STREAM, 91, 140, [*tiles(91, 110, content="b"), segment(131, 140)], NOW)
    stored = stores.ledger.segment(STREAM, 101)
    assert stored is not None
    assert (stored.sha256[0], stored.published_in) == ("a", "snapshot-1")
    mark = stores.ledger.watermark(STREAM)
    assert mark is not None
    assert (mark.low, mark.high, mark.fence) == (91, 140, 0)
    for low, high in ((92, 140), (91, 139)):
        with pytest.raises(TableAhead, match="reaches further"):
            stores.ledger.restore(STREAM, low, high, [], NOW)
    assert stores.ledger.watermark(STREAM) == mark


def test_the_last_run_is_remembered_by_stream(stores: Stores) -> None:
    assert stores.ledger.last_run(STREAM) is None
    for run in ("run-1", "run-2"):
        stores.ledger.finish_run(STREAM, run, "done", NOW)
    last = stores.ledger.last_run(STREAM)
    assert last is not None
    assert (last["run"], last["outcome"]) == ("run-2", "done")
    assert stores.ledger.last_run(ETH) is None
    assert [s.first for s in stores.ledger.segments(STREAM)] == [101, 111, 121], "it is no segment"


@pytest.mark.parametrize(
    "spoil",
    [
        {"class": "gone"},
        {"first": 102},
        {"last": 99},
        {"looks": "3"},
        {"filled_by": [[90, 101]]},
        {"filled_by": [[101, 100]]},
        {"evidence": None, "first_seen": True},
    ],
    ids=str,
)
def test_a_hole_item_that_cannot_be_is_corrupt(stores: Stores, spoil: dict[str, Any]) -> None:
    hole = Hole(STREAM, 100, 110, "not_yet", NOW, NOW, filled=(Interval(101, 102),))
    stores.ledger.add_hole(hole)
    assert list(stores.ledger.holes(STREAM)) == [hole]
    item = next(i for i in stores.tables["streams"].scan()["Items"] if i["item"].startswith("hole#"))
    stores.tables["streams"].put_item(Item={**item, **spoil})
    with pytest.raises(CorruptState, match="hole#00000000000000000100"):
        list(stores.ledger.holes(STREAM))
