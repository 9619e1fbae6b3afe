"""Rows of the table made anew from their originals: which segments, and instead of which data files.

A re-derivation replaces whole data files. A file that holds the moment or the position it begins at is made anew from
its own beginning, so that no file is ever rewritten in part. The table's property ``schemahub.rederived.…`` says by
which runs a stream's ranges were made anew; it is set in the commit that replaces the files and so proves it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.table import Table
from pyiceberg.types import StringType, TimestamptzType

from schemahub.catalog import REDERIVED, property_name, published_intervals
from schemahub.errors import BadStateInput, CorruptState
from schemahub.streams import MAX_POSITION, TRADES, Interval, Segment, Stream, covers, gaps
from schemahub.table import COLUMNS, DATA_PREFIX, micros

_FILE = re.compile(r"([A-Z][A-Z0-9_]*)_([A-Z0-9]+-[A-Z0-9]+)_(?:([a-z]+)_)?(\d{20})_(\d{20})_[0-9a-f]{8}\.parquet")
_IDS = {c.name: c.field_id for c in COLUMNS}


@dataclass(frozen=True)
class LiveFile:
    """A data file of the current snapshot with what its name and its bounds say."""

    file: IcebergFile
    stream: Stream
    interval: Interval
    newest_us: int

    @property
    def rows(self) -> int:
        return int(self.file.record_count)


@dataclass(frozen=True)
class StreamPlan:
    """What of one stream is made anew. ``base`` is the property as it was: it must still be so at the commit."""

    stream: Stream
    first: int
    base: str
    segments: tuple[Segment, ...]
    rows: int
    """In the table now."""
    files: int

    @property
    def delivered(self) -> int:
        return sum(s.count for s in self.segments)

    def to_json(self) -> dict[str, Any]:
        return {
            "stream": str(self.stream),
            "first": self.first,
            "last": self.segments[-1].last if self.segments else None,
            "base": self.base,
            "segments": len(self.segments),
            "delivered": self.delivered,
            "rows": self.rows,
            "files": self.files,
            "quarantined": self.delivered - self.rows,
        }


def property_of(stream: Stream) -> str:
    return property_name(REDERIVED, stream)


def entry(base: str, run_id: str, spans: Iterable[tuple[int, int]]) -> str:
    """The property's next value: ``number;run@first-last,…`` with the newest run last, older ones cut by it."""
    number, runs = parse(base)
    new = sorted(Interval(*span) for span in spans)
    left = [(run, part) for run, old in runs for part in gaps(new, old)]
    listed = ",".join(f"{run}@{i.first}-{i.last}" for run, i in [*left, *((run_id, i) for i in new)])
    return f"{number + 1};{listed}"


def parse(value: str) -> tuple[int, list[tuple[str, Interval]]]:
    """How many re-derivations there were, and which run made which range. Raises CorruptState for anything else."""
    if not value:
        return 0, []
    try:
        number, _, listed = value.partition(";")
        runs = []
        for part in listed.split(","):
            run, _, span = part.rpartition("@")
            runs.append((run, Interval(*(int(edge) for edge in span.split("-")))))
        return int(number), runs
    except (TypeError, ValueError) as error:
        raise CorruptState(f"a property {REDERIVED}… is not readable: {value[:80]!r}") from error


def live_files(table: Table, streams: Iterable[Stream]) -> Iterator[LiveFile]:
    """The current snapshot's files of these streams.

    Raises:
        CorruptState: a file that may hold rows of them is not one of the publisher's (the table was compacted).
    """
    wanted = {(s.exchange.upper(), s.product, s.dataset): s for s in streams}
    snapshot = table.current_snapshot()
    for manifest in snapshot.manifests(table.io) if snapshot else ():
        for item in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
            file = item.data_file
            found = _FILE.fullmatch(file.file_path.rsplit("/", 1)[-1])
            if found is None or DATA_PREFIX not in file.file_path:
                _refuse_foreign(file, wanted)
            elif stream := wanted.get((found[1], found[2], found[3] or TRADES)):
                newest = int(from_bytes(TimestamptzType(), file.upper_bounds[_IDS["trade_ts"]]))
                yield LiveFile(file, stream, Interval(int(found[4]), int(found[5])), newest)


def _refuse_foreign(file: IcebergFile, wanted: dict[tuple[str, str, str], Stream]) -> None:
    for (exchange, symbol, _), stream in wanted.items():
        if _within(file, "exchange", exchange) and _within(file, "symbol", symbol):
            raise CorruptState(
                f"{file.file_path} was not written by the transform, and may hold rows of the stream",
                stream=stream,
                remedy="Compaction mixes streams: roll the table back to a snapshot before it, then re-derive.",
            )


def _within(file: IcebergFile, column: str, value: str) -> bool:
    """Whether the file's bounds allow the value; bounds that are not there allow everything."""
    lower, upper = (bounds or {} for bounds in (file.lower_bounds, file.upper_bounds))
    if _IDS[column] not in lower or _IDS[column] not in upper:
        return True
    low, high = (from_bytes(StringType(), bounds[_IDS[column]]) for bounds in (lower, upper))
    return bool(low <= value <= high)


def beginning(files: Sequence[LiveFile], since: int | dt.datetime | None) -> int | None:
    """The first position to make anew, so that all that is at or after ``since`` is; None where nothing is.

    A moment is looked up in the files' newest trade times; what lies in quarantine between two files goes with the
    later one.
    """
    if since is None:
        return 0
    if isinstance(since, int):
        return min([since, *(f.interval.first for f in files if f.interval.last >= since)])
    late = [f for f in files if f.newest_us >= micros(since)]
    if not late:
        return None
    first = min(f.interval.first for f in late)
    return max((f.interval.last + 1 for f in files if f.interval.last < first), default=0)


def ending(files: Sequence[LiveFile], first: int, until: int | None) -> int:
    """The last position to make anew, so that no file that holds any of ``first``..``until`` is cut."""
    if until is None:
        return MAX_POSITION
    return max([until, *(f.interval.last for f in files if f.interval.last >= first and f.interval.first <= until)])


def plan(
    table: Table, segments: Iterable[Segment], stream: Stream, since: int | dt.datetime | None, until: int | None = None
) -> StreamPlan | None:
    """What of ``stream`` from ``since`` on is to be made anew, of its committed ``segments``; None: nothing.

    Up to position ``until``, and as far as the data files go that hold anything before it.

    Raises:
        BadStateInput: nothing of the stream is in the table. CorruptState: segments and table contradict each other.
    """
    published = published_intervals(table).get(stream)
    if not published:
        raise BadStateInput("nothing of this stream is in the table", stream=stream)
    files = list(live_files(table, [stream]))
    first = beginning(files, since)
    if first is None:
        return None
    last = ending(files, first, until)
    chosen = tuple(s for s in segments if s.last >= first and s.first <= last and covers(published, s.interval))
    if not chosen:
        return None
    first = min(first, chosen[0].first)
    replaced = [f for f in files if f.interval.last >= first and f.interval.first <= last]
    held = [s.interval for s in chosen]
    for file in replaced:
        if not covers(held, file.interval):
            raise CorruptState("a data file holds what no segment does", stream=stream, span=file.interval)
    return StreamPlan(
        stream,
        chosen[0].first,
        table.metadata.properties.get(property_of(stream), ""),
        chosen,
        sum(f.rows for f in replaced),
        len(replaced),
    )


def moment(text: str) -> dt.datetime:
    """An ISO date or time, UTC unless it says otherwise. Raises ValueError."""
    when = dt.datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)
