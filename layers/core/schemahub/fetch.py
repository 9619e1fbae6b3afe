"""Fetching a chunk: page after page until every id of the range is here or proved absent.

Pages are judged, never trusted: ids outside the question are dropped, repeats must be identical, holes are asked for
a second time, and an empty answer is an error. Ids that a second, later answer skips as well, while it shows the trade
beyond them, are recorded as ``exchange_skipped``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from schemahub.errors import EmptyPage, IncompletePage, PageConflict
from schemahub.exchanges import Row
from schemahub.streams import Absent, Chunk, Interval, Stream, runs

SECOND_LOOK_AFTER_S = 2.0
MAX_SECOND_LOOKS = 20


class PageSource(Protocol):
    """One request for the rows of ``[first, last]``, paced; see ``exchanges.Exchange.page``."""

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int) -> list[Row]: ...


@dataclass(frozen=True)
class Fetched:
    """Every row of a chunk by ascending id, as JSON text, and the ids that the exchange skips."""

    chunk: Chunk
    texts: tuple[str, ...]
    absent: tuple[Absent, ...]
    requests: int
    repeated: int = 0
    """Rows that came more than once, with the same content."""
    outside: int = 0
    """Rows that nobody had asked for."""


@dataclass
class _Harvest:
    """What has come so far."""

    stream: Stream
    rows: dict[int, str] = field(default_factory=dict)
    requests: int = 0
    repeated: int = 0
    outside: int = 0

    def take(self, page: list[Row], asked: Interval) -> list[int]:
        """Keep the rows that were asked for; returns all ids of the page."""
        for row in page:
            if not asked.first <= row.id <= asked.last:
                self.outside += 1
                continue
            known = self.rows.setdefault(row.id, row.text)
            if known is not row.text:
                self.repeated += 1
                if known != row.text:
                    raise PageConflict(f"two different trades have the id {row.id}", stream=self.stream,
                                       span=(asked.first, asked.last))
        return [row.id for row in page]


def fetch_chunk(source: PageSource, stream: Stream, chunk: Chunk, *, page_size: int, descending: bool,
                pause: Callable[[float], None], tick: Callable[[], None] = lambda: None) -> Fetched:
    """All rows of ``chunk``, complete or an error.

    ``pause`` sleeps for seconds before a second look; ``tick`` is called after each answer (lease renewal).

    Raises:
        EmptyPage: the exchange answered with no rows inside the range.
        IncompletePage: ids are missing and no answer proves that the exchange skips them.
        PageConflict: one id came with two contents.
    """
    harvest = _Harvest(stream)
    _walk(source, harvest, Interval(chunk.first, chunk.last), page_size, descending, tick)
    absent = _second_look(source, harvest, chunk, page_size, descending, pause, tick)
    texts = tuple(harvest.rows[i] for i in sorted(harvest.rows))
    return Fetched(chunk, texts, absent, harvest.requests, harvest.repeated, harvest.outside)


def _walk(source: PageSource, harvest: _Harvest, wanted: Interval, page_size: int, descending: bool,
          tick: Callable[[], None]) -> int:
    """Page through ``wanted``; returns the furthest id that any answer showed in the direction of travel."""
    first, last = wanted
    while True:
        left = -(-(last - first + 1) // page_size)
        page = source.page(harvest.stream, first, last, pages_left=left)
        harvest.requests += 1
        ids = harvest.take(page, Interval(first, last))
        tick()
        if not ids:
            raise EmptyPage("status 200 and no rows", stream=harvest.stream, span=(first, last))
        furthest = min(ids) if descending else max(ids)
        # An answer that shows nothing between the cursor and the edge, yet shows what lies beyond, ends the walk.
        if (furthest <= first) if descending else (furthest >= last):
            return furthest
        if (furthest > last) if descending else (furthest < first):
            raise IncompletePage("the answer holds only rows that nobody asked for", stream=harvest.stream,
                                 span=(first, last))
        first, last = (first, furthest - 1) if descending else (furthest + 1, last)


def _second_look(source: PageSource, harvest: _Harvest, chunk: Chunk, page_size: int, descending: bool,
                 pause: Callable[[float], None], tick: Callable[[], None]) -> tuple[Absent, ...]:
    holes = _holes(harvest, chunk)
    if not holes:
        return ()
    if len(holes) > MAX_SECOND_LOOKS:
        raise IncompletePage(f"{len(holes)} separate holes, {sum(h.size for h in holes)} ids are missing",
                             stream=harvest.stream, span=(chunk.first, chunk.last))
    pause(SECOND_LOOK_AFTER_S)
    for hole in holes:
        # One id further than the hole in the direction of travel: only an answer that shows it, or something beyond,
        # proves that what lies before it was skipped and not merely cut off.
        wide = Interval(max(1, hole.first - 1), hole.last) if descending else Interval(hole.first, hole.last + 1)
        seen = _Harvest(harvest.stream)
        _walk(source, seen, wide, page_size, descending, tick)
        harvest.requests += seen.requests
        for trade_id, text in seen.rows.items():
            if chunk.first <= trade_id <= chunk.last and harvest.rows.setdefault(trade_id, text) != text:
                raise PageConflict(f"the trade {trade_id} changed between two answers", stream=harvest.stream,
                                   span=(chunk.first, chunk.last))
    return tuple(Absent(h.first, h.last, "exchange_skipped") for h in _holes(harvest, chunk))


def _holes(harvest: _Harvest, chunk: Chunk) -> list[Interval]:
    """The ids of the chunk that are not here, as intervals, without walking over every id that is."""
    have = runs(harvest.rows)
    edges = [chunk.first - 1, *(edge for run in have for edge in run), chunk.last + 1]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [Interval(before + 1, after - 1) for before, after in pairs if after - before > 1]
