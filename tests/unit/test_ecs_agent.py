"""The agent that makes ECS's tasks processes: what a task is given, how it is stopped, and that its end is told."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import ecs_agent
from local.ecs_agent import KILLED, OUT_OF_MEMORY, Agent

ARN = "arn:aws:ecs:us-east-1:000000000000:task/cluster/{}"
WAIT = "print('up', flush=True); time.sleep(60)"
POLITE = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); {WAIT}"
STUBBORN = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT}"
TELL = "import json, os; json.dump(dict(os.environ), open(os.environ['OUT'], 'w'))"


@dataclass
class Ecs:
    """As much of ECS's API as an agent needs."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    definition: dict[str, Any] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)

    def run(self, name: str, code: str, *, memory: int = 512, **environment: str) -> str:
        arn = ARN.format(name)
        self.definition = {
            "name": "backfill",
            "command": ["python", "-c", code],
            "stopTimeout": 1,
            "environment": [{"name": "GIVEN", "value": "by the definition"}, {"name": "WORK", "value": "/work"}],
            "mountPoints": [{"containerPath": "/work", "sourceVolume": "work"}],
        }
        overrides = [{"name": n, "value": v} for n, v in environment.items()]
        self.tasks[arn] = {
            "taskArn": arn,
            "taskDefinitionArn": "definition",
            "desiredStatus": "RUNNING",
            "lastStatus": "RUNNING",
            "memory": str(memory),
            "containers": [{"name": "backfill"}],
            "overrides": {"containerOverrides": [{"name": "backfill", "environment": overrides}]},
        }
        return arn

    def list_tasks(self, cluster: str, desiredStatus: str) -> dict[str, Any]:
        return {"taskArns": [arn for arn, task in self.tasks.items() if task["desiredStatus"] == desiredStatus]}

    def describe_tasks(self, cluster: str, tasks: list[str]) -> dict[str, Any]:
        return {"tasks": [self.tasks[arn] for arn in tasks if arn in self.tasks]}

    def describe_task_definition(self, taskDefinition: str) -> dict[str, Any]:
        return {"taskDefinition": {"containerDefinitions": [self.definition]}}

    def submit_task_state_change(self, **report: Any) -> None:
        self.reports.append(report)
        if report["task"] in self.tasks:
            self.tasks[report["task"]] |= {"lastStatus": "STOPPED", "desiredStatus": "STOPPED"}


class Offline(Agent):
    def credentials(self, arn: str) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": "the role's"}


@pytest.fixture
def ecs() -> Ecs:
    return Ecs()


@pytest.fixture
def agent(tmp_path: Path, ecs: Ecs) -> Agent:
    return Offline(tmp_path, "http://127.0.0.1:1", "cluster", ecs)


def until(agent: Agent, done: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "did not happen"
        agent.look()
        agent.watch()
        time.sleep(0.02)


def is_up(agent: Agent) -> bool:
    path = ecs_agent.log_path(agent.home)
    return path.exists() and "up" in path.read_text()


def ended(agent: Agent) -> list[dict[str, Any]]:
    path = ecs_agent.ended_path(agent.home)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_task_gets_its_definition_its_overrides_its_roles_rights_and_nothing_of_the_shell(
    agent: Agent, ecs: Ecs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    ecs.run("one", TELL, OUT=str(tmp_path / "out.json"), SCHEMAHUB_TASK="key")
    until(agent, lambda: ecs.reports)
    seen = json.loads((tmp_path / "out.json").read_text())
    assert (seen["GIVEN"], seen["SCHEMAHUB_TASK"]) == ("by the definition", "key")
    assert seen["AWS_ACCESS_KEY_ID"] == "the role's"
    assert seen["AWS_ENDPOINT_URL"] == agent.endpoint
    assert seen["WORK"] == seen["TMPDIR"] != "/work"
    assert "AWS_PROFILE" not in seen
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert ecs.reports[0]["containers"][0]["exitCode"] == 0


def test_a_task_is_started_once_and_its_own_end_is_told(agent: Agent, ecs: Ecs, tmp_path: Path) -> None:
    code = "import os, time; open(os.environ['OUT'], 'a').write('x'); time.sleep(0.3); raise SystemExit(7)"
    arn = ecs.run("one", code, OUT=str(tmp_path / "out"))
    until(agent, lambda: ecs.reports)
    [report] = ecs.reports
    assert (report["task"], report["status"]) == (arn, "STOPPED")
    assert report["containers"][0]["exitCode"] == 7
    assert (tmp_path / "out").read_text() == "x"
    assert not (tmp_path / "tasks" / "one").exists(), "its disk goes with it"
    [line] = ended(agent)
    assert (line["task"], line["exit_code"]) == (arn, 7)
    assert line["peak_mib"] > 1


def test_stop_task_is_a_sigterm_that_a_polite_task_answers(agent: Agent, ecs: Ecs) -> None:
    arn = ecs.run("one", POLITE)
    until(agent, lambda: is_up(agent))
    ecs.tasks[arn]["desiredStatus"] = "STOPPED"
    until(agent, lambda: ecs.reports)
    assert ecs.reports[0]["containers"][0]["exitCode"] == 143


def test_who_ignores_sigterm_is_killed_after_the_stop_timeout(agent: Agent, ecs: Ecs) -> None:
    arn = ecs.run("one", STUBBORN)
    until(agent, lambda: is_up(agent))
    ecs.tasks[arn]["desiredStatus"] = "STOPPED"
    began = time.monotonic()
    until(agent, lambda: ecs.reports)
    assert time.monotonic() - began >= 1
    assert ecs.reports[0]["containers"][0]["exitCode"] == KILLED


def test_who_takes_more_memory_than_allowed_is_killed(agent: Agent, ecs: Ecs) -> None:
    ecs.run("one", "import time; b = bytearray(200 << 20); time.sleep(60)", memory=64)
    until(agent, lambda: ecs.reports)
    [container] = ecs.reports[0]["containers"]
    assert (container["exitCode"], container["reason"]) == (KILLED, OUT_OF_MEMORY)


def test_a_task_that_the_aws_has_forgotten_is_stopped(agent: Agent, ecs: Ecs) -> None:
    arn = ecs.run("one", POLITE)
    until(agent, lambda: is_up(agent))
    del ecs.tasks[arn]
    until(agent, lambda: ended(agent))
    assert ended(agent)[0]["exit_code"] == 143


def test_a_command_that_cannot_be_started_ends_the_task(agent: Agent, ecs: Ecs) -> None:
    ecs.run("one", "")
    ecs.definition["command"] = ["/nonexistent"]
    until(agent, lambda: ecs.reports)
    assert "CannotStartContainerError" in ecs.reports[0]["containers"][0]["reason"]


def test_what_a_killed_agent_left_is_ended_and_told_by_the_next(agent: Agent, ecs: Ecs, tmp_path: Path) -> None:
    ecs.run("one", POLITE)
    until(agent, lambda: is_up(agent))
    [left] = agent.tasks.values()
    Offline(tmp_path, agent.endpoint, "cluster", ecs).bury()
    assert left.process.wait(5) == -signal.SIGKILL
    [report] = ecs.reports
    assert (report["task"], report["containers"][0]["exitCode"]) == ("one", KILLED)
    assert not list((tmp_path / "tasks").glob("*"))


def test_the_agent_as_a_process_is_found_again_and_stopped(tmp_path: Path) -> None:
    ecs_agent.ensure(tmp_path, "http://127.0.0.1:1", "cluster")
    found = ecs_agent.running(tmp_path)
    assert found is not None
    ecs_agent.ensure(tmp_path, "http://127.0.0.1:1", "cluster")
    assert ecs_agent.running(tmp_path) == found
    assert ecs_agent.stop(tmp_path)
    assert not psutil.pid_exists(found["pid"]) or psutil.Process(found["pid"]).status() == psutil.STATUS_ZOMBIE
    assert not ecs_agent.stop(tmp_path)
