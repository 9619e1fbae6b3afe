"""Plans by example: heads, first runs, chunk lists, estimates."""

from __future__ import annotations

import pytest

from schemahub import plan
from schemahub.answers import Row
from schemahub.errors import BadStateInput, EmptyPage, HeadBehindWatermark, MalformedResponse
from schemahub.mappings import load_mapping
from schemahub.paging import ColdStart, Expected, paging_of
from schemahub.plan import Head
from schemahub.streams import MAX_POSITION, Chunk
from tests.unit.sources import STREAM, row

NOW_US = 1_000_000_000


def ages(*pairs: tuple[int, float]) -> list[Row]:
    """Trades by (id, age in seconds)."""
    return [row(i, NOW_US - round(age * 1e6)) for i, age in pairs]


@pytest.mark.parametrize(
    ("rows", "head"),
    [
        (ages((1, 60), (2, 50)), Head(2, 2)),
        (ages((1, 60), (2, 5), (3, 4.9)), Head(2, 3)),
        (ages((9, 1), (8, 2)), Head(7, 9)),
        (ages((7, 60), (8, 1), (9, 60)), Head(7, 9)),
        (ages((7, 60), (8, -86_401), (9, 60)), Head(9, 9)),  # no young trade: its time is wrong
        (ages((7, 60), (8, -86_399), (9, 60)), Head(7, 9)),
    ],
)
def test_the_head_is_the_trade_before_the_first_young_one(rows: list[Row], head: Head) -> None:
    assert plan.head_of(rows, STREAM, NOW_US, 5) == head


def test_a_head_is_never_guessed() -> None:
    with pytest.raises(EmptyPage, match="coinbase#BTC-USD"):
        plan.head_of([], STREAM, NOW_US, 5)
    with pytest.raises(MalformedResponse, match="the time of trade 7"):
        plan.head_of([row(6), Row(7, None, "{}")], STREAM, NOW_US, 5)


def test_a_head_behind_the_watermark_halts() -> None:
    with pytest.raises(HeadBehindWatermark, match="newest id is 9, the watermark is at 10"):
        plan.check_head(Head(8, 9), 10, STREAM)
    plan.check_head(Head(8, 9), 9, STREAM)
    plan.check_head(Head(8, 9), None, STREAM)


def test_nothing_new_is_an_empty_plan() -> None:
    assert plan.cut(10, 9, 100) == []


def test_a_wrong_head_plans_no_more_than_the_limit() -> None:
    chunks = plan.cut(1, MAX_POSITION, 10)
    assert len(chunks) == plan.MAX_CHUNKS
    assert chunks[0] == Chunk(1, 9)
    assert chunks[-1].last == plan.MAX_CHUNKS * 10 - 1


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"{}",
        b"[1,2]",
        b'{"first":1}',
        b'{"first":5,"last":4}',
        b"\xff",
        b'{"first":1,"last":5}\n{"first":5,"last":9}',
        b'{"first":6,"last":9}\n{"first":1,"last":5}',
        b'{"first":1,"last":5,"known":{"base":0}}',
        b'{"first":1,"last":5,"known":{"base":0,"head":6,"pace":0.5}}',
    ],
)
def test_a_chunk_list_that_cannot_be_meant_is_refused(body: bytes) -> None:
    with pytest.raises(BadStateInput):
        plan.from_jsonl(body)


def begin(ids: range | list[int], floor: int, target: int, page_size: int, descending: bool) -> int:
    """A first run over trades whose time is their id in seconds."""

    def probe(position: int) -> Row | None:
        if descending:
            return next((row(i) for i in reversed(ids) if i <= position), None)
        return next((row(i) for i in ids if i >= position), None)

    return plan.cold_start([row(i) for i in ids[-page_size:]], floor, target * 1_000_000, page_size, probe)


@pytest.mark.parametrize("descending", [True, False])
def test_a_first_run_is_exact_where_history_begins(descending: bool) -> None:
    """Also when the beginning lies closer to the cap than the tolerance of 50 trades."""
    for oldest, floor in ((30, 0), (1, 0), (5_000, 4_980), (5_000, 17)):
        assert begin(range(oldest, 9_000), floor, 0, 1_000, descending) == oldest
        assert begin(range(1, 9_000), floor, 0, 1_000, descending) == floor + 1
    assert begin(range(9_000), -1, 0, 1_000, descending) == 0


@pytest.mark.parametrize("descending", [True, False])
def test_a_hole_above_the_cap_does_not_lead_below_it(descending: bool) -> None:
    ids = [*range(1, 100), *range(200, 260)]
    assert begin(ids, 150, 0, 5, descending) == 200


@pytest.mark.parametrize("descending", [True, False])
def test_a_hole_in_history_is_not_its_beginning(descending: bool) -> None:
    ids = [*range(1, 1_000), *range(9_000, 9_500)]
    assert begin(ids, 0, 0, 100, descending) == 1
    assert 500 <= begin(ids, 0, 500, 100, descending) <= 505


def test_a_first_run_within_the_newest_page_asks_nothing() -> None:
    page = [row(i) for i in range(90, 100)]
    assert plan.cold_start(page, 0, 95_000_000, 10, lambda p: pytest.fail("asked")) == 95
    assert plan.cold_start(page, 96, 0, 10, lambda p: pytest.fail("asked")) == 97
    assert plan.cold_start(page, 0, 10**12, 10, lambda p: pytest.fail("asked")) == 99, "nothing is that new"


def test_a_first_run_takes_id_0_too() -> None:
    page = [row(i) for i in range(10)]
    for exchange in ("coinbase", "okx"):
        begin = paging_of(load_mapping(exchange)).first(None, STREAM, page, ColdStart(0, 10**9))  # type: ignore[arg-type]
        assert begin.first == 0


def test_what_a_plan_takes_is_counted_or_estimated_by_the_pace() -> None:
    chunks = [Chunk(1, 9_999), Chunk(10_000, 19_999), Chunk(20_000, 20_000)]
    assert paging_of(load_mapping("coinbase")).expected([], chunks) == Expected(20_000, 21)
    second = 10**9
    page = [Row(n * second, n * 10**6, "", str(n)) for n in range(1, 101)]
    hours = [Chunk(second, 3_600 * second), Chunk(3_600 * second + 1, 7_200 * second)]
    # Each answer of 1,000 repeats a trade, and another proves each chunk's end.
    assert paging_of(load_mapping("kraken")).expected(page, hours) == Expected(7_199, 10)
    assert paging_of(load_mapping("bybit")).expected(page, hours[:1]) == Expected(60, 1)
