"""A chunk of a file against the API: who is believed about what."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from schemahub.answers import Row
from schemahub.archive_ingest import complete
from schemahub.archive_read import SCHEMA
from schemahub.archive_reconcile import Found, Pieces, Rest, reconcile, same_trade, spans_of
from schemahub.clock import FakeClock
from schemahub.errors import ExchangeUnavailable
from schemahub.streams import Chunk, Interval
from tests.unit.archive_worlds import MAPPING
from tests.unit.pipelines import BINANCE

CHUNK = Chunk(1_000, 1_099)
DAY = (1_000_000, 2_000_000)


def text(number: int, quantity: str = "1.00000000") -> str:
    return (
        f'{{"a":{number},"p":"5.00","q":"{quantity}","f":1,"l":1,"T":{1_700_000_000_000 + number},"m":true,"M":true}}'
    )


class Api:
    """Has every id but ``gone``; ``other`` of them with another quantity than the file."""

    def __init__(self, gone: Sequence[int] = (), other: Sequence[int] = (), down: bool = False) -> None:
        self.gone, self.other, self.down, self.asked = set(gone), set(other), down, list[tuple[int, int]]()

    def page(self, stream: object, first: int, last: int, *, pages_left: int = 1) -> list[Row]:
        self.asked.append((first, last))
        if self.down:
            raise ExchangeUnavailable("down")
        ids = [n for n in range(first, first + 2_000) if n not in self.gone][: last - first + 1]
        return [Row(n, n, text(n, "2.00000000" if n in self.other else "1.00000000"), str(n)) for n in ids]


def settle(
    api: Api, missing: Sequence[int] = (), extra: Sequence[tuple[int, int, str]] = (), suspect: bool = False
) -> tuple[Pieces, Found]:
    rows = [(n, 1_500_000, text(n)) for n in range(CHUNK.first, CHUNK.last + 1) if n not in set(missing)]
    found = Found()
    rest = Rest(api, BINANCE, MAPPING, FakeClock(), lambda: None)
    listed = sorted([r for r in rows if r[0] not in {e[0] for e in extra if e[1] < 0}] + [
        (n, abs(ts), line) for n, ts, line in extra])  # fmt: skip
    return reconcile(CHUNK, listed, DAY, rest, found, suspect=suspect), found


def rows_of(pieces: Pieces) -> list[str]:
    return [line for piece in pieces.whole for line in piece.texts]


def test_what_is_missing_comes_and_everything_else_stays_as_the_file_has_it() -> None:
    api = Api()
    pieces, found = settle(api, missing=[1_010, 1_011, 1_050])
    assert rows_of(pieces) == [text(n) for n in range(1_000, 1_100)]
    assert (found.filled, found.absent, found.decided, pieces.left) == (3, 0, 0, ())


def test_a_row_of_another_day_is_the_apis_to_say() -> None:
    """binance-public-data#339: an id of this day with the row of another one."""
    pieces, found = settle(Api(other=[1_030]), extra=[(1_030, -2_500_000, text(1_030))])
    assert rows_of(pieces)[30] == text(1_030, "2.00000000")
    [difference] = found.differences
    assert (difference.id, difference.why, difference.taken) == (
        1_030, "the row is of another day", text(1_030, "2.00000000"))  # fmt: skip


def test_two_rows_of_one_id_are_the_apis_to_say() -> None:
    pieces, found = settle(Api(), extra=[(1_030, 1_500_000, text(1_030, "9.00000000"))])
    assert rows_of(pieces)[30] == text(1_030)
    assert len(found.differences[0].archive) == 2
    assert found.filled == 0


def test_a_row_that_the_api_denies_stays_unless_something_speaks_against_it() -> None:
    gone = [1_020, 1_021]
    pieces, found = settle(Api(gone=gone), missing=[1_019, 1_022])
    assert rows_of(pieces) == [text(n) for n in range(1_000, 1_100)]
    assert [d.why for d in found.differences] == ["the API shows no such trade"] * 2
    pieces, found = settle(Api(gone=gone), extra=[(1_020, 1_500_000, text(1_020, "9.00000000"))])
    assert [a for piece in pieces.whole for a in piece.absent] == [(1_020, 1_020, "exchange_skipped")]
    assert found.absent == 1


def test_what_the_api_does_not_say_is_left_and_the_rest_is_whole() -> None:
    pieces, found = settle(Api(down=True), missing=[1_010, 1_050, 1_051])
    assert pieces.left == (Interval(1_010, 1_010), Interval(1_050, 1_051))
    assert [piece.chunk for piece in pieces.whole] == [Chunk(1_000, 1_009), Chunk(1_011, 1_049), Chunk(1_052, 1_099)]
    assert [len(piece.texts) for piece in pieces.whole] == [10, 39, 48]
    assert found.filled == 0


def test_an_api_that_is_down_is_not_asked_again_and_again() -> None:
    api = Api(down=True)
    rest = Rest(api, BINANCE, MAPPING, FakeClock(), lambda: None)
    assert [rest.fetch(Interval(n, n)) for n in range(50)] == [None] * 50
    assert len(api.asked) == 4
    assert len(rest.reasons) == 1


def test_a_suspect_chunk_is_the_apis_as_a_whole() -> None:
    """binance-public-data#353."""
    pieces, found = settle(Api(other=range(1_020, 1_030)), suspect=True)
    assert rows_of(pieces) == [
        text(n, "2.00000000" if 1_020 <= n < 1_030 else "1.00000000") for n in range(1_000, 1_100)
    ]
    assert (found.decided, found.compared) == (10, 100)


def test_more_holes_than_an_object_can_name_are_pieces() -> None:
    """binance-public-data#363, #378."""
    gone = list(range(1_001, 1_100, 2))
    pieces, found = settle(Api(gone=gone), missing=gone)
    assert found.absent == 50
    assert [len(piece.absent) for piece in pieces.whole] == [20, 20, 10]
    assert [(p.chunk.first, p.chunk.last) for p in pieces.whole] == [(1_000, 1_039), (1_040, 1_079), (1_080, 1_099)]
    assert sum(len(p.texts) for p in pieces.whole) == 50


def test_questions_are_put_together_while_one_more_answer_pays_for_them() -> None:
    holes = [Interval(5, 5), Interval(900, 901), Interval(3_000, 3_000)]
    assert list(spans_of(holes, 1_000)) == [Interval(5, 901), Interval(3_000, 3_000)]
    assert len(list(spans_of([Interval(n, n) for n in range(0, 100, 2)], 1_000))) == 3


def test_the_same_trade_is_the_same_whatever_its_spelling() -> None:
    assert same_trade(MAPPING, text(1_001), text(1_001).replace('"5.00"', '"5.0000"'))
    for change in (("1001,", "1002,"), ('"5.00"', '"5.01"'), ('"m":true', '"m":false'), ('"T":1', '"T":2')):
        assert not same_trade(MAPPING, text(1_001), text(1_001).replace(*change))
    assert not same_trade(MAPPING, text(1_001), "{}")


def test_a_chunk_is_complete_if_each_id_has_one_row_of_the_day() -> None:
    def table(*rows: tuple[int, int]) -> pa.Table:
        ids, times = zip(*rows, strict=True)
        return pa.table([pa.array(ids), pa.array(times), pa.array(["x"] * len(ids))], schema=SCHEMA)

    chunk = Chunk(5, 7)
    assert complete(table((5, 1_500_000), (6, 1_500_000), (7, 1_999_999)), chunk, DAY)
    assert not complete(table((5, 1_500_000), (6, 1_500_000)), chunk, DAY)
    assert not complete(table((5, 1_500_000), (5, 1_500_000), (7, 1_500_000)), chunk, DAY)
    assert not complete(table((5, 1_500_000), (6, 2_000_000), (7, 1_500_000)), chunk, DAY)
    assert not complete(table((5, 999_999), (6, 1_500_000), (7, 1_500_000)), chunk, DAY)
