"""Bugs that somebody could well write, one for each guard. The model must find every one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schemahub import publish, raw
from schemahub.commit import segment_of
from schemahub.ledger import Ledger
from schemahub.locks import Lease, Locks
from schemahub.objects import ObjectStore
from schemahub.streams import Chunk
from tests.simulation.world import BUCKET, STREAMS, World

Plant = Callable[[pytest.MonkeyPatch, Callable[[], World]], None]


def lock_without_fence(patch: pytest.MonkeyPatch, world: Callable[[], World]) -> None:
    """The commit only checks that somebody has the lock."""
    honest = Locks.condition_check

    def careless(self: Locks, lease: Lease) -> dict[str, Any]:
        check = honest(self, lease)["ConditionCheck"]
        kept = {k: check[k] for k in ("TableName", "Key")}
        return {"ConditionCheck": {**kept, "ConditionExpression": "attribute_exists(lock_id)"}}

    patch.setattr(Locks, "condition_check", careless)


def watermark_without_condition(patch: pytest.MonkeyPatch, world: Callable[[], World]) -> None:
    """The watermark and its segments are simply written (either's condition alone would still stop a stale commit)."""
    honest = Ledger._action

    def careless(self: Ledger, kind: str, values: Any = None, **parts: Any) -> dict[str, Any]:
        action = honest(self, kind, values, **parts)
        for name in ("ConditionExpression", "ExpressionAttributeNames"):
            action[kind].pop(name, None)
        action[kind].get("ExpressionAttributeValues", {}).pop(":base", None)
        return action

    patch.setattr(Ledger, "_action", careless)


def listing_instead_of_ledger(patch: pytest.MonkeyPatch, world: Callable[[], World]) -> None:
    """What is to be published is read from the bucket's listing."""

    def careless(self: Ledger) -> Any:
        objects = ObjectStore(BUCKET, world().stores.s3)
        for stream in STREAMS:
            for key in objects.list(stream.raw_prefix):
                first, last, _ = raw.parse_raw_key(key) or (0, 0, 0)
                found = raw.find(objects, stream, Chunk(first, last))
                assert found is not None
                yield segment_of(stream, found, "listed", "rest", world().clock.now_ms())

    patch.setattr(Ledger, "pending", careless)


def publish_without_look_up(patch: pytest.MonkeyPatch, world: Callable[[], World]) -> None:
    """The publisher appends what it was given."""
    patch.setattr(publish, "_not_yet", lambda table, manifests: list(manifests))


def mirror_blind_put(patch: pytest.MonkeyPatch, world: Callable[[], World]) -> None:
    """The mirror is written whatever it says meanwhile."""

    def careless(self: ObjectStore, key: str, body: bytes, etag: str) -> bool:
        self.put(key, body)
        return True

    patch.setattr(ObjectStore, "replace", careless)


def release_by_delete(patch: pytest.MonkeyPatch, world: Callable[[], World]) -> None:
    """A released lock's item is deleted."""

    def careless(self: Locks, lease: Lease, attempt: int | None = None) -> bool:
        self._table.delete_item(Key={"lock_id": lease.lock_id})
        return True

    patch.setattr(Locks, "release", careless)


BUGS: dict[Plant, str] = {
    lock_without_fence: "single writer",
    watermark_without_condition: "monotonic|tiling",
    listing_instead_of_ledger: "exactly once|complete",
    publish_without_look_up: "exactly once",
    mirror_blind_put: "mirror ≤ truth",
    release_by_delete: "single writer",
}
"""Each bug, and the guarantee that the model finds broken. What is listed twice may also be refused by the publisher
for good, and then no run comes to its end any more."""
