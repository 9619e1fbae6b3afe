"""The ``schemahub`` command: registers what ``commands/`` holds. docs/cli.md describes every command and option."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from schemahub_cli.commands import backfill, exchange, gaps, local, pipeline, query, replay, seed, state, status, verify

EPILOG = (
    "Exit codes: 0 done · 1 failed, with a named error · 2 wrong usage · 3 stack not found or unreachable · "
    "4 skipped, another run is busy."
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            print(version("schemahub"))
        except PackageNotFoundError:
            print("not installed")
        raise typer.Exit


@app.callback()
def schemahub(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Gap-free crypto trades from many exchanges in one table, in your own AWS account or on this machine.

    [bold]First steps on this machine[/]

      schemahub local demo                      everything at once, with generated data

      schemahub local up                        or step by step: the embedded AWS and the stack
      schemahub update-seed --quote USD --limit 10
      schemahub run --dry-run                   what would be fetched, how long, at what cost
      schemahub run
      schemahub query "SELECT symbol, count(*) AS trades FROM trades GROUP BY ALL"

    [bold]In an AWS account[/]: the same commands with [cyan]--stack NAME[/].
    """


app.command("update-seed")(seed.update_seed)
app.command("run")(pipeline.run)
app.command("ingest")(pipeline.ingest)
app.command("transform")(pipeline.transform)
app.command("query")(query.query)
app.command("status")(status.status)
app.command("gaps")(gaps.gaps)
app.command("verify")(verify.verify)
app.command("replay")(replay.run)
app.add_typer(backfill.app, name="backfill")
app.add_typer(state.app, name="state")
app.add_typer(exchange.app, name="exchange")
app.add_typer(local.app, name="local")
