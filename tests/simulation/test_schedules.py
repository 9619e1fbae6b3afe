"""The invariants under random schedules, and the proof that the model would see them broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.bugs import BUGS, Plant, publish_without_look_up, release_by_delete
from tests.simulation.model import Violation
from tests.simulation.schedules import REACHED, THE_WORLD, Schedules
from tests.simulation.world import small_pages

PLAIN = settings(
    deadline=None, database=None, stateful_step_count=15, suppress_health_check=list(HealthCheck), print_blob=True
)
ONLY_SEARCH = (Phase.generate,)
LUCKY = 29
"""Where the search for planted bugs begins: chance needs six seconds or six minutes, and neither judges the model."""


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_pages():
        yield


def explore(examples: int) -> None:
    REACHED.clear()
    run_state_machine_as_test(Schedules, settings=settings(PLAIN, max_examples=examples))  # type: ignore[no-untyped-call]
    print(*(f"{REACHED[name]:8,}  {name}" for name in sorted(REACHED)), sep="\n")
    for name in ("ingest SUCCEEDED", "ingest FAILED", "transform SUCCEEDED", "redrives", "faults", "zombies"):
        assert REACHED[name] > 0, f"no {name}: such a run proves nothing"
    # Each schedule ends with one run of its own; the others must have got somewhere too.
    assert REACHED["ingest SUCCEEDED"] > REACHED["schedules"]


def test_a_few_random_schedules_break_no_invariant() -> None:
    explore(15)


@pytest.mark.long
def test_many_random_schedules_break_no_invariant() -> None:
    explore(60)


def planted() -> Iterator[Any]:
    """Those that need a zombie at the right moment are looked for long."""
    for plant in BUGS:
        marks = () if plant in (release_by_delete, publish_without_look_up) else (pytest.mark.long,)
        yield pytest.param(plant, marks=marks, id=plant.__name__)


@pytest.mark.parametrize("plant", list(planted()))
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda: THE_WORLD[0])
    REACHED.clear()
    with pytest.raises(Violation, match=BUGS[plant]):
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            seed(LUCKY)(Schedules), settings=settings(PLAIN, max_examples=2000, phases=ONLY_SEARCH)
        )
    print(f"found after {REACHED['schedules']} schedules, {REACHED['calls']:,} calls, {REACHED['faults']} faults")
