"""A copy of the bucket in a folder (``aws s3 sync``), read as if it were S3: what checking offline needs and no more.

User metadata is not part of such a copy, and nothing here asks for it.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from schemahub.errors import BadInput
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX


class FolderClient:
    """The reading calls of boto3's S3 client over files; whatever bucket is named, it is this folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the key's file lies. Raises NoSuchKey, also for a key that leads out of the folder."""
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()) or not path.is_file():
            raise ClientError({"Error": {"Code": "NoSuchKey", "Message": key}}, "GetObject")
        return path

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        return {"Body": io.BytesIO(self.path(Key).read_bytes()), "ETag": ""}

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        return {"Metadata": {}, "ContentLength": self.path(Key).stat().st_size, "ETag": ""}

    def download_file(self, bucket: str, key: str, target: str) -> None:
        shutil.copyfile(self.path(key), target)

    def get_paginator(self, name: str) -> FolderClient:
        return self

    def paginate(self, Bucket: str, Prefix: str, StartAfter: str = "") -> Iterator[dict[str, Any]]:
        begin = self.root / Prefix.rpartition("/")[0]
        found = ((path.relative_to(self.root).as_posix(), path) for path in begin.rglob("*") if path.is_file())
        keys = sorted((key, path) for key, path in found if key.startswith(Prefix) and key > StartAfter)
        yield {"Contents": [{"Key": key, "Size": path.stat().st_size} for key, path in keys]}


def open_folder(path: Path) -> ObjectStore:
    """The lake in a folder: the one that holds ``schemahub/``, or that one itself.

    Raises:
        BadInput: there is no lake in it.
    """
    name = PREFIX.rstrip("/")
    root = path if (path / name).is_dir() else path.resolve().parent
    if not (root / name).is_dir() or (root != path and path.resolve().name != name):
        raise BadInput(f"{path} holds no copy of a lake (no folder {name}/)")
    return ObjectStore(str(root), FolderClient(root))
