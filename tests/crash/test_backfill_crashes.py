"""A backfill dies before or after each of its writes; run again, as itself or as another, it ends complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import backfill, coverage
from schemahub.streams import covers, overlapping
from tests.crash.test_repair_crashes import LEASES_ARE_OVER_S, WRITES, Killed, Reaper
from tests.lake import make_glue_check_versions
from tests.unit.backfills import Backfill
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM

TRADES = 2_000
"""Of each run, from a thousand to a thousand: two chunks, so that all runs have the same writes."""


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    make_glue_check_versions(monkeypatch)
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 1_000)
    with running(FAST) as server:
        yield make_pipeline(aws, server, tmp_path, cold_start_trades=600)


@pytest.mark.parametrize("mode", ["before", "after"])
@pytest.mark.parametrize("route", ["ecs", pytest.param("lambda", marks=pytest.mark.long)])
def test_killed_at_every_write_the_next_run_fills_in_the_rest(pipeline: Pipeline, route: str, mode: str) -> None:
    pipeline.ingest()
    deps = pipeline.world.deps
    deps.settings = replace(deps.settings, backfill_ecs=True)
    low = coverage.watermark(deps.ledger, STREAM).low
    Backfill.start(pipeline.world, {"ids": [low // 1_000 * 1_000, low - 1]}, route="lambda").through()
    high = coverage.watermark(deps.ledger, STREAM).high
    reaper, struck = Reaper(pipeline), Counter[str]()
    for write in WRITES:
        for at in range(1, 80):
            low = coverage.watermark(deps.ledger, STREAM).low
            assert low % 1_000 == 0
            wanted = {"ids": [low - TRADES, low - 1]}
            run = Backfill.start(pipeline.world, wanted, route=route)
            reaper.arm(at, mode, write)
            try:
                run.through()
            except Killed:
                struck[write] += 1
            reaper.arm(0, mode)
            sound(pipeline, high)
            if struck[write] < at:
                break  # it came to its end without being struck
            if at % 2:
                # Redriven: the same execution, with whatever lease it had.
                assert run.through()["failed"] == 0
            else:
                pipeline.clock.ahead_s += LEASES_ARE_OVER_S
                assert Backfill.start(pipeline.world, wanted, route=route).through()["failed"] == 0
            assert coverage.watermark(deps.ledger, STREAM).low == low - TRADES
            assert coverage.missing(deps.ledger, STREAM, coverage.covered(deps.ledger, STREAM)[0]) == []
            sound(pipeline, high)
        else:
            raise AssertionError(f"a run never came to its end: {struck}")
    assert set(struck) == set(WRITES)
    assert struck["TransactWriteItems"] >= (3 if route == "ecs" else 2), "each commit and the fall of the watermark"
    pipeline.transform()
    pipeline.assert_exact(least=10_000)


def sound(pipeline: Pipeline, high: int) -> None:
    ledger = pipeline.world.deps.ledger
    spans = [s.interval for s in ledger.segments(STREAM)]
    mark = coverage.watermark(ledger, STREAM)
    assert not overlapping(spans)
    assert covers(spans, (mark.low, mark.high))
    assert mark.high == high
