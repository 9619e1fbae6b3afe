"""The state tables as ``status`` shows them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemahub import ingest
from schemahub.breaker import CLOSED
from schemahub.conditional import read
from schemahub.deps import Deps
from schemahub.errors import SchemaHubError
from schemahub.ledger import Trades
from schemahub.mappings import load_mapping
from schemahub.pacing import PacedExchange
from schemahub.paging import paging_of
from schemahub.streams import Stream
from schemahub.throttle import SharedBucket, buckets
from schemahub.witness import newest_row
from schemahub_cli.positions import iso


@dataclass(frozen=True)
class StreamState:
    """One stream: its watermark, what waits to be published, who holds it, and how far the exchange is ahead."""

    stream: Stream
    low: int | None = None
    high: int | None = None
    updated_at: int | None = None
    pending: int = 0
    lock: str | None = None
    lag: int | None = None
    last_outcome: str | None = None
    lowest: int | None = None
    """The first committed position: below ``low`` where a backfill has left islands."""
    backfill: str | None = None
    """The run that fills it in below the watermark now."""
    until_us: int | None = None
    """Until when there is data (microseconds since the epoch): the newest committed trade's time."""
    trades: Trades = field(default_factory=Trades)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.stream.to_json(),
            "low": self.low,
            "high": self.high,
            "data_until": None if self.until_us is None else iso(self.until_us),
            "rows": self.trades.published,
            "pending_trades": self.trades.pending,
            "updated_at": self.updated_at,
            "pending_segments": self.pending,
            "lock": self.lock,
            "lag": self.lag,
            "last_outcome": self.last_outcome,
            "lowest": self.lowest,
            "backfill": self.backfill,
            "error": self.error,
        }


@dataclass(frozen=True)
class ExchangeState:
    """One exchange: when the next request may go, whether the breaker lets it, which run works on it."""

    exchange: str
    wait_s: float
    """Seconds until the next request may go."""
    breaker: str
    lock: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "exchange": self.exchange,
            "wait_s": round(self.wait_s, 3),
            "breaker": self.breaker,
            "lock": self.lock,
        }


def streams(deps: Deps, heads: bool, named: Sequence[Stream] = ()) -> list[StreamState]:
    """These streams; without names those of the seed list and those that have something to publish."""
    pending = Counter(segment.stream.trades for segment in deps.ledger.pending())
    known = {*named} or {*ingest.read_seed(deps), *(Stream.parse(p) for p in deps.settings.products), *pending}
    return [_stream(deps, s, pending[s], heads) for s in sorted(known)]


def _stream(deps: Deps, stream: Stream, pending: int, heads: bool) -> StreamState:
    try:
        mark = deps.ledger.watermark(stream)
        holder, filler = (deps.locks.holder(lock) for lock in (stream.lock_id, stream.backfill_lock_id))
        last = deps.ledger.last_run(stream) or {}
        lag = None
        if heads and mark:
            page = PacedExchange.of(deps, stream.exchange).newest(stream)
            head = paging_of(load_mapping(stream.exchange)).head(page, stream, deps.clock.now_ms() * 1000)
            lag = max(0, head.settled - mark.high)
        filled = deps.ledger.trades(stream.fills)
        trades = deps.ledger.trades(stream)
        newest = newest_row(deps, stream) if mark else None
        return StreamState(
            stream,
            mark.low if mark else None,
            mark.high if mark else None,
            mark.updated_at if mark else None,
            pending,
            holder.run if holder else None,
            lag,
            last.get("outcome"),
            deps.ledger.lowest(stream) if mark else None,
            filler.run if filler else None,
            newest.ts_us if newest else None,
            Trades(trades.published + filled.published, trades.pending + filled.pending),
        )
    except SchemaHubError as error:
        return StreamState(stream, pending=pending, error=f"{type(error).__name__}: {error.reason}")


def exchanges(deps: Deps, streams: Iterable[Stream]) -> list[ExchangeState]:
    """The shared state of the streams' exchanges; nothing is reserved."""
    found, products = [], defaultdict[str, set[str]](set)
    for stream in streams:
        products[stream.exchange].add(stream.product)
    for name in sorted(products):
        breaker = read(deps.throttle_table, {"exchange": f"{name}#breaker"}).get("state", CLOSED)
        holder = deps.locks.holder(ingest.process_lock(name))
        # Where each product is counted apart, the busiest says how long a request may wait.
        free_us = max(
            SharedBucket(deps.throttle_table, bucket, deps.clock).next_free_us()
            for bucket in buckets(load_mapping(name), deps.settings.limit_share, products[name])
        )
        wait_s = max(0.0, free_us / 1e6 - deps.clock.now_ms() / 1e3)
        found.append(ExchangeState(name, wait_s, str(breaker), holder.run if holder else None))
    return found
