"""What a run has brought, and of one that failed the named errors and what to do: read from ledger and executions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import dropwhile, takewhile
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from schemahub.errors import SchemaHubError, permanent, remedy_of
from schemahub.streams import Segment, Stream
from schemahub_cli.failures import PUBLISH, Failure, Reader, TooMany
from schemahub_cli.output import ExecutionFailed
from schemahub_cli.positions import iso

if TYPE_CHECKING:
    from schemahub.deps import Deps
    from schemahub_cli.executions import Execution
    from schemahub_cli.target import Target

READERS = 8
SHOWN = 20
"""Streams that people see under one error; --json has all."""


@dataclass(frozen=True)
class Brought:
    """What a run committed. ``first_us`` and ``last_us``: its oldest and its newest trade, as far as they say when."""

    streams: int
    trades: int
    up_to_date: int
    """Streams of the run of which nothing was new, or nothing came."""
    first_us: int | None = None
    last_us: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "streams": self.streams,
            "trades": self.trades,
            "up_to_date": self.up_to_date,
            "from": None if self.first_us is None else iso(self.first_us),
            "to": None if self.last_us is None else iso(self.last_us),
        }

    @property
    def line(self) -> str:
        """In one line, for people."""
        if not self.trades:
            return f"nothing was new: {self.up_to_date:,} streams are where they were"
        span = f", {minute(self.first_us)} to {minute(self.last_us)} UTC" if self.first_us and self.last_us else ""
        rest = f" · nothing new of {self.up_to_date:,} more" if self.up_to_date else ""
        return f"brought [bold]{self.trades:,} trades[/] of {self.streams:,} streams{span}{rest}"


def brought(deps: Deps, execution: Execution, streams: Iterable[Stream]) -> Brought:
    """What the run committed of its streams; two originals of each are read for the times."""
    from schemahub.witness import row_of

    until_ms = execution.stopped.timestamp() * 1000 if execution.stopped else float("inf")
    found = {stream: _committed(deps, stream, execution.name, until_ms) for stream in streams}
    # Segments come newest first; a chunk that the exchange skipped as a whole has no trade to ask.
    held = [[s for s in segments if s.count] for segments in found.values()]
    edges = [(s[-1], 0) for s in held if s] + [(s[0], -1) for s in held if s]

    def time_of(edge: tuple[Segment, int]) -> int | None:
        try:
            return row_of(deps.objects, *edge).ts_us
        except SchemaHubError:
            return None  # what is wrong with an original is for `verify` to say: the run has ended well

    with ThreadPoolExecutor(READERS) as pool:
        times = [us for us in pool.map(time_of, edges) if us is not None]
    return Brought(
        sum(bool(s) for s in held),
        sum(s.count for segments in held for s in segments),
        sum(not s for s in held),
        min(times, default=None),
        max(times, default=None),
    )


def _committed(deps: Deps, stream: Stream, run: str, until_ms: float) -> list[Segment]:
    """The segments that the run put on top of the stream, the newest first; later runs may have put theirs on them."""
    newest = dropwhile(lambda s: s.run_id != run and s.committed_at > until_ms, deps.ledger.newest_segments(stream))
    return list(takewhile(lambda s: s.run_id == run, newest))


@dataclass(frozen=True)
class Undone:
    """What a failed execution left undone; ``unread`` says why its errors could not be read, if they could not."""

    failures: tuple[Failure, ...] = ()
    unread: str = ""

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "stream": f.stream.to_json() if f.stream else None,
                "kind": f.kind,
                "error": f.problems[0].error,
                "message": f.problems[0].cause,
                "remedy": remedy_of(f.problems[0].error),
                "permanent": f.permanent is not None,
            }
            for f in self.failures
        ]

    def lines(self, again: str) -> list[str]:
        """For people: each error with its streams and what to do, and the command that goes on (``again``)."""
        kinds: dict[str, list[Failure]] = {}
        for failure in self.failures:
            kinds.setdefault(failure.problems[0].error, []).append(failure)
        said = [line for error, group in kinds.items() for line in _of_kind(error, group)]
        if self.unread:
            said.append(f"[yellow]its errors could not be read: {escape(self.unread)}[/]")
        mended = any(f.permanent for f in self.failures)
        force = " --force" if mended and all(f.permanent for f in self.failures) else ""
        then = "when that is mended" if force else "then"
        return [*said, f"{then}: [cyan]{again}{force}[/]"]


def failed(execution: Execution, left: Undone) -> ExecutionFailed:
    """The error that ends a command whose execution failed: its own words where no named error says more."""
    cause = f": {execution.cause[:600]}" if execution.cause and not left.failures else ""
    return ExecutionFailed(f"{execution.name} {execution.status.lower()} ({execution.error}){cause}")


def undone(where: Target, machine: str, machine_arn: str, execution: Execution) -> Undone:
    """The named errors of an execution that failed; what keeps them from being read does not hide the failure."""
    from botocore.exceptions import BotoCoreError, ClientError

    reader = Reader(where, where.deps.objects, where.deps.ledger)
    try:
        return Undone(tuple(reader.of(machine, machine_arn, execution)))
    except TooMany:
        return Undone(unread="there are too many of them; `schemahub replay --dry-run` lists the newest")
    except (SchemaHubError, ClientError, BotoCoreError) as error:
        return Undone(unread=f"{type(error).__name__}: {error}"[:300])


def _of_kind(error: str, group: Sequence[Failure]) -> Iterable[str]:
    colour = "bold red" if permanent(error) else "red"
    for failure in group[:SHOWN]:
        problem = failure.problems[0]
        span = f" [{problem.chunk.first}..{problem.chunk.last}]" if problem.chunk else ""
        more = f" and {failure.more_chunks:,} chunks more" if failure.more_chunks else ""
        yield f"[{colour}]{escape(error)}[/]  {_name(failure)}{escape(span)}{more}: {escape(problem.cause)}"
    if len(group) > SHOWN:
        yield f"[dim]{len(group) - SHOWN:,} streams more with {escape(error)} (--json lists all)[/]"
    if remedy := remedy_of(error):
        yield f"[dim]→[/] {escape(remedy)}"


def _name(failure: Failure) -> str:
    if failure.stream:
        return failure.stream.label
    return "publishing" if failure.kind == PUBLISH else f"the {failure.machine} itself"


def on(where: Target) -> str:
    """The option that a next command needs, with a space before it; nothing on the local stack."""
    return "" if where.local else f" --stack {where.stack}"


def minute(us: int) -> str:
    """A moment (microseconds since the epoch) to the minute: ``2026-11-21 08:05``."""
    return f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M}"
