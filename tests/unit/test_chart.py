"""The chart of a demonstration says what it shows: of whom, how much, and whether it is real."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from matplotlib.text import Text

from local.chart import candlesticks, figure, vwap

BEGIN = datetime(2026, 11, 20, tzinfo=UTC)


@dataclass(frozen=True)
class Candle:
    bar: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float


BARS = [
    Candle(BEGIN, 100.0, 110.0, 90.0, 105.0, 1.0, 100.0),
    Candle(BEGIN + timedelta(minutes=15), 105.0, 120.0, 104.0, 118.5, 3.0, 112.0),
]


def texts(simulated: bool) -> str:
    drawn = figure(BARS, 15, product="BTC-USD", exchange="Coinbase Exchange", simulated=simulated)
    return "\n".join(found.get_text() for found in drawn.findobj(Text))  # type: ignore[attr-defined]


def test_a_chart_of_generated_trades_says_so_and_one_of_real_trades_does_not() -> None:
    assert "simulated" in texts(simulated=True)
    assert "simulated" not in texts(simulated=False)


def test_a_chart_has_the_last_price_the_vwap_and_the_unit_of_the_volume() -> None:
    shown = texts(simulated=True)
    for text in ("last 118.50", "VWAP 109.00", "volume, BTC", "price, USD", "BTC-USD · Coinbase Exchange"):
        assert text in shown


def test_bars_without_volume_have_no_vwap_to_divide_by() -> None:
    assert vwap([Candle(BEGIN, 1, 1, 1, 1, 0.0, 0.0)]) == 0.0
    assert vwap(BARS) == pytest.approx(109.0)


def test_a_chart_is_a_picture_that_a_page_can_carry(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "chart.png"
    candlesticks(BARS, path, 15, product="BTC-USD", exchange="Coinbase Exchange", simulated=True)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 100_000
