"""The list of corrections: what files that exchanges issued again changed, each an object of its own in S3."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from schemahub.archives import CORRECTIONS, folder_of
from schemahub.errors import CorruptState
from schemahub.objects import ObjectStore
from schemahub.streams import Interval, Stream

Document = dict[str, Any]
STATES = ("due", "prepared", "committed", "published", "void")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
SETTLED = ("published", "void")


@dataclass(frozen=True)
class Correction:
    """What a re-issued file changed.

    ``state``: ``due`` (seen by its checksum, not taken yet), ``prepared``, ``committed`` (in the ledger), ``published``
    (the table's rows are made anew), ``void`` (no trade is another one, or a later issue took its place).
    """

    key: str
    document: Document

    @property
    def state(self) -> str:
        return str(self.document["state"])

    @property
    def file(self) -> str:
        return str(self.document["file"])

    @property
    def span(self) -> Interval | None:
        """The range whose rows in the table have to be made anew; None where no segment is another one.

        Of all segments: one that nobody had published may have been on its way to the table as it was before.
        """
        parts = self.document["segments"]
        return Interval(min(s["first"] for s in parts), max(s["last"] for s in parts)) if parts else None

    @property
    def rederive(self) -> Document | None:
        """What ``transform`` is started with (``rederive`` of its input); None where no row has to change."""
        span = self.span
        return span and {"streams": [self.document["stream"]], "since": span.first, "until": span.last}


def read_correction(objects: ObjectStore, key: str) -> Correction | None:
    """Raises CorruptState for an object that is not one of ours."""
    body = objects.get(key)
    if body is None:
        return None
    try:
        document = json.loads(body)
        if document["schema_version"] != 1 or document["state"] not in STATES:
            raise ValueError(f"schema_version {document['schema_version']!r}, state {document['state']!r}")
        if (
            type(document["at"]) is not int
            or type(document["file"]) is not str
            or not _NAME.fullmatch(document["file"])
        ):
            raise ValueError(f"at {document['at']!r}, file {str(document['file'])[:80]!r}")
        Correction(key, document).span  # noqa: B018  its segments can be read
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"{key} is not a correction: {error!r}"[:300]) from error
    return Correction(key, document)


def corrections(objects: ObjectStore, stream: Stream) -> list[Correction]:
    """Every correction of a stream, the oldest first."""
    found = (read_correction(objects, key) for key in objects.list(folder_of(stream) + CORRECTIONS))
    return sorted((c for c in found if c is not None), key=lambda c: (c.document["at"], c.key))


def correction_key(stream: Stream, file: str, sha256: str) -> str:
    """Where the correction of a file by an issue is listed."""
    return f"{folder_of(stream)}{CORRECTIONS}{file}.{sha256[:16]}.json"


def note_due(objects: ObjectStore, stream: Stream, file: str, sha256: str, now_ms: int) -> None:
    """Put down that an issue is to be taken. What is known of this correction already stays."""
    key = correction_key(stream, file, sha256)
    fresh: Document = {"schema_version": 1, "stream": str(stream), "file": file, "sha256": sha256, "state": "due",
                       "at": now_ms, "segments": [], "differences": []}  # fmt: skip
    if objects.put_new(key, json.dumps(fresh, indent=1).encode()):
        return
    before = read_correction(objects, key)
    if before is not None and before.state in SETTLED:
        # An issue that comes back after another one was in its place.
        write_correction(objects, key, before.document | {"state": "due", "at": now_ms})


def mark_published(objects: ObjectStore, correction: Correction, run_id: str) -> Correction:
    """Note that the table's rows were made anew by this run of ``transform``."""
    document = correction.document | {"state": "published", "rederived_by": run_id}
    write_correction(objects, correction.key, document)
    return Correction(correction.key, document)


def replaced_keys(objects: ObjectStore, stream: Stream) -> tuple[set[str], set[str]]:
    """Raw objects that committed corrections put out of use, and those that they put in their place."""
    old: set[str] = set()
    new: set[str] = set()
    for correction in corrections(objects, stream):
        if correction.state != "prepared":
            old |= {s["old"]["raw_key"] for s in correction.document["segments"]}
            new |= {s["new"]["raw_key"] for s in correction.document["segments"]}
    return old - new, new - old


def write_correction(objects: ObjectStore, key: str, document: Document) -> None:
    objects.put(key, json.dumps(document, indent=1).encode())
