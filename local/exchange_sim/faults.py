"""Faults on demand: which requests they meet. What they then do is in pathologies.py.

A fault is a JSON object, from the configuration or POST /_sim/faults:

    {"kind": "http_status", "exchange": "coinbase", "product": "BTC-USD",
     "match": {"ids": [580000100, 580000200], "requests": [1, 3], "on": "page"},
     "times": 2, "status": 503, "retry_after": "7"}

Everything but `kind` and `exchange` is optional. `match.ids`: only answers that hold one of these
trades (`match.from_head: [-500, -400]` means ids relative to the product's head when the fault is
added). `match.requests`: only the n-th to m-th of the requests that match otherwise, counted from 1
(`null` as m: for ever). `match.on`: `page`, `head` or `discovery`. `times`: stop after so many; absent
or null: never. Row faults touch the rows of `match.ids`; without it, `rows` rows (default 1) in the
middle of the answer. All further keys are arguments of the kind, see KINDS.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import pathologies
from .messages import Answer, Fields, Listing, Route
from .sources import Generated, Row, Span
from .world import Exchange

NEVER_ENDS = 2**62
VIEW_KINDS: dict[str, dict[str, Any]] = {
    "missing_forever": {},  # these ids were never issued; pages are filled up with their neighbours
    "late_ids": {"after_s": 10.0},  # these ids appear only so long after the fault was added
    "relist": {"first_id": 1, "age_s": 3600.0},  # a new history that began age_s ago, ids from first_id
    "delisted": {"listed": False},  # as if unknown; listed: discovery still names it, as delisted
}
KINDS: dict[str, dict[str, Any]] = {**VIEW_KINDS, **pathologies.ROW_KINDS, **pathologies.ANSWER_KINDS}
"""Every kind of fault with its arguments and their defaults."""
ALIASES = {"timeout": "hang", "large_body": "gzip_bomb"}


class BadFault(ValueError):
    """A fault that cannot be understood; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a fault can match on: one request and the true rows of its answer."""

    exchange: str
    product: str | None
    kind: str
    ids: Sequence[int]
    now_us: int


@dataclass(slots=True)
class Fault:
    """One fault and how often it met a request."""

    number: int
    kind: str
    exchange: str
    product: str | None
    ids: Span | None
    requests: Span
    on: str | None
    times: int | None
    args: dict[str, Any]
    since_us: int
    seen: int = field(default=0)
    """Requests that matched, apart from `requests` and `times`."""
    fired: int = field(default=0)
    """Requests it struck; of a kind in VIEW_KINDS, requests for the product that it was in force for."""

    def covers(self, exchange: str, product: str | None) -> bool:
        """Whether it is about this product (a fault without a product is about all of them)."""
        return self.exchange == exchange and self.product in (None, product)

    def meets(self, look: Look) -> bool:
        """Whether it strikes this request now; counts."""
        if not self.covers(look.exchange, look.product) or self.on not in (None, look.kind):
            return False
        if self.ids and not any(self.ids[0] <= one <= self.ids[1] for one in look.ids):
            return False
        self.seen += 1
        if not self.requests[0] <= self.seen <= self.requests[1]:
            return False
        if self.times is not None and self.fired >= self.times:
            return False
        self.fired += 1
        return True

    def shown(self) -> dict[str, Any]:
        """As GET /_sim/faults lists it."""
        match = {"ids": self.ids, "requests": self.requests, "on": self.on}
        return {
            "id": self.number,
            "kind": self.kind,
            "exchange": self.exchange,
            "product": self.product,
            "match": {key: value for key, value in match.items() if value is not None},
            "times": self.times,
            "args": self.args,
            "seen": self.seen,
            "fired": self.fired,
        }


class Board:
    """The faults that are set, in the order in which they were added."""

    def __init__(self, exchanges: Mapping[str, Exchange]) -> None:
        self._exchanges = exchanges
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._numbers = itertools.count(1)

    def add(self, configs: Sequence[Mapping[str, Any]], now_us: int) -> list[dict[str, Any]]:
        """Set faults, all or none of them. Raises BadFault."""
        faults = [self._parse(dict(config), now_us) for config in configs]
        with self._lock:
            self._faults += faults
        return [fault.shown() for fault in faults]

    def clear(self, number: int | None = None) -> None:
        """Take all faults away, or the one with this number."""
        with self._lock:
            self._faults = [one for one in self._faults if number not in (None, one.number)]

    def shown(self) -> list[dict[str, Any]]:
        """All faults with their counters."""
        with self._lock:
            return [fault.shown() for fault in self._faults]

    def view(self, desk: Exchange, name: str) -> Listing | None:
        """The product as trades requests see it; None: unknown."""
        listing = desk.listings.get(name)
        for fault in self._views(desk.name, name) if listing else ():
            if fault.kind == "delisted":
                fault.fired += 1
                return None
            if fault.kind == "relist" and listing and isinstance(listing.source, Generated):
                fault.fired += 1
                listing = replace(listing, source=_relisted(listing.source, fault))
        return listing

    def listings(self, desk: Exchange) -> Iterator[Listing]:
        """The products as discovery shows them."""
        for name, listing in desk.listings.items():
            gone = [one for one in self._views(desk.name, name) if one.kind == "delisted"]
            if not gone:
                yield listing
            elif gone[-1].args["listed"]:
                yield replace(listing, status="delisted")

    def hidden(self, exchange: str, product: str, now_us: int) -> list[Span]:
        """The ids that do not exist (yet)."""
        spans = []
        for fault in self._views(exchange, product):
            late = fault.kind == "late_ids" and now_us < fault.since_us + fault.args["after_s"] * 1e6
            if fault.ids and (late or fault.kind == "missing_forever"):
                fault.fired += 1
                spans.append(fault.ids)
        return spans

    def spoil_rows(self, look: Look, rows: list[Row], route: Route, fields: Fields) -> list[Row]:
        """The rows that are really sent, ascending but for the faults."""
        if not rows or not route.window or not route.listing:
            return rows
        for fault in self._struck(look, pathologies.ROW_KINDS):
            rows = pathologies.spoil_rows(
                fault.kind, fault.args, rows, fault.ids, fields, (route.window, route.listing.source)
            )
        return rows

    def spoil_answer(self, look: Look, answer: Answer) -> Answer:
        """The answer that is really sent."""
        for fault in self._struck(look, pathologies.ANSWER_KINDS):
            answer = pathologies.spoil_answer(fault.kind, fault.args, answer)
        return answer

    def _struck(self, look: Look, kinds: Mapping[str, Any]) -> list[Fault]:
        with self._lock:
            return [one for one in self._faults if one.kind in kinds and one.meets(look)]

    def _views(self, exchange: str, product: str) -> list[Fault]:
        with self._lock:
            return [one for one in self._faults if one.kind in VIEW_KINDS and one.covers(exchange, product)]

    def _parse(self, config: dict[str, Any], now_us: int) -> Fault:
        kind = ALIASES.get(config.get("kind", ""), config.get("kind", ""))
        if kind not in KINDS:
            raise BadFault(f"unknown kind {kind!r}; possible: {sorted(KINDS)}")
        exchange = str(config.get("exchange"))
        if exchange not in self._exchanges:
            raise BadFault(f"{kind}: unknown exchange {exchange!r}")
        given = {**config, **(config.get("args") or {})}
        given = {
            key: value
            for key, value in given.items()
            if key not in ("kind", "exchange", "product", "match", "times", "args")
        }
        if unknown := set(given) - set(KINDS[kind]):
            raise BadFault(f"{kind}: unknown {sorted(unknown)}; possible: {sorted(KINDS[kind])}")
        listing = self._listing(exchange, config.get("product"))
        match = dict(config.get("match") or {})
        if kind == "wrong_unit" and self._exchanges[exchange].protocol.mapping.fields.ts_type != "epoch":
            raise BadFault(f"wrong_unit: {exchange} does not send a number as time")
        fault = Fault(
            number=next(self._numbers),
            kind=kind,
            exchange=exchange,
            product=listing.name if listing else None,
            ids=_ids(match, listing, now_us),
            requests=_requests(match, kind),
            on=match.pop("on", None),
            times=config.get("times"),
            args={**KINDS[kind], **given},
            since_us=now_us,
        )
        if match:
            raise BadFault(f"{kind}: match has unknown {sorted(match)}")
        _check(fault, listing)
        return fault

    def _listing(self, exchange: str, product: str | None) -> Listing | None:
        if product is None:
            return None
        desk = self._exchanges[exchange]
        listing = desk.listings.get(product)
        if listing is None and product.count("-") == 1:
            listing = desk.listings.get(desk.protocol.mapping.symbol_of(product))
        if listing is None:
            raise BadFault(f"{exchange}: unknown product {product!r}")
        return listing


def _ids(match: dict[str, Any], listing: Listing | None, now_us: int) -> Span | None:
    ids, from_head = match.pop("ids", None), match.pop("from_head", None)
    if from_head is not None:
        if listing is None:
            raise BadFault("match.from_head needs a product")
        head = listing.source.head(now_us)
        ids = [head + from_head[0], head + from_head[1]]
    return (int(ids[0]), int(ids[1])) if ids is not None else None


def _requests(match: dict[str, Any], kind: str) -> Span:
    # A trade that changes between two fetches is told truly once.
    first, last = match.pop("requests", None) or ([2, None] if kind == "mutate" else [1, None])
    return int(first), NEVER_ENDS if last is None else int(last)


def _check(fault: Fault, listing: Listing | None) -> None:
    if fault.on not in (None, "page", "head", "discovery"):
        raise BadFault(f"{fault.kind}: match.on is {fault.on!r}; possible: page, head, discovery")
    if fault.kind in VIEW_KINDS and (fault.times is not None or fault.requests != (1, NEVER_ENDS)):
        raise BadFault(f"{fault.kind} holds until it is cleared: no times, no match.requests")
    if fault.kind in ("missing_forever", "late_ids") and not (fault.ids and fault.product):
        raise BadFault(f"{fault.kind} needs a product and match.ids or match.from_head")
    if fault.kind == "relist" and not (listing and isinstance(listing.source, Generated)):
        raise BadFault("relist needs a generated product")


def _relisted(source: Generated, fault: Fault) -> Generated:
    """The same product with another history, whose ids start again."""
    product = replace(
        source.product,
        first_id=fault.args["first_id"],
        genesis_us=fault.since_us - round(fault.args["age_s"] * 1e6),
        seed=source.product.seed + 1,
        ends_us=None,
    )
    return Generated(product, source.render)
