"""Which files there are, where they lie, what is known of them, and which are worth a task."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub.archive_ingest import run_planned
from schemahub.archive_plan import archive_files
from schemahub.archives import (
    ArchiveFile,
    FileState,
    address_of,
    archive_of,
    file_of,
    files_for,
    parse_checksum,
    parse_state,
    reissued,
    write_state,
)
from schemahub.backfill_plan import TaskSpec
from schemahub.commit import Committed, segment_of
from schemahub.commit_below import commit_islands
from schemahub.coverage import missing
from schemahub.errors import ArchiveUnreadable, BadStateInput, CorruptState
from schemahub.mappings import load_mapping
from schemahub.objects import ObjectStore
from schemahub.streams import Interval, RawObject, Segment, Stream
from tests.unit.archive_worlds import MAPPING, OLD, WORLD, ArchiveWorld
from tests.unit.pipelines import BINANCE, make_pipeline

DAY_US = 86_400_000_000


def us(text: str) -> int:
    return int(dt.datetime.fromisoformat(text + "+00:00").timestamp()) * 1_000_000


def names(since: str, until: str, now: str, absent: frozenset[str] = frozenset()) -> list[str]:
    return [f.name for f in files_for(MAPPING, BINANCE, us(since), us(until), us(now) // 1000, absent)]


def test_whole_months_are_months_and_the_rest_are_days() -> None:
    assert names("2024-01-30T05:00:00", "2024-03-02T01:00:00", "2024-06-01") == [
        "BTCUSDT-aggTrades-2024-01-30.zip",
        "BTCUSDT-aggTrades-2024-01-31.zip",
        "BTCUSDT-aggTrades-2024-02.zip",
        "BTCUSDT-aggTrades-2024-03-01.zip",
        "BTCUSDT-aggTrades-2024-03-02.zip",
    ]


def test_a_month_that_is_not_there_is_its_days() -> None:
    found = names("2024-02-01", "2024-03-01", "2024-06-01", frozenset({"BTCUSDT-aggTrades-2024-02.zip"}))
    assert len(found) == 29
    assert found[-1] == "BTCUSDT-aggTrades-2024-02-29.zip"


def test_what_is_not_out_yet_is_not_asked_for() -> None:
    """binance-public-data#375: files come a day or more after their end."""
    assert names("2024-03-01", "2024-03-04", "2024-03-04T12:00:00") == [
        "BTCUSDT-aggTrades-2024-03-01.zip",
        "BTCUSDT-aggTrades-2024-03-02.zip",
    ]
    assert names("2024-03-04", "2024-03-04", "2024-06-01") == []


def test_an_exchange_without_such_files_has_none() -> None:
    for name in ("coinbase", "bybit"):  # bybit's have ids of their own
        mapping = load_mapping(name)
        assert archive_of(mapping) is None
        assert files_for(mapping, Stream(name, "BTC-USDT"), 0, 10 * DAY_US, 10**14) == []
        with pytest.raises(BadStateInput):
            file_of(mapping, Stream(name, "BTC-USDT"), "daily", OLD)
        with pytest.raises(BadStateInput):
            address_of(mapping, None)


def test_the_path_is_the_mappings_never_the_payloads() -> None:
    file = file_of(MAPPING, BINANCE, "monthly", dt.date(2024, 6, 1))
    assert file.path == "/data/spot/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-06.zip"
    assert ArchiveFile.from_json(file.to_json() | {"path": "/etc/passwd"}, MAPPING) == file
    assert (file.member, file.end) == ("BTCUSDT-aggTrades-2024-06.csv", dt.date(2024, 7, 1))
    for wrong in ({}, {**file.to_json(), "begin": "2024-06-02"}, {**file.to_json(), "kind": "hourly"}, [], None):
        with pytest.raises(BadStateInput):
            ArchiveFile.from_json(wrong, MAPPING)


def test_a_checksum_is_of_this_file_or_none() -> None:
    file = file_of(MAPPING, BINANCE, "daily", OLD)
    assert parse_checksum(b"AB" * 32 + b"  " + file.name.encode() + b"\n", file) == "ab" * 32
    assert parse_checksum(b"ab" * 32 + b" *" + file.name.encode(), file) == "ab" * 32
    for body in (b"", b"ab" * 32, b"<html>", b"ab" * 32 + b"  other.zip", b"ab" * 32 + b"  x" * 5000):
        with pytest.raises(ArchiveUnreadable):
            parse_checksum(body, file)


def test_the_simulators_files_lie_below_its_address() -> None:
    assert address_of(MAPPING, None) == "https://data.binance.vision"
    assert address_of(MAPPING, "http://127.0.0.1:4570/binance/") == "http://127.0.0.1:4570/binance/archive"


def state(status: str, sha256: str | None, at: int) -> FileState:
    file = file_of(MAPPING, BINANCE, "daily", OLD)
    return FileState(file, status, "verified", sha256, sha256, at, {"within": [1, 2]})


def test_a_look_in_vain_never_hides_what_was_taken(aws: boto3.Session) -> None:
    aws.client("s3").create_bucket(Bucket="bucket")
    objects = ObjectStore("bucket", aws.client("s3"))
    taken = write_state(objects, state("ingested", "a", 1), None)
    kept = write_state(objects, state("refused", "b", 2), taken)
    assert (kept.status, kept.taken, kept.report["last_look"]["sha256"]) == ("ingested", "a", "b")
    again = write_state(objects, state("ingested", "c", 3), kept)
    assert (again.taken, [e["sha256"] for e in again.earlier]) == ("c", ["a"])
    assert parse_state(objects.get(again.file.state_key) or b"", "key", MAPPING) == again
    for body in (b"", b"{}", b"[]", b'{"schema_version": 2}'):
        with pytest.raises(CorruptState):
            parse_state(body, "key", MAPPING)


def test_a_checksum_that_appeared_later_is_no_reissue() -> None:
    file = file_of(MAPPING, BINANCE, "daily", OLD)
    known = [state("ingested", "a", 1)]
    assert reissued(known, {}) == reissued(known, {file.name: "a"}) == []
    assert reissued(known, {file.name: "b"}) == [file]
    assert reissued([state("refused", "a", 1)], {file.name: "b"}) == []


# --- which are worth a task -------------------------------------------------------------------------------------


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path) -> Iterator[ArchiveWorld]:
    with running(WORLD) as server:
        pipeline = make_pipeline(aws, server, tmp_path, cold_start_trades=50)
        pipeline.ingest(BINANCE)
        yield ArchiveWorld(pipeline, tmp_path)


def test_files_are_planned_with_the_positions_that_the_api_gives_their_days(world: ArchiveWorld) -> None:
    first, second = world.ids(), world.ids(OLD + dt.timedelta(days=1))
    within = Interval(first.first + 100, second.last + 10)
    planned = archive_files(world.deps, BINANCE, [within], worth=1)
    assert [(ArchiveFile.from_json(f, MAPPING).begin, span) for f, span in planned] == [
        (OLD, Interval(first.first + 100, first.last)),
        (OLD + dt.timedelta(days=1), second),
    ]
    # A day of which only a little is missing is left to REST, and so is everything where nothing is.
    parts = [Interval(first.first, first.last - 10), Interval(second.first, second.first + 5)]
    assert [span for _, span in archive_files(world.deps, BINANCE, parts, worth=1)] == [first]
    assert archive_files(world.deps, BINANCE, []) == []


def test_a_planned_file_is_a_task_that_fills_its_range(world: ArchiveWorld) -> None:
    """From what is missing to what is committed, by the payload that goes through S3."""
    deps, within = world.deps, world.ids()
    lease, waiting, segments = world.lease(), list[RawObject](), list[Segment]()

    def commit() -> None:
        segments.extend(segment_of(BINANCE, raw, "run", "archive", deps.clock.now_ms()) for raw in waiting)
        assert isinstance(commit_islands(deps.ledger, deps.locks, lease, segments, deps.clock), Committed)
        waiting.clear()

    [(file, part)] = archive_files(deps, BINANCE, missing(deps.ledger, BINANCE, within), worth=1)
    planned = TaskSpec("run", BINANCE, lease, "archive", part, 1, 1, file=file)
    spec = TaskSpec.from_json(json.loads(json.dumps(planned.to_json())))
    report = run_planned(deps, spec, Event(), world.folder / "work", waiting.append, commit, lambda: None)
    assert (report.status, report.committed_rows) == ("ingested", within.size)
    assert missing(deps.ledger, BINANCE, within) == []
    assert archive_files(deps, BINANCE, missing(deps.ledger, BINANCE, within), worth=1) == []
    assert world.table(within) == world.truth(within)


def test_a_file_that_was_looked_for_in_vain_is_not_planned_again_at_once(world: ArchiveWorld) -> None:
    world.plant("no_file")
    assert world.ingest().status == "absent"
    assert archive_files(world.deps, BINANCE, [world.ids()], worth=1) == []
    world.pipeline.later(13 * 3600)
    assert len(archive_files(world.deps, BINANCE, [world.ids()], worth=1)) == 1
