"""The ways by which trades of a stream can be asked for, and looking for a hole's ids along all of them.

What one path left out another may hold: an archive's day that REST did not show, and the other way round. So a hole is
asked for on the paths that its segment did not come by first. A path that cannot say anything about a hole (an archive
that does not reach there yet) is no look: it neither proves nor disproves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from schemahub.archives import archive_of
from schemahub.deps import Deps
from schemahub.errors import (
    EmptyPage,
    ExchangeUnavailable,
    IncompletePage,
    MalformedResponse,
    RateLimited,
    ResponseInterrupted,
    UnknownProduct,
)
from schemahub.fetch import Fetched
from schemahub.holes import HALT_S, Hole, Look, neighbours, pace, with_fills
from schemahub.mappings import Mapping, load_mapping
from schemahub.pacing import PacedExchange
from schemahub.paging import paging_of
from schemahub.streams import Chunk, Interval, Stream, gaps

SILENT = (EmptyPage, IncompletePage, UnknownProduct)
"""Answers that neither show the missing ids nor prove that they are skipped."""
PASSING = (ExchangeUnavailable, RateLimited, MalformedResponse, ResponseInterrupted)
LOOK_TRIES = 4
PAUSE_S = 2.0
PACE_IDS = 100


class Path(Protocol):
    """One way to a stream's trades. ``source`` is what segments that came by it say (``Segment.source``)."""

    @property
    def source(self) -> str: ...

    def look(self, deps: Deps, hole: Hole, tick: Callable[[], None]) -> tuple[Look, list[Fetched]] | None:
        """What of the hole is there now; None where this path has nothing to say about it.

        Raises:
            ExchangeError, ThrottleError: it cannot be asked now.
        """


def paths_of(mapping: Mapping) -> tuple[Path, ...]:
    """Every path that a mapping's streams have: the API, and files that prove themselves by a checksum."""
    archive = archive_of(mapping)
    return (Rest(), Archive()) if archive is not None and archive.checksum else (Rest(),)


def others_first(paths: Sequence[Path], source: str | None) -> tuple[Path, ...]:
    """The paths, those that a segment of ``source`` did not come by first."""
    return tuple(sorted(paths, key=lambda path: path.source == source))


def look_along(paths: Sequence[Path], deps: Deps, hole: Hole, tick: Callable[[], None]) -> tuple[Look, list[Fetched]]:
    """One look on all paths, each asked for what those before it did not show.

    Denied is what every path denies that says anything; the distance of the trades around comes from the last of them.
    """
    found: list[Fetched] = []
    looks: list[Look] = []
    left = hole
    for path in paths:
        if not left.left:
            break
        answer = path.look(deps, left, tick)
        if answer is None:
            continue
        look, came = answer
        looks.append(look)
        found += came
        left = replace(with_fills(left, look.found), revision=hole.revision)
    if len(looks) == 1:
        return looks[0], found
    if not looks:
        return Look(denied=False, reason="no path reaches there"), found
    came_now = tuple(Interval(f.chunk.first, f.chunk.last) for f in found)
    reasons = "; ".join(look.reason for look in looks if look.reason)
    return replace(looks[-1], found=came_now, denied=all(look.denied for look in looks), reason=reasons), found


@dataclass(frozen=True)
class Rest:
    """The exchange's own answers, within the shared limit."""

    source: str = "rest"

    def look(self, deps: Deps, hole: Hole, tick: Callable[[], None]) -> tuple[Look, list[Fetched]]:
        return _ask_for(deps, hole, tick)


@dataclass(frozen=True)
class Archive:
    """The exchange's files of history. One that does not answer has nothing to say: the API is asked all the same."""

    source: str = "archive"

    def look(self, deps: Deps, hole: Hole, tick: Callable[[], None]) -> tuple[Look, list[Fetched]] | None:
        # Here, because it loads Arrow.
        from schemahub.archive_path import look_in_files

        return look_in_files(deps, hole, tick)


def _ask_for(deps: Deps, hole: Hole, tick: Callable[[], None]) -> tuple[Look, list[Fetched]]:
    """Ask for what is left of a hole; the ids that came as runs without a hole of their own."""
    found: list[Fetched] = []
    silent: list[str] = []
    times: dict[int, int] = {}
    for part in hole.left:
        try:
            fetched = _ask(deps, hole.stream, Chunk(*part), tick)
        except SILENT as error:
            silent.append(f"{type(error).__name__}: {error.reason}")
            continue
        if fetched.absent and not fetched.counted:
            # What is not shown any more is not denied.
            silent.append("only newer trades are shown")
            continue
        times |= fetched.times
        found += _runs(fetched)
    came = tuple(Interval(f.chunk.first, f.chunk.last) for f in found)
    still = gaps([*hole.filled, *came], (hole.first, hole.last))
    around = neighbours(times, max(still, key=lambda i: i.size)) if still else None
    if around is None or silent:
        return Look(came, not silent, "; ".join(silent)), found
    if times[around[1]] - times[around[0]] >= HALT_S * 1e6:
        # Was it quiet, or is it always? The trades before the hole tell.
        page = PacedExchange.of(deps, hole.stream.exchange).page(hole.stream, max(1, around[0] - PACE_IDS), around[0])
        times |= {row.position: row.ts_us for row in page if row.ts_us is not None and row.position <= around[0]}
    return Look(came, True, "", *pace(times, around)), found


def _ask(deps: Deps, stream: Stream, chunk: Chunk, tick: Callable[[], None]) -> Fetched:
    """Every id of ``chunk`` that the exchange shows; what it leaves out is proved, or the look is silent.

    A person may be waiting: what the state machine's Retry does for a run is done here, briefly.
    """
    paging, source = paging_of(load_mapping(stream.exchange)), PacedExchange.of(deps, stream.exchange)
    for tries_left in reversed(range(LOOK_TRIES)):
        try:
            return paging.fetch(source, stream, chunk, deps.clock, tick)
        except PASSING:
            if not tries_left:
                raise
            deps.clock.sleep(PAUSE_S * (LOOK_TRIES - tries_left))
    raise AssertionError("unreachable")


def _runs(fetched: Fetched) -> list[Fetched]:
    """What came, cut where ids are still missing: a fill has no holes."""
    if not fetched.counted:
        return [fetched]
    missing = [(a.first, a.last) for a in fetched.absent]
    parts = gaps(missing, (fetched.chunk.first, fetched.chunk.last))
    texts = iter(fetched.texts)
    return [Fetched(Chunk(*part), tuple(next(texts) for _ in range(part.size)), (), fetched.requests) for part in parts]
