"""Generated history: pure, dense, ordered in time, the same in every process."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local.exchange_sim import Simulator, build_world, generator

ROOT = Path(__file__).parents[2]
DAY_US = generator.DAY_US


@pytest.fixture(scope="module")
def simulator():
    return Simulator(build_world({"clock": {"frozen": True}}))


def product(simulator, name="BTC-USD", exchange="coinbase"):
    return simulator.listing(exchange, name).source.product


def test_ids_are_dense_and_time_never_goes_back(simulator):
    one = product(simulator)
    trades = generator.trades(one, one.first_id + 500, one.first_id + 5_499)
    assert [trade.id for trade in trades] == list(range(one.first_id + 500, one.first_id + 5_500))
    times = [trade.time_us for trade in trades]
    assert times == sorted(times)
    ties = sum(a == b for a, b in itertools.pairwise(times))
    assert ties > 100, "trades that share their time are part of the world"


def test_every_trade_lies_in_its_own_interval(simulator):
    one = product(simulator)
    for trade in generator.trades(one, one.first_id, one.first_id + 3_000):
        start_us = one.genesis_us + (trade.id - one.first_id) * one.interval_us
        assert start_us <= trade.time_us <= start_us + one.interval_us


def test_any_slice_holds_the_same_trades(simulator):
    one = product(simulator)
    whole = generator.trades(one, one.first_id + 1_000, one.first_id + 3_200)
    for low, high in [(0, 0), (23, 24), (20, 1_100), (1_047, 2_200)]:
        part = generator.trades(one, one.first_id + 1_000 + low, one.first_id + 1_000 + high)
        assert part == whole[low : high + 1]


def test_prices_are_positive_on_their_tick_and_walk_smoothly(simulator):
    one = product(simulator, "DOGE-USD")
    head = generator.head_at(one, simulator.clock.now_us())
    prices = [trade.price for trade in generator.trades(one, head - 20_000, head)]
    assert min(prices) > 0
    assert all(price % 10**3 == 0 for price in prices), "five decimals of eight"
    assert len(set(prices)) > 50
    steps = [abs(b - a) / a for a, b in itertools.pairwise(prices)]
    assert max(steps) < 0.005


def test_fills_of_aggregates_tile(simulator):
    one = product(simulator, "BTCUSDT", "binance")
    trades = generator.trades(one, one.first_id, one.first_id + 4_000)
    assert all(a.last_fill + 1 == b.first_fill for a, b in itertools.pairwise(trades))
    assert all(trade.first_fill <= trade.last_fill for trade in trades)


def test_the_head_is_the_number_of_trades_up_to_now(simulator):
    one = product(simulator)
    trades = generator.trades(one, one.first_id, one.first_id + 200)
    for moment_us in {trade.time_us + shift for trade in trades[:100] for shift in (-1, 0, 1)}:
        expected = max((trade.id for trade in trades if trade.time_us <= moment_us), default=one.first_id - 1)
        assert generator.head_at(one, moment_us) == expected
        after = min(trade.id for trade in trades if trade.time_us >= moment_us)
        assert generator.first_at_or_after(one, moment_us) == after


def test_the_last_day_holds_enough_trades(simulator):
    now_us = simulator.clock.now_us()
    counts = {
        (exchange, name): generator.count_at(listing.source.product, now_us)
        - generator.count_at(listing.source.product, now_us - DAY_US)
        for exchange, desk in simulator.world.exchanges.items()
        for name, listing in desk.listings.items()
        if listing.status == "online"
    }
    coinbase = sorted((n for (exchange, _), n in counts.items() if exchange == "coinbase"), reverse=True)
    binance = [n for (exchange, _), n in counts.items() if exchange == "binance"]
    assert len(coinbase) >= 12
    assert len(binance) >= 6
    assert min(coinbase) >= 29_900
    assert max(coinbase) <= 45_000
    assert min(binance) >= 37_000
    assert sum(coinbase[:10]) >= 300_000
    assert len(set(coinbase)) > 6, "products trade at different rates"


def test_a_delisted_product_has_history_but_grows_no_more(simulator):
    one = product(simulator, "REP-USD")
    now_us = simulator.clock.now_us()
    assert generator.count_at(one, now_us) == generator.count_at(one, now_us - 30 * DAY_US) > 0


def test_another_process_makes_the_same_bytes(simulator):
    one = simulator.listing("coinbase", "ETH-USD").source.first_id
    code = (
        "from local.exchange_sim import *; import hashlib; s = Simulator(build_world());"
        f"print(hashlib.sha256(s.oracle('coinbase', 'ETH-USD', {one}, {one + 5000})"
        " + s.oracle('binance', 'ETHUSDT', 1900000000, 1900003000)).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
    ).stdout.strip()  # fmt: skip
    here = simulator.oracle("coinbase", "ETH-USD", one, one + 5000)
    here += simulator.oracle("binance", "ETHUSDT", 1_900_000_000, 1_900_003_000)
    assert hashlib.sha256(here).hexdigest() == other


def test_the_generated_bytes_never_change_between_versions(simulator):
    """Raw objects of a stack that was stopped must still agree with what is fetched today."""
    history = simulator.oracle("coinbase", "BTC-USD", 580_000_000, 580_009_999)
    history += simulator.oracle("binance", "BTCUSDT", 3_300_000_000, 3_300_009_999)
    assert hashlib.sha256(history).hexdigest()[:16] == "630c2c952b2988d2"


def test_another_seed_is_another_history():
    one, other = (
        Simulator(build_world({"seed": seed, "clock": {"frozen": True}})).trades(
            "coinbase", "BTC-USD", 580_000_000, 580_000_050
        )
        for seed in (1, 2)
    )
    assert [trade["price"] for trade in one] != [trade["price"] for trade in other]


def test_any_number_of_products_can_be_made():
    simulator = Simulator(build_world({"products": 120, "binance": {"products": 3, "trades_per_day": 100}}))
    listings = simulator.world.exchanges["coinbase"].listings
    assert list(listings)[:2] == ["P0001-USD", "P0002-USD"]
    assert len(listings) == 120
    assert list(simulator.world.exchanges["binance"].listings) == ["P0001USDT", "P0002USDT", "P0003USDT"]
    assert simulator.listing("binance", "P0001-USDT").source.product.interval_us == DAY_US // 100
    for listing in listings.values():
        trades = generator.trades(listing.source.product, listing.source.first_id, listing.source.first_id + 5)
        assert all(trade.price > 0 and trade.size > 0 for trade in trades)
