"""``schemahub verify``: the proof of a user's own data, from raw objects to rows, and a certificate of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from schemahub.errors import BadCertificate, BadProductId, UnknownStream
from schemahub.streams import Stream
from schemahub_cli import names, target
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, clock, command, listing
from schemahub_cli.positions import extent, place

if TYPE_CHECKING:
    from schemahub.audit import Verdict
    from schemahub.certificate import Certificate, Document
    from schemahub.lake import Lake

PULL = "Pull something first: `schemahub run`. `schemahub status` lists the streams that there are."
SHOWN = 20
"""Findings of one kind and stream that are printed for people; --json has all."""


@command
def verify(
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            "-s",
            help="Only this stream (coinbase:BTC-USD); may be repeated. Default: all.",
            autocompletion=names.complete_stream,
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every raw object and compare its trades with the table's rows.")
    ] = False,
    certificate_dir: Annotated[
        Path | None,
        typer.Option(
            "--certificate-dir",
            file_okay=False,
            help="Also write the certificates here; with --offline: read them from here instead of from the lake.",
        ),
    ] = None,
    offline: Annotated[
        str | None,
        typer.Option(
            "--offline",
            metavar="FOLDER-OR-BUCKET",
            help="Check the certificates again with the lake alone: a bucket, or a copy of it in a folder.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify, but issue no certificates.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that each trade is in the table exactly once, from the ledger and the raw objects to the rows.

    Checks that segments tile the watermark, that the mirror says the same, that raw objects are what was committed, and
    that the table holds each id once or knows it as absent. Streams in which nothing is found get a certificate in the
    lake, which --offline checks again without any state table.

      schemahub verify
      schemahub verify --deep --stream coinbase:BTC-USD --certificate-dir certificates
      aws s3 sync s3://BUCKET/schemahub copy/schemahub && schemahub verify --offline copy
    """
    say, began = Say(as_json), time.monotonic()
    streams = names.parse(stream)
    with _progress(say) as watch:
        if offline is not None:
            place, verdicts = offline, list(_recheck(offline, streams, certificate_dir, deep, watch))
        else:
            where = target.resolve(stack)
            place, verdicts = where.where, list(_audit(where, streams, deep, dry_run, certificate_dir, watch))
    found = [finding for verdict in verdicts for finding in verdict.findings]
    if not found and not any(verdict.stream for verdict in verdicts):
        # Nothing was proved, and that is no proof.
        raise UnknownStream(f"nothing of {place} is committed or published yet", remedy=PULL)
    say.result(
        {
            "place": place,
            "offline": offline is not None,
            "deep": deep,
            "whole": not found,
            "seconds": round(time.monotonic() - began, 1),
            "streams": [v.to_json() for v in verdicts if v.stream],
            "table_findings": [f.to_json() for v in verdicts if not v.stream for f in v.findings],
        },
        f"[bold]{escape(place)}[/] · {'deep' if deep else 'aggregate'} checks"
        + (" · offline, by certificate" if offline else ""),
        _table(verdicts),
        *_words(verdicts),
        _conclusion(verdicts, dry_run or offline is not None, time.monotonic() - began),
    )
    if found:
        raise typer.Exit(Exit.FAILED)


Watch = Callable[[str, int], Callable[[int], None]]


@contextmanager
def _progress(say: Say) -> Iterator[Watch]:
    """A bar for each thing that takes time; nothing where nobody looks."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=say.console, transient=True, disable=not say.console.is_terminal,
    )  # fmt: skip

    def begin(stage: str, steps: int) -> Callable[[int], None]:
        for task in list(bar.tasks):
            if task.finished:
                bar.remove_task(task.id)
        task_id = bar.add_task(stage, total=steps)
        return lambda done: bar.advance(task_id, done)

    with bar:
        yield begin


def _audit(
    where: target.Target, streams: Sequence[Stream], deep: bool, dry_run: bool, folder: Path | None, watch: Watch
) -> Iterator[Verdict]:
    from schemahub import certificate
    from schemahub.audit import audit
    from schemahub.certificate import SignOff
    from schemahub.lake import lake_of

    sign_off = None
    if streams:
        # The ledger is asked first: only a stream that it does not know is worth a look at the table.
        try:
            streams = names.committed(where.deps, streams)
        except UnknownStream:
            streams = names.committed(where.deps, streams, {s.trades for s in lake_of(where.deps).published})
    if not dry_run:
        caller = where.client("sts").get_caller_identity()["Arn"]
        sign_off = SignOff(caller, time.time_ns() // 1_000_000, _program(), deep)
    for verdict in audit(where.deps, lambda: lake_of(where.deps), streams, deep=deep, sign_off=sign_off, watch=watch):
        if verdict.document:
            if not certificate.store(where.deps.objects, verdict.document):
                raise BadCertificate(
                    "another verification issued a certificate of this stream meanwhile",
                    stream=verdict.stream,
                    remedy="Verify again.",
                )
            if folder:
                _write(folder, verdict.document)
        yield verdict


def _program() -> str:
    try:
        return f"schemahub {version('schemahub')}"
    except PackageNotFoundError:
        return "schemahub, not installed"


def _write(folder: Path, document: Document) -> None:
    from schemahub import certificate

    stream = Stream.from_json(document["stream"])
    path = folder / stream.exchange / stream.product / certificate.name_of(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(certificate.text_of(document), encoding="utf-8")


def _recheck(place: str, streams: Sequence[Stream], folder: Path | None, deep: bool, watch: Watch) -> Iterator[Verdict]:
    import boto3

    from schemahub.audit import recheck
    from schemahub.lake import lake_at

    lake = lake_at(place, boto3.Session())
    chains = _read(folder) if folder else _chains(lake)
    if missing := [s for s in streams if s not in chains]:
        raise BadCertificate(
            "there is no certificate of this stream"
            + names.meant(names.written(missing[0]), map(names.written, chains)),
            stream=missing[0],
            remedy="Issue one with `schemahub verify`.",
        )
    if not chains:
        raise BadCertificate(
            f"there are no certificates in {folder or place}", remedy="Issue them: `schemahub verify`."
        )
    for stream in sorted(streams or chains):
        yield recheck(lake, chains[stream], deep=deep, watch=watch)


def _chains(lake: Lake) -> dict[Stream, list[Certificate]]:
    from schemahub import certificate

    return {s: certificate.chain_of(lake.objects, s) for s in certificate.streams_with(lake.objects)}


def _read(folder: Path) -> dict[Stream, list[Certificate]]:
    """Certificates below a folder, by stream and number."""
    from schemahub import certificate

    chains: dict[Stream, list[Certificate]] = {}
    for path in sorted(folder.rglob("*.json")):
        found = certificate.parse(path.read_bytes(), str(path))
        chains.setdefault(found.stream, []).append(found)
    return {stream: sorted(chain, key=lambda c: int(c.document["number"])) for stream, chain in chains.items()}


# --- for people -------------------------------------------------------------------------------------------------


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = listing("stream", "range", numbers=("trades", "rows", "absent", "quarantined", "pending"))
    table.add_column("")
    table.add_column("certificate")
    for v in verdicts:
        if v.stream is None:
            continue
        mark = f"[red]{len(v.findings)} findings[/]" if v.findings else "[green]whole[/]"
        unproved = f" [yellow]({extent(v.stream, v.unproved)} open)[/]" if v.unproved else ""
        absent = ("0" if v.absent == 0 else extent(v.stream, v.absent)) + unproved
        table.add_row(
            v.stream.label,
            _span(str(v.stream), v.range) if v.range else "—",
            f"{v.trades:,}", f"{v.rows:,}", absent, f"{v.quarantined:,}",
            f"[yellow]{v.pending:,}[/]" if v.pending else "0",
            mark,
            v.document["sha256"][:16] if v.document else "",
        )  # fmt: skip
    return table


def _words(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Each finding with its range, and the remedy once for each kind."""
    from schemahub.verify import REMEDIES, first_of

    shown = first_of((f for v in verdicts for f in v.findings), SHOWN)
    for finding in shown:
        span = f" [{_span(finding.stream, finding.span)}]" if finding.span else ""
        where = f"{finding.stream}: " if finding.stream else ""
        yield f"[bold red]{finding.kind}[/]  {escape(where + finding.message + span)}"
    for kind in dict.fromkeys(f.kind for f in shown):
        yield f"[dim]→ {kind}:[/] {escape(REMEDIES[kind])}"


def _span(stream: str, span: tuple[int, int]) -> str:
    try:
        known = Stream.parse(stream)
    except BadProductId:
        return f"{span[0]}..{span[1]}"
    return f"{place(known, span[0])}..{place(known, span[1])}"


def _conclusion(verdicts: Sequence[Verdict], unsigned: bool, seconds: float) -> str:
    whole = [v for v in verdicts if v.stream and not v.findings]
    found = sum(len(v.findings) for v in verdicts)
    if found:
        return f"[bold red]{found} findings[/] in {clock(seconds)}; streams with findings get no certificate"
    issued = "" if unsigned else " · certificates are in the lake: keep their hashes elsewhere too"
    rows = sum(v.rows for v in whole)
    return f"[bold green]whole[/]: {len(whole)} streams, {rows:,} rows, each id once, in {clock(seconds)}{issued}"
