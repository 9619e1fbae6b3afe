"""``schemahub backfill corrections``: what files that exchanges issued again have changed, or will."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

from schemahub import corrections as documents
from schemahub import maintain_archives, reissues
from schemahub.corrections import SETTLED, Correction
from schemahub.errors import SchemaHubError
from schemahub.mappings import load_mapping
from schemahub.streams import Stream
from schemahub_cli import names, target
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, command, listing
from schemahub_cli.positions import place

COLOURS = {"due": "yellow", "prepared": "yellow", "committed": "yellow", "published": "green", "void": "dim"}


@dataclass
class Corrected:
    """The corrections of one stream, and with ``--check`` the files whose checksum is another one now."""

    stream: Stream
    corrections: list[Correction]
    issued_again: list[str] | None = None
    error: SchemaHubError | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "stream": self.stream.to_json(),
            "corrections": [{"key": c.key, **c.document} for c in self.corrections],
            "issued_again": self.issued_again,
            "error": {"error": type(self.error).__name__, "message": self.error.reason} if self.error else None,
        }


@command
def corrections(
    stream: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXCHANGE:PRODUCT]...",
            help="Only these streams. Default: all with an archive.",
            autocompletion=names.complete_stream,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Ask for every published checksum which files were issued again; change nothing."),
    ] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Files of archives that were issued again: how far their corrections are, and which trades differ.

    The state machine `maintain` finds and takes them by itself. Exit code 1 where --check cannot ask an archive.

      schemahub backfill corrections
      schemahub backfill corrections binance:BTC-USDT --check --json
    """
    named = names.parse(stream)
    for name in named:
        load_mapping(name.exchange)
    say, where = Say(as_json), target.resolve(stack)
    streams = names.committed(where.deps, named) or maintain_archives.archived_streams(where.deps)
    found = [Corrected(one, documents.corrections(where.deps.objects, one)) for one in streams]
    if check:
        with say.console.status("asking for published checksums") as shown:
            for one in found:
                shown.update(f"asking for the checksums of {one.stream.label}")
                _check(where.deps, one)
    say.result({"stack": where.stack, "streams": [one.to_json() for one in found]}, *_shown(found, check))
    if any(one.error for one in found):
        raise typer.Exit(int(Exit.FAILED))


def _check(deps: Any, one: Corrected) -> None:
    try:
        one.issued_again = [file.name for file in reissues.look_for_reissues(deps, one.stream)]
    except SchemaHubError as error:
        one.error = error


def _shown(found: list[Corrected], check: bool) -> list[Any]:
    """What people see: a line for each correction, and what a check found."""
    table: Table = listing("stream", "file", "state", numbers=("from", "to", "trades"))
    for one in found:
        for c in one.corrections:
            ids = sum(s["ids"] for s in c.document["segments"])
            ends = [place(one.stream, edge) for edge in c.span] if c.span else ["—", "—"]
            state = f"[{COLOURS[c.state]}]{c.state}[/]"
            table.add_row(one.stream.label, c.file, state, *ends, f"{ids:,}")
    listed = [c for one in found for c in one.corrections]
    left = sum(c.state not in SETTLED for c in listed)
    lines: list[Any] = [table] if listed else []
    lines.append(f"{len(listed):,} corrections, {left:,} of them not in the table yet" if listed else "no corrections")
    for one in found:
        if one.error:
            lines.append(f"[red]{one.stream}[/]  {type(one.error).__name__}: {one.error.reason}")
        elif check:
            names = ", ".join(one.issued_again or ()) or "nothing"
            lines.append(f"{one.stream.label}: issued again and not taken: {names}")
    return lines
