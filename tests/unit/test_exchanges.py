"""Talking to an exchange: the exact text of each row, a name for each refusal, a bound on each answer."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from schemahub.answers import parse_rows
from schemahub.errors import (
    BadMapping,
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    MalformedResponse,
    RateLimited,
    UnknownProduct,
)
from schemahub.exchanges import Answer, Exchange, retry_after_s
from schemahub.mappings import Mapping, load_mapping
from schemahub.streams import Stream

COINBASE, BINANCE = load_mapping("coinbase"), load_mapping("binance")
BTC = Stream("coinbase", "BTC-USD")


class Canned:
    """An exchange that gives one answer to everything, and remembers what it was asked."""

    def __init__(self, body: bytes | str = b"[]", status: int = 200, **headers: str) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.answer = Answer(status, {k.replace("_", "-"): v for k, v in headers.items()}, content)
        self.asked: list[tuple[str, dict[str, str]]] = []

    def get(self, url: str, params: dict[str, str]) -> Answer:
        self.asked.append((url, params))
        return self.answer


def below(pointer: str, mapping: Mapping = COINBASE) -> Mapping:
    """The mapping of an exchange that wraps its list of trades."""
    return dataclasses.replace(mapping, requests=dataclasses.replace(mapping.requests, rows=pointer))


def texts(body: str, mapping: Mapping = COINBASE) -> list[str]:
    return [row.text for row in parse_rows(body.encode(), mapping)]


# --- the text of a row ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"trade_id":7,"price":1.10}',
        '{"trade_id":7,"price":"1e-8"}',
        '{"trade_id":7,"price":1E-8,"size":0.10000000}',
        '{"trade_id": 7, "note": "Zürich \u2028 \U0001f600 \\u00fc"}',
        '{"price":123456789012345678901234567890.10,"trade_id":7}',
        '{"trade_id":"7","time":"2024-01-01T00:00:00.123456Z"}',
        '{"trade_id":7,"x":[1,{"y":"]}"}]}',
        '{"trade_id":7,"price":1.0,"price":2.00}',
        '{"trade_id":7,"s":"a\\nb\\"},{"}',
    ],
)
def test_a_row_keeps_its_exact_text(text: str) -> None:
    assert texts(f"[{text}]") == [text]
    assert texts(f" [ {text} ,\n{text}\t]\r\n") == [text, text]
    wrapped = f'{{"next": {{"a": "result"}}, "result": {{"x": 1, "trades": [{text}]}}}}'
    assert texts(wrapped, below("/result/trades")) == [text]


def test_pretty_printed_json_becomes_one_line_a_row_and_stays_the_same_json() -> None:
    trades = [{"trade_id": i, "price": "1.10", "more": {"a": [1, 2]}} for i in (9, 8)]
    for newline in ("\n", "\r\n"):
        body = json.dumps(trades, indent=2).replace("\n", newline)
        assert all("\n" not in t and "\r" not in t for t in texts(body))
        assert [json.loads(t) for t in texts(body)] == trades


def test_a_byte_order_mark_is_not_part_of_the_first_row() -> None:
    assert parse_rows(b'\xef\xbb\xbf[{"trade_id":7}]', COINBASE)[0].text == '{"trade_id":7}'


def test_an_empty_list_is_an_answer_of_no_rows() -> None:
    assert parse_rows(b" [ ] ", COINBASE) == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "null",
        "7",
        '"x"',
        "{}",
        '{"message":"try again"}',
        '{"trade_id":7}',
        "<!DOCTYPE html><html></html>",
        "[",
        '[{"trade_id":7}',
        '[{"trade_id":7},',
        '[{"trade_id":7},]',
        '[{"trade_id":7}]]',
        '[{"trade_id":7}] x',
        "[,]",
        "[7]",
        "[null]",
        "[[7]]",
        '[{"trade_id":7} {"trade_id":8}]',
        '[{"trade_id":7,"price":NaN}]',
        '[{"trade_id":7,"p":Infinity}]',
        '[{"trade_id":7,"p":-Infinity}]',
        "[{'trade_id':7}]",
        '[{"trade_id":7,"s":"a\nb"}]',
        "[" * 100_000,
        '[{"trade_id":' + "9" * 5000 + "}]",
        '[{"price":1}]',
    ],
    ids=lambda b: repr(b[:40]),
)
def test_what_is_no_list_of_trades_is_malformed(body: str) -> None:
    with pytest.raises(MalformedResponse):
        parse_rows(body.encode(), COINBASE)


def test_bytes_that_are_not_utf_8_are_malformed() -> None:
    with pytest.raises(MalformedResponse, match="UTF-8"):
        parse_rows('[{"trade_id":7,"x":"ü"}]'.encode("latin-1"), COINBASE)


@pytest.mark.parametrize(
    "body",
    [
        '[{"trade_id":7}]',
        '{"result":[]}',
        '{"result":null}',
        '{"result":{"trades":{}}}',
        '{"result":{"trades":[{"trade_id":7}]',
        '{"result":{"trades":[]},"x":NaN}',
    ],
)
def test_a_pointer_that_leads_nowhere_is_malformed(body: str) -> None:
    with pytest.raises(MalformedResponse):
        parse_rows(body.encode(), below("/result/trades"))


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "1.0",
        "1e3",
        "9223372036854775808",
        "null",
        "true",
        '"x"',
        '"-1"',
        '"01"',
        '"1e3"',
        '" 7"',
        '"00"',
        '"9223372036854775808"',
        '"\\u0661"',
        '"1\\u0662"',
        "[7]",
    ],
)
def test_an_id_that_is_no_63_bit_integer_is_malformed(value: str) -> None:
    with pytest.raises(MalformedResponse, match="trade id"):
        parse_rows(f'[{{"trade_id":{value}}}]'.encode(), COINBASE)


def test_ids_as_numbers_and_as_text_are_the_same_position() -> None:
    rows = parse_rows(b'[{"trade_id":9223372036854775807},{"trade_id":"12"},{"trade_id":0},{"trade_id":"0"}]', COINBASE)
    assert [r.position for r in rows] == [2**63 - 1, 12, 0, 0]


@pytest.mark.parametrize(
    ("mapping", "value", "expected"),
    [
        (COINBASE, '"2024-01-01T00:00:00.123456Z"', 1_704_067_200_123_456),
        (COINBASE, '"2024-01-01T01:00:00+01:00"', 1_704_067_200_000_000),
        (COINBASE, '"2024-01-01T00:00:00"', 1_704_067_200_000_000),
        (COINBASE, '"yesterday"', None),
        (COINBASE, "null", None),
        (COINBASE, "7", None),
        (BINANCE, "1704067200123", 1_704_067_200_123_000),
        (BINANCE, '"x"', None),
        (BINANCE, "null", None),
        (BINANCE, "1e400", None),
        (BINANCE, '"1e999999999999"', None),
        (BINANCE, '"NaN"', None),
        (BINANCE, "1704067200123.9", 1_704_067_200_123_900),
    ],
)
def test_a_time_is_read_for_planning_or_left_open(mapping: Mapping, value: str, expected: int | None) -> None:
    body = f'[{{"{mapping.fields.trade_id}":7,"{mapping.fields.trade_ts}":{value}}}]'
    assert parse_rows(body.encode(), mapping)[0].ts_us == expected


# --- requests ------------------------------------------------------------------------------------------------------


def test_a_descending_exchange_is_asked_from_above_an_ascending_one_from_below() -> None:
    http = Canned()
    Exchange(COINBASE, http).page(BTC, 100, 349)
    Exchange(BINANCE, http).page(Stream("binance", "BTC-USDT"), 100, 9_999)
    Exchange(COINBASE, http).newest(BTC)
    assert http.asked == [
        ("https://api.exchange.coinbase.com/products/BTC-USD/trades", {"after": "350", "limit": "250"}),
        ("https://api.binance.com/api/v3/aggTrades", {"symbol": "BTCUSDT", "fromId": "100", "limit": "1000"}),
        ("https://api.exchange.coinbase.com/products/BTC-USD/trades", {"limit": "1000"}),
    ]


def test_an_endpoint_must_be_http() -> None:
    with pytest.raises(BadMapping):
        Exchange(COINBASE, Canned(), "file:///etc/passwd")


def test_products_are_listed_in_our_spelling_and_odd_names_left_out() -> None:
    body = json.dumps(
        {
            "symbols": [
                {"symbol": "BTCUSDT", "baseAsset": "BTC", "quoteAsset": "USDT", "status": "TRADING"},
                {"symbol": "ABREAK", "baseAsset": "A", "quoteAsset": "BREAK", "status": "BREAK"},
                {"symbol": "币USDT", "baseAsset": "币", "quoteAsset": "USDT", "status": "TRADING"},
            ]
        }
    )
    listed = Exchange(BINANCE, Canned(body)).products()
    assert [(p.product, p.online) for p in listed] == [("A-BREAK", False), ("BTC-USDT", True)]
    assert listed[1].symbol == "BTCUSDT"


def test_a_disabled_product_is_not_online() -> None:
    base = {"id": "BTC-USD", "base_currency": "BTC", "quote_currency": "USD", "status": "online"}
    for row, online in ((base, True), (base | {"trading_disabled": True}, False)):
        assert [p.online for p in Exchange(COINBASE, Canned(json.dumps([row]))).products()] == [online]


def test_a_product_under_a_symbol_that_we_would_not_ask_by_is_left_out() -> None:
    market = {"id": "BTC-USD", "base_currency": "BTC", "quote_currency": "USD", "status": "online"}
    rows = [market | {"id": "BTCAUCTION-USD"}, market]
    listed = Exchange(COINBASE, Canned(json.dumps(rows))).products()
    assert [(p.product, p.symbol) for p in listed] == [("BTC-USD", "BTC-USD")]


def test_a_product_that_the_exchange_calls_delisted_is_known_as_such() -> None:
    base = {"id": "REP-USD", "base_currency": "REP", "quote_currency": "USD"}
    for status, delisted in (("online", False), ("offline", False), ("delisted", True)):
        assert [p.delisted for p in Exchange(COINBASE, Canned(json.dumps([base | {"status": status}]))).products()] == [
            delisted
        ]


@pytest.mark.parametrize(
    ("exchange", "body"),
    [
        *(
            ("binance", body)
            for body in ("{}", "[7]", '{"symbols":{}}', "x", '{"symbols":[NaN]}', '{"symbols":["BTC"]}')
        ),
        ("coinbase", '["BTC-USD"]'),
        ("coinbase", '[["BTC","USD"]]'),
        ("coinbase", '{"BTC-USD":{"id":"BTC-USD","base_currency":"BTC","quote_currency":"USD"}}'),
        ("gemini", '{"btcusd":"btcusd"}'),
        ("gemini", '[{"symbol":"btcusd"}]'),
        ("kraken", '{"error":[],"result":[{"altname":"XBTUSD","wsname":"XBT/USD"}]}'),
        ("kraken", '{"error":[],"result":{"XXBTZUSD":"XBT/USD"}}'),
        ("bitfinex", '["BTCUSD"]'),
        ("bitfinex", '[{"BTCUSD":"BTCUSD"}]'),
    ],
)
def test_a_product_list_of_another_shape_than_the_examples_is_malformed(exchange: str, body: str) -> None:
    with pytest.raises(MalformedResponse):
        Exchange(load_mapping(exchange), Canned(body)).products()


def test_an_example_that_shows_no_list_of_products_is_the_mappings_fault() -> None:
    spec = dataclasses.replace(COINBASE.products, example="{")
    with pytest.raises(BadMapping, match="products/example"):
        Exchange(dataclasses.replace(COINBASE, products=spec), Canned("[]")).products()


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, ExchangeUnavailable),
        (502, ExchangeUnavailable),
        (503, ExchangeUnavailable),
        (504, ExchangeUnavailable),
        (520, ExchangeUnavailable),
        (408, ExchangeUnavailable),
        (429, RateLimited),
        (400, ExchangeRefused),
        (401, ExchangeRefused),
        (403, ExchangeRefused),
        (451, ExchangeRefused),
        (404, ExchangeRefused),
        (301, ExchangeRefused),
        (302, ExchangeRefused),
        (204, ExchangeRefused),
        (206, ExchangeRefused),
    ],
)
def test_a_status_is_an_error_with_a_name_and_the_stream(status: int, error: type[ExchangeError]) -> None:
    with pytest.raises(error) as caught:
        Exchange(COINBASE, Canned("{}", status)).page(BTC, 1, 9)
    assert type(caught.value) is error
    assert "coinbase#BTC-USD#trades" in str(caught.value)


@pytest.mark.parametrize("said", ["NotFound", "Product not found"])
def test_a_404_is_an_unknown_product_only_with_the_words_for_it(said: str) -> None:
    """A 404 of a proxy or of a moved path is no delisting."""
    with pytest.raises(UnknownProduct):
        Exchange(COINBASE, Canned(json.dumps({"message": said}), 404)).newest(BTC)
    for other in ('{"message":"no route"}', "{}", "[]", "<html>", f'{{"message":["{said}",', '{"message":null}'):
        with pytest.raises(ExchangeRefused):
            Exchange(COINBASE, Canned(other, 404)).newest(BTC)


def test_a_good_status_with_words_that_the_mapping_does_not_know_is_no_good_answer() -> None:
    with pytest.raises(MalformedResponse, match="status 200, try again later, which the mapping does not know"):
        Exchange(COINBASE, Canned('{"message":"try again later"}')).newest(BTC)


def test_binances_own_statuses() -> None:
    stream = Stream("binance", "BTC-USDT")
    with pytest.raises(RateLimited) as banned:
        Exchange(BINANCE, Canned("{}", 418, retry_after="120")).newest(stream)
    assert banned.value.retry_after_s == 120
    with pytest.raises(UnknownProduct):
        Exchange(BINANCE, Canned('{"code":-1121,"msg":"Invalid symbol."}', 400)).newest(stream)
    for other in ('{"code":-1100,"msg":"Illegal characters"}', "[]", "x", '{"msg":1}', "null"):
        with pytest.raises(ExchangeRefused):
            Exchange(BINANCE, Canned(other, 400)).newest(stream)


def test_a_404_of_the_product_list_is_no_unknown_product() -> None:
    with pytest.raises(ExchangeRefused):
        Exchange(COINBASE, Canned("{}", 404)).products()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("Sat, 01 Jan 2022 00:00:30 GMT", 30.0),
        ("Fri, 31 Dec 2021 23:59:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e3", None),
        ("inf", None),
        ("nan", None),
        ("٣", None),
        ("9" * 400, None),
        ("Sat, 99 Jan 2022 00:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_a_date_or_unknown(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, now=datetime(2022, 1, 1, tzinfo=UTC)) == expected


def test_a_malformed_answer_says_what_came_instead() -> None:
    with pytest.raises(MalformedResponse, match="status 200, text/html"):
        Exchange(COINBASE, Canned("<html>", content_type="text/html")).newest(BTC)
