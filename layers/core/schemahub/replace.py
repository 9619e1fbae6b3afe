"""The commit of a re-derivation: old data files out and new ones in, in one snapshot, exactly once.

Like ``publish`` it never repeats a commit blindly. What it looks at is the stream's property ``schemahub.rederived.…``:
as it was when the run was planned, the files are still to be replaced; naming this run last, they are; anything else
means that another re-derivation came in between, and this one's rows are of the past.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyiceberg.table import Table

from schemahub.batches import Manifest
from schemahub.catalog import QUARANTINED, property_name, published_intervals, quarantined_of
from schemahub.clock import Clock
from schemahub.errors import StaleBatch
from schemahub.objects import ObjectStore
from schemahub.publish import (
    ATTEMPTS,
    COUNTED,
    add_columns,
    check_files,
    counters,
    iceberg_file,
    refuse_overlaps,
    settle,
)
from schemahub.rederive import LiveFile, entry, live_files, parse, property_of
from schemahub.streams import Interval, Stream, covers, gaps, merge


@dataclass(frozen=True)
class Replaced:
    """The outcome. ``previous_snapshot_id`` still has the rows as they were, until snapshots are expired."""

    status: str
    snapshot_id: int | None
    previous_snapshot_id: int | None
    rows: int
    rows_before: int
    files: int
    files_before: int
    quarantined: int
    inexact: int
    unfit: int


def replace(
    load: Callable[[], Table],
    objects: ObjectStore,
    manifests: Sequence[Manifest],
    bases: dict[Stream, str],
    run_id: str,
    clock: Clock,
    *,
    attempts: int = ATTEMPTS,
) -> Replaced:
    """Put what the manifests name in the place of the files that hold the same ranges now.

    ``bases`` has each stream's property as it was when the run was planned. Rows of other ranges and of other streams
    stay, also those that a publish adds meanwhile. Running it again, after any crash, changes nothing more.

    Raises:
        StaleBatch: another re-derivation came in between, or a range is not what it was: start again.
        CommitConflict: the table kept moving, or its state stayed unknown, in every attempt.
    """
    refuse_overlaps(manifests)
    spans = {s: merge(m.batch.interval for m in manifests if m.batch.stream == s) for s in bases}

    def step(table: Table) -> bool:
        if _done(table, bases, run_id):
            return False
        old = _replaced(table, spans)
        check_files(objects, manifests)
        _overwrite(table, objects.bucket, manifests, spans, old, run_id)
        return True

    table, committed = settle(load, step, clock, attempts)
    return _outcome(table, manifests, run_id, committed)


def _done(table: Table, bases: dict[Stream, str], run_id: str) -> bool:
    """Whether the run is in the table already."""
    for stream, base in bases.items():
        value = table.metadata.properties.get(property_of(stream), "")
        _, runs = parse(value)
        if any(run == run_id for run, _ in runs):
            return True
        if value != base:
            raise StaleBatch("another re-derivation came in between", stream=stream)
    return False


def _replaced(table: Table, spans: dict[Stream, list[Interval]]) -> list[LiveFile]:
    """The files that make way: all that hold anything of the ranges."""
    published = published_intervals(table)
    for stream, line in spans.items():
        for span in line:
            if not covers(published.get(stream, []), span):
                raise StaleBatch("the range is not in the table any more", stream=stream, span=span)
    old = []
    for file in live_files(table, spans):
        line = spans[file.stream]
        if covers(line, file.interval):
            old.append(file)
        elif gaps(line, file.interval) != [file.interval]:
            raise StaleBatch("a data file holds a part of the range", stream=file.stream, span=file.interval)
    return old


def _overwrite(
    table: Table,
    bucket: str,
    manifests: Sequence[Manifest],
    spans: dict[Stream, list[Interval]],
    old: Sequence[LiveFile],
    run_id: str,
) -> None:
    new = {f"s3://{bucket}/{file.key}": file for m in manifests for file in m.files}
    there = {file.file.file_path for file in old}
    parts = ";".join(f"{s}:{i.first}-{i.last}" for s, line in spans.items() for i in line)
    before = table.current_snapshot()
    summary = {
        "schemahub.run": run_id,
        **counters(manifests),
        "schemahub.rederived": parts,
        "schemahub.rows-before": str(sum(f.rows for f in old)),
        "schemahub.files-before": str(len(old)),
        "schemahub.rederived-from": str(before.snapshot_id if before else ""),
    }
    with table.transaction() as transaction:
        add_columns(transaction, manifests)
        transaction.set_properties(_properties(table, manifests, spans, old, run_id))
        with transaction.update_snapshot(snapshot_properties=summary).overwrite() as overwrite:
            # Names are functions of content: a day that came out as it was stays as it is.
            for file in old:
                if file.file.file_path not in new:
                    overwrite.delete_data_file(file.file)
            for path, added in new.items():
                if path not in there:
                    overwrite.append_data_file(iceberg_file(table, bucket, added))


def _properties(
    table: Table,
    manifests: Sequence[Manifest],
    spans: dict[Stream, list[Interval]],
    old: Sequence[LiveFile],
    run_id: str,
) -> dict[str, str]:
    """The proof, and the streams' rows in quarantine: every delivered row is either there or in the table."""
    properties = table.metadata.properties
    quarantined, values = quarantined_of(properties), {}
    for stream, line in spans.items():
        mine = [m for m in manifests if m.batch.stream == stream]
        rows = sum(m.rows for m in mine) - sum(f.rows for f in old if f.stream == stream)
        values[property_of(stream)] = entry(properties.get(property_of(stream), ""), run_id, line)
        if rows:
            values[property_name(QUARANTINED, stream)] = str(quarantined.get(stream, 0) - rows)
    return values


def _outcome(table: Table, manifests: Sequence[Manifest], run_id: str, committed: bool) -> Replaced:
    """What the run's own snapshot says, which need not be the current one; it may have been expired since."""
    mine = next((s for s in table.snapshots() if s.summary and s.summary.get("schemahub.run") == run_id), None)
    said = mine.summary.additional_properties if mine and mine.summary else {}
    before = said.get("schemahub.rederived-from", "")
    return Replaced(
        "replaced" if committed else "already",
        mine.snapshot_id if mine else None,
        int(before) if before else None,
        sum(m.rows for m in manifests),
        int(said.get("schemahub.rows-before", 0)),
        sum(len(m.files) for m in manifests),
        int(said.get("schemahub.files-before", 0)),
        *(sum(getattr(m, name) for m in manifests) for name in COUNTED),
    )
