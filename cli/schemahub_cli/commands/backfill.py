"""``schemahub backfill``: history below the watermark, planned, started, watched, paused and reported."""

from __future__ import annotations

import time
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from schemahub import backfill_notes, events
from schemahub.backfill_plan import Wanted
from schemahub.errors import BadInput, BadStateInput
from schemahub.mappings import load_mapping
from schemahub.streams import MAX_POSITION
from schemahub_cli import backfills, capacity, executions, live, locks, names, outcome, target, times
from schemahub_cli.backfill_end import document_of, finish, left_lines, report_lines
from schemahub_cli.backfill_watch import BackfillWatch
from schemahub_cli.commands.corrections import corrections
from schemahub_cli.commands.pipeline import Exchanges
from schemahub_cli.executions import Execution
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, StackUnreachable, command
from schemahub_cli.target import Target
from schemahub_cli.watch import Progress

FIRST = "start"


class StreamsOrCommand(TyperGroup):
    """``backfill coinbase:BTC-USD --all`` is ``backfill start coinbase:BTC-USD --all``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [FIRST, *args]
        return super().parse_args(ctx, args)


class TooLate(BadInput):
    """A backfill is told to stop that has nothing more to stop."""


app = typer.Typer(
    cls=StreamsOrCommand,
    no_args_is_help=True,
    help="History below what runs have pulled: plan it, start it, watch it, pause it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("corrections")(corrections)
Run = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="Name of the execution, as `start` and `status` show it. Default: the newest."
    ),
]


class Route(StrEnum):
    """Who fetches."""

    AUTO = "auto"
    LAMBDA = "lambda"
    ECS = "ecs"


class Preset(StrEnum):
    """Workers of a task and the chunks that each has in hand at a time."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


@app.command(FIRST)
@command
def start(
    stream: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXCHANGE:PRODUCT...",
            help="Streams, for example coinbase:BTC-USD. Or --exchange.",
            autocompletion=names.complete_stream,
        ),
    ] = None,
    exchange: Exchanges = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--from", metavar="TIME", parser=times.option, help="From this time (UTC) on: 2023-01-01, 2026-11, 7d."
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            "--to",
            metavar="TIME",
            parser=times.option,
            help="With --from: up to this time (UTC), excluded: today.",
        ),
    ] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="FIRST..LAST", help="These positions: 1..5000000, both included.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that the exchange has.")] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", "--dry-run", help="Show chunks, requests, minutes, who fetches, storage and cost; start nothing."
        ),
    ] = False,
    route: Annotated[
        Route, typer.Option("--route", help="Who fetches: functions, tasks, or what the plan says.")
    ] = Route.AUTO,
    preset: Annotated[
        Preset | None,
        typer.Option("--preset", help="Workers and chunks in hand of a task: small 3x5, medium 5x9, large 10x20."),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, max=100, help="Workers of a task.")] = None,
    chunk_concurrency: Annotated[
        int | None, typer.Option("--chunk-concurrency", min=1, max=100, help="Chunks that a worker has in hand.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option("--tasks", min=1, max=100, help="Tasks of one stream at a time, at most.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, help="Seconds of work up to which functions do it instead of tasks."),
    ] = None,
    archives: Annotated[
        bool,
        typer.Option(
            "--archives/--no-archives", help="Take files of the exchange's archive first, where there are any."
        ),
    ] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until the end, or only start.")] = True,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill back what is missing of a range below the watermark; what is there is not fetched again.

    Runs beside an ingest of the same streams, within the one limit of the exchange. Ctrl-C stops the showing, never
    the execution. Give exactly one of --from, --ids and --all.

      schemahub backfill coinbase:BTC-USD --from 2023-01-01 --plan
      schemahub backfill coinbase:BTC-USD coinbase:ETH-USD --all --preset medium
      schemahub backfill binance:BTC-USDT --ids 1..5000000 --no-wait --json
    """
    asked = _request(stream, exchange, _range(since, until, ids, everything), {
        "route": None if route is Route.AUTO else route.value, "preset": preset.value if preset else None,
        "workers": workers, "chunk_concurrency": chunk_concurrency, "tasks": tasks, "threshold_seconds": threshold,
        "archives": None if archives else False,
    })  # fmt: skip
    say, where = Say(as_json), target.resolve(stack)
    names.pullable(where, names.parse(stream), from_archives=True)
    if plan:
        _plan(say, where, asked)
        return
    arn = _begin(say, where, asked)
    if not wait:
        say.result({"execution": arn, "run": arn.rsplit(":", 1)[1], "status": "RUNNING"})
        return
    finish(say, where, _machine(where), _follow(say, where, arn))


@app.command()
@command
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name of the execution. Default: the newest one.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing until its end.")] = False,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """How far a backfill is, with the time that is left; of one that has ended, planned against actual.

    schemahub backfill status
    schemahub backfill status cli-20261121T101500Z-a1b2c3 --json
    """
    say, where = Say(as_json), target.resolve(stack)
    execution = _execution(where, run)
    if follow and execution.running:
        finish(say, where, _machine(where), _follow(say, where, execution.arn))
        return
    progress = BackfillWatch.of(where, execution.arn).look()
    document = document_of(where, progress)
    say.result(document, live.picture(progress), *report_lines(document), *left_lines(where, document))


@app.command()
@command
def pause(run: Run = None, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """Let a backfill come to a halt: tasks notice within 30 seconds, commit what is whole, and the execution ends well.

    Without RUN: the newest one that is running.

      schemahub backfill pause
      schemahub backfill pause cli-20261121T101500Z-a1b2c3
    """
    _tell(run, "pause", "pauses; `schemahub backfill resume` goes on with what is missing then", stack, as_json)


@app.command()
@command
def cancel(run: Run = None, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """End a backfill: like pause, and its report says that it was cancelled. What is committed stays.

    Without RUN: the newest one that is running. One that has fetched everything already cannot be cancelled any more.

      schemahub backfill cancel
      schemahub backfill cancel cli-20261121T101500Z-a1b2c3
    """
    _tell(run, "cancel", "is being cancelled; what is committed stays", stack, as_json)


@app.command()
@command
def resume(
    run: Run = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until the end, or only start.")] = True,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a backfill that was paused, cancelled or has failed: a new execution of what is missing by now.

    Without RUN: the newest one.

      schemahub backfill resume
      schemahub backfill resume cli-20261121T101500Z-a1b2c3
    """
    say, where = Say(as_json), target.resolve(stack)
    before = _execution(where, run)
    if before.running:
        raise BadInput(f"{before.name} is running", remedy="Wait until it has come to its halt, then resume it.")
    asked = {k: v for k, v in before.input.items() if k != "schema_version"}
    arn = _begin(say, where, asked)
    if not wait:
        say.result({"execution": arn, "run": arn.rsplit(":", 1)[1], "status": "RUNNING"})
        return
    finish(say, where, _machine(where), _follow(say, where, arn))


# --- what is asked for ----------------------------------------------------------------------------------------------


def _range(since: datetime | None, until: datetime | None, ids: str | None, everything: bool) -> Any:
    """The ``range`` of the state machine's input. Raises typer.BadParameter for anything but exactly one."""
    if sum((since is not None, ids is not None, everything)) != 1:
        raise typer.BadParameter("give exactly one of --from, --ids and --all")
    if until is not None and since is None:
        raise typer.BadParameter("--to belongs to --from")
    wanted: Any = "all"
    if since is not None:
        wanted = {"from": times.written(since), "to": None if until is None else times.written(until)}
    if ids is not None:
        first, dots, last = ids.partition("..")
        if not (dots and all(n.isascii() and n.isdigit() and int(n) <= MAX_POSITION for n in (first, last))):
            raise typer.BadParameter(f"--ids {ids[:60]!r} is not FIRST..LAST, such as 1..5000000")
        wanted = {"ids": [int(first), int(last)]}
    try:
        Wanted.parse(wanted)
    except BadStateInput as error:
        raise typer.BadParameter(error.reason) from error
    return wanted


def _request(
    streams: list[str] | None, exchanges: list[str] | None, wanted: Any, means: dict[str, Any]
) -> dict[str, Any]:
    """The input of the state machine, refused here where it cannot be meant."""
    if not streams and not exchanges:
        raise typer.BadParameter("name at least one stream (coinbase:BTC-USD), or an --exchange")
    for name in [*(s.exchange for s in names.parse(streams)), *(exchanges or ())]:
        load_mapping(name)
    asked = {"products": streams, "exchanges": exchanges, "range": wanted, **means}
    return {k: v for k, v in asked.items() if v is not None and v != []}


def _plan(say: Say, where: Target, asked: dict[str, Any]) -> None:
    from schemahub import ingest

    request = events.BackfillInput(**asked)
    chosen = events.IngestInput(products=request.products, exchanges=request.exchanges)
    streams = ingest.select_streams(where.deps, chosen)
    with say.console.status("planning") as shown:
        plans = backfills.foresee(where.deps, streams, request, lambda s: shown.update(f"planning {s.label}"))
    allowed = capacity.Capacity.of(where)
    say.result(
        {
            "stack": where.stack,
            "dry_run": True,
            "streams": [p.to_json() for p in plans],
            "total": backfills.sums(plans),
            "lambda": allowed.to_json(),
        },
        *filter(None, (backfills.plan_table(plans), backfills.files_table(plans), backfills.split_line(plans))),
        allowed.words(),
    )
    failed = [p for p in plans if p.error]
    for one in failed:
        say.line(f"[red]{one.stream.label}[/]  {escape(one.error or '')}")
    if failed:
        raise typer.Exit(int(Exit.FAILED))


# --- the execution --------------------------------------------------------------------------------------------------


def _machine(where: Target) -> str:
    arn = where.machine_arn("backfill")
    if arn is None:
        raise StackUnreachable(
            f"stack {where.stack!r} has no state machine for backfills", remedy="Deploy this release to it."
        )
    return arn


def _begin(say: Say, where: Target, asked: dict[str, Any]) -> str:
    machine = _machine(where)
    if released := locks.release_dead(where):
        say.line(f"[yellow]{len(released)} locks of runs that ended without releasing them were released[/]")
    allowed = capacity.announce(say, where, machine).to_input()
    arn = executions.start(where, machine, **{k: v for k, v in asked.items() if k != "functions_at_a_time"}, **allowed)
    say.line(f"started [cyan]{arn.rsplit(':', 1)[1]}[/] on {where.where}")
    return arn


def _execution(where: Target, run: str | None, *, running: bool = False) -> Execution:
    """The execution of that name or ARN, or the newest one: with ``running`` the newest that runs, if one does."""
    machine = _machine(where)
    client = where.client("stepfunctions")
    if run is None:
        listed = client.list_executions(stateMachineArn=machine, maxResults=100)["executions"]
        if not listed:
            raise BadInput("there was no backfill yet", remedy="`schemahub backfill --help` shows how to start one.")
        chosen = [e for e in listed if running and e["status"] == executions.RUNNING] or listed
        return executions.describe(where, max(chosen, key=lambda e: e["startDate"])["executionArn"])
    name = run.rsplit(":", 1)[-1]
    try:
        return executions.describe(where, f"{machine.replace(':stateMachine:', ':execution:')}:{name}")
    except client.exceptions.ExecutionDoesNotExist as error:
        raise BadInput(
            f"there is no backfill {name[:80]!r}", remedy="`schemahub backfill status` shows the newest."
        ) from error


def _tell(run: str | None, wish: backfill_notes.Wish, words: str, stack: str | None, as_json: bool) -> None:
    say, where = Say(as_json), target.resolve(stack)
    execution = _execution(where, run, running=True)
    if execution.running:
        backfill_notes.want(where.deps, execution.name, wish)
        # Looked at after it was told: what has ended by now may have ended without having heard of it.
        progress = BackfillWatch.of(where, execution.arn).look()
        if progress.execution.running and not progress.all_finished:
            say.result({"execution": execution.arn, "run": execution.name, "wanted": wish}, f"{execution.name} {words}")
            return
        execution = progress.execution
    raise TooLate(_late(execution, wish), remedy=f"`schemahub backfill status {execution.name}` shows what it did.")


def _late(execution: Execution, wish: backfill_notes.Wish) -> str:
    if execution.running:
        return f"{wish} comes too late: {execution.name} has done all of its streams and publishes them"
    ended = f" at {execution.stopped:%Y-%m-%d %H:%M:%S} UTC" if execution.stopped else ""
    return f"{wish} comes too late: {execution.name} is not running, it ended{ended} as {execution.status}"


def _follow(say: Say, where: Target, arn: str) -> Progress:
    """Show a backfill until its end; Ctrl-C leaves it running and says how to come back."""
    watch = BackfillWatch.of(where, arn)
    try:
        return live.follow(watch, say.console, watch.pause(time.sleep))
    except KeyboardInterrupt:
        option = outcome.on(where)
        name = arn.rsplit(":", 1)[1]
        say.line(
            f"\nThe execution goes on. Follow it with [cyan]schemahub backfill status {name} --follow{option}[/]; "
            f"stop it with [cyan]schemahub backfill pause {name}{option}[/]."
        )
        raise
