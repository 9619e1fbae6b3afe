"""``schemahub stop``: an ingest is ended by name, with a question, and what remains of it is said."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from schemahub_cli import locks, target
from schemahub_cli.commands import stop as command
from schemahub_cli.main import app

RUNNER = CliRunner()
MACHINE = "arn:aws:states:us-east-1:1:stateMachine:schemahub-test-ingest"
RUN = "arn:aws:states:us-east-1:1:execution:schemahub-test-ingest:run-7"
START = datetime(2026, 11, 20, 12, tzinfo=UTC)


class States:
    """Step Functions with at most one execution."""

    def __init__(self, running: bool) -> None:
        self.status = "RUNNING" if running else "SUCCEEDED"
        self.stopped: list[dict[str, Any]] = []

    def get_paginator(self, name: str) -> Any:
        found = [{"executionArn": RUN, "startDate": START}] if self.status == "RUNNING" else []
        return SimpleNamespace(paginate=lambda **_: [{"executions": found}])

    def describe_execution(self, executionArn: str) -> dict[str, Any]:
        ended = {} if self.status == "RUNNING" else {"stopDate": START + timedelta(seconds=75)}
        return {"startDate": START, "status": self.status, **ended}

    def stop_execution(self, **arguments: Any) -> None:
        self.stopped.append(arguments)
        self.status = "ABORTED"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    states = States(running=True)
    ledger = SimpleNamespace(pending=lambda: [SimpleNamespace(count=900), SimpleNamespace(count=100)])
    found = SimpleNamespace(
        stack="schemahub-test", where="schemahub-test (local)", local=True, ingest_arn=MACHINE, states=states,
        client=lambda service: states, deps=SimpleNamespace(ledger=ledger), held=[],
    )  # fmt: skip
    monkeypatch.setattr(target, "resolve", lambda stack: found)
    monkeypatch.setattr(locks, "held_by", lambda where, arn: list(found.held))
    monkeypatch.setattr(command, "STOP_S", 0.0)
    return found


def test_a_running_ingest_is_stopped_by_name_and_what_remains_is_said(world: SimpleNamespace) -> None:
    said = RUNNER.invoke(app, ["stop", "--yes"])
    assert said.exit_code == 0
    assert [call["executionArn"] for call in world.states.stopped] == [RUN]
    for words in ("run-7 aborted after 1:15", "its locks are released", "2 committed segments", "schemahub run"):
        assert words in said.output


def test_locks_that_nobody_released_are_named_with_when_they_run_out(world: SimpleNamespace) -> None:
    world.held = ["ingest#coinbase"]
    said = RUNNER.invoke(app, ["stop", "--yes"]).output
    assert "ingest#coinbase" in said
    assert "within 95 s" in said


def test_nothing_is_stopped_where_nobody_can_be_asked(world: SimpleNamespace) -> None:
    for words in (["stop"], ["stop", "--json"]):
        assert RUNNER.invoke(app, words).exit_code == 2
    assert world.states.stopped == []


def test_a_person_who_says_no_stops_nothing(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "somebody_is_there", lambda: True)
    said = RUNNER.invoke(app, ["stop"], input="n\n")
    assert "run-7" in said.output
    assert said.exit_code == 1
    assert world.states.stopped == []
    assert RUNNER.invoke(app, ["stop"], input="y\n").exit_code == 0
    assert len(world.states.stopped) == 1


def test_without_an_ingest_there_is_nothing_to_stop(world: SimpleNamespace) -> None:
    world.states.status = "SUCCEEDED"
    said = RUNNER.invoke(app, ["stop", "--json"])
    assert said.exit_code == 0
    assert json.loads(said.stdout) == {"stack": "schemahub-test", "stopped": None}
    assert world.states.stopped == []


def test_the_lease_that_is_promised_is_the_lease_that_is_taken() -> None:
    from schemahub.locks import LEASE_MS, SKEW_MS

    assert command.LEASE_S * 1000 == LEASE_MS + SKEW_MS
