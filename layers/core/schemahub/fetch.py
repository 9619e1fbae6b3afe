"""Fetching a chunk: page after page until every id of the range is here or proved absent.

Pages are judged, never trusted: rows outside the question are dropped and prove nothing, repeats must be identical, an
empty answer is an error. Ids that the first answers skipped are asked for again, later. They are recorded as
``exchange_skipped`` only when one answer, which begins at the trade before them, goes on with the trade behind them: a
stale node, an ignored cursor, a pruned history or a stray row cannot show both. Beside a trade that is still young they
are ``not_yet``: an exchange may show its newest trades out of order. Either way they are asked for again (``repair``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from schemahub.answers import Row
from schemahub.errors import EmptyPage, IncompletePage, PageConflict
from schemahub.streams import MAX_POSITION, Absent, Chunk, Edges, Interval, Stream, runs

SECOND_LOOK_AFTER_S = 2.0
MAX_HOLES = 20
"""Holes of one chunk: more of them are loss, not the exchange's habit (and fill S3's 2 KB of metadata)."""
MAX_LOOKS = 4
"""A look that fills a part of a hole leaves smaller holes, which need a second look of their own."""
MAX_REACH = 2**32
"""How far from a hole the trade before it is looked for."""


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
    counted: bool = True
    """Each position of the chunk is a row or absent; see ``streams.RawObject``."""
    edges: Edges | None = None
    times: Mapping[int, int] = field(default_factory=dict, compare=False, repr=False)
    """Microseconds since the epoch of every trade that the answers showed, also outside of the chunk, by id."""


def fetch_chunk(
    source: PageSource,
    stream: Stream,
    chunk: Chunk,
    *,
    page_size: int,
    descending: bool,
    pause: Callable[[float], None],
    tick: Callable[[], None] = lambda: None,
    young_us: int | None = None,
) -> Fetched:
    """All rows of ``chunk``, complete or an error.

    ``pause`` sleeps for seconds before a second look; ``tick`` is called after each answer (lease renewal). Holes
    before a trade younger than ``young_us`` (microseconds since the epoch) are ``not_yet``.

    Raises:
        EmptyPage: the exchange answered with no rows at all.
        IncompletePage: ids are missing and no answer proves that the exchange skips them.
        PageConflict: one id came with two contents.
    """
    fetch = _Fetch(source, stream, chunk, page_size, -1 if descending else 1, tick)
    fetch.walk()
    seen_twice: set[Interval] = set()
    for _ in range(MAX_LOOKS):
        fetch.few_holes()
        again = [hole for hole in fetch.holes() if hole not in seen_twice]
        if not again:
            break
        pause(SECOND_LOOK_AFTER_S)
        for hole in again:
            fetch.look_again(hole)
        seen_twice.update(again)
    else:
        raise IncompletePage("each look finds other ids missing", stream=stream, span=(chunk.first, chunk.last))
    absent = tuple(Absent(hole.first, hole.last, fetch.kind_of(hole, young_us)) for hole in fetch.holes())
    texts = tuple(fetch.rows[i] for i in sorted(fetch.rows))
    return Fetched(chunk, texts, absent, fetch.requests, fetch.repeated, fetch.outside, times=fetch.times)


@dataclass
class _Fetch:
    """What has come so far. ``sign`` is the direction of travel: 1 towards greater ids, -1 towards smaller ones."""

    source: PageSource
    stream: Stream
    chunk: Chunk
    page_size: int
    sign: int
    tick: Callable[[], None]
    rows: dict[int, str] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)
    requests: int = 0
    repeated: int = 0
    outside: int = 0

    def ask(self, near: int, far: int) -> list[int]:
        """The ids of the answer for ``near`` to ``far``, in the direction of travel; rows of the chunk are kept."""
        first, last = min(near, far), max(near, far)
        page = self.source.page(self.stream, first, last, pages_left=-(-(last - first + 1) // self.page_size))
        self.requests += 1
        self.tick()
        self.times.update((row.position, row.ts_us) for row in page if row.ts_us is not None)
        for row in page:
            if not self.chunk.first <= row.position <= self.chunk.last:
                self.outside += 1
                continue
            self.repeated += row.position in self.rows
            if self.rows.setdefault(row.position, row.text) != row.text:
                raise PageConflict(
                    f"two different trades have the id {row.position}", stream=self.stream, span=(first, last)
                )
        return sorted({row.position for row in page}, key=lambda i: i * self.sign)

    def walk(self) -> None:
        """Page through the chunk. It ends at its far edge, or when an answer shows only what lies beyond it."""
        at, end = self._along(Interval(self.chunk.first, self.chunk.last))
        while not self.is_before(end, at):
            ids = self.ask(at, end)
            if not ids:
                raise EmptyPage("status 200 and no rows", stream=self.stream, span=(min(at, end), max(at, end)))
            # The cursor follows rows that were asked for: one stray row further on must not end the walk.
            wanted = [i for i in ids if not self.is_before(i, at) and not self.is_before(end, i)]
            if not wanted and self.is_before(end, ids[-1]):
                return
            if not wanted:
                raise IncompletePage(
                    "the answer holds only rows that nobody asked for",
                    stream=self.stream,
                    span=(min(at, end), max(at, end)),
                )
            at = wanted[-1] + self.sign

    def look_again(self, hole: Interval) -> None:
        """Fill a hole by a later answer, or have it proved: the trades on both its sides in one answer.

        Raises:
            IncompletePage: neither.
        """
        start, end = self._along(hole)
        at = start - self.sign if start - self.sign in self.rows else self._trade_before(start)
        beyond = end + self.sign if end + self.sign in self.rows else self._trade_from(end)
        while self.is_before(at, end):
            ids = self.ask(at, end + self.sign)
            inside = [i for i in ids if self.is_before(at, i) and self.is_before(i, beyond)]
            if at not in ids or not (inside or beyond in ids):
                raise IncompletePage(
                    "ids are missing, and the second look does not show the trades around them",
                    stream=self.stream,
                    span=(hole.first, hole.last),
                )
            at = inside[-1] if inside else beyond

    def _trade_from(self, end: int) -> int:
        """The next trade from ``end`` on, in the direction of travel: ``end`` itself, or one behind the chunk."""
        shown = [i for i in self.ask(end, end) if not self.is_before(i, end)]
        if not shown:
            raise IncompletePage(
                "ids are missing, and no trade behind them is shown",
                stream=self.stream,
                span=(self.chunk.first, self.chunk.last),
            )
        return shown[0]

    def _trade_before(self, start: int) -> int:
        """A trade before ``start`` that the chunk does not hold, with at most half a page of trades between them.

        Steps back twice as far each time, then halves: ids may have jumped over many chunks.
        """
        found, empty_from, reach = None, start, 1
        while found is None or abs(empty_from - found) > max(1, self.page_size // 2):
            at = start - self.sign * reach if found is None else (found + empty_from) // 2
            at = min(MAX_POSITION, max(0, at))
            if found is None and (at == empty_from or reach > MAX_REACH):
                raise IncompletePage(
                    "ids are missing, and no trade before them is shown",
                    stream=self.stream,
                    span=(self.chunk.first, self.chunk.last),
                )
            shown = [i for i in self.ask(at, at) if self.is_before(i, start)]
            if shown and (found is None or self.is_before(found, shown[-1])):
                found = shown[-1]
            else:
                empty_from = at
            reach *= 2
        return found

    def is_before(self, one: int, other: int) -> bool:
        """Whether ``one`` comes before ``other`` in the direction of travel."""
        return (other - one) * self.sign > 0

    def _along(self, span: tuple[int, int]) -> tuple[int, int]:
        return (span[0], span[1]) if self.sign > 0 else (span[1], span[0])

    def few_holes(self) -> None:
        """Raises IncompletePage when there are more than ``MAX_HOLES``."""
        holes = self.holes()
        if len(holes) > MAX_HOLES:
            raise IncompletePage(
                f"{len(holes)} separate holes, {sum(h.size for h in holes)} ids are missing",
                stream=self.stream,
                span=(self.chunk.first, self.chunk.last),
            )

    def holes(self) -> list[Interval]:
        """The ids of the chunk that are not here, as intervals, without walking over every id that is."""
        have = runs(self.rows)
        edges = [self.chunk.first - 1, *(edge for run in have for edge in run), self.chunk.last + 1]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [Interval(before + 1, after - 1) for before, after in pairs if after - before > 1]

    def kind_of(self, hole: Interval, young_us: int | None) -> str:
        """The class of a proved hole: ``not_yet`` while the trade behind it is young."""
        behind = min((i for i in self.times if i > hole.last), default=None)
        if young_us is not None and behind is not None and self.times[behind] > young_us:
            return "not_yet"
        return "exchange_skipped"
