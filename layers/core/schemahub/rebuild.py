"""Watermarks and segments from what S3 holds, after StreamsTable was lost or restored from an older backup.

The mirror says how far a stream was committed, the raw objects' names and metadata say with what. An object that a
crashed run left behind may overlap committed ones; any tiling of the mirrored range holds the same trades, and
one is chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemahub import mirror, raw
from schemahub.commit import segment_of
from schemahub.errors import CorruptState
from schemahub.ledger import Watermark
from schemahub.runtime import Deps
from schemahub.streams import PREFIX, Segment, Stream

Tile = tuple[int, int, str]
"""First and last position, key of the raw object."""


@dataclass(frozen=True)
class Rebuilt:
    """What was put back for one stream; ``segments`` 0 where the table already held it all."""

    stream: Stream
    low: int
    high: int
    segments: int


def tiling(tiles: Iterable[Tile], low: int, high: int) -> list[Tile] | None:
    """Objects that follow each other from ``low`` to ``high`` without hole or overlap; None where none do."""
    by_first: dict[int, list[Tile]] = defaultdict(list)
    for tile in tiles:
        if low <= tile[0] and tile[1] <= high:
            by_first[tile[0]].append(tile)
    # Backwards, each position remembers the first tile of a way to the end: linear, whatever was left behind.
    way: dict[int, Tile] = {}
    for first in sorted(by_first, reverse=True):
        for tile in sorted(by_first[first], key=lambda t: -t[1]):
            if tile[1] == high or tile[1] + 1 in way:
                way[first] = tile
                break
    path: list[Tile] = []
    at = low
    while at <= high:
        if at not in way:
            return None
        path.append(way[at])
        at = way[at][1] + 1
    return path


def mirrored_streams(deps: Deps) -> list[Stream]:
    """Every stream that has a mirror."""
    prefix = f"{PREFIX}checkpoints/"
    streams = []
    for key in deps.objects.list(prefix):
        exchange, _, product = key.removeprefix(prefix).removesuffix(".json").partition("/")
        streams.append(Stream(exchange, product))
    return streams


def rebuild(deps: Deps, stream: Stream, dry_run: bool = False) -> Rebuilt | None:
    """Put back what the mirror proves and the table lacks; None where there is no usable mirror.

    Raises:
        CorruptState: the raw objects do not tile the mirrored range.
    """
    body = deps.objects.get(stream.mirror_key)
    mark = mirror.parse(stream, body) if body else None
    if mark is None:
        return None
    have = deps.ledger.watermark(stream)
    if have and have.low <= mark.low and have.high >= mark.high:
        return Rebuilt(stream, have.low, have.high, 0)
    spans = _missing(mark, have)
    segments: list[Segment] = []
    for low, high in spans:
        path = tiling(_tiles(deps, stream), low, high)
        if path is None:
            raise CorruptState(
                "the raw objects do not tile the range of the mirror",
                stream=stream,
                span=(low, high),
                remedy="Restore the missing objects' versions in S3, or lower the mirror by hand.",
            )
        segments += _segments(deps, stream, path, mark)
    if not dry_run:
        deps.ledger.restore(
            stream, min(mark.low, have.low if have else mark.low), mark.high, segments, deps.clock.now_ms()
        )
    return Rebuilt(stream, mark.low, mark.high, len(segments))


def _missing(mark: Watermark, have: Watermark | None) -> list[tuple[int, int]]:
    if have is None:
        return [(mark.low, mark.high)]
    spans = [(mark.low, have.low - 1), (have.high + 1, mark.high)]
    return [span for span in spans if span[0] <= span[1]]


def _tiles(deps: Deps, stream: Stream) -> list[Tile]:
    named = ((raw.parse_raw_key(key), key) for key in deps.objects.list(stream.raw_prefix))
    return [(parsed[0], parsed[1], key) for parsed, key in named if parsed]


def _segments(deps: Deps, stream: Stream, path: Sequence[Tile], mark: Watermark) -> list[Segment]:
    found = [raw.describe(deps.objects, key) for _, _, key in path]
    whole = [r for r in found if r is not None]
    if len(whole) != len(path):
        raise CorruptState("a raw object lacks its metadata", stream=stream)
    return [segment_of(stream, r, "rebuild", "rebuild", mark.updated_at) for r in whole]
