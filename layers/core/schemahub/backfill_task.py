"""The task of a heavy backfill: hours of chunks in one process, committed as they come, ready to stop at any line.

Threads fetch and make raw objects durable; everything that the lock guards (renewing it, committing, lowering the
watermark) happens in the thread that called ``run_task``. A task decides nothing about success: what it did not do,
the state machine finds in the ledger and gives to another one.

    stopped (SIGTERM)   takes no new chunk, gives those in flight STOP_S, commits what is whole, exit code 143
    paused, cancelled   the same, exit code 0: it was what somebody wanted
    fence is over       another plan or another backfill is in charge: stops without a commit, exit code 1
    an ingest's task    makes its chunks durable and commits nothing: CommitSegments does, as ever
    lock is free        the run failed and was redriven: goes on fetching; the state machine's own step commits
"""

from __future__ import annotations

import bisect
import json
import resource
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from schemahub import backfill, correction_task, coverage, outages
from schemahub.backfill_notes import Wish
from schemahub.backfill_plan import TaskSpec
from schemahub.backfill_pool import Durable, Pool
from schemahub.commit import Fenced, segment_of
from schemahub.commit_below import Seams, Torn, commit_islands, lower
from schemahub.correction_task import Corrected, CorrectionSpec
from schemahub.deps import Deps, logger
from schemahub.errors import BadStateInput, LockLost, about
from schemahub.ingest import say_what_is_lost
from schemahub.streams import Chunk, RawObject

BEAT_S = 30.0
"""The lock is renewed, and pause or cancel noticed, so often."""
STOP_S = 12.0
"""What chunks in flight get after a stop. With the last commit it must stay below 20 s (Spot gives 120, ECS 30)."""
NOTED = ("requests", "chunks_fetched", "chunks_reused", "bytes")
GROUP, GROUP_S = 20, 5.0
"""Segments in one commit, and how long a finished one waits for others at most."""

Status = Literal["done", "incomplete", "stopped", "pause", "cancel"]
EXIT_CODES: dict[Status, int] = {"done": 0, "pause": 0, "cancel": 0, "incomplete": 1, "stopped": 143}


@dataclass(frozen=True)
class TaskResult:
    """What a task did. ``requests``, ``trades`` and ``bytes`` (stored) are of the chunks that it finished."""

    status: Status
    chunks: int
    fetched: int = 0
    reused: int = 0
    committed: int = 0
    missing: int = 0
    requests: int = 0
    trades: int = 0
    bytes: int = 0
    seconds: float = 0.0
    peak_rss_mib: float = 0.0
    errors: dict[str, int] | None = None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tally:
    """What has been done since the last beat, and in all."""

    total: Counter[str]
    noted: Counter[str]

    def new(self) -> dict[str, int]:
        """What was added since the last call."""
        added = self.total - self.noted
        self.noted = self.total.copy()
        return dict(added)


class Committer:
    """The guarded side of a task: its lease, its commits, its heartbeat. Used by one thread."""

    def __init__(self, deps: Deps, spec: TaskSpec, stop: threading.Event, source: str, beat_s: float = BEAT_S) -> None:
        self.deps, self.spec, self.stop, self.source = deps, spec, stop, source
        self.wish: Wish = "run"
        # What lies above the watermark is committed by the state machine's own step.
        self.guarded = spec.kind != "ingest"
        self.tally = Tally(Counter(), Counter())
        self.refused: set[str] = set()
        """Raw objects that lack trades which their neighbours show."""
        self._beat_ms = round(beat_s * 1000)
        self._beaten_ms: int | None = None
        self._noted_ms = deps.clock.now_ms()
        self._waiting: list[RawObject] = []
        self._since_ms = 0

    def beat(self, *, now: bool = False) -> None:
        """Renew the lock, look at what is wanted, note the progress; does nothing until it is time.

        Raises:
            LockLost: another plan, or another execution, is in charge now.
        """
        ms = self.deps.clock.now_ms()
        if not now and self._beaten_ms is not None and ms - self._beaten_ms < self._beat_ms:
            return
        self._beaten_ms = ms
        self._renew()
        wish = backfill.wanted(self.deps, self.spec.run)
        if wish != "run" and self.wish == "run":
            logger.warning("the backfill is to end early", extra={"wanted": wish})
            self.wish = wish
            self.stop.set()
        self._note()

    def _renew(self) -> None:
        try:
            self.deps.locks.renew(self.spec.lease)
        except LockLost:
            if self.deps.locks.holder(self.spec.lease.lock_id) is not None:
                raise
            # Released by the failure rule, then redriven: what is fetched now is committed by the state machine.
            self.guarded = False

    def add(self, raw: RawObject) -> None:
        """A durable object, to be committed soon."""
        if not self._waiting:
            self._since_ms = self.deps.clock.now_ms()
        self._waiting.append(raw)
        if len(self._waiting) >= GROUP:
            self.commit()

    def commit_if_due(self) -> None:
        """Commit what has waited long enough for others."""
        if self._waiting and self.deps.clock.now_ms() - self._since_ms >= GROUP_S * 1000:
            self.commit()

    def commit(self) -> None:
        """Commit what waits.

        Raises:
            LockLost: the fence is over: nothing was written.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting or not self.guarded:
            return
        deps, spec, now = self.deps, self.spec, self.deps.clock.now_ms()
        segments = [segment_of(spec.stream, raw, spec.run, self.source, now) for raw in waiting]
        borders = Seams(deps.objects, deps.call_attention, waiting)
        outcome = commit_islands(deps.ledger, deps.locks, spec.lease, segments, deps.clock, borders)
        if isinstance(outcome, Fenced):
            self._renew()  # raises, unless the lock is free
            return
        torn = [s.raw_key for s in outcome.segments] if isinstance(outcome, Torn) else []
        if torn:
            logger.error("fetched from another history than a neighbour", extra={"objects": torn})
        self.refused.update(torn)
        self.tally.total["segments"] += len(segments) - len(torn)

    def close(self) -> None:
        """The last commit, the watermark over what is continuous now, the last note of the progress."""
        self.commit()
        if self.guarded:
            lower(self.deps.ledger, self.deps.locks, self.spec.lease, self.spec.stream, self.deps.clock)
        self._note()

    def _note(self) -> None:
        """What is new since the last note, and the time that it took: for the report of a backfill."""
        if self.spec.kind == "ingest":
            return
        now = self.deps.clock.now_ms()
        new = self.tally.new()
        backfill.count(
            self.deps, self.spec.stream, self.spec.run, **{name: new.get(name, 0) for name in NOTED},
            seconds=(now - self._noted_ms) / 1000,
        )  # fmt: skip
        self._noted_ms = now


def read_spec(deps: Deps, key: str) -> TaskSpec | CorrectionSpec:
    """The task that a plan wrote.

    Raises:
        BadStateInput: there is none, or it is not one of this release.
    """
    body = deps.objects.get(key)
    if body is None:
        raise BadStateInput(f"the task {key} is gone", remedy="Start the backfill again: it plans what is missing.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadStateInput(f"the task {key} is not JSON: {error}") from error
    correcting = isinstance(value, dict) and value.get("kind") == correction_task.KIND
    return CorrectionSpec.from_json(value) if correcting else TaskSpec.from_json(value)


def do(deps: Deps, spec: TaskSpec | CorrectionSpec, stop: threading.Event, work_dir: Path) -> TaskResult | Corrected:
    """One task of either kind; see ``run_task`` and ``correction_task.run_corrections``."""
    if isinstance(spec, CorrectionSpec):
        return correction_task.run_corrections(deps, spec, stop, work_dir)
    return run_task(deps, spec, stop, work_dir)


def run_task(
    deps: Deps, spec: TaskSpec, stop: threading.Event, work_dir: Path | None = None, *, beat_s: float = BEAT_S
) -> TaskResult:
    """Do one task, or as much of it as there is time for until ``stop``.

    Args:
        work_dir: where an archive may be spooled; a REST task writes no files.

    Raises:
        LockLost: somebody else is in charge of what lies below the stream's watermark.
        CorruptState, StoreError: the ledger cannot be written; what is durable is found by the next attempt.
    """
    began = deps.clock.now_ms()
    committer = Committer(deps, spec, stop, spec.kind, beat_s)
    with about(spec.stream), outages.named():
        committer.beat(now=True)
        work = _file if spec.kind == "archive" else _chunks
        ended = work(deps, spec, committer, stop, work_dir)
        committer.close()
    tally, torn = committer.tally.total, len(committer.refused)
    status: Status = "incomplete" if torn and ended.status == "done" else ended.status
    result = TaskResult(
        status=committer.wish if status == "stopped" and committer.wish != "run" else status,
        chunks=ended.chunks,
        fetched=tally["chunks_fetched"],
        reused=tally["chunks_reused"],
        committed=tally["segments"],
        missing=ended.chunks - tally["chunks_fetched"] - tally["chunks_reused"],
        requests=tally["requests"],
        trades=tally["trades"],
        bytes=tally["bytes"],
        seconds=(deps.clock.now_ms() - began) / 1000,
        peak_rss_mib=peak_rss_mib(),
        errors=ended.errors | ({"RawConflict": torn} if torn else {}),
    )
    deps.count("RequestsSent", result.requests)
    deps.count("TradesFetched", result.trades)
    deps.count("SegmentsCommitted", result.committed)
    return result


@dataclass(frozen=True)
class _Ended:
    """How the work of a task came to its end, and the chunks that it had."""

    status: Literal["done", "incomplete", "stopped"]
    chunks: int
    errors: dict[str, int]


def _chunks(deps: Deps, spec: TaskSpec, committer: Committer, stop: threading.Event, work_dir: Path | None) -> _Ended:
    """Ask the exchange for the task's chunks."""
    tally = committer.tally.total
    todo = uncommitted(deps, spec)
    tally["chunks_reused"] = len(spec.chunks) - len(todo)
    pool = Pool(replace(deps, metrics=None), spec, todo, stop)
    try:
        _collect(pool, committer, stop)
    finally:
        pool.abandon.set()
    whole = tally["chunks_fetched"] + tally["chunks_reused"] == len(spec.chunks)
    early = stop.is_set() and not pool.given_up
    return _Ended("done" if whole else "stopped" if early else "incomplete", len(spec.chunks), dict(pool.errors))


def _file(deps: Deps, spec: TaskSpec, committer: Committer, stop: threading.Event, work_dir: Path | None) -> _Ended:
    """Take the task's file. One that cannot be used is no failure: the next round asks the exchange for its range."""
    # Here, because it loads Arrow: tasks that ask the exchange keep that memory.
    from schemahub.backfill_file import take_file

    report = take_file(deps, spec, committer, work_dir, stop)
    errors = {report.error: 1} if report.error else {}
    status: Literal["done", "incomplete", "stopped"] = "done"
    if report.status in ("stopped", "unreachable"):
        status = "stopped" if report.status == "stopped" else "incomplete"
    return _Ended(status, report.committed_chunks, errors)


def uncommitted(deps: Deps, spec: TaskSpec) -> list[Chunk]:
    """The task's chunks that no segment holds yet: an earlier attempt may have committed the others."""
    if spec.kind == "ingest":
        return list(spec.chunks)
    parts = coverage.missing(deps.ledger, spec.stream, spec.within)
    firsts = [part.first for part in parts]

    def is_missing(chunk: Chunk) -> bool:
        at = bisect.bisect_right(firsts, chunk.first) - 1
        return at >= 0 and chunk.last <= parts[at].last

    return [chunk for chunk in spec.chunks if is_missing(chunk)]


def _collect(pool: Pool, committer: Committer, stop: threading.Event) -> None:
    """Take what the threads finish until they are through, or until a stop's patience has ended."""
    clock = committer.deps.clock
    deadline: int | None = None
    while pool.working or not pool.finished.empty():
        if stop.is_set() and deadline is None:
            deadline = clock.now_ms() + round(STOP_S * 1000)
        if deadline is not None and clock.now_ms() >= deadline:
            logger.warning("chunks in flight are abandoned", extra={"chunks": pool.working})
            return
        for chunk in pool.take():
            _count(committer.tally.total, chunk)
            if chunk.lost:
                say_what_is_lost(committer.deps, committer.spec.stream, chunk.lost)
            committer.add(chunk.raw)
        committer.commit_if_due()
        committer.beat()


def _count(tally: Counter[str], chunk: Durable) -> None:
    tally["chunks_fetched" if chunk.fetched else "chunks_reused"] += 1
    tally["requests"] += chunk.requests
    tally["trades"] += chunk.trades
    tally["bytes"] += chunk.bytes


def peak_rss_mib() -> float:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
