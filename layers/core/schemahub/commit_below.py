"""Committing below the watermark: islands in any order, and ``low`` that falls over those it touches.

The ingest writes above ``high`` under the stream's lock, a backfill below ``low`` under its own; neither writes what is
the other's. No two segments ever share a position, whoever commits them: every commit is made from the number of
commits that it saw when it looked for neighbours (the item ``islands``), so that of two at the same time one looks
again. What a failed or unanswered transaction did is looked up, as in ``commit``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from botocore.exceptions import BotoCoreError, ClientError

from schemahub import coverage
from schemahub.clock import Clock
from schemahub.commit import Committed, Fenced, Outcome, Superseded, groups, holds, passing, reasons
from schemahub.errors import CorruptState, LockLost
from schemahub.ledger import Ledger
from schemahub.locks import Lease, Locks
from schemahub.streams import Interval, Segment, Stream, overlapping

MAX_TRIES = 12
"""Tasks of one stream commit side by side and meet in each other's transactions."""
MAX_RIVALS = 300
PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


def commit_islands(ledger: Ledger, locks: Locks, lease: Lease, segments: Sequence[Segment], clock: Clock) -> Outcome:
    """Commit segments that all lie below ``low``, in any order; several transactions when there are many.

    Superseded: some of them are covered by other segments, or reach up to ``low``; all others are committed then.

    Raises:
        NothingIngested: the stream has no watermark.
        CorruptState: nothing stands in the way, yet the commit is refused.
        ValueError: the segments overlap each other, or are of several streams.
    """
    ordered = sorted(segments, key=lambda s: s.first)
    if not ordered or len({s.stream for s in ordered}) > 1 or overlapping([s.interval for s in ordered]):
        raise ValueError("segments of one stream that do not overlap are needed")
    outcomes: list[Outcome] = []
    for group in groups(ordered):
        outcomes.append(_commit_group(ledger, locks, lease, group, clock))
        if isinstance(outcomes[-1], Fenced):
            return outcomes[-1]
    lost = [o for o in outcomes if isinstance(o, Superseded)]
    done = [o for o in outcomes if isinstance(o, Committed)]
    return lost[0] if lost else Committed(ordered[-1].last, already=all(o.already for o in done))


def _commit_group(ledger: Ledger, locks: Locks, lease: Lease, group: Sequence[Segment], clock: Clock) -> Outcome:
    stream, tries, rivals = group[0].stream, 0, 0
    while True:
        # In this order: a commit that comes after the number was read makes ours fail.
        seen = ledger.islands(stream)
        low = coverage.watermark(ledger, stream).low
        free, taken = _sort_out(ledger, group, low)
        if not free:
            return Superseded(low) if taken else Committed(group[-1].last, already=not (tries or rivals))
        try:
            ledger.commit_below(locks, lease, free, seen)
            return Superseded(low) if taken else Committed(group[-1].last)
        except (ClientError, BotoCoreError) as error:
            if not holds(locks, lease):
                done = not _sort_out(ledger, group, low)[0]
                return Fenced() if not done else Superseded(low) if taken else Committed(group[-1].last, already=True)
            refused = "ConditionalCheckFailed" in reasons(error)
            if refused and ledger.islands(stream) != seen and rivals < MAX_RIVALS:
                # Somebody else's commit came in between: that is progress, and no sign that ours never will.
                rivals += 1
                _pause(clock, 0)
                continue
            tries += 1
            if not (refused or passing(error)) or (tries == MAX_TRIES and not refused):
                raise
            if tries == MAX_TRIES:
                raise _unexplained(free) from error
            _pause(clock, tries)


def _sort_out(ledger: Ledger, group: Sequence[Segment], low: int) -> tuple[list[Segment], list[Segment]]:
    """Segments of a group that are still to be committed, and those whose positions are another's."""
    span = Interval(group[0].first, group[-1].last)
    there = coverage.touching(ledger, group[0].stream, span)
    free: list[Segment] = []
    taken: list[Segment] = []
    for segment in group:
        met = [t for t in there if t.first <= segment.last and segment.first <= t.last]
        if [t.commit_id for t in met] == [segment.commit_id]:
            continue
        (taken if met or segment.last >= low else free).append(segment)
    return free, taken


def _unexplained(group: Sequence[Segment]) -> CorruptState:
    return CorruptState(
        "lock, watermark and neighbours allow it, yet the commit below the watermark is refused",
        stream=group[0].stream,
        span=(group[0].first, group[-1].last),
    )


def lower(ledger: Ledger, locks: Locks, lease: Lease, stream: Stream, clock: Clock) -> int:
    """Let ``low`` fall over the islands that follow it without a hole; the new ``low``. Repeating it changes nothing.

    Raises:
        NothingIngested: the stream has no watermark. LockLost: another owner holds the backfill's lock.
    """
    for attempt in range(MAX_TRIES):
        base = coverage.watermark(ledger, stream).low
        low = _reach(ledger, stream, base)
        if low == base:
            return base
        try:
            ledger.lower(locks, lease, stream, base, low)
            return low
        except (ClientError, BotoCoreError) as error:
            if (now := coverage.watermark(ledger, stream).low) <= low:
                return now
            if not holds(locks, lease):
                raise LockLost("the lock was taken over before the watermark was lowered", stream=stream) from error
            if attempt == MAX_TRIES - 1 or not ("ConditionalCheckFailed" in reasons(error) or passing(error)):
                raise
            _pause(clock, attempt)
    raise AssertionError("unreachable")


def _reach(ledger: Ledger, stream: Stream, base: int) -> int:
    """The first position of the segments that follow each other down from ``base``."""
    low = base
    for segment in ledger.newest_segments(stream, base - 1) if base else ():
        if segment.last != low - 1:
            break
        low = segment.first
    return low


def _pause(clock: Clock, attempt: int) -> None:
    clock.sleep(random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, PAUSE_S * 2**attempt))
