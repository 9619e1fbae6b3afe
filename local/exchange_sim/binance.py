"""The public REST protocol of Binance spot: aggTrades, exchangeInfo, time, ping, as documented at
https://developers.binance.com/docs/binance-spot-api-docs/rest-api.

Aggregate trades ascend. `fromId` (inclusive) starts at an id; `startTime` (inclusive, ms) at a time;
with neither, the newest `limit` (up to `endTime`) are returned. `m` = true: the buyer was the maker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from .generator import UNIT, Tick
from .limits import Refused, Verdict
from .messages import (
    PAGE_ROWS,
    Answer,
    Fields,
    Json,
    Kind,
    Listing,
    Query,
    Route,
    Window,
    as_json,
    joined,
)
from .sources import Row

MAX_ROWS = 1000
DEFAULT_ROWS = 500
WEIGHTS = {"aggTrades": 4, "exchangeInfo": 20, "time": 1, "ping": 1}
FIELDS = Fields(id="a", price="p", size="q", time="T")
NEWEST_FIRST = False


class Illegal(ValueError):
    """A request that the exchange refuses with 400."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.answer = error(400, code, message)


def render(ticks: Iterable[Tick]) -> list[Row]:
    """Generated trades as aggTrades objects. Flat on purpose: it runs a thousand times a page."""
    return [
        (
            trade_id,
            f'{{"a":{trade_id},"p":"{price // UNIT}.{price % UNIT:08d}",'
            f'"q":"{size // UNIT}.{size % UNIT:08d}","f":{first_fill},"l":{last_fill},'
            f'"T":{time_us // 1000},"m":{"true" if buyer_is_maker else "false"},"M":true}}',
        )
        for trade_id, time_us, price, size, buyer_is_maker, first_fill, last_fill in ticks
    ]


def route(path: str, query: Query, find: Callable[[str], Listing | None], now_us: int) -> Route:
    """Understand one GET below `/binance`."""
    name = path.removeprefix("/api/v3/")
    if name == path or name not in WEIGHTS:
        return Route("discovery", 1, answer=Answer(404, b"<html><body>404</body></html>"))
    cost = WEIGHTS[name]
    if name == "aggTrades":
        cursor = "fromId" in query or "startTime" in query
        try:
            return _route_trades(query, find, now_us, cost)
        except Illegal as illegal:
            return Route("page" if cursor else "head", cost, answer=illegal.answer)
    if name == "exchangeInfo":
        return Route("discovery", cost)
    body = {"serverTime": now_us // 1000} if name == "time" else {}
    return Route("discovery", cost, answer=Answer(200, as_json(body)))


def _route_trades(query: Query, find: Callable[[str], Listing | None], now_us: int, cost: float) -> Route:
    if not query.get("symbol"):
        raise Illegal(-1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.")
    listing = find(query["symbol"])
    if listing is None:
        raise Illegal(-1121, "Invalid symbol.")
    limit = _number(query, "limit", DEFAULT_ROWS)
    if limit == 0:
        raise Illegal(-1130, "Data sent for parameter 'limit' is not valid.")
    from_id = _number(query, "fromId", -1)
    start_ms, end_ms = _number(query, "startTime", -1), _number(query, "endTime", -1)
    if from_id >= 0 and (start_ms >= 0 or end_ms >= 0):
        raise Illegal(-1128, "Combination of optional parameters invalid.")
    source = listing.source
    last = source.head(now_us)
    if end_ms >= 0:  # inclusive to the millisecond
        last = min(last, source.first_at_or_after((end_ms + 1) * 1000) - 1)
    first = source.first_at_or_after(start_ms * 1000) if start_ms >= 0 else max(from_id, 0)
    cursor = from_id >= 0 or start_ms >= 0
    window = Window(first, last, min(limit, MAX_ROWS), newest=not cursor)
    kind: Kind = "page" if cursor and limit >= PAGE_ROWS else "head"
    return Route(kind, cost, listing=listing, window=window)


def _number(query: Query, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Illegal(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.",
        )
    return int(text)


def page(rows: list[Row], served: list[Row]) -> Answer:
    """The answer with `served`: this exchange has no cursor headers."""
    return Answer(200, joined(served, NEWEST_FIRST))


def discovery(listings: Iterable[Listing]) -> Answer:
    """GET /api/v3/exchangeInfo."""
    limits = [
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
        {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100},
        {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 61000},
    ]
    symbols = [describe(listing) for listing in listings]
    body = {"timezone": "UTC", "rateLimits": limits, "exchangeFilters": [], "symbols": symbols}
    return Answer(200, as_json(body))


def describe(listing: Listing) -> Json:
    """One symbol as exchangeInfo lists it."""
    step = f"{1 / 10**listing.price_decimals:.8f}"
    return {
        "symbol": listing.name,
        "status": "TRADING" if listing.status == "online" else "BREAK",
        "baseAsset": listing.base,
        "baseAssetPrecision": 8,
        "quoteAsset": listing.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [{"filterType": "PRICE_FILTER", "minPrice": step, "maxPrice": "0", "tickSize": step}],
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }


def limited(refused: Refused) -> Answer:
    """The refusal: 429 over the weight limit, 418 while banned."""
    if refused.banned_until_s is not None:
        until_ms = int(refused.banned_until_s * 1000)
        message = (
            f"Way too much request weight used; IP banned until {until_ms}. "
            "Please use WebSocket Streams for live updates to avoid bans."
        )
    else:
        message = (
            "Too much request weight used; current limit is 6000 request weight per 1 MINUTE. "
            "Please use WebSocket Streams for live updates to avoid polling the API."
        )
    answer = error(refused.status, -1003, message)
    answer.headers["Retry-After"] = str(refused.retry_after_s)
    return answer


def error(status: int, code: int, message: str) -> Answer:
    """An error body of this exchange."""
    return Answer(status, as_json({"code": code, "msg": message}))


def not_found() -> Answer:
    """An unknown or removed symbol."""
    return error(400, -1121, "Invalid symbol.")


def limit_headers(verdict: Verdict) -> dict[str, str]:
    """The weight used in the running minute, on every answer."""
    return {
        "X-MBX-USED-WEIGHT": f"{verdict.used:.0f}",
        "X-MBX-USED-WEIGHT-1M": f"{verdict.used:.0f}",
    }
