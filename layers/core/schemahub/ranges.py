"""Verifying streams whose positions nobody can count: times, or ids that skip numbers.

Such a range does not say how many trades it holds; the segment's count does. As many rows of the table must lie in it,
each trade id once, but for those in quarantine. With the raw objects' content the rows' own values are compared too.
"""

# ruff: noqa: S608  the parts of the SQL are written here, names and numbers are bound or integers
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import zstandard

from schemahub.errors import CorruptState
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX, Interval, Segment, Stream
from schemahub.verify import Aside, Finding, held

SLICE_ROWS = 2_000_000
"""Rows whose ids are held at a time to see that none stands twice."""
CONTENT = "hash(trade_id, price, quantity, side, us)"


@dataclass(frozen=True)
class Held:
    """The rows of one range: how many, how many different ids, and the sum of the rows' hashes (0 if not asked for)."""

    rows: int = 0
    distinct: int = 0
    content: int = 0

    def plus(self, other: Held) -> Held:
        return Held(self.rows + other.rows, self.distinct + other.distinct, self.content + other.content)


@dataclass
class Originals:
    """What raw objects say that their ranges hold: the rows that map, by segment."""

    held: dict[Segment, Held] = field(default_factory=dict)


def position_sql(by_time: bool) -> str:
    """A row's position; the table's times are whole microseconds, and so are the ends of every range."""
    return "epoch_us(trade_ts) * 1000" if by_time else "TRY_CAST(trade_id AS BIGINT)"


def count_segments(db: Any, stream: Stream, by_time: bool, segments: Sequence[Segment], deep: bool) -> list[Held]:
    """What the table holds of each segment; of its absent ranges other segments (fills) may hold something."""
    parts = [(number, part) for number, segment in enumerate(segments) for part in held([segment])]
    found = count_ranges(db, stream, by_time, [(*part, segments[n].count) for n, part in parts], deep)
    total = [Held()] * len(segments)
    for (number, _), there in zip(parts, found, strict=True):
        total[number] = total[number].plus(there)
    return total


def count_ranges(
    db: Any, stream: Stream, by_time: bool, ranges: Sequence[tuple[int, int, int]], deep: bool = False
) -> list[Held]:
    """What the view ``trades`` holds of each disjoint range ``(first, last, expected rows)``, in their order."""
    found = [Held()] * len(ranges)
    for part in _slices(ranges):
        spans = [ranges[number] for number in part]
        low, high = min(s[0] for s in spans), max(s[1] for s in spans)
        # Times prune files and row groups; ids are texts, which do not.
        pruned = "AND trade_ts BETWEEN make_timestamptz($low // 1000) AND make_timestamptz($high // 1000)"
        table = pa.table({"part": part, "first": [s[0] for s in spans], "last": [s[1] for s in spans]})
        db.register("spans", table)
        answer = db.execute(
            f"""
SELECT part, count(*), count(DISTINCT trade_id), {f"sum({CONTENT})" if deep else "0"}
FROM (SELECT trade_id, price, quantity, side, epoch_us(trade_ts) AS us, {position_sql(by_time)} AS place FROM trades
      WHERE exchange = $exchange AND symbol = $symbol AND place BETWEEN $low AND $high {pruned if by_time else ""})
ASOF JOIN spans ON place >= spans.first WHERE place <= last GROUP BY part""",
            {"exchange": stream.exchange.upper(), "symbol": stream.product, "low": low, "high": high},
        )
        for number, rows, distinct, content in answer.fetchall():
            found[number] = Held(rows, distinct, int(content))
        db.unregister("spans")
    return found


def _slices(ranges: Sequence[tuple[int, int, int]]) -> Iterator[list[int]]:
    part: list[int] = []
    rows = 0
    for number in sorted(range(len(ranges)), key=lambda n: ranges[n]):
        if part and rows + ranges[number][2] > SLICE_ROWS:
            yield part
            part, rows = [], 0
        part.append(number)
        rows += ranges[number][2]
    if part:
        yield part


def count_all(db: Any, stream: Stream, by_time: bool, within: tuple[int, int] | None) -> int:
    """Rows of a stream in the table; of a range of positions, if one is given."""
    cut = f"AND {position_sql(by_time)} BETWEEN {int(within[0])} AND {int(within[1])}" if within else ""
    answer = db.execute(
        f"SELECT count(*) FROM trades WHERE exchange = ? AND symbol = ? {cut}",
        [stream.exchange.upper(), stream.product],
    )
    return int(answer.fetchone()[0])


def read_mapped(db: Any, segments: Sequence[Segment], originals: Originals) -> Iterator[Finding]:
    """What the raw objects in DuckDB's table ``mapped`` (see ``evidence``) hold; findings where a row is not theirs."""
    answer = db.execute(
        f"SELECT segment, count(*) FILTER (reason IN (1, 2)), count(*) FILTER (reason = 0), "
        f"count(DISTINCT trade_id) FILTER (reason = 0), coalesce(sum({CONTENT}) FILTER (reason = 0), 0) "
        "FROM (SELECT *, id::VARCHAR AS trade_id FROM mapped) GROUP BY segment"
    )
    for number, strange, rows, distinct, content in answer.fetchall():
        segment = segments[number]
        originals.held[segment] = Held(rows, distinct, int(content))
        if strange:
            message = f"{segment.raw_key} holds {strange} rows that are not its segment's"
            yield Finding("raw_corrupt", str(segment.stream), message, segment.interval)


def judge_ranges(
    segments: Sequence[Segment], table: Sequence[Held], aside: Mapping[tuple[int, int], int], originals: Originals
) -> tuple[list[Finding], list[Aside]]:
    """Whether each segment's rows are in the table once, but for those ``aside`` (at most so many of a range).

    Also returns how many rows of which ranges are not in the table.
    """
    found: list[Finding] = []
    gone: list[Aside] = []
    for segment, there in zip(segments, table, strict=True):
        name, span, missing = str(segment.stream), segment.interval, segment.count - there.distinct
        if there.rows > there.distinct:
            message = f"{there.rows - there.distinct} rows have a trade id that stands there already"
            found.append(Finding("rows_doubled", name, message, span))
        if missing < 0:
            found.append(Finding("rows_stray", name, f"{-missing} rows more than were committed", span))
        elif missing > aside.get(span, 0):
            found.append(Finding("rows_missing", name, f"{missing - aside.get(span, 0)} rows are missing", span))
        elif missing:
            gone.append(Aside(*span, missing))
        original = originals.held.get(segment)
        if original and original.distinct == there.distinct == there.rows and original.content != there.content:
            message = "rows have other values than their raw objects give (or the mapping was changed since)"
            found.append(Finding("rows_changed", name, message, span))
    return found, gone


def quarantined_rows(objects: ObjectStore, stream: Stream, segments: Iterable[Segment]) -> dict[tuple[int, int], int]:
    """How many rows of each segment's range lie in quarantine; an older transform's may be in the table meanwhile."""
    spans: dict[str, Interval] = {s.raw_key.rsplit("/", 1)[-1]: s.interval for s in segments}
    found: Counter[tuple[int, int]] = Counter()
    for key in objects.list(f"{PREFIX}quarantine/{stream.exchange}/{stream.product}/"):
        try:
            lines = zstandard.ZstdDecompressor().decompressobj().decompress(objects.get(key) or b"").splitlines()
            here = Counter(spans.get(json.loads(line)["raw"]) for line in lines)
        except (zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
            raise CorruptState(f"{key} cannot be read: {error!r}"[:300], stream=stream) from error
        for span, rows in here.items():
            if span is not None:
                # A re-derivation quarantines the same rows again, under its own name.
                found[span] = max(found[span], rows)
    return dict(found)
