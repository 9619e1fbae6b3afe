"""Instruments: every product that an exchange lists or has listed, and how a new look at its list changes them. Pure.

An exchange may use a name again, with trade ids that begin anew: the listing epoch counts the listings of a product.
Nothing is ever dropped: a product that is gone stays as ``delisted``.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from schemahub.errors import EmptyPage, MalformedResponse
from schemahub.exchanges import Product
from schemahub.streams import Stream

ONLINE, OFFLINE, DELISTED = "online", "offline", "delisted"
STATUSES = (ONLINE, OFFLINE, DELISTED)
DAY_S = 86_400
"""The resolution of ``last_seen`` while a product stays listed: a look that tells nothing new changes nothing."""
FEW = 5
"""So many products may go at once whatever their share; more than half of the rest is taken for a broken answer."""
MAX_TEXT = 64
KEYS = ("exchange", "product", "symbol", "status", "exchange_status", "listing_epoch",
        "first_seen", "listed_since", "last_seen")  # fmt: skip


def is_word(text: object) -> bool:
    """Whether ``text`` can be a symbol or a status: short, and on one line."""
    return isinstance(text, str) and len(text) <= MAX_TEXT and text.isprintable()


@dataclass(frozen=True, order=True)
class Instrument:
    """A product of an exchange. Times are seconds since the epoch: when one of our looks saw it, not when it began.

    Raises ValueError where the values cannot be true together.
    """

    exchange: str
    product: str
    symbol: str
    """The exchange's spelling."""
    status: str
    """One of STATUSES, the same words for every exchange."""
    exchange_status: str
    """The exchange's own word, the last that it said; empty where it has none."""
    listing_epoch: int
    """1, and one more each time that a delisted product is listed again."""
    first_seen: int
    """The first look that ever showed it."""
    listed_since: int
    """The first look that showed the current listing."""
    last_seen: int
    """The last look that showed it; up to DAY_S earlier while it stays listed."""

    def __post_init__(self) -> None:
        Stream(self.exchange, self.product)
        for name in ("symbol", "exchange_status"):
            if not is_word(text := getattr(self, name)):
                raise ValueError(f"{name} {str(text)[:40]!r} is not text of at most {MAX_TEXT} characters")
        if not self.symbol:
            raise ValueError("symbol is empty")
        if self.status not in STATUSES:
            raise ValueError(f"status {str(self.status)[:40]!r} is not one of {', '.join(STATUSES)}")
        if type(self.listing_epoch) is not int or not 1 <= self.listing_epoch < 2**31:
            raise ValueError(f"listing_epoch {str(self.listing_epoch)[:40]!r} is not an integer from 1")
        if not 0 <= self.first_seen <= self.listed_since <= self.last_seen:
            raise ValueError("first_seen, listed_since and last_seen are not in this order")

    @property
    def base(self) -> str:
        return self.product.split("-")[0]

    @property
    def quote(self) -> str:
        return self.product.split("-")[1]

    @property
    def key(self) -> tuple[str, str]:
        return self.exchange, self.product

    @classmethod
    def from_json(cls, value: Any) -> Instrument:
        """The inverse of ``to_json``. Raises ValueError or BadProductId saying what is wrong."""
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        if missing := [k for k in KEYS if k not in value]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if unknown := [str(k)[:40] for k in value if k not in KEYS]:
            raise ValueError(f"it has the unknown {', '.join(unknown)}")
        times = {k: _seconds(k, value[k]) for k in KEYS[-3:]}
        return cls(**{**value, **times})

    def to_json(self) -> dict[str, Any]:
        return {k: _iso(getattr(self, k)) if k in KEYS[-3:] else getattr(self, k) for k in KEYS}


def _iso(seconds: int) -> str:
    return moment(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _seconds(name: str, value: Any) -> int:
    try:
        return int(dt.datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC).timestamp())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} {str(value)[:40]!r} is not a time like 2026-11-21T09:00:00Z") from error


def check_list(
    exchange: str, known: Sequence[Instrument], listed: Sequence[Product], *, accept_delisted: bool = False
) -> None:
    """Refuse a list that no exchange can mean: it would mark as delisted what is only missing in the answer.

    Raises:
        EmptyPage: nothing is listed. MalformedResponse: a product trades under two symbols, or has none, or more than
            half of the known ones are gone at once and ``accept_delisted`` does not say that this is true.
    """
    if not listed:
        raise EmptyPage("the list of products is empty", stream=exchange)
    for product in listed:
        if not product.symbol or not is_word(product.symbol) or not is_word(product.status):
            raise MalformedResponse(
                f"{product.product} is listed as {product.symbol[:40]!r} with status {product.status[:40]!r}",
                stream=exchange,
            )
    trading = Counter(p.product for p in listed if p.online)
    if twice := [name for name, times in trading.items() if times > 1]:
        raise MalformedResponse(f"its list of products has {', '.join(twice[:3])} twice", stream=exchange)
    names = {p.product for p in listed}
    live = [i for i in known if i.exchange == exchange and i.status != DELISTED]
    gone = [i for i in live if i.product not in names]
    if len(gone) > max(FEW, len(live) // 2) and not accept_delisted:
        raise MalformedResponse(
            f"{len(gone)} of {len(live)} known products are gone from its list at once",
            stream=exchange,
            remedy="Nothing of this exchange was changed. If it is true, repeat with --accept-delisted.",
        )


def merge(known: Sequence[Instrument], exchange: str, listed: Sequence[Product], seen_s: int) -> tuple[Instrument, ...]:
    """The instruments after a look at the list of ``exchange`` at ``seen_s``; those of others stay as they are."""
    before = {i.product: i for i in known if i.exchange == exchange}
    # Of two with one name, an old one and its successor, that which trades is meant.
    meant = {p.product: p for p in sorted(listed, key=lambda p: p.online)}
    after = {name: _seen(before.get(name), exchange, p, seen_s) for name, p in meant.items()}
    gone = (replace(i, status=DELISTED) for name, i in before.items() if name not in after)
    return tuple(sorted([*(i for i in known if i.exchange != exchange), *after.values(), *gone]))


def _seen(old: Instrument | None, exchange: str, product: Product, seen_s: int) -> Instrument:
    status = DELISTED if product.delisted else ONLINE if product.online else OFFLINE
    if old is None:
        return Instrument(
            exchange, product.product, product.symbol, status, product.status, 1, seen_s, seen_s, seen_s
        )  # fmt: skip
    # A clock behind that of the look before must not turn the times around.
    seen_s = max(seen_s, old.last_seen)
    now = replace(old, symbol=product.symbol, status=status, exchange_status=product.status)
    if status == DELISTED:
        return now
    if old.status == DELISTED:
        return replace(now, listing_epoch=old.listing_epoch + 1, listed_since=seen_s, last_seen=seen_s)
    return replace(now, last_seen=seen_s) if now != old or seen_s - old.last_seen >= DAY_S else old
