"""A candlestick chart with volume, drawn with nothing but matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol

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


def candlesticks(bars: Sequence[Bar], path: Path, title: str, minutes: int) -> None:
    """Draw ``bars`` of ``minutes`` each, oldest first, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.dates as dates
    from matplotlib import pyplot as plt

    at = [dates.date2num(b.bar) for b in bars]  # type: ignore[no-untyped-call]
    width = minutes / (24 * 60) * 0.72
    colours = [UP if b.close >= b.open else DOWN for b in bars]
    figure, (price, volume) = plt.subplots(2, 1, figsize=(11, 6), sharex=True, height_ratios=(4, 1))
    price.vlines(at, [b.low for b in bars], [b.high for b in bars], colors=colours, linewidth=0.9)
    # A bar that did not move would have no height: it is drawn as thin as the price allows to see.
    thin = (max(b.high for b in bars) - min(b.low for b in bars)) * 0.0015
    price.bar(
        at, [max(abs(b.close - b.open), thin) for b in bars], width, [min(b.open, b.close) for b in bars], color=colours
    )
    volume.bar(at, [b.volume for b in bars], width, color=colours, alpha=0.75)
    price.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    volume.set_ylabel("volume", color=INK)
    price.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    ticks = dates.AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
    volume.xaxis.set_major_locator(ticks)
    volume.xaxis.set_major_formatter(dates.ConciseDateFormatter(ticks, tz=UTC))  # type: ignore[no-untyped-call]
    for axes in (price, volume):
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
