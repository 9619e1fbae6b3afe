"""``schemahub status``: how far the data of every stream goes, what waits, what runs now and next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from schemahub_cli import executions, names, schedules, state, target
from schemahub_cli.output import JsonOption, Say, StackOption, clock, command, listing
from schemahub_cli.positions import extent, place

if TYPE_CHECKING:
    from schemahub_cli.schedules import Schedule


@command
def status(
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            "-s",
            metavar="EXCHANGE:PRODUCT",
            help="Only this stream; may be repeated. Default: the seed list, and what waits to be published.",
            autocompletion=names.complete_stream,
        ),
    ] = None,
    heads: Annotated[
        bool,
        typer.Option(
            "--heads",
            help="Ask the exchanges for their newest ids (one paced request a "
            "stream) and show how far behind each stream is.",
        ),
    ] = False,
    positions: Annotated[
        bool,
        typer.Option("--positions", help="Show the watermark of each stream instead: its first and last position."),
    ] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Until when there is data of each stream, rows, what waits to be published, locks, breakers, the next run.

    schemahub status
    schemahub status -s coinbase:BTC-USD --positions
    schemahub status --heads --stack schemahub-prod --json
    """
    say, named = Say(as_json), names.parse(stream)
    where = target.resolve(stack)
    now = datetime.now(UTC)
    with say.console.status("reading the state tables"):
        streams = state.streams(where.deps, heads, names.committed(where.deps, named))
        exchanges = state.exchanges(where.deps, [s.stream for s in streams])
        running = {
            name: executions.find_running(where, arn)
            for name, arn in (("ingest", where.ingest_arn), ("transform", where.transform_arn))
        }
        scheduled = _scheduled(where)
    ongoing = [f"{name} {arn.rsplit(':', 1)[1]}" for name, arn in running.items() if arn]
    say.result(
        {
            "stack": where.stack,
            "running": running,
            "schedule": _schedule_document(scheduled, now),
            "streams": [s.to_json() for s in streams],
            "exchanges": [e.to_json() for e in exchanges],
        },
        f"[bold]{escape(where.where)}[/] · " + (f"running: {', '.join(ongoing)}" if ongoing else "nothing is running"),
        next_line(scheduled, now),
        _streams(streams, now.timestamp() * 1000, heads, positions)
        if streams
        else "no stream yet: `schemahub update-seed` chooses some, `schemahub run` pulls them",
        *_notes(streams),
        *([_exchanges(exchanges)] if exchanges else []),
    )


# --- the next run ---------------------------------------------------------------------------------------------------


def _scheduled(where: target.Target) -> Schedule | str | None:
    """The schedule of the ingest; None where there is none, and why where it may not be read."""
    from botocore.exceptions import ClientError

    try:
        return schedules.schedule_of(where, where.ingest_arn)
    except ClientError as error:
        return f"{error.response['Error'].get('Code', 'ClientError')} of EventBridge Scheduler"


def next_line(scheduled: Schedule | str | None, now: datetime) -> str:
    """The next scheduled run in one line."""
    if isinstance(scheduled, str):
        return f"next scheduled run: [yellow]not known[/] ({escape(scheduled)})"
    if scheduled is None or not scheduled.enabled:
        why = "this stack has no schedule" if scheduled is None else f"{scheduled.expression} is disabled"
        return f"next scheduled run: none, {escape(why)}"
    at = _next(scheduled, now)
    if at is None:
        return f"next scheduled run: none, {escape(scheduled.expression)} does not come again"
    left = clock((at - now).total_seconds())
    return f"next scheduled run: {at:%Y-%m-%d %H:%M} UTC, in {left} ({escape(scheduled.expression)})"


def _next(scheduled: Schedule, now: datetime) -> datetime | None:
    try:
        return scheduled.next_run(now)
    except ValueError:
        return None


def _schedule_document(scheduled: Schedule | str | None, now: datetime) -> dict[str, Any] | None:
    if scheduled is None:
        return None
    if isinstance(scheduled, str):
        return {"error": scheduled}
    at = _next(scheduled, now)
    return {
        "expression": scheduled.expression,
        "enabled": scheduled.enabled,
        "next_run": at.isoformat() if at else None,
    }


# --- tables ---------------------------------------------------------------------------------------------------------


def _streams(streams: Sequence[state.StreamState], now_ms: float, heads: bool, positions: bool) -> Table:
    """Fits a terminal of 80 columns; what is long is said in ``_notes``."""
    table = listing(title="streams")
    table.add_column("stream", overflow="fold")
    last = "behind" if heads else "moved ago"
    for name in ("low", "high", last) if positions else ("data until (UTC)", "rows", "pending", last):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("lock")
    for s in streams:
        if s.error:
            table.add_row(s.stream.label, "[red]error[/]")
            continue
        moved = clock((now_ms - s.updated_at) / 1000) if s.updated_at else "never"
        behind = "" if s.lag is None else ("[green]0[/]" if s.lag == 0 else extent(s.stream, s.lag))
        data = (
            ("—" if s.low is None else place(s.stream, s.low), "—" if s.high is None else place(s.stream, s.high))
            if positions
            else (until(s.until_us), f"{s.trades.published:,}", _waiting(s))
        )
        table.add_row(s.stream.label, *data, behind if heads else moved, "[yellow]held[/]" if s.lock else "free")
    return table


def until(us: int | None) -> str:
    """A moment (microseconds since the epoch) to the second; nothing is rounded up to what is not there."""
    return "—" if us is None else f"{datetime.fromtimestamp(us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def _waiting(s: state.StreamState) -> str:
    return f"[yellow]{s.trades.pending:,}[/]" if s.trades.pending else "0"


def _notes(streams: Sequence[state.StreamState]) -> Iterator[str]:
    """What no column has room for: errors, islands, and who holds which locks."""
    for s in streams:
        if s.error:
            yield f"[red]{s.stream.label}[/]  {escape(s.error)}"
        if s.low is not None and s.lowest is not None and s.lowest < s.low:
            begin, low = place(s.stream, s.lowest), place(s.stream, s.low)
            yield f"[dim]{s.stream.label}: islands from {begin}, whole from {low}[/]"
    holders: dict[str, list[str]] = {}
    for s in streams:
        for words, arn in (("held by", s.lock), ("backfill by", s.backfill)):
            if arn:
                holders.setdefault(f"{words} {arn.rsplit(':', 1)[-1]}", []).append(s.stream.label)
    for words, held in holders.items():
        yield f"[dim]{escape(words)}: {', '.join(held)}[/]"


def _exchanges(exchanges: Sequence[state.ExchangeState]) -> Table:
    table = listing("exchange", "next slot", "breaker", title="exchanges")
    table.add_column("run lock", overflow="fold")
    for e in exchanges:
        colour = "green" if e.breaker == "closed" else "red"
        table.add_row(
            e.exchange,
            "now" if e.wait_s < 0.05 else f"in {e.wait_s:.1f} s",
            f"[{colour}]{e.breaker}[/]",
            e.lock.rsplit(":", 1)[-1] if e.lock else "free",
        )
    return table
