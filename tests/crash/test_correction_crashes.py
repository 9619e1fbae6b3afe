"""A correction of a re-issued file dies before or after each of its writes; the next run of ``maintain`` ends it."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import corrections
from schemahub.streams import overlapping
from tests.crash.test_repair_crashes import LEASES_ARE_OVER_S, Killed, Reaper
from tests.lake import make_glue_check_versions
from tests.simulation.asl import SUCCEEDED
from tests.unit.archive_worlds import OLD, WORLD
from tests.unit.pipelines import BINANCE
from tests.unit.test_maintain_archives import Maintained, made, right, taken_wrong

SMALL = {**WORLD, "binance": {**WORLD["binance"], "trades_per_day": 400}}  # type: ignore[dict-item]
WRITES = {"PutObject", "UpdateItem", "TransactWriteItems"}


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maintained]:
    make_glue_check_versions(monkeypatch)
    monkeypatch.setattr("schemahub.backfill.CHUNK_ROWS", 1_000)
    with running(SMALL) as server:
        yield made(aws, server, tmp_path)


def killed_at(world: Maintained, reaper: Reaper, mode: str, at: int, day: dt.date) -> str | None:
    """Which write a run of ``maintain`` was killed at; None if it came to its end. The next run must end well."""
    taken_wrong(world, day, first=100)
    reaper.arm(at, mode)
    return killed(world, reaper, day)


def killed(world: Maintained, reaper: Reaper, day: dt.date) -> str | None:
    struck = None
    try:
        world.through()
    except Killed:
        struck = reaper.seen[-1]
    reaper.arm(0, "before")
    world.archive.pipeline.clock.ahead_s += LEASES_ARE_OVER_S
    assert world.through().status == SUCCEEDED
    assert right(world, day)
    listed = corrections.corrections(world.deps.objects, BINANCE)
    assert {c.state for c in listed} == {"published"}
    assert [c.file for c in listed].count(world.archive.file(day).name) == 1
    assert not overlapping([s.interval for s in world.deps.ledger.segments(BINANCE)])
    assert list(world.deps.ledger.pending()) == []
    return struck


@pytest.mark.parametrize("mode", ["before", "after"])
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_killed_at_every_write_the_next_run_ends_with_the_right_rows(world: Maintained, mode: str, step: int) -> None:
    reaper, struck = Reaper(world.archive.pipeline), Counter[str]()
    for number, at in enumerate(range(1, 60, step)):
        write = killed_at(world, reaper, mode, at, OLD + dt.timedelta(days=2 * number))
        if write is None:
            break
        struck[write] += 1
    else:
        raise AssertionError("no run came to its end without being struck")
    assert sum(struck.values()) >= 12 / step
    if step == 1:
        assert set(struck) >= WRITES


class Aimed(Reaper):
    """Kills at the first write of a kind, or so many writes behind it: how many come before it differs by run."""

    def aim(self, behind: int, mode: str) -> None:
        self.arm(0, mode)
        self.behind: int | None = behind

    def _before(self, model: Any, **_: Any) -> None:
        if getattr(self, "behind", None) is not None and model.name == "TransactWriteItems":
            self.at, self.behind = len(self.seen) + 1 + (self.behind or 0), None
        super()._before(model)


@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_the_exchange_of_segments_the_next_run_ends_with_the_right_rows(world: Maintained, mode: str) -> None:
    """The one transaction, and the two writes behind it: the list of what it changed, the file's state."""
    reaper = Aimed(world.archive.pipeline)
    struck = []
    for behind in range(3):
        day = OLD + dt.timedelta(days=2 * behind)
        taken_wrong(world, day, first=100)
        reaper.aim(behind, mode)
        struck.append(killed(world, reaper, day))
    assert struck == ["TransactWriteItems", "PutObject", "PutObject"]
