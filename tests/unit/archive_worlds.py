"""An archive and the API of the same simulated exchange, a ledger and a table behind them: files in, rows out."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import duckdb

from local.exchange_sim import generator
from schemahub import archives, events, publishing
from schemahub.archive_correct import correct_file
from schemahub.archive_ingest import ArchiveReport, ingest_file, make_durable
from schemahub.archives import ArchiveFile, Kind
from schemahub.commit import Committed, segment_of
from schemahub.commit_below import commit_islands
from schemahub.corrections import Correction
from schemahub.fetch import Fetched
from schemahub.locks import Lease
from schemahub.mappings import load_mapping
from schemahub.streams import Interval
from tests.unit.pipelines import BINANCE, Pipeline

MAPPING = load_mapping("binance")
TRADES_PER_DAY = 2_400
OLD, NEW = dt.date(2024, 6, 1), dt.date(2025, 3, 10)
"""A day of milliseconds, a day of microseconds."""
WORLD = {
    "latency_ms": {"mean": 0, "jitter": 0},
    "binance": {"limit": "none", "trades_per_day": TRADES_PER_DAY, "products": ["BTC-USDT"]},
    "coinbase": {"products": []},
}


@dataclass
class ArchiveWorld:
    """Wraps a pipeline whose stream is committed near the head already, as a backfill demands."""

    pipeline: Pipeline
    folder: Path
    committed: list[Fetched] = field(default_factory=list)

    @property
    def deps(self) -> Any:
        return self.pipeline.world.deps

    @property
    def simulator(self) -> Any:
        return self.pipeline.server.simulator

    def file(self, begin: dt.date = OLD, kind: Kind = "daily") -> ArchiveFile:
        return archives.file_of(MAPPING, BINANCE, kind, begin)

    def plant(self, kind: str, begin: dt.date | None = None, **args: Any) -> None:
        day = {"begin": begin.isoformat()} if begin else {}
        self.simulator.archives.plant([{"kind": kind, "exchange": "binance", "product": "BTC-USDT", **day, **args}])

    def ids(self, begin: dt.date = OLD, kind: Kind = "daily") -> Interval:
        """The ids of a file's period, as the API knows them."""
        source = self.simulator.listing("binance", "BTC-USDT").source
        since_us, until_us = self.file(begin, kind).period_us
        return Interval(source.first_at_or_after(since_us), source.first_at_or_after(until_us) - 1)

    def commit(self, fetched: Sequence[Fetched]) -> None:
        """As a task commits below the watermark."""
        self.committed += fetched
        deps, now = self.deps, self.deps.clock.now_ms()
        made = [segment_of(BINANCE, make_durable(deps, BINANCE, f), "run", "archive", now) for f in fetched]
        done = commit_islands(deps.ledger, deps.locks, self.lease(), made, deps.clock)
        assert isinstance(done, Committed)

    def lease(self, owner: str = "backfill") -> Lease:
        return self.deps.locks.acquire(BINANCE.backfill_lock_id, owner, owner)

    def ingest(self, begin: dt.date = OLD, kind: Kind = "daily", within: Interval | None = None,
               stop: Event | None = None, **options: Any) -> ArchiveReport:  # fmt: skip
        commit, tick = options.pop("commit", self.commit), options.pop("tick", lambda: None)
        return ingest_file(
            self.deps, BINANCE, self.file(begin, kind), within or self.ids(begin, kind), commit,
            self.folder / "work", stop or Event(), tick, **options,
        )  # fmt: skip

    def table(self, within: Interval) -> list[tuple[int, str, float, float, int]]:
        """Every row of the table with an id of ``within``, after a transform of what is pending."""
        self.pipeline.transform()
        deps, files = self.deps, list[str]()
        for task in publishing.open_table(deps).scan().plan_files():
            path = self.folder / f"{len(files)}.parquet"
            assert deps.objects.get_to_file(task.file.file_path.removeprefix(f"s3://{deps.settings.bucket}/"), path)
            files.append(str(path))
        return duckdb.execute(
            "SELECT CAST(trade_id AS BIGINT) AS id, side, price, quantity, epoch_us(trade_ts) FROM read_parquet(?) "
            "WHERE id BETWEEN ? AND ? ORDER BY 1, 2, 3, 4, 5",
            [files, *within],
        ).fetchall()

    def truth(
        self, within: Interval, without: Iterable[int] = (), micros: bool = False, millis: Iterable[int] = ()
    ) -> list[tuple[int, str, float, float, int]]:
        """What the exchange had; times as finely as the file writes them, ``millis`` are ids that the API gave."""
        gone, coarse = set(without), set(millis)
        product = self.simulator.listing("binance", "BTC-USDT").source.product
        made = []
        for number, us, price, size, buyer_is_maker, _, _ in generator.ticks(product, *within):
            if number not in gone:
                time_us = us if micros and number not in coarse else us - us % 1000
                made.append((number, "SELL" if buyer_is_maker else "BUY", price / 1e8, size / 1e8, time_us))
        return made

    def correct(self, begin: dt.date = OLD, owner: str = "backfill", **options: Any) -> Correction | None:
        return correct_file(
            self.deps, BINANCE, self.file(begin), options.pop("lease", None) or self.lease(owner), self.folder / "work",
            Event(), options.pop("tick", lambda: None), **options,
        )  # fmt: skip

    def rederive(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The state machine ``transform`` with a re-derivation as its input."""
        self.pipeline.publishings += 1
        name = f"arn:aws:states:us-east-1:1:execution:transform:r-{self.pipeline.publishings}"
        execution, call = {"Id": name, "RedriveCount": 0}, self.pipeline.world.call
        listed = call(
            publishing.list_pending, events.ListPending, {"execution": execution, "input": {"rederive": wanted}}
        )
        where = {key: listed[key] for key in ("run", "mode")}
        for line in (self.deps.objects.get(listed["batches_key"]) or b"").splitlines():
            call(publishing.transform_step, events.BatchStep, {**where, "batch": json.loads(line)})
        where |= {key: listed[key] for key in ("bucket", "batches_key")}
        return dict(call(publishing.publish_step, events.PublishStep, {"execution": execution, **where}))

    def state(self, begin: dt.date = OLD, kind: Kind = "daily") -> archives.FileState | None:
        return archives.read_state(self.deps.objects, self.file(begin, kind), MAPPING)


def kinds(report: ArchiveReport) -> dict[str, int]:
    return {p["kind"]: p["count"] for p in report.pathologies()}
