"""A file that the exchange issued again with other content: taken anew, as a correction that can be seen.

Nothing is overwritten. For each committed segment whose trades are other ones now, a further edition of its raw object
is written beside the first, and the ledger's segment is exchanged for one that names it, in a fenced transaction that
demands the segment as it was. The correction is listed in S3 (``schemahub/archives/…/corrections/``) with both editions
and the rows that differ; then the table's rows of the range are made anew in one snapshot (``rederive``), which leaves
the snapshot before it as it was. A crash anywhere leaves a correction that the next call of ``correct_file`` finishes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event

from botocore.exceptions import BotoCoreError, ClientError

from schemahub import coverage, raw
from schemahub.answers import parse_elements
from schemahub.archive_download import Files, discard
from schemahub.archive_ingest import ArchiveReport, Stopped, note, rows_of, spill_file, with_issue
from schemahub.archive_reconcile import MOST_EXAMPLES, Difference, Rest, same_trade, spans_of
from schemahub.archive_sort import BUCKET_IDS, Spill
from schemahub.archives import ArchiveFile, read_state
from schemahub.commit import MAX_TRIES, holds, passing, reasons, segment_of
from schemahub.corrections import Correction, Document, correction_key, corrections, read_correction, write_correction
from schemahub.deps import Deps
from schemahub.errors import ArchiveError, BadStateInput, CorruptState, ExchangeError, LockLost
from schemahub.fetch import MAX_HOLES, Fetched
from schemahub.holes import Hole, committed_holes
from schemahub.ledger import MAX_ITEMS_PER_TRANSACTION
from schemahub.locks import Lease, Renewer
from schemahub.mappings import Mapping, load_mapping
from schemahub.pacing import PacedExchange
from schemahub.streams import Absent, Chunk, Interval, Segment, Stream, gaps, runs


@dataclass(frozen=True)
class Change:
    """A segment and what takes its place."""

    old: Segment
    new: Segment
    ids: int
    """Trades that are other ones now."""


def correct_file(
    deps: Deps,
    stream: Stream,
    file: ArchiveFile,
    lease: Lease,
    work_dir: Path,
    stop: Event,
    tick: Callable[[], None],
    *,
    run_id: str = "correction",
    files: Files | None = None,
) -> Correction | None:
    """Take a file's present issue in the place of the one that was taken; None where no trade is another one.

    Where both issues have a trade and it differs, or only one has it, the API decides; where it does not say, the new
    issue counts, and what only the old one had stays.

    Args:
        lease: of the stream's backfill lock; the exchange of segments is bound to it.

    Raises:
        BadStateInput: nothing of the file was ever taken. ArchiveError, ExchangeError: the issue cannot be had now.
        LockLost: another owner holds the lock; nothing more was written.
    """
    mapping = load_mapping(stream.exchange)
    state = read_state(deps.objects, file, mapping)
    if state is None or state.taken is None:
        raise BadStateInput(f"nothing of {file.name} was taken that a correction could replace", stream=stream)
    within = Interval(*state.report["within"])

    def going() -> None:
        tick()
        if stop.is_set():
            raise Stopped

    report = ArchiveReport(file, within=within)
    issue = with_issue(deps, file, work_dir, going, files, report)
    key = correction_key(stream, file.name, issue.sha256)
    _settle_earlier(deps, stream, file, key)
    before = read_correction(deps.objects, key)
    spilled = work_dir / f"{file.name}.rows"
    shutil.rmtree(spilled, ignore_errors=True)
    try:
        spill = Spill(spilled, BUCKET_IDS)
        spill_file(file, issue.path, spill, within, report, going)
        rest = Rest(PacedExchange.of(deps, stream.exchange), stream, mapping, deps.clock, going)
        work = _Correcting(deps, stream, mapping, spill, rest, report, run_id)
        changes = list(work.changes(within, going))
    finally:
        shutil.rmtree(spilled, ignore_errors=True)
    report.requests = rest.requests
    if before is not None and before.state == "published" and not changes:
        note(deps, report)
        return before
    document = _document(stream, file, issue.sha256, changes, report, before)
    if document["segments"]:
        write_correction(deps.objects, key, document | {"state": "prepared"})
        _exchange_all(deps, lease, changes)
        document |= {"state": "committed", "at": deps.clock.now_ms()}
        write_correction(deps.objects, key, document)
    elif before is not None:
        document |= {"state": "void", "at": deps.clock.now_ms()}
        write_correction(deps.objects, key, document)
    note(deps, report)
    discard(issue.path)
    return Correction(key, document) if document["segments"] else None


def _settle_earlier(deps: Deps, stream: Stream, file: ArchiveFile, key: str) -> None:
    """Corrections of the same file by issues that are no longer the published one: what they changed stays listed.

    One that died between the ledger and its list is ``committed`` for the segments that it exchanged; the table's rows
    of these are made anew though the issue after it changes other ones.
    """
    for earlier in corrections(deps.objects, stream):
        if earlier.file != file.name or earlier.key == key or earlier.state not in ("due", "prepared"):
            continue
        done = [s for s in earlier.document["segments"] if _in_ledger(deps, stream, s)]
        settled = {"segments": done, "state": "committed" if done else "void", "at": deps.clock.now_ms()}
        write_correction(deps.objects, earlier.key, earlier.document | settled)


def _in_ledger(deps: Deps, stream: Stream, listed: Document) -> bool:
    there = deps.ledger.segment(stream, listed["first"])
    return there is not None and there.commit_id == listed["new"]["commit_id"]


def _document(
    stream: Stream,
    file: ArchiveFile,
    sha256: str,
    changes: Sequence[Change],
    report: ArchiveReport,
    before: Correction | None,
) -> Document:
    """The correction with what an earlier attempt had prepared: what of it is committed already does not show now."""
    named = ("raw_key", "sha256", "count", "commit_id")
    listed = {s["first"]: s for s in (before.document["segments"] if before else ())}
    for change in changes:
        listed[change.old.first] = {
            "first": change.old.first,
            "last": change.old.last,
            "ids": change.ids,
            "published": change.old.published_in is not None,
            **{which: {n: getattr(segment, n) for n in named} for which, segment in
               (("old", change.old), ("new", change.new))},
        }  # fmt: skip
    differences = (before.document["differences"] if before else []) + [asdict(d) for d in report.found.differences]
    return {
        "schema_version": 1,
        "stream": str(stream),
        "file": file.name,
        "sha256": sha256,
        "state": before.state if before else "prepared",
        "at": before.document["at"] if before else 0,
        "segments": [listed[first] for first in sorted(listed)],
        "differences": differences[:MOST_EXAMPLES],
    }


# --- which trades are other ones --------------------------------------------------------------------------------


@dataclass
class _Correcting:
    """The new issue's rows against what is committed."""

    deps: Deps
    stream: Stream
    mapping: Mapping
    spill: Spill
    rest: Rest
    report: ArchiveReport
    run_id: str

    def changes(self, within: Interval, going: Callable[[], None]) -> Iterator[Change]:
        fills = [s.interval for s in self.deps.ledger.segments(self.stream.fills)]
        touching = coverage.touching(self.deps.ledger, self.stream, within)
        for segment in sorted(touching, key=lambda s: s.first):
            going()
            if segment.first < within.first or segment.last > within.last:
                continue  # another file's, in part: that one's issue decides
            change = self._change(segment, fills)
            if change is not None:
                yield change

    def _change(self, old: Segment, fills: Sequence[Interval]) -> Change | None:
        content = raw.read(self.deps.objects, old.raw_key, old.sha256, old.count).decode()
        had = content.split("\n")[:-1]
        issued = self._issued(old)
        if list(issued.values()) == had and len(issued) == old.count:
            return None
        was = dict(zip(_positions(old), had, strict=True))
        # What was filled since is in the table as a row of the fill: the segment goes on calling it absent.
        locked = [(a.first, a.last) for a in old.absent if any(f.first <= a.last and f.last >= a.first for f in fills)]
        doubtful = {
            n: (was.get(n), issued.get(n))
            for n in was.keys() | issued.keys()
            if not (n in was and n in issued and same_trade(self.mapping, was[n], issued[n]))
            and not any(first <= n <= last for first, last in locked)
        }
        rows = self._decided(was, doubtful)
        changed = [n for n in doubtful if rows.get(n) != was.get(n)]
        absent = tuple(_absent(old, rows))
        if not changed or len(absent) > max(MAX_HOLES, len(old.absent)):
            return None
        texts = tuple(rows[n] for n in sorted(rows))
        stored = raw.store(
            self.deps.objects, self.stream, Fetched(Chunk(*old.interval), texts, absent, 0), edition=True
        )
        made = segment_of(self.stream, stored, self.run_id, old.source, self.deps.clock.now_ms())
        for n in sorted(changed)[:MOST_EXAMPLES]:
            both = tuple(text for text in doubtful[n] if text is not None)
            self.report.found.note(Difference(n, "the file was issued again", both, rows.get(n)))
        return Change(old, replace(made, published_in=old.published_in), len(changed))

    def _issued(self, segment: Segment) -> dict[int, str]:
        """The new issue's rows of a segment; where it has two of one id, none: the API is asked."""
        found: dict[int, str] = {}
        twice: set[int] = set()
        width = self.spill.width
        for number in range(segment.first // width, segment.last // width + 1):
            rows = rows_of(self.spill.bucket(number), Chunk(*segment.interval))
            begin, end = self.report.file.period_us
            columns = (rows[name].to_pylist() for name in ("id", "ts_us", "line"))
            for n, ts_us, line in zip(*columns, strict=True):
                if not begin <= ts_us < end or n in found:
                    twice.add(n)
                found[n] = line
        return {n: line for n, line in found.items() if n not in twice}

    def _decided(self, was: dict[int, str], doubtful: dict[int, tuple[str | None, str | None]]) -> dict[int, str]:
        """The rows of the segment: as they were, and where there is doubt as the API, or else the new issue, says."""
        rows = dict(was)
        shown: dict[int, str] = {}
        for span in spans_of(runs(sorted(doubtful)), self.mapping.requests.page_size):
            if (fetched := self.rest.fetch(span)) is not None and fetched.texts:
                body = b"[" + ",".join(fetched.texts).encode() + b"]"
                shown |= {row.position: row.text for row in parse_elements(body, self.mapping)}
        for n, both in doubtful.items():
            api = shown.get(n)
            agreeing = [text for text in both if text is not None and api is not None
                        and same_trade(self.mapping, text, api)]  # fmt: skip
            taken = agreeing[0] if agreeing else api or both[1] or both[0]
            if taken is not None:
                rows[n] = taken
        return rows


def _positions(segment: Segment) -> Iterator[int]:
    """The ids of a segment's rows: all but the absent ones."""
    absent = [(a.first, a.last) for a in segment.absent]
    for part in gaps(absent, segment.interval):
        yield from range(part.first, part.last + 1)


def _absent(old: Segment, rows: dict[int, str]) -> Iterator[Absent]:
    """What is still absent, with the class that it had."""
    for hole in old.absent:
        there = runs(n for n in rows if hole.first <= n <= hole.last)
        for part in gaps(there, (hole.first, hole.last)):
            yield Absent(*part, hole.kind)


# --- the ledger -------------------------------------------------------------------------------------------------


def _exchange_all(deps: Deps, lease: Lease, changes: Sequence[Change]) -> None:
    """Exchange the segments, in as few transactions as hold them and their holes."""
    group: list[Change] = []
    weight = 0
    for change in changes:
        items = 1 + len(change.old.absent) + len(change.new.absent)
        if group and weight + items > MAX_ITEMS_PER_TRANSACTION:
            _exchange(deps, lease, group)
            group, weight = [], 0
        group.append(change)
        weight += items
    if group:
        _exchange(deps, lease, group)


def _exchange(deps: Deps, lease: Lease, group: Sequence[Change]) -> None:
    """One transaction, and after doubt a look at what is there.

    Raises:
        LockLost: the lock has another holder. CorruptState: a segment is neither as it was nor as it shall be.
    """
    ledger, stream = deps.ledger, group[0].old.stream
    for attempt in range(MAX_TRIES):
        pairs = [(c.old, c.new) for c in group]
        holes = [pair for c in group for pair in _holes(deps, c)]
        try:
            ledger.correct(deps.locks, lease, pairs, holes)
            return
        except (ClientError, BotoCoreError) as error:
            there = [ledger.segment(stream, c.old.first) for c in group]
            if all(t is not None and t.commit_id == c.new.commit_id for t, c in zip(there, group, strict=True)):
                return
            if not holds(deps.locks, lease):
                raise LockLost("the lock was taken over before the correction", stream=stream) from error
            same = all(t is not None and t.commit_id == c.old.commit_id for t, c in zip(there, group, strict=True))
            if not same:
                raise CorruptState(
                    "a segment is not the one that was to be corrected",
                    stream=stream,
                    span=(group[0].old.first, group[-1].old.last),
                ) from error
            if attempt == MAX_TRIES - 1 or not ("ConditionalCheckFailed" in reasons(error) or passing(error)):
                raise
            deps.clock.sleep(0.1 * 2**attempt)


def _holes(deps: Deps, change: Change) -> Iterator[tuple[Hole | None, Hole | None]]:
    """Items of holes as they are and as they shall be, where a segment names other holes now."""
    now = {(h.first, h.last): h for h in committed_holes([change.new])}
    was = {(a.first, a.last) for a in change.old.absent}
    begun = set()
    for span in sorted(was - now.keys()):
        seen = deps.ledger.hole(change.old.stream, span[0])
        hole = next((h for (first, _), h in now.items() if first == span[0]), None)
        if hole is not None:
            begun.add((hole.first, hole.last))
            hole = replace(hole, revision=seen.revision + 1) if seen else hole
        if seen is not None or hole is not None:
            yield seen, hole
    for span in sorted(now.keys() - was - begun):
        yield None, now[span]


def correct_files(
    deps: Deps,
    stream: Stream,
    again: Sequence[ArchiveFile],
    owner: str,
    run: str,
    work_dir: Path,
    stop: Event,
    *,
    failed: Callable[[ArchiveFile, ArchiveError | ExchangeError], None],
) -> None:
    """Take the present issues of some files under the stream's backfill lock.

    Args:
        owner: who takes the lock; unique to this call. run: the execution that it belongs to.
        failed: told of a file that cannot be had now.

    Raises:
        LockBusy: a backfill works on the stream. LockLost: another took the lock. Stopped: ``stop`` was set.
    """
    lease = deps.locks.acquire(stream.backfill_lock_id, owner, run)
    renewer = Renewer(deps.locks.renew, lease, deps.clock)
    try:
        for file in again:
            try:
                correct_file(deps, stream, file, lease, work_dir, stop, renewer.tick, run_id=owner)
            except (ArchiveError, ExchangeError) as error:
                failed(file, error)
    finally:
        # Only courtesy: a process that dies here leaves a lease that runs out.
        deps.locks.release(lease)
