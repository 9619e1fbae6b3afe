"""A whole ingest in one process: moto for AWS, the simulator on a loopback port, and the ASL's order of steps.

This is not a second pipeline: the state machines themselves run in tests/integration. Here each step is called as its
handler calls it, so that a fault can be put between any two of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import boto3

from schemahub import events, ingest
from schemahub.clock import SystemClock
from schemahub.deps import Deps, Settings, build
from schemahub.errors import SchemaHubError
from schemahub.mappings import exchanges
from schemahub.runtime import parse_event
from schemahub.streams import Stream
from tests.conftest import create_tables

BUCKET = "schemahub-test-bucket"
STREAM = Stream("coinbase", "BTC-USD")


class Shifted(SystemClock):
    """The machine's clock, set forward by whatever anybody sleeps, so that waiting takes no time."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return super().now_ms() + round(self.ahead_s * 1000)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.ahead_s += max(0.0, seconds)


@dataclass
class World:
    deps: Deps
    runs: int = 0

    def execution(self, redrive: int = 0) -> dict[str, Any]:
        return {"Id": f"arn:aws:states:us-east-1:1:execution:ingest:run-{self.runs}", "RedriveCount": redrive}

    def open(self, *products: str) -> dict[str, Any]:
        self.runs += 1
        return self.call(
            ingest.open_run,
            events.OpenRun,
            {
                "execution": self.execution(),
                "input": {"schema_version": 1} | ({"products": list(products)} if products else {}),
            },
        )

    def call(self, step: Any, model: Any, payload: dict[str, Any]) -> dict[str, Any]:
        """One step with a payload that went through JSON, as between two states."""
        return step(parse_event(model, json.loads(json.dumps({"schema_version": 1, **payload}))), self.deps)

    def acquire(self, base: dict[str, Any]) -> dict[str, Any]:
        return self.call(ingest.lock_step, events.LockStep, {**base, "action": "acquire"})

    def chunks(self, key: str) -> list[dict[str, int]]:
        return [json.loads(line) for line in (self.deps.objects.get(key) or b"").splitlines()]

    def ingest(self, stream: Stream = STREAM) -> dict[str, Any]:
        """One run over one stream, with the Map's tolerance: chunks that fail are asked for once more, strictly."""
        run = self.open(f"{stream.exchange}:{stream.product}")["run"]
        base = {"execution": self.execution(), "run": run, "stream": stream.to_json()}
        lock = self.acquire(base)
        plan = self.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
        outcome: dict[str, Any] = {"status": plan["status"], "committed": 0}
        if plan["status"] == "planned":
            outcome = self.fetch_and_commit(base, lock, plan)
        self.call(ingest.lock_step, events.LockStep, {**base, "lock": lock, "action": "release"})
        self.call(ingest.close_run, events.CloseRun, {"execution": self.execution(), "run": run})
        return outcome

    def fetch(self, base: dict[str, Any], lock: dict[str, Any], chunk: dict[str, int]) -> dict[str, Any]:
        return self.call(
            ingest.fetch_step,
            events.FetchStep,
            {"run": base["run"], "stream": base["stream"], "lock": lock, "chunk": chunk},
        )

    def commit(
        self, base: dict[str, Any], lock: dict[str, Any], plan: dict[str, Any], final: bool = False
    ) -> dict[str, Any]:
        return self.call(ingest.commit_step, events.CommitStep, {**base, "lock": lock, "plan": plan, "final": final})

    def fetch_and_commit(self, base: dict[str, Any], lock: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
        for chunk in self.chunks(plan["chunks_key"]):
            try:
                self.fetch(base, lock, chunk)
            except SchemaHubError:
                continue
        outcome = self.commit(base, lock, plan)
        if outcome["status"] == "partial":
            for chunk in self.chunks(outcome["remaining_key"]):
                self.fetch(base, lock, chunk)
            outcome = self.commit(base, lock, plan, final=True)
        return outcome

    def committed(self, stream: Stream = STREAM) -> list[tuple[int, int]]:
        return [(s.first, s.last) for s in self.deps.ledger.segments(stream)]


def make_world(session: boto3.Session, url: str, clock: Any = None, **settings: Any) -> World:
    """Tables, a bucket and adapters that talk to the simulator at ``url``."""
    tables = create_tables(session)
    session.client("s3").create_bucket(Bucket=BUCKET)
    values: dict[str, Any] = {
        "bucket": BUCKET,
        "locks_table": tables["locks"],
        "streams_table": tables["streams"],
        "throttle_table": tables["throttle"],
        "database": "schemahub_test",
        "cold_start_hours": 3.0,
        "cold_start_trades": 20_000,
        "chunk_pages": 2,
        "endpoints": {name: f"{url}/{name}" for name in exchanges()},
    }
    return World(build(Settings(**{**values, **settings}), session=session, clock=clock))
