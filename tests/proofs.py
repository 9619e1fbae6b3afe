"""A small lake with its ledger, mirrors and table, in which nothing is wrong, and ways to damage each of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from schemahub import mirror, query, raw
from schemahub.audit import Verdict, audit
from schemahub.batches import Batch
from schemahub.certificate import SignOff
from schemahub.clock import FakeClock
from schemahub.commit import Committed, commit_segments, segment_of, settle_hole
from schemahub.deps import Deps, Settings, build
from schemahub.evidence import files_of
from schemahub.fetch import Fetched
from schemahub.holes import Look, after_look
from schemahub.lake import Lake as Table
from schemahub.lake import lake_of
from schemahub.mappings import load_mapping
from schemahub.publish import iceberg_file
from schemahub.streams import Absent, Chunk, Interval, Segment, Stream
from schemahub.transform import transform_batch
from tests.conftest import create_tables, quick_session
from tests.lake import BUCKET, DATABASE, Lake, S3Door, coinbase_row, make_glue_check_versions

BTC, ETH, SOL = Stream("coinbase", "BTC-USD"), Stream("coinbase", "ETH-USD"), Stream("coinbase", "SOL-USD")
NOW = 1_710_400_000_000
SIGNED = SignOff("arn:aws:iam::1:user/tester", NOW + 86_400_000, "schemahub test", False)
_numbers = itertools.count()


class Session:
    """The session that tests have, but for S3's address."""

    def __init__(self, real: Any, url: str) -> None:
        self._real, self._url = real, url

    def client(self, name: str) -> Any:
        return self._real.client(name, endpoint_url=self._url)

    def get_credentials(self) -> Any:
        return self._real.get_credentials()


@dataclass
class World:
    deps: Deps
    lake: Lake
    door: S3Door
    clock: FakeClock

    def table(self) -> Table:
        """What ``lake.lake_of`` gives, with DuckDB's own S3 client led to the door."""
        found = lake_of(self.deps)
        session = Session(self.lake.session, self.door.url)
        return replace(found, connect=lambda: query.open_view(session, found.location, threads=1))

    def quick_table(self) -> Table:
        """The same over copies of the data files: opening Iceberg over HTTP takes far longer than most tests."""
        found = lake_of(self.deps)
        copies = [self._copy(file.key) for file in files_of(self.deps.objects, found.metadata)]
        return replace(found, connect=lambda: query.open_files(copies))

    def _copy(self, key: str) -> str:
        path = self.lake.workdir / "files" / key.rsplit("/", 1)[-1]
        if not path.exists():  # names are functions of the content
            path.parent.mkdir(exist_ok=True)
            assert self.deps.objects.get_to_file(key, path)
        return str(path)

    def commit(self, first: int, last: int, *, stream: Stream = BTC, absent: Sequence[Absent] = (),
               rows: Iterable[dict[str, Any]] | None = None) -> Segment:  # fmt: skip
        """As ``ingest``: raw object, fenced commit, mirror."""
        gone = {i for a in absent for i in range(a.first, a.last + 1)}
        found = rows or [coinbase_row(i) for i in range(first, last + 1) if i not in gone]
        fetched = Fetched(Chunk(first, last), tuple(map(json.dumps, found)), tuple(absent), 1)
        mark = self.deps.ledger.watermark(stream)
        lease = self.deps.locks.acquire(stream.lock_id, f"run-{first}", "run")
        stored = raw.store(self.deps.objects, stream, fetched)
        segment = segment_of(stream, stored, f"run-{first}", "rest", self.clock.now_ms())
        self.clock.advance(0.003)
        done = commit_segments(
            self.deps.ledger, self.deps.locks, lease, [segment], mark.high if mark else None, self.clock
        )
        assert isinstance(done, Committed)
        assert mirror.heal(self.deps.objects, self.deps.ledger, stream) in ("written", "equal")
        self.deps.locks.release(lease)
        return segment

    def fill(self, first: int, last: int, stream: Stream = BTC) -> Segment:
        """As ``repair``: ids of a hole that came later."""
        hole = next(h for h in self.deps.ledger.holes(stream) if h.first <= first <= h.last)
        texts = tuple(json.dumps(coinbase_row(i)) for i in range(first, last + 1))
        stored = raw.store(self.deps.objects, stream.fills, Fetched(Chunk(first, last), texts, (), 1))
        fill = segment_of(stream.fills, stored, "repair-1", "repair", self.clock.now_ms())
        lease = self.deps.locks.acquire(stream.lock_id, "repair-1", "repair-1")
        after = after_look(hole, Look(found=(Interval(first, last),)), self.clock.now_ms())
        done = settle_hole(self.deps.ledger, self.deps.locks, lease, hole, after, [fill], self.clock)
        assert isinstance(done, Committed)
        self.deps.locks.release(lease)
        return fill

    def publish(self, *segments: Segment, run: str = "") -> None:
        """As ``transform``: one snapshot, then the marks."""
        run = run or f"transform-{next(_numbers)}"
        manifests = []
        for _, group in itertools.groupby(segments, key=lambda s: s.stream):
            manifests.append(self.lake.transform(*group, run=run))
        self.lake.mark = self.deps.ledger.mark_published  # type: ignore[method-assign]
        self.lake.publish(*manifests, run=run)

    def data_file(self, stream: Stream, rows: Sequence[dict[str, Any]]) -> Any:
        """A data file of rows that nobody committed, as the table's metadata describes it."""
        ids = [int(r["trade_id"]) for r in rows]
        there = set(ids)
        absent = tuple(Absent(i, i, "lost") for i in range(min(ids), max(ids) + 1) if i not in there)
        other = Stream(stream.exchange, f"X{next(_numbers)}-USD")
        # Under another name, so that its raw object and its file stand in nobody's way.
        fetched = Fetched(Chunk(min(ids), max(ids)), tuple(map(json.dumps, rows)), absent, 1)
        segment = segment_of(other, raw.store(self.deps.objects, other, fetched), "damage", "rest", NOW)
        renamed = replace(segment, stream=stream)
        folder = self.lake.workdir / f"damage-{next(_numbers)}"
        objects = self.deps.objects
        (file,) = transform_batch(objects, load_mapping, Batch.of([renamed]), "damage", folder, threads=1).files
        return iceberg_file(self.lake.table(), BUCKET, file)

    def append(self, stream: Stream, rows: Sequence[dict[str, Any]]) -> None:
        """Rows in the table by somebody else's hand: no property tells of them."""
        entry = self.data_file(stream, rows)
        with (
            self.lake.table().transaction() as transaction,
            transaction.update_snapshot().fast_append() as append,
        ):
            append.append_data_file(entry)

    def exchange_file(self, stream: Stream, rows: Sequence[dict[str, Any]]) -> None:
        """Put a file of other rows in the place of the stream's only data file."""
        old = next(t.file for t in self.lake.table().scan().plan_files() if stream.product in t.file.file_path)
        entry = self.data_file(stream, rows)
        with (
            self.lake.table().transaction() as transaction,
            transaction.update_snapshot().overwrite() as overwrite,
        ):
            overwrite.delete_data_file(old)
            overwrite.append_data_file(entry)

    def audit(self, *streams: Stream, deep: bool = False, sign: bool = False, quick: bool = True) -> list[Verdict]:
        load = self.quick_table if quick else self.table
        return list(audit(self.deps, load, streams, deep=deep, sign_off=replace(SIGNED, deep=deep) if sign else None))

    def kinds(self, *, deep: bool = False, quick: bool = True) -> list[tuple[str, str, tuple[int, int] | None]]:
        """What ``verify`` finds: kind, stream, span."""
        found = [f for v in self.audit(deep=deep, quick=quick) for f in v.findings]
        return [(f.kind, f.stream, f.span and tuple(f.span)) for f in found]

    # --- items and objects, by hand ---

    def items(self) -> list[dict[str, Any]]:
        found = self.deps.ledger.table.scan()["Items"]
        return sorted(found, key=lambda i: (i["stream"], i["item"]))

    def item(self, stream: Stream, name: str) -> dict[str, Any]:
        return dict(self.deps.ledger.table.get_item(Key={"stream": str(stream), "item": name})["Item"])

    def put_item(self, item: dict[str, Any]) -> None:
        self.deps.ledger.table.put_item(Item=item)

    def drop_item(self, stream: Stream, name: str) -> None:
        self.deps.ledger.table.delete_item(Key={"stream": str(stream), "item": name})

    def forget(self) -> None:
        """StreamsTable and ThrottleTable as they are on the morning after they were deleted."""
        for table, keys in ((self.deps.ledger.table, ("stream", "item")), (self.deps.throttle_table, ("exchange",))):
            for item in table.scan()["Items"]:
                table.delete_item(Key={k: item[k] for k in keys})

    def replace_object(self, key: str, body: bytes | None = None, metadata: dict[str, str] | None = None) -> None:
        """Change an object's body or metadata, or both; neither deletes it."""
        client = self.deps.objects.client
        if body is None and metadata is None:
            client.delete_object(Bucket=BUCKET, Key=key)
            return
        there = client.get_object(Bucket=BUCKET, Key=key)
        old = there["Body"].read()
        client.put_object(
            Bucket=BUCKET,
            Key=key,
            Body=old if body is None else body,
            Metadata=there["Metadata"] if metadata is None else {**there["Metadata"], **metadata},
        )

    def copy_to(self, folder: Path) -> Path:
        """The bucket in a folder, as ``aws s3 sync`` makes it."""
        for key in self.deps.objects.list(""):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.deps.objects.get(key) or b"")
        return folder


def make_world(session: boto3.Session, workdir: Path, patch: Any) -> World:
    """BTC 1..30 with the hole 11..13, of which 12 came later; ETH 1..10; SOL 1..10 with 3 in quarantine."""
    make_glue_check_versions(patch)
    names, lake = create_tables(session), Lake(session, workdir)
    lake.mapping = lambda name: replace(load_mapping(name), quarantine_max_share=1.0)
    settings = Settings(
        bucket=BUCKET, locks_table=names["locks"], streams_table=names["streams"], throttle_table=names["throttle"],
        database=DATABASE,
    )  # fmt: skip
    clock = FakeClock(NOW)
    world = World(build(settings, session=session, clock=clock), lake, S3Door(lake.objects), clock)
    btc = [
        world.commit(1, 10),
        world.commit(11, 20, absent=[Absent(11, 13, "exchange_skipped")]),
        world.commit(21, 30),
    ]
    bad = [coinbase_row(i, **({"price": "0"} if i == 3 else {})) for i in range(1, 11)]
    others = [world.commit(1, 10, stream=ETH), world.commit(1, 10, stream=SOL, rows=bad)]
    world.publish(*btc[:2], *others)
    clock.advance(3600)
    world.publish(world.fill(12, 12), btc[2])
    return world


@contextmanager
def healing(folder: Path) -> Iterator[tuple[World, Callable[[], None]]]:
    """One lake for the tests of a module, and how to make it whole again: making it takes far longer than a test."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        session = quick_session()
        world = make_world(session, folder, patch)
        client, glue = world.deps.objects.client, session.client("glue")
        items, locks = world.items(), world.deps.locks._table.scan()["Items"]
        objects = {
            key: (found["Body"].read(), found["Metadata"])
            for key in world.deps.objects.list("")
            for found in [client.get_object(Bucket=BUCKET, Key=key)]
        }
        pointer = glue.get_table(DatabaseName=DATABASE, Name="unified_trades")["Table"]

        def heal() -> None:
            world.forget()
            for item in items:
                world.put_item(item)
            for item in locks:
                world.deps.locks._table.put_item(Item=item)
            for key in set(world.deps.objects.list("")) - objects.keys():
                client.delete_object(Bucket=BUCKET, Key=key)
            for key, (body, metadata) in objects.items():
                client.put_object(Bucket=BUCKET, Key=key, Body=body, Metadata=metadata)
            with suppress(glue.exceptions.EntityNotFoundException):
                glue.delete_table(DatabaseName=DATABASE, Name="unified_trades")
            kept = ("Name", "StorageDescriptor", "TableType", "Parameters")
            glue.create_table(DatabaseName=DATABASE, TableInput={k: pointer[k] for k in kept if k in pointer})

        yield world, heal
        world.door.close()
