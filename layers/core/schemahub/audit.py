"""Verifying streams from raw to table, with the state tables (``audit``) or with the lake alone (``recheck``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from schemahub import certificate, evidence, ranges
from schemahub.certificate import Certificate, Document, SignOff, Snapshot
from schemahub.deps import Deps
from schemahub.errors import CorruptState
from schemahub.evidence import Content, Rows, place_of
from schemahub.lake import Lake
from schemahub.mappings import load_mapping
from schemahub.objects import ObjectStore
from schemahub.rebuild import named_streams
from schemahub.streams import MAX_POSITION, Interval, Segment, Stream, common, gaps, merge, minus, runs
from schemahub.verify import (
    NOTHING,
    SHIFT,
    Aside,
    Finding,
    Line,
    Sums,
    absent,
    bucket_span,
    differing,
    held,
    in_table,
    judge_ids,
    judge_line,
    judge_mirror,
    judge_published,
    judge_raw,
    neighbours,
    sums_of,
)

MAX_BUCKETS = 32
"""So many buckets of a stream that do not add up are looked at id by id."""
BUCKETS_AT_ONCE = 8

Watch = Callable[[str, int], Callable[[int], None]]
"""Called with what begins and how many steps it has; gives the function that counts them."""


def unwatched(stage: str, steps: int) -> Callable[[int], None]:
    return lambda done: None


@dataclass(frozen=True)
class Verdict:
    """What was found of one stream; ``stream`` None for the table as a whole."""

    stream: Stream | None
    findings: tuple[Finding, ...] = ()
    range: tuple[int, int] | None = None
    trades: int = 0
    rows: int = 0
    absent: int = 0
    quarantined: int = 0
    pending: int = 0
    """Committed trades that no snapshot holds yet."""
    unproved: int = 0
    """Absent ids that are not proved to be missing for good (``schemahub gaps``)."""
    document: Document | None = None
    """The certificate, where nothing was found."""
    islands: tuple[Interval, ...] = ()
    """Committed ranges below ``range``: what a backfill has filled in so far, or was asked for."""

    def to_json(self) -> dict[str, Any]:
        stream = f"{self.stream.exchange}:{self.stream.product}" if self.stream else None
        signed = self.document["sha256"] if self.document else None
        return {
            "stream": stream,
            "whole": not self.findings,
            "range": list(self.range) if self.range else None,
            "islands": [list(part) for part in self.islands],
            **{n: getattr(self, n) for n in ("trades", "rows", "absent", "quarantined", "pending", "unproved")},
            "findings": [f.to_json() for f in self.findings],
            "certificate_sha256": signed,
        }


def known_streams(deps: Deps, lake: Lake) -> list[Stream]:
    """Every stream that the seed, the parameter, a mirror or the table names."""
    return sorted(named_streams(deps) | {s.trades for s in lake.published})


def audit(
    deps: Deps,
    load: Callable[[], Lake],
    streams: Sequence[Stream] = (),
    *,
    deep: bool = False,
    sign_off: SignOff | None = None,
    watch: Watch = unwatched,
) -> Iterator[Verdict]:
    """Verify streams (all by default), the table as a whole last; with ``sign_off`` whole streams get a certificate.

    ``load`` gives the table as it is now. Nothing is written.
    """
    lake = load()
    chosen = list(streams) or known_streams(deps, lake)
    lines, broken = _read_lines(deps, chosen, watch)
    later = load().published
    rows, general = _sum(lake, deep, streams, watch, uncounted=[s for s in lines if not lines[s].counted])
    if lake.metadata is not None and not lake.registered:
        general.append(Finding("table_unregistered", "", "the catalog has lost the table; its metadata is in S3"))
    for stream in chosen:
        if stream in broken:
            yield Verdict(stream, (broken[stream],))
            continue
        line = lines[stream]
        if line.mark is None and not line.all and stream not in lake.published:
            continue
        verdict, gone = _judge(deps, lake, line, later, rows, deep, watch)
        if sign_off and not verdict.findings and not general and line.mark:
            verdict = replace(verdict, document=_certify(deps, lake, line, verdict, gone, sign_off))
        yield verdict
    known = {place_of(s) for s in chosen}
    if not streams:
        general += [
            Finding("rows_unknown", f"{exchange} {symbol}", f"{found.count} rows of no known stream")
            for (exchange, symbol), found in sorted((rows or {}).items())
            if (exchange, symbol) not in known
        ]
    yield Verdict(None, tuple(general))


def _read_lines(
    deps: Deps, streams: Sequence[Stream], watch: Watch
) -> tuple[dict[Stream, Line], dict[Stream, Finding]]:
    lines, broken = {}, {}
    tick = watch("reading the ledger", len(streams))
    for stream in streams:
        try:
            lines[stream] = evidence.read_line(deps.ledger, stream)
        except CorruptState as error:
            broken[stream] = Finding("ledger_unreadable", str(stream), error.reason)
        tick(1)
    return lines, broken


def _sum(
    lake: Lake,
    deep: bool,
    only: Sequence[Stream],
    watch: Watch,
    within: tuple[int, int] | None = None,
    uncounted: Sequence[Stream] = (),
) -> tuple[dict[evidence.Place, Rows] | None, list[Finding]]:
    """The table's rows in sums (None where it cannot be read), and what is wrong with its files."""
    if lake.metadata is None:
        return {}, []
    tick = watch("summing up the table", 1)
    found: list[Finding] = []
    try:
        found = evidence.judge_files(lake.objects, evidence.files_of(lake.objects, lake.metadata))
        return evidence.sum_rows(lake.connect(), deep, only, within, uncounted), found
    except (duckdb.Error, FileNotFoundError) as error:
        found.append(Finding("table_unreadable", "", f"{type(error).__name__}: {str(error)[:300]}"))
        return None, found
    finally:
        tick(1)


def _judge(
    deps: Deps,
    lake: Lake,
    line: Line,
    later: Mapping[Stream, Sequence[Interval]],
    rows: dict[evidence.Place, Rows] | None,
    deep: bool,
    watch: Watch,
) -> tuple[Verdict, list[Aside]]:
    """The verdict without a certificate, and what is in quarantine instead of the table."""
    stream, name = line.stream, line.stream.label
    found = judge_line(line) + _judge_mirror(deps, line) + judge_published(line, lake.published, later)
    tick = watch(f"raw objects of {name}", len(line.all))
    described = evidence.describe_all(deps.objects, line.all, lambda n: None if deep else tick(n))
    found += [finding for segment, raw in described if (finding := judge_raw(segment, raw))]
    mapping, there = load_mapping(stream.exchange), in_table(line, lake.published)
    content = Content()
    if deep:
        content = evidence.read_raw(deps.objects, mapping, line.all, set(there), tick)
        found += [f for f in content.findings if f.kind != "raw_missing"]  # that was said above
    quarantined = sum(lake.quarantined.get(s, 0) for s in (stream, stream.fills))
    mine, gone = (rows or {}).get(place_of(stream), Rows()), list[Aside]()
    if rows is not None and line.counted:
        ids = set(content.quarantined)
        if quarantined:
            ids |= set(evidence.quarantined_ids(deps.objects, mapping, stream))
        wrong, away = _judge_rows(lake, stream, mine, there, runs(sorted(ids)))
        gone = [Aside(*part, part.size) for part in away]
        found += wrong + [_changed(stream, bucket) for bucket in evidence.changed(mine, content)] if deep else wrong
    elif rows is not None:
        aside = ranges.quarantined_rows(deps.objects, stream, there) if quarantined else {}
        wrong, gone, _ = _judge_ranges(lake, stream, mapping.by_time, there, aside, content, deep)
        found += wrong
    if rows is not None:
        found += _judge_quarantine(stream, gone, quarantined)
    unproved = sum(h.ids for h in line.holes if not h.proved)
    verdict = Verdict(
        stream,
        tuple(found),
        (line.mark.low, line.mark.high) if line.mark else None,
        sum(s.count for s in line.all),
        mine.count,
        sum(part.size for part in absent(line)),
        quarantined,
        sum(s.count for s in line.all) - sum(s.count for s in there),
        unproved,
        islands=tuple(line.islands),
    )
    return verdict, gone


def _judge_mirror(deps: Deps, line: Line) -> list[Finding]:
    """The mirror is written after the commit: one that seems wrong is looked at again, with the watermark of then."""
    found = judge_mirror(line, deps.objects.get(line.stream.mirror_key))
    if not found:
        return []
    now = replace(line, mark=deps.ledger.watermark(line.stream))
    return judge_mirror(now, deps.objects.get(line.stream.mirror_key))


def _changed(stream: Stream, bucket: int) -> Finding:
    message = "rows have other values than their raw objects give (or the mapping was changed since)"
    return Finding("rows_changed", str(stream), message, bucket_span(bucket))


def _judge_rows(
    lake: Lake,
    stream: Stream,
    rows: Rows,
    there: Sequence[Segment],
    aside: Sequence[tuple[int, int]] = (),
    may: Sequence[tuple[int, int]] = (),
    within: tuple[int, int] = (0, MAX_POSITION),
) -> tuple[list[Finding], list[Interval]]:
    """Each id of ``there`` once, but for those ``aside``, which may be in the table or not; nothing else but ``may``.

    Also returns the ids aside that are not in the table.
    """
    aside = common(held(there), aside)
    must = minus(held(there), aside)
    allowed = merge([*may, *aside])
    buckets = differing(rows.sums, must, allowed)
    found: list[Finding] = []
    present: list[Interval] = []
    db = lake.connect() if buckets else None
    for first, last in neighbours(buckets[:MAX_BUCKETS], BUCKETS_AT_ONCE):
        # A bucket reaches beyond the ids that were summed up.
        span = Interval(max(bucket_span(first).first, within[0]), min(bucket_span(last).last, within[1]))
        counted = evidence.count_ids(db, stream, *span)
        found += judge_ids(stream, span, counted, must, allowed)
        present += runs(sorted(i for i, _ in counted))
    expected = sums_of(must)
    for bucket in buckets[MAX_BUCKETS:]:
        have, want = rows.sums.get(bucket, NOTHING).rows, expected.get(bucket, NOTHING).rows
        kind = "rows_missing" if have < want else "rows_stray"
        found.append(Finding(kind, str(stream), f"{have} rows instead of {want}", bucket_span(bucket)))
    if rows.unreadable:
        found.append(Finding("rows_stray", str(stream), f"{rows.unreadable} rows whose trade_id is no number"))
    return found, minus(aside, [*present, *_with_all(rows, expected, aside, buckets)])


def _with_all(
    rows: Rows, least: Mapping[int, Sums], aside: Sequence[tuple[int, int]], looked: Sequence[int]
) -> list[Interval]:
    """Buckets that have ids aside and were not looked at one by one because all of these are in the table."""
    touched = {i for first, last in aside for i in range(first >> SHIFT, (last >> SHIFT) + 1)} - set(looked)
    return [bucket_span(b) for b in touched if rows.sums.get(b, NOTHING) != least.get(b, NOTHING)]


def _judge_ranges(
    lake: Lake,
    stream: Stream,
    by_time: bool,
    there: Sequence[Segment],
    aside: Mapping[tuple[int, int], int],
    content: Content,
    deep: bool,
    may: Sequence[Interval] = (),
    within: tuple[int, int] | None = None,
) -> tuple[list[Finding], list[Aside], int]:
    """As ``_judge_rows`` where positions cannot be counted: range by range. Also how many rows there are in all."""
    db = lake.connect()
    table = ranges.count_segments(db, stream, by_time, there, deep)
    found, gone = ranges.judge_ranges(there, table, aside, content.originals)
    allowed = ranges.count_ranges(db, stream, by_time, [(*part, 0) for part in may])
    rows = ranges.count_all(db, stream, by_time, within)
    strays = rows - sum(part.rows for part in [*table, *allowed])
    if strays:
        found.append(Finding("rows_stray", str(stream), f"{strays} rows lie in no committed range", within))
    return found, gone, rows


def _judge_quarantine(stream: Stream, gone: Sequence[Aside], quarantined: int) -> list[Finding]:
    """Rows that are not in the table because they are in quarantine: as many as the table's property says."""
    missing = sum(part.rows for part in gone)
    if missing == quarantined:
        return []
    message = f"{missing} quarantined rows are not in the table, whose property counts {quarantined}"
    return [Finding("rows_missing" if missing > quarantined else "rows_stray", str(stream), message)]


def _certify(
    deps: Deps, lake: Lake, line: Line, verdict: Verdict, aside: Sequence[Aside], sign_off: SignOff
) -> Document:
    stream, snapshot = line.stream, lake.metadata.current_snapshot() if lake.metadata else None
    current = Snapshot(
        lake.key,
        snapshot.snapshot_id if snapshot else None,
        tuple(lake.published.get(stream, ())),
        tuple(lake.published.get(stream.fills, ())),
        verdict.rows,
    )
    before = certificate.newest(deps.objects, stream)
    positions = certificate.positions_of(line, load_mapping(stream.exchange).by_time)
    return certificate.issue(line, positions, aside, current, sign_off, before.document if before else None)


# --- with the lake alone ----------------------------------------------------------------------------------------


def recheck(lake: Lake, chain: Sequence[Certificate], *, deep: bool = False, watch: Watch = unwatched) -> Verdict:
    """Check the newest certificate of a stream (``chain``, oldest first) against raw objects and table.

    The table may have gone on since: ids that were pending or absent may be in it by now.
    """
    proved = chain[-1]
    line, stream = proved.line, proved.stream
    found = certificate.judge_chain(chain) + certificate.judge(proved)
    there = in_table(line, proved.published)
    tick = watch(f"raw objects of {stream.label}", len(line.all))
    content = Content()
    if deep:
        mapping = load_mapping(stream.exchange)
        content = evidence.read_raw(lake.objects, mapping, line.all, set(there), tick)
        found += content.findings
    else:
        found += _prove_raw(lake.objects, line.all, tick)
    for published, parts in proved.published.items():
        for gap in (g for part in parts for g in gaps(lake.published.get(published, ()), part)):
            found.append(Finding("published_lost", str(published), "certified, and not in the table any more", gap))
    assert line.mark is not None
    span = (min(s.first for s in line.segments), line.mark.high)
    rows, general = _sum(lake, deep, [stream], watch, span, () if line.counted else [stream])
    found += general
    mine = (rows or {}).get(place_of(stream), Rows())
    total = mine.count
    if rows is not None:
        # What lay between the islands then may have been filled in since.
        may = merge([*held(s for s in line.all if s not in set(there)), *absent(line), *line.unfetched])
        if line.counted:
            aside = [part[:2] for part in proved.quarantined]
            wrong, away = _judge_rows(lake, stream, mine, there, aside, may, span)
            gone = [Aside(*part, part.size) for part in away]
            found += wrong + [_changed(stream, bucket) for bucket in evidence.changed(mine, content)] if deep else wrong
        else:
            least = {(part.first, part.last): part.rows for part in proved.quarantined}
            wrong, gone, total = _judge_ranges(lake, stream, proved.by_time, there, least, content, deep, may, span)
            found += wrong
        found += _judge_quarantine(stream, gone, sum(part.rows for part in proved.quarantined))
    counts = proved.document["counts"]
    return Verdict(
        stream, tuple(found), (line.mark.low, line.mark.high), counts["trades"], total, counts["absent"],
        counts["quarantined"], sum(s.count for s in line.all) - sum(s.count for s in there),
        sum(h.ids for h in line.holes if not h.proved), proved.document, tuple(line.islands),
    )  # fmt: skip


def _prove_raw(objects: ObjectStore, segments: Sequence[Segment], tick: Callable[[int], None]) -> Iterator[Finding]:
    """SHA-256 and count of each object's content, one object at a time."""
    with TemporaryDirectory(prefix="schemahub-verify-") as folder:
        path = Path(folder) / "raw"
        for segment in segments:
            if wrong := evidence.prove(objects, segment, path):
                yield wrong
            tick(1)
