"""The checks of a mapping that has the right form. Each yields ``path/of/the/key: what is wrong and what would do``."""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from schemahub.answers import INTEGER_ID, codes_at
from schemahub.errors import SchemaHubError, UnknownProduct
from schemahub.exchanges import Exchange, Product
from schemahub.mapping_sql import EARLIEST_US
from schemahub.mappings import NS, Mapping
from schemahub.pointers import at_pointer, element_of, members
from schemahub.streams import PRODUCT, Stream
from schemahub_cli.kit.pages import SavedAnswer, SimulatedHttp, newest_page, readings

DAY_US = 86_400_000_000
ROLES = ("trade_id", "price", "quantity", "trade_ts", "side")
SIMULATED_ROWS = 20


def checks(mapping: Mapping) -> Iterator[str]:
    """Everything that is wrong with a mapping of the right form."""
    said = [*_questions(mapping), *_codes(mapping), *_limits(mapping)]
    product, wrong_products = _product_example(mapping)
    wrong_page = list(_page_example(mapping))
    yield from (*said, *wrong_products, *wrong_page)
    if not wrong_page:
        yield from _mapped_example(mapping, product.product if product else "BTC-USD")
    if product and not wrong_page and not said:
        yield from _simulated(mapping, product.product)


def _questions(mapping: Mapping) -> Iterator[str]:
    """What is asked for: a product, and by windows the shortest that will do."""
    spec = mapping.requests
    if "{symbol}" not in spec.path + "".join(spec.query.values()):
        yield "requests: nothing names the product: {symbol} stands neither in `path` nor in `query`"
    lengths = [window.seconds for window in spec.page.windows]
    if lengths != sorted(lengths):
        yield "requests/page/windows: the shortest must come first"


def _codes(mapping: Mapping) -> Iterator[str]:
    """Codes and statuses that mean two things, or nothing."""
    errors, spec, products = mapping.errors, mapping.requests, mapping.products
    if errors and errors.ok and not codes_at(spec.example.encode(), errors.at):
        yield f"errors/at: the example answer has no code at {errors.at!r}, but `ok` names codes"
    for status in sorted({*spec.unknown_product_status} & {*mapping.limits.slow_down_status}):
        yield f"limits/slow_down_status: {status} means an unknown product too (requests/unknown_product_status)"
    for word in sorted({*products.online} & {*products.delisted}):
        yield f"products/delisted: {word!r} means online too"


def _limits(mapping: Mapping) -> Iterator[str]:
    limits = mapping.limits
    in_buckets = limits.burst >= limits.amount
    most, name = (limits.burst, "burst") if in_buckets else (limits.amount, "amount")
    for kind, cost in limits.cost.items():
        if cost > most:
            yield f"limits/cost/{kind}: {cost:g} is more than `{name}` ({most:g}): the exchange could never grant it"


def _product_example(mapping: Mapping) -> tuple[Product | None, list[str]]:
    """The product in the example of the product list, and what is wrong with it."""
    spec = mapping.products
    try:
        listed = Exchange(mapping, SavedAnswer(spec.example.encode())).products()
        rows = at_pointer(json.loads(spec.example), spec.rows)
    except SchemaHubError as error:
        return None, [f"products/example: {error.reason}"]
    if not listed:
        return None, [_why_unlisted(mapping, rows)]
    if listed[0].online:
        return listed[0], []
    said = "switched off by `disabled`" if listed[0].status in spec.online else f"{listed[0].status!r}"
    return listed[0], [f"products/online: the example's product is {said}; show one that trades, or add its status"]


def _why_unlisted(mapping: Mapping, rows: Any) -> str:
    """Why the first row of the product list is no product of ours."""
    spec = mapping.products
    row = members(rows)[0]
    for name, allowed in spec.only.items():
        if str(element_of(row, name)) not in allowed:
            return (
                f"products/only/{name}: the example's product has {str(element_of(row, name))!r}, not one of {allowed}"
            )
    assets = spec.assets_of(row)
    if assets is None:
        pair = str(element_of(row, spec.pair.element)) if spec.pair else ""
        return f"products/pair: {pair!r} cannot be cut: neither `separator` nor one of `quotes` fits"
    product = "-".join(mapping.asset(name) for name in assets)
    if not PRODUCT.fullmatch(product):
        return f"products/example: {product!r} is no name of a product of ours: see `assets`"
    return (
        f"symbol: {product} would be asked for as {mapping.symbol_of(product)!r}, but the exchange calls it "
        f"{str(element_of(row, spec.symbol))!r}: correct `symbol`, `symbol_case`, `symbol_long` or `assets`"
    )


def _page_example(mapping: Mapping) -> Iterator[str]:
    """The first row of the example answer, value by value."""
    spec, fields = mapping.requests, mapping.fields
    row = members(at_pointer(json.loads(spec.example, parse_float=Decimal), spec.rows))[0]
    for role in ROLES:
        yield from _VALUES[role](mapping, element_of(row, getattr(fields, role)))


def _amount(role: str, value: Any, signed: bool) -> Iterator[str]:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite():
        yield f"fields/{role}: {str(value)[:60]!r} is no number"
    elif number < 0 and not signed:
        yield f"fields/{role}: {value} is below 0 (`sign: ignore` of the quantity, if the sign says the side)"
    elif number == 0:
        yield f"fields/{role}: is 0 in the example"


def _price(mapping: Mapping, value: Any) -> Iterator[str]:
    return _amount("price", value, signed=False)


def _quantity(mapping: Mapping, value: Any) -> Iterator[str]:
    return _amount("quantity", value, signed=mapping.fields.ignore_sign)


def _trade_id(mapping: Mapping, value: Any) -> Iterator[str]:
    if mapping.fields.id_type == "integer" and not INTEGER_ID.fullmatch(str(value)):
        yield f"fields/trade_id: {str(value)[:60]!r} is no integer from 0 on; `type: text`, if it names trades by words"


def _side(mapping: Mapping, value: Any) -> Iterator[str]:
    fields = mapping.fields
    said = json.dumps(value) if isinstance(value, bool) else str(value)
    if fields.side_values and said not in fields.side_values:
        known = list(fields.side_values)
        near = difflib.get_close_matches(said.lower(), [k for k in known if k.lower() == said.lower()], n=1)
        hint = f"did you mean it by {near[0]!r}?" if near else f"there are {', '.join(map(repr, known))}"
        yield f"fields/side/values: {said!r} of the example is none of them ({hint})"


def _trade_ts(mapping: Mapping, value: Any) -> Iterator[str]:
    if mapping.fields.ts_type == "iso8601":
        yield from _iso_time(mapping, str(value))
        return
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        yield f"fields/trade_ts: {str(value)[:60]!r} is no number of an epoch; `type: iso8601`, if it is a date"
        return
    latest_us = int(time.time() * 1e6) + DAY_US
    fitting = [unit for unit, ns in NS.items() if EARLIEST_US <= number * ns / 1000 <= latest_us]
    unit = str(mapping.fields.ts_unit)
    if unit not in fitting:
        hint = f"read as {' or '.join(fitting)} it would" if fitting else "nor is it with any other unit"
        yield f"fields/trade_ts/unit: {value} {unit} is no time since 2009 ({hint})"
    elif number * NS[unit] % mapping.fields.tick_ns:
        yield f"fields/trade_ts/precision: {value} is written finer than {unit}: say the finest unit, for example ns"


def _iso_time(mapping: Mapping, text: str) -> Iterator[str]:
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        hint = (
            "`type: epoch`, if it is a number"
            if re.fullmatch(r"[0-9.]+", text)
            else "2024-03-13T11:00:17.710679Z is one"
        )
        yield f"fields/trade_ts: {text[:60]!r} is no ISO 8601 time ({hint})"
        return
    if when.tzinfo is None:
        yield f"fields/trade_ts: {text!r} has neither Z nor an offset, so nobody knows its zone"
    elif not datetime(2009, 1, 3, tzinfo=UTC).timestamp() <= when.timestamp() <= time.time() + 86_400:
        yield f"fields/trade_ts: {text!r} is no time of a trade"
    digits = re.search(r"[.,](\d+)", text)
    if (
        digits
        and len(digits[1].rstrip("0")) > {NS["s"]: 0, NS["ms"]: 3, NS["us"]: 6, NS["ns"]: 9}[mapping.fields.tick_ns]
    ):
        yield f"fields/trade_ts/precision: {text!r} is written finer: say the finest unit, for example ns"


_VALUES = {"trade_id": _trade_id, "price": _price, "quantity": _quantity, "trade_ts": _trade_ts, "side": _side}


def _mapped_example(mapping: Mapping, product: str) -> Iterator[str]:
    """The example as the fetcher and the transform read it: what the checks above have no words for."""
    try:
        page = newest_page(mapping, product, SavedAnswer(mapping.requests.example.encode()))
        read = readings(mapping, product, page.rows, int(time.time() * 1000))
    except SchemaHubError as error:
        yield f"requests/example: as an answer it means {type(error).__name__}: {error.reason}"
        return
    yield from (f"requests/example: {reading.reason}" for reading in read if reading.unified is None)


def _simulated(mapping: Mapping, product: str) -> Iterator[str]:
    """The simulator that the mapping makes: its page must be read without loss, and its refusals understood."""
    http = SimulatedHttp(mapping, product)
    try:
        page = newest_page(mapping, product, http, http.base_url, most_rows=SIMULATED_ROWS)
        read = readings(mapping, product, page.rows, int(time.time() * 1000))
    except SchemaHubError as error:
        yield f"requests: the simulator made of this mapping gives {type(error).__name__}: {error.reason}"
        return
    if not read:
        yield "requests: the simulator made of this mapping shows no trades"
    yield from sorted({f"requests: of a simulated page, {r.reason}" for r in read if r.unified is None})
    try:
        Exchange(mapping, http, http.base_url).newest(Stream(mapping.exchange, "NOSUCH-PRODUCT"))
    except UnknownProduct:
        return
    except SchemaHubError as error:
        read_as = f"{type(error).__name__}: {error.reason}"
        yield f"errors/unknown_product: the refusal of an unknown product is read as {read_as}"
        return
    yield "errors/unknown_product: the refusal of an unknown product is read as a good answer"
