"""A heavy backfill of the deployed stack, killed both ways beside an ingest, and what has to be true afterwards."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from local import ecs_agent
from local.stack import Stack
from schemahub.ledger import Watermark
from schemahub.mappings import load_mapping
from schemahub.raw import parse_raw_key
from schemahub.streams import Stream
from schemahub_cli import target
from schemahub_cli.main import app
from schemahub_cli.session import LocalSession
from schemahub_cli.target import Target
from tests.integration.conftest import Simulator
from tests.integration.test_end_to_end import ingest, ledger_of

RSS_MIB = 300
IN_FLIGHT = 15
"""Chunks that a task of the preset ``small`` has in hand."""


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


@dataclass
class Heavy:
    """Streams whose history is filled in by one task each while a host is lost and Spot takes another one back."""

    stack: Stack
    simulator: Simulator
    victim: Stream
    """Its task dies by SIGKILL, as with its host."""
    spot: Stream
    """Its task is stopped by ECS: SIGTERM."""
    others: Sequence[Stream] = ()
    lows: dict[Stream, int] = field(default_factory=dict)
    highs: dict[Stream, int] = field(default_factory=dict)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (self.spot, self.victim, *self.others)

    def through(self, wanted: Mapping[str, Any], patience_s: float) -> dict[str, Any]:
        """Start the backfill, strike twice, ingest beside it; returns what the execution said in the end."""
        stack, machine = self.stack, self.stack.client("stepfunctions")
        ingest(stack, *self.streams)
        for stream in self.streams:
            mark = mark_of(stack, stream)
            self.lows[stream], self.highs[stream] = mark.low, mark.high
        self.asked_before = {s: pages_of(self.simulator, s) for s in self.streams}
        products = [f"{s.exchange}:{s.product}" for s in self.streams]
        asked = {"schema_version": 1, "products": products, "route": "ecs", "tasks": 1, "archives": False, **wanted}
        arn = machine.start_execution(
            stateMachineArn=stack.outputs["BackfillStateMachineArn"], input=json.dumps(asked)
        )["executionArn"]

        killed = until("the victim's task", lambda: task_of(stack, self.victim))
        until("its first chunks", lambda: durable_below(stack, self.victim, self.lows[self.victim]) >= 3)
        kill(stack, killed)
        self.kept = durable_below(stack, self.victim, self.lows[self.victim])
        until("the other's first chunks", lambda: durable_below(stack, self.spot, self.lows[self.spot]) >= 3)
        stopped = until("its task", lambda: task_of(stack, self.spot))
        asked_at = time.monotonic()
        stack.client("ecs").stop_task(
            cluster=stack.outputs["BackfillClusterName"], task=stopped, reason="Spot interruption"
        )
        until("its end", lambda: any(e["task"] == stopped for e in ended(stack)))
        assert time.monotonic() - asked_at < 20 + 5, "it has 20 s, and the machine is busy"

        beside = ingest(stack, *self.streams)
        assert beside["failed"] == 0
        done = until("the end", lambda: finished(machine, arn), patience_s)
        assert done["status"] == "SUCCEEDED", (done.get("error"), done.get("cause"))
        output = json.loads(done["output"])
        assert (output["status"], output["failed"]) == ("done", 0)
        codes = {e["task"]: e["exit_code"] for e in ended(stack)}
        assert (codes[killed], codes[stopped]) == (137, 143)
        return dict(output)

    def assert_nothing_was_fetched_twice(self) -> None:
        """But for what the killed task had in flight."""
        # The killed task told nobody what it did; the next one found what was durable.
        [second] = results(self.stack, self.victim)
        assert second["reused"] >= self.kept
        assert second["reused"] + second["fetched"] == second["chunks"]
        # The stopped one finished or left each chunk: together they fetched each exactly once.
        first, second = results(self.stack, self.spot)
        assert (first["status"], second["status"]) == ("stopped", "done")
        assert 0 < first["fetched"] < first["chunks"]
        assert (second["reused"], second["fetched"]) == (first["fetched"], first["missing"])
        # And by what the exchange saw.
        for stream in self.streams:
            chunks = results(self.stack, stream)[-1]["chunks"]
            page = load_mapping(stream.exchange).requests.page_size
            asked = pages_of(self.simulator, stream) - self.asked_before[stream]
            trades = self.lows[stream] - low_of(self.stack, stream) + high_of(self.stack, stream) - self.highs[stream]
            in_flight = {self.victim: IN_FLIGHT, self.spot: IN_FLIGHT}.get(stream, 0)
            a_chunk = -(-trades // chunks // page)
            # A chunk's ends may lie on pages of two; planning seeks, and the ingest beside asks for the newest.
            assert asked <= -(-trades // page) + chunks + in_flight * (a_chunk + 1) + 60

    def assert_one_budget_and_bounded_memory(self) -> None:
        requests = self.simulator.stats()
        assert {s.exchange: requests[s.exchange]["rate_limited"] for s in self.streams} == {
            s.exchange: 0 for s in self.streams
        }
        assert max(e["peak_mib"] for e in ended(self.stack)) < RSS_MIB

    def assert_whole(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
        """Proved by ``verify --deep``; returns how many trades the backfill brought."""
        for stream in self.streams:
            low, high = low_of(self.stack, stream), high_of(self.stack, stream)
            assert low < self.lows[stream]
            assert high >= self.highs[stream]
            seen = verify(self.stack, stream, folder, monkeypatch)
            assert seen["rows"] == seen["trades"] == high - low + 1
        return sum(self.lows[s] - low_of(self.stack, s) for s in self.streams)


def low_of(stack: Stack, stream: Stream) -> int:
    return mark_of(stack, stream).low


def high_of(stack: Stack, stream: Stream) -> int:
    return mark_of(stack, stream).high


def mark_of(stack: Stack, stream: Stream) -> Watermark:
    mark = ledger_of(stack).watermark(stream)
    assert mark is not None
    return mark


def pages_of(simulator: Simulator, stream: Stream) -> int:
    """Requests for trades of a stream that the exchange has granted."""
    with urllib.request.urlopen(f"{simulator.url}/_sim/stats?timestamps=1", timeout=60) as answer:
        seen = json.load(answer)[stream.exchange]["timestamps"]
    name = load_mapping(stream.exchange).symbol_of(stream.product)
    return sum(kind == "page" and product == name for _, _, _, kind, product in seen)


def report_of(stack: Stack, output: Mapping[str, Any]) -> dict[str, Any]:
    """The report that an execution's output names."""
    body = stack.client("s3").get_object(Bucket=stack.bucket, Key=output["report_key"])["Body"].read()
    return dict(json.loads(body))
