"""StreamsTable and ThrottleTable lost: every item compared with what was there before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from schemahub import certificate, mirror, throttle
from schemahub.errors import CorruptState, TableAhead
from schemahub.fetch import Fetched
from schemahub.mappings import load_mapping
from schemahub.pacing import PacedExchange
from schemahub.raw import store
from schemahub.rebuild import Rebuilt, mirrored_streams, rebuild
from schemahub.remains import read_remains
from schemahub.streams import Absent, Chunk, Stream
from schemahub.throttle import Bucket, GoAt, SharedBucket
from tests.lake import coinbase_row
from tests.proofs import BTC, ETH, World, healing

UNKNOWABLE = {
    "last_run": {"*"},
    "watermark": set(),
    # Without a manifest nobody knows which run committed a segment, nor to the millisecond when.
    "segment": {"run_id", "source", "committed_at"},
    # A certificate holds what was learned of a hole; without one a hole is as it was committed.
    "hole": {"first_seen", "last_looked_at", "looks", "unclear", "evidence", "revision"},
}
"""Attributes that S3 does not hold (docs/operations.md lists them)."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Callable[[], None]]]:
    with healing(tmp_path_factory.mktemp("lake")) as made:
        yield made


@pytest.fixture
def world(made: tuple[World, Callable[[], None]]) -> Iterator[World]:
    yield made[0]
    made[1]()


def put_back(world: World, dry_run: bool = False) -> dict[Stream, Rebuilt]:
    remains = read_remains(world.quick_table())
    found = {stream: rebuild(world.deps, stream, dry_run, remains) for stream in mirrored_streams(world.deps)}
    return {stream: done for stream, done in found.items() if done}


def differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """Attributes that differ, by item; ``*`` for an item that only one side has."""
    old, new = ({(i["stream"], i["item"]): i for i in items} for items in (before, after))
    found = {}
    for key in old.keys() | new.keys():
        mine, theirs = old.get(key), new.get(key)
        if mine is None or theirs is None:
            found[key] = {"*"}
        elif names := {n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)}:
            found[key] = names
    return found


def test_a_lost_table_comes_back_item_by_item(world: World) -> None:
    """Everything is published and certified: nothing is unknown but how the last run ended."""
    for verdict in world.audit(sign=True):
        if verdict.document:
            assert certificate.store(world.deps.objects, verdict.document)
    world.deps.ledger.finish_run(BTC, "run", "done", 1)
    before = world.items()
    world.forget()
    put_back(world)
    assert differences(before, world.items()) == {(str(BTC), "last_run"): {"*"}}
    assert world.kinds() == []


def test_what_was_not_published_comes_back_but_for_who_committed_it_and_when(world: World) -> None:
    world.commit(31, 40, absent=[Absent(33, 34, "not_yet")])
    world.clock.advance(60)
    world.commit(41, 50)
    before = world.items()
    world.forget()
    put_back(world)
    found = differences(before, world.items())
    for (_, item), names in found.items():
        assert names <= UNKNOWABLE[item.split("#")[0]], (item, names)
    assert {s.first for s in world.deps.ledger.pending()} == {31, 41}
    assert {v.pending for v in world.audit(BTC) if v.stream} == {18}
    assert world.kinds() == []
    segment = world.deps.ledger.segment(BTC, 31)
    assert segment is not None
    world.publish(segment)
    assert world.kinds() == [], "what came back is published like any other"


def test_without_manifests_and_snapshots_the_raw_objects_are_enough(world: World) -> None:
    before = world.items()
    world.forget()
    for key in list(world.deps.objects.list("schemahub/plans/")):
        world.replace_object(key)
    put_back(world)
    for (_, item), names in differences(before, world.items()).items():
        assert names <= UNKNOWABLE[item.split("#")[0]], (item, names)
    assert world.kinds() == []


def test_a_dry_run_says_what_would_come_back_and_writes_nothing(world: World) -> None:
    world.forget()
    found = put_back(world, dry_run=True)
    assert world.items() == []
    btc = found[BTC]
    assert (btc.low, btc.high, btc.segments, btc.fills, btc.holes, btc.watermark) == (1, 30, 3, 1, 1, True)
    assert btc.notes == ("the table has lost the stream",)


def test_a_whole_table_is_left_alone(world: World) -> None:
    before = world.items()
    assert all(not done.changed and not done.notes for done in put_back(world).values())
    assert world.items() == before


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["watermark"], "half restored: 3 segments and no watermark"),
        ([f"segment#{11:020d}"], "half restored: 10 positions have no segment"),
        ([f"segment#{1:020d}", f"segment#{21:020d}"], "half restored: 20 positions have no segment"),
        (["watermark", f"segment#{21:020d}", f"hole#{11:020d}"], "half restored"),
    ],
    ids=["watermark", "a segment", "two segments", "some of each"],
)
def test_a_half_restored_table_is_said_and_completed(world: World, lost: list[str], said: str) -> None:
    before = world.items()
    for name in lost:
        world.drop_item(BTC, name)
    found = put_back(world)
    assert any(said in note for note in found[BTC].notes), found[BTC].notes
    assert found[ETH].notes == ()
    for (_, item), names in differences(before, world.items()).items():
        assert names <= UNKNOWABLE["hole"], item
    assert world.kinds() == []


def test_a_table_from_an_older_backup_is_said_and_completed(world: World) -> None:
    backup = world.items()
    world.commit(31, 40)
    before = world.items()
    world.forget()
    for item in backup:
        world.put_item(item)
    done = put_back(world)[BTC]
    assert done.notes[0] == "the table is older: its watermark is 1..30"
    assert (done.high, done.segments, done.watermark) == (40, 1, True)
    for (_, item), names in differences(before, world.items()).items():
        assert names <= UNKNOWABLE["segment"], item


def test_a_mirror_older_than_what_was_published_is_said_and_not_believed(world: World) -> None:
    before = world.items()
    old = mirror.parse(BTC, world.deps.objects.get(BTC.mirror_key) or b"")
    assert old is not None
    world.replace_object(BTC.mirror_key, mirror.body_of(BTC, type(old)(1, 20, 1, 5)))
    world.forget()
    done = put_back(world)[BTC]
    assert any("the mirror is older: it says 1..20, committed is 1..30" in note for note in done.notes)
    assert set(differences(before, world.items())) <= {
        (str(BTC), "watermark"), (str(BTC), f"hole#{11:020d}")
    }  # fmt: skip
    assert {kind for kind, _, _ in world.kinds()} == {"mirror_behind"}


@pytest.mark.parametrize("body", [None, b"{", b"[]"], ids=["gone", "garbled", "no mirror"])
def test_without_a_mirror_what_is_published_is_enough(world: World, body: bytes | None) -> None:
    before = {(i["stream"], i["item"]) for i in world.items()}
    world.replace_object(ETH.mirror_key, body)
    world.forget()
    done = rebuild(world.deps, ETH, remains=read_remains(world.quick_table()))
    assert done is not None
    assert done.notes[0] == (
        "there is no mirror" if body is None else f"{ETH.mirror_key} is not a mirror of this stream"
    )
    assert {(i["stream"], i["item"]) for i in world.items()} == {key for key in before if key[0] == str(ETH)}


def test_a_stream_that_nothing_proves_is_not_made_up(world: World) -> None:
    new = Stream("coinbase", "NEW-USD")
    store(world.deps.objects, new, Fetched(Chunk(1, 2), ('{"trade_id":1}', '{"trade_id":2}'), (), 1))
    before = world.items()
    assert rebuild(world.deps, new, remains=read_remains(world.quick_table())) is None
    world.replace_object(new.mirror_key, b"{") if world.deps.objects.put_new(new.mirror_key, b"{") else None
    said = rebuild(world.deps, new)
    assert said is not None
    assert said.notes == (f"{new.mirror_key} is not a mirror of this stream",)
    assert not said.changed
    assert world.items() == before


def test_left_overs_of_crashed_runs_do_not_come_back(world: World) -> None:
    """Tails off the grid, and an emptier look at a committed range."""

    def left_over(first: int, last: int, absent: tuple[Absent, ...] = ()) -> None:
        gone = {i for a in absent for i in range(a.first, a.last + 1)}
        texts = tuple(f'{{"trade_id":{i}}}' for i in range(first, last + 1) if i not in gone)
        store(world.deps.objects, BTC, Fetched(Chunk(first, last), texts, absent, 1))

    world.commit(31, 40)
    before = world.items()
    left_over(21, 25)
    left_over(26, 40)
    left_over(31, 40, (Absent(35, 35, "exchange_skipped"),))
    left_over(41, 44)
    world.forget()
    put_back(world)
    found = differences(before, world.items())
    assert found.keys() <= {(str(BTC), f"hole#{11:020d}"), (str(BTC), f"segment#{31:020d}")}
    assert world.kinds() == []


def test_a_left_over_across_the_edge_of_what_is_published_is_not_taken(world: World) -> None:
    """Without manifests, raw objects must tell what was committed; the largest of them was a crashed run's."""
    for key in list(world.deps.objects.list("schemahub/plans/")):
        world.replace_object(key)
    world.commit(31, 40)
    before = world.items()
    texts = tuple(f'{{"trade_id":{i}}}' for i in range(21, 41))
    store(world.deps.objects, BTC, Fetched(Chunk(21, 40), texts, (), 1))
    world.forget()
    put_back(world)
    assert "*" not in set().union(*differences(before, world.items()).values())


def test_a_raw_object_that_is_gone_halts_its_stream_and_no_other(world: World) -> None:
    for key in list(world.deps.objects.list("schemahub/plans/")):
        world.replace_object(key)
    world.replace_object(f"{ETH.raw_prefix}{1:020d}_{10:020d}_10.jsonl.zst")
    world.forget()
    remains = read_remains(world.quick_table())
    with pytest.raises(CorruptState, match="do not tile"):
        rebuild(world.deps, ETH, remains=remains)
    assert rebuild(world.deps, BTC, remains=remains)
    assert {i["stream"] for i in world.items()} == {str(BTC), str(BTC.fills)}


def test_a_fill_that_a_crashed_repair_left_is_adopted(world: World) -> None:
    texts = ('{"trade_id":13,"side":"buy","size":"1","price":"1","time":"2024-03-01T00:21:40.000013Z"}',)
    fill = store(world.deps.objects, BTC.fills, Fetched(Chunk(13, 13), texts, (), 1))
    world.forget()
    assert put_back(world)[BTC].fills == 2
    there = world.deps.ledger.segment(BTC.fills, 13)
    assert there is not None
    assert (there.sha256, there.published_in) == (fill.sha256, None)
    assert world.kinds() == []


def test_a_lost_lock_lets_the_fence_begin_again(world: World) -> None:
    table = world.deps.locks._table
    for item in table.scan()["Items"]:
        table.delete_item(Key={"lock_id": item["lock_id"]})
    world.forget()
    put_back(world)
    mark = world.deps.ledger.watermark(BTC)
    assert mark is not None
    assert mark.fence == 0
    world.commit(31, 40)


def test_a_run_that_commits_meanwhile_is_not_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.forget()
    world.commit(1, 30, rows=[coinbase_row(i) for i in range(1, 31)])
    world.drop_item(BTC, "watermark")
    ledger = world.deps.ledger
    put_items = ledger.put_back

    def rival(*arguments: Any) -> None:
        put_items(*arguments)
        world.put_item({"stream": str(BTC), "item": "watermark", "low": 1, "high": 99, "fence": 9, "updated_at": 1})

    monkeypatch.setattr(ledger, "put_back", rival)
    with pytest.raises(TableAhead):
        rebuild(world.deps, BTC)
    mark = ledger.watermark(BTC)
    assert mark is not None
    assert mark.high == 99


def test_no_worker_reserves_further_ahead_than_a_lost_bucket_begins(world: World) -> None:
    assert PacedExchange.of(world.deps, "coinbase").throttle.max_wait_ms <= throttle.MAX_WAIT_S * 1000


def test_a_lost_bucket_gives_no_slot_twice(world: World) -> None:
    bucket = Bucket.of(load_mapping("coinbase"))
    shared = SharedBucket(world.deps.throttle_table, bucket, world.clock)
    last = 0
    while isinstance(granted := shared.reserve([1] * 10, 60_000), GoAt):
        last = max(last, *granted.times_us)
    world.forget()
    assert shared.lost
    assert shared.begin_again()
    assert not shared.lost
    answer = shared.reserve([1], 120_000)
    assert isinstance(answer, GoAt)
    assert answer.times_us[0] > last
