"""Every field of recorded and simulated answers as ccxt reads it; ``oracle.py`` says how both sides read them."""

from __future__ import annotations

import csv
import datetime as dt
import functools
import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from local.exchange_sim import Simulator, build_world
from schemahub.answers import parse_rows
from schemahub.errors import SchemaHubError
from schemahub.exchanges import Answer, Exchange
from schemahub.mappings import Mapping, load_mapping
from schemahub.streams import Stream
from tests.unit import oracle
from tests.unit.oracle import Judge, Trade, agree

NINE = ("binance", "binance_us", "bitfinex", "bitstamp", "bybit", "coinbase", "gemini", "kraken", "okx")
NOW_S = 1_710_500_000.0
"""The simulator's time: the same trades in every run."""

ROWS = {
    "binance": '{"a":26129,"p":"0.01633102","q":"4.70443515","f":27781,"l":27781,"T":1498793709153,"m":true,"M":true}',
    "bitfinex": "[1254284003,1668971823091,0.00007152,16575],[1254284004,1668971823091,-1e-8,16575.5]",
    "bitstamp": '{"date":"1551814435","tid":"83581898","price":"0.03532850","type":"1","amount":"0.85945907"},'
    '{"date":"1637845199","tid":"209895701","amount":"0.00500000","type":"0","price":"4451.25"}',
    "bybit": '{"execId":"666042b4-50c6-58f3-bd9c-89b2088663ff","symbol":"BTCUSDT","price":"1162.95","size":"1",'
    '"side":"Sell","time":"1669191277315","isBlockTrade":false}',
    "coinbase": '{"trade_id":"15035219","side":"sell","size":"0.27426731","price":"25820.42000000",'
    '"time":"2023-09-10T13:47:41.447577Z"},{"trade_id":"18502034","side":"sell","size":"0.00007448",'
    '"price":"73271.63000000","time":"2024-03-13T11:00:17.710679Z"}',
    "gemini": '{"timestamp":1601617445,"timestampms":1601617445144,"tid":14122489752,"price":"0.46476",'
    '"amount":"28.407209","exchange":"gemini","type":"buy"}',
    "kraken": '["30243.40000","0.34507674",1688669597.8277369,"b","m","",61044952],'
    '["30243.30000","0.00376960",1688669598.2804112,"s","l","",61044953],'
    '["30243.30000","0.01235716",1688669602.698379,"s","m","",61044956]',
    "okx": '{"instId":"BTC-USDT","side":"sell","sz":"0.119501","px":"0.07065","tradeId":"15826757",'
    '"ts":"1621446178316"},{"instId":"BTC-USDT","side":"buy","sz":"0.507","px":"0.07069","tradeId":"15826755",'
    '"ts":"1621446175085"}',
}  # fmt: skip
"""More trades than the mappings' examples, from ccxt's source and the exchanges' documentation; where a row names its
product, that of the mapping's example. Bitfinex' second one is made up: sold, with an exponent."""
ROWS["binance_us"] = ROWS["binance"]


LEFT_AS_SENT = {
    "": ["XBT", "BCHSV"],  # ccxt's default for all exchanges
    "bitfinex": ["EUTF0", "USTF0", "ORS"],  # futures; "ORS Group" is no code
    # Of the fields that we do not read: wsname is without these.
    "kraken": [
        *(f"X{asset}" for asset in ("ETC", "ETH", "LTC", "MLN", "REP", "XBT", "XDG", "XLM", "XMR", "XRP", "ZEC")),
        *(f"Z{asset}" for asset in ("AUD", "CAD", "EUR", "GBP", "JPY", "USD")),
    ],
}


class Recorder:
    """The simulator as our client's HTTP; keeps the answers."""

    def __init__(self, mapping: Mapping, products: list[str] | None = None) -> None:
        spec: dict[str, Any] = {"limit": "none", "trades_per_day": 4000, **({"products": products} if products else {})}
        world = build_world({"clock": {"frozen": True}, mapping.exchange: spec})
        self.simulator, self.mapping, self.bodies = Simulator(world, lambda: NOW_S), mapping, list[bytes]()

    def get(self, url: str, params: dict[str, str]) -> Answer:
        path = url.removeprefix(self.mapping.base_url)
        answer = self.simulator.get(self.mapping.exchange, path, params, "a")
        self.bodies.append(answer.body)
        return Answer(answer.status, {}, answer.body)

    def products(self) -> bytes:
        """The list of products as the exchange would send it, in what ccxt reads too."""
        Exchange(self.mapping, self).products()
        body = self.bodies.pop()
        if self.mapping.exchange != "kraken":
            return body
        # Our mapping has no use for `base` and `quote`, so that the simulator leaves the example's.
        document = json.loads(body)
        for row in document["result"].values():
            row["base"], row["quote"] = row["wsname"].split("/")
        return json.dumps(document).encode()


class Saved:
    """One saved answer as our client's HTTP."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def get(self, url: str, params: dict[str, str]) -> Answer:
        return Answer(200, {}, self.body)


def product_of(mapping: Mapping) -> str:
    """The product of the mapping's own example."""
    return Exchange(mapping, Saved(mapping.products.example.encode())).products()[0].product


def around(mapping: Mapping, rows: str) -> bytes:
    """Rows in the envelope of the mapping's example."""
    example = json.loads(mapping.requests.example)
    marked, place = example, mapping.requests.rows.split("/")[1:]
    if not place:
        return f"[{rows}]".encode()
    for part in place[:-1]:
        marked = marked[part]
    marked[next(k for k, v in marked.items() if isinstance(v, list) and v)] = "\0"
    return json.dumps(example).replace('"\\u0000"', f"[{rows}]").encode()


@pytest.fixture(scope="module")
def judges() -> Callable[[str], Judge]:
    """ccxt's client of an exchange, which lists the product of the mapping's example."""

    @functools.cache
    def judge(exchange: str) -> Judge:
        mapping = load_mapping(exchange)
        return Judge(mapping, mapping.products.example.encode())

    return judge


# --- trades -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", NINE)
def test_real_rows_agree(tmp_path: Path, exchange: str, judges: Callable[[str], Judge]) -> None:
    mapping = load_mapping(exchange)
    bodies = [mapping.requests.example.encode(), around(mapping, ROWS[exchange])]
    for number, body in enumerate(bodies):
        compared = agree(mapping, judges(exchange), product_of(mapping), [body], tmp_path / str(number))
        assert len(compared) == len(parse_rows(body, mapping))


@pytest.mark.parametrize("exchange", NINE)
def test_pages_of_the_simulator_agree(tmp_path: Path, exchange: str) -> None:
    """The newest page, and the one that a cursor half a page before it asks for."""
    mapping = load_mapping(exchange)
    recorder = Recorder(mapping)
    judge, client = Judge(mapping, recorder.products()), Exchange(mapping, recorder)
    stream = Stream(exchange, sorted(client.products(), key=lambda p: p.online)[-1].product)
    recorder.bodies.clear()
    newest = sorted(row.position for row in client.newest(stream))
    width = newest[-1] - newest[0]
    client.page(stream, newest[0] - width // 2, newest[0] + width // 4)
    assert len(agree(mapping, judge, stream.product, recorder.bodies, tmp_path)) >= len(newest)


def test_the_recorded_binance_trades_agree_with_ccxt_now_and_then(tmp_path: Path, recorded: Path) -> None:
    """12,477 aggTrades: against the parser of today, and against what another version made of them."""
    mapping, product = load_mapping("binance"), "XRP-ETH"
    lines = gzip.decompress(recorded.read_bytes()).decode().splitlines()
    bodies = [f"[{','.join(lines[at : at + 1000])}]".encode() for at in range(0, len(lines), 1000)]
    judge = Judge(mapping, Recorder(mapping, [product]).products())
    now = agree(mapping, judge, product, bodies, tmp_path)
    then = gzip.decompress(recorded.with_name("XRPETH-parsed-by-ccxt.jsonl.gz").read_bytes()).splitlines()
    assert len(then) == len(now) == 12_477
    for old in map(functools.partial(json.loads, parse_float=Decimal), then):
        assert Trade(old["side"].upper(), old["price"], old["amount"], old["timestamp"]) == now[old["id"]]


def test_the_recorded_binance_page_agrees(tmp_path: Path, recorded: Path) -> None:
    body = recorded.with_name("BTCUSDT-aggTrades-page-fromId-202790190.json").read_bytes()
    mapping = load_mapping("binance")
    judge = Judge(mapping, Recorder(mapping, ["BTC-USDT"]).products())
    assert agree(mapping, judge, "BTC-USDT", [body], tmp_path).keys() == {
        str(number) for number in range(202_790_190, 202_791_190)
    }


def test_the_recorded_coinbase_matches_agree(tmp_path: Path, recorded: Path) -> None:
    """107 matches of 10 products, as the five fields that REST has of them."""
    products: dict[str, list[str]] = {}
    for line in (recorded.parents[1] / "coinbase" / "websocket-matches.jsonl").read_text().splitlines():
        match = json.loads(line)
        row = {name: match[name] for name in ("trade_id", "side", "size", "price", "time")}
        products.setdefault(match["product_id"], []).append(json.dumps(row))
    mapping = load_mapping("coinbase")
    judge = Judge(mapping, Recorder(mapping, list(products)).products())
    compared = [
        len(agree(mapping, judge, product, [f"[{','.join(rows)}]".encode()], tmp_path / product))
        for product, rows in products.items()
    ]
    assert (len(compared), sum(compared)) == (10, 107)


def test_the_recorded_bitstamp_hour_agrees(tmp_path: Path, recorded: Path, judges: Callable[[str], Judge]) -> None:
    body = (recorded.parents[1] / "bitstamp" / "btcusd-transactions-hour.json").read_bytes()
    assert len(agree(load_mapping("bitstamp"), judges("bitstamp"), "BTC-USD", [body], tmp_path)) == 383


def test_the_recorded_kraken_trades_agree(tmp_path: Path, recorded: Path) -> None:
    """The archive has time, price and volume. Ids are the lines' numbers and all are bought: these say nothing."""
    with (recorded.parents[1] / "kraken" / "BCHEUR-trades.csv").open() as file:
        lines = list(csv.reader(file))
    rows = [f'["{price}","{volume}",{time},"b","m","",{n}]' for n, (time, price, volume) in enumerate(lines, 1)]
    mapping = load_mapping("kraken")
    judge = Judge(mapping, Recorder(mapping, ["BCH-EUR"]).products())
    # The list is named after the product, as in the simulator's list of products.
    body = around(mapping, ",".join(rows)).replace(b"XXBTZUSD", b"XBCHZEUR")
    assert len(agree(mapping, judge, "BCH-EUR", [body], tmp_path)) == 486


# --- products -----------------------------------------------------------------------------------------------------


def same_products(mapping: Mapping, body: bytes) -> int:
    """Compare what the exchange lists; how many products there were."""
    ours = {p.product: p for p in Exchange(mapping, Saved(body)).products()}
    theirs = {f"{m['base']}-{m['quote']}": m for m in Judge(mapping, body).markets}
    assert ours.keys() == theirs.keys()
    for name, product in ours.items():
        market = theirs[name]
        assert market["symbol"] == name.replace("-", "/")
        assert product.symbol in (market["id"], market.get("altname"))
        assert market["active"] in (None, product.online)
    return len(ours)


@pytest.mark.parametrize("exchange", NINE)
def test_the_example_list_of_products_agrees(exchange: str) -> None:
    mapping = load_mapping(exchange)
    assert same_products(mapping, mapping.products.example.encode()) == 1


@pytest.mark.parametrize("exchange", NINE)
def test_every_asset_that_a_mapping_renames_agrees(exchange: str) -> None:
    mapping = load_mapping(exchange)
    recorder = Recorder(mapping)
    quote = recorder.simulator.world.exchanges[exchange].protocol.example_quote
    listed = sorted({f"{asset}-{quote}" for asset in ("BTC", *mapping.assets.values()) if asset != quote})
    assert same_products(mapping, Recorder(mapping, listed).products()) == len(listed)


@pytest.mark.parametrize("exchange", NINE)
def test_what_ccxt_renames_is_renamed(exchange: str) -> None:
    """A newer ccxt that knows of another asset shows here."""
    theirs, ours = oracle.class_of(exchange)().commonCurrencies, load_mapping(exchange).assets
    assert {sent: name for sent, name in theirs.items() if ours.get(sent, sent) != name} == {
        sent: theirs[sent] for sent in LEFT_AS_SENT[""] + LEFT_AS_SENT.get(exchange, []) if sent in theirs.keys() - ours
    }


def test_the_recorded_coinbase_products_agree(recorded: Path) -> None:
    body = (recorded.parents[1] / "coinbase" / "products.json").read_bytes()
    assert same_products(load_mapping("coinbase"), body) > 100


# --- the judge can say no -----------------------------------------------------------------------------------------


def mutated(mapping: Mapping, mutation: str) -> Mapping:
    """A mapping with one mistake."""
    fields = mapping.fields
    other = {"s": "ms", "ms": "us", "us": "ms", "ns": "us"}
    turned = {"BUY": "SELL", "SELL": "BUY"}
    changes: dict[str, Any] = {
        "another id": {"trade_id": fields.price, "id_type": "text"},
        "the maker's side": {
            "side_values": {said: turned[side] for said, side in fields.side_values.items()},
            "side_by_sign": {sign: turned[side] for sign, side in fields.side_by_sign.items()},
        },
        "price for quantity": {"price": fields.quantity, "quantity": fields.price},
        "another unit": {"ts_unit": other.get(fields.ts_unit or ""), "trade_ts": fields.trade_ts},
        "whole seconds": {"trade_ts": "timestamp", "ts_unit": "s"},
    }
    return replace(mapping, fields=replace(fields, **changes[mutation]))


MISTAKES = [
    (exchange, mutation)
    for exchange in NINE
    for mutation in ("another id", "the maker's side", "price for quantity", "another unit", "whole seconds")
    # Coinbase's time has no unit; Gemini has two times.
    if (mutation, exchange) != ("another unit", "coinbase") and (mutation != "whole seconds" or exchange == "gemini")
]


@pytest.mark.parametrize(("exchange", "mutation"), MISTAKES)
def test_a_mapping_with_a_mistake_does_not_agree(
    tmp_path: Path, exchange: str, mutation: str, judges: Callable[[str], Judge]
) -> None:
    mapping = load_mapping(exchange)
    body = around(mapping, ROWS[exchange])
    with pytest.raises((AssertionError, SchemaHubError)):
        agree(mutated(mapping, mutation), judges(exchange), product_of(mapping), [body], tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"side": "BUY"},
        {"price": math.nextafter(0.01633102, 1)},
        {"quantity": math.nextafter(4.70443515, 9)},
        {"trade_ts": dt.datetime(2017, 6, 30, 3, 35, 9, 153_001, dt.UTC)},
        {"trade_ts": dt.datetime(2017, 6, 30, 3, 35, 9, 152_999, dt.UTC)},
    ],
)
def test_the_last_digit_counts(change: dict[str, Any], judges: Callable[[str], Judge]) -> None:
    mapping = load_mapping("binance")
    (theirs,) = judges("binance").trades("BTC-USDT", mapping.requests.example.encode()).values()
    (value,) = json.loads(mapping.requests.example, parse_float=str)
    ours: dict[str, Any] = {"side": "SELL", "price": 0.01633102, "quantity": 4.70443515}
    ours["trade_ts"] = dt.datetime(2017, 6, 30, 3, 35, 9, 153_000, dt.UTC)
    oracle.same(mapping, value, ours, theirs)
    with pytest.raises(AssertionError):
        oracle.same(mapping, value, {**ours, **change}, theirs)
