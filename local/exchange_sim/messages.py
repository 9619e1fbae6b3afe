"""What goes between the HTTP server and an exchange's protocol: a request, its route, an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from schemahub.pointers import Element

from .sources import Source

Kind = Literal["page", "head", "discovery"]
"""`page`: a request for stored trades (a cursor and a limit of 100 or more); `head`: any other look
at a product's trades (the newest ones, one trade to find a time); `discovery`: everything else."""

PAGE_ROWS = 100
"""From this limit on a request with a cursor counts as `page`."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A product as the exchange lists it."""

    name: str
    base: str
    quote: str
    price_decimals: int
    status: str
    source: Source


@dataclass(slots=True)
class Answer:
    """What is sent back, and how it misbehaves on the wire."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json; charset=utf-8"
    delay_s: float = 0.0
    """Silence before the first byte."""
    trickle_s: float = 0.0
    """Time over which the body is spread."""
    cut: Literal["", "reset", "close"] = ""
    """The connection breaks in the middle of the body: by RST, or closed too early."""


def as_json(value: object) -> bytes:
    """Compact JSON as exchanges send it."""
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows a trades request wants: ids in `first..last`, from one end, up to `limit`."""

    first: int
    last: int
    limit: int
    newest: bool
    """Take the rows from the newest end (otherwise from the oldest)."""


@dataclass(frozen=True, slots=True)
class Route:
    """A request understood: what it costs, and either its answer or the window of trades it wants."""

    kind: Kind
    cost: float
    listing: Listing | None = None
    window: Window | None = None
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Fields:
    """Where in a row the values stand that faults play with."""

    id: Element
    price: Element
    size: Element
    time: Element


Query = Mapping[str, str]
Json = dict[str, Any]
