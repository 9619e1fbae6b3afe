"""Every exchange that has a mapping, through the deployed template: 20,000 trades each, against what was traded.

The simulator keeps each exchange's published limit, and so must the workers: no request may be refused.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest

from local.exchange_sim import build_world
from local.stack import Stack
from schemahub.mappings import exchanges
from schemahub.streams import Stream
from tests import generated_truth
from tests.integration.conftest import WORLD, Simulator
from tests.integration.test_end_to_end import ingest, ledger_of, table_rows

AT_LEAST = 20_000
IN_EVERY_RUN = ("bitfinex", "gemini")
"""One whose positions are times and one whose ids are sparse; the others belong to the long form."""


def exchange_params() -> list[object]:
    return [pytest.param(e, marks=() if e in IN_EVERY_RUN else pytest.mark.long) for e in exchanges()]


def assert_exactly_the_exchange(stack: Stack, stream: Stream) -> int:
    """The stream's rows are what the generator traded between the ends of the watermark; how many."""
    mark = ledger_of(stack).watermark(stream)
    assert mark is not None
    rows = sorted(table_rows(stack, stream), key=lambda row: (row[4], row[0]))
    assert rows == generated_truth.trades(build_world(WORLD), stream.exchange, stream.product, mark.low, mark.high)
    assert not rows or max(Counter(row[0] for row in rows).values()) == 1
    return len(rows)


def pull(stack: Stack, simulator: Simulator, streams: list[Stream]) -> None:
    closed = ingest(stack, *streams)
    assert (closed["streams"], closed["failed"]) == (len(streams), 0)
    assert simulator.stats()[streams[0].exchange]["rate_limited"] == 0


@pytest.mark.parametrize("exchange", [p for p in exchange_params() if p.values != ("bybit",)])  # type: ignore[attr-defined]
def test_twenty_thousand_trades_of_an_exchange(stack: Stack, simulator: Simulator, exchange: str) -> None:
    products = generated_truth.streams_of(build_world(WORLD), exchange)[:2]
    streams = [Stream(exchange, product) for product in products]
    pull(stack, simulator, streams)
    rows = sum(assert_exactly_the_exchange(stack, stream) for stream in streams)
    assert rows >= AT_LEAST
    pull(stack, simulator, streams)
    assert sum(assert_exactly_the_exchange(stack, stream) for stream in streams) > rows
    assert list(ledger_of(stack).pending()) == []


@pytest.mark.long
def test_twenty_thousand_trades_of_an_exchange_that_shows_sixty(stack: Stack, simulator: Simulator) -> None:
    """Polled before the window runs over: each poll begins where the one before it ended, and nothing is lost."""
    streams = [Stream("bybit", product) for product in generated_truth.streams_of(build_world(WORLD), "bybit")]
    every_s, polls = 55 * 2, -(-AT_LEAST // (55 * len(streams))) + 1
    simulator.control("POST", "/_sim/clock", {"offset_s": -(polls + 10) * every_s, "frozen": True})
    for _ in range(polls):
        pull(stack, simulator, streams)
        simulator.control("POST", "/_sim/clock", {"advance_s": every_s})
    assert sum(assert_exactly_the_exchange(stack, stream) for stream in streams) >= AT_LEAST
    lost = [a for stream in streams for s in ledger_of(stack).segments(stream) for a in s.absent]
    assert lost == [], json.dumps(lost)
