"""An exchange behind the shared bucket and the shared breaker: a slot, leave, then exactly one request.

The breaker is waited for before the slot is taken: slots that grew stale behind an open breaker would all be sent at
once when it closes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from schemahub.answers import Row
from schemahub.breaker import Breaker
from schemahub.deps import Deps
from schemahub.errors import RateLimited
from schemahub.exchanges import Exchange, Product
from schemahub.streams import Stream
from schemahub.throttle import Bucket, SharedBucket, Throttle

MAX_BREAKER_WAIT_S = 20.0

Result = TypeVar("Result")


class PacedExchange:
    """The requests of ``Exchange``, each of them paced. Retries are new requests and cost slots like any other."""

    def __init__(self, exchange: Exchange, throttle: Throttle, breaker: Breaker) -> None:
        self.exchange = exchange
        self.throttle = throttle
        self.breaker = breaker

    @classmethod
    def of(cls, deps: Deps, name: str) -> PacedExchange:
        """The paced exchange of this process; one each, so that warm workers keep connections and breaker state."""
        paced = deps.paced.get(name)
        if paced is None:
            exchange = deps.exchange(name)
            bucket = Bucket.of(exchange.mapping, deps.settings.limit_share)
            shared = SharedBucket(deps.throttle_table, bucket, deps.clock)
            shared.on_reset = lambda: deps.call_attention("the token bucket lay absurdly far ahead: a bad clock", name)
            throttle = Throttle(shared, deps.clock)
            breaker = Breaker(deps.throttle_table, name, deps.clock, random.Random(deps.rng.random()))
            paced = deps.paced[name] = cls(exchange, throttle, breaker)
        return paced

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int = 1, kind: str = "page") -> list[Row]:
        """One page of ``[first, last]``; ``pages_left`` lets the worker reserve its next slots in the same write."""
        return self._paced(kind, pages_left, lambda: self.exchange.page(stream, first, last))

    def newest(self, stream: Stream) -> list[Row]:
        return self._paced("head", 1, lambda: self.exchange.newest(stream))

    def products(self) -> list[Product]:
        return self._paced("products", 1, self.exchange.products)

    def _paced(self, kind: str, expected: int, send: Callable[[], Result]) -> Result:
        try:
            with self.breaker.guard(MAX_BREAKER_WAIT_S, slot=lambda: self.throttle.wait(kind, expected)):
                return send()
        except RateLimited as error:
            self.throttle.penalise(error.retry_after_s)
            raise
