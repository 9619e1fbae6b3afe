"""Following an execution on the terminal: a live picture on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from schemahub_cli.output import clock
from schemahub_cli.watch import Progress, StreamProgress, Watch

POLL_S = 1.5
LOG_EVERY_S = 10.0
MAX_ROWS = 24
MARKS = {
    "waiting": "[dim]·[/]",
    "fetching": "[cyan]↓[/]",
    "committing": "[yellow]…[/]",
    "committed": "[green]✓[/]",
    "nothing new": "[green]=[/]",
    "busy": "[yellow]![/]",
    "paused": "[yellow]‖[/]",
    "cancelled": "[yellow]×[/]",
    "failed": "[red]×[/]",
}


def follow(
    watch: Watch, console: Console, sleep: Callable[[float], None] = time.sleep, *, until_fetched: bool = False
) -> Progress:
    """Show the execution until it ends (or has nothing left to fetch), and return the last look."""

    def over(progress: Progress) -> bool:
        return not progress.execution.running or (until_fetched and progress.all_finished)

    if console.is_terminal and not console.quiet:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            last = _poll(watch, sleep, over, lambda progress: live.update(picture(progress)))
        console.print(line(last), soft_wrap=True)
        return last
    shown_at, shown_phase = float("-inf"), ""

    def log(progress: Progress) -> None:
        nonlocal shown_at, shown_phase
        if progress.elapsed_s - shown_at >= LOG_EVERY_S or progress.phase != shown_phase:
            shown_at, shown_phase = progress.elapsed_s, progress.phase
            console.print(line(progress), soft_wrap=True)

    return _poll(watch, sleep, over, log)


def _poll(
    watch: Watch, sleep: Callable[[float], None], over: Callable[[Progress], bool], show: Callable[[Progress], None]
) -> Progress:
    while True:
        progress = watch.look()
        show(progress)
        if over(progress):
            return progress
        sleep(POLL_S)


def line(progress: Progress) -> str:
    """One look in one line."""
    parts = [f"{clock(progress.elapsed_s):>7}  {progress.phase:<10}"]
    if progress.streams:
        parts.append(f"{progress.planned}/{len(progress.streams)} streams planned")
    if progress.trades:
        parts.append(f"{progress.trades_done:,}/{progress.trades:,} trades ({_share(progress):.0%})")
    if progress.eta_s and not progress.publishing and progress.execution.running:
        parts.append(f"about {clock(progress.eta_s)} left")
    if progress.failed:
        parts.append(f"[red]{progress.failed} failed[/]")
    return "  ·  ".join(parts)


def picture(progress: Progress) -> Group:
    """One look as a head line and a table of streams."""
    head = Text.from_markup(line(progress), style="bold")
    table = Table(box=None, padding=(0, 1), show_header=False)
    for _ in range(5):
        table.add_column()
    # What moves comes first when there are more streams than fit.
    order = sorted(progress.streams, key=lambda s: (s.outcome is not None, s.chunks is None, s.stream))
    shown = order[:MAX_ROWS]
    for s in sorted(shown, key=lambda s: s.stream):
        table.add_row(*_row(s))
    rest = len(order) - len(shown)
    return Group(head, table, *([Text(f"  and {rest} more", style="dim")] if rest else []))


def _row(s: StreamProgress) -> list[RenderableType]:
    done = s.trades_done if s.trades else (1 if s.outcome else 0)
    bar = ProgressBar(total=max(1, s.trades), completed=done, width=28)
    count = f"{s.trades_done:,}/{s.trades:,}" if s.trades else ""
    return [
        Text.from_markup(MARKS[s.phase]),
        s.stream.label,
        bar,
        Text(count, justify="right"),
        Text(f"{s.phase} {s.note}".rstrip(), style="dim"),
    ]


def _share(progress: Progress) -> float:
    return progress.trades_done / progress.trades if progress.trades else 0.0
