"""Paging by time or by sparse ids: whatever the ties, the page size and cut answers, every trade is there.

And whatever an exchange prunes, skips or hides for a while: a chunk is exact, or it is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from schemahub import plan
from schemahub.answers import Row
from schemahub.errors import EmptyPage, IncompletePage, PageConflict, TieOverflow
from schemahub.fetch import Fetched
from schemahub.fetch_linked import fetch_linked, fetch_newest
from schemahub.seams import torn
from schemahub.streams import Chunk, Edges, Known, RawObject, Stream

STREAM = Stream("kraken", "BTC-USD")
REFUSED = (IncompletePage, EmptyPage)
Spoil = Callable[[int, list[Row]], list[Row]]


@dataclass
class History:
    """An exchange with these positions; ``spoil`` says what it has left of them for its n-th answer."""

    positions: list[int]
    page_size: int
    descending: bool = False
    short: list[int] = field(default_factory=list)
    """How many rows the next answers leave out at their far end."""
    skipped: dict[int, int] = field(default_factory=dict)
    """How many positions the n-th answer leaves out at its beginning."""
    spoil: Spoil = field(default=lambda asked, rows: rows, repr=False)
    asked: int = 0

    def rows(self) -> list[Row]:
        return [Row(p, p // 1000, f'{{"at":{p},"n":{n}}}', str(n)) for n, p in enumerate(sorted(self.positions), 1)]

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int) -> list[Row]:
        self.asked += 1
        rows = self.spoil(self.asked, self.rows())
        if self.descending:
            shown = [row for row in reversed(rows) if row.position <= last]
        else:
            shown = [row for row in rows if row.position >= first]
        for _ in range(self.skipped.get(self.asked, 0)):
            shown = [row for row in shown if row.position != shown[0].position]
        page = shown[: self.page_size]
        cut = self.short.pop() if self.short else 0
        return page[: max(1, len(page) - cut)]


def fetched(history: History, chunk: Chunk, unit: int = 1, ties: bool = True) -> list[str]:
    return list(linked(history, chunk, unit, ties).texts)


def linked(history: History, chunk: Chunk, unit: int = 1, ties: bool = True) -> Fetched:
    return fetch_linked(
        history,
        STREAM,
        chunk,
        page_size=history.page_size,
        descending=history.descending,
        unit=unit,
        ties=ties,
        pause=lambda seconds: None,
    )


def truth(history: History, chunk: Chunk) -> list[str]:
    return [row.text for row in history.rows() if chunk.first <= row.position <= chunk.last]


@dataclass(frozen=True)
class Planned:
    """Chunks between two trades, as ``ingest`` plans them."""

    history: History
    chunks: list[Chunk]
    unit: int
    ties: bool

    def outcomes(self) -> list[bool]:
        """Whether each chunk came, in the order asked; those that came are exact."""
        came = []
        for chunk in self.chunks:
            try:
                texts = fetched(self.history, chunk, self.unit, self.ties)
            except REFUSED:
                came.append(False)
                continue
            assert texts == truth(self.history, chunk)
            came.append(True)
        event(f"{sum(came)} of {len(came)} chunks came" if len(came) < 4 else f"all came: {all(came)}")
        return came


def between(history: History, one: int, other: int, unit: int, *, cold: bool, size: int) -> list[Chunk]:
    """The chunks of a plan from the trade at ``one`` (committed, or where a first run begins) to that at ``other``."""
    first = one // unit * unit + (0 if cold else unit)
    last = other // unit * unit + unit - 1
    head = max(p for p in history.positions if p <= last)
    base = min(p for p in history.positions if p >= first) if cold else max(p for p in history.positions if p < first)
    pace = (max(history.positions) - min(history.positions)) // len(history.positions)
    return plan.cut(first, last, size * unit, known=Known(base, head, max(1, pace)))


@st.composite
def by_time(draw: st.DrawFn) -> Planned:
    """Units of time with up to four trades each, at one or more times within the unit."""
    unit = draw(st.sampled_from([1, 10, 1000]))
    counts = draw(st.lists(st.integers(0, 4), min_size=3, max_size=60).filter(lambda c: sum(map(bool, c)) > 1))
    within = draw(st.lists(st.integers(0, unit - 1), min_size=1, max_size=4))
    positions = [(n + 1) * unit + within[k % len(within)] for n, many in enumerate(counts) for k in range(many)]
    history = History(positions, page_size=draw(st.integers(5, 9)))
    return _planned(draw, history, unit, ties=True)


@st.composite
def by_ids(draw: st.DrawFn) -> Planned:
    """Ids that skip numbers, in both directions of travel."""
    ids = sorted(draw(st.sets(st.integers(1, 400), min_size=3, max_size=80)))
    return _planned(draw, History(ids, draw(st.integers(2, 9)), draw(st.booleans())), 1, ties=False)


def _planned(draw: st.DrawFn, history: History, unit: int, ties: bool) -> Planned:
    units = sorted({p // unit for p in history.positions})
    one, other = sorted(draw(st.lists(st.sampled_from(units), min_size=2, max_size=2, unique=True)))
    size = draw(st.integers(1, max(2, (units[-1] - units[0]) // 2)))
    chunks = between(history, one * unit, other * unit, unit, cold=draw(st.booleans()), size=size)
    return Planned(history, draw(st.permutations(chunks)), unit, ties)


ANY = st.one_of(by_time(), by_ids())


@given(ANY)
def test_every_chunk_of_a_plan_is_exact(planned: Planned) -> None:
    assert all(planned.outcomes())


@given(by_time(), st.lists(st.integers(0, 2), max_size=4))
def test_an_answer_that_stopped_early_is_told_from_the_end_of_history(planned: Planned, short: list[int]) -> None:
    # Two in a row that hide the same trades are not told from an exchange that has none: hence every other one.
    planned.history.short = [n for few in short for n in (few, 0)]
    planned.history.positions.append(max(planned.history.positions) + planned.unit)
    planned.outcomes()


@given(ANY, st.dictionaries(st.integers(1, 12), st.integers(1, 12), max_size=6))
def test_an_exchange_that_skips_what_an_answer_should_begin_with(planned: Planned, skipped: dict[int, int]) -> None:
    planned.history.skipped = skipped
    planned.outcomes()


@given(ANY, st.data())
def test_history_that_is_pruned_from_some_answer_on(planned: Planned, data: st.DataObject) -> None:
    """Everything before a trade is gone: what lay there must not look like a quiet time, whichever chunk is asked."""
    rows, known, first = planned.history.rows(), planned.chunks[0].known, min(planned.chunks)
    assert known
    kept, since = data.draw(st.integers(1, len(rows))), data.draw(st.integers(1, 12))
    # The trades that share their time with the one that a first run begins with are no loss: coverage begins there.
    assume(known.base != rows[kept - 1].position)
    planned.history.spoil = lambda asked, rows: rows[kept:] if asked >= since else rows
    came = planned.outcomes()
    if since == 1 and rows[kept - 1].position > (known.base or 0):
        assert not came[planned.chunks.index(first)], "the trade at the plan's beginning is gone"


@given(ANY, st.data())
def test_a_stale_node_that_has_not_the_newest_trades(planned: Planned, data: st.DataObject) -> None:
    had_until = data.draw(st.sampled_from(planned.history.positions))
    stale = data.draw(st.sets(st.integers(1, 12)) | st.just(range(1, 10_000)))
    planned.history.spoil = lambda asked, rows: [r for r in rows if asked not in stale or r.position <= had_until]
    planned.outcomes()


@given(ANY, st.data())
def test_a_stretch_that_is_gone_around_a_trade_of_the_plan(planned: Planned, data: st.DataObject) -> None:
    """From the first answer on, around the watermark's trade or the head's, across as many chunks as it likes."""
    known = planned.chunks[0].known
    assert known
    at = data.draw(st.sampled_from(sorted({known.base or 0, known.head})))
    low, high = at - data.draw(st.integers(0, 40)) * planned.unit, at + data.draw(st.integers(0, 40)) * planned.unit
    low, high = low // planned.unit * planned.unit, high // planned.unit * planned.unit + planned.unit - 1
    planned.history.spoil = lambda asked, rows: [r for r in rows if not low <= r.position <= high]
    planned.outcomes()


@given(ANY, st.data())
def test_a_stretch_that_goes_between_two_chunks_is_told_at_their_seam(planned: Planned, data: st.DataObject) -> None:
    """Its trades are in the one and not in the other, or missing in the one and named by the other."""
    history, asked = planned.history, planned.chunks
    assume(len(asked) > 1)
    one, other = sorted(data.draw(st.tuples(*[st.sampled_from(history.positions)] * 2)))
    since = data.draw(st.integers(1, len(asked) - 1))
    results: dict[Chunk, Fetched] = {}
    for number, chunk in enumerate(asked):
        gone = number >= since
        history.spoil = lambda _, rows, gone=gone: [r for r in rows if not (gone and one <= r.position <= other)]
        try:
            results[chunk] = linked(history, chunk, planned.unit, planned.ties)
        except REFUSED:
            return
    for chunk, following in itertools.pairwise(sorted(asked)):
        between = max(p for p in history.positions if p <= chunk.last)
        pair = [
            RawObject("", c.first, c.last, len(results[c].texts), "", (), False, results[c].edges)
            for c in (chunk, following)
        ]
        differently = (asked.index(chunk) >= since) != (asked.index(following) >= since)
        event(f"torn: {differently and one <= between <= other}")
        assert (torn(pair) is not None) == (differently and one <= between <= other)


def test_towards_older_trades_a_chunk_s_first_id_is_not_the_end() -> None:
    history, chunk = History(list(range(1, 21)), page_size=4, descending=True), Chunk(9, 12, Known(3, 18, 1))
    assert linked(history, chunk, ties=False).edges == Edges(8, 12)
    assert linked(history, Chunk(3, 6, Known(3, 18, 1)), ties=False).texts == tuple(truth(history, Chunk(3, 6)))


def test_a_first_answer_that_begins_a_little_earlier_costs_no_request() -> None:
    history = History(list(range(0, 100_000, 10)), page_size=1_000)
    chunks = between(history, 10_000, 80_000, 10, cold=False, size=1_600)
    for chunk in chunks:
        assert fetched(history, chunk, 10) == truth(history, chunk)
    bare = sum(-(-(len(truth(history, chunk)) + 1) // 999) for chunk in chunks)
    assert history.asked <= bare + len(chunks) * 0.2


def test_after_a_quiet_time_the_trade_before_a_chunk_is_found_in_a_few_steps() -> None:
    history = History([*range(20_000), *range(1_000_000, 1_010_000)], page_size=100)
    assert len(fetched(history, Chunk(1_000_000, 1_000_099, Known(5, 1_009_000, 1)))) == 100
    assert history.asked < 30


def test_a_full_answer_of_one_time_is_said_not_passed() -> None:
    with pytest.raises(TieOverflow):
        fetched(History([4, *[5] * 9, 6], page_size=4), Chunk(5, 6))


def test_a_pruned_history_does_not_look_like_a_quiet_time() -> None:
    chunk = Chunk(41, 70, Known(40, 70, 10))
    assert fetched(History([40, 50, 60, 70], page_size=4), chunk) == truth(History([0, 50, 60, 70], 4), chunk)
    with pytest.raises(IncompletePage, match="watermark"):
        fetched(History([50, 60, 70], page_size=4), chunk)


def test_a_trade_that_changes_between_two_answers_is_a_conflict() -> None:
    class Changing(History):
        def rows(self) -> list[Row]:
            return [Row(r.position, r.ts_us, f"{r.text[:-1]},{self.asked // 2}}}", r.trade_id) for r in super().rows()]

    with pytest.raises(PageConflict):
        fetched(Changing([1, 2, 3, 4, 5, 6], page_size=3), Chunk(2, 6))


class Newest(History):
    """Shows its newest trades, whatever is asked."""

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int) -> list[Row]:
        return super().page(stream, 0, max(self.positions), pages_left=pages_left)


def newest(
    positions: list[int], chunk: Chunk, page_size: int = 5, window_from: int | None = None
) -> tuple[int, list[tuple[int, int, str]]]:
    history = Newest(positions, page_size, descending=True)
    found = fetch_newest(history, STREAM, chunk, unit=1, window_from=window_from, tick=lambda: None)
    return len(found.texts), [tuple(a) for a in found.absent]


def test_the_newest_trades_only_an_answer_that_does_not_reach_back_records_what_is_lost() -> None:
    trades = list(range(10, 30))
    assert newest(trades, Chunk(26, 28)) == (3, [])
    # The oldest group may be cut: it belongs to the hole.
    assert newest(trades, Chunk(15, 28)) == (3, [(15, 25, "lost")])
    assert newest(trades, Chunk(25, 28), window_from=20) == (4, [])
    assert newest(trades, Chunk(10, 20, Known(9, 20, 1))) == (0, [(10, 20, "lost")])


def test_the_newest_trades_of_a_stale_node_or_of_one_that_skips_are_refused() -> None:
    with pytest.raises(IncompletePage, match="older than the chunk's end"):
        newest(list(range(10, 30)), Chunk(27, 30))
    for there in ([*range(20, 25), *range(26, 30)], [*range(20, 28), 29]):
        with pytest.raises(IncompletePage, match="not shown any more"):
            newest(there, Chunk(26, 28, Known(25, 28, 1)), page_size=8)
