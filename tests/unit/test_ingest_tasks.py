"""An ingest that is too much for functions: its chunks made durable by tasks of ECS, committed by the step as ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import backfill, errors, events, ingest
from schemahub.backfill_plan import TaskSpec
from schemahub.backfill_task import read_spec, run_task
from schemahub.streams import Stream, covers
from tests.unit.worlds import STREAM, Shifted, World, make_world

KRAKEN, BYBIT = Stream("kraken", "BTC-USD"), Stream("bybit", "BTC-USDT")
FAST = {
    "latency_ms": {"mean": 0, "jitter": 0},
    **{name: {"limit": "none"} for name in ("coinbase", "kraken")},
    "bybit": {"limit": "none", "trades_per_day": 43_200},
}


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server) -> World:
    return make_world(aws, server.url, Shifted(), cold_start_trades=12_000, chunk_pages=2, backfill_ecs=True)


def begin(world: World, stream: Stream = STREAM, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Base of the payloads, lock and plan of a first run."""
    world.deps.settings = replace(world.deps.settings, **{"backfill_threshold_seconds": 0.5, **settings})
    run = world.open(f"{stream.exchange}:{stream.product}")["run"]
    base = {"execution": world.execution(), "run": run, "stream": stream.to_json()}
    lock = world.acquire(base)
    return base, lock, world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})


def specs(world: World, plan: dict[str, Any]) -> list[TaskSpec]:
    found = [read_spec(world.deps, line["task_key"]) for line in world.chunks(plan["tasks_key"])]  # type: ignore[index]
    assert all(isinstance(spec, TaskSpec) for spec in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("stream", [STREAM, KRAKEN], ids=str)
def test_tasks_make_chunks_durable_and_the_step_commits_them(world: World, stream: Stream) -> None:
    base, lock, plan = begin(world, stream, backfill_tasks=2)
    assert plan["route"] == "ecs"
    assert plan["tasks"] >= plan["tasks_at_a_time"] >= 1
    tasks = specs(world, plan)
    planned = [(c.first, c.last) for spec in tasks for c in spec.chunks]
    assert planned == [(c["first"], c["last"]) for c in world.chunks(plan["chunks_key"])], "the oldest first"
    for spec in tasks:
        result = run_task(world.deps, spec, threading.Event())
        assert (result.status, result.fetched, result.committed) == ("done", len(spec.chunks), 0)
        assert run_task(world.deps, spec, threading.Event()).reused == len(spec.chunks)
    assert world.committed(stream) == [], "a task of an ingest commits nothing"
    assert world.commit(base, lock, plan)["status"] == "covered"
    mark = world.deps.ledger.watermark(stream)
    assert mark is not None
    assert covers(world.committed(stream), (planned[0][0], planned[-1][1]))
    assert backfill.counted(world.deps, stream, base["run"]["id"])["requests"] == 0, "it is no backfill's report"


def test_what_a_dead_task_left_is_fetched_by_functions(world: World) -> None:
    base, lock, plan = begin(world)
    [spec] = specs(world, plan)
    run_task(world.deps, replace(spec, chunks=spec.chunks[:2]), threading.Event())
    outcome = world.commit(base, lock, plan)
    assert (outcome["status"], outcome["committed"]) == ("partial", 2)
    for chunk in world.chunks(outcome["remaining_key"]):
        assert world.fetch(base, lock, chunk)["status"] == "fetched"
    assert world.commit(base, lock, plan, final=True)["status"] == "covered"


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        ({"backfill_threshold_seconds": 600.0}, "lambda"),
        ({"backfill_ecs": False}, "lambda"),
        ({}, "ecs"),
    ],
)
def test_the_way_is_chosen_by_work(world: World, settings: dict[str, Any], way: str) -> None:
    _, _, plan = begin(world, **settings)
    assert (plan["route"], "tasks_key" in plan) == (way, way == "ecs")


def test_a_task_whose_lock_another_took_stops(world: World) -> None:
    _, _, plan = begin(world)
    [spec] = specs(world, plan)
    world.deps.clock.sleep(10_000)
    world.deps.locks.acquire(STREAM.lock_id, "another", "another")
    with pytest.raises(errors.LockLost):
        run_task(world.deps, spec, threading.Event())


def test_a_task_goes_on_where_the_failed_run_released_its_lock(world: World) -> None:
    _, _, plan = begin(world)
    [spec] = specs(world, plan)
    world.deps.locks.release(spec.lease)
    assert run_task(world.deps, spec, threading.Event()).status == "done"


def test_times_that_are_lost_call_for_attention(world: World, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Bybit shows its newest 60 trades: what ran over before is gone, whoever fetches."""
    world.ingest(BYBIT)
    world.deps.clock.sleep(3600)
    server.simulator.clock.set(None, 3600, None)
    _, _, plan = begin(world, BYBIT, backfill_threshold_seconds=0.0)
    assert plan["route"] == "ecs"
    for spec in specs(world, plan):
        run_task(world.deps, spec, threading.Event())
    assert any("are lost" in record.getMessage() for record in caplog.records)
