"""Files that an exchange issued again: found by their checksum, taken as corrections that can be seen."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import certificate, corrections, raw, rebuild
from schemahub.correction_task import CorrectionSpec, run_corrections
from schemahub.errors import BadStateInput, CorruptState, LockLost
from schemahub.reissues import look_for_reissues
from schemahub.streams import Interval, Segment
from schemahub.verify import Line, judge_line
from tests.lake import make_glue_check_versions
from tests.unit.archive_worlds import OLD, WORLD, ArchiveWorld
from tests.unit.pipelines import BINANCE, make_pipeline


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveWorld]:
    make_glue_check_versions(monkeypatch)
    monkeypatch.setattr("schemahub.backfill.CHUNK_ROWS", 1_000)  # a day is some chunks
    with running(WORLD) as server:
        pipeline = make_pipeline(aws, server, tmp_path, cold_start_trades=50)
        pipeline.ingest(BINANCE)
        yield ArchiveWorld(pipeline, tmp_path)


def wrong(world: ArchiveWorld) -> Interval:
    """Ids of the day's middle, which no sample of a first ingest looks at."""
    ids = world.ids()
    return Interval(ids.first + 620, ids.first + 640)


@pytest.fixture
def issued_wrong(world: ArchiveWorld) -> ArchiveWorld:
    """A day that was taken with wrong quantities, and is issued again with the right ones."""
    world.plant("other_quantity", ids=tuple(wrong(world)))
    world.ingest()
    world.ingest(OLD + dt.timedelta(days=1))
    ids = world.ids()
    assert world.table(ids) != world.truth(ids)
    assert look_for_reissues(world.deps, BINANCE) == []
    world.simulator.archives.clear()
    return world


def of_day(world: ArchiveWorld) -> list[Segment]:
    ids = world.ids()
    return [s for s in world.deps.ledger.segments(BINANCE, ids.first) if s.last <= ids.last]


def test_a_reissue_is_found_by_its_checksum_and_corrects_the_table_in_one_snapshot(issued_wrong: ArchiveWorld) -> None:
    """binance-public-data#405, #241: files issued again later.

    Right: old and new original are both kept, the ledger names the new one, the correction is listed with its rows,
    the table changes in one snapshot, and nothing outside of the range changes.
    """
    world, before = issued_wrong, of_day(issued_wrong)
    assert look_for_reissues(world.deps, BINANCE) == [world.file()]
    correction = world.correct()
    assert correction is not None
    after = of_day(world)
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a.commit_id != b.commit_id]
    assert len(changed) == 1
    old, new = changed[0]
    assert (new.first, new.last, new.count, new.published_in) == (old.first, old.last, old.count, old.published_in)
    assert raw.edition_of(new.raw_key) == new.sha256[:12]
    assert raw.read(world.deps.objects, old.raw_key, old.sha256, old.count)
    assert correction.document["segments"][0]["ids"] == 21
    assert [d["why"] for d in correction.document["differences"]] == ["the file was issued again"] * 21
    assert correction.rederive == {"streams": [str(BINANCE)], "since": old.first, "until": old.last}
    # Until the table is made anew, it has the rows of the first issue.
    ids = world.ids()
    assert world.table(ids) != world.truth(ids)
    outcome = world.rederive(correction.rederive)
    assert outcome["status"] == "replaced"
    assert world.table(ids) == world.truth(ids)
    next_day = world.ids(OLD + dt.timedelta(days=1))
    assert world.table(next_day) == world.truth(next_day)
    corrections.mark_published(world.deps.objects, correction, "r-1")
    assert [c.state for c in corrections.corrections(world.deps.objects, BINANCE)] == ["published"]
    state = world.state()
    assert state is not None
    assert [issue["sha256"] != state.sha256 for issue in state.earlier] == [True]
    assert look_for_reissues(world.deps, BINANCE) == []
    again = world.correct()
    assert again is not None
    assert again.state == "published"


def test_only_files_that_hold_the_range_are_made_anew(issued_wrong: ArchiveWorld) -> None:
    correction = issued_wrong.correct()
    assert correction is not None
    assert correction.rederive is not None
    outcome = issued_wrong.rederive(correction.rederive)
    # Both days were published in one batch, so their files go together; what the ingest published stays as it was.
    days = [issued_wrong.ids().size, issued_wrong.ids(OLD + dt.timedelta(days=1)).size]
    assert outcome["rows_before"] == outcome["rows"] == sum(days)


def test_a_correction_that_dies_after_the_ledger_is_finished_by_the_next(issued_wrong: ArchiveWorld) -> None:
    world, ledger = issued_wrong, issued_wrong.deps.ledger
    correct = ledger.correct

    def dies(*arguments: object) -> None:
        correct(*arguments)
        raise KeyboardInterrupt

    ledger.correct = dies
    with pytest.raises(KeyboardInterrupt):
        world.correct()
    ledger.correct = correct
    assert [c.state for c in corrections.corrections(world.deps.objects, BINANCE)] == ["prepared"]
    correction = world.correct()
    assert correction is not None
    assert correction.state == "committed"
    assert correction.rederive is not None
    world.rederive(correction.rederive)
    assert world.table(world.ids()) == world.truth(world.ids())


def test_a_correction_after_the_lock_was_lost_writes_nothing(issued_wrong: ArchiveWorld) -> None:
    world = issued_wrong
    lease, before = world.lease(), of_day(world)
    world.deps.locks.release(lease)
    world.lease("another")
    with pytest.raises(LockLost):
        world.correct(lease=lease)
    assert of_day(world) == before


def test_a_segment_that_another_has_changed_is_not_corrected(issued_wrong: ArchiveWorld) -> None:
    world, ledger = issued_wrong, issued_wrong.deps.ledger
    correct = ledger.correct

    def meanwhile(locks: Any, lease: Any, changes: Any, holes: Any) -> None:
        ledger.table.update_item(
            Key={"stream": str(BINANCE), "item": f"segment#{changes[0][0].first:020d}"},
            UpdateExpression="SET commit_id = :other",
            ExpressionAttributeValues={":other": "other"},
        )
        correct(locks, lease, changes, holes)

    ledger.correct = meanwhile
    with pytest.raises(CorruptState, match="is not the one that was to be corrected"):
        world.correct()
    assert not any(raw.edition_of(s.raw_key) for s in of_day(world))


def test_what_the_api_decided_stays_decided(world: ArchiveWorld) -> None:
    """A second issue with the same mistake, which the API had decided against when the first was taken."""
    ids = world.ids()
    world.plant("conflict", ids=(ids.first + 50, ids.first + 54))
    world.ingest()
    world.table(ids)
    world.simulator.archives.clear()
    world.plant("other_quantity", ids=(ids.first + 50, ids.first + 54))
    assert look_for_reissues(world.deps, BINANCE) == [world.file()]
    assert world.correct() is None
    assert world.table(ids) == world.truth(ids)
    assert look_for_reissues(world.deps, BINANCE) == []


def test_rows_that_the_new_issue_lost_stay_and_rows_that_it_found_come(world: ArchiveWorld) -> None:
    ids = world.ids()
    hole = (ids.first + 30, ids.first + 39)
    world.plant("skip", ids=hole)
    world.pipeline.fault("missing_forever", "binance", "BTC-USDT", match={"ids": list(hole)})
    world.ingest()
    assert world.table(ids) == world.truth(ids, without=range(hole[0], hole[1] + 1))
    world.simulator.archives.clear()
    world.plant("skip", ids=(ids.first + 60, ids.first + 69))
    world.pipeline.fault("missing_forever", "binance", "BTC-USDT", match={"ids": [ids.first + 60, ids.first + 69]})
    correction = world.correct()
    assert correction is not None
    assert list(world.deps.ledger.holes(BINANCE)) == []
    assert correction.rederive is not None
    world.rederive(correction.rederive)
    assert world.table(ids) == world.truth(ids)


def corrected(world: ArchiveWorld, run: str, work: Path) -> list[corrections.Correction]:
    """A task takes what was issued again; the corrections whose rows in the table are to be made anew."""
    spec = CorrectionSpec(run, BINANCE, (world.file(),))
    assert run_corrections(world.deps, spec, Event(), work).status == "done"
    found = corrections.corrections(world.deps.objects, BINANCE)
    return [c for c in found if c.state == "committed" and c.rederive]


def test_one_call_finds_corrects_and_names_what_is_left_to_do(issued_wrong: ArchiveWorld) -> None:
    world, work = issued_wrong, issued_wrong.folder / "again"
    world.deps.locks.release(world.lease())
    for _ in range(2):  # the second finds nothing new, and the table is still to be made anew
        [correction] = corrected(world, "maintain-1", work)
        assert correction.state == "committed"
    assert world.deps.locks.holder(BINANCE.backfill_lock_id) is None
    assert correction.rederive is not None
    world.rederive(correction.rederive)
    corrections.mark_published(world.deps.objects, correction, "r-1")
    assert corrected(world, "maintain-2", work) == []
    assert world.table(world.ids()) == world.truth(world.ids())


def test_a_corrected_stream_is_rebuilt_verified_and_certified_like_any_other(issued_wrong: ArchiveWorld) -> None:
    world, deps = issued_wrong, issued_wrong.deps
    correction = world.correct()
    assert correction is not None
    line = Line(BINANCE, deps.ledger.watermark(BINANCE), tuple(of_day(world)))
    assert [f for f in judge_line(line) if f.kind == "segment_wrong"] == []
    tiles = [certificate._tile(s) for s in line.segments]
    told = [certificate._segment(BINANCE, json.loads(json.dumps(t)), (), 0, True) for t in tiles]
    assert [t.raw_key for t in told] == [s.raw_key for s in line.segments]
    replaced, instead = corrections.replaced_keys(deps.objects, BINANCE)
    assert [len(replaced), len(instead)] == [1, 1]
    lost = line.segments
    for segment in lost:
        deps.ledger.table.delete_item(Key={"stream": str(BINANCE), "item": f"segment#{segment.first:020d}"})
    # As rebuild finds the objects of a range that the table of state has lost.
    keys = [t for t in rebuild._tiles(deps, BINANCE) if rebuild._in_use(t[2], replaced, instead)]
    path = rebuild.tiling(keys, lost[0].first, lost[-1].last)
    assert path is not None
    assert [key for _, _, key in path] == [s.raw_key for s in lost]


def test_the_state_of_another_file_is_no_reason_to_correct(world: ArchiveWorld) -> None:
    with pytest.raises(BadStateInput):
        world.correct()


def test_a_reissue_that_cannot_be_had_leaves_what_was_taken(issued_wrong: ArchiveWorld) -> None:
    issued_wrong.plant("corrupt")
    before = of_day(issued_wrong)
    with pytest.raises(Exception, match="cannot be unpacked"):
        issued_wrong.correct()
    assert of_day(issued_wrong) == before
    assert issued_wrong.state().taken is not None  # type: ignore[union-attr]
