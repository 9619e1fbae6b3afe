"""A task that takes a file of an archive: committed under the plan's lease, stopped in order, and never a failure by
itself when the file is of no use."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import backfill, coverage, errors, events
from schemahub.backfill_plan import TaskSpec
from schemahub.backfill_report import _summed, report
from schemahub.backfill_task import run_task
from schemahub.streams import covers
from schemahub_cli.backfills import files_lines
from tests.unit.archive_worlds import OLD, WORLD, ArchiveWorld
from tests.unit.pages import ROOT
from tests.unit.pipelines import BINANCE, make_pipeline


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveWorld]:
    monkeypatch.setattr("schemahub.backfill.CHUNK_ROWS", 1_000)  # a day is some chunks
    with running(WORLD) as server:
        pipeline = make_pipeline(aws, server, tmp_path, cold_start_trades=50)
        pipeline.ingest(BINANCE)
        yield ArchiveWorld(pipeline, tmp_path)


def spec_of(world: ArchiveWorld, **more: Any) -> TaskSpec:
    values = {"run": "run", "stream": BINANCE, "lease": world.lease(), "kind": "archive", "within": world.ids()}
    values |= {"workers": 3, "chunk_concurrency": 5, "file": world.file().to_json()}
    return TaskSpec(**{**values, **more})


def work(world: ArchiveWorld, stop: threading.Event | None = None, **more: Any) -> Any:
    return run_task(world.deps, spec_of(world, **more), stop or threading.Event(), world.folder / "work")


def committed(world: ArchiveWorld) -> list[Any]:
    return [s for s in world.deps.ledger.segments(BINANCE, world.ids().first) if s.last <= world.ids().last]


def test_a_file_is_committed_by_its_task(world: ArchiveWorld) -> None:
    result = work(world)
    assert (result.status, result.exit_code, result.missing) == ("done", 0, 0)
    assert result.trades == world.ids().size
    assert covers([s.interval for s in committed(world)], world.ids())
    assert {s.source for s in committed(world)} == {"archive"}
    assert world.table(world.ids()) == world.truth(world.ids())
    assert backfill.counted(world.deps, BINANCE, "run")["chunks_fetched"] == result.fetched == len(committed(world))


def test_the_second_task_finds_nothing_missing(world: ArchiveWorld) -> None:
    work(world)
    assert (work(world).status, work(world).fetched) == ("done", 0)


def test_a_file_that_is_of_no_use_is_no_failure_of_the_task(world: ArchiveWorld) -> None:
    world.plant("no_file", OLD)
    result = work(world)
    assert (result.status, result.exit_code) == ("done", 0)
    assert result.errors == {"ArchiveAbsent": 1}
    assert coverage.missing(world.deps.ledger, BINANCE, world.ids()) == [world.ids()]


def test_the_report_names_each_file_and_sums_what_was_wrong(world: ArchiveWorld) -> None:
    ids, now = world.ids(), world.deps.clock.now_ms()
    run = events.Run(id="run", arn="arn:run", fences={}, opened_at=now)
    world.ingest(dt.date(2024, 6, 3))  # of an earlier run: not in the report
    world.deps.clock.ahead_s += 10
    run = run.model_copy(update={"opened_at": world.deps.clock.now_ms()})
    world.plant("wrong_checksum", OLD, times=2)
    world.plant("no_file", dt.date(2024, 6, 2))
    world.plant("repeat", OLD, ids=(ids.first + 10, ids.first + 29), times=2)
    assert work(world).errors == {"ChecksumMismatch": 1}
    assert work(world, file=world.file(dt.date(2024, 6, 2)).to_json()).errors == {"ArchiveAbsent": 1}
    assert work(world).status == "done"
    said = report(world.deps, run, {BINANCE: "schemahub/plans/run/backfill/binance/BTC-USDT/"})
    assert said["files"] == 2
    assert said["pathologies"] == {
        "ArchiveAbsent": 1,
        "checksum_mismatch": 1,
        "rows_disordered": 2,
        "rows_repeated": 40,
    }
    first, second = said["streams"][0]["files"]
    assert (first["status"], first["checksum"], first["committed_rows"]) == ("ingested", "verified", ids.size)
    assert [tried["error"] for tried in first["attempts"]] == ["ChecksumMismatch"]
    assert (second["status"], second["error"]) == ("absent", "ArchiveAbsent")
    lines = files_lines(said)
    assert lines[0] == f"files of the archive: 1 absent, 1 ingested; {ids.size:,} rows"
    assert lines[1] == "wrong with them: ArchiveAbsent 1, checksum_mismatch 1, rows_disordered 2, rows_repeated 40"
    assert files_lines({"streams": [{"files": []}]}) == []


def test_what_two_attempts_found_wrong_with_a_file_is_summed_where_it_adds_up() -> None:
    def part(*counts: tuple[str, int], **more: Any) -> dict[str, Any]:
        return {"pathologies": [{"kind": kind, "count": count} for kind, count in counts], **more}

    first = part(("ids_missing", 3), ("rows_repeated", 5))
    file = part(("ids_missing", 4), ("rows_repeated", 2), ("truncated", 1), parts=[first])
    assert _summed([file, part(("truncated", 1), error="ArchiveAbsent")]) == {
        "ids_missing": 7, "rows_repeated": 5, "truncated": 2, "ArchiveAbsent": 1,
    }  # fmt: skip


def test_a_stopped_task_says_so(world: ArchiveWorld) -> None:
    stop = threading.Event()
    stop.set()
    result = work(world, stop)
    assert (result.status, result.exit_code, result.fetched) == ("stopped", 143, 0)


def test_a_paused_task_ends_with_0(world: ArchiveWorld) -> None:
    backfill.want(world.deps, "run", "pause")
    result = work(world)
    assert (result.status, result.exit_code, result.fetched) == ("pause", 0, 0)


def test_a_zombie_commits_nothing_of_a_file(world: ArchiveWorld) -> None:
    spec = spec_of(world)
    world.deps.locks.advance(spec.lease)
    with pytest.raises(errors.LockLost):
        run_task(world.deps, spec, threading.Event(), world.folder / "work")
    assert not committed(world)


def test_without_a_directory_it_is_refused(world: ArchiveWorld) -> None:
    with pytest.raises(errors.BadStateInput, match="directory"):
        run_task(world.deps, spec_of(world), threading.Event())


def test_a_rest_task_does_not_load_arrow() -> None:
    code = "import sys, schemahub.backfill_task, schemahub.backfill_pool; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "layers" / "core", check=False).returncode == 0
