"""Every mapping: its own examples map, and the simulator that is made from it says what the client understands."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import pytest

from local.exchange_sim import Simulator, build_world, generator
from local.exchange_sim.limits import TokenBucket, WeightWindow
from local.exchange_sim.protocol import sparse
from local.exchange_sim.sources import Generated
from schemahub.answers import Row, parse_rows
from schemahub.clock import FakeClock
from schemahub.errors import ExchangeUnavailable, MalformedResponse, RateLimited, UnknownProduct
from schemahub.exchanges import Answer, Exchange, Product
from schemahub.mappings import Mapping, exchanges, load_mapping
from schemahub.paging import paging_of
from schemahub.pointers import element_of
from schemahub.streams import Chunk, Stream
from tests.unit.connectors import KNOWN, NS, Unified

pytestmark = pytest.mark.parametrize("exchange", exchanges())

GENESIS = "2026-01-01T00:00:00Z"
BUSY = 40_000
"""Trades a day of each simulated product: a window of an hour holds 1,667, one of a day 40,000."""


@pytest.fixture
def mapping(exchange: str) -> Mapping:
    return load_mapping(exchange)


class Said:
    """An exchange that gives one answer to everything, and remembers what it was asked."""

    def __init__(self, body: Any, status: int = 200) -> None:
        self.answer = Answer(status, {}, body.encode() if isinstance(body, str) else json.dumps(body).encode())
        self.asked: list[tuple[str, dict[str, str]]] = []

    def get(self, url: str, params: dict[str, str]) -> Answer:
        self.asked.append((url, params))
        return self.answer


def unified(row: Row, mapping: Mapping) -> Unified:
    """The columns of a row, read in Python: the transform's SQL has tests of its own."""
    fields = mapping.fields
    value = json.loads(row.text, parse_float=str, parse_int=str)
    quantity = Decimal(element_of(value, fields.quantity))
    if fields.side_by_sign:
        side = fields.side_by_sign.get("positive" if quantity > 0 else "negative")
    else:
        said = element_of(json.loads(row.text), fields.side)
        side = fields.side_values.get(said if isinstance(said, str) else json.dumps(said))
    quantity = abs(quantity) if fields.ignore_sign else quantity
    time_ns = row.position if mapping.by_time else (row.ts_us or 0) * 1000
    return Unified(row.trade_id, side, Decimal(element_of(value, fields.price)), quantity, time_ns)


# --- the examples ---------------------------------------------------------------------------------------------------


def test_every_exchange_is_known_to_these_tests(exchange: str) -> None:
    assert exchange in KNOWN


def test_the_example_answer_is_the_trade_that_the_documentation_means(exchange: str, mapping: Mapping) -> None:
    (row,) = parse_rows(mapping.requests.example.encode(), mapping)
    known = KNOWN[exchange]
    assert unified(row, mapping) == Unified(
        known.trade_id, known.side, Decimal(known.price), Decimal(known.quantity), known.time_ns
    )
    assert row.text in mapping.requests.example
    assert row.position == (known.time_ns if mapping.by_time else int(known.trade_id))


def test_the_example_product_is_listed_in_our_spelling(exchange: str, mapping: Mapping) -> None:
    (product,) = Exchange(mapping, Said(mapping.products.example)).products()
    known = KNOWN[exchange]
    assert (product.product, product.symbol, product.online, product.delisted) == (
        known.product, known.symbol, True, False,
    )  # fmt: skip


def test_requests_are_those_of_the_documentation(exchange: str, mapping: Mapping) -> None:
    known, http = KNOWN[exchange], Said(mapping.requests.example)
    stream = Stream(exchange, known.product)
    Exchange(mapping, http).newest(stream)
    first = NS if mapping.by_time else 5000
    Exchange(mapping, http).page(stream, first, first + 9)
    assert http.asked == [known.newest, known.page]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_unknown_product_is_understood_and_said_in_the_exchanges_words(exchange: str, mapping: Mapping) -> None:
    status, body = KNOWN[exchange].unknown
    with pytest.raises(UnknownProduct):
        Exchange(mapping, Said(body, status)).newest(Stream(exchange, "NOPE-USD"))
    sim = Inside(exchange)
    with pytest.raises(UnknownProduct):
        Exchange(mapping, sim).newest(Stream(exchange, "NOPE-USD"))
    assert sim.last.status in {status, *mapping.requests.unknown_product_status}
    if mapping.errors and isinstance(body, dict):
        key = mapping.errors.at.split("/")[1]
        assert json.loads(sim.last.body)[key] == body[key]


def test_too_many_requests_are_understood_whatever_the_status(exchange: str, mapping: Mapping) -> None:
    stream = Stream(exchange, KNOWN[exchange].product)
    status, body = KNOWN[exchange].limited
    for code in {status, *mapping.limits.slow_down_status}:
        with pytest.raises(RateLimited):
            Exchange(mapping, Said(body, code)).newest(stream)


def test_every_code_of_the_mapping_has_its_meaning_and_no_other_is_good(exchange: str, mapping: Mapping) -> None:
    errors, stream = mapping.errors, Stream(exchange, KNOWN[exchange].product)
    assert errors is not None
    meanings = {UnknownProduct: errors.unknown_product, RateLimited: errors.slow_down}
    meanings |= {ExchangeUnavailable: errors.unavailable, MalformedResponse: ("no such code",)}
    for error, codes in meanings.items():
        for code in codes:
            with pytest.raises(error):
                Exchange(mapping, Said(with_code(errors.at, code.replace("*", ": 17")))).newest(stream)


def with_code(pointer: str, code: str) -> Any:
    """The smallest document with a code at a pointer."""
    document: Any = code
    for part in reversed(pointer.split("/")[1:]):
        document = [None] * int(part) + [document] if part.isdecimal() else {part: document}
    return document


# --- the simulator --------------------------------------------------------------------------------------------------


class Inside:
    """The simulator without a network."""

    def __init__(self, exchange: str, **config: Any) -> None:
        products = [{"name": name, "trades_per_day": BUSY} for name in KNOWN[exchange].symbols]
        world = {"products": products, "limit": "none", **config}
        self.simulator = Simulator(
            build_world({"latency_ms": {"mean": 0, "jitter": 0}, "genesis": GENESIS, exchange: world})
        )
        self.simulator.clock.set(None, None, True)
        self.base_url = load_mapping(exchange).base_url
        self.name, self.last = exchange, Answer(0, {}, b"")

    def get(self, url: str, params: dict[str, str]) -> Answer:
        answer = self.simulator.get(self.name, unquote(url.removeprefix(self.base_url)), params, "here")
        self.last = Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.body)
        return self.last

    def trades(self, product: str, first: int, last: int) -> list[generator.Trade]:
        """The truth of the generator, before any exchange's words."""
        source = self.simulator.listing(self.name, product).source
        assert isinstance(source, Generated)
        return generator.trades(source.product, first, last)

    def newest(self, product: str, count: int) -> list[generator.Trade]:
        head = self.simulator.listing(self.name, product).source.head(self.simulator.clock.now_us())
        return self.trades(product, head - count + 1, head)


@pytest.fixture
def sim(exchange: str) -> Inside:
    return Inside(exchange)


@pytest.fixture
def stream(exchange: str) -> Stream:
    return Stream(exchange, KNOWN[exchange].product)


def as_table(trade: generator.Trade, mapping: Mapping) -> Unified:
    """A generated trade as the table should hold it, whatever the exchange made of it on the way."""
    number = trade.id if mapping.requests.ids == "dense" else sparse(trade.id)
    time_ns = trade.time_us * 1000 // mapping.fields.tick_ns * mapping.fields.tick_ns
    side = "SELL" if trade.buyer_is_maker else "BUY"
    return Unified(str(number), side, Decimal(trade.price).scaleb(-8), Decimal(trade.size).scaleb(-8), time_ns)


def by_trade(rows: list[Row], mapping: Mapping) -> list[Unified]:
    return sorted((unified(row, mapping) for row in rows), key=lambda t: int(t.trade_id))


def test_the_newest_page_is_the_generators_newest_trades(sim: Inside, mapping: Mapping, stream: Stream) -> None:
    rows = Exchange(mapping, sim).newest(stream)
    assert rows
    if mapping.requests.page.windows:
        hour_ago = sim.simulator.clock.now_us() - 3_600_000_000
        truth = [t for t in sim.newest(stream.product, 2 * len(rows)) if t.time_us >= hour_ago]
    else:
        assert len(rows) == mapping.requests.page_size
        truth = sim.newest(stream.product, len(rows))
    assert by_trade(rows, mapping) == [as_table(t, mapping) for t in truth]
    assert {t.side for t in by_trade(rows, mapping)} == {"BUY", "SELL"}


def test_a_row_has_the_form_of_the_example(sim: Inside, mapping: Mapping, stream: Stream) -> None:
    (example,) = parse_rows(mapping.requests.example.encode(), mapping)
    wanted, row = json.loads(example.text), json.loads(Exchange(mapping, sim).newest(stream)[0].text)
    if isinstance(wanted, dict):
        assert list(row) == list(wanted)
        row, wanted = list(row.values()), list(wanted.values())
    kinds = {int: "number", float: "number"}
    assert [kinds.get(type(v), type(v)) for v in row] == [kinds.get(type(v), type(v)) for v in wanted]
    around = json.loads(sim.last.body)
    assert type(around) is type(json.loads(mapping.requests.example))


def test_a_row_of_another_product_is_refused_where_rows_name_theirs(mapping: Mapping, stream: Stream) -> None:
    example = mapping.requests.example.encode()
    other = Stream(stream.exchange, "DOGE-EUR")
    if mapping.fields.product is None:
        assert Exchange(mapping, Said(example.decode())).newest(other)
        return
    with pytest.raises(MalformedResponse, match=r"'DOGE-?EUR' was asked for"):
        Exchange(mapping, Said(example.decode())).newest(other)


def test_a_list_that_is_named_after_its_product_follows_it(exchange: str, mapping: Mapping) -> None:
    if not mapping.requests.rows.endswith("/*"):
        assert exchange != "kraken"
        return
    sim, names = Inside(exchange), []
    for product in ("BTC-USD", "DOGE-EUR"):
        assert Exchange(mapping, sim).newest(Stream(exchange, product))
        names += [name for name in json.loads(sim.last.body)["result"] if name != "last"]
    assert names == ["XXBTZUSD", "XXDGZEUR"]


class Paced:
    """``Exchange`` as the fetching of chunks sees it."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.requests = 0

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int = 1, kind: str = "page") -> list[Row]:
        self.requests += 1
        return self.exchange.page(stream, first, last)


def test_page_after_page_is_the_generators_history(sim: Inside, mapping: Mapping, stream: Stream) -> None:
    """A chunk of three answers, back in the history where the exchange shows any."""
    spec, tick = mapping.requests, mapping.fields.tick_ns
    history = sim.newest(stream.product, 40 if spec.page.asks == "newest" else spec.page_size * 4)
    first, last = (as_table(history[at], mapping) for at in (len(history) // 4, -10))
    if mapping.by_time:
        chunk = Chunk(first.time_ns, last.time_ns + max(tick, 1000) - 1)
    else:
        chunk = Chunk(int(first.trade_id), int(last.trade_id))
    truth = [as_table(t, mapping) for t in history]
    truth = [t for t in truth if chunk.first <= (t.time_ns if mapping.by_time else int(t.trade_id)) <= chunk.last]
    source = Paced(Exchange(mapping, sim))
    clock = FakeClock(sim.simulator.clock.now_us() // 1000)
    fetched = paging_of(mapping).fetch(source, stream, chunk, clock, lambda: None)  # type: ignore[arg-type]
    rows = [row for text in fetched.texts for row in parse_rows(framed(text, mapping), mapping)]
    assert len(truth) > len(history) // 2
    assert by_trade(rows, mapping) == truth
    assert not fetched.absent
    assert source.requests >= (1 if spec.page.asks == "newest" else 3)


def framed(text: str, mapping: Mapping) -> bytes:
    """One row as an answer of its exchange."""
    (example,) = parse_rows(mapping.requests.example.encode(), mapping)
    return mapping.requests.example.replace(example.text, text).encode()


def test_products_are_listed_and_asked_for_under_both_names(sim: Inside, exchange: str, mapping: Mapping) -> None:
    """XBT and BTC, UST and USDT, BTCUSDT and BTC-USDT, paxgusd and PAXG-USD, tAVAX:USD."""
    symbols = KNOWN[exchange].symbols
    assert {product: mapping.symbol_of(product) for product in symbols} == symbols
    listed = Exchange(mapping, sim).products()
    assert {p.product: p.symbol for p in listed} == symbols
    assert all(p.online and not p.delisted for p in listed)
    for product in symbols:
        assert Exchange(mapping, sim).newest(Stream(exchange, product))


def test_a_delisted_product_is_not_online(exchange: str, mapping: Mapping) -> None:
    sim = Inside(exchange)
    product = KNOWN[exchange].product
    sim.simulator.faults.add(
        [{"kind": "delisted", "exchange": exchange, "product": product, "listed": True}], sim.simulator.clock.now_us()
    )
    found: dict[str, Product] = {p.product: p for p in Exchange(mapping, sim).products()}
    says = mapping.products.status or mapping.products.disabled
    assert (product in found) is bool(says)
    assert not says or not found[product].online
    with pytest.raises(UnknownProduct):
        Exchange(mapping, sim).newest(Stream(exchange, product))


@pytest.fixture
def limited(exchange: str, mapping: Mapping, stream: Stream) -> Inside:
    """A simulator with the published limit, of which one request is left."""
    sim = Inside(exchange)
    limiter = build_world({}).exchanges[exchange].limiter
    sim.simulator.world.exchanges[exchange].limiter = limiter
    limits = mapping.limits
    assert isinstance(limiter, TokenBucket if limits.burst >= limits.amount else WeightWindow)
    most = limits.burst if limits.burst >= limits.amount else limits.amount
    account = f"here#{stream.product}" if limits.per_product else "here"
    limiter.take(account, most - limits.cost["head"], sim.simulator.clock.real_s())
    assert limiter.per_second == pytest.approx(limits.amount / limits.per_seconds)
    return sim


def test_the_request_beyond_the_limit_is_refused_in_the_exchanges_words(
    limited: Inside, exchange: str, mapping: Mapping, stream: Stream
) -> None:
    limits, frozen_s = mapping.limits, limited.simulator.clock.real_s()
    limited.simulator.clock.real_s = lambda: frozen_s
    asked = Exchange(mapping, limited)
    assert asked.newest(stream)
    if limits.used_header:
        assert float(limited.last.headers[limits.used_header.lower()]) == limits.amount
    with pytest.raises(RateLimited) as refused:
        asked.newest(stream)
    assert limited.last.status == limits.slow_down_status[0]
    if mapping.errors and mapping.errors.slow_down:
        assert re.search(re.escape(mapping.errors.slow_down[0].rstrip("*")), limited.last.body.decode())
    if limits.burst < limits.amount:
        assert refused.value.retry_after_s is not None
        assert 0 < refused.value.retry_after_s <= limits.per_seconds
    else:
        assert refused.value.retry_after_s is None
