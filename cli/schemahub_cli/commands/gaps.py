"""``schemahub gaps``: the ids that committed segments lack, why, and asking the exchange for them again."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from schemahub.errors import LockError, SchemaHubError
from schemahub.holes import Gap, Hole, merged
from schemahub.mappings import NS
from schemahub.streams import Interval, Stream
from schemahub_cli import names, target
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, clock, command, listing
from schemahub_cli.positions import by_time, extent, place
from schemahub_cli.target import Target

SHOWN = 20
"""Ranges of a stream that people see, the largest ones; machines get all of them."""


@dataclass
class StreamGaps:
    """The holes of one stream, and what a repair made of them."""

    stream: Stream
    holes: list[Hole]
    asked: int = 0
    """Holes that were asked for again."""
    came: int = 0
    """Ids that came now."""
    error: SchemaHubError | None = None
    shown: list[Gap] = field(default_factory=list)
    unfetched: list[Interval] = field(default_factory=list)
    """Ranges between what a backfill has committed and the watermark: not asked for yet, so no holes."""

    def to_json(self) -> dict[str, Any]:
        return {
            **self.stream.to_json(),
            **self._amounts(
                missing=sum(h.ids for h in self.holes),
                unproved=sum(h.ids for h in self.holes if not h.proved),
                filled=sum(h.last - h.first + 1 - h.ids for h in self.holes),
            ),
            "gaps": [self._words(gap) for gap in self.shown],
            "not_fetched_yet": [list(part) for part in self.unfetched],
            "asked": self.asked,
            "came": self.came,
            "error": {"error": type(self.error).__name__, "message": self.error.reason} if self.error else None,
        }

    def _amounts(self, **positions: int) -> dict[str, float]:
        """Ids, or the seconds of a stream whose positions are times."""
        if by_time(self.stream):
            return {f"{name}_seconds": number / NS["s"] for name, number in positions.items()}
        return {f"{name}_ids": number for name, number in positions.items()}

    def _words(self, gap: Gap) -> dict[str, Any]:
        """A gap's JSON: the class under the name that the ledger and the docs use, times beside their positions."""
        words = {"class" if name == "state" else name: value for name, value in asdict(gap).items()}
        if by_time(self.stream):
            words |= {"first_time": place(self.stream, gap.first), "last_time": place(self.stream, gap.last)}
            words |= {"seconds": words.pop("ids") / NS["s"]}
        return words


@command
def gaps(
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            "-s",
            metavar="EXCHANGE:PRODUCT",
            help="Only this stream, for example coinbase:BTC-USD; may be repeated. Default: all that are known.",
            autocompletion=names.complete_stream,
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Ask the exchange again for each hole that is not proved; keep what comes.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Proved holes too: list them, and with --repair ask for them again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: ask the exchange, show what would come, write nothing.")
    ] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ids that the exchange did not deliver: ranges of each stream with their class, and their repair.

    A hole stays in the list until it is proved: denied in three looks at least half an hour apart, or filled.

      schemahub gaps
      schemahub gaps --stream coinbase:BTC-USD --all --json
      schemahub gaps --repair --dry-run
    """
    if dry_run and not repair:
        raise typer.BadParameter("--dry-run goes with --repair: without it nothing is ever written")
    say, named = Say(as_json), names.parse(stream)
    where = target.resolve(stack)
    found = [_known(where, one) for one in _streams(where, named)]
    if repair:
        with say.console.status("asking for the missing ids again"):
            for one in found:
                _repair(where, one, everything, dry_run)
    for one in found:
        one.shown = [gap for gap in merged(one.holes) if everything or not gap.proved]
    say.result(
        {"stack": where.stack, "dry_run": dry_run, "streams": [one.to_json() for one in found]},
        *_report(found, repair, dry_run, everything),
    )
    _leave(found)


def _streams(where: Target, named: list[Stream]) -> list[Stream]:
    """The named streams, or all that have state: a product that left the seed keeps its holes."""
    from schemahub import rebuild

    if named:
        return names.committed(where.deps, named)
    return sorted(rebuild.named_streams(where.deps))


def _known(where: Target, stream: Stream) -> StreamGaps:
    from schemahub.coverage import unfetched
    from schemahub.repair import holes_of

    return StreamGaps(stream, holes_of(where.deps, stream), unfetched=unfetched(where.deps.ledger, stream))


def _repair(where: Target, one: StreamGaps, again: bool, dry_run: bool) -> None:
    """Repair one stream; what stands in the way of it is shown and does not keep the others."""
    from schemahub.repair import holes_of, repair_stream

    owner = f"gaps:{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    try:
        for looked in repair_stream(where.deps, one.stream, owner, again=again, dry_run=dry_run):
            one.asked += 1
            one.came += looked.filled if looked.written or dry_run else 0
    except SchemaHubError as error:
        one.error = error
    if not dry_run:
        one.holes = holes_of(where.deps, one.stream)


def _report(found: list[StreamGaps], repair: bool, dry_run: bool, everything: bool) -> Iterator[Any]:
    now_ms = time.time_ns() // 1_000_000
    if any(one.shown for one in found):
        yield _table(found, now_ms)
    for one in found:
        name = one.stream.label
        if (more := len(one.shown) - SHOWN) > 0:
            yield f"[dim]{name}: {more:,} smaller ranges more; --json lists all[/]"
        if one.asked:
            came = "would come" if dry_run else "came"
            amount = f"[green]{extent(one.stream, one.came)}[/]{_unit(one.stream)}"
            yield f"{name}: {one.asked:,} holes asked for again, {amount} {came}"
        for part in one.unfetched[-SHOWN:]:
            edges = f"{place(one.stream, part.first)} … {place(one.stream, part.last)}"
            yield f"[dim]{name}: {edges} is not fetched yet (`schemahub backfill`)[/]"
        if one.error:
            yield f"[red]{name}: {type(one.error).__name__}[/]  {escape(one.error.reason)}"
    if repair and not dry_run and any(one.came for one in found):
        yield "The next run publishes what came; `schemahub transform` does it now."
    hidden = sum(gap.ids for one in found if not by_time(one.stream) for gap in merged(one.holes) if gap.proved)
    if hidden and not everything:
        yield f"[dim]{hidden:,} ids more are proved to be absent (--all)[/]"
    if not found:
        yield "[yellow]nothing is committed yet, so nothing can be missing[/]: `schemahub run` pulls the seed list"
    elif not any(one.shown for one in found):
        yield "[green]no hole is open[/]"


def _table(found: list[StreamGaps], now_ms: int) -> Table:
    table = listing("stream", "class", numbers=("first", "last", "ids or time", "looks", "seen ago"))
    table.add_column("evidence")
    for one in found:
        for gap in sorted(sorted(one.shown, key=lambda g: -g.ids)[:SHOWN], key=lambda g: g.first):
            table.add_row(
                one.stream.label,
                f"[{'green' if gap.proved else 'yellow'}]{gap.state}[/]",
                place(one.stream, gap.first),
                place(one.stream, gap.last),
                extent(one.stream, gap.ids),
                str(gap.looks),
                clock((now_ms - gap.first_seen) / 1000),
                escape(gap.evidence),
            )
    return table


def _unit(stream: Stream) -> str:
    return "" if by_time(stream) else " ids"


def _leave(found: list[StreamGaps]) -> None:
    errors = [one.error for one in found if one.error]
    if errors:
        raise typer.Exit(int(Exit.BUSY if all(isinstance(e, LockError) for e in errors) else Exit.FAILED))
