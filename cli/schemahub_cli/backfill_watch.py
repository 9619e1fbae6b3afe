"""How far a backfill is, across all of its tasks: what the ledger holds of what is wanted, and nothing else.

A look reads the committed segments of the range that each unfinished stream wants (one query a stream, a page for
about 1,500 segments), so the pause between two looks grows with the time that a look takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from schemahub import coverage, raw
from schemahub.errors import NothingIngested
from schemahub.mappings import load_mapping
from schemahub.streams import PREFIX, Interval, Stream, gaps, merge
from schemahub_cli import executions
from schemahub_cli.target import Target
from schemahub_cli.watch import LOOK_AHEAD, Progress, StreamProgress, Watch

PATIENCE = 5.0
"""A look may take so much less time than the pause that follows it."""
COUNTED_TASKS = 100
"""Tasks of a stream whose chunks are looked at; of more, only the number is shown."""


@dataclass
class StreamBackfill(StreamProgress):
    """One stream of a backfill; ``planned`` is the first plan's estimate, None before there is one."""

    planned: dict[str, Any] | None = None
    within: Interval | None = None
    left: int | None = None
    """Positions that are still missing; None where a position need not be a trade."""
    tasks: list[list[Interval]] | None = None
    """Chunks of each task of the newest plan."""
    tasks_done: int = 0
    plan_key: str = ""

    @property
    def trades(self) -> int:
        """Trades of the run: what came and what is missing, or what the plan expects where that cannot be counted."""
        if self.left is not None:
            return self.trades_done + self.left
        return max(int((self.planned or {}).get("trades", 0)), self.trades_done)

    @property
    def phase(self) -> str:
        if self.outcome in ("busy", "paused", "cancelled", "failed"):
            return self.outcome
        if self.outcome:
            return "committed" if self.planned else "nothing new"
        return "waiting" if self.planned is None else "fetching"

    @property
    def note(self) -> str:
        """Tasks that have committed all of their chunks, of how many."""
        return f"{self.tasks_done}/{len(self.tasks)} tasks" if self.tasks else ""


@dataclass
class BackfillWatch(Watch):
    """Looks at one execution of ``backfill`` again and again."""

    took_s: float = 0.0
    backfills: dict[Stream, StreamBackfill] = field(default_factory=dict)

    @classmethod
    def of(cls, where: Target, arn: str) -> BackfillWatch:
        return cls(where, arn, where.deps.objects, where.deps.ledger)

    def look(self) -> Progress:
        """One look; never raises for what is not there yet."""
        began = time.monotonic()
        execution = executions.describe(self.target, self.arn)
        if self._began is None:
            # The pace is that of the whole run: whoever looks once gets an answer too.
            self._began = self.now() - execution.seconds()
        if not self.backfills:
            for line in self._lines(f"{PREFIX}plans/{self.run_id}/streams.jsonl"):
                self.backfills[Stream.from_json(line)] = StreamBackfill(Stream.from_json(line))
        unfinished = list(islice((p for p in self.backfills.values() if p.outcome is None), LOOK_AHEAD))
        # Asked first: once the run is done with a stream, all that it committed is there to be read.
        outcomes = [self._backfill_outcome(p.stream) for p in unfinished]
        for one, outcome in zip(unfinished, outcomes, strict=True):
            self._read(one)
            one.outcome = outcome
        publishing = execution.running and bool(executions.find_running(self.target, self.target.transform_arn))
        streams = sorted(self.backfills.values(), key=lambda s: s.stream)
        finished = bool(streams) and all(s.outcome for s in streams)
        failed = executions.failed_children(self.target, self.arn)
        progress = Progress(
            execution, list(streams), publishing and finished, failed, execution.seconds(), self._eta(list(streams))
        )
        self.took_s = time.monotonic() - began
        return progress

    def pause(self, sleep: Callable[[float], None]) -> Callable[[float], None]:
        """``sleep``, but at least ``PATIENCE`` times what the last look took."""
        return lambda seconds: sleep(max(seconds, PATIENCE * self.took_s))

    def _backfill_outcome(self, stream: Stream) -> str | None:
        last = self.target.deps.ledger.last_run(stream, "backfill") or {}
        if last.get("run") != self.arn or last.get("outcome") == "failed":
            return None  # a stream that failed in the first round is asked for again in the second
        return str(last.get("outcome"))

    def _read(self, progress: StreamBackfill) -> None:
        stream = progress.stream
        home = f"{PREFIX}plans/{self.run_id}/backfill/{stream.exchange}/{stream.product}/"
        if progress.within is None and (span := self._document(f"{home}range.json")):
            progress.within = Interval(*span)
        if progress.planned is None:
            progress.planned = self._document(f"{home}planned.json")
        if progress.within is None or progress.planned is None:
            return
        try:
            there = coverage.touching(self.target.deps.ledger, stream, progress.within)
        except NothingIngested:
            return
        mine = [s for s in there if s.run_id == self.run_id]
        covered = merge(s.interval for s in there)
        progress.chunks, progress.chunks_done = [], len(mine)
        progress.trades_done = sum(s.count for s in mine)
        if progress.planned.get("route") == "lambda":
            # Functions commit at the end of their round; what they have fetched is durable before.
            fetched = list(self._durable(stream, progress.within, covered))
            progress.trades_done += sum(count for _, _, count in fetched)
            progress.chunks_done += len(fetched)
            covered = merge([*covered, *((first, last) for first, last, _ in fetched)])
        if load_mapping(stream.exchange).counted:
            progress.left = sum(part.size for part in gaps(covered, progress.within))
        self._count_tasks(progress, home, covered)

    def _durable(self, stream: Stream, within: Interval, covered: list[Interval]) -> Iterator[tuple[int, int, int]]:
        """First and last position and rows of raw objects in the range that no segment holds yet."""
        for key, named, _ in raw.listed(self.objects, stream, within):
            if not raw.edition_of(key) and any(gaps(covered, named[:2])):
                yield named

    def _count_tasks(self, progress: StreamBackfill, home: str, covered: list[Interval]) -> None:
        newest = max((key for key in self.objects.list(home) if key.endswith("/tasks.jsonl")), default="")
        if newest and newest != progress.plan_key:
            progress.plan_key = newest
            keys = [line["task_key"] for line in self._lines(newest)]
            progress.tasks = [self._chunks_of(key) for key in keys] if len(keys) <= COUNTED_TASKS else None
        if progress.tasks:
            done = [not any(gaps(covered, chunk) for chunk in chunks) for chunks in progress.tasks]
            progress.tasks_done = sum(done)

    def _chunks_of(self, key: str) -> list[Interval]:
        spec = self._document(key) or {}
        within = spec.get("within") or [0, 0]
        return merge([(chunk["first"], chunk["last"]) for chunk in spec.get("chunks", ())] or [(within[0], within[1])])

    def _document(self, key: str) -> Any:
        body = self.objects.get(key)
        return json.loads(body) if body else None
