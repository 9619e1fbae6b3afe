"""Coverage certificates: what of a stream was proved, in a document that the lake alone is enough to check again.

A certificate names every raw object with its SHA-256, every hole with its class, and the table's snapshot. It carries
the hash of its own content and that of the stream's certificate before it, so that a change shows: in the document
itself, or, where somebody also wrote the hash anew, in the next certificate and in the hash that was printed when it
was issued. Against somebody who may rewrite the lake and all of its certificates only a hash kept elsewhere helps.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from schemahub.errors import BadCertificate, CorruptState
from schemahub.holes import Hole
from schemahub.ledger import Watermark
from schemahub.objects import ObjectStore
from schemahub.raw import EDITION_DIGITS, edition_of, raw_key
from schemahub.streams import PREFIX, Absent, Interval, Segment, Stream, gaps, merge, overlapping
from schemahub.verify import Aside, Finding, Line, absent

KIND = "schemahub coverage certificate"
VERSION = 1
FOLDER = f"{PREFIX}reports/certificates/"
DIGITS = 6
DENSE, SPARSE, TIMES = "dense ids", "sparse ids", "times"
"""What the positions of a stream are. Only dense ids say of a range how many trades it holds."""
Document = dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """The table as it was verified."""

    metadata: str
    """Key of the metadata file."""
    snapshot_id: int | None
    published: tuple[Interval, ...]
    """Published ranges of the stream's segments."""
    published_fills: tuple[Interval, ...]
    rows: int
    """Rows of the stream in the table."""


@dataclass(frozen=True)
class SignOff:
    """Who says so, when, and by which program."""

    by: str
    at_ms: int
    program: str
    deep: bool
    """Whether the content of every raw object was read and compared with the rows."""


def positions_of(line: Line, by_time: bool) -> str:
    return TIMES if by_time else DENSE if line.counted else SPARSE


def issue(
    line: Line,
    positions: str,
    quarantined: Sequence[Aside],
    snapshot: Snapshot,
    sign_off: SignOff,
    previous: Document | None,
) -> Document:
    """The certificate of a stream in which nothing was found; ``previous`` is the stream's last one."""
    assert line.mark is not None
    segments, fills = [_tile(s) for s in line.segments], [_tile(s) for s in line.fills]
    missing = absent(line)
    document: Document = {
        "kind": KIND,
        "schema_version": VERSION,
        "number": previous["number"] + 1 if previous else 1,
        "previous": previous["sha256"] if previous else None,
        "stream": line.stream.to_json(),
        "signed_off": {
            "by": sign_off.by,
            "at": dt.datetime.fromtimestamp(sign_off.at_ms / 1000, dt.UTC).isoformat(timespec="milliseconds"),
            "program": sign_off.program,
            "deep": sign_off.deep,
        },
        "positions": positions,
        "range": [line.mark.low, line.mark.high],
        **({"islands": [list(part) for part in line.islands]} if line.islands else {}),
        "counts": {
            **({"ids": _size(line)} if positions == DENSE else {}),
            "trades": sum(s.count for s in line.all),
            "absent": sum(part.size for part in missing),
            "quarantined": sum(part.rows for part in quarantined),
            "rows": snapshot.rows,
        },
        "segments": segments,
        "fills": fills,
        "absent": [[s.first, *a] for s in line.segments for a in s.absent],
        "holes": [_hole(h) for h in line.holes],
        "quarantined": [list(part[:2] if positions == DENSE else part) for part in quarantined],
        "table": {
            "metadata": snapshot.metadata,
            "snapshot_id": snapshot.snapshot_id,
            "published": [list(part) for part in snapshot.published],
            "published_fills": [list(part) for part in snapshot.published_fills],
        },
        "raw_sha256": _root(segments, fills),
    }
    return document | {"sha256": hash_of(document)}


def _size(line: Line) -> int:
    """Positions that the line covers."""
    assert line.mark is not None
    return line.mark.high - line.mark.low + 1 + sum(part.size for part in line.islands)


def _tile(segment: Segment) -> list[Any]:
    """First, last, count, SHA-256, of which the raw object's key is a function; ``edition`` if it replaced another."""
    edition = ["edition"] if edition_of(segment.raw_key) else []
    return [segment.first, segment.last, segment.count, segment.sha256, *edition]


def _hole(hole: Hole) -> Document:
    document = asdict(hole)
    del document["stream"]
    return document | {"filled": [list(part) for part in hole.filled], "proved": hole.proved}


def _root(segments: Iterable[Sequence[Any]], fills: Iterable[Sequence[Any]]) -> str:
    """One hash over all raw objects, each chained to those before it."""
    root = ""
    for kind, tiles in (("segment", segments), ("fill", fills)):
        for first, last, count, sha256, *_ in tiles:
            root = hashlib.sha256(f"{root}|{kind}|{first}|{last}|{count}|{sha256}".encode()).hexdigest()
    return root


def hash_of(document: Document) -> str:
    """SHA-256 over the canonical JSON of everything but ``sha256`` itself."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def text_of(document: Document) -> str:
    """The document as it is written: a segment a line, so that two certificates can be compared with ``diff``."""
    parts = []
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], list | dict):
            listed = ",\n  ".join(json.dumps(item) for item in value)
            parts.append(f"{json.dumps(name)}: [\n  {listed}\n ]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


# --- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """A certificate that was read, in the words of the core."""

    stream: Stream
    document: Document
    line: Line
    published: dict[Stream, list[Interval]]
    quarantined: tuple[Aside, ...]

    @property
    def by_time(self) -> bool:
        return bool(self.document.get("positions", DENSE) == TIMES)

    @property
    def sha256(self) -> str:
        return str(self.document["sha256"])


def parse(body: bytes | str, origin: str) -> Certificate:
    """The certificate in ``body``.

    Raises:
        BadCertificate: it is not one of this release.
    """
    try:
        document = json.loads(body)
        if document["kind"] != KIND or document["schema_version"] != VERSION:
            raise ValueError(f"kind {document['kind']!r}, schema_version {document['schema_version']!r}")
        stream = Stream.from_json(document["stream"])
        number, sha256 = document["number"], document["sha256"]
        if type(number) is not int or number < 1 or not isinstance(sha256, str):
            raise ValueError("number and sha256 are not those of a certificate")
        holes: dict[int, list[Absent]] = {}
        for begin, first, last, kind in document["absent"]:
            holes.setdefault(begin, []).append(Absent(first, last, kind))
        at_ms = int(dt.datetime.fromisoformat(document["signed_off"]["at"]).timestamp() * 1000)
        positions = document.get("positions", DENSE)
        if positions not in (DENSE, SPARSE, TIMES):
            raise ValueError(f"positions {positions!r}")
        counted = positions == DENSE
        segments = tuple(
            _segment(stream, tile, holes.get(tile[0], ()), at_ms, counted) for tile in document["segments"]
        )
        fills = tuple(_segment(stream.fills, tile, (), at_ms, counted) for tile in document["fills"])
        table = document["table"]
        published = {
            stream: [Interval(*part) for part in table["published"]],
            stream.fills: [Interval(*part) for part in table["published_fills"]],
        }
        known = tuple(_read_hole(stream, hole) for hole in document["holes"])
        low, high = document["range"]
        quarantined = tuple(
            Aside(first, last, rows[0] if rows else last - first + 1) for first, last, *rows in document["quarantined"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, CorruptState) as error:
        raise BadCertificate(f"{origin} is not a certificate of this release: {error!r}"[:300]) from error
    line = Line(stream, Watermark(int(low), int(high), 0, at_ms), segments, fills, known)
    return Certificate(stream, document, line, published, quarantined)


def _segment(stream: Stream, tile: Sequence[Any], holes: Iterable[Absent], at_ms: int, counted: bool) -> Segment:
    first, last, count, sha256, *edition = tile
    if any(type(n) is not int for n in (first, last, count)) or not isinstance(sha256, str):
        raise ValueError(f"{tile!r} is not a segment")
    key = raw_key(stream, first, last, count, sha256[:EDITION_DIGITS] if edition else "")
    return Segment(stream, first, last, count, tuple(holes), key, sha256, "certificate", "", "", at_ms, counted)


def _read_hole(stream: Stream, document: Document) -> Hole:
    fields = {name: value for name, value in document.items() if name != "proved"}
    return Hole(**{**fields, "stream": stream, "filled": tuple(Interval(*part) for part in fields["filled"])})


def judge(found: Certificate) -> list[Finding]:
    """Whether a certificate is unchanged since it was issued and adds up; the lake is not looked at."""
    name, document = str(found.stream), found.document
    if hash_of(document) != found.sha256:
        return [Finding("certificate_edited", name, "its content is not that of its sha256")]
    tiles = [s.interval for s in found.line.segments]
    counts, missing = document["counts"], sum(part.size for part in absent(found.line))
    span = _size(found.line)
    covered = [*document.get("islands", ()), document["range"]]
    wrong = [
        reason
        for reason, holds in (
            ("its segments do not tile its range", merge(tiles) == merge(covered) and not overlapping(tiles)),
            ("its raw_sha256 is not that of its segments", document["raw_sha256"]
             == _root(document["segments"], document["fills"])),
            ("its ids are not those of its range", counts.get("ids", span) == span),
            ("its trades are not those of its segments", counts["trades"] == sum(s.count for s in found.line.all)),
            ("its absent ids are not those of its holes", counts["absent"] == missing),
            ("trades and absent ids do not fill its range",
             not found.line.counted or span == counts["trades"] + counts["absent"]),
            ("it publishes what no segment holds", all(
                not gaps([s.interval for s in found.line.all if s.stream == stream], part)
                for stream, parts in found.published.items() for part in parts)),
        )
        if not holds
    ]  # fmt: skip
    return [Finding("certificate_wrong", name, reason) for reason in wrong]


def judge_chain(chain: Sequence[Certificate]) -> list[Finding]:
    """Whether the certificates of a stream, oldest first, name each other without a hole."""
    found, before = [], None
    for number, link in enumerate(chain, start=chain[0].document["number"] if chain else 1):
        name = str(link.stream)
        if link.document["number"] != number:
            found.append(Finding("certificate_chain", name, f"number {number} is not here"))
            break
        if before is not None and link.document["previous"] != before.sha256:
            message = f"number {number} was issued after another number {number - 1} than the one that is here"
            found.append(Finding("certificate_chain", name, message))
        before = link
    if chain and chain[0].document["number"] == 1 and chain[0].document["previous"] is not None:
        found.append(Finding("certificate_chain", str(chain[0].stream), "number 1 names one before it"))
    return found


# --- the lake's own copies --------------------------------------------------------------------------------------


def folder_of(stream: Stream) -> str:
    return f"{FOLDER}{stream.exchange}/{stream.product}/"


def name_of(document: Document) -> str:
    return f"{document['number']:0{DIGITS}d}.json"


def chain_of(objects: ObjectStore, stream: Stream) -> list[Certificate]:
    """The stream's certificates in the lake, oldest first. Raises BadCertificate for one that cannot be read."""
    keys = [key for key in objects.list(folder_of(stream)) if key.endswith(".json")]
    return [parse(objects.get(key) or b"", key) for key in sorted(keys)]


def newest(objects: ObjectStore, stream: Stream) -> Certificate | None:
    keys = sorted(key for key in objects.list(folder_of(stream)) if key.endswith(".json"))
    return parse(objects.get(keys[-1]) or b"", keys[-1]) if keys else None


def streams_with(objects: ObjectStore) -> list[Stream]:
    """Every stream that has a certificate in the lake."""
    found = {tuple(key.removeprefix(FOLDER).split("/")[:2]) for key in objects.list(FOLDER) if key.endswith(".json")}
    return sorted(Stream(*names) for names in found if len(names) == 2)


def store(objects: ObjectStore, document: Document) -> bool:
    """Write it as the stream's next certificate; False when another verification was quicker."""
    key = folder_of(Stream.from_json(document["stream"])) + name_of(document)
    return objects.put_new(key, text_of(document).encode())
