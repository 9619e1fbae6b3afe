"""The first commit of a stream whose only history is an archive: the newest rows of its newest day.

Apart, because it needs Arrow. The file proves itself by its published checksum; of its rows those up to the newest id
are taken that follow each other without a gap, one row an id, all of the file's day. Whatever lies below is history
like any other, and what the archive lacks there stays missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc

from schemahub.archive_ingest import ArchiveReport, chunk_size_of, state_of, with_issue
from schemahub.archive_layout import layout_of
from schemahub.archive_path import MAX_PACKED_BYTES
from schemahub.archive_read import member_of, read_rows
from schemahub.archive_shelf import Shelf
from schemahub.archives import ArchiveFile, read_state, write_state
from schemahub.deps import Deps
from schemahub.errors import ArchiveUnreadable
from schemahub.fetch import Fetched
from schemahub.mappings import load_mapping
from schemahub.streams import Chunk, Interval, Stream


def newest_rows(deps: Deps, stream: Stream, tick: Callable[[], None]) -> tuple[Fetched, ArchiveReport] | None:
    """What may be committed first; None where the archive holds nothing of the product. Writes nothing.

    Raises:
        ArchiveError: the file cannot be used, or publishes no checksum. ExchangeError: it cannot be had now.
    """
    held = Shelf(deps, stream).newest_day()
    if held is None:
        return None
    report = ArchiveReport(held.file, Interval(held.first, held.first), status="stopped")
    with tempfile.TemporaryDirectory(prefix="schemahub-anchor-") as folder:
        issue = with_issue(deps, held.file, Path(folder), tick, None, report, most_bytes=MAX_PACKED_BYTES)
        if issue.checksum != "verified":
            raise ArchiveUnreadable(
                f"{held.file.name} has no published checksum, and no API shows its trades", stream=stream
            )
        fetched = _block(deps, held.file, report, tick)
    report.within = Interval(fetched.chunk.first, fetched.chunk.last)
    report.committed_rows, report.committed_chunks = len(fetched.texts), 1
    return fetched, report


def note(deps: Deps, report: ArchiveReport) -> None:
    """Put down which issue of the file the rows are of; before they are committed."""
    before = read_state(deps.objects, report.file, load_mapping(report.file.stream.exchange))
    write_state(deps.objects, state_of(deps, report), before)


def _block(deps: Deps, file: ArchiveFile, report: ArchiveReport, tick: Callable[[], None]) -> Fetched:
    """The newest chunk of the grid, as far down from the newest id as the rows are beyond doubt."""
    assert report.issue is not None
    mapping, path, (begin, end) = load_mapping(file.stream.exchange), report.issue.path, file.period_us
    size, top = chunk_size_of(deps, mapping), 0
    with member_of(path, file) as plain:
        for batch in read_rows(plain, file, layout_of(mapping, file), report.read, tick):
            if len(batch):
                top = max(top, pc.max(batch.column(0)).as_py())
    first, said, strange = top // size * size, dict[int, str](), set[int]()
    with member_of(path, file) as plain:
        for batch in read_rows(plain, file, layout_of(mapping, file), type(report.read)(), tick):
            near = batch.filter(pc.greater_equal(batch.column(0), first))
            for number, ts_us, line in zip(*(column.to_pylist() for column in near.columns), strict=True):
                if not begin <= ts_us < end or said.setdefault(number, line) != line:
                    strange.add(number)
    at = top
    while at in said and at not in strange:
        at -= 1
    if at == top:
        raise ArchiveUnreadable(f"{file.name} contradicts itself about its newest id {top}", stream=file.stream)
    return Fetched(Chunk(at + 1, top), tuple(said[n] for n in range(at + 1, top + 1)), (), 0)
