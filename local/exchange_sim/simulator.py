"""The simulator without HTTP: a request goes in, an `Answer` comes out."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import sources
from .archives import Archives
from .faults import Board, Look
from .limits import Refused
from .messages import Answer, Listing, Query, Route, as_json
from .sources import Row
from .stats import Log, Seen
from .world import Exchange, World


class Clock:
    """The simulator's time: the real one, shifted, or standing still."""

    def __init__(self, offset_s: float, frozen: bool, real_s: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self.real_s = real_s
        self.offset_s = offset_s
        self._frozen_at_s = real_s() + offset_s if frozen else None

    def now_us(self) -> int:
        """Simulated time, µs since 1970. Trades up to here exist."""
        with self._lock:
            frozen_s = self._frozen_at_s
            return round((self.real_s() + self.offset_s if frozen_s is None else frozen_s) * 1e6)

    def set(self, offset_s: float | None, advance_s: float | None, frozen: bool | None) -> None:
        """Shift to `offset_s` from real time, or further by `advance_s`; stop or start."""
        with self._lock:
            shift_s = (advance_s or 0.0) + (self.offset_s if offset_s is None else offset_s) - self.offset_s
            self.offset_s += shift_s
            if frozen is None:
                frozen = self._frozen_at_s is not None
            moving_s = self.real_s() + self.offset_s
            stood_s = None if self._frozen_at_s is None else self._frozen_at_s + shift_s
            self._frozen_at_s = (moving_s if stood_s is None else stood_s) if frozen else None


class Simulator:
    """All exchanges, their limits, faults and counters. Safe to call from many threads."""

    def __init__(self, world: World, real_s: Callable[[], float] = time.time) -> None:
        self.world = world
        self.clock = Clock(world.offset_s, world.frozen, real_s)
        self.logs = {name: Log() for name in world.exchanges}
        self.faults = Board(world.exchanges)
        self.faults.add(world.faults, self.clock.now_us())
        self.archives = Archives(
            lambda name: world.exchanges[name].listings, lambda name: world.exchanges[name].protocol.mapping
        )
        self.archives.plant(world.archives)

    def get(self, exchange: str, path: str, query: Query, address: str) -> Answer:
        """Answer a GET of an exchange's path (below `/coinbase` and the like)."""
        desk = self.world.exchanges[exchange]
        now_us, at_s = self.clock.now_us(), self.clock.real_s()
        route: Route = desk.protocol.route(path, query, lambda name: self.faults.view(desk, name), now_us)
        apart = route.listing is not None and desk.protocol.mapping.limits.per_product
        account = f"{address}#{route.listing.base}-{route.listing.quote}" if apart and route.listing else address
        verdict = desk.limiter.take(account, route.cost, at_s)
        limited = isinstance(verdict, Refused)
        answer = desk.protocol.limited(verdict) if isinstance(verdict, Refused) else self._serve(desk, route, now_us)
        answer.headers.update(desk.protocol.limit_headers(verdict))
        latency = desk.latency
        answer.delay_s += max(0.0, latency.mean + random.uniform(-1, 1) * latency.jitter) / 1000
        product = route.listing.name if route.listing else None
        self.logs[exchange].add(Seen(at_s, route.cost, answer.status, route.kind, product, limited))
        return answer

    def archive(self, exchange: str, path: str, headers: Mapping[str, str]) -> Answer:
        """Answer a GET of a file of history (below `/binance/archive` and the like); no limit applies to these."""
        return self.archives.get(exchange, path, headers, self.clock.now_us())

    def _serve(self, desk: Exchange, route: Route, now_us: int) -> Answer:
        """The answer of a granted request: the true one, then whatever faults make of it."""
        protocol = desk.protocol
        rows: list[Row] = []
        if route.window is not None and route.listing is not None:
            rows = self._rows(desk, route, now_us)
        product = route.listing.name if route.listing else None
        look = Look(desk.name, product, route.kind, [row[0] for row in rows], now_us)
        served = self.faults.spoil_rows(look, rows, route, protocol.fields)
        if route.answer is not None:
            answer: Answer = route.answer
        elif route.window is not None and route.listing is not None:
            answer = protocol.page(route.listing, served)
        else:
            answer = protocol.discovery(self.faults.listings(desk))
        return self.faults.spoil_answer(look, answer)

    def _rows(self, desk: Exchange, route: Route, now_us: int) -> list[Row]:
        """The true rows of the window, ascending."""
        window, listing = route.window, route.listing
        assert window
        assert listing
        first = max(window.first, listing.source.first_id)
        last = min(window.last, listing.source.head(now_us))
        hidden = self.faults.hidden(desk.name, listing.name, now_us)
        spans = sources.subtract((first, last), hidden) if first <= last else []
        take = sources.newest_rows if window.newest else sources.oldest_rows
        return take(listing.source, spans, window.limit)

    # The control plane below /_sim: neither limits nor faults apply.

    def oracle(self, exchange: str, product: str, first: int | None, last: int | None) -> bytes:
        """The true trades of the ids `first..last`, ascending, as the exchange would word them.

        Without `first` and `last`: the product's first id, head and time.
        Raises KeyError for an unknown product.
        """
        listing = self.listing(exchange, product)
        source, now_us = listing.source, self.clock.now_us()
        head = source.head(now_us)
        if first is None or last is None:
            return as_json({"product": listing.name, "first": source.first_id, "head": head, "now_us": now_us})
        rows = source.oldest(first, min(last, head), max(0, last - first + 1))
        return f"[{','.join(text for _, text in rows)}]".encode()

    def trades(self, exchange: str, product: str, first: int, last: int) -> list[dict[str, Any]]:
        """The oracle for tests in this process: the true raw trades of `first..last`."""
        trades: list[dict[str, Any]] = json.loads(self.oracle(exchange, product, first, last))
        return trades

    def listing(self, exchange: str, product: str) -> Listing:
        """A product by its name in URLs, or by `BASE-QUOTE`. Raises KeyError."""
        desk = self.world.exchanges[exchange]
        return desk.listings[product if product in desk.listings else desk.protocol.mapping.symbol_of(product)]

    def stats(self, trim_s: float = 2.0, timestamps: bool = False) -> dict[str, Any]:
        """Everything counted since the start or the last reset; see stats.py."""
        result: dict[str, Any] = {
            name: self.logs[name].summary(desk.limiter.per_second, trim_s, timestamps)
            for name, desk in self.world.exchanges.items()
        }
        result["faults"] = self.faults.shown()
        result["now"] = self.clock.now_us() / 1e6
        return result

    def reset(self) -> None:
        """Forget all requests and give full buckets back. Faults and clock stay."""
        for name, desk in self.world.exchanges.items():
            self.logs[name].clear()
            desk.limiter.reset()
