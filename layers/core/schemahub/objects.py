"""The one door to S3: whole objects, conditional writes, nothing that deletes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import ClientError

PRECONDITION = {"PreconditionFailed", "412"}
CONFLICT = {"ConditionalRequestConflict", "409"}
"""Another conditional write of the key was under way: S3 wants the write again, nothing is decided yet."""
CONFLICT_TRIES = 5
ABSENT = {"NoSuchKey", "404", "NotFound"}


class Body(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class ObjectStore:
    """Objects of one bucket. Reads are strongly consistent (as S3's are since 2020-12)."""

    def __init__(self, bucket: str, client: Any) -> None:
        self.bucket = bucket
        self.client = client

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        found = self.get_with_etag(key)
        return found[0] if found else None

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                return None
            raise
        return answer["Body"].read(), answer["ETag"]

    def get_to_file(self, key: str, path: Path) -> bool:
        """Stream the object to ``path``; False where there is none."""
        try:
            self.client.download_file(self.bucket, key, str(path))
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                return False
            raise
        return True

    def head(self, key: str) -> dict[str, Any] | None:
        """User metadata with ``size`` (bytes) and ``etag``, or None where there is no object."""
        try:
            answer = self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                return None
            raise
        return {**answer["Metadata"], "size": answer["ContentLength"], "etag": answer["ETag"]}

    def modified_s(self, key: str) -> int | None:
        """When the object was written, seconds since the epoch; None where there is none."""
        try:
            return int(self.client.head_object(Bucket=self.bucket, Key=key)["LastModified"].timestamp())
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                return None
            raise

    def list(self, prefix: str, start_after: str | None = None) -> Iterator[str]:
        """Keys below ``prefix`` in order, optionally only those after a key."""
        for key, _ in self.sizes(prefix, start_after):
            yield key

    def sizes(self, prefix: str, start_after: str | None = None) -> Iterator[tuple[str, int]]:
        """As ``list``, with the bytes of each object."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, **({"StartAfter": start_after} if start_after else {})
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                yield entry["Key"], int(entry["Size"])

    def put(self, key: str, body: bytes, metadata: dict[str, str] | None = None) -> None:
        """Write, replacing what was there: only for plans and reports, which are functions of their key."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body, Metadata=metadata or {})

    def put_new(self, key: str, body: bytes | Path, metadata: dict[str, str] | None = None) -> bool:
        """Write only where nothing is (``If-None-Match: *``); False when the key is taken."""
        return self._conditional(key, body, metadata, IfNoneMatch="*")

    def replace(self, key: str, body: bytes, etag: str) -> bool:
        """Write only over the version that was read (``If-Match``); False when somebody wrote in between."""
        return self._conditional(key, body, None, IfMatch=etag)

    def _conditional(self, key: str, body: bytes | Path, metadata: dict[str, str] | None, **condition: str) -> bool:
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "Metadata": metadata or {}, **condition}
        for tries_left in reversed(range(CONFLICT_TRIES)):
            try:
                if isinstance(body, Path):
                    with body.open("rb") as stream:
                        self.client.put_object(Body=stream, **arguments)
                else:
                    self.client.put_object(Body=body, **arguments)
                return True
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in PRECONDITION:
                    return False
                if code not in CONFLICT or not tries_left:
                    raise
        raise AssertionError("unreachable")
