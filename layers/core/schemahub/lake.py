"""The published table as it is found: by the catalog, in a bucket alone, or in a copy of the bucket in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table.metadata import TableMetadataUtil

from schemahub import query
from schemahub.catalog import LakeCatalog, newest_metadata, published_of, quarantined_of
from schemahub.deps import Deps
from schemahub.errors import BadInput, CorruptState
from schemahub.evidence import MEMORY, files_of
from schemahub.folder import open_folder
from schemahub.objects import ObjectStore
from schemahub.streams import Interval, Stream


@dataclass(frozen=True)
class Lake:
    """The table at one moment: its metadata (PyIceberg's; None where nothing was published) and how to query it."""

    objects: ObjectStore
    metadata: Any
    location: str
    """Of the metadata file; empty where there is none."""
    connect: Callable[[], Any]
    """A DuckDB connection with the view ``trades``."""
    registered: bool = True
    """Whether a catalog knows the table."""

    @property
    def published(self) -> dict[Stream, list[Interval]]:
        return published_of(self.metadata.properties) if self.metadata else {}

    @property
    def quarantined(self) -> dict[Stream, int]:
        return quarantined_of(self.metadata.properties) if self.metadata else {}

    @property
    def key(self) -> str:
        """The metadata file's key in the bucket."""
        return self.location.split("/", 3)[3] if self.location else ""


def lake_of(deps: Deps) -> Lake:
    """The table of a stack as it is now; nothing is made or registered.

    Raises:
        CorruptState: the catalog has lost the table, and its metadata contradicts itself.
    """
    settings = deps.settings
    try:
        table = LakeCatalog(deps.session).load_table((settings.database, settings.table))
    except NoSuchTableError:
        return _from_metadata(deps.objects, deps.session)
    location = table.metadata_location
    return Lake(deps.objects, table.metadata, location, lambda: query.open_view(deps.session, location, MEMORY))


def lake_at(place: str, session: Any) -> Lake:
    """The table in a bucket (``s3://name`` or its name) or in a folder that holds a copy of one, by S3 alone.

    Raises:
        BadInput: there is no such bucket or copy.
    """
    if Path(place).is_dir():
        objects = open_folder(Path(place))
        return _from_metadata(objects, None)
    bucket = place.removeprefix("s3://").rstrip("/")
    client = session.client("s3")
    try:
        client.head_bucket(Bucket=bucket)
    except (ClientError, BotoCoreError) as error:
        raise BadInput(f"{place[:200]!r} is neither a folder here nor a bucket that answers: {error}"[:400]) from error
    return _from_metadata(ObjectStore(bucket, client), session)


def _from_metadata(objects: ObjectStore, session: Any | None) -> Lake:
    """By the newest whole metadata file; ``session`` None for a folder."""
    location = newest_metadata(objects)
    if location is None:
        return Lake(objects, None, "", lambda: None, registered=False)
    key = location.removeprefix(f"s3://{objects.bucket}/")
    try:
        metadata = TableMetadataUtil.parse_raw((objects.get(key) or b"").decode())
    except ValueError as error:
        raise CorruptState(f"{key} cannot be read: {str(error)[:200]}") from error

    def connect() -> Any:
        if session is not None:
            return query.open_view(session, location, MEMORY)
        names = [str(objects.client.path(file.key)) for file in files_of(objects, metadata) if file.data]
        return query.open_files(names, MEMORY)

    return Lake(objects, metadata, f"s3://-/{key}", connect, registered=False)
