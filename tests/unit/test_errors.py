"""The tree of errors: drawn, whole, with a remedy each, and the only names that the state machines speak."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from schemahub import errors
from schemahub.errors import RateLimited, SchemaHubError
from schemahub_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
ALL = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, SchemaHubError)]
AWS = re.compile(r"(States|Lambda|Runtime|Sandbox|StepFunctions|ECS|AmazonECS|DynamoDB|S3)\.\w+")
MACHINES = sorted(ROOT.glob("statemachines/*.asl.json"))


def drawn() -> list[tuple[str, str | None]]:
    """(class, parent) of each line of the docstring's tree, by its depth."""
    path: list[str] = []
    pairs = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+)( .*|)$", line)
        if not match:
            continue
        depth = len(match[1]) // 4
        path = [*path[:depth], match[2]]
        pairs.append((match[2], path[depth - 1] if depth else None))
    return pairs


def test_the_tree_is_drawn_as_it_is() -> None:
    real = {(c.__name__, None if c is SchemaHubError else c.__bases__[0].__name__) for c in ALL}
    assert set(drawn()) == real
    assert len(drawn()) == len(real), "a class is drawn twice"


@pytest.mark.parametrize("error", ALL, ids=lambda c: c.__name__)
def test_each_error_has_a_remedy_that_a_person_can_act_on(error: type[SchemaHubError]) -> None:
    assert re.fullmatch(r"[A-Z`].{20,}\.", error.remedy)
    leaf = not error.__subclasses__()
    assert not leaf or error.remedy != SchemaHubError.remedy, "a leaf says more than the root"


def make(error: type[SchemaHubError], **about: Any) -> SchemaHubError:
    return error("it broke", **({"retry_after_s": 7} if error is RateLimited else {}), **about)


@pytest.mark.parametrize("error", ALL, ids=lambda c: c.__name__)
def test_each_error_says_where_what_and_what_to_do(error: type[SchemaHubError]) -> None:
    text = str(make(error, stream="coinbase#BTC-USD#trades", span=(3, 5)))
    assert text == f"coinbase#BTC-USD#trades: it broke [3..5]. {error.remedy}"
    assert str(make(error, remedy="Do this.")) == "it broke. Do this."


def test_remedies_name_only_commands_and_files_that_exist() -> None:
    command = typer.main.get_command(app)
    for error in ALL:
        for line in re.findall(r"`schemahub ([^`]+)`", error.remedy):
            at: Any = command
            for word in [w for w in line.split() if not w.startswith("-")]:
                assert word in at.commands, f"{error.__name__} names `schemahub {line}`"
                at = at.commands[word]
            options = {o for p in at.params for o in p.opts} | {"--help"}
            assert {w for w in line.split() if w.startswith("--")} <= options, line
        for path in re.findall(r"(?:docs|mappings)/[\w./-]*\w", error.remedy):
            assert (ROOT / path).exists() or (ROOT / "layers/core/schemahub" / Path(path).name).exists(), path


def test_no_remedy_sends_anybody_to_a_console_that_the_local_stack_has_not() -> None:
    for error in ALL:
        assert not re.search("console|redrive", error.remedy, re.IGNORECASE), error.__name__


def test_what_is_permanent_is_retried_by_no_state_machine_and_its_children_are_permanent_too() -> None:
    names = {name for machine in MACHINES for name in retried(json.loads(machine.read_text()))}
    assert not {name for name in names if errors.permanent(name)}
    assert {c.__name__ for c in ALL if issubclass(c, errors.BadInput)} <= {
        c.__name__ for c in ALL if errors.permanent(c.__name__)
    }
    assert not errors.permanent("States.Timeout")
    assert not errors.permanent(None)


def test_a_replay_of_what_is_permanent_is_told_to_be_forced() -> None:
    for error in ALL:
        if "schemahub replay" in error.remedy:
            assert ("replay --force" in error.remedy) == error.permanent, error.__name__


def retried(node: Any) -> Iterator[str]:
    """Names in the Retry blocks of a state machine. What is caught goes on elsewhere, and may be everything."""
    if isinstance(node, dict):
        for block in node.get("Retry", ()):
            yield from block["ErrorEquals"]
        for value in node.values():
            yield from retried(value)
    elif isinstance(node, list):
        for value in node:
            yield from retried(value)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda p: p.name)
def test_what_a_state_machine_retries_exists(machine: Path) -> None:
    names = set(retried(json.loads(machine.read_text())))
    assert names
    known = {c.__name__ for c in ALL}
    assert {n for n in names if not AWS.fullmatch(n)} <= known
    assert "States.ALL" not in names, "only what is known to be passing is retried"


def test_only_what_can_pass_by_itself_is_retried() -> None:
    names = {n for m in MACHINES for n in retried(json.loads(m.read_text()))} & {c.__name__ for c in ALL}
    never = (
        errors.BadInput,
        errors.StateError,
        errors.TransformError,
        errors.PageConflict,
        errors.HeadBehindWatermark,
        errors.ExchangeRefused,
        errors.LockLost,
    )
    assert not {n for n in names if issubclass(getattr(errors, n), never)}


def test_a_fetch_is_retried_for_each_passing_error_of_an_exchange() -> None:
    """One that is missing in a Retry would fail a chunk for an answer that is better a second later."""
    states = json.loads((ROOT / "statemachines" / "ingest.asl.json").read_text())
    fetches = [s for s in walk(states) if "FetchChunkFunctionArn" in json.dumps(s.get("Parameters", {}))]
    assert len(fetches) >= 2
    wanted = {
        "ExchangeUnavailable",
        "RateLimited",
        "ResponseInterrupted",
        "MalformedResponse",
        "EmptyPage",
        "IncompletePage",
        "SlotRefused",
        "CircuitOpen",
    }
    for state in fetches:
        assert wanted <= set(retried(state))


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Each state of a machine, however deep."""
    if isinstance(node, dict):
        if "Type" in node:
            yield node
        for value in node.values():
            yield from walk(value)
