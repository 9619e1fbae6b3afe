"""Trades that are committed already, by which answers that are linked can be told from answers that skip.

What an exchange shows of its history may be pruned or stale; what we hold of it is neither.
"""

from __future__ import annotations

from collections.abc import Iterable

from schemahub import raw
from schemahub.answers import Row, parse_elements
from schemahub.deps import Deps
from schemahub.mappings import load_mapping
from schemahub.objects import ObjectStore
from schemahub.streams import Segment, Stream


def newest(deps: Deps, stream: Stream, last: int | None = None) -> int | None:
    """The position of the newest committed trade, of segments that begin at ``last`` or below; None without any.

    A watermark in the middle of a plan, or of a rush, lies behind it.
    """
    row = newest_row(deps, stream, last)
    return row.position if row else None


def newest_row(deps: Deps, stream: Stream, last: int | None = None) -> Row | None:
    """The newest committed trade as it was sent, with its time; segments as for ``newest``."""
    return _first_row(deps, deps.ledger.newest_segments(stream, last), -1)


def oldest(deps: Deps, stream: Stream, first: int) -> int | None:
    """The position of the oldest committed trade of segments that begin at ``first`` or above; None without any."""
    row = _first_row(deps, deps.ledger.segments(stream, first), 0)
    return row.position if row else None


def _first_row(deps: Deps, segments: Iterable[Segment], line: int) -> Row | None:
    return next((row_of(deps.objects, segment, line) for segment in segments if segment.count), None)


def row_of(objects: ObjectStore, segment: Segment, line: int) -> Row:
    """The trade at a line of the segment's original: 0 is its first, -1 its last. Raises RawMissing."""
    lines = raw.read(objects, segment.raw_key, segment.sha256, segment.count).rstrip(b"\n").split(b"\n")
    return parse_elements(b"[" + lines[line] + b"]", load_mapping(segment.stream.exchange))[0]
