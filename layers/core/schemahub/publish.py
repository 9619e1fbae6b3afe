"""The table's only committer: data files of finished batches become one snapshot, exactly once.

What proves that a segment is in the table is a table property, set in the same commit as the snapshot: it outlives
snapshot expiry and compaction. A commit is never repeated blindly: after a conflict or an unknown outcome the table is
loaded again and looked at first (design §5, Publish).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.conversions import to_bytes
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.manifest import DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import Table, Transaction
from pyiceberg.table.update import AddSchemaUpdate, SetCurrentSchemaUpdate
from pyiceberg.typedef import Record

from schemahub.batches import DataFile, Manifest
from schemahub.catalog import (
    PUBLISHED,
    QUARANTINED,
    property_name,
    property_value,
    published_intervals,
    quarantined_of,
)
from schemahub.clock import Clock
from schemahub.errors import CommitConflict, CorruptState, StaleBatch
from schemahub.objects import ObjectStore
from schemahub.streams import Interval, Segment, Stream, covers, gaps, merge, overlapping
from schemahub.table import COLUMNS, EPOCH, OPTIONAL, iceberg_field

ATTEMPTS = 4
PAUSE_S = 0.5
COUNTED = ("quarantined", "inexact", "unfit")
"""What manifests count beside rows and files, in the order of ``Published``."""


@dataclass(frozen=True)
class Published:
    """The outcome. ``already``: another run had published all of it; ``snapshot_id`` is the table's current one."""

    status: str
    snapshot_id: int | None
    rows: int
    files: int
    quarantined: int
    inexact: int
    unfit: int


def reconcile(
    segments: Iterable[Segment], published: dict[Stream, list[Interval]]
) -> tuple[list[Segment], list[Segment]]:
    """Split pending segments into (already in the table, still to do): a crash may have come before the marking.

    Raises:
        CorruptState: a segment is in the table in part, which no publisher of ours can have done.
    """
    already: list[Segment] = []
    todo: list[Segment] = []
    for segment in segments:
        there = _presence(published.get(segment.stream, []), segment)
        if there is None:
            raise CorruptState(
                "a part of a committed segment is in the table", stream=segment.stream, span=segment.interval
            )
        (already if there else todo).append(segment)
    return already, todo


def _presence(published: Sequence[Interval], segment: Segment) -> bool | None:
    """True: all of it is published, False: nothing, None: a part."""
    if covers(published, segment.interval):
        return True
    return False if gaps(published, segment.interval) == [segment.interval] else None


def publish(
    load: Callable[[], Table],
    objects: ObjectStore,
    manifests: Sequence[Manifest],
    run_id: str,
    mark_published: Callable[[Sequence[Segment], str], None],
    clock: Clock,
    *,
    attempts: int = ATTEMPTS,
) -> Published:
    """Append what the manifests name, all of it in one snapshot, then mark the segments as published.

    ``load`` gives the table as it is now. Running it again, at any time, after any crash, adds nothing twice.

    Raises:
        StaleBatch: a batch is partly in the table, or a data file is gone: list and transform again.
        CommitConflict: the table kept moving, or its state stayed unknown, in every attempt.
    """
    refuse_overlaps(manifests)

    def append_rest(table: Table) -> bool:
        todo = _not_yet(table, manifests)
        if todo:
            check_files(objects, todo)
            _append(table, objects.bucket, todo, run_id)
        return bool(todo)

    table, appended = settle(load, append_rest, clock, attempts)
    return _finish(table, manifests, mark_published, appended=appended)


def settle(
    load: Callable[[], Table], step: Callable[[Table], bool], clock: Clock, attempts: int = ATTEMPTS
) -> tuple[Table, bool]:
    """Load the table and let ``step`` commit to it, until one look finds everything done or a commit is confirmed.

    ``step`` says whether there was anything to commit. Returns the table, and whether this call may have changed it.

    Raises:
        CommitConflict: the table kept moving, or its state stayed unknown, in every attempt.
    """
    failure: Exception | None = None
    for attempt in range(attempts):
        if attempt:
            clock.sleep(PAUSE_S * 2**attempt)
        try:
            table = load()
            committed = step(table)
        except (CommitFailedException, ClientError, BotoCoreError, OSError) as error:
            if not worth_a_look(error):
                raise
            failure = error
            continue
        return table, committed or failure is not None
    raise CommitConflict(f"not published after {attempts} attempts, last: {failure!r}"[:400]) from failure


def worth_a_look(error: Exception) -> bool:
    """Whether the commit may have landed, or may land at the next try; a refusal of us (4xx) is final."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        code = error.response.get("Error", {}).get("Code", "")
        return status >= 500 or "Throttl" in code or code in ("SlowDown", "ConcurrentModificationException")
    return True


def refuse_overlaps(manifests: Sequence[Manifest]) -> None:
    lines: dict[Stream, list[Interval]] = {}
    for manifest in manifests:
        lines.setdefault(manifest.batch.stream, []).append(manifest.batch.interval)
    for stream, line in lines.items():
        if twice := overlapping(line):
            raise StaleBatch("two batches hold the same segments", stream=stream, span=twice[0][1])


def _not_yet(table: Table, manifests: Sequence[Manifest]) -> list[Manifest]:
    """The manifests that are not in the table."""
    published = published_intervals(table)
    todo = []
    for manifest in manifests:
        batch = manifest.batch
        presence = {_presence(published.get(batch.stream, []), segment) for segment in batch.segments}
        if presence == {False}:
            todo.append(manifest)
        elif presence != {True}:
            raise StaleBatch("the batch is partly in the table already", stream=batch.stream, span=batch.interval)
    return todo


def check_files(objects: ObjectStore, manifests: Sequence[Manifest]) -> None:
    """A snapshot that names a file which is not there would break every reader of the table."""
    for manifest in manifests:
        for file in manifest.files:
            head = objects.head(file.key)
            if head is None or head["size"] != file.file_size:
                raise StaleBatch(
                    f"{file.key} is {'gone' if head is None else 'not the file of the manifest'}",
                    stream=manifest.batch.stream,
                    span=manifest.batch.interval,
                )


def _append(table: Table, bucket: str, manifests: Sequence[Manifest], run_id: str) -> None:
    """One fast append and the properties that prove it, in one commit."""
    summary = {
        "schemahub.run": run_id,
        "schemahub.segments": str(sum(len(m.batch.segments) for m in manifests)),
        **counters(manifests),
        "schemahub.added": ";".join(
            f"{m.batch.stream}:{m.batch.interval.first}-{m.batch.interval.last}" for m in manifests
        ),
    }
    with table.transaction() as transaction:
        add_columns(transaction, manifests)
        transaction.set_properties(_properties(table, manifests))
        with transaction.update_snapshot(snapshot_properties=summary).fast_append() as append:
            for manifest in manifests:
                for file in manifest.files:
                    append.append_data_file(iceberg_file(table, bucket, file))


def counters(manifests: Sequence[Manifest]) -> dict[str, str]:
    """What a snapshot's summary says of the rows that it adds, beyond Iceberg's own counts."""
    return {f"schemahub.{name}": str(sum(getattr(m, name) for m in manifests)) for name in COUNTED}


def add_columns(transaction: Transaction, manifests: Sequence[Manifest]) -> None:
    """Add the optional columns that files have and the table has not, with the ids that the files know them by.

    Raises:
        CorruptState: the table has such a name or id for something else.
    """
    written = {name for m in manifests for file in m.files for name in file.column_sizes}
    schema = transaction.table_metadata.schema()
    there = {f.field_id: f for f in schema.fields}
    wanted = [iceberg_field(c) for c in OPTIONAL if c.name in written]
    for field in wanted:
        for other in schema.fields:
            if (other.field_id == field.field_id) != (other.name == field.name):
                raise CorruptState(f"the table's column {other.name} ({other.field_id}) stands where {field.name} must")
    new = [field for field in wanted if field.field_id not in there]
    if new:
        # UpdateSchema would give out ids of its own, which the data files cannot know.
        number = max(s.schema_id for s in transaction.table_metadata.schemas) + 1
        evolved = Schema(*schema.fields, *new, schema_id=number)
        transaction._apply((AddSchemaUpdate(schema=evolved), SetCurrentSchemaUpdate()))


def _properties(table: Table, manifests: Sequence[Manifest]) -> dict[str, str]:
    published, quarantined = published_intervals(table), quarantined_of(table.metadata.properties)
    for manifest in manifests:
        stream = manifest.batch.stream
        published[stream] = merge([*published.get(stream, []), manifest.batch.interval])
        quarantined[stream] = quarantined.get(stream, 0) + manifest.quarantined
    touched = {m.batch.stream for m in manifests}
    return {property_name(PUBLISHED, s): property_value(published[s]) for s in touched} | {
        property_name(QUARANTINED, s): str(quarantined[s]) for s in touched if quarantined[s]
    }


def iceberg_file(table: Table, bucket: str, file: DataFile) -> IcebergFile:
    """The manifest's entry of a data file."""
    types = {c.field_id: iceberg_field(c).field_type for c in COLUMNS}
    columns = (*COLUMNS, *(c for c in OPTIONAL if c.name in file.column_sizes))

    def bounds(values: dict[str, Any]) -> dict[int, bytes]:
        return {c.field_id: to_bytes(types[c.field_id], values[c.name]) for c in COLUMNS}

    day = (dt.date.fromisoformat(file.day) - EPOCH.date()).days
    entry = IcebergFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"s3://{bucket}/{file.key}",
        file_format=FileFormat.PARQUET,
        partition=Record(day),
        record_count=file.record_count,
        file_size_in_bytes=file.file_size,
        column_sizes={c.field_id: file.column_sizes[c.name] for c in columns},
        value_counts={c.field_id: file.record_count for c in columns},
        null_value_counts={c.field_id: file.nulls.get(c.name, 0) for c in columns},
        nan_value_counts={c.field_id: 0 for c in COLUMNS if c.kind == "double"},
        lower_bounds=bounds(file.lower),
        upper_bounds=bounds(file.upper),
        key_metadata=None,
        split_offsets=list(file.split_offsets),
        equality_ids=None,
        sort_order_id=table.sort_order().order_id,
    )
    entry.spec_id = table.spec().spec_id
    return entry


def _finish(
    table: Table,
    manifests: Sequence[Manifest],
    mark_published: Callable[[Sequence[Segment], str], None],
    *,
    appended: bool,
) -> Published:
    snapshot = table.current_snapshot()
    reference = str(snapshot.snapshot_id) if snapshot else "unknown"
    for manifest in manifests:
        mark_published(manifest.batch.segments, reference)
    return Published(
        "published" if appended else "already",
        snapshot.snapshot_id if snapshot else None,
        sum(m.rows for m in manifests),
        sum(len(m.files) for m in manifests),
        *(sum(getattr(m, name) for m in manifests) for name in COUNTED),
    )
