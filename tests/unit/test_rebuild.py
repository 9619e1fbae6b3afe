"""State can be lost: watermarks and segments come back from mirrors and raw objects."""

from __future__ import annotations

import itertools

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.exchange_sim.server import running
from schemahub import errors, ingest, mirror
from schemahub.rebuild import mirrored_streams, rebuild, tiling
from tests.unit.test_ingest import FAST, assert_sound
from tests.unit.worlds import STREAM, Shifted, World, make_world


@pytest.fixture
def world(aws: boto3.Session):
    with running(FAST) as server:
        yield make_world(aws, server.url, Shifted())


def forget(world: World) -> None:
    """StreamsTable as it is after ``kill -9`` of the embedded AWS, or on the morning after a deleted table."""
    table = world.deps.ledger.table
    for item in table.scan()["Items"]:
        table.delete_item(Key={"stream": item["stream"], "item": item["item"]})


def test_a_lost_table_comes_back_from_s3(world: World) -> None:
    world.ingest()
    segments, mark = list(world.deps.ledger.segments(STREAM)), world.deps.ledger.watermark(STREAM)
    forget(world)
    with pytest.raises(errors.MirrorAhead):
        mirror.heal(world.deps.objects, world.deps.ledger, STREAM)
    assert mirrored_streams(world.deps) == [STREAM]
    rebuild(world.deps, STREAM)
    found = list(world.deps.ledger.segments(STREAM))
    assert [(s.first, s.last, s.commit_id, s.raw_key) for s in found] == [
        (s.first, s.last, s.commit_id, s.raw_key) for s in segments
    ]
    assert world.deps.ledger.watermark(STREAM).high == mark.high
    assert_sound(world)
    assert world.ingest()["status"] in ("covered", "nothing_new")
    assert_sound(world)


def test_a_whole_table_is_left_alone(world: World) -> None:
    world.ingest()
    before = world.deps.ledger.table.scan()["Items"]
    assert rebuild(world.deps, STREAM).segments == 0
    assert world.deps.ledger.table.scan()["Items"] == before


def test_a_missing_raw_object_is_said(world: World) -> None:
    world.ingest()
    victim = next(iter(world.deps.ledger.segments(STREAM))).raw_key
    forget(world)
    world.deps.objects.client.delete_object(Bucket=world.deps.objects.bucket, Key=victim)
    with pytest.raises(errors.CorruptState, match="do not tile"):
        rebuild(world.deps, STREAM)
    assert world.deps.ledger.watermark(STREAM) is None


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30), st.lists(st.tuples(st.integers(1, 150), st.integers(0, 20)))
)
def test_left_overs_never_hide_the_tiling(sizes: list[int], left_overs: list[tuple[int, int]]) -> None:
    tiles, at = [], 1
    for size in sizes:
        tiles.append((at, at + size - 1, f"k{at}"))
        at += size
    noise = [(first, first + extra, "left over") for first, extra in left_overs]
    path = tiling(tiles + noise, 1, at - 1)
    assert path is not None
    assert path[0][0] == 1
    assert path[-1][1] == at - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(path))


def test_the_seed_key_is_below_the_prefix() -> None:
    assert ingest.SEED_KEY == "schemahub/config/products.json"
