"""Holes looked for in files of an archive: what a file must prove before it is believed, and what it then tells."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import archive_path, errors, paths, repair
from schemahub.archive_download import RequestsFiles
from schemahub.archive_path import look_in_files
from schemahub.archives import files_for
from schemahub.holes import LOOKS, LOOKS_APART_S, Hole
from schemahub.repair import holes_of, repair_stream
from schemahub.streams import Interval
from tests.lake import make_glue_check_versions
from tests.unit.archive_worlds import OLD, WORLD, ArchiveWorld
from tests.unit.backfills import Backfill
from tests.unit.pipelines import BINANCE, make_pipeline

NEXT = OLD + dt.timedelta(days=1)
AT = 620
"""Where in its day the hole begins."""


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveWorld]:
    make_glue_check_versions(monkeypatch)
    monkeypatch.setattr("schemahub.backfill.CHUNK_ROWS", 1_000)
    archive_path._spool.cache_clear()
    small = {**WORLD, "binance": {**WORLD["binance"], "trades_per_day": 1_200}}  # type: ignore[dict-item]
    with running(small) as server:
        pipeline = make_pipeline(aws, server, tmp_path, cold_start_trades=50)
        pipeline.ingest(BINANCE)
        yield ArchiveWorld(pipeline, tmp_path)


def lacking(world: ArchiveWorld, within: Interval, *holes: tuple[int, int]) -> list[Hole]:
    """A range that the API gave without some ids, committed by a backfill and published."""
    for first, last in holes:
        world.pipeline.fault("missing_forever", "binance", "BTC-USDT", match={"ids": [first, last]})
    run = Backfill.start(world.pipeline.world, {"ids": list(within)}, BINANCE, route="lambda")
    assert run.through()["failed"] == 0
    world.pipeline.transform()
    found = holes_of(world.deps, BINANCE)
    assert [(h.first, h.last) for h in found] == [*holes]
    return found


@pytest.fixture
def hole(world: ArchiveWorld) -> Hole:
    first = world.ids().first + AT
    return lacking(world, world.ids(), (first, first + 9))[0]


def repaired(world: ArchiveWorld) -> list[Hole]:
    world.pipeline.later(LOOKS_APART_S + 1)
    list(repair_stream(world.deps, BINANCE, f"gaps:{world.pipeline.clock.now_ms()}"))
    return holes_of(world.deps, BINANCE)


def asked_for(world: ArchiveWorld) -> list[str]:
    return [path.rsplit("/", 1)[-1] for path, _ in world.simulator.archives.requests]


def test_what_the_api_lacks_comes_from_the_file_of_that_day_before_the_api_is_asked(
    world: ArchiveWorld, hole: Hole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("the API is asked for what the file has")

    monkeypatch.setattr(paths, "_ask", never)
    [after] = repaired(world)
    assert (after.left, after.evidence) == ([], "came later")
    [fill] = world.deps.ledger.segments(BINANCE.fills)
    assert (fill.first, fill.last, fill.source) == (hole.first, hole.last, "repair")
    assert world.table(world.ids()) == world.truth(world.ids())
    assert asked_for(world) == [world.file().name]


def test_what_both_lack_is_denied_by_both_and_proved(world: ArchiveWorld, hole: Hole) -> None:
    world.plant("skip", ids=(hole.first, hole.last))
    for _ in range(LOOKS - 1):
        [after] = repaired(world)
    assert (after.proved, after.looks, after.kind, after.ids) == (True, LOOKS, "exchange_skipped", 10)
    assert "both sides" in after.evidence


def test_what_the_file_has_in_part_is_filled_in_part(world: ArchiveWorld, hole: Hole) -> None:
    world.plant("skip", ids=(hole.first + 3, hole.first + 5))
    [after] = repaired(world)
    assert after.left == [Interval(hole.first + 3, hole.first + 5)]
    assert [(s.first, s.last) for s in world.deps.ledger.segments(BINANCE.fills)] == [
        (hole.first, hole.first + 2),
        (hole.first + 6, hole.last),
    ]


def look(world: ArchiveWorld, hole: Hole) -> Any:
    return look_in_files(world.deps, hole, lambda: None)


def planted(kind: str, **args: Any) -> Callable[[ArchiveWorld, Hole, pytest.MonkeyPatch], None]:
    return lambda world, hole, patch: world.plant(kind, **args)


def too_large(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(archive_path, "MAX_PACKED_BYTES", 1_000)


def too_many(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(archive_path, "MAX_IDS", 9)


def too_slow(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(archive_path, "LOOK_S", -1.0)


def down(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    def silent(*arguments: Any) -> None:
        raise errors.ExchangeUnavailable("no answer")

    patch.setattr("schemahub.archive_download.RequestsFiles.open", silent)


def other_neighbour(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    world.plant("other_quantity", ids=(hole.last + 1, hole.last + 1))


def cut_at_the_hole(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    world.plant("skip", ids=(hole.first, hole.last + 1))


def two_rows_of_one_id(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    world.plant("conflict", ids=(hole.first + 2, hole.first + 3))


def rows_of_another_time(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    """binance-public-data#353: ids of other trades."""
    world.plant("other_trades", ids=(hole.first, hole.last))


def not_out_yet(world: ArchiveWorld, hole: Hole, patch: pytest.MonkeyPatch) -> None:
    out_ms = world.file().period_us[1] // 1000 + 3_600_000
    patch.setattr(archive_path, "files_for", lambda *a: files_for(*a[:-1], out_ms))


SILENT = [
    (two_rows_of_one_id, "contradicts itself about 2 ids"),
    (rows_of_another_time, "contradicts itself about"),
    (not_out_yet, "not published yet"),
    (planted("no_file"), "no checksum, or is not there"),
    (planted("no_checksum"), "no checksum, or is not there"),
    (planted("wrong_checksum"), "ChecksumMismatch"),
    (planted("corrupt"), "ArchiveUnreadable"),
    (planted("bomb", megabytes=2), "Archive"),
    (too_large, "ArchiveBomb"),
    (too_many, "more than a look holds"),
    (too_slow, "it took too long"),
    (down, "ExchangeUnavailable"),
    (other_neighbour, "another trade as"),
    (cut_at_the_hole, "does not show the trade"),
]


@pytest.mark.parametrize(("sick", "reason"), SILENT, ids=[reason for _, reason in SILENT])
def test_a_file_that_does_not_prove_itself_is_no_look_and_the_api_is_asked(
    world: ArchiveWorld, hole: Hole, monkeypatch: pytest.MonkeyPatch,
    sick: Any, reason: str,
) -> None:  # fmt: skip
    told: list[str] = []
    monkeypatch.setattr(archive_path.logger, "info", lambda words, extra: told.append(extra["reason"]))
    sick(world, hole, monkeypatch)
    assert look(world, hole) is None
    assert reason in told[0]
    [after] = repaired(world)
    assert (after.looks, after.ids) == (2, 10), "the API's look counts"
    assert list(world.deps.ledger.segments(BINANCE.fills)) == []


def test_a_hole_at_midnight_lies_in_two_files_of_which_one_is_on_disk(world: ArchiveWorld) -> None:
    border = world.ids(NEXT).first
    within = Interval(world.ids().first, world.ids(NEXT).last)
    [hole] = lacking(world, within, (border - 3, border + 3))
    seen, found = look(world, hole)
    assert seen.found == (Interval(hole.first, hole.last),)
    assert sum(len(f.texts) for f in found) == 7
    assert asked_for(world) == [world.file(day).name for day in (OLD, NEXT)]
    kept = {path.name for path in Path(archive_path._spool().name).iterdir()}
    assert kept <= {world.file(NEXT).name, world.file(NEXT).name + ".issue"}


@pytest.mark.parametrize("at", ["first", "last"])
def test_the_trades_beside_a_hole_may_be_in_another_segment(world: ArchiveWorld, at: str) -> None:
    within = Interval(world.ids().first // 1_000 * 1_000, world.ids(NEXT).last)
    border = within.first + 1_000
    span = (border, border + 4) if at == "first" else (border - 5, border - 1)
    [hole] = lacking(world, within, span)
    seen, _ = look(world, hole)
    assert seen.found == (Interval(*span),)


def test_holes_of_one_day_take_one_download(world: ArchiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.ids().first
    lacking(world, world.ids(), (first + 100, first + 101), (first + 400, first + 402))
    ranges: list[str] = []
    open_as_before = RequestsFiles.open

    def noted(self: Any, url: str, headers: dict[str, str]) -> Any:
        ranges.extend([headers.get("Range", "all")] if url.endswith(".zip") else [])
        return open_as_before(self, url, headers)

    monkeypatch.setattr(RequestsFiles, "open", noted)
    assert all(not h.left for h in repaired(world))
    [size] = {path.stat().st_size for path in Path(archive_path._spool().name).glob("*.zip")}
    assert ranges == ["all", f"bytes={size}-"]


def test_what_came_by_the_archive_is_asked_of_the_api_first(
    world: ArchiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = (world.ids().first + AT, world.ids().first + AT + 4)
    world.plant("skip", ids=span)
    world.pipeline.fault("missing_forever", "binance", "BTC-USDT", match={"ids": list(span)})
    world.ingest()
    order: list[str] = []
    for path in (paths.Rest, paths.Archive):
        told(monkeypatch, path, order)
    repaired(world)
    assert order == ["rest", "archive"]
    order.clear()
    monkeypatch.setattr(repair, "others_first", lambda known, source: order.append(str(source)) or tuple(known))
    repaired(world)
    assert order[0] == "archive"


def told(monkeypatch: pytest.MonkeyPatch, path: Any, order: list[str]) -> None:
    look_as_before = path.look

    def noted(self: Any, *arguments: Any) -> Any:
        order.append(self.source)
        return look_as_before(self, *arguments)

    monkeypatch.setattr(path, "look", noted)


def test_a_tick_that_loses_the_lock_ends_the_look(world: ArchiveWorld, hole: Hole) -> None:
    def lost() -> None:
        raise errors.LockLost("another holds it")

    with pytest.raises(errors.LockLost):
        look_in_files(world.deps, hole, lost)


def test_a_filled_part_is_not_taken_twice(world: ArchiveWorld, hole: Hole) -> None:
    part = Hole(BINANCE, hole.first, hole.last, hole.kind, 0, 0, filled=(Interval(hole.first, hole.first + 4),))
    seen, _ = look(world, part)
    assert seen.found == (Interval(hole.first + 5, hole.last),)
