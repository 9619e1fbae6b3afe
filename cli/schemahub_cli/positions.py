"""Positions as people read them: ids as they are, times as ISO 8601, and how far apart two are."""

from __future__ import annotations

from datetime import UTC, datetime

from schemahub.errors import SchemaHubError
from schemahub.mappings import NS, load_mapping
from schemahub.streams import Stream
from schemahub_cli.output import clock


def by_time(stream: Stream) -> bool:
    """Whether the stream's positions are nanoseconds since the epoch; no for an exchange whose mapping is gone."""
    try:
        return load_mapping(stream.exchange).by_time
    except SchemaHubError:
        return False


def place(stream: Stream, position: int) -> str:
    """A position: ``580012345``, or ``2026-11-21T10:44:07.123456Z`` to the microsecond, as the table has it."""
    if not by_time(stream):
        return str(position)
    seconds, rest = divmod(position, NS["s"])
    micros = rest // NS["us"]
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{micros:06d}".rstrip("0").rstrip(".") + "Z" if micros else f"{text}Z"


def extent(stream: Stream, positions: int) -> str:
    """How many ids, or how long: ``1,204`` or ``3:05``; less than ten seconds to the millisecond."""
    if not by_time(stream):
        return f"{positions:,}"
    seconds = positions / NS["s"]
    return f"{seconds:.3g} s" if 0 < seconds < 10 else clock(seconds)


def iso(us: int) -> str:
    """A moment (microseconds since the epoch) to the second, for machines: ``2026-11-21T08:05:09+00:00``."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).isoformat()
