"""Every exchange that has a mapping, from its simulator to rows of the table, in one process.

The judge is ``tests.oracle``, which knows what was traded and nothing of mappings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pytest

from local.exchange_sim.server import Server, running
from schemahub import publishing
from schemahub.mappings import exchanges, load_mapping
from schemahub.streams import Stream, covers, overlapping
from tests import oracle
from tests.unit.pipelines import Pipeline, make_pipeline

QUIET = {"limit": "none", "trades_per_day": 4_000}
WORLD = {"latency_ms": {"mean": 0, "jitter": 0}, **dict.fromkeys(exchanges(), QUIET)}
NEWEST = sorted(e for e in exchanges() if load_mapping(e).requests.page.asks == "newest")
POLL_S = {"bybit": 600.0}
"""How long a run may wait for the next one before trades are lost: 60 trades are 1,296 s at 4,000 a day."""


@pytest.fixture
def server() -> Iterator[Server]:
    with running(WORLD) as server:
        yield server


@pytest.fixture
def pipe(aws: boto3.Session, server: Server, tmp_path: Path) -> Pipeline:
    return make_pipeline(aws, server, tmp_path)


@pytest.fixture(params=exchanges())
def stream(request: Any, server: Server) -> Stream:
    return Stream(request.param, oracle.streams_of(server.simulator.world, request.param)[0])


def table(pipe: Pipeline, stream: Stream) -> list[oracle.Trade]:
    """The stream's rows in the table, by time and id."""
    deps, files = pipe.world.deps, []
    for task in publishing.open_table(deps).scan().plan_files():
        path = pipe.folder / f"{len(files)}.parquet"
        assert deps.objects.get_to_file(task.file.file_path.removeprefix(f"s3://{deps.settings.bucket}/"), path)
        files.append(str(path))
    return duckdb.execute(
        "SELECT CAST(trade_id AS BIGINT) AS id, side, price, quantity, epoch_us(trade_ts) AS us FROM read_parquet(?) "
        "WHERE exchange = ? AND symbol = ? ORDER BY us, id",
        [files, stream.exchange.upper(), stream.product],
    ).fetchall()


def assert_exact(pipe: Pipeline, stream: Stream, least: int) -> int:
    """The table is the exchange between the ends of the watermark, which the segments tile; how many rows."""
    ledger = pipe.world.deps.ledger
    mark, segments = ledger.watermark(stream), [s.interval for s in ledger.segments(stream)]
    assert mark is not None
    assert not overlapping(segments)
    assert covers(segments, (mark.low, mark.high))
    rows = table(pipe, stream)
    assert rows == oracle.trades(pipe.server.simulator.world, stream.exchange, stream.product, mark.low, mark.high)
    assert len(rows) >= least
    assert max(Counter(row[0] for row in rows).values()) == 1
    assert list(ledger.pending()) == []
    return len(rows)


def least_of(stream: Stream) -> int:
    return 40 if stream.exchange == "bybit" else 1_000


def test_a_first_and_a_second_run_hold_what_was_traded(pipe: Pipeline, stream: Stream) -> None:
    pipe.run(stream)
    before = assert_exact(pipe, stream, least_of(stream))
    pipe.later(POLL_S.get(stream.exchange, 3600.0))
    pipe.run(stream)
    after = assert_exact(pipe, stream, least_of(stream))
    assert after - before >= (25 if stream.exchange == "bybit" else 150)
    assert not [a for s in pipe.world.deps.ledger.segments(stream) for a in s.absent]
    assert pipe.run(stream) is None
    assert_exact(pipe, stream, after)
