"""The list of corrections: what files that exchanges issued again changed, each an object of its own in S3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from schemahub.archives import CORRECTIONS, folder_of
from schemahub.errors import CorruptState
from schemahub.objects import ObjectStore
from schemahub.streams import Interval, Stream

Document = dict[str, Any]


@dataclass(frozen=True)
class Correction:
    """What a re-issued file changed. ``state``: ``prepared``, ``committed`` (in the ledger), ``published``."""

    key: str
    document: Document

    @property
    def state(self) -> str:
        return str(self.document["state"])

    @property
    def span(self) -> Interval | None:
        """The range whose rows in the table have to be made anew; None where nothing of it was published."""
        parts = [s for s in self.document["segments"] if s["published"]]
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
        if document["schema_version"] != 1 or document["state"] not in ("prepared", "committed", "published"):
            raise ValueError(f"schema_version {document['schema_version']!r}, state {document['state']!r}")
        Correction(key, document).span  # noqa: B018  its segments can be read
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"{key} is not a correction: {error!r}"[:300]) from error
    return Correction(key, document)


def corrections(objects: ObjectStore, stream: Stream) -> list[Correction]:
    """Every correction of a stream, the oldest first."""
    found = (read_correction(objects, key) for key in objects.list(folder_of(stream) + CORRECTIONS))
    return sorted((c for c in found if c is not None), key=lambda c: (c.document["at"], c.key))


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
