"""Whatever is typed, each command ends with a documented exit code and a named error: no traceback, no bug."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from local import bring_up, sim_process
from local import stack as local_stack
from schemahub import exchanges
from schemahub.errors import ExchangeUnavailable, NothingIngested
from schemahub_cli import target
from schemahub_cli.commands import local as local_commands
from schemahub_cli.commands import status as status_command
from schemahub_cli.main import app
from schemahub_cli.output import Exit
from tests.conftest import REGION
from tests.unit.test_docs_cli import COMMANDS
from tests.unit.worlds import Shifted, make_world

RUNNER = CliRunner(env={"COLUMNS": "100"})
DOCUMENTED = {*map(int, Exit), 130}
NONSENSE = [
    "", " ", "0", "-1", "9" * 40, "1e400", "NaN", "☃", "FOO", "coinbase:", ":", "coinbase:FOO", "coinbase:FOO-BAR",
    "nowhere:BTC-USD", "coinbase:BTC-USD:fills", "a:b:c:d", "../../etc/passwd", "[red]", "{}", "%s", "*", "7d",
    "2026-13", "x" * 3_000, "SELECT", "1..2", "\N{RIGHT-TO-LEFT OVERRIDE}", "\udcff", "\t\n",
]  # fmt: skip
LEFT_ALONE = {"--help", "--stack", "--follow", "--wait"}
"""A deployed stack and the end of an execution are not here to be waited for."""


class Silent:
    """An exchange that nobody can reach."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def get(self, url: str, params: dict[str, str]) -> Any:
        raise ExchangeUnavailable("nobody answers")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a stack: nothing is started on it, and nothing written outside of its folder."""
    monkeypatch.setenv("SCHEMAHUB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for module in (exchanges, sys.modules["schemahub_cli.commands.exchange"]):
        monkeypatch.setattr(module, "RequestsHttp", Silent)

    def no_processes(*arguments: Any, **options: Any) -> Any:
        raise local_stack.StackError("no processes here")

    monkeypatch.setattr(bring_up, "bring_up", no_processes)
    for name in ("bring_up", "subprocess"):
        monkeypatch.setattr(local_commands, name, no_processes, raising=False)
    monkeypatch.setattr(sim_process, "start", no_processes, raising=False)
    monkeypatch.setattr("local.demo.main", lambda arguments: 1)
    return tmp_path


@pytest.fixture
def stack(aws: boto3.Session, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stack in which nothing was pulled yet, with state tables and a bucket, and state machines that never ran."""
    world = make_world(aws, "http://127.0.0.1:9", Shifted())
    world.deps.http = Silent()
    arns = {}
    role = "arn:aws:iam::123456789012:role/r"
    for name in ("ingest", "transform", "backfill"):
        made = aws.client("stepfunctions").create_state_machine(name=name, roleArn=role, definition=PASS)
        arns[name] = made["stateMachineArn"]
    where = SimpleNamespace(
        stack="schemahub-test", stage="test", where="schemahub-test (local)", local=True, deps=world.deps, session=aws,
        client=lambda service: aws.client(service, region_name=REGION), database="db",
        ingest_arn=arns["ingest"], transform_arn=arns["transform"], machine_arn=arns.get, outputs={},
        bucket=world.deps.settings.bucket,
    )  # fmt: skip
    monkeypatch.setattr(target, "resolve", lambda name: where)
    return where


PASS = '{"StartAt": "A", "States": {"A": {"Type": "Succeed"}}}'


def calls(name: str, rounds: int) -> Iterator[list[str]]:
    """Arguments for a command: no two rounds give one parameter the same piece of nonsense."""
    parameters = [p for p in COMMANDS[name].params if not LEFT_ALONE & {*p.opts}]  # type: ignore[attr-defined]
    flags = [p for p in parameters if getattr(p, "is_flag", False)]
    given = [p for p in parameters if p not in flags]
    for number in range(rounds):
        words: list[str] = []
        for place, parameter in enumerate(given):
            value = NONSENSE[(number * 7 + place * 3) % len(NONSENSE)]
            if parameter.param_type_name == "argument":
                words.append(value)
            elif number % (place + 2) == 0:
                words += [parameter.opts[0], value]
        words += [f.opts[0] for place, f in enumerate(flags) if (number >> place % 4) & 1]
        yield words


def assert_ends_well(words: list[str]) -> None:
    result = RUNNER.invoke(app, words)
    shown = f"{words}: exit code {result.exit_code}\n{result.output}\n{result.exc_info}"
    assert result.exit_code in DOCUMENTED, shown
    assert isinstance(result.exception, SystemExit | None), shown
    assert "Traceback" not in result.output, shown
    assert "UnexpectedError" not in result.output, shown


@pytest.mark.parametrize("name", COMMANDS)
def test_nonsense_without_a_stack_ends_with_a_named_error(name: str, aws: boto3.Session, nowhere: Path) -> None:
    for words in calls(name, 12):
        assert_ends_well([*name.split(), *words])


@pytest.mark.parametrize("name", [n for n in COMMANDS if not n.startswith(("exchange", "local"))])
def test_nonsense_on_a_stack_where_nothing_was_pulled_ends_with_a_named_error(
    name: str, stack: SimpleNamespace
) -> None:
    for words in calls(name, 12):
        assert_ends_well([*name.split(), *words])
    valued = [p for p in COMMANDS[name].params if p.param_type_name == "option" and not getattr(p, "is_flag", False)]  # type: ignore[attr-defined]
    for place, parameter in enumerate(p for p in valued if not LEFT_ALONE & {*p.opts}):
        for value in NONSENSE[place % 5 :: 5]:
            assert_ends_well([*name.split(), parameter.opts[0], value])


def test_a_product_that_the_simulator_cannot_play_is_a_named_error(nowhere: Path) -> None:
    result = RUNNER.invoke(app, ["exchange", "try", "coinbase", "FOO", "--simulator"])
    assert result.exit_code == 1
    assert "BadProductId" in result.output
    assert "for example FOO-USD" in result.output


def broken(*arguments: Any, **options: Any) -> Any:
    raise ZeroDivisionError("it is nought")


def test_a_bug_is_a_named_error_with_exit_code_1_and_shows_its_traceback_only_when_asked(
    stack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_command.state, "streams", broken)
    result = RUNNER.invoke(app, ["status"])
    assert result.exit_code == 1
    assert "UnexpectedError  ZeroDivisionError: it is nought" in result.output
    assert "--debug" in result.output
    assert '"error": "UnexpectedError"' in RUNNER.invoke(app, ["status", "--json"]).stdout
    assert isinstance(RUNNER.invoke(app, ["--debug", "status"]).exception, ZeroDivisionError)
    assert RUNNER.invoke(app, ["status"]).exit_code == 1, "asked for once is not asked for ever"
    monkeypatch.setenv("SCHEMAHUB_DEBUG", "1")
    assert isinstance(RUNNER.invoke(app, ["status"]).exception, ZeroDivisionError)


def run(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"{code}; from schemahub_cli.main import main; main()", *words],
        capture_output=True, text=True, errors="replace", check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_what_breaks_outside_of_a_command_is_a_named_error_too() -> None:
    code = "import schemahub_cli.main as m; m.debug.ask = lambda asked: 1 / 0"
    ran = run(code, "status")
    assert (ran.returncode, "Traceback" in ran.stderr) == (1, False)
    assert "UnexpectedError  ZeroDivisionError" in ran.stderr
    assert "Traceback" in run(code, "status", SCHEMAHUB_DEBUG="1").stderr


@pytest.mark.parametrize("words", [["gaps", "-s", "\udcff☃"], ["--\udcff"], ["query", "\udcff"], ["exchange", "list"]])
def test_neither_an_ascii_terminal_nor_bytes_that_are_no_utf8_bring_a_traceback(
    words: list[str], tmp_path: Path
) -> None:
    ran = run("pass", *words, PYTHONIOENCODING="ascii", SCHEMAHUB_HOME=str(tmp_path))
    assert ran.returncode in DOCUMENTED, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "UnexpectedError" not in ran.stderr


def test_a_named_error_stays_what_it_is(stack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise NothingIngested("nothing yet")

    monkeypatch.setattr(status_command.state, "streams", refuse)
    assert "NothingIngested" in RUNNER.invoke(app, ["status"]).output
