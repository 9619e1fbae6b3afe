"""Arithmetic of the line, against a model that counts single positions."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from schemahub import plan
from schemahub.streams import Chunk, Interval, continuous_prefix, covers, gaps, merge, overlapping, runs

TOP = 60
positions = st.integers(0, TOP)
spans = st.tuples(positions, positions).map(lambda pair: (min(pair), max(pair)))
many_spans = st.lists(spans, max_size=8)


def held(intervals: list[tuple[int, int]]) -> set[int]:
    return {p for first, last in intervals for p in range(first, last + 1)}


@given(many_spans)
def test_merge_keeps_each_position_in_disjoint_runs_that_do_not_touch(intervals: list[tuple[int, int]]) -> None:
    merged = merge(intervals)
    assert held([tuple(i) for i in merged]) == held(intervals)
    assert all(a.last + 1 < b.first for a, b in itertools.pairwise(merged))
    assert merge(merged) == merged


@given(many_spans, spans)
def test_gaps_are_exactly_what_is_open(intervals: list[tuple[int, int]], within: tuple[int, int]) -> None:
    holes = gaps(intervals, within)
    assert held([tuple(i) for i in holes]) == held([within]) - held(intervals)
    assert merge(holes) == holes
    assert covers(intervals, within) == (held([within]) <= held(intervals)) == (not holes)


@given(st.sets(positions))
def test_runs_are_the_positions(some: set[int]) -> None:
    assert held([tuple(i) for i in runs(some)]) == some


@given(many_spans)
def test_overlapping_finds_an_overlap_when_there_is_one(intervals: list[tuple[int, int]]) -> None:
    total = sum(last - first + 1 for first, last in intervals)
    assert bool(overlapping(intervals)) == (total > len(held(intervals)))


@given(st.integers(0, 10**6), st.integers(0, 5_000), st.integers(5, 700))
def test_a_cut_tiles_its_range_on_a_fixed_grid(first: int, length: int, size: int) -> None:
    last = first + length
    chunks = plan.cut(first, last, size)
    assert chunks[0].first == first
    assert chunks[-1].last == last
    assert all(a.last + 1 == b.first for a, b in itertools.pairwise(chunks))
    assert all(c.size <= size for c in chunks)
    assert all(c.first % size == 0 for c in chunks[1:]), "cuts lie at the multiples of the size"


@given(st.integers(0, 10**6), st.integers(0, 3_000), st.integers(0, 3_000), st.integers(5, 500), st.data())
def test_a_later_plan_meets_the_chunks_of_an_earlier_one(
    first: int, length: int, more: int, size: int, data: st.DataObject
) -> None:
    """All but the last of the earlier plan, which ended at that time's head: their raw objects are found again."""
    earlier, later = plan.cut(first, first + length, size), plan.cut(first, first + length + more, size)
    assert later[: len(earlier) - 1] == earlier[:-1]
    committed = data.draw(st.sampled_from(earlier))
    resumed = plan.cut(committed.last + 1, first + length + more, size)
    if committed != earlier[-1]:
        assert resumed == [c for c in later if c.first > committed.last]
    assert all(c.first % size == 0 for c in resumed[1:])


@given(st.integers(0, 10**6), st.integers(0, 5_000), st.integers(10, 100), st.integers(1, 20))
def test_a_limited_cut_is_the_beginning_of_the_whole_one(first: int, length: int, size: int, limit: int) -> None:
    assert plan.cut(first, first + length, size, limit) == plan.cut(first, first + length, size, 10**6)[:limit]


@given(st.integers(0, 1_000), st.integers(0, 1_000), st.integers(10, 100), st.data())
def test_the_continuous_prefix_is_the_longest_run_after_the_base(
    first: int, length: int, size: int, data: st.DataObject
) -> None:
    chunks = plan.cut(first, first + length, size)
    done = data.draw(st.sets(st.sampled_from(chunks)))
    order = data.draw(st.permutations(chunks))
    prefix = continuous_prefix(first - 1, order, done)
    assert prefix == chunks[: len(prefix)]
    assert set(prefix) <= done
    assert len(prefix) == len(chunks) or chunks[len(prefix)] not in done
    assert continuous_prefix(first - 2, order, done) == [], "a hole after the base stops everything"


@given(st.lists(st.tuples(positions, positions)))
def test_a_chunk_list_survives_only_when_it_is_ordered(pairs: list[tuple[int, int]]) -> None:
    chunks = [Chunk(min(p), max(p)) for p in pairs]
    ordered = all(a.last < b.first for a, b in itertools.pairwise(chunks))
    try:
        back = plan.from_jsonl(plan.to_jsonl(chunks))
    except plan.BadStateInput:
        assert not ordered
    else:
        assert ordered
        assert back == chunks


def test_gaps_beyond_the_wanted_range_do_not_count() -> None:
    assert gaps([(1, 3), (8, 9)], (2, 5)) == [Interval(4, 5)]
    assert gaps([], (2, 5)) == [Interval(2, 5)]
