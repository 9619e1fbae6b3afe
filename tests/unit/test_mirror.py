"""The mirror in S3: never newer than the table, healed when it lags, a halt when it leads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from schemahub import mirror
from schemahub.errors import MirrorAhead
from schemahub.ledger import Watermark
from schemahub.streams import Stream
from tests.unit.stores import BUCKET, STREAM, Stores, account, tiles

KEY = STREAM.mirror_key


@pytest.fixture(scope="module")
def module_stores() -> Iterator[Stores]:
    with account() as stores:
        yield stores


@pytest.fixture
def stores(module_stores: Stores) -> Stores:
    """A stream whose table says 101..130."""
    stores = module_stores.empty()
    stores.commit(stores.lease(), tiles(101, 130), None)
    return stores


def heal(stores: Stores) -> str:
    return mirror.heal(stores.objects, stores.ledger, STREAM)


def mirrored(stores: Stores) -> tuple[int, int] | None:
    mark = mirror.parse(STREAM, stores.objects.get(KEY) or b"")
    return (mark.low, mark.high) if mark else None


def write(stores: Stores, low: int, high: int, stream: Stream = STREAM) -> bytes:
    body = mirror.body_of(stream, Watermark(low, high, 1, 1))
    stores.objects.put(KEY, body)
    return body


def test_a_missing_mirror_is_written(stores: Stores) -> None:
    assert heal(stores) == "written"
    assert mirrored(stores) == (101, 130)
    assert heal(stores) == "equal"


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b"null", b"\xff\xfe", b"{}", b'{"stream":"x"}'], ids=repr)
def test_garbage_is_replaced(stores: Stores, body: bytes) -> None:
    stores.objects.put(KEY, body)
    assert heal(stores) == "written"
    assert mirrored(stores) == (101, 130)


@pytest.mark.parametrize(
    "change",
    [
        {"high": "130"},
        {"high": 130.0},
        {"low": True},
        {"low": 131},
        {"fence": None},
        {"stream": "coinbase#ETH-USD#trades"},
    ],
    ids=str,
)
def test_what_only_resembles_a_mirror_is_garbage(stores: Stores, change: dict[str, Any]) -> None:
    body = json.loads(mirror.body_of(STREAM, Watermark(101, 130, 1, 1)))
    assert mirror.parse(STREAM, json.dumps({**body, **change}).encode()) is None
    assert mirror.parse(STREAM, json.dumps(body).encode()) == Watermark(101, 130, 1, 1)


@pytest.mark.parametrize(("low", "high"), [(101, 110), (111, 120), (120, 130)])
def test_a_mirror_that_lags_is_healed(stores: Stores, low: int, high: int) -> None:
    write(stores, low, high)
    assert heal(stores) == "written"
    assert mirrored(stores) == (101, 130)


@pytest.mark.parametrize(("low", "high"), [(101, 131), (100, 130), (1, 10), (100, 120), (110, 10**9)])
def test_a_mirror_ahead_halts_the_stream_and_stays(stores: Stores, low: int, high: int) -> None:
    body = write(stores, low, high)
    with pytest.raises(MirrorAhead, match=f"{low}..{high}, the table 101..130"):
        heal(stores)
    with pytest.raises(MirrorAhead):
        mirror.heal_quietly(stores.objects, stores.ledger, STREAM)
    assert stores.objects.get(KEY) == body


def test_a_table_that_lost_the_stream_is_noticed(stores: Stores) -> None:
    heal(stores)
    stores.tables["streams"].delete_item(Key={"stream": str(STREAM), "item": "watermark"})
    with pytest.raises(MirrorAhead, match="the table nothing"):
        heal(stores)


def test_a_stream_without_a_watermark_has_no_mirror(stores: Stores) -> None:
    eth = Stream("coinbase", "ETH-USD")
    assert mirror.heal(stores.objects, stores.ledger, eth) == "equal"
    assert stores.objects.get(eth.mirror_key) is None


class Racing:
    """An S3 client in front of which somebody else writes the mirror, between our look and our write."""

    def __init__(self, stores: Stores, body: bytes) -> None:
        self.stores, self.body = stores, body

    def put_object(self, **arguments: Any) -> Any:
        self.stores.objects.put(KEY, self.body)
        return self.stores.objects.client.put_object(**arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stores.objects.client, name)


@pytest.mark.parametrize("before", [None, (101, 110)])
def test_a_newer_writer_that_was_quicker_wins(stores: Stores, before: tuple[int, int] | None) -> None:
    if before:
        write(stores, *before)
    newer = mirror.body_of(STREAM, Watermark(101, 140, 2, 2))
    racing = mirror.ObjectStore(BUCKET, Racing(stores, newer))
    assert mirror.heal(racing, stores.ledger, STREAM) == "raced"
    assert stores.objects.get(KEY) == newer


def test_a_commit_between_the_two_reads_is_no_mirror_ahead(stores: Stores) -> None:
    """The mirror is read first, the table after it: so a mirror that is ahead really is."""
    heal(stores)

    class Committing(Racing):
        def get_object(self, **arguments: Any) -> Any:
            answer = self.stores.objects.client.get_object(**arguments)
            stores.commit(stores.lease(), tiles(131, 140), 130)
            return answer

    assert mirror.heal(mirror.ObjectStore(BUCKET, Committing(stores, b"")), stores.ledger, STREAM) == "raced"


def test_a_mirror_that_cannot_be_written_fails_nothing(stores: Stores) -> None:
    class Denied:
        def __getattr__(self, name: str) -> Any:
            def call(**_: Any) -> Any:
                raise ClientError({"Error": {"Code": "SlowDown", "Message": "503"}}, name)

            return call

    denied = mirror.ObjectStore(BUCKET, Denied())
    assert mirror.heal_quietly(denied, stores.ledger, STREAM) == "failed"
    with pytest.raises(ClientError):
        mirror.heal(denied, stores.ledger, STREAM)
