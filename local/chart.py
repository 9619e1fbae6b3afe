"""A candlestick chart with volume, drawn with nothing but matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UP, DOWN, INK, GRID = "#26a69a", "#ef5350", "#24292f", "#e6e8eb"


class Bar(Protocol):
    """What a candle needs."""

    @property
    def bar(self) -> Any: ...
    @property
    def open(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def close(self) -> float: ...
    @property
    def volume(self) -> float: ...
    @property
    def vwap(self) -> float: ...


def candlesticks(
    bars: Sequence[Bar], path: Path, minutes: int, *, product: str, exchange: str, simulated: bool
) -> None:
    """Draw ``bars`` of ``minutes`` each, oldest first, as a PNG."""
    drawn = figure(bars, minutes, product=product, exchange=exchange, simulated=simulated)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=100)


def vwap(bars: Sequence[Bar]) -> float:
    """Price by volume over all bars; 0 without any volume."""
    volume = sum(b.volume for b in bars)
    return sum(b.vwap * b.volume for b in bars) / volume if volume else 0.0


def figure(bars: Sequence[Bar], minutes: int, *, product: str, exchange: str, simulated: bool) -> Figure:
    """The chart: candles with their last price and VWAP, volume in its unit, and whether any of it is real."""
    import matplotlib.dates as dates
    from matplotlib.figure import Figure

    base, _, quote = product.partition("-")
    at = [dates.date2num(b.bar) for b in bars]  # type: ignore[no-untyped-call]
    width = minutes / (24 * 60) * 0.72
    colours = [UP if b.close >= b.open else DOWN for b in bars]
    drawn = Figure(figsize=(11, 6))
    price, volume = drawn.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    price.vlines(at, [b.low for b in bars], [b.high for b in bars], colors=colours, linewidth=0.9)
    # A bar that did not move would have no height: it is drawn as thin as the price allows to see.
    thin = (max(b.high for b in bars) - min(b.low for b in bars)) * 0.0015
    price.bar(
        at, [max(abs(b.close - b.open), thin) for b in bars], width, [min(b.open, b.close) for b in bars], color=colours
    )
    volume.bar(at, [b.volume for b in bars], width, color=colours, alpha=0.75)
    mean, last = vwap(bars), bars[-1].close
    price.axhline(mean, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label=f"VWAP {mean:,.2f}")
    price.axhline(last, color=colours[-1], linewidth=0.9, label=f"last {last:,.2f}")
    price.legend(loc="upper left", frameon=False, labelcolor=INK)
    shown = f"{product} · {exchange} · {minutes}-minute bars, UTC"
    price.set_title(shown, loc="left", color=INK, fontsize=12, fontweight="bold")
    if simulated:
        price.set_title("simulated: generated trades, not the market's", loc="right", color=DOWN, fontsize=11)
    price.set_ylabel(f"price, {quote}", color=INK)
    volume.set_ylabel(f"volume, {base}", color=INK)
    price.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    ticks = dates.AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
    volume.xaxis.set_major_locator(ticks)
    volume.xaxis.set_major_formatter(dates.ConciseDateFormatter(ticks, tz=UTC))  # type: ignore[no-untyped-call]
    for axes in (price, volume):
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    drawn.tight_layout()
    return drawn
