"""Executions that failed, and which streams and chunks they left undone.

Step Functions says what failed and why; the ledger says which streams did not come to their end, and which of them
another run has finished since. Both are asked: a child that failed and was made good by the second round of its run
has left nothing undone, and a child that was never started has no execution that could say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from schemahub import coverage
from schemahub.conditional import whole
from schemahub.errors import NothingIngested, permanent
from schemahub.ledger import Ledger, RunKind
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX, Chunk, Interval, Stream
from schemahub_cli import executions
from schemahub_cli.executions import Execution
from schemahub_cli.target import Target

BAD_ENDS = ("FAILED", "TIMED_OUT", "ABORTED")
MAX_LOOKS = 2_000
"""Executions that one command describes at most; the newest failures come first, and what was left out is said."""
SHOWN_CHUNKS = 5
"""Failed chunks of a stream whose errors are read; the others are counted."""
MAX_LISTED = 20_000
NESTED = 5
"""Documents inside a cause that are opened at most: the ingest's, the transform's, its Lambda's."""
STREAMS, PUBLISH, REDERIVE, WHOLE = "streams", "publish", "rederivation", "whole"
PUBLISHING = ("TransformSegments", "TransformRetried")
"""States of ``ingest`` and ``backfill`` that start ``transform``: everything before them is done and committed."""


@dataclass(frozen=True)
class Problem:
    """One named error: of a chunk, of a stream's child, or of the execution itself."""

    error: str
    cause: str
    chunk: Chunk | None = None

    def to_json(self) -> dict[str, Any]:
        chunk = self.chunk.to_json() if self.chunk else None
        return {"error": self.error, "cause": self.cause, "chunk": chunk}


@dataclass(frozen=True)
class Failure:
    """What one execution left undone: a stream, the publishing, a re-derivation, or all of it (``WHOLE``)."""

    machine: str
    execution: Execution
    kind: str
    stream: Stream | None
    problems: tuple[Problem, ...]
    """The most specific first: chunks, then the stream's child, then the execution."""
    stopped: datetime
    more_chunks: int = 0
    """Failed chunks beside those that ``problems`` name."""
    recovered: str | None = None
    """Which run has done it since; None if nobody has."""

    @property
    def permanent(self) -> Problem | None:
        """The first of the problems that fails again in the same way until a person has changed something."""
        return next((p for p in self.problems if permanent(p.error)), None)

    @property
    def key(self) -> tuple[str, ...]:
        """Failures of one key are one piece of work, whichever executions left it undone."""
        if self.stream is not None:
            asked = {k: v for k, v in self.selection.items() if k not in ("products", "exchanges")}
            return (self.machine, str(self.stream), _text(asked))
        if self.kind == PUBLISH:
            return (PUBLISH,)
        return (self.machine, self.kind, _text(self.selection))

    @property
    def selection(self) -> dict[str, Any]:
        """The execution's input without what names its starter."""
        ours = ("run", "AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID", "schema_version")
        return {k: v for k, v in self.execution.input.items() if k not in ours}

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "execution": self.execution.arn,
            "status": self.execution.status,
            "stopped": self.stopped.isoformat(),
            "kind": self.kind,
            "stream": self.stream.to_json() if self.stream else None,
            "problems": [p.to_json() for p in self.problems],
            "more_failed_chunks": self.more_chunks,
            "recovered": self.recovered,
        }


@dataclass
class Found:
    """The failures of one machine, the newest first, and whether there were more than could be looked at."""

    failures: list[Failure] = field(default_factory=list)
    executions: int = 0
    truncated: bool = False


class TooMany(Exception):
    """The command has looked at as many executions as it may."""


@dataclass
class Reader:
    """Looks at failed executions; ``looks_left`` bounds what one command asks of Step Functions."""

    target: Target
    objects: ObjectStore
    ledger: Ledger
    looks_left: int = MAX_LOOKS
    _seen: dict[str, Execution] = field(default_factory=dict)
    _notes: dict[tuple[str, Stream], dict[str, Any]] = field(default_factory=dict)

    def find(self, machine: str, machine_arn: str, statuses: list[str], since: datetime) -> Found:
        """What executions of the machine that ended badly at or after ``since`` left undone."""
        found = Found()
        listed = [e for status in statuses for e in self._listed(status, since, stateMachineArn=machine_arn)]
        try:
            for entry in sorted(listed, key=lambda e: e["stopDate"], reverse=True):
                # All of an execution or nothing: what is decided of it depends on everything that it left undone.
                found.failures += list(self._of(machine, machine_arn, self._describe(entry["executionArn"])))
                found.executions += 1
        except TooMany:
            found.truncated = True
        return found

    def of(self, machine: str, machine_arn: str, execution: Execution) -> list[Failure]:
        """What one execution that ended badly left undone. Raises TooMany."""
        return list(self._of(machine, machine_arn, execution))

    def _of(self, machine: str, machine_arn: str, execution: Execution) -> Iterator[Failure]:
        if machine == "transform":
            kind = REDERIVE if "rederive" in execution.input else PUBLISH
            yield self._undone(machine, machine_arn, execution, kind)
            return
        state = self._failed_state(execution.arn)
        children = self._children(execution)
        named = self._lines(f"{PREFIX}plans/{execution.name}/streams.jsonl") or []
        # The closing step's list, or what is known of a run that did not come to it.
        listed = self._lines(f"{PREFIX}plans/{execution.name}/streams.failed.jsonl")
        if listed is None:
            listed = [s for s in named if s in children] if state in PUBLISHING else named
        failed = [s for s in listed if not self._came_to_its_end(machine, s, execution)]
        for stream in failed:
            yield self._stream(machine, execution, stream, children.get(stream))
        if not failed:
            yield self._undone(machine, machine_arn, execution, PUBLISH if state in PUBLISHING else WHOLE)

    def _undone(self, machine: str, machine_arn: str, execution: Execution, kind: str) -> Failure:
        """A failure that is about no single stream."""
        failure = Failure(machine, execution, kind, None, (_problem(execution),), _stopped(execution))
        asked = self.target.transform_arn if failure.key == (PUBLISH,) else machine_arn
        return _with(failure, self._later_success(asked, failure))

    def _stream(self, machine: str, execution: Execution, stream: Stream, child: Execution | None) -> Failure:
        problems, more = [_problem(execution)], 0
        if child is not None:
            problems.insert(0, _problem(child))
            chunks, more = self._chunks(child)
            problems[:0] = chunks
        at = _stopped(child or execution)
        failure = Failure(machine, execution, STREAMS, stream, tuple(problems), at, more)
        return _with(failure, self._finished_since(failure, stream))

    # --- what Step Functions knows ----------------------------------------------------------------------------------

    def _describe(self, arn: str) -> Execution:
        if arn not in self._seen:
            if self.looks_left <= 0:
                raise TooMany
            self.looks_left -= 1
            self._seen[arn] = executions.describe(self.target, arn)
        return self._seen[arn]

    def _listed(self, status: str, since: datetime | None, **of: str) -> list[dict[str, Any]]:
        """Ended executions of a machine or a Map Run, page by page; pages come newest first."""
        client = self.target.client("stepfunctions")
        token: dict[str, str] = {}
        listed: list[dict[str, Any]] = []
        while len(listed) < MAX_LISTED:
            page = client.list_executions(**of, statusFilter=status, **token)
            ended = [{**e, "stopDate": _utc(e["stopDate"])} for e in page["executions"] if e.get("stopDate")]
            recent = [e for e in ended if since is None or e["stopDate"] >= since]
            listed += recent
            # A whole page that ended before: so did those that follow, or they ran longer than any run may.
            if "nextToken" not in page or (ended and not recent):
                break
            token = {"nextToken": page["nextToken"]}
        return listed

    def _map_runs(self, arn: str) -> list[str]:
        client = self.target.client("stepfunctions")
        token: dict[str, str] = {}
        runs: list[dict[str, Any]] = []
        while True:
            page = client.list_map_runs(executionArn=arn, **token)
            runs += page.get("mapRuns", [])
            if "nextToken" not in page:
                return [r["mapRunArn"] for r in sorted(runs, key=lambda r: r["startDate"])]
            token = {"nextToken": page["nextToken"]}

    def _failed_of(self, map_run: str) -> list[str]:
        return [e["executionArn"] for status in BAD_ENDS for e in self._listed(status, None, mapRunArn=map_run)]

    def _children(self, execution: Execution) -> dict[Stream, Execution]:
        """The last failed child of each stream."""
        last: dict[Stream, Execution] = {}
        for map_run in self._map_runs(execution.arn):
            for arn in self._failed_of(map_run):
                child = self._describe(arn)
                if "stream" in child.input:
                    stream = Stream.from_json(child.input["stream"])
                    last[stream] = max(last.get(stream, child), child, key=_stopped)
        return last

    def _chunks(self, child: Execution) -> tuple[list[Problem], int]:
        """Failed chunks of a stream's last Map (those of earlier ones were asked for again), and how many more."""
        runs = self._map_runs(child.arn)
        failed = self._failed_of(runs[-1]) if runs else []
        seen = [self._describe(arn) for arn in failed[:SHOWN_CHUNKS]]
        problems = [_problem(e, Chunk.from_json(e.input["chunk"]) if e.input.get("chunk") else None) for e in seen]
        return sorted(problems, key=lambda p: p.chunk.first if p.chunk else 0), max(0, len(failed) - SHOWN_CHUNKS)

    def _failed_state(self, arn: str) -> str | None:
        """The state that the execution entered last."""
        events = self.target.client("stepfunctions").get_execution_history(
            executionArn=arn, reverseOrder=True, maxResults=100, includeExecutionData=False
        )["events"]
        entered = (e["stateEnteredEventDetails"]["name"] for e in events if "stateEnteredEventDetails" in e)
        return next(entered, None)

    def _later_success(self, machine_arn: str, failure: Failure) -> str | None:
        """An execution that began after the failure, ended well and was asked for the same, or for everything."""
        for entry in self._listed("SUCCEEDED", failure.stopped, stateMachineArn=machine_arn):
            if _utc(entry["startDate"]) < failure.stopped:
                continue
            later = self._describe(entry["executionArn"])
            made = Failure(failure.machine, later, failure.kind, None, (), _stopped(later))
            if failure.kind == PUBLISH:
                same = "rederive" not in later.input
            else:
                same = made.key == failure.key or (failure.kind == WHOLE and not made.selection)
            if same and not later.skipped:
                return later.name
        return None

    # --- what the ledger and the plans know -------------------------------------------------------------------------

    def _lines(self, key: str) -> list[Stream] | None:
        body = self.objects.get(key)
        return None if body is None else [Stream.from_json(json.loads(line)) for line in body.splitlines() if line]

    def _last_run(self, machine: str, stream: Stream) -> dict[str, Any]:
        if (machine, stream) not in self._notes:
            kind: RunKind = "run" if machine == "ingest" else "backfill"
            self._notes[machine, stream] = self.ledger.last_run(stream, kind) or {}
        return self._notes[machine, stream]

    def _came_to_its_end(self, machine: str, stream: Stream, execution: Execution) -> bool:
        """In this very run: in its second round, or without any failure."""
        last = self._last_run(machine, stream)
        return last.get("run") == execution.arn and last.get("outcome") != "failed"

    def _finished_since(self, failure: Failure, stream: Stream) -> str | None:
        """Which run has done it after the failure. A note of another run that was busy proves nothing."""
        if failure.machine == "backfill":
            return "another backfill" if self._covered(failure.execution, stream) else None
        last = self._last_run(failure.machine, stream)
        if last.get("outcome") != "done" or whole(last, "finished_at") <= failure.stopped.timestamp() * 1000:
            return None
        return str(last.get("run", "")).rsplit(":", 1)[-1]

    def _covered(self, execution: Execution, stream: Stream) -> bool:
        """Whether the ledger holds all that the backfill wanted. False where it did not come to know what that is."""
        key = f"{PREFIX}plans/{execution.name}/backfill/{stream.exchange}/{stream.product}/range.json"
        span = json.loads(self.objects.get(key) or b"null")
        try:
            return bool(span) and not coverage.missing(self.ledger, stream, Interval(*span))
        except NothingIngested:
            return False


def _with(failure: Failure, recovered: str | None) -> Failure:
    return replace(failure, recovered=recovered)


def _problem(execution: Execution, chunk: Chunk | None = None) -> Problem:
    """The error by its name; causes are JSON documents of which people want one line: a Lambda's, or that of a nested
    execution, around its own."""
    error, cause = execution.error or execution.status, execution.cause or ""
    for _ in range(NESTED):
        try:
            told = json.loads(cause)
        except (ValueError, RecursionError):
            break
        if not isinstance(told, dict):
            break
        error = str(told.get("Error") or told.get("errorType") or error)
        cause = str(told.get("errorMessage") or told.get("Cause") or "")
    return Problem(error, cause[:600], chunk)


def _stopped(execution: Execution) -> datetime:
    return execution.stopped or execution.started


def _utc(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
