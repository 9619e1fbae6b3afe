"""Rivals, zombies, lost answers and replays in any order: the ledger stays a tiling and says what is true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from schemahub import mirror
from schemahub.commit import Committed, Fenced, Superseded
from schemahub.errors import LockBusy
from schemahub.locks import Lease
from schemahub.streams import covers, overlapping
from tests.unit.stores import STREAM, Stores, account, cancelled, lost, tiles

FAULTS = [("after", lost()), ("before", lost()), ("before", cancelled("TransactionConflict"))]
steps = st.lists(
    st.tuples(
        st.sampled_from(["commit", "commit", "commit", "commit", "acquire", "expire", "replay", "publish", "mirror"]),
        st.sampled_from(["ann", "bob"]),
        st.sampled_from([0, 0, 0, 1, 5]),
        st.integers(1, 25),
        st.sampled_from([7, 10]),
        st.sampled_from("ab"),
        st.lists(st.sampled_from(FAULTS), max_size=2),
    ),
    min_size=6,
    max_size=14,
)


@pytest.fixture(scope="module")
def module_stores() -> Iterator[Stores]:
    with account() as stores:
        yield stores


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_ledger_stays_a_tiling_whatever_happens(module_stores: Stores, plan: list[Any]) -> None:
    stores = module_stores.empty()
    leases: dict[str, Lease] = {}
    tried: list[tuple[Lease, list[Any], int | None]] = []
    floor: int | None = None
    for action, who, shift, length, size, content, faults in plan:
        before = stores.ledger.watermark(STREAM)
        high = before.high if before else None
        if action == "expire":
            stores.clock.advance(200)
        elif action == "acquire" or who not in leases:
            with suppress(LockBusy):
                leases[who] = stores.lease(who)
        elif action == "publish":
            stores.ledger.mark_published(list(stores.ledger.segments(STREAM))[:2], f"snapshot-{who}")
        elif action == "mirror":
            mirror.heal(stores.objects, stores.ledger, STREAM)
        if (action == "commit" and who in leases) or (action == "replay" and tried):
            base = high + shift if high else None
            first = 101 if base is None else base + 1
            one = tried[-1] if action == "replay" else (leases[who], tiles(first, first + length, size, content), base)
            tried.append(one)
            stores.client.faults = list(faults)
            check(stores, stores.commit(*one), one, before)
        mark = stores.ledger.watermark(STREAM)
        if mark is None:
            continue
        spans = [s.interval for s in stores.ledger.segments(STREAM)]
        assert not overlapping(spans)
        assert covers(spans, (mark.low, mark.high))
        assert min(s.first for s in spans) == mark.low
        assert max(s.last for s in spans) == mark.high
        assert floor is None or mark.high >= floor, "high only grows"
        floor = mark.high


def check(stores: Stores, outcome: Any, tried: tuple[Lease, list[Any], int | None], before: Any) -> None:
    """What a commit says, against what the ledger holds."""
    lease, segments, _ = tried
    event(type(outcome).__name__ + (" already" if getattr(outcome, "already", False) else ""))
    after = stores.ledger.watermark(STREAM)
    match outcome:
        case Committed():
            assert all((stores.ledger.segment(STREAM, s.first) or s).commit_id == s.commit_id for s in segments)
            assert after is not None
            assert after.high >= segments[-1].last
        case Superseded(high):
            assert after == before
            assert high == (after.high if after else None)
        case Fenced():
            assert after == before
            holder = stores.locks.holder(lease.lock_id)
            assert holder is None or holder.fence > lease.fence
