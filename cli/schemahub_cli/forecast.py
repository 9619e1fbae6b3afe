"""What the next run would do, before it does it: chunks, requests, minutes at the limit, cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from schemahub import cost
from schemahub.deps import Deps
from schemahub.errors import SchemaHubError
from schemahub.mappings import load_mapping
from schemahub.paging import Expected
from schemahub.streams import Chunk, Segment, Stream
from schemahub_cli.output import clock, dollars, listing
from schemahub_cli.positions import place


@dataclass(frozen=True)
class Estimate:
    """What a plan will take: minutes are those at the exchange's limit. Where ids are not dense, trades are a guess."""

    chunks: int
    trades: int
    requests: int
    minutes: float


@dataclass(frozen=True)
class StreamForecast:
    """One stream's part of the next run; ``error`` says why it cannot be planned."""

    stream: Stream
    first: int | None
    last: int | None
    estimate: Estimate
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "stream": self.stream.to_json(),
            "first": self.first,
            "last": self.last,
            "chunks": self.estimate.chunks,
            "trades": self.estimate.trades,
            "requests": self.estimate.requests,
            "minutes": round(self.estimate.minutes, 2),
            "error": self.error,
        }


@dataclass(frozen=True)
class Forecast:
    """The next run."""

    streams: list[StreamForecast]

    @property
    def requests(self) -> int:
        return sum(s.estimate.requests for s in self.streams)

    @property
    def trades(self) -> int:
        return sum(s.estimate.trades for s in self.streams)

    @property
    def minutes(self) -> float:
        """Exchanges work side by side: the slowest decides."""
        by_exchange: dict[str, float] = {}
        for s in self.streams:
            by_exchange[s.stream.exchange] = by_exchange.get(s.stream.exchange, 0.0) + s.estimate.minutes
        return max(by_exchange.values(), default=0.0)

    @property
    def work(self) -> cost.Work:
        return cost.Work(
            streams=len(self.streams),
            chunks=sum(s.estimate.chunks for s in self.streams),
            requests=self.requests,
            trades=self.trades,
            seconds=self.minutes * 60,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "streams": [s.to_json() for s in self.streams],
            "requests": self.requests,
            "trades": self.trades,
            "minutes": round(self.minutes, 2),
            "cost": cost.bill(self.work).to_json(),
        }


def of_stream(stream: Stream, chunks: Sequence[Chunk], expected: Expected, limit_share: float = 1.0) -> StreamForecast:
    """The forecast of a stream's chunks, when it has the exchange's limit for itself."""
    limits = load_mapping(stream.exchange).limits
    pages_per_second = limits.amount * limit_share / limits.per_seconds / limits.cost["page"]
    minutes = expected.requests / pages_per_second / 60
    estimate = Estimate(len(chunks), expected.trades, expected.requests, minutes)
    return StreamForecast(stream, chunks[0].first if chunks else None, chunks[-1].last if chunks else None, estimate)


def forecast(deps: Deps, streams: Iterable[Stream], seen: Callable[[Stream], None] = lambda stream: None) -> Forecast:
    """Plan every stream as a run would, asking the exchanges for their heads (paced) and writing nothing."""
    from schemahub import ingest

    planned = []
    for stream in streams:
        seen(stream)
        try:
            chunks, _, expected = ingest.chunks_to_fetch(deps, stream, deps.ledger.watermark(stream))
            planned.append(of_stream(stream, chunks, expected, deps.settings.limit_share))
        except SchemaHubError as error:
            # One product that cannot be planned must not hide the plan of all others.
            planned.append(
                StreamForecast(stream, None, None, Estimate(0, 0, 0, 0.0), f"{type(error).__name__}: {error}")
            )
    return Forecast(planned)


def table(plan: Forecast) -> Table:
    """The forecast for people."""
    shown = listing("stream", numbers=("from", "to"), show_footer=True)
    shown.columns[0].footer = f"{len(plan.streams)} streams"
    for name, total in (("chunks", plan.work.chunks), ("requests", plan.requests), ("trades", plan.trades)):
        shown.add_column(name, f"{total:,}", justify="right")
    shown.add_column("at the limit", clock(plan.minutes * 60), justify="right")
    for s in plan.streams:
        span = ("—", "nothing new") if s.first is None else (place(s.stream, s.first), place(s.stream, s.last or 0))
        if s.error:
            span = ("[red]error[/]", f"[red]{s.error.split(':')[0]}[/]")
        shown.add_row(
            s.stream.label,
            *span,
            f"{s.estimate.chunks:,}",
            f"{s.estimate.requests:,}",
            f"{s.estimate.trades:,}",
            clock(s.estimate.minutes * 60),
        )
    return shown


def cost_line(work: cost.Work) -> str:
    """The bill in one line, the dearest services named."""
    bill = cost.bill(work)
    parts = ", ".join(f"{name} {dollars(usd)}" for name, usd in list(bill.by_service().items())[:3])
    return (
        f"estimated AWS cost {dollars(bill.usd)} ({parts}), storage {dollars(bill.storage_month_usd)} a month "
        f"[dim](us-east-1 list prices, no free tier)[/]"
    )


def pending_work(segments: Sequence[Segment]) -> cost.Work:
    """What a transform of these segments has to do."""
    return cost.Work(streams=0, chunks=len(segments), requests=0, trades=sum(s.count for s in segments), seconds=0)
