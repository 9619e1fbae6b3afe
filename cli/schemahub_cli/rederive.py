"""What ``schemahub transform --rederive`` is told and what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from schemahub.streams import Stream
from schemahub_cli import names, times
from schemahub_cli.output import listing
from schemahub_cli.positions import place

if TYPE_CHECKING:
    from schemahub.rederive import StreamPlan


def request(streams: Sequence[Stream], since: int | datetime | None) -> dict[str, Any]:
    """The ``rederive`` of the state machine's input, from a position or a moment on.

    Raises:
        typer.BadParameter: no stream is named.
    """
    if not streams:
        raise typer.BadParameter("--rederive needs at least one --stream EXCHANGE:PRODUCT")
    wanted: dict[str, Any] = {"streams": [names.written(stream) for stream in streams]}
    if since is None:
        return wanted
    return {**wanted, "since": since if isinstance(since, int) else times.written(since)}


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
