"""The steps of a backfill over a simulated exchange: exactly what is missing below the watermark, whatever happens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import backfill, coverage, errors, raw, seek
from schemahub.backfill_task import run_task
from schemahub.commit import Fenced
from schemahub.commit_below import commit_islands
from schemahub.mappings import load_mapping
from schemahub.streams import Interval, Stream, covers, overlapping
from tests import generated_truth as truth
from tests.unit.backfills import Backfill, segment_in, task
from tests.unit.worlds import STREAM, Shifted, World, make_world

KRAKEN, GEMINI, OKX = Stream("kraken", "BTC-USD"), Stream("gemini", "BTC-USD"), Stream("okx", "BTC-USDT")
BYBIT = Stream("bybit", "BTC-USDT")
NAMES = ("coinbase", "kraken", "gemini", "okx", "bybit", "binance", "bitfinex")
FAST = {"latency_ms": {"mean": 0, "jitter": 0}, **{name: {"limit": "none"} for name in NAMES}}


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server) -> World:
    return make_world(aws, server.url, Shifted(), cold_start_trades=2_000)


def low_of(world: World, stream: Stream = STREAM) -> int:
    return coverage.watermark(world.deps.ledger, stream).low


def by_ecs(world: World, **settings: Any) -> None:
    world.deps.settings = replace(
        world.deps.settings, backfill_ecs=True, backfill_threshold_seconds=0.0, **settings
    )  # fmt: skip


def assert_exact(world: World, server: Server, stream: Stream = STREAM) -> None:
    """Segments tile the watermark and hold exactly what the generator made, islands too."""
    segments = list(world.deps.ledger.segments(stream))
    mark = coverage.watermark(world.deps.ledger, stream)
    assert not overlapping([s.interval for s in segments])
    assert covers([s.interval for s in segments], (mark.low, mark.high))
    mapping, held = load_mapping(stream.exchange), []
    for segment in segments:
        content = raw.read(world.deps.objects, segment.raw_key, segment.sha256, segment.count)
        held += [str(json.loads(line)[mapping.fields.trade_id]) for line in content.splitlines()]
    covered = coverage.covered(world.deps.ledger, stream)
    had = [t for part in covered for t in truth.trades(server.simulator.world, stream.exchange, stream.product, *part)]
    assert len(held) == len(set(held))
    assert sorted(held) == sorted(str(t[0]) for t in had)


@pytest.mark.parametrize("stream", [STREAM, KRAKEN, GEMINI, OKX], ids=str)
def test_a_range_of_positions_is_filled_in(world: World, server: Server, stream: Stream) -> None:
    world.ingest(stream)
    before = coverage.watermark(world.deps.ledger, stream)
    size = 7_000 if stream == STREAM else 7_000 * _pace(world, stream)
    run = Backfill.start(world, {"ids": [before.low - size, before.low - 1]}, stream)
    closed = run.through()
    after = coverage.watermark(world.deps.ledger, stream)
    assert closed["status"] == "done"
    assert after.high == before.high
    assert before.low - size * 1.01 < after.low <= before.low - size * 0.99
    assert_exact(world, server, stream)
    again = Backfill.start(world, {"ids": [after.low, before.high]}, stream)
    assert again.plan()["status"] == "covered", "nothing is planned twice, and nothing above the watermark at all"


@pytest.mark.parametrize("by_task", [False, True])
def test_history_that_changed_between_two_chunks_is_an_error_until_the_worse_one_is_moved_away(
    world: World, server: Server, monkeypatch: pytest.MonkeyPatch, by_task: bool
) -> None:
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 500)
    world.ingest(OKX)
    low = low_of(world, OKX)
    wanted = {"ids": [low - 4_000 * _pace(world, OKX), low - 1]}
    if by_task:
        by_ecs(world)
    run = Backfill.start(world, wanted, OKX, route="ecs" if by_task else "lambda")
    plan = run.plan()
    chunks = world.chunks(plan["chunks_key"])
    middle = chunks[len(chunks) // 2]
    border = truth.numbers(server.simulator.world, "okx", "BTC-USDT", middle["first"], 2**62)[0]
    hidden = {"match": {"ids": [border - 3, border + 3]}, "exchange": "okx", "product": "BTC-USDT"}
    for chunk in chunks:
        if chunk is middle:
            server.simulator.faults.add([{"kind": "missing_forever", **hidden}], server.simulator.clock.now_us())
        run.fetch(chunk)
        server.simulator.faults.clear()
    if by_task:
        results = [run_task(world.deps, spec, threading.Event()) for spec in run.specs(plan)]
        assert sum((r.errors or {}).get("RawConflict", 0) for r in results) == 1
        assert [r.exit_code for r in results].count(1) == 1
    for final in (False, True):
        with pytest.raises(errors.RawConflict, match="another history"):
            run.commit(plan, final=final)
    [missing] = coverage.missing(world.deps.ledger, OKX, Interval(plan["within"]["first"], low - 1))
    assert missing == (middle["first"], middle["last"])
    assert low_of(world, OKX) == middle["last"] + 1, "over what is whole, and no further"
    run.release()
    [key] = world.deps.objects.list(f"{OKX.raw_prefix}{middle['first']:020d}_{middle['last']:020d}_")
    world.deps.objects.client.delete_object(Bucket=world.deps.settings.bucket, Key=key)
    assert Backfill.start(world, wanted, OKX, route="lambda").through()["status"] == "done"
    assert low_of(world, OKX) == plan["within"]["first"]
    assert_exact(world, server, OKX)


def _pace(world: World, stream: Stream) -> int:
    segments = list(world.deps.ledger.segments(stream))
    return int((segments[-1].last - segments[0].first) / sum(s.count for s in segments))


def test_a_range_of_time_is_an_island_until_the_rest_is_filled_in(world: World, server: Server) -> None:
    world.ingest()
    before = low_of(world)
    begin = datetime.now(UTC).timestamp() - 7200
    wanted = {"from": datetime.fromtimestamp(begin, UTC).isoformat(),
              "to": datetime.fromtimestamp(begin + 600, UTC).isoformat()}  # fmt: skip
    run = Backfill.start(world, wanted)
    plan = run.plan()
    first, last = plan["within"]["first"], plan["within"]["last"]
    inside = truth.trades(server.simulator.world, "coinbase", "BTC-USD", first - 1, last + 1)
    assert inside[0][4] < begin * 1e6 <= inside[1][4]
    assert inside[-2][4] < (begin + 600) * 1e6 <= inside[-1][4]
    assert run.through()["status"] == "done"
    assert low_of(world) == before, "the island does not touch the watermark"
    assert coverage.unfetched(world.deps.ledger, STREAM) == [(last + 1, before - 1)]
    Backfill.start(world, {"ids": [first + 10, before - 1]}).through()
    assert low_of(world) == first, "over what came now and the island behind it"
    assert_exact(world, server)


@pytest.mark.parametrize("stream", [STREAM, GEMINI, OKX, KRAKEN], ids=str)
def test_a_moment_is_where_the_exchange_has_it(world: World, server: Server, stream: Stream) -> None:
    world.ingest(stream)
    low = low_of(world, stream)
    for hours in (2.5, 24, 24 * 365):
        when = int((datetime.now(UTC).timestamp() - hours * 3600) * 1e6)
        found = seek.position_at(world.deps, stream, when, Interval(0, low - 1))
        if stream == KRAKEN:
            assert found == when * 1000
            continue
        around = truth.trades(server.simulator.world, stream.exchange, stream.product, max(0, found - 40), found + 40)
        assert found == min(t[0] for t in around if t[4] >= when)
        assert min(t[4] for t in around) < when
    if stream == STREAM:
        assert seek.position_at(world.deps, stream, 0, Interval(low - 5, low - 1)) == low - 5
    far = int(datetime.now(UTC).timestamp() * 1e6) + 10**12
    assert seek.position_at(world.deps, stream, far, Interval(low - 5000, low - 1)) == low


def test_history_begins_where_the_exchange_shows_it(world: World) -> None:
    """Ids that nobody can prove absent are not asked for: the range begins with the first trade that is shown."""
    world.ingest()
    asked = Interval(0, low_of(world) - 1)
    first = seek.beginning(world.deps, STREAM, asked)
    assert first == truth_first(world)
    assert seek.beginning(world.deps, STREAM, Interval(first + 10, asked.last)) == first + 10
    assert seek.beginning(world.deps, STREAM, Interval(0, first - 1)) == first
    run = Backfill.start(world, {"ids": [0, first + 3_000]})
    assert run.plan()["within"]["first"] == first
    assert run.through()["status"] == "done"


def truth_first(world: World) -> int:
    """The oldest id that the exchange answers with."""
    at, step = low_of(world), 1 << 40
    ask = seek.asker(world.deps, STREAM)
    while step:
        if at - step >= 0 and ask(at - step):
            at -= step
        step //= 2
    return at


def test_an_exchange_without_history_says_so(world: World) -> None:
    world.ingest(BYBIT)
    with pytest.raises(errors.NoHistory, match=r"newest trades.*names no archive"):
        Backfill.start(world, "all", BYBIT).plan()


@pytest.mark.parametrize("wanted", ["everything", {"ids": [5, 3]}, {"from": "2024-02-30"}])
def test_what_cannot_be_meant_is_refused_before_anything_is_written(world: World, wanted: Any) -> None:
    with pytest.raises(errors.BadStateInput):
        Backfill.start(world, wanted)
    assert not list(world.deps.objects.list("schemahub/plans/"))


def test_a_way_that_does_not_exist_is_refused(world: World) -> None:
    with pytest.raises(errors.BadConfig, match="BackfillSubnets"):
        Backfill.start(world, "all", route="ecs")


def test_tasks_commit_and_a_plan_takes_what_they_left(world: World, server: Server) -> None:
    by_ecs(world, backfill_tasks=3)
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 40_000, low - 1]})
    plan = run.plan()
    assert (plan["route"], plan["tasks"], plan["tasks_at_a_time"]) == ("ecs", 1, 1)
    spec = run.specs(plan)[0]
    assert spec.lease.lock_id == STREAM.backfill_lock_id
    task(world.deps, replace(spec, chunks=spec.chunks[:2]), world.deps.clock)
    outcome = run.commit(plan)
    assert (outcome["status"], outcome["remaining"]) == ("partial", 1)
    assert low_of(world) == spec.chunks[1].first == outcome["low"]
    second = run.plan()
    assert second["chunks"] == plan["chunks"] - 2
    # The first plan's task is not dead, only slow: what it does now is refused.
    with pytest.raises(errors.LockLost):
        world.deps.locks.renew(spec.lease)
    zombie = segment_in(world.deps, spec, spec.chunks[2])
    assert commit_islands(world.deps.ledger, world.deps.locks, spec.lease, [zombie], world.deps.clock) == Fenced()
    run.work(second)
    assert run.commit(second, final=True)["status"] == "covered"
    run.release()
    assert run.close()["status"] == "done"
    assert_exact(world, server)


def test_what_a_dead_task_had_stored_is_committed_without_fetching(world: World, server: Server) -> None:
    by_ecs(world)
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 30_000, low - 1]})
    plan = run.plan()
    spec = run.specs(plan)[0]
    for chunk in spec.chunks:
        segment_in(world.deps, spec, chunk)
    world.deps.paced.clear()
    world.deps.settings = replace(world.deps.settings, endpoints={"coinbase": "http://127.0.0.1:9/coinbase"})
    outcome = run.commit(plan, final=True)
    assert (outcome["status"], outcome["committed"]) == ("covered", len(spec.chunks))
    assert_exact(world, server)


def test_what_is_missing_in_the_end_is_an_error_with_its_range(world: World, server: Server) -> None:
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 25_000, low - 1]})
    plan = run.plan()
    chunks = world.chunks(plan["chunks_key"])
    for chunk in chunks[:1] + chunks[2:]:
        run.fetch(chunk)
    with pytest.raises(errors.IncompleteChunks, match=f"{chunks[1]['first']}..{chunks[1]['last']}"):
        run.commit(plan, final=True)
    assert coverage.unfetched(world.deps.ledger, STREAM) == [(chunks[1]["first"], chunks[1]["last"])]
    assert low_of(world) == chunks[2]["first"]
    closed = run.close()
    assert (closed["status"], closed["failed"]) == ("failed", 1)
    assert run.report()["streams"][0]["actual"]["missing"] == [[chunks[1]["first"], chunks[1]["last"]]]
    assert Backfill.start(world, {"ids": [low - 25_000, low - 1]}).lock["status"] == "busy", "a redrive may go on"


@pytest.mark.parametrize(("wish", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_run_is_stopped_and_a_new_one_goes_on(world: World, server: Server, wish: Any, status: str) -> None:
    world.ingest()
    low = low_of(world)
    wanted = {"ids": [low - 25_000, low - 1]}
    run = Backfill.start(world, wanted)
    assert backfill.wanted(world.deps, run.run["id"]) == "run"
    plan = run.plan()
    run.fetch(world.chunks(plan["chunks_key"])[-1])
    backfill.want(world.deps, run.run["id"], wish)
    assert run.commit(plan, final=True)["status"] == status, "what is there is committed, and nothing fails"
    assert run.plan()["status"] == status
    run.release(status)
    assert run.close()["status"] == status
    later = Backfill.start(world, wanted)
    again = later.plan()
    assert (again["status"], again["chunks"]) == ("planned", plan["chunks"] - 1)
    assert later.through()["status"] == "done"
    assert_exact(world, server)


def test_a_flag_that_nobody_can_have_meant_is_named(world: World) -> None:
    world.deps.ledger.table.put_item(Item={"stream": "backfill", "item": "run-9", "wanted": "stop"})
    with pytest.raises(errors.CorruptState, match="stop"):
        backfill.wanted(world.deps, "run-9")


def test_the_report_says_what_was_planned_and_what_came(world: World) -> None:
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 25_000, low - 1]})
    backfill.count(world.deps, STREAM, run.run["id"], requests=20, chunks_fetched=2, bytes=1000, seconds=1.5)
    backfill.count(world.deps, STREAM, run.run["id"], requests=6, chunks_reused=1)
    run.through()
    report = run.report()
    one = report["streams"][0]
    assert report["planned"]["trades"] == report["actual"]["trades"] == 25_000
    assert one["planned"]["requests"] == 26
    assert {n: one["actual"][n] for n in ("requests", "chunks_fetched", "chunks_reused", "seconds")} == {
        "requests": 26, "chunks_fetched": 2, "chunks_reused": 1, "seconds": 1.5,
    }  # fmt: skip
    objects = world.deps.objects
    mine = [s for s in world.deps.ledger.segments(STREAM) if s.last < low]
    assert one["actual"]["bytes"] == sum((objects.head(s.raw_key) or {})["size"] for s in mine) > 0
    assert one["actual"]["chunks"] == one["planned"]["chunks"]
    assert (one["outcome"], one["within"]) == ("covered", [low - 25_000, low - 1])
    assert "lower bounds" in report["notes"]


def test_what_functions_fetched_is_not_said_to_be_nothing(world: World) -> None:
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 25_000, low - 1]}, route="lambda")
    run.through()
    actual = run.report()["streams"][0]["actual"]
    assert (actual["requests"], actual["seconds"], actual["trades"]) == (None, None, 25_000)
    assert run.report()["actual"]["requests"] == 0


def test_an_ingest_in_between_sees_nothing_of_a_backfill(world: World, server: Server) -> None:
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 25_000, low - 1]})
    plan = run.plan()
    open_run = world.open(f"{STREAM.exchange}:{STREAM.product}")["run"]
    base = {"execution": world.execution(), "run": open_run, "stream": STREAM.to_json()}
    assert world.acquire(base)["status"] == "held", "its lock is another"
    run.work(plan)
    run.commit(plan, final=True)
    run.release()
    assert world.deps.ledger.last_run(STREAM, "backfill") == {
        "stream": str(STREAM), "item": "last_backfill", "run": run.run["arn"], "outcome": "done",
        "finished_at": world.deps.ledger.last_run(STREAM, "backfill")["finished_at"],  # type: ignore[index]
    }  # fmt: skip
    assert world.deps.ledger.last_run(STREAM)["run"] != run.run["arn"]  # type: ignore[index]
    assert_exact(world, server)


def test_archive_files_come_first_and_what_they_lack_is_asked_for(world: World, server: Server) -> None:
    by_ecs(world)
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 25_000, low - 1]})
    asked: list[Any] = []

    def files(deps: Any, stream: Stream, parts: Any) -> Any:
        asked.append(list(parts))
        return [({"name": "2023-01.zip"}, parts[0])]

    def plan(**more: Any) -> dict[str, Any]:
        payload = {**run.base, "lock": run.lock, "request": run.request, **more}
        from schemahub import events
        from schemahub.runtime import parse_event

        event = parse_event(events.PlanBackfill, {"schema_version": 1, **payload})
        return backfill.plan_backfill(event, world.deps, files)

    settings = world.deps.settings
    world.deps.settings = replace(settings, backfill_ecs=False)
    assert (plan()["source"], asked) == ("rest", []), "functions take no files"
    world.deps.settings = settings
    first = plan()
    assert (first["source"], first["route"], first["tasks"], first["chunks"]) == ("archive", "ecs", 1, 0)
    spec = run.specs(first)[0]
    assert (spec.kind, spec.file, spec.within) == ("archive", {"name": "2023-01.zip"}, asked[0][0])
    assert run.commit(first)["status"] == "partial", "the file's task did nothing"
    second = plan(source="rest")
    assert (second["source"], len(asked)) == ("rest", 1)
    run.work(second)
    assert run.commit(second, final=True)["status"] == "covered"
    assert_exact(world, server)


def test_a_plan_that_is_gone_is_not_taken_for_done(world: World) -> None:
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 5_000, low - 1]})
    plan = run.plan()
    gone = plan | {"chunks_key": plan["chunks_key"].replace("/000002/", "/000099/")}
    with pytest.raises(errors.IncompleteChunks, match="is gone"):
        run.commit(gone)
    with pytest.raises(errors.BadStateInput):
        run.commit(plan | {"chunks_key": "schemahub/config/products.json"})


def test_too_much_for_one_plan_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ingest()
    low = low_of(world)
    monkeypatch.setattr(backfill, "MAX_PLAN", 2)
    with pytest.raises(errors.BadStateInput, match="in several runs"):
        Backfill.start(world, {"ids": [low - 50_000, low - 1]}).plan()


def test_a_lost_answer_of_the_plan_makes_another_fence_and_no_harm(world: World) -> None:
    world.ingest()
    low = low_of(world)
    run = Backfill.start(world, {"ids": [low - 5_000, low - 1]})
    one, two = run.plan(), run.plan()
    assert one["chunks_key"] != two["chunks_key"]
    assert world.chunks(one["chunks_key"]) == world.chunks(two["chunks_key"])
    run.work(two)
    assert run.commit(two)["status"] == "covered"


def test_both_notes_are_kept_apart_when_the_backfill_is_busy(world: World) -> None:
    world.ingest()
    Backfill.start(world, "all")
    assert Backfill.start(world, "all").lock == {"status": "busy"}
    assert (world.deps.ledger.last_run(STREAM) or {})["outcome"] == "done"
    assert (world.deps.ledger.last_run(STREAM, "backfill") or {})["outcome"] == "busy"
