"""Exchange mappings: one YAML file an exchange, checked by ``mapping_file``, then typed.

The mapping is executed: requests, paging, limits and the SQL of the transform are made from it, and no module of the
core knows an exchange by name.
"""

from __future__ import annotations

import difflib
import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemahub.errors import BadMapping, UnknownExchange
from schemahub.mapping_file import read_document
from schemahub.pointers import Element, element_of

NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Nanoseconds of each unit of time."""
LONG_ASSET = 3


@dataclass(frozen=True)
class Window:
    """A question whose answer holds all trades of the last ``seconds``."""

    seconds: float
    query: dict[str, str]


@dataclass(frozen=True)
class Page:
    """How an answer is asked for; see ``mapping.schema.json``."""

    asks: str
    parameter: str = ""
    unit: str = "ns"
    inclusive: bool = True
    query: dict[str, str] = field(default_factory=dict)
    slack_ns: int = 0
    windows: tuple[Window, ...] = ()

    @property
    def descending(self) -> bool:
        """Whether an answer goes on from the cursor towards older trades."""
        return self.asks == "ids_below"

    @property
    def by_time(self) -> bool:
        """Whether positions are nanoseconds since the epoch; otherwise they are trade ids."""
        return self.asks in ("time_from", "newest")


@dataclass(frozen=True)
class Limits:
    """What the exchange publishes: ``amount`` in each ``per_seconds``, ``burst`` at once, a cost for each request."""

    source: str
    read: str
    """The day on which ``source`` was read last, as ``2026-12-01``."""
    amount: float
    per_seconds: float
    burst: float
    cost: dict[str, float]
    slow_down_status: tuple[int, ...]
    per_product: bool = False
    """Trades are counted for each product apart; the product list is counted by itself."""
    used_header: str | None = None
    pause_seconds: float | None = None


@dataclass(frozen=True)
class Errors:
    """What the exchange says in the answer itself."""

    at: str
    ok: tuple[str, ...] = ()
    unknown_product: tuple[str, ...] = ()
    slow_down: tuple[str, ...] = ()
    unavailable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Requests:
    path: str
    query: dict[str, str]
    rows: str
    page: Page
    page_size: int
    size_parameter: str | None
    ids: str
    settle_seconds: float
    unknown_product_status: tuple[int, ...]
    example: str


@dataclass(frozen=True)
class Pair:
    """One text that names both assets of a product."""

    element: Element
    separator: str | None = None
    quotes: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)

    def split(self, text: str) -> tuple[str, str] | None:
        """(base, quote) in the exchange's spelling; None for a text that is no pair."""
        text = text.upper()
        if text in self.named:
            base, quote = self.named[text].split("-")
            return base, quote
        if self.separator and text.count(self.separator) == 1:
            base, quote = text.split(self.separator)
            return (base, quote) if base and quote else None
        fitting = [q for q in self.quotes if text.endswith(q) and text != q]
        quote = max(fitting, key=len, default="")
        return (text.removesuffix(quote), quote) if quote else None


@dataclass(frozen=True)
class Products:
    path: str
    query: dict[str, str]
    rows: str
    base: str | None
    quote: str | None
    pair: Pair | None
    symbol: Element
    status: str | None
    online: tuple[str, ...]
    delisted: tuple[str, ...]
    disabled: str | None
    only: dict[str, list[str]]
    example: str

    def assets_of(self, row: Any) -> tuple[str, str] | None:
        """(base, quote) of a row of the product list, in the exchange's spelling; None where its pair is none."""
        if self.pair:
            return self.pair.split(str(element_of(row, self.pair.element)))
        return str(element_of(row, self.base or "")), str(element_of(row, self.quote or ""))


@dataclass(frozen=True)
class Fields:
    """Where the values stand in the exchange's rows, and how their text becomes a column."""

    trade_id: Element
    id_type: str
    price: Element
    quantity: Element
    ignore_sign: bool
    trade_ts: Element
    ts_type: str
    ts_unit: str | None
    tick_ns: int
    """Nanoseconds of the finest unit of time that the exchange writes."""
    side: Element
    side_values: dict[str, str]
    side_by_sign: dict[str, str]
    """``positive`` and ``negative`` to the taker's side, where the sign of the quantity says it."""
    product: Element | None = None
    """Where a row names its product."""

    @property
    def sources(self) -> tuple[Element, ...]:
        """What the table's columns are read from."""
        return (self.trade_id, self.price, self.quantity, self.trade_ts, self.side)

    @property
    def named(self) -> tuple[Element, ...]:
        """All that the mapping names."""
        return self.sources if self.product is None else (*self.sources, self.product)

    @property
    def in_arrays(self) -> bool:
        """Whether a row is a JSON array."""
        return isinstance(self.trade_id, int)


@dataclass(frozen=True)
class Archive:
    """Where and how the exchange publishes its history as files; see ``mapping.schema.json``."""

    base_url: str
    daily: str
    format: str
    columns: list[str] | dict[str, str]
    monthly: str | None = None
    checksum: str | None = None
    available_after_hours: float = 24
    header: str = "never"
    trade_ts_units: tuple[str, ...] = ()
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    replaces: str | None = None


@dataclass(frozen=True)
class Mapping:
    exchange: str
    name: str
    sources: tuple[str, ...]
    base_url: str
    assets: dict[str, str]
    """The exchange's spelling of an asset to ours."""
    products: Products
    symbol: str
    symbol_long: str | None
    symbol_case: str
    requests: Requests
    errors: Errors | None
    limits: Limits
    fields: Fields
    on_new_field: str
    quarantine_max_share: float
    on_bad_row: str = "quarantine"
    quarantine_max_rows: int | None = None
    exact: str = "none"
    archive: Archive | None = None

    def symbol_of(self, product: str) -> str:
        """The exchange's spelling of ``product`` (``BTC-USD``)."""
        theirs = {ours: name for name, ours in self.assets.items()}
        base, quote = (theirs.get(asset, asset) for asset in product.split("-"))
        long = self.symbol_long if max(len(base), len(quote)) > LONG_ASSET else None
        if self.symbol_case == "lower":
            base, quote = base.lower(), quote.lower()
        return (long or self.symbol).format(base=base, quote=quote)

    def asset(self, name: str) -> str:
        """Our spelling of an asset of the exchange."""
        return self.assets.get(name, self.assets.get(name.upper(), name.upper()))

    @property
    def by_time(self) -> bool:
        """Whether the positions of this exchange's streams are nanoseconds since the epoch, not trade ids."""
        return self.requests.page.by_time

    @property
    def counted(self) -> bool:
        """Whether a range of positions says how many trades it holds: they are ids, and none is left out."""
        return self.requests.ids == "dense" and not self.by_time


def parse_mapping(text: str, origin: str = "mapping") -> Mapping:
    """The typed mapping of a YAML text.

    Raises:
        BadMapping: with the path of each offending key, and the nearest known one for a key nobody knows.
    """
    return _typed(read_document(text, origin))


def _typed(doc: dict[str, Any]) -> Mapping:
    errors = doc.get("errors")
    return Mapping(
        exchange=doc["exchange"],
        name=doc["name"],
        sources=tuple(doc["sources"]),
        base_url=doc["base_url"].rstrip("/"),
        assets=doc.get("assets", {}),
        symbol=doc["symbol"],
        symbol_long=doc.get("symbol_long"),
        symbol_case=doc.get("symbol_case", "upper"),
        products=_products(doc["products"]),
        requests=_requests(doc["requests"]),
        errors=Errors(errors["at"], **{k: tuple(v) for k, v in errors.items() if k != "at"}) if errors else None,
        limits=Limits(**{**doc["limits"], "slow_down_status": tuple(doc["limits"]["slow_down_status"])}),
        fields=_fields(doc["fields"]),
        archive=_archive(doc["archive"]) if "archive" in doc else None,
        **doc["contract"],
    )


def _products(spec: dict[str, Any]) -> Products:
    return Products(
        path=spec["path"],
        query=spec.get("query", {}),
        rows=spec["rows"],
        base=spec.get("base"),
        quote=spec.get("quote"),
        pair=_pair(spec["pair"]) if "pair" in spec else None,
        symbol=spec["symbol"],
        status=spec.get("status"),
        online=tuple(spec.get("online", ())),
        delisted=tuple(spec.get("delisted", ())),
        disabled=spec.get("disabled"),
        only=spec.get("only", {}),
        example=spec["example"],
    )


def _pair(spec: dict[str, Any]) -> Pair:
    return Pair(spec["from"], spec.get("separator"), tuple(spec.get("quotes", ())), spec.get("named", {}))


def _requests(spec: dict[str, Any]) -> Requests:
    return Requests(
        path=spec["path"],
        query=spec.get("query", {}),
        rows=spec["rows"],
        page=Page(**{**spec["page"], "windows": tuple(Window(**w) for w in spec["page"].get("windows", ()))}),
        page_size=spec["page_size"],
        size_parameter=spec.get("size_parameter"),
        ids=spec["ids"],
        settle_seconds=spec["settle_seconds"],
        unknown_product_status=tuple(spec.get("unknown_product_status", ())),
        example=spec["example"],
    )


def _fields(spec: dict[str, Any]) -> Fields:
    time = spec["trade_ts"]
    return Fields(
        trade_id=spec["trade_id"]["from"],
        id_type=spec["trade_id"]["type"],
        price=spec["price"]["from"],
        quantity=spec["quantity"]["from"],
        ignore_sign=spec["quantity"].get("sign") == "ignore",
        trade_ts=time["from"],
        ts_type=time["type"],
        ts_unit=time.get("unit"),
        tick_ns=NS[time.get("precision") or time.get("unit") or "us"],
        side=spec["side"]["from"],
        side_values=spec["side"].get("values", {}),
        side_by_sign=spec["side"].get("sign", {}),
        product=spec["product"]["from"] if "product" in spec else None,
    )


def _archive(spec: dict[str, Any]) -> Archive:
    return Archive(**{**spec, "trade_ts_units": tuple(spec.get("trade_ts_units", ()))})


def mappings_dir() -> Path:
    """Where the mapping files lie: ``SCHEMAHUB_MAPPINGS``, else beside this module (the layer), else the checkout."""
    if override := os.environ.get("SCHEMAHUB_MAPPINGS"):
        return Path(override)
    packaged = Path(__file__).with_name("mappings")
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "mappings"


def exchanges() -> list[str]:
    """Names of the exchanges that have a mapping."""
    return sorted(p.stem for p in mappings_dir().glob("*.yaml"))


def load_mapping(exchange: str) -> Mapping:
    """The mapping of an exchange; the file's name and its ``exchange`` must agree."""
    known = exchanges()
    if exchange not in known:
        near = difflib.get_close_matches(exchange, known, n=1)
        raise UnknownExchange(
            f"no mapping for {exchange[:40]!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" (known: {', '.join(known)})"
        )
    return _load(mappings_dir() / f"{exchange}.yaml")


@functools.cache
def _load(path: Path) -> Mapping:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadMapping(f"{path.name} cannot be read as UTF-8: {error}"[:300]) from error
    mapping = parse_mapping(text, path.name)
    if mapping.exchange != path.stem:
        raise BadMapping(f"{path.name} describes {mapping.exchange!r}: file name and exchange must agree")
    return mapping
