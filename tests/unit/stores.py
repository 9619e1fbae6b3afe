"""Ledger, locks and mirror over moto, with a DynamoDB client whose answers can be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws

from schemahub.clock import FakeClock
from schemahub.commit import Outcome, commit_segments, segment_of
from schemahub.ledger import Ledger
from schemahub.locks import Lease, Locks
from schemahub.objects import ObjectStore
from schemahub.streams import RawObject, Segment, Stream
from tests.conftest import create_tables, quick_session

BUCKET = "schemahub-test-bucket"
STREAM = Stream("coinbase", "BTC-USD")
NOW = 1_700_000_000_000


def cancelled(*codes: str) -> ClientError:
    """TransactionCanceledException as DynamoDB words it: one reason an action."""
    return ClientError(
        {
            "Error": {"Code": "TransactionCanceledException", "Message": "cancelled"},
            "ResponseMetadata": {"HTTPStatusCode": 400},
            "CancellationReasons": [{"Code": code} for code in codes],
        },
        "TransactWriteItems",
    )


def lost() -> ReadTimeoutError:
    return ReadTimeoutError(endpoint_url="http://dynamodb")


@dataclass
class Faulty:
    """A DynamoDB client: each ``faults`` entry meets one transaction, before or after it is applied."""

    client: Any
    faults: list[tuple[str, Exception | Callable[[], None]]] = field(default_factory=list)
    calls: int = 0

    def transact_write_items(self, **arguments: Any) -> Any:
        self.calls += 1
        when, what = self.faults.pop(0) if self.faults else ("", None)
        if when == "before":
            self._happen(what)
        answer = self.client.transact_write_items(**arguments)
        if when == "after":
            self._happen(what)
        return answer

    @staticmethod
    def _happen(what: Any) -> None:
        if isinstance(what, Exception):
            raise what
        what()


@dataclass
class Stores:
    ledger: Ledger
    locks: Locks
    clock: FakeClock
    objects: ObjectStore
    client: Faulty
    tables: dict[str, Any]

    def lease(self, owner: str = "me") -> Lease:
        return self.locks.acquire(STREAM.lock_id, owner, owner)

    def takeover(self) -> Lease:
        """Another execution takes the stream's lock after the lease ran out."""
        self.clock.advance(200)
        return self.locks.acquire(STREAM.lock_id, "rival", "rival")

    def commit(self, lease: Lease, segments: list[Segment], base: int | None) -> Outcome:
        return commit_segments(self.ledger, self.locks, lease, segments, base, self.clock)

    def committed(self) -> list[tuple[int, int]]:
        return [(s.first, s.last) for s in self.ledger.segments(STREAM)]

    def high(self) -> int | None:
        mark = self.ledger.watermark(STREAM)
        return mark.high if mark else None

    def empty(self) -> Stores:
        """The same stores with nothing in them: making an account takes far longer than most tests."""
        for table in self.tables.values():
            keys = [k["AttributeName"] for k in table.key_schema]
            with table.batch_writer() as batch:
                for item in table.scan()["Items"]:
                    batch.delete_item(Key={k: item[k] for k in keys})
        for key in list(self.objects.list("")):
            self.objects.client.delete_object(Bucket=BUCKET, Key=key)
        self.client.faults, self.client.calls = [], 0
        return self


@contextmanager
def account() -> Iterator[Stores]:
    """Stores in an account of this process, for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield make_stores(quick_session())


def make_stores(session: boto3.Session) -> Stores:
    names = create_tables(session)
    session.client("s3").create_bucket(Bucket=BUCKET)
    dynamodb = session.resource("dynamodb")
    tables = {kind: dynamodb.Table(name) for kind, name in names.items()}
    clock, client = FakeClock(NOW), Faulty(session.client("dynamodb"))
    return Stores(
        Ledger(tables["streams"], client),
        Locks(tables["locks"], clock),
        clock,
        ObjectStore(BUCKET, session.client("s3")),
        client,
        tables,
    )


def segment(first: int, last: int, content: str = "a", stream: Stream = STREAM) -> Segment:
    raw = RawObject(
        f"{stream.raw_prefix}{first:020d}_{last:020d}_{last - first + 1}.jsonl.zst",
        first,
        last,
        last - first + 1,
        content * 64,
    )
    return segment_of(stream, raw, "run-1", "rest", NOW)


def tiles(first: int, last: int, size: int = 10, content: str = "a") -> list[Segment]:
    """``[first, last]`` as segments."""
    return [segment(at, min(at + size - 1, last), content) for at in range(first, last + 1, size)]
