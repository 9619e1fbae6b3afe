"""How the streams of an exchange are planned and fetched: by counting ids, or by answers that are linked.

The mapping decides: where ids are dense, counting them proves a range; everywhere else (sparse ids, times, an exchange
that shows its newest trades only) the links between answers do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemahub import plan, plan_linked
from schemahub.answers import Row
from schemahub.clock import Clock
from schemahub.errors import IncompletePage
from schemahub.fetch import Fetched, fetch_chunk
from schemahub.fetch_linked import fetch_linked, fetch_newest
from schemahub.mappings import NS, Mapping
from schemahub.pacing import PacedExchange
from schemahub.plan import Head
from schemahub.streams import Chunk, Known, Stream

NO_LIMIT = 2**62
EDGE_US = 900_000_000
"""A first run keeps away from the edge of a window: it may wait so long between its plan and its fetch."""


@dataclass(frozen=True)
class ColdStart:
    """How far back a first run goes."""

    target_us: int
    most_trades: int


@dataclass(frozen=True)
class Begin:
    """Where a plan begins, and the trade that lies there or is the newest before, where answers are linked to it."""

    first: int
    trade: int | None = None


@dataclass(frozen=True)
class Expected:
    """Trades and requests of a plan."""

    trades: int
    requests: int


class DenseIds:
    """Positions are ids, and every number belongs to a trade or to a hole that is classed."""

    counted = True
    most_ahead = plan.MAX_JUMP

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping

    def head(self, page: Sequence[Row], stream: Stream, now_us: int) -> Head:
        """The head of a stream by its newest answer."""
        return plan.head_of(page, stream, now_us, self.mapping.requests.settle_seconds)

    def chunk_size(self, page: Sequence[Row], pages: int) -> int:
        """Positions of a chunk of so many answers."""
        return self.mapping.requests.page_size * pages

    def most_positions(self, pages: int) -> int:
        """More than any plan puts into a chunk of at most so many answers."""
        return self.mapping.requests.page_size * pages

    def expected(self, page: Sequence[Row], chunks: Sequence[Chunk]) -> Expected:
        """What chunks will take and bring."""
        size = self.mapping.requests.page_size
        return Expected(sum(c.size for c in chunks), sum(-(-c.size // size) for c in chunks))

    def first(self, exchange: PacedExchange, stream: Stream, page: Sequence[Row], start: ColdStart) -> Begin:
        """Where a first run begins; asks the exchange for single trades."""
        floor = max(-1, max(row.position for row in page) - start.most_trades)
        size = self.mapping.requests.page_size
        return Begin(plan.cold_start(page, floor, start.target_us, size, _probe(exchange, stream)))

    def fetch(
        self, exchange: PacedExchange, stream: Stream, chunk: Chunk, clock: Clock, tick: Callable[[], None],
        *, young_us: int | None = None,
    ) -> Fetched:  # fmt: skip
        """Every trade of a chunk, complete or an error; see ``fetch.fetch_chunk``."""
        spec = self.mapping.requests
        return fetch_chunk(
            exchange, stream, chunk, page_size=spec.page_size, descending=spec.page.descending,
            pause=clock.sleep, tick=tick, young_us=young_us,
        )  # fmt: skip


class Linked:
    """Positions are times, or ids that skip numbers: answers are linked, and a range says nothing of its count."""

    counted = False

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.step = plan_linked.step_of(mapping.fields.tick_ns, mapping.by_time)
        self.most_ahead = NO_LIMIT

    def head(self, page: Sequence[Row], stream: Stream, now_us: int) -> Head:
        """The newest settled trade that has another behind it."""
        return plan_linked.linked_head(page, stream, now_us, self.mapping.requests.settle_seconds, self.step)

    def chunk_size(self, page: Sequence[Row], pages: int) -> int:
        """Positions of a chunk of about so many answers; without paging all is one chunk."""
        spec = self.mapping.requests
        if spec.page.asks == "newest":
            return NO_LIMIT
        return plan_linked.chunk_size(page, spec.page_size * pages, self.step)

    def most_positions(self, pages: int) -> int:
        """Time has no number of trades: any range may be quiet."""
        return NO_LIMIT

    def expected(self, page: Sequence[Row], chunks: Sequence[Chunk]) -> Expected:
        """What chunks will take and bring at the newest answer's pace; each answer repeats a trade, as the link."""
        spec = self.mapping.requests
        trades = [round(c.size / plan_linked.pace(page)) for c in chunks]
        if spec.page.asks == "newest":
            # What does not fit into the answer is lost; windows hold all.
            return Expected(sum(trades) if spec.page.windows else min(sum(trades), spec.page_size), len(chunks))
        return Expected(sum(trades), sum(-(-n // max(1, spec.page_size - 1)) + 1 for n in trades))

    def first(self, exchange: PacedExchange, stream: Stream, page: Sequence[Row], start: ColdStart) -> Begin:
        """Where a first run begins: with a trade, unless the newest answer may begin anywhere."""
        spec = self.mapping.requests
        if spec.page.asks == "newest":
            target_us = start.target_us
            if windows := spec.page.windows:
                # The window moves on until the chunk is fetched: what it leaves behind would be recorded as lost.
                edge_us = exchange.exchange.clock.now_ms() * 1000 - int(windows[-1].seconds * 1e6)
                target_us = max(target_us, edge_us + EDGE_US)
                page = exchange.page(stream, target_us * 1000, target_us * 1000, kind="head")
            return Begin(plan_linked.cold_start_newest(page, target_us, self.step, bool(windows)))
        if self.mapping.by_time:
            trade = self._first_by_time(exchange, stream, page, start)
            return Begin(trade // self.step * self.step, trade)
        floor = max(-1, max(row.position for row in page) - int(plan_linked.pace(page) * start.most_trades))
        first = plan.cold_start(page, floor, start.target_us, spec.page_size, _probe(exchange, stream))
        return Begin(first, first)

    def _first_by_time(self, exchange: PacedExchange, stream: Stream, page: Sequence[Row], start: ColdStart) -> int:
        """A trade that is there, so that a history pruned since then is noticed."""
        target = plan_linked.cold_start_by_time(page, start.target_us, start.most_trades, self.step)
        if min(row.position for row in page) >= target:
            page = exchange.page(stream, target, target, kind="head")
        later = [row.position for row in page if row.position >= target]
        if not later:
            raise IncompletePage("no trade is shown where a first run begins", stream=stream, span=(target, target))
        return min(later)

    def known(self, page: Sequence[Row], settled: int, base: int | None) -> Known:
        """What the fetching of a plan's chunks has to find, by the newest answer and the plan's settled head.

        ``base`` is the trade that the plan begins with or after; see ``streams.Known``.
        """
        at = sorted(row.position for row in page)
        in_unit = [position for position in at if settled - self.step < position <= settled]
        # When all of the answer is too young, the settled head lies right before it.
        head = in_unit[-1] if in_unit else next(position for position in at if position > settled)
        return Known(base, head, int(plan_linked.pace(page)))

    def fetch(
        self, exchange: PacedExchange, stream: Stream, chunk: Chunk, clock: Clock, tick: Callable[[], None],
        *, young_us: int | None = None,
    ) -> Fetched:  # fmt: skip
        """Every trade of a chunk; see ``fetch_linked``."""
        spec = self.mapping.requests
        if spec.page.asks == "newest":
            windows = spec.page.windows
            since = int((clock.now_ms() / 1000 - windows[-1].seconds) * NS["s"]) if windows else None
            return fetch_newest(exchange, stream, chunk, unit=self.step, window_from=since, tick=tick)
        return fetch_linked(
            exchange, stream, chunk, page_size=spec.page_size, descending=spec.page.descending, unit=self.step,
            ties=self.mapping.by_time, pause=clock.sleep, tick=tick,
        )  # fmt: skip


def paging_of(mapping: Mapping) -> DenseIds | Linked:
    """How the streams of this exchange are planned and fetched."""
    return DenseIds(mapping) if mapping.counted else Linked(mapping)


def _probe(exchange: PacedExchange, stream: Stream) -> Callable[[int], Row | None]:
    """Asks for the trade at a position, or its neighbour in the direction of paging."""

    def probe(position: int) -> Row | None:
        rows = exchange.page(stream, position, position, kind="head")
        plan.check_times(rows, stream)
        descending = exchange.exchange.mapping.requests.page.descending
        near = [row for row in rows if (row.position <= position if descending else row.position >= position)]
        return (max if descending else min)(near, key=lambda row: row.position, default=None)

    return probe
