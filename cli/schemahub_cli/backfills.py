"""What a backfill will do before it does it, and what it did afterwards: tables and sums for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from schemahub import anchor, backfill, coverage, events
from schemahub.archive_plan import archive_files
from schemahub.archives import ArchiveFile
from schemahub.backfill_plan import Estimate, Wanted
from schemahub.deps import Deps
from schemahub.errors import BadConfig, SchemaHubError
from schemahub.mappings import load_mapping
from schemahub.streams import Interval, Stream
from schemahub_cli.output import clock, dollars, listing
from schemahub_cli.positions import by_time, extent, place

ACTUAL = (("chunks", "chunks"), ("trades", "trades"), ("requests", "requests"), ("storage_bytes", "bytes"))
"""What is planned, and by which name the report says what came of it."""
RANGES_SHOWN = 3
FILES_SHOWN = 12
"""Files of a stream that people see; machines get all of them."""
COLOURS = {"failed": "red", "busy": "yellow", "paused": "yellow", "cancelled": "yellow"}


@dataclass(frozen=True)
class Foreseen:
    """One stream's part of a backfill. ``within`` is None where nothing of what is wanted lies below the watermark."""

    stream: Stream
    within: Interval | None = None
    missing: int = 0
    """Ranges of it that nobody has fetched yet."""
    files: tuple[tuple[ArchiveFile, Interval], ...] = ()
    """Files of the exchange's archive that are taken first, each with the positions that it may fill."""
    estimate: Estimate | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "stream": self.stream.to_json(),
            "within": list(self.within) if self.within else None,
            "missing_ranges": self.missing,
            "archive_files": len(self.files),
            "files": [
                {"name": f.name, "kind": f.kind, "begin": f.begin.isoformat(), "first": p.first, "last": p.last}
                for f, p in self.files
            ],
            "estimate": self.estimate.to_json() if self.estimate else None,
            "error": self.error,
        }


def foresee(
    deps: Deps,
    streams: Iterable[Stream],
    request: events.BackfillInput,
    seen: Callable[[Stream], None] = lambda stream: None,
) -> list[Foreseen]:
    """Plan every stream as the run would: asks the exchanges within their limits, writes nothing.

    Raises:
        BadConfig: tasks are asked for and the deployment has no network for them.
    """
    if request.route == "ecs" and not deps.settings.backfill_ecs:
        raise BadConfig("a backfill by ECS is asked for, and there is no network for its tasks",
                        remedy="Set the parameter BackfillSubnets, or leave the route to the plan.")  # fmt: skip
    found = []
    for stream in streams:
        seen(stream)
        try:
            found.append(_of_stream(deps, stream, request))
        except SchemaHubError as error:
            # One stream that cannot be planned must not hide the plan of all others.
            found.append(Foreseen(stream, error=f"{type(error).__name__}: {error}"))
    return found


def _of_stream(deps: Deps, stream: Stream, request: events.BackfillInput) -> Foreseen:
    mark = deps.ledger.watermark(stream)
    # The run would commit the newest trades of a stream that nobody has pulled yet, and go on below them.
    low = mark.low if mark else anchor.foreseen(deps, stream, files=backfill.takes_files(deps, request)).first
    within = backfill.resolve(deps, stream, Wanted.parse(request.range), low)
    parts = [] if not within else coverage.missing(deps.ledger, stream, within) if mark else [within]
    if not within or not parts:
        return Foreseen(stream, within)
    _, files, guess = backfill.foresee(deps, stream, request, parts, archive_files)
    mapping = load_mapping(stream.exchange)
    named = tuple((ArchiveFile.from_json(file, mapping), part) for file, part in files)
    return Foreseen(stream, within, len(parts), named, guess)


def sums(plans: Iterable[Foreseen]) -> dict[str, Any]:
    """All streams together. Exchanges work side by side, so the slowest decides about the time."""
    guesses = [(p.stream.exchange, p.estimate) for p in plans if p.estimate]
    by_exchange: dict[str, float] = {}
    for exchange, guess in guesses:
        by_exchange[exchange] = by_exchange.get(exchange, 0.0) + guess.seconds
    names = ("chunks", "trades", "requests", "lambda_seconds", "ecs_seconds", "storage_bytes", "usd")
    total = {name: sum(getattr(guess, name) for _, guess in guesses) for name in names}
    return {**total, "seconds": max(by_exchange.values(), default=0.0)}


def plan_table(plans: list[Foreseen]) -> Table:
    """A plan for people."""
    total = sums(plans)
    shown = listing("stream", numbers=("from", "to"), show_footer=True)
    shown.columns[0].footer = f"{len(plans)} streams"
    for name, footer in (
        ("chunks", f"{total['chunks']:,}"), ("requests", f"{total['requests']:,}"), ("trades", f"{total['trades']:,}"),
        ("at the limit", clock(total["seconds"])), ("by", ""), ("storage", size(total["storage_bytes"])),
        ("AWS", dollars(total["usd"])),
    ):  # fmt: skip
        shown.add_column(name, footer, justify="right", no_wrap=True)
    for p in plans:
        shown.add_row(p.stream.label, *_cells(p))
    return shown


def _cells(p: Foreseen) -> list[str]:
    if p.error:
        return ["[red]error[/]", f"[red]{p.error.split(':')[0]}[/]", *[""] * 7]
    span = [place(p.stream, p.within.first), place(p.stream, p.within.last)] if p.within else ["—", "—"]
    guess = p.estimate
    if guess is None:
        return [*span, "[green]nothing missing[/]", *[""] * 6]
    way = "Lambda" if guess.route == "lambda" else f"ECS × {guess.tasks}"
    return [
        *span,
        f"{len(p.files):,} files" if p.files else f"{guess.chunks:,}",
        f"{guess.requests:,}",
        f"{guess.trades:,}",
        clock(guess.seconds),
        way,
        size(guess.storage_bytes),
        dollars(guess.usd),
    ]


def files_table(plans: list[Foreseen]) -> Table | None:
    """The first files of each stream's plan; None where nothing is taken from an archive."""
    if not any(p.files for p in plans):
        return None
    shown = listing("stream", "file", numbers=("from", "to", "ids"), title="files of archives, taken first")
    for p in plans:
        for file, part in p.files[:FILES_SHOWN]:
            ends = (place(p.stream, part.first), place(p.stream, part.last))
            shown.add_row(p.stream.label, file.name, *ends, f"{part.size:,}")
        if len(p.files) > FILES_SHOWN:
            shown.add_row("", f"[dim]and {len(p.files) - FILES_SHOWN:,} more (--json has them all)[/]", "", "", "")
    return shown


def split_line(plans: list[Foreseen]) -> str:
    """How the work is divided between functions and tasks, in one line."""
    total = sums(plans)
    ways = {p.estimate.route for p in plans if p.estimate}
    parts = [f"Lambda {clock(total['lambda_seconds'])} of functions"] if "lambda" in ways else []
    parts += [f"ECS {clock(total['ecs_seconds'])} of tasks"] if "ecs" in ways else []
    return (
        f"{' · '.join(parts) or 'nothing to do'} · {size(total['storage_bytes'])} more storage · about "
        f"{dollars(total['usd'])} [dim](us-east-1 list prices, no free tier, on-demand tasks)[/]"
    )


def report_table(report: dict[str, Any]) -> Table:
    """Planned against actual, stream by stream; ``report`` as ``CloseBackfill`` wrote it."""
    table = listing("stream", "outcome", title="planned → actual")
    for name, _ in ACTUAL:
        table.add_column(name.removesuffix("_bytes"), justify="right", no_wrap=True)
    table.add_column("still missing", justify="right", no_wrap=True)
    for one in report["streams"]:
        planned, actual = one["planned"] or {}, one["actual"]
        missing = f"{actual['missing_ranges']:,} ranges" if actual["missing_ranges"] else "nothing"
        cells = [_against(name, planned.get(name), actual.get(came)) for name, came in ACTUAL]
        colour = COLOURS.get(one["outcome"], "green")
        stream = Stream.from_json(one["stream"])
        table.add_row(stream.label, f"[{colour}]{one['outcome']}[/]", *cells, missing)
    return table


def missing_lines(report: dict[str, Any]) -> list[str]:
    """What a backfill has left of each stream: how much, and its lowest ranges; nothing where all is there."""
    lines = []
    for one in report["streams"]:
        actual, stream = one["actual"], Stream.from_json(one["stream"])
        if not actual["missing_ranges"]:
            continue
        unit = "" if by_time(stream) else " ids"
        ends = [f"{place(stream, first)}..{place(stream, last)}" for first, last in actual["missing"][:RANGES_SHOWN]]
        more = actual["missing_ranges"] - len(ends)
        lines.append(
            f"{stream.label}: {extent(stream, actual['missing_positions'])}{unit} are missing in "
            f"{actual['missing_ranges']:,} ranges: {', '.join(ends)}" + (f" and {more:,} more" if more else "")
        )
    return lines


def files_lines(report: dict[str, Any]) -> list[str]:
    """The archive's files that a run took or refused, and what was wrong with them; nothing where there were none."""
    files = [file for one in report["streams"] for file in one.get("files", ())]
    if not files:
        return []
    ways = Counter(file["status"] for file in files)
    rows = sum(file.get("committed_rows", 0) for file in files)
    wrong = ", ".join(f"{kind} {count:,}" for kind, count in sorted(report["pathologies"].items()))
    return [
        f"files of the archive: {', '.join(f'{count} {way}' for way, count in sorted(ways.items()))}; {rows:,} rows",
        f"wrong with them: {wrong or 'nothing'}",
    ]


def _against(name: str, planned: float | None, actual: float | None) -> str:
    words = size if name == "storage_bytes" else lambda value: f"{value:,}"
    return f"{'—' if planned is None else words(planned)} → {'—' if actual is None else words(actual)}"


def size(amount: float) -> str:
    """Bytes as people read them: ``812 B``, ``3.4 MB``, ``1.2 TB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"
