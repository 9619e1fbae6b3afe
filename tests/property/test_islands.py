"""An ingest and two backfills of one stream, zombies, lost answers, kills and replays in any order.

Segments never overlap, they tile ``[low, high]``, ``low`` only falls and ``high`` only grows, each moved by its own
side only; and what a commit says is what the ledger holds.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from schemahub import coverage
from schemahub.clock import FakeClock
from schemahub.commit import Committed, Fenced, Superseded
from schemahub.commit_below import commit_islands, lower
from schemahub.errors import LockBusy, LockLost
from schemahub.ledger import Ledger
from schemahub.locks import Lease, Locks
from schemahub.objects import ObjectStore
from schemahub.streams import Interval, Segment, covers, gaps, overlapping
from tests.simulation import stores as simulation
from tests.unit.stores import BUCKET, NOW, STREAM, Faulty, Stores, cancelled, lost, segment, tiles

LOW, HIGH = 201, 260


class Killed(BaseException):
    """The process is gone before or after its transaction: nobody catches it."""


def die() -> None:
    raise Killed


FAULTS = [("after", lost()), ("before", lost()), ("before", cancelled("TransactionConflict")), ("after", die),
          ("before", die)]  # fmt: skip
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["fill", "fill", "fill", "plan", "zombie", "replay", "lower", "lower", "advance", "expire", "ingest"]
        ),
        st.sampled_from(["ann", "bob"]),
        st.integers(0, LOW + 20),
        st.integers(0, 60),
        st.sampled_from([7, 10, 25]),
        st.sampled_from("ab"),
        st.lists(st.sampled_from(FAULTS), max_size=2),
    ),
    min_size=8,
    max_size=18,
)


def make_stores() -> Stores:
    """In memory, with AWS's semantics: an example is a dozen commits, each with its looks."""
    account, clock = simulation.Stores(), FakeClock(NOW)
    client = Faulty(account.dynamo)
    return Stores(
        Ledger(account.streams, client), Locks(account.locks, clock), clock, ObjectStore(BUCKET, account.s3), client,
        {"locks": account.locks, "streams": account.streams},
    )  # fmt: skip


@settings(max_examples=60)
@given(steps)
def test_tiling_whatever_happens_on_both_sides_of_the_watermark(plan: list[Any]) -> None:
    stores = make_stores()
    stores.commit(stores.lease("ingest"), tiles(LOW, HIGH), None)
    ingest = stores.lease("ingest")
    leases: dict[str, Lease] = {}
    old: list[Lease] = []
    tried: list[tuple[Lease, list[Segment]]] = []
    low, high = LOW, HIGH
    for action, who, first, length, size, content, faults in plan:
        held = leases.get(who)
        before = coverage.covered(stores.ledger, STREAM)
        stores.client.faults = []
        if action == "expire":
            stores.clock.advance(200)
        elif held is None:
            with suppress(LockBusy):
                leases[who] = stores.locks.acquire(STREAM.backfill_lock_id, who, who)
        elif action == "advance":
            with suppress(LockLost):
                old.append(held)
                leases[who] = stores.locks.advance(held)
        elif action == "ingest":
            stores.client.faults = [f for f in faults if f[1] is not die]
            assert isinstance(stores.commit(ingest, tiles(high + 1, high + 10), high), Committed)
            high += 10
        elif action == "lower":
            stores.client.faults = list(faults)
            with suppress(LockLost, Killed):
                lower(stores.ledger, stores.locks, held, STREAM, stores.clock)
        else:
            if action == "replay" and tried:
                using, segments = tried[-1]
            elif action == "plan":
                # As a plan does it: a new fence, then what is missing, cut by another grid.
                with suppress(LockLost):
                    old.append(held)
                    leases[who] = stores.locks.advance(held)
                span = Interval(first, first + length)
                parts = coverage.missing(stores.ledger, STREAM, span)
                using, segments = leases[who], [t for part in parts for t in tiles(*part, size, content)]
            else:
                using = old[first % len(old)] if action == "zombie" and old else held
                segments = tiles(first, first + length, size, content)
            if segments:
                tried.append((using, segments))
                stores.client.faults = list(faults)
                check(stores, using, segments, before)
        stores.client.faults = []
        low = judge(stores, low, high, action)


def check(stores: Stores, using: Lease, segments: list[Segment], before: list[Interval]) -> None:
    """What a commit says, against what the ledger holds."""
    allowed = stores.locks.holder(using.lock_id) == using
    try:
        outcome = commit_islands(stores.ledger, stores.locks, using, segments, stores.clock)
    except Killed:
        event("killed")
        return
    event(type(outcome).__name__ + (" already" if getattr(outcome, "already", False) else ""))
    there = [stores.ledger.segment(STREAM, s.first) for s in segments]
    done = [t is not None and t.commit_id == s.commit_id for t, s in zip(there, segments, strict=True)]
    match outcome:
        case Committed():
            assert all(done)
            assert allowed or coverage.covered(stores.ledger, STREAM) == before
        case Superseded():
            assert not all(done)
            covered = coverage.covered(stores.ledger, STREAM)
            mark = coverage.watermark(stores.ledger, STREAM)
            for segment_, is_there in zip(segments, done, strict=True):
                # What is not its own touches another's, or lies above the watermark.
                touched = gaps(covered, segment_.interval) != [segment_.interval]
                assert is_there or touched or segment_.last >= mark.low
        case Fenced():
            assert not allowed
            assert coverage.covered(stores.ledger, STREAM) == before


def judge(stores: Stores, low: int, high: int, action: str) -> int:
    """The invariants; the watermark's low end now."""
    mark = coverage.watermark(stores.ledger, STREAM)
    segments = list(stores.ledger.segments(STREAM))
    spans = [s.interval for s in segments]
    assert not overlapping(spans)
    assert covers(spans, (mark.low, mark.high))
    assert all(s.count == s.last - s.first + 1 for s in segments)
    assert mark.high == high == max(s.last for s in segments), "only the ingest moves high"
    assert mark.low == low or (mark.low < low and action == "lower"), "low only falls, and only when it is lowered"
    assert not [s for s in segments if s.first < mark.low <= s.last], "no segment lies on both sides"
    return mark.low


def test_the_property_can_fail() -> None:
    """The judge sees a segment that overlaps another."""
    stores = make_stores()
    stores.commit(stores.lease(), tiles(LOW, HIGH), None)
    stores.ledger.put_back([segment(150, 170), segment(160, 180)], ())
    with pytest.raises(AssertionError):
        judge(stores, LOW, HIGH, "fill")
