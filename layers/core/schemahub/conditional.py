"""One conditional write to DynamoDB, whose refusal is an answer and not an exception.

Locks, throttle and breaker are all the same step: change one item if it is as we believe, otherwise learn how it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from botocore.exceptions import ClientError

from schemahub.errors import CorruptState

Item = dict[str, Any]
CONFLICT_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4)
"""A transaction that holds the item for a moment refuses the write, which has changed nothing then: asked again."""


@dataclass(frozen=True)
class Applied:
    """The condition held; ``item`` is how it is now."""

    item: Item


@dataclass(frozen=True)
class Rejected:
    """The condition did not hold; ``item`` is how it was found, empty if there was none."""

    item: Item


def update_if(
    table: Any, key: Item, update: str, condition: str, values: Item, names: Mapping[str, str] | None = None
) -> Applied | Rejected:
    """UpdateItem of a boto3 ``Table`` under a condition; every other error goes to the caller."""
    named = {"ExpressionAttributeNames": dict(names)} if names else {}
    for pause_s in (*CONFLICT_PAUSES_S, None):
        try:
            answer = table.update_item(
                Key=key,
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeValues=values,
                ReturnValues="ALL_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **named,
            )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "TransactionConflictException" and pause_s is not None:
                time.sleep(pause_s)
                continue
            if code != "ConditionalCheckFailedException":
                raise
            return Rejected(_old_item(table, key, error))
        return Applied(answer["Attributes"])
    raise AssertionError("unreachable")


def update(table: Any, key: Item, expression: str, values: Item, names: Mapping[str, str] | None = None) -> None:
    """UpdateItem under no condition: for what is only said or counted, and proves nothing."""
    named = {"ExpressionAttributeNames": dict(names)} if names else {}
    table.update_item(Key=key, UpdateExpression=expression, ExpressionAttributeValues=values, **named)


def _old_item(table: Any, key: Item, error: ClientError) -> Item:
    """The item of the refusal itself, which boto3 hands over with DynamoDB's type letters; else a consistent read."""
    raw: Any = error.response.get("Item")
    if raw is None:
        return read(table, key)
    from boto3.dynamodb.types import TypeDeserializer

    deserialise = TypeDeserializer().deserialize
    return {name: deserialise(value) for name, value in raw.items()}


def read(table: Any, key: Item) -> Item:
    """The item by a consistent read, empty if there is none."""
    return table.get_item(Key=key, ConsistentRead=True).get("Item") or {}


def whole(item: Item, name: str, default: int | None = None) -> int:
    """``item[name]`` as an integer.

    Raises:
        CorruptState: if it is missing (without a ``default``) or anything else than a whole number.
    """
    value = item.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value != int(value):
        key = next((str(item[k]) for k in ("lock_id", "exchange") if k in item), "item")
        raise CorruptState(f"{key}: attribute {name!r} is {str(value)[:40]!r}, not a whole number")
    return int(value)
