"""Looking for a hole's ids in the files of an exchange's archive: the path beside its API.

Which file holds a hole is told by the committed trades around it. Only a file that proves itself says anything: its
checksum is published and its own, it shows the trades around the hole as they are committed, and what it has of the
hole's ids lies between them in time. Everything else is no look, which neither proves nor disproves. One packed file
at a time lies on disk, for the next hole of the same day; in memory are the hole's own rows.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc

from schemahub import raw
from schemahub.answers import parse_elements
from schemahub.archive_download import Files, RequestsFiles
from schemahub.archive_layout import layout_of
from schemahub.archive_read import Read, member_of, read_rows
from schemahub.archive_reconcile import same_trade
from schemahub.archives import ArchiveFile, files_for
from schemahub.deps import Deps, logger
from schemahub.errors import ArchiveError, ExchangeRefused, ExchangeUnavailable, ResponseInterrupted
from schemahub.fetch import Fetched
from schemahub.holes import Hole, Look, neighbours, pace
from schemahub.mappings import Mapping, load_mapping
from schemahub.reissues import checksums_of
from schemahub.streams import Chunk, Interval, Segment, gaps, runs

MAX_PACKED_BYTES = 384 * 2**20
"""Of a file that a function takes: its disk has 512 MiB. A day of Binance is far below; a month need not be."""
MAX_IDS = 200_000
"""Ids of a hole whose rows are held in memory."""
MAX_FILES = 2
"""A hole at midnight lies in two days."""
LOOK_S = 200.0
"""A step of ``maintain`` begins no hole after 600 s, and has 900."""
AROUND_IDS = 100
"""Trades on each side whose times tell whether it was quiet."""
SILENT = (ArchiveError, ExchangeUnavailable, ResponseInterrupted, ExchangeRefused)


@dataclass
class _Shown:
    """What files show: rows of the hole, of the committed trades around it, and times (µs) near it, by id."""

    rows: dict[int, str] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)
    twice: set[int] = field(default_factory=set)
    """Ids with two different rows."""


def look_in_files(
    deps: Deps, hole: Hole, tick: Callable[[], None], files: Files | None = None
) -> tuple[Look, list[Fetched]] | None:
    """What the archive has of a hole's ids; None, with a line in the log, where it has nothing to say.

    Raises:
        RawMissing: the segment that names the ids absent cannot be read. LockLost: from ``tick``.
    """
    try:
        return _look(deps, hole, tick, files or RequestsFiles())
    except _Nothing as nothing:
        reason = str(nothing)
    except SILENT as error:
        reason = f"{type(error).__name__}: {error.reason}"
    logger.info("the archive has nothing to say of a hole", extra={"hole": f"{hole.first}..{hole.last}",
                "stream": str(hole.stream), "reason": reason[:300]})  # fmt: skip
    return None


class _Nothing(Exception):
    """Why the archive says nothing."""


def _look(deps: Deps, hole: Hole, tick: Callable[[], None], source: Files) -> tuple[Look, list[Fetched]]:
    mapping = load_mapping(hole.stream.exchange)
    if hole.ids > MAX_IDS:
        raise _Nothing(f"{hole.ids} ids are more than a look holds in memory")
    around = _committed_beside(deps, mapping, hole)
    begin, end = (ts_us for _, ts_us in around.values())
    if end < begin:
        raise _Nothing("the trades beside the hole run backwards in time")
    wanted = files_for(mapping, hole.stream, begin, end + 1, deps.clock.now_ms())
    if not wanted or wanted[0].period_us[0] > begin or wanted[-1].period_us[1] <= end:
        raise _Nothing("a file of that time is not published yet")
    if len(wanted) > MAX_FILES:
        raise _Nothing(f"the trades beside the hole are {len(wanted)} files apart")
    until_ms = deps.clock.now_ms() + int(LOOK_S * 1000)

    def going() -> None:
        tick()
        if deps.clock.now_ms() > until_ms:
            raise _Nothing("it took too long")

    shown = _Shown()
    for file in wanted:
        _read(deps, mapping, file, {hole.first, hole.last, *around}, shown, going, source)
    for number, (text, _) in around.items():
        if number not in shown.rows or number in shown.twice:
            raise _Nothing(f"it does not show the trade {number} beside the hole")
        if not same_trade(mapping, text, shown.rows[number]):
            raise _Nothing(f"it shows another trade as {number}")
    # The API's times may be coarser than the file's.
    return _judged(hole, shown, begin, end + max(0, mapping.fields.tick_ns // 1000 - 1))


def _judged(hole: Hole, shown: _Shown, begin: int, end: int) -> tuple[Look, list[Fetched]]:
    """The look at what a file shows that agrees on both sides of the hole."""
    missing = [n for part in hole.left for n in range(part.first, part.last + 1)]
    usable = [n for n in missing if n in shown.rows and n not in shown.twice and begin <= shown.times[n] <= end]
    if doubtful := sum(n in shown.rows for n in missing) - len(usable):
        # Two rows of one id, or rows of another time under these ids: its other rows may be of other trades too.
        raise _Nothing(f"it contradicts itself about {doubtful} ids of the hole")
    found = [
        Fetched(Chunk(*part), tuple(shown.rows[n] for n in range(part.first, part.last + 1)), (), 0)
        for part in runs(usable)
    ]
    came = tuple(Interval(f.chunk.first, f.chunk.last) for f in found)
    still = gaps([*hole.filled, *came], (hole.first, hole.last))
    if not still:
        return Look(came), found
    around = neighbours(shown.times, max(still, key=lambda part: part.size))
    return Look(came, True, "", *(pace(shown.times, around) if around else ())), found


def _committed_beside(deps: Deps, mapping: Mapping, hole: Hole) -> dict[int, tuple[str, int]]:
    """The committed trades before and behind a hole, by id: the row, and its time (µs since the epoch)."""
    stream = hole.stream
    segment = deps.ledger.segment_at(stream, hole.first)
    if segment is None:
        raise _Nothing("no segment holds it")
    lines = _lines(deps, segment)
    at = hole.first - segment.first - sum(a.last - a.first + 1 for a in segment.absent if a.last < hole.first)
    before, behind = lines[at - 1 : at] if at else [], lines[at : at + 1]
    if not before:
        earlier = deps.ledger.newest_segments(stream, segment.first - 1) if segment.first else ()
        before = next((_lines(deps, s)[-1:] for s in earlier if s.count), [])
    if not behind:
        later = deps.ledger.segments(stream, segment.last + 1)
        behind = next((_lines(deps, s)[:1] for s in later if s.count), [])
    if not before or not behind:
        raise _Nothing("no committed trades on both sides of it")
    rows = parse_elements(b"[" + before[0] + b"," + behind[0] + b"]", mapping)
    beside = {row.position: (row.text, row.ts_us) for row in rows if row.ts_us is not None}
    if len(beside) < 2 or not min(beside) < hole.first <= hole.last < max(beside):
        raise _Nothing("the committed trades beside it have no times")
    return {n: (text, ts_us) for n, (text, ts_us) in sorted(beside.items())}


def _lines(deps: Deps, segment: Segment) -> list[bytes]:
    return raw.read(deps.objects, segment.raw_key, segment.sha256, segment.count).split(b"\n")[:-1]


# --- one file ---------------------------------------------------------------------------------------------------


def _read(
    deps: Deps, mapping: Mapping, file: ArchiveFile, edges: set[int], shown: _Shown, going: Callable[[], None],
    source: Files,
) -> None:  # fmt: skip
    """Add what a file has of ids near ``edges``, its checksum proved."""
    downloads = checksums_of(deps, mapping, source)
    if downloads is None:
        raise _Nothing("its exchange publishes no checksums")
    downloads.tick, downloads.most_bytes = going, MAX_PACKED_BYTES
    if downloads.checksum(file) is None:
        raise _Nothing(f"{file.name} has no checksum, or is not there")
    folder = Path(_spool().name)
    for other in folder.iterdir():
        if not other.name.startswith(file.name):
            other.unlink()
    issue = downloads.obtain(file, folder)
    first, last = min(edges) - AROUND_IDS, max(edges) + AROUND_IDS
    period = file.period_us
    with member_of(issue.path, file) as plain:
        for batch in read_rows(plain, file, layout_of(mapping, file), Read(), going):
            ids = batch.column(0)
            near = batch.filter(pc.and_(pc.greater_equal(ids, first), pc.less_equal(ids, last)))
            for number, ts_us, line in zip(*(column.to_pylist() for column in near.columns), strict=True):
                if shown.rows.get(number, line) != line or not period[0] <= ts_us < period[1]:
                    shown.twice.add(number)
                shown.rows[number], shown.times[number] = line, ts_us


@functools.cache
def _spool() -> tempfile.TemporaryDirectory[str]:
    """Where this process keeps the last file; gone with the process."""
    return tempfile.TemporaryDirectory(prefix="schemahub-archive-")
