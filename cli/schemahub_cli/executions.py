"""Executions of the two state machines: start one, find a running one, look at one."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from schemahub import SCHEMA_VERSION
from schemahub.errors import BadStateInput
from schemahub.events import MAX_PAYLOAD_BYTES
from schemahub_cli.output import StackUnreachable
from schemahub_cli.target import Target

RUNNING = "RUNNING"
POLL_S = 0.5
REFUSALS = ("ExecutionNotRedrivable", "ExecutionLimitExceeded", "InvalidAction", "UnknownOperationException")
"""How a redrive is refused; the last two by an embedded AWS that has none (MiniStack: HTTP 400 ``InvalidAction``)."""


@dataclass(frozen=True)
class Execution:
    """A state machine's execution as describe_execution shows it."""

    arn: str
    status: str
    started: datetime
    stopped: datetime | None
    output: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    cause: str | None = None
    input: dict[str, Any] = field(default_factory=dict)
    redrive_status: str | None = None
    """``REDRIVABLE`` or why not; None from an embedded AWS, which does not say."""

    @property
    def name(self) -> str:
        return self.arn.rsplit(":", 1)[1]

    @property
    def running(self) -> bool:
        return self.status == RUNNING

    @property
    def skipped(self) -> bool:
        """It ended well without doing anything: another run holds the exchanges, or there is no seed (``reason``)."""
        return self.output.get("status") == "skipped"

    def seconds(self, now: datetime | None = None) -> float:
        end = self.stopped or now or datetime.now(UTC)
        return max(0.0, (end - self.started).total_seconds())

    def to_json(self) -> dict[str, Any]:
        return {
            "execution": self.arn,
            "status": self.status,
            "seconds": round(self.seconds(), 1),
            "error": self.error,
            "cause": self.cause,
            "output": self.output,
        }


def find_running(target: Target, machine_arn: str) -> str | None:
    """ARN of a running execution of the machine, the oldest if there are several."""
    pages = (
        target.client("stepfunctions")
        .get_paginator("list_executions")
        .paginate(stateMachineArn=machine_arn, statusFilter=RUNNING)
    )
    found = [e for page in pages for e in page["executions"] if not e.get("mapRunArn")]
    return str(min(found, key=lambda e: e["startDate"])["executionArn"]) if found else None


def any_yet(target: Target, machine_arn: str) -> bool:
    """Whether the machine ever had an execution, as far as Step Functions remembers (90 days)."""
    listed = target.client("stepfunctions").list_executions(stateMachineArn=machine_arn, maxResults=1)
    return bool(listed.get("executions"))


def start(target: Target, machine_arn: str, **keys: Any) -> str:
    """Start an execution with a name that says when and who; returns its ARN."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **keys})
    if len(text.encode()) > MAX_PAYLOAD_BYTES:
        raise BadStateInput(
            f"the input has {len(text.encode())} bytes, Step Functions takes {MAX_PAYLOAD_BYTES}",
            remedy="Name fewer products, or put them into the seed list with `schemahub update-seed`.",
        )
    name = f"cli-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    answer = target.client("stepfunctions").start_execution(stateMachineArn=machine_arn, name=name, input=text)
    return str(answer["executionArn"])


def describe(target: Target, arn: str) -> Execution:
    """The execution as it is now."""
    seen = target.client("stepfunctions").describe_execution(executionArn=arn)
    if "status" not in seen:
        # What an embedded AWS says that is being stopped at this moment.
        raise StackUnreachable(f"{target.stack} does not answer with an execution any more")
    return Execution(
        arn,
        seen["status"],
        _utc(seen["startDate"]),
        _utc(seen["stopDate"]) if seen.get("stopDate") else None,
        _document(seen.get("output")),
        seen.get("error"),
        seen.get("cause"),
        _document(seen.get("input")),
        seen.get("redriveStatus"),
    )


def redrive(target: Target, arn: str) -> str | None:
    """Continue a failed execution at what failed; None when done, otherwise why Step Functions refuses."""
    try:
        target.client("stepfunctions").redrive_execution(executionArn=arn)
    except ClientError as error:
        if error.response["Error"]["Code"] not in REFUSALS:
            raise
        return f"{error.response['Error']['Code']}: {error.response['Error'].get('Message', '')}"
    return None


def stop(target: Target, arn: str, seconds: float) -> Execution:
    """Stop an execution, and everything below it; how it is when it has ended, or after so many seconds."""
    target.client("stepfunctions").stop_execution(executionArn=arn, error="Stopped", cause="schemahub stop")
    until = time.monotonic() + seconds
    while (seen := describe(target, arn)).running and time.monotonic() < until:
        time.sleep(POLL_S)
    return seen


def failed_children(target: Target, arn: str) -> int:
    """How many children of the execution's Distributed Maps have failed so far (tolerated or not)."""
    client = target.client("stepfunctions")
    failed = 0
    for run in client.list_map_runs(executionArn=arn).get("mapRuns", []):
        counts = client.describe_map_run(mapRunArn=run["mapRunArn"]).get("itemCounts", {})
        failed += counts.get("failed", 0) + counts.get("timedOut", 0) + counts.get("aborted", 0)
    return failed


def _document(text: str | None) -> dict[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


def _utc(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)
