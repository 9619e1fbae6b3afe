"""The steps of ingest over a real (simulated) exchange: exactly the exchange's trades, whatever goes wrong between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import errors, events, ingest, raw
from schemahub.clock import FakeClock, SystemClock
from schemahub.runtime import parse_event
from schemahub.seed import SEED_KEY
from schemahub.streams import Stream, covers, gaps, overlapping
from tests.unit.worlds import STREAM, Shifted, World, make_world

BINANCE = Stream("binance", "BTC-USDT")
FAST = {"latency_ms": {"mean": 0, "jitter": 0}, "coinbase": {"limit": "none"}, "binance": {"limit": "none"}}


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server) -> World:
    return make_world(aws, server.url, Shifted())


def fault(server: Server, **spec: Any) -> None:
    server.simulator.faults.add([spec], server.simulator.clock.now_us())


def rows(world: World, stream: Stream = STREAM) -> list[dict[str, Any]]:
    """Every trade that the ledger's raw objects hold, each object checked against its hash."""
    found = []
    for segment in world.deps.ledger.segments(stream):
        content = raw.read(world.deps.objects, segment.raw_key, segment.sha256, segment.count)
        found += [json.loads(line) for line in content.decode().splitlines()]
    return found


def assert_sound(world: World, stream: Stream = STREAM, id_field: str = "trade_id") -> None:
    """Invariant 1: the segments tile the watermark, and every id in it is there once or classed absent."""
    segments = list(world.deps.ledger.segments(stream))
    mark = world.deps.ledger.watermark(stream)
    assert mark is not None
    assert not overlapping([s.interval for s in segments])
    assert covers([s.interval for s in segments], (mark.low, mark.high))
    absent = [(a.first, a.last) for s in segments for a in s.absent]
    ids = [row[id_field] for row in rows(world, stream)]
    assert len(ids) == len(set(ids))
    assert not gaps([(i, i) for i in ids] + absent, (mark.low, mark.high))


@pytest.mark.parametrize(("stream", "id_field"), [(STREAM, "trade_id"), (BINANCE, "a")])
def test_a_first_run_holds_every_trade_of_its_range(world: World, stream: Stream, id_field: str) -> None:
    assert world.ingest(stream)["status"] == "covered"
    assert_sound(world, stream, id_field)
    mark = world.deps.ledger.watermark(stream)
    assert mark is not None
    assert 5_000 < mark.high - mark.low < 7_000, "three hours of trades were asked for"


def test_a_second_run_fetches_only_what_is_new(world: World, server: Server) -> None:
    world.ingest()
    before = world.committed()
    server.simulator.clock.set(None, 600, None)
    world.deps.clock.now_ms = lambda: SystemClock().now_ms() + 600_000  # type: ignore[method-assign]
    world.ingest()
    assert world.committed()[: len(before)] == before
    assert len(world.committed()) > len(before)
    assert_sound(world)


def test_the_same_run_twice_changes_nothing(world: World) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    world.fetch_and_commit(base, lock, plan)
    before, objects = world.committed(), list(world.deps.objects.list("schemahub/raw_"))
    assert world.fetch_and_commit(base, lock, plan)["status"] == "covered"
    assert world.committed() == before
    assert list(world.deps.objects.list("schemahub/raw_")) == objects


def test_a_zombie_cannot_commit(world: World) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    for chunk in world.chunks(plan["chunks_key"]):
        world.fetch(base, lock, chunk)
    world.deps.locks.release_run(run["arn"])
    world.deps.locks.acquire(STREAM.lock_id, "somebody-else", "somebody-else")
    with pytest.raises(errors.LockLost):
        world.commit(base, lock, plan)
    assert world.committed() == []


def test_the_prefix_is_committed_when_a_later_chunk_fails(world: World, server: Server) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    chunks = world.chunks(plan["chunks_key"])
    for chunk in chunks[:1]:
        world.fetch(base, lock, chunk)
    outcome = world.commit(base, lock, plan)
    assert outcome["status"] == "partial"
    assert world.committed() == [(c["first"], c["last"]) for c in chunks[:1]]
    with pytest.raises(errors.IncompleteChunks):
        world.commit(base, lock, plan, final=True)
    for chunk in world.chunks(outcome["remaining_key"]):
        world.fetch(base, lock, chunk)
    assert world.commit(base, lock, plan, final=True)["status"] == "covered"
    assert_sound(world)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ({"kind": "html_200"}, errors.MalformedResponse),
        ({"kind": "empty_list"}, errors.EmptyPage),
        ({"kind": "truncated_json"}, errors.MalformedResponse),
        ({"kind": "http_status", "status": 503}, errors.ExchangeUnavailable),
        ({"kind": "http_status", "status": 429}, errors.RateLimited),
        ({"kind": "reset"}, errors.ResponseInterrupted),
    ],
)
def test_a_hostile_answer_is_a_named_error_and_nothing_is_committed(
    world: World, server: Server, kind: dict[str, Any], error: type[Exception]
) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    fault(server, exchange="coinbase", times=None, **kind)
    chunk = world.chunks(plan["chunks_key"])[0]
    with pytest.raises(error) as caught:
        world.fetch(base, lock, chunk)
    assert "coinbase#BTC-USD" in str(caught.value)
    assert list(world.deps.objects.list("schemahub/raw_")) == []
    assert world.commit(base, lock, plan)["committed"] == 0
    assert world.committed() == []


def test_an_unknown_product_is_named(world: World) -> None:
    with pytest.raises(errors.UnknownProduct, match="coinbase#NOPE-USD"):
        world.ingest(Stream("coinbase", "NOPE-USD"))
    with pytest.raises(errors.UnknownProduct, match="binance#NOPE-USD"):
        world.ingest(Stream("binance", "NOPE-USD"))


@pytest.mark.parametrize(
    "product",
    [
        "coinbase:../x",
        "coinbase:BTC USD",
        "coinbase:" + "A" * 300 + "-USD",
        "BTC-USD",
        "coinbase:btc-usd",
        "coinbase:BTC/USD",
        "coinbase:BTC-USD\n",
    ],
)
def test_a_malformed_product_is_refused_before_anything_is_done(world: World, product: str) -> None:
    with pytest.raises(errors.BadProductId):
        world.open(product)
    assert list(world.deps.objects.list("")) == []


def test_an_unreachable_exchange_is_named(aws: boto3.Session) -> None:
    world = make_world(aws, "http://127.0.0.1:9", Shifted())
    with pytest.raises(errors.ExchangeUnavailable, match="coinbase#BTC-USD"):
        world.ingest()


def test_a_busy_exchange_is_skipped_not_failed(world: World) -> None:
    assert world.open("coinbase:BTC-USD")["status"] == "open"
    assert world.open("coinbase:BTC-USD")["status"] == "skipped"


def test_a_run_without_a_seed_is_skipped_and_says_so_and_takes_no_lock(world: World) -> None:
    """The schedule starts with the deployment, before anybody can have written one: nothing is wrong, nothing rings."""
    answer = world.open()
    assert (answer["status"], answer["reason"], answer["streams"]) == ("skipped", "no_seed", 0)
    assert "schemahub update-seed" in answer["message"]
    assert world.deps.locks.holder(ingest.process_lock("coinbase")) is None
    assert list(world.deps.objects.list("")) == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"schema_version": 1, "streams": []}', b'{"schema_version": 2, "streams": []}']
)
def test_a_seed_that_is_broken_or_empty_is_still_an_error(world: World, body: bytes) -> None:
    world.deps.objects.put(SEED_KEY, body)
    with pytest.raises(errors.BadConfig):
        world.open()


def test_a_seed_that_may_not_be_read_is_still_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(key: str) -> bytes:
        raise errors.StoreRefused("AccessDenied")

    monkeypatch.setattr(world.deps.objects, "get", refused)
    with pytest.raises(errors.StoreRefused):
        world.open()


def test_products_that_are_named_need_no_seed(world: World) -> None:
    assert world.open("coinbase:BTC-USD")["status"] == "open"
    world.deps = replace(world.deps, settings=replace(world.deps.settings, products=("binance:BTC-USDT",)))
    assert world.open()["status"] == "open"


@pytest.mark.parametrize(("asked", "at_once"), [(None, (8, 2)), (8, (8, 1)), (3, (3, 1)), (64, (16, 2))])
def test_a_run_says_how_many_streams_and_chunks_go_side_by_side(
    world: World, asked: int | None, at_once: tuple[int, int]
) -> None:
    payload = {"schema_version": 1, "products": ["coinbase:BTC-USD"], "functions_at_a_time": asked}
    opened = world.call(ingest.open_run, events.OpenRun, {"execution": world.execution(), "input": payload})
    stream = {"exchange": "coinbase", "product": "BTC-USD"}
    about = {"execution": world.execution(), "run": opened["run"], "stream": stream}
    lock = world.call(ingest.lock_step, events.LockStep, {**about, "action": "acquire"})
    planned = world.call(ingest.plan_stream, events.PlanStep, {**about, "lock": lock})
    assert (opened["streams_at_a_time"], planned["chunks_at_a_time"]) == at_once
    assert planned["results_prefix"].startswith(f"schemahub/plans/{opened['run']['id']}/coinbase/")


def close(world: World, run: dict[str, Any]) -> dict[str, Any]:
    return world.call(ingest.close_run, events.CloseRun, {"execution": {"Id": run["arn"]}, "run": run})


def test_a_stream_that_a_newer_run_finished_is_not_failed_in_an_old_one(world: World) -> None:
    """The newer one's note replaces the old one's; redriven, the old execution would fail for ever."""
    old = world.open("coinbase:BTC-USD")["run"]
    assert close(world, old)["failed"] == 1  # which gives the exchange back, too
    world.ingest()
    assert close(world, old)["failed"] == 0
    assert close(world, {**old, "opened_at": world.deps.clock.now_ms() + 1})["failed"] == 1
    assert close(world, {**old, "opened_at": None})["failed"] == 1


def test_a_stream_that_this_run_still_holds_is_failed_whoever_finished_it_before(world: World) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    world.deps.ledger.finish_run(STREAM, "arn:another", "done", world.deps.clock.now_ms() + 1)
    world.acquire({"execution": world.execution(), "run": run, "stream": STREAM.to_json()})
    assert close(world, run)["failed"] == 1


def test_a_stream_that_another_run_only_found_busy_is_failed(world: World) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    world.deps.ledger.finish_run(STREAM, "arn:another", "busy", world.deps.clock.now_ms() + 1)
    assert close(world, run)["failed"] == 1


def test_ids_that_the_exchange_never_issued_are_recorded_absent(world: World, server: Server) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    first = world.chunks(plan["chunks_key"])[1]["first"]  # the first one begins anywhere on the grid
    fault(
        server, kind="missing_forever", exchange="coinbase", product="BTC-USD", match={"ids": [first + 10, first + 12]}
    )
    world.fetch_and_commit(base, lock, plan)
    segment = next(iter(world.deps.ledger.segments(STREAM, first)))
    assert segment.absent == ((first + 10, first + 12, "exchange_skipped"),)
    assert_sound(world)


def test_a_first_run_makes_no_plan_from_a_time_that_cannot_be_read(world: World, server: Server) -> None:
    """Only the probes of the past are spoiled, not the newest page."""
    fault(server, kind="set_field", field="time", value="soon", exchange="coinbase", match={"requests": [2, None]})
    with pytest.raises(errors.MalformedResponse, match=r"coinbase#BTC-USD.*the time of trade \d+ cannot be read"):
        world.ingest()


def test_a_first_run_of_a_recording_begins_at_its_first_trade(aws: boto3.Session, recorded: Any) -> None:
    recording = {"exchange": "binance", "product": "XRPETH", "path": str(recorded)}
    with running({**FAST, "recordings": [recording]}) as server:
        world = make_world(
            aws, server.url, Shifted(), cold_start_hours=100_000, cold_start_trades=10**9, chunk_pages=10
        )
        world.ingest(Stream("binance", "XRP-ETH"))
        mark = world.deps.ledger.watermark(Stream("binance", "XRP-ETH"))
        assert (mark.low, mark.high) == (13519807, 13532283)
        assert len(rows(world, Stream("binance", "XRP-ETH"))) == 12_477


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema_version": 2}, errors.SchemaVersionMismatch),
        ({"surplus": 1}, errors.BadStateInput),
        ({"execution": None}, errors.BadStateInput),
        ({"input": {"products": "coinbase:BTC-USD"}}, errors.BadStateInput),
    ],
)
def test_a_payload_that_cannot_be_meant_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    payload = {"schema_version": 1, "execution": {"Id": "a:b"}, "input": {}}
    with pytest.raises(error):
        parse_event(events.OpenRun, {**payload, **change})


def test_fake_and_real_clock_agree_on_the_unit() -> None:
    assert 10**12 < FakeClock().now_ms() < 10**13


def test_a_redrive_finds_its_lock_its_plan_and_its_finished_chunks(world: World, server: Server) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    chunks = world.chunks(plan["chunks_key"])
    for chunk in chunks[:2]:
        world.fetch(base, lock, chunk)
    world.deps.locks.release_run(run["arn"])  # the rule on the failed execution
    sent = server.simulator.stats()["coinbase"]["requests"]
    redriven = {**base, "execution": world.execution(redrive=1)}
    for chunk in chunks:  # the failed Map goes on, its payload still carrying the old fence
        world.fetch(redriven, lock, chunk)
    assert server.simulator.stats()["coinbase"]["requests"] - sent == sum(
        -(-(c["last"] - c["first"] + 1) // 1000) for c in chunks[2:]
    )
    assert world.commit(redriven, lock, plan, final=True)["status"] == "covered"
    assert world.deps.ledger.watermark(STREAM).fence == lock["fence"] + 1
    assert_sound(world)
