"""Exchange mappings: one YAML file an exchange, checked against ``mapping.schema.json``, then typed.

The mapping is executed: requests, paging, limits and the SQL of the transform are made from it, and no module of the
core knows an exchange by name.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonschema import Draft202012Validator

from schemahub.errors import BadMapping, UnknownExchange

SCHEMA = json.loads(Path(__file__).with_name("mapping.schema.json").read_text())
MAX_FILE_BYTES = 64 * 1024
MAX_PAGES_PER_SECOND = 200
"""No public trades API allows more: a mapping that says so has a slip in amount, per_seconds or cost."""


@dataclass(frozen=True)
class Cursor:
    parameter: str
    means: str
    order: str

    @property
    def descending(self) -> bool:
        return self.order == "descending"


@dataclass(frozen=True)
class Limits:
    """What the exchange publishes: ``amount`` in each ``per_seconds``, ``burst`` at once, a cost for each request."""

    amount: float
    per_seconds: float
    burst: float
    cost: dict[str, float]
    slow_down_status: tuple[int, ...]


@dataclass(frozen=True)
class Requests:
    path: str
    query: dict[str, str]
    rows: str
    page_size: int
    size_parameter: str
    cursor: Cursor
    settle_seconds: float
    unknown_product_status: tuple[int, ...]
    unknown_product_code: int | None


@dataclass(frozen=True)
class Products:
    path: str
    rows: str
    base: str
    quote: str
    symbol: str
    status: str
    online: tuple[str, ...]
    delisted: tuple[str, ...]
    disabled: str | None


@dataclass(frozen=True)
class Fields:
    """Names in the exchange's rows, and how their text becomes a column."""

    trade_id: str
    price: str
    quantity: str
    trade_ts: str
    ts_type: str
    ts_unit: str | None
    side: str
    side_values: dict[str, str]

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.trade_id, self.price, self.quantity, self.trade_ts, self.side)


@dataclass(frozen=True)
class Mapping:
    exchange: str
    name: str
    base_url: str
    products: Products
    symbol: str
    requests: Requests
    limits: Limits
    fields: Fields
    on_new_field: str
    quarantine_max_share: float
    on_bad_row: str = "quarantine"
    quarantine_max_rows: int | None = None
    exact: str = "none"

    def symbol_of(self, product: str) -> str:
        """The exchange's spelling of ``product`` (``BTC-USD``)."""
        base, quote = product.split("-")
        return self.symbol.format(base=base, quote=quote)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (a few lines can unfold to gigabytes), duplicate keys and control characters."""

    # Of its own: other libraries in the process (the SAM translator) teach tags to every SafeLoader.
    yaml_multi_constructors: ClassVar[dict[Any, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if len(str(value)) > 1000:
            raise yaml.YAMLError("a value is longer than 1000 characters")
        if not str(value).isprintable():  # "$" of a pattern would let a final line break through
            raise yaml.YAMLError(f"{str(value)[:40]!r} holds a control character")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {key!r} is not text: quote it")
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_mapping(text: str, origin: str = "mapping") -> Mapping:
    """The typed mapping of a YAML text.

    Raises:
        BadMapping: with the path of each offending key, and the nearest known one for a key nobody knows.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES:
        raise BadMapping(f"{origin} is larger than {MAX_FILE_BYTES // 1024} KiB")
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: 0x_ and 2001-99-99 look like a number and a date to YAML.
        raise BadMapping(f"{origin} is not valid YAML: {' '.join(str(error).split())[:400]}") from error
    problems = [_explain(e) for e in Draft202012Validator(SCHEMA).iter_errors(document)]
    problems = problems or [
        *_unknown_placeholders(document),
        *_unkept_limits(document["limits"]),
        *_fields_read_twice(document["fields"]),
    ]
    if problems:
        raise BadMapping(f"{origin}: " + "; ".join(sorted(problems))[:2000])
    return _typed(document)


def _unknown_placeholders(doc: dict[str, Any]) -> Iterator[str]:
    """Braces that ``str.format`` would fail on, or that would reach into objects (``{symbol.__class__}``)."""
    requests = doc["requests"]
    texts = [
        ("symbol", doc["symbol"], {"base", "quote"}),
        ("products/path", doc["products"]["path"], set()),
        ("requests/path", requests["path"], {"symbol"}),
        *((f"requests/query/{name}", text, {"symbol"}) for name, text in requests.get("query", {}).items()),
    ]
    for where, text, known in texts:
        try:
            names = {name for _, name, form, conversion in string.Formatter().parse(text) if name is not None}
            strange = any(form or conversion for _, _, form, conversion in string.Formatter().parse(text))
        except ValueError as error:
            yield f"{where}: {error}"
            continue
        if strange or names - known:
            yield f"{where}: {text[:60]!r} may only hold the placeholders {sorted(known)}"


def _unkept_limits(limits: dict[str, Any]) -> Iterator[str]:
    numbers = [*(limits[name] for name in ("amount", "per_seconds", "burst")), *limits["cost"].values()]
    if not all(math.isfinite(number) for number in numbers):
        yield "limits: every number must be finite"
    elif limits["amount"] / limits["per_seconds"] / limits["cost"]["page"] > MAX_PAGES_PER_SECOND:
        yield f"limits: more than {MAX_PAGES_PER_SECOND} pages a second, which no exchange allows"


def _fields_read_twice(fields: dict[str, Any]) -> Iterator[str]:
    """A price that is read as the quantity too would pass every other check."""
    sources = [field["from"] for field in fields.values()]
    for name in sorted({s for s in sources if sources.count(s) > 1}):
        yield f"fields: {name!r} is read twice"


def _explain(error: Any) -> str:
    where = "/".join(str(p) for p in error.absolute_path) or "(top)"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        unknown = [k for k in error.instance if k not in known]
        near = [difflib.get_close_matches(k, known, n=1) for k in unknown]
        hints = [f"{k!r}" + (f" (did you mean {n[0]!r}?)" if n else "") for k, n in zip(unknown, near, strict=True)]
        return f"{where}: unknown key {', '.join(hints)}"
    return f"{where}: {error.message[:200]}"


def _typed(doc: dict[str, Any]) -> Mapping:
    products, requests, limits, fields = doc["products"], doc["requests"], doc["limits"], doc["fields"]
    return Mapping(
        exchange=doc["exchange"],
        name=doc["name"],
        base_url=doc["base_url"].rstrip("/"),
        symbol=doc["symbol"],
        products=Products(
            **{
                **products,
                "online": tuple(products["online"]),
                "delisted": tuple(products.get("delisted", ())),
                "disabled": products.get("disabled"),
            }
        ),
        requests=Requests(
            path=requests["path"],
            query=requests.get("query", {}),
            rows=requests["rows"],
            page_size=requests["page_size"],
            size_parameter=requests["size_parameter"],
            cursor=Cursor(**requests["cursor"]),
            settle_seconds=requests["settle_seconds"],
            unknown_product_status=tuple(requests["unknown_product_status"]),
            unknown_product_code=requests.get("unknown_product_code"),
        ),
        limits=Limits(
            amount=limits["amount"],
            per_seconds=limits["per_seconds"],
            burst=limits["burst"],
            cost=limits["cost"],
            slow_down_status=tuple(limits["slow_down_status"]),
        ),
        fields=Fields(
            trade_id=fields["trade_id"]["from"],
            price=fields["price"]["from"],
            quantity=fields["quantity"]["from"],
            trade_ts=fields["trade_ts"]["from"],
            ts_type=fields["trade_ts"]["type"],
            ts_unit=fields["trade_ts"].get("unit"),
            side=fields["side"]["from"],
            side_values=fields["side"]["values"],
        ),
        **doc["contract"],
    )


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
