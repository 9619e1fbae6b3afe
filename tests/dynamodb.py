"""DynamoDB in the test's own process, and the faults that a real one has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import boto3
from moto import mock_aws

from tests.conftest import REGION, create_tables


def open_tables(session: boto3.Session) -> SimpleNamespace:
    """Empty ``locks``, ``streams`` and ``throttle`` as boto3 Tables, and the low-level ``client``."""
    dynamodb = session.resource("dynamodb")
    opened = {name: dynamodb.Table(full) for name, full in create_tables(session).items()}
    return SimpleNamespace(client=session.client("dynamodb"), **opened)


@contextmanager
def fresh_tables() -> Iterator[SimpleNamespace]:
    """``open_tables`` in an account of its own, for one example of a property test."""
    with mock_aws():
        yield open_tables(boto3.Session("testing", "testing", region_name=REGION))


class Watched:
    """A Table that counts its calls and can lose the answer of a write, which boto3 then repeats.

    Calls exclude each other, as DynamoDB's on one item do (moto's own do not between threads).
    """

    def __init__(self, table: Any) -> None:
        self._table = table
        self._guard = threading.Lock()
        self.name = table.name
        self.writes = 0
        self.reads = 0
        self.lose_next = 0

    def update_item(self, **request: Any) -> Any:
        with self._guard:
            self.writes += 1
            if self.lose_next:
                self.lose_next -= 1
                with suppress(self._table.meta.client.exceptions.ConditionalCheckFailedException):
                    self._table.update_item(**request)
            return self._table.update_item(**request)

    def get_item(self, **request: Any) -> Any:
        with self._guard:
            self.reads += 1
            return self._table.get_item(**request)

    def put_item(self, **request: Any) -> Any:
        with self._guard:
            return self._table.put_item(**request)

    def scan(self, **request: Any) -> Any:
        with self._guard:
            return self._table.scan(**request)
