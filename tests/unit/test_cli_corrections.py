"""``schemahub backfill --plan`` with files of an archive, and ``schemahub backfill corrections``."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from schemahub import backfill, errors, events
from schemahub.archive_plan import archive_files
from schemahub_cli import backfills, target
from schemahub_cli.main import app
from tests.unit.archive_worlds import OLD
from tests.unit.backfills import Backfill
from tests.unit.pipelines import BINANCE
from tests.unit.test_maintain_archives import NEXT, Maintained, small, taken_wrong

RUNNER = CliRunner(env={"COLUMNS": "220"})
NAME = "binance:BTC-USDT"


@pytest.fixture
def world(aws: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maintained]:
    with small(aws, tmp_path, monkeypatch) as world:
        limit = {"AccountLimit": {"UnreservedConcurrentExecutions": 1000}}
        where = SimpleNamespace(
            deps=world.deps, stack="schemahub-test", where="schemahub-test", local=True,
            client=lambda service: SimpleNamespace(get_account_settings=lambda: limit),
        )  # fmt: skip
        monkeypatch.setattr(target, "resolve", lambda name: where)
        yield world


def call(*arguments: str, code: int = 0) -> Any:
    result = RUNNER.invoke(app, ["backfill", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def told(*arguments: str) -> str:
    return RUNNER.invoke(app, ["backfill", *arguments]).output


def held(world: Maintained) -> list[tuple[str, str]]:
    """Every object and what is in it, and every item of the ledger."""
    objects = world.deps.objects
    items = world.deps.ledger.table.scan()["Items"]
    return [*((k, str(objects.get_with_etag(k))) for k in objects.list("")), ("items", str(items))]


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_foresees_the_files_that_the_run_will_take_and_writes_nothing(
    world: Maintained, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(archive_files, worth=0)  # a day of this world is a page and a bit
    monkeypatch.setattr(backfills, "archive_files", few)
    days = [world.archive.file(day) for day in (OLD, NEXT)]
    wanted = f"{world.archive.ids(OLD).first}..{world.archive.ids(NEXT).last}"
    before = held(world)
    [stream] = call(NAME, "--ids", wanted, "--plan")["streams"]
    assert held(world) == before
    assert (stream["archive_files"], [f["name"] for f in stream["files"]]) == (2, [d.name for d in days])
    assert [(f["first"], f["last"]) for f in stream["files"]] == [tuple(world.archive.ids(d.begin)) for d in days]
    run = Backfill.start(world.archive.pipeline.world, {"ids": [int(n) for n in wanted.split("..")]}, BINANCE)
    payload = {**run.base, "lock": run.lock, "request": run.request}
    step = functools.partial(backfill.plan_backfill, archive_files=few)
    assert world.archive.pipeline.world.call(step, events.PlanBackfill, payload)["source"] == "archive"
    key = f"schemahub/plans/{run.run['id']}/backfill/binance/BTC-USDT/planned.json"
    assert json.loads(world.deps.objects.get(key) or b"") == stream["estimate"] | {"files": 2}
    shown = told(NAME, "--ids", wanted, "--plan")
    assert "2 files" in shown
    assert days[0].name in shown
    assert call(NAME, "--ids", wanted, "--plan", "--no-archives")["streams"][0]["files"] == []


def test_many_files_are_cut_for_people(world: Maintained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfills, "archive_files", functools.partial(archive_files, worth=0))
    monkeypatch.setattr(backfills, "FILES_SHOWN", 1)
    wanted = f"{world.archive.ids(OLD).first}..{world.archive.ids(NEXT).last}"
    assert "and 1 more" in told(NAME, "--ids", wanted, "--plan")


# --- corrections ----------------------------------------------------------------------------------------------------


def test_corrections_are_listed_with_their_state_and_differences(world: Maintained) -> None:
    assert "no corrections" in told("corrections")
    taken_wrong(world, OLD)
    world.through()
    [stream] = call("corrections")["streams"]
    [correction] = stream["corrections"]
    assert (stream["stream"]["exchange"], correction["state"]) == ("binance", "published")
    assert len(correction["differences"]) == 21
    assert correction["file"] == world.archive.file().name
    shown = told("corrections", NAME)
    assert "published" in shown
    assert "1 corrections, 0 of them not in the table yet" in shown


def test_a_check_names_what_was_issued_again_and_changes_nothing(world: Maintained) -> None:
    taken_wrong(world, OLD, NEXT)
    before = held(world)
    assert call("corrections")["streams"][0]["issued_again"] is None
    names = sorted(world.archive.file(day).name for day in (OLD, NEXT))
    assert call("corrections", "--check")["streams"][0]["issued_again"] == names
    assert names[0] in told("corrections", "--check")
    assert held(world) == before


def test_a_check_of_an_archive_that_does_not_answer_fails_by_its_name(
    world: Maintained, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_wrong(world, OLD)

    def silent(*arguments: Any) -> None:
        raise errors.ExchangeUnavailable("no answer")

    monkeypatch.setattr("schemahub.archive_download.Downloads.checksum", silent)
    [stream] = call("corrections", "--check", code=1)["streams"]
    assert stream["error"]["error"] == "ExchangeUnavailable"


def test_streams_that_cannot_be_meant_are_refused(world: Maintained) -> None:
    assert call("corrections", "binace:BTC-USDT", code=1)["error"] == "UnknownExchange"
