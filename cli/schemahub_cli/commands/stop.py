"""``schemahub stop``: end the ingest that runs, and say what is left of it."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from schemahub_cli import executions, locks, target
from schemahub_cli.executions import Execution
from schemahub_cli.output import JsonOption, Say, StackOption, clock, command
from schemahub_cli.target import Target

STOP_S = 60.0
"""Longest wait for the execution to end, and for the rule on failed executions to release its locks."""
LEASE_S = 95
"""A lock that nobody releases runs out after so long: the lease and its margin."""


@command
def stop(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop the ingest that is running; what it committed stays, and the next run goes on.

    Nothing is lost or doubled: chunks that were fetched and not yet committed are found again by the next run.
    A backfill is stopped by `schemahub backfill pause` or `cancel`.

      schemahub stop
      schemahub stop --stack schemahub-prod --yes
    """
    say, where = Say(as_json), target.resolve(stack)
    arn = executions.find_running(where, where.ingest_arn)
    if arn is None:
        say.result({"stack": where.stack, "stopped": None}, f"no ingest is running on {where.where}")
        return
    seen = executions.describe(where, arn)
    say.line(f"running on {where.where}: [cyan]{seen.name}[/], for {clock(seen.seconds())}")
    if not yes:
        if as_json or not somebody_is_there():
            raise typer.BadParameter("there is nobody to ask here: add --yes")
        typer.confirm("Stop it?", abort=True)
    with say.console.status("stopping"):
        ended = executions.stop(where, arn, STOP_S)
        held = _wait_for_locks(where, arn)
    pending = list(where.deps.ledger.pending())
    say.result(
        {
            "stack": where.stack,
            "stopped": arn,
            "status": ended.status,
            "locks": held,
            "pending_segments": len(pending),
            "pending_trades": sum(segment.count for segment in pending),
        },
        *_words(where, ended, held, len(pending)),
    )


def somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _wait_for_locks(where: Target, arn: str) -> list[str]:
    """The locks that the ended execution still holds once the rule had its time."""
    until = time.monotonic() + STOP_S
    while (held := locks.held_by(where, arn)) and time.monotonic() < until:
        time.sleep(executions.POLL_S)
    return held


def _words(where: Target, ended: Execution, held: list[str], pending: int) -> list[str]:
    option = "" if where.local else f" --stack {where.stack}"
    publish = f"schemahub transform{option}"
    words = [
        f"{ended.name} {ended.status.lower()} after {clock(ended.seconds())}",
        "its locks are released"
        if not held
        else f"[yellow]{len(held)} locks are still its own ({', '.join(held)})[/]: they run out within {LEASE_S} s, "
        "and the next run releases them",
    ]
    if pending:
        words.append(f"{pending:,} committed segments wait to be published: [cyan]{publish}[/], or the next run")
    else:
        words.append("everything that was committed is in the table")
    return [*words, f"go on with [cyan]schemahub run{option}[/]: it continues where this one stopped"]
