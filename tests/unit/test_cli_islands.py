"""``gaps``, ``status`` and the run's proof over a stream with islands below its watermark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from typer.testing import CliRunner

from local.exchange_sim.server import running
from schemahub import backfill, coverage
from schemahub_cli import state, target
from schemahub_cli.commands.status import _notes
from schemahub_cli.main import app
from tests.unit.backfills import Backfill
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.worlds import STREAM

RUNNER = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """An island of 1,000 trades, 2,000 below the watermark."""
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 1_000)
    with running(FAST) as server:
        made = make_pipeline(aws, server, tmp_path, cold_start_trades=600)
        made.ingest()
        low = coverage.watermark(made.world.deps.ledger, STREAM).low
        Backfill.start(made.world, {"ids": [low - 3_000, low - 2_001]}).through()
        where = SimpleNamespace(deps=made.world.deps, stack="schemahub-test", where="schemahub-test", local=True)
        monkeypatch.setattr(target, "resolve", lambda name: where)
        yield made


def test_what_is_not_fetched_yet_is_listed_apart_from_the_holes(pipeline: Pipeline) -> None:
    low = coverage.watermark(pipeline.world.deps.ledger, STREAM).low
    result = RUNNER.invoke(app, ["gaps", "--stream", "coinbase:BTC-USD", "--json"])
    assert result.exit_code == 0, result.output
    [stream] = json.loads(result.stdout)["streams"]
    assert (stream["missing_ids"], stream["gaps"]) == (0, [])
    assert stream["not_fetched_yet"] == [[low - 2_000, low - 1]]
    shown = RUNNER.invoke(app, ["gaps", "--stream", "coinbase:BTC-USD"])
    assert shown.exit_code == 0
    assert f"{low - 2_000} … {low - 1} is not fetched yet" in shown.output
    assert "no hole is open" in shown.output


def test_status_says_where_islands_begin_and_who_fills_in(pipeline: Pipeline) -> None:
    low = coverage.watermark(pipeline.world.deps.ledger, STREAM).low
    run = Backfill.start(pipeline.world, {"ids": [low - 2_000, low - 1]})
    [found] = [s for s in state.streams(pipeline.world.deps, heads=False) if s.stream == STREAM]
    assert (found.low, found.lowest, found.lock, found.backfill) == (low, low - 3_000, None, run.run["arn"])
    assert {"lowest": low - 3_000, "backfill": run.run["arn"]}.items() <= found.to_json().items()
    shown = "\n".join(_notes([found]))
    assert f"islands from {low - 3_000}, whole from {low}" in shown
    assert f"backfill by {run.run['id']}: coinbase BTC-USD" in shown
    run.through()
    [after] = [s for s in state.streams(pipeline.world.deps, heads=False) if s.stream == STREAM]
    assert (after.low, after.lowest, after.backfill) == (low - 3_000, low - 3_000, None)
