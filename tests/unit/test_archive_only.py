"""History of a product that its exchange's API does not show any more: anchored on the archive's newest day."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import anchor, archives, backfill, commit, errors, events, mirror, rebuild
from schemahub.archive_plan import archive_files
from schemahub.archive_shelf import Shelf
from schemahub.backfill_task import run_task
from schemahub.streams import Interval, Stream, covers
from schemahub_cli import backfills
from tests.unit.archive_worlds import MAPPING, WORLD, ArchiveWorld
from tests.unit.backfills import Backfill
from tests.unit.pipelines import BINANCE, make_pipeline
from tests.unit.test_anchor_lake import proved

BORN, NEWEST = dt.date(2026, 4, 20), dt.date(2026, 5, 30)
"""The first day of trades, and the last whose file is out at the time of the tests (1 June, 10:00)."""


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path) -> Iterator[ArchiveWorld]:
    """Nothing was ever ingested, and the API knows the product no more."""
    small = {**WORLD, "genesis": f"{BORN}T12:00:00Z", "binance": {**WORLD["binance"], "trades_per_day": 1_200}}
    with running(small) as server:
        pipeline = make_pipeline(aws, server, tmp_path, backfill_ecs=True)
        pipeline.fault("delisted", "binance", "BTC-USDT")
        yield ArchiveWorld(pipeline, tmp_path)


def plan(run: Backfill, **more: Any) -> dict[str, Any]:
    step = functools.partial(backfill.plan_backfill, archive_files=archive_files)
    return run.world.call(step, events.PlanBackfill, {**run.base, "lock": run.lock, "request": run.request, **more})


def filled(world: ArchiveWorld, wanted: Any, **request: Any) -> dict[str, Any]:
    """A whole execution: a round of files, then what they left by REST, as the state machine goes."""
    run = Backfill.start(world.pipeline.world, wanted, BINANCE, **request)
    planned = plan(run)
    outcome = planned
    if planned["status"] == "planned":
        for spec in run.specs(planned):
            run_task(world.deps, spec, Event(), world.folder / "work")
        outcome = run.commit(planned)
        if outcome["status"] == "partial":
            planned = plan(run, source="rest")
            run.work({**planned, "route": "lambda"})
            outcome = run.commit(planned, final=True)
    run.release(outcome["status"])
    assert run.close()["status"] == "done"
    return run.report()


def whole(world: ArchiveWorld) -> Interval:
    """All ids of the files that are out."""
    source = world.simulator.listing("binance", "BTC-USDT").source
    return Interval(source.first_id, source.first_at_or_after(world.file(NEWEST).period_us[1]) - 1)


def test_a_product_that_only_the_archive_has_is_filled_back_whole(world: ArchiveWorld) -> None:
    within = whole(world)
    report = filled(world, "all")
    mark = world.deps.ledger.watermark(BINANCE)
    assert mark is not None
    assert (mark.low, mark.high) == within
    assert covers([s.interval for s in world.deps.ledger.segments(BINANCE)], within)
    assert {s.source for s in world.deps.ledger.segments(BINANCE)} == {"archive"}
    assert report["pathologies"] == {}
    assert world.table(within) == world.truth(within, micros=True)
    assert proved(world.pipeline) == within
    assert mirror.parse(BINANCE, world.deps.objects.get(BINANCE.mirror_key) or b"") == mark
    assert rebuild.rebuild(world.deps, BINANCE, dry_run=True)
    assert not world.deps.locks.holder(BINANCE.lock_id)
    state = world.state(NEWEST)
    assert state is not None
    assert state.taken, "which issue the first rows are of is known"
    with pytest.raises(errors.UnknownProduct):
        world.pipeline.ingest(BINANCE)
    world.pipeline.cure()  # it is listed again, and its ids go on
    world.pipeline.run(BINANCE)
    after = world.deps.ledger.watermark(BINANCE)
    assert after is not None
    assert (after.low, after.high > within.last) == (within.first, True)
    assert covers([s.interval for s in world.deps.ledger.segments(BINANCE)], (after.low, after.high))


def test_days_of_it_are_an_island_below_the_newest_rows(world: ArchiveWorld) -> None:
    """An hour means its day: nobody but the file says where in the day it lies."""
    filled(world, {"from": "2026-05-04T06:00:00Z", "to": "2026-05-05T06:00:00Z"})
    mark = world.deps.ledger.watermark(BINANCE)
    assert mark is not None
    assert mark.high == whole(world).last
    island = Interval(world.ids(dt.date(2026, 5, 4)).first, world.ids(dt.date(2026, 5, 5)).last)
    below = [s.interval for s in world.deps.ledger.segments(BINANCE) if s.last < mark.low]
    assert covers(below, island)
    assert (min(below).first, max(below).last) == island


def test_a_plan_names_the_files_and_writes_nothing(world: ArchiveWorld) -> None:
    request = events.BackfillInput(products=["binance:BTC-USDT"], range="all")
    [seen] = backfills.foresee(world.deps, [BINANCE], request)
    assert (seen.error, seen.within and seen.within.first) == (None, whole(world).first)
    assert [(f.kind, f.begin.isoformat()) for f, _ in seen.files[:2]] == [
        ("monthly", "2026-04-01"), ("daily", "2026-05-01"),
    ]  # fmt: skip
    assert seen.estimate is not None
    assert seen.estimate.route == "ecs"
    assert world.deps.ledger.watermark(BINANCE) is None
    assert list(world.deps.objects.list("schemahub/")) == []


def test_ids_that_the_archive_lacks_stay_missing_and_are_named(world: ArchiveWorld) -> None:
    day = dt.date(2026, 5, 10)
    lost = world.ids(day).first + 5
    world.plant("skip", day, ids=[lost, lost + 2])
    with pytest.raises(errors.IncompleteChunks) as caught:
        filled(world, {"from": "2026-05-10", "to": "2026-05-11"})
    assert caught.value.span == (lost, lost + 2)
    assert world.deps.ledger.segment_at(BINANCE, lost) is None


def test_what_a_day_lacks_is_looked_for_in_its_month_the_next_time(world: ArchiveWorld) -> None:
    day = dt.date(2026, 4, 25)
    lost = world.ids(day).first + 5
    world.plant("skip", day, ids=[lost, lost + 2])
    wanted = {"from": "2026-04-25", "to": "2026-04-26"}
    with pytest.raises(errors.IncompleteChunks):
        filled(world, wanted)
    world.deps.locks.release_run("arn:aws:states:us-east-1:1:execution:backfill:run-1")
    filled(world, wanted)
    assert covers([s.interval for s in world.deps.ledger.segments(BINANCE)], world.ids(day))
    assert world.table(world.ids(day)) == world.truth(world.ids(day), micros=True)


def test_a_gap_next_to_the_newest_id_ends_the_first_commit_above_it(world: ArchiveWorld) -> None:
    gone = whole(world).last - 7
    world.plant("skip", NEWEST, ids=[gone, gone])
    chunk = anchor.foreseen(world.deps, BINANCE, files=True)
    assert (chunk.first, chunk.last) == (gone + 1, gone + 7)


@pytest.mark.parametrize("kind", ["wrong_checksum", "no_checksum", "corrupt", "not_zip"])
def test_a_newest_file_that_does_not_prove_itself_begins_nothing(world: ArchiveWorld, kind: str) -> None:
    world.plant(kind, NEWEST)
    with pytest.raises(errors.ArchiveError):
        plan(Backfill.start(world.pipeline.world, "all", BINANCE))
    assert world.deps.ledger.watermark(BINANCE) is None
    assert not world.deps.locks.holder(BINANCE.lock_id)


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_plan_that_dies_at_the_first_commit_is_repeated_without_harm(
    world: ArchiveWorld, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    class Killed(BaseException):
        """As a process that ends at this line."""

    def dies(*args: Any) -> Any:
        monkeypatch.setattr(anchor, "commit_segments", commit.commit_segments)
        if at == "after":
            commit.commit_segments(*args)
        raise Killed

    run = Backfill.start(world.pipeline.world, "all", BINANCE)
    monkeypatch.setattr(anchor, "commit_segments", dies)
    with pytest.raises(Killed):
        plan(run)
    assert plan(run)["status"] == "planned"
    mark = world.deps.ledger.watermark(BINANCE)
    [segment] = world.deps.ledger.segments(BINANCE)
    assert mark is not None
    assert segment.interval == (mark.low, mark.high)


def test_what_neither_the_api_nor_the_archive_knows_is_named_with_its_nearest(world: ArchiveWorld) -> None:
    world.pipeline.cure()
    with pytest.raises(errors.UnknownProduct, match=r"nor has its archive.*Did you mean binance:BTC-USDT"):
        plan(Backfill.start(world.pipeline.world, "all", Stream("binance", "BTCC-USDT")))


def test_without_tasks_the_error_says_what_its_archive_needs(world: ArchiveWorld) -> None:
    world.deps.settings = replace(world.deps.settings, backfill_ecs=False)
    with pytest.raises(errors.UnknownProduct, match="BackfillSubnets"):
        plan(Backfill.start(world.pipeline.world, "all", BINANCE))


def test_a_month_is_taken_whole_where_all_of_it_is_missing(world: ArchiveWorld) -> None:
    shelf = Shelf(world.deps, BINANCE)
    april = Interval(whole(world).first, world.ids(dt.date(2026, 5, 1)).first - 1)
    assert shelf.files([april]) == [
        (archives.file_of(MAPPING, BINANCE, "monthly", dt.date(2026, 4, 1)).to_json(), april)
    ]
    some = shelf.files([Interval(april.first, april.last - 1)])
    assert [f["kind"] for f, _ in some] == ["daily"] * 11
