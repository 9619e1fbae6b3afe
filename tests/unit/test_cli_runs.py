"""What a run says at its end, and ``status`` between two: what came, what failed and why, until when there is data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from local.exchange_sim.server import running
from schemahub.ledger import Trades
from schemahub.seed import SEED_KEY, Seed
from schemahub.streams import Stream
from schemahub_cli import executions, schedules, state, target
from schemahub_cli.commands import status as status_command
from schemahub_cli.executions import Execution
from schemahub_cli.main import app
from schemahub_cli.outcome import Brought, brought
from schemahub_cli.schedules import Schedule
from tests.lake import make_glue_check_versions
from tests.unit.pipelines import FAST, Pipeline, make_pipeline
from tests.unit.test_cli import INGEST, START, FakeObjects, FakeStates, document, objects, stack, states
from tests.unit.test_cli_replay import BTC, ETH, SOL
from tests.unit.test_cli_replay import World as Failed
from tests.unit.worlds import STREAM

__all__ = ["objects", "stack", "states"]  # fixtures of test_cli
RUNNER = CliRunner(env={"COLUMNS": "200"})
NARROW = CliRunner(env={"COLUMNS": "80"})


@pytest.fixture
def pipeline(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    make_glue_check_versions(monkeypatch)
    with running(FAST) as server:
        made = make_pipeline(aws, server, tmp_path, cold_start_trades=600)
        where = SimpleNamespace(
            deps=made.world.deps, stack="schemahub-test", where="schemahub-test (local)", local=True,
            ingest_arn=INGEST, transform_arn="arn:t", client=lambda service: FakeStates(),
        )  # fmt: skip
        monkeypatch.setattr(target, "resolve", lambda name: where)
        monkeypatch.setattr(executions, "find_running", lambda where, arn: None)
        monkeypatch.setattr(schedules, "schedule_of", lambda where, arn: None)
        yield made


def execution(name: str, **fields: Any) -> Execution:
    at = datetime.now(UTC)
    return Execution(f"arn:aws:states:us-east-1:1:execution:ingest:{name}", "SUCCEEDED", at, at, **fields)


# --- what came --------------------------------------------------------------------------------------------------------


def test_a_run_brings_the_trades_that_it_committed_from_the_oldest_to_the_newest(pipeline: Pipeline) -> None:
    pipeline.ingest()
    deps = pipeline.world.deps
    [segment, *_] = deps.ledger.newest_segments(STREAM)
    came = brought(deps, execution(segment.run_id), [STREAM, ETH])
    rows = [json.loads(line) for s in deps.ledger.segments(STREAM) for line in pipeline_lines(pipeline, s)]
    at = sorted(datetime.fromisoformat(row["time"].replace("Z", "+00:00")) for row in rows)
    assert (came.streams, came.trades, came.up_to_date) == (1, len(rows), 1)
    assert came.first_us is not None
    assert came.last_us is not None
    assert abs(came.first_us / 1e6 - at[0].timestamp()) < 1e-3
    assert abs(came.last_us / 1e6 - at[-1].timestamp()) < 1e-3
    assert f"{len(rows):,} trades" in came.line
    assert brought(deps, execution("another"), [STREAM]).trades == 0


def pipeline_lines(pipeline: Pipeline, segment: Any) -> list[bytes]:
    from schemahub import raw

    return raw.read(pipeline.world.deps.objects, segment.raw_key, segment.sha256, segment.count).splitlines()


def test_an_original_that_is_gone_does_not_spoil_the_end_of_a_run(pipeline: Pipeline) -> None:
    pipeline.ingest()
    deps = pipeline.world.deps
    segments = list(deps.ledger.newest_segments(STREAM))
    deps.objects.client.delete_object(Bucket=deps.objects.bucket, Key=segments[0].raw_key)
    came = brought(deps, execution(segments[0].run_id), [STREAM])
    assert came.trades == sum(s.count for s in segments)


def test_a_run_ends_with_what_it_brought_and_the_next_command(
    stack: SimpleNamespace, objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(json.dumps(s.to_json()) + "\n" for s in (BTC, ETH))
    monkeypatch.setattr(FakeObjects, "get", lambda self, key: self.held.get(key) or lines.encode())
    came = Brought(1, 1_234, 1, 1_795_000_000_000_000, 1_795_003_600_000_000)
    monkeypatch.setattr("schemahub_cli.outcome.brought", lambda deps, execution, streams: came)
    shown = " ".join(RUNNER.invoke(app, ["run"]).output.split())
    assert "done in 1:15 · brought 1,234 trades of 1 streams, 2026-11-18 11:06 to 2026-11-18 12:06 UTC" in shown
    assert 'next: schemahub query "SELECT exchange, symbol, count(*) AS trades FROM trades GROUP BY ALL"' in shown
    assert document(RUNNER.invoke(app, ["run", "--json"]))["brought"]["trades"] == 1_234


# --- what failed ------------------------------------------------------------------------------------------------------


@pytest.fixture
def failed(stack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Failed:
    """The run that the command has started ended with two streams undone."""
    made = Failed()
    arn = made.run("run-1", 0, {BTC: "ExchangeUnavailable", SOL: "UnknownProduct"}, good=(ETH,))
    stack.deps.objects = made.objects
    stack.deps.ledger.last_run = lambda *of: made.notes.get((of[0], of[1] if of[1:] else "run"))
    stack.client = lambda service: made.states
    monkeypatch.setattr(executions, "start", lambda where, machine, **keys: arn)
    monkeypatch.setattr(executions, "failed_children", lambda where, arn: 2)
    return made


@pytest.mark.parametrize("local", [True, False])
def test_a_failed_run_says_the_error_of_each_stream_and_what_to_do(
    stack: SimpleNamespace, failed: Failed, local: bool
) -> None:
    stack.local = local
    result = RUNNER.invoke(app, ["run"])
    assert result.exit_code == 1
    shown = " ".join(result.output.split())
    assert "ExchangeUnavailable coinbase BTC-USD [0..9] and 2 chunks more: chunk 0 broke" in shown
    assert "UnknownProduct binance SOL-USDT" in shown
    assert "status page" in shown
    assert "update-seed --dry-run" in shown
    assert ("then: schemahub replay --stack schemahub-test" in shown) is not local
    assert "then: schemahub replay" in shown
    assert "console" not in shown.lower()
    said = document(RUNNER.invoke(app, ["run", "--json"]))
    assert {(f["stream"]["product"], f["error"], f["permanent"]) for f in said["failed"]} == {
        ("BTC-USD", "ExchangeUnavailable", False), ("SOL-USDT", "UnknownProduct", True)}  # fmt: skip


def test_errors_that_cannot_be_read_do_not_hide_the_failure(stack: SimpleNamespace, states: FakeStates) -> None:
    from botocore.exceptions import ClientError

    def refuse(**asked: Any) -> Any:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "GetExecutionHistory")

    states.get_execution_history = refuse  # type: ignore[method-assign]
    states.ends = {"status": "FAILED", "error": "IncompleteChunks", "cause": "3 chunks are missing"}
    shown = RUNNER.invoke(app, ["run"])
    assert shown.exit_code == 1
    assert "AccessDeniedException" in shown.output
    assert "3 chunks are missing" in shown.output


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_says_until_when_there_is_data_how_many_rows_and_what_waits(pipeline: Pipeline) -> None:
    seed = Seed(({"exchange": "coinbase", "product": "BTC-USD"},))
    pipeline.world.deps.objects.put(SEED_KEY, seed.to_bytes())
    pipeline.run()
    published = pipeline.world.deps.ledger.trades(STREAM).published
    [before] = document(RUNNER.invoke(app, ["status", "--json"]))["streams"]
    assert (before["rows"], before["pending_trades"]) == (published, 0)
    pipeline.later(3_600)
    pipeline.ingest()
    [after] = document(RUNNER.invoke(app, ["status", "--json"]))["streams"]
    assert after["rows"] == published
    assert after["pending_trades"] > 0
    assert datetime.fromisoformat(after["data_until"]) > datetime.fromisoformat(before["data_until"])
    newest = after["data_until"].removesuffix("+00:00").replace("T", " ")
    shown = NARROW.invoke(app, ["status"]).output
    assert newest in shown
    assert f"{published:,}" in shown
    assert str(after["high"]) in NARROW.invoke(app, ["status", "--positions"]).output


def rows() -> list[state.StreamState]:
    us = 1_795_000_000_000_000
    run = "arn:aws:states:eu-central-1:1:execution:ingest:f2c7b1de-8a40-4c59-b1a7-2f4a6a0b8d11_2b5f"
    full = [
        state.StreamState(
            stream,
            low=10**9,
            high=9 * 10**9,
            updated_at=us // 1000,
            pending=3,
            lock=run,
            lag=1_234_567,
            lowest=5,
            backfill="arn:x:y:cli-20261121T081019Z-6f6744",
            until_us=us,
            trades=Trades(1_234_567_890, 1_234_567),
        )
        for stream in (BTC, SOL, Stream("binance_us", "1000SATS-USDT"))
    ]
    broken = "CorruptState: " + "the item lacks what it must have " * 4
    return [*full, state.StreamState(ETH), state.StreamState(ETH, error=broken)]


@pytest.mark.parametrize("options", [[], ["--heads"], ["--positions"]])
def test_status_fits_a_terminal_of_80_columns_and_cuts_nothing(
    options: list[str], stack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "streams", lambda deps, heads, named: rows())
    exchange = state.ExchangeState("binance_us", 12.5, "half-open", rows()[0].lock)
    monkeypatch.setattr(state, "exchanges", lambda deps, names: [exchange])
    since = datetime.now(UTC) - timedelta(days=3)
    monkeypatch.setattr(schedules, "schedule_of", lambda where, arn: Schedule("cron(15 10 ? * MON-FRI *)", True, since))
    result = NARROW.invoke(app, ["status", *options])
    assert result.exit_code == 0, result.output
    tables = [line for line in result.output.splitlines() if not line.startswith(("held by", "backfill by"))]
    assert max(len(line.rstrip()) for line in tables if "CorruptState" not in line and "islands" not in line) <= 80
    assert "…" not in result.output
    for text in ("f2c7b1de-8a40-4c59-b1a7-2f4a6a0b8d11_2b5f", "binance_us 1000SATS-USDT", "CorruptState", "MON-FRI"):
        assert text in "".join(result.output.split("\n")), text
    if not options:
        assert "1,234,567,890" in result.output
        assert "2026-11-18 11:06:40" in result.output


@pytest.mark.parametrize(("scheduled", "said"), [
    (Schedule("rate(6 hours)", True, START), "2026-11-20 18:00 UTC, in 5:00:00 (rate(6 hours))"),
    (Schedule("rate(6 hours)", False, START), "none, rate(6 hours) is disabled"),
    (Schedule("at(2026-11-01T00:00:00)", True, START), "none, at(2026-11-01T00:00:00) does not come again"),
    (None, "none, this stack has no schedule"),
    ("AccessDeniedException of EventBridge Scheduler", "not known (AccessDeniedException of EventBridge Scheduler)"),
])  # fmt: skip
def test_the_next_scheduled_run_is_said_or_why_there_is_none(scheduled: Any, said: str) -> None:
    from rich.text import Text

    line = Text.from_markup(status_command.next_line(scheduled, START + timedelta(hours=1))).plain
    assert line == f"next scheduled run: {said}"
