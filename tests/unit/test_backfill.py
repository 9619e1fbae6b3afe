"""The steps of a backfill over a simulated exchange: exactly what is missing below the watermark, whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import backfill, coverage, errors, events, ingest, raw
from schemahub.clock import SystemClock
from schemahub.commit import Fenced
from schemahub.commit_below import commit_islands
from schemahub.streams import Interval, Stream, covers, overlapping
from tests import generated_truth as truth
from tests.unit.backfills import Backfill, task
from tests.unit.worlds import STREAM, World, make_world

KRAKEN, GEMINI, OKX = Stream("kraken", "BTC-USD"), Stream("gemini", "BTC-USD"), Stream("okx", "BTC-USDT")
NAMES = ("coinbase", "kraken", "gemini", "okx", "bybit", "binance", "bitfinex")
FAST = {"latency_ms": {"mean": 0, "jitter": 0}, **{name: {"limit": "none"} for name in NAMES}}


class Hurried(SystemClock):
    """The real time, without the waiting: slots and second looks cost nothing here."""

    def sleep(self, seconds: float) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server) -> World:
    return make_world(aws, server.url, Hurried(), cold_start_trades=2_000)


def low_of(world: World, stream: Stream = STREAM) -> int:
    return coverage.watermark(world.deps.ledger, stream).low


def test_smoke(world: World) -> None:
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 25_000, low - 1]})
    print(run.plan())
    out = run.through()
    print(out, json.dumps(run.report(), indent=1))
    assert low_of(world) == low - 25_000
