"""Where a first run begins, on histories of every shape, by probes of both kinds of exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemahub import plan
from schemahub.answers import Row
from schemahub.plan import Head
from tests.unit.sources import STREAM, row

SECOND = 1_000_000


@dataclass
class History:
    """Trades without holes from ``first`` on, at growing times. ``skipped`` ids were never issued."""

    first: int
    times: list[int]
    descending: bool
    page_size: int
    skipped: frozenset[int] = frozenset()
    probes: list[int] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row(self.first + i, t) for i, t in enumerate(self.times) if self.first + i not in self.skipped]

    @property
    def page(self) -> list[Row]:
        newest = self.rows[-self.page_size :]
        return newest[::-1] if self.descending else newest

    def probe(self, position: int) -> Row | None:
        self.probes.append(position)
        if self.descending:
            return next((r for r in reversed(self.rows) if r.position <= position), None)
        return next((r for r in self.rows if r.position >= position), None)

    def begin(self, floor: int, target_us: int) -> int:
        return plan.cold_start(self.page, floor, target_us, self.page_size, self.probe)


@st.composite
def histories(draw: Any) -> History:
    steps = draw(st.lists(st.sampled_from([0, 1, 1, 2, 30, 3_600]), min_size=1, max_size=300))
    time, times = 1_700_000_000 * SECOND, []
    for step in steps:
        time += step * SECOND
        times.append(time)
    first = draw(st.one_of(st.integers(1, 50), st.integers(1, 10**7)))
    return History(first, times, draw(st.booleans()), draw(st.integers(1, 60)))


@st.composite
def questions(draw: Any) -> tuple[History, int, int]:
    history = draw(histories())
    head = history.rows[-1].position
    floor = draw(st.one_of(st.just(0), st.integers(0, head - 1), st.integers(max(0, head - 200), head - 1)))
    span = (history.times[0] - 10 * SECOND, history.times[-1] + 10 * SECOND)
    return history, floor, draw(st.integers(*span))


@given(questions())
def test_a_first_run_begins_at_a_trade_close_to_the_target_and_above_the_floor(
    question: tuple[History, int, int],
) -> None:
    history, floor, target = question
    begin = history.begin(floor, target)
    rows = {r.position: r.ts_us or 0 for r in history.rows}
    assert begin in rows, "a position that the exchange never issued would be a hole at the very beginning"
    assert begin > floor
    assert rows[begin] >= target or begin == max(rows), "nothing older than asked for"
    exact = min((i for i, t in rows.items() if t >= target and i > floor), default=max(rows))
    tolerance = max(1, history.page_size // 20)
    assert 0 <= begin - exact <= tolerance
    if target <= history.times[0]:
        assert begin == exact, "exact where history, or the cap, begins"


@given(questions())
def test_probes_are_few_and_never_below_the_floor(question: tuple[History, int, int]) -> None:
    history, floor, target = question
    history.begin(floor, target)
    assert all(floor < p < history.rows[-1].position for p in history.probes)
    assert len(history.probes) <= 3 * max(1, history.rows[-1].position - floor).bit_length() + 3 <= plan.MAX_PROBES + 3


@given(questions(), st.sets(st.integers(0, 299)))
def test_holes_in_the_history_change_nothing_but_the_tolerance(
    question: tuple[History, int, int], holes: set[int]
) -> None:
    history, floor, target = question
    last = history.first + len(history.times) - 1
    history.skipped = frozenset(history.first + h for h in holes) - {last}
    begin = history.begin(floor, target)
    rows = {r.position: r.ts_us or 0 for r in history.rows}
    assert begin in rows
    assert begin > floor
    exact = min((i for i, t in rows.items() if t >= target and i > floor), default=last)
    assert sum(exact <= i < begin for i in rows) <= max(1, history.page_size // 20)


@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(0, 60)), min_size=1, max_size=40, unique_by=lambda pair: pair[0]
    ),
    st.integers(0, 30),
)
def test_no_young_trade_is_at_or_below_the_settled_head(ages: list[tuple[int, int]], settle_s: int) -> None:
    now = 1_700_000_000 * SECOND
    rows = [row(i, now - age * SECOND) for i, age in ages]
    head = plan.head_of(rows, STREAM, now, settle_s)
    assert all(r.position > head.settled for r in rows if (r.ts_us or 0) > now - settle_s * SECOND)
    assert head.newest == max(i for i, _ in ages)
    assert head.settled == head.newest or head == Head(min(i for i, a in ages if a < settle_s) - 1, head.newest)
