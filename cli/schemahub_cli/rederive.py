"""What ``schemahub transform --rederive`` is told and what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from schemahub.streams import MAX_POSITION
from schemahub_cli.output import listing
from schemahub_cli.positions import place

if TYPE_CHECKING:
    from schemahub.rederive import StreamPlan


def request(streams: Sequence[str] | None, since: str | None) -> dict[str, Any]:
    """The ``rederive`` of the state machine's input: digits are a position, anything else is a moment.

    Raises:
        typer.BadParameter: no stream is named, or ``since`` is neither.
    """
    if not streams:
        raise typer.BadParameter("--rederive needs at least one --stream EXCHANGE:PRODUCT")
    wanted: dict[str, Any] = {"streams": list(streams)}
    if since is None:
        return wanted
    if since.isascii() and since.isdigit():
        if int(since) > MAX_POSITION:
            raise typer.BadParameter(f"--since {since[:40]} is larger than any id")
        return {**wanted, "since": int(since)}
    try:
        datetime.fromisoformat(since)
    except ValueError as error:
        raise typer.BadParameter(f"--since {since[:40]!r} is neither an id nor an ISO date or time") from error
    return {**wanted, "since": since}


def table(plans: Sequence[StreamPlan]) -> Table:
    """What would be made anew; it begins at a data file's beginning, which may be before what was asked for."""
    shown = listing("stream", title="would be made anew", numbers=("from", "to", "segments", "rows now", "files"))
    for p in plans:
        span = (place(p.stream, position) for position in (p.first, p.segments[-1].last))
        numbers = (f"{value:,}" for value in (len(p.segments), p.rows, p.files))
        shown.add_row(p.stream.label, *span, *numbers)
    return shown


def outcome(output: dict[str, Any]) -> str:
    """One line of what a transform published or replaced; empty when it had nothing to do."""
    if "rows" not in output:
        return "nothing to do"
    rows = f"{output['rows']:,} rows in {output['files']:,} files"
    if "rows_before" in output:
        rows += f" instead of {output['rows_before']:,} in {output['files_before']:,}"
    parts = [rows, f"snapshot {output['snapshot_id']}"]
    if output.get("previous_snapshot_id"):
        parts[-1] += f", before it {output['previous_snapshot_id']}"
    for name, text in (
        ("quarantined", "rows in quarantine"),
        ("inexact", "values that a double does not carry exactly"),
        ("unfit", "values that DECIMAL(38,18) cannot hold"),
    ):
        if output.get(name):
            parts.append(f"[yellow]{output[name]:,} {text}[/]")
    return " · ".join(parts)
