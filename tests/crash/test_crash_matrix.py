"""Workers die at each of their side effects; the table is the exchange all the same.

The side effects are found by instrumentation (tests/crash/effects.py): there is no list of them to forget one in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple

import pytest

from tests.crash.cloud import MODES, Cloud
from tests.crash.histories import SCENARIOS
from tests.crash.matrix import (
    NEW,
    REDRIVE,
    RETRY,
    Cell,
    Point,
    Verdict,
    all_points,
    cells_of,
    points_of,
    some_cells,
    strike_all,
)
from tests.crash.mutants import MUTANTS, Mutant
from tests.crash.report import SHARES, documented, tally
from tests.crash.worlds import base_world, in_a_copy

QUICK_MUTANTS = ("publish_blindly", "mark_before_the_snapshot", "raw_after_the_commit")


@pytest.fixture(scope="module")
def base() -> Iterator[Cloud]:
    with base_world() as base:
        yield base


@pytest.fixture(scope="module")
def points(base: Cloud) -> list[Point]:
    return all_points(base)


@pytest.fixture
def judged(record_property: Callable[[str, object], None]) -> Callable[[list[Verdict]], None]:
    """Every verdict is clean; the table at the end of the session counts them."""

    def check(verdicts: list[Verdict]) -> None:
        record_property("crash_matrix", json.dumps([astuple(t) for t in tally(verdicts)]))
        bad = [str(v) for v in verdicts if not v.clean]
        assert not bad, f"{len(bad)} of {len(verdicts)}:\n" + "\n".join(bad[:20])

    return check


def test_each_call_that_changes_something_once(
    base: Cloud, points: list[Point], judged: Callable[[list[Verdict]], None]
) -> None:
    judged(strike_all(base, some_cells(points)))


@pytest.mark.long
@pytest.mark.parametrize("number", range(SHARES))
def test_every_side_effect_in_every_mode(
    base: Cloud, points: list[Point], number: int, judged: Callable[[list[Verdict]], None]
) -> None:
    judged(strike_all(base, [c for p in points if p.number % SHARES == number for c in cells_of(p)]))


def test_the_page_tells_of_every_side_effect(points: list[Point]) -> None:
    """`python -m tests.crash.report --write` runs the matrix and writes the table again."""
    found = Counter(p.effect.kind for p in points)
    told = documented()
    assert {kind: points for kind, (points, _) in told.items()} == dict(found)
    runs: Counter[tuple[tuple[str, str], str]] = Counter(
        (p.effect.kind, cell.mode) for p in points for cell in cells_of(p)
    )
    for kind, (_, cells) in told.items():
        assert cells == [f"{runs[kind, mode]} · 0 · 0" for mode in MODES], kind


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=() if m.name in QUICK_MUTANTS else pytest.mark.long) for m in MUTANTS],
)
def test_a_guard_that_is_gone_is_seen(base: Cloud, mutant: Mutant) -> None:
    assert in_a_copy(base, lambda: seen(base, mutant)), f"nobody sees {mutant.name}"


def seen(base: Cloud, mutant: Mutant) -> str:
    """The first verdict that is not clean, in a copy of the world whose workers lack a guard."""
    base.mutant = mutant.apply
    scenario = next(s for s in SCENARIOS if s.name == mutant.scenario)
    state, call = mutant.where
    near = [p for p in points_of(base, scenario) if state in p.effect.state and call in p.effect.call]
    assert near, f"no effect like {mutant.where}"
    for cell in [Cell(point, mutant.mode, replay) for point in near for replay in (RETRY, REDRIVE, NEW)]:
        (verdict,) = strike_all(base, [cell])
        if not verdict.clean and not verdict.strayed:
            return str(verdict)
    return ""
