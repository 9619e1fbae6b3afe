"""Commits under every kind of doubt: lost answers, rivals, replays. What is said afterwards is what is true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError

from schemahub.commit import MAX_TRIES, Committed, Fenced, Superseded, segment_of
from schemahub.errors import CorruptState
from schemahub.streams import RawObject, Stream
from tests.unit.stores import NOW, STREAM, Stores, account, cancelled, lost, segment, tiles


@pytest.fixture(scope="module")
def module_stores() -> Iterator[Stores]:
    with account() as stores:
        yield stores


@pytest.fixture
def stores(module_stores: Stores) -> Stores:
    return module_stores.empty()


def test_the_first_commit_of_a_stream_sets_both_ends(stores: Stores) -> None:
    assert stores.commit(stores.lease(), tiles(101, 130), None) == Committed(130)
    mark = stores.ledger.watermark(STREAM)
    assert mark is not None
    assert (mark.low, mark.high, mark.fence, mark.updated_at) == (101, 130, 1, stores.clock.now_ms())
    assert stores.committed() == [(101, 110), (111, 120), (121, 130)]


def test_a_commit_moves_high_and_leaves_low(stores: Stores) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(101, 130), None)
    assert stores.commit(lease, tiles(131, 155), 130) == Committed(155)
    mark = stores.ledger.watermark(STREAM)
    assert mark is not None
    assert (mark.low, mark.high) == (101, 155)


def test_more_segments_than_a_transaction_takes(stores: Stores) -> None:
    assert stores.commit(stores.lease(), tiles(1, 1_850), None) == Committed(1_850)
    assert len(stores.committed()) == 185
    assert stores.client.calls == 3


def test_many_segments_are_continued_where_a_failure_stopped_them(stores: Stores) -> None:
    lease = stores.lease()
    stores.client.faults = [("", None), ("before", cancelled("ValidationError"))]  # type: ignore[list-item]
    with pytest.raises(ClientError):
        stores.commit(lease, tiles(1, 1_850), None)
    assert stores.high() == 900
    assert stores.commit(lease, tiles(1, 1_850), None) == Committed(1_850), "the whole list again"
    assert len(stores.committed()) == 185


@pytest.mark.parametrize("base", [None, 100])
def test_a_lost_answer_of_an_applied_commit_is_recognised(stores: Stores, base: int | None) -> None:
    lease = stores.lease()
    if base:
        stores.commit(lease, tiles(91, 100), None)
        stores.client.calls = 0
    stores.client.faults = [("after", lost())]
    assert stores.commit(lease, tiles(101, 130), base) == Committed(130, already=True)
    assert stores.client.calls == 1, "nothing is written twice"


@pytest.mark.parametrize(
    "error",
    [lost(), cancelled("None", "TransactionConflict", "None"), cancelled("ThrottlingError"), cancelled()],
    ids=["lost", "conflict", "throttled", "unknown reason"],
)
def test_what_was_not_applied_is_tried_again(stores: Stores, error: Exception) -> None:
    before = stores.clock.now_ms()
    stores.client.faults = [("before", error), ("before", error)]
    assert stores.commit(stores.lease(), tiles(101, 130), None) == Committed(130)
    assert stores.client.calls == 3
    assert stores.clock.now_ms() > before, "with a pause between"


@pytest.mark.parametrize("error", [lost(), cancelled("TransactionConflict")], ids=["lost", "conflict"])
def test_tries_are_counted(stores: Stores, error: Exception) -> None:
    stores.client.faults = [("before", error)] * 50
    with pytest.raises(type(error)):
        stores.commit(stores.lease(), tiles(101, 130), None)
    assert stores.client.calls == MAX_TRIES
    assert stores.high() is None


def test_an_error_that_will_not_go_away_is_not_repeated(stores: Stores) -> None:
    stores.client.faults = [("before", cancelled("None", "ItemCollectionSizeLimitExceeded"))]
    with pytest.raises(ClientError):
        stores.commit(stores.lease(), tiles(101, 130), None)
    assert stores.client.calls == 1


def test_a_fenced_writer_writes_nothing(stores: Stores) -> None:
    lease = stores.lease()
    stores.takeover()
    assert stores.commit(lease, tiles(101, 130), None) == Fenced()
    assert stores.committed() == []
    assert stores.high() is None


def test_a_released_lock_fences_too(stores: Stores) -> None:
    lease = stores.lease()
    stores.locks.release(lease)
    assert stores.commit(lease, tiles(101, 130), None) == Fenced()


def test_an_owner_whose_lock_got_a_newer_fence_is_fenced(stores: Stores) -> None:
    old = stores.lease()
    stores.locks.release(old)
    stores.lease()
    assert stores.commit(old, tiles(101, 130), None) == Fenced()


def test_a_writer_that_is_fenced_between_two_transactions_stops_there(stores: Stores) -> None:
    lease = stores.lease()
    stores.client.faults = [("after", lambda: stores.takeover() and None)]
    assert stores.commit(lease, tiles(1, 1_850), None) == Fenced()
    assert stores.high() == 900


def test_a_rivals_commit_in_between_supersedes(stores: Stores) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(91, 100), None)

    def rival() -> None:
        stores.client.faults = []
        assert stores.commit(stores.takeover(), tiles(101, 140, content="b"), 100) == Committed(140)

    stores.client.faults = [("before", rival)]
    assert stores.commit(lease, tiles(101, 130), 100) == Superseded(140)
    assert {s.sha256[0] for s in stores.ledger.segments(STREAM, 101)} == {"b"}


def test_the_same_commit_by_a_rival_is_no_contradiction(stores: Stores) -> None:
    """Identity is stream, range and content: whoever wrote it, it is done."""
    lease = stores.lease()
    stores.client.faults = [("before", lambda: stores.commit(stores.takeover(), tiles(101, 130), None) and None)]
    assert stores.commit(lease, tiles(101, 130), None) == Committed(130, already=True)


@pytest.mark.parametrize("base", [None, 99, 110, 130, 200])
def test_a_base_that_is_not_the_watermark_is_superseded(stores: Stores, base: int | None) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(91, 120), None)
    first = (base or 100) + 1
    assert stores.commit(lease, tiles(first, first + 50, content="b"), base) == Superseded(120)
    assert stores.high() == 120


def test_a_base_for_a_stream_that_has_none_is_superseded(stores: Stores) -> None:
    assert stores.commit(stores.lease(), tiles(101, 130), 100) == Superseded(None)


def test_a_replay_after_others_went_on_is_recognised(stores: Stores) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(101, 130), None)
    stores.commit(lease, tiles(131, 160), 130)
    assert stores.commit(lease, tiles(101, 130), None) == Committed(160, already=True)
    assert stores.commit(lease, tiles(131, 160), 130) == Committed(160, already=True)


def test_a_replay_by_a_zombie_changes_nothing(stores: Stores) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(101, 130), None)
    stores.takeover()
    assert stores.commit(lease, tiles(101, 130), None) == Committed(130, already=True)
    assert stores.commit(lease, tiles(131, 140), 130) == Fenced()
    assert stores.high() == 130


def test_a_segment_beyond_the_watermark_is_corrupt_state(stores: Stores) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(101, 130), None)
    stores.ledger.restore(Stream("coinbase", "ETH-USD"), 1, 2, [segment(141, 150)], NOW)
    with pytest.raises(CorruptState, match="beyond the watermark"):
        stores.commit(lease, tiles(131, 160), 130)
    assert stores.high() == 130


def test_a_watermark_with_a_newer_fence_is_not_moved(stores: Stores) -> None:
    """The locks' table was restored from an old backup and counts its fences anew."""
    lease = stores.lease()
    stores.commit(lease, tiles(101, 130), None)
    stores.tables["streams"].update_item(
        Key={"stream": str(STREAM), "item": "watermark"},
        UpdateExpression="SET fence = :f",
        ExpressionAttributeValues={":f": 9},
    )
    with pytest.raises(CorruptState, match="fence is newer"):
        stores.commit(lease, tiles(131, 160), 130)
    assert stores.high() == 130


@pytest.mark.parametrize(
    "segments",
    [
        [segment(101, 110), segment(112, 120)],
        [segment(101, 110), segment(110, 120)],
        [segment(111, 120), segment(101, 110)],
        [segment(102, 110)],
    ],
    ids=str,
)
def test_segments_that_are_no_continuation_are_never_written(stores: Stores, segments: list[object]) -> None:
    lease = stores.lease()
    stores.commit(lease, tiles(91, 100), None)
    with pytest.raises(ValueError, match="does not follow"):
        stores.commit(lease, segments, 100)  # type: ignore[arg-type]
    assert stores.high() == 100


def test_the_commit_id_names_stream_range_and_content_and_nothing_else() -> None:
    raw = RawObject("k", 1, 2, 2, "a" * 64)
    one = segment_of(STREAM, raw, "run-1", "rest", 1)
    assert one.commit_id == segment_of(STREAM, raw, "run-2", "archive", 2).commit_id
    others = [replace(raw, first=0), replace(raw, last=3), replace(raw, key="x"), replace(raw, sha256="b" * 64)]
    ids = {segment_of(STREAM, r, "run-1", "rest", 1).commit_id for r in others}
    ids.add(segment_of(Stream("coinbase", "ETH-USD"), raw, "run-1", "rest", 1).commit_id)
    assert len(ids) == 5
    assert one.commit_id not in ids
