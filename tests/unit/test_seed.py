from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest

from schemahub import ingest, seed
from schemahub.errors import BadConfig, CommitConflict
from schemahub.exchanges import Product
from schemahub.instruments import ONLINE, Instrument, merge
from schemahub.objects import ObjectStore
from schemahub.seed import SEED_KEY, Seed
from schemahub.streams import Stream

T = 1_700_000_000
ENTRY = {"exchange": "coinbase", "product": "BTC-USD", "symbol": "BTC-USD", "status": "online"}
KNOWN = Instrument("coinbase", "BTC-USD", "BTC-USD", ONLINE, "online", 1, T, T, T)
LISTED = [Product("BTC-USD", "BTC-USD", "online", True), Product("ETH-USD", "ETH-USD", "online", True)]


@pytest.fixture
def objects(aws: boto3.Session) -> ObjectStore:
    client = aws.client("s3")
    client.create_bucket(Bucket="schemahub-test-seed")
    return ObjectStore("schemahub-test-seed", client)


def body(**changes: Any) -> bytes:
    document = {"schema_version": 1, "streams": [ENTRY], "instruments": [KNOWN.to_json()]}
    return json.dumps({k: v for k, v in {**document, **changes}.items() if v is not None}).encode()


def look(product_count: int = 2, seen_s: int = T) -> Callable[[Seed], Seed]:
    return lambda old: Seed(old.streams, merge(old.instruments, "coinbase", LISTED[:product_count], seen_s))


def test_what_is_written_is_read_again_one_entry_a_line(objects: ObjectStore) -> None:
    wanted = Seed((ENTRY,), (KNOWN,))
    assert seed.update(objects, lambda old: wanted) == (Seed(), wanted)
    assert seed.read(objects) == wanted
    assert len((objects.get(SEED_KEY) or b"").splitlines()) == 5


def test_a_seed_without_instruments_still_works(objects: ObjectStore) -> None:
    objects.put(SEED_KEY, body(instruments=None, streams=[ENTRY, {"exchange": "coinbase", "product": "ETH-USD"}]))
    written = objects.modified_s(SEED_KEY)
    assert [s["product"] for s in seed.parse_streams(objects.get(SEED_KEY) or b"")] == ["BTC-USD", "ETH-USD"]
    (was,) = seed.read(objects).instruments
    assert was.key == ("coinbase", "BTC-USD")
    assert (was.first_seen, was.last_seen, was.status) == (written, written, ONLINE)


def test_ingest_reads_old_and_new_seeds_and_only_their_streams(objects: ObjectStore) -> None:
    from types import SimpleNamespace

    deps: Any = SimpleNamespace(objects=objects)
    assert ingest.read_seed(deps) == []
    for content in (body(), body(instruments=None), body(instruments=["nonsense"])):
        objects.put(SEED_KEY, content)
        assert ingest.read_seed(deps) == [Stream("coinbase", "BTC-USD")]
    objects.put(SEED_KEY, body(streams=[{"exchange": "coinbase", "product": "../x"}]))
    with pytest.raises(BadConfig, match=r"streams\[0\] \(coinbase:\.\./x\)"):
        ingest.read_seed(deps)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "no list of streams"),
        (b'{"schema_version": 1, "streams": {}}', "no list of streams"),
        (body(schema_version=2), "schema_version 2"),
        (body(schema_version=True), "schema_version True"),
        (body(schema_version=None), "schema_version None"),
        (body(streams=[ENTRY, ENTRY]), r"streams\[1\] \(coinbase:BTC-USD\): it stands there twice"),
        (body(streams=["BTC"]), r"streams\[0\]: it is not an object"),
        (body(streams=[{"exchange": "coinbase"}]), r"streams\[0\] \(coinbase:None\): it lacks product"),
        (body(streams=[ENTRY, {**ENTRY, "product": 7}]), r"streams\[1\] \(coinbase:7\): product '7'"),
        (body(streams=[{**ENTRY, "symbol": 5}]), r"streams\[0\] \(coinbase:BTC-USD\): symbol '5'"),
        (body(streams=[{**ENTRY, "status": "a\nb"}]), "status"),
        (body(instruments={}), "instruments is not a list"),
    ],
)
def test_a_bad_seed_is_refused_naming_the_entry(content: bytes, said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        seed.parse(content, T)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exchange": "Coin"}, "exchange 'Coin'"),
        ({"product": "BTC"}, "product 'BTC'"),
        ({"symbol": ""}, "symbol is empty"),
        ({"symbol": "x" * 65}, "symbol"),
        ({"exchange_status": None}, "exchange_status"),
        ({"exchange_status": "a\tb"}, "exchange_status"),
        ({"status": "TRADING"}, "status 'TRADING' is not one of online, offline, delisted"),
        ({"status": ["online"]}, "status"),
        ({"listing_epoch": 0}, "listing_epoch '0'"),
        ({"listing_epoch": True}, "listing_epoch 'True'"),
        ({"listing_epoch": 1.0}, "listing_epoch"),
        ({"first_seen": "2023-11-14"}, "first_seen '2023-11-14' is not a time"),
        ({"first_seen": 1_700_000_000}, "is not a time"),
        ({"last_seen": "2023-01-01T00:00:00Z"}, "not in this order"),
        ({"last_seen": None}, "last_seen"),
        ({"extra": 1}, "unknown extra"),
    ],
)
def test_a_bad_instrument_is_refused_by_its_number_and_name(change: dict[str, Any], said: str) -> None:
    wrong = {**KNOWN.to_json(), **change}
    with pytest.raises(BadConfig, match=r"instruments\[0\] \(.*" + said):
        seed.parse(body(instruments=[wrong]), T)


def test_an_instrument_that_lacks_something_or_stands_twice_is_refused() -> None:
    with pytest.raises(BadConfig, match=r"instruments\[0\] \(coinbase:BTC-USD\): it lacks listing_epoch"):
        seed.parse(body(instruments=[{k: v for k, v in KNOWN.to_json().items() if k != "listing_epoch"}]), T)
    with pytest.raises(BadConfig, match=r"instruments\[1\] \(coinbase:BTC-USD\): it stands there twice"):
        seed.parse(body(instruments=[KNOWN.to_json()] * 2), T)


def test_nothing_is_written_where_nothing_changes(objects: ObjectStore) -> None:
    seed.update(objects, look())
    before = objects.get_with_etag(SEED_KEY)
    writes: list[str] = []
    objects.replace = lambda key, *rest: writes.append(key) or True  # type: ignore[method-assign]
    seed.update(objects, look(seen_s=T + 60))
    assert (objects.get_with_etag(SEED_KEY), writes) == (before, [])


def test_a_writer_in_between_is_not_overwritten(objects: ObjectStore) -> None:
    seed.update(objects, look(1))
    rivals = [lambda: seed.update(objects, lambda old: Seed((ENTRY,), old.instruments))]

    def change(old: Seed) -> Seed:
        if rivals:
            rivals.pop()()
        return look()(old)

    seed.update(objects, change)
    found = seed.read(objects)
    assert found.streams == (ENTRY,)
    assert [i.product for i in found.instruments] == ["BTC-USD", "ETH-USD"]


def test_two_first_writers_do_not_overwrite_each_other(objects: ObjectStore) -> None:
    rivals = [lambda: seed.update(objects, lambda old: Seed((ENTRY,), ()))]

    def change(old: Seed) -> Seed:
        if rivals:
            rivals.pop()()
        return look()(old)

    seed.update(objects, change)
    assert seed.read(objects).streams == (ENTRY,)


def test_a_seed_that_others_keep_writing_is_given_up_loudly(objects: ObjectStore) -> None:
    objects.replace = lambda *arguments: False  # type: ignore[method-assign]
    objects.put(SEED_KEY, body())
    with pytest.raises(CommitConflict, match=r"products\.json"):
        seed.update(objects, look())
