"""``schemahub run``, ``ingest`` and ``transform``: start an execution (or join the one that runs) and follow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from schemahub.errors import NoSeed
from schemahub.streams import Stream
from schemahub_cli import capacity, executions, live, locks, names, outcome, target, times
from schemahub_cli import rederive as rederivation
from schemahub_cli.executions import Execution
from schemahub_cli.output import Exit, JsonOption, Say, StackOption, clock, command, fail
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
        autocompletion=names.complete_stream,
    ),
]
Exchanges = Annotated[
    list[str] | None,
    typer.Option(
        "--exchange",
        "-e",
        help="Only this exchange; may be repeated.",
        autocompletion=names.complete_exchange,
    ),
]


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
    _ingest(Say(as_json), stack, product, exchange, dry_run, follow, until_fetched=False)


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
    _ingest(Say(as_json), stack, product, exchange, dry_run, follow, until_fetched=True)


@command
def transform(
    rederive: Annotated[
        bool, typer.Option("--rederive", help="Make what the table has of the streams anew from their originals.")
    ] = False,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            metavar="EXCHANGE:PRODUCT",
            help="With --rederive: this stream; may be repeated.",
            autocompletion=names.complete_stream,
        ),
    ] = None,
    since: Annotated[
        Any,
        typer.Option(
            "--since",
            metavar="ID|TIME",
            parser=times.position_or_time,
            help="With --rederive: from this trade id or time (UTC) on: 7d, 2026-11, 2026-11-03T10:00.",
        ),
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
    if not rederive and (stream or since is not None):
        raise typer.BadParameter("--stream and --since belong to --rederive")
    named = names.parse(stream)
    wanted = rederivation.request(named, since) if rederive else None
    say, where = Say(as_json), target.resolve(stack)
    if wanted:
        names.committed(where.deps, named)
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
    _finish(say, where, "transform", execution, {"execution": execution.to_json(), "joined": joined})


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
        option = outcome.on(where)
        say.line(
            f"\nThe execution goes on. Follow it again with [cyan]schemahub run{option}[/]; "
            f"stop it with [cyan]schemahub stop{option}[/]."
        )
        raise


def _ingest(
    say: Say,
    stack: str | None,
    products: list[str] | None,
    exchanges: list[str] | None,
    dry_run: bool,
    follow: bool,
    until_fetched: bool,
) -> None:
    named = names.parse(products)
    where = target.resolve(stack)
    _check(where, named, products, exchanges)
    if dry_run:
        _plan(say, where, products, exchanges)
        return
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
    _finish(say, where, "ingest", progress.execution, document, [s.stream for s in progress.streams])


def _check(where: Target, named: list[Stream], products: list[str] | None, exchanges: list[str] | None) -> None:
    """Refuse what cannot be meant before anything is started: names that are not there, a choice of nothing."""
    names.pullable(where, named)
    if exchanges:
        from schemahub import events, ingest

        ingest.select_streams(where.deps, events.IngestInput(products=products, exchanges=exchanges))


def _finish(
    say: Say,
    where: Target,
    machine: str,
    execution: Execution,
    document: dict[str, Any],
    streams: Sequence[Stream] = (),
) -> None:
    """The result of an execution that has ended, what it brought of ``streams``, and the exit code."""
    if execution.skipped and execution.output.get("reason") == "no_seed":
        fail(NoSeed("skipped: there is no seed list yet, so nothing was pulled"), Exit.FAILED, say.as_json)
    if execution.skipped:
        say.result({**document, "skipped": True}, "[yellow]skipped: another run is busy with every exchange[/]")
        raise typer.Exit(int(Exit.BUSY))
    came = outcome.brought(where.deps, execution, streams) if streams else None
    if came:
        document = {**document, "brought": came.to_json()}
    if execution.status != "SUCCEEDED":
        _failed(say, where, machine, execution, document, came)
    skipped = execution.output.get("skipped") or []
    say.result(
        document,
        f"[green]done[/] in {clock(execution.seconds())}"
        + (f" · {came.line}" if came else "")
        + (f" · [yellow]skipped, another run is busy: {', '.join(skipped)}[/]" if skipped else ""),
    )
    if came and came.trades:
        example = "SELECT exchange, symbol, count(*) AS trades FROM trades GROUP BY ALL"
        say.line(f'next: [cyan]schemahub query{outcome.on(where)} "{example}"[/]')


def _failed(
    say: Say,
    where: Target,
    machine: str,
    execution: Execution,
    document: dict[str, Any],
    came: outcome.Brought | None,
) -> NoReturn:
    """Say of an execution that failed what it left undone, why, and what to do; exit code 1."""
    arn = where.ingest_arn if machine == "ingest" else where.transform_arn
    with say.console.status("reading what failed"):
        left = outcome.undone(where, machine, arn, execution)
    if say.as_json:
        say.result({**document, "failed": left.to_json(), "exit_code": int(Exit.FAILED)})
        raise typer.Exit(int(Exit.FAILED))
    if came and came.trades:
        say.line(f"{came.line}, although")
    for line in left.lines(f"schemahub replay{outcome.on(where)}"):
        say.line(line)
    fail(outcome.failed(execution, left), Exit.FAILED, False)


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
    failed = [s for s in plan.streams if s.error]
    for one in failed:
        say.line(f"[red]{one.stream.label}[/]  {escape(one.error or '')}")
    if failed:
        raise typer.Exit(int(Exit.FAILED))


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
