"""Paging by time or by sparse ids: whatever the ties, the page size and cut answers, every trade is there."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemahub.answers import Row
from schemahub.errors import EmptyPage, IncompletePage, PageConflict, TieOverflow
from schemahub.fetch_linked import fetch_linked, fetch_newest
from schemahub.streams import Chunk, Stream

STREAM = Stream("kraken", "BTC-USD")


@dataclass
class History:
    """An exchange with these positions; ``spoil`` may change what an answer shows."""

    positions: list[int]
    page_size: int
    descending: bool = False
    short: list[int] = field(default_factory=list)
    """How many rows the next answers leave out at their far end."""
    drop_first_of: int = 0
    """The number of the answer that does not show its first position."""
    asked: int = 0

    def rows(self) -> list[Row]:
        return [Row(p, p // 1000, f'{{"at":{p},"n":{n}}}', str(n)) for n, p in enumerate(sorted(self.positions), 1)]

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int) -> list[Row]:
        self.asked += 1
        if self.descending:
            shown = [row for row in reversed(self.rows()) if row.position <= last]
        else:
            shown = [row for row in self.rows() if row.position >= first]
        if self.asked == self.drop_first_of:
            shown = [row for row in shown if row.position != shown[0].position]
        page = shown[: self.page_size]
        cut = self.short.pop() if self.short else 0
        return page[: max(1, len(page) - cut)]


def fetched(history: History, chunk: Chunk, unit: int = 1, link: int | None = None, ties: bool = True) -> list[str]:
    result = fetch_linked(
        history,
        STREAM,
        chunk,
        page_size=history.page_size,
        descending=history.descending,
        unit=unit,
        ties=ties,
        link=link,
        pause=lambda seconds: None,
    )
    return list(result.texts)


def truth(history: History, chunk: Chunk) -> list[str]:
    return [row.text for row in history.rows() if chunk.first <= row.position <= chunk.last]


@st.composite
def tied(draw: st.DrawFn) -> tuple[History, Chunk, int]:
    """A history in units of time with up to four trades each, and a chunk that ends with a unit that has some."""
    unit = draw(st.sampled_from([1, 10, 1000]))
    counts = draw(st.lists(st.integers(0, 4), min_size=3, max_size=40))
    positions = [(n + 1) * unit for n, many in enumerate(counts) for _ in range(many)]
    with_trades = [n + 1 for n, many in enumerate(counts) if many]
    if not with_trades:
        positions, with_trades = [unit], [1]
    last = draw(st.sampled_from(with_trades))
    first = draw(st.integers(1, last))
    # Answers that stop early are only told from the end of history by a trade behind the chunk (`plan` sees to that).
    behind = with_trades[-1] > last
    # Two in a row that hide the same trades are not told from an exchange that has none: hence every other one.
    short = [n for few in draw(st.lists(st.integers(0, 2), max_size=4)) for n in (few, 0)] if behind else []
    history = History(positions, page_size=draw(st.integers(5, 9)), short=short)
    return history, Chunk(first * unit, last * unit + unit - 1), unit


@given(tied())
def test_by_time_every_trade_of_the_chunk_is_there_whatever_the_ties(case: tuple[History, Chunk, int]) -> None:
    history, chunk, unit = case
    short = bool(history.short)
    try:
        assert fetched(history, chunk, unit) == truth(history, chunk)
    except IncompletePage:
        assert short, "only an answer that stopped early is asked again later"


@given(st.sets(st.integers(1, 400), min_size=2, max_size=80), st.integers(2, 9), st.booleans(), st.data())
def test_by_sparse_ids_in_both_directions(ids: set[int], page_size: int, descending: bool, data: st.DataObject) -> None:
    ordered = sorted(ids)
    first, last = sorted(data.draw(st.tuples(st.sampled_from(ordered), st.sampled_from(ordered))))
    history = History(ordered, page_size, descending)
    assert fetched(history, Chunk(first, last), ties=False) == truth(history, Chunk(first, last))


@given(tied(), st.integers(2, 6))
def test_an_answer_that_does_not_begin_with_the_link_is_never_taken(
    case: tuple[History, Chunk, int], which: int
) -> None:
    history, chunk, unit = case
    history.drop_first_of = which
    try:
        texts = fetched(history, chunk, unit)
    except (IncompletePage, EmptyPage):
        return
    assert texts == truth(history, chunk)


def test_a_full_answer_of_one_time_is_said_not_passed() -> None:
    with pytest.raises(TieOverflow):
        fetched(History([5] * 9 + [6], page_size=4), Chunk(5, 6))


def test_a_pruned_history_does_not_look_like_a_quiet_time() -> None:
    history = History([50, 60, 70], page_size=4)
    assert fetched(History([40, 50, 60, 70], page_size=4), Chunk(41, 70), link=40)
    with pytest.raises(IncompletePage, match="watermark"):
        fetched(history, Chunk(41, 70), link=40)


def test_a_trade_that_changes_between_two_answers_is_a_conflict() -> None:
    class Changing(History):
        def rows(self) -> list[Row]:
            return [Row(r.position, r.ts_us, f"{r.text[:-1]},{self.asked // 2}}}", r.trade_id) for r in super().rows()]

    with pytest.raises(PageConflict):
        fetched(Changing([1, 2, 3, 4, 5, 6], page_size=3), Chunk(1, 6))


def test_the_newest_trades_only_an_answer_that_does_not_reach_back_records_what_is_lost() -> None:
    history = History(list(range(10, 30)), page_size=5, descending=True)
    whole = fetch_newest(history, STREAM, Chunk(26, 29), window_from=None, tick=lambda: None)
    assert (len(whole.texts), whole.absent) == (4, ())
    lost = fetch_newest(history, STREAM, Chunk(15, 29), window_from=None, tick=lambda: None)
    assert [tuple(a) for a in lost.absent] == [(15, 25, "lost")]
    assert len(lost.texts) == 4, "the oldest group may be cut: it belongs to the hole"
    promised = fetch_newest(history, STREAM, Chunk(25, 29), window_from=20, tick=lambda: None)
    assert promised.absent == ()
