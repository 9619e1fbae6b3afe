"""One file of an archive into the lake: downloaded, proved, sorted by id, reconciled with the API, committed.

Raw keeps the file's rows cut by the same grid of chunks as everything else, so nothing downstream knows where a segment
came from. What the file lacks is asked for from the API; where that is too much, the range is left to REST tasks.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemahub import backfill, plan, raw
from schemahub.archive_download import MAX_FILE_BYTES, Downloads, Files, Issue, RequestsFiles, discard
from schemahub.archive_layout import layout_of
from schemahub.archive_read import Read, member_of, read_rows
from schemahub.archive_reconcile import Found, Pieces, Rest, reconcile
from schemahub.archive_samples import suspects
from schemahub.archive_sort import Spill, bucket_width
from schemahub.archives import ArchiveFile, FileState, address_of, archive_of, read_state, write_state
from schemahub.backfill_plan import TaskSpec
from schemahub.coverage import missing
from schemahub.deps import MAX_CHUNK_PAGES, Deps
from schemahub.errors import (
    ArchiveAbsent,
    ArchiveError,
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    ResponseInterrupted,
)
from schemahub.fetch import Fetched
from schemahub.mappings import Mapping, load_mapping
from schemahub.pacing import PacedExchange
from schemahub.streams import Chunk, Interval, RawObject, Stream, merge

EMPTY_CHUNKS = 100
"""Chunks without a row in the file that are fetched here; more are left to REST tasks, which work side by side."""
GROUP_ROWS = 20_000
"""Rows that are handed on together."""
UNREACHABLE = (ExchangeUnavailable, ResponseInterrupted, ExchangeRefused)
Commit = Callable[[Sequence[Fetched]], None]


class Stopped(Exception):
    """The worker was told to stop."""


@dataclass
class ArchiveReport:
    """What became of a file, and everything that was wrong with it."""

    file: ArchiveFile
    within: Interval
    status: str = "ingested"
    """``ingested``; ``absent``: there is none; ``refused``: see ``error``; ``unreachable``; ``stopped``: in part."""
    error: str = ""
    reason: str = ""
    issue: Issue | None = None
    read: Read = field(default_factory=Read)
    found: Found = field(default_factory=Found)
    repeated: int = 0
    disordered: int = 0
    other_day: int = 0
    elsewhere: int = 0
    """Rows outside of the wanted range: other files', or committed already."""
    suspect_chunks: int = 0
    truncated: bool = False
    """The file ends (or begins) before the range that the API has for its period."""
    committed_rows: int = 0
    committed_chunks: int = 0
    left: list[Interval] = field(default_factory=list)
    """What neither the file nor the API gave: REST tasks ask for it."""
    requests: int = 0
    seconds: float = 0.0

    def pathologies(self) -> list[dict[str, Any]]:
        """What was wrong with the file and how often, each kind by its name (docs/operations.md)."""
        issue, found = self.issue, self.found
        counted = {
            "checksum_missing": int(issue is not None and issue.checksum == "missing"),
            "checksum_mismatch": int(self.error == "ChecksumMismatch"),
            "rows_repeated": self.repeated,
            "rows_disordered": self.disordered,
            "rows_of_another_day": self.other_day,
            "rows_unreadable": self.read.refused.total(),
            "units_mixed": min(self.read.units.values()) if len(self.read.units) > 1 else 0,
            "ids_in_conflict": found.decided,
            "ids_missing": found.filled + sum(part.size for part in self.left),
            "ids_absent": found.absent,
            "truncated": int(self.truncated),
            "chunks_suspect": self.suspect_chunks,
        }
        return [{"kind": kind, "count": count} for kind, count in counted.items() if count]

    def to_json(self) -> dict[str, Any]:
        issue = self.issue
        return {
            "name": self.file.name,
            "status": self.status,
            "within": list(self.within),
            "error": self.error,
            "reason": self.reason,
            "checksum": issue.checksum if issue else "unknown",
            "sha256": issue.sha256 if issue else None,
            "bytes": issue.size if issue else 0,
            "downloads_resumed": issue.resumed if issue else 0,
            "rows": self.read.rows,
            "units": dict(self.read.units),
            "rows_refused": dict(self.read.refused),
            "rows_refused_examples": self.read.examples,
            "rows_elsewhere": self.elsewhere,
            "pathologies": self.pathologies(),
            "ids_filled_from_api": self.found.filled,
            "ids_absent": self.found.absent,
            "ids_compared": self.found.compared,
            "differences": [asdict(d) for d in self.found.differences],
            "api_silent": self.found.silent,
            "requests": self.requests,
            "committed_rows": self.committed_rows,
            "committed_chunks": self.committed_chunks,
            "left": [list(part) for part in merge(self.left)],
            "seconds": round(self.seconds, 3),
        }


def ingest_file(
    deps: Deps,
    stream: Stream,
    file: ArchiveFile,
    within: Interval,
    commit: Commit,
    work_dir: Path,
    stop: Event,
    tick: Callable[[], None],
    *,
    files: Files | None = None,
    empty_chunks: int = EMPTY_CHUNKS,
) -> ArchiveReport:
    """Take what a file has of the uncommitted positions of ``within``.

    Args:
        within: the positions of the file's period as the API knows them.
        commit: makes some chunks durable and commits them; called again and again, in ascending order.
        work_dir: holds the packed file (continued if a part is there) and the spilled rows, both bounded.
        stop: once it is set, no new chunk is begun.
        tick: called often, for the lease; what it raises ends the work.

    A file that cannot be used is reported, not raised: its range is the API's. Errors of ``commit`` and ``tick`` leave.
    """
    # Arrow's default pool keeps what it once had: 50 MB more at the peak.
    pa.set_memory_pool(pa.system_memory_pool())
    report, begun = ArchiveReport(file, within), deps.clock.now_ms()

    def going() -> None:
        tick()
        if stop.is_set():
            raise Stopped

    spilled, before = work_dir / f"{file.name}.rows", read_state(deps.objects, file, load_mapping(stream.exchange))
    try:
        with_issue(deps, file, work_dir, going, files, report)
        ingest = _Ingest(deps, stream, file, commit, going, report, empty_chunks, before)
        ingest.take(missing(deps.ledger, stream, within), spilled)
        discard(work_dir / file.name)
    except Stopped:
        report.status = "stopped"
    except (ArchiveError, *UNREACHABLE) as error:
        refuse(report, error)
    finally:
        shutil.rmtree(spilled, ignore_errors=True)
    report.seconds = (deps.clock.now_ms() - begun) / 1000
    write_state(deps.objects, state_of(deps, report), before)
    return report


def run_planned(
    deps: Deps,
    spec: TaskSpec,
    stop: Event,
    work_dir: Path,
    add: Callable[[RawObject], None],
    commit: Callable[[], None],
    tick: Callable[[], None],
) -> ArchiveReport:
    """A backfill's task of kind ``archive``.

    Args:
        add: takes an object that is durable (``backfill_task.Committer.add``).
        commit: commits what was added; what it raises ends the task.

    Raises:
        BadStateInput: the task names no file of the mapping's archive.
    """
    file = ArchiveFile.from_json(spec.file, load_mapping(spec.stream.exchange))

    def hand_on(fetched: Sequence[Fetched]) -> None:
        for one in fetched:
            add(make_durable(deps, spec.stream, one))
        commit()

    return ingest_file(deps, spec.stream, file, spec.within, hand_on, work_dir, stop, tick)


def with_issue(
    deps: Deps,
    file: ArchiveFile,
    work_dir: Path,
    going: Callable[[], None],
    files: Files | None,
    report: ArchiveReport,
    *,
    most_bytes: int = MAX_FILE_BYTES,
) -> Issue:
    """Download the file into the report. Raises what ``Downloads.obtain`` does."""
    mapping = load_mapping(file.stream.exchange)
    archive = archive_of(mapping)
    suffix = archive.checksum.removeprefix("{file}") if archive and archive.checksum else None
    address = address_of(mapping, deps.settings.endpoints.get(mapping.exchange))
    work_dir.mkdir(parents=True, exist_ok=True)
    downloads = Downloads(files or RequestsFiles(), address, suffix, deps.clock, going)
    downloads.most_bytes = most_bytes
    report.issue = downloads.obtain(file, work_dir)
    return report.issue


def refuse(report: ArchiveReport, error: ArchiveError | ExchangeError) -> None:
    report.error, report.reason = type(error).__name__, error.reason[:500]
    if isinstance(error, ArchiveAbsent):
        report.status = "absent"
    else:
        report.status = "refused" if isinstance(error, ArchiveError) else "unreachable"


def note(deps: Deps, report: ArchiveReport) -> FileState:
    """Put down in S3 what became of the file."""
    before = read_state(deps.objects, report.file, load_mapping(report.file.stream.exchange))
    return write_state(deps.objects, state_of(deps, report), before)


def state_of(deps: Deps, report: ArchiveReport) -> FileState:
    """What the report says of its file, as it is put down."""
    file, issue = report.file, report.issue
    mismatch = report.error == "ChecksumMismatch"
    return FileState(
        file,
        report.status,
        "mismatch" if mismatch else issue.checksum if issue else "unknown",
        issue.upstream if issue else None,
        issue.sha256 if issue else None,
        deps.clock.now_ms(),
        report.to_json(),
    )


def spill_file(
    file: ArchiveFile, path: Path, spill: Spill, wanted: Interval, report: ArchiveReport, going: Callable[[], None]
) -> None:
    """The file's rows of ``wanted`` to disk by id; the others are counted."""
    layout, (begin, end) = layout_of(load_mapping(file.stream.exchange), file), file.period_us
    with member_of(path, file) as plain:
        for batch in read_rows(plain, file, layout, report.read, going):
            ids, ts_us = batch.column(0), batch.column(1)
            report.other_day += _count(pc.or_(pc.less(ts_us, begin), pc.greater_equal(ts_us, end)))
            inside = pc.and_(pc.greater_equal(ids, wanted.first), pc.less_equal(ids, wanted.last))
            if not pc.all(inside).as_py():
                report.elsewhere += len(batch) - _count(inside)
                batch = batch.filter(inside)
            spill.add(batch)
    spill.flush()


@dataclass
class _Ingest:
    """The rows of a proved file on their way to ``commit``."""

    deps: Deps
    stream: Stream
    file: ArchiveFile
    commit: Commit
    going: Callable[[], None]
    report: ArchiveReport
    empty_chunks: int
    before: FileState | None
    noted: list[dict[str, Any]] | None = None
    """What was wrong with the file when that was put down last."""

    def take(self, wanted: Sequence[Interval], spilled: Path) -> None:
        if not wanted or self.report.issue is None:
            return
        mapping = load_mapping(self.stream.exchange)
        size = chunk_size_of(self.deps, mapping)
        shutil.rmtree(spilled, ignore_errors=True)
        spill = Spill(spilled, bucket_width(size))
        hull = Interval(wanted[0].first, wanted[-1].last)
        spill_file(self.file, self.report.issue.path, spill, hull, self.report, self.going)
        chunks = [chunk for part in wanted for chunk in plan.cut(*part, size, limit=part.size)]
        rest = Rest(
            PacedExchange.of(self.deps, self.stream.exchange), self.stream, mapping, self.deps.clock, self.going
        )
        self._emit(chunks, spill, rest)
        self.report.repeated, self.report.disordered = spill.repeated, spill.disordered
        ends = (spill.lowest, spill.highest)
        self.report.truncated = ends[0] is None or ends[0] > hull.first or (ends[1] or 0) < hull.last

    def _emit(self, chunks: Sequence[Chunk], spill: Spill, rest: Rest) -> None:
        suspect = suspects(chunks, spill, rest, self.report.found)
        self.report.suspect_chunks = len(suspect)
        waiting: list[Fetched] = []
        try:
            for pieces in self._pieces(chunks, spill, rest, suspect):
                self.report.left += pieces.left
                waiting += pieces.whole
                if sum(len(f.texts) for f in waiting) >= GROUP_ROWS:
                    self._hand_on(waiting)
                    waiting = []
                self.going()
        finally:
            self.report.requests, self.report.found.silent = rest.requests, rest.reasons
        if waiting:
            self._hand_on(waiting)

    def _pieces(self, chunks: Sequence[Chunk], spill: Spill, rest: Rest, suspect: set[Chunk]) -> Iterator[Pieces]:
        budget = self.empty_chunks
        for number, group in itertools.groupby(chunks, key=lambda c: c.first // spill.width):
            bucket = spill.bucket(number)
            for chunk in group:
                rows = rows_of(bucket, chunk)
                if chunk not in suspect and complete(rows, chunk, self.file.period_us):
                    yield Pieces((Fetched(chunk, tuple(rows["line"].to_pylist()), (), 0),))
                    continue
                if chunk in suspect or not len(rows):
                    budget -= 1
                    if budget < 0:
                        yield Pieces((), (Interval(chunk.first, chunk.last),))
                        continue
                lines = zip(*(rows[name].to_pylist() for name in ("id", "ts_us", "line")), strict=True)
                period, found = self.file.period_us, self.report.found
                yield reconcile(chunk, lines, period, rest, found, suspect=chunk in suspect)

    def _hand_on(self, fetched: list[Fetched]) -> None:
        # First: once a row is committed, it must be known which issue it is of, whoever dies when.
        if self.noted != (found := self.report.pathologies()):
            begun = state_of(self.deps, replace(self.report, status="stopped"))
            write_state(self.deps.objects, begun, self.before)
            self.noted = found
        self.commit(fetched)
        self.report.committed_chunks += len(fetched)
        self.report.committed_rows += sum(len(f.texts) for f in fetched)


def chunk_size_of(deps: Deps, mapping: Mapping) -> int:
    """Ids of a chunk: the grid of a backfill's REST tasks, so that they find what this one left behind."""
    page_size = mapping.requests.page_size
    pages = max(deps.settings.chunk_pages, -(-backfill.CHUNK_ROWS // page_size))
    return page_size * min(MAX_CHUNK_PAGES, pages)


def make_durable(deps: Deps, stream: Stream, fetched: Fetched) -> RawObject:
    """A chunk's raw object: the one that is there already (a REST task was quicker, or this one died), or a new one."""
    return raw.find(deps.objects, stream, fetched.chunk) or raw.store(deps.objects, stream, fetched)


def rows_of(bucket: pa.Table, chunk: Chunk) -> pa.Table:
    """The bucket's rows of a chunk, by id."""
    ids = bucket["id"]
    first = _count(pc.less(ids, chunk.first))
    return bucket.slice(first, _count(pc.less_equal(ids, chunk.last)) - first)


def complete(rows: pa.Table, chunk: Chunk, period_us: tuple[int, int]) -> bool:
    """Whether the rows are exactly one for each id, all of the file's period."""
    if len(rows) != chunk.size:
        return False
    times = pc.min_max(rows["ts_us"]).as_py()
    ids = rows["id"].combine_chunks()
    ascending = len(ids) < 2 or pc.all(pc.greater(ids[1:], ids[:-1])).as_py()
    return bool(ascending and period_us[0] <= times["min"] and times["max"] < period_us[1])


def _count(mask: Any) -> int:
    return pc.sum(pc.cast(mask, pa.int64())).as_py() or 0
