"""ccxt as the judge of our mappings: both read the same bytes, and every field of every trade is compared.

ccxt goes its whole own way: its client asks for the trades and for the list of products, and a transport hands it the
recorded answer where the network would be. So its envelopes, its parsers and its names of assets are used, and it is
seen that it would have asked the same address. Our side is the pipeline's own way too: ``parse_rows``, the lines of a
raw object, the transform, rows of the Parquet file.
"""

from __future__ import annotations

import datetime as dt
import functools
import importlib.util
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq
import requests
import zstandard

from schemahub import raw
from schemahub.answers import Row, element_of, parse_rows
from schemahub.mappings import Mapping
from schemahub.streams import Segment, Stream
from schemahub.table import EXACT_COLUMNS
from schemahub.transform import transform_files

CLASSES = {"coinbase": "coinbaseexchange"}
"""Where ccxt's class is not called like our exchange without its underscores."""
COMMITTED_MS = 1_800_000_000_000
"""2027: after every recorded trade, and after those of the simulator, whose clock stands still."""
OPTIONS = {
    # Only spot has a mapping.
    "binance": {"fetchMarkets": {"types": ["spot"]}},
    "bybit": {"fetchMarkets": {"types": ["spot"]}},
    "okx": {"fetchMarkets": {"types": ["spot"]}, "fetchTrades": {"method": "publicGetMarketHistoryTrades"}},
}


@dataclass(frozen=True)
class Trade:
    """What is compared. Price and quantity as written: a decimal keeps what a double would hide."""

    side: str
    price: Decimal
    quantity: Decimal
    ms: int


class Wire(requests.adapters.BaseAdapter):
    """A transport without a network: the first answer whose path ends as the request's does."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self.asked.append(str(request.url))
        response = requests.Response()
        response.status_code, response.url, response.request = 200, str(request.url), request
        response.headers["Content-Type"] = "application/json"
        response.raw = io.BytesIO(self.answers[urlsplit(str(request.url)).path])
        return response

    def close(self) -> None:
        pass


@functools.cache
def class_of(exchange: str) -> Any:
    """ccxt's class of one of our exchanges.

    Only its own module is imported, when a test wants it: the package itself would bring all of ccxt's exchanges, which
    takes seconds. Raises ModuleNotFoundError where ccxt does not know the exchange.
    """
    if "ccxt" not in sys.modules:
        found = importlib.util.find_spec("ccxt")
        assert found, "ccxt is in requirements-oracle.lock: make setup"
        sys.modules["ccxt"] = importlib.util.module_from_spec(found)
    name = CLASSES.get(exchange, exchange.replace("_", ""))
    return getattr(importlib.import_module(f"ccxt.{name}"), name)


class Judge:
    """ccxt's client of one exchange."""

    def __init__(self, mapping: Mapping, products: bytes) -> None:
        self.mapping = mapping
        # Decimals, and numbers in JSON as their text: ccxt's own way to keep them exact in JavaScript.
        self.client = class_of(mapping.exchange)(
            {"number": Decimal, "enableRateLimit": False, "options": OPTIONS.get(mapping.exchange, {})}
        )
        self.client.on_json_response = functools.partial(json.loads, parse_float=str, parse_int=str)
        self.wire = Wire()
        self.client.session.mount("https://", self.wire)
        self.client.session.mount("http://", self.wire)
        path, body = asked_for(mapping, products)
        self.wire.answers[path] = body
        self.markets: list[dict[str, Any]] = [m for m in self.client.fetch_markets() if m["spot"]]
        self.client.set_markets(self.markets)

    def trades(self, product: str, body: bytes) -> dict[str, Trade]:
        """What ccxt makes of an answer, by id."""
        market = self.client.market(product.replace("-", "/"))
        self.wire.asked.clear()
        path = self.mapping.requests.path.format(symbol=self.mapping.symbol_of(product))
        self.wire.answers[path] = body
        trades = self.client.fetch_trades(market["symbol"])
        (asked,) = self.wire.asked
        assert asked.split("?")[0] == self.mapping.base_url + path
        for name, text in self.mapping.requests.query.items():
            ours = text.format(symbol=self.mapping.symbol_of(product))
            assert parse_qs(urlsplit(asked).query).get(name, [ours])[0] in (ours, market["id"])
        found = {t["id"]: Trade(t["side"].upper(), t["price"], t["amount"], t["timestamp"]) for t in trades}
        assert len(found) == len(trades)
        return found


def asked_for(mapping: Mapping, products: bytes) -> tuple[str, bytes]:
    """Where ccxt asks for the list of products, and the answer there."""
    if mapping.exchange != "bitfinex":
        return mapping.products.path, products
    # ccxt asks for more about the same pairs: [[["BTCUSD", [...]], ...], futures, securities, margin].
    pairs = [[name, [None] * 12] for name in json.loads(products)[0]]
    labels = ("info:pair", "info:pair:futures", "list:pair:securities", "list:pair:margin")
    return f"/v2/conf/{','.join(f'pub:{label}' for label in labels)}", json.dumps([pairs, [], [], []]).encode()


Rows = dict[str, dict[str, Any]]


def table_rows(mapping: Mapping, product: str, bodies: Iterable[bytes], folder: Path) -> tuple[Rows, list[Row]]:
    """(rows of the table by id, rows as sent) of recorded answers, by the pipeline's own steps."""
    sent = list({row.text: row for body in bodies for row in parse_rows(body, mapping)}.values())
    sent.sort(key=lambda row: row.position)
    content = raw.content_of(row.text for row in sent)
    path = folder / "raw.jsonl.zst"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor().compress(content))
    stream, first, last = Stream(mapping.exchange, product), sent[0].position, sent[-1].position
    segment = Segment(
        stream, first, last, len(sent), (), raw.raw_key(stream, first, last, len(sent)), "", "test", "run", "commit",
        COMMITTED_MS, False,
    )  # fmt: skip
    result = transform_files(mapping, [(segment, path)], folder / "out", threads=1)
    assert (result.rows, result.quarantined) == (len(sent), 0)
    rows = [row for file in result.files for row in pq.read_table(file.path).to_pylist()]
    assert len(rows) == len(sent)
    return {row["trade_id"]: row for row in rows}, sent


def agree(mapping: Mapping, judge: Judge, product: str, bodies: Sequence[bytes], folder: Path) -> dict[str, Trade]:
    """Compare every field of every trade of the answers, whatever columns a mapping adds; ccxt's side of them."""
    theirs: dict[str, Trade] = {}
    for body in bodies:
        theirs |= judge.trades(product, body)
    for exact in EXACT_COLUMNS:
        ours, sent = table_rows(replace(mapping, exact=exact), product, bodies, folder / exact)
        assert ours.keys() == theirs.keys()
        assert len(sent) == len(theirs)
        for row in sent:
            value = json.loads(row.text, parse_float=str, parse_int=str)
            same(mapping, value, ours[row.trade_id], theirs[row.trade_id])
            assert row.ts_us == epoch_us(ours[row.trade_id]["trade_ts"])
    return theirs


def same(mapping: Mapping, sent: Any, ours: dict[str, Any], theirs: Trade) -> None:
    """One trade as sent, in our table, by ccxt."""
    assert ours["side"] == theirs.side
    for name, decimal in (("price", theirs.price), ("quantity", theirs.quantity)):
        text = str(element_of(sent, getattr(mapping.fields, name))).lstrip("-" if mapping.fields.ignore_sign else "")
        assert Decimal(text) == decimal, (name, sent)
        assert ours[name] == float(text) == float(decimal), (name, sent)
        assert ours.get(f"{name}_text", text) == text
        assert ours.get(f"{name}_decimal", decimal) == decimal
    text = str(element_of(sent, mapping.fields.trade_ts))
    assert epoch_us(ours["trade_ts"]) == written_us(text, theirs.ms), (text, theirs.ms)


def epoch_us(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def written_us(text: str, ms: int) -> int:
    """The microsecond that is written, in the one unit in which ccxt's millisecond is the same.

    ccxt reads seconds with a fraction through a double, so that its millisecond may be the one before or behind.
    """
    try:
        number = Decimal(text)
    except ArithmeticError:
        moment = dt.datetime.fromisoformat(text)
        assert epoch_us(moment) // 1000 == ms
        return epoch_us(moment)
    fraction = "." in text
    fitting = [us for unit in (0, 3, 6) if abs((us := int(number * 10**unit)) // 1000 - ms) <= fraction]
    assert len(fitting) == 1, (text, ms)
    return fitting[0]
