"""The public REST protocol of Coinbase Exchange, as documented at
https://docs.cdp.coinbase.com/exchange/rest-api (pagination, rate limits, product trades).

Trades come newest first. `after=X` asks for trades older than X (id < X), `before=X` for trades newer
than X, but always the newest page of them: it is not "the page next to X". CB-BEFORE is the newest id
of the page, CB-AFTER the oldest. `side` is the maker's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

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
FIELDS = Fields(id="trade_id", price="price", size="size", time="time")
NEWEST_FIRST = True

_TRADES = re.compile(r"^/products/([^/]+)/trades$")
_PRODUCT = re.compile(r"^/products/([^/]+)$")


def render(ticks: Iterable[Tick]) -> list[Row]:
    """Generated trades as REST objects. Flat on purpose: it runs a thousand times a page."""
    rows: list[Row] = []
    minute, prefix = -1, ""
    for trade_id, time_us, price, size, buyer_is_maker, _, _ in ticks:
        this_minute, us = divmod(time_us, 60_000_000)
        if this_minute != minute:
            minute = this_minute
            prefix = datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%M:")
        side = "buy" if buyer_is_maker else "sell"
        rows.append(
            (
                trade_id,
                f'{{"trade_id":{trade_id},"side":"{side}","size":"{size // UNIT}.{size % UNIT:08d}",'
                f'"price":"{price // UNIT}.{price % UNIT:08d}",'
                f'"time":"{prefix}{us // 1_000_000:02d}.{us % 1_000_000:06d}Z"}}',
            )
        )
    return rows


def route(path: str, query: Query, find: Callable[[str], Listing | None], now_us: int) -> Route:
    """Understand one GET below `/coinbase`. Every public request costs one token."""
    if path == "/time":
        now = datetime.fromtimestamp(now_us / 1e6, UTC)
        body = {"iso": now.isoformat().replace("+00:00", "Z"), "epoch": now_us / 1e6}
        return Route("discovery", 1, answer=Answer(200, as_json(body)))
    if found := _TRADES.match(path):
        return _route_trades(find(found[1]), query, now_us)
    if found := _PRODUCT.match(path):
        listing = find(found[1])
        answer = Answer(200, as_json(describe(listing))) if listing else not_found()
        return Route("discovery", 1, listing=listing, answer=answer)
    return Route("discovery", 1, answer=None if path == "/products" else not_found())


def _route_trades(listing: Listing | None, query: Query, now_us: int) -> Route:
    cursor = "after" in query or "before" in query
    if listing is None:
        return Route("page" if cursor else "head", 1, answer=not_found())
    try:
        limit = _number(query, "limit", MAX_ROWS)
        after = _number(query, "after", listing.source.head(now_us) + 1)
        before = _number(query, "before", 0)
    except ValueError as error:
        answer = Answer(400, as_json({"message": str(error)}))
        return Route("page" if cursor else "head", 1, listing=listing, answer=answer)
    window = Window(before + 1, after - 1, min(limit, MAX_ROWS), newest=True)
    kind: Kind = "page" if cursor and limit >= PAGE_ROWS else "head"
    return Route(kind, 1, listing=listing, window=window)


def _number(query: Query, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text) or (name == "limit" and int(text) == 0):
        raise ValueError(f'Invalid value for "{name}"')
    return int(text)


def page(rows: list[Row], served: list[Row]) -> Answer:
    """The answer with `served`; the cursor headers are those of the true page `rows`."""
    headers = {"CB-BEFORE": str(rows[-1][0]), "CB-AFTER": str(rows[0][0])} if rows else {}
    return Answer(200, joined(served, NEWEST_FIRST), headers)


def discovery(listings: Iterable[Listing]) -> Answer:
    """GET /products."""
    return Answer(200, as_json([describe(listing) for listing in listings]))


def describe(listing: Listing) -> Json:
    """One product as GET /products lists it."""
    step = "1" if not listing.price_decimals else f"0.{'1':0>{listing.price_decimals}}"
    return {
        "id": listing.name,
        "base_currency": listing.base,
        "quote_currency": listing.quote,
        "quote_increment": step,
        "base_increment": "0.00000001",
        "display_name": f"{listing.base}-{listing.quote}",
        "min_market_funds": "1",
        "margin_enabled": False,
        "post_only": False,
        "limit_only": False,
        "cancel_only": False,
        "status": listing.status,
        "status_message": "",
        "trading_disabled": listing.status != "online",
        "fx_stablecoin": False,
        "auction_mode": False,
    }


def limited(refused: Refused) -> Answer:
    """The refusal of the rate limiter."""
    return Answer(refused.status, as_json({"message": "Public rate limit exceeded"}))


def not_found() -> Answer:
    """An unknown product or path, and a delisted product."""
    return Answer(404, as_json({"message": "NotFound"}))


def limit_headers(verdict: Verdict) -> dict[str, str]:
    """Coinbase tells nothing about what is left."""
    return {}
