"""Holes: ids that a committed segment names as absent, what later looks made of them, and when one is proved.

What a segment says of its absent ids never changes: it is the evidence of the day of its commit. What is known by now
is in an item of its own for each hole. Everything here is a pure function over values; ``repair`` does the looking.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from schemahub.streams import Interval, Segment, Stream, gaps, merge

LOOKS = 3
"""So many looks must agree; the commit's own is the first."""
LOOKS_APART_S = 1800.0
"""Looks closer to each other count as one: a cache or a lagging node would answer the same."""
YOUNG_S = 600.0
"""Ids missing before a trade younger than this are ``not_yet``."""
HALT_S, HALT_TIMES = 600.0, 20.0
"""Trading stood still if the trades around a hole are this far apart, and so many times the usual distance."""


@dataclass(frozen=True)
class Hole:
    """One absent range of a segment. Times are milliseconds since the epoch."""

    stream: Stream
    first: int
    last: int
    kind: str
    """The class of the ids that are still missing (``streams.ABSENT_CLASSES``)."""
    first_seen: int
    last_looked_at: int
    """When the last look was that counted."""
    looks: int = 1
    """Looks, apart from each other, in which the exchange showed the trades on both sides and not these."""
    unclear: int = 0
    """Looks since then in which it did not show the trades around."""
    evidence: str = ""
    filled: tuple[Interval, ...] = ()
    """Ids that came later; each range is a segment of ``stream.fills``."""
    revision: int = field(default=1, compare=False)

    @property
    def left(self) -> list[Interval]:
        """What is still missing."""
        return gaps(self.filled, (self.first, self.last))

    @property
    def ids(self) -> int:
        return sum(part.size for part in self.left)

    @property
    def state(self) -> str:
        """The class, or ``filled``."""
        return self.kind if self.left else "filled"

    @property
    def proved(self) -> bool:
        """Whether nothing is left to explain: filled, or denied often enough. ``not_yet`` and ``lost`` never are."""
        return not self.left or (self.kind in ("exchange_skipped", "halted") and self.looks >= LOOKS)


def committed_holes(segments: Iterable[Segment]) -> list[Hole]:
    """The holes as their segments were committed: one look, made when the chunk was fetched."""
    return [
        Hole(s.stream, a.first, a.last, a.kind, s.committed_at, s.committed_at, evidence="absent when it was committed")
        for s in segments
        for a in s.absent
    ]


@dataclass(frozen=True)
class Look:
    """What the exchange said when it was asked again for what is left of a hole."""

    found: tuple[Interval, ...] = ()
    denied: bool = True
    """It showed the trades on both sides of what is still missing in one answer."""
    reason: str = ""
    """Where not ``denied``: why."""
    quiet_s: float | None = None
    """Seconds between the trades around the hole."""
    usual_s: float | None = None
    """Median seconds between neighbouring trades of the same answers."""

    @property
    def halted(self) -> bool:
        if self.quiet_s is None or self.usual_s is None:
            return False
        return self.quiet_s >= max(HALT_S, HALT_TIMES * self.usual_s)


def with_fills(hole: Hole, found: Iterable[Interval]) -> Hole:
    """The hole after some of its ids came."""
    return replace(hole, filled=tuple(merge([*hole.filled, *found])), revision=hole.revision + 1)


def after_look(hole: Hole, look: Look, now_ms: int) -> Hole:
    """The hole as it is known after a look. Only looks ``LOOKS_APART_S`` after the last one count; finds always do."""
    hole = with_fills(hole, look.found)
    if not hole.left:
        return replace(hole, evidence="came later", last_looked_at=now_ms)
    if now_ms - hole.last_looked_at < LOOKS_APART_S * 1000:
        return hole
    hole = replace(hole, last_looked_at=now_ms)
    if not look.denied:
        unclear = hole.unclear + 1
        # Nobody can prove any more what became of them: that is said, not guessed.
        kind = "lost" if unclear >= LOOKS else hole.kind
        return replace(hole, unclear=unclear, kind=kind, evidence=look.reason[:300])
    looks = hole.looks + 1
    kind = hole.kind if looks < LOOKS else "halted" if look.halted else "exchange_skipped"
    return replace(hole, looks=looks, unclear=0, kind=kind, evidence=_words(look))


def _words(look: Look) -> str:
    if look.quiet_s is None:
        return "the trades on both sides are shown, these are not"
    usual = f" (usually {look.usual_s:.3g} s)" if look.usual_s is not None else ""
    return f"the trades on both sides are shown, {look.quiet_s:.3g} s apart{usual}; these are not"


def neighbours(times: Mapping[int, int], hole: Interval) -> tuple[int, int] | None:
    """The trades next to ``hole`` among those whose times (µs) were shown; None where one side shows none."""
    before = max((i for i in times if i < hole.first), default=None)
    behind = min((i for i in times if i > hole.last), default=None)
    return None if before is None or behind is None else (before, behind)


def pace(times: Mapping[int, int], around: tuple[int, int]) -> tuple[float, float | None]:
    """(seconds between the trades ``around`` a hole, median seconds between the other neighbours shown)."""
    steps = [(times[b] - times[a]) / 1e6 for a, b in itertools.pairwise(sorted(times)) if (a, b) != around]
    return (times[around[1]] - times[around[0]]) / 1e6, median(steps) if steps else None


@dataclass(frozen=True)
class Gap:
    """Neighbouring holes of one class, as one range: chunks cut what the exchange left out in one piece."""

    first: int
    last: int
    state: str
    proved: bool
    ids: int
    holes: int
    first_seen: int
    """When the oldest of them was committed, milliseconds since the epoch."""
    looks: int
    """Of the one that was looked at least."""
    evidence: str


def merged(holes: Sequence[Hole]) -> list[Gap]:
    """What is left of the holes, by position, neighbours of the same class as one."""
    found: list[Gap] = []
    for hole in sorted(holes, key=lambda h: h.first):
        for part in hole.left:
            gap = Gap(part.first, part.last, hole.state, hole.proved, part.size, 1, hole.first_seen, hole.looks,
                      hole.evidence)  # fmt: skip
            last = found[-1] if found else None
            if last and (last.last + 1, last.state, last.proved) == (gap.first, gap.state, gap.proved):
                found[-1] = replace(
                    last,
                    last=gap.last,
                    ids=last.ids + gap.ids,
                    holes=last.holes + 1,
                    first_seen=min(last.first_seen, gap.first_seen),
                    looks=min(last.looks, gap.looks),
                )
            else:
                found.append(gap)
    return found


def absent_now(segments: Iterable[Segment], fills: Iterable[Segment]) -> list[Interval]:
    """Ids that are in no raw object of a stream: absent in its segments, and not filled since."""
    filled = [f.interval for f in fills]
    return merge(part for s in segments for a in s.absent for part in gaps(filled, (a.first, a.last)))
