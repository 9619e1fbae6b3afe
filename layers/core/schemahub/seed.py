"""The seed ``config/products.json``: which streams a run pulls, and every instrument that was ever listed.

Ingest reads ``streams`` only. A seed of a release that knew no instruments is read as if each of its entries had been
seen when it was written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from schemahub import SCHEMA_VERSION
from schemahub.errors import BadConfig, BadProductId, CommitConflict
from schemahub.instruments import MAX_TEXT, ONLINE, Instrument, is_word
from schemahub.objects import ObjectStore
from schemahub.streams import PREFIX, Stream

SEED_KEY = f"{PREFIX}config/products.json"
ATTEMPTS = 5
AGAIN = "Run `schemahub update-seed` again."
Value = TypeVar("Value")
Entry = dict[str, str]
"""One stream: ``exchange``, ``product``, and as the exchange said when it was chosen ``symbol`` and ``status``."""


@dataclass(frozen=True)
class Seed:
    """What the document says."""

    streams: tuple[Entry, ...] = ()
    instruments: tuple[Instrument, ...] = ()

    def to_bytes(self) -> bytes:
        """The document, one entry a line: thousands of instruments stay readable, and comparable by line."""
        streams, instruments = _lines(self.streams), _lines(i.to_json() for i in self.instruments)
        text = f'{{"schema_version": {SCHEMA_VERSION},\n"streams": [{streams}],\n"instruments": [{instruments}]}}\n'
        return text.encode()


def _lines(values: Iterable[Any]) -> str:
    return ",".join(f"\n {json.dumps(v)}" for v in values)


def parse_streams(body: bytes) -> list[Entry]:
    """The entries of ``streams``.

    Raises:
        BadConfig: the document is not a seed, an entry is wrong (it is named), or a product stands twice.
    """
    return _entries(_document(body))


def parse(body: bytes, written_s: int) -> Seed:
    """The whole document; ``written_s`` is when it was written (seconds since the epoch).

    Raises:
        BadConfig: as ``parse_streams``, or an instrument is wrong (it is named).
    """
    document = _document(body)
    streams = _entries(document)
    if "instruments" not in document:
        # update-seed takes only what trades, and only it writes the symbol: so this was seen then.
        old = [
            Instrument(e["exchange"], e["product"], e["symbol"], ONLINE, e["status"], 1, *[written_s] * 3)
            for e in streams
            if e.get("symbol") and "status" in e
        ]
        return Seed(tuple(streams), tuple(sorted(old)))
    values = document["instruments"]
    if not isinstance(values, list):
        raise BadConfig(f"{SEED_KEY}: instruments is not a list")
    instruments = [_checked("instruments", n, v, Instrument.from_json) for n, v in enumerate(values)]
    _refuse_twice("instruments", [i.key for i in instruments])
    return Seed(tuple(streams), tuple(sorted(instruments)))


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{SEED_KEY} is not a seed list, for it is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict) or not isinstance(document.get("streams"), list):
        raise BadConfig(f"{SEED_KEY} is not a seed list: it has no list of streams")
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BadConfig(f"{SEED_KEY} has schema_version {str(version)[:40]}, this code speaks {SCHEMA_VERSION}")
    return document


def _entries(document: dict[str, Any]) -> list[Entry]:
    entries = [_checked("streams", n, v, _entry) for n, v in enumerate(document["streams"])]
    _refuse_twice("streams", [(e["exchange"], e["product"]) for e in entries])
    return entries


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    if missing := [k for k in ("exchange", "product") if k not in value]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    Stream(value["exchange"], value["product"])
    for name in ("symbol", "status"):
        if not is_word(text := value.get(name, "")):
            raise ValueError(f"{name} {str(text)[:40]!r} is not text of at most {MAX_TEXT} characters")
    return value


def _checked(part: str, number: int, value: Any, read: Callable[[Any], Value]) -> Value:
    try:
        return read(value)
    except (ValueError, TypeError, BadProductId) as error:
        names = [str(value.get(k))[:40] for k in ("exchange", "product")] if isinstance(value, dict) else []
        which = f" ({':'.join(names)})" if names else ""
        reason = error.reason if isinstance(error, BadProductId) else str(error)
        raise BadConfig(f"{SEED_KEY}, {part}[{number}]{which}: {reason}") from error


def _refuse_twice(part: str, keys: list[tuple[str, str]]) -> None:
    seen: set[tuple[str, str]] = set()
    for number, key in enumerate(keys):
        if key in seen:
            raise BadConfig(f"{SEED_KEY}, {part}[{number}] ({':'.join(key)}): it stands there twice")
        seen.add(key)


def read(objects: ObjectStore) -> Seed:
    """The bucket's seed; an empty one where none was written yet. Raises BadConfig."""
    return _read(objects)[0]


def _read(objects: ObjectStore) -> tuple[Seed, str | None]:
    found = objects.get_with_etag(SEED_KEY)
    if found is None:
        return Seed(), None
    return parse(found[0], objects.modified_s(SEED_KEY) or 0), found[1]


def update(objects: ObjectStore, change: Callable[[Seed], Seed]) -> tuple[Seed, Seed]:
    """Replace the seed by ``change`` of it, and answer with both. Nothing is written where nothing changes.

    A writer in between is never overwritten: the change is then made once more, of what that one wrote.

    Raises:
        BadConfig: what is there is not a seed. CommitConflict: others kept writing in every attempt.
    """
    for _ in range(ATTEMPTS):
        old, etag = _read(objects)
        new = change(old)
        body = new.to_bytes()
        if etag is not None and new == old:
            return old, new
        if objects.put_new(SEED_KEY, body) if etag is None else objects.replace(SEED_KEY, body, etag):
            return old, new
    raise CommitConflict(f"{SEED_KEY} was written by others in each of {ATTEMPTS} attempts", remedy=AGAIN)
