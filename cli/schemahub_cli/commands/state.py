"""``schemahub state``: the state tables after a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from schemahub.errors import LockBusy, SchemaHubError, StateError
from schemahub.streams import Stream
from schemahub_cli import executions, target
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, command, listing

if TYPE_CHECKING:
    from schemahub.deps import Deps
    from schemahub.rebuild import Rebuilt

app = typer.Typer(no_args_is_help=True, help="The state tables in DynamoDB, after they were lost or restored.")


@dataclass(frozen=True)
class Outcome:
    """What became of one stream: put back, or why not."""

    stream: Stream
    rebuilt: Rebuilt | None = None
    error: SchemaHubError | None = None

    def to_json(self) -> dict[str, Any]:
        name = f"{self.stream.exchange}:{self.stream.product}"
        if self.error is not None:
            error = {"error": type(self.error).__name__, "message": self.error.reason, "remedy": self.error.remedy}
            return {"stream": name, **error}
        assert self.rebuilt is not None
        done = self.rebuilt
        counts = {"segments": done.segments, "fills": done.fills, "holes": done.holes, "watermark": done.watermark}
        return {"stream": name, "low": done.low, "high": done.high, **counts, "notes": list(done.notes)}


@app.callback()
def state() -> None:
    """Keeps ``rebuild`` a command of its own although it is the only one."""


@app.command()
@command
def rebuild(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is lost and would come back.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recreate watermarks, segments, holes and fills from mirrors, raw objects and the table; token buckets too.

    Nothing that is there is overwritten or lowered. A table that is restored in part or from an older backup is said
    and completed; so is a mirror that is older than what was published. End all executions first.

      schemahub state rebuild --dry-run
      schemahub state rebuild --stack schemahub-prod
    """
    from schemahub.lake import lake_of
    from schemahub.remains import read_remains

    say, where = Say(as_json), target.resolve(stack)
    if not dry_run:
        _refuse_running(where)
    with say.console.status("reading what S3 holds"):
        remains = read_remains(lake_of(where.deps))
        outcomes = [_one(where.deps, s, dry_run, remains) for s in _streams(where.deps, remains)]
        buckets = _buckets(where.deps, [o.stream for o in outcomes if o.rebuilt], dry_run)
    outcomes = [o for o in outcomes if o.rebuilt or o.error]
    table = listing("stream", numbers=("low", "high", "segments", "fills", "holes", "watermark"))
    for outcome in outcomes:
        table.add_row(*_row(outcome))
    failed = [o for o in outcomes if o.error]
    say.result(
        {"stack": where.stack, "written": not dry_run, "streams": [o.to_json() for o in outcomes], "buckets": buckets},
        table,
        *(f"[yellow]{o.stream}[/]: {escape(note)}" for o in outcomes if o.rebuilt for note in o.rebuilt.notes),
        *(f"[bold red]{type(o.error).__name__}[/]  {escape(str(o.error))}" for o in failed),
        _conclusion(outcomes, buckets, dry_run),
    )
    if failed:
        raise typer.Exit(Exit.FAILED)


def _refuse_running(where: target.Target) -> None:
    for arn in (where.ingest_arn, where.transform_arn):
        if running := executions.find_running(where, arn):
            raise LockBusy(f"{running} is running", remedy="Stop it or wait for its end, then rebuild.")


def _streams(deps: Deps, remains: Any) -> list[Stream]:
    from schemahub.ingest import read_seed
    from schemahub.rebuild import mirrored_streams

    return sorted({*mirrored_streams(deps), *read_seed(deps), *(s.trades for s in remains.published)})


def _one(deps: Deps, stream: Stream, dry_run: bool, remains: Any) -> Outcome:
    from schemahub.rebuild import rebuild

    try:
        return Outcome(stream, rebuild(deps, stream, dry_run, remains))
    except StateError as error:
        return Outcome(stream, error=error)


def _buckets(deps: Deps, streams: list[Stream], dry_run: bool) -> list[str]:
    """Token buckets that were lost; made again so that no slot of before the loss is given out twice."""
    from schemahub.mappings import load_mapping
    from schemahub.throttle import SharedBucket, buckets

    lost = []
    for name in sorted({s.exchange for s in streams}):
        products = {s.product for s in streams if s.exchange == name}
        for bucket in buckets(load_mapping(name), deps.settings.limit_share, products):
            shared = SharedBucket(deps.throttle_table, bucket, deps.clock)
            if shared.lost:
                lost.append(bucket.key)
                if not dry_run:
                    shared.begin_again()
    return lost


def _row(outcome: Outcome) -> list[str]:
    name = outcome.stream.label
    done = outcome.rebuilt
    if done is None:
        return [name, "[red]not rebuilt[/]", *[""] * 5]
    counts = [f"[green]{n:,}[/]" if n else "0" for n in (done.segments, done.fills, done.holes)]
    return [name, str(done.low), str(done.high), *counts, "put back" if done.watermark else "is there"]


def _conclusion(outcomes: list[Outcome], buckets: list[str], dry_run: bool) -> str:
    changed = sum(1 for o in outcomes if o.rebuilt and o.rebuilt.changed)
    words = f"{changed} of {len(outcomes)} streams " + ("would be completed" if dry_run else "were completed")
    if buckets:
        words += f" · token bucket lost: {', '.join(buckets)}"
    return words + (" · dry run, nothing written" if dry_run else "")
