"""The immutable layer: originals of a chunk in one object whose name and content are functions of its range.

Writing twice writes the same bytes, so a second writer finds the first one's object; different content under the same
range is an alarm (``RawConflict``), never an overwrite. What an exchange issues again with other content becomes
another edition of the object, named by its content (``archive_correct``); the first one stays.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator

import zstandard

from schemahub.errors import CorruptState, RawConflict, RawMissing
from schemahub.fetch import Fetched
from schemahub.objects import ObjectStore
from schemahub.streams import Absent, Chunk, Edges, Interval, RawObject, Stream, position

LEVEL = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(\d{20})_(\d{20})_(\d+)(?:\.([0-9a-f]{12}))?\.jsonl\.zst")
EDITION_DIGITS = 12


def raw_key(stream: Stream, first: int, last: int, count: int, edition: str = "") -> str:
    name = f"{first:020d}_{last:020d}_{count}" + (f".{edition}" if edition else "")
    return f"{stream.raw_prefix}{name}.jsonl.zst"


def parse_raw_key(key: str) -> tuple[int, int, int] | None:
    """(first, last, count) of a raw object's name, or None for a foreign object."""
    match = _NAME.fullmatch(key.rsplit("/", 1)[-1])
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def edition_of(key: str) -> str:
    """The beginning of its content's SHA-256 for an object that replaces another one; empty for a range's first."""
    match = _NAME.fullmatch(key.rsplit("/", 1)[-1])
    return (match[4] or "") if match else ""


def listed(objects: ObjectStore, stream: Stream, within: Interval) -> Iterator[tuple[str, tuple[int, int, int], int]]:
    """Raw objects of a stream that begin in a range, by position: key, (first, last, count) and bytes in S3."""
    # Zero-padded names sort by position: the listing begins just before the range.
    for key, size in objects.sizes(stream.raw_prefix, f"{stream.raw_prefix}{within.first:020d}"):
        if (named := parse_raw_key(key)) is None:
            continue
        if named[0] > within.last:
            return
        yield key, named, size


def content_of(texts: Iterable[str]) -> bytes:
    """The object's content before compression: one trade a line, a line break after each."""
    return "".join(f"{text}\n" for text in texts).encode()


def store(objects: ObjectStore, stream: Stream, fetched: Fetched, *, edition: bool = False) -> RawObject:
    """Make a fetched chunk durable; ``edition``: beside the object that its range has already.

    Raises:
        RawConflict: the range is there already with other content.
    """
    content = content_of(fetched.texts)
    chunk, count = fetched.chunk, len(fetched.texts)
    sha256 = hashlib.sha256(content).hexdigest()
    raw = RawObject(
        raw_key(stream, chunk.first, chunk.last, count, sha256[:EDITION_DIGITS] if edition else ""),
        chunk.first,
        chunk.last,
        count,
        sha256,
        fetched.absent,
        fetched.counted,
        fetched.edges,
    )
    raw.check()
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    if objects.put_new(raw.key, compressor.compress(content), _metadata(raw)):
        return raw
    there = describe(objects, raw.key) if edition else find(objects, stream, chunk)
    if there is None:
        raise RawConflict(
            f"{raw.key} was not written by SchemaHub (empty, or without its metadata) and blocks its range",
            stream=stream,
            span=(chunk.first, chunk.last),
            remedy="It was kept. Move it away (the bucket keeps old versions), then run `schemahub replay --force`.",
        )
    if there.sha256 != raw.sha256:
        raise RawConflict(
            f"{raw.key} holds other content (sha256 {there.sha256[:12]}, fetched now {raw.sha256[:12]})",
            stream=stream,
            span=(chunk.first, chunk.last),
        )
    return there


def _metadata(raw: RawObject) -> dict[str, str]:
    # S3 takes 2 KB of user metadata: fetch.MAX_HOLES holes of two 19-digit ids fit.
    return {
        "first": str(raw.first),
        "last": str(raw.last),
        "count": str(raw.count),
        "sha256": raw.sha256,
        "absent": json.dumps([list(a) for a in raw.absent], separators=(",", ":")),
        **({} if raw.counted else {"counted": "false"}),
        **({"edges": json.dumps(raw.edges)} if raw.edges else {}),
    }


def find(objects: ObjectStore, stream: Stream, chunk: Chunk) -> RawObject | None:
    """The whole raw object of exactly this range, if one is durable; the fullest where an earlier look saw less.

    Later editions are found by their segments, never by their range.
    """
    prefix = f"{stream.raw_prefix}{chunk.first:020d}_{chunk.last:020d}_"
    keys = [key for key in objects.list(prefix) if not edition_of(key)]
    named = [(parsed[2], key) for key in keys if (parsed := parse_raw_key(key))]
    for _, key in sorted(named, reverse=True):
        raw = describe(objects, key)
        if raw is not None:
            return raw
    return None


def find_shorter(objects: ObjectStore, stream: Stream, chunk: Chunk) -> RawObject | None:
    """The longest raw object that begins inside of a chunk and ends with it (a first run of newest trades)."""
    for key, (_, last, _), _ in listed(objects, stream, Interval(chunk.first, chunk.last)):
        if last == chunk.last and not edition_of(key) and (raw := describe(objects, key)) is not None:
            return raw
    return None


def describe(objects: ObjectStore, key: str) -> RawObject | None:
    """What an object's metadata says of it; None where the object is gone, is empty or was not written by us."""
    meta = objects.head(key)
    if meta is None or not meta["size"] or not {"first", "last", "count", "sha256", "absent"} <= meta.keys():
        return None
    try:
        raw = RawObject(
            key,
            int(meta["first"]),
            int(meta["last"]),
            int(meta["count"]),
            meta["sha256"],
            tuple(Absent(int(a), int(b), kind) for a, b, kind in json.loads(meta["absent"])),
            meta.get("counted") != "false",
            _edges(meta["edges"]) if "edges" in meta else None,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptState(f"the metadata of {key} cannot be read: {error}") from error
    if parse_raw_key(key) != (raw.first, raw.last, raw.count):
        raise CorruptState(f"the name of {key} and its metadata disagree")
    if not _SHA256.fullmatch(raw.sha256):
        raise CorruptState(f"the metadata of {key} names no SHA-256")
    raw.check()
    return raw


def _edges(text: str) -> Edges:
    before, newest = (None if value is None else position(value, "edge") for value in json.loads(text))
    return Edges(before, newest)


def read(objects: ObjectStore, key: str, sha256: str, count: int) -> bytes:
    """The uncompressed content of a committed raw object.

    Raises:
        RawMissing: the object is gone, cannot be unpacked, or is not what was committed.
    """
    body = objects.get(key)
    if body is None:
        raise RawMissing(f"{key} is gone")
    try:
        data = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    except zstandard.ZstdError as error:
        raise RawMissing(f"{key} cannot be unpacked: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256 or data.count(b"\n") != count:
        raise RawMissing(f"{key} does not match its SHA-256 or its count of {count} rows")
    return data
