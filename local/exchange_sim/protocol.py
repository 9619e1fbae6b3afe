"""Any exchange's public REST protocol, from its mapping read backwards.

The mapping says how to ask and how to read; here the same lines say what is understood and how it is written. The
example answers of the mapping give the form: which members stand around the rows, whether a price is a text or a
number, what else an exchange sends. So a mapping without a simulator cannot exist, and neither can a simulator that
was written to please our client in something that the mapping does not state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from schemahub.mappings import NS, Mapping
from schemahub.pointers import Element, element_of, only_list

from .generator import UNIT, Tick
from .limits import Refused, Verdict
from .messages import PAGE_ROWS, Answer, Fields, Kind, Listing, Query, Route, Window, as_json
from .sources import Row

EVERYTHING = 10**9


SPREAD = 7


def sparse(number: int) -> int:
    """Ids that ascend and leave out numbers."""
    return number * SPREAD + number % 5


class Illegal(ValueError):
    """A request that no client of ours should send: answered with 400."""


class Protocol:
    """One exchange: requests in, answers out, in its own words."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        fields = mapping.fields
        self.fields = Fields(id=fields.trade_id, price=fields.price, size=fields.quantity, time=fields.trade_ts)
        self._path = _pattern(mapping.requests.path)
        self._frame = Frame(mapping.requests.example, mapping.requests.rows)
        self._products = Frame(mapping.products.example, mapping.products.rows)
        self._write = Writer(mapping, self._frame.row, str(element_of(self._products.row, mapping.products.symbol)))

    @property
    def example_quote(self) -> str:
        """The quote asset of the product in the mapping's example, in our spelling."""
        assets = self.mapping.products.assets_of(self._products.row)
        return self.mapping.asset(assets[1]) if assets else "USD"

    @property
    def newest_first(self) -> bool:
        """In which order an answer shows its rows."""
        return self.mapping.requests.page.asks in ("ids_below", "newest")

    def render(self, name: str, ticks: Iterable[Tick]) -> list[Row]:
        """Generated trades of the product that the exchange calls ``name``, as it writes them."""
        return self._write.rows(name, ticks)

    def route(self, path: str, query: Query, find: Callable[[str], Listing | None], now_us: int) -> Route:
        """Understand one GET below ``/{exchange}``."""
        spec, cost = self.mapping.requests, self.mapping.limits.cost
        if path == self.mapping.products.path and _holds(query, self.mapping.products.query):
            return Route("discovery", cost["products"])
        match = self._path.fullmatch(path)
        symbol = (match.groupdict().get("symbol") if match else None) or self._symbol_in(query)
        if match is None or symbol is None:
            return Route("discovery", cost["products"], answer=Answer(404, as_json({"message": "no such page"})))
        page = spec.page
        kind: Kind = "head"
        listing = find(symbol)
        try:
            limit = _number(query, spec.size_parameter, spec.page_size)
            asked = page.parameter in query
            kind = "page" if (asked or page.asks == "newest") and limit >= min(PAGE_ROWS, spec.page_size) else "head"
            if listing is None:
                return Route(kind, cost[kind], answer=self.not_found())
            if not limit >= 1:
                raise Illegal(f"{spec.size_parameter} is {limit}")
            window = self._window(query, listing, now_us, min(limit, spec.page_size))
        except Illegal as illegal:
            return Route(kind, cost[kind], listing=listing, answer=Answer(400, as_json({"message": str(illegal)})))
        return Route(kind, cost[kind], listing=listing, window=window)

    def _symbol_in(self, query: Query) -> str | None:
        for name, text in self.mapping.requests.query.items():
            if "{symbol}" in text and name in query:
                return query[name]
        return None

    def _window(self, query: Query, listing: Listing, now_us: int, limit: int) -> Window:
        page, source = self.mapping.requests.page, listing.source
        head = source.head(now_us)
        if page.windows:
            asked = next((w for w in page.windows if _holds(query, w.query)), None)
            if asked is None:
                raise Illegal(f"one of {[w.query for w in page.windows]} is needed")
            return Window(source.first_at_or_after(now_us - round(asked.seconds * 1e6)), head, EVERYTHING, newest=True)
        if page.parameter not in query or page.asks == "newest":
            return Window(source.first_id, head, limit, newest=True)
        cursor = _number(query, page.parameter, 0)
        if page.asks == "ids_below":
            return Window(source.first_id, self._number_of(cursor) - 1, limit, newest=True)
        if page.asks == "ids_from":
            return Window(self._number_of(cursor + (not page.inclusive)), head, limit, newest=False)
        if not _holds(query, page.query):
            raise Illegal(f"a cursor needs {page.query}")
        return Window(source.first_at_or_after(self._first_us(cursor)), head, limit, newest=False)

    def _number_of(self, trade_id: int) -> int:
        """The first trade (as the generator counts them) whose id is ``trade_id`` or greater."""
        if self.mapping.requests.ids == "dense":
            return trade_id
        number = max(0, trade_id // SPREAD - 1)
        while sparse(number) < trade_id:
            number += 1
        return number

    def _first_us(self, cursor: int) -> int:
        """The first microsecond whose trades a time cursor lets through; times are compared as they are written."""
        page, tick_ns = self.mapping.requests.page, self.mapping.fields.tick_ns
        at_ns = cursor * NS[page.unit]
        first_ns = -(-at_ns // tick_ns) * tick_ns if page.inclusive else (at_ns // tick_ns + 1) * tick_ns
        return -(-first_ns // 1000)

    def page(self, listing: Listing, served: list[Row]) -> Answer:
        """The answer that serves these rows of a product."""
        ordered = reversed(served) if self.newest_first else served
        return Answer(200, self._frame.around(f"[{','.join(text for _, text in ordered)}]", self._list_name(listing)))

    def _list_name(self, listing: Listing) -> str | None:
        """What the list of trades is called where its name is the product's: as in the example (XXBTZUSD: XETHZEUR)."""
        like, assets = self._frame.list_name, self.mapping.products.assets_of(self._products.row)
        if like is None or assets is None or not self._products.keyed:
            return None
        theirs = {ours: name for name, ours in self.mapping.assets.items()}
        base, quote = assets
        head, mark, tail = like.rpartition(quote)
        if not mark or base not in head:
            return listing.name
        return (
            head.replace(base, theirs.get(listing.base, listing.base)) + theirs.get(listing.quote, listing.quote) + tail
        )

    def discovery(self, listings: Iterable[Listing]) -> Answer:
        """The product list. Where it has no word for a status, what is listed trades."""
        spec = self.mapping.products
        says = spec.status or spec.disabled
        shown = [listing for listing in listings if says or listing.status == "online"]
        rows = {self._list_name(listing) or listing.name: self._described(listing) for listing in shown}
        value = rows if self._products.keyed else list(rows.values())
        return Answer(200, self._products.around(json.dumps(value, separators=(",", ":"))))

    def _described(self, listing: Listing) -> Any:
        spec, mapping = self.mapping.products, self.mapping
        theirs = {ours: name for name, ours in mapping.assets.items()}
        base, quote = theirs.get(listing.base, listing.base), theirs.get(listing.quote, listing.quote)
        online = listing.status == "online"
        values: list[tuple[Element | None, Any]] = [
            (spec.base, base),
            (spec.quote, quote),
            (spec.status, spec.online[0] if online and spec.online else listing.status),
            (spec.disabled, not online),
            (spec.symbol, listing.name),
            *((name, allowed[0]) for name, allowed in spec.only.items()),
        ]
        if spec.pair:
            sample = str(element_of(self._products.row, spec.pair.element))
            base, quote = (base.lower(), quote.lower()) if sample.islower() else (base, quote)
            between = spec.pair.separator if spec.pair.separator and self._separated(sample, base, quote) else ""
            pair = f"{base}{between}{quote}"
            if isinstance(self._products.row, str):
                return pair
            values.append((spec.pair.element, pair))
        row = json.loads(json.dumps(self._products.row))
        for element, value in values:
            if element is not None:
                row[element] = value
        return row

    def _separated(self, sample: str, base: str, quote: str) -> bool:
        """Whether the separator is written: always, or (with quotes to tell by) only beside long names."""
        pair = self.mapping.products.pair
        return bool(pair and (not pair.quotes or max(len(base), len(quote)) > 3))

    def limited(self, refused: Refused) -> Answer:
        """The refusal of a request that is over the limit."""
        errors = self.mapping.errors
        answer = self._error(refused.status, errors.slow_down[0] if errors and errors.slow_down else None)
        if refused.retry_after_s is not None:
            answer.headers["Retry-After"] = str(refused.retry_after_s)
        return answer

    def not_found(self) -> Answer:
        """An unknown or removed product."""
        errors, statuses = self.mapping.errors, self.mapping.requests.unknown_product_status
        code = errors.unknown_product[0] if errors and errors.unknown_product else None
        return self._error(statuses[0] if statuses else 200, code)

    def _error(self, status: int, code: str | None) -> Answer:
        errors = self.mapping.errors
        if errors is None or code is None:
            return Answer(status, as_json({"message": "refused"}))
        return Answer(status, as_json(_at(errors.at, code.rstrip("*"), self._frame.document)))

    def limit_headers(self, verdict: Verdict) -> dict[str, str]:
        """What was used of the running window, where the exchange reports it."""
        name = self.mapping.limits.used_header
        return {name: f"{verdict.used:.0f}"} if name else {}


class Frame:
    """What stands around the rows of an answer."""

    def __init__(self, example: str, pointer: str) -> None:
        self.document = json.loads(example)
        self.list_name: str | None = None
        """The name of the list in the example, where it is the product's."""
        parent, key, rows = None, None, self.document
        for part in pointer.split("/")[1:]:
            parent, key = rows, only_list(rows) if part == "*" else int(part) if isinstance(rows, list) else part
            rows = rows[key]
        self.keyed = isinstance(rows, dict)
        self.row = next(iter(rows.values())) if self.keyed else rows[0]
        if parent is None:
            self._before, self._after = "", ""
            return
        parent[key] = "\0rows"
        self._before, self._after = json.dumps(self.document, separators=(",", ":")).split('"\\u0000rows"')
        parent[key] = rows
        self.list_name = str(key) if pointer.endswith("/*") else None

    def around(self, rows: str, list_name: str | None = None) -> bytes:
        before = self._before
        if list_name is not None:
            before = before.removesuffix(f"{json.dumps(self.list_name)}:") + f"{json.dumps(list_name)}:"
        return f"{before}{rows}{self._after}".encode()


def _at(pointer: str, code: str, document: Any) -> Any:
    """The smallest answer with ``code`` at ``pointer``, of the type that the example has there."""
    parts = pointer.split("/")[1:]
    sample = document
    for part in parts:
        sample = sample.get(part) if isinstance(sample, dict) else None
    value: Any = (
        [code]
        if isinstance(sample, list)
        else int(code)
        if re.fullmatch(r"-?\d+", code) and not isinstance(sample, str)
        else code
    )
    for part in reversed(parts):
        if part.isdecimal():
            value = ["error", *[None] * (int(part) - 1), value] if int(part) else [value]
        else:
            value = {part: value}
    return value


class Writer:
    """Trades in the exchange's own words: the example row with other values.

    Some exchanges repeat the product in each row; it stands where the example row has ``symbol``, its product.
    """

    def __init__(self, mapping: Mapping, row: Any, symbol: str) -> None:
        self.mapping = mapping
        fields = mapping.fields
        self._quoted = {e: isinstance(element_of(row, e), str) for e in fields.sources}
        said = {taker: text for text, taker in fields.side_values.items()}
        flag = isinstance(element_of(row, fields.side), bool)
        self._sides = {taker: text if flag else json.dumps(text) for taker, text in said.items()}
        template = json.loads(json.dumps(row))
        slots = dict.fromkeys(fields.sources)
        for element in template if isinstance(template, dict) else range(len(template)):
            if element == fields.product or (element not in slots and template[element] == symbol):
                template[element] = "\0name"
        for number, element in enumerate(slots):
            template[element] = f"\0{number}"
        text = json.dumps(template, separators=(",", ":")).replace("{", "{{").replace("}", "}}")
        text = text.replace('"\\u0000name"', '"{name}"')
        for number in range(len(slots)):
            text = text.replace(f'"\\u0000{number}"', f"{{{number}}}")
        self._text, self._slots = text, list(slots)

    def rows(self, name: str, ticks: Iterable[Tick]) -> list[Row]:
        return [(tick[0], self._text.format(*self._values(tick), name=name)) for tick in ticks]

    def _values(self, tick: Tick) -> Iterator[str]:
        trade_id, time_us, price, size, buyer_is_maker, _, _ = tick
        fields = self.mapping.fields
        taker = "SELL" if buyer_is_maker else "BUY"
        negative = fields.side_by_sign.get("negative") == taker
        for element in self._slots:
            if element == fields.trade_id:
                yield self._form(element, str(self._id(trade_id)))
            elif element == fields.price:
                yield self._form(element, f"{price // UNIT}.{price % UNIT:08d}")
            elif element == fields.quantity:
                yield self._form(element, f"{'-' if negative else ''}{size // UNIT}.{size % UNIT:08d}")
            elif element == fields.trade_ts:
                yield self._form(element, self._time(time_us))
            else:
                yield self._sides[taker]

    def _id(self, trade_id: int) -> int:
        """Sparse ids leave out numbers."""
        return trade_id if self.mapping.requests.ids == "dense" else sparse(trade_id)

    def _form(self, element: Element, text: str) -> str:
        return f'"{text}"' if self._quoted[element] else text

    def _time(self, time_us: int) -> str:
        """As finely as the exchange writes times; the rest is cut off."""
        fields = self.mapping.fields
        time_us -= time_us % max(1, fields.tick_ns // 1000)
        if fields.ts_type == "iso8601":
            return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + (
                f".{time_us % 1_000_000:06d}Z"
            )
        unit_ns = NS[fields.ts_unit or "ms"]
        whole, rest = divmod(time_us * 1000, unit_ns)
        if fields.tick_ns >= unit_ns:
            return str(whole)
        return f"{whole}.{rest:0{len(str(unit_ns)) - 1}d}"


def _pattern(path: str) -> re.Pattern[str]:
    before, mark, after = path.partition("{symbol}")
    return re.compile(re.escape(before) + (r"(?P<symbol>[^/]+)" if mark else "") + re.escape(after))


def _holds(query: Query, wanted: dict[str, str]) -> bool:
    return all(query.get(name) == text for name, text in wanted.items())


def _number(query: Query, name: str | None, default: int) -> int:
    text = query.get(name) if name else None
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise Illegal(f"{name} is no number")
    return int(text)
