"""Asking the exchange again for the ids that committed segments lack, and filling what it shows now.

What comes later is a raw object and a segment of its own on the line ``stream.fills``; the segments that named the ids
absent stay as they are. Fills are published like any other segments, so each of their trades is in the table once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from schemahub import raw
from schemahub.commit import Committed, Fenced, segment_of, settle_hole
from schemahub.deps import Deps
from schemahub.errors import LockLost
from schemahub.fetch import Fetched
from schemahub.holes import Hole, Look, after_look, committed_holes, with_fills
from schemahub.locks import Lease, Renewer
from schemahub.mappings import load_mapping
from schemahub.paths import look_along, others_first, paths_of
from schemahub.streams import Segment, Stream

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
    deps: Deps,
    stream: Stream,
    owner: str,
    *,
    again: bool = False,
    dry_run: bool = False,
    holes: Sequence[Hole] | None = None,
    run: str | None = None,
    attempt: int = 0,
) -> Iterator[Repaired]:
    """Look at every hole of a stream that is not proved (with ``again``: at proved ones too), one after the other.

    Each hole is settled by itself, so that a repair that is stopped loses nothing.

    Args:
        owner: who takes the stream's lock; unique to this call, or the execution that may take it again.
        holes: only these, in this order; all of the stream's by default.
        run: the execution that the lock belongs to, where a rule releases it after a failure; ``attempt`` its redrives.

    Raises:
        LockBusy: a run works on the stream. LockLost: another took the lock; nothing more was written.
        ExchangeError, ThrottleError: the exchange cannot be asked now.
    """
    known = holes_of(deps, stream) if holes is None else holes
    todo = [hole for hole in known if hole.left and (again or not hole.proved)]
    if not todo:
        return
    if dry_run:
        for hole in todo:
            look, _ = _look(deps, hole, lambda: None)
            yield Repaired(hole, after_look(hole, look, deps.clock.now_ms()), False)
        return
    lease = deps.locks.acquire(stream.lock_id, owner, run or owner, attempt)
    renewer = Renewer(deps.locks.renew, lease, deps.clock)
    try:
        for hole in todo:
            yield _repair(deps, hole, lease, owner, renewer.tick)
    finally:
        # Only courtesy: a process that dies here leaves a lease that runs out.
        deps.locks.release(lease, attempt)


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


def _look(deps: Deps, hole: Hole, tick: Callable[[], None]) -> tuple[Look, list[Fetched]]:
    """Ask on every path that the stream has, first on those that its segment did not come by."""
    paths = paths_of(load_mapping(hole.stream.exchange))
    if len(paths) > 1:
        came_by = deps.ledger.segment_at(hole.stream, hole.first)
        paths = others_first(paths, came_by.source if came_by else None)
    return look_along(paths, deps, hole, tick)


def _settle(deps: Deps, lease: Lease, seen: Hole, now: Hole, fills: Sequence[Segment]) -> bool:
    """Whether this call's knowledge is in the ledger now; False when another process settled the hole meanwhile."""
    outcome = settle_hole(deps.ledger, deps.locks, lease, seen, now, fills, deps.clock)
    if isinstance(outcome, Fenced):
        raise LockLost("the lock was taken over before the hole was settled", stream=seen.stream)
    return isinstance(outcome, Committed)


def _store(deps: Deps, stream: Stream, part: Fetched, owner: str, now_ms: int) -> Segment:
    """Raw first: a fill is committed only after its object is durable."""
    return segment_of(stream.fills, raw.store(deps.objects, stream.fills, part), owner, "repair", now_ms)
