"""Fetching one chunk from exchanges with every habit that was ever reported of one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schemahub.answers import Row
from schemahub.errors import EmptyPage, IncompletePage, PageConflict
from schemahub.fetch import MAX_HOLES, Fetched, fetch_chunk
from schemahub.streams import Chunk
from tests.unit.sources import STREAM, Asked, FakeSource, row, text_of

CHUNK = Chunk(10, 29)
BOTH = pytest.mark.parametrize("descending", [True, False], ids=["descending", "ascending"])


def fetch(source: FakeSource, chunk: Chunk = CHUNK, tick: Callable[[], None] = lambda: None) -> Fetched:
    return fetch_chunk(
        source, STREAM, chunk, page_size=source.page_size, descending=source.descending, pause=source.pause, tick=tick
    )


def ids(fetched: Fetched, within: Chunk = CHUNK) -> list[int]:
    return [i for i in range(within.first, within.last + 1) if text_of(i) in set(fetched.texts)]


@BOTH
def test_a_whole_chunk_takes_its_pages_and_not_one_request_more(descending: bool) -> None:
    ticks: list[int] = []
    source = FakeSource(range(1, 50), descending=descending)
    fetched = fetch(source, tick=lambda: ticks.append(1))
    assert ids(fetched) == list(range(10, 30))
    assert fetched.absent == ()
    assert fetched.requests == len(source.asked) == len(ticks) == 5
    assert source.pauses == []


@BOTH
def test_an_empty_page_in_the_middle_is_an_error(descending: bool) -> None:
    source = FakeSource(
        range(1, 50), descending=descending, spoil=lambda asked, page: [] if asked.number == 2 else page
    )
    with pytest.raises(EmptyPage, match=r"coinbase#BTC-USD#trades.*\[1[0-9]\.\.2[0-9]\]"):
        fetch(source)


@BOTH
def test_a_short_page_is_continued(descending: bool) -> None:
    source = FakeSource(range(1, 50), descending=descending, spoil=lambda asked, page: page[:1])
    assert ids(fetch(source)) == list(range(10, 30))


@BOTH
def test_repeats_are_counted_and_rows_outside_dropped(descending: bool) -> None:
    source = FakeSource(
        range(1, 50), descending=descending, spoil=lambda asked, page: [row(3), row(45), *page, *page[:1]]
    )
    fetched = fetch(source)
    assert ids(fetched) == list(range(10, 30))
    assert len(fetched.texts) == 20
    assert (fetched.repeated, fetched.outside) == (5, 10)


@BOTH
def test_an_unordered_page_is_sorted(descending: bool) -> None:
    source = FakeSource(range(1, 50), descending=descending, spoil=lambda asked, page: page[::-1])
    assert fetch(source).texts == tuple(text_of(i) for i in range(10, 30))


@BOTH
def test_one_id_with_two_contents_is_a_conflict(descending: bool) -> None:
    source = FakeSource(
        range(1, 50),
        descending=descending,
        spoil=lambda asked, page: [*page, Row(page[0].position, 0, page[0].text.replace("1.10", "1.1"))],
    )
    with pytest.raises(PageConflict, match="two different trades"):
        fetch(source)


@BOTH
def test_a_trade_that_changed_between_two_looks_is_a_conflict(descending: bool) -> None:
    def spoil(asked: Asked, page: list[Row]) -> list[Row]:
        return [Row(r.position, r.ts_us, r.text + " ") if asked.again else r for r in page if r.position != 15]

    with pytest.raises(PageConflict):
        fetch(FakeSource(range(1, 50), descending=descending, spoil=spoil))


@BOTH
def test_a_hole_that_the_second_look_fills_is_no_hole(descending: bool) -> None:
    source = FakeSource(
        range(1, 50),
        descending=descending,
        page_size=20,
        spoil=lambda asked, page: [r for r in page if asked.again or not 14 <= r.position <= 23],
    )
    fetched = fetch(source)
    assert ids(fetched) == list(range(10, 30))
    assert fetched.absent == ()
    assert source.pauses == [2.0]


@BOTH
@pytest.mark.parametrize(
    "gone",
    [
        {15},
        {10},
        {29},
        {10, 11, 28, 29},
        {14, 15, 16, 22},
        set(range(10, 30)),
        set(range(5, 20)),
        set(range(20, 35)),
        set(range(3, 48)),
    ],
    ids=lambda gone: "-".join(map(str, sorted(gone)[:4])),
)
def test_ids_that_were_never_issued_are_absent_with_a_class(descending: bool, gone: set[int]) -> None:
    fetched = fetch(FakeSource(set(range(1, 60)) - gone, descending=descending))
    assert ids(fetched) == [i for i in range(10, 30) if i not in gone]
    assert {i for a in fetched.absent for i in range(a.first, a.last + 1)} == gone & set(range(10, 30))
    assert {a.kind for a in fetched.absent} == {"exchange_skipped"}


@BOTH
def test_ids_that_jumped_over_many_chunks_are_proved_in_few_requests(descending: bool) -> None:
    source = FakeSource({*range(1, 9), *range(3_000_000, 3_000_009)}, descending=descending)
    chunk = Chunk(1_000_000, 1_009_999)
    fetched = fetch(source, chunk)
    assert fetched.texts == ()
    assert [tuple(a) for a in fetched.absent] == [(1_000_000, 1_009_999, "exchange_skipped")]
    assert len(source.asked) < 60


@BOTH
def test_one_stray_row_far_outside_is_no_proof(descending: bool) -> None:
    """Fetch of before: a row beyond the chunk ended the walk, twice, and real trades became absent."""
    stray = row(1 if descending else 10**9)
    source = FakeSource(range(1, 50), descending=descending, spoil=lambda asked, page: [*page[:1], stray])
    assert ids(fetch(source)) == list(range(10, 30))


@BOTH
def test_nothing_but_a_stray_row_is_an_error(descending: bool) -> None:
    stray = row(1 if descending else 10**9)
    with pytest.raises(IncompletePage):
        fetch(FakeSource(range(1, 50), descending=descending, spoil=lambda asked, page: [stray]))


def test_an_ignored_cursor_is_no_proof() -> None:
    """An ascending exchange (or a cache) that always shows the newest page shows rows beyond every hole."""
    newest = [row(i) for i in range(46, 50)]
    with pytest.raises(IncompletePage):
        fetch(FakeSource(range(1, 50), descending=False, spoil=lambda asked, page: newest))
    with pytest.raises(IncompletePage):
        fetch(
            FakeSource(range(1, 50), descending=False, spoil=lambda asked, page: newest if asked.number > 1 else page)
        )


def test_a_stale_node_is_no_proof() -> None:
    """It shows the trade below the newest ones, which it does not know yet."""
    stale = FakeSource(range(1, 20), descending=True)
    with pytest.raises(IncompletePage, match="no trade before them"):
        fetch(stale)
    assert len(stale.asked) < 60


def test_a_pruned_history_is_no_proof() -> None:
    with pytest.raises(IncompletePage, match="no trade before them"):
        fetch(FakeSource(range(15, 50), descending=False))


def test_a_history_that_ends_below_the_chunk_is_no_proof() -> None:
    """The stray row that ended the walk is not there when it is asked for."""
    source = FakeSource(range(15, 50), spoil=lambda asked, page: page if page or asked.again else [row(5)])
    with pytest.raises(IncompletePage, match="no trade behind them"):
        fetch(source)


@BOTH
def test_rows_that_nobody_asked_for_are_an_error(descending: bool) -> None:
    other = row(40 if descending else 2)
    with pytest.raises(IncompletePage, match="nobody asked for"):
        fetch(FakeSource(range(1, 50), descending=descending, spoil=lambda asked, page: [other]))


@BOTH
@pytest.mark.parametrize("shown", [slice(0, 1), slice(1, None)], ids=["only the trade before", "only the trade behind"])
def test_a_second_look_must_show_both_sides_of_a_hole(descending: bool, shown: slice) -> None:
    source = FakeSource(
        set(range(1, 50)) - {15, 16},
        descending=descending,
        spoil=lambda asked, page: page[shown] if asked.again else page,
    )
    with pytest.raises(IncompletePage, match="around them"):
        fetch(source)


@BOTH
def test_a_page_that_shows_only_its_edges_is_no_proof(descending: bool) -> None:
    source = FakeSource(
        range(1, 50),
        descending=descending,
        page_size=20,
        spoil=lambda asked, page: page if asked.again else [page[0], page[-1]],
    )
    assert ids(fetch(source)) == list(range(10, 30))


@BOTH
def test_more_holes_than_anybody_would_believe_are_an_error(descending: bool) -> None:
    many = Chunk(10, 10 + 4 * MAX_HOLES)
    source = FakeSource(range(1, 400, 2), descending=descending)
    with pytest.raises(IncompletePage, match="separate holes"):
        fetch(source, many)
    assert source.pauses == []


@BOTH
def test_a_hole_that_falls_into_many_is_an_error_too(descending: bool) -> None:
    """Their list would not fit the raw object's metadata."""
    even = set(range(12, 12 + 4 * MAX_HOLES, 2))
    source = FakeSource(
        range(1, 400),
        descending=descending,
        page_size=200,
        spoil=lambda asked, page: [
            r for r in page if r.position not in even and (asked.again or not 12 <= r.position < 12 + 4 * MAX_HOLES)
        ],
    )
    with pytest.raises(IncompletePage, match="separate holes"):
        fetch(source, Chunk(10, 10 + 5 * MAX_HOLES))
    assert len(source.pauses) == 1


@BOTH
def test_each_look_that_finds_other_ids_missing_ends_in_an_error(descending: bool) -> None:
    def spoil(asked: Asked, page: list[Row]) -> list[Row]:
        return [r for r in page if not 12 + len(source.pauses) <= r.position <= 28]

    source = FakeSource(range(1, 50), descending=descending, page_size=40, spoil=spoil)
    with pytest.raises(IncompletePage, match="each look"):
        fetch(source)


@BOTH
def test_a_chunk_of_one_position(descending: bool) -> None:
    assert fetch(FakeSource(range(1, 50), descending=descending), Chunk(7, 7)).texts == (text_of(7),)
    gone = fetch(FakeSource(set(range(1, 50)) - {7}, descending=descending), Chunk(7, 7))
    assert [tuple(a) for a in gone.absent] == [(7, 7, "exchange_skipped")]
