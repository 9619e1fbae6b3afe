"""Leases and fences."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from schemahub.clock import FakeClock
from schemahub.errors import BadConfig, CorruptState, LockBusy, LockLost
from schemahub.locks import Lease, Locks, Renewer
from tests.conftest import create_tables
from tests.dynamodb import Watched, open_tables

ID = "stream#coinbase#BTC-USD#trades"
ME, RIVAL, RUN, THEIRS = "arn:me", "arn:rival", "arn:top", "arn:their-top"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def tables(aws):
    return open_tables(aws)


@pytest.fixture
def table(tables):
    return Watched(tables.locks)


@pytest.fixture
def locks(table, clock):
    return Locks(table, clock)


def item(table) -> dict:
    return table.get_item(Key={"lock_id": ID})["Item"]


def test_a_free_lock_is_taken_with_the_next_fence(locks):
    first = locks.acquire(ID, ME, RUN)
    assert first == Lease(ID, ME, RUN, 0, 1)
    assert locks.release(first)
    assert locks.acquire(ID, RIVAL, THEIRS).fence == 2


def test_a_live_lock_is_busy_and_says_who_holds_it(locks, clock):
    locks.acquire(ID, RIVAL, THEIRS)
    with pytest.raises(LockBusy, match=r"arn:rival for another 90000 ms"):
        locks.acquire(ID, ME, RUN)


def test_an_expired_lock_is_taken_only_after_the_skew_allowance(locks, clock):
    locks.acquire(ID, RIVAL, THEIRS)
    clock.advance(94.999)
    with pytest.raises(LockBusy):
        locks.acquire(ID, ME, RUN)
    clock.advance(0.002)
    assert locks.acquire(ID, ME, RUN).fence == 2


def test_a_redrive_gets_its_own_lock_back_with_a_new_fence(locks):
    old = locks.acquire(ID, ME, RUN, attempt=0)
    new = locks.acquire(ID, ME, RUN, attempt=1)
    assert new.fence == old.fence + 1
    with pytest.raises(LockLost):
        locks.renew(old)


def test_the_same_attempt_gets_the_same_fence_and_a_fresh_lease(locks, table, clock):
    lease = locks.acquire(ID, ME, RUN, attempt=2)
    clock.advance(200)
    assert locks.acquire(ID, ME, RUN, attempt=2) == lease
    assert item(table)["lease_until"] == clock.now_ms() + 90_000


def test_a_lost_answer_of_acquire_gives_the_fence_that_was_taken(locks, table):
    table.lose_next = 1
    assert locks.acquire(ID, ME, RUN).fence == 1
    assert item(table)["fence"] == 1


def test_an_older_attempt_is_told_that_it_is_the_zombie(locks):
    locks.acquire(ID, ME, RUN, attempt=3)
    with pytest.raises(LockLost, match="attempt 3"):
        locks.acquire(ID, ME, RUN, attempt=2)


def test_an_expired_lease_that_nobody_took_is_still_ours(locks, clock):
    lease = locks.acquire(ID, ME, RUN)
    clock.advance(3600)
    locks.renew(lease)
    with pytest.raises(LockBusy):
        locks.acquire(ID, RIVAL, THEIRS)


def test_a_lease_that_was_taken_cannot_be_renewed_released_or_brought_back(locks, table, clock):
    lease = locks.acquire(ID, ME, RUN)
    clock.advance(100)
    theirs = locks.acquire(ID, RIVAL, THEIRS)
    with pytest.raises(LockLost, match=r"arn:rival holds fence 2"):
        locks.renew(lease)
    with pytest.raises(LockLost):
        locks.keep(lease)
    assert not locks.release(lease)
    assert locks.holder(ID) == theirs


def test_a_late_renewal_does_not_resurrect_a_released_lock(locks):
    lease = locks.acquire(ID, ME, RUN)
    locks.release(lease)
    with pytest.raises(LockLost, match="was released"):
        locks.renew(lease)
    locks.keep(lease)
    assert locks.holder(ID) is None


def test_a_lost_answer_of_renewal_does_not_lose_the_lock(locks, table):
    lease = locks.acquire(ID, ME, RUN)
    table.lose_next = 1
    locks.renew(lease)


def test_release_keeps_the_item_and_its_fence(locks, table):
    locks.release(locks.acquire(ID, ME, RUN))
    assert item(table) == {"lock_id": ID, "fence": 1}


def test_nothing_sets_the_ttl_attribute(locks, table):
    locks.acquire(ID, ME, RUN)
    assert "expires" not in item(table)


def test_ensure_renews_a_held_lease(locks):
    lease = locks.acquire(ID, ME, RUN)
    assert locks.ensure(lease, attempt=1) == (lease, False)


def test_ensure_takes_a_freed_lock_again_and_says_so(locks):
    lease = locks.acquire(ID, ME, RUN)
    locks.release_run(RUN)
    again, took_over = locks.ensure(lease, attempt=1)
    assert took_over
    assert (again.fence, again.attempt, again.run) == (2, 1, RUN)
    assert locks.ensure(lease, attempt=1) == (again, True)


def test_ensure_does_not_take_it_from_a_rival(locks, clock):
    lease = locks.acquire(ID, ME, RUN)
    clock.advance(100)
    locks.acquire(ID, RIVAL, THEIRS)
    with pytest.raises(LockLost, match="arn:rival"):
        locks.ensure(lease, attempt=1)
    clock.advance(100)
    assert locks.ensure(lease, attempt=1)[0].fence == 3


def test_a_later_state_with_the_old_fence_releases_what_its_attempt_took_again(locks):
    old = locks.acquire(ID, ME, RUN)
    locks.release_run(RUN)
    locks.ensure(old, attempt=1)
    assert not locks.release(old)
    assert locks.release(old, attempt=1)


def test_keep_extends_the_owner_s_lease_whatever_its_attempt(locks, clock):
    old = locks.acquire(ID, ME, RUN)
    locks.acquire(ID, ME, RUN, attempt=1)
    clock.advance(80)
    locks.keep(old)
    clock.advance(80)
    with pytest.raises(LockBusy):
        locks.acquire(ID, RIVAL, THEIRS)


def test_keep_goes_on_while_a_rival_is_only_a_memory(locks, clock):
    mine = locks.acquire(ID, ME, RUN)
    clock.advance(100)
    locks.acquire(ID, RIVAL, THEIRS)
    clock.advance(100)
    locks.keep(mine)
    assert locks.holder(ID).owner == RIVAL


def test_release_run_frees_every_lock_of_that_run_and_no_other(locks):
    for n in range(3):
        locks.acquire(f"stream#coinbase#A{n}-USD#trades", f"arn:child{n}", RUN)
    other = locks.acquire("ingest#binance", RIVAL, "arn:other")
    assert locks.release_run(RUN) == [f"stream#coinbase#A{n}-USD#trades" for n in range(3)]
    assert locks.holder("ingest#binance") == other
    assert locks.release_run(RUN) == []


def test_a_lock_taken_again_while_the_failure_rule_scans_stays(locks, monkeypatch):
    locks.acquire(ID, ME, RUN)
    scanned = locks._held_by(RUN)
    newer = locks.acquire(ID, ME, RUN, attempt=1)
    monkeypatch.setattr(locks, "_held_by", lambda run: scanned)
    assert locks.release_run(RUN) == []
    assert locks.holder(ID) == newer


def test_a_late_failure_event_leaves_the_locks_of_the_redrive(locks, clock):
    old = locks.acquire(ID, ME, RUN)
    ended = clock.now_ms()
    clock.advance(1)
    redriven = locks.acquire(ID, ME, RUN, attempt=1)
    assert locks.release_run(RUN, ended_ms=ended) == []
    assert locks.holder(ID) == redriven != old


def test_the_condition_check_passes_for_the_holder_and_for_nobody_else(locks, tables, clock):
    put = {"Put": {"TableName": tables.streams.name, "Item": {"stream": {"S": "s"}, "item": {"S": "i"}}}}
    lease = locks.acquire(ID, ME, RUN)
    clock.advance(3600)
    tables.client.transact_write_items(TransactItems=[locks.condition_check(lease), put])
    locks.acquire(ID, RIVAL, THEIRS)
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        tables.client.transact_write_items(TransactItems=[locks.condition_check(lease), put])


@pytest.mark.parametrize("over", ["redriven", "released"])
def test_the_condition_check_fails_for_an_older_attempt_and_after_the_release(locks, tables, over):
    lease = locks.acquire(ID, ME, RUN)
    if over == "redriven":
        locks.acquire(ID, ME, RUN, attempt=1)
    else:
        locks.release(lease)
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        tables.client.transact_write_items(TransactItems=[locks.condition_check(lease)])


@pytest.mark.parametrize(
    "broken",
    [
        {"owner": RIVAL, "run": THEIRS, "attempt": 0, "lease_until": 0},
        {"fence": "7"},
        {"fence": None},
        {"fence": 0, "owner": RIVAL, "run": THEIRS, "attempt": 0, "lease_until": 10**15},
        {"fence": 4, "owner": RIVAL, "run": THEIRS, "attempt": 0},
        {"fence": 4, "owner": RIVAL, "run": 5, "attempt": 0, "lease_until": 10**15},
    ],
)
def test_a_corrupt_item_is_never_taken(locks, table, broken):
    table.put_item(Item={"lock_id": ID, **broken})
    with pytest.raises(CorruptState, match="BTC-USD"):
        locks.acquire(ID, ME, RUN)


def test_a_lease_shorter_than_two_renewals_is_refused(table, clock):
    with pytest.raises(BadConfig, match="one missed renewal"):
        Locks(table, clock, lease_ms=59_999)


def test_a_renewer_writes_every_30_seconds_of_work(locks, table, clock):
    lease = locks.acquire(ID, ME, RUN)
    renewer = Renewer(locks.renew, lease, clock)
    before = table.writes
    for _ in range(300):
        clock.advance(1)
        renewer.tick()
    assert table.writes - before == 10
    locks.release(lease)
    clock.advance(30)
    with pytest.raises(LockLost):
        renewer.tick()


def test_the_second_pass_of_a_run_takes_over_what_its_first_pass_left(aws: Any) -> None:
    """The child of RetryFailedStreams has an ARN of its own; waiting for the lease would end it as skipped."""
    tables = create_tables(aws)
    locks = Locks(aws.resource("dynamodb").Table(tables["locks"]), FakeClock())
    first = locks.acquire("stream#x", "child-1", "run")
    second = locks.acquire("stream#x", "child-2", "run")
    assert second.fence == first.fence + 1
    with pytest.raises(LockLost):
        locks.renew(first)
    with pytest.raises(LockBusy):
        locks.acquire("stream#x", "child-3", "another run")
