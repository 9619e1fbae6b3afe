"""The limit holds, whatever the workers do: schedules, clocks, lost answers, delays."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemahub.clock import FakeClock
from schemahub.mappings import load_mapping
from schemahub.throttle import Bucket, GoAt, SharedBucket, slot_times
from tests.dynamodb import Watched, fresh_tables

QUICK = settings(max_examples=12, deadline=None)


@dataclass
class Enforcer:
    """The exchange's own limiter: a token bucket, or a counter of calendar windows."""

    amount: float
    per_seconds: float
    burst: float
    refused: int = 0
    _level: float = 0.0
    _at: float = 0.0
    _windows: dict[int, float] = field(default_factory=dict)

    def take(self, at_us: int, cost: float) -> None:
        if self.burst < self.amount:
            window = at_us // round(self.per_seconds * 1e6)
            self._windows[window] = self._windows.get(window, 0.0) + cost
            self.refused += self._windows[window] > self.amount
            return
        leaked = (at_us - self._at) * self.amount / self.per_seconds / 1e6
        self._level = max(0.0, self._level - leaked) + cost
        self._at = at_us
        self.refused += self._level > self.burst + 1e-6


def test_the_enforcer_itself_refuses_what_is_too_much():
    coinbase, binance = Enforcer(10, 1, 15), Enforcer(6000, 60, 40)
    for n in range(17):
        coinbase.take(n, 1)
    for n in range(1501):
        binance.take(n, 4)
    assert (coinbase.refused, binance.refused) == (2, 1)


@dataclass
class Worker:
    """A worker whose clock is ``skew_us`` ahead of the true time."""

    clock: FakeClock
    shared: SharedBucket
    skew_us: int


def run(
    exchange: str, seed: int, skews_ms: list[int], steps: int, losses: float = 0.0
) -> tuple[Bucket, list[tuple[int, float, int]]]:
    """Random traffic of several workers; each grant is (true time of its slot, cost, order of reservation).

    ``losses`` is how often the table is lost, each time while slots are out: then the bucket is begun again.
    """
    rng = random.Random(seed)
    bucket = Bucket.of(load_mapping(exchange))
    granted: list[tuple[int, float, int]] = []
    with fresh_tables() as tables:
        table = Watched(tables.throttle)
        start = FakeClock().now_ms()
        workers = [Worker(c := FakeClock(start + ms), SharedBucket(table, bucket, c), ms * 1000) for ms in skews_ms]
        for _ in range(steps):
            worker = rng.choice(workers)
            costs = [rng.choice(list(bucket.cost.values())) for _ in range(rng.randint(1, 12))]
            table.lose_next = rng.random() < 0.1
            if rng.random() < 0.03:
                worker.shared.penalise(rng.random() * 3)
            if rng.random() < losses:
                tables.throttle.delete_item(Key={"exchange": exchange})
                if any(at > worker.clock.now_ms() * 1000 for at, _, _ in granted):
                    worker.shared.begin_again()
            outcome = worker.shared.reserve(costs, rng.choice([0, 1000, 60_000]))
            if isinstance(outcome, GoAt):
                granted += [
                    (t - worker.skew_us, c, len(granted) + n)
                    for n, (t, c) in enumerate(zip(outcome.times_us, costs, strict=True))
                ]
            pause = rng.choice([0, 0, 0.01, 0.3, 2, 70])
            for each in workers:
                each.clock.advance(pause)
    return bucket, granted


@pytest.mark.parametrize("exchange", ["coinbase", "binance"])
@QUICK
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 6))
def test_in_any_window_the_granted_cost_is_at_most_burst_plus_rate_times_window(exchange, seed, workers):
    bucket, granted = run(exchange, seed, [0] * workers, 25)
    assert_bounded(bucket, granted)


@pytest.mark.parametrize("exchange", ["coinbase", "binance"])
@QUICK
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 6))
def test_the_bound_holds_although_the_table_is_lost_in_the_middle(exchange, seed, workers):
    bucket, granted = run(exchange, seed, [0] * workers, 25, losses=0.2)
    assert_bounded(bucket, granted)


def assert_bounded(bucket: Bucket, granted: list[tuple[int, float, int]]) -> None:
    granted.sort()
    for i in range(len(granted)):
        total = 0
        for j in range(i, len(granted)):
            total += bucket.interval_us(granted[j][1])
            assert total <= granted[j][0] - granted[i][0] + bucket.tolerance_us


@pytest.mark.parametrize("exchange", ["coinbase", "binance"])
@QUICK
@given(seed=st.integers(0, 2**32), skews=st.lists(st.integers(-100, 100), min_size=1, max_size=5))
def test_the_exchange_never_refuses_although_clocks_differ_and_requests_are_delayed(exchange, seed, skews):
    bucket, granted = run(exchange, seed, skews, 25)
    limits = load_mapping(exchange).limits
    enforcer = Enforcer(limits.amount, limits.per_seconds, limits.burst)
    rng = random.Random(seed)
    spread = bucket.margin_us - (max(skews) - min(skews)) * 1000
    arrivals = sorted((at + rng.randint(0, spread), cost) for at, cost, _ in granted)
    for at, cost in arrivals:
        enforcer.take(at, cost)
    assert enforcer.refused == 0


@pytest.mark.parametrize("exchange", ["coinbase", "binance"])
def test_steady_traffic_uses_95_percent_of_the_published_limit(exchange):
    limits, bucket, clock = load_mapping(exchange).limits, Bucket.of(load_mapping(exchange)), FakeClock()
    with fresh_tables() as tables:
        shared = SharedBucket(tables.throttle, bucket, clock)
        enforcer = Enforcer(limits.amount, limits.per_seconds, limits.burst)
        cost, sent, began = bucket.cost["page"], 0.0, clock.now_ms()
        while clock.now_ms() - began < 180_000:
            outcome = shared.reserve([cost] * 20, 60_000)
            assert isinstance(outcome, GoAt)
            for at in outcome.times_us:
                enforcer.take(at, cost)
                sent += cost
            clock.advance(max(0, outcome.times_us[-1] / 1e6 - clock.now_ms() / 1000))
    assert enforcer.refused == 0
    assert sent / ((clock.now_ms() - began) / 1000) >= 0.95 * limits.amount / limits.per_seconds


@given(
    tat=st.integers(0, 10**9),
    now=st.integers(0, 10**9),
    tolerance=st.integers(1, 10**7),
    steps=st.lists(st.integers(1, 10**6), min_size=1, max_size=12),
)
def test_slots_of_a_batch_never_precede_the_clock_and_never_run_ahead_of_the_bucket(tat, now, tolerance, steps):
    after = max(tat, now) + sum(steps)
    times = slot_times(now, after, steps, tolerance)
    assert list(times) == sorted(times)
    assert times[0] >= now
    assert times[-1] == max(now, after - tolerance)
