"""The shared circuit breaker."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from schemahub.breaker import Breaker, Permit, Tuning
from schemahub.clock import FakeClock
from schemahub.errors import (
    CircuitOpen,
    CorruptState,
    ExchangeRefused,
    ExchangeUnavailable,
    MalformedResponse,
    RateLimited,
    ResponseInterrupted,
    SlotRefused,
)
from tests.dynamodb import Watched, open_tables


class LongJitter(random.Random):
    """Full jitter that always draws the longest."""

    def uniform(self, a: float, b: float) -> float:
        return b

    def randrange(self, *_: int) -> int:
        return 0


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def table(aws):
    return Watched(open_tables(aws).throttle)


@pytest.fixture
def worker(table, clock):
    """A factory of workers."""
    return lambda: Breaker(table, "coinbase", clock, LongJitter())


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.report(breaker.before(), ok=False)


def test_a_healthy_exchange_costs_one_read_a_second_and_no_writes(worker, table, clock):
    breaker = worker()
    for _ in range(100):
        breaker.report(breaker.before(), ok=True)
        clock.advance(0.05)
    assert (table.reads, table.writes) == (5, 0)


def test_five_failures_in_a_row_open_it_for_everybody(worker):
    first, second = worker(), worker()
    fail(first, 3)
    fail(second, 2)
    with pytest.raises(CircuitOpen, match="coinbase: the circuit breaker is open for another 5000 ms"):
        second.before()
    with pytest.raises(CircuitOpen):
        worker().before()


def test_a_worker_that_saw_it_closed_notices_within_a_second(worker, clock):
    calm = worker()
    calm.before()
    fail(worker(), 5)
    assert calm.before() == Permit(0)
    clock.advance(1)
    with pytest.raises(CircuitOpen):
        calm.before()


def test_one_success_starts_the_count_again(worker):
    breaker = worker()
    fail(breaker, 4)
    breaker.report(breaker.before(), ok=True)
    fail(breaker, 4)
    breaker.before()


def test_failures_far_apart_are_not_in_a_row(worker, clock):
    breaker = worker()
    for _ in range(12):
        fail(breaker)
        clock.advance(61)
    fail(breaker, 3)
    breaker.before()
    fail(breaker)
    fail(breaker)
    with pytest.raises(CircuitOpen):
        breaker.before()


def test_one_probe_at_a_time_and_its_success_closes(worker, clock):
    workers = [worker() for _ in range(4)]
    fail(workers[0], 5)
    clock.advance(5)
    probe = workers[1].before()
    assert probe.probe
    for other in workers:
        with pytest.raises(CircuitOpen):
            other.before()
    workers[1].report(probe, ok=True)
    assert workers[1].before() == Permit(3)
    clock.advance(1)
    assert all(other.before() == Permit(3) for other in workers)


def test_each_failed_probe_doubles_the_wait_up_to_the_cap(worker, clock):
    breaker = worker()
    fail(breaker, 5)
    waits = []
    for _ in range(7):
        began = clock.now_ms()
        permit = breaker.before(max_wait_s=1000)
        waits.append((clock.now_ms() - began) // 1000)
        breaker.report(permit, ok=False)
    assert waits == [5, 10, 20, 40, 80, 120, 120]


def test_a_dead_prober_blocks_nobody_for_long_and_its_late_report_is_dropped(worker, clock):
    first, second = worker(), worker()
    fail(first, 5)
    clock.advance(5)
    dead = first.before()
    clock.advance(30)
    alive = second.before()
    assert alive.probe
    assert alive.probe != dead.probe
    first.report(dead, ok=False)
    second.report(alive, ok=True)
    first.report(dead, ok=False)
    assert not worker().before().probe


def test_late_failures_of_an_older_generation_are_dropped(worker, clock):
    breaker, slow = worker(), worker()
    old = [slow.before() for _ in range(9)]
    fail(breaker, 5)
    clock.advance(5)
    breaker.report(breaker.before(), ok=True)
    for permit in old:
        slow.report(permit, ok=False)
    assert worker().before() == Permit(3)


def test_a_late_success_of_an_older_generation_does_not_reset_the_count(worker, clock):
    breaker, slow = worker(), worker()
    old = slow.before()
    fail(breaker, 5)
    clock.advance(5)
    breaker.report(breaker.before(), ok=True)
    fail(breaker, 4)
    clock.advance(1)
    slow.before()
    slow.report(old, ok=True)
    fail(breaker)
    with pytest.raises(CircuitOpen):
        worker().before()


def test_who_saw_the_breaker_due_before_another_probe_failed_does_not_probe(worker, table, clock):
    breaker, slow = worker(), worker()
    fail(breaker, 5)
    clock.advance(5)
    seen = slow._current()
    breaker.report(breaker.before(), ok=False)
    answer = slow._take_probe(seen, clock.now_ms())
    assert answer == clock.now_ms() + 10_000


def test_a_success_between_the_fifth_failure_and_the_opening_keeps_it_closed(worker, table):
    breaker, other = worker(), worker()
    fail(breaker, 4)
    permit = other.before()
    fifth = breaker._current()
    other.report(permit, ok=True)
    breaker._open(fifth)
    worker().before()


def test_two_workers_that_counted_the_fifth_failure_open_it_once(worker, clock):
    breaker, other = worker(), worker()
    fail(breaker, 4)
    fifth = replace(other._current(), failures=5)
    fail(breaker)
    clock.advance(5)
    probe = breaker.before()
    other._open(fifth)
    breaker.report(probe, ok=True)
    assert not worker().before().probe


def test_the_winner_of_the_probe_knows_it_when_the_answer_was_lost(worker, table, clock):
    breaker = worker()
    fail(breaker, 5)
    clock.advance(5)
    table.lose_next = 1
    assert breaker.before().probe


def test_a_lost_answer_of_a_failure_at_most_counts_twice(worker, table):
    breaker = worker()
    table.lose_next = 1
    fail(breaker, 3)
    breaker.before()
    fail(breaker)
    with pytest.raises(CircuitOpen):
        breaker.before()


def test_who_can_wait_waits_and_who_cannot_is_told(worker, clock):
    breaker = worker()
    fail(breaker, 5)
    with pytest.raises(CircuitOpen):
        breaker.before(max_wait_s=4.9)
    assert clock.now_ms() == FakeClock().now_ms()
    assert breaker.before(max_wait_s=6).probe


def test_the_slot_is_taken_after_the_wait_and_before_the_permit(worker, clock):
    breaker, slots = worker(), []
    fail(breaker, 5)
    permit = breaker.before(max_wait_s=10, slot=lambda: slots.append(clock.now_ms()))
    assert permit.probe
    assert slots == [FakeClock().now_ms() + 5000]
    with pytest.raises(CircuitOpen):
        worker().before(slot=lambda: slots.append(0))
    assert len(slots) == 1


def test_a_breaker_that_opened_during_the_slot_s_wait_is_noticed(worker, clock):
    breaker = worker()

    def slot() -> None:
        clock.advance(2)
        fail(worker(), 5)

    with pytest.raises(CircuitOpen):
        breaker.before(slot=slot)


def test_a_refused_slot_is_no_answer_of_the_exchange(worker, clock):
    breaker = worker()
    fail(breaker, 5)
    clock.advance(5)

    def slot() -> None:
        raise SlotRefused("none")

    for _ in range(2):
        with pytest.raises(SlotRefused), breaker.guard(slot=slot):
            pass
    with pytest.raises(SlotRefused), breaker.guard():
        raise SlotRefused("inside")
    with pytest.raises(CircuitOpen):
        worker().before()


def test_nobody_reads_while_it_is_known_to_be_open(worker, table, clock):
    breaker = worker()
    fail(breaker, 5)
    before = table.reads
    for _ in range(40):
        with pytest.raises(CircuitOpen):
            breaker.before()
        clock.advance(0.1)
    assert table.reads == before


def attempt(breaker: Breaker, error: BaseException | None) -> None:
    """A guarded request that ends in ``error``."""
    with suppress(*[type(error)] if error else []), breaker.guard():
        if error:
            raise error


@pytest.mark.parametrize("error", [ExchangeUnavailable("503"), ResponseInterrupted("cut")])
def test_failures_of_the_exchange_trip(worker, error):
    breaker = worker()
    for _ in range(5):
        attempt(breaker, error)
    with pytest.raises(CircuitOpen):
        attempt(breaker, None)


@pytest.mark.parametrize("error", [ExchangeRefused("403"), MalformedResponse("html"), None, ValueError("a bug")])
def test_what_is_ours_or_an_answer_never_trips(worker, error):
    breaker = worker()
    for _ in range(20):
        attempt(breaker, error)


def test_slow_downs_count_only_when_pacing_did_not_cure_them(worker):
    breaker = worker()
    for _ in range(10):
        for _ in range(2):
            attempt(breaker, RateLimited("429"))
        attempt(breaker, None)
    for _ in range(2 + 5):
        attempt(breaker, RateLimited("429"))
    with pytest.raises(CircuitOpen):
        attempt(breaker, None)


def test_an_answer_to_the_probe_closes_even_if_it_is_a_refusal(worker, clock):
    breaker = worker()
    fail(breaker, 5)
    clock.advance(5)
    attempt(breaker, ExchangeRefused("404"))
    assert not worker().before().probe


def test_a_killed_prober_reports_nothing(worker, clock):
    breaker = worker()
    fail(breaker, 5)
    clock.advance(5)
    attempt(breaker, KeyboardInterrupt())
    with pytest.raises(CircuitOpen):
        worker().before()
    clock.advance(30)
    assert worker().before().probe


def test_jitter_spreads_over_the_whole_interval(table, clock):
    breaker = Breaker(table, "x", clock, random.Random(7), Tuning(floor_s=0.1))
    waits = sorted((breaker._reopen_at(4) - clock.now_ms()) / 1000 for _ in range(200))
    assert waits[0] < 5
    assert 75 < waits[-1] <= 80


def test_of_32_threads_exactly_one_probes(worker, clock):
    fail(worker(), 5)
    clock.advance(5)
    probes = []

    def ask() -> None:
        with suppress(CircuitOpen):
            probes.append(worker().before())

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(probes) == 1


@pytest.mark.parametrize("broken", [{"state": "ajar"}, {"state": "open", "open_until": "soon"}])
def test_a_corrupt_item_is_loud(worker, table, broken):
    table.put_item(Item={"exchange": "coinbase#breaker", **broken})
    with pytest.raises(CorruptState, match="coinbase"):
        worker().before()
