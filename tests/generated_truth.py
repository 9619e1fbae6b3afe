"""What an exchange of the simulator really had, computed from the generator: no mapping and no protocol in between."""

from __future__ import annotations

from collections.abc import Iterator

from local.exchange_sim import generator
from local.exchange_sim.generator import UNIT
from local.exchange_sim.messages import Listing
from local.exchange_sim.world import World

TICK_US = {"coinbase": 1, "kraken": 1, "bitstamp": 1_000_000}
"""The finest time that an exchange writes; milliseconds unless named here."""
BY_TIME = {"kraken", "bitstamp", "bybit", "bitfinex"}
DENSE = {"coinbase", "binance", "binance_us"}

Trade = tuple[int, str, float, float, int]
"""Id, taker's side, price, quantity, microseconds since the epoch."""


def streams_of(world: World, exchange: str) -> list[str]:
    """The products that the exchange trades, in our spelling."""
    listings = world.exchanges[exchange].listings.values()
    return [f"{one.base}-{one.quote}" for one in listings if one.status == "online"]


def listing_of(world: World, exchange: str, product: str) -> Listing:
    return next(o for o in world.exchanges[exchange].listings.values() if f"{o.base}-{o.quote}" == product)


def trades(world: World, exchange: str, product: str, first: int, last: int) -> list[Trade]:
    """The trades whose positions lie in ``[first, last]``, by time and id."""
    source = listing_of(world, exchange, product).source
    begin, end = numbers(world, exchange, product, first, last)
    found = list(_told(exchange, generator.ticks(source.product, begin, end))) if begin <= end else []  # type: ignore[attr-defined]
    return sorted(found, key=lambda trade: (trade[4], trade[0]))


def numbers(world: World, exchange: str, product: str, first: int, last: int) -> tuple[int, int]:
    """The generator's numbers of these trades, from the first to the last."""
    source = listing_of(world, exchange, product).source
    if exchange in BY_TIME:
        return source.first_at_or_after(-(-first // 1000)), source.first_at_or_after(last // 1000 + 1) - 1
    return _number(exchange, first), _number(exchange, last + 1) - 1


def _told(exchange: str, ticks: Iterator[generator.Tick]) -> Iterator[Trade]:
    tick_us = TICK_US.get(exchange, 1000)
    for number, time_us, price, size, buyer_is_maker, _, _ in ticks:
        side = "SELL" if buyer_is_maker else "BUY"
        yield _id(exchange, number), side, price / UNIT, size / UNIT, time_us // tick_us * tick_us


def _id(exchange: str, number: int) -> int:
    return number if exchange in DENSE else number * 7 + number % 5


def _number(exchange: str, trade_id: int) -> int:
    """The first number whose id is not below ``trade_id``."""
    if exchange in DENSE:
        return trade_id
    number = max(0, trade_id // 7 - 1)
    while _id(exchange, number) < trade_id:
        number += 1
    return number
