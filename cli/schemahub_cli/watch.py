"""How far a running ingest is: read from the execution, the plans, the raw objects and the ledger.

All four are there locally and in the cloud alike. A look costs one listing of the run's plans and, of at most
``LOOK_AHEAD`` streams, a listing and a read, whatever the size of the run; a finished stream is not looked at again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from schemahub import raw
from schemahub.mappings import load_mapping
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX, Chunk, Interval, Stream
from schemahub_cli import executions
from schemahub_cli.executions import Execution
from schemahub_cli.target import Target

LOOK_AHEAD = 16
"""How many unfinished streams a look asks for: more than the Map works on at a time, in the Map's order."""

UNKNOWN_CHUNK = 1_000
"""Trades that a chunk is taken to hold before any was fetched, if its positions do not say."""


class LastRuns(Protocol):
    """Of the ledger, what a watch needs."""

    def last_run(self, stream: Stream) -> dict[str, Any] | None: ...


@dataclass
class StreamProgress:
    """One stream of the run; ``chunks`` is None until it is planned, ``outcome`` until the run is done with it."""

    stream: Stream
    chunks: list[Chunk] | None = None
    chunks_done: int = 0
    trades_done: int = 0
    outcome: str | None = None

    @property
    def trades(self) -> int:
        """Trades that the plan covers; where positions do not say, at the pace of the chunks that are done."""
        chunks, mapping = self.chunks or [], load_mapping(self.stream.exchange)
        if mapping.counted:
            return sum(c.size for c in chunks)
        if self.chunks_done:
            return -(-self.trades_done * len(chunks) // self.chunks_done)
        return len(chunks) * min(mapping.requests.page_size, UNKNOWN_CHUNK)

    @property
    def requests(self) -> int:
        """Pages that the plan takes, at least."""
        page_size = load_mapping(self.stream.exchange).requests.page_size
        if load_mapping(self.stream.exchange).counted:
            return sum(-(-c.size // page_size) for c in self.chunks or ())
        return max(len(self.chunks or ()), -(-self.trades // page_size))

    @property
    def note(self) -> str:
        """What people want to know beside the phase."""
        return ""

    @property
    def phase(self) -> str:
        if self.outcome == "busy":
            return "busy"
        if self.outcome:
            return "committed" if self.chunks else "nothing new"
        if self.chunks is None:
            return "waiting"
        return "committing" if self.chunks_done == len(self.chunks) else "fetching"


@dataclass(frozen=True)
class Progress:
    """One look at a run."""

    execution: Execution
    streams: list[StreamProgress]
    publishing: bool
    failed: int
    elapsed_s: float
    eta_s: float | None
    """Seconds until everything planned so far is fetched; None before anything is planned."""

    @property
    def trades(self) -> int:
        return sum(s.trades for s in self.streams)

    @property
    def trades_done(self) -> int:
        return sum(s.trades_done for s in self.streams)

    @property
    def planned(self) -> int:
        return sum(s.chunks is not None or s.outcome is not None for s in self.streams)

    @property
    def finished(self) -> int:
        return sum(s.outcome is not None for s in self.streams)

    @property
    def all_finished(self) -> bool:
        """Nothing is left to fetch: what follows is publishing."""
        return bool(self.streams) and self.finished == len(self.streams)

    @property
    def phase(self) -> str:
        if not self.execution.running:
            return self.execution.status.lower()
        if self.publishing or self.all_finished:
            return "publishing"
        return "fetching" if self.planned else "planning"

    def to_json(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "streams": len(self.streams),
            "planned": self.planned,
            "finished": self.finished,
            "trades": self.trades,
            "trades_done": self.trades_done,
            "failed_children": self.failed,
            "elapsed_s": round(self.elapsed_s, 1),
            "eta_s": round(self.eta_s, 1) if self.eta_s is not None else None,
        }


@dataclass
class Watch:
    """Looks at one ingest execution again and again."""

    target: Target
    arn: str
    objects: ObjectStore
    ledger: LastRuns
    now: Callable[[], float] = time.monotonic
    streams: dict[Stream, StreamProgress] = field(default_factory=dict)
    _began: float | None = None
    _first_done: int = 0

    @property
    def run_id(self) -> str:
        return self.arn.rsplit(":", 1)[1]

    def look(self) -> Progress:
        """One look; never raises for what is not there yet."""
        execution = executions.describe(self.target, self.arn)
        self._read_streams()
        unfinished = list(islice((p for p in self.streams.values() if p.outcome is None), LOOK_AHEAD))
        # Asked first: once the run is done with a stream, its plan and all of its raw objects are there to be read.
        outcomes = [self._outcome(p.stream) for p in unfinished]
        self._read_plans()
        for progress, outcome in zip(unfinished, outcomes, strict=True):
            if progress.chunks:
                stored = self._stored(progress.stream, progress.chunks)
                progress.chunks_done, progress.trades_done = len(stored), sum(stored.values())
            progress.outcome = outcome
        publishing = execution.running and bool(executions.find_running(self.target, self.target.transform_arn))
        failed = executions.failed_children(self.target, self.arn)
        streams = sorted(self.streams.values(), key=lambda s: s.stream)
        return Progress(execution, streams, publishing, failed, execution.seconds(), self._eta(streams))

    def _read_streams(self) -> None:
        if not self.streams:
            for line in self._lines(f"{PREFIX}plans/{self.run_id}/streams.jsonl"):
                stream = Stream.from_json(line)
                self.streams[stream] = StreamProgress(stream)

    def _read_plans(self) -> None:
        waiting = {
            f"{PREFIX}plans/{self.run_id}/{s.exchange}/{s.product}.jsonl": p
            for s, p in self.streams.items()
            if p.chunks is None
        }
        if not waiting:
            return
        for key in self.objects.list(f"{PREFIX}plans/{self.run_id}/"):
            if key in waiting:
                waiting[key].chunks = [Chunk.from_json(line) for line in self._lines(key)]

    def _outcome(self, stream: Stream) -> str | None:
        last = self.ledger.last_run(stream) or {}
        return str(last.get("outcome")) if last.get("run") == self.arn else None

    def _stored(self, stream: Stream, chunks: list[Chunk]) -> dict[tuple[int, int], int]:
        """Rows of each planned chunk whose raw object is there."""
        planned = {(c.first, c.last) for c in chunks}
        there = raw.listed(self.objects, stream, Interval(chunks[0].first, chunks[-1].last))
        return {named[:2]: named[2] for _, named, _ in there if named[:2] in planned}

    def _eta(self, streams: list[StreamProgress]) -> float | None:
        """The slowest exchange's remaining work at the pace seen so far, at first at its published limit."""
        remaining: dict[str, int] = {}
        for s in streams:
            if s.chunks is not None:
                left = 0 if s.outcome else max(0, s.trades - s.trades_done)
                remaining[s.stream.exchange] = remaining.get(s.stream.exchange, 0) + left
        if not remaining:
            return None
        done = sum(s.trades_done for s in streams)
        if self._began is None:
            self._began, self._first_done = self.now(), done
        at_limit = max(left / trades_per_second(exchange) for exchange, left in remaining.items())
        seen, elapsed = done - self._first_done, self.now() - self._began
        if seen < 50_000 or elapsed < 5:
            return at_limit
        return max(at_limit, sum(remaining.values()) * elapsed / seen)

    def _lines(self, key: str) -> list[Any]:
        body = self.objects.get(key)
        return [json.loads(line) for line in (body or b"").splitlines() if line.strip()]


def trades_per_second(exchange: str) -> float:
    """The most trades a second that an exchange's published limit allows."""
    mapping = load_mapping(exchange)
    limits = mapping.limits
    return limits.amount / limits.per_seconds / limits.cost["page"] * mapping.requests.page_size
