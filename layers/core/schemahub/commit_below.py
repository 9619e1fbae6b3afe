"""Committing below the watermark: islands in any order, and ``low`` that falls over those it touches.

The ingest writes above ``high`` under the stream's lock, a backfill below ``low`` under its own; neither writes what is
the other's. No two segments ever share a position, whoever commits them: every commit is made from the number of
commits that it saw when it looked for neighbours (the item ``islands``), so that of two at the same time one looks
again. What a failed or unanswered transaction did is looked up, as in ``commit``.

Where answers are linked, the same look compares what neighbours show of their border (``seams``). The later of two to
be committed is the one that is judged, so no border below the watermark is left out, and ``lower`` has nothing to ask.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from schemahub import coverage, raw, seams
from schemahub.clock import Clock
from schemahub.commit import Committed, Fenced, Outcome, Superseded, groups, holds, passing, reasons
from schemahub.errors import CorruptState, LockLost
from schemahub.ledger import Ledger
from schemahub.locks import Lease, Locks
from schemahub.objects import ObjectStore
from schemahub.streams import Interval, RawObject, Segment, Stream, overlapping

MAX_TRIES = 12
"""Tasks of one stream commit side by side and meet in each other's transactions."""
MAX_RIVALS = 300
PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True)
class Torn:
    """These show less of a border than their neighbours: they lack trades and are refused. All others are committed."""

    segments: tuple[Segment, ...]


class Seams:
    """The borders of segments whose answers were linked, by what their raw objects say of them."""

    def __init__(
        self, objects: ObjectStore, call_attention: Callable[[str, object], None], known: Iterable[RawObject] = ()
    ) -> None:
        """``known`` are objects whose metadata need not be read again."""
        self.objects, self.call_attention = objects, call_attention
        self._known: dict[str, RawObject | None] = {found.key: found for found in known}
        self._said: set[str] = set()

    def at_fault(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, Segment]]:
        """Each segment that lacks a trade which its neighbour (the second of the pair) shows at their border."""
        ordered = sorted((s for s in segments if not s.counted), key=lambda s: s.first)
        for below, above in itertools.pairwise(ordered):
            if above.first != below.last + 1 or not (one := self._object(below)) or not (other := self._object(above)):
                continue
            if (worse := seams.at_fault(one, other)) is not None:
                yield (below, above) if worse is one else (above, below)

    def say(self, committed: Segment, shown_by: Segment) -> None:
        """What is committed is not taken back: somebody must know that it lacks trades."""
        if committed.raw_key in self._said:
            return
        self._said.add(committed.raw_key)
        self.call_attention(
            f"{committed.raw_key} is committed and lacks a trade at its border that {shown_by.raw_key} shows",
            committed.stream,
        )

    def _object(self, segment: Segment) -> RawObject | None:
        if segment.raw_key not in self._known:
            self._known[segment.raw_key] = raw.describe(self.objects, segment.raw_key)
        return self._known[segment.raw_key]


def commit_islands(
    ledger: Ledger, locks: Locks, lease: Lease, segments: Sequence[Segment], clock: Clock, borders: Seams | None = None
) -> Outcome | Torn:
    """Commit segments that all lie below ``low``, in any order; several transactions when there are many.

    Superseded: some of them are covered by other segments, or reach up to ``low``; all others are committed then.

    Args:
        borders: needed for segments whose positions are not counted.

    Raises:
        NothingIngested: the stream has no watermark.
        CorruptState: nothing stands in the way, yet the commit is refused.
        ValueError: the segments overlap each other, or are of several streams.
    """
    ordered = sorted(segments, key=lambda s: s.first)
    if not ordered or len({s.stream for s in ordered}) > 1 or overlapping([s.interval for s in ordered]):
        raise ValueError("segments of one stream that do not overlap are needed")
    if borders is None and not all(s.counted for s in ordered):
        raise ValueError("segments that are not counted are committed by their borders only")
    torn = [worse for worse, _ in borders.at_fault(ordered)] if borders else []
    outcomes: list[Outcome | Torn] = []
    for group in groups(ordered):
        outcomes.append(_commit_group(ledger, locks, lease, group, clock, borders, torn))
        if isinstance(outcomes[-1], Fenced):
            return outcomes[-1]
    if refused := tuple(s for o in outcomes if isinstance(o, Torn) for s in o.segments):
        return Torn(refused)
    lost = [o for o in outcomes if isinstance(o, Superseded)]
    done = [o for o in outcomes if isinstance(o, Committed)]
    return lost[0] if lost else Committed(ordered[-1].last, already=all(o.already for o in done))


def _commit_group(
    ledger: Ledger, locks: Locks, lease: Lease, group: Sequence[Segment], clock: Clock, borders: Seams | None,
    torn: Sequence[Segment],
) -> Outcome | Torn:  # fmt: skip
    """``torn`` are at fault by segments of this call, whichever group these are in."""
    stream, tries, rivals = group[0].stream, 0, 0
    while True:
        # In this order: a commit that comes after the number was read makes ours fail.
        seen = ledger.islands(stream)
        low = coverage.watermark(ledger, stream).low
        free, taken = _sort_out(ledger, group, low)
        faulty, late = _judge(ledger, free, borders, torn) if borders else ([], [])
        free = [s for s in free if s not in faulty]
        ended = Torn(tuple(faulty)) if faulty else Superseded(low) if taken else None
        if not free:
            return ended or Committed(group[-1].last, already=not (tries or rivals))
        for worse, better in late:
            # Before the commit: whoever dies behind it would have said nothing.
            assert borders
            borders.say(worse, better)
        try:
            ledger.commit_below(locks, lease, free, seen)
            return ended or Committed(group[-1].last)
        except (ClientError, BotoCoreError) as error:
            if not holds(locks, lease):
                left, _ = _sort_out(ledger, free, low)
                return Fenced() if left else ended or Committed(group[-1].last, already=True)
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


def _judge(
    ledger: Ledger, free: Sequence[Segment], borders: Seams, torn: Sequence[Segment]
) -> tuple[list[Segment], list[tuple[Segment, Segment]]]:
    """What is refused by its borders, and committed segments that ought to have been, with who shows it."""
    if not free:
        return [], []
    around = Interval(max(0, free[0].first - 1), free[-1].last + 1)
    faults = list(borders.at_fault([*free, *coverage.touching(ledger, free[0].stream, around)]))
    refused = [s for s in free if s in torn or s in [worse for worse, _ in faults]]
    return refused, [(worse, by) for worse, by in faults if worse not in free and by not in refused]


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
