"""Whatever an exchange answers, a chunk is exactly the exchange's trades or a named error; never silence."""

from __future__ import annotations

from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from schemahub.answers import Row
from schemahub.errors import EmptyPage, ExchangeError, IncompletePage, PageConflict
from schemahub.fetch import Fetched, fetch_chunk
from schemahub.streams import Chunk, gaps
from tests.unit.sources import STREAM, Asked, FakeSource, row, text_of

LOW, HIGH = 100, 130
"""The chunk. The exchange's trades lie around it, from 60 to 170."""


def fetch(source: FakeSource) -> Fetched:
    return fetch_chunk(
        source, STREAM, Chunk(LOW, HIGH), page_size=source.page_size, descending=source.descending, pause=source.pause
    )


def assert_exact(fetched: Fetched, source: FakeSource) -> None:
    true = [i for i in source.ids if LOW <= i <= HIGH]
    assert list(fetched.texts) == [text_of(i) for i in true]
    assert [(a.first, a.last) for a in fetched.absent] == gaps([(i, i) for i in true], (LOW, HIGH))
    assert {a.kind for a in fetched.absent} <= {"exchange_skipped"}


@st.composite
def honest_sources(draw: Any) -> FakeSource:
    """Ids with holes, but trades somewhere on both sides of the chunk."""
    skipped = draw(st.lists(st.tuples(st.integers(61, 169), st.integers(0, 40)), max_size=4))
    gone = {i for first, length in skipped for i in range(first, min(first + length, 169) + 1)}
    return FakeSource(set(range(60, 171)) - gone, page_size=draw(st.integers(2, 40)), descending=draw(st.booleans()))


@given(honest_sources())
def test_an_honest_exchange_is_copied_exactly(source: FakeSource) -> None:
    assert_exact(fetch(source), source)


@st.composite
def spoiled(draw: Any) -> list[tuple[str, int]]:
    """What happens to the n-th answer: mostly nothing."""
    kinds = [
        "",
        "",
        "",
        "short",
        "empty",
        "unordered",
        "repeated",
        "skip",
        "stray_below",
        "stray_above",
        "newest",
        "oldest",
        "changed",
        "overlap",
    ]
    return draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9)), max_size=6))


def spoil(kind: str, at: int, page: list[Row], source: FakeSource) -> list[Row]:
    ids = sorted(source.ids)
    cut = at % max(1, len(page))
    match kind:
        case "short":
            return page[: cut + 1]
        case "empty":
            return []
        case "unordered":
            return page[::-1]
        case "repeated":
            return page + page[:cut]
        case "skip":
            return page[:cut] + page[cut + 1 :]
        case "stray_below":
            return [*page[: cut + 1], row(1)]
        case "stray_above":
            return [*page[: cut + 1], row(10**9)]
        case "newest":
            return [row(i) for i in ids[-source.page_size :]][:: -1 if source.descending else 1]
        case "oldest":
            return [row(i) for i in ids[: source.page_size]][:: -1 if source.descending else 1]
        case "changed":
            return page + [Row(r.position, r.ts_us, r.text + " ") for r in page[:1]]
        case "overlap":
            return [row(i) for i in ids if page and 0 < abs(i - page[0].position) <= 3] + page
    return page


@given(honest_sources(), spoiled(), st.booleans())
def test_a_sick_exchange_is_copied_exactly_or_refused_by_name(
    source: FakeSource, faults: list[tuple[str, int]], for_ever: bool
) -> None:
    skips = {"left": 1}

    def hook(asked: Asked, page: list[Row]) -> list[Row]:
        if for_ever and faults:
            kind, at = faults[asked.number % len(faults)]
        else:
            kind, at = faults[asked.number] if asked.number < len(faults) else ("", 0)
        # Rows that are left out of two answers are believed to be absent (nobody can know better): so only once.
        if kind == "skip":
            kind, skips["left"] = ("skip" if skips["left"] else ""), 0
        return spoil(kind, at, page, source)

    source.spoil = hook
    try:
        fetched = fetch(source)
    except (EmptyPage, IncompletePage, PageConflict) as refused:
        error: ExchangeError = refused
    else:
        event("copied")
        assert_exact(fetched, source)
        return
    event(type(error).__name__)
    assert error.stream == str(STREAM)
    assert error.span is not None
