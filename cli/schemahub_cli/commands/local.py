"""``schemahub local``: the embedded AWS with the project's own template, and the exchange simulator."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from local import ecs_agent, sim_process
from local import stack as local_stack
from local.bring_up import bring_up
from schemahub.errors import SchemaHubError
from schemahub_cli.output import Exit, JsonOption, Say, StackUnreachable, clock, command

app = typer.Typer(no_args_is_help=True, help="The whole platform on this machine: no Docker, no account, no network.")


class LocalFailed(SchemaHubError):
    """The local stack or the simulator could not do what was asked."""

    remedy = "`schemahub local logs` shows what happened."


@contextmanager
def named_errors() -> Iterator[None]:
    """Errors of the local processes, with names and exit codes like all others."""
    try:
        yield
    except local_stack.NotRunning as error:
        raise StackUnreachable(str(error)) from error
    except (local_stack.StackError, sim_process.SimulatorError) as error:
        raise LocalFailed(str(error)) from error


@app.command()
@command
def up(
    live: Annotated[
        bool, typer.Option("--live", help="Pull from the real exchanges instead of the simulator.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", help="Port of the embedded AWS (SCHEMAHUB_AWS_PORT, 4566).")
    ] = None,
    auth: Annotated[
        bool, typer.Option("--auth", help="Enforce IAM: each function has only its role's rights.")
    ] = False,
    schedule: Annotated[bool, typer.Option("--schedule", help="Let the template's schedule start runs.")] = False,
    products: Annotated[
        str, typer.Option("--products", help="The template's Products parameter: coinbase:BTC-USD,binance:BTC-USDT.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Start the embedded AWS and the exchange simulator, build and deploy the template (each only if needed).

    schemahub local up
    schemahub local up --live --schedule
    """
    say, began = Say(as_json), time.monotonic()
    home, sim_port = local_stack.default_home(), sim_process.default_port()
    with named_errors(), say.console.status("starting") as status:
        stack = bring_up(
            home,
            live=live,
            aws_port=port or local_stack.default_port(),
            sim_port=sim_port,
            auth=auth,
            schedule=schedule,
            products=products,
            progress=lambda text: status.update(text),
        )
    say.result(
        {
            "endpoint": stack.endpoint,
            "simulator": None if live else sim_process.url(sim_port),
            "outputs": dict(stack.outputs),
            "seconds": round(time.monotonic() - began, 1),
        },
        f"the local stack is up after {clock(time.monotonic() - began)}: {stack.endpoint}",
        "exchanges: " + ("the real ones" if live else f"simulated, {sim_process.url(sim_port)}"),
        "next: [cyan]schemahub update-seed --quote USD --limit 10[/], then [cyan]schemahub run[/]",
    )


@app.command()
@command
def down(as_json: JsonOption = False) -> None:
    """Stop the embedded AWS and the simulator. All data stays in .schemahub/ and is back after `up`."""
    say, home = Say(as_json), local_stack.default_home()
    with named_errors(), say.console.status("stopping"):
        stopped = {"aws": local_stack.down(home), "simulator": sim_process.stop(home)}
    say.result(stopped, "stopped" if any(stopped.values()) else "nothing was running")


@app.command()
@command
def status(as_json: JsonOption = False) -> None:
    """What runs on this machine, and what is deployed on it. Exit code 3 if nothing runs."""
    say, home = Say(as_json), local_stack.default_home()
    with named_errors():
        seen = local_stack.status(home)
    sim_port = sim_process.running(home)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        "embedded AWS",
        f"[green]up[/] {seen.endpoint} (pid {seen.pid})"
        if seen.running
        else "[red]not running[/]" + (", it was killed" if seen.crashed else ""),
    )
    if seen.running:
        since = datetime.fromtimestamp(seen.since or 0).astimezone()
        table.add_row("since", f"{since:%Y-%m-%d %H:%M:%S}")
        table.add_row("memory", f"{seen.memory_mib:,.0f} MiB with {seen.workers} Lambda workers")
        table.add_row("stack", seen.stack_status or "not deployed")
    table.add_row("simulator", f"[green]up[/] {sim_process.url(sim_port)}" if sim_port else "not running")
    agent = ecs_agent.running(home) is not None
    table.add_row("ECS agent", "[green]up[/]" if agent else "not running")
    table.add_row("data", str(home))
    say.result(
        {
            "running": seen.running,
            "endpoint": seen.endpoint,
            "pid": seen.pid,
            "stack_status": seen.stack_status,
            "simulator": sim_process.url(sim_port) if sim_port else None,
            "ecs_agent": agent,
            "home": str(home),
            "outputs": dict(seen.outputs),
            "parameters": dict(seen.parameters),
        },
        table,
    )
    if not seen.running:
        raise typer.Exit(int(Exit.NO_STACK))


@app.command()
@command
def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing new lines (Ctrl-C ends it).")] = False,
    simulator: Annotated[
        bool, typer.Option("--simulator", help="The simulator's log instead of the embedded AWS's.")
    ] = False,
    tasks: Annotated[bool, typer.Option("--tasks", help="The log of the ECS tasks (heavy backfills) instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The embedded AWS's log, with what the Lambda functions write."""
    say, home = Say(as_json), local_stack.default_home()
    path = sim_process.log_path(home) if simulator else local_stack.log_path(home)
    path = ecs_agent.log_path(home) if tasks else path
    if follow and not as_json and path.exists():
        subprocess.run(["tail", "-n", str(lines), "-F", str(path)], check=False)
        return
    last = _tail(path, lines)
    say.result({"path": str(path), "lines": last})
    for line in last:
        say.console.print(line, markup=False, soft_wrap=True)


@app.command()
@command
def demo(
    products: Annotated[
        int | None, typer.Option("--products", min=1, help="How many Coinbase products (2, with --full 10).")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Fourteen products instead of three: `make demo`.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="The real exchanges; an hour of history instead of a day.")
    ] = False,
) -> None:
    """Everything at once: stack, simulator, ingest, table, proof, OHLCV chart (the same as `make run`)."""
    from local import demo as demonstration

    given = [*(["--full"] if full else []), *(["--live"] if live else [])]
    raise typer.Exit(demonstration.main([*given, *([f"--products={products}"] if products else [])]))


def _tail(path: Path, lines: int) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(errors="replace").splitlines()[-lines:]
