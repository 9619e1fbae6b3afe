"""What S3 still says of committed segments when DynamoDB is lost: the table, the transforms' manifests, certificates.

Each is a proof of its own kind. The table's properties outlive everything and say which ranges are published. Snapshots
say in which one, manifests hold the segments of a publication whole (until they expire, after 75 days), certificates
what was known of the holes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemahub import certificate
from schemahub.batches import Manifest
from schemahub.errors import BadCertificate, CorruptState
from schemahub.holes import Hole
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX, Interval, Segment, Stream

if TYPE_CHECKING:
    from schemahub.lake import Lake  # brings DuckDB and PyIceberg, which a rebuild without a table does not need

UNKNOWN = "unknown (rebuilt)"
"""Stands for the snapshot of a published segment whose snapshot has expired."""


@dataclass(frozen=True)
class Remains:
    """Everything about published segments, by stream; a line of fills is a stream of its own."""

    published: dict[Stream, list[Interval]] = field(default_factory=dict)
    snapshots: dict[Stream, list[tuple[Interval, str]]] = field(default_factory=dict)
    """Which snapshot added which range, as far as snapshots are still there."""
    segments: dict[Stream, dict[int, Segment]] = field(default_factory=dict)
    """Published segments as manifests recorded them, by first position."""

    def snapshot_of(self, segment: Segment) -> str | None:
        """The snapshot that holds a segment's rows; None for one that is not published."""
        inside = [
            part
            for part in self.published.get(segment.stream, ())
            if part.first <= segment.first and segment.last <= part.last
        ]
        if not inside:
            return None
        for part, snapshot in self.snapshots.get(segment.stream, ()):
            if part.first <= segment.first and segment.last <= part.last:
                return snapshot
        return UNKNOWN


def read_remains(lake: Lake) -> Remains:
    """Gather what the table's metadata and the manifests that it leads to say."""
    remains = Remains(lake.published)
    if lake.metadata is None:
        return remains
    for snapshot in lake.metadata.snapshots:
        summary = snapshot.summary.additional_properties if snapshot.summary else {}
        added = list(_added(summary.get("schemahub.added", "")))
        for stream, part in added:
            remains.snapshots.setdefault(stream, []).append((part, str(snapshot.snapshot_id)))
        for segment in _recorded(lake.objects, summary.get("schemahub.run", ""), added):
            remains.segments.setdefault(segment.stream, {})[segment.first] = segment
    return remains


def _added(text: str) -> Iterator[tuple[Stream, Interval]]:
    for entry in filter(None, text.split(";")):
        name, _, span = entry.rpartition(":")
        try:
            first, last = map(int, span.split("-"))
            yield Stream.parse(name), Interval(first, last)
        except ValueError as error:
            raise CorruptState(f"a snapshot of the table says that it added {entry[:80]!r}") from error


def _recorded(objects: ObjectStore, run: str, added: Sequence[tuple[Stream, Interval]]) -> Iterator[Segment]:
    """The segments of the manifests that a snapshot took; a manifest that nobody took proves nothing."""
    if not run:
        return
    for key in objects.list(f"{PREFIX}plans/{run}/manifests/"):
        try:
            manifest = Manifest.from_json(json.loads(objects.get(key) or b""))
        except (ValueError, CorruptState):
            continue  # then the raw objects' own metadata is used
        if (manifest.batch.stream, manifest.batch.interval) in added:
            yield from manifest.batch.segments


def certified_holes(objects: ObjectStore, stream: Stream) -> dict[tuple[int, int], Hole]:
    """What the stream's newest certificate knew of its holes; nothing where there is none, or it was changed."""
    try:
        found = certificate.newest(objects, stream)
    except BadCertificate:
        return {}
    if found is None or certificate.judge(found):
        return {}
    return {(hole.first, hole.last): hole for hole in found.line.holes}
