"""A task that takes a file of an archive dies before or after each thing that it leaves behind, in a store or on disk.

Run again, as the same task or as one of the next plan, on the same disk or on an empty one, it ends with every row
once, and what is known of the file is whole.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import archive_download, archive_ingest, archive_sort, coverage, raw
from schemahub.backfill_plan import TaskSpec
from schemahub.backfill_task import run_task
from schemahub.errors import LockLost
from schemahub.streams import Interval, covers, overlapping
from tests.crash.test_repair_crashes import Killed, Reaper
from tests.lake import make_glue_check_versions
from tests.unit.archive_worlds import WORLD, ArchiveWorld
from tests.unit.pipelines import BINANCE, make_pipeline

DISK = {
    (archive_download, "_set_mark"): "mark of a download",
    (archive_download, "sha256_of"): "download",
    (archive_sort.Spill, "flush"): "spilled rows",
    (archive_ingest, "discard"): "file removed",
    (archive_ingest, "shutil"): "spilled rows removed",
}
STORES = {"PutObject", "PutItem", "UpdateItem", "TransactWriteItems"}


class DiskReaper(Reaper):
    """Kills at what is left on disk, too."""

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        for (place, name), said in DISK.items():
            effect = getattr(place, name)
            if effect is shutil:
                patch.setattr(place, name, SimpleNamespace(rmtree=self._struck(shutil.rmtree, said)))
            else:
                patch.setattr(place, name, self._struck(effect, said))

    def _struck(self, effect: Callable[..., Any], said: str) -> Callable[..., Any]:
        def strike(*args: Any, **options: Any) -> Any:
            if self.dead:
                raise Killed(said)
            self.seen.append(said)
            if (self.mode, self.at) == ("before", len(self.seen)):
                self.dead = True
                raise Killed(said)
            done = effect(*args, **options)
            if (self.mode, self.at) == ("after", len(self.seen)):
                self.dead = True
                raise Killed(said)
            return done

        return strike


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveWorld]:
    make_glue_check_versions(monkeypatch)
    monkeypatch.setattr("schemahub.backfill.CHUNK_ROWS", 1_000)
    # Two commits of one file.
    monkeypatch.setattr(archive_ingest, "GROUP_ROWS", 1_000)
    with running(WORLD) as server:
        pipeline = make_pipeline(aws, server, tmp_path, cold_start_trades=50)
        pipeline.ingest(BINANCE)
        yield ArchiveWorld(pipeline, tmp_path)


def empty(world: ArchiveWorld) -> None:
    """The file was never taken: no segment, no raw object, no state, nothing on disk."""
    deps = world.deps
    for segment in list(deps.ledger.segments(BINANCE, 0, world.ids().last)):
        name = f"segment#{segment.first:020d}"
        deps.ledger.table.delete_item(Key={"stream": str(BINANCE), "item": name})
    raws = [k for k in deps.objects.list(BINANCE.raw_prefix) if (raw.parse_raw_key(k) or (0,))[0] <= world.ids().last]
    for key in [*raws, *deps.objects.list("schemahub/archives/")]:
        deps.objects.client.delete_object(Bucket=deps.settings.bucket, Key=key)
    shutil.rmtree(world.folder / "work", ignore_errors=True)


def spec_of(world: ArchiveWorld, fence: bool) -> TaskSpec:
    """The plan's task; ``fence``: of a new plan, which takes another fence."""
    lease = world.lease()
    lease = world.deps.locks.advance(lease) if fence else lease
    return TaskSpec("run", BINANCE, lease, "archive", world.ids(), 3, 5, file=world.file().to_json())


def work(world: ArchiveWorld, spec: TaskSpec) -> Any:
    return run_task(world.deps, spec, threading.Event(), world.folder / "work")


def judge(world: ArchiveWorld, repeated: int) -> None:
    """Every row once, and the file's state as of a task that nobody killed."""
    ids, ledger = world.ids(), world.deps.ledger
    spans = [s.interval for s in ledger.segments(BINANCE, ids.first) if s.last <= ids.last]
    assert not overlapping(spans)
    assert covers(spans, ids)
    state = world.state()
    assert state is not None
    assert (state.status, state.report["status"], state.checksum) == ("ingested", "ingested", "verified")
    assert state.sha256 == state.upstream_sha256
    parts = [state.report, *state.report.get("parts", [])]
    found = Counter({p["kind"]: p["count"] for part in reversed(parts) for p in part["pathologies"]})
    assert found["ids_in_conflict"] == repeated, "what an earlier attempt found stays"
    assert all(part["rows"] > ids.size for part in parts), "of the whole file"
    assert state.earlier == ()


def strike(world: ArchiveWorld, monkeypatch: pytest.MonkeyPatch, mode: str, every: int) -> Counter[str]:
    """Kill at each ``every``-th effect in a world without the file; what was struck, by its kind."""
    ids = world.ids()
    two = Interval(ids.first + 100, ids.first + 101)
    world.plant("conflict", ids=tuple(two))
    reaper, struck = DiskReaper(world.pipeline), Counter[str]()
    reaper.watch(monkeypatch)
    # Renewals and slots depend on the time, so the n-th effect is not the same one in every run.
    calm, enough = 0, 3 if every == 1 else 1
    for at in range(1, 200, every):
        reaper.arm(0, mode)
        empty(world)
        spec = spec_of(world, fence=True)
        reaper.arm(at, mode)
        try:
            work(world, spec)
            calm += 1
            if calm == enough:
                break
            continue
        except Killed:
            calm = 0
            struck[reaper.seen[-1]] += 1
        reaper.arm(0, mode)
        if at % 2:
            shutil.rmtree(world.folder / "work", ignore_errors=True)  # another machine
        again = spec_of(world, fence=at % 3 == 0)
        if again.lease.fence != spec.lease.fence:
            with pytest.raises(LockLost):
                work(world, spec)
        assert work(world, again).exit_code == 0
        judge(world, two.size)
    else:
        raise AssertionError("no run came to its end")
    reaper.arm(0, mode)
    assert coverage.missing(world.deps.ledger, BINANCE, ids) == []
    assert world.table(ids) == world.truth(ids)
    return struck


def test_killed_here_and_there_a_later_task_ends_the_same(world: ArchiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    struck = strike(world, monkeypatch, "after", every=6)
    assert struck.total() >= 3


@pytest.mark.long
@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_every_effect_a_later_task_ends_the_same(
    world: ArchiveWorld, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    struck = strike(world, monkeypatch, mode, every=1)
    assert set(struck) == STORES - {"PutItem"} | set(DISK.values())
