"""Reading what ``verify`` judges: ledger, mirrors, raw objects, and the rows of the table by DuckDB.

Memory does not grow with the lake: rows are summed up in buckets of ids, raw objects go through a folder in groups of
at most ``GROUP_ROWS`` rows, and ids are listed only for buckets that do not add up.
"""

# ruff: noqa: S608  names of streams are letters, digits and dashes (streams.Stream), the other parts are numbers
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import zstandard

from schemahub import raw
from schemahub.catalog import S3FileIO
from schemahub.errors import CorruptState, RawMissing
from schemahub.holes import committed_holes
from schemahub.ledger import Ledger
from schemahub.mapping_sql import SIDES, rows_sql, transform_sql
from schemahub.mappings import Mapping
from schemahub.objects import ObjectStore
from schemahub.ranges import Originals, read_mapped
from schemahub.streams import PREFIX, RawObject, Segment, Stream
from schemahub.table import DATA_PREFIX
from schemahub.transform import open_engine, register_segments, verify_raw
from schemahub.verify import NOTHING, SHIFT, SPAN, Finding, Line, Sums, held, sums_of

HEAD_THREADS = 16
GROUP_ROWS = 250_000
GROUP_OBJECTS = 64
READS = 4
MEMORY = "512MB"
"""What DuckDB may hold while the table is summed up; beyond it, it spills."""

Place = tuple[str, str]
"""Exchange and symbol as the table spells them."""


def place_of(stream: Stream) -> Place:
    return stream.exchange.upper(), stream.product


# --- state ------------------------------------------------------------------------------------------------------


def read_line(ledger: Ledger, stream: Stream) -> Line:
    """The stream's items as of one moment: read again while a commit moves the watermark in between.

    Raises:
        CorruptState: an item is not readable.
    """
    for _ in range(READS):
        mark = ledger.watermark(stream)
        segments = tuple(ledger.segments(stream))
        if ledger.watermark(stream) == mark:
            break
    else:
        # Commits come faster than the line is read: those after the watermark that was read are left out.
        segments = tuple(s for s in segments if mark is None or s.first <= mark.high)
    known = {hole.first: hole for hole in committed_holes(segments)} | {h.first: h for h in ledger.holes(stream)}
    holes = tuple(hole for _, hole in sorted(known.items()))
    return Line(stream, mark, segments, tuple(ledger.segments(stream.fills)), holes)


def describe_all(
    objects: ObjectStore, segments: Sequence[Segment], tick: Callable[[int], None] = lambda n: None
) -> Iterator[tuple[Segment, RawObject | str | None]]:
    """What the metadata of each segment's raw object says; text where it cannot be read. ``tick`` counts objects."""

    def look(segment: Segment) -> RawObject | str | None:
        try:
            return raw.describe(objects, segment.raw_key)
        except CorruptState as error:
            return error.reason

    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        for segment, found in zip(segments, pool.map(look, segments), strict=True):
            tick(1)
            yield segment, found


# --- the table --------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """The rows of one exchange and symbol: sums of each bucket, with ``content`` the sum of the rows' hashes."""

    sums: dict[int, Sums] = field(default_factory=dict)
    content: dict[int, int] = field(default_factory=dict)
    unreadable: int = 0
    """Rows whose trade id is not a number."""

    @property
    def count(self) -> int:
        return sum(s.rows for s in self.sums.values()) + self.unreadable


HASH = "hash(id, price, quantity, side, us)"
"""Of everything that a row says of its trade; when it was ingested is the ledger's, and not part of it."""


def sum_rows(
    db: Any,
    deep: bool,
    only: Sequence[Stream] = (),
    within: tuple[int, int] | None = None,
    uncounted: Sequence[Stream] = (),
) -> dict[Place, Rows]:
    """Sum up the view ``trades`` in one pass. ``deep`` reads all columns, otherwise only the ids are read.

    Rows of ``uncounted`` streams are only counted (as unreadable). ``only`` some streams, and of these only ids
    ``within`` a range (then rows without a readable id are left out).

    Raises:
        duckdb.Error: a file of the table cannot be read.
    """
    wanted, apart = (
        ", ".join(f"('{exchange}', '{symbol}')" for exchange, symbol in sorted({place_of(s) for s in listed}))
        for listed in (only, uncounted)
    )
    where = f"WHERE (exchange, symbol) IN ({wanted})" if wanted else ""
    no_id = f"WHEN (exchange, symbol) IN ({apart}) THEN NULL" if apart else ""
    cut = f"WHERE id BETWEEN {int(within[0])} AND {int(within[1])}" if within else ""
    columns = ", price, quantity, side, epoch_us(trade_ts) AS us" if deep else ""
    # The cast takes '1.0' and '007' for integers: only what reads back the same is an id.
    answer = db.execute(f"""
SELECT exchange, symbol, id >> {SHIFT}, count(*), sum(place), sum(place * place), sum(place * place * place),
    {f"sum({HASH})" if deep else "0"}
FROM (SELECT exchange, symbol, CASE {no_id}
          WHEN TRY_CAST(trade_id AS BIGINT)::VARCHAR = trade_id AND trade_id[1] <> '-'
          THEN TRY_CAST(trade_id AS BIGINT) END AS id, id & {SPAN - 1} AS place{columns} FROM trades {where})
{cut} GROUP BY ALL""")
    found: dict[Place, Rows] = {}
    while chunk := answer.fetchmany(10_000):
        for exchange, symbol, bucket, count, *sums, content in chunk:
            rows = found.setdefault((exchange, symbol), Rows())
            if bucket is None:
                rows.unreadable += count
            else:
                rows.sums[bucket] = Sums(count, *map(int, sums))
                rows.content[bucket] = int(content)
    return found


def count_ids(db: Any, stream: Stream, first: int, last: int) -> list[tuple[int, int]]:
    """(id, rows) of the ids of ``[first, last]`` that the table holds."""
    exchange, symbol = place_of(stream)
    answer = db.execute(
        "SELECT id, count(*) FROM (SELECT TRY_CAST(trade_id AS BIGINT) AS id FROM trades "
        "WHERE exchange = ? AND symbol = ?) WHERE id BETWEEN ? AND ? GROUP BY id",
        [exchange, symbol, first, last],
    )
    return [(int(i), int(n)) for i, n in answer.fetchall()]


@dataclass(frozen=True)
class File:
    """A data file that the table's snapshot names."""

    key: str
    size: int
    rows: int
    data: bool = True
    """False for a file of deletions."""


def files_of(objects: ObjectStore, metadata: Any) -> list[File]:
    """The files of the current snapshot of a table's metadata (PyIceberg's), from its manifests.

    Raises:
        FileNotFoundError: a manifest is gone.
    """
    snapshot = metadata.current_snapshot()
    if snapshot is None:
        return []
    files = S3FileIO(objects.client, {})
    return sorted(
        (
            File(
                entry.data_file.file_path.split("/", 3)[3],
                entry.data_file.file_size_in_bytes,
                entry.data_file.record_count,
                entry.data_file.content.value == 0,
            )
            for manifest in snapshot.manifests(files)
            for entry in manifest.fetch_manifest_entry(files, discard_deleted=True)
        ),
        key=lambda f: f.key,
    )


def judge_files(objects: ObjectStore, files: Sequence[File]) -> list[Finding]:
    """Whether the files that the snapshot names are there with their sizes, and only add rows."""
    there = dict(objects.sizes(DATA_PREFIX))
    found = []
    for file in files:
        if not file.data:
            found.append(Finding("table_deletes", "", f"{file.key} deletes rows"))
        elif there.get(file.key) != file.size:
            size = there.get(file.key)
            said = "is gone" if size is None else f"has {size} bytes instead of {file.size}"
            found.append(Finding("file_missing", "", f"{file.key} {said}"))
    return found


# --- quarantine -------------------------------------------------------------------------------------------------


def quarantined_ids(objects: ObjectStore, mapping: Mapping, stream: Stream) -> Iterator[int]:
    """Ids of the rows that lie in quarantine; an older transform's may be in the table meanwhile."""
    for key in objects.list(f"{PREFIX}quarantine/{stream.exchange}/{stream.product}/"):
        body = objects.get(key)
        if body is None:
            continue
        try:
            lines = zstandard.ZstdDecompressor().decompressobj().decompress(body).splitlines()
            for line in lines:
                yield int(json.loads(json.loads(line)["line"])[mapping.fields.trade_id])
        except (zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
            raise CorruptState(f"{key} cannot be read: {error!r}"[:300], stream=stream) from error


# --- raw content ------------------------------------------------------------------------------------------------


@dataclass
class Content:
    """What the raw objects of a stream say that the table must hold; ``rows.content`` as the table's."""

    rows: Rows = field(default_factory=Rows)
    quarantined: list[int] = field(default_factory=list)
    originals: Originals = field(default_factory=Originals)
    """Of streams whose positions cannot be counted."""
    findings: list[Finding] = field(default_factory=list)


def read_raw(
    objects: ObjectStore,
    mapping: Mapping,
    segments: Iterable[Segment],
    in_table: set[Segment],
    tick: Callable[[int], None] = lambda n: None,
) -> Content:
    """Read whole raw objects, prove their SHA-256 and their ids, and sum up the rows of those that are in the table.

    At most one group of objects is on disk, and DuckDB holds at most ``transform.DEFAULT_MEMORY``.
    """
    content = Content()
    for group in _groups(segments):
        with TemporaryDirectory(prefix="schemahub-verify-") as folder:
            whole = []
            for segment in group:
                path = Path(folder) / f"{segment.stream.dataset}_{segment.raw_key.rsplit('/', 1)[-1]}"
                if wrong := prove(objects, segment, path):
                    content.findings.append(wrong)
                else:
                    whole.append((segment, path))
            for wanted in (True, False):
                inputs = [(s, path) for s, path in whole if (s in in_table) is wanted]
                if inputs:
                    _sum_raw(mapping, inputs, Path(folder), wanted, content)
        tick(len(group))
    return content


def _groups(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    for segment in segments:
        if group and (sum(s.count for s in group) + segment.count > GROUP_ROWS or len(group) == GROUP_OBJECTS):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def prove(objects: ObjectStore, segment: Segment, path: Path) -> Finding | None:
    """Bring the segment's raw object to ``path``; what is wrong with it, unless it is what was committed."""
    if not objects.get_to_file(segment.raw_key, path):
        return Finding("raw_missing", str(segment.stream), f"{segment.raw_key} is gone", segment.interval)
    try:
        verify_raw(segment, path)
    except RawMissing as error:
        return Finding("raw_corrupt", str(segment.stream), error.reason, segment.interval)
    return None


def _sum_raw(
    mapping: Mapping, inputs: Sequence[tuple[Segment, Path]], folder: Path, in_table: bool, content: Content
) -> None:
    with open_engine(folder, threads=None) as db:
        register_segments(db, inputs)
        source = transform_sql(mapping, rows_sql(mapping, [str(path) for _, path in inputs]))
        sides = " ".join(f"WHEN {number} THEN '{side}'" for number, side in enumerate(SIDES))
        counted = all(segment.counted for segment, _ in inputs)
        place = f", id & {SPAN - 1} AS place" if counted else ""
        db.execute(f"""CREATE TEMP TABLE mapped AS SELECT id, price, quantity, CASE side {sides} END AS side,
            trade_us AS us, reason{place}, segment FROM ({source})""")
        if not counted:
            content.findings += read_mapped(db, [segment for segment, _ in inputs], content.originals)
            return
        summed: dict[int, dict[int, Sums]] = {number: {} for number in range(len(inputs))}
        for number, bucket, sums, _ in _bucketed(db, "segment", "reason NOT IN (1, 2)", "0"):
            summed[number][bucket] = sums
        for (segment, _), sums_found in zip(inputs, summed.values(), strict=True):
            if sums_found != sums_of(held([segment])):
                message = f"{segment.raw_key} does not hold the ids that its segment says"
                content.findings.append(Finding("raw_corrupt", str(segment.stream), message, segment.interval))
        if not in_table:
            return
        for _, bucket, sums, hashed in _bucketed(db, "0", "reason = 0", f"sum({HASH})"):
            content.rows.sums[bucket] = content.rows.sums.get(bucket, NOTHING).plus(sums)
            content.rows.content[bucket] = content.rows.content.get(bucket, 0) + hashed
        quarantined = db.execute("SELECT id FROM mapped WHERE reason > 2 ORDER BY id").fetchall()
        content.quarantined += [int(i) for (i,) in quarantined]


def _bucketed(
    db: duckdb.DuckDBPyConnection, group: str, where: str, hashed: str
) -> Iterator[tuple[int, int, Sums, int]]:
    answer = db.execute(
        f"SELECT {group} AS part, id >> {SHIFT}, count(*), sum(place), sum(place * place), "
        f"sum(place * place * place), {hashed} FROM mapped WHERE {where} GROUP BY ALL"
    )
    for part, bucket, count, *sums, content in answer.fetchall():
        yield int(part), int(bucket), Sums(count, *map(int, sums)), int(content)


def changed(rows: Rows, content: Content) -> list[int]:
    """Buckets that hold the same ids in raw and table, and other values."""
    return [
        bucket
        for bucket, sums in sorted(content.rows.sums.items())
        if rows.sums.get(bucket) == sums and rows.content.get(bucket) != content.rows.content[bucket]
    ]
