"""The base of every scenario: an empty account, two streams, time standing still; and the judgement at its end.

Worlds are copied by ``fork``: whatever a copy does to its AWS, its exchange or its clock, the original never sees.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, util
from typing import Any

import boto3
import botocore.session
import pyarrow.parquet as pq
import pytest
from moto import mock_aws
from pyiceberg.exceptions import NoSuchTableError

from local.exchange_sim.simulator import Simulator
from local.exchange_sim.world import build_world
from schemahub import mirror
from schemahub.catalog import LakeCatalog
from schemahub.clock import FakeClock
from schemahub.deps import Deps, Settings, build
from schemahub.ledger import Watermark
from schemahub.locks import LEASE_MS
from schemahub.objects import ObjectStore
from schemahub.streams import Stream, covers, gaps, overlapping
from tests.conftest import LOADER, REGION, create_tables, quick_session
from tests.crash.cloud import ROOT, Cloud, Wire
from tests.lake import make_glue_check_versions

STREAMS = (Stream("coinbase", "BTC-USD"), Stream("binance", "BTC-USDT"))
NOW_S = int(datetime(2024, 3, 14, 0, 0, 40, tzinfo=UTC).timestamp())
"""Less than a minute past midnight, so that the first run's rows lie in two partitions."""
SETTLED_S = 10
BUCKET = "schemahub-test-crash"
FUNCTIONS = (
    "open_run", "lock", "plan_stream", "fetch_chunk", "commit_segments", "close_run", "list_pending",
    "transform_batch", "publish", "release_on_failure",
)  # fmt: skip


HEAVY = ("duckdb", "schemahub.transform", "schemahub.publish")
"""What the functions import when they need it; here before the workers are forked."""


class Sessions(boto3.Session):
    """Clients are made once and inherited by the workers: making one takes longer than a whole ingest of ours."""

    def client(self, name: str, **options: Any) -> Any:  # type: ignore[override]
        made = self.__dict__.setdefault("_made", {})
        config = options.get("config")
        key = (name, config and repr(vars(config)["_user_provided_options"]), config and config.user_agent_extra)
        if key not in made:
            made[key] = super().client(name, **options)
        return made[key]


@contextmanager
def base_world() -> Iterator[Cloud]:
    """An empty account with the stack's tables, its bucket, database and topic."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("POWERTOOLS_TRACE_DISABLED", "true")
        patch.setenv("POWERTOOLS_LOG_LEVEL", "ERROR")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        make_glue_check_versions(patch)
        plain = quick_session()
        tables = create_tables(plain)
        plain.client("s3").create_bucket(Bucket=BUCKET)
        plain.client("glue").create_database(DatabaseInput={"Name": "schemahub_test"})
        patch.setenv("SCHEMAHUB_ALARM_TOPIC_ARN", plain.client("sns").create_topic(Name="alarms")["TopicArn"])
        client = plain.client("s3")
        yield make_cloud(tables, lambda bucket, key: ObjectStore(bucket, client).get(key) or b"", patch)


def make_cloud(tables: dict[str, str], read: Callable[[str, str], bytes], patch: pytest.MonkeyPatch) -> Cloud:
    clock = FakeClock((NOW_S + SETTLED_S) * 1000)
    wire = Wire(clock)
    core = botocore.session.get_session()
    core.register_component("data_loader", LOADER)
    session = Sessions(botocore_session=core, region_name=REGION)
    session.events.register("before-send", wire)
    patch.setattr(boto3, "DEFAULT_SESSION", session)
    settings = Settings(
        bucket=BUCKET,
        locks_table=tables["locks"],
        streams_table=tables["streams"],
        throttle_table=tables["throttle"],
        database="schemahub_test",
        cold_start_hours=200 / 3600,
        cold_start_trades=20_000,
        chunk_pages=1,
        endpoints={name: f"http://exchange/{name}" for name in ("coinbase", "binance")},
    )
    deps = build(settings, session=session, clock=clock, http=wire)
    deps.rng = random.Random(1)
    config = {"latency_ms": {"mean": 0, "jitter": 0}, "coinbase": {"limit": "none"}, "binance": {"limit": "none"}}
    simulator = Simulator(build_world({**config, "clock": {"frozen": True}}), real_s=lambda: float(NOW_S))
    LakeCatalog(session)  # its clients too
    for name in HEAVY:
        import_module(name)
    handlers = {name: load_function(name) for name in FUNCTIONS}
    gc.collect()
    gc.freeze()  # or each copy would touch, and so copy, every page of this process
    return Cloud(deps, simulator, clock, handlers, wire, read)


def load_function(name: str) -> Any:
    """The deployed handler's module."""
    spec = util.spec_from_file_location(f"crash_{name}", ROOT / "functions" / name / "app.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- copies of a world ------------------------------------------------------------------------------------------


class Copied(BaseException):
    """Ends a copy from anywhere in its stack; ``report`` is all that leaves it."""


def in_a_copy(cloud: Cloud, act: Callable[[], Any]) -> Any:
    """What ``act`` returns in a copy of this world; its error if it fails there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        gc.disable()  # it dies young
        cloud.forget_worker()
        try:
            report = ("ok", act())
        except BaseException:
            report = ("error", traceback.format_exc())
        leave(cloud, writing, report)
    os.close(writing)
    return collect(reading, pid)


def leave(cloud: Cloud, writing: int, report: tuple[str, Any]) -> None:
    """The end of a copy."""
    try:
        with os.fdopen(writing, "wb") as out:
            pickle.dump(report, out)
        cloud.dismiss()
    finally:
        sys.stdout.flush()
        os._exit(0)


def collect(reading: int, pid: int) -> Any:
    with os.fdopen(reading, "rb") as source:
        body = source.read()
    os.waitpid(pid, 0)
    kind, value = pickle.loads(body) if body else ("error", "the copy died without a word")
    if kind == "error":
        raise AssertionError(value)
    return value


# --- the judgement ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the lake holds, as a reader sees it."""

    rows: list[tuple[str, str, int, str, float, float, int]]
    marks: dict[Stream, Watermark | None]
    mirrors: dict[Stream, Watermark | None]
    tiles: dict[Stream, list[tuple[int, int]]]
    absent: int
    pending: int
    held: list[str]
    """Locks that do not run out as they should. A worker killed before its release leaves one that does."""


def look(deps: Deps) -> Found:
    """In a worker: the table by its own data files, the ledger, the mirrors, the locks."""
    segments = {s: list(deps.ledger.segments(s)) for s in STREAMS}
    bodies = {s: deps.objects.get(s.mirror_key) for s in STREAMS}
    leases = [i for i in deps.locks._table.scan()["Items"] if "owner" in i]
    too_late_ms = deps.clock.now_ms() + LEASE_MS
    return Found(
        table_rows(deps),
        {s: deps.ledger.watermark(s) for s in STREAMS},
        {s: mirror.parse(s, body) if body else None for s, body in bodies.items()},
        {s: [(one.first, one.last) for one in segments[s]] for s in STREAMS},
        sum(len(one.absent) for s in STREAMS for one in segments[s]),
        len(list(deps.ledger.pending())),
        sorted(i["lock_id"] for i in leases if i["lease_until"] > too_late_ms),
    )


def table_rows(deps: Deps) -> list[Any]:
    try:
        table = LakeCatalog(deps.session).load_table((deps.settings.database, deps.settings.table))
    except NoSuchTableError:
        return []
    rows: list[Any] = []
    for task in table.scan().plan_files():
        body = deps.objects.get(task.file.file_path.removeprefix(f"s3://{BUCKET}/"))
        assert body is not None, f"{task.file.file_path} is in the table and not in S3"
        columns = pq.ParquetFile(io.BytesIO(body)).read(use_threads=False)
        names = ("exchange", "symbol", "trade_id", "side", "price", "quantity")
        times = columns.column("trade_ts").cast("int64").to_pylist()
        for row in zip(*(columns.column(n).to_pylist() for n in names), times, strict=True):
            rows.append((row[0], row[1], int(row[2]), *row[3:]))
    return rows


def told(simulator: Simulator, stream: Stream, first: int, last: int) -> list[Any]:
    """The exchange's own trades as rows of the table, by rules written here once more, away from the mappings."""
    trades = simulator.trades(stream.exchange, stream.product, first, last)
    head = (stream.exchange.upper(), stream.product)
    if stream.exchange == "coinbase":
        flipped = {"buy": "SELL", "sell": "BUY"}
        return [
            (*head, t["trade_id"], flipped[t["side"]], float(t["price"]), float(t["size"]), micros(t["time"]))
            for t in trades
        ]
    return [(*head, t["a"], "SELL" if t["m"] else "BUY", float(t["p"]), float(t["q"]), t["T"] * 1000) for t in trades]


def micros(text: str) -> int:
    when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // when.resolution


@dataclass(frozen=True)
class Judgement:
    lost: int
    duplicated: int
    wrong: int
    """Rows that the exchange never told, or told otherwise."""
    problems: tuple[str, ...]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.problems)


def judge(cloud: Cloud, streams: Sequence[Stream] = STREAMS) -> Judgement:
    """The table against the exchange, row by row, from each stream's ``low`` to the exchange's head; and the state."""
    found: Found = cloud.ask(look)
    problems: list[str] = []
    lost = duplicated = wrong = 0
    for stream in streams:
        mark = found.marks[stream]
        head = json.loads(cloud.simulator.oracle(stream.exchange, stream.product, None, None))["head"]
        if mark is None:
            problems.append(f"{stream}: no watermark")
            continue
        if mark.high != head:
            problems.append(f"{stream}: high {mark.high}, the exchange is at {head}")
        problems += [f"{stream}: {p}" for p in untidy(found, stream, mark)]
        expected = told(cloud.simulator, stream, mark.low, max(head, mark.high))
        rows = [r for r in found.rows if r[:2] == expected[0][:2]]
        here = {r[2]: r for r in rows}
        lost += sum(1 for r in expected if r[2] not in here)
        duplicated += len(rows) - len(here)
        wrong += sum(1 for r in expected if r[2] in here and here[r[2]] != r) + len(
            here.keys() - {r[2] for r in expected}
        )
    problems += [f"{wrong} rows are wrong"] if wrong else []
    problems += [f"{found.pending} segments pending"] if found.pending else []
    problems += [f"held for ever: {', '.join(found.held)}"] if found.held else []
    problems += [f"{found.absent} absent ranges"] if found.absent else []
    return Judgement(lost, duplicated, wrong, tuple(problems))


def untidy(found: Found, stream: Stream, mark: Watermark) -> Iterator[str]:
    """What is wrong with a stream's state."""
    tiles, copy = found.tiles[stream], found.mirrors[stream]
    if overlapping(tiles):
        yield f"segments overlap: {overlapping(tiles)[:2]}"
    if not covers(tiles, (mark.low, mark.high)):
        yield f"segments leave holes: {gaps(tiles, (mark.low, mark.high))[:3]}"
    if tiles and (tiles[0][0], tiles[-1][1]) != (mark.low, mark.high):
        yield f"segments {tiles[0][0]}..{tiles[-1][1]} and watermark {mark.low}..{mark.high}"
    if copy is None or (copy.low, copy.high) != (mark.low, mark.high):
        yield f"the mirror says {copy}"
