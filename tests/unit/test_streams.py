"""Words of the line: what names and numbers are accepted, and what survives a way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemahub.errors import BadProductId, BadStateInput, CorruptState
from schemahub.streams import MAX_POSITION, Absent, Chunk, RawObject, Segment, Stream, merge, position, runs

STREAM = Stream("coinbase", "BTC-USD")


def test_a_stream_has_one_spelling_in_every_store() -> None:
    assert str(STREAM) == "coinbase#BTC-USD#trades"
    assert STREAM.lock_id == "stream#coinbase#BTC-USD#trades"
    assert STREAM.raw_prefix == "schemahub/raw_coinbase_trades/BTC-USD/"
    assert STREAM.mirror_key == "schemahub/checkpoints/coinbase/BTC-USD.json"
    for text in ("coinbase#BTC-USD#trades", "coinbase:BTC-USD", "coinbase:BTC-USD:trades"):
        assert Stream.parse(text) == STREAM
    assert Stream.from_json(json.loads(json.dumps(STREAM.to_json()))) == STREAM


@pytest.mark.parametrize(
    "product",
    [
        "../x",
        "BTC/USD",
        "btc-usd",
        "BTC",
        "BTC-",
        "-USD",
        "BTC-USD-X",
        "BTC USD",
        "BTC-USD\n",
        "",
        "A" * 21 + "-USD",
        "ВTC-USD",
        "BTC-USD\0",
        "BTC%2eUSD-X",
        "٣-USD",
        5,
        None,
        ["BTC-USD"],
    ],
)
def test_products_that_could_escape_a_key_are_refused(product: Any) -> None:
    with pytest.raises(BadProductId):
        Stream("coinbase", product)


@pytest.mark.parametrize("exchange", ["Coinbase", "1x", "", "a" * 33, "coin base", "coinbase/..", None, "coinbase#"])
def test_exchanges_that_are_no_name_are_refused(exchange: Any) -> None:
    with pytest.raises(BadProductId):
        Stream(exchange, "BTC-USD")


def test_a_dataset_is_checked_too() -> None:
    with pytest.raises(BadProductId):
        Stream("coinbase", "BTC-USD", "../trades")


@pytest.mark.parametrize("text", ["", "coinbase", "a:b:c:d", "BTC-USD"])
def test_what_is_no_stream_is_not_parsed(text: str) -> None:
    with pytest.raises(BadProductId):
        Stream.parse(text)


@pytest.mark.parametrize("value", [None, [], "coinbase:BTC-USD", {"exchange": "coinbase"}, 7])
def test_what_is_no_stream_object_is_refused(value: Any) -> None:
    with pytest.raises(BadStateInput):
        Stream.from_json(value)


@pytest.mark.parametrize("value", [-1, MAX_POSITION + 1, 1.0, "1", True, None])
def test_a_position_is_a_63_bit_integer(value: Any) -> None:
    with pytest.raises(BadStateInput):
        position(value)
    with pytest.raises(BadStateInput):
        Chunk(value, MAX_POSITION)
    assert position(0) == 0
    assert position(MAX_POSITION) == MAX_POSITION


def test_a_chunk_cannot_run_backwards_or_have_more_than_two_ends() -> None:
    with pytest.raises(BadStateInput, match="after its end"):
        Chunk(5, 4)
    for value in ({"first": 1}, {"first": 1, "last": 2, "x": 3}, [1, 2], None):
        with pytest.raises(BadStateInput):
            Chunk.from_json(value)
    assert Chunk.from_json(Chunk(5, 9).to_json()) == Chunk(5, 9)
    assert Chunk(5, 9).size == 5


def raw(count: int, *absent: tuple[int, int, str]) -> RawObject:
    return RawObject("key", 10, 19, count, "0" * 64, tuple(Absent(*a) for a in absent))


def test_rows_and_holes_fill_a_raw_object() -> None:
    raw(10).check()
    raw(7, (10, 10, "exchange_skipped"), (12, 13, "lost")).check()
    for wrong in (raw(9), raw(11), raw(10, (10, 10, "lost"))):
        with pytest.raises(CorruptState, match="do not fill"):
            wrong.check()


@pytest.mark.parametrize(
    "holes",
    [
        [(15, 13, "lost")],
        [(9, 9, "lost")],
        [(20, 20, "lost")],
        [(10, 12, "guessed")],
        [(10, 12, "lost"), (12, 14, "lost")],
        [(14, 15, "lost"), (10, 11, "lost")],
    ],
    ids=str,
)
def test_an_impossible_hole_is_noticed_even_when_the_sum_is_right(holes: list[tuple[int, int, str]]) -> None:
    missing = sum(last - first + 1 for first, last, _ in holes)
    with pytest.raises(CorruptState, match="impossible hole"):
        raw(10 - missing, *holes).check()


def test_neighbours_that_touch_are_one_run() -> None:
    assert merge([(3, 4), (1, 2), (6, 6)]) == [(1, 4), (6, 6)]
    assert runs([2, 1, 4]) == [(1, 2), (4, 4)]


def test_a_segment_survives_json() -> None:
    segment = Segment(
        stream=STREAM,
        first=10,
        last=19,
        count=9,
        absent=(Absent(12, 12, "halted"),),
        raw_key=f"{STREAM.raw_prefix}k",
        sha256="s",
        source="rest",
        run_id="r",
        commit_id="c",
        committed_at=1,
    )
    assert Segment.from_json(json.loads(json.dumps(segment.to_json()))) == segment
    assert segment.interval == (10, 19)
    assert segment.interval.size == 10
