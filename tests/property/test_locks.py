"""Random histories of a lock: rivals, redrives, wrong clocks, lost answers, late zombies."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemahub.clock import FakeClock
from schemahub.errors import LockBusy, LockLost
from schemahub.locks import LEASE_MS, Lease, Locks
from tests.dynamodb import Watched, fresh_tables

ID = "stream#binance#BTC-USDT#trades"
OWNERS = st.sampled_from(["arn:a", "arn:b", "arn:c"])
SKEWS_S = {"arn:a": 0.0, "arn:b": 2.4, "arn:c": -2.4}
"""Within the allowance of 5 s between any two."""


class LockHistory(RuleBasedStateMachine):
    """The model knows the true time and to whom the lock belongs; the code sees only its own clocks."""

    def __init__(self) -> None:
        super().__init__()
        self._world = ExitStack()
        self.table = Watched(self._world.enter_context(fresh_tables()).locks)
        self.true = FakeClock()
        self.clocks = {owner: FakeClock(self.true.now_ms() + round(skew * 1000)) for owner, skew in SKEWS_S.items()}
        self.locks = {owner: Locks(self.table, clock) for owner, clock in self.clocks.items()}
        self.attempts = dict.fromkeys(SKEWS_S, 0)
        self.leases: list[Lease] = []
        self.holder: Lease | None = None
        self.touched_ms = 0
        self.highest = 0
        self.who_had: dict[int, tuple[str, int]] = {}

    def teardown(self) -> None:
        self._world.close()

    def _took(self, lease: Lease) -> None:
        """The model's judgement of a granted lease."""
        mine = (lease.owner, lease.attempt)
        if self.who_had.setdefault(lease.fence, mine) != mine:
            raise AssertionError(f"fence {lease.fence} belongs to {self.who_had[lease.fence]} and to {mine}")
        same = self.holder is not None and (self.holder.owner, self.holder.attempt) == mine
        if same:
            assert lease.fence == self.highest, "the same attempt keeps its fence"
        else:
            assert lease.fence == self.highest + 1, "a new holder has the next fence"
            if self.holder is not None and self.holder.owner != lease.owner:
                assert self.true.now_ms() >= self.touched_ms + LEASE_MS, "a live lease was taken"
        self.highest, self.holder = lease.fence, lease
        self.touched_ms = self.true.now_ms()
        self.leases.append(lease)

    @rule(owner=OWNERS, lost=st.booleans())
    def acquire(self, owner: str, lost: bool) -> None:
        self.table.lose_next = int(lost)
        try:
            self._took(self.locks[owner].acquire(ID, owner, "run:" + owner, self.attempts[owner]))
        except LockBusy:
            assert self.holder is not None
            assert self.holder.owner != owner

    @rule(owner=OWNERS)
    def redrive(self, owner: str) -> None:
        self.attempts[owner] += 1

    @rule(seconds=st.sampled_from([1, 30, 89, 96, 300]))
    def time_passes(self, seconds: float) -> None:
        for clock in (self.true, *self.clocks.values()):
            clock.advance(seconds)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lost=st.booleans())
    def renew(self, data: st.DataObject, lost: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.table.lose_next = int(lost)
        if self._current(lease):
            self.locks[lease.owner].renew(lease)
            self.touched_ms = self.true.now_ms()
        else:
            with pytest.raises(LockLost):
                self.locks[lease.owner].renew(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lost=st.booleans())
    def ensure(self, data: st.DataObject, lost: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.table.lose_next = int(lost)
        try:
            got, took_over = self.locks[lease.owner].ensure(lease, self.attempts[lease.owner])
        except LockLost:
            assert not self._current(lease)
            return
        assert took_over == (got != lease)
        if took_over:
            self._took(got)
        else:
            self.touched_ms = self.true.now_ms()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lost=st.booleans())
    def release(self, data: st.DataObject, lost: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        holder = self.holder
        self.table.lose_next = int(lost)
        self.locks[lease.owner].release(lease)
        if holder is not None and holder.owner == lease.owner and holder.attempt <= lease.attempt:
            self.holder = None

    @rule(owner=OWNERS)
    def failure_rule(self, owner: str) -> None:
        freed = self.locks[owner].release_run("run:" + owner)
        assert freed == ([ID] if self.holder is not None and self.holder.owner == owner else [])
        if freed:
            self.holder = None

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_fetcher_keeps(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        owned = self.holder is not None and self.holder.owner == lease.owner
        try:
            self.locks[lease.owner].keep(lease)
        except LockLost:
            assert self.holder is not None
            assert not owned
        else:
            self.touched_ms = self.true.now_ms() if owned else self.touched_ms

    def _current(self, lease: Lease) -> bool:
        return self.holder is not None and (self.holder.owner, self.holder.fence) == (lease.owner, lease.fence)

    @invariant()
    def only_the_holder_would_pass_a_commit(self) -> None:
        item = self.table.get_item(Key={"lock_id": ID}).get("Item", {})
        assert item.get("fence", 0) == self.highest
        stored = (item.get("owner"), item.get("fence"))
        passing = {(le.owner, le.fence) for le in self.leases} & {stored}
        assert passing == ({(self.holder.owner, self.holder.fence)} if self.holder else set())


TestLockHistory = LockHistory.TestCase
TestLockHistory.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
