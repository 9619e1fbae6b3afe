"""``schemahub status``: where every stream stands, who holds which lock, how the exchanges are."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from schemahub_cli import executions, state, target
from schemahub_cli.output import JsonOption, Say, StackOption, clock, command, listing
from schemahub_cli.positions import extent, place


@command
def status(
    heads: Annotated[
        bool,
        typer.Option(
            "--heads",
            help="Ask the exchanges for their newest ids (one paced request a "
            "stream) and show how far behind each stream is.",
        ),
    ] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watermarks, what waits to be published, locks, token buckets, breakers, running executions.

    schemahub status
    schemahub status --heads --stack schemahub-prod --json
    """
    say, where = Say(as_json), target.resolve(stack)
    now_ms = time.time_ns() // 1_000_000
    with say.console.status("reading the state tables"):
        streams = state.streams(where.deps, heads)
        exchanges = state.exchanges(where.deps, [s.stream for s in streams])
        running = {
            name: executions.find_running(where, arn)
            for name, arn in (("ingest", where.ingest_arn), ("transform", where.transform_arn))
        }
    names = [f"{name} {arn.rsplit(':', 1)[1]}" for name, arn in running.items() if arn]
    say.result(
        {
            "stack": where.stack,
            "running": running,
            "streams": [s.to_json() for s in streams],
            "exchanges": [e.to_json() for e in exchanges],
        },
        f"[bold]{where.where}[/] · " + (f"running: {', '.join(names)}" if names else "nothing is running"),
        _streams(streams, now_ms),
        _exchanges(exchanges),
    )


def _streams(streams: list[state.StreamState], now_ms: int) -> Table:
    table = listing("stream", title="streams", numbers=("low", "high", "moved ago", "behind", "pending"))
    table.add_column("lock")
    for s in streams:
        if s.error:
            table.add_row(s.stream.label, f"[red]{s.error}[/]", *[""] * 5)
            continue
        ago = clock((now_ms - s.updated_at) / 1000) if s.updated_at else "never"
        behind = "" if s.lag is None else ("[green]0[/]" if s.lag == 0 else extent(s.stream, s.lag))
        table.add_row(
            s.stream.label,
            _low(s),
            "—" if s.high is None else place(s.stream, s.high),
            ago,
            behind,
            f"[yellow]{s.pending:,}[/]" if s.pending else "0",
            _owner(s.lock) + (f"\nbackfill {_owner(s.backfill)}" if s.backfill else ""),
        )
    return table


def _low(s: state.StreamState) -> str:
    """Where the stream begins without a hole, and where a backfill's first island begins, if that is further down."""
    if s.low is None:
        return "—"
    if s.lowest is None or s.lowest >= s.low:
        return place(s.stream, s.low)
    return f"{place(s.stream, s.low)}\n[dim]islands from {place(s.stream, s.lowest)}[/]"


def _exchanges(exchanges: list[state.ExchangeState]) -> Table:
    table = listing("exchange", "next slot", "breaker", "run lock", title="exchanges")
    for e in exchanges:
        colour = "green" if e.breaker == "closed" else "red"
        table.add_row(
            e.exchange,
            "now" if e.wait_s < 0.05 else f"in {e.wait_s:.1f} s",
            f"[{colour}]{e.breaker}[/]",
            _owner(e.lock),
        )
    return table


def _owner(arn: str | None) -> str:
    return arn.rsplit(":", 1)[-1] if arn else "free"
