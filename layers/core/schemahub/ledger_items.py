"""The items of ``StreamsTable`` as values, and values as items. Pure.

What an item lacks or contradicts is ``CorruptState``, with its name.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from schemahub.errors import BadProductId, CorruptState
from schemahub.holes import Hole
from schemahub.streams import ABSENT_CLASSES, TRADES, Absent, Interval, Segment, Stream


def segment_name(first: int) -> str:
    return f"segment#{first:020d}"


def hole_name(first: int) -> str:
    return f"hole#{first:020d}"


def integer(value: Any) -> int:
    if not isinstance(value, Decimal | int) or isinstance(value, bool) or value != int(value):
        raise TypeError(f"{value!r} is not an integer")
    return int(value)


def segment_item(segment: Segment) -> dict[str, Any]:
    item = segment.to_json() | {"stream": str(segment.stream), "item": segment_name(segment.first)}
    if segment.published_in:
        return item | {"published_in": segment.published_in}
    return item | {"pending": TRADES, "pending_key": f"{segment.stream}#{segment.first:020d}"}


def segment_of(item: dict[str, Any]) -> Segment:
    try:
        segment = Segment(
            stream=Stream.parse(item["stream"]),
            first=integer(item["first"]),
            last=integer(item["last"]),
            count=integer(item["count"]),
            absent=tuple(Absent(integer(a), integer(b), kind) for a, b, kind in item["absent"]),
            raw_key=item["raw_key"],
            sha256=item["sha256"],
            source=item["source"],
            run_id=item["run_id"],
            commit_id=item["commit_id"],
            committed_at=integer(item["committed_at"]),
            counted=item.get("counted", True) is not False,
            published_in=item.get("published_in"),
        )
    except (KeyError, TypeError, ValueError, BadProductId) as error:
        raise CorruptState(
            f"segment item {item.get('item')!r} is not readable: {error!r}", stream=item.get("stream")
        ) from error
    if segment_name(segment.first) != item.get("item"):
        raise CorruptState(f"segment item {item.get('item')!r} begins at {segment.first}", stream=segment.stream)
    segment.check()
    return segment


def hole_item(hole: Hole) -> dict[str, Any]:
    return {
        "stream": str(hole.stream),
        "item": hole_name(hole.first),
        "first": hole.first,
        "last": hole.last,
        "class": hole.kind,
        "first_seen": hole.first_seen,
        "last_looked_at": hole.last_looked_at,
        "looks": hole.looks,
        "unclear": hole.unclear,
        "evidence": hole.evidence,
        "filled_by": [list(part) for part in hole.filled],
        "revision": hole.revision,
    }


def hole_of(item: dict[str, Any]) -> Hole:
    try:
        if item["class"] not in ABSENT_CLASSES:
            raise ValueError(f"class {item['class']!r}")
        numbers = {
            name: integer(item[name])
            for name in ("first", "last", "first_seen", "last_looked_at", "looks", "unclear", "revision")
        }
        hole = Hole(
            stream=Stream.parse(item["stream"]),
            kind=item["class"],
            evidence=item["evidence"],
            filled=tuple(Interval(integer(a), integer(b)) for a, b in item["filled_by"]),
            **numbers,
        )
    except (KeyError, TypeError, ValueError, BadProductId) as error:
        raise CorruptState(
            f"hole item {item.get('item')!r} is not readable: {error!r}", stream=item.get("stream")
        ) from error
    inside = all(hole.first <= part.first <= part.last <= hole.last for part in hole.filled)
    if hole_name(hole.first) != item.get("item") or hole.first > hole.last or not inside:
        raise CorruptState(f"hole item {item.get('item')!r} has an impossible range", stream=hole.stream)
    return hole
