"""The arithmetic of ``verify``: sums in closed form, sets of ids that are told apart, intervals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemahub.streams import Interval, common, minus, runs
from schemahub.verify import (
    SPAN,
    Sums,
    bucket_span,
    differing,
    judge_ids,
    neighbours,
    positions,
    sums_of,
)
from tests.proofs import BTC

IDS = st.sets(st.integers(0, 60), max_size=40)
FAR = st.sets(st.integers(SPAN - 4, SPAN + 4) | st.integers(2**40 - 3, 2**40 + 3), max_size=12)


def summed(ids: set[int] | list[int]) -> dict[int, Sums]:
    """As DuckDB sums up rows, by the definition."""
    found: dict[int, list[int]] = {}
    for i in ids:
        found.setdefault(i // SPAN, []).append(i % SPAN)
    return {b: Sums(len(p), sum(p), sum(x**2 for x in p), sum(x**3 for x in p)) for b, p in found.items()}


@given(IDS | FAR)
def test_sums_in_closed_form_are_those_of_the_ids(ids: set[int]) -> None:
    assert sums_of(runs(sorted(ids))) == summed(ids)


def test_a_whole_bucket_and_its_edges() -> None:
    assert sums_of([bucket_span(3)]) == summed(set(range(3 * SPAN, 4 * SPAN)))
    assert sums_of([(SPAN - 1, SPAN)]).keys() == {0, 1}


@given(IDS, st.sets(st.integers(0, 60), max_size=3), st.lists(st.integers(0, 60), max_size=3))
def test_sums_tell_small_differences_apart(ids: set[int], gone: set[int], extra: list[int]) -> None:
    """Up to three ids missing and three too many, doubled ones among them."""
    rows = sorted([*(ids - gone), *extra])
    assert (differing(summed(rows), runs(sorted(ids))) == []) == (rows == sorted(ids))


@given(IDS, IDS, st.sets(st.integers(0, 60), max_size=5))
def test_what_may_be_there_makes_no_difference_all_or_none(must: set[int], may: set[int], odd: set[int]) -> None:
    may -= must
    for rows in (must, must | may):
        assert differing(summed(rows), runs(sorted(must)), runs(sorted(may))) == []
    if must ^ odd not in (must, must | may) and len(odd) <= 3 and not may:
        assert differing(summed(must ^ odd), runs(sorted(must))) == [0]


@given(IDS, IDS, st.lists(st.integers(0, 60), max_size=30))
def test_ids_are_judged_one_by_one(must: set[int], may: set[int], rows: list[int]) -> None:
    counted = [(i, rows.count(i)) for i in set(rows)]
    found = judge_ids(BTC, Interval(0, 60), counted, runs(sorted(must)), runs(sorted(may)))
    named = {
        kind: {i for f in found if f.kind == kind and f.span for i in range(f.span[0], f.span[1] + 1)}
        for kind in ("rows_missing", "rows_doubled", "rows_stray")
    }
    assert named["rows_missing"] == must - set(rows)
    assert named["rows_stray"] == set(rows) - must - may
    assert named["rows_doubled"] == {i for i, n in counted if n > 1}


@given(IDS, IDS)
def test_intervals_are_sets(one: set[int], other: set[int]) -> None:
    a, b = runs(sorted(one)), runs(sorted(other))
    assert set(positions(minus(a, b))) == one - other
    assert set(positions(common(a, b))) == one & other
    assert minus(a, b) == runs(sorted(one - other)), "sorted, disjoint, joined"


@given(st.sets(st.integers(0, 40)), st.integers(1, 8))
def test_buckets_are_grouped_without_loss(buckets: set[int], most: int) -> None:
    groups = neighbours(buckets, most)
    assert [b for first, last in groups for b in range(first, last + 1)] == sorted(buckets)
    assert all(last - first < most for first, last in groups)
