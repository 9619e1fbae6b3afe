"""``schemahub replay``: failed executions by query, and running again what they left undone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from schemahub.errors import UnknownStream, remedy_of
from schemahub_cli import executions, locks, names, replay, target, times
from schemahub_cli.capacity import Capacity
from schemahub_cli.failures import PUBLISH, Failure, Found, Reader
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, command, listing
from schemahub_cli.replay import BUSY, PERMANENT, RECOVERED, REDRIVE, START, SUPERSEDED, WITH, Fate, Filter
from schemahub_cli.target import Target

SHOWN = 50
"""Failures that people see, the newest; machines get all of them."""
COLOURS = {
    REDRIVE: "cyan", START: "cyan", WITH: "cyan", BUSY: "yellow", PERMANENT: "red", RECOVERED: "green",
    SUPERSEDED: "dim",
}  # fmt: skip


class State(StrEnum):
    """How an execution ended, as Step Functions names it."""

    FAILED = "failed"
    TIMED_OUT = "timed_out"
    ABORTED = "aborted"


class Machine(StrEnum):
    """The state machines whose executions can be replayed."""

    INGEST = "ingest"
    TRANSFORM = "transform"
    BACKFILL = "backfill"


@command
def run(
    state: Annotated[
        list[State] | None,
        typer.Option("--state", help="Executions that ended like this; may be repeated. Default: failed, timed_out."),
    ] = None,
    since: Annotated[
        datetime,
        typer.Option(
            "--since",
            metavar="TIME",
            parser=times.option,
            help="Ended since then: 90m, 12h, 2d, yesterday, 2026-11.",
        ),
    ] = "2d",  # type: ignore[assignment]
    error: Annotated[
        str | None,
        typer.Option("--error", metavar="GLOB", help="Only where an error's name or text matches: 'Exchange*'."),
    ] = None,
    product: Annotated[
        str | None,
        typer.Option("--product", metavar="GLOB", help="Only streams that match: 'BTC-*', 'binance:*'."),
    ] = None,
    machine: Annotated[
        list[Machine] | None,
        typer.Option("--machine", help="Only this state machine; may be repeated. Default: all of them."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also what can only fail again, after you have mended what it failed of."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run again; start nothing.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find failed executions, their streams and chunks, and run again what nobody has done since.

    An execution of which everything is wanted is redriven: it goes on at what failed. Where AWS does not allow that,
    or only a part is wanted, a new execution gets the failed streams alone.

      schemahub replay --dry-run
      schemahub replay --state failed --since 2d --error 'Exchange*' --product 'BTC-*'
    """
    now = datetime.now(UTC)
    say, where = Say(as_json), target.resolve(stack)
    statuses = [s.name for s in state or (State.FAILED, State.TIMED_OUT)]
    machines = {m.value: arn for m in machine or Machine if (arn := where.machine_arn(m.value))}
    with say.console.status("looking for failed executions"):
        found = _find(where, machines, statuses, since)
        failures = [f for one in found for f in one.failures]
        _check_product(where, product, failures)
        fates = replay.decide(failures, Filter(error, product), _running(where), now, force)
    started = [{"machine": s.machine, "input": s.keys} for s in replay.starts(fates)] if dry_run else _act(where, fates)
    say.result(_document(where, found, fates, started, dry_run), *_report(found, fates, started, dry_run))
    actions = {f.action for f in fates}
    if not actions & {REDRIVE, START, WITH} and actions & {BUSY, PERMANENT}:
        raise typer.Exit(int(Exit.BUSY if BUSY in actions else Exit.FAILED))


def _check_product(where: Target, product: str | None, failures: list[Failure]) -> None:
    """Refuse a filter that no stream can fit: it would say that nothing failed. Raises UnknownStream."""
    if product is None:
        return
    known = {*names.known_streams(where.deps), *(f.stream for f in failures if f.stream)}
    if not any(replay.fits(product, stream) for stream in known):
        near = [*map(names.written, known), *(s.product for s in known)]
        raise UnknownStream(f"no stream fits --product {product[:60]!r}{names.meant(product, near)}")


def _find(where: Target, machines: dict[str, str], statuses: list[str], since: datetime) -> list[Found]:
    reader = Reader(where, where.deps.objects, where.deps.ledger)
    return [reader.find(name, arn, statuses, since) for name, arn in machines.items()]


def _running(where: Target) -> list[str]:
    known = ((m.value, where.machine_arn(m.value)) for m in Machine)
    return [name for name, arn in known if arn and executions.find_running(where, arn)]


def _act(where: Target, fates: list[Fate]) -> list[dict[str, Any]]:
    """Redrive first; what Step Functions refuses is started anew, unless somebody else was quicker."""
    started: list[dict[str, Any]] = []
    for arn in dict.fromkeys(f.failure.execution.arn for f in fates if f.action == REDRIVE):
        mine = [f for f in fates if f.failure.execution.arn == arn and f.action == REDRIVE]
        refused = executions.redrive(where, arn)
        if refused is None:
            started.append({"machine": mine[0].failure.machine, "execution": arn, "redriven": True})
            continue
        now = executions.describe(where, arn)
        for fate in mine:
            if now.running or now.status == "SUCCEEDED":
                fate.action, fate.detail = RECOVERED, "somebody has redriven it meanwhile"
            else:
                fate.action, fate.detail = START, refused[:200]
    todo = replay.starts(fates)
    if not todo:
        return started
    locks.release_dead(where)
    allowed = Capacity.of(where).to_input()
    for start in todo:
        arn = executions.start(where, where.machine_arn(start.machine) or "", **{**start.keys, **allowed})
        started.append({"machine": start.machine, "execution": arn, "redriven": False, "input": start.keys})
        for fate in start.fates:
            fate.detail = f"{arn.rsplit(':', 1)[1]} ({fate.detail})"
    return started


def _document(
    where: Target, found: list[Found], fates: list[Fate], started: list[dict[str, Any]], dry_run: bool
) -> dict[str, Any]:
    return {
        "stack": where.stack,
        "dry_run": dry_run,
        "executions": sum(one.executions for one in found),
        "truncated": any(one.truncated for one in found),
        "failures": [fate.to_json() for fate in fates],
        "would_start" if dry_run else "started": started,
    }


def _report(found: list[Found], fates: list[Fate], started: list[dict[str, Any]], dry_run: bool) -> Iterator[Any]:
    open_ones = [f for f in fates if f.action not in (RECOVERED, SUPERSEDED)]
    if open_ones:
        yield _table(open_ones[:SHOWN], dry_run)
    if len(open_ones) > SHOWN:
        yield f"[dim]{len(open_ones) - SHOWN:,} more; --json lists all[/]"
    for action, words in ((RECOVERED, "were done by a later run"), (SUPERSEDED, "failed again later")):
        if number := sum(f.action == action for f in fates):
            yield f"[dim]{number:,} failures {words}[/]"
    if any(one.truncated for one in found):
        yield "[yellow]older failures were not looked at: name a shorter --since, or one --machine[/]"
    for one in started if not dry_run else ():
        verb = "redriven" if one["redriven"] else "started"
        yield f"{verb} [cyan]{one['machine']} {one['execution'].rsplit(':', 1)[1]}[/]"
    hopeless = [f.failure.permanent for f in open_ones if f.action == PERMANENT]
    for name in dict.fromkeys(p.error for p in hopeless if p):
        yield f"[bold red]{escape(name)}[/] [dim]→[/] {escape(remedy_of(name) or '')}"
    if hopeless:
        yield f"{len(hopeless):,} not started: each fails again as it is. Mend it, then run this again with --force."
    if not open_ones:
        yield "[green]nothing to replay[/]"


def _table(fates: list[Fate], dry_run: bool) -> Table:
    table = listing("what", "ended (UTC)", "chunk", "error", "what is done" if not dry_run else "what would be done")
    for fate in fates:
        failure, first = fate.failure, fate.failure.problems[0]
        chunk = f"{first.chunk.first}..{first.chunk.last}" if first.chunk else ""
        more = sum(p.chunk is not None for p in failure.problems[1:]) + failure.more_chunks
        table.add_row(
            _name(failure),
            f"{failure.stopped:%m-%d %H:%M:%S}",
            f"{chunk} and {more} more" if chunk and more else chunk,
            f"[red]{escape(first.error)}[/]",
            f"[{COLOURS[fate.action]}]{fate.action}[/] {escape(fate.detail)}".rstrip(),
        )
    return table


def _name(failure: Failure) -> str:
    if failure.stream:
        return f"{failure.machine} {failure.stream.label}"
    return f"{failure.machine} {'publishing' if failure.kind == PUBLISH else failure.kind}"
