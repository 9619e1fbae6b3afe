"""The crash matrix as a table: for a test's output, and for docs/correctness.md.

``python -m tests.crash.report --write`` runs all of it, two parts at a time, and writes the page's table. With
``--unproved`` it writes only what `make test-crash` then demands: for a change that adds a side effect.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from tests.crash.cloud import MODES, ROOT
from tests.crash.matrix import Verdict, all_points, cells_of, strike_all
from tests.crash.worlds import base_world

PAGE = ROOT / "docs" / "correctness.md"
BEGIN, END = "<!-- crash matrix: begin -->\n", "<!-- crash matrix: end -->\n"
HEADS = {"before": "killed before", "after": "killed after", "lost": "answer lost", "cut": "line cut"}
SHARES = 8
"""Parts of the matrix that run side by side where there are processors."""


@dataclass(frozen=True, order=True)
class Tally:
    """How the cells of one kind of effect in one mode came out; travels as JSON."""

    state: str
    call: str
    mode: str
    points: int
    runs: int
    lost: int
    duplicated: int
    problems: int


def tally(verdicts: Iterable[Verdict]) -> list[Tally]:
    """One for each kind of effect and mode, in the order in which they were met."""
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((*verdict.cell.point.effect.kind, verdict.cell.mode), []).append(verdict)
    return [
        Tally(
            *key,
            len({v.cell.point for v in group}),
            len(group),
            sum(v.lost for v in group),
            sum(v.duplicated for v in group),
            sum(not v.clean for v in group),
        )
        for key, group in groups.items()
    ]


def merged(tallies: Iterable[Tally]) -> list[Tally]:
    """Parts of the matrix as one."""
    groups: dict[tuple[str, str, str], list[Tally]] = {}
    for one in tallies:
        groups.setdefault((one.state, one.call, one.mode), []).append(one)
    return [
        Tally(*key, *(sum(getattr(t, n) for t in group) for n in ("points", "runs", "lost", "duplicated", "problems")))
        for key, group in groups.items()
    ]


def table(tallies: Sequence[Tally]) -> str:
    """Points × modes; a cell is runs · lost · duplicated."""
    lines = [
        f"| state | side effect | points | {' | '.join(HEADS[m] for m in MODES)} |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds: dict[tuple[str, str], dict[str, Tally]] = {}
    for one in tallies:
        kinds.setdefault((one.state, one.call), {})[one.mode] = one
    for (state, call), modes in sorted(kinds.items()):
        cells = [_cell(modes.get(mode)) for mode in MODES]
        lines.append(f"| `{state}` | {call} | {max(t.points for t in modes.values())} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(one: Tally | None) -> str:
    if one is None:
        return "–"
    return f"{one.runs} · {one.lost} · {one.duplicated}" + (f" · **{one.problems} failed**" if one.problems else "")


def summary(tallies: Sequence[Tally], seconds: float | None = None) -> str:
    kinds: dict[tuple[str, str], int] = {}
    for one in tallies:
        kinds[one.state, one.call] = max(kinds.get((one.state, one.call), 0), one.points)
    took = f" in {seconds:.0f} s" if seconds is not None else ""
    return (
        f"{sum(kinds.values())} points of {len(kinds)} kinds, {sum(t.runs for t in tallies)} runs{took}: "
        f"lost {sum(t.lost for t in tallies)}, duplicated {sum(t.duplicated for t in tallies)}, "
        f"failed {sum(t.problems for t in tallies)}"
    )


def documented() -> dict[tuple[str, str], tuple[int, list[str]]]:
    """What the page says: points and cells of each kind of effect."""
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (\d+) \| (.+) \|$", page_table(), re.MULTILINE)
    return {(state, call): (int(points), cells.split(" | ")) for state, call, points, cells in rows}


def page_table() -> str:
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def share(number: int) -> list[Verdict]:
    """Every ``SHARES``-th point of the matrix, in all modes."""
    with base_world() as base:
        points = all_points(base)
        found = strike_all(base, [c for p in points if p.number % SHARES == number for c in cells_of(p)])
        base.dismiss()
    return found


def run_all() -> list[Verdict]:
    verdicts: list[Verdict] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for part in pool.map(share, range(SHARES)):
            verdicts += part
            print(f"{len(part)} runs, {len(verdicts)} in all", flush=True)
            for verdict in [v for v in part if not v.clean]:
                print(verdict, flush=True)
    return verdicts


def demanded() -> list[Verdict]:
    """What the long test demands of each cell, without running any."""
    with base_world() as base:
        found = [Verdict(cell, 0, 0, ()) for point in all_points(base) for cell in cells_of(point)]
        base.dismiss()
    return found


def main() -> int:
    started = time.monotonic()
    verdicts = demanded() if "--unproved" in sys.argv else run_all()
    tallies = tally(verdicts)
    print(table(tallies))
    print(summary(tallies, time.monotonic() - started))
    bad = any(not v.clean for v in verdicts)
    if "--write" in sys.argv and not bad:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}{table(tallies)}\n\n{summary(tallies)}.\n{END}{after}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
