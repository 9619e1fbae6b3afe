"""From a hostile exchange to rows of the table in one process: every step, retried as the state machines retry it.

The judge is the simulator's oracle: what the exchange really had, read by rules that are written here once more, away
from the mappings.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import duckdb
import zstandard

from local.exchange_sim.server import Server
from schemahub import events, ingest, publishing, raw, repair
from schemahub.errors import SchemaHubError
from schemahub.repair import Repaired
from schemahub.streams import Stream
from tests.lake import DATABASE
from tests.unit.pages import ROOT
from tests.unit.worlds import STREAM, Shifted, World, make_world

QUIET = {"limit": "none", "trades_per_day": 4_000}
FAST = {"latency_ms": {"mean": 0, "jitter": 0}, "coinbase": QUIET, "binance": QUIET}
BINANCE = Stream("binance", "BTC-USDT")
START = datetime(2026, 6, 1, 10, tzinfo=UTC)
"""When tests begin: a third of a chunk is left to trade, so that a first run is the same at every time of day."""
Trade = tuple[int, str, float, float, int]
"""Id, taker's side, price, quantity, microseconds since the epoch."""


def retries() -> list[dict[str, Any]]:
    """The Retry blocks of ``FetchChunk``, which are those of ``PlanStream`` too."""
    machine = json.loads((ROOT / "statemachines" / "ingest.asl.json").read_text())
    streams = machine["States"]["IngestStreams"]["ItemProcessor"]["States"]
    fetch = streams["FetchChunks"]["ItemProcessor"]["States"]["FetchChunk"]["Retry"]
    assert [r["ErrorEquals"] for r in fetch] == [r["ErrorEquals"] for r in streams["PlanStream"]["Retry"]]
    return list(fetch)


RETRIES = retries()


@dataclass
class Retrying(World):
    """A world whose steps are retried by error name, as often as the state machines do it."""

    retried: Counter[str] = field(default_factory=Counter)

    def call(self, step: Any, model: Any, payload: dict[str, Any]) -> dict[str, Any]:
        blocks = RETRIES if step in (ingest.plan_stream, ingest.fetch_step) else []
        used: Counter[int] = Counter()
        while True:
            try:
                return super().call(step, model, payload)
            except SchemaHubError as error:
                name = type(error).__name__
                number = next((n for n, block in enumerate(blocks) if name in block["ErrorEquals"]), -1)
                if number < 0 or used[number] == blocks[number]["MaxAttempts"]:
                    raise
                delay_s = blocks[number]["IntervalSeconds"] * blocks[number]["BackoffRate"] ** used[number]
                used[number] += 1
                self.retried[name] += 1
                # Half of it: what full jitter is on average.
                self.deps.clock.sleep(min(delay_s, blocks[number]["MaxDelaySeconds"]) / 2)


@dataclass
class Pipeline:
    """A simulated exchange, ingest, transform and the table."""

    server: Server
    world: Retrying
    clock: Shifted
    folder: Path
    publishings: int = 0

    # --- the exchange ---------------------------------------------------------------------------------------------

    def fault(self, kind: str, exchange: str = "coinbase", product: str = "BTC-USD", **spec: Any) -> None:
        fault = {"kind": kind, "exchange": exchange, "product": product, **spec}
        self.server.simulator.faults.add([fault], self.server.simulator.clock.now_us())

    def cure(self) -> None:
        self.server.simulator.faults.clear()

    def later(self, seconds: float) -> None:
        """Time goes on, here and at the exchange."""
        self.clock.ahead_s += seconds
        self.server.simulator.clock.set(None, seconds, None)

    def head(self, stream: Stream = STREAM) -> int:
        return int(json.loads(self.server.simulator.oracle(stream.exchange, stream.product, None, None))["head"])

    def border(self) -> int:
        """Where a chunk begins in the middle of a first run; 200 ids before it and 120 behind are ten minutes old."""
        return (self.head() - 150) // 1_000 * 1_000

    def requests(self, exchange: str = "coinbase") -> int:
        return int(self.server.simulator.stats(0, False)[exchange]["requests"])

    def oracle(self, stream: Stream = STREAM) -> list[Trade]:
        """What the exchange had between the ends of the watermark."""
        mark = self.world.deps.ledger.watermark(stream)
        assert mark is not None
        trades = self.server.simulator.trades(stream.exchange, stream.product, mark.low, mark.high)
        return [_coinbase(t) if stream.exchange == "coinbase" else _binance(t) for t in trades]

    # --- the pipeline -----------------------------------------------------------------------------------------------

    def ingest(self, stream: Stream = STREAM) -> dict[str, Any]:
        """One run over one stream. A run that failed leaves its locks to the rule on its status."""
        try:
            return self.world.ingest(stream)
        except SchemaHubError:
            self.world.deps.locks.release_run(self.world.execution()["Id"])
            raise

    def transform(self) -> dict[str, Any]:
        """Everything pending into the table."""
        self.publishings += 1
        execution = {"Id": f"arn:aws:states:us-east-1:1:execution:transform:t-{self.publishings}", "RedriveCount": 0}
        call = self.world.call
        listed = call(publishing.list_pending, events.ListPending, {"execution": execution, "input": {}})
        body = self.world.deps.objects.get(listed["batches_key"]) or b""
        for line in body.splitlines():
            call(publishing.transform_step, events.BatchStep, {"run": listed["run"], "batch": json.loads(line)})
        if not listed["batches"]:  # as the Choice state HasBatches
            return {"status": "nothing pending"}
        where = {name: listed[name] for name in ("run", "bucket", "batches_key")}
        return call(publishing.publish_step, events.PublishStep, {"execution": execution, **where})

    def run(self, stream: Stream = STREAM) -> None:
        self.ingest(stream)
        self.transform()

    def repair(self, stream: Stream = STREAM, **options: Any) -> list[Repaired]:
        return list(repair.repair_stream(self.world.deps, stream, "gaps:me", **options))

    # --- what there is ----------------------------------------------------------------------------------------------

    def table(self, stream: Stream = STREAM) -> list[Trade]:
        """Every row of a stream in the table, by id."""
        deps, files = self.world.deps, []
        for task in publishing.open_table(deps).scan().plan_files():
            key = task.file.file_path.removeprefix(f"s3://{deps.settings.bucket}/")
            path = self.folder / f"{len(files)}.parquet"
            assert deps.objects.get_to_file(key, path)
            files.append(str(path))
        if not files:
            return []
        return duckdb.execute(
            "SELECT CAST(trade_id AS BIGINT), side, price, quantity, epoch_us(trade_ts) FROM read_parquet(?) "
            "WHERE exchange = ? AND symbol = ? ORDER BY 1",
            [files, stream.exchange.upper(), stream.product],
        ).fetchall()

    def raw_texts(self, stream: Stream = STREAM) -> dict[int, str]:
        """The original of every committed trade."""
        deps, found = self.world.deps, {}
        for segment in deps.ledger.segments(stream):
            body = raw.read(deps.objects, segment.raw_key, segment.sha256, segment.count).decode()
            for text in body.split("\n")[:-1]:
                found[json.loads(text)["trade_id" if stream.exchange == "coinbase" else "a"]] = text
        return found

    def quarantine(self) -> dict[int, str]:
        """Reason by id of each quarantined row (id -1 where the row has none)."""
        objects, found = self.world.deps.objects, {}
        for key in objects.list("schemahub/quarantine/"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(objects.get(key) or b"")
            for line in data.decode().splitlines():
                entry = json.loads(line)
                trade = json.loads(entry["line"])
                found[int(trade.get("trade_id", trade.get("a", -1)))] = entry["reason"]
        return found

    def absent(self, stream: Stream = STREAM) -> list[tuple[int, int, str]]:
        return [tuple(a) for s in self.world.deps.ledger.segments(stream) for a in s.absent]

    def assert_exact(self, stream: Stream = STREAM, without: Iterable[int] = (), least: int = 500) -> None:
        """The table is the exchange, row by row, but for the ids ``without``; and it is not an empty claim."""
        left_out = set(without)
        expected = [trade for trade in self.oracle(stream) if trade[0] not in left_out]
        assert len(expected) >= least
        assert self.table(stream) == expected
        assert list(self.world.deps.ledger.pending()) == []

    def assert_nothing_committed(self, stream: Stream = STREAM) -> None:
        assert self.world.deps.ledger.watermark(stream) is None
        assert list(self.world.deps.ledger.segments(stream)) == []


def make_pipeline(aws: boto3.Session, server: Server, folder: Path, **settings: Any) -> Pipeline:
    """Small chunks and a short first run, so that a test takes about a second."""
    clock = Shifted()
    clock.ahead_s = START.timestamp() - time.time()
    server.simulator.clock.set(clock.ahead_s, None, None)
    aws.client("glue").create_database(DatabaseInput={"Name": DATABASE})
    short = {"cold_start_hours": 24.0, "cold_start_trades": 1_400, "chunk_pages": 1, "database": DATABASE}
    world = make_world(aws, server.url, clock, **{**short, **settings})
    world.deps.rng = random.Random(7)
    return Pipeline(server, Retrying(world.deps), clock, folder)


def _coinbase(trade: dict[str, Any]) -> Trade:
    taker = {"buy": "SELL", "sell": "BUY"}[trade["side"]]
    return trade["trade_id"], taker, float(trade["price"]), float(trade["size"]), _micros(trade["time"])


def _binance(trade: dict[str, Any]) -> Trade:
    return trade["a"], "SELL" if trade["m"] else "BUY", float(trade["p"]), float(trade["q"]), trade["T"] * 1000


def _micros(text: str) -> int:
    when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // when.resolution
