"""S3, DynamoDB and Glue in memory: the calls that SchemaHub makes, with AWS's semantics, far faster than moto.

Every call is atomic, as AWS's are. tests/simulation/test_stores.py holds this and moto to the same answers.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from boto3.dynamodb.conditions import ConditionBase, ConditionExpressionBuilder
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import ClientError

from tests.simulation.expressions import Item, condition, update

PAGE_ITEMS = 25
"""Small, so that paging is always at work."""


def refusal(code: str, operation: str, status: int = 400, message: str = "refused", **more: Any) -> ClientError:
    """An error as botocore raises it."""
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}, operation
    )


def plain(value: Any) -> Any:
    """A value as DynamoDB gives it back: numbers are decimals, tuples are lists, floats are refused."""
    if isinstance(value, bool) or value is None or isinstance(value, str | bytes | Decimal):
        return value
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    raise TypeError(f"DynamoDB takes no {type(value).__name__}")


class Table:
    """A table as boto3's resource shows it."""

    def __init__(self, name: str, keys: tuple[str, ...], index: tuple[str, str, str] | None = None) -> None:
        """``index``: name, partition key and sort key of a sparse index."""
        self.name = name
        self.keys = keys
        self.index = index
        self.items: dict[tuple[Any, ...], Item] = {}
        self.lag: list[Item] | None = None
        """What the index shows while it lags; None: it is up to date."""
        self.guard = threading.RLock()
        self.writes = 0
        """Of any kind, so that a reader knows whether it must look again."""

    def get_item(self, *, Key: Item, ConsistentRead: bool = False) -> Any:
        found = self.items.get(self._key(Key))
        return {"Item": deepcopy(found)} if found is not None else {}

    def put_item(self, *, Item: Item, **request: Any) -> Any:
        with self.guard:
            new = plain(Item)
            self._check(self.items.get(self._key(new)), request, "PutItem")
            self._set(self._key(new), new)
        return {}

    def delete_item(self, *, Key: Item, **request: Any) -> Any:
        with self.guard:
            self._check(self.items.get(self._key(Key)), request, "DeleteItem")
            self.items.pop(self._key(Key), None)
            self.writes += 1
        return {}

    def update_item(self, *, Key: Item, UpdateExpression: str, **request: Any) -> Any:
        with self.guard:
            old = self.items.get(self._key(Key))
            self._check(old, request, "UpdateItem")
            new = self._updated(plain(Key), old, UpdateExpression, request)
            self._set(self._key(Key), new)
            return {"Attributes": deepcopy(new)} if request.get("ReturnValues") == "ALL_NEW" else {}

    def query(self, *, KeyConditionExpression: Any, IndexName: str | None = None, **request: Any) -> Any:
        text, request = _built(KeyConditionExpression, request)
        with self.guard:
            rows = sorted(self.items.values(), key=lambda i: [i[k] for k in self.keys])
            if IndexName is not None:
                assert self.index is not None
                assert IndexName == self.index[0], f"no index {IndexName}"
                assert not request.get("ConsistentRead"), "an index has no consistent reads"
                _, partition, sort = self.index
                rows = sorted((i for i in rows if partition in i and sort in i), key=lambda i: i[sort])
                rows = self.lag if self.lag is not None else rows
            judge = condition(text)
            if request.get("ScanIndexForward") is False:
                rows = rows[::-1]
            return self._page([i for i in rows if judge(_scope(i, request))], request)

    def scan(self, *, FilterExpression: Any = None, ConsistentRead: bool = False, **request: Any) -> Any:
        with self.guard:
            rows = sorted(self.items.values(), key=lambda i: [i[k] for k in self.keys])
            page = self._page(rows, request)
            if FilterExpression is not None:
                judge = condition(FilterExpression)
                page["Items"] = [i for i in page["Items"] if judge(_scope(i, request))]
            return page

    def let_the_index_lag(self, lags: bool) -> None:
        """From now on the index shows what it shows now, or the truth again."""
        if not lags:
            self.lag = None
        elif self.index is not None and self.lag is None:
            _, partition, sort = self.index
            rows = [i for i in self.items.values() if partition in i and sort in i]
            self.lag = deepcopy(sorted(rows, key=lambda i: i[sort]))

    def _page(self, rows: list[Item], request: Any) -> Any:
        start = request.get("ExclusiveStartKey")
        if start is not None:
            after = next((n for n, row in enumerate(rows) if self._key(row) == self._key(start)), None)
            down, begin = request.get("ScanIndexForward") is False, self._key(start)
            behind = [r for r in rows if (self._key(r) < begin if down else self._key(r) > begin)]
            rows = rows[after + 1 :] if after is not None else behind
        most = min(PAGE_ITEMS, request.get("Limit", PAGE_ITEMS))
        page: dict[str, Any] = {"Items": deepcopy(rows[:most])}
        if len(rows) > most:
            page["LastEvaluatedKey"] = {k: page["Items"][-1][k] for k in self.keys}
        return page

    def _set(self, key: tuple[Any, ...], item: Item) -> None:
        self.items[key] = item
        self.writes += 1

    def _key(self, item: Item) -> tuple[Any, ...]:
        return tuple(item[k] for k in self.keys)

    def _updated(self, key: Item, old: Item | None, expression: str, request: Any) -> Item:
        return update(expression)(_scope(old or {}, request)) | key

    def _check(self, old: Item | None, request: Any, operation: str) -> None:
        if self._holds(old, request):
            return
        more = {}
        if request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and old is not None:
            more["Item"] = {k: TypeSerializer().serialize(v) for k, v in old.items()}
        raise refusal("ConditionalCheckFailedException", operation, message="The conditional request failed", **more)

    @staticmethod
    def _holds(old: Item | None, request: Any) -> bool:
        text = request.get("ConditionExpression")
        return text is None or condition(text)(_scope(old or {}, request))


def _scope(item: Item, request: Any) -> Any:
    return item, plain(request.get("ExpressionAttributeValues") or {}), request.get("ExpressionAttributeNames") or {}


def _built(expression: Any, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """boto3's condition objects as text."""
    if not isinstance(expression, ConditionBase):
        return expression, request
    built = ConditionExpressionBuilder().build_expression(expression, is_key_condition=True)
    return built.condition_expression, {
        **request,
        "ExpressionAttributeNames": built.attribute_name_placeholders,
        "ExpressionAttributeValues": built.attribute_value_placeholders,
    }


class DynamoClient:
    """The low-level client: transactions only."""

    def __init__(self, tables: dict[str, Table]) -> None:
        self.tables = tables
        self.guard = threading.RLock()

    def transact_write_items(self, *, TransactItems: list[dict[str, Any]]) -> Any:
        actions = [(kind, _untyped(parts)) for entry in TransactItems for kind, parts in entry.items()]
        targets = [(parts["TableName"], tuple((parts.get("Key") or parts["Item"]).items())) for _, parts in actions]
        if len(actions) > 100:
            raise refusal("ValidationException", "TransactWriteItems", message="more than 100 actions")
        with self.guard:
            olds = [self._old(parts) for _, parts in actions]
            codes = [
                "None" if Table._holds(old, parts) else "ConditionalCheckFailed"
                for old, (_, parts) in zip(olds, actions, strict=True)
            ]
            if set(codes) != {"None"}:
                raise refusal(
                    "TransactionCanceledException",
                    "TransactWriteItems",
                    CancellationReasons=[{"Code": code} for code in codes],
                )
            assert len(targets) == len({str(t) for t in targets}), "two actions on one item"
            for kind, parts in actions:
                self._apply(kind, parts)
        return {}

    def _old(self, parts: Item) -> Item | None:
        table = self.tables[parts["TableName"]]
        return table.items.get(table._key(parts.get("Key") or parts["Item"]))

    def _apply(self, kind: str, parts: Item) -> None:
        table = self.tables[parts["TableName"]]
        if kind == "Put":
            table._set(table._key(parts["Item"]), parts["Item"])
        elif kind == "Update":
            key = parts["Key"]
            table._set(table._key(key), table._updated(key, self._old(parts), parts["UpdateExpression"], parts))
        elif kind != "ConditionCheck":
            raise ValueError(kind)


def _untyped(parts: Item) -> Item:
    read = TypeDeserializer().deserialize
    typed = ("Key", "Item", "ExpressionAttributeValues")
    return {k: {n: read(v) for n, v in value.items()} if k in typed else value for k, value in parts.items()}


class S3Client:
    """One bucket's objects."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.guard = threading.RLock()
        self.changed: set[str] = set()
        """Keys written since somebody last took this set away."""

    def put_object(
        self, *, Bucket: str, Key: str, Body: Any, Metadata: dict[str, str] | None = None, **how: str
    ) -> Any:
        body = Body if isinstance(Body, bytes) else Body.read()
        with self.guard:
            there = self.objects.get(Key)
            if how.get("IfNoneMatch") == "*" and there is not None:
                raise refusal("PreconditionFailed", "PutObject", 412)
            if "IfMatch" in how:
                if there is None:
                    raise refusal("NoSuchKey", "PutObject", 404)
                if _etag(there[0]) != how["IfMatch"]:
                    raise refusal("PreconditionFailed", "PutObject", 412)
            self.objects[Key] = (bytes(body), dict(Metadata or {}))
            self.changed.add(Key)
        return {"ETag": _etag(body)}

    def get_object(self, *, Bucket: str, Key: str) -> Any:
        if Key not in self.objects:
            raise refusal("NoSuchKey", "GetObject", 404)
        body, metadata = self.objects[Key]
        return {"Body": io.BytesIO(body), "ETag": _etag(body), "Metadata": dict(metadata), "ContentLength": len(body)}

    def head_object(self, *, Bucket: str, Key: str) -> Any:
        if Key not in self.objects:
            raise refusal("404", "HeadObject", 404)
        body, metadata = self.objects[Key]
        return {"ETag": _etag(body), "Metadata": dict(metadata), "ContentLength": len(body)}

    def delete_object(self, *, Bucket: str, Key: str) -> Any:
        self.objects.pop(Key, None)
        return {}

    def download_file(self, bucket: str, key: str, path: str) -> None:
        if key not in self.objects:
            raise refusal("404", "HeadObject", 404)
        Path(path).write_bytes(self.objects[key][0])

    def get_paginator(self, operation: str) -> Any:
        assert operation == "list_objects_v2"
        return SimpleNamespace(paginate=self._pages)

    def _pages(self, *, Bucket: str, Prefix: str = "", StartAfter: str = "") -> Iterator[Any]:
        keys = sorted(k for k in list(self.objects) if k.startswith(Prefix) and k > StartAfter)
        for start in range(0, max(1, len(keys)), PAGE_ITEMS):
            page = keys[start : start + PAGE_ITEMS]
            yield (
                {"Contents": [{"Key": k, "Size": len(self.objects[k][0])} for k in page if k in self.objects]}
                if page
                else {}
            )


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


class GlueErrors:
    """The client's exception classes."""

    def __init__(self) -> None:
        for name in ("EntityNotFoundException", "AlreadyExistsException", "ConcurrentModificationException"):
            setattr(self, name, type(name, (ClientError,), {}))


class GlueClient:
    """Tables of the catalog; UpdateTable with a version is a compare-and-set."""

    def __init__(self) -> None:
        self.exceptions: Any = GlueErrors()
        self.tables: dict[tuple[str, str], dict[str, Any]] = {}
        self.guard = threading.RLock()
        self.meta = SimpleNamespace(config=SimpleNamespace(retries=None))

    def _raise(self, code: str, operation: str) -> None:
        error = refusal(code, operation)
        raise getattr(self.exceptions, code)(error.response, operation)

    def get_database(self, *, Name: str) -> Any:
        return {"Database": {"Name": Name, "Parameters": {}}}

    def get_table(self, *, DatabaseName: str, Name: str) -> Any:
        found = self.tables.get((DatabaseName, Name))
        if found is None:
            self._raise("EntityNotFoundException", "GetTable")
        return {"Table": deepcopy(found)}

    def create_table(self, *, DatabaseName: str, TableInput: dict[str, Any]) -> Any:
        with self.guard:
            key = (DatabaseName, TableInput["Name"])
            if key in self.tables:
                self._raise("AlreadyExistsException", "CreateTable")
            self.tables[key] = {**deepcopy(TableInput), "DatabaseName": DatabaseName, "VersionId": "0"}
        return {}

    def update_table(
        self, *, DatabaseName: str, TableInput: dict[str, Any], SkipArchive: bool, VersionId: str | None = None
    ) -> Any:
        with self.guard:
            key = (DatabaseName, TableInput["Name"])
            if key not in self.tables:
                self._raise("EntityNotFoundException", "UpdateTable")
            version = self.tables[key]["VersionId"]
            if VersionId is not None and VersionId != version:
                self._raise("ConcurrentModificationException", "UpdateTable")
            self.tables[key] = {
                **deepcopy(TableInput), "DatabaseName": DatabaseName, "VersionId": str(int(version) + 1),
            }  # fmt: skip
        return {}


class Stores:
    """One account: the three tables of template.yaml, a bucket, a catalog."""

    def __init__(self) -> None:
        self.locks = Table("locks", ("lock_id",))
        self.streams = Table("streams", ("stream", "item"), ("pending", "pending", "pending_key"))
        self.throttle = Table("throttle", ("exchange",))
        self.dynamo = DynamoClient({t.name: t for t in (self.locks, self.streams, self.throttle)})
        self.s3 = S3Client()
        self.glue = GlueClient()
        for table in self.dynamo.tables.values():
            table.guard = self.dynamo.guard
