"""`make run`: the whole pipeline on this machine, ending in a proof that no trade is missing and none is there twice.

Everything is kept and found again: a second run ingests only what is new, one that was killed is joined or continued.
Exit codes: 0 proved · 1 something is missing, doubled or was refused, or a step failed · 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.markup import escape

from local import bring_up, ministack, sim_process, stack
from local.chart import candlesticks
from local.demo_report import Report, print_report
from schemahub import cost
from schemahub.errors import SchemaHubError
from schemahub.mappings import exchanges, load_mapping
from schemahub.seed import read as read_seed
from schemahub.streams import Stream
from schemahub_cli import lake, seed, target
from schemahub_cli.commands.pipeline import begin, follow_ingest
from schemahub_cli.output import ExecutionFailed, Say
from schemahub_cli.target import Target
from schemahub_cli.watch import Progress

COINBASE = (
    "BTC-USD",
    "ETH-USD",
    "SOL-USD",
    "XRP-USD",
    "DOGE-USD",
    "ADA-USD",
    "AVAX-USD",
    "LINK-USD",
    "LTC-USD",
    "DOT-USD",
    "BCH-USD",
    "UNI-USD",
    "BTC-EUR",
    "ETH-BTC",
)
BINANCE = ("BTC-USDT", "ETH-USDT", "SOL-USDT", "XRP-USDT", "DOGE-USDT", "BNB-USDT", "ADA-USDT", "ETH-BTC")
CHART_MINUTES = 15
BUSY_TRIES = 12
BUSY_WAIT_S = 10.0


@dataclass(frozen=True)
class Options:
    """What `python -m local.demo --help` explains."""

    products: int
    binance: int
    hours: float | None
    """How far back the first run goes, if not as far as `schemahub local up` lets it."""
    bars: int
    live: bool
    as_json: bool
    home: Path

    @property
    def streams(self) -> list[Stream]:
        return [
            *(Stream("coinbase", p) for p in COINBASE[: self.products]),
            *(Stream("binance", p) for p in BINANCE[: self.binance]),
        ]


class Steps:
    """Progress lines that begin with the seconds since the start."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def __call__(self, text: str) -> None:
        self.say.line(f"[dim]{self.seconds:6.1f} s[/]  {text}")


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    options = parse(arguments)
    say = Say(options.as_json)
    err = Console(stderr=True, highlight=False)
    try:
        return run(options, say)
    except (SchemaHubError, stack.StackError, sim_process.SimulatorError) as error:
        err.print(f"[bold red]{type(error).__name__}[/]  {escape(str(error))}", soft_wrap=True)
        return 1
    except (BotoCoreError, ClientError) as error:
        err.print(f"[bold red]{type(error).__name__}[/]  {escape(str(error))}", soft_wrap=True)
        err.print("[dim]→[/] The embedded AWS does not answer; the same command starts it again and goes on from here.")
        return 1
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from here")
        return 130


def parse(arguments: list[str] | None = None) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m local.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="ten Coinbase products and four of Binance instead of two and one"
    )
    parser.add_argument(
        "--products",
        type=int,
        choices=range(1, len(COINBASE) + 1),
        metavar="N",
        help=f"Coinbase products, the busiest first (1 to {len(COINBASE)}, default 2)",
    )
    parser.add_argument(
        "--binance",
        type=int,
        choices=range(len(BINANCE) + 1),
        metavar="N",
        help=f"Binance products (0 to {len(BINANCE)}, default 1)",
    )
    parser.add_argument("--hours", type=float, help="how far back the first run goes (default 24, with --live 1)")
    parser.add_argument("--bars", type=int, default=8, metavar="N", help="show the last N one-hour bars (default 8)")
    parser.add_argument(
        "--live",
        action="store_true",
        help="the real exchanges instead of the simulator; their data lies in .schemahub/live",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="print the summary as JSON, nothing else")
    given = parser.parse_args(arguments)
    coinbase, binance = (10, 4) if given.full else (2, 1)
    return Options(
        coinbase if given.products is None else given.products,
        binance if given.binance is None else given.binance,
        given.hours,
        given.bars,
        given.live,
        given.as_json,
        bring_up.default_home(given.live),
    )


def run(options: Options, say: Say) -> int:
    """The steps in their order; returns the exit code."""
    step = Steps(say)
    sim_port = sim_process.default_port()
    where = _start(options, sim_port, step)
    fresh = choose_products(where, options.streams, step)
    step(
        f"nothing is in the table yet: the first run goes back {where.deps.settings.cold_start_hours:g} h"
        if fresh
        else "the table is there: only what is new since will be fetched"
    )
    progress, arn = ingest(say, where, options.streams, step, None if options.live else sim_port)
    step("counting the table against the ledger")
    report = account(options, where, progress, arn, step.seconds, None if options.live else sim_process.stats(sim_port))
    if report.chart_bars:
        stream = report.chart_stream
        candlesticks(
            report.chart_bars,
            report.chart,
            CHART_MINUTES,
            product=stream.product,
            exchange=load_mapping(stream.exchange).name,
            simulated=not options.live,
        )
    summary = report.to_json()
    (options.home / "last-run.json").write_text(json.dumps(summary, indent=2, default=str))
    if say.as_json:
        say.result(summary)
    else:
        print_report(report, say.console)
    return 0 if report.proved else 1


def _start(options: Options, sim_port: int, step: Steps) -> Target:
    # Both kinds of trades have a home of their own; only one of the two stacks fits the port.
    other = bring_up.default_home(not options.live)
    if ministack.running(other) is not None:
        step(f"stopping the other local stack ({other})")
        stack.down(other)
    os.environ["SCHEMAHUB_HOME"] = str(options.home)
    found = bring_up.bring_up(
        options.home,
        live=options.live,
        aws_port=stack.default_port(),
        sim_port=sim_port,
        parameters={"ColdStartHours": f"{options.hours:g}"} if options.hours else None,
        progress=step,
    )
    step(f"the stack is up: {found.endpoint}")
    return target.resolve_local(options.home)


def choose_products(where: Target, streams: list[Stream], step: Steps) -> bool:
    """Make sure that the seed list names these streams; True if none of them was ever committed."""
    old = read_seed(where.deps.objects)
    wanted = {(s.exchange, s.product) for s in streams}
    if not wanted <= {(e["exchange"], e["product"]) for e in old.streams} or not old.instruments:
        names = sorted({s.exchange for s in streams})
        looks, failures = seed.look_at_all(where, names, old.instruments)
        if failures:
            raise next(iter(failures.values()))
        chosen = {x: seed.Choice(tuple(s.product for s in streams if s.exchange == x)) for x in names}
        _, new = seed.store(where, [(seen, chosen[seen.exchange]) for seen in looks], only=names)
        counts = ", ".join(f"{sum(e['exchange'] == x for e in new.streams)} of {x}" for x in names)
        step(f"seed list written: {len(new.streams)} products ({counts}), {len(new.instruments)} instruments")
    return not any(where.deps.ledger.watermark(s) for s in streams)


def ingest(say: Say, where: Target, streams: list[Stream], step: Steps, sim_port: int | None) -> tuple[Progress, str]:
    """Start or join an execution, follow it, and come back until no other run keeps an exchange busy."""
    for attempt in range(BUSY_TRIES):
        if sim_port is not None and attempt == 0 and not _anything_running(where):
            sim_process.reset(sim_port)
        arn, _ = begin(say, where, where.ingest_arn, products=[f"{s.exchange}:{s.product}" for s in streams])
        progress = follow_ingest(say, where, arn)
        execution = progress.execution
        if execution.status != "SUCCEEDED":
            raise ExecutionFailed(
                f"{execution.name} {execution.status.lower()} ({execution.error}): "
                f"{(execution.cause or 'no cause given')[:500]}"
            )
        busy = sorted(
            {
                *(execution.output.get("skipped") or []),
                *(str(s.stream) for s in progress.streams if s.outcome == "busy"),
            }
        )
        if not busy and not execution.skipped:
            return progress, arn
        step(
            f"[yellow]another run is busy with {', '.join(busy) or 'every exchange'}; trying again in "
            f"{BUSY_WAIT_S:g} s (a lease lasts at most 95 s)[/]"
        )
        time.sleep(BUSY_WAIT_S)
    raise ExecutionFailed(
        "another run kept the exchanges busy all the time", remedy="`schemahub status` shows who holds the locks."
    )


def _anything_running(where: Target) -> bool:
    from schemahub_cli import executions

    return executions.find_running(where, where.ingest_arn) is not None


def account(
    options: Options, where: Target, progress: Progress, arn: str, seconds: float, stats: dict[str, Any] | None
) -> Report:
    """Everything that the report says, counted from the table, the ledger and the simulator."""
    connection = lake.connect(where)
    streams = sorted(options.streams)
    proofs = lake.prove(connection, where.deps.ledger, streams, arn.rsplit(":", 1)[1])
    chart_stream = options.streams[0]
    new_trades = sum(p.new for p in proofs)
    chunks = sum(len(s.chunks or ()) for s in progress.streams)
    pages = sum(s.requests for s in progress.streams)
    requests = sum(stats[x]["requests"] for x in {s.exchange for s in streams}) if stats else pages
    work = cost.Work(
        streams=len(streams), chunks=chunks, requests=requests, trades=new_trades, seconds=_fetching_s(stats, progress)
    )
    return Report(
        proofs=proofs,
        missing_streams=[s for s in streams if s not in {p.stream for p in proofs}],
        ingest_seconds=progress.execution.seconds(),
        total_seconds=seconds,
        bill=cost.bill(work),
        requests=requests,
        stats=stats,
        bars=lake.bars(connection, chart_stream, 60, options.bars),
        chart_bars=lake.bars(connection, chart_stream, CHART_MINUTES, 96),
        chart_stream=chart_stream,
        chart=options.home / f"ohlcv-{chart_stream.product}.png",
    )


def _fetching_s(stats: dict[str, Any] | None, progress: Progress) -> float:
    """How long requests were being sent: as the simulator saw it, or at most the whole execution."""
    if not stats:
        return progress.execution.seconds()
    seen = [stats[name] for name in exchanges() if stats[name]["last_request"]]
    return float(max((x["last_request"] - x["first_request"] for x in seen), default=0.0))


if __name__ == "__main__":
    sys.exit(main())
