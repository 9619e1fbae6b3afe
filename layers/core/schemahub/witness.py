"""Trades that are committed already, by which answers that are linked can be told from answers that skip.

What an exchange shows of its history may be pruned or stale; what we hold of it is neither.
"""

from __future__ import annotations

from collections.abc import Iterable

from schemahub import raw
from schemahub.answers import parse_elements
from schemahub.deps import Deps
from schemahub.mappings import load_mapping
from schemahub.streams import Segment, Stream


def newest(deps: Deps, stream: Stream, last: int | None = None) -> int | None:
    """The position of the newest committed trade, of segments that begin at ``last`` or below; None without any.

    A watermark in the middle of a plan, or of a rush, lies behind it.
    """
    return _position(deps, stream, deps.ledger.newest_segments(stream, last), -1)


def oldest(deps: Deps, stream: Stream, first: int) -> int | None:
    """The position of the oldest committed trade of segments that begin at ``first`` or above; None without any."""
    return _position(deps, stream, deps.ledger.segments(stream, first), 0)


def _position(deps: Deps, stream: Stream, segments: Iterable[Segment], line: int) -> int | None:
    for segment in segments:
        if segment.count:
            lines = raw.read(deps.objects, segment.raw_key, segment.sha256, segment.count).rstrip(b"\n").split(b"\n")
            return parse_elements(b"[" + lines[line] + b"]", load_mapping(stream.exchange))[0].position
    return None
