"""Neighbouring chunks whose answers were linked must agree on the trade between them.

Each notes the trade before it and its newest one (``streams.Edges``). Where they differ, the exchange's history changed
between the two fetches, and one of the objects lacks trades.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from schemahub.streams import Chunk, RawObject


def newest_before(chunks: Sequence[Chunk], todo: Sequence[Chunk], finished: Mapping[Chunk, RawObject]) -> int | None:
    """Position of the newest committed trade before ``todo``, the rest of a plan's ``chunks``; None where unknown."""
    first = todo[0]
    before = next((finished[c] for c in chunks if c.last == first.first - 1 and c in finished), None)
    if before is not None:
        return before.edges.newest if before.edges else None
    known = chunks[0].known if first == chunks[0] else None
    # A first run's plan knows the trade that it begins with: nothing is committed before.
    return known.base if known and known.base is not None and known.base < first.first else None


def torn(objects: Sequence[RawObject], committed: int | None = None) -> RawObject | None:
    """The first of neighbouring objects that does not fit the one before it.

    ``committed`` is the newest committed trade before them. One that came there late is not this object's fault: see
    ``came_late``.
    """
    edges = objects[0].edges if objects else None
    if committed is not None and edges and edges.before is not None and edges.before < committed:
        return objects[0]
    for one, other in itertools.pairwise(objects):
        if not (one.edges and other.edges) or None in (one.edges.newest, other.edges.before):
            continue
        if one.edges.newest != other.edges.before:
            return other
    return None


def came_late(objects: Sequence[RawObject], committed: int | None) -> int | None:
    """Position of a trade that the exchange shows before ``objects`` and behind the newest committed one, if any."""
    if committed is None or not objects or (edges := objects[0].edges) is None or edges.before is None:
        return None
    return edges.before if edges.before > committed else None


def at_fault(below: RawObject, above: RawObject) -> RawObject | None:
    """Which of two neighbours shows less at their border; None where they agree, or where one shows nothing of it.

    A trade that was shown is evidence, one that was not shown is none: whoever lacks it was fetched from a history that
    was pruned or stale, and may lack others too.
    """
    newest = below.edges.newest if below.edges else None
    before = above.edges.before if above.edges else None
    if newest is None or before is None or newest == before:
        return None
    return below if newest < before else above
