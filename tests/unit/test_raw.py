"""Raw objects: names and bytes are functions of the range and the trades; nothing is ever overwritten."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard
from botocore.exceptions import ClientError

from schemahub import objects as objects_module
from schemahub import raw
from schemahub.errors import CorruptState, RawConflict, RawMissing
from schemahub.fetch import MAX_HOLES, Fetched
from schemahub.objects import ObjectStore
from schemahub.streams import MAX_POSITION, Absent, Chunk
from tests.unit.stores import BUCKET, STREAM, Stores, account

CHUNK = Chunk(10, 12)
TEXTS = ('{"trade_id":10,"price":1.10}', '{"trade_id":11,"note":"\u2028 ü"}', '{"trade_id":12}')


@pytest.fixture(scope="module")
def module_stores() -> Iterator[Stores]:
    with account() as stores:
        yield stores


@pytest.fixture
def objects(module_stores: Stores) -> ObjectStore:
    return module_stores.empty().objects


def fetched(*texts: str, absent: tuple[Absent, ...] = ()) -> Fetched:
    return Fetched(CHUNK, texts or TEXTS, absent, 1)


def test_what_was_stored_is_found_and_read_back_byte_for_byte(objects: ObjectStore) -> None:
    stored = raw.store(objects, STREAM, fetched())
    assert stored.key == "schemahub/raw_coinbase_trades/BTC-USD/00000000000000000010_00000000000000000012_3.jsonl.zst"
    assert raw.parse_raw_key(stored.key) == (10, 12, 3)
    assert raw.find(objects, STREAM, CHUNK) == stored
    content = raw.read(objects, stored.key, stored.sha256, stored.count)
    assert content == "".join(f"{t}\n" for t in TEXTS).encode()
    assert stored.sha256 == hashlib.sha256(content).hexdigest()


def test_storing_twice_finds_the_first_object_and_writes_nothing(objects: ObjectStore) -> None:
    first = raw.store(objects, STREAM, fetched())
    etag = (objects.head(first.key) or {})["etag"]
    assert raw.store(objects, STREAM, fetched()) == first
    assert (objects.head(first.key) or {})["etag"] == etag
    assert list(objects.list("")) == [first.key]


def test_other_content_under_the_same_range_is_an_alarm(objects: ObjectStore) -> None:
    first = raw.store(objects, STREAM, fetched())
    with pytest.raises(RawConflict, match=r"coinbase#BTC-USD#trades.*\[10\.\.12\]"):
        raw.store(objects, STREAM, fetched(TEXTS[0].replace("1.10", "1.1"), *TEXTS[1:]))
    assert raw.read(objects, first.key, first.sha256, 3)


def test_rows_and_holes_that_do_not_fill_the_range_are_never_stored(objects: ObjectStore) -> None:
    with pytest.raises(CorruptState):
        raw.store(objects, STREAM, fetched(*TEXTS[:2]))
    assert list(objects.list("")) == []


def test_the_fullest_of_two_looks_is_taken(objects: ObjectStore) -> None:
    raw.store(objects, STREAM, fetched(*TEXTS[:2], absent=(Absent(12, 12, "exchange_skipped"),)))
    fuller = raw.store(objects, STREAM, fetched())
    assert raw.find(objects, STREAM, CHUNK) == fuller
    assert len(list(objects.list(""))) == 2


def test_only_exactly_this_range_is_found(objects: ObjectStore) -> None:
    raw.store(objects, STREAM, fetched())
    assert raw.find(objects, STREAM, Chunk(10, 11)) is None
    assert raw.find(objects, STREAM, Chunk(11, 12)) is None
    assert raw.find(objects, STREAM, Chunk(1, 12)) is None


def test_as_many_holes_as_are_allowed_fit_the_metadata(objects: ObjectStore) -> None:
    """S3 takes 2 KB of it; moto does not look, so we count."""
    holes = tuple(
        Absent(MAX_POSITION - 2 * i - 1, MAX_POSITION - 2 * i - 1, "exchange_skipped")
        for i in reversed(range(MAX_HOLES))
    )
    chunk = Chunk(MAX_POSITION - 2 * MAX_HOLES, MAX_POSITION)
    texts = tuple('{"x":1}' for _ in range(chunk.size - MAX_HOLES))
    stored = raw.store(objects, STREAM, Fetched(chunk, texts, holes, 1))
    metadata = {k: v for k, v in (objects.head(stored.key) or {}).items() if k not in ("size", "etag")}
    assert sum(len(k) + len(v) for k, v in metadata.items()) < 2_000
    found = raw.find(objects, STREAM, chunk)
    assert found is not None
    assert found.absent == holes


@pytest.mark.parametrize("name", ["x.jsonl.zst", "10_12_3.jsonl.zst", f"{10:020d}_{12:020d}_3.jsonl", "README.md"])
def test_foreign_objects_are_not_ours(objects: ObjectStore, name: str) -> None:
    assert raw.parse_raw_key(STREAM.raw_prefix + name) is None
    objects.put(STREAM.raw_prefix + name, b"x")
    assert raw.find(objects, STREAM, CHUNK) is None


def test_an_object_of_our_name_without_our_metadata_is_not_whole(objects: ObjectStore) -> None:
    objects.put(raw.raw_key(STREAM, 10, 12, 3), b"")
    assert raw.find(objects, STREAM, CHUNK) is None
    with pytest.raises(RawConflict, match="not written by SchemaHub"):
        raw.store(objects, STREAM, fetched())


@pytest.mark.parametrize(
    "change",
    [
        {"count": "2"},
        {"first": "9"},
        {"first": "9", "last": "11"},
        {"last": "x"},
        {"absent": "x"},
        {"absent": "7"},
        {"absent": "null"},
        {"absent": "[[1]]"},
        {"absent": '[["a","b","c"]]'},
        {"absent": '[[12,12,"exchange_skipped"]]'},
        {"absent": '[[12,12,"guess"]]'},
    ],
    ids=str,
)
def test_metadata_that_contradicts_the_name_halts(objects: ObjectStore, change: dict[str, str]) -> None:
    good = {"first": "10", "last": "12", "count": "3", "sha256": "0" * 64, "absent": "[]"}
    objects.put(raw.raw_key(STREAM, 10, 12, 3), b"x", {**good, **change})
    with pytest.raises(CorruptState):
        raw.find(objects, STREAM, CHUNK)


def packed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"not zstd",
        packed(b"other\n"),
        packed(b"x\ny\nz\n"),
        packed(b"a\nb\nc\n")[:-4],
        packed(b"a\nb\nc"),
        packed(b"a\nb\n"),
    ],
    ids=repr,
)
def test_a_committed_object_that_is_gone_or_damaged_is_missing(objects: ObjectStore, body: bytes | None) -> None:
    key = raw.raw_key(STREAM, 10, 12, 3)
    if body is not None:
        objects.put(key, body)
    with pytest.raises(RawMissing):
        raw.read(objects, key, hashlib.sha256(b"a\nb\nc\n").hexdigest(), 3)


def test_a_wrong_count_is_noticed_even_when_the_hash_is_right(objects: ObjectStore) -> None:
    objects.put("k", packed(b"a\nb\nc\n"))
    sha = hashlib.sha256(b"a\nb\nc\n").hexdigest()
    assert raw.read(objects, "k", sha, 3) == b"a\nb\nc\n"
    with pytest.raises(RawMissing):
        raw.read(objects, "k", sha, 2)


# --- the door to S3 ------------------------------------------------------------------------------------------------


class Conflicting:
    """An S3 client that says 409 so many times before it does what it is told."""

    def __init__(self, client: Any, times: int) -> None:
        self.client, self.times = client, times

    def put_object(self, **arguments: Any) -> Any:
        if self.times:
            self.times -= 1
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict", "Message": "409"}}, "PutObject")
        return self.client.put_object(**arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


def test_a_conflict_of_two_conditional_writes_is_no_answer_yet(objects: ObjectStore) -> None:
    busy = ObjectStore(BUCKET, Conflicting(objects.client, 2))
    assert raw.store(busy, STREAM, fetched()) == raw.find(objects, STREAM, CHUNK)
    busy.client.times = 2
    assert raw.store(busy, STREAM, fetched()), "and once it is there, it is found"
    busy.client.times = objects_module.CONFLICT_TRIES
    with pytest.raises(ClientError):
        busy.put_new("other", b"x")


def test_conditional_writes_and_their_refusals(objects: ObjectStore) -> None:
    assert objects.get("k") is None
    assert objects.head("k") is None
    assert objects.put_new("k", b"1")
    assert not objects.put_new("k", b"2")
    found = objects.get_with_etag("k")
    assert found is not None
    assert found[0] == b"1"
    assert objects.replace("k", b"3", found[1])
    assert not objects.replace("k", b"4", found[1]), "somebody wrote in between"
    assert objects.get("k") == b"3"


def test_a_refusal_that_is_no_answer_passes_through() -> None:
    class Denied:
        def __getattr__(self, name: str) -> Any:
            def call(**_: Any) -> Any:
                raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, name)

            return call

    denied = ObjectStore(BUCKET, Denied())
    for action in (lambda: denied.get("k"), lambda: denied.head("k"), lambda: denied.put_new("k", b"")):
        with pytest.raises(ClientError, match="AccessDenied"):
            action()


def test_the_content_is_one_trade_a_line_and_nothing_else() -> None:
    lines = raw.content_of(TEXTS).decode().split("\n")
    assert lines == [*TEXTS, ""]
    assert [json.loads(line) for line in lines[:-1]] == [json.loads(t) for t in TEXTS]
