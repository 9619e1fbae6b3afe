"""The ``schemahub`` command: names what ``commands/`` holds. docs/cli.md describes every command and option.

Nothing here may import a command: a test measures what `--help` loads.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from schemahub_cli import debug
from schemahub_cli.lazy import Named, lazy_group

EPILOG = (
    "Exit codes: 0 done · 1 failed, with a named error · 2 wrong usage · 3 stack not found or unreachable · "
    "4 skipped, another run is busy."
)

COMMANDS = {
    name: Named(f"schemahub_cli.commands.{module}", attribute, text)
    for name, module, attribute, text in (
        (
            "update-seed",
            "seed",
            "update_seed",
            "Ask the exchanges what they list and choose what runs pull (config/products.json in the bucket).",
        ),
        ("run", "pipeline", "run", "Pull everything new, then publish it: the whole pipeline, as the schedule does."),
        ("ingest", "pipeline", "ingest", "Pull everything new; come back as soon as all of it is committed."),
        (
            "stop",
            "stop",
            "stop",
            "Stop the ingest that is running; what it committed stays, and the next run goes on.",
        ),
        (
            "transform",
            "pipeline",
            "transform",
            "Publish what is committed and not yet in the table (`run` does this by itself).",
        ),
        (
            "query",
            "query",
            "query",
            "Run one SELECT over the unified table `trades`, and over `instruments`: what is and was listed.",
        ),
        (
            "status",
            "status",
            "status",
            "Until when there is data of each stream, rows, what waits to be published, locks, breakers, the next run.",
        ),
        (
            "gaps",
            "gaps",
            "gaps",
            "Ids that the exchange did not deliver: ranges of each stream with their class, and their repair.",
        ),
        (
            "verify",
            "verify",
            "verify",
            "Prove that each trade is in the table exactly once, from the ledger and the raw objects to the rows.",
        ),
        (
            "replay",
            "replay",
            "run",
            "Find failed executions, their streams and chunks, and run again what nobody has done since.",
        ),
        ("backfill", "backfill", "app", "History below what runs have pulled: plan it, start it, watch it, pause it."),
        ("state", "state", "app", "The state tables in DynamoDB, after they were lost or restored."),
        ("exchange", "exchange", "app", "Add exchanges, and look at them through their mappings (no stack needed)."),
        ("local", "local", "app", "The whole platform on this machine: no Docker, no account, no network."),
    )
}

app = typer.Typer(
    cls=lazy_group(COMMANDS),
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=EPILOG,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

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
    show_traceback: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error (also: SCHEMAHUB_DEBUG=1).")
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
    debug.ask(show_traceback)


def main() -> None:
    """The entry point: whatever happens outside a command (options are read, help is drawn) is a named error, too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Neither a terminal of ASCII nor an argument that is not UTF-8 can keep a message from being shown.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="schemahub")
    except Exception as error:
        if debug.wanted():
            raise
        from schemahub_cli.output import Exit, UnexpectedError, show

        show(UnexpectedError.of(error), Exit.FAILED, "--json" in sys.argv)
        sys.exit(int(Exit.FAILED))
