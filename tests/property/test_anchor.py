"""First commits of a stream by ingests and by backfills at once, kills, take-overs and lost answers in any order.

Whoever makes the first commit, there is one: every other continues from it. Segments tile ``[low, high]``, nothing that
was committed disappears, no position is committed twice, and the mirror never knows more than the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from schemahub import anchor, coverage, ingest, mirror
from schemahub.clock import FakeClock
from schemahub.commit_below import commit_islands, lower
from schemahub.errors import LockBusy, LockLost
from schemahub.ledger import Ledger
from schemahub.locks import Lease, Locks
from schemahub.objects import ObjectStore
from schemahub.streams import Chunk, Interval, RawObject, Stream, covers, minus, overlapping
from tests.simulation import stores as simulation
from tests.unit.stores import BUCKET, NOW, STREAM, Faulty, cancelled, lost, tiles

HEAD = 200
FAULTS = ["lost", "conflict", "killed before", "killed after"]
steps = st.lists(
    st.tuples(
        st.sampled_from(["plan", "plan", "fill", "fill", "lower", "ingest", "ingest", "trade", "expire"]),
        st.sampled_from(["ann", "bob"]),
        st.integers(0, 60),
        st.lists(st.sampled_from(FAULTS), max_size=2),
    ),
    min_size=6,
    max_size=16,
)


class Killed(BaseException):
    """The process is gone: nobody catches it, and nothing is released."""


class Mortal(Locks):
    """Locks of a process that may be dead, which then releases nothing."""

    dead = False

    def release(self, lease: Lease) -> None:
        if self.dead:
            raise Killed
        super().release(lease)


@dataclass
class Market:
    """One stream of an exchange that shows everything up to ``head``, and its ledger, all in memory."""

    head: int = HEAD
    client: Faulty = field(init=False)
    ledger: Ledger = field(init=False)
    locks: Mortal = field(init=False)
    objects: ObjectStore = field(init=False)
    clock: FakeClock = field(default_factory=lambda: FakeClock(NOW))

    def __post_init__(self) -> None:
        account = simulation.Stores()
        self.client = Faulty(account.dynamo)
        self.ledger = Ledger(account.streams, self.client)
        self.locks, self.objects = Mortal(account.locks, self.clock), ObjectStore(BUCKET, account.s3)

    @property
    def deps(self) -> Any:
        """What ``anchor`` uses of ``Deps``."""
        return SimpleNamespace(
            ledger=self.ledger, locks=self.locks, objects=self.objects, clock=self.clock, count=lambda *_: None
        )

    @contextmanager
    def process(self, faults: list[str]) -> Iterator[None]:
        """A process that meets these faults in its transactions."""

        def die() -> None:
            self.locks.dead = True
            raise Killed

        means: dict[str, tuple[str, Any]] = {
            "lost": ("after", lost()), "conflict": ("before", cancelled("TransactionConflict")),
            "killed before": ("before", die), "killed after": ("after", die),
        }  # fmt: skip
        self.client.faults = [means[name] for name in faults]
        try:
            with suppress(Killed, LockBusy, LockLost):
                yield
        finally:
            self.client.faults, self.locks.dead = [], False

    # --- the actors -------------------------------------------------------------------------------------------------

    def backfill(self, action: str, who: str, down: int) -> None:
        lease = self.locks.acquire(STREAM.backfill_lock_id, who, who)
        if action == "plan":
            self.plan(lease)
        elif action == "fill":
            self.fill(lease, down)
        else:
            self.lower(lease)

    def plan(self, owner: Lease) -> None:
        mark = anchor.establish(self.deps, STREAM, owner)
        assert self.ledger.watermark(STREAM) == mark
        holder = self.locks.holder(STREAM.lock_id)
        assert holder is None or holder.owner != owner.owner, "the stream's lock is given back"

    def ingest(self, who: str) -> None:
        """A run of the stream: a few newest trades at first, later all above the watermark."""
        lease = self.locks.acquire(STREAM.lock_id, f"run-{who}", f"run-{who}")
        mark = self.ledger.watermark(STREAM)
        first = mark.high + 1 if mark else self.head - 24
        anchor.commit_segments(
            self.ledger, self.locks, lease, tiles(first, self.head), mark.high if mark else None, self.clock
        )
        mirror.heal(self.objects, self.ledger, STREAM)
        self.locks.release(lease)

    def fill(self, lease: Lease, down: int) -> None:
        """What is missing of some range below the watermark, as a backfill plans and commits it."""
        mark = self.ledger.watermark(STREAM)
        if mark is None:
            return
        last = max(0, mark.low - 1 - down)
        parts = coverage.missing(self.ledger, STREAM, Interval(max(0, last - 20), last))
        segments = [t for part in parts for t in tiles(*part, 7)]
        if segments:
            commit_islands(self.ledger, self.locks, lease, segments, self.clock)

    def lower(self, lease: Lease) -> None:
        if self.ledger.watermark(STREAM):
            lower(self.ledger, self.locks, lease, STREAM, self.clock)


@contextmanager
def shown_by(market: Market) -> Iterator[None]:
    """``anchor`` asks this exchange, and its raw objects are durable by saying so."""

    def durable(deps: Any, stream: Stream, chunk: Chunk, tick: Any) -> tuple[RawObject, None]:
        key = f"{stream.raw_prefix}{chunk.first:020d}_{chunk.last:020d}_{chunk.size}.jsonl.zst"
        return RawObject(key, chunk.first, chunk.last, chunk.size, "a" * 64), None

    def newest(deps: Any, stream: Stream) -> Chunk:
        return Chunk(market.head - 9, market.head)

    with (
        mock.patch.object(anchor, "newest_chunk", newest),
        mock.patch.object(ingest, "make_durable", durable),
    ):
        yield


def judge(market: Market, before: list[Interval]) -> list[Interval]:
    """The invariants; what is committed now."""
    segments = list(market.ledger.segments(STREAM))
    spans, mark = [s.interval for s in segments], market.ledger.watermark(STREAM)
    assert not overlapping(spans)
    assert all(s.count == s.last - s.first + 1 for s in segments)
    if mark is None:
        assert not segments
        assert market.objects.get(STREAM.mirror_key) is None
        return []
    assert covers(spans, (mark.low, mark.high))
    assert max(s.last for s in segments) == mark.high <= market.head
    mirrored = mirror.parse(STREAM, market.objects.get(STREAM.mirror_key) or b"")
    assert mirrored is None or (mark.low <= mirrored.low and mirrored.high <= mark.high)
    now = coverage.covered(market.ledger, STREAM)
    assert not minus(before, now), "what was committed stays"
    return now


@settings(max_examples=80)
@given(steps)
def test_one_first_commit_and_nothing_lost_or_doubled_whoever_begins_and_whoever_dies(plan: list[Any]) -> None:
    market, now = Market(), list[Interval]()
    with shown_by(market):
        for action, who, number, faults in plan:
            if action == "trade":
                market.head += number
            elif action == "expire":
                market.clock.advance(200)
            else:
                with market.process(faults):
                    if action == "ingest":
                        market.ingest(who)
                    else:
                        event(f"{action} {'later' if market.ledger.watermark(STREAM) else 'first'}")
                        market.backfill(action, who, number)
            now = judge(market, now)
        # Whatever happened, a plan in peace makes or finds the first commit, and an ingest goes on above it.
        market.clock.advance(400)
        market.plan(market.locks.acquire(STREAM.backfill_lock_id, "last", "last"))
        now = judge(market, now)
        market.head += 5
        market.ingest("last")
        judge(market, now)
        mark = market.ledger.watermark(STREAM)
        assert mark is not None
        assert mark.high == market.head


def test_the_property_can_fail() -> None:
    """The judge sees a first commit that was made twice."""
    market = Market()
    market.ingest("ann")
    market.ledger.put_back(tiles(HEAD - 12, HEAD - 3), ())
    with pytest.raises(AssertionError):
        judge(market, [])
