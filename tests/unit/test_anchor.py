"""A backfill of a stream that no run has pulled makes the first commit itself; every rule holds from then on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import anchor, errors, events, ingest, mirror, rebuild
from schemahub.streams import Stream, covers
from tests.unit.backfills import Backfill
from tests.unit.worlds import STREAM, Shifted, World, make_world

FAST = {
    "latency_ms": {"mean": 0, "jitter": 0},
    **{name: {"limit": "none"} for name in ("coinbase", "kraken", "gemini", "okx")},
}


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server) -> World:
    return make_world(aws, server.url, Shifted(), cold_start_trades=2_000)


NEVER = [STREAM, Stream("kraken", "BTC-USD"), Stream("gemini", "BTC-USD")]


@pytest.mark.parametrize("stream", NEVER, ids=str)
def test_a_stream_that_no_run_has_pulled_is_filled_back_and_the_first_run_goes_on_above(
    world: World, stream: Stream
) -> None:
    since = dt.datetime.fromtimestamp(world.deps.clock.now_ms() / 1000 - 6 * 3600, dt.UTC).isoformat()
    begun = Backfill.start(world, {"from": since, "to": None}, stream)
    assert begun.through()["status"] == "done"
    mark = world.deps.ledger.watermark(stream)
    assert mark is not None
    segments = list(world.deps.ledger.segments(stream))
    assert len(segments) > 1
    assert covers([s.interval for s in segments], (mark.low, mark.high))
    assert mirror.parse(stream, world.deps.objects.get(stream.mirror_key) or b"") == mark
    assert not world.deps.locks.holder(stream.lock_id), "the stream's lock is given back"
    world.deps.clock.sleep(600)
    assert world.ingest(stream)["status"] in ("covered", "nothing_new")
    after = world.deps.ledger.watermark(stream)
    assert after is not None
    assert (after.low, after.high >= mark.high) == (mark.low, True)
    assert covers([s.interval for s in world.deps.ledger.segments(stream)], (after.low, after.high))
    assert rebuild.rebuild(world.deps, stream, dry_run=True).segments == 0


@pytest.mark.parametrize("at", ["raw", "before", "after", "release"])
def test_a_plan_that_dies_while_it_makes_the_first_commit_is_repeated_without_harm(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    class Killed(BaseException):
        """As a process that ends at this line."""

    place, name = {
        "raw": (ingest, "make_durable"), "before": (anchor, "commit_segments"), "after": (anchor, "commit_segments"),
        "release": (world.deps.locks, "release"),
    }[at]  # fmt: skip
    true, dead = getattr(place, name), []

    def dies(*args: Any, **kwargs: Any) -> Any:
        if not dead:
            dead.append(at)
            if at in ("raw", "after"):
                true(*args, **kwargs)
            raise Killed
        return true(*args, **kwargs)

    begun = Backfill.start(world, {"from": "2020-01-01", "to": None})
    monkeypatch.setattr(place, name, dies)
    with pytest.raises(Killed):
        begun.plan()
    world.deps.clock.sleep(3)
    plan = begun.plan()
    assert (plan["status"], dead) == ("planned", [at])
    mark = world.deps.ledger.watermark(STREAM)
    [segment] = world.deps.ledger.segments(STREAM)
    assert mark is not None
    assert (segment.first, segment.last) == (mark.low, mark.high)
    assert plan["within"]["last"] == mark.low - 1
    assert not world.deps.locks.holder(STREAM.lock_id)


def test_a_first_run_beside_the_plan_of_a_backfill_makes_the_only_first_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan waits for the ingest that holds the stream, and goes on below what that committed."""
    begun = Backfill.start(world, "all")
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    planned = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    waits = []

    def commits(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            world.fetch_and_commit(base, lock, planned)

    monkeypatch.setattr(world.deps.clock, "sleep", commits)
    plan = begun.plan()
    mark = world.deps.ledger.watermark(STREAM)
    assert mark is not None
    assert plan["within"]["last"] == mark.low - 1
    assert len(list(world.deps.ledger.segments(STREAM))) > 1, "those of the ingest, not the plan's one"


def test_an_ingest_that_planned_before_the_first_commit_of_a_backfill_overlaps_nothing(world: World) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    planned = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    world.deps.locks.release_run(run["arn"])  # its run failed; the rule on its status released it
    Backfill.start(world, "all").plan()
    mark = world.deps.ledger.watermark(STREAM)
    world.fetch_and_commit(base, lock, planned)  # redriven
    after = world.deps.ledger.watermark(STREAM)
    assert mark is not None
    assert after is not None
    assert after.low == mark.low
    assert covers([s.interval for s in world.deps.ledger.segments(STREAM)], (after.low, after.high))


def test_an_ingest_that_holds_the_stream_and_commits_nothing_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Backfill.start(world, "all")
    world.deps.locks.acquire(STREAM.lock_id, "another", "another")
    monkeypatch.setattr(world.deps.clock, "sleep", lambda seconds: None)
    with pytest.raises(errors.LockBusy, match="Start the backfill again"):
        begun.plan()


def test_a_product_that_the_exchange_does_not_know_is_named_with_its_nearest(world: World) -> None:
    with pytest.raises(errors.UnknownProduct, match=r"Did you mean .*coinbase:BTC-USD"):
        Backfill.start(world, "all", Stream("coinbase", "BTCC-USD")).plan()
    assert world.deps.ledger.watermark(Stream("coinbase", "BTCC-USD")) is None
