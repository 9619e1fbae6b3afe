"""What a backfill leaves below the watermark, through verify, certificates, rebuild and re-derivation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemahub import certificate, coverage, mirror, raw, rederive
from schemahub.audit import recheck
from schemahub.commit import Committed, segment_of
from schemahub.commit_below import commit_islands, lower
from schemahub.fetch import Fetched
from schemahub.lake import lake_at
from schemahub.locks import Lease
from schemahub.rebuild import rebuild
from schemahub.remains import Remains, read_remains
from schemahub.streams import Absent, Chunk, Interval, Segment, Stream
from tests.lake import coinbase_row
from tests.proofs import World, healing

LTC = Stream("coinbase", "LTC-USD")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Callable[[], None]]]:
    with healing(tmp_path_factory.mktemp("lake")) as made:
        yield made


@pytest.fixture
def world(made: tuple[World, Callable[[], None]]) -> Iterator[World]:
    """LTC: 101..120 as ingested; 61..70 (with a hole) and 81..90 as filled in, of which 61..70 is published."""
    world = made[0]
    top = world.commit(101, 120, stream=LTC)
    low = island(world, 61, 70, [Absent(65, 66, "exchange_skipped")])
    island(world, 81, 90)
    world.publish(low)
    world.publish(top)
    yield world
    made[1]()


def lease(world: World) -> Lease:
    return world.deps.locks.acquire(LTC.backfill_lock_id, "filler", "filler")


def island(world: World, first: int, last: int, absent: Sequence[Absent] = ()) -> Segment:
    gone = {i for a in absent for i in range(a.first, a.last + 1)}
    texts = tuple(json.dumps(coinbase_row(i)) for i in range(first, last + 1) if i not in gone)
    stored = raw.store(world.deps.objects, LTC, Fetched(Chunk(first, last), texts, tuple(absent), 1))
    segment = segment_of(LTC, stored, "fill-1", "rest", world.clock.now_ms())
    done = commit_islands(world.deps.ledger, world.deps.locks, lease(world), [segment], world.clock)
    assert isinstance(done, Committed)
    return segment


def fall(world: World) -> int:
    low = lower(world.deps.ledger, world.deps.locks, lease(world), LTC, world.clock)
    mirror.heal(world.deps.objects, world.deps.ledger, LTC)
    return low


def put_back(world: World, remains: Remains | None = None) -> Any:
    return rebuild(world.deps, LTC, False, remains or read_remains(world.quick_table()))


def spans(world: World) -> list[tuple[int, int]]:
    return [(s.first, s.last) for s in world.deps.ledger.segments(LTC)]


@pytest.mark.parametrize("deep", [False, True])
def test_islands_are_whole_and_what_lies_between_is_no_hole(world: World, deep: bool) -> None:
    verdict = next(v for v in world.audit(deep=deep) if v.stream == LTC)
    assert world.kinds(deep=deep) == []
    assert (verdict.range, verdict.islands) == ((101, 120), ((61, 70), (81, 90)))
    assert (verdict.trades, verdict.rows, verdict.absent, verdict.pending) == (38, 28, 2, 10)
    assert verdict.to_json()["islands"] == [[61, 70], [81, 90]]
    assert coverage.unfetched(world.deps.ledger, LTC) == [(71, 80), (91, 100)]
    island(world, 91, 100)
    assert fall(world) == 81
    verdict = next(v for v in world.audit(deep=deep) if v.stream == LTC)
    assert world.kinds(deep=deep) == []
    assert (verdict.range, verdict.islands) == ((81, 120), ((61, 70),))


def key(first: int, last: int, count: int) -> str:
    return f"{LTC.raw_prefix}{first:020d}_{last:020d}_{count}.jsonl.zst"


def copied(world: World, item: str, **changes: Any) -> None:
    world.put_item({**world.item(LTC, item), **changes})


def forced(world: World, first: int, last: int) -> None:
    """A segment that no commit of ours would let in."""
    texts = tuple(json.dumps(coinbase_row(i)) for i in range(first, last + 1))
    stored = raw.store(world.deps.objects, LTC, Fetched(Chunk(first, last), texts, (), 1))
    world.deps.ledger.put_back([segment_of(LTC, stored, "by hand", "rest", world.clock.now_ms())], ())


DAMAGE: dict[str, tuple[Callable[[World], Any], set[str]]] = {
    "an island's original is gone": (lambda w: w.replace_object(key(81, 90, 10)), {"raw_missing"}),
    "an island reaches into the watermark": (
        lambda w: forced(w, 91, 105), {"segment_beyond", "segment_overlap", "published_partly"}),
    "two islands overlap": (lambda w: forced(w, 85, 94), {"segment_overlap"}),
    "a published island is forgotten": (
        lambda w: w.drop_item(LTC, f"segment#{61:020d}"), {"published_unknown", "rows_stray", "hole_wrong"}),
    "a row of an island was written twice": (lambda w: w.append(LTC, [coinbase_row(62)]), {"rows_doubled"}),
    "a row of what nobody has fetched": (lambda w: w.append(LTC, [coinbase_row(75)]), {"rows_stray"}),
    "the watermark went up": (lambda w: copied(w, "watermark", low=111), {"segment_beyond", "mirror_ahead"}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_islands_is_found(world: World, damage: str) -> None:
    act, kinds = DAMAGE[damage]
    act(world)
    found = world.kinds()
    assert found, "it is found at all"
    assert {kind for kind, _, _ in found} == kinds
    assert {stream for _, stream, _ in found} == {str(LTC)}


def test_a_certificate_covers_the_islands(world: World, tmp_path: Path) -> None:
    document = next(v.document for v in world.audit(sign=True) if v.stream == LTC)
    assert document is not None
    assert (document["range"], document["islands"]) == ([101, 120], [[61, 70], [81, 90]])
    assert document["counts"] == {"ids": 40, "trades": 38, "absent": 2, "quarantined": 0, "rows": 28}
    assert certificate.store(world.deps.objects, document)

    def again(name: str) -> list[str]:
        lake = lake_at(str(world.copy_to(tmp_path / name)), None)
        return [f.kind for f in recheck(lake, certificate.chain_of(lake.objects, LTC)).findings]

    assert again("as it was") == []
    between = [island(world, 71, 80), island(world, 91, 100)]
    assert fall(world) == 61
    segment = world.deps.ledger.segment(LTC, 81)
    assert segment is not None
    world.publish(between[0], segment, between[1])
    assert world.kinds() == []
    assert again("filled in since") == []
    world.append(LTC, [coinbase_row(62)])
    assert again("a row too many") == ["rows_doubled"]


@pytest.mark.parametrize("changed", [[[61, 70]], [[61, 70], [81, 91]], []])
def test_a_certificate_that_claims_other_islands_contradicts_itself(world: World, changed: Any) -> None:
    document = next(v.document for v in world.audit(sign=True) if v.stream == LTC)
    assert document is not None
    document["islands"] = changed
    document["sha256"] = certificate.hash_of(document)
    found = certificate.judge(certificate.parse(json.dumps(document), "here"))
    assert [f.kind for f in found] == ["certificate_wrong"]


def test_published_islands_come_back(world: World) -> None:
    """One that was not published does not: nothing in S3 says that it was committed, and the next backfill finds it."""
    world.forget()
    done = put_back(world)
    assert (done.low, done.high, done.segments) == (101, 120, 2)
    assert spans(world) == [(61, 70), (101, 120)]
    assert [h.first for h in world.deps.ledger.holes(LTC)] == [65]
    assert [k for k in world.kinds() if k[1] == str(LTC)] == []
    assert not put_back(world).changed


def test_an_island_that_was_lost_alone_comes_back(world: World) -> None:
    world.drop_item(LTC, f"segment#{61:020d}")
    done = put_back(world)
    assert (done.low, done.segments, done.watermark) == (101, 1, False)
    assert world.kinds() == []


def test_a_healthy_stream_with_islands_is_left_alone(world: World) -> None:
    island(world, 91, 100)
    done = put_back(world)
    assert (done.changed, done.notes) == (False, ()), "not even one that touches the watermark: the backfill lowers it"


def test_without_a_mirror_the_run_is_what_hangs_together(world: World) -> None:
    world.forget()
    world.replace_object(LTC.mirror_key)
    done = put_back(world)
    assert (done.low, done.high) == (101, 120)
    assert spans(world) == [(61, 70), (101, 120)]


def test_without_a_mirror_originals_join_what_they_tile(world: World) -> None:
    for first in (71, 91):
        island(world, first, first + 9)
    world.forget()
    world.replace_object(LTC.mirror_key)
    assert (put_back(world).low, spans(world)[0]) == (61, (61, 70))
    assert [k for k in world.kinds() if k[0] not in ("mirror_missing",) and k[1] == str(LTC)] == []


def test_islands_are_derived_anew_like_the_rest(world: World) -> None:
    segments = list(world.deps.ledger.segments(LTC))
    found = rederive.plan(world.lake.table(), segments, LTC, None)
    assert found is not None
    assert [s.first for s in found.segments] == [61, 101], "what is not in the table needs no second derivation"
    later = rederive.plan(world.lake.table(), segments, LTC, 71)
    assert later is not None
    assert [s.first for s in later.segments] == [101]


def test_the_interval_of_a_plan_ends_below_the_watermark(world: World) -> None:
    assert coverage.missing(world.deps.ledger, LTC, Interval(50, 10**9)) == [(50, 60), (71, 80), (91, 100)]
    assert coverage.missing(world.deps.ledger, LTC, Interval(105, 110)) == []
