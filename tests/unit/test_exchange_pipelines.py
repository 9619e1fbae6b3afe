"""Every exchange that has a mapping, from its simulator to rows of the table, in one process.

The judge is ``tests.oracle``, which knows what was traded and nothing of mappings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pytest

from local.exchange_sim.server import Server, running
from schemahub import certificate, publishing, query
from schemahub.audit import audit, recheck
from schemahub.certificate import SignOff
from schemahub.lake import Lake, lake_of
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


def copies(pipe: Pipeline) -> list[str]:
    """The table's data files on this machine."""
    deps, files = pipe.world.deps, []
    for task in publishing.open_table(deps).scan().plan_files():
        path = pipe.folder / task.file.file_path.rsplit("/", 1)[-1]
        assert deps.objects.get_to_file(task.file.file_path.removeprefix(f"s3://{deps.settings.bucket}/"), path)
        files.append(str(path))
    return files


def lake(pipe: Pipeline) -> Lake:
    """The table as ``verify`` finds it, read from copies."""
    files = copies(pipe)
    return replace(lake_of(pipe.world.deps), connect=lambda: query.open_files(files))


def table(pipe: Pipeline, stream: Stream) -> list[oracle.Trade]:
    """The stream's rows in the table, by time and id."""
    return duckdb.execute(
        "SELECT CAST(trade_id AS BIGINT) AS id, side, price, quantity, epoch_us(trade_ts) AS us FROM read_parquet(?) "
        "WHERE exchange = ? AND symbol = ? ORDER BY us, id",
        [copies(pipe), stream.exchange.upper(), stream.product],
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


def signed(pipe: Pipeline, stream: Stream, deep: bool) -> list[Any]:
    """What ``verify`` finds of the stream and of the table; a whole stream's certificate is stored."""
    deps, sign_off = pipe.world.deps, SignOff("me", pipe.clock.now_ms(), "test", deep)
    verdicts = list(audit(deps, lambda: lake(pipe), [stream], deep=deep, sign_off=sign_off))
    for verdict in verdicts:
        if verdict.document:
            assert certificate.store(deps.objects, verdict.document)
    return [f for v in verdicts for f in v.findings]


def test_verify_proves_it_and_its_certificate_is_enough(pipe: Pipeline, stream: Stream) -> None:
    pipe.run(stream)
    for deep in (False, True):
        assert signed(pipe, stream, deep) == []
    deps = pipe.world.deps
    chain = certificate.chain_of(deps.objects, stream)
    assert [c.document["number"] for c in chain] == [1, 2]
    rows, counts = len(table(pipe, stream)), chain[-1].document["counts"]
    assert counts["rows"] == counts["trades"] == rows
    pipe.later(600)
    pipe.run(stream)
    for deep in (False, True):
        verdict = recheck(lake(pipe), chain, deep=deep)
        assert (list(verdict.findings), verdict.rows) == ([], rows)
