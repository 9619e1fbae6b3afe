"""What `make run` prints at its end, and keeps in last-run.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from schemahub.cost import Bill
from schemahub.mappings import load_mapping
from schemahub.streams import Stream
from schemahub_cli.lake import Bar, Proof
from schemahub_cli.output import clock, dollars, listing
from schemahub_cli.positions import place

REFUSALS = ("429", "418")
MEASURABLE = 100
"""Fewer requests have no steady phase worth a number."""


@dataclass(frozen=True)
class Report:
    """One demonstration, counted. ``stats`` is the simulator's, None with real exchanges."""

    proofs: list[Proof]
    missing_streams: list[Stream]
    ingest_seconds: float
    total_seconds: float
    bill: Bill
    requests: int
    stats: dict[str, Any] | None
    bars: list[Bar]
    chart_bars: list[Bar]
    chart_stream: Stream
    chart: Path

    @property
    def trades(self) -> int:
        return sum(p.trades for p in self.proofs)

    @property
    def new(self) -> int:
        return sum(p.new for p in self.proofs)

    @property
    def refused(self) -> int:
        """Answers 429 and 418."""
        return sum(self._exchange_refused(name) for name in self.exchanges)

    @property
    def exchanges(self) -> list[str]:
        return sorted({p.stream.exchange for p in self.proofs}) if self.stats else []

    def _exchange_refused(self, name: str) -> int:
        by_status = (self.stats or {}).get(name, {}).get("by_status", {})
        return sum(by_status.get(status, 0) for status in REFUSALS)

    @property
    def proved(self) -> bool:
        return bool(self.proofs) and not self.missing_streams and all(p.whole for p in self.proofs) and not self.refused

    def steady(self) -> dict[str, dict[str, Any]]:
        """The steady phase of each exchange that had one: seconds, and the share of its limit that was used."""
        phases = {name: (self.stats or {}).get(name, {}).get("steady") for name in self.exchanges}
        return {name: p for name, p in phases.items() if p and p.get("share_of_limit") and p["requests"] >= MEASURABLE}

    def to_json(self) -> dict[str, Any]:
        return {
            "proved": self.proved,
            "trades": self.trades,
            "new_trades": self.new,
            "requests": self.requests,
            "refused": self.refused,
            "missing": sum(p.missing for p in self.proofs),
            "duplicates": sum(p.duplicates for p in self.proofs),
            "steady": self.steady(),
            "ingest_seconds": round(self.ingest_seconds, 1),
            "total_seconds": round(self.total_seconds, 1),
            "cost": self.bill.to_json(),
            "products": [p.to_json() for p in self.proofs],
            "never_committed": [str(s) for s in self.missing_streams],
            "ohlcv": {"stream": str(self.chart_stream), "bars": [asdict(b) for b in self.bars]},
            "chart": str(self.chart) if self.chart_bars else None,
        }


def print_report(report: Report, console: Console) -> None:
    """The report for people."""
    for renderable in (_products(report), _facts(report), _bars(report)):
        console.print()
        console.print(renderable)
    console.print()
    if report.chart_bars:
        console.print(f"chart  {_short(report.chart)}")
    console.print(
        "[bold green]proved[/]: every trade of every range is in the table exactly once"
        if report.proved
        else "[bold red]NOT proved[/]: see the table above"
    )
    console.print(
        '[dim]next: .venv/bin/schemahub query "SELECT symbol, count(*) FROM trades GROUP BY ALL" · '
        "schemahub status · make run again[/]",
        soft_wrap=True,
    )


def _products(report: Report) -> Table:
    table = listing("stream", show_footer=True, title="unified trades")
    for name, footer in (
        ("first", ""),
        ("last", ""),
        ("trades", f"{report.trades:,}"),
        ("new", f"{report.new:,}"),
        ("missing", str(sum(p.missing for p in report.proofs))),
        ("duplicates", str(sum(p.duplicates for p in report.proofs))),
    ):
        table.add_column(name, footer, justify="right", no_wrap=True)
    table.columns[0].footer = f"{len(report.proofs)} products"
    for p in report.proofs:
        table.add_row(
            p.stream.label,
            place(p.stream, p.first),
            place(p.stream, p.last),
            f"{p.trades:,}",
            f"{p.new:,}",
            _zero(p.missing),
            _zero(p.duplicates),
        )
    for stream in report.missing_streams:
        table.add_row(stream.label, "[red]never[/]", *[""] * 5)
    return table


def _facts(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    parts = [f"{name} {report.stats[name]['requests']:,}" for name in report.exchanges] if report.stats else []
    table.add_row("requests", f"{report.requests:,}" + (f"  ({', '.join(parts)})" if parts else "  (planned pages)"))
    if report.stats:
        table.add_row("answers 429", _zero(report.refused))
        steady = report.steady()
        for name, phase in steady.items():
            table.add_row(
                "share of limit",
                f"{phase['share_of_limit']:.1%} of {load_mapping(name).name}'s, over "
                f"{phase['seconds']:.0f} s of steady fetching",
            )
        if not steady:
            table.add_row("share of limit", "too few requests to measure")
    table.add_row("time", f"{clock(report.ingest_seconds)} for the execution, {clock(report.total_seconds)} in all")
    services = ", ".join(f"{name} {dollars(usd)}" for name, usd in list(report.bill.by_service().items())[:3])
    table.add_row(
        "AWS would cost",
        f"{dollars(report.bill.usd)}  ({services}), then {dollars(report.bill.storage_month_usd)} a month of storage",
    )
    return table


def _bars(report: Report) -> Table:
    stream = report.chart_stream
    title = f"{stream.product} on {stream.exchange}, the last {len(report.bars)} one-hour bars (UTC)"
    table = listing("hour", title=title, numbers=("open", "high", "low", "close", "volume", "trades"))
    for b in report.bars:
        colour = "green" if b.close >= b.open else "red"
        table.add_row(
            f"{b.bar:%Y-%m-%d %H:%M}",
            f"{b.open:,.2f}",
            f"{b.high:,.2f}",
            f"{b.low:,.2f}",
            f"[{colour}]{b.close:,.2f}[/]",
            f"{b.volume:,.4f}",
            f"{b.trades:,}",
        )
    return table


def _zero(count: int) -> str:
    return "[green]0[/]" if count == 0 else f"[bold red]{count:,}[/]"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
