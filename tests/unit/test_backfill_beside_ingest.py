"""An ingest and the tasks of a backfill work on one stream at the same time, in threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient

from local.exchange_sim.server import running
from schemahub import backfill, backfill_plan, coverage
from schemahub.commit_below import lower
from schemahub.streams import covers, overlapping
from tests.lake import make_glue_check_versions
from tests.unit.backfills import Backfill, task
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM

TASKS = 4


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    make_glue_check_versions(monkeypatch)
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 1_000)
    # AWS does one call after the other to an item; moto does them in the thread that asks.
    one_at_a_time, call = threading.Lock(), BaseClient._make_api_call

    def guarded(self: Any, *arguments: Any) -> Any:
        with one_at_a_time:
            answer = call(self, *arguments)
        time.sleep(0.001)  # somebody else's turn
        return answer

    with running(FAST) as server:
        made = make_pipeline(aws, server, tmp_path, cold_start_trades=600)
        monkeypatch.setattr(BaseClient, "_make_api_call", guarded)
        yield made


def test_both_end_with_exactly_the_exchanges_trades(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_plan, "TASK_S", 0.01)
    pipeline.ingest()
    deps = pipeline.world.deps
    deps.settings = replace(deps.settings, backfill_ecs=True, backfill_tasks=TASKS)
    before = coverage.watermark(deps.ledger, STREAM)
    run = Backfill.start(pipeline.world, {"ids": [before.low - 20_000, before.low - 1]}, route="ecs")
    plan = run.plan()
    specs = run.specs(plan)
    assert len(specs) >= TASKS
    working = threading.Event()
    working.set()

    def ingest() -> int:
        runs = 0
        while working.is_set() or runs < 3:
            pipeline.later(1_200)
            pipeline.ingest()
            runs += 1
        return runs

    def fall() -> list[int]:
        lows = []
        while working.is_set():
            lows.append(lower(deps.ledger, deps.locks, specs[0].lease, STREAM, deps.clock))
        return lows

    with ThreadPoolExecutor(TASKS + 2) as pool:
        beside: list[Callable[[], Any]] = [ingest, fall]
        others = [pool.submit(act) for act in beside]
        tasks = [pool.submit(task, deps, spec, deps.clock) for spec in specs]
        try:
            for one in tasks:
                one.result(timeout=200)
        finally:
            working.clear()
        runs, lows = (one.result(timeout=200) for one in others)
    assert run.commit(plan, final=True)["status"] == "covered"
    run.release()
    assert run.close()["status"] == "done"
    after = coverage.watermark(deps.ledger, STREAM)
    assert runs >= 3
    assert after.high > before.high
    assert after.low == before.low - 20_000
    assert all(b <= a for a, b in itertools.pairwise(lows)), "low only falls"
    spans = [s.interval for s in deps.ledger.segments(STREAM)]
    assert not overlapping(spans)
    assert covers(spans, (after.low, after.high))
    assert deps.ledger.islands(STREAM) >= len(specs)
    pipeline.transform()
    pipeline.assert_exact(least=20_000)
