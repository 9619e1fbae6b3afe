"""The stores in memory answer as moto does: the same random calls, the same answers and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from schemahub.clock import FakeClock
from schemahub.commit import commit_segments
from schemahub.commit_below import commit_islands, lower
from schemahub.errors import SchemaHubError
from schemahub.ledger import Ledger
from schemahub.locks import Locks
from schemahub.objects import ObjectStore
from schemahub.streams import Stream
from tests.simulation.stores import Stores
from tests.unit.stores import Stores as MotoStores
from tests.unit.stores import account, tiles

STREAM = Stream("coinbase", "BTC-USD")
OWNERS = ("one", "two")
MOVE = st.one_of(
    st.tuples(st.just("acquire"), st.sampled_from(OWNERS), st.integers(0, 1)),
    st.tuples(st.just("renew"), st.sampled_from(OWNERS), st.integers(0, 1)),
    st.tuples(st.just("keep"), st.sampled_from(OWNERS), st.just(0)),
    st.tuples(st.just("release"), st.sampled_from(OWNERS), st.integers(0, 1)),
    st.tuples(st.just("release_run"), st.sampled_from(OWNERS), st.just(0)),
    st.tuples(st.just("commit"), st.sampled_from(OWNERS), st.integers(0, 3)),
    st.tuples(st.just("fill"), st.sampled_from(OWNERS), st.integers(0, 9)),
    st.tuples(st.just("lower"), st.sampled_from(OWNERS), st.just(0)),
    st.tuples(st.just("advance"), st.sampled_from(OWNERS), st.just(0)),
    st.tuples(st.just("newest"), st.just(""), st.integers(0, 700)),
    st.tuples(st.just("publish"), st.just(""), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.just(""), st.integers(1, 120)),
)


class Actor:
    """The real doors over one kind of store."""

    def __init__(self, locks: Any, streams: Any, client: Any) -> None:
        self.clock = FakeClock()
        self.locks, self.ledger = Locks(locks, self.clock), Ledger(streams, client)
        self.leases: dict[str, Any] = {}

    def act(self, what: str, who: str, number: int) -> Any:
        """The answer, or the name of the refusal."""
        try:
            return getattr(self, f"_{what}")(who, number)
        except (SchemaHubError, ClientError) as error:
            return type(error).__name__
        except KeyError:
            return "no lease"

    def _acquire(self, who: str, attempt: int) -> Any:
        self.leases[who] = self.locks.acquire(STREAM.lock_id, who, who, attempt)
        return self.leases[who]

    def _renew(self, who: str, attempt: int) -> Any:
        return self.locks.ensure(self.leases[who], attempt)

    def _keep(self, who: str, attempt: int) -> Any:
        return self.locks.keep(self.leases[who])

    def _release(self, who: str, attempt: int) -> Any:
        return self.locks.release(self.leases[who], attempt)

    def _release_run(self, who: str, attempt: int) -> Any:
        return self.locks.release_run(who)

    def _commit(self, who: str, tens: int) -> Any:
        mark = self.ledger.watermark(STREAM)
        base = mark.high if mark else None
        first = (base or 600) + 1
        new = tiles(first, first + 10 * tens)
        return commit_segments(self.ledger, self.locks, self.leases[who], new, base, self.clock)

    def _fill(self, who: str, tens: int) -> Any:
        return commit_islands(self.ledger, self.locks, self.leases[who], tiles(50 * tens, 50 * tens + 60), self.clock)

    def _lower(self, who: str, _: int) -> Any:
        return lower(self.ledger, self.locks, self.leases[who], STREAM, self.clock)

    def _advance(self, who: str, _: int) -> Any:
        self.leases[who] = self.locks.advance(self.leases[who])
        return self.leases[who]

    def _newest(self, _: str, last: int) -> Any:
        newest = [s.first for s in self.ledger.newest_segments(STREAM, last)]
        return newest, self.ledger.lowest(STREAM), [s.first for s in self.ledger.segments(STREAM, 100, last)]

    def _publish(self, who: str, count: int) -> Any:
        self.ledger.mark_published(list(self.ledger.pending())[:count], "snapshot")
        return [s.first for s in self.ledger.pending()]

    def _wait(self, who: str, seconds: int) -> None:
        self.clock.advance(seconds)


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoStores]:
    with account() as stores:
        yield stores


@settings(max_examples=15)
@given(moves=st.lists(MOVE, min_size=5, max_size=25))
def test_locks_and_ledger_cannot_tell_the_stores_apart(moto: MotoStores, moves: list[tuple[str, str, int]]) -> None:
    mine, theirs = Stores(), moto.empty()
    actors = [
        Actor(mine.locks, mine.streams, mine.dynamo),
        Actor(theirs.tables["locks"], theirs.tables["streams"], theirs.client),
    ]
    for move in moves:
        answers = [actor.act(*move) for actor in actors]
        assert answers[0] == answers[1], move
    assert list(mine.locks.items.values()) == theirs.tables["locks"].scan()["Items"]
    found = {(i["stream"], i["item"]): i for i in theirs.tables["streams"].scan()["Items"]}
    assert mine.streams.items == found


KEYS = st.sampled_from(("a/1", "a/2", "b/1"))
PUT = st.tuples(st.sampled_from(("put", "put_new", "replace", "get", "head", "list")), KEYS, st.binary(max_size=3))


@settings(max_examples=15)
@given(moves=st.lists(PUT, min_size=5, max_size=20))
def test_objects_cannot_tell_the_stores_apart(moto: MotoStores, moves: list[tuple[str, str, bytes]]) -> None:
    stores = [ObjectStore("any", Stores().s3), moto.empty().objects]
    for move in moves:
        answers = [_object(store, *move) for store in stores]
        assert answers[0] == answers[1], move


def _object(store: ObjectStore, what: str, key: str, body: bytes) -> Any:
    calls: dict[str, Callable[[], Any]] = {
        "put": lambda: store.put(key, body, {"count": "1"}),
        "put_new": lambda: store.put_new(key, body, {"count": "2"}),
        "replace": lambda: store.replace(key, body, '"0cc175b9c0f1b6a831c399e269772661"'),
        "get": lambda: store.get_with_etag(key),
        "head": lambda: store.head(key),
        "list": lambda: list(store.list("a/", key)),
    }
    try:
        return calls[what]()
    except ClientError as error:
        return error.response["Error"]["Code"]
