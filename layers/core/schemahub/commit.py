"""Committing: the watermark moves over finished chunks in one fenced transaction, and after doubt we look.

A transaction that fails, or whose answer is lost, is never repeated blindly: ``_look`` reads what is there and says
which of the outcomes it was. Holes are settled the same way: fenced, and from exactly what was seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from schemahub.clock import Clock
from schemahub.errors import CorruptState
from schemahub.holes import Hole
from schemahub.ledger import MAX_ITEMS_PER_TRANSACTION, Ledger
from schemahub.locks import Lease, Locks
from schemahub.streams import RawObject, Segment, Stream

MAX_TRIES = 6
PASSING = ("TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded")


@dataclass(frozen=True)
class Committed:
    """The segments are in the ledger: by this call, or (``already``) by an earlier one whose answer was lost."""

    high: int
    already: bool = False


@dataclass(frozen=True)
class Superseded:
    """Somebody else's commit covers or contradicts the plan: the watermark is at ``high`` now."""

    high: int | None


@dataclass(frozen=True)
class Fenced:
    """The lock has another holder: nothing was written and nothing may be."""


Outcome = Committed | Superseded | Fenced


def segment_of(stream: Stream, raw: RawObject, run_id: str, source: str, now_ms: int) -> Segment:
    """The segment that a raw object proves. Its ``commit_id`` depends on nothing but stream, range and content."""
    identity = f"{stream}|{raw.first}|{raw.last}|{raw.key}|{raw.sha256}"
    return Segment(
        stream=stream,
        first=raw.first,
        last=raw.last,
        count=raw.count,
        absent=raw.absent,
        counted=raw.counted,
        raw_key=raw.key,
        sha256=raw.sha256,
        source=source,
        run_id=run_id,
        commit_id=hashlib.sha256(identity.encode()).hexdigest(),
        committed_at=now_ms,
    )


def commit_segments(
    ledger: Ledger, locks: Locks, lease: Lease, segments: Sequence[Segment], base: int | None, clock: Clock
) -> Outcome:
    """Commit continuous segments that follow ``base``; several transactions when there are many.

    Args:
        segments: ascending and without a hole, the first at ``base + 1`` (anywhere for a new stream, ``base`` None).

    Raises:
        CorruptState: a segment stands beyond the watermark, or the watermark knows a newer fence than the lock gave.
        ValueError: the segments are not continuous.
    """
    end = base
    for segment in segments:
        if end is not None and segment.first != end + 1:
            raise ValueError(f"{segment.stream}: the segment at {segment.first} does not follow {end}")
        end = segment.last
    outcome: Outcome = Superseded(base)
    for group in groups(segments):
        outcome = _commit_group(ledger, locks, lease, group, base, clock)
        if not isinstance(outcome, Committed):
            return outcome
        base = group[-1].last
    return outcome


def groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments in the transactions that hold them and their holes."""
    group: list[Segment] = []
    weight = 0
    for segment in segments:
        items = 1 + len(segment.absent)
        if group and weight + items > MAX_ITEMS_PER_TRANSACTION:
            yield group
            group, weight = [], 0
        group.append(segment)
        weight += items
    if group:
        yield group


def _commit_group(
    ledger: Ledger, locks: Locks, lease: Lease, group: Sequence[Segment], base: int | None, clock: Clock
) -> Outcome:
    for attempt in range(MAX_TRIES):
        try:
            ledger.commit(locks, lease, group, base, clock.now_ms())
            return Committed(group[-1].last)
        except (ClientError, BotoCoreError) as error:
            outcome = _look(ledger, locks, lease, group, base)
            if outcome is not None:
                return outcome
            if "ConditionalCheckFailed" in reasons(error):
                raise CorruptState(
                    "the watermark and the lock are as planned, yet the commit is refused: a segment "
                    "stands beyond the watermark, or its fence is newer",
                    stream=group[0].stream,
                    span=(group[0].first, group[-1].last),
                ) from error
            if attempt == MAX_TRIES - 1 or not passing(error):
                raise
            clock.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def _look(ledger: Ledger, locks: Locks, lease: Lease, group: Sequence[Segment], base: int | None) -> Outcome | None:
    """What really happened; None when nothing did and the transaction may be tried again."""
    mark = ledger.watermark(group[0].stream)
    if mark is not None and mark.high >= group[-1].last:
        there = [ledger.segment(s.stream, s.first) for s in group]
        if all(t is not None and t.commit_id == s.commit_id for t, s in zip(there, group, strict=True)):
            return Committed(mark.high, already=True)
        return Superseded(mark.high)
    if (mark.high if mark else None) != base:
        return Superseded(mark.high if mark else None)
    return None if holds(locks, lease) else Fenced()


def settle_hole(
    ledger: Ledger, locks: Locks, lease: Lease, seen: Hole, now: Hole, fills: Sequence[Segment], clock: Clock
) -> Committed | Fenced | Superseded:
    """Record what a later look at a hole showed; ``fills`` are segments of the line ``stream.fills``.

    ``high`` of the outcome is the hole's last id. Superseded: somebody else has settled the hole meanwhile.

    Raises:
        CorruptState: hole and lock are as they were seen, yet the write is refused: such a fill exists already.
    """
    for attempt in range(MAX_TRIES):
        try:
            ledger.settle(locks, lease, seen, now, fills)
            return Committed(now.last)
        except (ClientError, BotoCoreError) as error:
            there = ledger.hole(now.stream, now.first)
            if there == now and there.revision == now.revision:
                return Committed(now.last, already=True)
            if there is None or there.revision != seen.revision:
                return Superseded(now.last)
            if not holds(locks, lease):
                return Fenced()
            if "ConditionalCheckFailed" in reasons(error):
                raise CorruptState(
                    "the hole and the lock are as seen, yet the fill is refused: another stands there",
                    stream=now.stream,
                    span=(now.first, now.last),
                ) from error
            if attempt == MAX_TRIES - 1 or not passing(error):
                raise
            clock.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def holds(locks: Locks, lease: Lease) -> bool:
    holder = locks.holder(lease.lock_id)
    return holder is not None and (holder.owner, holder.fence) == (lease.owner, lease.fence)


def passing(error: Exception) -> bool:
    """Whether a transaction that changed nothing failed for a reason that goes away."""
    if isinstance(error, BotoCoreError):
        return True
    assert isinstance(error, ClientError)
    codes = reasons(error)
    if error.response["Error"]["Code"] != "TransactionCanceledException":
        return error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500 or "Throttl" in str(error)
    return not codes or codes <= set(PASSING)


def reasons(error: Exception) -> set[str]:
    """Why a transaction was cancelled: the codes of its actions."""
    reasons: Any = error.response.get("CancellationReasons", []) if isinstance(error, ClientError) else []
    return {r["Code"] for r in reasons if r.get("Code", "None") != "None"}
