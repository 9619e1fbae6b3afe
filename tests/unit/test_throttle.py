"""The shared token bucket."""

from __future__ import annotations

import threading
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from schemahub import throttle
from schemahub.clock import FakeClock
from schemahub.errors import BadConfig, CorruptState, SlotRefused
from schemahub.mappings import exchanges, load_mapping
from schemahub.throttle import Bucket, GoAt, Refused, SharedBucket, Throttle
from tests.dynamodb import Watched, open_tables

COINBASE = Bucket.of(load_mapping("coinbase"))
"""10 requests a second; our burst is 5 of the published 15."""


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def tables(aws):
    """Empty tables but for buckets that have been full for long."""
    opened = open_tables(aws)
    for name in ("coinbase", "binance", "another"):
        opened.throttle.put_item(Item={"exchange": name, "tat_us": 1})
    return opened


@pytest.fixture
def table(tables):
    return Watched(tables.throttle)


@pytest.fixture
def shared(table, clock):
    return SharedBucket(table, COINBASE, clock)


def offsets(outcome, clock: FakeClock) -> list[int]:
    """Milliseconds from now of each granted slot."""
    assert isinstance(outcome, GoAt)
    return [round(t / 1000) - clock.now_ms() for t in outcome.times_us]


def test_after_idle_time_the_burst_goes_at_once_and_then_the_rate_holds_exactly(shared, clock):
    waits = [offsets(shared.reserve([1], 10_000), clock)[0] for _ in range(25)]
    assert waits == [0] * 5 + [100 * n for n in range(1, 21)]
    clock.advance(3600)
    waits = [offsets(shared.reserve([1], 10_000), clock)[0] for _ in range(7)]
    assert waits == [0] * 5 + [100, 200]


def test_a_bucket_that_is_not_there_is_an_empty_one(shared, tables, clock):
    shared.reserve([1] * 5, 0)
    tables.throttle.delete_item(Key={"exchange": "coinbase"})
    assert shared.reserve([1], 0) == Refused(100), "a second burst at once could break the limit"
    assert offsets(shared.reserve([1] * 3, 10_000), clock) == [100, 200, 300]


def test_a_bucket_that_begins_again_waits_for_the_slots_that_were_given_out_before(shared, tables, clock):
    for batch in (50, 1):
        while isinstance(granted := shared.reserve([1] * batch, 60_000), GoAt):
            last = granted.times_us[-1]
    tables.throttle.delete_item(Key={"exchange": "coinbase"})
    assert shared.begin_again()
    [first] = shared.reserve([1], 120_000).times_us
    assert first == last + 100_000
    assert not shared.begin_again(), "a bucket that is there is left alone"


def test_a_batch_gets_the_slots_that_single_reservations_would_have_got(shared, tables, clock):
    single = [offsets(shared.reserve([1], 10_000), clock)[0] for _ in range(12)]
    other = SharedBucket(tables.throttle, replace(COINBASE, exchange="another"), clock)
    assert offsets(other.reserve([1] * 12, 10_000), clock) == single


def test_weights_are_costs(table, clock):
    binance = Bucket.of(load_mapping("binance"))
    shared = SharedBucket(table, binance, clock)
    first, *rest = shared.reserve([20, 4, 4], 10_000).times_us
    assert first == clock.now_ms() * 1000
    assert rest[1] - rest[0] == binance.interval_us(4)


def test_a_reservation_is_one_write_in_steady_traffic_and_in_steady_quiet(shared, table, clock):
    shared.reserve([1], 0)
    before = table.writes
    for _ in range(50):
        shared.reserve([1], 60_000)
    assert table.writes - before <= 51
    clock.advance(60)
    shared.reserve([1], 0)
    before = table.writes
    for _ in range(20):
        clock.advance(1)
        shared.reserve([1], 0)
    assert table.writes - before == 20
    assert table.reads <= 1


def test_a_refusal_reserves_nothing_and_says_when_it_would_fit(shared, clock):
    shared.reserve([1] * 15, 10_000)
    refused = shared.reserve([1], 500)
    assert refused == Refused(600)
    assert shared.reserve([1], 500) == refused
    clock.advance(refused.wait_ms / 1000)
    assert offsets(shared.reserve([1], 500), clock) == [500]


def test_an_idle_bucket_refuses_a_batch_that_takes_too_long(shared):
    assert shared.reserve([1] * 100, 1000) == Refused(8500)


def test_a_lost_answer_wastes_a_slot_and_never_gives_one_twice(shared, table, clock):
    waits = [offsets(shared.reserve([1], 10_000), clock)[0] for _ in range(2)]
    table.lose_next = 1
    waits += [offsets(shared.reserve([1], 10_000), clock)[0] for _ in range(4)]
    assert waits == [0, 0, 0, 0, 100, 200]


def test_a_penalty_holds_for_everybody_and_spends_the_burst(shared, tables, clock):
    other = SharedBucket(tables.throttle, COINBASE, clock)
    other.reserve([1], 0)
    assert shared.penalise(7.0) == 7000
    assert offsets(other.reserve([1, 1], 60_000), clock) == [7100, 7200]


def test_a_shorter_penalty_does_not_shorten_a_longer_one(shared, clock):
    shared.penalise(30)
    shared.penalise(1)
    assert isinstance(shared.reserve([1], 29_000), Refused)


@pytest.mark.parametrize(("asked", "taken_ms"), [(None, 1000), (-5, 0), (960, 900_000), (1e9, 900_000)])
def test_penalties_are_bounded(shared, asked, taken_ms):
    assert shared.penalise(asked) == taken_ms


def test_a_penalty_of_the_greatest_length_is_not_taken_for_a_bad_clock(shared, clock):
    shared.penalise(900)
    assert isinstance(shared.reserve([1], 30_000), Refused)
    clock.advance(870)
    assert isinstance(shared.reserve([1], 31_000), GoAt)


def test_a_bucket_left_in_the_far_future_by_a_bad_clock_is_reset_and_logged(shared, table, clock, caplog):
    fast = FakeClock(clock.now_ms() + 86_400_000)
    SharedBucket(table, COINBASE, fast).reserve([1], 0)
    assert offsets(shared.reserve([1], 1000), clock) == [100]
    assert "absurdly far ahead" in caplog.text


def test_two_workers_that_saw_the_same_absurd_bucket_reset_it_once(shared, table, clock):
    absurd = {"exchange": "coinbase", "tat_us": clock.now_ms() * 1000 + 10**11}
    table.put_item(Item=absurd)
    assert offsets(shared.reserve([1] * 10, 10_000), clock)[-1] == 1000
    shared._judge_idle(absurd, clock.now_ms() * 1000)
    assert offsets(shared.reserve([1], 10_000), clock) == [1100]


@pytest.mark.parametrize("value", [True, None, Decimal("1.5")])
def test_a_corrupt_item_is_loud(shared, table, value):
    table.put_item(Item={"exchange": "coinbase", "tat_us": value})
    with pytest.raises(CorruptState, match="coinbase"):
        shared.reserve([1], 0)


def test_every_mapping_is_used_to_95_percent_and_keeps_a_margin_for_delays():
    for name in exchanges():
        limits, bucket = load_mapping(name).limits, Bucket.of(load_mapping(name))
        published = Fraction(str(limits.amount)) / Fraction(str(limits.per_seconds))
        # Of a window, one request may always be sent at once, and a second is left for delays.
        dearest, seconds = Fraction(str(max(limits.cost.values()))), Fraction(str(limits.per_seconds))
        counted = (Fraction(str(limits.amount)) - dearest) / (seconds + 1)
        assert Fraction(95, 100) * (published if limits.burst >= limits.amount else counted) <= bucket.rate, name
        assert bucket.rate <= published, name
        assert bucket.margin_us >= 500_000, name
        assert all(bucket.interval_us(c) <= bucket.tolerance_us for c in limits.cost.values()), name


def test_a_refusal_without_retry_after_is_waited_out_as_long_as_the_mapping_says():
    assert {n: Bucket.of(load_mapping(n)).pause_s for n in ("coinbase", "binance", "kraken", "bitfinex", "bybit")} == {
        "coinbase": 1.0,
        "binance": 60.0,
        "kraken": 15.0,
        "bitfinex": 60.0,
        "bybit": 600.0,  # "wait for at least 10 minutes"
    }


def test_where_products_are_counted_apart_each_has_a_bucket_and_the_list_another(tables, clock):
    mapping = load_mapping("kraken")
    btc, eth, all_else = (Bucket.of(mapping, 1, product) for product in ("BTC-USD", "ETH-USD", None))
    assert [b.key for b in (btc, eth, all_else)] == ["kraken#BTC-USD", "kraken#ETH-USD", "kraken"]
    assert Bucket.of(load_mapping("coinbase"), 1, "BTC-USD").key == "coinbase"
    assert throttle.buckets(mapping, 1, {"ETH-USD", "BTC-USD"}) == [all_else, btc, eth]
    assert throttle.buckets(load_mapping("coinbase"), 1, {"BTC-USD"}) == [COINBASE]
    shared = [SharedBucket(tables.throttle, bucket, clock) for bucket in (btc, eth)]
    for bucket in shared:
        bucket.begin_again()
    clock.advance(600)
    assert [offsets(bucket.reserve([1], 0), clock) for bucket in shared] == [[0], [0]]
    shared[0].penalise(30)
    assert isinstance(shared[0].reserve([1], 20_000), Refused)
    assert isinstance(shared[1].reserve([1], 20_000), GoAt), "another pair's refusal is not ours"


def test_coinbase_runs_at_exactly_ten_a_second_with_a_third_of_the_burst():
    assert (COINBASE.rate, COINBASE.burst, COINBASE.margin_us) == (10, 5.0, 1_000_000)


def test_no_minute_of_binance_holds_more_than_its_weight_even_with_delays():
    bucket = Bucket.of(load_mapping("binance"))
    assert bucket.rate * (60 + Fraction(bucket.margin_us, 1_000_000)) + Fraction(bucket.burst) <= 6001
    assert float(bucket.rate) > 98


def test_intervals_are_rounded_so_that_the_rate_is_never_exceeded():
    for name in exchanges():
        bucket = Bucket.of(load_mapping(name), 0.7)
        assert all(bucket.interval_us(c) * bucket.rate >= Fraction(str(c)) * 1_000_000 for c in (1, 2, 3, 4, 7, 20))


def test_the_limit_share_scales_the_rate():
    half = Bucket.of(load_mapping("coinbase"), 0.5)
    assert half.rate == 5
    assert half.interval_us(1) == 200_000
    assert Bucket.of(load_mapping("coinbase"), 0.1).interval_us(1) == 1_000_000


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_a_share_that_means_nothing_is_refused(share):
    with pytest.raises(BadConfig):
        Bucket.of(load_mapping("coinbase"), share)


def test_a_share_below_one_request_is_refused():
    with pytest.raises(BadConfig, match="less than one request"):
        Bucket.of(load_mapping("binance"), 0.001)


def test_a_worker_sleeps_until_its_slot(shared, clock):
    worker = Throttle(shared, clock)
    began = clock.now_ms()
    slots = [worker.wait("page") for _ in range(15)]
    assert clock.now_ms() - began == 1000
    assert all(slot <= clock.now_ms() * 1000 for slot in slots)


def test_a_batch_costs_one_write(shared, table, clock):
    worker = Throttle(shared, clock, batch=10)
    for left in range(101, 0, -1):
        worker.wait("page", expected=left)
    assert table.writes <= 13
    assert worker.dropped == 0


def test_a_paused_worker_does_not_send_late_however_many_slots_it_held(shared, clock):
    worker = Throttle(shared, clock, batch=30)
    worker.wait("page")
    worker.wait("page", expected=30)
    clock.advance(120)
    fresh = worker.wait("page", expected=1)
    assert fresh >= clock.now_ms() * 1000 - COINBASE.late_us
    assert worker.dropped == 29


def test_a_worker_that_is_slower_than_the_rate_reserves_only_what_it_reaches_in_time(shared, clock):
    worker = Throttle(shared, clock, batch=10)
    for left in range(60, 0, -1):
        worker.wait("page", expected=left)
        clock.advance(0.25)
    assert worker.dropped == 0


def test_a_slot_that_is_reached_late_every_time_ends_in_an_error(shared, table):
    class Starved(FakeClock):
        def now_ms(self) -> int:
            self.advance(0.7)
            return super().now_ms()

    with pytest.raises(SlotRefused, match="too late"):
        Throttle(SharedBucket(table, COINBASE, clock := Starved()), clock).wait("page")


def test_a_slot_too_far_away_is_refused_by_name_with_the_exchange(shared, clock):
    shared.penalise(60)
    with pytest.raises(SlotRefused, match=r"coinbase: no slot within 2000 ms"):
        Throttle(shared, clock, max_wait_s=2).wait("page", expected=5)


def test_a_penalty_forgets_the_worker_s_own_slots(shared, clock):
    worker = Throttle(shared, clock, batch=10)
    worker.wait("page")
    worker.wait("page", expected=10)
    began = clock.now_ms()
    worker.penalise(5)
    worker.wait("page")
    assert clock.now_ms() - began >= 5000


def test_32_threads_get_32_times_8_different_slots_and_the_exact_total(table, clock):
    got: list[int] = []
    bucket = replace(COINBASE, tolerance_us=COINBASE.interval_us(1))

    def work() -> None:
        mine = SharedBucket(table, bucket, clock)
        for _ in range(8):
            outcome = mine.reserve([1], 3_600_000)
            assert isinstance(outcome, GoAt)
            got.extend(outcome.times_us)

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start = clock.now_ms() * 1000
    assert sorted(got) == [start + n * 100_000 for n in range(256)]
    assert table.writes <= 256 + 2 * 32 + throttle.RACES


def test_next_free_reserves_nothing(shared, clock):
    shared.reserve([1] * 7, 10_000)
    assert shared.next_free_us() == shared.next_free_us() == clock.now_ms() * 1000 + 300_000
