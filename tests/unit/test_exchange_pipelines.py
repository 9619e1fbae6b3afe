"""Every exchange that has a mapping, from its simulator to rows of the table, in one process.

The judge is ``tests.generated_truth``, which knows what was traded and nothing of mappings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pytest

from local.exchange_sim.server import Server, running
from schemahub import certificate, errors, events, ingest, publishing, query, rebuild
from schemahub.audit import audit, recheck
from schemahub.certificate import SignOff
from schemahub.lake import Lake, lake_of
from schemahub.mappings import exchanges, load_mapping
from schemahub.streams import Stream, covers, overlapping
from tests import generated_truth
from tests.unit.pipelines import Pipeline, make_pipeline

QUIET = {"limit": "none", "trades_per_day": 4_000}
WORLD = {"latency_ms": {"mean": 0, "jitter": 0}, **dict.fromkeys(exchanges(), QUIET)}
NEWEST = sorted(e for e in exchanges() if load_mapping(e).requests.page.asks == "newest")
POLL_S = {"bybit": 600.0}
"""How long a run may wait for the next one before trades are lost: 60 trades are 1,296 s at 4,000 a day."""


@pytest.fixture
def server() -> Iterator[Server]:
    with running(WORLD) as server:
        yield server


@pytest.fixture
def pipe(aws: boto3.Session, server: Server, tmp_path: Path) -> Pipeline:
    return make_pipeline(aws, server, tmp_path)


ALWAYS = ("bybit", "gemini", "kraken")
"""Texts that nobody orders, ids that skip numbers, nanoseconds: the other exchanges belong to the long form."""


@pytest.fixture(params=exchanges())
def stream(request: Any, server: Server) -> Stream:
    return Stream(request.param, generated_truth.streams_of(server.simulator.world, request.param)[0])


@pytest.fixture(params=[pytest.param(e, marks=() if e in ALWAYS else pytest.mark.long) for e in exchanges()])
def each(request: Any, server: Server) -> Stream:
    return Stream(request.param, generated_truth.streams_of(server.simulator.world, request.param)[0])


def copies(pipe: Pipeline) -> list[str]:
    """The table's data files on this machine."""
    deps, files = pipe.world.deps, []
    for task in publishing.open_table(deps).scan().plan_files():
        path = pipe.folder / task.file.file_path.rsplit("/", 1)[-1]
        assert deps.objects.get_to_file(task.file.file_path.removeprefix(f"s3://{deps.settings.bucket}/"), path)
        files.append(str(path))
    return files


def lake(pipe: Pipeline) -> Lake:
    """The table as ``verify`` finds it, read from copies."""
    files = copies(pipe)
    return replace(lake_of(pipe.world.deps), connect=lambda: query.open_files(files))


def table(pipe: Pipeline, stream: Stream) -> list[generated_truth.Trade]:
    """The stream's rows in the table, by time and id."""
    return duckdb.execute(
        "SELECT CAST(trade_id AS BIGINT) AS id, side, price, quantity, epoch_us(trade_ts) AS us FROM read_parquet(?) "
        "WHERE exchange = ? AND symbol = ? ORDER BY us, id",
        [copies(pipe), stream.exchange.upper(), stream.product],
    ).fetchall()


def assert_exact(pipe: Pipeline, stream: Stream, least: int) -> int:
    """The table is the exchange between the ends of the watermark, which the segments tile; how many rows."""
    ledger = pipe.world.deps.ledger
    mark, segments = ledger.watermark(stream), [s.interval for s in ledger.segments(stream)]
    assert mark is not None
    assert not overlapping(segments)
    assert covers(segments, (mark.low, mark.high))
    rows = table(pipe, stream)
    assert rows == generated_truth.trades(
        pipe.server.simulator.world, stream.exchange, stream.product, mark.low, mark.high
    )
    assert len(rows) >= least
    assert max(Counter(row[0] for row in rows).values()) == 1
    assert list(ledger.pending()) == []
    return len(rows)


def least_of(stream: Stream) -> int:
    return 40 if stream.exchange == "bybit" else 1_000


def test_a_first_and_a_second_run_hold_what_was_traded(pipe: Pipeline, stream: Stream) -> None:
    pipe.run(stream)
    before = assert_exact(pipe, stream, least_of(stream))
    pipe.later(POLL_S.get(stream.exchange, 3600.0))
    pipe.run(stream)
    after = assert_exact(pipe, stream, least_of(stream))
    assert after - before >= (25 if stream.exchange == "bybit" else 150)
    assert not [a for s in pipe.world.deps.ledger.segments(stream) for a in s.absent]
    assert pipe.run(stream) is None
    assert_exact(pipe, stream, after)


def signed(pipe: Pipeline, stream: Stream, deep: bool) -> list[Any]:
    """What ``verify`` finds of the stream and of the table; a whole stream's certificate is stored."""
    deps, sign_off = pipe.world.deps, SignOff("me", pipe.clock.now_ms(), "test", deep)
    verdicts = list(audit(deps, lambda: lake(pipe), [stream], deep=deep, sign_off=sign_off))
    for verdict in verdicts:
        if verdict.document:
            assert certificate.store(deps.objects, verdict.document)
    return [f for v in verdicts for f in v.findings]


def test_verify_proves_it_and_its_certificate_is_enough(pipe: Pipeline, each: Stream) -> None:
    stream = each
    pipe.run(stream)
    for deep in (False, True):
        assert signed(pipe, stream, deep) == []
    deps = pipe.world.deps
    chain = certificate.chain_of(deps.objects, stream)
    assert [c.document["number"] for c in chain] == [1, 2]
    rows, counts = len(table(pipe, stream)), chain[-1].document["counts"]
    assert counts["rows"] == counts["trades"] == rows
    pipe.later(600)
    pipe.run(stream)
    for deep in (False, True):
        verdict = recheck(lake(pipe), chain, deep=deep)
        assert (list(verdict.findings), verdict.rows) == ([], rows)


def test_a_killed_run_is_made_whole_by_the_next(pipe: Pipeline, each: Stream) -> None:
    """Some chunks are there and a part of them is committed when it dies; the next plan is another one."""
    stream = each
    world = pipe.world
    run = world.open(f"{stream.exchange}:{stream.product}")["run"]
    base = {"execution": world.execution(), "run": run, "stream": stream.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    chunks = world.chunks(plan["chunks_key"])
    for chunk in {**{c["first"]: c for c in (*chunks[: len(chunks) // 2], chunks[-1])}}.values():
        world.fetch(base, lock, chunk)
    if len(chunks) > 2:
        assert world.commit(base, lock, plan)["status"] == "partial"
    world.deps.locks.release_run(run["arn"])
    pipe.later(60)
    pipe.run(stream)
    assert_exact(pipe, stream, least_of(stream))
    for chunk in chunks:  # a worker that nobody told
        world.fetch(base, lock, chunk)
    assert_exact(pipe, stream, least_of(stream))


@pytest.mark.parametrize("exchange", ["kraken", "bitfinex"])
def test_trades_that_share_their_times_across_pages(aws: boto3.Session, tmp_path: Path, exchange: str) -> None:
    """A trade each 864 µs: many share a millisecond, some a microsecond; all of the newest answer is too young."""
    busy = {"limit": "none", "trades_per_day": 100_000_000}
    with running({**WORLD, exchange: busy}) as server:
        pipe = make_pipeline(aws, server, tmp_path, cold_start_trades=25_000)
        stream = Stream(exchange, generated_truth.streams_of(server.simulator.world, exchange)[0])
        server.simulator.clock.set(None, None, True)
        pipe.run(stream)
        assert_exact(pipe, stream, 10_000)
        pipe.later(5)
        pipe.run(stream)
        rows = table(pipe, stream)
        assert_exact(pipe, stream, 15_000)
        ties = Counter(row[4] for row in rows)
        assert sum(n > 1 for n in ties.values()) > 500


@pytest.mark.parametrize("exchange", ["kraken", "bitfinex", "gemini", "okx"])
def test_history_that_was_pruned_is_said_and_nothing_is_committed(pipe: Pipeline, exchange: str) -> None:
    """The chunk behind the watermark, whole chunks after it and a part of one: none may look like a quiet time."""
    world = pipe.server.simulator.world
    stream = Stream(exchange, generated_truth.streams_of(world, exchange)[0])
    pipe.run(stream)
    rows = assert_exact(pipe, stream, 1_000)
    mark, listing = (
        pipe.world.deps.ledger.watermark(stream),
        generated_truth.listing_of(world, exchange, stream.product),
    )
    assert mark is not None
    pipe.later(12 * 3600)
    behind = generated_truth.numbers(world, exchange, stream.product, mark.low, mark.high)
    spec = {"exchange": exchange, "product": listing.name, "match": {"ids": [listing.source.first_id, behind[1] + 700]}}
    pipe.server.simulator.faults.add([{"kind": "missing_forever", **spec}], pipe.server.simulator.clock.now_us())
    with pytest.raises((errors.IncompletePage, errors.EmptyPage)):
        pipe.ingest(stream)
    assert pipe.world.deps.ledger.watermark(stream) == mark
    pipe.cure()
    pipe.run(stream)
    assert assert_exact(pipe, stream, 1_000) > rows


def test_history_that_changed_between_two_chunks_is_not_committed(pipe: Pipeline) -> None:
    world, stream = pipe.world, Stream("okx", "BTC-USDT")
    run = world.open(str(stream))["run"]
    base = {"execution": world.execution(), "run": run, "stream": stream.to_json()}
    lock = world.acquire(base)
    plan = world.call(ingest.plan_stream, events.PlanStep, {**base, "lock": lock})
    chunks = world.chunks(plan["chunks_key"])
    for chunk in chunks[:4]:
        world.fetch(base, lock, chunk)
    # The plan's last trade before the border is gone, and what follows it.
    border = generated_truth.numbers(pipe.server.simulator.world, "okx", "BTC-USDT", chunks[4]["first"], 2**62)[0]
    pipe.fault("missing_forever", "okx", "BTC-USDT", match={"ids": [border - 3, border + 3]})
    for chunk in chunks[4:]:
        world.fetch(base, lock, chunk)
    with pytest.raises(errors.RawConflict, match="different histories"):
        world.commit(base, lock, plan)
    mark = world.deps.ledger.watermark(stream)
    assert mark is not None
    assert mark.high == chunks[3]["last"]
    assert list(world.deps.ledger.segments(stream))
    with pytest.raises(errors.RawConflict, match="different histories"):
        world.commit(base, lock, plan, final=True)
    world.deps.locks.release_run(run["arn"])
    pipe.cure()
    with pytest.raises(errors.RawConflict, match="different histories"):
        pipe.ingest(stream)  # its plan begins with the torn chunk, and finds the object
    assert world.deps.ledger.watermark(stream) == mark


@pytest.mark.parametrize(
    ("exchange", "cap", "says"),
    [("bybit", 1_400, "Lower requests.settle_seconds"), ("kraken", 3, "Raise ColdStartTrades")],
)
def test_a_first_run_that_finds_only_trades_too_young_says_so(
    aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str, cap: int, says: str
) -> None:
    """100 trades a second: of the newest 60 none has settled, or none of those that a first run takes."""
    busy = {"limit": "none", "trades_per_day": 8_640_000}
    with running({**WORLD, exchange: busy}) as server:
        pipe = make_pipeline(aws, server, tmp_path, cold_start_trades=cap)
        stream = Stream(exchange, generated_truth.streams_of(server.simulator.world, exchange)[0])
        said: list[str] = []
        monkeypatch.setattr(pipe.world.deps, "call_attention", lambda message, about: said.append(message))
        assert pipe.ingest(stream)["status"] == "nothing_new"
        [message] = said
        assert says in message
        assert pipe.world.deps.ledger.watermark(stream) is None


@pytest.mark.parametrize(("exchange", "late_s"), [("bybit", 400.0), ("bitstamp", 4_000.0)])
def test_a_first_run_that_is_late_begins_where_the_answer_does_and_records_no_hole(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, exchange: str, late_s: float
) -> None:
    """Nothing was committed, so nothing can be lost: what went by between the plan and its fetch is not of the run."""
    stream = Stream(exchange, generated_truth.streams_of(pipe.server.simulator.world, exchange)[0])
    said: list[str] = []
    monkeypatch.setattr(pipe.world.deps, "call_attention", lambda message, about: said.append(message))
    fetch, planned = ingest.fetch_step, []

    def late(event: events.FetchStep, deps: Any) -> dict[str, Any]:
        planned.append(event.chunk.value())
        pipe.later(late_s)
        first = fetch(event, deps)
        pipe.later(late_s / 8)  # a retry whose answer had been lost finds the object of the first
        assert (first["status"], fetch(event, deps)["status"]) == ("fetched", "there")
        return first

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "fetch_step", late)
        assert pipe.ingest(stream)["status"] == "covered"
    mark = pipe.world.deps.ledger.watermark(stream)
    [segment] = pipe.world.deps.ledger.segments(stream)
    [chunk] = planned
    assert mark is not None
    assert said == []
    assert segment.absent == ()
    assert chunk.first < mark.low == segment.first
    assert mark.high == chunk.last
    pipe.later(60)
    pipe.run(stream)
    mark = pipe.world.deps.ledger.watermark(stream)
    assert mark is not None
    assert said == []
    assert table(pipe, stream) == generated_truth.trades(
        pipe.server.simulator.world, exchange, stream.product, mark.low, mark.high
    )
    assert rebuild.rebuild(pipe.world.deps, stream, dry_run=True).segments == 0
    assert signed(pipe, stream, True) == []


@pytest.mark.parametrize("exchange", NEWEST)
def test_a_window_that_ran_over_is_a_hole_that_stays_lost(
    pipe: Pipeline, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(exchange, generated_truth.streams_of(pipe.server.simulator.world, exchange)[0])
    pipe.run(stream)
    said: list[str] = []
    monkeypatch.setattr(pipe.world.deps, "call_attention", lambda message, about: said.append(message))
    pipe.later(3 * 86_400.0)
    pipe.run(stream)
    ledger = pipe.world.deps.ledger
    [lost] = [a for s in ledger.segments(stream) for a in s.absent]
    mark = ledger.watermark(stream)
    assert mark is not None
    assert (lost.kind, len(said)) == ("lost", 1)
    assert "are lost" in said[0]
    true = generated_truth.trades(pipe.server.simulator.world, exchange, stream.product, mark.low, mark.high)
    kept = [trade for trade in true if not lost.first <= trade[4] * 1000 <= lost.last]
    assert table(pipe, stream) == kept
    assert len(true) - len(kept) > 4_000
    for _ in range(4):
        pipe.later(3600)
        assert [(r.filled, r.after.state, r.after.proved) for r in pipe.repair(stream)] == [(0, "lost", False)]
    assert signed(pipe, stream, True) == []
    document = certificate.chain_of(pipe.world.deps.objects, stream)[-1].document
    assert document["counts"]["absent"] == lost.last - lost.first + 1
    assert recheck(lake(pipe), certificate.chain_of(pipe.world.deps.objects, stream)).findings == ()
    found = rebuild.rebuild(pipe.world.deps, stream, dry_run=True)
    assert found is not None
    assert not found.changed


def test_a_lost_ledger_comes_back_from_what_s3_holds(pipe: Pipeline, each: Stream) -> None:
    stream = each
    pipe.run(stream)
    ledger = pipe.world.deps.ledger
    before, mark = list(ledger.segments(stream)), ledger.watermark(stream)
    assert mark is not None
    for item in ledger.table.scan()["Items"]:
        ledger.table.delete_item(Key={"stream": item["stream"], "item": item["item"]})
    found = rebuild.rebuild(pipe.world.deps, stream)
    assert found is not None
    assert (found.low, found.high, found.segments) == (mark.low, mark.high, len(before))
    assert [(s.interval, s.count, s.counted) for s in ledger.segments(stream)] == [
        (s.interval, s.count, s.counted) for s in before
    ]
    pipe.later(POLL_S.get(stream.exchange, 600.0))
    pipe.run(stream)
    assert_exact(pipe, stream, least_of(stream))
