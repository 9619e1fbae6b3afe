"""What is known of a hole after any series of looks: nothing is forgotten, nothing is proved too early."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import event, given
from hypothesis import strategies as st

from schemahub.holes import HALT_S, LOOKS, LOOKS_APART_S, Hole, Look, after_look, committed_holes, merged
from schemahub.streams import Absent, Interval, Segment, Stream

STREAM = Stream("coinbase", "BTC-USD")
FIRST, LAST = 100, 130
NOW = 1_700_000_000_000


@dataclass(frozen=True)
class Step:
    """One look: how long after the one before, and what the exchange showed."""

    after_s: float
    shown: frozenset[int]
    denied: bool
    quiet_s: float | None


steps = st.lists(
    st.builds(
        Step,
        after_s=st.sampled_from([0.0, 10.0, LOOKS_APART_S - 1, LOOKS_APART_S, 5_000.0]),
        shown=st.one_of(st.just(frozenset()), st.frozensets(st.integers(FIRST, LAST), max_size=8)),
        denied=st.sampled_from([True, True, False]),
        quiet_s=st.sampled_from([None, 3.0, HALT_S - 1, HALT_S, 50_000.0]),
    ),
    max_size=14,
)
kinds = st.sampled_from(["exchange_skipped", "not_yet"])


def look_of(step: Step, hole: Hole) -> Look:
    """What a repair would see: only ids that it asked for can come."""
    asked = {i for part in hole.left for i in range(part.first, part.last + 1)}
    found = tuple(Interval(i, i) for i in sorted(step.shown & asked))
    usual = 1.0 if step.quiet_s is not None else None
    return Look(found, step.denied, "" if step.denied else "IncompletePage", step.quiet_s, usual)


@given(kinds, steps)
def test_a_hole_is_proved_by_looks_apart_and_by_nothing_else(kind: str, series: list[Step]) -> None:
    hole = Hole(STREAM, FIRST, LAST, kind, NOW, NOW)
    now_ms, counted_ms, denials, silences = NOW, NOW, 1, 0
    came: set[int] = set()
    for step in series:
        now_ms += round(step.after_s * 1000)
        look = look_of(step, hole)
        before, hole = hole, after_look(hole, look, now_ms)
        came |= {i.first for i in look.found}
        counts = now_ms - counted_ms >= LOOKS_APART_S * 1000
        if counts and len(came) <= LAST - FIRST:
            counted_ms = now_ms
            denials, silences = (denials + 1, 0) if step.denied else (denials, silences + 1)
        assert hole.revision == before.revision + 1
        missing = {i for part in hole.left for i in range(part.first, part.last + 1)}
        assert missing == set(range(FIRST, LAST + 1)) - came
        if not missing:
            assert hole.proved
            assert hole.state == "filled"
            event("filled")
            continue
        assert (hole.looks, hole.unclear) == (denials, silences)
        assert hole.proved == (denials >= LOOKS and hole.kind in ("exchange_skipped", "halted"))
        if hole.kind == "lost":
            assert not hole.proved
            assert silences >= LOOKS or before.kind == "lost"
        if silences >= LOOKS:
            assert hole.kind == "lost"
        if hole.kind == "halted" and before.kind != "halted":
            assert step.quiet_s is not None
            assert step.quiet_s >= HALT_S
        event(f"{hole.kind}, proved {hole.proved}")


@st.composite
def hole_lists(draw: st.DrawFn) -> list[Hole]:
    """Disjoint holes, many of them neighbours, some filled in part."""
    found, at = [], 1
    for _ in range(draw(st.integers(0, 8))):
        first = at + draw(st.sampled_from([0, 0, 1, 5]))
        last = first + draw(st.integers(0, 6))
        filled = draw(st.lists(st.integers(first, last).map(lambda i: Interval(i, i)), max_size=3, unique=True))
        looks = draw(st.integers(1, LOOKS))
        kind = draw(st.sampled_from(["exchange_skipped", "halted", "not_yet", "lost"]))
        found.append(Hole(STREAM, first, last, kind, NOW, NOW, looks, filled=tuple(sorted(filled))))
        at = last + 1
    return found


@given(hole_lists(), st.randoms())
def test_merged_ranges_are_exactly_what_is_missing(found: list[Hole], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    gaps = merged(shuffled)
    told = [(i, gap.state, gap.proved) for gap in gaps for i in range(gap.first, gap.last + 1)]
    true = [(i, h.kind, h.proved) for h in found for part in h.left for i in range(part.first, part.last + 1)]
    assert told == true
    assert sum(gap.ids for gap in gaps) == len(true)
    for before, after in itertools.pairwise(gaps):
        same = (before.state, before.proved) == (after.state, after.proved)
        assert before.last + 1 < after.first or not same, "neighbours of one class are one range"


def test_a_segment_s_absent_ranges_are_holes_with_one_look() -> None:
    absent = (Absent(5, 7, "not_yet"), Absent(9, 9, "exchange_skipped"))
    segment = Segment(STREAM, 1, 10, 6, absent, "key", "sha", "rest", "run", "commit", NOW)
    found = committed_holes([segment])
    assert [(h.first, h.last, h.kind, h.looks, h.last_looked_at, h.proved) for h in found] == [
        (5, 7, "not_yet", 1, NOW, False),
        (9, 9, "exchange_skipped", 1, NOW, False),
    ]
