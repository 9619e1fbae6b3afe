"""What neighbouring chunks say of the trade between them."""

from __future__ import annotations

from schemahub.seams import came_late, newest_before, torn
from schemahub.streams import Chunk, Edges, Known, RawObject

KNOWN = Known(7, 40, 1)
CHUNKS = [Chunk(10, 19, KNOWN), Chunk(20, 29, KNOWN), Chunk(30, 39, KNOWN)]


def stored(chunk: Chunk, before: int | None, newest: int | None) -> RawObject:
    return RawObject("", chunk.first, chunk.last, 1, "", (), False, Edges(before, newest))


GOOD = [stored(CHUNKS[0], 7, 15), stored(CHUNKS[1], 15, 15), stored(CHUNKS[2], 15, 38)]


def test_neighbours_that_agree_are_whole_also_over_a_quiet_chunk() -> None:
    assert torn(GOOD, 7) is None
    assert torn([], 7) is None


def test_a_neighbour_that_names_another_trade_is_torn_whichever_of_the_two_lacks_it() -> None:
    for before in (14, 16):
        bad = stored(CHUNKS[2], before, 38)
        assert torn([*GOOD[:2], bad], 7) is bad


def test_what_no_answer_showed_is_not_held_against_an_object() -> None:
    assert torn([GOOD[0], stored(CHUNKS[1], None, 25)]) is None
    assert torn([RawObject("", 10, 19, 10, ""), RawObject("", 20, 29, 10, "")], 7) is None


def test_an_object_that_lacks_the_committed_trade_before_it_is_torn_and_a_late_trade_is_only_said() -> None:
    assert torn(GOOD, 8) is GOOD[0]
    assert torn(GOOD, 6) is None
    assert [came_late(GOOD, committed) for committed in (6, 7, 8, None)] == [7, None, None, None]


def test_the_newest_committed_trade_is_the_plans_or_the_chunks_before() -> None:
    finished = dict(zip(CHUNKS, GOOD, strict=True))
    assert newest_before(CHUNKS, CHUNKS, finished) == 7
    assert newest_before(CHUNKS, CHUNKS[1:], finished) == 15
    assert newest_before(CHUNKS, CHUNKS[1:], {}) is None
    first_run = [Chunk(c.first, c.last, Known(10, 40, 1)) for c in CHUNKS]
    assert newest_before(first_run, first_run, {}) is None
