"""What a backfill says at its end: its report, what it has left, or why it failed."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.markup import escape

from schemahub import backfill_notes
from schemahub.streams import PREFIX
from schemahub_cli import backfills, outcome
from schemahub_cli.output import Exit, Say, clock
from schemahub_cli.target import Target
from schemahub_cli.watch import Progress


def document_of(where: Target, progress: Progress) -> dict[str, Any]:
    """For machines; the report only of a run that has ended."""
    body = where.deps.objects.get(f"{PREFIX}plans/{progress.execution.name}/backfill/report.json")
    return {
        "stack": where.stack,
        "run": progress.execution.name,
        "execution": progress.execution.to_json(),
        "progress": progress.to_json(),
        "report": json.loads(body) if body and not progress.execution.running else None,
    }


def _said(where: Target, document: dict[str, Any]) -> str:
    """How a run ended: as it was told to, or without having heard of it in time."""
    status = str((document["report"] or {}).get("status", "done"))
    wish = backfill_notes.wanted(where.deps, document["run"])
    if status == "done" and wish != "run":
        return f"done: {wish} came too late, everything was there already"
    return status if status in ("paused", "cancelled") else "done"


def left_lines(where: Target, document: dict[str, Any]) -> list[str]:
    """What a run that came to a halt has left, and how to go on with it."""
    report = document["report"] or {}
    if report.get("status") not in ("paused", "cancelled"):
        return []
    lines = backfills.missing_lines(report)
    again = f"go on with [cyan]schemahub backfill resume {document['run']}{outcome.on(where)}[/]"
    return [*map(escape, lines), again] if lines else ["nothing of what it wanted is missing"]


def report_lines(document: dict[str, Any]) -> list[Any]:
    """The report for people; nothing while there is none."""
    report = document["report"]
    if report is None:
        return []
    return [backfills.report_table(report), *backfills.files_lines(report), f"[dim]{report['notes']}[/]"]


def finish(say: Say, where: Target, machine: str, progress: Progress) -> None:
    """The result of a backfill that has ended, and its exit code; ``machine`` is the ARN of its state machine."""
    execution, document = progress.execution, document_of(where, progress)
    if execution.status != "SUCCEEDED":
        left = outcome.undone(where, "backfill", machine, execution)
        failed = {"failed": left.to_json(), "exit_code": int(Exit.FAILED)}
        say.result({**document, **failed}, *report_lines(document), *left.lines(f"schemahub replay{outcome.on(where)}"))
        if say.as_json:
            raise typer.Exit(int(Exit.FAILED))
        raise outcome.failed(execution, left)
    outcomes = {s.outcome for s in progress.streams}
    busy = outcomes == {"busy"}
    say.result(
        document,
        *report_lines(document),
        *left_lines(where, document),
        "[yellow]skipped: other backfills are busy with every stream[/]" if busy
        else f"[green]{_said(where, document)}[/] in {clock(execution.seconds())}",
    )  # fmt: skip
    if busy:
        raise typer.Exit(int(Exit.BUSY))
