"""Which positions of a stream are committed, and which are missing below its watermark: always asked of the ledger.

Segments tile ``[low, high]``. What a backfill committed below ``low`` are islands; they are covered all the same, and
the grid by which they were cut says nothing about the next one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemahub.errors import NothingIngested
from schemahub.ledger import Ledger, Watermark
from schemahub.streams import Interval, Segment, Stream, gaps, merge


def watermark(ledger: Ledger, stream: Stream) -> Watermark:
    """The stream's watermark. Raises NothingIngested where there is none: nobody knows then what lies below."""
    mark = ledger.watermark(stream)
    if mark is None:
        raise NothingIngested("nothing of this stream is committed yet", stream=stream)
    return mark


def covered(ledger: Ledger, stream: Stream) -> list[Interval]:
    """Every committed range, sorted, neighbours joined. Reads all of the stream's segments."""
    return merge(s.interval for s in ledger.segments(stream))


def missing(ledger: Ledger, stream: Stream, within: Interval) -> list[Interval]:
    """What of ``within`` no segment holds, below ``low``: the rest is the ingest's.

    Raises:
        NothingIngested: the stream has no watermark.
    """
    last = min(within.last, watermark(ledger, stream).low - 1)
    if last < within.first:
        return []
    span = Interval(within.first, last)
    return gaps((s.interval for s in touching(ledger, stream, span)), span)


def touching(ledger: Ledger, stream: Stream, span: Interval) -> list[Segment]:
    """Committed segments that share a position with ``span``, the newest first."""
    found = []
    for segment in ledger.newest_segments(stream, span.last):
        # Segments never overlap: the first that ends before the span is the last one of interest.
        if segment.last < span.first:
            break
        found.append(segment)
    return found


def islands(segments: Iterable[Segment], low: int) -> list[Interval]:
    """The committed ranges below ``low``."""
    return merge(s.interval for s in segments if s.last < low)


def unfetched(ledger: Ledger, stream: Stream) -> list[Interval]:
    """What lies between the islands and the watermark; nothing where no backfill ever ran."""
    mark, lowest = ledger.watermark(stream), ledger.lowest(stream)
    if mark is None or lowest is None or lowest >= mark.low:
        return []
    return between(list(ledger.newest_segments(stream, mark.low - 1)), mark.low)


def between(segments: Sequence[Segment], low: int) -> list[Interval]:
    """Ranges above the lowest island that nobody has fetched yet: no holes, only not asked for."""
    below = islands(segments, low)
    return gaps(below, (below[0].first, low - 1)) if below else []
