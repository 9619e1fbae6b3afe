"""Talking to an exchange over a socket: sick answers of the simulator by name, bounds on size and patience."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from local.exchange_sim.server import Server, running
from schemahub import exchanges as exchanges_module
from schemahub.answers import Row
from schemahub.errors import (
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    MalformedResponse,
    RateLimited,
    ResponseInterrupted,
    UnknownProduct,
)
from schemahub.exchanges import Exchange, RequestsHttp
from schemahub.mappings import load_mapping
from schemahub.streams import Stream

COINBASE, BINANCE = load_mapping("coinbase"), load_mapping("binance")
BTC = Stream("coinbase", "BTC-USD")
FAST = {"latency_ms": {"mean": 0, "jitter": 0}, "coinbase": {"limit": "none"}, "binance": {"limit": "none"}}


@pytest.fixture(scope="module")
def sim() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def exchange(sim: Server) -> Exchange:
    sim.simulator.faults.clear()
    return Exchange(COINBASE, RequestsHttp(), f"{sim.url}/coinbase")


def spoil(sim: Server, kind: str, **args: Any) -> None:
    sim.simulator.faults.add([{"kind": kind, "exchange": "coinbase", **args}], sim.simulator.clock.now_us())


def test_a_true_page_comes_as_asked(exchange: Exchange) -> None:
    head = max(r.position for r in exchange.newest(BTC))
    rows = exchange.page(BTC, head - 99, head)
    assert [r.position for r in rows] == list(range(head, head - 100, -1))
    assert all(isinstance(r, Row) and r.ts_us for r in rows)


@pytest.mark.parametrize(
    ("kind", "args", "error"),
    [
        ("gzip_bomb", {"megabytes": 60}, MalformedResponse),
        ("redirect", {}, ExchangeRefused),
        ("reset", {}, ResponseInterrupted),
        ("reset", {"how": "close"}, ResponseInterrupted),
        ("truncated_json", {}, MalformedResponse),
        ("html_200", {}, MalformedResponse),
        ("empty_body", {}, MalformedResponse),
        ("object_200", {}, MalformedResponse),
        ("nan", {}, MalformedResponse),
        ("http_status", {"status": 503}, ExchangeUnavailable),
        ("http_status", {"status": 429, "retry_after": "7"}, RateLimited),
        ("set_field", {"field": "id", "value": 1.5}, MalformedResponse),
    ],
    ids=lambda v: str(v)[:30],
)
def test_a_sick_answer_has_a_name(
    sim: Server, exchange: Exchange, kind: str, args: dict[str, Any], error: type[ExchangeError]
) -> None:
    spoil(sim, kind, **args)
    with pytest.raises(error) as caught:
        exchange.newest(BTC)
    assert type(caught.value) is error
    assert "coinbase#BTC-USD#trades" in str(caught.value)
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after_s == 7


def test_a_byte_order_mark_on_the_wire_is_tolerated(sim: Server, exchange: Exchange) -> None:
    spoil(sim, "bom")
    assert exchange.newest(BTC)


def test_a_redirect_is_not_followed(sim: Server, exchange: Exchange) -> None:
    spoil(sim, "redirect", location=f"{sim.url}/coinbase/products/ETH-USD/trades")
    with pytest.raises(ExchangeRefused, match="not followed"):
        exchange.newest(BTC)


def test_a_body_beyond_the_bound_is_not_read_to_its_end(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges_module, "MAX_BODY_BYTES", 10_000)
    with pytest.raises(MalformedResponse, match="larger than"):
        exchange.newest(BTC)


def test_silence_is_unavailability(sim: Server, exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges_module, "READ_TIMEOUT_S", 0.2)
    spoil(sim, "hang", seconds=0.6)
    with pytest.raises(ExchangeUnavailable, match="no answer"):
        exchange.newest(BTC)


def test_nobody_listening_is_unavailability() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ExchangeUnavailable, match="coinbase#BTC-USD#trades"):
        Exchange(COINBASE, RequestsHttp(), f"http://127.0.0.1:{port}").newest(BTC)


def test_unknown_products_are_named_on_both_exchanges(sim: Server, exchange: Exchange) -> None:
    with pytest.raises(UnknownProduct):
        exchange.newest(Stream("coinbase", "NOPE-USD"))
    with pytest.raises(UnknownProduct):
        Exchange(BINANCE, RequestsHttp(), f"{sim.url}/binance").newest(Stream("binance", "NOPE-USDT"))
