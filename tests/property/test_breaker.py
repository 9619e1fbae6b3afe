"""Random histories of a breaker: several workers, wrong clocks, lost answers, dead probers, late reports."""

from __future__ import annotations

import random
from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemahub.breaker import Breaker, Permit
from schemahub.clock import FakeClock
from schemahub.errors import CircuitOpen
from tests.dynamodb import Watched, fresh_tables

WORKERS = st.integers(0, 3)
SKEWS_MS = (0, 40, -40, 90)


class BreakerHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._world = ExitStack()
        self.table = Watched(self._world.enter_context(fresh_tables()).throttle)
        self.clocks = [FakeClock(FakeClock().now_ms() + skew) for skew in SKEWS_MS]
        self.workers = [self._worker(n) for n in range(len(SKEWS_MS))]
        self.permits: list[tuple[int, Permit]] = []
        self.probes: dict[int, int] = {}
        self.generation = 0

    def _worker(self, n: int) -> Breaker:
        return Breaker(self.table, "x", self.clocks[n], random.Random(n))

    def teardown(self) -> None:
        self._world.close()

    def _item(self) -> dict:
        return self.table.get_item(Key={"exchange": "x#breaker"}).get("Item", {})

    @rule(n=WORKERS, lost=st.booleans())
    def ask(self, n: int, lost: bool) -> None:
        self.table.lose_next = int(lost)
        before = self._item()
        seen_closed_for = self.clocks[n].now_ms() - self.workers[n]._seen_at
        try:
            permit = self.workers[n].before()
        except CircuitOpen:
            return
        finally:
            self.table.lose_next = 0
        if permit.probe:
            assert permit.generation not in self.probes, "two probes of one generation"
            self.probes[permit.generation] = n
            assert self.clocks[n].now_ms() >= before["probe_until" if before["state"] == "half_open" else "open_until"]
        elif before.get("state", "closed") != "closed":
            assert seen_closed_for < 1000, "a permit from an open breaker, longer than the staleness allows"
        self.permits.append((n, permit))

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), ok=st.booleans(), lost=st.booleans())
    def report(self, data: st.DataObject, ok: bool, lost: bool) -> None:
        """Of any age; some are never reported, some twice."""
        n, permit = data.draw(st.sampled_from(self.permits))
        self._report(n, permit, ok, lost)

    @rule(n=WORKERS)
    def the_exchange_fails(self, n: int) -> None:
        # One more than the threshold: the first may be of a generation that this worker does not know to be over.
        for _ in range(6):
            try:
                self._report(n, self.workers[n].before(), False, False)
            except CircuitOpen:
                return
        raise AssertionError("six failures in a row did not open it")

    def _report(self, n: int, permit: Permit, ok: bool, lost: bool) -> None:
        before = self._item()
        self.table.lose_next = int(lost)
        self.workers[n].report(permit, ok)
        self.table.lose_next = 0
        if before.get("gen", 0) != permit.generation:
            assert self._item() == before, "a report of an older generation changed something"

    @rule(seconds=st.sampled_from([0.1, 0.9, 1.1, 6, 31, 130]))
    def time_passes(self, seconds: float) -> None:
        for clock in self.clocks:
            clock.advance(seconds)

    @invariant()
    def generations_only_grow_and_a_probe_has_an_end(self) -> None:
        item = self._item()
        assert item.get("gen", 0) >= self.generation
        self.generation = item.get("gen", 0)
        now = max(clock.now_ms() for clock in self.clocks)
        if item.get("state") == "open":
            assert item["open_until"] <= now + 121_000
        if item.get("state") == "half_open":
            assert item["probe_until"] <= now + 31_000

    def _heals(self) -> None:
        for _ in range(3):
            self.time_passes(130)
            worker = self._worker(0)
            worker.report(worker.before(), ok=True)
        assert not self._worker(1).before().probe

    @rule()
    def when_the_faults_stop_it_closes(self) -> None:
        self._heals()


TestBreakerHistory = BreakerHistory.TestCase
TestBreakerHistory.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
