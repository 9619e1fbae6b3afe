"""The crash matrix: every side effect of every scenario, struck in every mode, replayed, and judged.

A scenario runs once. At each of its invocations copies of the whole world are forked, one for each cell; a copy strikes
at its effect, goes on to the end, and tells what the table then holds.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from tests.crash.cloud import MODES, Cloud, Strike
from tests.crash.effects import Effect
from tests.crash.histories import LEASES_ARE_OVER_S, SCENARIOS, TRADES_S, History, Scenario
from tests.crash.worlds import Judgement, in_a_copy, judge
from tests.simulation import asl

RETRY, REDRIVE, NEW = "retry", "redrive", "new"
"""How it goes on. Same execution: by the state machine's own Retry and its second round, or a redrive where these do
not help; or nothing works any more, the failure rule sees it, the execution is redriven. New execution: nothing works
any more and nobody sees it, the leases run out, another execution comes; then the old one is redriven all the same."""


@dataclass(frozen=True)
class Point:
    """The ``number``-th effect (from 1) of a scenario."""

    scenario: str
    number: int
    effect: Effect
    begins: bool
    """It is its worker's first."""


@dataclass(frozen=True)
class Cell:
    point: Point
    mode: str
    replay: str


@dataclass(frozen=True)
class Verdict:
    cell: Cell
    lost: int
    duplicated: int
    problems: tuple[str, ...]
    strayed: bool = False
    """Another effect was struck than the one that was meant."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.problems)

    def __str__(self) -> str:
        point = self.cell.point
        where = f"{point.scenario} #{point.number} {point.effect.state}: {point.effect.call}"
        what = f"lost {self.lost}, duplicated {self.duplicated}; {'; '.join(self.problems)}"
        return f"{where} [{self.cell.mode}, {self.cell.replay}]: {what}"


# --- which cells there are --------------------------------------------------------------------------------------


def points_of(base: Cloud, scenario: Scenario) -> list[Point]:
    """Every side effect of a scenario, as the instrumentation sees them."""

    def count() -> list[Effect]:
        history = scenario.begin(base).finish()
        found = verdict_of(history, scenario)
        assert found.clean, f"{scenario.name} without any strike: {found}"
        return base.effects

    effects = in_a_copy(base, count)
    before = [None, *(e.invocation for e in effects)]
    return [
        Point(scenario.name, number, effect, effect.invocation != before[number - 1])
        for number, effect in enumerate(effects, 1)
    ]


def all_points(base: Cloud) -> list[Point]:
    """Every side effect of the main scenarios; of the others each kind that has not been seen before them."""
    points: list[Point] = []
    for scenario in SCENARIOS:
        seen = {p.effect.kind for p in points}
        found = points_of(base, scenario)
        points += found if scenario.main else [p for p in found if p.effect.kind not in seen]
    return points


def cells_of(point: Point) -> list[Cell]:
    """Each mode with the same and with a new execution.

    Between two effects of a worker nothing happens outside it, so to die "after" the one and "before" the other is the
    same: of the two ways to go on with the same execution each takes one, and the new execution comes after the first.
    """
    odd = point.number % 2 == 1
    replays = {
        "before": (REDRIVE if odd else RETRY, *((NEW,) if point.begins else ())),
        "after": (REDRIVE if odd else RETRY, NEW),
        "lost": (RETRY,),  # boto3's repetition heals it; a new execution follows anyway
        "cut": (RETRY, NEW),
    }
    return [Cell(point, mode, replay) for mode in MODES for replay in replays[mode]]


def some_cells(points: Iterable[Point]) -> list[Cell]:
    """Each call once, at a point and in a way that its name decides."""
    calls: dict[str, list[Cell]] = {}
    for point in points:
        calls.setdefault(point.effect.call, []).extend(cells_of(point))
    return [
        cells[int(hashlib.sha256(call.encode()).hexdigest(), 16) % len(cells)] for call, cells in calls.items()
    ]  # fmt: skip


# --- running them -----------------------------------------------------------------------------------------------


def strike_all(base: Cloud, cells: Iterable[Cell]) -> list[Verdict]:
    """The verdicts of cells of any scenarios."""
    wanted = list(cells)
    return [v for s in SCENARIOS for v in _walk(base, s, [c for c in wanted if c.point.scenario == s.name])]


def _walk(base: Cloud, scenario: Scenario, cells: list[Cell]) -> list[Verdict]:
    at: dict[int, list[Cell]] = {}
    for cell in cells:
        at.setdefault(cell.point.effect.invocation, []).append(cell)

    def walk() -> list[Verdict]:
        verdicts: list[Verdict] = []
        history = scenario.begin(base)
        while at:
            for cell in at.pop(base.invocations, ()):
                verdicts.append(in_a_copy(base, functools.partial(strike, history, scenario, cell)))
            if not history.step():
                break
        assert not at, f"the second time {scenario.name} went another way"
        return verdicts

    return in_a_copy(base, walk) if cells else []  # type: ignore[no-any-return]


def strike(history: History, scenario: Scenario, cell: Cell) -> Verdict:
    """In a copy of its own: what a cell comes to."""
    cloud, at = history.cloud, cell.point.number
    cloud.strike = Strike(at, cell.mode, fatal=cell.replay != RETRY)
    if cell.replay != NEW:
        judgements = [verdict_of(history.finish(), scenario)]
        if cell.mode == "lost":
            judgements.append(verdict_of(History(cloud, scenario.streams).finish(), scenario))
    else:
        while (history.execution.status == asl.RUNNING or len(cloud.effects) < at) and history.step():
            pass
        history.events.clear()
        cloud.outage = False
        cloud.clock.advance(LEASES_ARE_OVER_S)
        cloud.trade_on(TRADES_S)
        newer = History(cloud, scenario.streams).finish()
        judgements = [verdict_of(newer, scenario), verdict_of(history.finish(), scenario)]
    problems = dict.fromkeys(p for j in judgements for p in j.problems)
    struck = cloud.effects[at - 1] if len(cloud.effects) >= at else None
    if struck != cell.point.effect:
        problems[f"struck {struck} instead"] = None
    return Verdict(
        cell,
        max(j.lost for j in judgements),
        max(j.duplicated for j in judgements),
        tuple(problems),
        struck != cell.point.effect,
    )


def verdict_of(history: History, scenario: Scenario) -> Judgement:
    """The table and the state against the exchange, and how the execution ended."""
    try:
        found = judge(history.cloud, scenario.streams)
    except AssertionError as error:
        found = Judgement(0, 0, 0, (f"the lake cannot be read: {str(error)[-300:]}",))
    if history.execution.status == asl.SUCCEEDED:
        return found
    ended = f"the execution ended {history.execution.status}: {history.execution.error}"
    return Judgement(found.lost, found.duplicated, found.wrong, (*found.problems, ended))
