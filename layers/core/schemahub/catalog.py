"""The table's catalog: Glue for the pointer, S3 for the metadata, both through boto3.

PyIceberg's own S3 adapter would bring pyarrow and a second chain of credentials; metadata and manifests are small
objects, which need neither. Nothing here reads data files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import ClientError
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError, ValidationError
from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata, TableMetadataUtil

from schemahub.errors import BadProductId, CorruptState
from schemahub.objects import ABSENT, ObjectStore
from schemahub.streams import Interval, Stream, gaps, merge
from schemahub.table import LOCATION, METADATA_PREFIX, PROPERTIES, iceberg_schema, partition_spec, sort_order

PUBLISHED = "schemahub.published."
QUARANTINED = "schemahub.quarantined."
REDERIVED = "schemahub.rederived."
"""``number;run@first-last,…``: see ``rederive``."""


class S3Object(InputFile, OutputFile):
    """One small object, read and written whole."""

    def __init__(self, client: Any, location: str) -> None:
        super().__init__(location)
        self._client = client
        parts = urlsplit(location)
        self._where = {"Bucket": parts.netloc, "Key": parts.path.lstrip("/")}

    def __len__(self) -> int:
        return int(self._client.head_object(**self._where)["ContentLength"])

    def exists(self) -> bool:
        try:
            self._client.head_object(**self._where)
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                return False
            raise
        return True

    def open(self, seekable: bool = True) -> Any:
        try:
            return io.BytesIO(self._client.get_object(**self._where)["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                raise FileNotFoundError(self.location) from error
            raise

    def create(self, overwrite: bool = False) -> Any:
        # Every name holds a fresh UUID, so nothing can be overwritten; a condition would only turn boto3's retry of a
        # write whose answer was lost into a refusal.
        return _Upload(lambda body: self._client.put_object(Body=body, **self._where))

    def to_input_file(self) -> InputFile:
        return self

    def delete(self) -> None:
        self._client.delete_object(**self._where)


class _Upload(io.BytesIO):
    """Collects what is written and sends it on close, unless an exception is on its way."""

    def __init__(self, send: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._send = send

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            super().close()
        self.close()

    def close(self) -> None:
        if not self.closed:
            self._send(self.getvalue())
            super().close()


class S3FileIO(FileIO):
    """PyIceberg's file access by a boto3 client."""

    def __init__(self, client: Any, properties: dict[str, str]) -> None:
        super().__init__(properties)
        self._client = client

    def new_input(self, location: str) -> InputFile:
        return S3Object(self._client, location)

    def new_output(self, location: str) -> OutputFile:
        return S3Object(self._client, location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        S3Object(self._client, location if isinstance(location, str) else location.location).delete()


class LakeCatalog(GlueCatalog):
    """Glue, with the one call that moves the table's pointer never repeated by itself.

    boto3 would repeat it after a lost answer, be refused because the pointer has moved (by itself), and PyIceberg would
    take the refusal for a conflict and delete the manifests of the snapshot that had in fact been committed.
    """

    def __init__(self, session: Any) -> None:
        once = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=60)
        often = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=5, read_timeout=60)
        self._s3 = session.client("s3", config=often)
        self._once = session.client("glue", config=once)
        super().__init__("glue", client=session.client("glue", config=often))

    def _load_file_io(self, properties: dict[str, str] | None = None, location: str | None = None) -> FileIO:
        return S3FileIO(self._s3, dict(properties or {}))

    def _update_glue_table(self, database_name: str, table_name: str, table_input: Any, version_id: str) -> None:
        often, self.glue = self.glue, self._once
        try:
            super()._update_glue_table(database_name, table_name, table_input, version_id)
        finally:
            self.glue = often


def load_table(catalog: GlueCatalog, objects: ObjectStore, database: str, name: str) -> Table:
    """The table; registered again from its newest metadata where Glue has lost it, created where there is none.

    Raises:
        CorruptState: Glue has lost the table and its newest metadata contradicts itself.
    """
    identifier = (database, name)
    try:
        return catalog.load_table(identifier)
    except NoSuchTableError:
        pass
    location = newest_metadata(objects)
    try:
        if location is not None:
            return catalog.register_table(identifier, location)
        return catalog.create_table(
            identifier,
            iceberg_schema(),
            location=f"s3://{objects.bucket}/{LOCATION}",
            partition_spec=partition_spec(),
            sort_order=sort_order(),
            properties=PROPERTIES,
        )
    except TableAlreadyExistsError:
        return catalog.load_table(identifier)


def published_so_far(
    catalog: GlueCatalog, objects: ObjectStore, database: str, name: str
) -> dict[Stream, list[Interval]]:
    """What the table has of each stream, without making a table where there is none yet."""
    try:
        return published_intervals(catalog.load_table((database, name)))
    except NoSuchTableError:
        location = newest_metadata(objects)
    if location is None:
        return {}
    body = objects.get(urlsplit(location).path.lstrip("/")) or b""
    return published_of(_parsed(body, location).properties)


def _parsed(body: bytes, key: str) -> TableMetadata:
    try:
        return TableMetadataUtil.parse_raw(body.decode())
    except (ValueError, ValidationError) as error:
        raise CorruptState(f"Glue lost the table, and {key} cannot be read: {str(error)[:200]}") from error


def newest_metadata(objects: ObjectStore) -> str | None:
    """Where the newest whole metadata file of the table lies in S3, or None if there is none.

    Two writers can have written the same version, of which one was refused. A refused one lost its manifests or lacks
    what the other published, so the whole one that has published everything is the right one.

    Raises:
        CorruptState: manifests are gone, or two whole files of the newest version have published different things.
    """
    versions: dict[int, list[str]] = {}
    for key in objects.list(METADATA_PREFIX):
        name = key.rsplit("/", 1)[-1]
        if name.endswith(".metadata.json") and name.split("-", 1)[0].isdigit():
            versions.setdefault(int(name.split("-", 1)[0]), []).append(key)
    if not versions:
        return None
    for version in sorted(versions, reverse=True):
        found = {key: metadata for key in versions[version] if (metadata := _whole(objects, key)) is not None}
        if found:
            return f"s3://{objects.bucket}/{_fullest(found)}"
    raise CorruptState("Glue lost the table, and no metadata file in S3 has its manifest list")


def _whole(objects: ObjectStore, key: str) -> TableMetadata | None:
    """The metadata in a file, or None where a refused writer has already taken its manifest list away again.

    Raises:
        CorruptState: the list is there and a manifest is not: going back a version would lose rows in silence.
    """
    body = objects.get(key)
    if body is None:
        return None
    metadata = _parsed(body, key)
    snapshot = metadata.current_snapshot()
    files = S3FileIO(objects.client, {})
    if snapshot is None:
        return metadata
    if not files.new_input(snapshot.manifest_list).exists():
        return None
    for manifest in snapshot.manifests(files):
        if not files.new_input(manifest.manifest_path).exists():
            raise CorruptState(
                f"Glue lost the table, and {manifest.manifest_path}, which {key} names, is gone too",
                remedy="Restore it in S3 (the bucket keeps old versions), then run `schemahub replay --force`.",
            )
    return metadata


def _fullest(found: dict[str, TableMetadata]) -> str:
    published = {key: published_of(metadata.properties) for key, metadata in found.items()}
    for key, mine in sorted(published.items(), key=lambda item: found[item[0]].last_updated_ms, reverse=True):
        if all(
            _includes(mine, theirs) and _rederived_later(found[key].properties, found[other].properties)
            for other, theirs in published.items()
        ):
            return key
    raise CorruptState(
        f"Glue lost the table, and {', '.join(sorted(found))} each publish what the other does not",
        remedy="Find out which one Glue had (CloudTrail), and register it by hand.",
    )


def _includes(mine: dict[Stream, list[Interval]], theirs: dict[Stream, list[Interval]]) -> bool:
    return all(not gaps(mine.get(stream, []), interval) for stream, line in theirs.items() for interval in line)


def _rederived_later(mine: dict[str, str], theirs: dict[str, str]) -> bool:
    """Whether ``mine`` has every re-derivation that ``theirs`` has."""

    def number(value: str) -> int:
        return int(value.partition(";")[0] or 0)

    return all(
        mine.get(key) == value or number(mine.get(key, "")) > number(value)
        for key, value in theirs.items()
        if key.startswith(REDERIVED)
    )


def published_intervals(table: Table) -> dict[Stream, list[Interval]]:
    """What the table has of each stream, from its properties: they outlive the snapshots that say the same."""
    return published_of(table.metadata.properties)


def published_of(properties: dict[str, str]) -> dict[Stream, list[Interval]]:
    """Raises CorruptState for a property that is not a list of disjoint intervals."""
    return {
        _stream(key, PUBLISHED): _intervals(key, value)
        for key, value in properties.items()
        if key.startswith(PUBLISHED)
    }


def quarantined_of(properties: dict[str, str]) -> dict[Stream, int]:
    """Rows of each stream's published segments that lie in quarantine instead of the table."""
    try:
        return {
            _stream(key, QUARANTINED): int(value) for key, value in properties.items() if key.startswith(QUARANTINED)
        }
    except ValueError as error:
        raise CorruptState(f"a count of quarantined rows in the table's properties is no number: {error}") from error


def property_name(prefix: str, stream: Stream) -> str:
    return f"{prefix}{stream.exchange}.{stream.product}.{stream.dataset}"


def property_value(intervals: Iterable[tuple[int, int]]) -> str:
    return ",".join(f"{first}-{last}" for first, last in merge(intervals))


def _stream(key: str, prefix: str) -> Stream:
    parts = key.removeprefix(prefix).split(".")
    if len(parts) != 3:
        raise CorruptState(f"the table's property {key[:80]} names no stream")
    try:
        return Stream(*parts)
    except BadProductId as error:
        raise CorruptState(f"the table's property {key[:80]} names no stream: {error.reason}") from error


def _intervals(key: str, value: str) -> list[Interval]:
    try:
        line = [Interval(*(int(edge) for edge in part.split("-"))) for part in value.split(",")]
    except (TypeError, ValueError) as error:
        raise CorruptState(f"the table's property {key} is not a list of intervals") from error
    if merge(line) != line or any(i.first > i.last for i in line):
        raise CorruptState(f"the table's property {key} is not sorted and disjoint")
    return line
