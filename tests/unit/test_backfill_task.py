"""A task of a heavy backfill: what it commits, how it ends, and that nothing it does is lost or done by a zombie."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import backfill, backfill_pool, backfill_task, coverage, errors, raw
from schemahub.backfill_plan import TaskSpec
from schemahub.backfill_task import read_spec, run_task
from schemahub.exchanges import Answer, Http
from schemahub.pacing import PacedExchange
from schemahub.streams import Chunk, covers
from tests.unit.backfills import Backfill
from tests.unit.pages import ROOT
from tests.unit.worlds import STREAM, Shifted, World, make_world

QUIET = {"limit": "none"}
FAST = {"latency_ms": {"mean": 0, "jitter": 0}, "coinbase": QUIET, "kraken": QUIET}


class Unlimited:
    """A throttle whose slots are always there: the bucket has tests of its own."""

    def wait(self, kind: str, expected: int = 1) -> None:
        pass

    def penalise(self, retry_after_s: float | None = None) -> None:
        pass


@dataclass
class Watched:
    """Http that says before each request which positions are asked for (Coinbase: the page before ``after``)."""

    inner: Http
    asked: list[int] = field(default_factory=list)
    before: Callable[[int], None] = lambda after: None

    def get(self, url: str, params: dict[str, str]) -> Answer:
        after = int(params.get("after", 0))
        self.asked.append(after)
        self.before(after)
        return self.inner.get(url, params)


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@dataclass
class Desk:
    """A planned backfill of 6 chunks of two pages, and its only task."""

    world: World
    run: Backfill
    plan: dict[str, Any]
    spec: TaskSpec
    http: Watched
    low: int
    stop: threading.Event = field(default_factory=threading.Event)

    def work(self, **more: Any) -> backfill_task.TaskResult:
        return run_task(self.world.deps, self.spec, self.stop, **more)

    def durable(self) -> int:
        return sum(raw.find(self.world.deps.objects, STREAM, chunk) is not None for chunk in self.spec.chunks)

    def committed(self) -> set[tuple[int, int]]:
        return {(s.first, s.last) for s in self.world.deps.ledger.segments(STREAM) if s.last < self.low}

    def slow(self, workers: int = 1) -> None:
        """So few threads that chunks are done one after the other."""
        self.spec = replace(self.spec, workers=workers, chunk_concurrency=1)


@pytest.fixture
def desk(aws: boto3.Session, server: Server, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 2_000)
    world = make_world(aws, server.url, Shifted(), cold_start_trades=2_000, backfill_ecs=True)
    http = world.deps.http = Watched(world.deps.http)
    PacedExchange.of(world.deps, "coinbase").throttle = Unlimited()  # type: ignore[assignment]
    world.ingest()
    low = coverage.watermark(world.deps.ledger, STREAM).low
    first = (low - 10_000) // 2_000 * 2_000
    run = Backfill.start(world, {"ids": [first, low - 1]}, route="ecs", tasks=1)
    plan = run.plan()
    [spec] = run.specs(plan)
    assert len(spec.chunks) == 6
    http.asked.clear()
    return Desk(world, run, plan, spec, http, low)


def test_a_task_commits_all_its_chunks_and_lowers_the_watermark(desk: Desk) -> None:
    result = desk.work()
    assert (result.status, result.exit_code) == ("done", 0)
    assert (result.fetched, result.reused, result.missing) == (len(desk.spec.chunks), 0, 0)
    assert desk.committed() == {(c.first, c.last) for c in desk.spec.chunks}
    assert coverage.watermark(desk.world.deps.ledger, STREAM).low == desk.spec.within.first
    assert result.trades == desk.low - desk.spec.within.first
    assert 0 < result.peak_rss_mib < 2_000
    assert desk.run.commit(desk.plan, final=True)["status"] == "covered"


def test_what_it_stores_is_what_the_exchange_had(desk: Desk, server: Server) -> None:
    desk.work()
    for segment in desk.world.deps.ledger.segments(STREAM):
        content = raw.read(desk.world.deps.objects, segment.raw_key, segment.sha256, segment.count)
        told = json.loads(server.simulator.oracle("coinbase", "BTC-USD", segment.first, segment.last))
        ids = [json.loads(line)["trade_id"] for line in content.splitlines()]
        assert ids == [t["trade_id"] for t in (told["trades"] if isinstance(told, dict) else told)]


def test_progress_is_counted_for_the_report(desk: Desk) -> None:
    result = desk.work()
    counted = backfill.counted(desk.world.deps, STREAM, desk.spec.run)
    assert counted["chunks_fetched"] == result.fetched
    assert counted["requests"] == result.requests == len(desk.http.asked)
    assert counted["bytes"] == result.bytes > 10_000
    assert counted["seconds"] > 0


def test_the_second_task_of_a_plan_fetches_nothing(desk: Desk) -> None:
    desk.work()
    desk.http.asked.clear()
    again = desk.work()
    assert (again.status, again.fetched, again.reused) == ("done", 0, len(desk.spec.chunks))
    assert not desk.http.asked


def test_segments_are_committed_while_others_are_still_fetched(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_task, "GROUP", 1)
    desk.slow()
    seen: list[int] = []

    def look(after: int) -> None:
        time.sleep(0.1)
        seen.append(len(desk.committed()))

    desk.http.before = look
    desk.work()
    assert seen[0] == 0
    assert 2 <= seen[-1] <= len(desk.spec.chunks)


def test_a_group_waits_for_others_only_so_long(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_task, "GROUP_S", 0.0)
    desk.slow()
    seen: list[int] = []
    desk.http.before = lambda after: (time.sleep(0.1), seen.append(len(desk.committed())))[1]
    desk.work()
    assert seen[-1] >= 2, "a group of 20 was waited for"


def test_a_stopped_task_takes_no_new_chunk_and_commits_those_in_flight(desk: Desk) -> None:
    desk.slow(2)
    desk.http.before = lambda after: desk.stop.set() if len(desk.http.asked) == 5 else None
    result = desk.work()
    assert (result.status, result.exit_code) == ("stopped", 143)
    assert 3 <= result.fetched <= 4 < len(desk.spec.chunks)
    assert len(desk.committed()) == result.fetched == desk.durable()
    assert len(desk.http.asked) <= 8


def test_a_stop_does_not_wait_for_a_request_that_hangs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_task, "STOP_S", 0.5)
    hang, newest = threading.Event(), desk.spec.chunks[0]

    def before(after: int) -> None:
        if newest.first < after <= newest.last + 1:
            desk.stop.set()
            hang.wait(30)

    desk.http.before = before
    began = time.monotonic()
    result = desk.work()
    assert time.monotonic() - began < 5
    hang.set()
    assert result.status == "stopped"
    assert (newest.first, newest.last) not in desk.committed()
    assert len(desk.committed()) == result.committed == len(desk.spec.chunks) - result.missing


def test_the_patience_after_a_stop_fits_into_what_spot_and_ecs_give() -> None:
    assert backfill_task.STOP_S <= 14, "20 s in all, with the last page and the last commit"


def test_the_rest_of_a_stopped_task_is_another_ones_and_nothing_is_fetched_twice(desk: Desk) -> None:
    desk.slow()
    desk.http.before = lambda after: desk.stop.set() if len(desk.http.asked) == 3 else None
    first = desk.work()
    desk.stop = threading.Event()
    desk.http.before = lambda after: None
    second = desk.work()
    assert (second.status, second.reused) == ("done", first.fetched)
    assert len(desk.http.asked) == len(set(desk.http.asked))
    assert coverage.watermark(desk.world.deps.ledger, STREAM).low == desk.spec.within.first


@pytest.mark.parametrize(("wish", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_pause_and_cancel_end_a_task_in_order(desk: Desk, wish: Any, status: str) -> None:
    desk.slow()

    def before(after: int) -> None:
        time.sleep(0.1)
        if len(desk.http.asked) == 3:
            backfill.want(desk.world.deps, desk.spec.run, wish)

    desk.http.before = before
    result = desk.work(beat_s=0.0)
    assert (result.status, result.exit_code) == (wish, 0)
    assert len(desk.committed()) == result.fetched < len(desk.spec.chunks)
    assert desk.run.commit(desk.plan)["status"] == status


def test_a_task_that_is_not_wanted_does_not_begin(desk: Desk) -> None:
    backfill.want(desk.world.deps, desk.spec.run, "pause")
    assert desk.work().status == "pause"
    assert not desk.http.asked


def test_a_zombie_of_an_older_plan_stops_and_writes_nothing(desk: Desk) -> None:
    desk.slow()
    desk.http.before = lambda after: desk.run.plan() if len(desk.http.asked) == 3 else time.sleep(0.1)
    with pytest.raises(errors.LockLost):
        desk.work(beat_s=0.0)
    # What was committed before the newer plan is committed; nothing after it.
    assert len(desk.committed()) <= 1
    while any(thread.name.startswith("chunks-") for thread in threading.enumerate()):
        time.sleep(0.05)
    assert len(desk.http.asked) <= 5, "its threads go on"


def test_a_commit_under_a_fence_that_is_over_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_task, "GROUP_S", 0.0)
    desk.slow()
    desk.http.before = lambda after: desk.run.plan() if len(desk.http.asked) == 1 else None
    with pytest.raises(errors.LockLost):
        desk.work()
    assert not desk.committed()


def test_a_free_lock_means_a_redrive_so_it_fetches_and_leaves_the_commit_to_the_machine(desk: Desk) -> None:
    desk.world.deps.locks.release(desk.spec.lease)
    result = desk.work()
    assert (result.status, result.committed) == ("done", 0)
    assert not desk.committed()
    assert desk.durable() == len(desk.spec.chunks)
    assert desk.run.commit(desk.plan, final=True)["status"] == "covered"


def test_another_owner_of_the_lock_ends_it(desk: Desk) -> None:
    desk.world.deps.locks.release(desk.spec.lease)
    desk.world.deps.locks.acquire(desk.spec.lease.lock_id, "rival", "rival")
    with pytest.raises(errors.LockLost):
        desk.work()
    assert not desk.http.asked


def test_the_lock_is_renewed_while_it_works(desk: Desk) -> None:
    table = desk.world.deps.locks._table
    until = [table.get_item(Key={"lock_id": desk.spec.lease.lock_id})["Item"]["lease_until"]]
    desk.work(beat_s=0.0)
    until.append(table.get_item(Key={"lock_id": desk.spec.lease.lock_id})["Item"]["lease_until"])
    assert until[1] > until[0]
    assert desk.world.deps.locks._lease_ms / 2 >= backfill_task.BEAT_S * 1000


def test_passing_errors_are_retried_and_cost_no_chunk(desk: Desk, server: Server) -> None:
    server.simulator.faults.add(
        [{"kind": "http_status", "status": 500, "exchange": "coinbase", "product": "BTC-USD", "times": 3}],
        server.simulator.clock.now_us(),
    )
    result = desk.work()
    assert (result.status, result.missing, result.errors) == ("done", 0, {})


def test_a_chunk_that_fails_for_good_leaves_the_others(desk: Desk) -> None:
    bad = desk.spec.chunks[2]

    def before(after: int) -> None:
        if bad.first < after <= bad.last + 1:
            raise errors.ExchangeRefused("status 403")

    desk.http.before = before
    result = desk.work()
    assert (result.status, result.exit_code, result.missing) == ("incomplete", 1, 1)
    assert result.errors == {"ExchangeRefused": 1}
    assert desk.committed() == {(c.first, c.last) for c in desk.spec.chunks} - {(bad.first, bad.last)}
    outcome = desk.run.commit(desk.plan)
    assert (outcome["status"], outcome["remaining"]) == ("partial", 1)


def test_an_exchange_that_refuses_everything_is_not_asked_for_hours(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_pool, "MAX_FAILED_IN_ROW", 3)
    desk.slow()

    def refuse(after: int) -> None:
        raise errors.ExchangeRefused("status 403")

    desk.http.before = refuse
    result = desk.work()
    assert (result.status, result.exit_code) == ("incomplete", 1)
    assert len(desk.http.asked) == 3 < len(desk.spec.chunks)


def test_retries_are_those_that_the_state_machine_gives_fetch_chunk() -> None:
    machine = json.loads((ROOT / "statemachines" / "backfill.asl.json").read_text())
    streams = machine["States"]["BackfillStreams"]["ItemProcessor"]["States"]
    retriers = streams["FetchChunks"]["ItemProcessor"]["States"]["FetchChunk"]["Retry"]
    own = [r for r in retriers if not r["ErrorEquals"][0].startswith("Lambda.")]
    assert [([e.__name__ for e in r.errors], r.interval_s, r.attempts, r.longest_s) for r in backfill_pool.RETRIES] == [
        (r["ErrorEquals"], r["IntervalSeconds"], r["MaxAttempts"], r["MaxDelaySeconds"]) for r in own
    ]
    assert {r["BackoffRate"] for r in own} == {2}


def test_threads_are_bounded_by_the_preset_the_chunks_memory_and_the_rate(desk: Desk) -> None:
    deps, spec = desk.world.deps, replace(desk.spec, chunks=tuple(Chunk(i, i) for i in range(500)))
    many = replace(spec, workers=10, chunk_concurrency=20)
    # 10 a second, each answered within a second: more would wait for slots.
    assert backfill_pool.threads_for(deps, many) == 11
    assert backfill_pool.threads_for(deps, replace(many, workers=2, chunk_concurrency=3)) == 6
    assert backfill_pool.threads_for(deps, replace(many, chunks=spec.chunks[:4])) == 4
    huge = replace(many, chunks=tuple(Chunk(i * 50_000, i * 50_000 + 49_999) for i in range(500)))
    assert backfill_pool.threads_for(deps, huge) == backfill_pool.MAX_TRADES // 50_000


def test_a_task_that_is_gone_or_not_one_is_refused_with_what_to_do(desk: Desk) -> None:
    with pytest.raises(errors.BadStateInput, match="is gone"):
        read_spec(desk.world.deps, "schemahub/plans/x/task.json")
    desk.world.deps.objects.put("schemahub/plans/x/task.json", b"{")
    with pytest.raises(errors.BadStateInput, match="not JSON"):
        read_spec(desk.world.deps, "schemahub/plans/x/task.json")
    desk.world.deps.objects.put("schemahub/plans/x/task.json", b'{"schema_version": 2, "kind": "rest"}')
    with pytest.raises(errors.BadStateInput, match="not a task"):
        read_spec(desk.world.deps, "schemahub/plans/x/task.json")


def test_what_ingest_and_backfill_hold_is_one_line(desk: Desk) -> None:
    desk.work()
    desk.world.ingest()
    mark = coverage.watermark(desk.world.deps.ledger, STREAM)
    assert covers([s.interval for s in desk.world.deps.ledger.segments(STREAM)], (mark.low, mark.high))
