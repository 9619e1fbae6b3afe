"""A heavy backfill on the deployed stack: tasks of ECS, killed both ways, beside an ingest, whole and proved."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from local import ecs_agent
from local.stack import Stack
from schemahub.raw import parse_raw_key
from schemahub.streams import Stream
from schemahub_cli import target
from schemahub_cli.main import app
from schemahub_cli.target import LocalSession, Target
from tests.integration.conftest import Simulator
from tests.integration.test_end_to_end import ingest, ledger_of, table_rows

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]
COINBASE, BINANCE = Stream("coinbase", "ETH-USD"), Stream("binance", "ETH-USDT")
DAYS = 6
RSS_MIB = 300


def until(what: str, happened: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)
    return result


def task_of(stack: Stack, stream: Stream) -> str | None:
    """The running task that fetches a stream."""
    ecs, cluster = stack.client("ecs"), stack.outputs["BackfillClusterName"]
    arns = ecs.list_tasks(cluster=cluster, desiredStatus="RUNNING")["taskArns"]
    for task in ecs.describe_tasks(cluster=cluster, tasks=arns)["tasks"] if arns else ():
        [override] = task["overrides"]["containerOverrides"]
        if f"/{stream.exchange}/{stream.product}/" in override["environment"][0]["value"]:
            return str(task["taskArn"])
    return None


def durable_below(stack: Stack, stream: Stream, low: int) -> int:
    """Raw objects of a stream below the watermark that it had before the backfill."""
    pages = stack.client("s3").get_paginator("list_objects_v2")
    keys = [o["Key"] for p in pages.paginate(Bucket=stack.bucket, Prefix=stream.raw_prefix) for o in p["Contents"]]
    return sum(parsed[1] < low for parsed in map(parse_raw_key, keys) if parsed)


def kill(stack: Stack, arn: str) -> None:
    """SIGKILL to the task's process, as when a host is lost."""
    pid, _ = json.loads((stack.home / "tasks" / arn.rsplit("/", 1)[-1] / "pid").read_text())
    os.kill(pid, signal.SIGKILL)


def results(stack: Stack, stream: Stream) -> list[dict[str, Any]]:
    """What the tasks of a stream said at their end, in that order."""
    lines = [json.loads(line) for line in ecs_agent.log_path(stack.home).read_text().splitlines() if line[:1] == "{"]
    return [line["result"] for line in lines if line.get("stream") == str(stream) and "result" in line]


def ended(stack: Stack) -> list[dict[str, Any]]:
    path = ecs_agent.ended_path(stack.home)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finished(machine: Any, arn: str) -> dict[str, Any] | None:
    described = machine.describe_execution(executionArn=arn)
    return dict(described) if described["status"] != "RUNNING" else None


def verify(stack: Stack, stream: Stream, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    where = Target(stack.name, True, LocalSession(stack.endpoint), dict(stack.outputs))
    monkeypatch.setattr(target, "resolve", lambda name: where)
    words = [
        "verify",
        "--deep",
        "-s",
        f"{stream.exchange}:{stream.product}",
        "--certificate-dir",
        str(folder),
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    [seen] = json.loads(result.stdout)["streams"]
    return dict(seen)


def test_a_backfill_survives_both_kills_beside_an_ingest_and_fetches_no_finished_chunk_twice(
    stack: Stack, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = (COINBASE, BINANCE)
    ingest(stack, *streams)
    before = {s: ledger_of(stack).watermark(s) for s in streams}
    lows = {s: mark.low for s, mark in before.items() if mark}
    machine = stack.client("stepfunctions")
    since = (datetime.now(UTC) - timedelta(days=DAYS)).isoformat()
    asked = {
        "schema_version": 1,
        "products": [f"{s.exchange}:{s.product}" for s in streams],
        "range": {"from": since},
        "route": "ecs",
        "tasks": 1,
    }
    arn = machine.start_execution(stateMachineArn=stack.outputs["BackfillStateMachineArn"], input=json.dumps(asked))[
        "executionArn"
    ]

    # A host is lost in the middle of one stream ...
    victim = until("a task for Binance", lambda: task_of(stack, BINANCE))
    until("a chunk of Binance", lambda: durable_below(stack, BINANCE, lows[BINANCE]) >= 3)
    kill(stack, victim)
    kept = durable_below(stack, BINANCE, lows[BINANCE])
    # ... and Spot takes its capacity back in the middle of the other.
    until("a chunk of Coinbase", lambda: durable_below(stack, COINBASE, lows[COINBASE]) >= 3)
    spot = until("a task for Coinbase", lambda: task_of(stack, COINBASE))
    asked_at = time.monotonic()
    stack.client("ecs").stop_task(cluster=stack.outputs["BackfillClusterName"], task=spot, reason="Spot interruption")
    until("its end", lambda: any(e["task"] == spot for e in ended(stack)))
    assert time.monotonic() - asked_at < 20 + 5, "it has 20 s, and the machine is busy"

    beside = ingest(stack, *streams)
    assert beside["failed"] == 0
    done = until("the end", lambda: finished(machine, arn), 400)
    assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
    assert (json.loads(done["output"])["status"], json.loads(done["output"])["failed"]) == ("done", 0)

    requests = simulator.stats()
    assert all(requests[s.exchange]["rate_limited"] == 0 for s in streams)
    codes = {e["task"]: e["exit_code"] for e in ended(stack)}
    assert (codes[victim], codes[spot]) == (137, 143)
    assert all(e["peak_mib"] < RSS_MIB for e in ended(stack))

    # The killed task told nobody what it did; the next one found what was durable.
    [second] = results(stack, BINANCE)
    assert second["reused"] >= kept
    assert second["reused"] + second["fetched"] == second["chunks"]
    # The stopped one finished or left each chunk: together they fetched each exactly once.
    first, second = results(stack, COINBASE)
    assert (first["status"], second["status"]) == ("stopped", "done")
    assert 0 < first["fetched"] < first["chunks"]
    assert (second["reused"], second["fetched"]) == (first["fetched"], first["missing"])

    for stream in streams:
        mark, was = ledger_of(stack).watermark(stream), before[stream]
        assert mark is not None
        assert was is not None
        assert mark.low < was.low - 100_000
        assert mark.high >= was.high
        seen = verify(stack, stream, tmp_path, monkeypatch)
        assert seen["rows"] == seen["trades"] == mark.high - mark.low + 1
        rows = table_rows(stack, stream)
        assert [row[0] for row in rows] == list(range(mark.low, mark.high + 1))
    report = json.loads(
        stack.client("s3").get_object(Bucket=stack.bucket, Key=json.loads(done["output"])["report_key"])["Body"].read()
    )
    assert report["status"] == "done"
    assert report["actual"]["missing_positions"] == 0
    assert report["actual"]["trades"] == sum(lows[s] - ledger_of(stack).watermark(s).low for s in streams)  # type: ignore[union-attr]


def test_a_paused_backfill_ends_in_order_and_the_same_input_goes_on_on_lambda(
    stack: Stack, simulator: Simulator
) -> None:
    stream = Stream("coinbase", "SOL-USD")
    ingest(stack, stream)
    mark = ledger_of(stack).watermark(stream)
    assert mark is not None
    machine, table = stack.client("stepfunctions"), ledger_of(stack).table
    first = mark.low - 15_000

    def run(name: str) -> str:
        asked = {"schema_version": 1, "products": ["coinbase:SOL-USD"], "range": {"ids": [first, mark.low - 1]}}
        started = machine.start_execution(
            stateMachineArn=stack.outputs["BackfillStateMachineArn"], name=name, input=json.dumps(asked)
        )
        done = until("the end", lambda: finished(machine, started["executionArn"]))
        assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
        return str(json.loads(done["output"])["status"])

    def low() -> int:
        now = ledger_of(stack).watermark(stream)
        assert now is not None
        return now.low

    name = f"paused-{os.getpid()}"
    table.put_item(Item={"stream": "backfill", "item": name, "wanted": "pause"})
    assert run(name) == "paused"
    assert low() == mark.low
    tasks = len(ended(stack))
    assert run(f"resumed-{os.getpid()}") == "done"
    assert low() == first
    assert len(ended(stack)) == tasks, "so little needs no task"
    assert run(f"again-{os.getpid()}") == "done", "nothing is missing"
