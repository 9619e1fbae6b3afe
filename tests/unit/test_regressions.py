"""Defects and complaints of earlier systems that must not come back.

The numbers are those of the review that SchemaHub began with: ``defect`` was found in the prototype's code,
``complaint`` in the issues of freqtrade, ccxt, Airbyte, Meltano, Binance's public data and others. What is about an
exchange's answers is in test_hostile_answers.py and test_hostile_rows.py, as far as the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import Server, running
from schemahub import errors, events, ingest, raw
from schemahub.answers import parse_rows
from schemahub.commit import Fenced, Superseded
from schemahub.fetch import Fetched, fetch_chunk
from schemahub.mappings import load_mapping
from schemahub.streams import Chunk, Stream, gaps
from tests.unit.sources import FakeSource, row, text_of
from tests.unit.stores import STREAM, Stores, make_stores, segment, tiles
from tests.unit.worlds import Shifted, World, make_world

FAST = {"latency_ms": {"mean": 0, "jitter": 0}, "coinbase": {"limit": "none"}, "binance": {"limit": "none"}}


@pytest.fixture
def stores(aws: boto3.Session) -> Stores:
    return make_stores(aws)


@pytest.fixture
def server() -> Iterator[Server]:
    with running(FAST) as server:
        yield server


@pytest.fixture
def world(aws: boto3.Session, server: Server) -> World:
    return make_world(aws, server.url, Shifted(), cold_start_hours=3.0, cold_start_trades=8_000)


def fault(server: Server, **spec: Any) -> None:
    where = {"exchange": "coinbase", "product": "BTC-USD"}
    server.simulator.faults.add([{**where, **spec}], server.simulator.clock.now_us())


def fetch(source: FakeSource, first: int, last: int) -> Fetched:
    return fetch_chunk(
        source, STREAM, Chunk(first, last), page_size=source.page_size, descending=source.descending, pause=source.pause
    )


def trades(world: World, stream: Stream) -> list[int]:
    """The ids of all committed trades."""
    found = []
    for one in world.deps.ledger.segments(stream):
        content = raw.read(world.deps.objects, one.raw_key, one.sha256, one.count)
        found += [json.loads(line)["trade_id"] for line in content.decode().split("\n")[:-1]]
    return found


# --- defects of the prototype --------------------------------------------------------------------------------------


def test_defect_1_equal_ids_of_two_products_stay_two_trades(stores: Stores) -> None:
    eth = Stream("coinbase", "ETH-USD")
    lease = stores.lease()
    stores.commit(lease, tiles(1, 20), None)
    eth_lease = stores.locks.acquire(eth.lock_id, "me", "me")
    stores.commit(eth_lease, [segment(1, 20, stream=eth)], None)
    assert {(str(s.stream), s.first, s.last) for s in stores.ledger.pending()} == {
        (str(STREAM), 1, 10),
        (str(STREAM), 11, 20),
        (str(eth), 1, 20),
    }


def test_defect_3_no_exchange_is_known_to_the_core_by_name() -> None:
    """The mapping was loaded, then ignored: fields of one exchange were written in the code."""
    for name, body in (
        ("coinbase", b'[{"trade_id":7,"time":"2024-01-01T00:00:00Z"}]'),
        ("binance", b'[{"a":7,"T":1704067200000}]'),
    ):
        (trade,) = parse_rows(body, load_mapping(name))
        assert (trade.position, trade.ts_us) == (7, 1_704_067_200_000_000)


def test_defect_5_the_watermark_cannot_go_back(stores: Stores) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(101, 160), None)
    for attempt in (tiles(101, 130, content="b"), tiles(131, 140, content="b")):
        assert stores.commit(lease, attempt, attempt[0].first - 1) == Superseded(160)
    assert stores.high() == 160


def test_defect_6_a_lost_lease_stops_the_writer(stores: Stores) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(101, 130), None)
    rival = stores.takeover()
    assert stores.commit(lease, tiles(131, 160), 130) == Fenced()
    with pytest.raises(errors.LockLost):
        stores.locks.renew(lease)
    assert rival.fence > lease.fence
    assert stores.high() == 130


@pytest.mark.parametrize("descending", [True, False])
def test_defect_7_an_empty_page_is_not_a_finished_one(descending: bool) -> None:
    for empty in (0, 1, 3):
        source = FakeSource(
            range(1, 60), descending=descending, spoil=lambda asked, page, at=empty: [] if asked.number == at else page
        )
        with pytest.raises(errors.EmptyPage):
            fetch(source, 10, 29)


def test_defect_7_a_stale_node_does_not_make_trades_absent(world: World, server: Server) -> None:
    """The newest trades of the plan are not yet on the node that answers: not now, and not two seconds later."""
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    last = world.chunks(plan["chunks_key"])[-1]
    fault(server, kind="late_ids", match={"ids": [last["last"] - 5, last["last"] + 10_000_000]}, after_s=3_600)
    with pytest.raises(errors.IncompletePage):
        world.fetch(base, lock, last)
    server.simulator.faults.clear()
    world.fetch(base, lock, last)
    found = raw.find(world.deps.objects, STREAM, Chunk(**last))
    assert found is not None
    assert found.absent == ()


def test_a_stray_newest_id_does_not_make_the_future_absent(world: World) -> None:
    """One absurd id in the newest page plans chunks that no trade fills: an error for each, and no watermark there."""
    exchange = world.deps.exchange("coinbase")
    newest = exchange.newest(STREAM)
    far = max(r.position for r in newest) + 50_000
    with pytest.raises(errors.IncompletePage, match="no trade before them"):
        fetch_chunk(
            OnePage(exchange), STREAM, Chunk(far, far + 9), page_size=1000, descending=True, pause=lambda seconds: None
        )


class OnePage:
    """The exchange as ``fetch_chunk`` wants it, without pacing."""

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange

    def page(self, stream: Stream, first: int, last: int, *, pages_left: int) -> Any:
        return self.exchange.page(stream, first, last)


def test_defect_8_keys_are_functions_of_range_and_content(world: World) -> None:
    """Two runs, one week apart in name, write the same objects: none is written twice."""
    keys = []
    for _ in range(2):
        run = world.open("coinbase:BTC-USD")["run"]
        base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
        lock = world.acquire(base)
        world.fetch(base, lock, {"first": 580_000_100, "last": 580_000_109})
        keys.append(list(world.deps.objects.list("schemahub/raw_")))
        world.deps.locks.release_run(run["arn"])
    assert keys[0] == keys[1] == [raw.raw_key(STREAM, 580_000_100, 580_000_109, 10)]


def test_defect_9_a_first_run_is_not_the_whole_history(world: World) -> None:
    world.ingest()
    mark = world.deps.ledger.watermark(STREAM)
    assert mark is not None
    assert 0 < mark.high - mark.low < 8_000


def test_defect_12_a_plan_that_cannot_be_read_is_not_a_plan_of_everything(world: World) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    world.deps.objects.put(plan["chunks_key"], b'{"first": 1')
    with pytest.raises(errors.BadStateInput):
        world.commit(base, lock, plan)
    world.deps.objects.put(plan["chunks_key"], b"")
    with pytest.raises(errors.IncompleteChunks, match="is gone"):
        world.commit(base, lock, plan)


# --- complaints ----------------------------------------------------------------------------------------------------


def test_complaint_1_ids_that_jumped_are_classed_not_only_found() -> None:
    fetched = fetch(FakeSource({*range(1, 15), *range(90, 99)}), 10, 29)
    assert [tuple(a) for a in fetched.absent] == [(15, 29, "exchange_skipped")]


def test_complaint_7_a_page_out_of_order_is_sorted() -> None:
    source = FakeSource(range(1, 60), page_size=20, spoil=lambda asked, page: page[1::2] + page[::2])
    assert fetch(source, 10, 29).texts == tuple(text_of(i) for i in range(10, 30))


def test_complaint_6_repeats_inside_a_page_are_stored_once() -> None:
    fetched = fetch(FakeSource(range(1, 60), spoil=lambda asked, page: page * 3), 10, 29)
    assert len(fetched.texts) == 20
    assert fetched.repeated == 40


@pytest.mark.parametrize("descending", [True, False])
def test_complaints_23_and_26_many_trades_of_one_moment_are_paged_by_id(descending: bool) -> None:
    """Cursors by time lose or repeat a burst whose trades share a millisecond."""
    source = FakeSource(
        range(1, 200),
        page_size=7,
        descending=descending,
        spoil=lambda asked, page: [row(r.position, ts_us=5) for r in page],
    )
    fetched = fetch(source, 10, 129)
    assert fetched.texts == tuple(text_of(i) for i in range(10, 130))
    assert (fetched.repeated, fetched.absent) == (0, ())


def test_complaint_36_a_failed_run_is_continued_where_it_stopped(world: World, server: Server) -> None:
    run = world.open("coinbase:BTC-USD")["run"]
    base = {"execution": world.execution(), "run": run, "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    first, *others = world.chunks(plan["chunks_key"])
    world.fetch(base, lock, first)
    assert others, "a plan of one chunk proves nothing"
    world.commit(base, lock, plan)
    world.deps.locks.release_run(run["arn"])
    assert world.committed() == [(first["first"], first["last"])]
    requests = server.simulator.stats(0, False)["coinbase"]["requests"]
    assert world.ingest()["status"] == "covered"
    assert world.committed()[0] == (first["first"], first["last"])
    assert server.simulator.stats(0, False)["coinbase"]["requests"] - requests <= 2 + 2 * len(others)


def test_complaint_37_a_resumed_run_holds_all_rows_not_only_the_last_ones(world: World, server: Server) -> None:
    fault(server, kind="http_status", status=503, match={"from_head": [-300, -200], "on": "page"})
    with pytest.raises(errors.ExchangeUnavailable):
        world.ingest()
    assert world.committed(), "a part was committed"
    world.deps.locks.release_run(world.execution()["Id"])
    server.simulator.faults.clear()
    world.ingest()
    mark = world.deps.ledger.watermark(STREAM)
    assert mark is not None
    found = trades(world, STREAM)
    assert len(found) == len(set(found))
    assert not gaps([(i, i) for i in found], (mark.low, mark.high))


def test_complaint_38_one_streams_state_never_touches_anothers(stores: Stores) -> None:
    eth = Stream("coinbase", "ETH-USD")
    stores.commit(stores.lease(), tiles(101, 130), None)
    before = stores.ledger.watermark(STREAM)
    lease = stores.locks.acquire(eth.lock_id, "me", "me")
    stores.commit(lease, [segment(101, 130, stream=eth)], None)
    stores.ledger.mark_published([segment(101, 130, stream=eth)], "snapshot-1")
    assert stores.ledger.watermark(STREAM) == before
    assert [s.first for s in stores.ledger.pending()] == [101, 111, 121]


def test_complaint_51_and_52_payloads_stay_small_whatever_the_plan(world: World) -> None:
    """Chunk lists lie in S3; between two states go only names and counts."""
    run = world.open("coinbase:BTC-USD")
    base = {"execution": world.execution(), "run": run["run"], "stream": STREAM.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    outcome = world.commit(base, lock, plan)
    assert outcome["status"] == "partial"
    for answer in (run, lock, plan, outcome):
        assert len(json.dumps(answer)) < 1_000
