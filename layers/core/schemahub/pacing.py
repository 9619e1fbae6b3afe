"""An exchange behind the shared bucket and the shared breaker: a slot, leave, then exactly one request.

The breaker is waited for before the slot is taken: slots that grew stale behind an open breaker would all be sent at
once when it closes.
"""

from __future__ import annotations

import random
import threading
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

    def __init__(
        self,
        exchange: Exchange,
        throttle: Throttle,
        breaker: Breaker,
        throttle_of: Callable[[str], Throttle] | None = None,
    ) -> None:
        """``throttle_of``: the bucket of a product's trades, where the exchange counts each product apart."""
        self.exchange = exchange
        self.throttle = throttle
        self.breaker = breaker
        self._throttle_of = throttle_of
        self._throttles: dict[str, Throttle] = {}
        self._guard = threading.Lock()

    @classmethod
    def of(cls, deps: Deps, name: str) -> PacedExchange:
        """The paced exchange of this process; one each, so that warm workers keep connections and breaker state."""
        paced = deps.paced.get(name)
        if paced is None:
            exchange = deps.exchange(name)
            breaker = Breaker(deps.throttle_table, name, deps.clock, random.Random(deps.rng.random()))
            each = (lambda p: _throttle(deps, exchange, p)) if exchange.mapping.limits.per_product else None
            paced = deps.paced[name] = cls(exchange, _throttle(deps, exchange), breaker, each)
        return paced

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int = 1, kind: str = "page") -> list[Row]:
        """One page of ``[first, last]``; ``pages_left`` lets the worker reserve its next slots in the same write."""
        return self._paced(kind, pages_left, lambda: self.exchange.page(stream, first, last), stream)

    def newest(self, stream: Stream) -> list[Row]:
        return self._paced("head", 1, lambda: self.exchange.newest(stream), stream)

    def products(self) -> list[Product]:
        return self._paced("products", 1, self.exchange.products)

    def throttle_for(self, stream: Stream | None) -> Throttle:
        """The bucket that a request for a stream's trades (None: for the product list) is counted in."""
        if stream is None or self._throttle_of is None:
            return self.throttle
        with self._guard:
            found = self._throttles.get(stream.product)
            if found is None:
                found = self._throttles[stream.product] = self._throttle_of(stream.product)
        return found

    def _paced(self, kind: str, expected: int, send: Callable[[], Result], stream: Stream | None = None) -> Result:
        throttle = self.throttle_for(stream)
        try:
            with self.breaker.guard(MAX_BREAKER_WAIT_S, slot=lambda: throttle.wait(kind, expected)):
                return send()
        except RateLimited as error:
            throttle.penalise(error.retry_after_s)
            raise


def _throttle(deps: Deps, exchange: Exchange, product: str | None = None) -> Throttle:
    bucket = Bucket.of(exchange.mapping, deps.settings.limit_share, product)
    shared = SharedBucket(deps.throttle_table, bucket, deps.clock)
    shared.on_reset = lambda: deps.call_attention("the token bucket lay absurdly far ahead: a bad clock", bucket.key)
    return Throttle(shared, deps.clock)
