"""How far a run is: seen through plans, raw objects and the ledger, all of them faked."""

import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
from rich.console import Console

from schemahub.mappings import load_mapping
from schemahub.paging import Expected, paging_of
from schemahub.plan import to_jsonl
from schemahub.raw import raw_key
from schemahub.streams import Absent, Chunk, Stream
from schemahub_cli import executions, forecast, lake, live
from schemahub_cli.positions import extent, place
from schemahub_cli.watch import Progress, StreamProgress, Watch, trades_per_second
from tests.unit.test_cli import START, FakeObjects, FakeStates

ARN = "arn:aws:states:us-east-1:1:execution:m:run-1"
BTC, ETH, SOL = Stream("coinbase", "BTC-USD"), Stream("coinbase", "ETH-USD"), Stream("binance", "SOL-USDT")
CHUNKS = [Chunk(5, 9_999), Chunk(10_000, 19_999)]


class World:
    """A run of three streams, moved on by the test."""

    def __init__(self) -> None:
        self.objects, self.states, self.now = FakeObjects(), FakeStates(), 100.0
        self.states.ends = {"status": "RUNNING", "stopDate": None}
        self.states.list_map_runs = lambda executionArn: {"mapRuns": []}  # type: ignore[method-assign]
        self.runs: dict[Stream, dict[str, str]] = {}
        self.asked = 0
        stack = SimpleNamespace(client=lambda service: self.states, transform_arn="arn:transform")
        self.watch = Watch(stack, ARN, self.objects, self, now=lambda: self.now)  # type: ignore[arg-type]

    def last_run(self, stream: Stream) -> dict[str, Any] | None:
        self.asked += 1
        return self.runs.get(stream)

    def open(self) -> None:
        body = "".join(json.dumps(s.to_json()) + "\n" for s in (BTC, ETH, SOL))
        self.objects.put("schemahub/plans/run-1/streams.jsonl", body.encode())

    def plan(self, stream: Stream) -> None:
        self.objects.put(f"schemahub/plans/run-1/{stream.exchange}/{stream.product}.jsonl", to_jsonl(CHUNKS))

    def store(self, stream: Stream, chunk: Chunk) -> None:
        self.objects.put(raw_key(stream, chunk.first, chunk.last, chunk.size), b"")

    def finish(self, stream: Stream, outcome: str = "done", run: str = ARN) -> None:
        self.runs[stream] = {"run": run, "outcome": outcome}


@pytest.fixture
def world() -> World:
    return World()


def phases(progress: Progress) -> dict[str, str]:
    return {s.stream.product: s.phase for s in progress.streams}


def test_nothing_is_there_yet(world: World) -> None:
    seen = world.watch.look()
    assert (seen.phase, seen.streams, seen.eta_s) == ("planning", [], None)


def test_each_stream_goes_through_its_phases(world: World) -> None:
    world.open()
    world.plan(BTC)
    world.store(BTC, CHUNKS[0])
    world.objects.put(raw_key(BTC, 0, 4, 5), b"")  # an older segment: not of this plan
    world.finish(ETH, run="an older run")
    seen = world.watch.look()
    assert phases(seen) == {"BTC-USD": "fetching", "ETH-USD": "waiting", "SOL-USDT": "waiting"}
    assert (seen.trades, seen.trades_done, seen.planned) == (19_995, 9_995, 1)
    world.store(BTC, CHUNKS[1])
    assert phases(world.watch.look())["BTC-USD"] == "committing"
    world.finish(BTC)
    world.finish(ETH)
    world.finish(SOL, "busy")
    seen = world.watch.look()
    assert phases(seen) == {"BTC-USD": "committed", "ETH-USD": "nothing new", "SOL-USDT": "busy"}
    assert seen.all_finished
    assert seen.phase == "publishing"
    assert seen.trades_done == 19_995


def test_a_finished_stream_is_not_looked_at_again(world: World) -> None:
    world.open()
    for stream in (BTC, ETH, SOL):
        world.finish(stream)
    world.watch.look()
    world.asked = 0
    world.watch.look()
    assert world.asked == 0


def test_the_time_left_is_the_limits_first_and_the_pace_seen_later(world: World) -> None:
    world.open()
    world.plan(BTC)
    assert trades_per_second("coinbase") == 10_000
    assert world.watch.look().eta_s == pytest.approx(19_995 / 10_000)
    big = [Chunk(0, 99_999), Chunk(100_000, 199_999)]
    world.watch.streams[ETH].chunks = big
    world.store(ETH, big[0])
    world.now += 50
    # 100,000 trades in 50 s: the other 119,995 take a minute.
    assert world.watch.look().eta_s == pytest.approx(119_995 / 2_000)


def test_a_log_gets_a_line_for_each_phase_and_the_end(world: World) -> None:
    world.open()
    world.plan(BTC)
    looks: Iterator[dict[str, Any]] = iter([{"status": "SUCCEEDED", "stopDate": START, "output": "{}"}])

    def sleep(seconds: float) -> None:
        world.states.ends = next(looks)

    text = io.StringIO()
    last = live.follow(world.watch, Console(file=text, width=200), sleep)
    assert last.execution.status == "SUCCEEDED"
    assert "fetching" in text.getvalue()
    assert "succeeded" in text.getvalue()
    assert "0/19,995 trades (0%)" in text.getvalue()


def test_the_picture_names_every_stream(world: World) -> None:
    world.open()
    world.plan(BTC)
    text = io.StringIO()
    Console(file=text, width=120).print(live.picture(world.watch.look()))
    for stream in (BTC, ETH, SOL):
        assert stream.product in text.getvalue()


def test_ingest_comes_back_when_all_is_fetched(world: World) -> None:
    world.open()
    for stream in (BTC, ETH, SOL):
        world.finish(stream)
    last = live.follow(world.watch, Console(quiet=True), until_fetched=True)
    assert last.execution.status == executions.RUNNING


def test_a_forecast_adds_up_and_the_slowest_exchange_decides() -> None:
    planned = [(BTC, CHUNKS), (ETH, []), (SOL, CHUNKS)]
    plan = forecast.Forecast(
        [forecast.of_stream(s, c, paging_of(load_mapping(s.exchange)).expected([], c)) for s, c in planned]
    )
    assert (plan.requests, plan.trades, plan.work.chunks) == (40, 39_990, 4)
    assert plan.minutes * 60 == pytest.approx(2.0)  # 20 requests at 10 a second; Binance is faster
    assert plan.to_json()["cost"]["usd"] > 0
    text = io.StringIO()
    Console(file=text, width=120).print(forecast.table(plan))
    assert "nothing new" in text.getvalue()
    assert "3 streams" in text.getvalue()


def test_positions_that_are_times_are_shown_as_times_and_their_plan_by_the_pace(world: World) -> None:
    kraken, second = Stream("kraken", "BTC-USD"), 10**9
    assert place(BTC, 1_700_000_000_000_000_000) == "1700000000000000000"
    assert place(kraken, 1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"
    assert place(kraken, 1_700_000_000_123_450_999) == "2023-11-14T22:13:20.12345Z"
    assert [extent(kraken, n) for n in (0, 1_500_000, 65 * second)] == ["0 s", "0.0015 s", "1:05"]
    chunks = [Chunk(0, 1_000 * second - 1), Chunk(1_000 * second, 2_000 * second - 1)]
    progress = StreamProgress(kraken, chunks)
    assert (progress.trades, progress.requests) == (2_000, 2)
    progress.chunks_done, progress.trades_done = 1, 650
    assert (progress.trades, progress.requests) == (1_300, 2)
    planned = forecast.of_stream(kraken, chunks, Expected(1_234, 9))
    text = io.StringIO()
    Console(file=text, width=160).print(forecast.table(forecast.Forecast([planned])))
    assert "1970-01-01T00:33:19.999999Z" in text.getvalue()
    assert "1,234" in text.getvalue()


class Books:
    """A ledger with one committed range of BTC-USD."""

    def watermark(self, stream: Stream) -> Any:
        return SimpleNamespace(low=11, high=20) if stream == BTC else None

    def lowest(self, stream: Stream) -> int | None:
        return 11 if stream == BTC else None

    def segments(self, stream: Stream) -> Iterator[Any]:
        if stream != BTC:
            return
        yield SimpleNamespace(absent=(Absent(13, 13, "exchange_skipped"),), count=4, run_id="old")
        yield SimpleNamespace(absent=(), count=5, run_id="run-1")


def table_of(*ids: int) -> Any:
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE trades (exchange VARCHAR, symbol VARCHAR, trade_id VARCHAR, price DOUBLE, "
        "quantity DOUBLE, trade_ts TIMESTAMPTZ)"
    )
    for trade_id in ids:
        connection.execute(
            "INSERT INTO trades VALUES ('COINBASE', 'BTC-USD', ?, ?, 0.5, to_timestamp(? * 600))",
            [str(trade_id), 100.0 + trade_id, trade_id],
        )
    return connection


WHOLE = (11, 12, 14, 15, 16, 17, 18, 19, 20)


@pytest.mark.parametrize(
    ("ids", "missing", "duplicates"),
    [
        (WHOLE, 0, 0),
        (WHOLE[1:], 1, 0),
        ((*WHOLE, 15, 15), 0, 2),
        ((*WHOLE, 21), 0, 1),
        ((*WHOLE[:-1], 999), 1, 1),
        ((), 9, 0),
    ],
)
def test_the_proof_finds_what_is_missing_and_what_is_doubled(
    ids: tuple[int, ...], missing: int, duplicates: int
) -> None:
    [proof] = lake.prove(table_of(*ids), Books(), [BTC, ETH], "run-1")  # type: ignore[arg-type]
    assert (proof.missing, proof.duplicates) == (missing, duplicates)
    assert proof.whole is (missing == duplicates == 0)
    assert (proof.first, proof.last, proof.absent, proof.new) == (11, 20, 1, 5)


@pytest.mark.parametrize(
    ("spoil", "missing", "duplicates"), [("", 0, 0), ("a9", 1, 0), ("twice", 0, 1), ("late", 0, 1)]
)
def test_the_proof_of_a_stream_of_times_counts_texts(spoil: str, missing: int, duplicates: int) -> None:
    bybit, second = Stream("bybit", "BTC-USDT"), 10**9

    class Times:
        def watermark(self, stream: Stream) -> Any:
            return SimpleNamespace(low=100 * second, high=200 * second - 1)

        def lowest(self, stream: Stream) -> int | None:
            return 100 * second if stream == bybit else None

        def segments(self, stream: Stream) -> Iterator[Any]:
            if stream == bybit:
                yield SimpleNamespace(absent=(Absent(100 * second, 120 * second, "lost"),), count=10, run_id="run-1")

    rows = [(f"a{n}", 150 + n) for n in range(10) if f"a{n}" != spoil]
    rows += {"twice": [("a1", 151)], "late": [("a77", 200)]}.get(spoil, [])
    connection = table_of()
    for trade_id, at in rows:
        connection.execute("INSERT INTO trades VALUES ('BYBIT', 'BTC-USDT', ?, 1, 1, to_timestamp(?))", [trade_id, at])
    [proof] = lake.prove(connection, Times(), [bybit], "run-1")  # type: ignore[arg-type]
    assert (proof.missing, proof.duplicates, proof.absent) == (missing, duplicates, 20 * second + 1)
    assert [b.trades for b in lake.bars(connection, bybit, 60, 2)] == [len(rows)]


def test_bars_are_open_high_low_close_in_order() -> None:
    found = lake.bars(table_of(*WHOLE), BTC, 60, 2)
    assert [b.trades for b in found] == [5, 3]
    assert (found[1].open, found[1].high, found[1].low, found[1].close) == (118.0, 120.0, 118.0, 120.0)
    assert found[1].volume == pytest.approx(1.5)
