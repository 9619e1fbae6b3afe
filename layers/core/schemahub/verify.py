"""What is concluded from what was read: findings on a stream's line, its mirror, its raw objects and its rows.

Pure functions over plain values; ``evidence`` reads the stores, ``audit`` puts both together. Rows are not compared one
by one: ids fall into buckets of ``SPAN``, and of each bucket only the number of rows and the sums of the first three
powers of their places are known. What must be there has the same numbers in closed form. Two sets of rows that differ
in at most three ids on either side never agree in all four; which ids they are is then asked for bucket by bucket.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemahub import coverage, mirror
from schemahub.errors import CorruptState
from schemahub.holes import Hole, absent_now
from schemahub.ledger import Watermark
from schemahub.raw import edition_of, raw_key
from schemahub.streams import (
    Interval,
    RawObject,
    Segment,
    Stream,
    common,
    covers,
    gaps,
    merge,
    minus,
    overlapping,
    runs,
)

SHIFT = 16
SPAN = 1 << SHIFT

REMEDIES = {
    "ledger_unreadable": "Compare the item with the mirror and the raw object; `schemahub state rebuild --dry-run` "
    "shows what S3 knows.",
    "watermark_missing": "`schemahub state rebuild --dry-run`, then without: the mirror and raw objects hold it.",
    "segment_missing": "`schemahub state rebuild --dry-run`, then without: a lost item comes back from its raw object.",
    "segment_overlap": "Restore StreamsTable by point-in-time recovery, or delete the item that the table's published "
    "ranges do not need.",
    "segment_beyond": "The watermark went back: restore StreamsTable by point-in-time recovery, or rebuild it.",
    "segment_wrong": "The item was changed by hand: restore it by point-in-time recovery.",
    "fill_wrong": "Restore StreamsTable by point-in-time recovery: a fill must lie in a hole of a segment.",
    "hole_wrong": "Restore the item by point-in-time recovery; `schemahub gaps --repair` looks at the hole again.",
    "mirror_missing": "The next run of the stream writes it again.",
    "mirror_unreadable": "The next run of the stream writes it again.",
    "mirror_behind": "The next run of the stream writes it again.",
    "mirror_ahead": "StreamsTable was restored from an older backup: `schemahub state rebuild --dry-run`.",
    "raw_missing": "Restore the object's version in S3 (the bucket keeps old versions for 30 days).",
    "raw_metadata": "Restore the object's version in S3 (the bucket keeps old versions for 30 days).",
    "raw_corrupt": "Restore the object's version in S3 (the bucket keeps old versions for 30 days).",
    "published_unknown": "`schemahub state rebuild --dry-run`: the table holds what the ledger does not know.",
    "published_partly": "No publisher of ours does this: compare the segment with its raw object.",
    "published_lost": "The table was set back to an older snapshot or made anew: find out which before the next run.",
    "file_missing": "Restore the object's version in S3; until then queries of that day fail.",
    "table_unreadable": "Query the table by hand; if a file is damaged, restore its version in S3.",
    "table_unregistered": "The next publish registers it again; `schemahub transform` starts one.",
    "table_deletes": "Somebody deleted rows with another engine: roll the table back to the snapshot before.",
    "rows_missing": "Something else wrote to the table: roll it back to an earlier snapshot, or restore the data file.",
    "rows_doubled": "Something else wrote to the table: roll it back to the snapshot before.",
    "rows_stray": "Something else wrote to the table: roll it back to the snapshot before.",
    "rows_changed": "A data file was changed after it was published: restore its version in S3.",
    "rows_unknown": "Rows of a stream that was never committed: roll the table back to the snapshot before them.",
    "certificate_edited": "Take the certificate from the lake, or from where it was sent when it was issued.",
    "certificate_chain": "One of the certificates was removed or replaced: compare the hashes that were printed.",
    "certificate_wrong": "The certificate contradicts itself: it was not written by `schemahub verify`.",
}
"""What a person does about each kind of finding (docs/operations.md has the same table)."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it must be."""

    kind: str
    stream: str
    message: str
    span: tuple[int, int] | None = None

    @property
    def remedy(self) -> str:
        return REMEDIES[self.kind]

    def to_json(self) -> dict[str, object]:
        span = list(self.span) if self.span else None
        return {
            "kind": self.kind,
            "stream": self.stream,
            "span": span,
            "message": self.message,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class Line:
    """What ``StreamsTable`` says of a stream, read at one moment."""

    stream: Stream
    mark: Watermark | None
    segments: tuple[Segment, ...]
    fills: tuple[Segment, ...] = ()
    holes: tuple[Hole, ...] = ()

    @property
    def all(self) -> tuple[Segment, ...]:
        """Segments and fills: everything that names a raw object."""
        return self.segments + self.fills

    @property
    def islands(self) -> list[Interval]:
        """Committed ranges below the watermark, to which it has not fallen yet."""
        return coverage.islands(self.segments, self.mark.low) if self.mark else []

    @property
    def unfetched(self) -> list[Interval]:
        """What lies between the islands and the watermark: nobody has asked for it, so nothing is missing there."""
        return coverage.between(self.segments, self.mark.low) if self.mark else []

    @property
    def counted(self) -> bool:
        """Whether each position is a trade or named absent; otherwise ``ranges`` verifies the rows."""
        return all(s.counted for s in self.all)


class Aside(NamedTuple):
    """So many rows of a range are in quarantine instead of the table."""

    first: int
    last: int
    rows: int


# --- the line ---------------------------------------------------------------------------------------------------


def judge_line(line: Line) -> list[Finding]:
    """Whether the segments tile the watermark or are islands below it, and each segment, fill and hole is possible."""
    name, found = str(line.stream), []
    spans = [s.interval for s in line.segments]
    if line.mark is None:
        if line.all:
            found.append(Finding("watermark_missing", name, f"{len(line.segments)} segments and no watermark"))
    else:
        low, high = line.mark.low, line.mark.high
        for gap in minus([(low, high)], spans):
            found.append(Finding("segment_missing", name, "no segment holds these positions", gap))
        for segment in line.segments:
            if segment.last > high or segment.first < low <= segment.last:
                message = f"the segment reaches beyond the watermark {low}..{high}"
                found.append(Finding("segment_beyond", name, message, segment.interval))
    for before, behind in overlapping(spans):
        message = f"two segments hold these positions: {before.first}..{before.last}, {behind.first}..{behind.last}"
        found.append(Finding("segment_overlap", name, message, (behind.first, min(before.last, behind.last))))
    found += [finding for segment in line.all if (finding := _judge_segment(segment)) is not None]
    return found + _judge_fills(line) + _judge_holes(line)


def _judge_segment(segment: Segment) -> Finding | None:
    try:
        segment.raw.check()
    except CorruptState as error:
        return Finding("segment_wrong", str(segment.stream), error.reason, segment.interval)
    edition = edition_of(segment.raw_key)
    expected = raw_key(segment.stream, segment.first, segment.last, segment.count, edition)
    if segment.raw_key != expected or not segment.sha256.startswith(edition):
        message = f"the segment names the raw object of another range: {segment.raw_key}"
        return Finding("segment_wrong", str(segment.stream), message, segment.interval)
    return None


def _judge_fills(line: Line) -> list[Finding]:
    name = str(line.stream.fills)
    missing = merge((a.first, a.last) for s in line.segments for a in s.absent)
    found = [
        Finding("fill_wrong", name, "the fill holds ids that no segment names absent", fill.interval)
        for fill in line.fills
        if not covers(missing, fill.interval)
    ]
    for before, behind in overlapping([f.interval for f in line.fills]):
        span = (behind.first, min(before.last, behind.last))
        found.append(Finding("fill_wrong", name, "two fills hold these ids", span))
    return found


def _judge_holes(line: Line) -> list[Finding]:
    """A hole's item must be one of a segment's absent ranges, and say that filled which a fill holds."""
    ranges = {(a.first, a.last) for s in line.segments for a in s.absent}
    filled = merge(f.interval for f in line.fills)
    found = []
    for hole in line.holes:
        span = (hole.first, hole.last)
        if span not in ranges:
            found.append(Finding("hole_wrong", str(line.stream), "no segment names this range absent", span))
        elif gaps(hole.filled, span) != gaps(filled, span):
            message = "what the hole calls filled is not what the fills hold"
            found.append(Finding("hole_wrong", str(line.stream), message, span))
    return found


def judge_mirror(line: Line, body: bytes | None) -> list[Finding]:
    """Whether the mirror in S3 says what the table says."""
    name = str(line.stream)
    if body is None:
        return [Finding("mirror_missing", name, "there is no mirror in S3")] if line.mark else []
    mirrored = mirror.parse(line.stream, body)
    if mirrored is None:
        return [Finding("mirror_unreadable", name, f"{line.stream.mirror_key} is not a mirror of this stream")]
    if line.mark is None or mirrored.high > line.mark.high or mirrored.low < line.mark.low:
        there = f"{line.mark.low}..{line.mark.high}" if line.mark else "nothing"
        message = f"the mirror says {mirrored.low}..{mirrored.high}, the table {there}"
        return [Finding("mirror_ahead", name, message)]
    if (mirrored.low, mirrored.high) != (line.mark.low, line.mark.high):
        message = f"the mirror says {mirrored.low}..{mirrored.high}, the table {line.mark.low}..{line.mark.high}"
        return [Finding("mirror_behind", name, message)]
    return []


# --- raw --------------------------------------------------------------------------------------------------------


def judge_raw(segment: Segment, found: RawObject | str | None) -> Finding | None:
    """What an object's metadata says against what was committed; text says why the metadata cannot be read."""
    name = str(segment.stream)
    if found is None:
        return Finding("raw_missing", name, f"{segment.raw_key} is gone or has no metadata", segment.interval)
    if isinstance(found, str):
        return Finding("raw_metadata", name, found, segment.interval)
    committed = segment.raw
    if found == committed:
        return None
    differs = [
        field
        for field in ("first", "last", "count", "sha256", "absent", "counted")
        if getattr(found, field) != getattr(committed, field)
    ]
    message = f"the metadata of {segment.raw_key} is not what was committed: {', '.join(differs)}"
    return Finding("raw_metadata", name, message, segment.interval)


# --- published --------------------------------------------------------------------------------------------------


def judge_published(
    line: Line, published: Mapping[Stream, Sequence[Interval]], later: Mapping[Stream, Sequence[Interval]]
) -> list[Finding]:
    """Whether the ranges that the table's properties name are whole segments, and those that the ledger marked.

    ``published`` was read before the line, ``later`` after it: a run may publish in between.
    """
    found = []
    for stream, segments in ((line.stream, line.segments), (line.stream.fills, line.fills)):
        there = published.get(stream, ())
        for part in minus(there, [s.interval for s in segments]):
            found.append(Finding("published_unknown", str(stream), "published, but no segment holds it", part))
        for segment in segments:
            left = gaps(there, segment.interval)
            if left and left != [segment.interval]:
                message = "a part of the segment is published"
                found.append(Finding("published_partly", str(stream), message, segment.interval))
            elif segment.published_in and not covers(later.get(stream, ()), segment.interval):
                message = f"marked as published in {segment.published_in}, which the table does not know"
                found.append(Finding("published_lost", str(stream), message, segment.interval))
    return found


def in_table(line: Line, published: Mapping[Stream, Sequence[Interval]]) -> list[Segment]:
    """Segments and fills whose rows the table must hold."""
    return [s for s in line.all if covers(published.get(s.stream, ()), s.interval)]


def held(segments: Iterable[Segment]) -> list[Interval]:
    """Ids whose trades the segments' raw objects hold."""
    return merge(part for s in segments for part in minus([s.interval], [(a.first, a.last) for a in s.absent]))


def absent(line: Line) -> list[Interval]:
    """Ids that no raw object of the stream holds."""
    return absent_now(line.segments, line.fills)


# --- rows -------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """Of the ids of a bucket: how many, and the sums of the powers of their places (0 to ``SPAN`` - 1) in it."""

    rows: int
    places: int
    squares: int
    cubes: int

    def plus(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Sums(0, 0, 0, 0)


def _upto(n: int) -> Sums:
    """Sums of the places 0 to ``n`` (nothing for -1)."""
    triangle = n * (n + 1) // 2
    return Sums(n + 1, triangle, n * (n + 1) * (2 * n + 1) // 6, triangle * triangle)


def sums_of(intervals: Iterable[tuple[int, int]]) -> dict[int, Sums]:
    """The numbers of each bucket if every id of the (disjoint) intervals is there once."""
    found: dict[int, Sums] = {}
    for first, last in intervals:
        for bucket in range(first >> SHIFT, (last >> SHIFT) + 1):
            begin, end = max(first - bucket * SPAN, 0), min(last - bucket * SPAN, SPAN - 1)
            part = Sums(*(a - b for a, b in zip(_upto(end), _upto(begin - 1), strict=True)))
            found[bucket] = found.get(bucket, NOTHING).plus(part)
    return found


def differing(
    rows: Mapping[int, Sums], must: Sequence[tuple[int, int]], may: Sequence[tuple[int, int]] = ()
) -> list[int]:
    """Buckets whose rows are not those of ``must``, nor those of ``must`` and all of ``may``."""
    least, most = sums_of(must), sums_of(merge([*must, *may]))
    return [
        bucket
        for bucket in sorted({*rows, *least})
        if rows.get(bucket, NOTHING) not in (least.get(bucket, NOTHING), most.get(bucket, NOTHING))
    ]


def judge_ids(
    stream: Stream,
    span: Interval,
    counted: Iterable[tuple[int, int]],
    must: Sequence[tuple[int, int]],
    may: Sequence[tuple[int, int]] = (),
) -> list[Finding]:
    """Which ids of ``span`` are missing, doubled or strange; ``counted`` is (id, rows) of those that are there."""
    rows = dict(counted)
    there, name = runs(sorted(rows)), str(stream)
    wanted = common(must, [span])
    found = [
        Finding("rows_missing", name, f"{part.size} ids are not in the table", part) for part in minus(wanted, there)
    ]
    found += [
        Finding("rows_doubled", name, f"{part.size} ids stand more than once in the table", part)
        for part in runs(sorted(i for i, n in rows.items() if n > 1))
    ]
    found += [
        Finding("rows_stray", name, f"{part.size} ids are in the table that must not be there", part)
        for part in minus(there, [*wanted, *may])
    ]
    return found


def positions(intervals: Iterable[tuple[int, int]]) -> Iterator[int]:
    for first, last in intervals:
        yield from range(first, last + 1)


def bucket_span(bucket: int) -> Interval:
    return Interval(bucket * SPAN, bucket * SPAN + SPAN - 1)


def neighbours(buckets: Iterable[int], most: int) -> list[tuple[int, int]]:
    """Buckets in groups (first, last) of neighbours, at most ``most`` each."""
    grouped: list[tuple[int, int]] = []
    for bucket in sorted(buckets):
        if grouped and bucket == grouped[-1][1] + 1 and bucket - grouped[-1][0] < most:
            grouped[-1] = (grouped[-1][0], bucket)
        else:
            grouped.append((bucket, bucket))
    return grouped


def first_of(findings: Iterable[Finding], most: int = 50) -> list[Finding]:
    """At most ``most`` findings of each kind and stream; a last one says how many more there are."""
    shown: list[Finding] = []
    ordered = sorted(findings, key=lambda f: (f.stream, f.kind, f.span or (-1, -1)))
    for (stream, kind), group in itertools.groupby(ordered, key=lambda f: (f.stream, f.kind)):
        listed = list(group)
        shown += listed[:most]
        if len(listed) > most:
            shown.append(Finding(kind, stream, f"and {len(listed) - most} more like this"))
    return shown
