"""``maintain`` and files that were issued again: seen by their checksum, taken by a task, the table made anew."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import boto3
import pytest

from local.exchange_sim.server import running
from schemahub import corrections, errors, events, maintain_archives, publishing, reissues
from schemahub.backfill_task import do, read_spec
from schemahub.correction_task import CorrectionSpec, run_corrections
from schemahub.maintain import maintain_step
from schemahub.runtime import parse_event
from schemahub.streams import PREFIX, Interval, Segment
from tests.lake import make_glue_check_versions
from tests.simulation.asl import SUCCEEDED, Execution, Invocation, Service, StateFailed, load, run
from tests.unit.archive_worlds import OLD, WORLD, ArchiveWorld
from tests.unit.pipelines import BINANCE, make_pipeline

NEXT = OLD + dt.timedelta(days=1)
RUN = {"id": "m-1", "arn": "arn:aws:states:us-east-1:1:execution:maintain:m-1"}
STEPS: dict[str, tuple[Any, Any]] = {
    "maintain": (maintain_step, events.MaintainStep),
    "list_pending": (publishing.list_pending, events.ListPending),
    "transform_batch": (publishing.transform_step, events.BatchStep),
    "publish": (publishing.publish_step, events.PublishStep),
}


@dataclass
class Maintained:
    """The state machine's own file over an archive's world. ``task`` is what ECS runs, instead of a container."""

    archive: ArchiveWorld
    tasks: int = 0
    task: Callable[[str], int] | None = None

    @property
    def deps(self) -> Any:
        return self.archive.deps

    def through(self) -> Execution:
        deps = self.deps
        read = lambda bucket, key: deps.objects.get(key) or b""  # noqa: E731
        machines = {name: load(name) for name in ("maintain", "transform")}
        numbers = iter(range(1000 * self.tasks + int(deps.clock.now_ms()) % 10**9 * 10**5, 10**16))
        service = Service(read, deps.clock.now_ms, machines, numbers)
        return run(service.start("maintain", {"schema_version": 1}), self._call, deps.clock.sleep)

    def _call(self, invocation: Invocation) -> Any:
        try:
            if invocation.function == "ecs:RunTask":
                self.tasks += 1
                return self._run_task(invocation.payload["environment"]["SCHEMAHUB_TASK"])
            step, model = STEPS[invocation.function]
            return step(parse_event(model, json.loads(json.dumps(invocation.payload))), self.deps)
        except errors.SchemaHubError as error:
            raise StateFailed(type(error).__name__) from error

    def _run_task(self, key: str) -> dict[str, Any]:
        if (self.task or self.container)(key):
            raise StateFailed("States.TaskFailed")
        return {}

    def container(self, key: str) -> int:
        """What functions/backfill/app.py does."""
        return do(self.deps, read_spec(self.deps, key), Event(), self.archive.folder / "task").exit_code

    def look(self) -> dict[str, Any]:
        return self.step("look")

    def step(self, action: str, **payload: Any) -> dict[str, Any]:
        execution = {"Id": RUN["arn"], "RedriveCount": 0}
        whole = {"action": action, "execution": execution, "run": RUN, **payload}
        return self.archive.pipeline.world.call(maintain_step, events.MaintainStep, whole)

    def states(self) -> list[str]:
        return [c.state for c in corrections.corrections(self.deps.objects, BINANCE)]


def made(aws: boto3.Session, server: Any, folder: Path) -> Maintained:
    """A stream that is committed near the head, on a deployment with ECS."""
    pipeline = make_pipeline(aws, server, folder, cold_start_trades=50)
    pipeline.ingest(BINANCE)
    deps = pipeline.world.deps
    deps.settings = replace(deps.settings, backfill_ecs=True, products=("binance:BTC-USDT",))
    return Maintained(ArchiveWorld(pipeline, folder))


@contextmanager
def small(aws: boto3.Session, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maintained]:
    """Days of few trades, in chunks of a thousand."""
    make_glue_check_versions(monkeypatch)
    monkeypatch.setattr("schemahub.backfill.CHUNK_ROWS", 1_000)
    quiet = {**WORLD, "binance": {**WORLD["binance"], "trades_per_day": 1_200}}  # type: ignore[dict-item]
    with running(quiet) as server:
        yield made(aws, server, folder)


@pytest.fixture
def bare(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maintained]:
    with small(aws, tmp_path, monkeypatch) as world:
        yield world


def taken_wrong(world: Maintained, *days: dt.date, first: int = 320) -> None:
    """Days that were taken with some wrong quantities, published, and are issued again with the right ones."""
    archive = world.archive
    for day in days:
        ids = archive.ids(day)
        archive.plant("other_quantity", ids=(ids.first + first, ids.first + first + 20))
        archive.ingest(day)
    archive.deps.locks.release(archive.lease())
    archive.table(archive.ids(days[0]))
    archive.simulator.archives.clear()


@pytest.fixture
def world(bare: Maintained) -> Maintained:
    taken_wrong(bare, OLD)
    return bare


def right(world: Maintained, day: dt.date = OLD) -> bool:
    ids = world.archive.ids(day)
    return world.archive.table(ids) == world.archive.truth(ids)


def of_day(world: Maintained, day: dt.date = OLD) -> list[Segment]:
    ids: Interval = world.archive.ids(day)
    return [s for s in world.deps.ledger.segments(BINANCE, ids.first) if s.last <= ids.last]


def test_a_reissue_ends_as_right_rows_without_anybodys_help(world: Maintained) -> None:
    assert not right(world)
    before = of_day(world)
    execution = world.through()
    assert execution.status == SUCCEEDED
    assert (world.tasks, world.states()) == (1, ["published"])
    done = {"corrections_published": 1, "corrections_due": 0, "corrections_committed": 0}
    assert done.items() <= execution.output.items()
    assert right(world)
    assert of_day(world) != before
    [correction] = corrections.corrections(world.deps.objects, BINANCE)
    assert "transform" in correction.document["rederived_by"]
    assert world.deps.locks.holder(BINANCE.backfill_lock_id) is None
    again = world.through()
    assert (again.status, world.tasks, again.output["corrections_published"]) == (SUCCEEDED, 1, 0)


def test_without_ecs_it_is_due_and_counted_until_somebody_can_take_it(world: Maintained) -> None:
    deps = world.deps
    deps.settings = replace(deps.settings, backfill_ecs=False)
    before = of_day(world)
    for _ in range(2):
        execution = world.through()
        assert (execution.status, world.tasks, execution.output["corrections_due"]) == (SUCCEEDED, 0, 1)
        assert (world.states(), of_day(world)) == (["due"], before)
    deps.settings = replace(deps.settings, backfill_ecs=True)
    assert world.through().output["corrections_published"] == 1
    assert right(world)


def test_a_task_that_dies_is_tried_once_more_and_is_due_in_the_next_run(world: Maintained) -> None:
    world.task = lambda key: 137
    execution = world.through()
    assert (execution.status, world.tasks) == (SUCCEEDED, 2)
    assert (execution.output["corrections_due"], world.states()) == (1, ["due"])
    world.task = None
    assert world.through().output["corrections_published"] == 1
    assert right(world)


def test_what_a_backfill_holds_is_left_for_the_next_run(world: Maintained) -> None:
    lease = world.archive.lease("a-backfill")
    execution = world.through()
    assert (execution.status, execution.output["corrections_due"], world.tasks) == (SUCCEEDED, 1, 1)
    world.deps.locks.release(lease)
    assert world.through().output["corrections_published"] == 1


def test_a_correction_whose_rows_may_be_on_their_way_waits_for_them(bare: Maintained) -> None:
    """Committed while nothing of it was published: the rows as they were may be in a batch that is published later."""
    bare.archive.pipeline.transform()  # there is a table, or `transform` would refuse anyway
    ids = bare.archive.ids()
    bare.archive.plant("other_quantity", ids=(ids.first + 320, ids.first + 340))
    bare.archive.ingest(OLD)
    bare.deps.locks.release(bare.archive.lease())
    bare.archive.simulator.archives.clear()
    execution = bare.through()
    assert (execution.output["corrections_committed"], execution.output["corrections_published"]) == (1, 0)
    bare.archive.pipeline.transform()
    assert bare.through().output["corrections_published"] == 1
    assert right(bare)


def test_a_run_takes_so_many_files_and_the_rest_is_due(bare: Maintained, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_wrong(bare, OLD, NEXT)
    monkeypatch.setattr(maintain_archives, "MAX_FILES_OF_STREAM", 1)
    first = bare.through().output
    assert (first["corrections_due"], first["corrections_published"]) == (1, 1)
    second = bare.through().output
    assert (second["corrections_due"], second["corrections_published"]) == (0, 1)
    assert right(bare)
    assert right(bare, NEXT)


def test_a_look_goes_on_where_the_last_one_ended(bare: Maintained, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_wrong(bare, OLD, NEXT)
    monkeypatch.setattr(maintain_archives, "MAX_LOOKS_OF_STREAM", 1)
    looks = [bare.look() for _ in range(3)]
    assert [look["asked"] for look in looks] == [1, 1, 1]
    assert [look["due"] for look in looks] == [1, 2, 2], "it begins anew, and nothing is listed twice"


def test_an_archive_that_does_not_answer_is_counted_and_asked_again(
    world: Maintained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*arguments: Any) -> None:
        raise errors.ExchangeUnavailable("no answer")

    with monkeypatch.context() as down:
        down.setattr("schemahub.archive_download.Downloads.checksum", silent)
        answer = world.look()
    assert [answer[n] for n in ("asked", "unanswered", "due", "tasks")] == [0, 1, 0, 0]
    assert reissues.looked(world.deps, BINANCE).after == ""
    assert world.look()["due"] == 1


def test_a_checksum_that_cannot_be_read_keeps_no_other_file_from_a_look(
    bare: Maintained, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_wrong(bare, OLD, NEXT)
    checksum = reissues.Downloads.checksum

    def nonsense(downloads: Any, file: Any) -> Any:
        if file.begin == OLD:
            raise errors.ArchiveUnreadable("no checksum", stream=file.stream)
        return checksum(downloads, file)

    monkeypatch.setattr(reissues.Downloads, "checksum", nonsense)
    answer = bare.look()
    assert (answer["asked"], answer["due"]) == (1, 1)


def test_an_issue_without_another_trade_is_settled_and_not_asked_for_again(bare: Maintained) -> None:
    bare.archive.plant("reverse")
    bare.archive.ingest(OLD)
    bare.deps.locks.release(bare.archive.lease())
    bare.archive.simulator.archives.clear()
    assert bare.look()["due"] == 1
    before = of_day(bare)
    bare.through()
    assert (bare.states(), of_day(bare)) == (["void"], before)
    assert bare.look()["due"] == 0


def test_an_issue_after_the_issue_takes_the_place_of_what_was_due(world: Maintained) -> None:
    deps = world.deps
    assert world.look()["due"] == 1
    world.archive.plant("reverse")  # the third issue
    assert world.look()["due"] == 1
    assert world.states() == ["due", "due"]
    assert world.through().output["corrections_due"] == 0
    assert sorted(world.states()) == ["published", "void"]
    assert right(world)
    assert deps.locks.holder(BINANCE.backfill_lock_id) is None


def test_an_issue_that_comes_back_is_taken_again(world: Maintained) -> None:
    ids = world.archive.ids()
    world.through()
    world.archive.plant("other_quantity", ids=(ids.first + 320, ids.first + 340))  # the first issue
    world.through()
    assert sorted(world.states()) == ["published", "void"]
    world.archive.simulator.archives.clear()
    assert world.look()["due"] == 1
    assert world.through().output["corrections_due"] == 0
    assert sorted(world.states()) == ["published", "void"]
    assert right(world)
    assert world.look()["due"] == 0


def test_what_died_half_way_is_made_anew_although_a_later_issue_came(world: Maintained) -> None:
    """Exchanged in the ledger, not listed as committed; then the file is issued once more."""
    write = corrections.write_correction

    def dies(objects: Any, key: str, document: Any) -> None:
        if document["state"] == "committed":
            raise errors.StoreUnavailable("the task was killed here")
        write(objects, key, document)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("schemahub.archive_correct.write_correction", dies)
        world.through()
    assert world.states() == ["prepared"]
    world.archive.plant("reverse")
    execution = world.through()
    assert execution.output["corrections_published"] == 1
    assert right(world)


def test_a_stopped_task_says_so_and_changes_nothing(world: Maintained) -> None:
    before, stop = of_day(world), Event()
    stop.set()
    spec = CorrectionSpec(RUN["arn"], BINANCE, (world.archive.file(),))
    ended = run_corrections(world.deps, spec, stop, world.archive.folder / "task")
    assert (ended.status, ended.exit_code) == ("stopped", 143)
    assert of_day(world) == before
    assert world.deps.locks.holder(BINANCE.backfill_lock_id) is None


def test_the_second_attempt_does_not_wait_for_the_lease_of_the_one_that_was_killed(
    world: Maintained, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CorrectionSpec(RUN["arn"], BINANCE, (world.archive.file(),))
    killed = world.deps.locks.acquire(BINANCE.backfill_lock_id, f"{RUN['arn']}/dead", RUN["arn"])
    ended = run_corrections(world.deps, spec, Event(), world.archive.folder / "task")
    assert ended.status == "done"
    assert world.states() == ["committed"]
    with pytest.raises(errors.LockLost):
        world.deps.locks.renew(killed)


def test_an_issue_that_cannot_be_used_is_no_reason_for_another_attempt(world: Maintained) -> None:
    world.archive.plant("corrupt")
    spec = CorrectionSpec(RUN["arn"], BINANCE, (world.archive.file(),))
    ended = run_corrections(world.deps, spec, Event(), world.archive.folder / "task")
    assert (ended.status, list(ended.errors.values())) == ("done", ["ArchiveUnreadable"])


def test_a_task_of_corrections_goes_through_s3(world: Maintained) -> None:
    spec = CorrectionSpec(RUN["arn"], BINANCE, (world.archive.file(),))
    assert CorrectionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    answer = world.look()
    [line] = (world.deps.objects.get(answer["tasks_key"]) or b"").splitlines()
    assert read_spec(world.deps, json.loads(line)["task_key"]) == spec


def test_only_a_committed_correction_is_marked_and_twice_is_once(world: Maintained) -> None:
    world.look()
    [due] = corrections.corrections(world.deps.objects, BINANCE)
    named = {"correction": due.key, "transform": "arn:transform"}
    with pytest.raises(errors.CorruptState):
        world.step("published", **named)
    corrections.write_correction(world.deps.objects, due.key, due.document | {"state": "committed"})
    for _ in range(2):
        assert world.step("published", **named) == {"status": "published"}
    with pytest.raises(errors.BadStateInput):
        world.step("published", correction=due.key.replace(".json", "0.json"), transform="arn:transform")
    with pytest.raises(errors.BadStateInput):
        world.step("published", correction=f"{PREFIX}archives/../x.json", transform="arn:transform")
