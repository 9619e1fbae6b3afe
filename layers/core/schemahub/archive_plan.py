"""Which files of an archive are worth a task for what a backfill lacks, and which positions each of them may fill.

A file's positions are what the API says of its first and last moment: ids in the file prove nothing about whose they
are. Only where the API does not know the product any more, the files themselves are asked (``archive_shelf``). Files
that were looked for in vain a short time ago are not planned again; the days of such a month are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemahub import seek
from schemahub.archive_shelf import Shelf
from schemahub.archives import archive_of, files_for, states
from schemahub.deps import Deps
from schemahub.errors import UnknownProduct
from schemahub.mappings import load_mapping
from schemahub.streams import Interval, Stream

WORTH_REQUESTS = 40
"""A file that saves fewer requests than looking for its edges and checking it take is left to REST."""
ABSENT_FOR_MS = 12 * 3600 * 1000


def archive_files(
    deps: Deps, stream: Stream, parts: Sequence[Interval], *, worth: int = WORTH_REQUESTS
) -> list[tuple[dict[str, Any], Interval]]:
    """Files for the missing ``parts``, each with the positions that it may fill. Asks the exchange, writes nothing.

    Raises:
        ExchangeError, ThrottleError: it cannot be asked now.
    """
    mapping = load_mapping(stream.exchange)
    if archive_of(mapping) is None or not parts:
        return []
    hull = Interval(parts[0].first, parts[-1].last)
    try:
        span_us = _times(deps, stream, hull)
    except UnknownProduct:
        return Shelf(deps, stream).files(parts)
    if span_us is None:
        return []
    now_ms = deps.clock.now_ms()
    known = states(deps.objects, stream, mapping)
    absent = frozenset(s.file.name for s in known if s.status == "absent" and now_ms - s.looked_at < ABSENT_FOR_MS)
    found, edges = list[tuple[dict[str, Any], Interval]](), dict[int, int]()
    for file in files_for(mapping, stream, span_us[0], span_us[1] + 1, now_ms, absent):
        first, behind = (_edge(deps, stream, us, hull, edges) for us in file.period_us)
        lacking = sum(max(0, min(p.last, behind - 1) - max(p.first, first) + 1) for p in parts)
        if lacking > worth * mapping.requests.page_size:
            found.append((file.to_json(), Interval(first, behind - 1)))
    return found


def _times(deps: Deps, stream: Stream, hull: Interval) -> tuple[int, int] | None:
    """Microseconds since the epoch of the first and the last trade of ``hull``."""
    ask = seek.asker(deps, stream)
    edges = [next((row.ts_us for row in ask(at) if row.ts_us is not None), None) for at in hull]
    return None if edges[0] is None or edges[1] is None else (edges[0], edges[1])


def _edge(deps: Deps, stream: Stream, us: int, hull: Interval, known: dict[int, int]) -> int:
    """The first position of ``hull`` at or after a moment; the end of a day is the beginning of the next."""
    if us not in known:
        known[us] = seek.position_at(deps, stream, us, hull)
    return known[us]
