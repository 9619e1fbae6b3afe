"""Asking the exchange again for the ids that committed segments lack, and filling what it shows now.

What comes later is a raw object and a segment of its own on the line ``stream.fills``; the segments that named the ids
absent stay as they are. Fills are published like any other segments, so each of their trades is in the table once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from schemahub import raw
from schemahub.commit import Committed, Fenced, segment_of, settle_hole
from schemahub.errors import (
    EmptyPage,
    ExchangeUnavailable,
    IncompletePage,
    LockLost,
    MalformedResponse,
    RateLimited,
    ResponseInterrupted,
    UnknownProduct,
)
from schemahub.fetch import Fetched
from schemahub.holes import HALT_S, Hole, Look, after_look, committed_holes, neighbours, pace, with_fills
from schemahub.locks import Lease, Renewer
from schemahub.mappings import load_mapping
from schemahub.pacing import PacedExchange
from schemahub.paging import paging_of
from schemahub.runtime import Deps
from schemahub.streams import Chunk, Interval, Segment, Stream, gaps

SILENT = (EmptyPage, IncompletePage, UnknownProduct)
"""Answers that neither show the missing ids nor prove that they are skipped."""
PASSING = (ExchangeUnavailable, RateLimited, MalformedResponse, ResponseInterrupted)
LOOK_TRIES = 4
PAUSE_S = 2.0
PACE_IDS = 100
MAX_FILLS = 90
"""Fills that one transaction takes beside the hole and the lock (TransactWriteItems: 100 actions)."""


@dataclass(frozen=True)
class Repaired:
    """One hole before and after it was asked for again. ``written`` is False in a dry run and for a hole that another
    process settled meanwhile."""

    before: Hole
    after: Hole
    written: bool

    @property
    def filled(self) -> int:
        """Ids that came now."""
        return self.before.ids - self.after.ids


def holes_of(deps: Deps, stream: Stream) -> list[Hole]:
    """Every hole of a stream by position: its item, or what its segment says where there is none (older releases)."""
    known = {hole.first: hole for hole in deps.ledger.holes(stream)}
    return [known.get(hole.first, hole) for hole in committed_holes(deps.ledger.segments(stream))]


def repair_stream(
    deps: Deps, stream: Stream, owner: str, *, again: bool = False, dry_run: bool = False
) -> Iterator[Repaired]:
    """Look at every hole of a stream that is not proved (with ``again``: at proved ones too), one after the other.

    Each hole is settled by itself, so that a repair that is stopped loses nothing.

    Args:
        owner: who takes the stream's lock; unique to this call.

    Raises:
        LockBusy: a run works on the stream. LockLost: another took the lock; nothing more was written.
        ExchangeError, ThrottleError: the exchange cannot be asked now.
    """
    todo = [hole for hole in holes_of(deps, stream) if hole.left and (again or not hole.proved)]
    if not todo:
        return
    if dry_run:
        for hole in todo:
            look, _ = _look(deps, hole, lambda: None)
            yield Repaired(hole, after_look(hole, look, deps.clock.now_ms()), False)
        return
    lease = deps.locks.acquire(stream.lock_id, owner, owner)
    renewer = Renewer(deps.locks.renew, lease, deps.clock)
    try:
        for hole in todo:
            yield _repair(deps, hole, lease, owner, renewer.tick)
    finally:
        # Only courtesy: a process that dies here leaves a lease that runs out.
        deps.locks.release(lease)


def _repair(deps: Deps, hole: Hole, lease: Lease, owner: str, tick: Callable[[], None]) -> Repaired:
    deps.ledger.add_hole(hole)
    look, found = _look(deps, hole, tick)
    now_ms = deps.clock.now_ms()
    fills = [_store(deps, hole.stream, part, owner, now_ms) for part in found]
    seen = hole
    while len(fills) > MAX_FILLS:
        some, fills = fills[:MAX_FILLS], fills[MAX_FILLS:]
        now = with_fills(seen, [fill.interval for fill in some])
        if not _settle(deps, lease, seen, now, some):
            return Repaired(hole, seen, False)
        seen = now
    after = after_look(seen, look, now_ms)
    return Repaired(hole, after, _settle(deps, lease, seen, after, fills))


def _settle(deps: Deps, lease: Lease, seen: Hole, now: Hole, fills: Sequence[Segment]) -> bool:
    """Whether this call's knowledge is in the ledger now; False when another process settled the hole meanwhile."""
    outcome = settle_hole(deps.ledger, deps.locks, lease, seen, now, fills, deps.clock)
    if isinstance(outcome, Fenced):
        raise LockLost("the lock was taken over before the hole was settled", stream=seen.stream)
    return isinstance(outcome, Committed)


def _store(deps: Deps, stream: Stream, part: Fetched, owner: str, now_ms: int) -> Segment:
    """Raw first: a fill is committed only after its object is durable."""
    return segment_of(stream.fills, raw.store(deps.objects, stream.fills, part), owner, "repair", now_ms)


def _look(deps: Deps, hole: Hole, tick: Callable[[], None]) -> tuple[Look, list[Fetched]]:
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
