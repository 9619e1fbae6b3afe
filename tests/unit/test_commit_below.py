"""Commits below the watermark under every kind of doubt, and how the watermark falls over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError

from schemahub import coverage
from schemahub.commit import Committed, Fenced, Outcome, Superseded
from schemahub.commit_below import MAX_TRIES, commit_islands, lower
from schemahub.errors import CorruptState, LockLost, NothingIngested
from schemahub.locks import Lease
from schemahub.streams import Absent, Interval, Segment, Stream
from tests.unit.stores import STREAM, Stores, account, cancelled, lost, segment, tiles

OTHER = Stream("binance", "BTC-USDT")


@pytest.fixture(scope="module")
def module_stores() -> Iterator[Stores]:
    with account() as stores:
        yield stores


@pytest.fixture
def stores(module_stores: Stores) -> Stores:
    """A stream whose ingest holds 1001..1100."""
    stores = module_stores.empty()
    stores.commit(stores.lease(), tiles(1001, 1100), None)
    stores.client.calls = 0
    return stores


def lease(stores: Stores, owner: str = "filler") -> Lease:
    return stores.locks.acquire(STREAM.backfill_lock_id, owner, owner)


def islands(stores: Stores, held: Lease, segments: list[Segment]) -> Outcome:
    return commit_islands(stores.ledger, stores.locks, held, segments, stores.clock)


def fall(stores: Stores, held: Lease) -> int:
    return lower(stores.ledger, stores.locks, held, STREAM, stores.clock)


def marks(stores: Stores) -> tuple[int, int]:
    mark = stores.ledger.watermark(STREAM)
    assert mark is not None
    return mark.low, mark.high


def test_islands_are_covered_before_the_watermark_falls_over_them(stores: Stores) -> None:
    held = lease(stores)
    assert islands(stores, held, [segment(901, 910), segment(981, 1000), segment(931, 950)]) == Committed(1000)
    assert marks(stores) == (1001, 1100), "the watermark is moved by its own transaction"
    assert coverage.covered(stores.ledger, STREAM) == [(901, 910), (931, 950), (981, 1100)]
    assert coverage.missing(stores.ledger, STREAM, Interval(905, 1200)) == [(911, 930), (951, 980)]
    assert coverage.unfetched(stores.ledger, STREAM) == [(911, 930), (951, 980)]
    assert fall(stores, held) == 981
    assert marks(stores) == (981, 1100)
    islands(stores, held, tiles(951, 980))
    assert fall(stores, held) == 931, "over the new ones and the older island behind them"
    assert fall(stores, held) == 931, "repeating it changes nothing"
    assert coverage.unfetched(stores.ledger, STREAM) == [(911, 930)]


def test_a_stream_that_was_never_ingested_says_what_to_do(stores: Stores) -> None:
    held = stores.locks.acquire(OTHER.backfill_lock_id, "filler", "filler")
    for act in (
        lambda: commit_islands(stores.ledger, stores.locks, held, [segment(1, 9, stream=OTHER)], stores.clock),
        lambda: lower(stores.ledger, stores.locks, held, OTHER, stores.clock),
        lambda: coverage.missing(stores.ledger, OTHER, Interval(1, 9)),
    ):
        with pytest.raises(NothingIngested, match="schemahub ingest"):
            act()
    assert coverage.unfetched(stores.ledger, OTHER) == []


def test_islands_are_pending_and_their_holes_are_listed(stores: Stores) -> None:
    one = segment(981, 1000)
    holed = replace(one, count=15, absent=(Absent(990, 994, "exchange_skipped"),))
    assert isinstance(islands(stores, lease(stores), [holed]), Committed)
    assert [h.first for h in stores.ledger.holes(STREAM)] == [990]
    assert next(s.first for s in stores.ledger.pending()) == 981


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_is_looked_up(stores: Stores, when: str) -> None:
    held = lease(stores)
    stores.client.faults = [(when, lost())]
    assert isinstance(islands(stores, held, tiles(951, 1000)), Committed)
    assert stores.client.calls == (2 if when == "before" else 1)
    stores.client.faults = [(when, lost())]
    assert fall(stores, held) == 951
    assert marks(stores) == (951, 1100)


def test_the_same_task_twice_commits_once(stores: Stores) -> None:
    held = lease(stores)
    assert islands(stores, held, tiles(951, 1000)) == Committed(1000)
    calls = stores.client.calls
    assert islands(stores, held, tiles(941, 1000)) == Committed(1000), "what is there is left out"
    assert islands(stores, held, tiles(941, 1000)) == Committed(1000, already=True)
    assert stores.client.calls == calls + 1


def test_what_another_grid_covers_is_never_covered_twice(stores: Stores) -> None:
    held = lease(stores)
    islands(stores, held, [segment(951, 970)])
    for overlapping in (segment(941, 951), segment(970, 980), segment(955, 960), segment(940, 990), segment(951, 969)):
        assert islands(stores, held, [overlapping]) == Superseded(1001), overlapping.interval
    assert islands(stores, held, [segment(951, 970, "b")]) == Superseded(1001), "other content"
    assert islands(stores, held, [segment(960, 975), segment(976, 980), segment(981, 1000)]) == Superseded(1001)
    assert coverage.covered(stores.ledger, STREAM) == [(951, 970), (976, 1100)], "the others are committed"


def test_nothing_at_or_above_the_watermark_is_written(stores: Stores) -> None:
    held = lease(stores)
    for above in (segment(1101, 1110), segment(995, 1001), segment(1051, 1060, "b"), segment(990, 1200)):
        assert islands(stores, held, [above]) == Superseded(1001)
    assert stores.client.calls == 0
    # Not even when the look itself was stale.
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        stores.ledger.commit_below(stores.locks, held, [segment(2001, 2010)], 0)
    assert coverage.covered(stores.ledger, STREAM) == [(1001, 1100)]


def test_a_rival_between_look_and_commit_is_seen(stores: Stores) -> None:
    """Two tasks of one lease, with another grid each, both see the range free: the second to write looks again."""
    held = lease(stores)

    def rival() -> None:
        stores.client.faults = []
        assert islands(stores, held, [segment(961, 985, "b")]) == Committed(985)

    stores.client.faults = [("before", rival)]
    assert islands(stores, held, [segment(951, 970)]) == Superseded(1001)
    assert coverage.covered(stores.ledger, STREAM) == [(961, 985), (1001, 1100)]


def test_a_rival_elsewhere_only_costs_another_try(stores: Stores) -> None:
    held = lease(stores)

    def rival() -> None:
        stores.client.faults = []
        islands(stores, held, [segment(101, 120)])

    stores.client.faults = [("before", rival)]
    assert islands(stores, held, [segment(951, 970)]) == Committed(970)
    assert stores.ledger.islands(STREAM) == 2


def test_however_many_rivals_come_first_each_is_progress(stores: Stores) -> None:
    """Many tasks commit side by side: one that always comes second waits, and is no error."""
    held, firsts = lease(stores), list(range(100, 100 + 10 * (MAX_TRIES + 3), 10))

    def rival() -> None:
        if firsts:
            left, stores.client.faults = stores.client.faults, []
            islands(stores, held, [segment(at := firsts.pop(), at + 9)])
            stores.client.faults = left

    stores.client.faults = [("before", rival)] * 100
    assert islands(stores, held, [segment(951, 970)]) == Committed(970)
    assert not firsts
    assert stores.ledger.islands(STREAM) == MAX_TRIES + 4


def test_an_old_fence_commits_and_lowers_nothing(stores: Stores) -> None:
    old = lease(stores)
    islands(stores, old, [segment(991, 1000)])
    new = stores.locks.advance(old)
    assert new.fence == old.fence + 1
    assert islands(stores, old, [segment(981, 990)]) == Fenced()
    with pytest.raises(LockLost):
        fall(stores, old)
    assert marks(stores) == (1001, 1100)
    assert islands(stores, new, [segment(981, 990)]) == Committed(990)
    assert fall(stores, new) == 981


def test_an_old_fence_is_told_what_it_had_committed_before(stores: Stores) -> None:
    old = lease(stores)

    def applied_then_taken_over() -> None:
        stores.locks.advance(old)
        raise lost()

    stores.client.faults = [("after", applied_then_taken_over)]
    assert islands(stores, old, [segment(991, 1000)]) == Committed(1000, already=True)


def test_another_owner_is_fenced_out_and_keeps_out(stores: Stores) -> None:
    old = lease(stores)
    stores.clock.advance(200)
    rival = lease(stores, "rival")
    with pytest.raises(LockLost, match="rival holds fence 2"):
        stores.locks.advance(old)
    assert islands(stores, old, [segment(991, 1000)]) == Fenced()
    assert islands(stores, rival, [segment(991, 1000)]) == Committed(1000)


def test_the_ingests_lock_is_another(stores: Stores) -> None:
    """A backfill and an ingest hold their locks at the same time; the one's lease commits nothing of the other's."""
    held, ingest = lease(stores), stores.locks.acquire(STREAM.lock_id, "ingest", "me")
    assert stores.commit(ingest, tiles(1101, 1110), 1100) == Committed(1110)
    assert islands(stores, held, [segment(991, 1000)]) == Committed(1000)
    assert fall(stores, held) == 991
    assert stores.commit(ingest, tiles(1111, 1120), 1110) == Committed(1120), "high is moved from where it was"
    assert marks(stores) == (991, 1120)


def test_a_transaction_in_the_way_is_waited_for(stores: Stores) -> None:
    held = lease(stores)
    before = stores.clock.now_ms()
    stores.client.faults = [("before", cancelled("TransactionConflict"))] * (MAX_TRIES - 1)
    assert islands(stores, held, [segment(991, 1000)]) == Committed(1000)
    assert stores.clock.now_ms() > before
    stores.client.faults = [("before", cancelled("TransactionConflict"))] * (MAX_TRIES - 1)
    assert fall(stores, held) == 991


@pytest.mark.parametrize("error", [cancelled("ValidationError"), cancelled("None", "ConditionalCheckFailed")])
def test_what_does_not_pass_is_said(stores: Stores, error: Exception) -> None:
    held = lease(stores)
    stores.client.faults = [("before", error)] * MAX_TRIES
    with pytest.raises((ClientError, CorruptState)):
        islands(stores, held, [segment(991, 1000)])
    assert coverage.covered(stores.ledger, STREAM) == [(1001, 1100)]
    stores.client.faults = []
    islands(stores, held, [segment(991, 1000)])
    stores.client.faults = [("before", error)] * MAX_TRIES
    with pytest.raises(ClientError):
        fall(stores, held)
    assert marks(stores) == (1001, 1100)


def test_more_islands_than_a_transaction_takes(stores: Stores) -> None:
    held = lease(stores)
    assert islands(stores, held, list(reversed(tiles(101, 1000, size=4)))) == Committed(1000)
    assert stores.client.calls == 3
    assert fall(stores, held) == 101


def test_lower_ends_at_position_zero(stores: Stores) -> None:
    held = lease(stores)
    islands(stores, held, tiles(0, 1000, size=500))
    assert fall(stores, held) == 0
    assert fall(stores, held) == 0
    assert coverage.missing(stores.ledger, STREAM, Interval(0, 2000)) == []


def test_segments_that_overlap_each_other_are_a_mistake_of_the_caller(stores: Stores) -> None:
    with pytest.raises(ValueError, match="do not overlap"):
        islands(stores, lease(stores), [segment(951, 970), segment(970, 980)])
    with pytest.raises(ValueError, match="one stream"):
        islands(stores, lease(stores), [])


def test_a_conflict_with_a_transaction_does_not_end_a_lease(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """DynamoDB refuses a single write while a transaction holds the item: heartbeats meet the tasks' commits."""
    held, table = lease(stores), stores.locks._table
    refusals = [1, 2]
    real = table.update_item

    def update_item(**arguments: object) -> object:
        if refusals:
            refusals.pop()
            raise ClientError({"Error": {"Code": "TransactionConflictException", "Message": ""}}, "UpdateItem")
        return real(**arguments)

    monkeypatch.setattr(table, "update_item", update_item)
    stores.locks.renew(held)
    assert not refusals
