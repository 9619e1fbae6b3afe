"""Backfills over a ``World``: the state machine's order of steps, each called as its handler calls it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from schemahub import backfill, events, ingest, raw
from schemahub.backfill_plan import TaskSpec
from schemahub.clock import Clock
from schemahub.commit import segment_of
from schemahub.commit_below import Seams, commit_islands
from schemahub.deps import Deps
from schemahub.errors import SchemaHubError
from schemahub.mappings import load_mapping
from schemahub.pacing import PacedExchange
from schemahub.paging import paging_of
from schemahub.streams import Chunk, Segment, Stream
from tests.unit.worlds import STREAM, World


@dataclass
class Backfill:
    """One execution of ``backfill`` over one stream, state by state."""

    world: World
    run: dict[str, Any]
    base: dict[str, Any]
    request: dict[str, Any]
    lock: dict[str, Any]

    @classmethod
    def start(cls, world: World, wanted: Any, stream: Stream = STREAM, **request: Any) -> Backfill:
        world.runs += 1
        request = {"schema_version": 1, "products": [f"{stream.exchange}:{stream.product}"], "range": wanted, **request}
        execution = {"Id": f"arn:aws:states:us-east-1:1:execution:backfill:run-{world.runs}", "RedriveCount": 0}
        opened = world.call(backfill.open_backfill, events.OpenBackfill, {"execution": execution, "input": request})
        base = {"execution": execution, "run": opened["run"], "stream": stream.to_json()}
        lock = world.call(ingest.lock_step, events.LockStep, {**base, "action": "acquire", "kind": "backfill"})
        return cls(world, opened["run"], base, request, lock)

    def plan(self, **more: Any) -> dict[str, Any]:
        payload = {**self.base, "lock": self.lock, "request": self.request, **more}
        return self.world.call(backfill.plan_backfill, events.PlanBackfill, payload)

    def fetch(self, chunk: dict[str, int]) -> dict[str, Any]:
        payload = {"kind": "backfill", "run": self.run, "stream": self.base["stream"], "lock": self.lock}
        return self.world.call(ingest.fetch_step, events.FetchStep, {**payload, "chunk": chunk})

    def commit(self, plan: dict[str, Any], final: bool = False) -> dict[str, Any]:
        payload = {**self.base, "lock": self.lock, "plan": plan, "final": final}
        return self.world.call(backfill.commit_backfill, events.CommitBackfill, payload)

    def release(self, outcome: str = "done") -> None:
        payload = {**self.base, "lock": self.lock, "action": "release", "kind": "backfill", "outcome": outcome}
        self.world.call(ingest.lock_step, events.LockStep, payload)

    def close(self) -> dict[str, Any]:
        payload = {"execution": self.base["execution"], "run": self.run}
        return self.world.call(backfill.close_backfill, events.CloseBackfill, payload)

    def specs(self, plan: dict[str, Any]) -> list[TaskSpec]:
        body = self.world.deps.objects.get(plan["tasks_key"]) or b""
        keys = [json.loads(line)["task_key"] for line in body.splitlines()]
        return [TaskSpec.from_json(json.loads(self.world.deps.objects.get(key) or b"")) for key in keys]

    def work(self, plan: dict[str, Any]) -> None:
        """Fetch all chunks on the way that was planned; what fails stays missing."""
        if plan["route"] == "ecs":
            for spec in self.specs(plan):
                task(self.world.deps, spec, self.world.deps.clock)
            return
        for chunk in self.world.chunks(plan["chunks_key"]):
            try:
                self.fetch(chunk)
            except SchemaHubError:
                continue

    def through(self, rounds: int = 3) -> dict[str, Any]:
        """From the plan to the closed run, in at most so many rounds."""
        outcome: dict[str, Any] = {"status": "partial"}
        for number in range(rounds):
            plan = self.plan()
            outcome = plan
            if plan["status"] != "planned":
                break
            self.work(plan)
            outcome = self.commit(plan, final=number == rounds - 1)
            if outcome["status"] != "partial":
                break
        self.release(outcome["status"])
        return self.close()

    def report(self) -> dict[str, Any]:
        key = f"schemahub/plans/{self.run['id']}/backfill/report.json"
        document: dict[str, Any] = json.loads(self.world.deps.objects.get(key) or b"")
        return document


def task(deps: Deps, spec: TaskSpec, clock: Clock) -> None:
    """A task in its simplest form: chunk by chunk, each committed as soon as it is durable."""
    borders = Seams(deps.objects, deps.call_attention)
    for chunk in spec.chunks:
        commit_islands(deps.ledger, deps.locks, spec.lease, [segment_in(deps, spec, chunk)], clock, borders)


def segment_in(deps: Deps, spec: TaskSpec, chunk: Chunk) -> Segment:
    """A chunk's segment, its raw object durable and nothing committed."""
    found = raw.find(deps.objects, spec.stream, chunk)
    if found is None:
        exchange, paging = PacedExchange.of(deps, spec.stream.exchange), paging_of(load_mapping(spec.stream.exchange))
        fetched = paging.fetch(exchange, spec.stream, chunk, deps.clock, lambda: None)
        found = raw.store(deps.objects, spec.stream, fetched)
    return segment_of(spec.stream, found, spec.run, "rest", deps.clock.now_ms())
