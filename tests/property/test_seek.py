"""A moment is found on any line of ids: dense, sparse, with holes, history that begins late, either way of paging."""

from __future__ import annotations

import math
from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from schemahub.answers import Row
from schemahub.seek import first_at
from schemahub.streams import Interval


def row(position: int, ts_us: int) -> Row:
    return Row(position, ts_us, "{}", str(position))


@st.composite
def lines(draw: st.DrawFn) -> list[Row]:
    """Trades by id with times that never run backwards: runs of neighbours, small skips, and leaps."""
    at, now, found = draw(st.integers(0, 10**9)), draw(st.integers(1, 10**15)), []
    steps = st.one_of(st.just(1), st.integers(1, 9), st.integers(10**3, 10**7))
    for step, pause in draw(st.lists(st.tuples(steps, st.sampled_from([0, 0, 1, 1000, 10**9])), min_size=1)):
        at, now = at + step, now + pause
        found.append(row(at, now))
    return found


@given(lines(), st.booleans(), st.sampled_from([1, 2, 7, 1000]), st.data())
def test_the_first_trade_that_is_not_older_is_found(
    line: list[Row], descending: bool, page: int, data: st.DataObject
) -> None:
    ids = [r.position for r in line]
    first = data.draw(st.integers(max(0, ids[0] - 10**6), ids[-1] + 1))
    last = data.draw(st.integers(first, ids[-1] + 10**6))
    times = [r.ts_us or 0 for r in line]
    when = data.draw(st.one_of(st.sampled_from(times), st.integers(times[0] - 10, times[-1] + 10)))
    asked = []

    def ask(at: int) -> list[Row]:
        asked.append(at)
        assert first <= at <= last, "asked for what lies outside"
        if descending:
            end = bisect_left(ids, at + 1)
            return line[max(0, end - page) : end]
        begin = bisect_left(ids, at)
        return line[begin : begin + page]

    found = first_at(when, Interval(first, last), ask, descending)

    expected = next((r.position for r in line if first <= r.position <= last and (r.ts_us or 0) >= when), last + 1)
    before = [r for r in line if first <= r.position < found and (r.ts_us or 0) >= when]
    behind = [r for r in line if found <= r.position < expected]
    assert not before, "a trade that is not older lies before the place"
    assert not behind, "the place is not at the trade, nor in the hole before it"
    assert len(asked) <= 2 * math.ceil(math.log2(last - first + 2)) + 2


def test_a_leap_in_time_does_not_make_it_walk() -> None:
    """By interpolation alone each question would be the next id."""
    line, asked = Interval(0, 1_000_000), []

    def ask(at: int) -> list[Row]:
        asked.append(at)
        return [row(at, at if at < line.last else 10**18)]

    for descending in (False, True):
        assert first_at(500_000, line, ask, descending) == 500_000
    assert len(asked) <= 2 * 42
