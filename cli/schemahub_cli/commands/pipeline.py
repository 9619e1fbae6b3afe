"""``schemahub run``, ``ingest`` and ``transform``: start an execution (or join the one that runs) and follow it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from schemahub.errors import NoSeed
from schemahub.mappings import load_mapping
from schemahub.streams import Stream
from schemahub_cli import capacity, executions, live, locks, target
from schemahub_cli import rederive as rederivation
from schemahub_cli.executions import Execution
from schemahub_cli.output import ExecutionFailed, Exit, JsonOption, Say, StackOption, clock, command, fail
from schemahub_cli.target import Target
from schemahub_cli.watch import Progress, Watch

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, how long and at what cost; do nothing.")
]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Show progress until the end, or only start.")]
Products = Annotated[
    list[str] | None,
    typer.Option(
        "--product",
        "-p",
        metavar="EXCHANGE:PRODUCT",
        help="Only this stream, for example coinbase:BTC-USD; may be repeated. Default: the seed list.",
    ),
]
Exchanges = Annotated[list[str] | None, typer.Option("--exchange", "-e", help="Only this exchange; may be repeated.")]


@command
def run(
    product: Products = None,
    exchange: Exchanges = None,
    dry_run: DryRun = False,
    follow: Follow = True,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pull everything new, then publish it: the whole pipeline, as the schedule does.

    One execution of the ingest state machine, which starts transform itself. If one is running already, it is joined
    and not doubled. Ctrl-C stops the showing, never the execution.

      schemahub run --dry-run
      schemahub run -p coinbase:BTC-USD -p binance:BTC-USDT
      schemahub run --stack schemahub-prod --no-follow --json
    """
    _ingest(Say(as_json), target.resolve(stack), product, exchange, dry_run, follow, until_fetched=False)


@command
def ingest(
    product: Products = None,
    exchange: Exchanges = None,
    dry_run: DryRun = False,
    follow: Follow = True,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pull everything new; come back as soon as all of it is committed.

    The same execution as `schemahub run`: publishing goes on by itself after the command has come back.

      schemahub ingest -e binance
    """
    _ingest(Say(as_json), target.resolve(stack), product, exchange, dry_run, follow, until_fetched=True)


@command
def transform(
    rederive: Annotated[
        bool, typer.Option("--rederive", help="Make what the table has of the streams anew from their originals.")
    ] = False,
    stream: Annotated[
        list[str] | None,
        typer.Option("--stream", metavar="EXCHANGE:PRODUCT", help="With --rederive: this stream; may be repeated."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="ID|DATE", help="With --rederive: from this trade id or moment (UTC) on."),
    ] = None,
    dry_run: DryRun = False,
    follow: Follow = True,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish what is committed and not yet in the table (`run` does this by itself).

    With --rederive, after a mapping was corrected and deployed: replace what the table has of the streams by what the
    mapping makes of the originals now, in one snapshot. The snapshot before it still has the old rows.

      schemahub transform --dry-run
      schemahub transform --rederive --stream coinbase:BTC-USD --since 2024-01-01 --dry-run
    """
    if not rederive and (stream or since):
        raise typer.BadParameter("--stream and --since belong to --rederive")
    wanted = rederivation.request(stream, since) if rederive else None
    say, where = Say(as_json), target.resolve(stack)
    if dry_run:
        _rederivation(say, where, wanted) if wanted else _pending(say, where)
        return
    arn, joined = begin(say, where, where.transform_arn, join=not rederive, rederive=wanted)
    if not follow:
        say.result({"execution": arn, "joined": joined, "status": "RUNNING"})
        return
    with say.console.status("publishing"):
        execution = _wait(where, arn)
    if execution.status == "SUCCEEDED":
        say.line(rederivation.outcome(execution.output))
    _finish(say, execution, {"execution": execution.to_json(), "joined": joined})


def begin(say: Say, where: Target, machine: str, *, join: bool = True, **keys: Any) -> tuple[str, bool]:
    """ARN of a running execution of the machine, started now if there is none; the second value: it was running.

    Without ``join`` one is started beside those that run; what both would write, they take turns at.
    """
    if join and (arn := executions.find_running(where, machine)):
        say.line(f"joining the execution that is running already: [cyan]{arn.rsplit(':', 1)[1]}[/]")
        return arn, True
    if released := locks.release_dead(where):
        say.line(f"[yellow]{len(released)} locks of runs that ended without releasing them were released[/]")
    allowed = capacity.announce(say, where, machine).to_input()
    arn = executions.start(where, machine, **{k: v for k, v in keys.items() if v}, **allowed)
    say.line(f"started [cyan]{arn.rsplit(':', 1)[1]}[/] on {where.where}")
    return arn, False


def follow_ingest(say: Say, where: Target, arn: str, until_fetched: bool = False) -> Progress:
    """Show an ingest execution until its end; Ctrl-C leaves it running and says how to come back."""
    watch = Watch(where, arn, where.deps.objects, where.deps.ledger)
    try:
        return live.follow(watch, say.console, until_fetched=until_fetched)
    except KeyboardInterrupt:
        option = "" if where.local else f" --stack {where.stack}"
        say.line(
            f"\nThe execution goes on. Follow it again with [cyan]schemahub run{option}[/]; "
            f"stop it in the Step Functions console."
        )
        raise


def _ingest(
    say: Say,
    where: Target,
    products: list[str] | None,
    exchanges: list[str] | None,
    dry_run: bool,
    follow: bool,
    until_fetched: bool,
) -> None:
    if dry_run:
        _plan(say, where, products, exchanges)
        return
    _check(products, exchanges)
    arn, joined = begin(say, where, where.ingest_arn, products=products, exchanges=exchanges)
    if joined and (products or exchanges):
        say.line("[yellow]it has its own selection of products; yours was not used[/]")
    if not follow:
        say.result({"execution": arn, "joined": joined, "status": "RUNNING"})
        return
    progress = follow_ingest(say, where, arn, until_fetched)
    document = {"execution": progress.execution.to_json(), "joined": joined, "progress": progress.to_json()}
    if progress.execution.running:
        say.result(document, "everything is committed; publishing goes on by itself")
        return
    _finish(say, progress.execution, document)


def _check(products: list[str] | None, exchanges: list[str] | None) -> None:
    """Refuse a name that cannot be meant before anything is started."""
    for name in products or ():
        load_mapping(Stream.parse(name).exchange)
    for name in exchanges or ():
        load_mapping(name)


def _finish(say: Say, execution: Execution, document: dict[str, Any]) -> None:
    """The result of an execution that has ended, and the exit code that goes with it."""
    if execution.skipped and execution.output.get("reason") == "no_seed":
        fail(NoSeed("skipped: there is no seed list yet, so nothing was pulled"), Exit.FAILED, say.as_json)
    if execution.skipped:
        say.result({**document, "skipped": True}, "[yellow]skipped: another run is busy with every exchange[/]")
        raise typer.Exit(int(Exit.BUSY))
    if execution.status != "SUCCEEDED":
        if say.as_json:
            say.result({**document, "exit_code": int(Exit.FAILED)})
            raise typer.Exit(int(Exit.FAILED))
        cause = f": {execution.cause[:600]}" if execution.cause else ""
        fail(
            ExecutionFailed(f"{execution.name} {execution.status.lower()} ({execution.error}){cause}"),
            Exit.FAILED,
            False,
        )
    skipped = execution.output.get("skipped") or []
    say.result(
        document,
        f"[green]done[/] in {clock(execution.seconds())}"
        + (f" · [yellow]skipped, another run is busy: {', '.join(skipped)}[/]" if skipped else ""),
    )


def _plan(say: Say, where: Target, products: list[str] | None, exchanges: list[str] | None) -> None:
    from schemahub import events, ingest
    from schemahub_cli import forecast

    streams = ingest.select_streams(where.deps, events.IngestInput(products=products, exchanges=exchanges))
    with say.console.status("planning") as status:
        plan = forecast.forecast(where.deps, streams, lambda s: status.update(f"planning {s.label}"))
    allowed = capacity.Capacity.of(where)
    say.result(
        {"stack": where.stack, "dry_run": True, **plan.to_json(), "lambda": allowed.to_json()},
        forecast.table(plan),
        forecast.cost_line(plan.work),
        allowed.words(),
    )
    for failed in (s for s in plan.streams if s.error):
        say.line(f"[red]{failed.stream}[/]  {failed.error}")


def _pending(say: Say, where: Target) -> None:
    from schemahub_cli import forecast

    segments = list(where.deps.ledger.pending())
    work = forecast.pending_work(segments)
    say.result(
        {"stack": where.stack, "dry_run": True, "segments": len(segments), "trades": work.trades},
        f"{len(segments):,} segments with {work.trades:,} trades would be published",
        forecast.cost_line(work),
    )


def _rederivation(say: Say, where: Target, wanted: dict[str, Any]) -> None:
    from schemahub import events, publishing

    plans = publishing.plan_rederivation(events.Rederive(**wanted), where.deps)
    say.result(
        {"stack": where.stack, "dry_run": True, "streams": [p.to_json() for p in plans]}, rederivation.table(plans)
    )


def _wait(where: Target, arn: str) -> Execution:
    import time

    while (execution := executions.describe(where, arn)).running:
        time.sleep(live.POLL_S)
    return execution
