"""Zombies and overlaps, one by one: who wakes late, who comes twice, who comes again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from schemahub import errors
from tests.simulation.asl import FAILED, SUCCEEDED, Execution
from tests.simulation.test_redrive import ends_well, never_answer, pages, planned, requests
from tests.simulation.workers import Worker
from tests.simulation.world import BTC, LEASE_GONE_S, World, small_pages


@pytest.fixture
def world() -> Iterator[World]:
    """After a first run, with new trades to fetch."""
    with small_pages():
        made = World()
        made.run(made.start())
        made.wait(200)
        yield made
        made.close()


def asleep_before(world: World, state: str, call: str) -> tuple[Execution, Worker]:
    """A run of BTC-USD whose worker in ``state`` sleeps before a call, past every lease."""
    run = world.start("ingest", BTC)
    worker = world.run_to_call(world.hire(world.run_to(run, state)), call)
    world.wait(LEASE_GONE_S)
    return run, worker


def taken_over(world: World) -> Execution:
    """Another run, up to where it holds the stream's lock and has committed nothing."""
    other = world.start("ingest", BTC)
    world.run_to(other, "PlanStream")
    assert world.stores.locks.items[(BTC.lock_id,)]["owner"].startswith(other.arn.rsplit(":", 1)[0])
    return other


def state_of(world: World) -> Any:
    """Everything that a reader could see of BTC-USD."""
    stores = world.stores
    return (
        json.dumps([i for k, i in sorted(stores.streams.items.items()) if k[1] != "last_run"], default=str),
        stores.s3.objects.get(BTC.mirror_key),
        sorted(world.model.files),
    )


def test_a_worker_that_slept_past_its_lease_cannot_commit(world: World) -> None:
    _, zombie = asleep_before(world, "CommitSegments", "transact_write_items")
    other = taken_over(world)
    before = state_of(world)
    world.finish(zombie)
    assert isinstance(zombie.error, errors.LockLost), zombie.error
    assert state_of(world) == before
    assert world.run(other).status == SUCCEEDED
    ends_well(world)


def test_a_worker_that_wakes_after_the_other_has_committed_cannot_commit_either(world: World) -> None:
    _, zombie = asleep_before(world, "CommitSegments", "transact_write_items")
    world.wait(60)
    assert world.run(world.start("ingest", BTC)).status == SUCCEEDED
    before = state_of(world)
    world.finish(zombie)
    assert zombie.error is not None or zombie.answer["status"] == "superseded"
    assert state_of(world) == before
    ends_well(world)


def test_a_worker_that_slept_past_its_lease_does_not_overwrite_the_mirror(world: World) -> None:
    _, zombie = asleep_before(world, "CommitSegments", "s3.put_object")
    world.wait(60)
    assert world.run(world.start("ingest", BTC)).status == SUCCEEDED
    mirror = json.loads(world.stores.s3.objects[BTC.mirror_key][0])
    assert mirror["high"] == world.model.marks[BTC]["high"]
    before = state_of(world)
    world.finish(zombie)
    assert state_of(world) == before


def test_a_fetcher_that_slept_past_its_lease_leaves_the_same_object_and_nothing_else(world: World) -> None:
    _, zombie = asleep_before(world, "FetchChunk", "s3.put_object")
    assert world.run(world.start("ingest", BTC)).status == SUCCEEDED
    before, raw = state_of(world), dict(world.model.raw)
    world.finish(zombie)
    assert state_of(world) == before
    assert {k: v for k, v in world.model.raw.items() if k in raw} == raw
    ends_well(world)


def test_a_publisher_that_slept_past_its_lease_publishes_nothing_twice(world: World) -> None:
    _, zombie = asleep_before(world, "Publish", "update_table")
    other = world.run(world.start("transform"))
    assert other.status == SUCCEEDED
    before = state_of(world)
    rows = dict(world.model.rows)
    world.finish(zombie)
    assert world.model.rows == rows
    assert state_of(world) == before


def test_a_releaser_that_slept_past_its_lease_releases_nothing_of_the_other(world: World) -> None:
    _, zombie = asleep_before(world, "ReleaseLock", "locks.update_item")
    other = taken_over(world)
    lock = dict(world.stores.locks.items[(BTC.lock_id,)])
    world.finish(zombie)
    assert world.stores.locks.items[(BTC.lock_id,)] == lock
    assert world.run(other).status == SUCCEEDED


def test_an_older_attempt_that_wakes_during_the_redrive_commits_nothing_twice(world: World) -> None:
    run, zombie = asleep_before(world, "CommitSegments", "transact_write_items")
    run.abort()
    run.redrive()
    world.wait(1)
    # The redriven state takes the lock again under a new fence, and stands before its own commit.
    again = world.run_to_call(world.hire(world.run_to(run, "CommitSegments")), "transact_write_items")
    for event in world.events:
        world.tell(event)
    before = state_of(world)
    world.finish(zombie)
    # The failure rule gave the lock back: nobody holds it, so neither of the two may commit under it.
    assert isinstance(zombie.error, errors.LockLost), zombie.error
    assert state_of(world) == before
    world.finish(again)
    assert isinstance(again.error, errors.LockLost), again.error
    world.run(run)
    assert run.status == SUCCEEDED
    ends_well(world)


def test_two_schedules_firing_together_ingest_once(world: World) -> None:
    """Their workers take turns, call by call."""
    runs = [world.start(), world.start()]
    seen = len(requests(world))
    while any(run.status == "RUNNING" for run in runs):
        for run in runs:
            for execution in run.ready():
                world.wait(max(0, execution.due_ms - world.clock.now_ms()) / 1000)
                world.hire(execution)
        for worker in list(world.workers):
            world.step(worker)
    assert [run.status for run in runs] == [SUCCEEDED, SUCCEEDED]
    assert sorted(run.output.get("status", "ran") for run in runs) == ["ran", "skipped"]
    asked = len(requests(world)) - seen
    assert asked == 1 + sum(map(pages, planned(world))), "the head, and each page once"
    ends_well(world)


def test_a_replay_of_an_old_run_after_a_newer_one_changes_nothing(world: World) -> None:
    """It failed after its fetches; a newer run covered everything; then somebody redrives the old one."""
    old = world.start("ingest", BTC)
    never_answer(world, world.run_to(old, "CommitSegments"))
    never_answer(world, world.run_to(old, "CommitRefetched"))
    assert old.status == FAILED
    for event in world.events:
        world.tell(event)
    world.events.clear()
    world.wait(60)
    newer = world.run(world.start("ingest", BTC))
    assert newer.status == SUCCEEDED
    before, rows, asked = state_of(world), dict(world.model.rows), len(requests(world))
    old.redrive()
    assert world.run(old).status == SUCCEEDED
    assert state_of(world) == before
    assert world.model.rows == rows
    assert len(requests(world)) == asked, "it asked the exchange for something"


def test_the_same_input_replayed_as_a_new_execution_changes_nothing(world: World) -> None:
    assert world.run(world.start("ingest", BTC)).status == SUCCEEDED
    before, rows = state_of(world), dict(world.model.rows)
    assert world.run(world.start("ingest", BTC)).status == SUCCEEDED
    assert state_of(world)[1:] == before[1:]
    assert world.model.rows[BTC.product] == rows[BTC.product]
