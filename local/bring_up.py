"""The local platform as a whole: simulator, embedded AWS, deployed template, and its state repaired after a crash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from local import sim_process, stack
from local.ministack import Progress
from local.stack import Stack, StackError
from schemahub import rebuild
from schemahub_cli import target
from schemahub_cli.target import Target

SIMULATED, LIVE = "simulated", "live"
LIVE_HOURS = "1"
"""How far back a first run goes on the real exchanges: a laptop asks for no more than it looks at."""


class MixedTrades(StackError):
    """Simulated and real trades of one product have other ids: they must not meet in one stream."""


def bring_up(
    home: Path,
    *,
    live: bool,
    aws_port: int,
    sim_port: int,
    auth: bool = False,
    schedule: bool = False,
    products: str = "",
    parameters: Mapping[str, str] | None = None,
    progress: Progress,
) -> Stack:
    """Start what does not run, deploy what is not deployed: `schemahub local up` and `make run` deploy the same.

    Raises:
        StackError, SimulatorError: with what to do about it.
    """
    _check_source(home, LIVE if live else SIMULATED)
    if not live:
        fresh = sim_process.start(home, sim_port)
        progress(f"exchange simulator {'started' if fresh else 'is running'} on port {sim_port}")
    found = stack.up(
        home,
        port=aws_port,
        auth=auth,
        schedule=schedule,
        products=products,
        parameters={**({"ColdStartHours": LIVE_HOURS} if live else {}), **(parameters or {})},
        endpoints=None if live else sim_process.endpoints(sim_port),
        progress=progress,
    )
    if found.after_crash or found.rebuilt:
        progress("the embedded AWS had been killed: repairing watermarks from their mirrors in S3")
        for line in _repair(target.resolve_local(home)):
            progress(line)
    return found


def _repair(where: Target) -> list[str]:
    """Put back what S3 proves and the tables lost in a crash; one line for each stream that changed."""
    lines = []
    for stream in rebuild.mirrored_streams(where.deps):
        put_back = rebuild.rebuild(where.deps, stream)
        if put_back and put_back.segments:
            lines.append(f"{stream.label}: {put_back.segments} segments up to {put_back.high}")
    return lines


def _check_source(home: Path, source: str) -> None:
    record = home / "source"
    home.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        record.write_text(source)
    elif (was := record.read_text().strip()) != source:
        raise MixedTrades(f"{home} holds {was} trades, not {source} ones: set SCHEMAHUB_HOME to another directory")


def default_home(live: bool) -> Path:
    """Where this kind of trades is kept when nobody says otherwise."""
    return stack.default_home() / "live" if live else stack.default_home()
