"""Redrive from every Task of both machines: it fails there, and again with its recorded input it ends well.

No emulator redrives. Here the project's own state machine files are interpreted (``asl.py``) over the real steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulation.asl import ABORTED, FAILED, NESTED, RUNNING, SUCCEEDED, Execution, load, tasks
from tests.simulation.workers import WRITES, Worker
from tests.simulation.world import BTC, PAGE_ROWS, STREAMS, World, small_pages

PATHS = [
    (machine, path)
    for machine in ("ingest", "transform")
    for path in tasks(load(machine))
    if path[-2:-1] != ("RunTasks",)
]
"""Tasks of ECS are processes with threads of their own: tests/crash and tests/integration kill them."""
SECOND_ROUND = ("RetryFailedStreams", "TransformRetried", "CloseRetriedRun")
HOW = (
    "killed after its first write",
    "done and never answered",
    pytest.param("killed before its first call", marks=pytest.mark.long),
    pytest.param("stopped by somebody", marks=pytest.mark.long),
)


@pytest.fixture
def world() -> Iterator[World]:
    """After a first run: there is a watermark, a mirror and a table to get wrong."""
    with small_pages():
        made = World()
        made.run(made.start())
        made.wait(200)
        yield made
        made.close()


def lead_to(world: World, machine: str, path: tuple[str, ...]) -> tuple[Execution, Execution]:
    """The run, and its (child) execution that stands before the Task; what leads there has gone wrong."""
    top = world.start()
    if path[0] in SECOND_ROUND or "FetchRemaining" in path or path[-1] == "CommitRemaining":
        never_answer(world, world.run_to(top, "FetchChunk"))
    if path[0] in SECOND_ROUND:
        never_answer(world, world.run_to(top, "FetchRemainingChunk"))
    if machine == "transform":
        world.run_to(top, "ListPending")
        top.abort()
        top = world.start("transform")
    if path == ("TransformRetried",):
        world.run_to(top, "ReleaseRetriedLock")
    state: dict[str, Any] = load(machine)["States"].get(path[-1], {})
    return top, world.run_to(top, "ListPending" if state.get("Resource") == NESTED else path[-1])


def never_answer(world: World, execution: Execution) -> None:
    """The Task's worker dies at once, and the state's retries are used up."""
    worker = world.hire(execution)
    worker.invocation.fail("Lambda.Unknown", retry=False)
    world.dismiss(worker)


def strike(world: World, top: Execution, worker: Worker, how: str) -> None:
    """The Task fails for good, or the whole run ends while it is at work."""
    if how == "stopped by somebody":
        top.abort()
    elif how == "done and never answered":
        worker.invocation.fail("States.Timeout", retry=False)
        world.finish(worker)
    else:
        if how == "killed after its first write":
            while not worker.over and not worker.call.split(".")[-1].startswith(WRITES):
                world.step(worker)
            if not worker.over:
                world.step(worker, "killed after")
        worker.invocation.fail("Lambda.Unknown", retry=False)
    if not worker.over:
        world.dismiss(worker)
    # In the first round a failure is tolerated, as long as the Map goes on. Somebody stops the run meanwhile.
    top.abort()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("machine", "path"), PATHS, ids=[f"{machine}-{path[-1]}" for machine, path in PATHS])
def test_a_redrive_from_any_state_ends_with_every_trade_once(
    world: World, machine: str, path: tuple[str, ...], how: str
) -> None:
    top, there = lead_to(world, machine, path)
    at, recorded = there.at, json.dumps(there.data)
    worker = world.hire(there)
    worker.invocation.execution.retries = dict.fromkeys(range(9), 99)
    strike(world, top, worker, how)
    assert top.status in (FAILED, ABORTED)
    assert there.status in (FAILED, ABORTED), f"{at} took it as done"
    late = how == "stopped by somebody"
    top.redrive() if late else None
    for event in world.events:
        world.tell(event)
    world.events.clear()
    if not late:
        top.redrive()
    if there.machine == top.machine:
        assert (there.status, there.redrives) == (RUNNING, 1)
        assert (there.at, json.dumps(there.data)) == (at, recorded), "it goes on elsewhere, or with another input"
    world.run(top)
    assert top.status == SUCCEEDED, top.error
    ends_well(world)


def ends_well(world: World) -> None:
    """Each trade of the committed range stands in the table once, nothing is pending, nothing is held."""
    for stream in STREAMS:
        mark = world.model.marks[stream]
        ids = sorted(row[0] for row in world.model.rows[stream.product])
        assert ids == list(range(int(mark["low"]), int(mark["high"]) + 1)), stream
    assert not [i for i in world.stores.streams.items.values() if "pending" in i]
    held = [key[0] for key, item in world.stores.locks.items.items() if "owner" in item]
    assert not held, f"still held: {held}"


def test_a_failure_in_the_map_leaves_the_finished_chunks_used_and_not_fetched_again(world: World) -> None:
    """Counted at the exchange: after two failed rounds and a redrive, each chunk's pages were asked for once."""
    seen = len(requests(world))
    top = world.start("ingest", BTC)
    never_answer(world, world.run_to(top, "FetchChunk"))
    never_answer(world, world.run_to(top, "FetchRemainingChunk"))
    chunks = planned(world)
    assert len(chunks) > 2
    before = len(requests(world)) - seen
    assert before == 1 + sum(map(pages, chunks[1:])), "the head, and every chunk but the failed one"
    never_answer(world, world.run_to(top, "RefetchChunk"))
    assert top.status == FAILED
    replanned = planned(world)[len(chunks) :]
    seen = len(requests(world))
    top.redrive()
    world.run(top)
    assert top.status == SUCCEEDED, top.error
    again = len(requests(world)) - seen
    assert again == pages(chunks[0]) + sum(pages(c) for c in replanned), "only what had never been fetched"
    ends_well(world)


def pages(chunk: dict[str, int]) -> int:
    return -(-(chunk["last"] - chunk["first"] + 1) // PAGE_ROWS)


def planned(world: World) -> list[dict[str, int]]:
    """Chunks of the newest plan of BTC-USD."""
    keys = [k for k in world.stores.s3.objects if k.endswith("/coinbase/BTC-USD.jsonl")]
    return [json.loads(line) for line in world.stores.s3.objects[keys[-1]][0].splitlines()]


def requests(world: World) -> list[Any]:
    return list(world.simulator.logs["coinbase"]._seen)
